"""Trainables for Ray Tune: one trial trains all lanes of one cell.

    tune.Tuner(MLPTrainable, param_space={"optimizer": "adam", "width": 16, "depth": 2, "batch_size": 32, ...})

The configuration's keys are those of `Trial`. Actors are reused from trial to trial (`reuse_actors=True`), which makes
a trial's own cost about 0.06 s instead of 3 s.
"""

from __future__ import annotations

import math
import os
import platform
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from trainables import data, engines, lanes, models
from trainables.augment import Augment
from trainables.rules import named
from trainables.stack import Lane, Stack, grid, out_of_memory

CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class Trial:
    """A trial's configuration.

    Attributes:
        optimizer: an update rule, or a class of `torch.optim`.
        batch_size: examples per update.
        width, depth: of the network; the linear model has none.
        data: one of `trainables.data.CATALOGUE`.
        model: model family; the trainable's first if not given.
        model_args: the family's own arguments.
        metric: `loss` or `accuracy`, on the validation split; what the trial reports as `value`.
        standardize: see `trainables.data.load`.
        data_folder: where downloaded data lie.
        dtype: float32 or float64.
        device: cpu, cuda, or auto: cuda where the trial was given a GPU.
        threads: CPU threads of the trial.
        rates: (lowest, highest, count) of the learning-rate grid; the rule's range at a count of 8 if not given.
        seeds: one lane per seed at each rate.
        budget: fields of `lanes.Budget`.
        settings: of the optimizer, name -> value, where they are not its own.
        engine: one of `engines.NAMES`, or auto.
        halving: whether the worse rates are given up early.
        every_update: whether the curves hold every update's loss.
        augment: fields of `Augment`, for the training images.
        trial: the trial's number, for the tables.
    """

    optimizer: str
    batch_size: int
    width: int = 0
    depth: int = 0
    data: str = "cubic"
    model: str = ""
    model_args: dict[str, Any] = field(default_factory=dict)
    metric: str = "loss"
    standardize: bool = True
    data_folder: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    threads: int = 1
    rates: tuple[float, float, int] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: dict[str, Any] = field(default_factory=lambda: {"epochs": 1})
    settings: dict[str, float] = field(default_factory=dict)
    engine: str = "auto"
    halving: bool = False
    every_update: bool = False
    augment: dict[str, Any] = field(default_factory=dict)
    trial: int = 0

    @classmethod
    def of(cls, config: dict[str, Any]) -> Trial:
        """Read a Ray Tune configuration; keys that are not ours are left alone."""
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})

    def lanes(self) -> list[Lane]:
        """The trial's lanes: rates x seeds."""
        low, high, count = self.rates or (*named(self.optimizer).rates, 8)
        settings = tuple(sorted(self.settings.items()))
        return [replace(lane, settings=settings) for lane in grid(low, high, count, self.seeds)]


@dataclass
class Payload:
    """What the driver writes into the tables; it travels in a result and is taken out on arrival.

    Attributes:
        points: evaluations since the last report.
        traces: every update's losses since, if asked for.
        lanes: one row per lane, the columns of the lanes table but `trial` and `outcome`.
    """

    points: list[lanes.Point]
    traces: list[lanes.Trace]
    lanes: list[dict[str, Any]]


