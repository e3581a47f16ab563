"""A trial of lane equality: do stacked lanes compute what each computes alone with torch.optim, and how fast?"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from trainables.engines.choose import choose
from trainables.lanes.batches import Batches
from trainables.lanes.reference import alone, relative
from trainables.lanes.stack import Lane, Stack
from trainables.lanes.train import advance
from trainables.rules import Rule
from trainables.usercode.vmap_support import TRIED_EXAMPLES
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data
from trainables.workloads.models import Builder, trained

UPDATES = 20
# Updates at which training pauses, as it does for evaluation.
PAUSES = (1, 2, 3, 4, 6, 8, 12, 16)
# Seconds of each turn of the timing, and turns.
TURN_SECONDS, TURNS = 0.2, 3


@dataclass(frozen=True)
class Proof:
    """The result of a trial of lane equality.

    Attributes:
        difference: the largest of a parameter or buffer, by `reference.relative`.
        engine: name of the engine that trains the lanes.
        lanes: how many were timed.
        speed: updates per second of all lanes together, over those of one after another; NaN if they run one after
            another.
    """

    difference: float
    engine: str
    lanes: int
    speed: float


def prove(
    build: Builder, rule: Rule, data: Data, batch_size: int, all_lanes: list[Lane], criterion: Criterion, name: str
) -> Proof:
    """Train two lanes together and alone for `UPDATES` updates, and time all lanes against one.

    Args:
        build: makes one network.
        rule: the optimizer.
        data: on the CPU, in the type of the parameters.
        batch_size: examples per update.
        all_lanes: of a trial; those of its last recipe at the lowest rate and with two seeds are compared.
        criterion: the loss and the score.
        name: of the model, for messages.
    """

    def together(lanes: list[Lane]) -> tuple[Stack, str, Callable[[int], object]]:
        stack = Stack.build(build, lanes, rule, data.train.inputs.dtype, torch.device("cpu"), UPDATES)
        sample = data.train.inputs[:TRIED_EXAMPLES]
        engine = choose(build, data.in_shape, criterion, batch_size, stack, sample=sample, name=name)
        batches = Batches(data.train, batch_size, stack)
        return stack, engine.name, lambda updates: advance(stack, engine, batches, stack.update + updates)

    recipe = all_lanes[-1].recipe  # the lanes are sorted by recipe, then by rate
    few = [lane for lane in all_lanes if lane.recipe == recipe]
    few = [lane for lane in few if lane.learning_rate == few[0].learning_rate][:2]
    stack, _, more = together(few)
    for pause in (*PAUSES, UPDATES):
        more(pause - stack.update)

    def one(lane: Lane, updates: int) -> nn.Module:
        network, losses = alone(build, rule, data.train, batch_size, lane, criterion, updates)
        deque(losses, maxlen=0)
        return network

    difference = max(_difference(stack, row, one(lane, UPDATES)) for row, lane in enumerate(few))
    _, engine, more = together(all_lanes)
    more(1)
    if engine in ("solo", "loop"):
        return Proof(difference, engine, len(all_lanes), float("nan"))

    single = partial(one, all_lanes[0])
    ratios = [_seconds_per_update(single) * len(all_lanes) / _seconds_per_update(more) for _ in range(TURNS)]
    return Proof(difference, engine, len(all_lanes), statistics.median(ratios))


def _difference(stack: Stack, row: int, network: nn.Module) -> float:
    """The largest difference between a row of a stack and the network that was trained alone."""
    # Parameters that never got a gradient decay with some rules and not with torch's classes, and affect no output.
    idle = {name for name, parameter in trained(network).items() if parameter.grad is None}
    leaves = zip(trained(network), stack.leaves(slice(row, row + 1)), strict=True)
    together = {name: leaf.detach()[0] for name, leaf in leaves}
    together |= {name: extra[row] for name, extra in stack.extras.items()}
    expected = {name: t.detach() for name, t in [*network.named_parameters(), *network.named_buffers()]}
    return max(relative(value, expected[name]) for name, value in together.items() if name not in idle)


def _seconds_per_update(advance: Callable[[int], object]) -> float:
    made, seconds = 0, 0.0
    while seconds < TURN_SECONDS:
        updates = max(1, made)
        started = time.perf_counter()
        advance(updates)
        seconds += time.perf_counter() - started
        made += updates
    return seconds / made
