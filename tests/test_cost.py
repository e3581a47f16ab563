"""The seconds of one network trained alone: measured once for each kind of trial, without a trace in the lanes."""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from study.tuning.storage import values
from tests import user_code
from tests.test_predictions import CONFIG, run
from trainables.config import Budget
from trainables.lanes import cost, trial
from trainables.lanes.stack import Lane
from trainables.rules import named
from trainables.workloads import data, models
from trainables.workloads.criterion import Criterion

LANE = Lane(1e-4, 0)
SMALL: dict[str, Any] = {**CONFIG, "rates": (1e-3, 1e-2, 2), "checkpoint_seconds": 0.0}


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_MEASURED", {})


def measured(batch_size: int, **options: Any) -> float:
    digits = data.load("digits", standardize=True)
    build = partial(models.build, "mlp", digits.in_shape, 10, width=8, depth=1)
    return cost.update_seconds(
        build, named("adam"), digits.train, batch_size, LANE, Criterion("classification"), **options
    )


def test_it_is_the_time_of_the_ordinary_loop() -> None:
    for batch_size in (1, 32, 10_000):
        assert 1e-6 < measured(batch_size) < 1.0


def test_a_kind_of_trial_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count(1)
    monkeypatch.setattr(cost, "_timed", lambda *_, **__: float(next(counter)))
    assert [measured(size) for size in (32, 32, 16, 32, 16)] == [1.0, 1.0, 2.0, 1.0, 2.0]
    assert measured(32, drop_last=True) == 3.0


def test_a_kind_is_measured_again_a_few_times_and_its_shortest_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.chain([4.0, 3.0, 5.0, 2.0], itertools.repeat(6.0, cost.MOST_MEASUREMENTS - 2), [1.0])
    monkeypatch.setattr(cost, "_timed", lambda *_, **__: next(times))
    assert [measured(32, again=again) for again in (False, False, True, True, True)] == [4.0, 4.0, 3.0, 3.0, 2.0]
    assert {measured(32, again=True) for _ in range(20)} == {2.0}  # enough times were no shorter


def test_of_a_batch_that_takes_long_a_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def timed(build: Any, rule: Any, examples: Any, size: int, *_: Any, **__: Any) -> float:
        sizes.append(size)
        return size * 1e-6

    monkeypatch.setattr(cost, "_timed", timed)
    assert measured(10**6, multiplications=10**5) == pytest.approx(1077e-6)  # no batch is larger than the split
    assert measured(100, multiplications=10**9) == pytest.approx(100e-6)
    assert sizes == [666, 100]


