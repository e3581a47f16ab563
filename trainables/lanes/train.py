"""Training the lanes of a trial: all configurations of one cell together, as one program.

The K networks of a trial differ in learning rate and seed only. A lane computes what its configuration computes alone
with torch.optim. Read `train` first; it is the whole loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trainables.augment import Augment
from trainables.config import Budget, Recording
from trainables.data import Data
from trainables.engines.base import Engine
from trainables.lanes.batches import Batches
from trainables.lanes.evaluate import TRAIN_SUBSET, Evaluator
from trainables.lanes.rates import losers, rungs
from trainables.lanes.records import Point, Predictions, Report, Trace
from trainables.lanes.stack import Stack
from trainables.lanes.times import EvaluationTimes, spent


def train(
    stack: Stack,
    engine: Engine,
    data: Data,
    batch_size: int,
    budget: Budget,
    *,
    multiplications: int = 1,
    augment: Augment | None = None,
    halving: str | None = None,
    every_update: bool = False,
    gradient_noise: bool = False,
    predictions: bool = False,
    evaluation_share: float = Recording.evaluation_share,
) -> Iterator[Report]:
    """Train every lane of a stack, in place, and report after each part of the budget.

    Args:
        stack: the lanes; a stack restored from a checkpoint resumes where that was made, bit for bit.
        engine: makes the updates.
        data: on the stack's device, in its type.
        batch_size: examples per update; the last batch of an epoch may be smaller.
        budget: how long.
        multiplications: of one network for one example, by which evaluation is rationed.
        augment: random changes of the training examples, if any.
        halving: metric by which the worse half of the learning rates is given up at 1/2, 1/4, 1/8 ... of the budget;
            None trains all rates to the end.
        every_update: whether reports hold the loss of every update.
        gradient_noise: whether each evaluation also estimates the gradient noise, on the same training examples. This
            costs two to four times as much as evaluation and changes no other number.
        predictions: whether the last report holds the predicted classes of the test split.
        evaluation_share: share of training's cost that evaluation may take; see `EvaluationTimes`.

    Yields:
        Report: `budget.reports` of them, fewer if every lane diverges.
    """
    batches = Batches(data.train, batch_size, stack, augment, drop_last=budget.drop_last)
    times = EvaluationTimes(
        budget,
        batch_size,
        len(data.train),
        evaluated=min(TRAIN_SUBSET, len(data.train)) + len(data.validation),
        multiplications=multiplications,
        share=evaluation_share,
    )
    evaluator = Evaluator(stack, engine, data, batches, times, gradient_noise)
    keep = rungs(budget.reports, len({lane.learning_rate for lane in stack.lanes})) if halving else {}
    if not spent(budget, stack):
        engine.warm_up(stack, batches)
    points: list[Point] = evaluator.points(None) if stack.update == 0 else []
    traces: list[Trace] = []
    predicted: list[Predictions] = []
    while not spent(budget, stack):
        while stack.alive and (stop := times.next_stop(stack)):
            first, seconds = stack.update + 1, stack.seconds
            losses = advance(stack, engine, batches, stop)
            if every_update:
                traces.append(_trace(stack, times, first, seconds, losses))
            losses = evaluator.remove_not_finite(losses)
            if stack.alive:
                points += evaluator.points(None if every_update else losses)
        stack.reports += 1
        if halving and stack.reports in keep and stack.alive:
            stack.stop(losers(stack, halving, len(data.validation), keep[stack.reports]))
            batches.align(stack)
        finished = spent(budget, stack)
        if finished and stack.alive:
            evaluator.test()
            predicted = [evaluator.predictions()] if predictions else []
        yield Report(stack.reports, *times.progress(stack.update), points, traces, predicted, finished)
        points, traces = [], []


def advance(stack: Stack, engine: Engine, batches: Batches, stop: int) -> Tensor:
    """Make the updates until `stop`, the timed region; returns each update's losses before it, (updates, K)."""
    spent: list[tuple[slice, float]] = []

    def work(rows: slice) -> Tensor:
        started = time.perf_counter()
        losses = engine.advance(stack, batches, rows, stop)
        if losses.is_cuda:
            torch.cuda.synchronize(losses.device)
        spent.append((rows, time.perf_counter() - started))
        return losses

    losses = torch.cat(stack.passes(work, trains=True), 1)
    stack.update = stop
    stack.updates[stack.alive] = stop
    for rows, seconds in spent:
        stack.spend(rows, seconds)
    return losses


def _trace(stack: Stack, times: EvaluationTimes, first: int, seconds: float, losses: Tensor) -> Trace:
    """The losses of the updates from `first` on, which began when the stack had trained for `seconds`."""
    clock = np.linspace(seconds, stack.seconds, len(losses) + 1)[1:]
    progress = [(*times.progress(first + n), second) for n, second in enumerate(clock)]
    return Trace(first, np.array(progress), list(stack.alive), losses.double().cpu().numpy())
