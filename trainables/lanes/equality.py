"""Lane equality, tried: do stacked lanes of a model compute what each computes alone with torch.optim, and how fast?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.criterion import Criterion
from trainables.data import Data, Split
from trainables.engines import eager
from trainables.engines.vmapped import drawing, updated
from trainables.lanes import train as lanes
from trainables.lanes.stack import Batches, Builder, Lane, Stack, batch_order, initialise
from trainables.models import trained
from trainables.rules import Rule
from trainables.usercode.vmap_support import TRIED_EXAMPLES

UPDATES = 20
# Where training pauses in between, as it does for evaluation.
PAUSES = (1, 2, 3, 4, 6, 8, 12, 16)
# Seconds of each turn of the race, and how often both take one.
TURN_SECONDS, TURNS = 0.2, 3


@dataclass(frozen=True)
class Proof:
    """What came of it.

    Attributes:
        difference: the largest of a parameter or buffer, relative to its size where that is above 1.
        engine: that trains the lanes.
        lanes: in the race.
        speed: of them together, in times that of one after another; NaN if they run one after another.
    """

    difference: float
    engine: str
    lanes: int
    speed: float


def prove(
    build: Builder, rule: Rule, data: Data, batch_size: int, all_lanes: list[Lane], criterion: Criterion, name: str
) -> Proof:
    """Train a few lanes together and alone, for `UPDATES` updates, and race all of them against one.

    Args:
        build: makes one network.
        rule: the optimizer.
        data: on the CPU, in the type in which is trained.
        batch_size: examples per update.
        all_lanes: of a trial; those of its lowest rate and two seeds are compared.
        criterion: what outputs are judged by.
        name: of the model, for messages.
    """
    few = [lane for lane in all_lanes if lane.learning_rate == all_lanes[0].learning_rate][:2]
    stack, advance = _together(build, rule, data, batch_size, few, criterion, name)
    for pause in (*PAUSES, UPDATES):
        advance(pause - stack.update)
    names = list(trained(build()))
    largest = max(
        _difference(stack, names, row, _alone(build, rule, data.train, batch_size, lane, criterion, UPDATES))
        for row, lane in enumerate(few)
    )
    stack, advance = _together(build, rule, data, batch_size, all_lanes, criterion, name)
    engine = advance(1)
    if engine in ("solo", "loop"):
        return Proof(largest, engine, len(all_lanes), float("nan"))

    def alone(updates: int) -> None:
        _alone(build, rule, data.train, batch_size, all_lanes[0], criterion, updates)

    ratios = [_per_update(alone) * len(all_lanes) / _per_update(advance) for _ in range(TURNS)]
    return Proof(largest, engine, len(all_lanes), statistics.median(ratios))


def _together(
    build: Builder, rule: Rule, data: Data, batch_size: int, few: list[Lane], criterion: Criterion, name: str
) -> tuple[Stack, Callable[[int], str]]:
    stack = Stack.build(build, few, rule, data.train.inputs.dtype, torch.device("cpu"))
    sample = data.train.inputs[:TRIED_EXAMPLES]
    engine = eager.choose(build, data.in_shape, criterion, batch_size, stack, None, "auto", sample=sample, name=name)
    batches = Batches(data.train, batch_size, stack)

    def advance(updates: int) -> str:
        lanes.advance(stack, engine, batches, stack.update + updates)
        return engine.name

    return stack, advance


def _alone(
    build: Builder, rule: Rule, train: Split, batch_size: int, lane: Lane, criterion: Criterion, updates: int
) -> dict[str, Tensor]:
    """Parameters, buffers too, of one lane that torch.optim trains, by an ordinary loop."""
    network = initialise(build, lane.seed).to(train.inputs.dtype)
    network.train()
    optimizers = rule.reference(list(trained(network).values()), lane.learning_rate, dict(lane.settings))
    size = min(batch_size, len(train))
    per_epoch = -(-len(train) // size)
    for update in range(updates):
        epoch, place = divmod(update, per_epoch)
        if place == 0:
            order = batch_order(lane.seed, epoch, len(train))
        rows = order[place * size : (place + 1) * size]
        with drawing(lane.seed, update, train.inputs.device):

            def loss(rows: Tensor = rows) -> Tensor:
                return criterion.losses(network(train.inputs[rows])[None], train.targets[rows][None]).mean()

            updated(network, optimizers, loss)
    # What takes no part in the outputs decays with some rules and stays as it was with torch's classes.
    idle = {name for name, parameter in trained(network).items() if parameter.grad is None}
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name not in idle}


def _difference(stack: Stack, names: list[str], row: int, alone: dict[str, Tensor]) -> float:
    leaves = zip(names, stack.leaves(slice(row, row + 1)), strict=True)
    together = {name: leaf.detach()[0] for name, leaf in leaves}
    together |= {name: extra[row] for name, extra in stack.extras.items()}
    return max(relative(value, alone[name]) for name, value in together.items() if name in alone)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, relative to the second where that is above 1; infinite if one has a NaN.

    Where both have the same infinity, or both a NaN, they do not differ.
    """
    ours, theirs = ours.double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    found = torch.where(same, 0.0, difference.nan_to_num(nan=math.inf))
    return float(found.max()) if found.numel() else 0.0


def _per_update(advance: Callable[[int], object]) -> float:
    made, seconds = 0, 0.0
    while seconds < TURN_SECONDS:
        updates = max(1, made)
        started = time.perf_counter()
        advance(updates)
        seconds += time.perf_counter() - started
        made += updates
    return seconds / made
