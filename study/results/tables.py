"""The tables of a results folder, appended to part by part, and the rows of running trials before they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.results import parts
from analysis.schema import FOLDERS, TABLES
from trainables import storage
from trainables.tune import Payload

# Equal neighbours are merged once there are this many, so the parts stay few and each row is rewritten O(log n) times.
MERGE = 8


class Table:
    """A table of a results folder, appended to part by part.

    A part is named by the appends FIRST to LAST that it holds. `MERGE` neighbours of equal span are merged into one,
    which is written before they are deleted: readers skip parts that lie within another one.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.schema, self.folder = TABLES[name], folder / FOLDERS[name]
        if name != "predictions":  # few studies record them
            self.folder.mkdir(parents=True, exist_ok=True)
        self.spans = [(first, last) for first, last, _ in parts(self.folder)]

    def append(self, columns: Mapping[str, list[Any]]) -> None:
        """Append rows, given as columns; they are on disk when this returns."""
        table = pa.Table.from_pydict(dict(columns), schema=self.schema)
        if not table.num_rows:
            return
        self.folder.mkdir(exist_ok=True)
        number = self.spans[-1][1] + 1 if self.spans else 1
        self._write(table, number, number)
        self.spans.append((number, number))
        while len(self.spans) >= MERGE and len({last - first for first, last in self.spans[-MERGE:]}) == 1:
            self._merge(self.spans[-MERGE:])

    def _merge(self, spans: list[tuple[int, int]]) -> None:
        whole = pa.concat_tables([pq.read_table(self._file(*span)) for span in spans], promote_options="default")
        first, last = spans[0][0], spans[-1][1]
        self._write(whole, first, last)
        self.spans[-MERGE:] = [(first, last)]
        for span in spans:
            self._file(*span).unlink()

    def drop(self, trials: Collection[int]) -> None:
        """Delete the rows of some trials."""
        for span in list(self.spans):
            whole = pq.read_table(self._file(*span))
            keep = pc.invert(pc.is_in(whole["trial"], pa.array(trials, pa.int64())))
            if (left := whole.filter(keep)).num_rows < whole.num_rows:
                self._write(left, *span)

    def _write(self, table: pa.Table, first: int, last: int) -> None:
        file = self._file(first, last)
        storage.write(file, lambda stream: pq.write_table(table, stream, compression="zstd"))

    def _file(self, first: int, last: int) -> Path:
        return self.folder / f"{first:07d}-{last:07d}.parquet"


@dataclass
class TrialBuffer:
    """The last result of a running trial, and its rows so far."""

    result: dict[str, Any] = field(default_factory=dict)
    lanes: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(default_factory=lambda: _empty("curves"))
    predictions: dict[str, list[Any]] = field(default_factory=lambda: _empty("predictions"))

    def take(self, trial: int, payload: Payload) -> None:
        """Add what a trial reports; a payload that is whole replaces what was reported before."""
        if payload.whole:
            self.curves, self.predictions = _empty("curves"), _empty("predictions")
        self.lanes = payload.lanes or self.lanes
        for point in payload.points:
            when = (point.update, point.examples, point.epoch, point.train_seconds)
            for (split, metric), numbers in point.values.items():
                _extend(self.curves, (trial, point.lanes, *when, split, metric, numbers), len(point.lanes))
        for trace in payload.traces:
            for when, lanes, losses in trace.updates():
                _extend(self.curves, (trial, lanes, *when, "batch", "loss", losses), len(lanes))
        for each in payload.predictions:
            count = len(each.targets)
            for lane, classes, probabilities in zip(each.lanes, each.classes, each.probabilities, strict=True):
                row = (trial, lane, range(count), each.targets.tolist(), classes.tolist(), probabilities.tolist())
                _extend(self.predictions, row, count)


def _empty(table: str) -> dict[str, list[Any]]:
    return {name: [] for name in TABLES[table].names}


def _extend(columns: dict[str, list[Any]], row: Sequence[Any], count: int) -> None:
    """Add `count` rows to the columns, in their order; a value that is no list or range is repeated."""
    for column, value in zip(columns.values(), row, strict=True):
        column += value if isinstance(value, list | range) else [value] * count
