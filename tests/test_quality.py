"""Searches on cells whose best is known: the samplers and schedulers do what they are chosen for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from ray import tune
from ray.tune.result import DONE
from ray.tune.schedulers import TrialScheduler
from scipy import stats

import analysis
from study import cluster, search
from study.outcomes import TruthfulSearch
from study.schedulers import Halving
from study.space import Space
from study.spec import Spec, check
from tests.test_spec import changed
from trainables import tune as trainables_tune
from trainables.tune import Payload

OPTIMIZERS = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
PARTS = 27


def spec(**changes: Any) -> Spec:
    """A space of some 10 million cells."""
    sizes = {"width": {"low": 1, "high": 1024, "log": True}, "depth": {"low": 1, "high": 9}}
    tables = changed(
        search={**sizes, "batch_size": {"low": 1, "high": 4096, "log": True}, "optimizer": OPTIMIZERS},
        workload={"data": "cubic", "model": "mlp", "model_args": {"shape": "constant"}},
        search__settings={"adam": {"beta1": {"low": 0.0, "high": 0.99}}},
        lanes={"rates": 1, "seeds": 1, "extensions": 0},
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
    searcher = TruthfulSearch(Space(searched, "", Path()), optuna.create_study())
    values = []
    for number in range(trials):
        config = searcher.suggest("")
        assert config
        values.append(loss(config))
        searcher.end(number, "completed", {"value": values[-1]})
    return min(values)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_tpe_beats_random_at_100_trials() -> None:
    found = {name: np.array([best_found(name, seed, 100) for seed in range(20)]) for name in ("tpe", "random")}
    assert found["tpe"].mean() < found["random"].mean()
    assert stats.wilcoxon(found["tpe"], found["random"], alternative="less").pvalue < 0.01


class Planted(tune.Trainable):
    """A trial that trains nothing: its loss falls towards that of its cell, the faster the better the cell."""

    def setup(self, config: dict[str, Any]) -> None:
        self.settings, self.part, self.final = config, 0, loss(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.part += 1
        value = self.final * (1 + 3 * self.final * math.exp(-self.part / 4))
        ended = self.part == PARTS
        return {
            "value": value, "learning_rate": 0.1, "outcome": "completed" if ended else "running", "finished": ended,
            "report": self.part, "extending": False, "extensions": 0, "update": self.part, "epoch": float(self.part),
            "payload": Payload([], [], [], whole=self.part == 1), DONE: ended,
        }  # fmt: skip


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_early_stopping_finds_the_same_best_for_less(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trainables_tune.TRAINABLES, "mlp", Planted)
    monkeypatch.chdir(tmp_path)
    trials = 80
    searched = spec(
        budget={"trials": trials, "epochs": PARTS}, tuning={"sampler": "qmc", "scheduler": scheduler, "seed": 1}
    )
    with cluster.connected(searched, None):
        search.session(searched, tmp_path / "results", tmp_path, 2, "", show="quiet")
    found = analysis.load(tmp_path / "results").trials
    values = {
        row["trial"]: loss({**row, "settings": json.loads(row["settings"] or "{}")}) for row in found.to_dict("records")
    }
    assert set(found["outcome"]) == {"completed", "stopped"}
    completed = found[found["outcome"] == "completed"]
    assert completed.loc[completed["value"].idxmin(), "trial"] == min(values, key=lambda trial: values[trial])
    share = found["epochs"].sum() / (trials * PARTS)
    assert share <= (0.4 if scheduler == "asha" else 0.7), share
    stopped = found[found["outcome"] == "stopped"]
    assert (stopped["epochs"] < PARTS).all()
    assert (stopped["reported"].map(len) == 0).all()  # this trainable keeps none


def trial(number: int, name: str) -> Any:
    return SimpleNamespace(config={"trial": number}, trial_id=name)


def told(scheduler: Halving, one: Any, part: int, value: float) -> str:
    return scheduler.on_trial_result(None, one, {"report": part, "value": value, "training_iteration": 1})


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
            for scheduler in (whole, again):
                scheduler.on_trial_add(None, one)
                decisions.append(told(scheduler, one, 3, value))
            assert decisions[0] == decisions[1]


def test_nobody_is_stopped_after_the_budget() -> None:
    scheduler = Halving(3, 1, "min", {})
    for number in range(9):
        one = trial(number, str(number))
        scheduler.on_trial_add(None, one)
        assert told(scheduler, one, 3, float(number)) == TrialScheduler.CONTINUE