def test_it_leaves_generators_and_lanes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    build = partial(user_code.Dropped, (1, 8, 8), 10, width=4, depth=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    digits = data.load("digits", standardize=True)
    cost.update_seconds(build, named("adam"), digits.train, 32, LANE, Criterion("classification"))
    assert torch.equal(torch.get_rng_state(), before)
    config = {**SMALL, "model": "tests.user_code:Dropped", "model_args": {}}
    with_it, _, _ = run(config)
    monkeypatch.setattr(trial, "update_seconds", lambda *_, **__: 1.0)
    without, _, _ = run(config)
    assert torch.equal(with_it.run.stack.parameters, without.run.stack.parameters)


def test_a_resumed_trial_keeps_its_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = itertools.count(1)
    monkeypatch.setattr(trial, "update_seconds", lambda *_, **__: float(next(counter)))
    config = {**SMALL, "checkpoint": str(tmp_path / "trial.pt")}
    first, _, _ = run(config, 1)
    resumed, _, _ = run(config, 0)
    assert first.run.update_seconds == resumed.run.update_seconds == 1.0
    assert resumed.train()["update_seconds"] == 1.0
    first.save_checkpoint(str(tmp_path))
    other, _, _ = run(SMALL, 0)
    assert other.run.update_seconds == 3.0  # it was measured again at the end of `resumed`
    other.load_checkpoint(str(tmp_path))
    assert other.run.update_seconds == 1.0
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    del state["update_seconds"]  # as an older program wrote it
    torch.save(state, tmp_path / "trial.pt")
    other.load_checkpoint(str(tmp_path))
    assert other.run.update_seconds == 4.0


def test_a_budget_in_seconds_fixes_the_updates_before_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    costs = iter((0.01, 0.03))
    monkeypatch.setattr(trial, "update_seconds", lambda *_, **__: next(costs))
    config = {**SMALL, "budget": {"seconds": 0.3}, "checkpoint": str(tmp_path / "trial.pt")}
    first, _, _ = run(config, 4)
    assert first.run.stack.update == 12
    resumed, _, rows = run(config, 6)
    assert resumed.run.stack.update == 30
    assert {row["updates"] for row in rows} == {30}
    assert all(row["test_accuracy"] > 0 for row in rows)
    whole, _, _ = run({**SMALL, "budget": {"updates": 30}}, 10)
    assert torch.equal(resumed.run.stack.parameters, whole.run.stack.parameters)


@pytest.mark.parametrize(("seconds", "least", "updates"), [(1.0, 0, 10), (1e-9, 0, 1), (1.0, 25, 25)])
def test_a_budget_in_seconds_makes_at_least_one_update(seconds: float, least: int, updates: int) -> None:
    budget = Budget(seconds=seconds, min_updates=least).in_updates(0.1)
    assert budget.total_updates(32, 1000) == updates
    assert Budget(epochs=2).in_updates(None) == Budget(epochs=2)


def test_a_trial_whose_network_does_not_train_alone_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(trial, "update_seconds", fails)
    trained, _, rows = run(SMALL)
    assert trained.run.update_seconds is None
    assert all(row["test_accuracy"] > 0 for row in rows)
    in_seconds, _, _ = run({**SMALL, "budget": {"seconds": 1.0}}, 0)
    result = in_seconds.train()
    assert (result["outcome"], result["done"]) == ("failed", True)
    assert "RuntimeError: no" in result["error"]


def test_the_search_minimizes_seconds_of_one_network() -> None:
    row = {"value": 0.5, "updates": 30, "train_seconds": 7.0}
    objectives = ["metric", "train_seconds"]
    assert values(objectives, row) == [0.5, 7.0]
    assert values(objectives, row | {"update_seconds": None}) == [0.5, 7.0]
    assert values(objectives, row | {"update_seconds": 0.1}) == [0.5, pytest.approx(3.0)]


@pytest.mark.nightly
def test_regimes_are_ordered_as_plain_torch_orders_them() -> None:
    cubic = data.load("cubic", standardize=True)
    build = partial(models.build, "mlp", cubic.in_shape, 1, width=16, depth=2)
    epochs, plain = {}, {}
    for batch_size in (1, 32, 10_000):
        updates = -(-10_000 // batch_size)
        each = cost.update_seconds(build, named("adam"), cubic.train, batch_size, LANE, Criterion("regression"))
        epochs[batch_size] = updates * each
        plain[batch_size] = updates * min(plain_seconds(build(), cubic.train, batch_size) for _ in range(20))
    assert epochs[1] > epochs[32] > epochs[10_000]
    assert plain[1] > plain[32] > plain[10_000]
    for batch_size, seconds in plain.items():
        assert 0.5 < epochs[batch_size] / seconds < 2


def plain_seconds(network: torch.nn.Module, examples: Any, batch_size: int, updates: int = 5) -> float:
    """Seconds per update of a loop as a user would write it."""
    optimizer, loss = torch.optim.Adam(network.parameters(), lr=1e-4), torch.nn.MSELoss()
    batches = torch.randperm(len(examples)).repeat(updates + 1).split(batch_size)[: updates + 1]
    ends = []
    for rows in batches:
        optimizer.zero_grad()
        loss(network(examples.inputs[rows]), examples.targets[rows]).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / updates
