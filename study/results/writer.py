"""Writes the tables of a results folder as trials report and end.

The end of a trial is written in this order: curves, lanes, its row, Optuna's storage; then its checkpoint is deleted.
`study.results.recovery` repairs whatever was cut off in between when the study is resumed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from analysis.schema import TABLES, Outcome, regime
from study.cluster.compat import forget, forgive_failure
from study.results.tables import Table, TrialBuffer
from study.spec import Spec
from study.tuning.searcher import TruthfulSearch, outcome
from trainables import storage
from trainables.tune import Payload

# A trial that kills more workers than this is set aside as failed.
MAX_FAILURES = 1
# Nodes that may die under a trial, which is not its fault, before each counts as a killed worker.
MAX_NODES = 10


# Columns of the trials table that a trial reports under the same name.
_MEASURED = ("parameters", "lanes", "engine", "lanes_at_once", "extensions", "refinements", "loss_floor",
             "learning_rate", "recipe", "update_seconds", "started", "worker", "gpus", "stints")  # fmt: skip


class Listener(Protocol):
    """Something in the driver's process that follows trials: the display, a tracker."""

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """A trial starts, or continues after a resume or a failure of its worker."""

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """A trial has done a part of its budget."""

    def ended(self, row: dict[str, Any]) -> None:
        """A trial ended, perhaps without having begun; row is its row of the trials table."""

    def close(self) -> None:
        """The study ends; nothing follows."""


