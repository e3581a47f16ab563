"""Tries how the lanes of a user's `torch.nn.Module` can run: at once by torch.func, or one after another."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.engines.vmapped import Copies, Rows, VmapSupport, batchable_attention
from trainables.lanes.seeds import drawing, initialise
from trainables.lanes.stack import extras_of, out_of_memory
from trainables.models import Builder, hooked, trained
from trainables.usercode.importing import ForeignError, told

# Examples and updates on which it is tried how lanes can run, and the size of these.
TRIED_EXAMPLES, TRIED_UPDATES, TRIED_STEP = 16, 3, 1e-3
# What stands for parameters of zeros meanwhile.
TRIED_FILLING = 0.01
# Attributes that every module has.
_TORCHS_OWN = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class _Course:
    """What two lanes came to in a few updates.

    Attributes:
        tensors: (2, ...) each: all that must be equal however they run.
        draws: whether random numbers were drawn.
        changes: whether a buffer changed.
        partly: a parameter that had a gradient in some updates only, if there is one.
    """

    tensors: dict[str, Tensor]
    draws: bool = False
    changes: bool = False
    partly: str = ""

    def differs(self, other: _Course) -> str:
        """What differs most noticeably, or nothing."""
        if self.tensors.keys() != other.tensors.keys():
            return "its buffers"
        return next((name for name, values in self.tensors.items() if not _close(values, other.tensors[name])), "")


def manner_of(build: Builder, sample: Tensor, name: str = "the model") -> VmapSupport:
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
    draws, why = expected.draws, ""
    if draws:
        why = "it draws random numbers, as dropout does"
    elif expected.partly:
        why = f"{expected.partly} takes part in some updates only"
    elif hooked(_made(build, sample)):
        why = "it has hooks"
    else:
        shown = x.clone()
        try:
            differs = expected.differs(_side_by_side(build, shown, VmapSupport(True, True)))
        except Exception as error:  # noqa: BLE001  whatever torch.func cannot do
            why = f"torch.func cannot batch it: {_short(error)}"
        else:
            if not differs and torch.equal(shown, x):
                return VmapSupport(True, whole=expected.changes or _coupled(build, x))
            why = f"its copies at once give other numbers than one by one ({differs})"
        if not torch.equal(shown, x):
            why = "it writes into its inputs"
    try:
        differs = expected.differs(_side_by_side(build, x, VmapSupport(False, True, draws=draws)))
    except Exception as error:
        raise ForeignError(f"{name}: {told(error, name.partition(':')[0])}, where lanes take turns") from error
    if differs:
        raise ForeignError(
            f"{name}: has something besides parameters and buffers that it draws at its beginning or keeps from one "
            f"pass to the next, which lanes would share and a resumed trial would not have ({differs} differ); make it "
            "a buffer, by register_buffer in __init__"
        )
    return VmapSupport(False, whole=True, draws=draws, why=why)


def _made(build: Builder, sample: Tensor, seed: int = 0) -> nn.Module:
    """A network of a seed, as it trains. Parameters of zeros, which would hide what comes before them, are filled."""
    network = initialise(build, seed).to(sample.device, sample.dtype)
    network.train()
    with torch.no_grad():
        for parameter in trained(network).values():
            if not parameter.any():
                parameter.fill_(TRIED_FILLING)
    return network


def _nothing(outputs: Tensor, _: Tensor) -> Tensor:
    """A loss without targets."""
    return outputs.square().flatten(2).mean(2) if outputs.ndim > 2 else outputs.square()


def _step(parameter: Tensor, gradient: Tensor) -> None:
    """An update that no gradient makes large."""
    parameter.sub_(gradient / (1 + gradient.abs()), alpha=TRIED_STEP)


def _alone(build: Builder, x: Tensor, name: str) -> _Course:
    """Two networks, each by an ordinary loop."""
    courses: list[dict[str, Tensor]] = []
    draws, changes, others = False, False, _other_generators()
    without: list[set[str]] = []
    first, again = (dict([*n.named_parameters(), *n.named_buffers()]) for n in (_made(build, x), _made(build, x)))
    for key in first.keys() & again.keys():
        if not torch.equal(first[key].nan_to_num(), again[key].nan_to_num()):
            raise ForeignError(
                f"{name}: two networks of one seed begin with other values of {key}; draw them from torch's global "
                "generator alone, or lanes could not be paired and no trial repeated"
            )
    for seed in range(len(x)):
        network, found = _made(build, x, seed), {}
        parameters, buffers = trained(network), {key: b.clone() for key, b in network.named_buffers()}
        frozen = {key: p.clone() for key, p in network.named_parameters() if not p.requires_grad}
        counts: dict[tuple[str, str], Any] = {}
        for update in range(TRIED_UPDATES):
            counts, before = _numbers(network), counts
            with drawing(seed, update, x.device), batchable_attention():
                network.zero_grad()
                outputs = network(x[seed].clone())
                if not isinstance(outputs, Tensor) or not outputs.ndim:
                    raise ForeignError(
                        f"{name}: gives {type(outputs).__name__}; expected a tensor (n, out_features): a number for "
                        "each class, or each number to be predicted"
                    )
                _nothing(outputs[None], outputs).sum().backward()
                draws |= _drew(seed, update, x.device)
            found[f"outputs of update {update + 1}"] = outputs.detach()
            without.append({key for key, parameter in parameters.items() if parameter.grad is None})
            for key, parameter in parameters.items():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                found[f"gradients of {key}, update {update + 1},"] = gradient
                with torch.no_grad():
                    _step(parameter, gradient)
        _refuse_counts(name, before, counts, _numbers(network))
        now = dict(network.named_buffers())
        if lazily := sorted(now.keys() ^ buffers.keys()):
            raise ForeignError(f"{name}: {lazily[0]} becomes a buffer, or none, as it runs; register it in __init__")
        for key, value in network.named_parameters():
            if key in frozen and not torch.equal(value, frozen[key]):
                raise ForeignError(f"{name}: changes {key}, a parameter that is not trained; make it a buffer")
        changes |= any(
            value.shape != now[key].shape or bool(value.ne(now[key]).any()) for key, value in buffers.items()
        )
        found |= {f"buffer {key}": value.detach().clone() for key, value in now.items()}
        network.eval()
        for what, inputs in (("", x[seed]), (" once more", x[seed]), (" one by one", x[0]), (" of the same", x[0])):
            with drawing(seed, TRIED_UPDATES, x.device), torch.no_grad(), batchable_attention():
                found[f"outputs in evaluation{what}"] = network(inputs.clone())
                draws |= _drew(seed, TRIED_UPDATES, x.device)
        courses.append(found)
    if others != _other_generators():
        raise ForeignError(
            f"{name}: draws random numbers that are not torch's, by random or numpy, so no trial could be repeated; "
            "draw them by torch"
        )
    partly = sorted({key for each in without for key in each if not all(key in other for other in without)})
    tensors = {key: torch.stack([course[key] for course in courses]) for key in courses[0]}
    return _Course(tensors, draws, changes, partly[0] if partly else "")


def _refuse_counts(
    name: str,
    first: Mapping[tuple[str, str], Any],
    second: Mapping[tuple[str, str], Any],
    third: Mapping[tuple[str, str], Any],
) -> None:
    """Refuse a network whose own numbers, as they were at the beginnings of three updates, go on changing."""
    for owner, key in third:
        now, then, before = (str(each.get((owner, key))) for each in (third, second, first))
        if (owner, key) in first and now != then:
            raise ForeignError(
                f"{name}: {f'{owner}.' if owner else ''}{key} changes from update to update ({then} to {now}), which "
                "lanes would share and a resumed trial would not have; make it a buffer: "
                f"self.register_buffer({key.partition('.')[0]!r}, torch.tensor({before}))"
            )


def _side_by_side(build: Builder, x: Tensor, manner: VmapSupport) -> _Course:
    """The same, as lanes, and as if each update were made by another worker, to which no more came than a stack has."""
    seeds, found = list(range(len(x))), {}
    networks = {seed: _made(build, x, seed) for seed in seeds}
    named = {seed: trained(network) for seed, network in networks.items()}
    names, extras = list(named[0]), extras_of(networks, seeds, x.dtype, x.device)
    parameters = [torch.stack([named[seed][key].detach() for seed in seeds]).requires_grad_() for key in names]
    for update in range(TRIED_UPDATES):
        copies, rows = Copies(_made(build, x), manner), Rows(extras, seeds, update)
        outputs, _, gradients = copies.gradients(parameters, x, x, rows, _nothing, 1, training=True)
        found[f"outputs of update {update + 1}"] = outputs
        for key, parameter, gradient in zip(names, parameters, gradients, strict=True):
            found[f"gradients of {key}, update {update + 1},"] = gradient
            with torch.no_grad():
                _step(parameter, gradient)
    buffers = {key for key, _ in networks[0].named_buffers()}
    found |= {f"buffer {key}": value.clone() for key, value in extras.items() if key in buffers}
    copies = Copies(_made(build, x), manner)

    def evaluated(lanes: list[int], inputs: Tensor) -> Tensor:
        rows = Rows({key: value[lanes] for key, value in extras.items()}, [seeds[n] for n in lanes], TRIED_UPDATES)
        return copies.outputs([p[lanes] for p in parameters], inputs, rows, training=False).detach()

    back = seeds[::-1]
    found["outputs in evaluation"] = evaluated(seeds, x.clone())
    # By the same copies, as lanes come and go: nothing may be left of those before.
    found["outputs in evaluation once more"] = evaluated(back, x[back])[back]
    found["outputs in evaluation one by one"] = torch.cat([evaluated([lane], x[:1].clone()) for lane in seeds])
    found["outputs in evaluation of the same"] = evaluated(seeds, x[:1].clone())
    return _Course(found)


def _numbers(network: nn.Module) -> dict[tuple[str, str], Any]:
    """Numbers that modules keep in plain attributes, and in dicts and lists there: (module, attribute) -> number."""
    found = {}
    for owner, module in network.named_modules():
        for key, value in vars(module).items():
            if key in _TORCHS_OWN:
                continue
            many = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for place, each in [("", value), *((f".{place}", each) for place, each in many)]:
                if isinstance(each, int | float):
                    found[owner, f"{key}{place}"] = each
    return found


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
    """Whether an example's outputs depend on the others of its batch: those in parts must be those of the whole."""
    with torch.no_grad():
        whole, half = _made(build, x)(x[0].clone()), max(1, x.shape[1] // 2)
        parts = [slice(0, 1), slice(x.shape[1] - 1, x.shape[1]), slice(0, half), slice(half, x.shape[1])]
        try:
            return not all(_close(_made(build, x)(x[0, p].clone()), whole[p]) for p in parts if len(whole[p]))
        except Exception:  # noqa: BLE001  normalising over a batch of one is an error
            return True


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, by the size of the second."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    limit, floor = (1e-7, 1e-12) if a.dtype == torch.float64 else (1e-3, 1e-5)
    largest = float(b.nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0, atol=limit * largest + floor, equal_nan=True))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
