"""Finds out how the lanes of a user's network can run, by comparing lanes with networks that run alone.

This is the one answer to whether lanes of a model equal networks alone: the probe asks it of each size of a network
before a study, and engines ask it before they train a cell. `lanes.equality` then measures the difference that is left,
with the spec's data and optimizer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.engines.vmapped import Copies, Rows, VmapSupport, batchable_attention
from trainables.lanes.seeds import drawing, initialise
from trainables.lanes.stack import extras_of, out_of_memory
from trainables.usercode.importing import UserCodeError, describe_error
from trainables.workloads.models import Builder, hooked, trained

# Examples and updates of the comparison, and the size of an update.
TRIED_EXAMPLES, TRIED_UPDATES, TRIED_STEP = 16, 3, 1e-3
# Replaces parameters that are all zero, behind which differences would not show.
TRIED_FILLING = 0.01
# Attributes that every module has.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class _Trace:
    """What two lanes computed in a few updates."""

    tensors: dict[str, Tensor]  # name -> (2, ...): outputs, gradients and buffers, equal however the lanes run
    draws: bool = False  # whether random numbers were drawn
    changes: bool = False  # whether a buffer changed
    without: Sequence[set[str]] = ()  # names of the parameters without a gradient, of each update

    @property
    def partly(self) -> str:
        """The first parameter, by name, that had a gradient in some updates only; empty if there is none."""
        names = {name for each in self.without for name in each}
        return min((name for name in names if not all(name in each for each in self.without)), default="")

    def differs(self, other: _Trace) -> str:
        """Name of the first tensor that differs; empty if none does."""
        if self.tensors.keys() != other.tensors.keys():
            return "its buffers"
        return next((name for name, values in self.tensors.items() if not _close(values, other.tensors[name])), "")


def support_of(build: Builder, sample: Tensor, name: str = "the model") -> VmapSupport:
    """How lanes of a network can run so that each computes what a network alone computes.

    Args:
        build: makes one network.
        sample: about `TRIED_EXAMPLES` examples, (n, *in_shape), on the lanes' device and in their type. The comparison
            is in float64 if the network accepts it.
        name: import path of the model, for messages.

    Raises:
        UserCodeError: if the network does not run alone, or its lanes would not be independent and resumable.
    """
    x, expected = _reference(build, sample, name)
    why = _obstacle(build, x, expected)
    if not why:
        return VmapSupport(True, expected.draws or expected.changes or _coupled(build, x), draws=expected.draws)
    in_turn = VmapSupport(False, True, draws=expected.draws, why=why)
    try:
        differs = expected.differs(_as_lanes(build, x, in_turn))
    except Exception as error:
        why = describe_error(error, name.partition(":")[0])
        raise UserCodeError(f"{name}: {why}, where lanes take turns") from error
    if differs:
        raise UserCodeError(
            f"{name}: draws or keeps values that are neither parameters nor buffers; lanes would share them and a "
            f"resumed trial would lose them ({differs} differ); make each a buffer, by register_buffer in __init__"
        )
    return in_turn


def _reference(build: Builder, sample: Tensor, name: str) -> tuple[Tensor, _Trace]:
    """Inputs of two lanes, (2, n, *in_shape), and what two networks compute of them, each alone."""
    # Float64 first: networks may amplify float32 rounding a million times, as batch norm over two examples does.
    kinds = list(dict.fromkeys((torch.float64, sample.dtype)))
    half = max(1, len(sample) // 2)
    for kind in kinds:
        x = torch.stack([sample[:half], sample[len(sample) - half :]]).to(kind)
        try:
            return x, _alone(build, x, name)
        except (UserCodeError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            if kind == kinds[-1]:
                why = describe_error(error, name.partition(":")[0])
                given = f"inputs of {tuple(x.shape[1:])}"
                raise UserCodeError(f"{name}: cannot be run and differentiated with {given}: {why}") from error
    raise AssertionError("the last type returns or raises")


def _obstacle(build: Builder, x: Tensor, expected: _Trace) -> str:
    """Why lanes cannot run at once; empty if they can."""
    if expected.partly:
        return f"{expected.partly} takes part in some updates only"
    if hooked(_made(build, x)):
        return "it has hooks"
    given, why = x.clone(), ""
    try:
        if differs := expected.differs(_as_lanes(build, given, VmapSupport(True, True, draws=expected.draws))):
            why = f"its copies give other results together than one by one ({differs})"
    except Exception as error:  # noqa: BLE001  whatever torch.func cannot do
        reason = " ".join(str(error).split()).partition(". ")[0].removeprefix("vmap: ")
        why = f"torch.func cannot batch it: {reason[:160]}"
    return why if torch.equal(given, x) else "it writes into its inputs"


def _made(build: Builder, like: Tensor, seed: int = 0) -> nn.Module:
    """A network of a seed, in training mode, its parameters of zeros filled."""
    network = initialise(build, seed).to(like.device, like.dtype)
    network.train()
    with torch.no_grad():
        for parameter in trained(network).values():
            if not parameter.any():
                parameter.fill_(TRIED_FILLING)
    return network


def _loss(outputs: Tensor, _: Tensor) -> Tensor:
    """Losses, (K, B), of outputs (K, B, ...), without targets."""
    return outputs.square().flatten(2).mean(2) if outputs.ndim > 2 else outputs.square()


def _step(parameter: Tensor, gradient: Tensor) -> None:
    """Update a parameter by at most `TRIED_STEP`."""
    with torch.no_grad():
        parameter.sub_(gradient / (1 + gradient.abs()), alpha=TRIED_STEP)


def _alone(build: Builder, x: Tensor, name: str) -> _Trace:
    """The trace of two networks, each in an ordinary loop.

    Raises:
        UserCodeError: if a network depends on more than parameters, buffers and torch's random numbers.
    """
    generators = _other_generators()
    _check_seed(build, x, name)
    lanes = [_lane_alone(build, x, seed, name) for seed in range(len(x))]
    if generators != _other_generators():
        raise UserCodeError(
            f"{name}: draws random numbers that are not torch's, by random or numpy, so no trial could be repeated; "
            "draw them by torch"
        )
    tensors = {key: torch.stack([lane.tensors[key] for lane in lanes]) for key in lanes[0].tensors}
    draws, changes = any(lane.draws for lane in lanes), any(lane.changes for lane in lanes)
    return _Trace(tensors, draws, changes, [each for lane in lanes for each in lane.without])


def _lane_alone(build: Builder, x: Tensor, seed: int, name: str) -> _Trace:
    """The trace of one network, on `x[seed]`, with tensors of one lane, (...)."""
    network, tensors, without, draws = _made(build, x, seed), {}, [], False
    parameters, buffers = trained(network), {key: b.clone() for key, b in network.named_buffers()}
    frozen = {key: p.clone() for key, p in network.named_parameters() if not p.requires_grad}
    numbers = []
    for update in range(TRIED_UPDATES):
        numbers.append(_numbers(network))
        with drawing(seed, update, x.device), batchable_attention():
            network.zero_grad()
            outputs = network(x[seed].clone())
            if not isinstance(outputs, Tensor) or not outputs.ndim:
                raise UserCodeError(
                    f"{name}: gives {type(outputs).__name__}; expected a tensor (n, out_features): a number for "
                    "each class, or each number to be predicted"
                )
            _loss(outputs[None], outputs).sum().backward()
            draws |= _drew(seed, update, x.device)
        tensors[f"outputs of update {update + 1}"] = outputs.detach()
        without.append({key for key, parameter in parameters.items() if parameter.grad is None})
        for key, parameter in parameters.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            tensors[f"gradients of {key}, update {update + 1},"] = gradient
            _step(parameter, gradient)
    _check_numbers(name, [*numbers, _numbers(network)])
    for key, value in network.named_parameters():
        if key in frozen and not torch.equal(value, frozen[key]):
            raise UserCodeError(f"{name}: changes {key}, a parameter that is not trained; make it a buffer")
    now = dict(network.named_buffers())
    if lazily := sorted(now.keys() ^ buffers.keys()):
        raise UserCodeError(
            f"{name}: the buffer {lazily[0]} appears or disappears in a forward pass; register it in __init__"
        )
    changes = any(value.shape != now[key].shape or bool(value.ne(now[key]).any()) for key, value in buffers.items())
    tensors |= {f"buffer {key}": value.detach().clone() for key, value in now.items()}
    network.eval()
    for what, inputs in (("", x[seed]), (" once more", x[seed]), (" one by one", x[0]), (" of the same", x[0])):
        with drawing(seed, TRIED_UPDATES, x.device), torch.no_grad(), batchable_attention():
            tensors[f"outputs in evaluation{what}"] = network(inputs.clone())
            draws |= _drew(seed, TRIED_UPDATES, x.device)
    return _Trace(tensors, draws, changes, without)


def _check_seed(build: Builder, x: Tensor, name: str) -> None:
    """Raise a `UserCodeError` if two networks of one seed differ."""
    first, again = (dict([*n.named_parameters(), *n.named_buffers()]) for n in (_made(build, x), _made(build, x)))
    for key in first.keys() & again.keys():
        if not torch.equal(first[key].nan_to_num(), again[key].nan_to_num()):
            raise UserCodeError(
                f"{name}: two networks of one seed begin with different values of {key}; draw them from torch's global "
                "generator alone, or lanes could not be paired and no trial repeated"
            )


def _check_numbers(name: str, numbers: Sequence[Mapping[str, Any]]) -> None:
    """Raise a `UserCodeError` if a number that a network keeps changed in the last of several updates.

    Args:
        name: of the model.
        numbers: of `_numbers`, before each update and after the last.
    """
    first, second, third = numbers[-3:]
    for key, now in third.items():
        if key in first and str(now) != str(then := second.get(key)):
            raise UserCodeError(
                f"{name}: {key} changes from update to update ({then} to {now}), which lanes would share and a "
                "resumed trial would not have; make it a buffer: "
                f"self.register_buffer({key.rpartition('.')[2].partition('[')[0]!r}, torch.tensor({first[key]}))"
            )


def _numbers(network: nn.Module) -> dict[str, Any]:
    """Numbers in plain attributes of modules, and in dicts and lists there, each by its place."""
    numbers: dict[str, Any] = {}
    for owner, module in network.named_modules(prefix="self"):
        for key, value in vars(module).items():
            many = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for place, each in [("", value), *((f"[{place}]", each) for place, each in many)]:
                if isinstance(each, int | float) and key not in _MODULE_ATTRIBUTES:
                    numbers[f"{owner}.{key}{place}".removeprefix("self.")] = each
    return numbers


def _as_lanes(build: Builder, x: Tensor, support: VmapSupport) -> _Trace:
    """The trace of two lanes of a stack, each update with new copies, as if another worker had resumed the trial."""
    seeds, tensors = list(range(len(x))), {}
    networks = {seed: _made(build, x, seed) for seed in seeds}
    named = {seed: trained(network) for seed, network in networks.items()}
    names, extras = list(named[0]), extras_of(networks, seeds, x.dtype, x.device)
    parameters = [torch.stack([named[seed][key].detach() for seed in seeds]).requires_grad_() for key in names]
    for update in range(TRIED_UPDATES):
        copies, rows = Copies(_made(build, x), support), Rows(extras, seeds, update)
        outputs, _, gradients = copies.gradients(parameters, x, x, rows, _loss, 1, training=True)
        tensors[f"outputs of update {update + 1}"] = outputs
        for key, parameter, gradient in zip(names, parameters, gradients, strict=True):
            tensors[f"gradients of {key}, update {update + 1},"] = gradient
            _step(parameter, gradient)
    buffers = {key for key, _ in networks[0].named_buffers()}
    tensors |= {f"buffer {key}": value.clone() for key, value in extras.items() if key in buffers}
    copies = Copies(_made(build, x), support)

    def evaluated(lanes: list[int], inputs: Tensor) -> Tensor:
        rows = Rows({key: value[lanes] for key, value in extras.items()}, [seeds[n] for n in lanes], TRIED_UPDATES)
        return copies.outputs([p[lanes] for p in parameters], inputs, rows, training=False).detach()

    back = seeds[::-1]
    tensors["outputs in evaluation"] = evaluated(seeds, x.clone())
    # By the same copies, as lanes join and leave a stack: nothing of earlier lanes may remain.
    tensors["outputs in evaluation once more"] = evaluated(back, x[back])[back]
    tensors["outputs in evaluation one by one"] = torch.cat([evaluated([lane], x[:1].clone()) for lane in seeds])
    tensors["outputs in evaluation of the same"] = evaluated(seeds, x[:1].clone())
    return _Trace(tensors)


def _drew(seed: int, update: int, device: torch.device) -> bool:
    """Whether torch's generators are no longer as `drawing` set them."""
    now = _torch_generators(device)
    with drawing(seed, update, device):
        start = _torch_generators(device)
    return not all(map(torch.equal, now, start))


def _torch_generators(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _other_generators() -> tuple[Any, ...]:
    """States of the global generators of Python and numpy."""
    _, keys, place, *_ = np.random.get_state()  # noqa: NPY002  the one that users may have drawn from
    return random.getstate(), np.asarray(keys).tobytes(), place


def _coupled(build: Builder, x: Tensor) -> bool:
    """Whether the outputs for an example depend on the other examples of its batch."""
    with torch.no_grad():
        whole, half = _made(build, x)(x[0].clone()), max(1, x.shape[1] // 2)
        parts = [slice(0, 1), slice(x.shape[1] - 1, x.shape[1]), slice(0, half), slice(half, x.shape[1])]
        try:
            return not all(_close(_made(build, x)(x[0, p].clone()), whole[p]) for p in parts if len(whole[p]))
        except Exception:  # noqa: BLE001  normalising over a batch of one is an error
            return True


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, relative to the largest value of the second."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    limit, floor = (1e-7, 1e-12) if a.dtype == torch.float64 else (1e-3, 1e-5)
    largest = float(b.nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0, atol=limit * largest + floor, equal_nan=True))
