"""DeepOBS's problems: the quadratic one beside its published results, the others beside their published networks."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import analysis
from analysis.figures.performance_profile import profile
from analysis.statistics import Interval, t_interval
from study.cli.commands import main
from study.spec import Spec, read
from tests.fakes.world import World
from trainables.config import Budget, TrialConfig
from trainables.engines.choose import choose
from trainables.lanes import reference
from trainables.lanes.seeds import batch_order
from trainables.lanes.stack import Lane, Stack
from trainables.lanes.train import train
from trainables.rules import named
from trainables.workloads import data, deepobs, models
from trainables.workloads.criterion import Criterion

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


# Layers of a problem's network, input by output and filters; trained numbers, which follow from its published sizes
# (those of 2c2d and 3c3d stand so in Dangel, Kunstner and Hennig, "BackPACK", ICLR 2020); epochs; updates an epoch.
SUITE: dict[str, tuple[list[tuple[int, ...]], int, int, int]] = {
    "mnist_logreg": ([(784, 10)], 7_850, 50, 468),
    "mnist_mlp": ([(784, 1000), (1000, 500), (500, 100), (100, 10)], 1_336_610, 100, 468),
    "mnist_2c2d": ([(1, 32, 5, 5), (32, 64, 5, 5), (3136, 1024), (1024, 10)], 3_274_634, 100, 468),
    "fmnist_2c2d": ([(1, 32, 5, 5), (32, 64, 5, 5), (3136, 1024), (1024, 10)], 3_274_634, 100, 468),
    "cifar10_3c3d": (
        [(3, 64, 5, 5), (64, 96, 3, 3), (96, 128, 3, 3), (1152, 512), (512, 256), (256, 10)], 895_210, 100, 390,
    ),
}  # fmt: skip
# Standard deviation of the weights of each kind, and the biases.
STARTS = {"logreg": (0.0, 0.0), "mlp": (0.03, 0.0), "2c2d": (0.05, 0.05)}


def network_of(spec: Spec) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(spec.workload.model, spec.workload.facts.in_shape, spec.workload.facts.out_features)


@pytest.mark.parametrize("name", SUITE)
def test_a_problem_of_the_suite_has_the_published_network_batches_and_budget(name: str) -> None:
    spec, (shapes, parameters, epochs, updates) = read(f"deepobs/{name}"), SUITE[name]
    network = network_of(spec)
    weights = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert [(shape[1], shape[0], *shape[2:]) for shape in weights] == shapes
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(2, *spec.workload.facts.in_shape)).shape == (2, 10)
    assert (spec.search.batch_size.ends(), spec.budget.epochs, spec.budget.drop_last) == ([128], epochs, True)
    assert spec.workload.facts.train // 128 == updates
    assert (spec.workload.metric, spec.search.optimizers()) == ("accuracy", ["sgd", "momentum", "adam"])
    assert spec.search.settings["momentum"]["momentum"].ends() == [0.99]
    assert spec.workload.label_smoothing == 0
    decays = [choice.values for key, choice in spec.lanes.axes().items() if key == "weight_decay"]
    assert decays == ([(0.002,)] if name == "cifar10_3c3d" else [])


@pytest.mark.parametrize("name", SUITE)
def test_a_problem_of_the_suite_starts_as_published(name: str) -> None:
    network = network_of(read(f"deepobs/{name}"))
    for layer in network:
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            continue
        assert layer.bias is not None
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(layer.weight)
        glorot = (2 / (fan_in + fan_out)) ** 0.5
        deviation, bias = STARTS.get(name.partition("_")[2], (glorot, 0.0))
        assert (layer.bias == bias).all()
        largest = 2 * deviation if name != "cifar10_3c3d" else 3**0.5 * glorot
        if name != "cifar10_3c3d" or isinstance(layer, torch.nn.Linear):  # cut off, or uniform
            assert float(layer.weight.detach().abs().max()) <= largest * (1 + 1e-6)
        # A normal distribution that is cut off at two deviations has 0.88 of its deviation.
        expected = deviation * (0.8796 if name != "cifar10_3c3d" else 1)
        tolerance = 4 / (2 * layer.weight.numel()) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=tolerance)


def test_pooling_of_3c3d_keeps_windows_that_the_edge_cuts_off() -> None:
    network = network_of(read("deepobs/cifar10_3c3d"))
    x, sides = torch.zeros(1, 3, 32, 32), []
    for layer in network:
        x = layer(x)
        sides += [x.shape[-1]] if isinstance(layer, torch.nn.MaxPool2d) else []
    assert sides == [14, 6, 3]  # TensorFlow's padding "same" of 28, 12 and 6


@pytest.mark.parametrize("model", ["deepobs-logreg", "deepobs-mlp", "deepobs-2c2d"])
def test_a_lane_of_a_suites_network_equals_the_same_network_alone(model: str) -> None:
    size = (1, 8, 8)
    build = partial(models.build, model, size, 10)
    x, y = data.load("digits", dtype=torch.float64).train.inputs[:64], data.load("digits").train.targets[:64]
    examples = data.Split(x, y)
    lanes = [Lane(0.01, 0), Lane(0.05, 1)]
    loaded = data.Data("digits", "classification", examples, examples, examples, 10)
    stack = Stack.build(build, lanes, named("momentum"), torch.float64, torch.device("cpu"), 4)
    engine = choose(build, size, "classification", 32, stack)
    config = TrialConfig(optimizer="momentum", batch_size=32, budget=Budget(updates=4))
    for _ in train(stack, engine, loaded, config):
        pass
    for lane, ours in zip(lanes, stack.parameters, strict=True):
        network, losses = reference.alone(build, named("momentum"), examples, 32, lane, Criterion("classification"), 4)
        list(losses)
        theirs = torch.cat([p.detach().flatten() for p in network.parameters()])
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-9


def test_optimizers_of_the_command_line_get_as_many_trials_each_as_those_of_the_spec(tmp_path: Path) -> None:
    spec = read("deepobs/mnist_mlp", {"search": {"optimizer": ["adam", "momentum", "lion", "sgd"]}})
    assert (spec.budget.trials, set(spec.search.settings)) == (4, {"momentum"})
    spec = read("deepobs/mnist_mlp", {"search": {"optimizer": ["adam"]}, "budget": {"trials": 7}})
    assert (spec.budget.trials, spec.search.settings) == (7, {})
    file = tmp_path / "own.toml"
    file.write_text(
        'name = "own"\nlanes = {learning_rate = {sgd = [0.1], adam = [0.01]}}\nbudget = {trials = 5, epochs = 1}\n'
        '[workload]\ndata = "digits"\nmodel = "linear"\n[search]\nbatch_size = 32\noptimizer = ["sgd", "adam"]\n'
    )
    assert read(file, {"search": {"optimizer": ["sgd"]}}).lanes.learning_rate.keys() == {"sgd"}  # type: ignore[union-attr]
    assert read(file, {"search": {"optimizer": ["lion"]}}).lanes.learning_rate is None
    assert read(file, {"search": {"optimizer": ["lion", "sgd"]}}).budget.trials == 5


RULE = """
import torch

