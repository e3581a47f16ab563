"""What Optuna is told, case by case; tests/test_search.py has real trials end in these ways."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from analysis.schema import Outcome
from study.spec import Spec, check
from study.spec.changes import planned_trials
from study.tuning.samplers import Design
from study.tuning.schedulers import Earlier, group
from study.tuning.searcher import TruthfulSearch, outcome
from study.tuning.space import Space
from study.tuning.storage import directions
from tests.test_spec import changed

RUNNING = {"outcome": "running", "value": 0.5}
CASES: dict[str, tuple[dict[str, Any], str, TrialState, float | None]] = {
    "completed": ({**RUNNING, "outcome": "completed", "value": 0.25}, "completed", TrialState.COMPLETE, 0.25),
    "stopped": (RUNNING, "stopped", TrialState.PRUNED, 0.5),
    "diverged": ({**RUNNING, "outcome": "diverged", "value": math.nan}, "diverged", TrialState.FAIL, None),
    "raised": ({}, "failed", TrialState.FAIL, None),
    "no memory": ({"outcome": "out of memory", "value": math.nan}, "out of memory", TrialState.FAIL, None),
    "interrupted": ({}, "interrupted", TrialState.WAITING, None),
}


def search(spec: Spec | None = None, study: optuna.Study | None = None) -> TruthfulSearch:
    spec = spec or check(changed(tuning={"sampler": "random"}))
    towards = directions(spec.tuning.objectives, spec.workload.metric)
    return TruthfulSearch(Space(spec, "/data", "/checkpoints"), study or optuna.create_study(directions=towards))


@pytest.mark.parametrize(("result", "name", "state", "value"), CASES.values(), ids=CASES)
def test_outcome_maps_to_a_state_in_optuna(
    result: dict[str, Any], name: str, state: TrialState, value: float | None
) -> None:
    searcher = search()
    assert searcher.suggest("a")["trial"] == 0
    ended = Outcome.FAILED if name == "failed" else outcome(result)
    if result and not math.isnan(result["value"]):
        searcher.report(0, 1, result["value"])
    searcher.end(0, ended, result, "Traceback\nRuntimeError: why" if state == TrialState.FAIL else None)
    searcher.close()
    (trial,) = searcher.study.trials
    assert trial.state == state
    assert trial.value == value
    assert trial.user_attrs["outcome"] == name == ended
    assert trial.user_attrs.get("error") == ("RuntimeError: why" if state == TrialState.FAIL else None)


def test_report_stores_values_once_and_never_nan() -> None:
    searcher = search()
    searcher.suggest("a")
    for part, value in ((1, 0.9), (2, math.nan), (1, 0.9), (3, 0.4)):
        searcher.report(0, part, value)
    searcher.end(0, "stopped", {})
    (trial,) = searcher.study.trials
    assert trial.intermediate_values == {1: 0.9, 3: 0.4}
    assert trial.value == 0.4


def test_end_stores_all_objectives() -> None:
    objectives = ["metric", "train_seconds", "parameters"]
    spec = check(
        changed(workload={"data": "digits", "model": "mlp"}, tuning={"objectives": objectives, "scheduler": "none"})
    )
    searcher = search(spec)
    assert [d.name for d in searcher.study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    for number, ended in enumerate(("completed", "stopped", "diverged")):
        searcher.suggest("a")
        searcher.report(number, 1, 0.5)  # Optuna takes none of these here
        searcher.end(number, ended, {"value": 0.9, "train_seconds": 3.0, "parameters": 17})
    trials = searcher.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert trials[0].values == [0.9, 3.0, 17.0]
    assert [trial.number for trial in searcher.study.best_trials] == [0]


def run_through(spec: Spec, study: optuna.Study, trials: int) -> list[dict[str, Any]]:
    """So many trials with values that follow from the cell, each in a searcher of its own, as after a restart."""
    found = []
    for _ in range(trials):
        searcher = search(spec, study)
        config = searcher.suggest("a")
        assert config
        found.append(config)
        searcher.end(config["trial"], "completed", {"value": 1 / config["width"] + len(config["optimizer"])})
    return found


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "grid", "gp", "nsga2"])
def test_samplers_survive_a_restart_after_every_trial(name: str) -> None:
    spec = check(changed(tuning={"sampler": name, "seed": 1}, budget__trials=30))
    count = planned_trials(spec)
    assert count == (12 if name == "grid" else 30)
    study = optuna.create_study()
    found = run_through(spec, study, count)
    assert [config["trial"] for config in found] == list(range(count))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    cells = [(c["optimizer"], c["width"], c["batch_size"], tuple(c["seeds"])) for c in found]
    assert len(set(cells)) == count  # a cell that comes again has fresh seeds
    assert len({cell[:3] for cell in cells}) == 12 or name != "grid"
    # Restarts make no sampler begin again: with the same draws there would be few cells.
    assert len({cell[:3] for cell in cells}) >= 6
    if name in ("random", "qmc", "grid"):
        whole = search(spec)
        undisturbed = [whole.suggest("a") for _ in range(count)]
        assert undisturbed == found


def test_repeated_cell_gets_fresh_seeds() -> None:
    spec = check(changed(search={"width": 8, "depth": 1, "batch_size": 32, "optimizer": "sgd"}, lanes={"seeds": 3}))
    found = run_through(spec, optuna.create_study(), 3)
    assert [config["replicate"] for config in found] == [0, 1, 2]
    assert [config["seeds"] for config in found] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]


def test_interrupted_trial_keeps_its_number_and_cell() -> None:
    searcher = search()
    begun = [searcher.suggest("a") for _ in range(3)]
    for number, ended in enumerate(("completed", "interrupted", "interrupted")):
        searcher.end(number, ended, {"value": 1.0})
    # Others may be asked for, where a worker was lost between two trials.
    assert searcher.suggest("a")["trial"] == 3
    searcher.end(3, "completed", {"value": 1.0})
    searcher.close()
    again = search(study=searcher.study)
    assert [again.suggest("a") for _ in range(2)] == begun[1:]
    assert again.suggest("a")["trial"] == 4


def test_redone_trial_changes_nothing_in_optuna() -> None:
    searcher = search()
    first = searcher.suggest("a")
    searcher.end(0, "completed", {"value": 1.0})
    again = TruthfulSearch(searcher.space, searcher.study, redo=[0])
    assert again.suggest("a") == first
    again.report(0, 1, 7.0)
    again.end(0, "failed", {}, "a reason")
    (trial,) = again.study.trials
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 1.0, {})


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "grid", "gp", "nsga2"])
def test_fair_gives_equally_many_trials(name: str) -> None:
    own = {"adam": {"beta1": [0.8, 0.9]}}
    tables = changed(tuning={"sampler": name, "fair": True}, budget__trials=16, search__settings=own)
    found = run_through(check(tables), optuna.create_study(), 16)
    optimizers = [config["optimizer"] for config in found]
    assert optimizers == ["sgd", "adam"] * 8
    assert all(set(config["settings"]) == ({"beta1"} if config["optimizer"] == "adam" else set()) for config in found)


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "grid", "gp", "nsga2"])
def test_fair_replicates_take_turns_and_have_fresh_seeds(name: str) -> None:
    tables = changed(search={"width": 8, "depth": 1, "batch_size": [1, 32], "optimizer": ["sgd", "adam", "momentum"]})
    spec = check(tables | {"tuning": {"sampler": name}})
    found = run_through(spec, optuna.create_study(), 14)
    assert [config["optimizer"] for config in found] == (["sgd", "adam", "momentum"] * 5)[:14]
    seeds = [(config["optimizer"], config["batch_size"], seed) for config in found for seed in config["seeds"]]
    assert len(set(seeds)) == len(seeds)


FIRST: list[dict[str, Any]] = [
    {"optimizer": "adam", "batch_size": "full", "width": 16, "settings": {"beta1": 0.8}},
    {"optimizer": "adam", "batch_size": 1, "width": 16, "settings": {"beta1": 0.7}},
    {"optimizer": "sgd", "batch_size": 32, "width": 8},
]


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "nsga2"])
@pytest.mark.parametrize("fair", [True, False])
def test_enqueued_cells_are_tried_first_and_shares_stay_equal(name: str, fair: bool) -> None:
    tables = changed(search__settings={"adam": {"beta1": {"low": 0.5, "high": 0.9}}}, enqueue=FIRST)
    tables["search"]["optimizer"] = ["sgd", "adam", "momentum"]
    spec = check(tables | {"tuning": {"sampler": name, "fair": fair}, "budget": {"trials": 12, "epochs": 1}})
    study = optuna.create_study()
    found = run_through(spec, study, 12)
    cells = [(each["optimizer"], each["batch_size"], each["width"], each["settings"]) for each in found]
    assert cells[:3] == [
        ("adam", 10_000, 16, {"beta1": 0.8}), ("adam", 1, 16, {"beta1": 0.7}), ("sgd", 32, 8, {})
    ]  # fmt: skip
    assert study.trials[0].params == {"optimizer": "adam", "batch_size": "full", "width": 16, "adam.beta1": 0.8}
    if fair:
        turns = ["momentum", "sgd", "momentum", "sgd", "adam", "momentum", "sgd", "adam", "momentum"]
        assert [cell[0] for cell in cells[3:]] == turns
    assert all(cell[3] for cell in cells if cell[0] == "adam")


def test_enqueued_cells_leave_the_sequence_of_qmc_whole() -> None:
    search = {"width": [8, 16], "depth": 1, "batch_size": [1, 8, 32, "full"], "optimizer": ["sgd", "adam"]}
    tables = changed(search=search, tuning={"sampler": "qmc"}, budget={"trials": 19, "epochs": 1})
    first = [{"optimizer": "adam", "batch_size": 8, "width": 8}] * 2 + [
        {"optimizer": "sgd", "batch_size": 8, "width": 8}
    ]
    spec = check(tables | {"enqueue": first})
    cells = [Design(spec).cell(number) for number in range(3, 19)]
    for name, count in (("sgd", 9), ("adam", 7)):
        own, alone = ([c for c in each if c["optimizer"] == name] for each in (cells, _cells(check(tables), 18)))
        assert own == alone[:count]
        assert len(own) == count


def _cells(spec: Spec, count: int) -> list[dict[str, Any]]:
    return [Design(spec).cell(number) for number in range(count)]


@pytest.mark.parametrize("optimizers", [["sgd", "adam"], ["sgd", "momentum", "rmsprop", "adam"]])
def test_fair_qmc_gives_every_optimizer_the_same_cells(optimizers: list[str]) -> None:
    """In turns of one sequence each would have half of the batch sizes."""
    sizes = [8, 32, 128, "full"]
    search = {"width": [8, 16], "depth": [1, 2], "batch_size": sizes, "optimizer": optimizers}
    design = Design(check(changed(search=search, tuning={"sampler": "qmc"})))
    cells = [design.cell(number) for number in range(16 * len(optimizers))]
    for name in optimizers:
        own = [cell for cell in cells if cell["optimizer"] == name]
        assert Counter(cell["batch_size"] for cell in own) == dict.fromkeys(sizes, 4)
        assert [{**cell, "optimizer": ""} for cell in own] == [
            {**cell, "optimizer": ""} for cell in cells if cell["optimizer"] == optimizers[0]
        ]


def test_earlier_trials_have_the_groups_of_their_configurations() -> None:
    spec = check(changed(tuning={"sampler": "random", "scheduler": "asha"}, search__batch_size=["full"]))
    first = search(spec)
    configurations = [first.suggest("") for _ in range(4)]
    for number, config in enumerate(configurations[:3]):
        assert config
        first.report(number, 1, 0.5)
        if number == 2:
            first.stopped(number, 1)
    again = search(spec, first.study).earlier()
    assert again == {
        number: Earlier(group(config or {}), {1: 0.5}, 1 if number == 2 else None)
        for number, config in enumerate(configurations[:3])
    }
    assert {each.group[1] for each in again.values()} == {10_000}
    assert search(check(changed(search__batch_size=["full"])), first.study).earlier() == {}


def test_space_suggests_settings_only_with_their_optimizer() -> None:
    own = {"adam": {"beta1": {"low": 0.5, "high": 0.9}, "beta2": [0.9, 0.99]}}
    for name in ("tpe", "random", "qmc", "gp", "nsga2"):
        spec = check(changed(search__settings=own, tuning={"sampler": name}))
        study = optuna.create_study()
        for config in run_through(spec, study, 16):
            if config["optimizer"] == "sgd":
                assert config["settings"] == {}
            else:
                assert 0.5 <= config["settings"]["beta1"] <= 0.9
                assert config["settings"]["beta2"] in (0.9, 0.99)
        for trial in study.trials:
            assert ("adam.beta1" in trial.params) == (trial.params["optimizer"] == "adam")


def test_space_suggests_the_dimensions_of_the_spec() -> None:
    spec = check(changed(search__depth={"low": 1, "high": 3, "log": True}, tuning={"sampler": "random"}))
    searcher = search(spec)
    configurations = [searcher.suggest("a") for _ in range(60)]
    assert {c["width"] for c in configurations} == {8, 16}
    assert {c["depth"] for c in configurations} == {1, 2, 3}
    assert {c["batch_size"] for c in configurations} == {1, 32, 10_000}
    assert {c["optimizer"] for c in configurations} == {"sgd", "adam"}
    assert [c["trial"] for c in configurations] == list(range(60))
    depth = searcher.study.trials[0].distributions["depth"]
    assert depth == optuna.distributions.IntDistribution(1, 3, log=True)
    # What is fixed is not searched.
    fixed = search(check(changed(search__width=8)))
    assert fixed.suggest("a")["width"] == 8
    assert "width" not in fixed.study.trials[0].params
