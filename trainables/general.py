"""Lanes of any `torch.nn.Module`: all of them at once by torch.func, or, where that cannot be, one after another."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.foreign import ForeignError, told
from trainables.models import hooked, trained
from trainables.stack import Builder, initialise, out_of_memory, stream

# Losses of each example in each lane, (K, B), of outputs (K, B, out_features) and targets.
Losses = Callable[[Tensor, Tensor], Tensor]

# Examples and updates on which it is tried how lanes can run, and the size of these.
TRIED_EXAMPLES, TRIED_UPDATES, TRIED_STEP = 16, 3, 1e-3


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
    def leave(self, extras: Mapping[str, Tensor]) -> None:
        """Write the buffers that the network has now over those with which it became the lane."""
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
        with _plainly():
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
            with _plainly():
                found = torch.autograd.grad(each.sum(), parameters, materialize_grads=True)
            return outputs.detach(), each.detach(), list(found)
        self.network.train(training)
        all_outputs, all_losses, all_gradients = [], [], []
        with _plainly(), torch.enable_grad():
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
            self.turns.enter([parameter[lane] for parameter in parameters], extras)
            with drawing(seed, rows.update, x.device, when=self.manner.draws):
                yield x[lane if len(x) > 1 else 0], lane
            if training:
                self.turns.leave(extras)


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
def _plainly() -> Iterator[None]:
    """Attention by operations that can be batched over lanes, whether training or not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass(frozen=True)
class _Course:
    """What two lanes came to in a few updates.

    Attributes:
        tensors: (2, ...) each: all that must be equal however they run.
        draws: whether random numbers were drawn.
    """

    tensors: dict[str, Tensor]
    draws: bool = False

    def differs(self, other: _Course) -> str:
        """What differs most noticeably, or nothing."""
        if self.tensors.keys() != other.tensors.keys():
            return "its buffers"
        return next((name for name, values in self.tensors.items() if not _close(values, other.tensors[name])), "")


