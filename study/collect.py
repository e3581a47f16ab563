"""Writes the results folder: the tables, as trials report, and the provenance."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray import tune
from ray.tune.experiment import Trial

from analysis.results import FOLDERS, TABLES, parts, regime
from study.outcomes import outcome
from study.spec import Spec
from trainables.tune import Payload

# Equal neighbours are merged once there are so many, so the parts stay few and each row is rewritten O(log n) times.
MERGE = 8
PACKAGES = ("optimizer-study", "torch", "torchvision", "ray", "optuna", "numpy", "pandas")


class Table:
    """One table of a results folder, appended to part by part.

    A part holds the appends FIRST to LAST and is named so. `MERGE` parts of the same span become one, which is written
    before they are removed: a reader that meets both skips those that lie within it, so a crash in between is harmless.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.schema, self.folder = TABLES[name], folder / FOLDERS[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spans = [(first, last) for first, last, _ in parts(self.folder)]

    def append(self, columns: Mapping[str, list[Any]]) -> None:
        """Write rows, given column by column; they are on disk when this returns."""
        table = pa.Table.from_pydict(dict(columns), schema=self.schema)
        if not table.num_rows:
            return
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

    def _write(self, table: pa.Table, first: int, last: int) -> None:
        file = self._file(first, last)
        unfinished = file.with_suffix(".tmp")
        pq.write_table(table, unfinished, compression="zstd")
        unfinished.replace(file)

    def _file(self, first: int, last: int) -> Path:
        return self.folder / f"{first:07d}-{last:07d}.parquet"


@dataclass
class Progress:
    """A trial that has begun: what it last said, and its curves so far."""

    result: dict[str, Any] = field(default_factory=dict)
    lanes: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in TABLES["curves"].names})

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
        count = len(lanes)
        row = (trial, lanes, *when, split, metric, values)
        for name, value in zip(TABLES["curves"].names, row, strict=True):
            self.curves[name] += value if isinstance(value, list) else [value] * count


class Collector(tune.Callback):
    """Takes the payload out of every result, and writes a trial's rows when it ends.

    Args:
        spec: the study's.
        folder: the results folder.
    """

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.training_examples = spec.workload.facts.train
        self.tables = {name: Table(name, folder) for name in TABLES}
        self.trials: dict[str, Progress] = {}
        self.written: set[str] = set()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep what a trial reports until it ends."""
        payload: Payload = result.pop("payload")
        progress = self.trials.setdefault(trial.trial_id, Progress())
        # A trial that failed in mid-course keeps the counts and rows of its last good report.
        progress.result = {**progress.result, **result}
        progress.lanes = payload.lanes or progress.lanes
        number = trial.config["trial"]
        for point in payload.points:
            for (split, metric), values in point.values.items():
                when = (point.update, point.examples, point.epoch, point.train_seconds)
                progress.add(number, point.lanes, when, split, metric, values)
        for trace in payload.traces:
            for when, lanes, losses in trace.updates():
                progress.add(number, lanes, when, "batch", "loss", losses)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write a trial that ended well, or was stopped."""
        progress = self.trials.pop(trial.trial_id, Progress())
        self._write(trial, outcome(progress.result), progress, error=progress.result.get("error"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write a trial that raised, or whose worker died."""
        progress = self.trials.pop(trial.trial_id, Progress())
        self._write(trial, "failed", progress, error=_reason(trial))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Write the trials that were still running when the study was interrupted."""
        for trial in trials:
            if trial.trial_id not in self.written:
                self._write(trial, "interrupted", self.trials.pop(trial.trial_id, Progress()))

    def _write(self, trial: Trial, ended: str, progress: Progress, error: str | None = None) -> None:
        self.written.add(trial.trial_id)
        config, result = trial.config, progress.result
        started = result.get("started")
        row = {
            "trial": config["trial"],
            "optimizer": config["optimizer"],
            "width": config["width"],
            "depth": config["depth"],
            "batch_size": config["batch_size"],
            "regime": regime(config["batch_size"], self.training_examples),
            "parameters": result.get("parameters"),
            "lanes": result.get("lanes"),
            "engine": result.get("engine"),
            "lanes_at_once": result.get("lanes_at_once"),
            "outcome": ended,
            # NaN is the trainable's "none"; in the table it is empty.
            "value": None if result.get("learning_rate") is None else result["value"],
            "learning_rate": result.get("learning_rate"),
            "updates": result.get("update", 0),
            "examples": result.get("examples", 0),
            "epochs": result.get("epoch", 0.0),
            "train_seconds": result.get("train_seconds", 0.0),
            "wall_seconds": time.time() - started if started else 0.0,
            "started": started,
            "worker": result.get("worker"),
            "error": error,
        }
        # Curves first and the trial last: a trial in the tables has all its rows.
        self.tables["curves"].append(progress.curves)
        lane_end = ended if ended != "diverged" else "completed" if result["finished"] else "stopped"
        lanes = [{**lane, "trial": row["trial"], "outcome": _lane_outcome(lane, lane_end)} for lane in progress.lanes]
        self.tables["lanes"].append(_columns(lanes, TABLES["lanes"].names))
        self.tables["trials"].append(_columns([row], TABLES["trials"].names))


def _lane_outcome(lane: dict[str, Any], of_trial: str) -> str:
    """How a lane ended: in its own way, or with its trial."""
    if lane["diverged_update"] is not None:
        return "diverged"
    return of_trial if lane["stopped_update"] is None else "stopped"


def _columns(rows: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}


def _reason(trial: Trial) -> str:
    """Why a trial's worker died, as far as Ray knows."""
    return str(trial.get_error() or "unknown").strip()


def write_provenance(folder: Path, spec: Spec, command: str, *, finished: bool, started: dt.datetime) -> None:
    """Write `provenance.json`: where the numbers come from.

    Args:
        folder: the results folder.
        spec: the study's.
        command: what the user ran.
        finished: whether the study has ended.
        started: when it began.
    """
    facts = spec.workload.facts
    loss = "cross-entropy in nats"
    if facts.task == "regression":
        loss = "mean squared error" + (" in variances of y" if spec.workload.standardize else "")
    content = {
        "command": command,
        "commit": commit(),
        "started": started.isoformat(timespec="seconds"),
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds") if finished else None,
        "versions": versions(),
        "hardware": hardware(),
        "seeds": {"root": spec.tuning.seed, "lanes": spec.lane_seeds()},
        "data": {
            "name": spec.workload.data,
            "about": facts.about,
            "task": facts.task,
            "train": facts.train,
            "validation": facts.validation,
            "test": facts.test,
            "loss": loss,
        },
    }
    write_text(folder / "provenance.json", json.dumps(content, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file in one go: readers see the old one or the whole new one."""
    unfinished = file.with_name(file.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def hardware() -> dict[str, Any]:
    """Processor, memory and GPUs of this machine."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next((line.split(":", 1)[1].strip() for line in named), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "gpus": gpus,
        "system": platform.platform(),
    }


def commit() -> str | None:
    """The commit of this code, with a mark if it was changed since; none where it was installed as a package."""
    here = Path(__file__).parent
    try:
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, check=True, capture_output=True)
        shown = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.strip() or None
