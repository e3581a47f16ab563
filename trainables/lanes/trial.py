"""One trial without Ray: its data and network, its stacks of lanes, and its results.

A trial trains a stack of lanes for the whole budget, and then further stacks: rates beyond the edge of those tried
while the best learning rate lies on it, then rates around the best one (`trainables.lanes.rates.next_round`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainables.config import TrialConfig
from trainables.engines.choose import choose
from trainables.engines.memory import fitting
from trainables.lanes.cost import update_seconds
from trainables.lanes.evaluate import EvaluationTimes, spent
from trainables.lanes.rates import EXTENSION, REFINEMENT, Measure, next_round, tuned
from trainables.lanes.records import Report
from trainables.lanes.stack import Lane, Stack, spread
from trainables.lanes.train import train
from trainables.rules import named
from trainables.usercode.vmap_support import TRIED_EXAMPLES
from trainables.workloads import data, models
from trainables.workloads.criterion import Criterion


class TrialRun:
    """The computation of a trial.

    Args:
        config: the trial's configuration.
        family: model family, or import path of a user's model.

    Attributes:
        stacks: the grid's lanes, then those of each further round; all but the last have used the budget.
        measure: by which rates are compared.
        engine: of the last stack.
        engine_name, parameters: engine of the first stack, and parameters of one network.
        config: of the trial; a budget in seconds has become one in updates.
        times: progress in examples and epochs.
        budget: as it was given.
        update_seconds: of one network trained alone, measured; None if the ordinary loop raises an error.
    """

    def __init__(self, config: TrialConfig, family: str) -> None:
        self.config, self.dtype = config, getattr(torch, config.dtype)
        self.device = _prepared_device(config)
        self.data = data.load(
            config.data,
            Path(config.data_folder) if config.data_folder else None,
            standardize=config.standardize,
            seed=config.data_seed,
            dtype=self.dtype,
            device=self.device,
            code=config.code,
            reading=config.reading(),
            images=family == "cnn",
        )
        shape, outputs = self.data.in_shape, self.data.out_features
        size: dict[str, Any] = {"width": config.width, "depth": config.depth, "bundle": config.code}
        self.build = partial(models.build, family, shape, outputs, **size, **config.model_args)
        self.multiplications = models.multiplications(self.build(), shape)
        self.criterion = Criterion(self.data.task, config.loss, config.score, config.code, config.label_smoothing)
        self.measure = Measure.of(config, self.data, self.criterion)
        self.stacks: list[Stack] = []
        self.update_seconds: float | None = None
        self.budget = config.budget

    @property
    def stack(self) -> Stack:
        """The stack that trains."""
        return self.stacks[-1]

    @property
    def keeps_weights(self) -> bool:
        """Whether the lanes' rows hold their parameters at the end: asked for, or small enough."""
        mib = sum(8 * stack.parameters.shape[1] * len(stack.lanes) for stack in self.stacks) / 2**20
        return self.config.weights or mib <= self.config.weights_mib

    def begin(self) -> None:
        """Initialise the lanes of the grid."""
        self._start(self._update_seconds())
        self._add(grid_lanes(self.config))

    def restore(self, states: list[dict[str, Any]], update_seconds: float | None) -> None:
        """Restore the stacks from their state dicts; the lanes of each round follow from the stacks before it."""
        self._start(self._update_seconds() if update_seconds is None else update_seconds)
        for state in states:
            name, lanes = self.following() if self.stacks else ("grid", grid_lanes(self.config))
            self._add(lanes, name).load_state_dict(state)

    def reports(self) -> Iterator[Report]:
        """Train stack after stack, with lanes numbered through all stacks; only the very last report is finished."""
        while True:
            before = sum(len(stack.lanes) for stack in self.stacks[:-1])
            for report in train(self.stack, self.engine, self.data, self.config, multiplications=self.multiplications):
                extends = report.finished and bool(self.following()[1])
                if extends and not self.keeps_weights:
                    self.stack.free()
                if report.finished and not extends and (before_it := self.update_seconds) is not None:
                    # Other work only adds time, so the shorter one counts.
                    self.update_seconds = min(before_it, self._update_seconds(again=True) or before_it)
                yield replace(report.shifted(before), finished=report.finished and not extends)
            name, further = self.following()
            if not further:
                return
            self._add(further, name)

    def following(self) -> tuple[str, list[Lane]]:
        """The round that follows the present stacks, whose results determine it, and its lanes; none if none does."""
        config = self.config
        name, found = next_round(self.stacks, self.measure, extensions=config.extensions, refine=config.refine)
        own = self.stacks[0].lanes[0].settings
        return name, [Lane(rate, seed, own, recipe) for rate, recipe in found for seed in config.seeds]

    def result(self, report: Report) -> dict[str, Any]:
        """The columns of a result of Ray Tune that tell what the trial has reached."""
        main, done = self.stacks[0], [stack for stack in self.stacks if spent(self.config.budget, stack)]
        # Rates of a further round count once they have used the budget, so that none is better for being half done.
        best, value = tuned(done or self.stacks, self.measure)
        # A rate counts if every seed survives it, so once none counts, none ever will.
        lost = best is None
        # On fresh seeds all lanes train to the end, for how many diverge is a result.
        over = lost and (report.finished or not self.config.test_values)
        extending = bool(done) and not report.finished and not lost
        rounds = [stack.round for stack in self.stacks]
        if extending and len(done) == len(rounds):
            rounds.append(self.following()[0])  # a planned one counts
        examples, epoch = self.times.progress(main.update)
        return {
            "value": value,
            "learning_rate": best and best.learning_rate,
            "recipe": (best and best.recipe.text()) or None,
            "outcome": "diverged" if over else "completed" if report.finished else "running",
            "finished": report.finished,
            "report": main.reports,
            "extensions": sum(each.startswith(EXTENSION) for each in rounds),
            "refinements": sum(each.startswith(REFINEMENT) for each in rounds),
            "extending": extending,
            "loss_floor": self.measure.floor,
            "update": main.update,
            "examples": examples,
            "epoch": epoch,
            "train_seconds": sum(stack.seconds for stack in self.stacks),
            "update_seconds": self.update_seconds,
            "parameters": self.parameters,
            "lanes": sum(len(stack.lanes) for stack in self.stacks),
            "engine": self.engine_name,
            "lanes_at_once": main.at_once,
        }

    def _start(self, update_seconds: float | None) -> None:
        """Fix the updates of the budget, before there are stacks."""
        self.stacks, self.update_seconds = [], update_seconds
        self.config = replace(self.config, budget=self.budget.in_updates(update_seconds))
        self.times = EvaluationTimes(self.config.budget, self.config.batch_size, len(self.data.train))

    def _update_seconds(self, *, again: bool = False) -> float | None:
        config = self.config
        try:
            return update_seconds(
                self.build,
                named(config.optimizer, config.code),
                self.data.train,
                config.batch_size,
                grid_lanes(config)[0],
                self.criterion,
                multiplications=self.multiplications,
                drop_last=config.budget.drop_last,
                again=again,
            )
        except Exception:  # training reports the error, if the lanes meet it, too
            if self.budget.seconds is not None:
                raise
            return None

    def _add(self, lanes: list[Lane], name: str = "grid") -> Stack:
        """Build a further stack, to be trained next, with its engine."""
        config, shape = self.config, self.data.in_shape
        rule, total = named(config.optimizer, config.code), self.times.total
        stack = Stack.build(self.build, lanes, rule, self.dtype, self.device, total)
        stack.round = name
        self.engine = choose(
            self.build,
            shape,
            self.criterion,
            config.batch_size,
            stack,
            config.engine,
            augmented=bool(config.augment),
            sample=self.data.train.inputs[:TRIED_EXAMPLES],
            name=config.model,
        )
        stack.at_once = fitting(self.build(), shape, config.batch_size, stack, config.share)
        if not self.stacks:
            self.parameters, self.engine_name = stack.parameters.shape[1], self.engine.name
        self.stacks.append(stack)
        return stack


def grid_lanes(config: TrialConfig) -> list[Lane]:
    """The lanes with which a trial begins: rates x recipes x seeds."""
    rates = config.rates or (*named(config.optimizer, config.code).rates, 8)
    return spread(rates, config.axes, config.seeds, config.sample, tuple(sorted(config.settings.items())))


def _prepared_device(config: TrialConfig) -> torch.device:
    """The trial's device, after setting up this process for it."""
    torch.set_num_threads(config.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if config.device == "auto" else config.device)
    if device.type == "cuda":
        # The same trial again is the same bit for bit, and float32 means float32.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        # A trial that exceeds its share runs out of memory alone, without its neighbours.
        torch.cuda.set_per_process_memory_fraction(config.share)
    return device
