"""Writes the results folder: the tables, as trials report, and the provenance.

A trial's end is written in this order: its curves, its lanes, its row, then Optuna's storage, then its checkpoint is
removed. Whatever is cut off in between is found by `study.results.recovery` when the study is resumed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray import tune
from ray.tune.experiment import Trial

from analysis.results import FOLDERS, TABLES, parts, regime
from study.spec import Spec
from study.tuning.searcher import TruthfulSearch, outcome
from trainables import storage
from trainables.tune import Payload

if TYPE_CHECKING:
    from study.progress.trackers import Listener

# Equal neighbours are merged once there are so many, so the parts stay few and each row is rewritten O(log n) times.
MERGE = 8
# A trial that kills its worker once more than so is set aside: it would go on killing workers.
MAX_FAILURES = 1
# Nodes that may die under a trial, which is not its fault, before each counts as a worker.
MAX_NODES = 10


class Table:
    """One table of a results folder, appended to part by part.

    A part holds the appends FIRST to LAST and is named so. `MERGE` parts of the same span become one, which is written
    before they are removed: a reader that meets both skips those that lie within it, so a crash in between is harmless.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.schema, self.folder = TABLES[name], folder / FOLDERS[name]
        if name != "predictions":  # which few studies ask for
            self.folder.mkdir(parents=True, exist_ok=True)
        self.spans = [(first, last) for first, last, _ in parts(self.folder)]

    def append(self, columns: Mapping[str, list[Any]]) -> None:
        """Write rows, given column by column; they are on disk when this returns."""
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
        """Take out the rows of some trials."""
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
class Course:
    """A trial that has begun: what it last said, and its curves so far."""

    result: dict[str, Any] = field(default_factory=dict)
    lanes: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(default_factory=lambda: _empty("curves"))
    predictions: dict[str, list[Any]] = field(default_factory=lambda: _empty("predictions"))

    def take(self, trial: int, payload: Payload) -> None:
        """Add what a trial reports, or put it in the place of all before."""
        if payload.whole:
            self.curves, self.predictions = _empty("curves"), _empty("predictions")
        self.lanes = payload.lanes or self.lanes
        for point in payload.points:
            when = (point.update, point.examples, point.epoch, point.train_seconds)
            for (split, metric), numbers in point.values.items():
                self.add(trial, point.lanes, when, split, metric, numbers)
        for trace in payload.traces:
            for when, lanes, losses in trace.updates():
                self.add(trial, lanes, when, "batch", "loss", losses)
        for each in payload.predictions:
            count = len(each.targets)
            for lane, classes, probabilities in zip(each.lanes, each.classes, each.probabilities, strict=True):
                row = (trial, lane, range(count), each.targets.tolist(), classes.tolist(), probabilities.tolist())
                _extend(self.predictions, row, count)

    def add(
        self,
        trial: int,
        lanes: list[int],
        when: tuple[int, int, float, float],
        split: str,
        metric: str,
        values: list[float],
    ) -> None:
        """Add a curve's point for some lanes; when is (update, examples, epoch, train_seconds)."""
        _extend(self.curves, (trial, lanes, *when, split, metric, values), len(lanes))


def _empty(table: str) -> dict[str, list[Any]]:
    return {name: [] for name in TABLES[table].names}


def _extend(columns: dict[str, list[Any]], row: Sequence[Any], count: int) -> None:
    """Add `count` rows to all columns, in their order; what is no list or range is the same in each."""
    for column, value in zip(columns.values(), row, strict=True):
        column += value if isinstance(value, list | range) else [value] * count


