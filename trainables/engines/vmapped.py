"""The engine of user models: lanes of any `torch.nn.Module`, at once by torch.func, or one after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.engines.eager import Eager, Forward
from trainables.engines.solo import LaneModule
from trainables.lanes.batches import Batches
from trainables.lanes.seeds import drawing, drawing_lanes
from trainables.lanes.stack import Stack
from trainables.workloads.criterion import Criterion
from trainables.workloads.models import trained

# Losses of each example in each lane, (K, B), from outputs (K, B, out_features) and targets.
Losses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class VmapSupport:
    """How the lanes of a network can run.

    Attributes:
        together: whether all at once.
        whole: whether batches must not be cut into blocks, because the outputs for an example depend on its batch or
            on chance, or a pass changes a buffer.
        draws: whether the network draws random numbers.
        why: the reason why lanes cannot run at once; empty if they can.
    """

    together: bool
    whole: bool
    draws: bool = False
    why: str = ""


@dataclass(frozen=True)
class Rows:
    """Some lanes of a stack, as far as a forward pass needs them besides parameters and inputs.

    Attributes:
        extras: `Stack.extras` of the lanes, changed in place while training.
        seeds: of the lanes.
        update: updates made so far; it and the seed determine all random numbers.
    """

    extras: dict[str, Tensor]
    seeds: Sequence[int]
    update: int


class Copies:
    """The passes of K copies of a network.

    Args:
        network: one of them, on the lanes' device and in their type.
        support: how its lanes can run.
    """

    def __init__(self, network: nn.Module, support: VmapSupport) -> None:
        self.network, self.support, self.names = network, support, list(trained(network))
        self.lane_module = LaneModule(network)

    def outputs(self, parameters: Sequence[Tensor], x: Tensor, rows: Rows, *, training: bool) -> Tensor:
        """(parameters, each (K, *shape), inputs (K or 1, B, *in_shape)) -> outputs (K, B, out_features).

        They can be differentiated if the lanes run together.
        """
        self.network.train(training)
        with batchable_attention():
            if self.support.together:
                shared, named = len(x) == 1, dict(zip(self.names, parameters, strict=True))
                each = vmap(self._one, in_dims=(0, 0, None if shared else 0), randomness="different")
                with drawing_lanes(rows.seeds, rows.update, x.device, when=self.support.draws):
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
            count: examples of the whole batch, of which x may be a part; the divisor of the mean.
            training: whether the network trains or is evaluated.
        """
        if self.support.together:
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
                mine = self.lane_module.parameters
                all_gradients.append([p.new_zeros(p.shape) if p.grad is None else p.grad.clone() for p in mine])
        self.network.zero_grad()
        columns = [torch.stack(column) for column in zip(*all_gradients, strict=True)]
        return torch.stack(all_outputs), torch.stack(all_losses), columns

    def _one(self, parameters: dict[str, Tensor], extras: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.network, (parameters, extras), (x,))
        return outputs

    def _in_turn(
        self, parameters: Sequence[Tensor], x: Tensor, rows: Rows, training: bool
    ) -> Iterator[tuple[Tensor, int]]:
        """Hold each lane in turn; yields its inputs and its place. Evaluation leaves the lane's buffers unchanged."""
        for lane, seed in enumerate(rows.seeds):
            extras = {name: extra[lane] for name, extra in rows.extras.items()}
            own = [parameter[lane] for parameter in parameters]
            self.lane_module.enter(own, extras)
            with drawing(seed, rows.update, x.device, when=self.support.draws):
                yield x[lane if len(x) > 1 else 0].clone(), lane  # a network may write into its inputs
            if training:
                self.lane_module.leave(own, extras)


class Vmapped(Eager):
    """Any module of a user's: all lanes at once by torch.func. Where that is impossible, it evaluates for `Solo`.

    Args:
        network: one of the user's, on the lanes' device and in their type.
        support: how its lanes can run.
        criterion: the loss and the score.
        block: examples to pass at a time where a batch may be cut.
    """

    name = "vmap"

    def __init__(self, network: nn.Module, support: VmapSupport, criterion: Criterion, block: int) -> None:
        self.copies, self.support, self.criterion, self.block = Copies(network, support), support, criterion, block

    def gradient(
        self, stack: Stack, leaves: Sequence[Tensor], batches: Batches, batch: Tensor | None, rows: slice, update: int
    ) -> tuple[Tensor, Tensor]:
        """As for other models, except that batches stay whole where a network requires it."""
        if not self.support.whole:
            return super().gradient(stack, leaves, batches, batch, rows, update)
        if batch is None and self.support.draws:
            batch = batches.rows(update)  # masks are for examples in the order in which the lane alone sees them
        if batch is None:
            x, y = batches.examples.inputs[None], batches.examples.targets[None]
        else:
            x, y = batches.take(batch, rows)
        return self.summed(self.forward(stack, rows, update, training=True), leaves, [(x, y)], x.shape[1])

    def forward(self, stack: Stack, rows: slice, update: int, *, training: bool) -> Forward:
        """A forward pass that changes buffers in training only."""
        extras = {name: extra[rows] if training else extra[rows].clone() for name, extra in stack.extras.items()}
        seeds = [stack.lanes[lane].seed for lane in stack.alive[rows]]
        return partial(self.copies.outputs, rows=Rows(extras, seeds, update), training=training)

    def differentiated(
        self, forward: Forward, leaves: Sequence[Tensor], x: Tensor, y: Tensor, count: int
    ) -> tuple[Tensor, list[Tensor]]:
        """A block's part in losses and gradients; lanes that run one after another are differentiated in turn."""
        assert isinstance(forward, partial)
        losses = self.criterion.training_losses
        _, loss, parts = self.copies.gradients(leaves, x, y, losses=losses, count=count, **forward.keywords)
        return loss, parts


@contextmanager
def batchable_attention() -> Iterator[None]:
    """Compute attention by operations that torch.func can batch, in training and evaluation alike."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
