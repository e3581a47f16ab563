"""Ray Tune's schedulers, which also know the trials of a study's earlier sessions."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from study.spec import Spec

REDUCTION = 3
BRACKETS = {"asha": 1, "hyperband": 3}

Group = tuple[str, int]
"""Optimizer and batch size: trials compete only with those that have both in common."""


@dataclass(frozen=True)
class Earlier:
    """A trial that an earlier session began."""

    group: Group
    reported: Mapping[int, float] = field(default_factory=dict)  # part of the budget -> value then
    stopped: int | None = None  # the part after which the scheduler stopped it


def group(config: Mapping[str, Any]) -> Group:
    """The group in which a trial with a configuration competes."""
    return config["optimizer"], config["batch_size"]


def scheduler(spec: Spec, mode: str, past: Mapping[int, Earlier]) -> TrialScheduler:
    """The scheduler of a spec, which knows the trials of earlier sessions, by number."""
    if spec.tuning.scheduler == "none":
        return InOrder()  # type: ignore[no-untyped-call]
    return Halving(spec.budget.reports, BRACKETS[spec.tuning.scheduler], mode, past)


class InOrder(FIFOScheduler):
    """Runs trials in their order and stops none."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nothing: Ray Tune runs pending trials in their order.

        A trial chosen here takes a worker that has just become idle, and the worker that starts for it is thrown away:
        where trials are shorter than the start of a worker, most nodes would never get to work.
        """


class Halving(InOrder, AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020); with several brackets, asynchronous Hyperband.

    Each group has brackets of its own. At the same part of the budget small batches have made many more updates than
    large ones, and an optimizer that starts slowly may end best: in one bracket, most full batches would be stopped.

    Time is the part of the budget that a trial has spent, however often it was interrupted. Extensions and
    refinements of a learning-rate grid follow the budget and are not judged. What trials of earlier sessions reported
    counts as seen; those that were stopped stop again after the same part: their rows were lost.
    """

    def __init__(self, reports: int, brackets: int, mode: str, past: Mapping[int, Earlier]) -> None:
        super().__init__(
            "report", "value", mode, max_t=reports, grace_period=1, reduction_factor=REDUCTION, brackets=brackets
        )
        self.reports, self.past, self.sign = reports, past, 1.0 if mode == "max" else -1.0
        self.groups: dict[Group, list[Any]] = {}
        for number, trial in past.items():
            self._recall(number, self._bracket(trial.group, number), f"past-{number}")

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept the properties; the same are set already."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Assign a trial to its bracket; a resumed trial has passed the rungs of its past."""
        number = trial.config["trial"]
        bracket = self._trial_info[trial.trial_id] = self._bracket(group(trial.config), number)
        for _, recorded in bracket._rungs:
            recorded.pop(f"past-{number}", None)
        self._recall(number, bracket, trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        if result.get("report", 0) >= self.reports or math.isnan(result.get("value", math.nan)):
            return str(TrialScheduler.CONTINUE)  # it ends by itself
        earlier = self.past.get(trial.config["trial"])
        if earlier and earlier.stopped is not None and result.get("report", 0) >= earlier.stopped:
            return str(TrialScheduler.STOP)
        # Parts from just before an interruption arrive with the first report of the next worker.
        for part, value in enumerate(result.get("reported", [])[:-1], start=1):
            if self._trial_info[trial.trial_id].on_result(trial, part, self.sign * value) == TrialScheduler.STOP:
                return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the last value, unless there is none: no trial is judged by one that diverged."""
        if math.isnan(result.get("value", math.nan)):
            self._trial_info.pop(trial.trial_id, None)
        else:
            super().on_trial_complete(tune_controller, trial, result)

    def _bracket(self, group: Group, number: int) -> Any:
        """A trial's bracket in its group, with the probabilities of Ray Tune, but the same in every session."""
        brackets = self.groups.setdefault(group, copy.deepcopy(self._brackets))  # those of Ray Tune stay empty
        sizes = np.array([len(bracket._rungs) for bracket in brackets])
        odds = np.exp(sizes - sizes.max())
        return brackets[np.random.default_rng([number, self.reports]).choice(len(sizes), p=odds / odds.sum())]

    def _recall(self, number: int, bracket: Any, name: str) -> None:
        if number in self.past:
            for part, value in sorted(self.past[number].reported.items()):
                bracket.on_result(SimpleNamespace(trial_id=name), part, self.sign * value)