class Collector(tune.Callback):
    """Takes the payload out of every result, writes a trial's rows when it ends, and tells everybody.

    Args:
        spec: the study's.
        folder: the results folder.
        search: what tells Optuna.
        listeners: who else wants to know.
        tick: called from time to time.
        say: told what the user should know at once.
        tell: likewise, of what befell workers; the kind of event, and words.
        final: whether a trial whose worker died is given up at once, where Ray Tune does.
    """

    def __init__(
        self,
        spec: Spec,
        folder: Path,
        search: TruthfulSearch,
        listeners: Sequence[Listener] = (),
        tick: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = print,
        tell: Callable[[str, str], None] = lambda kind, text: None,
        final: bool = True,
    ) -> None:
        self.training_examples = spec.workload.facts.train
        self.folder, self.tables = folder, {name: Table(name, folder) for name in TABLES}
        self.search, self.listeners, self.tick, self.say, self.tell = search, listeners, tick, say, tell
        self.courses: dict[int, Course] = {}
        self.warned: set[int] = set()
        self.final, self.orphans, self.cut_off, self.ended = final, 0, 0, 0
        self.nodes: Counter[int] = Counter()
        self.recovered = (-1, -1)
        self.broken: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune's snapshots, which pickle callbacks, are not what a study is resumed from."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Time passes; what could not be written ends the session here, where Ray Tune does not catch it."""
        if self.broken:
            raise self.broken
        self.tick()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins, or goes on."""
        self.courses.setdefault(trial.config["trial"], Course())
        for listener in self.listeners:
            listener.began(trial.config["trial"], trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep what a trial reports until it ends."""
        payload: Payload = result.pop("payload")
        number = trial.config["trial"]
        if self.broken:
            return
        course = self.courses[number]
        course.take(number, payload)
        # A trial that failed in mid-course keeps the counts and rows of its last good report.
        course.result = {**course.result, **result}
        # What a worker did last before it was interrupted is in its checkpoint, but was never delivered.
        parts = dict(enumerate(result.get("reported", []), start=1)) if payload.whole else {}
        if "report" in result and not result["extending"]:
            parts[result["report"]] = result["value"]
        for part, value in parts.items():
            self.search.report(number, part, value)
        if (warning := result.get("warning")) and number not in self.warned:
            self.warned.add(number)  # a disk that is full stays so for many reports
            self.say(f"trial {number}: {warning}")
        for listener in self.listeners:
            listener.reported(number, result | {"payload": payload})

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's worker died or could not be reached, and another takes over."""
        number, node = trial.config["trial"], _node_died(trial)
        self.recovered = iteration, number
        if node and self.nodes[number] < MAX_NODES:
            self.nodes[number] += 1
            trial.run_metadata.num_failures -= 1
        if not self.broken:
            lost = "its node" if node else "its worker"
            self.tell("worker lost", f"trial {number}: {lost} was lost; the trial goes on in another")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended well, or was stopped."""
        course = self.courses.get(trial.config["trial"], Course())
        self._end(trial, outcome(course.result), course.result.get("error"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's worker died for the last time, or between two trials, when Ray Tune does not try again: we do."""
        number = trial.config["trial"]
        # Of a worker that dies while it is given its next trial Ray Tune tells in the same step twice, and gives up.
        once = self.recovered == (iteration, number)
        spent = getattr(trial, "num_failures", 0) > MAX_FAILURES and not once
        if self.final or (spent and not _node_died(trial)):
            self.tell("set aside", f"trial {number}: its worker died again; the trial is set aside as failed")
            self._end(trial, "failed", _reason(trial))
        else:
            self.orphans += 1
            self.tell("worker lost", f"trial {number}: its worker was lost; the trial goes on later")
            self._end(trial, "interrupted", None)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """The trials that were still running were interrupted, those too that waited for a worker."""
        for trial in trials:
            if trial.config["trial"] in self.courses.keys() | self.search.running.keys():
                self.cut_off += 1
                self._end(trial, "interrupted", None)
        if not self.broken:
            self.search.close()

    def _end(self, trial: Trial, ended: str, error: str | None) -> None:
        number = trial.config["trial"]
        if self.broken:
            return
        course = self.courses.pop(number, None) or Course()  # a worker that cannot even start has none
        row = self._row(trial.config, course.result, ended, error)
        lane_end = ended if ended != "diverged" else "completed" if course.result["finished"] else "stopped"
        lanes = [{**lane, "trial": number, "outcome": _lane_outcome(lane, lane_end)} for lane in course.lanes]
        try:
            if ended == "stopped":
                self.search.stopped(number, course.result["report"])
            self.tables["curves"].append(course.curves)
            self.tables["predictions"].append(course.predictions)
            self.tables["lanes"].append(_columns(lanes, TABLES["lanes"].names))
            self.tables["trials"].append(_columns([row], TABLES["trials"].names))
            self.search.end(number, ended, row, error)
        except Exception as error:
            # Ray Tune would take it for the trial's own and run that again: nothing more is written, the session ends.
            self.broken = error
            raise
        if ended != "interrupted":
            self.ended += 1
            discard(trial.config["checkpoint"], self.folder)
        for listener in self.listeners:
            listener.ended(row)
        # Ray Tune keeps every trial to the end, and of each some 50 KB of metrics that nobody needs any more.
        for held in ("last_result", "metric_analysis", "metric_n_steps"):
            setattr(trial.run_metadata, held, {})

    def _row(self, config: dict[str, Any], result: dict[str, Any], ended: str, error: str | None) -> dict[str, Any]:
        """A row of the trials table; NaN is the trainable's "none", in the table it is empty."""
        return {
            "trial": config["trial"],
            "optimizer": config["optimizer"],
            "width": config["width"],
            "depth": config["depth"],
            "batch_size": config["batch_size"],
            "regime": regime(config["batch_size"], self.training_examples),
            "settings": json.dumps(config["searched"], sort_keys=True) if config["searched"] else None,
            "replicate": config["replicate"],
            "parameters": result.get("parameters"),
            "lanes": result.get("lanes"),
            "engine": result.get("engine"),
            "lanes_at_once": result.get("lanes_at_once"),
            "extensions": result.get("extensions"),
            "outcome": ended,
            "value": None if result.get("learning_rate") is None else result["value"],
            "learning_rate": result.get("learning_rate"),
            "reported": [None if math.isnan(value) else value for value in result.get("reported", [])],
            "updates": result.get("update", 0),
            "examples": result.get("examples", 0),
            "epochs": result.get("epoch", 0.0),
            "train_seconds": result.get("train_seconds", 0.0),
            "wall_seconds": result.get("wall_seconds", 0.0),
            "started": result.get("started"),
            "worker": result.get("worker"),
            "gpus": result.get("gpus"),
            "stints": result.get("stints"),
            "error": error,
        }


