"""The trainables, driven as Ray Tune drives them, without a cluster."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.statistics import tuned_rates
from trainables.rules import RULES
from trainables.stack import Stack, grid
from trainables.tune import TRAINABLES, CNNTrainable, LaneTrainable, MLPTrainable, Trial, tuned

CONFIG: dict[str, Any] = {
    "optimizer": "adam",
    "batch_size": 32,
    "width": 8,
    "depth": 1,
    "data": "linear",
    "model": "mlp",
    "rates": (1e-3, 1e-1, 3),
    "seeds": (0, 1),
    "budget": {"epochs": 4},
    "dtype": "float64",
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def numbers(trainable: LaneTrainable, steps: int) -> list[Any]:
    """What so many steps report, times aside."""
    results = [trainable.train() for _ in range(steps)]
    return [
        (r["value"], r["learning_rate"], r["update"], [(p.update, p.lanes, p.values) for p in r["payload"].points])
        for r in results
    ]


def test_a_trial_reports_once_an_epoch_and_is_then_done() -> None:
    trainable = MLPTrainable(CONFIG)
    results = [trainable.train() for _ in range(4)]
    assert [r["done"] for r in results] == [False, False, False, True]
    assert [r["outcome"] for r in results] == ["running"] * 3 + ["completed"]
    assert [r["epoch"] for r in results] == [1, 2, 3, 4]
    assert [r["examples"] for r in results] == [100, 200, 300, 400]
    rows = results[-1]["payload"].lanes
    assert [(row["learning_rate"], row["seed"]) for row in rows] == [
        (pytest.approx(rate), seed) for rate in (1e-3, 1e-2, 1e-1) for seed in (0, 1)
    ]
    assert all(row["test_loss"] > 0 and row["test_accuracy"] is None for row in rows)
    assert all(row["test_loss"] is None for row in results[0]["payload"].lanes)


def test_a_reused_actor_gives_the_numbers_of_a_new_one() -> None:
    other = {**CONFIG, "optimizer": "momentum", "batch_size": 1, "width": 4, "data": "cubic"}
    reused = MLPTrainable(CONFIG)
    reused.train()
    assert reused.reset(dict(other))
    assert numbers(reused, 1) == numbers(MLPTrainable(other), 1)


def test_a_saved_trial_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = (MLPTrainable(CONFIG) for _ in range(3))
    undisturbed = numbers(whole, 4)
    begun = numbers(first, 2)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    first.save_checkpoint(str(folder))
    assert "payload" not in first._last_result  # it would travel with every checkpoint
    second.load_checkpoint(str(folder))
    assert begun + numbers(second, 2) == undisturbed
    assert torch.equal(second.stack.parameters, whole.stack.parameters)


def test_a_trial_whose_lanes_all_diverge_says_so_and_has_no_value() -> None:
    result = MLPTrainable({**CONFIG, "optimizer": "sgd", "rates": (1e200, 1e201, 2)}).train()
    assert result["done"]
    assert result["outcome"] == "diverged"
    assert math.isnan(result["value"])
    assert result["learning_rate"] is None
    assert all(row["validation_loss"] is None and row["diverged_update"] for row in result["payload"].lanes)


def test_each_family_has_its_trainable() -> None:
    assert TRAINABLES["mlp"] is TRAINABLES["linear"] is MLPTrainable
    assert TRAINABLES["cnn"] is CNNTrainable
    assert "CNNTrainable trains cnn, not 'mlp'" in CNNTrainable(CONFIG).train()["error"]
    cnn = {**CONFIG, "data": "digits", "model": "cnn", "model_args": {"kernel": 3}, "metric": "accuracy"}
    result = CNNTrainable({**cnn, "width": 2}).train()
    assert 0 < result["value"] <= 1


def test_a_trial_says_how_it_was_made_and_what_it_gave_up() -> None:
    config = {**CONFIG, "rates": (1e-4, 1e-1, 4), "budget": {"epochs": 8}, "halving": True, "every_update": True}
    trainable = MLPTrainable(config)
    results = [trainable.train() for _ in range(8)]
    assert (results[-1]["engine"], results[-1]["lanes_at_once"], results[-1]["lanes"]) == ("eager", 8, 8)
    rows = results[-1]["payload"].lanes
    # 4 rates are halved after 2 and 4 of 8 epochs of 4 updates.
    assert sorted(row["stopped_update"] or 32 for row in rows) == [8] * 4 + [16] * 2 + [32] * 2
    assert [row["updates"] for row in rows] == [row["stopped_update"] or 32 for row in rows]
    updates = [when[0] for r in results for trace in r["payload"].traces for when, *_ in trace.updates()]
    assert updates == list(range(1, 33))
    assert not any(key[0] == "batch" for r in results for point in r["payload"].points for key in point.values)
    survivor = {row["learning_rate"] for row in rows if row["stopped_update"] is None}
    assert {results[-1]["learning_rate"]} == survivor


@pytest.mark.parametrize("settings", [{"momentum": 0.5}, {"beta1": 0.8}])
def test_settings_are_the_optimizers(settings: dict[str, float]) -> None:
    optimizer = "momentum" if "momentum" in settings else "adam"
    result = MLPTrainable({**CONFIG, "optimizer": optimizer, "settings": settings}).train()
    assert result["outcome"] == "running"
    other = MLPTrainable({**CONFIG, "optimizer": "sgd", "settings": settings}).train()
    assert other["outcome"] == "failed"
    assert "sgd has no setting" in other["error"]


@pytest.mark.parametrize("optimizer", ["Muon", "LBFGS"])
def test_an_optimizer_without_a_rule_trains_and_resumes(optimizer: str, tmp_path: Path) -> None:
    config = {**CONFIG, "optimizer": optimizer}
    whole, first, second = (MLPTrainable(config) for _ in range(3))
    expected = numbers(whole, 4)
    found = numbers(first, 2)
    first.save_checkpoint(str(tmp_path))
    second.load_checkpoint(str(tmp_path))
    assert found + numbers(second, 2) == expected


def test_the_default_grid_is_the_rules_range() -> None:
    found = Trial.of({"optimizer": "sgd", "batch_size": 1, "seeds": (7,), "surprise": 1}).lanes()
    assert (found[0].learning_rate, found[-1].learning_rate) == pytest.approx(RULES["sgd"].rates)
    assert len(found) == 8


def stack_with(metric: str, values: list[list[float]]) -> Stack:
    """A stack whose last validation values are those, rates x seeds."""
    configurations = grid(0.01, 1.0, len(values), range(len(values[0])))
    empty = torch.zeros(len(configurations), 1)
    stack = Stack(RULES["sgd"], configurations, list(range(len(configurations))), empty, {}, [])
    stack.last["validation", metric] = np.array(values).flatten()
    return stack


def test_a_trial_ends_once_no_rate_counts() -> None:
    # Of two seeds at one rate, one diverges: the cell has no tuned rate, and never will.
    trainable = MLPTrainable({**CONFIG, "rates": (1e-2, 1e-2, 1), "budget": {"epochs": 4}})
    trainable.train()
    trainable.stack.parameters[0] = math.inf
    result = trainable.train()
    assert (result["done"], result["outcome"], result["finished"]) == (True, "diverged", False)
    assert [bool(row["diverged_update"]) for row in result["payload"].lanes] == [True, False]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_tuned_rate_is_the_one_that_the_analysis_finds(metric: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        # Coarse values, and the same ones in another order, so that rates often tie.
        values = random.choice([0.1, 0.3, 0.7], (4, 3))
        values[1] = random.permutation(values[0])
        values[random.random((4, 3)) < 0.1] = math.nan
        stack = stack_with(metric, values.tolist())
        frame = pd.DataFrame(
            {
                "trial": 0,
                "seed": [lane.seed for lane in stack.lanes],
                "learning_rate": [lane.learning_rate for lane in stack.lanes],
                "outcome": np.where(np.isnan(values.flatten()), "diverged", "completed"),
                "stopped_update": None,
                f"validation_{metric}": values.flatten(),
            }
        )
        rate, value = tuned(stack, metric, 1000)
        theirs = tuned_rates(frame, metric, 1000)
        if rate is None:
            assert math.isnan(value)
            assert theirs.isna().all()
        else:
            assert rate == theirs[0]


def test_a_rate_counts_only_if_every_seed_survived() -> None:
    stack = stack_with("loss", [[0.5, 0.5], [0.1, math.nan], [0.3, 0.6]])
    rate, value = tuned(stack, "loss", 100)
    assert rate == pytest.approx(1.0)
    assert value == pytest.approx(math.sqrt(0.18))
    assert tuned(stack_with("loss", [[math.nan, 0.1]]), "loss", 100)[0] is None


def test_equal_rates_give_the_lower_one_and_no_error_stays_finite() -> None:
    assert tuned(stack_with("accuracy", [[1.0], [1.0]]), "accuracy", 100) == (0.01, pytest.approx(1.0))
    assert tuned(stack_with("loss", [[0.0], [0.0]]), "loss", 100)[1] == pytest.approx(0.0)
