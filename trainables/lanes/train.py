"""Training the lanes of a trial: all configurations of one cell together, as one program.

The K networks of a trial differ in learning rate and seed only. A lane computes what its configuration computes alone
with torch.optim. Read `train` first; it is the whole loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainables.augment import Augment
from trainables.config import Budget, Recording, examples_per_epoch, updates_per_epoch
from trainables.data import Data, Split
from trainables.engines.eager import Engine
from trainables.lanes.stack import Batches, Stack

# Training examples on which the loss is followed.
TRAIN_SUBSET = 1000
# The metrics of the gradient's noise there, as `Engine.noise` returns them.
NOISE = ("gradient_square", "gradient_noise")
# Unless told otherwise, evaluating may cost this share of training, plus so many multiplications a lane (some
# hundredths of a second).
EVALUATION_SHARE = Recording.evaluation_share
FREE_MULTIPLICATIONS = 3e8


@dataclass(frozen=True)
class Point:
    """One evaluation of the lanes that still train.

    Attributes:
        update, examples, epoch, train_seconds: how far training had come; seconds are of the whole stack.
        lanes: (k,) places of the lanes in the stack; `tune` counts them through all stacks of a trial.
        values: (split, metric) -> (k,) values. Splits are train (a fixed subset of `TRAIN_SUBSET` examples),
            validation, and batch: the mean loss of the batches since the previous point, each before its update. The
            gradient's noise, if it was asked for, is a point of its own.
    """

    update: int
    examples: int
    epoch: float
    train_seconds: float
    lanes: list[int]
    values: dict[tuple[str, str], list[float]]

    def plain(self) -> dict[str, Any]:
        """Everything as numbers, lists and a tensor, for `torch.save`."""
        numbers = torch.tensor(list(self.values.values()), dtype=torch.float64)
        return {**vars(self), "values": [list(self.values), numbers]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Point:
        """The same back."""
        keys, numbers = plain["values"]
        return cls(**{**plain, "values": dict(zip(keys, numbers.tolist(), strict=True))})


@dataclass(frozen=True)
class Trace:
    """The loss of every update between two evaluations.

    Attributes:
        first: number of the first update.
        progress: (updates, 3) examples used, epochs and seconds of training of the whole stack after each; seconds
            between the two ends are spread evenly.
        lanes: (k,) places of the lanes, as a point's.
        losses: (updates, k), of each batch before its update.
    """

    first: int
    progress: np.ndarray
    lanes: list[int]
    losses: np.ndarray

    def updates(self) -> Iterator[tuple[tuple[int, int, float, float], list[int], list[float]]]:
        """(update, examples, epoch, train_seconds), lanes and their finite losses, update by update."""
        lanes = np.array(self.lanes)
        rows = zip(self.progress.tolist(), self.losses, np.isfinite(self.losses), strict=True)
        for update, ((examples, epoch, seconds), losses, finite) in enumerate(rows, start=self.first):
            yield (update, int(examples), epoch, seconds), lanes[finite].tolist(), losses[finite].tolist()

    def plain(self) -> dict[str, Any]:
        """Everything as numbers, lists and tensors, for `torch.save`."""
        arrays = {"progress": torch.from_numpy(self.progress), "losses": torch.from_numpy(self.losses)}
        return {**vars(self), **arrays}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Trace:
        """The same back."""
        return cls(**{**plain, "progress": plain["progress"].numpy(), "losses": plain["losses"].numpy()})


@dataclass(frozen=True)
class Predictions:
    """What the lanes that trained to the end see in the examples of the test split.

    Attributes:
        lanes: (k,) places of the lanes, as a point's.
        targets: (n,) the examples' classes.
        classes: (k, n) the classes that were predicted.
        probabilities: (k, n) of these.
    """

    lanes: list[int]
    targets: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def plain(self) -> dict[str, Any]:
        """Everything as lists and tensors, for `torch.save`."""
        return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in vars(self).items()}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Predictions:
        """The same back."""
        arrays = {name: plain[name].numpy() for name in ("targets", "classes", "probabilities")}
        return cls(**{**plain, **arrays})


Mark = TypeVar("Mark", Point, Trace, Predictions)


@dataclass(frozen=True)
class Report:
    """What a trial tells after each part of its budget.

    Attributes:
        number: 1 for the first.
        examples, epoch: how far training had come.
        points: the evaluations since the last report.
        traces: the updates' losses since, if they were asked for.
        predictions: for the test split, if they were asked for and the budget is spent.
        finished: whether the budget is spent, or no lane is left.
    """

    number: int
    examples: int
    epoch: float
    points: list[Point]
    traces: list[Trace]
    predictions: list[Predictions]
    finished: bool

    def shifted(self, by: int) -> Report:
        """The same, the first lane being number `by`."""
        points, traces = _shifted(self.points, by), _shifted(self.traces, by)
        return replace(self, points=points, traces=traces, predictions=_shifted(self.predictions, by))


def spent(budget: Budget, stack: Stack) -> bool:
    """Whether a stack has used the whole budget or has no lane left."""
    return stack.reports >= budget.reports or not stack.alive


def _shifted(marks: list[Mark], by: int) -> list[Mark]:
    return [replace(mark, lanes=[by + lane for lane in mark.lanes]) for mark in marks]


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
    evaluation_share: float = EVALUATION_SHARE,
) -> Iterator[Report]:
    """Train every lane of a stack, in place, and report after each part of the budget.

    Args:
        stack: the lanes; a stack restored from a checkpoint goes on where that was made, bit for bit.
        engine: makes the updates.
        data: on the stack's device, in its type.
        batch_size: examples per update; the last batch of an epoch may be smaller.
        budget: how long.
        multiplications: of one network for one example, by which evaluation is rationed.
        augment: what is done to the training examples, if anything.
        halving: the metric by which the worse half of the learning rates is given up at 1/2, 1/4, 1/8 ... of the
            budget; none is if not given.
        every_update: whether reports hold the loss of every update.
        gradient_noise: whether each evaluation estimates the gradient's noise too, on the training examples that it
            takes. That costs two to four times what evaluating does; the schedule stays, and so do all other numbers.
        predictions: whether the last report holds what each lane sees in the examples of the test split, which is one
            of classes.
        evaluation_share: see `Schedule`, its `share`.

    Yields:
        Report: `budget.reports` of them, fewer if every lane diverges.
    """
    batches = Batches(data.train, batch_size, stack, augment, drop_last=budget.drop_last)
    subset = data.train.head(TRAIN_SUBSET)
    evaluated = len(subset) + len(data.validation)
    cost = {"evaluated": evaluated, "multiplications": multiplications}
    schedule = Schedule(budget, batch_size, len(data.train), **cost, share=evaluation_share)
    rungs = _rungs(budget.reports, len({lane.learning_rate for lane in stack.lanes})) if halving else {}

    def values(split: Split) -> dict[str, Tensor]:
        parts = stack.passes(lambda rows: engine.evaluate(stack, rows, split), trains=False)
        return {metric: torch.cat([part[metric] for part in parts]) for metric in parts[0]}

    def evaluate(batch_losses: Tensor | None) -> list[Point]:
        """The point at which training stands; none if no lane is left. A lane without a finite value has diverged."""
        found = {
            (name, metric): numbers
            for name, split in (("train", subset), ("validation", data.validation))
            for metric, numbers in values(split).items()
        }
        if batch_losses is not None:
            found["batch", "loss"] = batch_losses.mean(0, dtype=torch.float64)
        table = torch.stack(list(found.values())).cpu().numpy()
        for (_, metric), numbers in zip(found, table, strict=True):
            engine.criterion.refuse(metric, numbers)
        finite = np.isfinite(table).all(0)
        if not finite.all():
            stack.diverge({lane: stack.update + 1 for lane, good in zip(stack.alive, finite, strict=True) if not good})
            batches.align(stack)
        columns = dict(zip(found, table[:, finite], strict=True))
        for key, numbers in columns.items():
            stack.last.setdefault(key, np.full(len(stack.lanes), math.nan))[stack.alive] = numbers
        examples, epoch = schedule.progress(stack.update)
        lists = {key: numbers.tolist() for key, numbers in columns.items()}
        if not stack.alive:
            return []
        point = Point(stack.update, examples, epoch, stack.seconds, list(stack.alive), lists)
        return [point, *noise(point)] if gradient_noise else [point]

    def noise(point: Point) -> list[Point]:
        """The gradient's noise at a point, of the lanes in which it is finite; it decides nothing."""
        at_once = stack.at_once
        parts = stack.passes(lambda rows: engine.noise(stack, rows, subset), trains=False)
        stack.at_once = at_once  # training may go on in passes that are too large for this
        table = np.stack([torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)])
        finite = np.isfinite(table).all(0)
        lists = dict(zip((("train", name) for name in NOISE), table[:, finite].tolist(), strict=True))
        lanes = np.array(point.lanes)[finite].tolist()
        return [replace(point, lanes=lanes, values=lists)] if lanes else []

    if not spent(budget, stack):
        engine.warm_up(stack, batches)
    points, traces = evaluate(None) if stack.update == 0 else [], []
    predicted: list[Predictions] = []
    while not spent(budget, stack):
        while stack.alive and (stop := schedule.next_stop(stack)):
            first, seconds = stack.update + 1, stack.seconds
            losses = advance(stack, engine, batches, stop)
            if every_update:
                clock = np.linspace(seconds, stack.seconds, len(losses) + 1)[1:]
                progress = [(*schedule.progress(first + n), second) for n, second in enumerate(clock)]
                traces.append(Trace(first, np.array(progress), list(stack.alive), losses.double().cpu().numpy()))
            if first_bad := _not_finite(losses, stack):
                losses = losses[:, [lane not in first_bad for lane in stack.alive]]
                stack.diverge(first_bad)
                batches.align(stack)
            if stack.alive:
                points += evaluate(None if every_update else losses)
        stack.reports += 1
        if halving and stack.reports in rungs and stack.alive:
            stack.stop(_losers(stack, halving, len(data.validation), rungs[stack.reports]))
            batches.align(stack)
        finished = spent(budget, stack)
        if finished and stack.alive:
            for metric, numbers in values(data.test).items():
                stack.last["test", metric] = np.full(len(stack.lanes), math.nan)
                stack.last["test", metric][stack.alive] = numbers.tolist()
            if predictions:
                parts = stack.passes(lambda rows: engine.predict(stack, rows, data.test), trains=False)
                classes, probabilities = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
                targets = data.test.targets.cpu().numpy()
                predicted = [Predictions(list(stack.alive), targets, classes, probabilities)]
        yield Report(stack.reports, *schedule.progress(stack.update), points, traces, predicted, finished)
        points, traces = [], []


