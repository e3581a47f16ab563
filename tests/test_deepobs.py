"""DeepOBS's quadratic problem, from its numbers to the study of it, beside the results that DeepOBS publishes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis
from analysis.statistics import Interval, t_interval
from trainables.lanes.seeds import batch_order
from trainables.workloads import data, deepobs, models

# Test loss after so many epochs of SGD at 0.01585: mean over 10 seeds, with a standard deviation of about 0.2 of each.
# The start is exact, as no seed has a part in it.
START, PUBLISHED = 353.4468, {1: 105.3, 10: 93.0, 100: 87.4}
# Three standard errors of the difference between two such means.
TOLERANCE = 3 * 0.2 * (2 / 10) ** 0.5
# Published: rate, mean of the test loss after 100 epochs and its standard deviation over 10 seeds.
RESULTS = {"sgd": (0.01585, 87.40, 0.17), "momentum": (0.002512, 87.05, 0.03), "adam": (0.03981, 87.11, 0.02)}
COLUMNS = ["published", "ours", "kept"]
DOCUMENT = Path(__file__).parents[1] / "docs" / "reproduction.md"


def documented() -> dict[str, dict[str, tuple[float, float, float]]]:
    """The table of docs/reproduction.md: optimizer, then `COLUMNS`, each mean, low and high."""
    found = {}
    for name, row in re.findall(r"^\| (sgd|momentum|adam)\b(.*)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE):
        cells = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", row)
        found[name] = {
            key: (float(m), float(low), float(high)) for key, (m, low, high) in zip(COLUMNS, cells, strict=True)
        }
    return found


def final_losses(name: str, *, kept: bool, seeds: int = 10) -> np.ndarray:
    """Test losses after 100 epochs of torch's optimizer, (seeds,): batches in one order, or in a new one each epoch."""
    eigenvalues, rotation = deepobs.hessian()
    matrix = torch.from_numpy(rotation.T @ np.diag(eigenvalues) @ rotation)
    loaded = data.load("quadratic", dtype=torch.float64)
    theta = torch.ones(seeds, 100, dtype=torch.float64, requires_grad=True)
    rate = RESULTS[name][0]
    # These rules work on each number by itself, so one optimizer trains all seeds.
    optimizer = torch.optim.Adam([theta], rate) if name == "adam" else torch.optim.SGD(
        [theta], rate, momentum=0.99 if name == "momentum" else 0.0
    )  # fmt: skip
    for epoch in range(100):
        orders = [torch.as_tensor(batch_order(seed, 0 if kept else epoch, 1000)) for seed in range(seeds)]
        for start in range(0, 7 * 128, 128):
            centres = torch.stack([loaded.train.inputs[order[start : start + 128]].mean(0) for order in orders])
            theta.grad = (theta.detach() - centres) @ matrix
            optimizer.step()
    away = loaded.test.inputs[None] - theta.detach()[:, None]
    losses = torch.einsum("sni,ij,snj->sn", away, matrix, away).mean(1) / 2
    return losses.numpy()


@pytest.mark.parametrize("name", RESULTS)
def test_the_published_results_are_those_of_one_order_of_the_batches(name: str) -> None:
    _, mean, deviation = RESULTS[name]
    kept, fresh = (t_interval(final_losses(name, kept=each)) for each in (True, False))
    # The published interval, of 10 seeds; 2.262 is t's quantile.
    half = 2.262 * deviation / 10**0.5
    table = documented()[name]
    assert table["published"] == pytest.approx((mean, mean - half, mean + half), abs=0.006)
    assert table["kept"] == pytest.approx((kept.estimate, kept.low, kept.high), abs=0.02)
    assert apart(kept, mean, half) is False
    # A new order in each epoch: no difference for SGD, a difference for the others, as the document says.
    assert apart(fresh, mean, half) is (name != "sgd")


def apart(ours: Interval, mean: float, half: float) -> bool:
    """Whether two intervals of independent means exclude that these are equal: half widths add in quadrature."""
    return bool(abs(ours.estimate - mean) > ((ours.high - ours.estimate) ** 2 + half**2) ** 0.5)


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
@pytest.mark.timeout(900)
def test_the_study_gives_the_documented_results(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study", "run", "deepobs-quadratic", "--out", "out"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False)
    assert found.returncode == 0, found.stderr
    results = analysis.load(tmp_path / "out")
    trials = results.trials.set_index("optimizer")
    assert set(trials.index) == set(RESULTS)
    assert set(trials["outcome"]) == {"completed"}
    assert trials[["updates", "epochs", "parameters"]].to_numpy().tolist() == [[700, 100, 100]] * 3
    assert results.confirmation is not None
    assert sorted(results.confirmation.trials["optimizer"]) == sorted(RESULTS)
    for name, (rate, _, _) in RESULTS.items():
        # A new order in each epoch takes a lower rate where the momentum is large.
        tuned = float(trials["learning_rate"][name])
        assert tuned < 0.9 * rate if name == "momentum" else tuned == pytest.approx(rate, rel=1e-3)
        lanes = results.lanes[results.lanes["trial"] == trials.loc[name, "trial"]]
        lanes = lanes[np.isclose(lanes["learning_rate"], rate, rtol=1e-3)]
        ours = t_interval(lanes["test_loss"])
        assert ours.n == 10
        assert documented()[name]["ours"] == pytest.approx((ours.estimate, ours.low, ours.high), abs=0.02)
        if name != "sgd":
            continue
        # Validation and test are the same points.
        losses = results.curves.query("split == 'validation' and metric == 'loss'")
        curve = losses.merge(lanes[["trial", "lane"]], on=["trial", "lane"]).groupby("epoch")["value"]
        means = curve.mean()
        assert set(curve.count()) == {10}
        assert means[0] == pytest.approx(START, abs=2e-4)  # in single precision
        assert {epoch: means[epoch] for epoch in PUBLISHED} == pytest.approx(PUBLISHED, abs=TOLERANCE)
        assert ours.estimate == pytest.approx(means[100], rel=1e-6)