class Half(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, momentum=0.5)
"""


def test_a_problem_of_the_suite_judges_an_optimizer_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(RULE)
    monkeypatch.chdir(tmp_path)
    given: list[Spec] = []
    monkeypatch.setattr("study.api.run", lambda spec, *_, **__: given.append(spec) or 1 / 0)  # type: ignore[func-returns-value]
    CliRunner().invoke(main, ["run", "deepobs/mnist_logreg", "--optimizers", "adam, mine:Half", "--epochs", "2"])
    (spec,) = given
    assert spec.search.optimizers() == ["adam", "mine:Half"]
    assert (spec.budget.trials, spec.budget.epochs) == (2, 2)
    assert spec.optimizer_facts("mine:Half").solo


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["mnist_logreg", "mnist_mlp", "mnist_2c2d"])
def test_a_problem_of_the_suite_trains_two_epochs_of_real_images(
    name: str, tmp_path: Path, mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_DATA", str(mnist_folder))
    few = {"learning_rate": [0.05], "seeds": 1, "extensions": 0, "refine": 0}
    optimizers = ["sgd", "mine:Half"] if name == "mnist_logreg" else ["sgd"]  # lane by lane takes long
    (tmp_path / "mine.py").write_text(RULE)
    changes = {"search": {"optimizer": optimizers}, "lanes": few, "budget": {"epochs": 2}, "confirm": False}
    script = f"import study; study.run(study.read('deepobs/{name}', {changes!r}), 'out')"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=3500, check=False
    )
    assert found.returncode == 0, found.stderr
    results = analysis.load(tmp_path / "out")
    trials = results.trials
    assert sorted(trials["optimizer"]) == sorted(optimizers)
    assert set(trials["outcome"]) == {"completed"}
    assert set(trials["updates"]) == {2 * 468}
    assert set(trials["parameters"]) == {SUITE[name][1]}
    least = {"mnist_logreg": 0.88, "mnist_mlp": 0.9, "mnist_2c2d": 0.95}[name]
    assert results.lanes["test_accuracy"].min() > least


@pytest.mark.usefixtures("words_only")
def test_a_report_over_the_suite_has_a_performance_profile(tmp_path: Path) -> None:
    """Three of the suite's networks, on small images: one problem of each study."""
    folders = []
    for model in ("deepobs-logreg", "deepobs-mlp", "deepobs-2c2d"):
        tables = {
            "name": model,
            "workload": {"data": "digits", "model": model, "standardize": False, "target": 0.3},
            "search": {"batch_size": 128, "optimizer": ["adam", "sgd"]},
            "lanes": {"learning_rate": [0.001], "seeds": 1, "extensions": 0, "refine": 0},
            "tuning": {"sampler": "grid"},
            "budget": {"trials": 2, "epochs": 4, "drop_last": True},
            "confirm": {"top": 1, "seeds": 3},
        }
        with World(tmp_path / model, tables) as world:
            world.finish()
            folders.append(world.results())
    studies = [analysis.load(folder) for folder in folders]
    shares = profile(studies)
    assert set(shares["problems"]) == {3}
    assert set(shares["optimizer"]) == {"adam", "sgd"}
    assert shares.groupby("optimizer")["share"].max().max() == 1
    page = analysis.write_report(folders, tmp_path / "all").read_text(encoding="utf-8")
    assert "Performance profile over the studies" in page
    assert "on average over 3 studies" in page
