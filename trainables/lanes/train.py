"""Training the lanes of a trial: all configurations of one cell together, as one program.

The K networks of a trial differ in learning rate, recipe and seed only. A lane computes what its configuration computes
alone with torch.optim. Read `train` first; it is the whole loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from trainables.config import TrialConfig
from trainables.engines.base import Engine
from trainables.lanes.batches import Batches
from trainables.lanes.evaluate import TRAIN_SUBSET, EvaluationTimes, Evaluator, spent
from trainables.lanes.rates import Measure, losers, rungs
from trainables.lanes.records import Point, Predictions, Report, Trace
from trainables.lanes.stack import Stack
from trainables.workloads.augment import Augment
from trainables.workloads.data import Data


def train(
    stack: Stack, engine: Engine, data: Data, config: TrialConfig, *, multiplications: int = 1
) -> Iterator[Report]:
    """Train every lane of a stack, in place, and report after each part of the budget.

    Args:
        stack: the lanes; a stack restored from a checkpoint resumes where that was made, bit for bit.
        engine: makes the updates.
        data: on the stack's device, in its type.
        config: of the trial; its batch size, budget, augmentation, halving, metric and recording are used here.
        multiplications: of one network for one example, by which evaluation is rationed.

    Yields:
        Report: `config.budget.reports` of them, fewer if every lane diverges.
    """
    budget = config.budget
    augment = Augment.of(config.augment, data.mean, data.std)
    batches = Batches(data.train, config.batch_size, stack, augment, drop_last=budget.drop_last)
    times = EvaluationTimes(
        budget,
        config.batch_size,
        len(data.train),
        evaluated=min(TRAIN_SUBSET, len(data.train)) + len(data.validation),
        multiplications=multiplications,
        share=config.evaluation_share,
    )
    measure = Measure.of(config, data, engine.criterion)
    evaluator = Evaluator(stack, engine, data, batches, times, config.gradient_noise)
    rates = Counter(setting.recipe for setting in {lane.setting for lane in stack.lanes})
    keep = rungs(budget.reports, max(rates.values())) if config.halving else {}
    if not spent(budget, stack):
        engine.warm_up(stack, batches)
    points: list[Point] = evaluator.points(None) if stack.update == 0 else []
    traces: list[Trace] = []
    predicted: list[Predictions] = []
    while not spent(budget, stack):
        while stack.alive and (stop := times.next_stop(stack)):
            first, seconds = stack.update + 1, stack.seconds
            losses = advance(stack, engine, batches, stop)
            if config.every_update:
                traces.append(_trace(stack, times, first, seconds, losses))
            losses = evaluator.remove_not_finite(losses)
            if stack.alive:
                points += evaluator.points(None if config.every_update else losses)
        stack.reports += 1
        if stack.reports in keep and stack.alive:
            stack.stop(losers(stack, measure, keep[stack.reports]))
            batches.align(stack)
        finished = spent(budget, stack)
        if finished and stack.alive:
            evaluator.test(config.metric if config.test_values else "")
            predicted = [evaluator.predictions()] if config.predictions else []
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


@contextmanager
def without_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero for as long as the context lasts.

    Where a ReLU is dead, momentum decays to denormal numbers, for which processors take several times as long.
    """
    before = (torch.tensor([1e-300], dtype=torch.float64) * 1e-10).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