class LaneTrainable(tune.Trainable):
    """A trial of one cell: `step` trains one part of the budget and reports the metric at the tuned learning rate."""

    families: ClassVar[tuple[str, ...]]

    def setup(self, config: dict[str, Any]) -> None:
        """Build the lanes. What goes wrong is kept for `step` to report: raising would cost the actor and a retry."""
        self.trial = Trial.of(config)
        self.started = self.saved = time.time()
        self.failure: dict[str, Any] | None = None
        try:
            self._build(self.trial)
        except Exception as error:  # noqa: BLE001  whatever a model or data set raises is that trial's outcome
            self.failure = _failure(error)

    def _build(self, trial: Trial) -> None:
        family = trial.model or self.families[0]
        if family not in self.families:
            raise ValueError(f"{type(self).__name__} trains {' and '.join(self.families)}, not {family!r}")
        torch.set_num_threads(trial.threads)
        device = torch.device(_device(trial.device))
        if device.type == "cuda":
            # The same trial again is the same bit for bit, and float32 means float32.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False
        dtype = getattr(torch, trial.dtype)
        rule = named(trial.optimizer)
        folder = Path(trial.data_folder) if trial.data_folder else None
        self.data = data.load(trial.data, folder, standardize=trial.standardize, dtype=dtype, device=device)
        shape, outputs = self.data.in_shape, self.data.out_features
        size = {"width": trial.width, "depth": trial.depth}
        self.build = partial(models.build, family, shape, outputs, **size, **trial.model_args)
        self.stack = Stack.build(self.build, trial.lanes(), rule, dtype, device)
        updates = lanes.Budget(**trial.budget).total_updates(trial.batch_size, len(self.data.train))
        network = self.build()
        self.cost = models.multiplications(network, shape)
        self.engine = engines.choose(
            network, shape, self.data.task, trial.batch_size, self.stack, updates, trial.engine
        )
        self.stack.at_once = engines.fitting(network, shape, trial.batch_size, self.stack)
        self.parameters = self.stack.parameters.shape[1]
        self.training = self._train()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one part of the budget; a trial that fails reports how, and ends."""
        if self.failure is None:
            try:
                return self._step()
            except Exception as error:  # noqa: BLE001  as in setup
                self.failure = _failure(error)
        return {**self._identity(), **self.failure, "payload": Payload([], [], []), DONE: True}

    def _step(self) -> dict[str, Any]:
        report = next(self.training)
        rate, value = tuned(self.stack, self.trial.metric, len(self.data.validation))
        # A rate counts if every seed survives it, so once none counts, none ever will.
        lost = rate is None
        ended = report.finished or lost
        due = time.time() - self.saved > CHECKPOINT_SECONDS and not ended
        return {
            "value": value,
            "learning_rate": rate,
            "outcome": "diverged" if lost else "completed" if report.finished else "running",
            "finished": report.finished,
            "update": self.stack.update,
            "examples": report.examples,
            "epoch": report.epoch,
            "train_seconds": self.stack.seconds,
            "parameters": self.parameters,
            "lanes": len(self.stack.lanes),
            "engine": self.engine.name,
            "lanes_at_once": self.stack.at_once,
            **self._identity(),
            "payload": Payload(report.points, report.traces, lane_rows(self.stack)),
            DONE: ended,
            SHOULD_CHECKPOINT: due,
        }

    def _identity(self) -> dict[str, Any]:
        return {"started": self.started, "worker": f"{platform.node()}:{os.getpid()}"}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the stack; `load_checkpoint` goes on from it bit for bit."""
        torch.save(self.stack.state_dict(), Path(checkpoint_dir) / "stack.pt")
        self.saved = time.time()
        # Ray sends the last result along with every checkpoint; its payload has been delivered already.
        if self._last_result:
            self._last_result.pop("payload", None)

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Read the stack and go on."""
        if self.failure:
            return  # there is no stack to go on with; the next step says why
        assert isinstance(checkpoint, str)
        device = self.stack.parameters.device
        saved = torch.load(Path(checkpoint) / "stack.pt", weights_only=True, map_location=device)
        self.stack.load_state_dict(saved)
        self.training = self._train()

    def _train(self) -> Iterator[lanes.Report]:
        trial = self.trial
        return lanes.train(
            self.stack,
            self.engine,
            self.data,
            trial.batch_size,
            lanes.Budget(**trial.budget),
            multiplications=self.cost,
            augment=Augment(**trial.augment, mean=self.data.mean, std=self.data.std) if trial.augment else None,
            halving=trial.metric if trial.halving else None,
            every_update=trial.every_update,
        )


class MLPTrainable(LaneTrainable):
    """Trials of fully connected networks, the linear model among them."""

    families = ("mlp", "linear")


class CNNTrainable(LaneTrainable):
    """Trials of convolutional networks."""

    families = ("cnn",)


TRAINABLES: dict[str, type[LaneTrainable]] = {
    family: trainable for trainable in (MLPTrainable, CNNTrainable) for family in trainable.families
}


def tuned(stack: Stack, metric: str, validation_examples: int) -> tuple[float | None, float]:
    """The best learning rate on the validation split so far, and the metric there, by `lanes.scores`.

    Returns:
        The rate, the lower of equals, and the metric averaged and transformed back; None and NaN if no rate counts.
    """
    scores = {
        rate: score for rate, score in lanes.scores(stack, metric, validation_examples).items() if not math.isnan(score)
    }
    if not scores:
        return None, math.nan
    rate = max(scores, key=lambda r: (scores[r], -r))
    if metric == "accuracy":
        n = validation_examples
        return rate, float(((n + 1) / (1 + np.exp(-scores[rate])) - 0.5) / n)
    return rate, float(np.exp(-scores[rate]))


def lane_rows(stack: Stack) -> list[dict[str, Any]]:
    """One row per lane: the lanes table's columns but `trial` and `outcome`; a diverged lane has no values."""
    columns = {
        f"{split}_{metric}": stack.last.get((split, metric))
        for split in ("train", "validation", "test")
        for metric in ("loss", "accuracy")
    }
    return [
        {
            "lane": number,
            "learning_rate": lane.learning_rate,
            "seed": lane.seed,
            "diverged_update": stack.diverged.get(number),
            "stopped_update": stack.stopped.get(number),
            "updates": int(stack.updates[number]),
            "train_seconds": float(stack.train_seconds[number]),
            "train_seconds_share": float(stack.shares[number]),
            **{
                name: None if values is None or math.isnan(values[number]) else float(values[number])
                for name, values in columns.items()
            },
        }
        for number, lane in enumerate(stack.lanes)
    ]


def _failure(error: Exception) -> dict[str, Any]:
    """What a trial reports that raised: how it ended, and the whole story."""
    return {
        "value": math.nan,
        "learning_rate": None,
        "outcome": "out of memory" if out_of_memory(error) else "failed",
        "error": "".join(traceback.format_exception(error)),
    }


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
