"""Random numbers of a lane: drawn from its seed and a purpose, never from a generator's earlier use.

Lanes with the same seed therefore share initialisation and batches, and a resumed trial draws the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.workloads.models import Builder

INITIALISATION, BATCH_ORDER, AUGMENTATION, UPDATE = range(4)


def stream(*numbers: int) -> int:
    """A generator seed for a lane's seed, a purpose and, where there are many of these, an epoch or update."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def initialise(build: Builder, seed: int) -> nn.Module:
    """Build the network that every lane with this seed starts from; torch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        _seed(stream(seed, INITIALISATION))
        return build()


def batch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which a lane with this seed sees the training split in an epoch (from 0): row numbers, (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, BATCH_ORDER, epoch)))


def _seed(number: int) -> None:
    """Seed torch's global generators.

    Without a GPU, torch.manual_seed remembers each of its calls, with its stack, for as long as the process lives.
    """
    if torch.cuda.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


@contextmanager
def drawing(seed: int, update: int, device: torch.device, *, when: bool = True) -> Iterator[None]:
    """Seed torch's generators by a lane's seed and an update for as long as the context lasts, then restore them."""
    if not when:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed(stream(seed, UPDATE, update))
        yield


@contextmanager
def drawing_lanes(seeds: Sequence[int], update: int, device: torch.device, *, when: bool = True) -> Iterator[None]:
    """Let each lane under `torch.func.vmap` draw what it draws alone, by `drawing`, for as long as the context lasts.

    Raises:
        NotImplementedError: in the context, if numbers depend on more than a shape, as those of torch.multinomial do.
    """
    if not when:
        yield
        return
    with _Streams(seeds, update, device), _Dropout():
        yield


class _Streams(TorchDispatchMode):
    """Computes random operations for each seed from its stream; vmap has given them an axis of lanes, (K, ...)."""

    def __init__(self, seeds: Sequence[int], update: int, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        distinct = list(dict.fromkeys(seeds))
        self.place = torch.tensor([distinct.index(seed) for seed in seeds], device=device)
        self.streams = [torch.Generator(device).manual_seed(stream(seed, UPDATE, update)) for seed in distinct]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if not _draws(func):
            return func(*args, **given)
        if func not in _FILLS:
            raise NotImplementedError(f"lanes cannot draw by {func}")
        like = args[0] if isinstance(args[0], Tensor) else torch.empty(args[0], **given)
        # Like a lane's part also in memory, in whose order torch draws.
        drawn = [getattr(torch.empty_like(like[0]), _FILLS[func])(*args[1:], generator=each) for each in self.streams]
        stacked = torch.stack(drawn).index_select(0, self.place)
        return args[0].copy_(stacked) if func._schema.is_mutable else stacked


@cache
def _draws(operation: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in operation.tags


class _Dropout(TorchFunctionMode):
    """Draws dropout's mask with the layout that its inputs have in memory, which vmap forgets."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dropout(*args, **(kwargs or {})) if func is F.dropout else func(*args, **(kwargs or {}))


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """What `torch.nn.functional.dropout` computes on a CPU."""
    if not training or not 0 < p < 1:
        return F.dropout(x, p, training, inplace)
    mask = torch.bernoulli(torch.empty_like(x), 1 - p).div_(1 - p)
    return x.mul_(mask) if inplace else x * mask


_ATEN = torch.ops.aten
# Operation -> what fills a tensor in place with the same numbers.
_FILLS: dict[Any, str] = {
    _ATEN.bernoulli.p: "bernoulli_",
    _ATEN.bernoulli_.float: "bernoulli_",
    _ATEN.rand.default: "uniform_",
    _ATEN.rand_like.default: "uniform_",
    _ATEN.uniform_.default: "uniform_",
    _ATEN.randn.default: "normal_",
    _ATEN.randn_like.default: "normal_",
    _ATEN.normal_.default: "normal_",
}
