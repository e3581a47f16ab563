"""Trackers that people look at elsewhere: what trials report, passed on to TensorBoard and to MLflow.

Neither is needed and neither is imported before it is used. Only true numbers are passed on: where a trial has none,
nothing is logged, and how it ended is told in words.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from study.errors import UsageError, require

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from tensorboard.summary.writer.event_file_writer import EventFileWriter


CELL = ("optimizer", "width", "depth", "batch_size", "model", "data", "replicate")
# Outcomes whose value is the trial's last word; of the others nothing is logged as final.
FINAL = ("completed", "stopped")
ERROR_LINES = 10


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The cell of a trial, from its configuration or its row: the settings stand beside the other names."""
    settings = config.get("searched", config.get("settings")) or {}
    settings = json.loads(settings) if isinstance(settings, str) else settings
    cell = {name: config[name] for name in CELL if config.get(name) is not None}
    return cell | {name: value for name, value in settings.items() if value is not None}


def _numbers(**values: float | None) -> dict[str, float]:
    """What is a number; NaN and infinity are none that a chart or a tracking server keeps as they are."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _reported(metric: str, result: Mapping[str, Any]) -> dict[str, float]:
    return _numbers(**{metric: result["value"], "learning_rate": result["learning_rate"]})


def _final(metric: str, row: Mapping[str, Any]) -> dict[str, float]:
    return _numbers(**{f"final_{metric}": row["value"]}) if row["outcome"] in FINAL else {}


def _words(row: Mapping[str, Any]) -> dict[str, str]:
    """How a trial ended: its outcome, and the last lines of the reason if there is one."""
    error = str(row.get("error") or "").strip()
    reason = {"error": "\n".join(error.splitlines()[-ERROR_LINES:])[-4000:]} if error else {}
    return {"outcome": str(row["outcome"]), **reason}


@dataclass
class _EventFile:
    """One event file of a trial's run.

    Attributes:
        writer: TensorBoard's own.
        started: whether TensorBoard was told where the points since the trial began, or last went on, start. Earlier
            ones from there on are then left out, but for the first such word in a run, which each run needs too.
    """

    writer: EventFileWriter
    started: bool = False

    def write(self, step: int, summary: Any) -> None:
        """Write a summary; `flush` puts it on disk."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


class TensorBoard:
    """Writes event files, one run per trial: `tensorboard --logdir FOLDER` shows them, also while the study runs.

    Args:
        folder: where the runs go.
        metric: name of the workload's metric.

    Raises:
        UsageError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        require("tensorboard", "tensorboard")
        self._folder, self._metric = folder, metric
        self._files: dict[int, _EventFile] = {}

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """Open a run, or after a resume another event file of the same run."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if trial in self._files:
            # One file per second and process at most: TensorBoard reads a run's files in the order of their names.
            self._files[trial].started = False
            return
        name = f"trial-{trial:05d}"
        file = self._files[trial] = _EventFile(EventFileWriter(str(self._folder / name)))
        # No list of hyperparameters and metrics is written for all trials: TensorBoard then finds them by itself, and
        # an optimizer's own settings are not known before its first trial.
        file.write(0, hparams_pb(_parameters(config), trial_id=name))
        file.writer.flush()

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """Add a point to each curve."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        file, step = self._files[trial], result["update"]
        if not file.started:
            start = SessionLog(status=SessionLog.START)
            file.writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))
            file.started = True
        self._scalars(file, step, _reported(self._metric, result))
        file.writer.flush()

    def ended(self, row: dict[str, Any]) -> None:
        """Write the final value, if there is one, and how the trial ended."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        if row["trial"] not in self._files:
            self.began(row["trial"], row)
        file, step = self._files.pop(row["trial"]), row["updates"]
        self._scalars(file, step, _final(self._metric, row))
        for name, text in _words(row).items():
            # Four spaces are Markdown for text as it is.
            file.write(step, text_pb(name, text if name == "outcome" else "    " + text.replace("\n", "\n    ")))
        # TensorBoard keeps the first end that it reads, and an interrupted trial may yet end otherwise.
        if row["outcome"] != "interrupted":
            file.write(step, _session_end(success=row["outcome"] in FINAL))
        file.writer.close()

    def close(self) -> None:
        """Close the files of trials that have not ended."""
        while self._files:
            self._files.popitem()[1].writer.close()

    def _scalars(self, file: _EventFile, step: int, values: dict[str, float]) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for name, value in values.items():
            file.write(step, scalar_pb(name, value))


def _session_end(*, success: bool) -> Any:
    """The hparams plugin's summary of a run's end; tensorboard makes it only beside tensorflow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    content = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    summary = Summary()
    summary.value.add(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(content),
        tensor=metadata.NULL_TENSOR,
    )
    return summary


# Read by mlflow's client at each request: unless the user says otherwise, a server that is down is found out quickly,
# not after minutes, and nothing is told to mlflow's makers.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_STATUSES = {"completed": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 1.0, 60.0
_CLOSE_SECONDS = 60.0
_TOO_MANY_REQUESTS = 429


@dataclass
class _Run:
    """A trial's run on the server, and the last update that it has a point of."""

    id: str
    update: int


