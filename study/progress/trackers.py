"""Sends what trials report to TensorBoard, Weights & Biases and MLflow.

The packages are optional and imported only when used. Values that are not finite are left out; how a trial ended is
recorded as text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from study.errors import UsageError, require
from study.spec.secrets import redacted

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from torch.utils.tensorboard import SummaryWriter

CELL = ("optimizer", "width", "depth", "batch_size", "model", "data", "replicate")
# Outcomes whose last value is logged as the final one.
FINAL = ("completed", "stopped")
ERROR_LINES = 10


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The cell of a trial, with its settings, from its configuration or its row."""
    settings = config.get("searched", config.get("settings")) or {}
    settings = json.loads(settings) if isinstance(settings, str) else settings
    cell = {name: config[name] for name in CELL if config.get(name) is not None}
    return cell | {name: value for name, value in settings.items() if value is not None}


def _numbers(**values: float | None) -> dict[str, float]:
    """The values that are finite numbers."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _reported(metric: str, result: Mapping[str, Any]) -> dict[str, float]:
    return _numbers(**{metric: result["value"], "learning_rate": result["learning_rate"]})


def _final(metric: str, row: Mapping[str, Any]) -> dict[str, float]:
    return _numbers(**{f"final_{metric}": row["value"]}) if row["outcome"] in FINAL else {}


def _words(row: Mapping[str, Any]) -> dict[str, str]:
    """How a trial ended: its outcome, and the last lines of its error if it has one."""
    error = str(row.get("error") or "").strip()
    reason = {"error": "\n".join(error.splitlines()[-ERROR_LINES:])[-4000:]} if error else {}
    return {"outcome": str(row["outcome"]), **reason}


class TensorBoard:
    """Writes event files, one run per trial, which `tensorboard --logdir FOLDER` shows while the study runs."""

    def __init__(self, folder: Path, metric: str) -> None:
        require("tensorboard", "tensorboard")
        self._folder, self._metric = folder, metric
        self._writers: dict[int, SummaryWriter] = {}
        self._starting: set[int] = set()  # trials without a point since they began or continued

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """Open a run, or after a resume another event file of the same run."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from torch.utils.tensorboard import SummaryWriter

        self._starting.add(trial)
        # TensorBoard sorts a run's files by name, which holds the second: so one file per process.
        if trial not in self._writers:
            name = f"trial-{trial:05d}"
            writer = self._writers[trial] = SummaryWriter(str(self._folder / name))
            # TensorBoard collects hyperparameters and metrics from the runs: settings of an optimizer are not known
            # before its first trial.
            self._write(writer, hparams_pb(_parameters(config), trial_id=name), 0)
            writer.flush()

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """Add a point to each curve."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        writer, step = self._writers[trial], result["update"]
        if trial in self._starting:
            # Makes TensorBoard drop earlier points from this step on. It ignores the first one in a run.
            writer._get_file_writer().add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
            self._starting.discard(trial)
        for name, value in _reported(self._metric, result).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def ended(self, row: dict[str, Any]) -> None:
        """Write the final value, if there is one, and how the trial ended."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        if row["trial"] not in self._writers:
            self.began(row["trial"], row)
        writer, step = self._writers.pop(row["trial"]), row["updates"]
        for name, value in _final(self._metric, row).items():
            writer.add_scalar(name, value, step)
        for name, text in _words(row).items():
            # Indented by four spaces, Markdown shows text as it is.
            shown = text if name == "outcome" else "    " + text.replace("\n", "\n    ")
            self._write(writer, text_pb(name, shown), step)
        # TensorBoard keeps the first end that it reads, and an interrupted trial may still end otherwise.
        if row["outcome"] != "interrupted":
            self._write(writer, _session_end(success=row["outcome"] in FINAL), step)
        writer.close()

    def close(self) -> None:
        """Close the files of trials that have not ended."""
        while self._writers:
            self._writers.popitem()[1].close()

    @staticmethod
    def _write(writer: SummaryWriter, summary: Any, step: int) -> None:
        writer._get_file_writer().add_summary(summary, step)


def _session_end(*, success: bool) -> Any:
    """The status of a run, for the hparams plugin; torch's own always says success."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    summary = Summary()
    summary.value.add(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return summary


class WeightsAndBiases:
    """Writes runs of Weights & Biases, one per trial, into `wandb/` of the results folder.

    They are written offline, so that no trial waits for a server and none is lost; `wandb sync` sends them. The results
    folder and the trial's number identify a run after a resume.
    """

    def __init__(self, folder: Path, study: str, metric: str) -> None:
        require("wandb", "wandb")
        self._folder, self._project, self._metric = folder, re.sub(r"[/\\#?%:]", "-", study), metric
        self._runs: dict[int, Any] = {}

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """Open a run, unless it is open: then its worker died, and the run continues."""
        import wandb

        if trial not in self._runs:
            # "allow": of two files of one run, the later one is to continue the earlier, not to replace it.
            identity = hashlib.sha256(f"{self._folder.absolute()}/{trial}".encode()).hexdigest()[:16]
            self._runs[trial] = wandb.init(
                project=self._project, name=f"trial-{trial:05d}", id=identity, config=_parameters(config),
                dir=str(self._folder), mode="offline", reinit="create_new", resume="allow",
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
            )  # fmt: skip

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """Add a point to each curve."""
        self._runs[trial].log(_reported(self._metric, result), step=result["update"])

    def ended(self, row: dict[str, Any]) -> None:
        """Write the final value, if there is one, and how the trial ended."""
        self.began(row["trial"], row)
        run = self._runs.pop(row["trial"])
        run.summary.update({**_final(self._metric, row), **_words(row)})
        run.finish(exit_code=int(row["outcome"] not in FINAL))

    def close(self) -> None:
        """End the runs of trials that have not ended."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)


