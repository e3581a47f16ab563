"""What an update costs of one network that the ordinary torch loop trains alone, as a reader of the results would."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from contextlib import closing

import torch

from trainables.lanes.reference import alone
from trainables.lanes.stack import Lane
from trainables.rules import Rule
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split
from trainables.workloads.models import Builder

# The fastest chunk of updates counts, since other work on the processor only adds time: on a busy machine the median is
# up to three times as high, and varies as much.
CHUNKS, FEWEST_CHUNKS, CHUNK_SECONDS = 5, 3, 0.003
WARM_UP_UPDATES, WARM_UP_SECONDS, MOST_SECONDS = 3, 0.05, 0.1
# Of a batch that takes more, a part is timed, as large batches take time in proportion to their examples.
MULTIPLICATIONS = {"cpu": 2e8, "cuda": 1e10}
FEWEST_EXAMPLES = 256
FEW_BATCHES = 4

# A worker trains many trials; those of one kind are measured until so many times were no shorter.
MOST_MEASUREMENTS = 6
# The shortest time of a kind so far, and how many were no shorter, at least 1.
_MEASURED: dict[Hashable, tuple[float, int]] = {}


def update_seconds(
    build: Builder,
    rule: Rule,
    examples: Split,
    batch_size: int,
    lane: Lane,
    criterion: Criterion,
    *,
    multiplications: int = 1,
    drop_last: bool = False,
    again: bool = False,
) -> float:
    """Seconds per update of one network trained alone by `reference.alone`, on the examples' device, measured.

    Examples are not augmented. Torch's generators are left as they are.

    Args:
        build: makes one network; its text identifies the model.
        rule: the optimizer.
        examples: the training split, in the type of the parameters.
        batch_size: examples per update.
        lane: a configuration, on whose values times hardly depend.
        criterion: the loss.
        multiplications: of one network for one example.
        drop_last: whether an epoch leaves out a last batch that is short.
        again: whether to measure once more, unless `MOST_MEASUREMENTS` were no shorter; the shortest time counts.
    """
    names = tuple(sorted({*lane.options(), *lane.recipe.values()}))
    kind = (examples.inputs.device.type, examples.inputs.dtype, examples.inputs.shape, torch.get_num_threads())
    key = (repr(build), rule.name, names, criterion, batch_size, drop_last, *kind)
    shortest, measured = _MEASURED.get(key, (math.inf, 0))
    if not measured or (again and measured < MOST_MEASUREMENTS):
        batch_size = min(batch_size, len(examples))
        most = int(MULTIPLICATIONS[examples.inputs.device.type] / (3 * multiplications))
        part = min(batch_size, max(FEWEST_EXAMPLES, most))
        loop = build, rule, examples, part, lane, criterion
        seconds = _timed(*loop, drop_last=drop_last) * batch_size / part
        better, shortest = seconds < shortest, min(seconds, shortest)
        _MEASURED[key] = shortest, max(1, measured + (not better))
    return shortest


def _timed(
    build: Builder, rule: Rule, examples: Split, size: int, lane: Lane, criterion: Criterion, *, drop_last: bool
) -> float:
    """Seconds per update, of the fastest chunk."""
    device, per_epoch = examples.inputs.device, -(-len(examples) // size)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _, losses = alone(build, rule, examples, size, lane, criterion, 10**12, drop_last=drop_last)
        with closing(losses):  # type: ignore[type-var]

            def seconds(updates: int) -> float:
                started = time.perf_counter()
                for _ in range(updates):
                    next(losses)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                return time.perf_counter() - started

            warm = [seconds(1), seconds(1)]
            while len(warm) < WARM_UP_UPDATES and sum(warm) < WARM_UP_SECONDS:
                warm.append(seconds(1))
            count = max(1, int(CHUNK_SECONDS / warm[-1]))
            if per_epoch <= FEW_BATCHES:  # whole epochs, as the last batch of each is short
                count = -(-count // per_epoch) * per_epoch
            chunks: list[float] = []
            while len(chunks) < FEWEST_CHUNKS or (len(chunks) < CHUNKS and sum(chunks) < MOST_SECONDS):
                chunks.append(seconds(count))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return min(chunks) / count
