"""Evaluation of a stack's lanes, outside the timed region: at which updates, and which lanes have diverged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainables.config import Budget, Recording, examples_per_epoch, updates_per_epoch
from trainables.engines.base import Engine
from trainables.lanes.batches import Batches
from trainables.lanes.records import Point, Predictions
from trainables.lanes.stack import Result, Stack
from trainables.rules import EMA
from trainables.workloads.data import Data, Split

# Multiplications per lane that evaluation may take beyond its share of training: some hundredths of a second.
FREE_MULTIPLICATIONS = 3e8
# Training examples on which the training loss is followed.
TRAIN_SUBSET = 1000
# Test examples of which single values are kept.
TEST_VALUES = 10_000
# Splits on which lanes with a moving average of their parameters are evaluated without it, at the end.
RAW = ("raw_validation", "raw_test")
# Metrics of the gradient noise on these examples, in the order of `Engine.noise`.
NOISE = ("gradient_square", "gradient_noise")


def spent(budget: Budget, stack: Stack) -> bool:
    """Whether a stack has used the whole budget or has no lane left."""
    return stack.reports >= budget.reports or not stack.alive


class EvaluationTimes:
    """The updates at which lanes are evaluated: 0, the end of each report's part, and a series in between.

    The series is 1, 2, 3, 4, 6, 8, 12, 16 ... or every second, fourth ... of these: as many as keep the cost of
    evaluation within a share of training, beyond `FREE_MULTIPLICATIONS`.

    Args:
        budget: how long lanes train, not in seconds (`Budget.in_updates`).
        batch_size: examples per update.
        training_examples: in the split.
        evaluated: examples that one evaluation passes forward.
        multiplications: of one network for one example.
        share: of training's multiplications that evaluation may take.
    """

    def __init__(
        self,
        budget: Budget,
        batch_size: int,
        training_examples: int,
        *,
        evaluated: int = 0,
        multiplications: int = 1,
        share: float = Recording.evaluation_share,
    ) -> None:
        self.budget = budget
        self.epoch_examples = examples_per_epoch(batch_size, training_examples, drop_last=budget.drop_last)
        self.batch_size = min(batch_size, training_examples)
        self.per_epoch = updates_per_epoch(batch_size, self.epoch_examples)
        total = budget.total_updates(batch_size, training_examples)
        assert total is not None
        self.total: int = total
        # An update passes an example forward once, and backward at the price of two more passes.
        affordable = 3 * share * self.progress(self.total)[0] + FREE_MULTIPLICATIONS / multiplications
        ends = {self.end(part) for part in range(budget.reports + 1)}
        self.every = 1
        while len(ends | set(self.series())) * evaluated > affordable and len(self.series()) > 1:
            self.every *= 2

    def series(self) -> list[int]:
        """The updates in between, up to the end of the budget."""
        powers = [1 << exponent for exponent in range(1, 62)]
        stops = [1, *(stop for power in powers for stop in (power, power + power // 2))][:: self.every]
        return [stop for stop in stops if stop <= self.total]

    def end(self, part: int) -> int:
        """Updates made after this many reports."""
        return -(-self.total * part // self.budget.reports)

    def next_stop(self, stack: Stack) -> int | None:
        """The update at which to pause next, or None if the next report is due."""
        made, part = stack.update, stack.reports + 1
        following = next((stop for stop in self.series() if stop > made), math.inf)
        end = self.end(part)
        return int(min(following, end)) if made < end else None

    def progress(self, update: int) -> tuple[int, float]:
        """Training examples used, and epochs, after this many updates."""
        epochs, rest = divmod(update, self.per_epoch)
        # The last batch of an epoch may be short, so a whole epoch is counted by its examples.
        examples = epochs * self.epoch_examples + rest * self.batch_size
        return examples, examples / self.epoch_examples


@dataclass
class Evaluator:
    """Evaluates the lanes of a stack in training.

    Attributes:
        stack: the lanes.
        engine: computes the values.
        data: the splits.
        batches: told which lanes are left.
        times: progress in examples and epochs.
        gradient_noise: whether points are followed by one with the gradient noise.
    """

    stack: Stack
    engine: Engine
    data: Data
    batches: Batches
    times: EvaluationTimes
    gradient_noise: bool = False

    def points(self, batch_losses: Tensor | None) -> list[Point]:
        """Evaluate the lanes that still train; those without a finite value are removed as diverged.

        Args:
            batch_losses: (updates, K), losses of the updates since the previous evaluation, or None to leave out.

        Returns:
            One point, then perhaps one of the gradient noise; empty if no lane is left.
        """
        stack = self.stack
        splits = (("train", self.data.train.head(TRAIN_SUBSET)), ("validation", self.data.validation))
        found = {(name, metric): v for name, split in splits for metric, v in self._values(split).items()}
        if batch_losses is not None:
            found["batch", "loss"] = batch_losses.mean(0, dtype=torch.float64)
        table = torch.stack(list(found.values())).cpu().numpy()
        for (_, metric), numbers in zip(found, table, strict=True):
            self.engine.criterion.refuse(metric, numbers)
        finite = np.isfinite(table).all(0)
        if not finite.all():
            self.remove({lane: stack.update + 1 for lane, good in zip(stack.alive, finite, strict=True) if not good})
        columns = dict(zip(found, table[:, finite], strict=True))
        for key, numbers in columns.items():
            stack.last.setdefault(key, np.full(len(stack.lanes), math.nan))[stack.alive] = numbers
        if not stack.alive:
            return []
        values = {key: numbers.tolist() for key, numbers in columns.items()}
        point = Point(stack.update, *self.times.progress(stack.update), stack.seconds, list(stack.alive), values)
        return [point, *self._noise(point)] if self.gradient_noise else [point]

    def remove_not_finite(self, losses: Tensor) -> Tensor:
        """Remove the lanes that diverged in the latest updates, (updates, K); returns the losses of those left."""
        # A parameter that is not finite makes the next loss so.
        bad = torch.cat([~losses.isfinite(), ~self.stack.parameters.isfinite().all(1)[None]])
        hit = bad.any(0)
        if not bool(hit.any()):
            return losses
        first = self.stack.update - len(losses) + bad.int().argmax(0) + 1
        dated = zip(self.stack.alive, first.tolist(), hit.tolist(), strict=True)
        self.remove({lane: update for lane, update, found in dated if found})
        return losses[:, (~hit).tolist()]

    def remove(self, first_bad: dict[int, int]) -> None:
        """Remove diverged lanes: lane -> first update whose loss was not finite."""
        self.stack.diverge(first_bad)
        self.batches.align(self.stack)

    def test(self, keep: str = "") -> None:
        """Write the metrics of the test split into `Stack.last`.

        Args:
            keep: the metric whose value of each example is kept in `Stack.test_values`; if empty, none is.
        """
        stack, test = self.stack, self.data.test
        found = self._values(test)
        each = self._passes(lambda rows: self.engine.each(stack, rows, test, keep)) if keep else []
        kept = [part for part in each if part is not None]
        if kept and len(kept) == len(each):
            values = torch.cat(kept)
            # The native engine rounds differently, which can change a class; the mean must be that of the values.
            found[keep] = values.mean(1)
            some = np.linspace(0, len(test) - 1, min(TEST_VALUES, len(test))).round().astype(np.int64)
            table = values.cpu().numpy()[:, some].astype(np.float32)
            stack.test_values = dict(zip(stack.alive, table, strict=True))
        self._keep("test", found)
        if EMA in stack.state:
            for name, split in zip(RAW, (self.data.validation, test), strict=True):
                parts = stack.passes(lambda rows, split=split: self.engine.evaluate(stack, rows, split), trains=False)  # type: ignore[misc]
                self._keep(name, _joined(parts))

    def _keep(self, split: str, values: dict[str, Tensor]) -> None:
        """Write metrics of a split, metric -> (K,), into `Stack.last`."""
        for metric, numbers in values.items():
            column = self.stack.last[split, metric] = np.full(len(self.stack.lanes), math.nan)
            column[self.stack.alive] = numbers.tolist()

    def predictions(self) -> Predictions:
        """The classes that each lane predicts for the examples of the test split."""
        stack, test = self.stack, self.data.test
        parts = self._passes(lambda rows: self.engine.predict(stack, rows, test))
        classes, probabilities = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        return Predictions(list(stack.alive), test.targets.cpu().numpy(), classes, probabilities)

    def _values(self, split: Split) -> dict[str, Tensor]:
        """Metric -> (K,) values on a split."""
        return _joined(self._passes(lambda rows: self.engine.evaluate(self.stack, rows, split)))

    def _passes(self, work: Callable[[slice], Result]) -> list[Result]:
        """What `work` returns for each pass, with the parameters to evaluate in place."""
        with self.stack.averaged():
            return self.stack.passes(work, trains=False)

    def _noise(self, point: Point) -> list[Point]:
        """The gradient noise at a point, of the lanes in which it is finite."""
        stack, subset = self.stack, self.data.train.head(TRAIN_SUBSET)
        at_once = stack.at_once
        parts = stack.passes(lambda rows: self.engine.noise(stack, rows, subset), trains=False)
        stack.at_once = at_once  # training may fit in passes that are too large for this
        table = np.stack([torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)])
        finite = np.isfinite(table).all(0)
        values = dict(zip((("train", name) for name in NOISE), table[:, finite].tolist(), strict=True))
        lanes = np.array(point.lanes)[finite].tolist()
        return [replace(point, lanes=lanes, values=values)] if lanes else []


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of all passes: metric -> (K,)."""
    return {metric: torch.cat([part[metric] for part in parts]) for metric in parts[0]}
