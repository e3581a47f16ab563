"""The tables of a results folder, appended to part by part, and the rows of running trials before they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.results import parts, read_part
from analysis.schema import FOLDERS, TABLES, part_name
from trainables import storage
from trainables.tune import Payload

# Equal neighbours are merged once there are this many, so the parts stay few and each row is rewritten O(log n) times.
MERGE = 8
# A single append of so few rows is written without compression and statistics, which cost more than it saves until it
# is merged.
SMALL = 1000
# Folder of rows that gave way to those of a trial that runs again.
SUPERSEDED = "superseded"
Part: TypeAlias = tuple[int, int, Path]
"""First and last append of a part, and its file."""


class Table:
    """A table of a results folder, appended to part by part.

    A part is named by the appends FIRST to LAST that it holds. `MERGE` neighbours of equal span are merged into one,
    which is written before they are deleted: readers skip parts that lie within another one.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.schema, self.folder = name, TABLES[name], folder / FOLDERS[name]
        if name != "predictions":  # few studies record them
            self.folder.mkdir(parents=True, exist_ok=True)
        self.parts = parts(self.folder)
        self.latest: dict[Path, pa.Table] = {}  # small single appends, which need not be read to be merged

    def append(self, columns: Mapping[str, list[Any]]) -> None:
        """Append rows, given as columns; they are on disk when this returns."""
        table = pa.Table.from_pydict(dict(columns), schema=self.schema)
        if not table.num_rows:
            return
        self.folder.mkdir(exist_ok=True)
        number = self.parts[-1][1] + 1 if self.parts else 1
        file = _write(self.folder, table, number, number)
        self.parts.append((number, number, file))
        if table.num_rows < SMALL:
            self.latest[file] = table
        while len(self.parts) >= MERGE and len({last - first for first, last, _ in self.parts[-MERGE:]}) == 1:
            merged = self.parts[-MERGE:]
            tables = [self.latest[file] if file in self.latest else read_part(file) for _, _, file in merged]
            whole = pa.concat_tables(tables, promote_options="default")
            self._replace(merged, whole)

    def drop(self, trials: Collection[int], aside: Collection[int] = ()) -> None:
        """Delete the rows of some trials; those of `aside` are first copied into `superseded/` of the results."""
        for part in list(self.parts):
            whole = read_part(part[2])
            if (left := whole.filter(pc.invert(_of(whole, trials)))).num_rows == whole.num_rows:
                continue
            if (kept := whole.filter(_of(whole, aside))).num_rows:
                superseded = self.folder.parent / SUPERSEDED / self.name
                superseded.mkdir(parents=True, exist_ok=True)
                _write(superseded, kept, *part[:2])
            self._replace([part], left)

    def _replace(self, old: list[Part], table: pa.Table) -> None:
        """Write a part in the place of neighbours, which are then deleted."""
        first, last, place = old[0][0], old[-1][1], self.parts.index(old[0])
        new = _write(self.folder, table, first, last)
        self.parts[place : place + len(old)] = [(first, last, new)]
        for _, _, file in old:
            self.latest.pop(file, None)
            if file != new:
                file.unlink()


def _write(folder: Path, table: pa.Table, first: int, last: int) -> Path:
    buffer, small = pa.BufferOutputStream(), first == last and table.num_rows < SMALL
    pq.write_table(
        table,
        buffer,
        compression="none" if small else "zstd",
        use_dictionary=not small,
        write_statistics=not small,
        write_page_checksum=True,
    )
    content = buffer.getvalue().to_pybytes()
    file = folder / part_name(first, last, content)
    storage.write_bytes(file, content)
    return file


def _of(table: pa.Table, trials: Collection[int]) -> pa.ChunkedArray:
    """Which rows are of some trials."""
    return pc.is_in(table["trial"], pa.array(trials, pa.int64()))


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
    """Add `count` rows to the columns, in their order; a value that is not a list or range is repeated."""
    for column, value in zip(columns.values(), row, strict=True):
        column += value if isinstance(value, list | range) else [value] * count
