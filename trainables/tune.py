"""Trainables for Ray Tune: one trial trains all lanes of one cell.

    tune.Tuner(MLPTrainable, param_space={"optimizer": "adam", "width": 16, "depth": 2, "batch_size": 32, ...})

The configuration's keys are the fields of `TrialConfig`. Actors are reused from trial to trial (`reuse_actors=True`),
so that a trial costs about 0.06 s besides its training instead of 3 s.

A trial trains a stack of lanes for the whole budget, and then, while its best learning rate lies on the edge of those
tried, further stacks of rates beyond that edge. Its state is that of its stacks and what it has reported so far; it
goes to Ray Tune's checkpoints, or to a file of the trial's own, from which any later worker goes on.
"""

from __future__ import annotations

import math
import os
import platform
import time
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from trainables import data, models, storage
from trainables.augment import Augment
from trainables.config import TrialConfig
from trainables.criterion import Criterion
from trainables.engines.choose import choose
from trainables.engines.memory import fitting
from trainables.lanes.rates import beyond, tuned
from trainables.lanes.records import Point, Predictions, Report, Trace
from trainables.lanes.stack import Lane, Stack, grid, out_of_memory
from trainables.lanes.times import EvaluationTimes, spent
from trainables.lanes.train import train
from trainables.rules import named
from trainables.usercode.importing import copy_on_node, is_import_path
from trainables.usercode.vmap_support import TRIED_EXAMPLES

__all__ = ["CNNTrainable", "MLPTrainable", "TrialConfig"]


@dataclass
class Payload:
    """What the driver writes into the tables; it travels in a result and is taken out on arrival.

    Attributes:
        points: evaluations since the last report. Lanes are numbered through all stacks.
        traces: every update's losses since, if asked for.
        lanes: one row per lane, the columns of the lanes table but `trial` and `outcome`.
        whole: whether points, traces and predictions are the trial's whole course so far, in the place of all that was
            told before; a worker's first ones are.
        predictions: of the stacks that have had their budget since, if asked for.
    """

    points: list[Point]
    traces: list[Trace]
    lanes: list[dict[str, Any]]
    whole: bool = False
    predictions: list[Predictions] = field(default_factory=list)


