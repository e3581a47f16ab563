"""Passes over the lanes of any `torch.nn.Module`: all at once by torch.func, or one lane after another."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.lanes.stack import stream
from trainables.models import trained

# Losses of each example in each lane, (K, B), of outputs (K, B, out_features) and targets.
Losses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Manner:
    """How the lanes of a network can run.

    Attributes:
        together: whether all at once.
        whole: whether what an example gives depends on its batch, or on chance, or changes a buffer: then batches are
            not cut into blocks.
        draws: whether it draws random numbers while it trains.
        why: why they cannot run at once, in words; empty if they can.
    """

    together: bool
    whole: bool
    draws: bool = False
    why: str = ""


@dataclass(frozen=True)
class Rows:
    """Some lanes of a stack: what the forward pass of a user's network takes besides parameters and inputs.

    Attributes:
        extras: `Stack.extras` of the lanes, changed in place while training.
        seeds: of the lanes.
        update: updates made so far; it and the seed decide on all random numbers.
    """

    extras: dict[str, Tensor]
    seeds: Sequence[int]
    update: int


class Turns:
    """One network that stands for each lane in turn: ordinary torch, with hooks, checkpointing and all.

    Args:
        network: on the lanes' device and in their type.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.parameters = network, list(trained(network).values())
        self.frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
        self.buffers = dict(network.named_buffers())

    @torch.no_grad()
    def enter(self, parameters: Sequence[Tensor], extras: Mapping[str, Tensor]) -> None:
        """Become a lane: its parameters, each of its shape, and what else `Stack.extras` has of it."""
        for own, values in zip(self.parameters, parameters, strict=True):
            own.copy_(values)
        for name, values in extras.items():
            if name in self.frozen:
                self.frozen[name].copy_(values)
                continue
            # A network may have put another tensor in the place of its buffer.
            owner, _, leaf = name.rpartition(".")
            self.network.get_submodule(owner)._buffers[leaf] = self.buffers[name].copy_(values)

    @torch.no_grad()
    def leave(self, parameters: Sequence[Tensor], extras: Mapping[str, Tensor]) -> None:
        """Write what the network is now, buffers that it has replaced too, over that with which it became the lane."""
        for values, own in zip(parameters, self.parameters, strict=True):
            values.copy_(own)
        now = dict(self.network.named_buffers())
        for name in extras.keys() - self.frozen.keys():
            if now[name].shape != extras[name].shape:
                raise ValueError(f"the buffer {name} of {tuple(extras[name].shape)} became {tuple(now[name].shape)}")
            extras[name].copy_(now[name])


class Copies:
    """The passes of K copies of a network.

    Args:
        network: one of them, on the lanes' device and in their type.
        manner: of `manner_of`.
    """

    def __init__(self, network: nn.Module, manner: Manner) -> None:
        self.network, self.manner, self.names = network, manner, list(trained(network))
        self.turns = Turns(network)

    def outputs(self, parameters: Sequence[Tensor], x: Tensor, rows: Rows, *, training: bool) -> Tensor:
        """(parameters, each (K, *shape), inputs (K or 1, B, *in_shape)) -> outputs (K, B, out_features).

        They can be differentiated if the lanes run together.
        """
        self.network.train(training)
        with batchable_attention():
            if self.manner.together:
                shared, named = len(x) == 1, dict(zip(self.names, parameters, strict=True))
                each = vmap(self._one, in_dims=(0, 0, None if shared else 0))
                found: Tensor = each(named, rows.extras, x[0] if shared else x)
                return found
            with torch.no_grad():
                return torch.stack([self.network(one) for one, _ in self._in_turn(parameters, x, rows, training)])

    def gradients(
        self,
        parameters: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        rows: Rows,
        losses: Losses,
        count: int,
        *,
        training: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Outputs, losses of the batch, (K,), and their gradients, each (K, *shape).

        Args:
            parameters: each (K, *shape).
            x: inputs, (K or 1, B, *in_shape).
            y: targets, (K or 1, B, ...).
            rows: the lanes.
            losses: of the examples.
            count: examples of the whole batch, over which is meaned; x may be a part of it.
            training: whether the network trains or is evaluated.
        """
        if self.manner.together:
            outputs = self.outputs(parameters, x, rows, training=training)
            each = losses(outputs, y).sum(1) / count
            with batchable_attention():
                found = torch.autograd.grad(each.sum(), parameters, materialize_grads=True)
            return outputs.detach(), each.detach(), list(found)
        self.network.train(training)
        all_outputs, all_losses, all_gradients = [], [], []
        with batchable_attention(), torch.enable_grad():
            for one, lane in self._in_turn(parameters, x, rows, training):
                self.network.zero_grad()
                outputs = self.network(one)
                each = losses(outputs[None], y[lane : lane + 1] if len(y) > 1 else y).sum() / count
                each.backward()
                all_outputs.append(outputs.detach())
                all_losses.append(each.detach())
                own = [p.new_zeros(p.shape) if p.grad is None else p.grad.clone() for p in self.turns.parameters]
                all_gradients.append(own)
        self.network.zero_grad()
        columns = [torch.stack(column) for column in zip(*all_gradients, strict=True)]
        return torch.stack(all_outputs), torch.stack(all_losses), columns

    def _one(self, parameters: dict[str, Tensor], extras: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.network, (parameters, extras), (x,))
        return outputs

    def _in_turn(
        self, parameters: Sequence[Tensor], x: Tensor, rows: Rows, training: bool
    ) -> Iterator[tuple[Tensor, int]]:
        """Become lane after lane: its inputs and its place. Evaluation leaves its buffers as they were."""
        for lane, seed in enumerate(rows.seeds):
            extras = {name: extra[lane] for name, extra in rows.extras.items()}
            own = [parameter[lane] for parameter in parameters]
            self.turns.enter(own, extras)
            with drawing(seed, rows.update, x.device, when=self.manner.draws):
                yield x[lane if len(x) > 1 else 0].clone(), lane  # a network may write into its inputs
            if training:
                self.turns.leave(own, extras)


def updated(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Callable[[], Tensor]) -> Tensor:
    """One update of a network by torch optimizers, as an ordinary loop makes it; the loss before it.

    Args:
        network: it.
        optimizers: each of some of its parameters. One whose `step` demands a closure gets one.
        loss: of the batch.
    """
    found: list[Tensor] = []

    def closure() -> Tensor:
        network.zero_grad()
        now = loss()
        now.backward()
        found.append(now.detach())
        return found[-1]

    if any(demands_closure(optimizer) for optimizer in optimizers):
        for optimizer in optimizers:
            optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        for optimizer in optimizers:
            optimizer.step()
    return found[0]


def demands_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's `step` takes a closure by which it asks for the loss as often as it likes, as LBFGS's."""
    parameters = inspect.signature(optimizer.step).parameters
    return "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty


@contextmanager
def drawing(seed: int, update: int, device: torch.device, *, when: bool = True) -> Iterator[None]:
    """Random numbers that depend on a lane's seed and the update alone; torch's generators are left as they were."""
    if not when:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, 3, update))
        yield


@contextmanager
def batchable_attention() -> Iterator[None]:
    """Attention by operations that can be batched over lanes, whether training or not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
