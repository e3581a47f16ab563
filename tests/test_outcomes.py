"""What Optuna is told, case by case; tests/test_search.py has real trials end in these ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from study.outcomes import TruthfulSearch, outcome
from study.search import _sampler, planned_trials
from study.space import Space
from study.spec import check
from tests.test_spec import GOOD, changed

RUNNING = {"outcome": "running", "value": 0.5, "training_iteration": 1}
CASES: dict[str, tuple[dict[str, Any] | None, bool, str, TrialState, float | None]] = {
    "completed": ({**RUNNING, "outcome": "completed", "value": 0.25}, False, "completed", TrialState.COMPLETE, 0.25),
    "stopped": (RUNNING, False, "stopped", TrialState.PRUNED, 0.5),
    "diverged": ({**RUNNING, "outcome": "diverged", "value": math.nan}, False, "diverged", TrialState.FAIL, None),
    "raised": (None, True, "failed", TrialState.FAIL, None),
    "out of memory": (
        {**RUNNING, "outcome": "out of memory", "value": math.nan},
        False,
        "out of memory",
        TrialState.FAIL,
        None,
    ),
    "interrupted": (None, False, "interrupted", TrialState.FAIL, None),
}


def search(sampler: optuna.samplers.BaseSampler | None = None) -> TruthfulSearch:
    return TruthfulSearch(
        Space(check(GOOD), "/data"),
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        storage=optuna.storages.InMemoryStorage(),
        study_name="s",
        mode="min",
    )


@pytest.mark.parametrize(("result", "error", "name", "state", "value"), CASES.values(), ids=CASES)
def test_every_end_has_its_state(
    result: dict[str, Any] | None, error: bool, name: str, state: TrialState, value: float | None
) -> None:
    searcher = search()
    assert searcher.suggest("a")["trial"] == 0
    searcher.on_trial_complete("a", result, error)
    (trial,) = searcher._study.trials
    assert trial.state == state
    assert trial.value == value
    assert trial.user_attrs["outcome"] == name == outcome(result, error=error)


def test_the_last_intermediate_value_is_reported_too() -> None:
    searcher = search()
    searcher.suggest("a")
    searcher.on_trial_result("a", {**RUNNING, "value": 0.9})
    searcher.on_trial_complete("a", {**RUNNING, "value": 0.4, "training_iteration": 2})
    (trial,) = searcher._study.trials
    assert trial.intermediate_values == {1: 0.9, 2: 0.4}
    assert trial.value == 0.4


def test_interrupting_leaves_nothing_running() -> None:
    searcher = search()
    for name in ("a", "b"):
        searcher.suggest(name)
    searcher.interrupt()
    assert [trial.state for trial in searcher._study.trials] == [TrialState.FAIL] * 2


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "grid"])
def test_every_sampler_asks_and_tells_to_the_end(name: str) -> None:
    spec = check(changed(tuning={"sampler": name, "seed": 1}, budget__trials=30))
    searcher, seen = search(_sampler(spec)), []
    for number in range(planned_trials(spec)):
        cell = searcher.suggest(str(number))
        seen.append(tuple(cell[key] for key in ("width", "batch_size", "optimizer")))
        searcher.on_trial_complete(str(number), {**CASES["completed"][0], "value": 1 / (1 + number)})
    assert {trial.state for trial in searcher._study.trials} == {TrialState.COMPLETE}
    assert len(seen) == (12 if name == "grid" else 30)
    assert len(set(seen)) == 12 or name != "grid"


def test_the_searcher_survives_ray_tunes_snapshots(tmp_path: Path) -> None:
    searcher = search()
    searcher.suggest("a")
    searcher.save(str(tmp_path / "searcher"))
    other = search()
    other.restore(str(tmp_path / "searcher"))
    other.on_trial_complete("a", CASES["completed"][0])
    assert other._study.trials[0].state == TrialState.COMPLETE


def test_a_space_suggests_what_the_spec_says() -> None:
    space = Space(check(changed(search__depth={"low": 1, "high": 3, "log": True})), "/data")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    configurations = [space(study.ask()) for _ in range(60)]
    assert {c["width"] for c in configurations} == {8, 16}
    assert {c["depth"] for c in configurations} == {1, 2, 3}
    assert {c["batch_size"] for c in configurations} == {1, 32, 10_000}
    assert {c["optimizer"] for c in configurations} == {"sgd", "adam"}
    assert [c["trial"] for c in configurations] == list(range(60))
    assert study.trials[0].distributions["depth"] == optuna.distributions.IntDistribution(1, 3, log=True)
    # What is fixed is not searched.
    fixed = Space(check(changed(search__width=8)), "/data")
    study = optuna.create_study()
    assert fixed(study.ask())["width"] == 8
    assert "width" not in study.trials[0].params