class LaneTrainable(tune.Trainable):
    """A trial of one cell: `step` trains one part of the budget and reports the metric at the tuned learning rate.

    Attributes:
        trial: the configuration.
        stacks: the grid's lanes, then those of each extension; all but the last have had their budget.
        engine: of the last stack.
        training: the reports to come.
        failure: what `step` reports if the trial has failed.
        earlier: its stints, as `analysis.schema.STINT` has them, on the workers that had it before this one.
        points, traces, predictions: all that was reported, if the trial keeps a checkpoint of its own.
        reported: the value after each part of the budget.
        whole: whether the next payload tells the whole course.
        unsaved: whether there is something that a checkpoint of the trial's own should hold and does not.
        warnings: what the next result must tell.
    """

    families: ClassVar[tuple[str, ...]]

    def setup(self, config: dict[str, Any]) -> None:
        """Build the lanes. What goes wrong is kept for `step` to report: raising would cost the actor and a retry."""
        self.trial = TrialConfig.of(config)
        self.began, self.begun = time.time(), time.monotonic()
        self.earlier: list[dict[str, Any]] = []
        self.failure: dict[str, Any] | None = None
        self.warnings: list[str] = []
        self.points: list[Point] = []
        self.traces: list[Trace] = []
        self.predictions: list[Predictions] = []
        self.reported: list[float] = []
        self.stacks: list[Stack] = []
        self.whole, self.unsaved, self.saved = True, False, self.begun
        try:
            self._build(self.trial)
        except Exception as error:  # noqa: BLE001  whatever a model or data set raises is that trial's outcome
            self.failure = _failure(error)

    def _build(self, trial: TrialConfig) -> None:
        if trial.code:
            trial = self.trial = replace(trial, code=copy_on_node(trial.code, trial.digest))
        family = trial.model or next(iter(self.families), "")
        if family not in self.families and not (is_import_path(family) and not self.families):
            raise ValueError(f"{type(self).__name__} trains {' and '.join(self.families)}, not {family!r}")
        torch.set_num_threads(trial.threads)
        self.device = torch.device(_device(trial.device))
        if self.device.type == "cuda":
            # The same trial again is the same bit for bit, and float32 means float32.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False
            # One trial that takes more than it has is out of memory alone, and not its neighbours.
            torch.cuda.set_per_process_memory_fraction(trial.share)
        dtype = getattr(torch, trial.dtype)
        folder = Path(trial.data_folder) if trial.data_folder else None
        self.data = data.load(
            trial.data,
            folder,
            standardize=trial.standardize,
            seed=trial.data_seed,
            dtype=dtype,
            device=self.device,
            code=trial.code,
        )
        shape, outputs = self.data.in_shape, self.data.out_features
        size: dict[str, Any] = {"width": trial.width, "depth": trial.depth, "bundle": trial.code}
        self.build = partial(models.build, family, shape, outputs, **size, **trial.model_args)
        self.cost = models.multiplications(self.build(), shape)
        self.criterion = Criterion(self.data.task, trial.loss, trial.score, trial.code)
        self.budget = trial.budget
        self.schedule = EvaluationTimes(self.budget, trial.batch_size, len(self.data.train))
        if not self._resume():
            self.stacks = []
            self._add(grid_lanes(trial))
        self.training = self._train()

    def _add(self, configurations: list[Lane]) -> Stack:
        """A further stack, to be trained from now on, with an engine of its own."""
        trial, network, shape = self.trial, self.build(), self.data.in_shape
        dtype = getattr(torch, trial.dtype)
        stack = Stack.build(self.build, configurations, named(trial.optimizer, trial.code), dtype, self.device)
        updates = self.schedule.total
        self.engine = choose(
            self.build,
            shape,
            self.criterion,
            trial.batch_size,
            stack,
            updates,
            trial.engine,
            sample=self.data.train.inputs[:TRIED_EXAMPLES],
            name=trial.model,
        )
        stack.at_once = fitting(network, shape, trial.batch_size, stack, trial.share)
        if not self.stacks:
            self.parameters, self.engine_name = stack.parameters.shape[1], self.engine.name
        self.stacks.append(stack)
        return stack

    @property
    def stack(self) -> Stack:
        """The stack that trains."""
        return self.stacks[-1]

    def _train(self) -> Iterator[Report]:
        """Train stack after stack; the last report of the last is the one that says finished."""
        trial = self.trial
        augment = Augment(**asdict(trial.augment), mean=self.data.mean, std=self.data.std) if trial.augment else None
        while True:
            before = sum(len(stack.lanes) for stack in self.stacks[:-1])
            for report in train(
                self.stack,
                self.engine,
                self.data,
                trial.batch_size,
                self.budget,
                multiplications=self.cost,
                augment=augment,
                halving=trial.metric if trial.halving else None,
                every_update=trial.every_update,
                gradient_noise=trial.gradient_noise,
                predictions=trial.predictions,
                evaluation_share=trial.evaluation_share,
            ):
                extends = report.finished and bool(self._extension())
                if extends and not trial.weights:
                    self.stack.free()
                yield replace(report.shifted(before), finished=report.finished and not extends)
            further = self._extension()
            if not further:
                return
            self._add(further)

    def _extension(self) -> list[Lane]:
        """The lanes to train after these stacks, if any; it follows from what became of these alone."""
        rate, _ = self._tuned(self.stacks)
        if rate is None or len(self.stacks) > self.trial.extensions:
            return []
        first = self.stacks[0].lanes
        tried = [lane.learning_rate for stack in self.stacks for lane in stack.lanes]
        rates = beyond([lane.learning_rate for lane in first], tried, rate)
        # The first rate's lanes are one of each seed.
        return [replace(lane, learning_rate=rate) for rate in rates for lane in first[: len(self.trial.seeds)]]

    def _tuned(self, stacks: Sequence[Stack]) -> tuple[float | None, float]:
        return tuned(stacks, self.trial.metric, len(self.data.validation))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one part of the budget; a trial that fails reports how, and ends."""
        result: dict[str, Any] = {}
        if self.failure is None:
            try:
                with _without_denormals():
                    result = self._step()
            except Exception as error:  # noqa: BLE001  as in setup
                self.failure = _failure(error)
        if self.failure:
            # A driver that lost its memory gets the course of a trial that fails at once when it goes on.
            course = (list(self.points), list(self.traces)) if self.whole else ([], [])
            result = {**self.failure, "payload": Payload(*course, [], whole=self.whole), DONE: True}
        stints = self._stints()
        result |= {
            "started": stints[0]["started"],
            "wall_seconds": sum(stint["ended"] - stint["started"] for stint in stints),
            "worker": stints[-1]["worker"],
            "gpus": stints[-1]["gpus"],
            "stints": stints,
        }
        if self.warnings:
            result["warning"] = "; ".join(self.warnings)
            self.warnings = []
        return result

    def _step(self) -> dict[str, Any]:
        self.unsaved = False  # what is cut off in the middle of a step is no state to go on from
        report = next(self.training)
        main, done = self.stacks[0], [stack for stack in self.stacks if spent(self.budget, stack)]
        # Rates of an extension count once they have had the whole budget: none is better for being half trained.
        rate, value = self._tuned(done or self.stacks)
        # A rate counts if every seed survives it, so once none counts, none ever will.
        lost = rate is None
        ended = report.finished or lost
        extending = bool(done) and not ended
        examples, epoch = self.schedule.progress(main.update)
        if main.reports > len(self.reported):
            self.reported.append(value)
        result = {
            "value": value,
            "learning_rate": rate,
            "outcome": "diverged" if lost else "completed" if report.finished else "running",
            "finished": report.finished,
            "report": main.reports,
            "reported": list(self.reported),
            # One that is decided upon counts.
            "extensions": len(done) if extending else len(self.stacks) - 1,
            "extending": extending,
            "update": main.update,
            "examples": examples,
            "epoch": epoch,
            "train_seconds": sum(stack.seconds for stack in self.stacks),
            "parameters": self.parameters,
            "lanes": sum(len(stack.lanes) for stack in self.stacks),
            "engine": self.engine_name,
            "lanes_at_once": main.at_once,
            "payload": self._payload(report),
            DONE: ended,
        }
        due = not ended and time.monotonic() - self.saved >= self.trial.checkpoint_seconds
        if self.trial.checkpoint:
            self.unsaved = not ended
            if due:
                self._save(self.trial.checkpoint)
        return {**result, SHOULD_CHECKPOINT: due and not self.trial.checkpoint}

    def _payload(self, report: Report) -> Payload:
        """What is new, or the whole course if nobody was told of it yet."""
        points, traces, predictions = report.points, report.traces, report.predictions
        if self.trial.checkpoint:
            self.points += points
            self.traces += traces
            self.predictions += predictions
            if self.whole:
                points, traces, predictions = list(self.points), list(self.traces), list(self.predictions)
        rows = lane_rows(self.stacks, weights=self.trial.weights and report.finished)
        payload = Payload(points, traces, rows, whole=self.whole, predictions=predictions)
        self.whole = False
        return payload

    def _stints(self) -> list[dict[str, Any]]:
        """When, where and on what the trial ran, this worker until now; `analysis.schema.STINT`."""
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
        """Keep what a trial has done that is cut off in mid-course; Ray Tune calls this when it stops a worker."""
        if self.trial.checkpoint and self.unsaved:
            self._save(self.trial.checkpoint)

    def _save(self, place: str) -> None:
        """Write the trial's own checkpoint. If that fails, the trial goes on all the same, and says so."""
        self.saved = begun = time.monotonic()
        try:
            storage.write(place, partial(torch.save, self._state()))
            self.unsaved = False
        except Exception as error:  # noqa: BLE001  nothing that keeps a checkpoint from being written harms the trial
            # A store that does not answer may take its time to say so: trying it may cost a tenth of training.
            self.saved += 10 * (time.monotonic() - begun)
            self.warnings.append(f"the checkpoint {place} could not be written ({_reason(error)}); the trial goes on")

    def _resume(self) -> bool:
        """Go on from the trial's own checkpoint. One that cannot be used is left alone, and the next result says so."""
        if not self.trial.checkpoint:
            return False
        place = self.trial.checkpoint
        try:
            if not (stream := storage.read(place)):
                return False
            with stream:
                state = _read(stream)
            if state["trial"] == self.trial.identity():
                self._restore(state)
                return True
            why = "belongs to another trial"
        except Exception as error:
            if out_of_memory(error):
                raise
            why = f"cannot be read ({_reason(error)})"
        self.warnings.append(f"the checkpoint {place} {why}, so the trial starts from its beginning")
        return False

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's state for Ray Tune; `load_checkpoint` goes on from it bit for bit."""
        torch.save(self._state(), Path(checkpoint_dir) / "trial.pt")
        self.saved = time.monotonic()
        # Ray sends the last result along with every checkpoint; its payload has been delivered already.
        if self._last_result:
            self._last_result.pop("payload", None)

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Read the state and go on."""
        if self.failure:
            return  # there is no stack to go on with; the next step says why
        assert isinstance(checkpoint, str)
        state = torch.load(Path(checkpoint) / "trial.pt", weights_only=True, map_location="cpu")
        if state["stacks"]:  # it had begun when it was saved
            self._restore(state)
            self.training = self._train()

    def _state(self) -> dict[str, Any]:
        """Everything as tensors, numbers, strings, lists and dicts, for `torch.save`."""
        return {
            "trial": self.trial.identity(),
            "stints": self._stints(),
            "reported": self.reported,
            "stacks": [stack.state_dict() for stack in self.stacks],
            "points": [plain(point) for point in self.points],
            "traces": [plain(trace) for trace in self.traces],
            "predictions": [plain(each) for each in self.predictions],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Become what `_state` told of; each further stack follows from those before it."""
        self.stacks = []
        for saved in state["stacks"]:
            self._add(self._extension() if self.stacks else grid_lanes(self.trial)).load_state_dict(saved)
        points = [Point(**arrays(each)) for each in state["points"]]
        traces = [Trace(**arrays(each)) for each in state["traces"]]
        predictions = [Predictions(**arrays(each)) for each in state["predictions"]]
        earlier, reported = state["stints"], state["reported"]
        # Last, so that of a state that turns out to be incomplete nothing stays.
        self.earlier, self.reported = earlier, reported
        self.points, self.traces, self.predictions = points, traces, predictions
        # Ray Tune's checkpoints hold no course, unless the trial keeps it for one of its own.
        self.whole = self.trial.checkpoint is not None


