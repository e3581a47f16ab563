"""DeepOBS's quadratic problem, from its numbers to the study of it: what was published must come out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis
from trainables.workloads import data, deepobs, models

# Test loss after so many epochs of SGD at 0.01585: mean over 10 seeds, with a standard deviation of about 0.2 of each.
# The start is exact, as no seed has a part in it.
START, PUBLISHED = 353.4468, {1: 105.3, 10: 93.0, 100: 87.4}
# Three standard errors of the difference between two such means.
TOLERANCE = 3 * 0.2 * (2 / 10) ** 0.5


def test_the_hessian_has_ten_large_eigenvalues_and_a_rotation() -> None:
    eigenvalues, rotation = deepobs.hessian()
    assert eigenvalues.shape == (100,)
    assert ((eigenvalues[:90] > 0) & (eigenvalues[:90] < 1)).all()
    assert ((eigenvalues[90:] > 30) & (eigenvalues[90:] < 60)).all()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(100), atol=1e-13)


def test_the_loss_is_the_quadratic_form_and_starts_where_it_was_published() -> None:
    eigenvalues, rotation = deepobs.hessian()
    points = data.load("quadratic", dtype=torch.float64).test
    network = models.quadratic((100,), 100).double()
    loss = torch.nn.functional.mse_loss(network(points.inputs), points.targets)
    away = points.inputs.numpy() - 1
    expected = np.einsum("ni,ij,nj->n", away, rotation.T @ np.diag(eigenvalues) @ rotation, away).mean() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert loss.item() == pytest.approx(START, abs=5e-5)
    # One vector is trained, and its gradient is Q (theta - mean x).
    (theta,) = network.parameters()
    loss.backward()
    assert theta.grad is not None
    gradient = rotation.T @ (eigenvalues * (rotation @ -away.mean(0)))
    np.testing.assert_allclose(theta.grad, gradient, rtol=1e-9)


def test_the_points_are_deepobs_own_in_single_precision() -> None:
    loaded = data.load("quadratic", dtype=torch.float64)
    train, test = (np.random.RandomState(seed).normal(0, 0.6, (1000, 100)) for seed in (42, 43))
    assert np.array_equal(loaded.train.inputs, np.float32(train))
    assert np.array_equal(loaded.test.inputs, np.float32(test)[:896])
    assert torch.equal(loaded.validation.inputs, loaded.test.inputs)


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_the_study_gives_what_was_published(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study", "run", "deepobs-quadratic", "--out", "out"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    results = analysis.load(tmp_path / "out")
    (trial,) = results.trials.to_dict("records")
    assert (trial["outcome"], trial["updates"], trial["epochs"], trial["parameters"]) == ("completed", 700, 100, 100)
    # Validation and test are the same points.
    curve = results.curves.query("split == 'validation' and metric == 'loss'").groupby("epoch")["value"]
    means = curve.mean()
    assert set(curve.count()) == {10}
    assert means[0] == pytest.approx(START, abs=2e-4)  # in single precision
    assert {epoch: means[epoch] for epoch in PUBLISHED} == pytest.approx(PUBLISHED, abs=TOLERANCE)
    assert results.lanes["test_loss"].mean() == pytest.approx(means[100], rel=1e-6)
