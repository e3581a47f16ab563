"""Searches on cells whose best is known: the samplers and schedulers do what they are chosen for."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import TrialScheduler
from scipy import stats

from study.spec import Spec, check
from study.tuning.samplers import Design
from study.tuning.schedulers import Halving, scheduler
from study.tuning.searcher import TruthfulSearch
from study.tuning.space import Space, settings
from tests.test_spec import changed

OPTIMIZERS = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
PARTS = 27


def spec(**changes: Any) -> Spec:
    """A space of some 10 million cells."""
    sizes = {"width": {"low": 1, "high": 1024, "log": True}, "depth": {"low": 1, "high": 9}}
    tables = changed(
        search={**sizes, "batch_size": {"low": 1, "high": 4096, "log": True}, "optimizer": OPTIMIZERS},
        workload={"data": "cubic", "model": "mlp", "model_args": {"shape": "constant"}},
        search__settings={"adam": {"beta1": {"low": 0.0, "high": 0.99}}},
        lanes={"rates": 1, "seeds": 1, "extensions": 0, "refine": 0},
    )
    for section, values in changes.items():
        tables[section] = tables.get(section, {}) | values
    return check(tables)


def loss(config: dict[str, Any]) -> float:
    """A closed form: the best cell is adam with beta1 = 0.9, width 200, depth 3, batch size 30; its loss is 1."""
    distance = [
        math.log2(config["width"] / 200) / 4,
        (config["depth"] - 3) / 3,
        math.log2(config["batch_size"] / 30) / 4,
        (OPTIMIZERS.index("adam") != OPTIMIZERS.index(config["optimizer"])) * 0.8,
        (config["settings"].get("beta1", 0.9) - 0.9) * 2,
    ]
    return 1 + sum(d**2 for d in distance)


def best_found(sampler: str, seed: int, trials: int) -> float:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = spec(tuning={"sampler": sampler, "seed": seed})
    searcher = TruthfulSearch(Space(searched, "", ""), optuna.create_study())
    values = []
    for number in range(trials):
        config = searcher.suggest("")
        assert config
        values.append(loss(config))
        searcher.end(number, "completed", {"value": values[-1]})
    return min(values)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_tpe_beats_random_at_100_trials() -> None:
    found = {name: np.array([best_found(name, seed, 100) for seed in range(20)]) for name in ("tpe", "random")}
    assert found["tpe"].mean() < found["random"].mean()
    assert stats.wilcoxon(found["tpe"], found["random"], alternative="less").pvalue < 0.01


def curve(final: float, part: int) -> float:
    """The loss after a part of the budget: it falls towards that of the cell, the faster the better the cell."""
    return final * (1 + 3 * final * math.exp(-part / 4))


@pytest.mark.parametrize(("name", "most"), [("asha", 0.4), ("hyperband", 0.7)])
def test_early_stopping_finds_the_same_best_for_less(name: str, most: float) -> None:
    """Four workers in turn, and the scheduler that a study has; without one every trial costs its whole budget."""
    searched = spec(budget={"trials": 80, "epochs": PARTS}, tuning={"sampler": "qmc", "scheduler": name, "seed": 1})
    judge = scheduler(searched, "min", {})
    design, waiting = Design(searched), list(range(80))
    finals = {number: loss(cell(design, number)) for number in waiting}
    running: dict[int, int] = {}
    completed, spent = set[int](), 0
    while waiting or running:
        while waiting and len(running) < 4:
            number = waiting.pop(0)
            judge.on_trial_add(None, trial(number, str(number)))
            running[number] = 0
        for number in list(running):
            running[number] += 1
            spent += 1
            part = running[number]
            result = {"report": part, "value": curve(finals[number], part), "training_iteration": part}
            if part == PARTS:
                completed.add(number)
                judge.on_trial_complete(None, trial(number, str(number)), result)
            elif judge.on_trial_result(None, trial(number, str(number)), result) != TrialScheduler.STOP:
                continue
            del running[number]
    best = min(finals, key=lambda number: finals[number])
    assert min(completed, key=lambda number: finals[number]) == best
    assert spent / (80 * PARTS) <= most


def cell(design: Design, number: int) -> dict[str, Any]:
    found = design.cell(number)
    return {**found, "settings": settings(found)}


def trial(number: int, name: str) -> Any:
    return SimpleNamespace(config={"trial": number}, trial_id=name)


def told(judge: Halving, one: Any, part: int, value: float) -> str:
    return judge.on_trial_result(None, one, {"report": part, "value": value, "training_iteration": 1})


def test_a_scheduler_goes_on_as_if_it_had_seen_the_past() -> None:
    """A trial is judged by those of earlier sessions, and not twice at a rung that it has passed."""
    past = {number: {1: float(number), 2: float(number), 3: float(number)} for number in range(6)}
    for brackets in (1, 3):
        whole, again = Halving(PARTS, brackets, "min", {}), Halving(PARTS, brackets, "min", past)
        for number in range(6):
            one = trial(number, f"id-{number}")
            whole.on_trial_add(None, one)
            for part in (1, 2, 3):
                told(whole, one, part, float(number))
        for number in (5, 0):
            one = trial(number, f"other-{number}")
            again.on_trial_add(None, one)
            assert told(again, one, 4, 99.0) == TrialScheduler.CONTINUE
        for number, value in ((6, 2.5), (7, 1.5), (8, -1.0), (9, 50.0)):
            one = trial(number, f"new-{number}")
            decisions = []
            for judge in (whole, again):
                judge.on_trial_add(None, one)
                decisions.append(told(judge, one, 3, value))
            assert decisions[0] == decisions[1]


def test_nobody_is_stopped_after_the_budget() -> None:
    judge = Halving(3, 1, "min", {})
    for number in range(9):
        one = trial(number, str(number))
        judge.on_trial_add(None, one)
        assert told(judge, one, 3, float(number)) == TrialScheduler.CONTINUE


def test_a_trial_that_was_stopped_stays_so_when_it_runs_again() -> None:
    """Even if it would pass its rung today."""
    past = {number: {1: float(number)} for number in range(6)} | {6: {1: 0.5, 2: 0.5}, 7: {1: 0.0, 2: 0.0}}
    judge = Halving(PARTS, 1, "min", past, stopped={7: 2})
    for number, ends in ((6, None), (7, 2)):
        one = trial(number, f"again-{number}")
        judge.on_trial_add(None, one)
        said = [told(judge, one, part, past[number][1]) for part in (1, 2, 3, 4)]
        stops = [answer == TrialScheduler.STOP for answer in said]
        assert stops == [bool(ends) and part >= ends for part in (1, 2, 3, 4)]
