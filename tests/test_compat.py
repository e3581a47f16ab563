"""The private interfaces of Optuna and Ray that the project uses are still what it takes them for."""

from __future__ import annotations

import inspect
from typing import Any

import optuna
from optuna.trial import TrialState
from ray._private import ray_constants
from ray.dashboard.modules import dashboard_sdk
from ray.tune import tune as ray_tune
from ray.tune.execution import class_cache
from ray.tune.experiment import trial as ray_trial
from ray.tune.schedulers.async_hyperband import _Bracket

from study.cluster import compat as ray_compat
from study.tuning import compat


def study_of_two() -> optuna.Study:
    study = optuna.create_study()
    for value in (1.0, 2.0):
        study.enqueue_trial({"x": value})
    return study


def test_running_trial_takes_the_one_asked_for() -> None:
    study = study_of_two()
    trial = compat.running_trial(study, 1)
    assert (trial.number, trial.suggest_float("x", 0.0, 3.0)) == (1, 2.0)
    assert [each.state for each in study.trials] == [TrialState.WAITING, TrialState.RUNNING]
    compat.set_waiting(study, trial)
    assert study.trials[1].state == TrialState.WAITING
    assert study.trials[1].params == {"x": 2.0}


def test_report_keeps_the_first_value_of_a_step() -> None:
    study = study_of_two()
    trial = study.ask()
    for value in (0.5, 0.25):
        compat.report(study, trial, 1, value)
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_end_as_gives_a_trial_everything_of_another() -> None:
    study = study_of_two()
    end = optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=[3.0],
        params={"x": 1.0, "rule": "adam"},
        distributions={
            "x": optuna.distributions.FloatDistribution(0.0, 3.0),
            "rule": optuna.distributions.CategoricalDistribution(["sgd", "adam"]),
        },
        user_attrs={"outcome": "completed"},
        intermediate_values={1: 4.0, 2: 3.0},
    )
    study.ask()
    compat.end_as(study, study.trials[0], end)
    ended = study.trials[0]
    for name in ("state", "values", "params", "distributions", "user_attrs", "intermediate_values"):
        assert getattr(ended, name) == getattr(end, name)


def test_ray_has_the_private_names_that_are_used() -> None:
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert "_server_ray_version" in inspect.getsource(dashboard_sdk)
    run: Any = ray_trial._TrainingRunMetadata()
    assert run.num_failures == 0
    assert all(name in vars(run) for name in ray_compat.METRICS)
    of_trial = inspect.getsource(ray_trial.Trial.__init__)
    assert all(f"self.{name} = " in of_trial for name in ("__unresolved_config", "evaluated_params", "experiment_tag"))
    ray_compat.forward_no_credentials()
    assert not [name for name in class_cache.ENV_VARS_TO_PROPAGATE if "SECRET" in name]
    assert "ENV_VARS_TO_PROPAGATE" in inspect.getsource(class_cache._ActorClassCache.get)
    assert "signal.signal(signal.SIGINT, original_handler)" in inspect.getsource(ray_tune._setup_signal_catching)
    bracket: Any = _Bracket(1, 9, 3, 0)  # type: ignore[no-untyped-call]
    assert [recorded for _, recorded in bracket._rungs] == [{}] * 3