def discard(checkpoint: str, folder: Path) -> None:
    """Delete the checkpoint of a trial that has ended; at a URI it is noted, for `study.results.mirror` to delete.

    Args:
        checkpoint: its file, or URI.
        folder: the results folder.
    """
    if storage.is_uri(checkpoint):
        (folder / "checkpoints" / checkpoint.split("?")[0].rsplit("/", 1)[-1]).touch()
    else:
        storage.delete(checkpoint)


def _lane_outcome(lane: dict[str, Any], of_trial: str) -> str:
    """How a lane ended: in its own way, or with its trial."""
    if lane["diverged_update"] is not None:
        return "diverged"
    return of_trial if lane["stopped_update"] is None else "stopped"


def _columns(rows: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}


def _reason(trial: Trial) -> str:
    """Why a trial's worker died the last time, as far as Ray knows; it writes that into a file on the driver."""
    try:
        _, *reason = Path(trial.error_file).read_text(encoding="utf-8").split("\nFailure #")[-1].splitlines()
    except (OSError, TypeError, ValueError):
        return "its worker died, for a reason that Ray does not tell"
    return "\n".join(reason).strip()


def _node_died(trial: Trial) -> bool:
    """Whether it was the node that took a trial's worker with it."""
    return "node" in _reason(trial) and any(words in _reason(trial) for words in _NODE_DIED)


# Ray's words for a node that died, was taken away, or could not be reached any more.
_NODE_DIED = ("its node has died", "node was terminated", "node was preempted", "died because its node")