def advance(stack: Stack, engine: Engine, batches: Batches, stop: int) -> Tensor:
    """Make updates until `stop`, the timed region; returns each update's losses before it, (updates, K)."""
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


def scores(stack: Stack, metric: str, validation_examples: int) -> dict[float, float]:
    """How good each learning rate is so far on the validation split, higher is better; NaN if it cannot count.

    A rate counts if every seed still trains with it. Seeds are averaged as log loss, negated, or as logit accuracy, of
    which half an example is shaved so that no error at all stays finite.
    """
    values = stack.last.get(("validation", metric), np.full(len(stack.lanes), math.nan)).copy()
    values[list(stack.stopped)] = math.nan
    n = validation_examples
    if metric == "accuracy":
        shaved = (values * n + 0.5) / (n + 1)
        each = np.log(shaved / (1 - shaved))
    else:
        with np.errstate(divide="ignore"):  # no loss at all is the best there is
            each = -np.log(values)
    rates = np.array([lane.learning_rate for lane in stack.lanes])
    # Sums in another order differ in the last digits; that must not decide between equals.
    return {float(rate): float(f"{each[rates == rate].mean():.12g}") for rate in np.unique(rates)}


def _losers(stack: Stack, metric: str, validation_examples: int, keep: int) -> list[int]:
    """The lanes of all rates that still train but the best `keep`; of equals, the higher rate is worse."""
    now = {stack.lanes[lane].learning_rate for lane in stack.alive}
    found = {rate: score for rate, score in scores(stack, metric, validation_examples).items() if rate in now}
    kept = sorted(found, key=lambda rate: (math.isnan(found[rate]), -found[rate], rate))[:keep]
    return [lane for lane in stack.alive if stack.lanes[lane].learning_rate not in kept]


