"""Trainables for Ray Tune: one trial trains all lanes of one cell.

    tune.Tuner(MLPTrainable, param_space={"optimizer": "adam", "width": 16, "depth": 2, "batch_size": 32, ...})

The configuration's keys are the fields of `TrialConfig`. Actors are reused from trial to trial (`reuse_actors=True`),
so that a trial costs about 0.06 s besides its training instead of 3 s.
"""

from __future__ import annotations

import math
import os
import platform
import time
import traceback
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import ray
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from trainables.checkpoint import Checkpoint, arrays, plain, read_for_ray
from trainables.config import TrialConfig
from trainables.lanes.records import Point, Predictions, Report, Trace
from trainables.lanes.rows import lane_rows
from trainables.lanes.stack import out_of_memory
from trainables.lanes.train import without_denormals
from trainables.lanes.trial import TrialRun
from trainables.usercode.importing import copy_on_node, is_import_path

__all__ = ["CNNTrainable", "MLPTrainable", "TrialConfig"]


@dataclass
class Payload:
    """What the driver writes into the tables; it travels in a result and is taken out on arrival.

    Attributes:
        points: evaluations since the last report. Lanes are numbered through all stacks.
        traces: every update's losses since, where asked for.
        lanes: one row per lane, the columns of the lanes table except `trial` and `outcome`.
        whole: whether points, traces and predictions are those of the whole trial so far and replace all earlier ones,
            as a worker's first payload does.
        predictions: of the stacks that have used their budget since, where asked for.
    """

    points: list[Point] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    lanes: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False
    predictions: list[Predictions] = field(default_factory=list)