class MLflow:
    """Logs to an MLflow tracking server: one experiment for the study's name, one run per trial.

    A thread of its own talks to the server, so no trial waits for it. What could not be sent is sent again, ever more
    rarely, until `close`; what the server refuses is left out. Credentials are read as mlflow reads them, from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Args:
        uri: the server's, http:// or https://.
        study: the study's name.
        folder: the results folder; by it and its number a trial finds its run again.
        metric: name of the workload's metric.
        say: told once, from that thread, that the server is not to be had or refuses something.

    Raises:
        UsageError: if mlflow is not installed, or the URI is no server's.
    """

    def __init__(self, uri: str, study: str, folder: Path, metric: str, say: Callable[[str], None]) -> None:
        require("mlflow", "mlflow")
        if not uri.startswith(("http://", "https://")):
            raise UsageError("mlflow", [f"{uri} is no tracking server; give its address, as http://host:5000"])
        for name, value in _MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._uri, self._study, self._folder, self._metric, self._say = uri, study, str(folder), metric, say
        self._experiment = ""
        self._begun: set[int] = set()
        self._runs: dict[int, _Run] = {}
        self._warned = False
        self._closing, self._deadline = threading.Event(), math.inf
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """Start a run, or take up the trial's earlier one."""
        self._begun.add(trial)
        self._calls.put(partial(self._begin, trial, _parameters(config), _now()))

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """Log a point of each curve."""
        self._calls.put(partial(self._report, trial, result["update"], _reported(self._metric, result), _now()))

    def ended(self, row: dict[str, Any]) -> None:
        """Log the final value, if there is one, and how the trial ended."""
        if row["trial"] not in self._begun:
            self.began(row["trial"], row)
        values, words = _final(self._metric, row), _words(row)
        self._calls.put(partial(self._end, row["trial"], row["updates"], values, words, _now()))

    def close(self) -> None:
        """Send what is left, for a minute at most; a server that is down is asked only once more."""
        self._deadline = time.monotonic() + _CLOSE_SECONDS
        self._closing.set()
        self._calls.put(None)
        self._thread.join(2 * _CLOSE_SECONDS)  # a call is a few requests, each with its own limit

    # What follows runs in the thread. A call that failed is made again as it was, so each may be made twice: the
    # server keeps one of two equal points (same key, value, step and time), parameters or tags.

    def _send(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while (call := self._calls.get()) and time.monotonic() < self._deadline:
            while not self._done(call):
                if self._closing.is_set():
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, _LAST_PAUSE_SECONDS)
            pause = _FIRST_PAUSE_SECONDS

    def _done(self, call: Callable[[], None]) -> bool:
        """Make a call; whether it was made, or would be refused again."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            self._warn(error)
            code: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            return 400 <= code < 500 and code != _TOO_MANY_REQUESTS
        except Exception as error:  # noqa: BLE001  whatever a log runs into, the study goes on
            self._warn(error)
        return True

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        # The address without the user and password that it may hold.
        shown = urlsplit(self._uri)._replace(netloc=urlsplit(self._uri).netloc.rpartition("@")[2]).geturl()
        reason = f"{type(error).__name__}: {error}".splitlines()[0].replace(self._uri, shown)
        if len(reason) > 300:
            reason = reason[:300] + "..."
        self._say(
            f"MLflow at {shown} does not take what it is sent ({reason}); the study goes on, and what is missing there "
            f"is sent when it can be, without another warning"
        )

    def _begin(self, trial: int, parameters: dict[str, Any], when: int) -> None:
        from mlflow.entities import Param

        if not self._experiment:
            experiment = self._client.get_experiment_by_name(self._study)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(self._study)
        run, update = self._find(trial), -1
        if run:
            self._client.update_run(run.info.run_id, status="RUNNING")
            # The same trial reports the same numbers again: those that are there are not logged twice.
            points = self._client.get_metric_history(run.info.run_id, self._metric)
            update = max((point.step for point in points), default=-1)
        else:
            tags, name = {"trial": str(trial), "folder": self._folder}, f"trial-{trial:05d}"
            run = self._client.create_run(self._experiment, start_time=when, tags=tags, run_name=name)
        self._runs[trial] = _Run(run.info.run_id, update)
        new = {name: value for name, value in parameters.items() if name not in run.data.params}
        self._client.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in new.items()])

    def _find(self, trial: int) -> Run | None:
        # The folder is compared here: no path needs quoting in the server's language.
        found = self._client.search_runs([self._experiment], f"tags.trial = '{trial}'")
        return next((run for run in found if run.data.tags.get("folder") == self._folder), None)

    def _report(self, trial: int, update: int, values: dict[str, float], when: int) -> None:
        run = self._runs.get(trial)  # none if the server refused its beginning
        if run and update > run.update:
            self._client.log_batch(run.id, metrics=_points(values, when, update))
            run.update = update

    def _end(self, trial: int, update: int, values: dict[str, float], words: dict[str, str], when: int) -> None:
        from mlflow.entities import RunTag

        if run := self._runs.get(trial):
            tags = [RunTag(name, text) for name, text in words.items()]
            self._client.log_batch(run.id, metrics=_points(values, when, update), tags=tags)
            self._client.set_terminated(run.id, _STATUSES.get(words["outcome"], "FAILED"), end_time=when)
            del self._runs[trial]


def _now() -> int:
    """Unix time in milliseconds, as mlflow counts."""
    return time.time_ns() // 1_000_000


def _points(values: dict[str, float], when: int, step: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, when, step) for name, value in values.items()]
