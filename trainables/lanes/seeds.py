"""Random numbers of a lane: drawn from its seed and a purpose, never from a generator's earlier use.

Lanes with the same seed therefore share initialisation and batches, and a resumed trial draws the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from trainables.workloads.models import Builder

INITIALISATION, BATCH_ORDER, AUGMENTATION, UPDATE = range(4)


def stream(*numbers: int) -> int:
    """A generator seed for a lane's seed, a purpose and, where there are many of these, an epoch or update."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def initialise(build: Builder, seed: int) -> nn.Module:
    """Build the network that every lane with this seed starts from; torch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, INITIALISATION))
        return build()


def batch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which a lane with this seed sees the training split in an epoch (from 0): row numbers, (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, BATCH_ORDER, epoch)))


@contextmanager
def drawing(seed: int, update: int, device: torch.device, *, when: bool = True) -> Iterator[None]:
    """Seed torch's generators by a lane's seed and an update for as long as the context lasts, then restore them."""
    if not when:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, UPDATE, update))
        yield
