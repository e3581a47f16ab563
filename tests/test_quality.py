"""Searches on cells whose best is known: the samplers and schedulers do what they are chosen for."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import TrialScheduler
from scipy import stats

import analysis
from study.spec import Spec, check
from study.tuning.samplers import Design
from study.tuning.schedulers import Earlier, Group, Halving, scheduler
from study.tuning.searcher import TruthfulSearch
from study.tuning.space import Space, settings
from tests.fakes.world import World
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
    searched = spec(tuning={"sampler": sampler, "seed": seed, "fair": False})
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
    design = Design(searched)
    finals = {number: loss(cell(design, number)) for number in range(80)}
    curves = {number: [curve(final, part) for part in range(1, PARTS + 1)] for number, final in finals.items()}
    completed, spent = run_all(searched, curves, dict.fromkeys(curves, ADAM))
    best = min(finals, key=lambda number: finals[number])
    assert min(completed, key=lambda number: finals[number]) == best
    assert spent / (80 * PARTS) <= most


SIZES = {8: 8, 32: 32, 128: 128, "full": 1437}
BEST_SIZE = 128


def slow_start(design: Design, number: int) -> list[float]:
    """The losses of a cell like those of digits: an update is worth the same at each batch size, but epochs have fewer.

    In the end batches of 128 are best, and at a third of the budget those of 8 are far ahead.
    """
    here = design.cell(number)
    size = SIZES[here["batch_size"]]
    distance = abs(math.log2(size / BEST_SIZE)) + OPTIMIZERS.index(here["optimizer"]) + here["depth"]
    luck = np.random.default_rng(number).uniform(0, 1)
    final, updates = 0.1 * (1 + 0.2 * distance + luck), 1437 / size * np.arange(1, PARTS + 1)
    return list(final * (1 + 20 * np.exp(-8 * (updates * size / 1437 / PARTS)) * size**0.5))


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_every_batch_size_and_optimizer_keeps_the_same_share(name: str) -> None:
    """Compared with all others, hardly any trial with a large batch survives, although such a trial is the best."""
    sizes = {"batch_size": list(SIZES), "width": list(range(1, 9)), "depth": [1, 2]}
    searched = check(
        changed(
            workload={"data": "digits", "model": "mlp", "model_args": {"shape": "constant"}},
            search=sizes | {"optimizer": OPTIMIZERS[:3]},
            budget={"trials": 3 * 4 * 16, "epochs": PARTS},
            tuning={"sampler": "grid", "scheduler": name},
        )
    )
    design = Design(searched)
    cells = [design.cell(number) for number in range(searched.budget.trials)]
    groups = {number: (here["optimizer"], SIZES[here["batch_size"]]) for number, here in enumerate(cells)}
    curves = {number: slow_start(design, number) for number in groups}
    completed, _ = run_all(searched, curves, groups)
    kept = Counter(groups[number] for number in completed)
    assert all(2 / 16 <= kept[each] / 16 <= 10 / 16 for each in set(groups.values()))
    by_size = {size: sum(kept[each] for each in kept if each[1] == size) / 48 for size in SIZES.values()}
    assert max(by_size.values()) - min(by_size.values()) < 0.2
    best = min(curves, key=lambda number: curves[number][-1])
    assert groups[min(completed, key=lambda number: curves[number][-1])] == groups[best]
    assert groups[best][1] == BEST_SIZE
    together, _ = run_all(searched, curves, dict.fromkeys(curves, ADAM))
    assert sum(groups[number][1] == 1437 for number in together) <= 2
    assert best not in together


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_early_stopping_finds_the_best_batch_size_of_real_digits(tmp_path: Path) -> None:
    """Before, 85% of the trials with batches of 8 survived, and 4% of those with full ones."""
    tables = {
        "name": "digits",
        "workload": {"data": "digits", "model": "mlp"},
        "search": {
            "batch_size": [8, 32, 128, "full"],
            "optimizer": ["sgd", "adam"],
            "width": [8, 16, 32],
            "depth": [1, 2],
        },
        "lanes": {"rates": 6, "seeds": 3, "extensions": 0},
        "budget": {"trials": 48, "epochs": 9, "min_updates": 60},
        "confirm": False,
    }
    best = {}
    for name in ("none", "asha"):
        with World(tmp_path / name, tables | {"tuning": {"sampler": "grid", "scheduler": name}}) as world:
            world.finish()
            found = analysis.load(world.results())
        best[name] = analysis.rank(analysis.cells(found), found.maximize)["batch_size"].iloc[0]
        if name == "asha":
            survives = found.trials["outcome"] == "completed"
            shares = survives.groupby([found.trials["optimizer"], found.trials["batch_size"]]).mean()
            assert len(shares) == 8
            assert shares.between(0.1, 0.7).all()
    assert best["asha"] == best["none"]


def run_all(searched: Spec, curves: dict[int, list[float]], groups: dict[int, Group]) -> tuple[set[int], int]:
    """The trials that the scheduler of a spec lets complete on four workers, and the parts of the budget spent."""
    judge, waiting = scheduler(searched, "min", {}), list(curves)
    running: dict[int, int] = {}
    completed, spent = set[int](), 0
    while waiting or running:
        while waiting and len(running) < 4:
            number = waiting.pop(0)
            judge.on_trial_add(None, trial(number, str(number), groups[number]))
            running[number] = 0
        for number in list(running):
            running[number] += 1
            spent += 1
            part, one = running[number], trial(number, str(number), groups[number])
            result = {"report": part, "value": curves[number][part - 1], "training_iteration": part}
            if part == PARTS:
                completed.add(number)
                judge.on_trial_complete(None, one, result)
            elif judge.on_trial_result(None, one, result) != TrialScheduler.STOP:
                continue
            del running[number]
    return completed, spent


def cell(design: Design, number: int) -> dict[str, Any]:
    found = design.cell(number)
    return {**found, "settings": settings(found)}


ADAM = ("adam", 32)


def trial(number: int, name: str, group: Group = ADAM) -> Any:
    optimizer, batch_size = group
    config = {"trial": number, "optimizer": optimizer, "batch_size": batch_size}
    return SimpleNamespace(config=config, trial_id=name)


def told(judge: Halving, one: Any, part: int, value: float) -> str:
    return judge.on_trial_result(None, one, {"report": part, "value": value, "training_iteration": 1})


def test_a_scheduler_goes_on_as_if_it_had_seen_the_past() -> None:
    """A trial is judged by those of earlier sessions, and not twice at a rung that it has passed."""
    past = {number: Earlier(ADAM, dict.fromkeys((1, 2, 3), float(number))) for number in range(6)}
    past |= {number: Earlier(("sgd", 32), dict.fromkeys((1, 2, 3), -99.0)) for number in range(10, 16)}  # no rivals
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


def test_a_diverged_trial_is_no_measure_for_others() -> None:
    """A rung with NaN alone has no cutoff: numpy would warn."""
    judge = Halving(PARTS, 1, "min", {})
    lost, first, second = (trial(number, str(number)) for number in range(3))
    for one in (lost, first, second):
        judge.on_trial_add(None, one)
    assert told(judge, lost, 1, math.nan) == TrialScheduler.CONTINUE
    judge.on_trial_complete(None, lost, {"report": 1, "value": math.nan})
    assert told(judge, first, 1, 1.0) == TrialScheduler.CONTINUE
    assert told(judge, second, 1, 2.0) == TrialScheduler.STOP


def test_nobody_is_stopped_after_the_budget() -> None:
    judge = Halving(3, 1, "min", {})
    for number in range(9):
        one = trial(number, str(number))
        judge.on_trial_add(None, one)
        assert told(judge, one, 3, float(number)) == TrialScheduler.CONTINUE


def test_a_trial_that_was_stopped_stays_so_when_it_runs_again() -> None:
    """Even if it would pass its rung today."""
    past = {number: Earlier(ADAM, {1: float(number)}) for number in range(6)}
    past |= {6: Earlier(ADAM, {1: 0.5, 2: 0.5}), 7: Earlier(ADAM, {1: 0.0, 2: 0.0}, stopped=2)}
    judge = Halving(PARTS, 1, "min", past)
    for number, ends in ((6, None), (7, 2)):
        one = trial(number, f"again-{number}")
        judge.on_trial_add(None, one)
        said = [told(judge, one, part, past[number].reported[1]) for part in (1, 2, 3, 4)]
        stops = [answer == TrialScheduler.STOP for answer in said]
        assert stops == [bool(ends) and part >= ends for part in (1, 2, 3, 4)]
