"""Optuna's private interfaces: what has no public counterpart, and may change with a new version.

`tests/test_compat.py` fails where it has.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.samplers import NSGAIISampler
from optuna.storages.journal._storage import JournalOperation as JournalOperation
from optuna.trial import FrozenTrial, TrialState


def new_trial(study: optuna.Study, fixed: dict[str, Any]) -> optuna.Trial:
    """Begin a trial with some fixed parameters, where `Study.enqueue_trial` and `ask` would go through all trials."""
    attributes = {"fixed_params": fixed} if fixed else None
    template = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attributes)
    study._thread_local.cached_all_trials = None  # as `ask` does
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=template))


def running_trial(study: optuna.Study, number: int) -> optuna.Trial:
    """Set a waiting trial to running; `Study.ask` cannot choose which."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study._thread_local.cached_all_trials = None
    study._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    return optuna.Trial(study, trial_id)


def set_waiting(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Let a running trial wait, to be resumed under its number."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def report(study: optuna.Study, trial: optuna.Trial, step: int, value: float) -> None:
    """Store an intermediate value unless the step has one; `Trial.report` warns then."""
    if step not in study._storage.get_trial(trial._trial_id).intermediate_values:
        study._storage.set_trial_intermediate_value(trial._trial_id, step, value)


class _Warm(optuna.Study):
    """A study whose samplers see earlier trials before its own."""

    earlier: Sequence[FrozenTrial] = ()

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        earlier = [trial for trial in self.earlier if states is None or trial.state in states]
        return [*earlier, *super()._get_trials(deepcopy, states, use_cache)]

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The study's own trials."""
        return super()._get_trials(deepcopy, states)


def with_earlier(study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """The same study, whose samplers take other completed trials for its first ones."""
    for place, trial in enumerate(trials):
        # Samplers sort trials by number, and `IntersectionSearchSpace` takes none below -1: so between -1 and 0.
        trial.number = (place + 1) / (len(trials) + 1) - 1  # type: ignore[assignment]
        trial._trial_id = place - len(trials)
        # NSGA-II begins with a generation of trials that it did not breed.
        trial.system_attrs = {NSGAIISampler._get_generation_key(): 0}
    warm = copy.copy(study)
    warm.__class__ = _Warm
    warm.earlier = trials  # type: ignore[attr-defined]
    return warm


class _Given(_Warm):
    """A study of trials that are in no storage."""

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The earlier ones too, as there are no others."""
        return self._get_trials(deepcopy, states)


def of_trials(trials: Sequence[FrozenTrial], direction: optuna.study.StudyDirection) -> optuna.Study:
    """A study of some trials, to be read only; `Study.add_trials` copies each several times."""
    study = optuna.create_study(direction=direction)
    study.__class__ = _Given
    study.earlier = [copy.copy(trial) for trial in trials]  # type: ignore[attr-defined]
    for place, trial in enumerate(study.earlier):  # type: ignore[attr-defined]
        trial.number = trial._trial_id = place  # a trial may be there several times
    return study


def end_as(study: optuna.Study, trial: FrozenTrial, end: FrozenTrial) -> None:
    """Give an unfinished trial the parameters, values and state of another one."""
    storage, trial_id = study._storage, trial._trial_id
    for name, distribution in end.distributions.items():
        if name not in trial.params:
            internal = distribution.to_internal_repr(end.params[name])
            storage.set_trial_param(trial_id, name, internal, distribution)
    for step, value in end.intermediate_values.items():
        storage.set_trial_intermediate_value(trial_id, step, value)
    for name, value in end.user_attrs.items():
        storage.set_trial_user_attr(trial_id, name, value)
    storage.set_trial_state_values(trial_id, state=end.state, values=end.values)
