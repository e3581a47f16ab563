"""The searcher that tells Optuna how trials really ended.

Ray Tune's OptunaSearch reports a trial that the scheduler stopped as complete, leaves one whose last value is NaN
running for ever, and forgets after a crash what it had suggested. Here Optuna's storage is the truth: a trial is in it
from the moment it is suggested, ends there in the state that it deserves, with the outcome beside it as a user
attribute, and no number is made up. The one who tells it is the collector, once the trial's rows are on disk.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from study.tuning.space import Space, fair_optimizer, key, sampler

Direction: TypeAlias = Literal["minimize", "maximize"]

STATES = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
    "out of memory": TrialState.FAIL,
    # An interrupted trial waits to be continued, under its number; a study that is resumed ends it in another state.
    "interrupted": TrialState.WAITING,
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


def values(objectives: list[str], result: dict[str, Any]) -> list[float]:
    """A completed trial's values, from its last result or its row of the trials table."""
    names = {"metric": "value", "updates": "update" if "update" in result else "updates"}
    return [float(result[names.get(objective, objective)]) for objective in objectives]


def directions(objectives: list[str], metric: str) -> list[Direction]:
    """Which way each objective is better: costs are minimized."""
    best: Direction = "maximize" if metric == "accuracy" else "minimize"
    return [best if objective == "metric" else "minimize" for objective in objectives]


class TruthfulSearch(Searcher):
    """What Ray Tune asks for cells, and what Optuna is told by.

    Args:
        space: the cells.
        study: Optuna's; only the driver talks to it. Trials that wait in it are suggested first.
        redo: numbers of trials that Optuna knows the end of but whose rows were lost; they run again, before all.
        room: trials that may be under way now, if so many of them are for GPUs.
    """

    def __init__(
        self,
        space: Space,
        study: optuna.Study,
        redo: list[int] | None = None,
        room: Callable[[int], int] = lambda on_gpus: sys.maxsize,
    ) -> None:
        super().__init__(metric="value", mode="max" if space.spec.workload.metric == "accuracy" else "min")
        self.space, self.study, self.redo, self.room = space, study, list(redo or []), room
        self.under_way: dict[int, str] = {}  # and the kind of device
        self.several = len(study.directions) > 1
        self.running: dict[int, optuna.Trial] = {}
        self.interrupted: list[optuna.Trial] = []
        trials = study.get_trials(deepcopy=False)
        self.asked = len(trials)
        self.waiting = sorted(trial.number for trial in trials if trial.state == TrialState.WAITING)
        self.params = {number: trials[number].params for number in self.redo}
        self.replicates: dict[int, int] = {}
        self.seen: defaultdict[str, set[int]] = defaultdict(set)
        for trial in trials:
            if (replicate := trial.user_attrs.get("replicate")) is not None:
                self.replicates[trial.number] = replicate
                self.seen[key(space.suggest(optuna.trial.FixedTrial(trial.params)))].add(replicate)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's configuration: one that is to be done again, one that waits, or a new one."""
        if len(self.under_way) >= self.room(list(self.under_way.values()).count("cuda")):
            return None
        if self.redo:
            number = self.redo.pop(0)
            cell = self.space.suggest(optuna.trial.FixedTrial(self.params.pop(number)))
            return self._under_way(self.space.configuration(cell, number, self.replicates.get(number, 0)))
        number = self.waiting.pop(0) if self.waiting else self.asked
        self.study.sampler = sampler(self.space.spec, number)
        trial = self.running[number] = self._go_on(number) if number < self.asked else self._ask(number)
        self.asked = max(self.asked, number + 1)
        cell = self.space.suggest(trial)
        if number not in self.replicates:
            # A cell that comes again gets fresh seeds instead of the same numbers.
            taken = self.seen[key(cell)]
            self.replicates[number] = min(set(range(len(taken) + 1)) - taken)
            taken.add(self.replicates[number])
            trial.set_user_attr("replicate", self.replicates[number])
        return self._under_way(self.space.configuration(cell, number, self.replicates[number]))

    def _under_way(self, configuration: dict[str, Any]) -> dict[str, Any]:
        self.under_way[configuration["trial"]] = configuration["device"]
        return configuration

    def _ask(self, number: int) -> optuna.Trial:
        if turn := fair_optimizer(self.space.spec, number):
            self.study.enqueue_trial({"optimizer": turn})
        trial = self.study.ask()
        assert trial.number == number
        return trial

    def _go_on(self, number: int) -> optuna.Trial:
        """A trial that waits, with what it was suggested before; ask() may give another that waits."""
        storage = self.study._storage
        identity = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        storage.set_trial_state_values(identity, TrialState.RUNNING)
        return optuna.Trial(self.study, identity)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the collector says when a trial has ended, after it has written it."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing, likewise."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage holds it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def report(self, number: int, part: int, value: float) -> None:
        """Pass on an intermediate value; Optuna takes none where there are several objectives."""
        trial = self.running.get(number)
        if trial and not self.several and not math.isnan(value):
            storage, identity = self.study._storage, trial._trial_id
            # A trial that began anew reports what it has reported before.
            if part not in storage.get_trial(identity).intermediate_values:
                storage.set_trial_intermediate_value(identity, part, value)

    def stopped(self, number: int, part: int) -> None:
        """Note that the scheduler ends a trial, before its rows are written: should they be lost, it ends there again.

        Args:
            number: of the trial.
            part: of the budget, after which it was stopped.
        """
        if trial := self.running.get(number):
            trial.set_user_attr("stopped", part)

    def end(self, number: int, ended: str, result: dict[str, Any], error: str | None = None) -> None:
        """Tell Optuna how a trial ended; a trial that it knows the end of is left as it is.

        One that was interrupted goes on running for Optuna until `close`: `ask` would take it for a new one.
        """
        self.under_way.pop(number, None)
        trial = self.running.pop(number, None)
        if trial is None:
            return
        trial.set_user_attr("outcome", ended)
        if error:
            trial.set_user_attr("error", error.strip().splitlines()[-1])
        if ended == "interrupted":
            self.interrupted.append(trial)
            return
        told = values(self.space.spec.tuning.objectives, result) if ended == "completed" else None
        # A pruned trial takes its last intermediate value, which is its honest one.
        self.study.tell(trial, told, state=STATES[ended])

    def close(self) -> None:
        """Let the trials that were interrupted wait, now that no other is asked for."""
        while self.interrupted:
            trial = self.interrupted.pop()
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
