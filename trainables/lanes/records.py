"""What training reports: evaluations, every update's losses, and predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np


@dataclass(frozen=True)
class Point:
    """One evaluation of the lanes that still train.

    Attributes:
        update, examples, epoch, train_seconds: progress of training; seconds are of the whole stack.
        lanes: (k,) places of the lanes in the stack, or in all stacks of a trial once `Report.shifted` has been called.
        values: (split, metric) -> (k,) values. Splits are train (a fixed subset), validation, and batch: the mean loss
            of the batches since the previous point, each before its update. The gradient noise, where it is asked for,
            is a point of its own.
    """

    update: int
    examples: int
    epoch: float
    train_seconds: float
    lanes: list[int]
    values: dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Trace:
    """The loss of every update between two evaluations.

    Attributes:
        first: number of the first update.
        progress: (updates, 3) examples used, epochs and seconds of training of the whole stack after each update; the
            measured seconds are spread evenly over the updates.
        lanes: (k,) places of the lanes, as in a point.
        losses: (updates, k), of each batch before its update.
    """

    first: int
    progress: np.ndarray
    lanes: list[int]
    losses: np.ndarray

    def updates(self) -> Iterator[tuple[tuple[int, int, float, float], list[int], list[float]]]:
        """Per update, (update, examples, epoch, train_seconds), then the lanes with a finite loss and their losses."""
        lanes = np.array(self.lanes)
        rows = zip(self.progress.tolist(), self.losses, np.isfinite(self.losses), strict=True)
        for update, ((examples, epoch, seconds), losses, finite) in enumerate(rows, start=self.first):
            yield (update, int(examples), epoch, seconds), lanes[finite].tolist(), losses[finite].tolist()


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of the test split, by the lanes that trained to the end.

    Attributes:
        lanes: (k,) places of the lanes, as in a point.
        targets: (n,) the examples' classes.
        classes: (k, n) predicted classes.
        probabilities: (k, n) of the predicted classes.
    """

    lanes: list[int]
    targets: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


Record = TypeVar("Record", Point, Trace, Predictions)


@dataclass(frozen=True)
class Report:
    """What a stack reports after each part of its budget.

    Attributes:
        number: 1 for the first.
        examples, epoch: progress of training.
        points: evaluations since the previous report.
        traces: the updates' losses since, where asked for.
        predictions: of the test split, where asked for and once the budget is spent.
        finished: whether the budget is spent or no lane is left.
    """

    number: int
    examples: int
    epoch: float
    points: list[Point]
    traces: list[Trace]
    predictions: list[Predictions]
    finished: bool

    def shifted(self, by: int) -> Report:
        """The report with `by` added to every lane's place."""
        points, traces = _shifted(self.points, by), _shifted(self.traces, by)
        return replace(self, points=points, traces=traces, predictions=_shifted(self.predictions, by))


def _shifted(records: list[Record], by: int) -> list[Record]:
    return [replace(record, lanes=[by + lane for lane in record.lanes]) for record in records]