def _rungs(reports: int, rates: int) -> dict[int, int]:
    """After which reports how many rates are kept: ... 4 at 1/8 of the budget, 2 at 1/4, and 1 at half of it."""
    rounds = math.ceil(math.log2(rates)) if rates > 1 else 0
    rungs = {math.ceil(reports / 2**part): 2 ** (part - 1) for part in range(rounds, 0, -1)}
    return {report: keep for report, keep in rungs.items() if report < reports}


def _not_finite(losses: Tensor, stack: Stack) -> dict[int, int]:
    """Lanes whose loss stopped being finite, or whose next must: lane -> first update with such a loss."""
    bad = torch.cat([~losses.isfinite(), ~stack.parameters.isfinite().all(1)[None]])
    hit = bad.any(0)
    if not bool(hit.any()):
        return {}
    first = stack.update - len(losses) + bad.int().argmax(0) + 1
    dated = zip(stack.alive, first.tolist(), hit.tolist(), strict=True)
    return {lane: update for lane, update, found in dated if found}


class Schedule:
    """When lanes are evaluated: before the first update, at the end of each report's part, and in between.

    In between are 1, 2, 3, 4, 6, 8, 12, 16 ... updates, or every second, fourth ... of these: as many as keep the cost
    of evaluating within a share of training's, beyond an allowance that is too small to notice.

    Args:
        budget: how long.
        batch_size: examples per update.
        training_examples: in the split.
        evaluated: examples that one evaluation passes forward.
        multiplications: of one network for one example.
        share: of training's multiplications that evaluating may take beyond that allowance.
    """

    def __init__(
        self,
        budget: Budget,
        batch_size: int,
        training_examples: int,
        *,
        evaluated: int = 0,
        multiplications: int = 1,
        share: float = EVALUATION_SHARE,
    ) -> None:
        self.budget = budget
        self.epoch_examples = examples_per_epoch(batch_size, training_examples, drop_last=budget.drop_last)
        self.batch_size = min(batch_size, training_examples)
        self.per_epoch = updates_per_epoch(batch_size, self.epoch_examples)
        self.total = budget.total_updates(batch_size, training_examples)
        self.every = 2  # of a budget in seconds, which may hold any number of updates
        if self.total is not None:
            # An update passes an example forward once, and backward at the price of two more.
            affordable = 3 * share * self.progress(self.total)[0] + FREE_MULTIPLICATIONS / multiplications
            ends = {self.end(part) for part in range(budget.reports + 1)}
            self.every = 1
            while len(ends | set(self.series())) * evaluated > affordable and len(self.series()) > 1:
                self.every *= 2

    def series(self) -> list[int]:
        """The updates in between, up to the end of the budget; of one in seconds, without end in practice."""
        powers = [1 << exponent for exponent in range(1, 62)]
        stops = [1, *(stop for power in powers for stop in (power, power + power // 2))][:: self.every]
        return [stop for stop in stops if self.total is None or stop <= self.total]

    def end(self, part: int) -> int:
        """Updates after so many reports, of a budget that is not in seconds."""
        assert self.total is not None
        return -(-self.total * part // self.budget.reports)

    def next_stop(self, stack: Stack) -> int | None:
        """The update to pause at, or None if the part that leads to the next report is done."""
        made, part = stack.update, stack.reports + 1
        following = next((stop for stop in self.series() if stop > made), math.inf)
        if self.total is not None:
            end = self.end(part)
            return int(min(following, end)) if made < end else None
        assert self.budget.seconds is not None
        left = self.budget.seconds * part / self.budget.reports - stack.seconds
        if left <= 0 and made * self.budget.reports >= self.budget.min_updates * part:
            return None
        affordable = math.ceil(left * made / stack.seconds) if left > 0 and made else 1
        return int(min(following, made + affordable))

    def progress(self, update: int) -> tuple[int, float]:
        """Training examples used and epochs made in so many updates."""
        epochs, rest = divmod(update, self.per_epoch)
        # The last batch of an epoch may be short, so a whole epoch is counted by its examples.
        examples = epochs * self.epoch_examples + rest * self.batch_size
        return examples, examples / self.epoch_examples