class Collector(tune.Callback):
    """Collects what trials report, writes a trial's rows when it ends, and passes both on.

    `final` says whether a trial that Ray Tune gives up, as its worker died between two trials, has failed; otherwise it
    is interrupted, for a further round. `tell` receives events of workers: their kind, and a text.
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
        self.buffers: dict[int, TrialBuffer] = {}
        self.warned: set[int] = set()
        self.final, self.orphans, self.cut_off, self.ended = final, 0, 0, 0
        self.nodes: Counter[int] = Counter()
        self.recovered = (-1, -1)
        self.broken: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles callbacks for its snapshots, from which no study is resumed."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Call `tick`. Raise an error that ends the session, which Ray Tune would catch elsewhere."""
        if self.broken:
            raise self.broken
        self.tick()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins, or continues."""
        self.buffers.setdefault(trial.config["trial"], TrialBuffer())
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
        buffer = self.buffers[number]
        buffer.take(number, payload)
        # A trial that fails keeps the counts and rows of its last good report.
        buffer.result = {**buffer.result, **result}
        # The last parts before an interruption are in the checkpoint, but were not delivered.
        parts = dict(enumerate(result.get("reported", []), start=1)) if payload.whole else {}
        if "report" in result:
            parts[result["report"]] = result["value"]
            if result["extending"]:  # not final yet, and Optuna keeps the first value that is reported
                del parts[result["report"]]
        with self._ends_session():
            for part, value in parts.items():
                self.search.report(number, part, value)
        if (warning := result.get("warning")) and number not in self.warned:
            self.warned.add(number)  # a full disk would repeat it with every report
            self.say(f"trial {number}: {warning}")
        for listener in self.listeners:
            listener.reported(number, result | {"payload": payload})

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's worker died or was unreachable, and another one takes over."""
        number, node = trial.config["trial"], _node_died(trial)
        self.recovered = iteration, number
        if node and self.nodes[number] < MAX_NODES:
            self.nodes[number] += 1
            forgive_failure(trial)
        if not self.broken:
            lost = "its node" if node else "its worker"
            self.tell("worker lost", f"trial {number}: {lost} was lost; the trial continues in another")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended by itself, or was stopped."""
        buffer = self.buffers.get(trial.config["trial"], TrialBuffer())
        self._end(trial, outcome(buffer.result), buffer.result.get("error"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's worker died for the last time, or between two trials, where Ray Tune does not retry but we do."""
        number = trial.config["trial"]
        # Ray Tune reports a worker that dies between two trials twice in one step.
        once = self.recovered == (iteration, number)
        spent = getattr(trial, "num_failures", 0) > MAX_FAILURES and not once
        if self.final or (spent and not _node_died(trial)):
            self.tell("set aside", f"trial {number}: its worker died again; the trial counts as failed")
            self._end(trial, Outcome.FAILED, _reason(trial))
        else:
            self.orphans += 1
            self.tell("worker lost", f"trial {number}: its worker was lost; the trial continues later")
            self._end(trial, Outcome.INTERRUPTED, None)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Trials that were running or waited for a worker were interrupted."""
        for trial in trials:
            if trial.config["trial"] in self.buffers.keys() | self.search.running.keys():
                self.cut_off += 1
                self._end(trial, Outcome.INTERRUPTED, None)
        if not self.broken:
            self.search.close()

    def _end(self, trial: Trial, ended: Outcome, error: str | None) -> None:
        number = trial.config["trial"]
        if self.broken:
            return
        buffer = self.buffers.pop(number, None) or TrialBuffer()  # a worker that cannot start has none
        row = self._row(trial.config, buffer, ended, error)
        lane_end = ended
        if ended == Outcome.DIVERGED:
            lane_end = Outcome.COMPLETED if buffer.result["finished"] else Outcome.STOPPED
        lanes = [{**lane, "trial": number, "outcome": str(_lane_outcome(lane, lane_end))} for lane in buffer.lanes]
        with self._ends_session():
            if ended == Outcome.STOPPED:
                self.search.stopped(number, buffer.result["report"])
            self.tables["curves"].append(buffer.curves)
            self.tables["predictions"].append(buffer.predictions)
            self.tables["lanes"].append(_columns(lanes, TABLES["lanes"].names))
            self.tables["trials"].append(_columns([row], TABLES["trials"].names))
            self.search.end(number, ended, row, error)
        if ended != Outcome.INTERRUPTED:
            self.ended += 1
            discard(trial.config["checkpoint"], self.folder)
        for listener in self.listeners:
            listener.ended(row)
        forget(trial)

    @contextmanager
    def _ends_session(self) -> Iterator[None]:
        """End the session on an error, which Ray Tune would take for the trial's own: nothing more is written then."""
        try:
            yield
        except Exception as error:
            self.broken = error
            raise

    def _row(self, config: dict[str, Any], buffer: TrialBuffer, ended: Outcome, error: str | None) -> dict[str, Any]:
        """A row of the trials table. The trainable reports NaN where there is no value; the table has null."""
        result, others = buffer.result, {"curves": buffer.curves["trial"], "predictions": buffer.predictions["trial"]}
        return {
            **{name: config[name] for name in ("trial", "optimizer", "width", "depth", "batch_size", "replicate")},
            **{name: result.get(name) for name in _MEASURED},
            **{name: result.get(name, 0.0) for name in ("train_seconds", "wall_seconds")},
            "regime": regime(config["batch_size"], self.training_examples),
            "settings": json.dumps(config["searched"], sort_keys=True) if config["searched"] else None,
            "outcome": str(ended),
            "value": None if result.get("learning_rate") is None else result["value"],
            "reported": [None if math.isnan(value) else value for value in result.get("reported", [])],
            "updates": result.get("update", 0),
            "examples": result.get("examples", 0),
            "epochs": result.get("epoch", 0.0),
            "error": error,
            "rows": {name: len(rows) for name, rows in {"lanes": buffer.lanes, **others}.items()},
        }


def discard(checkpoint: str, folder: Path) -> None:
    """Delete the checkpoint of a trial that has ended. One at a URI is marked for `study.results.mirror` to delete."""
    if storage.is_uri(checkpoint):
        (folder / "checkpoints" / checkpoint.split("?")[0].rsplit("/", 1)[-1]).touch()
    else:
        storage.delete(checkpoint)


def _lane_outcome(lane: dict[str, Any], of_trial: Outcome) -> Outcome:
    """How a lane ended: by itself, or with its trial."""
    if lane["diverged_update"] is not None:
        return Outcome.DIVERGED
    return of_trial if lane["stopped_update"] is None else Outcome.STOPPED


def _columns(rows: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}


def _reason(trial: Trial) -> str:
    """Why a trial's worker died the last time, from the file that Ray writes on the driver."""
    try:
        _, *reason = Path(trial.error_file).read_text(encoding="utf-8").split("\nFailure #")[-1].splitlines()
    except (OSError, TypeError, ValueError):
        return "its worker died, and Ray gives no reason"
    return "\n".join(reason).strip()


def _node_died(trial: Trial) -> bool:
    """Whether a trial's worker died with its node."""
    return "node" in _reason(trial) and any(words in _reason(trial) for words in _NODE_DIED)


# Ray's messages for a node that died, was taken away, or became unreachable.
_NODE_DIED = ("its node has died", "node was terminated", "node was preempted", "died because its node")
