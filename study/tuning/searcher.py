"""The searcher: suggests trials to Ray Tune, and tells Optuna how they ended.

Ray Tune's OptunaSearch reports a trial that the scheduler stopped as complete, leaves one whose last value is NaN
running for ever, and forgets after a crash what it had suggested. This one stores a trial in Optuna when it is
suggested. The collector ends it there once its rows are on disk: in the state that fits its outcome, which is stored as
a user attribute, and without substituted numbers.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from analysis.schema import Outcome
from study.tuning import compat
from study.tuning.samplers import fixed, sampler
from study.tuning.schedulers import Earlier, group
from study.tuning.space import Cell, Space, key
from study.tuning.storage import values

STATES = {
    Outcome.COMPLETED: TrialState.COMPLETE,
    Outcome.STOPPED: TrialState.PRUNED,
    Outcome.DIVERGED: TrialState.FAIL,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.OUT_OF_MEMORY: TrialState.FAIL,
    # It waits to be resumed under its number.
    Outcome.INTERRUPTED: TrialState.WAITING,
}


def outcome(result: dict[str, Any]) -> Outcome:
    """How a trial ended, from its last result."""
    if "outcome" not in result:
        return Outcome.INTERRUPTED
    # The trainable reports "running" until its budget is spent, so the scheduler ended it.
    return Outcome.STOPPED if result["outcome"] == "running" else Outcome(result["outcome"])


class TruthfulSearch(Searcher):
    """Suggests trials, and keeps Optuna's storage up to date.

    First run those of `redo`, which ended in Optuna but whose rows were lost, then those that wait. `room` is the
    number of trials that may be under way now, given how many of them are for GPUs. Once `time_up`, only trials that
    have begun before run, and `finished` says that none is left; a study has at least one trial.
    """

    def __init__(
        self,
        space: Space,
        study: optuna.Study,
        redo: list[int] | None = None,
        room: Callable[[int], int] = lambda on_gpus: sys.maxsize,
        time_up: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric="value", mode="max" if space.spec.workload.metric == "accuracy" else "min")
        self.space, self.study, self.redo, self.room = space, study, list(redo or []), room
        self.time_up, self.finished = time_up, False
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
                self.seen[key(self._cell(trial.number, trial.params))].add(replicate)

    def finish(self) -> bool:
        """Whether no trial may begin any more, as the time is up, and none that began is left to be continued."""
        if self.asked and self.time_up():
            self.waiting = [number for number in self.waiting if number in self.replicates]
            self.finished = not self.redo and not self.waiting
        return self.finished

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The configuration of a trial that runs again, one that waits, or a new one.

        None while there is no room, `FINISHED` if no trial follows.
        """
        if self.finish():
            return Searcher.FINISHED  # type: ignore[return-value]  # annotated for dictionaries alone
        if len(self.under_way) >= self.room(list(self.under_way.values()).count("cuda")):
            return None
        if self.redo:
            number = self.redo.pop(0)
            cell = self._cell(number, self.params.pop(number))
            self.replicates.setdefault(number, 0)
        else:
            number = self.waiting.pop(0) if self.waiting else self.asked
            self.study.sampler = sampler(self.space.spec, number)
            # A waiting trial keeps its earlier suggestions.
            if number < self.asked:
                trial = compat.running_trial(self.study, number)
            else:
                trial = compat.new_trial(self.study, fixed(self.space.spec, number))
                assert trial.number == number
            self.running[number], self.asked = trial, max(self.asked, number + 1)
            cell = self.space.suggest(trial)
            if number not in self.replicates:
                # A repeated cell gets fresh seeds.
                taken = self.seen[key(cell)]
                self.replicates[number] = min(set(range(len(taken) + 1)) - taken)
                taken.add(self.replicates[number])
                trial.set_user_attr("replicate", self.replicates[number])
        configuration = self.space.configuration(cell, number, self.replicates[number])
        self.under_way[number] = configuration["device"]
        return configuration

    def earlier(self) -> dict[int, Earlier]:
        """What earlier sessions saw of trials and stopped, for the scheduler, if there is one."""
        if self.space.spec.tuning.scheduler == "none":
            return {}
        return {
            trial.number: Earlier(
                group(self.space.configuration(self._cell(trial.number, trial.params), trial.number)),
                dict(trial.intermediate_values),
                trial.user_attrs.get("stopped"),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if trial.intermediate_values or "stopped" in trial.user_attrs
        }

    def _cell(self, number: int, params: dict[str, Any]) -> Cell:
        return self.space.suggest(optuna.trial.FixedTrial(params, number))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the collector calls `end` after it has written the trial's rows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage holds the state."""

    def report(self, number: int, part: int, value: float) -> None:
        """Store an intermediate value; with several objectives Optuna allows none."""
        trial = self.running.get(number)
        if trial and not self.several and not math.isnan(value):
            compat.report(self.study, trial, part, value)  # a trial that starts again repeats what it reported

    def stopped(self, number: int, part: int) -> None:
        """Record where a trial was stopped, before its rows are written: without them it stops there again."""
        if trial := self.running.get(number):
            trial.set_user_attr("stopped", part)

    def end(self, number: int, ended: Outcome, result: dict[str, Any], error: str | None = None) -> None:
        """End a trial in Optuna, unless it has ended there already.

        An interrupted trial stays running until `close`, or `ask` would return it as a new one.
        """
        self.under_way.pop(number, None)
        trial = self.running.pop(number, None)
        if trial is None:
            return
        trial.set_user_attr("outcome", str(ended))
        if error:
            trial.set_user_attr("error", error.strip().splitlines()[-1])
        if ended == Outcome.INTERRUPTED:
            self.interrupted.append(trial)
            return
        scores = values(self.space.spec.tuning.objectives, result) if ended == Outcome.COMPLETED else None
        # Optuna gives a pruned trial its last intermediate value.
        self.study.tell(trial, scores, state=STATES[ended])

    def close(self) -> None:
        """Let interrupted trials wait, once no other trial is asked for."""
        while self.interrupted:
            compat.set_waiting(self.study, self.interrupted.pop())