class LaneTrainable(tune.Trainable):
    """A trial of one cell: `step` trains one part of the budget and reports the metric at the tuned learning rate.

    Attributes:
        trial: the configuration.
        run: the computation.
        reports: the reports to come.
        failure: the result of `step` if the trial has failed.
        checkpoint: when and where the state is saved.
        buffer: all records so far, if the trial has a checkpoint of its own.
        reported: the value after each part of the budget.
        whole: whether the next payload holds the records of the whole trial.
        earlier: run segments on earlier workers, with the fields of `analysis.schema.STINT`.
    """

    families: ClassVar[tuple[str, ...]]

    def setup(self, config: dict[str, Any]) -> None:
        """Build the lanes. An error is kept for `step` to report: raising would cost the actor and a retry."""
        self.trial = TrialConfig.of(config)
        self.began, self.begun = time.time(), time.monotonic()
        self.checkpoint = Checkpoint(self.trial.checkpoint, self.trial.checkpoint_seconds)
        self.buffer, self.whole = Payload(), True
        self.earlier: list[dict[str, Any]] = []
        self.reported: list[float] = []
        self.failure: dict[str, Any] | None = None
        for name in ("run", "reports"):  # free the previous trial's memory first
            vars(self).pop(name, None)
        try:
            self._build()
        except Exception as error:  # noqa: BLE001  any error of a model or data set is that trial's outcome
            self.failure = _failure(error)

    def _build(self) -> None:
        if self.trial.code:
            self.trial = replace(self.trial, code=copy_on_node(self.trial.code, self.trial.digest))
        family = self.trial.model or next(iter(self.families), "")
        if family not in self.families and not (is_import_path(family) and not self.families):
            raise ValueError(f"{type(self).__name__} trains {' and '.join(self.families)}, not {family!r}")
        self.run = TrialRun(self.trial, family)
        if not self.checkpoint.resume(self.trial.identity(), self._restore):
            self.run.begin()
        self.reports = self.run.reports()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one part of the budget; a trial that fails reports its error and ends."""
        result: dict[str, Any] = {}
        if self.failure is None:
            try:
                with without_denormals():
                    result = self._step()
            except Exception as error:  # noqa: BLE001  as in setup
                self.failure = _failure(error)
        if self.failure:
            # A resumed driver gets all records even of a trial that fails in its first step.
            records = self.buffer if self.whole else Payload()
            payload = Payload(list(records.points), list(records.traces), [], whole=self.whole)
            result = {**self.failure, "payload": payload, DONE: True}
        segments = self._segments()
        result |= {
            "started": segments[0]["started"],
            "wall_seconds": sum(segment["ended"] - segment["started"] for segment in segments),
            "worker": segments[-1]["worker"],
            "gpus": segments[-1]["gpus"],
            "stints": segments,
        }
        if self.checkpoint.warnings:
            result["warning"] = "; ".join(self.checkpoint.warnings)
            self.checkpoint.warnings = []
        return result

    def _step(self) -> dict[str, Any]:
        self.checkpoint.unsaved = False  # the state in the middle of a step cannot be resumed
        report = next(self.reports)
        result = self.run.result(report)
        if result["report"] > len(self.reported):
            self.reported.append(result["value"])
        elif not result["extending"]:
            self.reported[-1] = result["value"]  # as Optuna is told: rates that were added may have changed it
        ended = result["outcome"] != "running"
        result |= {"reported": list(self.reported), "payload": self._payload(report), DONE: ended}
        own, due = self.trial.checkpoint is not None, not ended and self.checkpoint.due()
        if own:
            self.checkpoint.unsaved = not ended
            if due:
                self.checkpoint.write(self._state())
        return {**result, SHOULD_CHECKPOINT: due and not own}

    def _payload(self, report: Report) -> Payload:
        """The new records, or those of the whole trial in a worker's first payload."""
        buffer = self.buffer
        if self.trial.checkpoint:
            buffer.points += report.points
            buffer.traces += report.traces
            buffer.predictions += report.predictions
        rows = lane_rows(self.run.stacks, weights=self.run.keeps_weights and report.finished)
        records = buffer if self.whole and self.trial.checkpoint else report
        payload = Payload(
            list(records.points), list(records.traces), rows, self.whole, predictions=list(records.predictions)
        )
        self.whole = False
        return payload

    def _segments(self) -> list[dict[str, Any]]:
        """When and where the trial ran: on earlier workers, and on this one until now; `analysis.schema.STINT`."""
        now = {
            "started": self.began,
            "ended": self.began + time.monotonic() - self.begun,
            "worker": f"{platform.node()}:{os.getpid()}",
            "gpus": _gpus(),
            "share": self.trial.share,
            "cpus": self.trial.threads,
        }
        return [*self.earlier, now]

    def cleanup(self) -> None:
        """Save the progress of an interrupted trial; Ray Tune calls this when it stops a worker."""
        if self.trial.checkpoint and self.checkpoint.unsaved:
            self.checkpoint.write(self._state())

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's state for Ray Tune; `load_checkpoint` resumes from it bit for bit."""
        self.checkpoint.write_for_ray(checkpoint_dir, self._state())
        # Ray sends the last result along with every checkpoint; its payload has been delivered already.
        if self._last_result:
            self._last_result.pop("payload", None)

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Restore the state that `save_checkpoint` wrote."""
        if self.failure:
            return  # there is nothing to restore into; the next step reports the error
        assert isinstance(checkpoint, str)
        state = read_for_ray(checkpoint)
        if state["stacks"]:  # empty if the trial had not begun
            self._restore(state)
            self.reports = self.run.reports()

    def _state(self) -> dict[str, Any]:
        """Everything as tensors, numbers, strings, lists and dicts, for `torch.save`."""
        return {
            "trial": self.trial.identity(),
            "segments": self._segments(),
            "reported": self.reported,
            "update_seconds": None if self.failure else self.run.update_seconds,
            "build": "" if self.failure else self.run.engine.build,
            "stacks": [] if self.failure else [stack.state_dict() for stack in self.run.stacks],
            "points": [plain(point) for point in self.buffer.points],
            "traces": [plain(trace) for trace in self.buffer.traces],
            "predictions": [plain(each) for each in self.buffer.predictions],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the result of `_state`."""
        self.run.restore(state["stacks"], state.get("update_seconds"))  # earlier versions did not save it
        buffer = Payload(
            [Point(**arrays(each)) for each in state["points"]],
            [Trace(**arrays(each)) for each in state["traces"]],
            predictions=[Predictions(**arrays(each)) for each in state["predictions"]],
        )
        # Assigned last, so that nothing of an incomplete state stays.
        self.earlier, self.reported, self.buffer = state["segments"], state["reported"], buffer
        before, now = state.get("build", ""), self.run.engine.build  # earlier versions did not save it
        if before and before != now:
            self.checkpoint.warnings.append(
                f"resumed with another build of the native kernel ({now or 'none'}, before {before}): "
                "later numbers may differ in the last digits"
            )
        # Ray Tune's checkpoints hold no records, which the driver has already.
        self.whole = self.trial.checkpoint is not None


class MLPTrainable(LaneTrainable):
    """Trials of fully connected networks, including the linear model and the quadratic problem."""

    families = ("mlp", "linear", "quadratic", "deepobs-logreg", "deepobs-mlp")


class CNNTrainable(LaneTrainable):
    """Trials of convolutional networks."""

    families = ("cnn", "deepobs-2c2d", "deepobs-3c3d")


class ModelTrainable(LaneTrainable):
    """Trials of user models, by import path."""

    families = ()


TRAINABLES: dict[str, type[LaneTrainable]] = {
    family: trainable for trainable in (MLPTrainable, CNNTrainable) for family in trainable.families
}


def trainable(model: str) -> type[LaneTrainable]:
    """The trainable of a model family, or of a user's model."""
    return ModelTrainable if is_import_path(model) else TRAINABLES[model]


def _failure(error: Exception) -> dict[str, Any]:
    """The result of a trial that raised: its outcome and the traceback."""
    return {
        "value": math.nan,
        "learning_rate": None,
        "outcome": "out of memory" if out_of_memory(error) else "failed",
        "error": "".join(traceback.format_exception(error)),
    }


def _gpus() -> list[str]:
    """The GPUs that Ray has given this worker, wholly or in part: host:id each."""
    if not ray.is_initialized():
        return []
    return [f"{platform.node()}:{each}" for each in ray.get_runtime_context().get_accelerator_ids()["GPU"]]