def manner_of(build: Builder, sample: Tensor, name: str = "the model") -> Manner:
    """Try how lanes of a network can run: what each computes must be what a network of its own computes alone.

    Args:
        build: makes one network.
        sample: `TRIED_EXAMPLES` or so, (n, *in_shape), on the lanes' device and in their type; it is tried in float64
            if the network takes that.
        name: what to call it in messages.

    Raises:
        ForeignError: if the network does not even run alone, or lanes of it would not be lanes.
    """
    # What float32 rounds differently, networks may magnify a million times, as batch norm over two examples does.
    kinds = list(dict.fromkeys((torch.float64, sample.dtype)))
    for kind in kinds:
        sample = sample.to(kind)
        half = max(1, len(sample) // 2)
        x = torch.stack([sample[:half], sample[len(sample) - half :]])
        try:
            expected = _alone(build, x, name)
            break
        except (ForeignError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            if kind == kinds[-1]:
                why = told(error, name.partition(":")[0])
                raise ForeignError(f"{name}: cannot be run and differentiated: {why}") from error
    changes = any(values.ne(before).any() for values, before in zip(*_buffers(build, sample, expected), strict=True))
    draws, why = expected.draws, ""
    if draws:
        why = "it draws random numbers, as dropout does"
    elif hooked(_made(build, sample)):
        why = "it has hooks"
    else:
        try:
            differs = expected.differs(_side_by_side(build, x, Manner(True, True)))
        except Exception as error:  # noqa: BLE001  whatever torch.func cannot do
            why = f"torch.func cannot batch it: {_short(error)}"
        else:
            if not differs:
                return Manner(True, whole=changes or _coupled(build, x))
            why = f"its copies at once give other numbers than one by one ({differs})"
    try:
        differs = expected.differs(_side_by_side(build, x, Manner(False, True, draws=draws)))
    except Exception as error:
        raise ForeignError(f"{name}: {told(error, name.partition(':')[0])}, where lanes take turns") from error
    if differs:
        raise ForeignError(
            f"{name}: keeps something between updates that is neither a parameter nor a buffer, which lanes would "
            f"share and a resumed trial would not have ({differs} differ); make it a buffer by register_buffer"
        )
    return Manner(False, whole=True, draws=draws, why=why)


def _made(build: Builder, sample: Tensor) -> nn.Module:
    """A network of seed 0, as it trains."""
    return initialise(build, 0).to(sample.device, sample.dtype).train()


def _nothing(outputs: Tensor, _: Tensor) -> Tensor:
    """A loss without targets."""
    return outputs.square().flatten(2).mean(2) if outputs.ndim > 2 else outputs.square()


def _step(parameter: Tensor, gradient: Tensor) -> None:
    """An update that no gradient makes large."""
    parameter.sub_(gradient / (1 + gradient.abs()), alpha=TRIED_STEP)


def _alone(build: Builder, x: Tensor, name: str) -> _Course:
    """Two networks, each by an ordinary loop."""
    courses: list[dict[str, Tensor]] = []
    first: list[dict[str, Tensor]] = []
    draws, others = False, _other_generators()
    for lane in range(len(x)):
        network, found = _made(build, x), {}
        parameters = trained(network)
        first.append({key: p.detach().clone() for key, p in parameters.items()})
        counts: dict[tuple[str, str], Any] = {}
        for update in range(TRIED_UPDATES):
            counts, before = _numbers(network), counts
            with drawing(0, update, x.device), _plainly():
                network.zero_grad()
                outputs = network(x[lane])
                if not isinstance(outputs, Tensor) or not outputs.ndim:
                    raise ForeignError(
                        f"{name}: gives {type(outputs).__name__}; expected a tensor (n, out_features): a number for "
                        "each class, or each number to be predicted"
                    )
                _nothing(outputs[None], outputs).sum().backward()
                draws |= _drew(0, update, x.device)
            found[f"outputs of update {update + 1}"] = outputs.detach()
            for key, parameter in parameters.items():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                found[f"gradients of {key}, update {update + 1},"] = gradient
                with torch.no_grad():
                    _step(parameter, gradient)
        after = _numbers(network)
        changed = [key for key, value in after.items() if str(counts.get(key, value)) != str(value) and key in before]
        if changed:
            owner, key = changed[0]
            raise ForeignError(
                f"{name}: {f'{owner}.' if owner else ''}{key} changes from update to update ({counts[changed[0]]} to "
                f"{after[changed[0]]}), which lanes would share and a resumed trial would not have; make it a buffer: "
                f"self.register_buffer({key!r}, torch.tensor({before[changed[0]]}))"
            )
        found |= {f"buffer {key}": value.detach().clone() for key, value in network.named_buffers()}
        network.eval()
        with drawing(0, TRIED_UPDATES, x.device), torch.no_grad(), _plainly():
            found["outputs in evaluation"] = network(x[lane])
            draws |= _drew(0, TRIED_UPDATES, x.device)
        courses.append(found)
    if differs := next((key for key, value in first[0].items() if not torch.equal(value, first[1][key])), ""):
        raise ForeignError(
            f"{name}: two networks of one seed begin with other values of {differs}; draw them from torch's global "
            "generator alone, or lanes could not be paired and no trial repeated"
        )
    if others != _other_generators():
        raise ForeignError(
            f"{name}: draws random numbers that are not torch's, by random or numpy, so no trial could be repeated; "
            "draw them by torch"
        )
    return _Course({key: torch.stack([course[key] for course in courses]) for key in courses[0]}, draws)


def _side_by_side(build: Builder, x: Tensor, manner: Manner) -> _Course:
    """The same, as lanes, and as if each update were made by another worker, to which no more came than a stack has."""
    first, found = _made(build, x), {}
    named, buffers = trained(first), dict(first.named_buffers())
    parameters = [p.detach().repeat(len(x), *[1] * p.ndim).requires_grad_() for p in named.values()]
    extras = {key: value.detach().repeat(len(x), *[1] * value.ndim) for key, value in buffers.items()}
    seeds = [0] * len(x)
    for update in range(TRIED_UPDATES):
        copies, rows = Copies(_made(build, x), manner), Rows(extras, seeds, update)
        outputs, _, gradients = copies.gradients(parameters, x, x, rows, _nothing, 1, training=True)
        found[f"outputs of update {update + 1}"] = outputs
        for key, parameter, gradient in zip(named, parameters, gradients, strict=True):
            found[f"gradients of {key}, update {update + 1},"] = gradient
            with torch.no_grad():
                _step(parameter, gradient)
    found |= {f"buffer {key}": value.clone() for key, value in extras.items()}
    rows = Rows({key: value.clone() for key, value in extras.items()}, seeds, TRIED_UPDATES)
    copies = Copies(_made(build, x), manner)
    found["outputs in evaluation"] = copies.outputs(parameters, x, rows, training=False).detach()
    return _Course(found)


def _numbers(network: nn.Module) -> dict[tuple[str, str], Any]:
    """Numbers that modules keep in plain attributes: (module, attribute) -> number."""
    return {
        (owner, key): value
        for owner, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float) and key != "training"
    }


def _buffers(build: Builder, sample: Tensor, course: _Course) -> tuple[list[Tensor], list[Tensor]]:
    """The buffers at the end of a course, (2, ...), and at its beginning."""
    named = dict(_made(build, sample).named_buffers())
    return [course.tensors[f"buffer {key}"] for key in named], list(named.values())


def _drew(seed: int, update: int, device: torch.device) -> bool:
    """Whether torch's generators have moved on from where `drawing` put them."""
    now = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    with drawing(seed, update, device):
        start = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return not all(map(torch.equal, now, start))


def _other_generators() -> tuple[Any, ...]:
    _, keys, place, *_ = np.random.get_state()  # noqa: NPY002  the one that users may have drawn from
    return random.getstate(), np.asarray(keys).tobytes(), place


def _coupled(build: Builder, x: Tensor) -> bool:
    """Whether an example's outputs depend on the others of its batch."""
    with torch.no_grad():
        many = _made(build, x)(x[0])
        try:
            return not _close(_made(build, x)(x[0, :1])[0], many[0])
        except Exception:  # noqa: BLE001  normalising over a batch of one is an error
            return True


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    limit = 1e-6 if a.dtype == torch.float64 else 1e-3
    largest = float(b.nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=limit, atol=limit * max(1.0, largest), equal_nan=True))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
