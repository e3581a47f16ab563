"""Ray Tune's schedulers, which also know the trials of a study's earlier sessions."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from study.spec import Spec

REDUCTION = 3
BRACKETS = {"asha": 1, "hyperband": 3}

Past = Mapping[int, Mapping[int, float]]
"""Trial -> part of the budget -> value then."""


def scheduler(spec: Spec, mode: str, past: Past, stopped: Mapping[int, int] | None = None) -> TrialScheduler:
    """The scheduler of a spec, which knows what trials of earlier sessions reported and where they were stopped."""
    if spec.tuning.scheduler == "none":
        return InOrder()  # type: ignore[no-untyped-call]
    return Halving(spec.budget.reports, BRACKETS[spec.tuning.scheduler], mode, past, stopped)


class InOrder(FIFOScheduler):
    """Runs trials in their order and stops none."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nothing: Ray Tune runs pending trials in their order.

        A trial chosen here takes a worker that has just become idle, and the worker that starts for it is thrown away:
        where trials are shorter than the start of a worker, most nodes would never get to work.
        """


class Halving(InOrder, AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020); with several brackets, asynchronous Hyperband.

    Time is the part of the budget that a trial has spent, however often it was interrupted. Extensions and
    refinements of a learning-rate grid follow the budget and are not judged. What trials of earlier sessions reported
    counts as seen; `stopped` trials stop again after the same part: their rows were lost.
    """

    def __init__(
        self, reports: int, brackets: int, mode: str, past: Past, stopped: Mapping[int, int] | None = None
    ) -> None:
        super().__init__(
            "report", "value", mode, max_t=reports, grace_period=1, reduction_factor=REDUCTION, brackets=brackets
        )
        self.reports, self.past, self.sign = reports, past, 1.0 if mode == "max" else -1.0
        self.stopped = dict(stopped or {})
        for number in past:
            self._recall(number, f"past-{number}")

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept the properties; the same are set already."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Assign a trial to its bracket; a resumed trial has passed the rungs of its past."""
        number = trial.config["trial"]
        self._trial_info[trial.trial_id] = self._bracket(number)
        for bracket in self._brackets:
            for _, recorded in bracket._rungs:
                recorded.pop(f"past-{number}", None)
        self._recall(number, trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        if result.get("report", 0) >= self.reports:
            return str(TrialScheduler.CONTINUE)  # it ends by itself
        if result.get("report", 0) >= self.stopped.get(trial.config["trial"], self.reports):
            return str(TrialScheduler.STOP)
        # Parts from just before an interruption arrive with the first report of the next worker.
        for part, value in enumerate(result.get("reported", [])[:-1], start=1):
            if self._trial_info[trial.trial_id].on_result(trial, part, self.sign * value) == TrialScheduler.STOP:
                return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _bracket(self, number: int) -> Any:
        """A trial's bracket, with the probabilities of Ray Tune, but the same in every session."""
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        odds = np.exp(sizes - sizes.max())
        return self._brackets[np.random.default_rng([number, self.reports]).choice(len(sizes), p=odds / odds.sum())]

    def _recall(self, number: int, name: str) -> None:
        for part, value in sorted(self.past.get(number, {}).items()):
            self._bracket(number).on_result(SimpleNamespace(trial_id=name), part, self.sign * value)
