"""Ray Tune's schedulers, which remember what a study's earlier sessions saw."""

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
    """The scheduler of a spec.

    Args:
        spec: the study's.
        mode: max or min, of the trials' values.
        past: what trials of earlier sessions reported.
        stopped: trials that were stopped, and the part of the budget after which; their rows may have been lost.
    """
    if spec.tuning.scheduler == "none":
        return InOrder()  # type: ignore[no-untyped-call]
    return Halving(spec.budget.reports, BRACKETS[spec.tuning.scheduler], mode, past, stopped)


class InOrder(FIFOScheduler):
    """Trials in their order, none stopped."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular.

        One that is named takes the worker that a trial has just left, and the worker that starts for it is thrown away:
        where trials take less time than workers to start, most nodes never get to work. Ray Tune takes those that wait
        in their order anyway.
        """


class Halving(InOrder, AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020), in several brackets asynchronous Hyperband.

    Time is the part of the budget that a trial has spent, however often it was interrupted. Extensions of a
    learning-rate grid come after the budget and are not judged.

    Args:
        reports: parts of the budget.
        brackets: of Hyperband; one is plain successive halving.
        mode: max or min.
        past: what trials of earlier sessions reported, as if they had been seen.
        stopped: trials that are to end after a part of the budget: they did, but their rows were lost.
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
        """Ours are set already, and the same."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Give a trial its bracket; one that goes on has passed the rungs of its past."""
        number = trial.config["trial"]
        self._trial_info[trial.trial_id] = self._bracket(number)
        for bracket in self._brackets:
            for _, recorded in bracket._rungs:
                recorded.pop(f"past-{number}", None)
        self._recall(number, trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on."""
        if result.get("report", 0) >= self.reports:
            return str(TrialScheduler.CONTINUE)  # it ends by itself
        if result.get("report", 0) >= self.stopped.get(trial.config["trial"], self.reports):
            return str(TrialScheduler.STOP)
        # Parts that a worker made just before it was interrupted come with the first report of the next.
        for part, value in enumerate(result.get("reported", [])[:-1], start=1):
            if self._trial_info[trial.trial_id].on_result(trial, part, self.sign * value) == TrialScheduler.STOP:
                return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _bracket(self, number: int) -> Any:
        """A trial's bracket, with the odds of Ray Tune's own, but the same in every session."""
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        odds = np.exp(sizes - sizes.max())
        return self._brackets[np.random.default_rng([number, self.reports]).choice(len(sizes), p=odds / odds.sum())]

    def _recall(self, number: int, name: str) -> None:
        for part, value in sorted(self.past.get(number, {}).items()):
            self._bracket(number).on_result(SimpleNamespace(trial_id=name), part, self.sign * value)