class MLPTrainable(LaneTrainable):
    """Trials of fully connected networks, the linear model and the quadratic problem among them."""

    families = ("mlp", "linear", "quadratic")


class CNNTrainable(LaneTrainable):
    """Trials of convolutional networks."""

    families = ("cnn",)


class ModelTrainable(LaneTrainable):
    """Trials of users' models, by import path."""

    families = ()


TRAINABLES: dict[str, type[LaneTrainable]] = {
    family: trainable for trainable in (MLPTrainable, CNNTrainable) for family in trainable.families
}


def trainable(model: str) -> type[LaneTrainable]:
    """The trainable of a model family, or of a user's model."""
    return ModelTrainable if is_import_path(model) else TRAINABLES[model]


def grid_lanes(trial: TrialConfig) -> list[Lane]:
    """The lanes with which a trial begins: rates x seeds."""
    low, high, count = trial.rates or (*named(trial.optimizer, trial.code).rates, 8)
    settings = tuple(sorted(trial.settings.items()))
    return [replace(lane, settings=settings) for lane in grid(low, high, count, trial.seeds)]


def lane_rows(stacks: Sequence[Stack], *, weights: bool = False) -> list[dict[str, Any]]:
    """One row per lane, numbered through all stacks: the lanes table's columns but `trial` and `outcome`.

    A diverged lane has no values.

    Args:
        stacks: of the trial.
        weights: whether to add the parameters of the lanes that still train.
    """
    rows = [row for stack in stacks for row in _stack_rows(stack, weights=weights)]
    return [{"lane": number, **row} for number, row in enumerate(rows)]


