"""What lanes predict for the test split, and their metric of each example: kept if asked for, changing nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.results import load
from analysis.schema import LANES, PREDICTIONS
from study.errors import SpecError
from study.results.tables import Table, TrialBuffer
from study.spec import check
from study.tuning.space import Space
from tests.conftest import trial_row, write_spec, write_tables
from tests.test_spec import changed
from trainables.lanes import evaluate
from trainables.lanes.rows import lane_rows
from trainables.tune import LaneTrainable, trainable
from trainables.workloads import data, models

CONFIG: dict[str, Any] = {
    "optimizer": "adam", "batch_size": 32, "width": 2, "depth": 1, "data": "digits", "model": "cnn",
    "model_args": {"kernel": 3}, "metric": "accuracy", "rates": (1e-3, 1e-1, 3), "seeds": (0, 1),
    "budget": {"epochs": 2}, "device": "cpu", "checkpoint_seconds": 0.0,
}  # fmt: skip


def run(config: dict[str, Any], steps: int = 2) -> tuple[LaneTrainable, TrialBuffer, list[dict[str, Any]]]:
    trial, course = trainable(config["model"])(config), TrialBuffer()
    for _ in range(steps):
        course.take(0, trial.train()["payload"])
    return trial, course, course.lanes


def test_they_are_what_the_networks_see_and_change_no_number() -> None:
    plain, without, rows = run(CONFIG)
    asked, course, same = run({**CONFIG, "predictions": True})
    assert torch.equal(plain.run.stack.parameters, asked.run.stack.parameters)
    assert [course.curves[name] for name in ("update", "value")] == [without.curves[n] for n in ("update", "value")]
    assert not without.predictions["lane"]
    test = data.load("digits", standardize=True).test
    columns = {name: np.array(values).reshape(6, len(test)) for name, values in course.predictions.items()}
    assert (columns["lane"] == np.arange(6)[:, None]).all()
    assert (columns["example"] == np.arange(len(test))).all()
    assert (columns["target"] == test.targets.numpy()).all()
    network = models.build("cnn", (1, 8, 8), 10, width=2, depth=1, kernel=3)
    for lane, row in enumerate(same):
        torch.nn.utils.vector_to_parameters(asked.run.stack.parameters[lane], network.parameters())
        with torch.no_grad():
            outputs = network(test.inputs).softmax(1)
        np.testing.assert_allclose(columns["probability"][lane], outputs.amax(1), rtol=1e-4)
        assert (columns["predicted"][lane] == columns["target"][lane]).mean() == pytest.approx(row["test_accuracy"])
        assert row["test_accuracy"] == rows[lane]["test_accuracy"]


def test_a_trial_that_extends_its_grid_tells_of_all_lanes_whatever_interrupts_it(tmp_path: Path) -> None:
    config = {**CONFIG, "predictions": True, "rates": (1e-4, 1e-3, 2), "extensions": 1}
    _, whole, rows = run(config, 4)
    assert sorted(set(whole.predictions["lane"])) == list(range(len(rows))) != list(range(4))
    for steps in (2, 3):
        interrupted = {**config, "checkpoint": str(tmp_path / f"{steps}.pt")}
        run(interrupted, steps)
        _, course, _ = run(interrupted, 4 - steps)
        assert course.predictions == whole.predictions


def test_they_fill_a_table_of_their_own(tmp_path: Path) -> None:
    write_spec(tmp_path)
    write_tables(tmp_path, trials=[trial_row()], lanes=[], curves=[])
    assert load(tmp_path).predictions.empty
    assert not (tmp_path / "predictions").exists()
    _, course, _ = run({**CONFIG, "predictions": True})
    Table("predictions", tmp_path).append(course.predictions)
    found = load(tmp_path).predictions
    assert list(found.columns) == PREDICTIONS.names
    assert len(found) == 6 * 360


def test_a_regression_has_none() -> None:
    with pytest.raises(SpecError, match=r"recording\.predictions = true: needs a classification"):
        check(changed(recording={"predictions": True}))


VALUES: dict[str, Any] = {**CONFIG, "test_values": True, "rates": (1e-2, 1e-2, 1), "seeds": (0, 1, 2)}
CUBIC = {"data": "cubic", "model": "mlp", "model_args": {}, "width": 4, "metric": "loss"}


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({}, "native"),
        ({"engine": "eager"}, "eager"),
        ({"engine": "cuda-graph"}, "cuda-graph"),
        ({"metric": "loss"}, "native"),
        ({"optimizer": "ASGD"}, "solo"),
        ({"score": "tests.user_code:certain"}, "native"),
        ({"loss": "tests.user_code:smoothed", "metric": "loss"}, "eager"),
        (CUBIC, "native"),
        ({**CUBIC, "engine": "eager", "dtype": "float64"}, "eager"),
        ({**CUBIC, "model": "quadratic", "data": "quadratic", "width": 0, "depth": 0, "standardize": False}, "native"),
        ({"model": "tests.user_code:Residual", "model_args": {}}, "vmap"),
        ({"model": "mlp", "model_args": {}, "width": 800}, "native"),
    ],
)  # fmt: skip
def test_a_lane_keeps_the_metric_of_each_test_example(changes: dict[str, Any], engine: str) -> None:
    config = {**VALUES, **changes}
    trial, _, rows = run(config)
    _, _, without = run({**config, "test_values": False})
    assert trial.run.engine_name == engine
    assert len(rows) == len(without) == 3
    name = f"test_{config['metric']}"
    for row, plain in zip(rows, without, strict=True):
        assert len(row["test_values"]) == len(trial.run.data.test)
        assert row["test_values"].astype(float).mean() == pytest.approx(row[name], rel=1e-6)
        assert row[name] == pytest.approx(plain[name], rel=1e-6)
        assert plain["test_values"] is None
        if name == "test_accuracy" and not config.get("score"):
            assert set(row["test_values"].tolist()) <= {0.0, 1.0}


def test_values_are_those_of_the_network_alone() -> None:
    trial, _, rows = run({**VALUES, **CUBIC, "data": "tests.user_code:pairs", "dtype": "float64"})
    network, test = trial.run.build().double(), trial.run.data.test
    for lane, row in enumerate(rows):
        torch.nn.utils.vector_to_parameters(trial.run.stack.parameters[lane], network.parameters())
        with torch.no_grad():
            errors = (network(test.inputs) - test.targets).square().mean(1)
        assert test.targets.shape[1] == 2
        np.testing.assert_allclose(row["test_values"], errors, rtol=1e-6)


def test_values_of_a_large_split_are_of_evenly_spaced_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, whole = run(VALUES)
    monkeypatch.setattr(evaluate, "TEST_VALUES", 5)
    _, _, some = run(VALUES)
    for row, all_of_it in zip(some, whole, strict=True):
        assert row["test_accuracy"] == all_of_it["test_accuracy"]
        assert row["test_values"].tolist() == all_of_it["test_values"][[0, 90, 180, 269, 359]].tolist()


def test_a_score_that_depends_on_the_batch_has_no_values() -> None:
    _, _, rows = run({**VALUES, "score": "tests.user_code:averaged"})
    assert [row["test_values"] for row in rows] == [None] * 3
    assert all(row["test_accuracy"] > 0 for row in rows)


def test_a_diverged_lane_has_no_values() -> None:
    _, _, rows = run({**VALUES, "optimizer": "sgd", "rates": (1e-2, 1e30, 2), "metric": "loss"})
    assert [row["test_values"] is None for row in rows] == [False] * 3 + [True] * 3


def test_values_travel_through_checkpoints_bit_for_bit(tmp_path: Path) -> None:
    config = {**VALUES, "rates": (1e-4, 1e-3, 2), "extensions": 1}
    _, _, whole = run(config, 4)
    for steps in (1, 3):
        interrupted = {**config, "checkpoint": str(tmp_path / f"{steps}.pt")}
        run(interrupted, steps)
        resumed, _, rows = run(interrupted, 4 - steps)
        assert len(resumed.run.stacks) == 2
        for row, undisturbed in zip(rows, whole, strict=True):
            assert row["test_values"].dtype == np.float32
            assert row["test_values"].tolist() == undisturbed["test_values"].tolist()
    state = resumed.run.stacks[0].state_dict()
    del state["test_values"]  # as an older program wrote it
    resumed.run.stacks[0].load_state_dict(state)
    assert [row["test_values"] is None for row in lane_rows(resumed.run.stacks)] == [True] * 6 + [False] * 3


def test_values_fill_a_column_of_the_lanes(tmp_path: Path) -> None:
    write_spec(tmp_path)
    write_tables(tmp_path, trials=[trial_row()], lanes=[], curves=[])
    _, _, rows = run(VALUES)
    made = [{**row, "trial": 0, "outcome": "completed"} for row in rows]
    Table("lanes", tmp_path).append({name: [row[name] for row in made] for name in LANES.names})
    found = load(tmp_path).lanes["test_values"]
    assert [values.tolist() for values in found] == [row["test_values"].tolist() for row in rows]


def test_only_confirmations_keep_values() -> None:
    cell = {"optimizer": "adam", "batch_size": 32, "width": 8, "depth": 1}
    spec = check(changed())
    assert Space(spec, "", "", {0: {"learning_rate": 0.1}}).configuration(cell, 0)["test_values"]
    assert not Space(spec, "", "").configuration(cell, 0)["test_values"]
