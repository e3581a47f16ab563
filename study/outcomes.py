"""The searcher that tells Optuna how trials really ended.

Ray Tune's OptunaSearch reports a trial that the scheduler stopped as complete, and leaves one whose last value is NaN
running for ever. Here every trial ends in Optuna's storage in the state that it deserves, with the outcome beside it as
a user attribute, and no number is made up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from study.space import Space

STATES = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
    "out of memory": TrialState.FAIL,
    "interrupted": TrialState.FAIL,
}


def outcome(result: dict[str, Any] | None, *, error: bool = False) -> str:
    """How a trial ended, from its last result.

    Args:
        result: what the trainable last reported, if anything.
        error: whether the trial raised, or its worker died.
    """
    if error:
        return "failed"
    if not result or "outcome" not in result:
        return "interrupted"
    # The trainable says "running" until its budget is spent: whoever ended it then was the scheduler.
    return "stopped" if result["outcome"] == "running" else str(result["outcome"])


class TruthfulSearch(OptunaSearch):
    """OptunaSearch whose trials end as what they were.

    Args:
        space: the cells.
        sampler: Optuna's.
        storage: Optuna's; only the driver talks to it.
        study_name: name of the study in the storage.
        mode: min or max, of the metric `value`.
    """

    def __init__(
        self,
        space: Space,
        *,
        sampler: optuna.samplers.BaseSampler,
        storage: optuna.storages.BaseStorage,
        study_name: str,
        mode: str,
    ) -> None:
        super().__init__(
            space=space, metric="value", mode=mode, sampler=sampler, storage=storage, study_name=study_name
        )
        assert self._ot_study is not None
        self._study: optuna.Study = self._ot_study
        self._cells: Callable[[optuna.Trial], dict[str, Any]] = space
        self._running: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Ask Optuna for a cell and make it a trial's configuration."""
        trial = self._running[trial_id] = self._study.ask()
        return self._cells(trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on an intermediate value."""
        self._report(self._running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna the end."""
        trial = self._running.pop(trial_id)
        if result:
            # Ray Tune passes a result that ends a trial here only.
            self._report(trial, result)
        self._end(trial, outcome(result, error=error), result)

    def interrupt(self) -> None:
        """Tell Optuna that every trial still running was interrupted."""
        while self._running:
            self._end(self._running.popitem()[1], "interrupted", None)

    def _report(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        value, step = result.get("value", math.nan), result["training_iteration"]
        if not math.isnan(value):
            trial.report(value, step)

    def _end(self, trial: optuna.Trial, ended: str, result: dict[str, Any] | None) -> None:
        trial.set_user_attr("outcome", ended)
        value = result["value"] if result and ended == "completed" else None
        try:
            # A pruned trial takes its last intermediate value, which is its honest one.
            self._study.tell(trial, value, state=STATES[ended])
        except RuntimeError:
            # The grid sampler stops the study after its last cell, which an ask-and-tell study cannot do; the trial's
            # state has been written by then.
            if not isinstance(self._study.sampler, optuna.samplers.GridSampler):
                raise
