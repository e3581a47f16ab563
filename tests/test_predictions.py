"""What lanes see in the test split: kept if asked for, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.results import load
from analysis.schema import PREDICTIONS
from study.errors import SpecError
from study.results.tables import Table, TrialBuffer
from study.spec import check
from tests.conftest import trial_row, write_spec, write_tables
from tests.test_spec import changed
from trainables.tune import CNNTrainable
from trainables.workloads import data, models

CONFIG: dict[str, Any] = {
    "optimizer": "adam", "batch_size": 32, "width": 2, "depth": 1, "data": "digits", "model": "cnn",
    "model_args": {"kernel": 3}, "metric": "accuracy", "rates": (1e-3, 1e-1, 3), "seeds": (0, 1),
    "budget": {"epochs": 2}, "device": "cpu", "checkpoint_seconds": 0.0,
}  # fmt: skip


def run(config: dict[str, Any], steps: int = 2) -> tuple[CNNTrainable, TrialBuffer, list[dict[str, Any]]]:
    trainable, course = CNNTrainable(config), TrialBuffer()
    for _ in range(steps):
        course.take(0, trainable.train()["payload"])
    return trainable, course, course.lanes


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