def _stack_rows(stack: Stack, *, weights: bool) -> list[dict[str, Any]]:
    ended = dict(zip(stack.alive, stack.parameters.double().tolist(), strict=True)) if weights else {}
    columns = {
        f"{split}_{metric}": stack.last.get((split, metric))
        for split in ("train", "validation", "test")
        for metric in ("loss", "accuracy")
    }
    return [
        {
            "learning_rate": lane.learning_rate,
            "seed": lane.seed,
            "diverged_update": stack.diverged.get(place),
            "stopped_update": stack.stopped.get(place),
            "updates": int(stack.updates[place]),
            "train_seconds": float(stack.train_seconds[place]),
            "train_seconds_share": float(stack.shares[place]),
            **{
                name: None if values is None or math.isnan(values[place]) else float(values[place])
                for name, values in columns.items()
            },
            "weights": ended.get(place),
        }
        for place, lane in enumerate(stack.lanes)
    ]


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Take numbers next to nothing for nothing, for as long as the context lasts.

    Where a ReLU is dead, momentum decays into numbers so small that processors take several times as long for them.
    """
    before = (torch.tensor([1e-300], dtype=torch.float64) * 1e-10).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def plain(record: Point | Trace | Predictions) -> dict[str, Any]:
    """A record with tensors in place of arrays, for `torch.save`."""
    return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in vars(record).items()}


def arrays(saved: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record from the result of `plain`."""
    return {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in saved.items()}


def _read(stream: BinaryIO) -> dict[str, Any]:
    """Read a checkpoint; whatever is damaged in it raises."""
    with zipfile.ZipFile(stream) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} in it is damaged")
    stream.seek(0)
    state: dict[str, Any] = torch.load(stream, weights_only=True, map_location="cpu")
    return state


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _failure(error: Exception) -> dict[str, Any]:
    """What a trial reports that raised: how it ended, and the whole story."""
    return {
        "value": math.nan,
        "learning_rate": None,
        "outcome": "out of memory" if out_of_memory(error) else "failed",
        "error": "".join(traceback.format_exception(error)),
    }


def _gpus() -> list[str]:
    """The GPUs, or that one of which a share, that Ray has given this worker: host:id each."""
    if not ray.is_initialized():
        return []
    return [f"{platform.node()}:{each}" for each in ray.get_runtime_context().get_accelerator_ids()["GPU"]]


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