# Defaults for mlflow's client, read at each request: notice quickly that a server is down, and send no telemetry.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_STATUSES = {"completed": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 1.0, 60.0
_CLOSE_SECONDS = 60.0
_TOO_MANY_REQUESTS = 429


class MLflow:
    """Logs to an MLflow tracking server: one experiment per study name, one run per trial.

    A thread sends everything, so no trial waits for the server. Calls that fail are repeated, at growing intervals,
    until `close`; calls that the server refuses are dropped. (mlflow's own asynchronous logging neither starts nor ends
    runs, and drops what fails.) mlflow reads the credentials MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The
    results folder and the trial's number identify a run after a resume.
    """

    def __init__(self, uri: str, study: str, folder: Path, metric: str, say: Callable[[str], None]) -> None:
        require("mlflow", "mlflow")
        if not uri.startswith(("http://", "https://")):
            raise UsageError(
                "mlflow", f"{redacted(uri)} is not the address of a tracking server; give one, as in http://host:5000"
            )
        for name, value in _MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._uri, self._study, self._folder, self._metric, self._say = uri, study, str(folder), metric, say
        self._experiment = ""
        self._begun: set[int] = set()
        self._runs: dict[int, tuple[str, int]] = {}  # trial -> its run on the server, and the update of its last point
        self._warned = False
        self._closing, self._deadline = threading.Event(), math.inf
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """Start a run, or continue the trial's earlier one."""
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
        """Send the remaining calls, for a minute at most; if the server is down, only the next one."""
        self._deadline = time.monotonic() + _CLOSE_SECONDS
        self._closing.set()
        self._calls.put(None)
        self._thread.join(2 * _CLOSE_SECONDS)  # a call is a few requests, each with its own limit

    # The methods below run in the thread. A call may be made twice, so it must be idempotent: the server keeps one of
    # two equal points (same key, value, step and time), parameters or tags.

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
        """Make a call; whether it succeeded, or would be refused again."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            self._warn(error)
            code: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            return 400 <= code < 500 and code != _TOO_MANY_REQUESTS
        except Exception as error:  # noqa: BLE001  whatever happens to a log, the study continues
            self._warn(error)
        return True

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        # Without the user and password that the address may hold.
        shown = urlsplit(self._uri)._replace(netloc=urlsplit(self._uri).netloc.rpartition("@")[2]).geturl()
        reason = f"{type(error).__name__}: {error}".splitlines()[0].replace(self._uri, shown)
        if len(reason) > 300:
            reason = reason[:300] + "..."
        self._say(
            f"MLflow at {shown} does not accept data ({reason}); the study continues and sends the "
            f"missing data later, without another warning"
        )

    def _begin(self, trial: int, parameters: dict[str, Any], when: int) -> None:
        from mlflow.entities import Param

        if not self._experiment:
            experiment = self._client.get_experiment_by_name(self._study)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(self._study)
        run, update = self._find(trial), -1
        if run:
            self._client.update_run(run.info.run_id, status="RUNNING")
            # A trial that continues reports the same numbers again; points that exist are not logged twice.
            points = self._client.get_metric_history(run.info.run_id, self._metric)
            update = max((point.step for point in points), default=-1)
        else:
            tags, name = {"trial": str(trial), "folder": self._folder}, f"trial-{trial:05d}"
            run = self._client.create_run(self._experiment, start_time=when, tags=tags, run_name=name)
        self._runs[trial] = run.info.run_id, update
        new = {name: value for name, value in parameters.items() if name not in run.data.params}
        self._client.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in new.items()])

    def _find(self, trial: int) -> Run | None:
        # The folder is compared here, as it would need quoting in the server's query language.
        runs = self._client.search_runs([self._experiment], f"tags.trial = '{trial}'")
        return next((run for run in runs if run.data.tags.get("folder") == self._folder), None)

    def _report(self, trial: int, update: int, values: dict[str, float], when: int) -> None:
        run, last = self._runs.get(trial, ("", update))  # none if the server refused to start it
        if update > last:
            self._client.log_batch(run, metrics=_points(values, when, update))
            self._runs[trial] = run, update

    def _end(self, trial: int, update: int, values: dict[str, float], words: dict[str, str], when: int) -> None:
        from mlflow.entities import RunTag

        if trial in self._runs:
            run, tags = self._runs[trial][0], [RunTag(name, text) for name, text in words.items()]
            self._client.log_batch(run, metrics=_points(values, when, update), tags=tags)
            self._client.set_terminated(run, _STATUSES.get(words["outcome"], "FAILED"), end_time=when)
            del self._runs[trial]


def _now() -> int:
    """Unix time in milliseconds, as mlflow counts."""
    return time.time_ns() // 1_000_000


def _points(values: dict[str, float], when: int, step: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, when, step) for name, value in values.items()]
