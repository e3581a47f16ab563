"""The gradient's noise: what is estimated, and that estimating it changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from study.results.tables import TrialBuffer
from tests.solo import CPU, FAMILIES, builder, difference, made, small, train_stack, trained
from trainables.config import Budget
from trainables.engines import eager
from trainables.engines.eager import Eager
from trainables.lanes.evaluate import NOISE
from trainables.lanes.records import Point, Report
from trainables.lanes.stack import Lane, Stack, grid
from trainables.rules import RULES, named
from trainables.tune import MLPTrainable
from trainables.workloads import models
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data, Split

LANES = [*grid(1e-3, 1e-2, 2, [0, 1]), Lane(1e200, 0)]


def example_gradients(family: str, row: Tensor, examples: Split) -> Tensor:
    """The gradient of each example's loss in one network, (n, P)."""
    network, task = builder(family)().double(), small(FAMILIES[family][0]).task
    sizes = [parameter.numel() for parameter in network.parameters()]
    pairs = zip(network.named_parameters(), row.split(sizes), strict=True)
    parameters = {name: values.view_as(like) for (name, like), values in pairs}

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(network, own, (x[None],))
        criterion = nn.functional.mse_loss if task == "regression" else nn.functional.cross_entropy
        return criterion(output, y[None])

    found = vmap(grad(loss), (None, 0, 0))(parameters, examples.inputs, examples.targets)
    return torch.cat([found[name].flatten(1) for name in parameters], 1)


@pytest.mark.parametrize(("count", "chunk"), [(37, 1), (100, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimates_are_those_of_gradients_example_by_example(family: str, count: int, chunk: int) -> None:
    stack = Stack.build(builder(family), [Lane(0.1, seed) for seed in range(3)], RULES["sgd"], torch.float64, CPU)
    examples = small(FAMILIES[family][0]).train.head(count)
    square, noise = made(family, 32, stack).noise(stack, slice(1, 3), examples)
    for place, row in enumerate(stack.parameters[1:]):
        each = example_gradients(family, row, examples)
        # Means of a few examples vary that much less than these do.
        trace = chunk * each.unflatten(0, (-1, chunk)).mean(1).var(0).sum()
        assert noise[place].item() == pytest.approx(trace.item(), rel=1e-9)
        assert square[place].item() == pytest.approx((each.mean(0).square().sum() - trace / count).item(), rel=1e-9)


@pytest.mark.parametrize("count", [96, 101])
def test_the_estimates_are_right_on_average(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of (w x + b - y)^2 for x ~ N(0, 1) in n dimensions and y = e ~ N(0, s^2), the gradient is 2 (w x + b - e) (x, 1):
    # its mean is 2 (w, b), and its mean square 4 (w^2 (n + 3) + (b^2 + s^2) (n + 1)).
    monkeypatch.setattr(eager, "CHUNKS", 8)  # of 101 examples, some have 12 and some 13
    n, s = 3, 0.5
    network = models.linear((n,), 1)
    stack = Stack.build(lambda: network, [Lane(0.1, 0), Lane(0.1, 1)], RULES["sgd"], torch.float64, CPU)
    stack.parameters[:] = torch.tensor([[1.0, -0.5, 0.25, 0.5], [0.1, 0.0, 0.0, 0.0]])
    w, b = stack.parameters[:, :n].square().sum(1), stack.parameters[:, n].square()
    square = 4 * (w + b)
    expected = torch.stack([square, 4 * (w * (n + 3) + (b + s**2) * (n + 1)) - square])
    random, engine = torch.Generator().manual_seed(0), Eager(network, Criterion("regression"), 50)
    found = []
    for _ in range(300):
        x, y = (torch.randn(count, size, generator=random, dtype=torch.float64) for size in (n, 1))
        found.append(torch.stack(engine.noise(stack, slice(0, 2), Split(x, s * y))))
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / len(found) ** 0.5
    assert ((mean - expected).abs() < 4 * error).all()
    assert (error < 0.05 * expected.sum(0)).all()
    assert (torch.stack(found)[:, 0, 1] < 0).any()  # where noise prevails, the price of being right on average


def split(points: list[Point]) -> tuple[list[Any], list[Any]]:
    """What the points tell but for seconds: of the gradient's noise, and all else."""
    found: tuple[list[Any], list[Any]] = ([], [])
    for point in points:
        other = not {metric for _, metric in point.values} <= set(NOISE)
        found[other].append((point.update, point.examples, point.epoch, point.lanes, point.values))
    return found


@pytest.mark.parametrize(
    ("engine", "rule", "family", "every_update"),
    [
        ("eager", "adam", "linear", False),
        ("eager", "adam", "mlp", False),
        ("eager", "adam", "mlp", True),
        ("eager", "adam", "cnn", False),
        ("cuda-graph", "adam", "mlp", False),
        ("native", "adam", "mlp", False),
        ("solo", "ASGD", "mlp", False),
        ("native", "adam", "cnn", True),
    ],
)
def test_recording_it_changes_no_other_number(engine: str, rule: str, family: str, every_update: bool) -> None:
    def run(gradient_noise: bool) -> tuple[Stack, list[Report]]:
        stack = Stack.build(builder(family), LANES, named(rule), torch.float64, CPU)
        options = {"every_update": every_update, "gradient_noise": gradient_noise}
        workload, maker = small(FAMILIES[family][0]), made(family, 32, stack, engine)
        return stack, list(train_stack(stack, maker, workload, 32, Budget(epochs=2), halving=True, **options))

    (plain, reports), (recorded, others) = run(False), run(True)
    assert torch.equal(plain.parameters, recorded.parameters)
    assert all(torch.equal(plain.state[name], recorded.state[name]) for name in plain.state)
    assert (plain.alive, plain.diverged, plain.stopped) == (recorded.alive, recorded.diverged, recorded.stopped)
    assert plain.last.keys() == recorded.last.keys()
    traces = [[(t.lanes, t.losses.tolist()) for report in each for t in report.traces] for each in (reports, others)]
    assert traces[0] == traces[1]
    for one, other in zip(reports, others, strict=True):
        noise, rest = split(other.points)
        assert split(one.points) == ([], rest)
        # At every evaluation, of the lanes that still train.
        assert [point[:4] for point in noise] == [point[:4] for point in rest]
        assert all(list(point[4]) == [("train", name) for name in NOISE] for point in noise)
        assert all(np.isfinite(list(point[4].values())).all() for point in noise)


def test_it_is_of_the_training_examples_that_are_evaluated() -> None:
    stack = Stack.build(builder("mlp"), [Lane(0.01, 0)], RULES["sgd"], torch.float64, CPU)
    workload, engine = small("cubic"), made("mlp", 32, stack)
    expected = engine.noise(stack, slice(0, 1), workload.train)
    first = next(train_stack(stack, engine, workload, 32, Budget(epochs=1), gradient_noise=True)).points[1]
    assert list(first.values.values()) == [numbers.tolist() for numbers in expected]


def test_a_lane_without_a_finite_value_has_none_and_trains_on() -> None:
    # Its loss, about 1e306, is finite, and the square of its gradient is not.
    far = Split(torch.full((4, 1), 1e10, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))

    network = models.linear((1,), 1)
    stack = Stack.build(lambda: network, [Lane(1e-30, 0), Lane(1e-30, 1)], RULES["sgd"], torch.float64, CPU)
    stack.parameters[:] = torch.tensor([[1e143, 0.0], [1.0, 0.0]], dtype=torch.float64)
    workload, engine = Data("linear", "regression", far, far, far, 1), Eager(network, Criterion("regression"), 4)
    points = next(train_stack(stack, engine, workload, 4, Budget(updates=1), gradient_noise=True)).points
    assert [point.lanes for point in points[:2]] == [[0, 1], [1]]
    assert stack.alive == [0, 1]


@pytest.mark.parametrize("family", ["linear", "mlp"])
def test_passes_do_not_change_it(family: str) -> None:
    def noise(at_once: int) -> Tensor:
        stack = Stack.build(builder(family), LANES, RULES["sgd"], torch.float64, CPU)
        stack.at_once = at_once
        workload, engine = small(FAMILIES[family][0]), made(family, 32, stack)
        reports = train_stack(stack, engine, workload, 32, Budget(updates=8), gradient_noise=True)
        found = [point for report in reports for point in report.points if ("train", NOISE[0]) in point.values]
        return torch.tensor([numbers for point in found[1:] for numbers in point.values.values()])

    assert difference(noise(3), noise(5)) <= 1e-9


def test_memory_that_runs_out_for_it_is_nothing_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, whole, calls = trained("mlp", "adam", 32, LANES, 20), Eager.noise, [0]

    def narrow(self: Eager, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        if rows.stop - rows.start > 2:
            calls[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, stack, rows, examples)

    monkeypatch.setattr(Eager, "noise", narrow)
    disturbed = trained("mlp", "adam", 32, LANES, 20, gradient_noise=True)
    assert calls[0] > 1
    assert disturbed.at_once == undisturbed.at_once
    assert torch.equal(disturbed.parameters, undisturbed.parameters)


CONFIG: dict[str, Any] = {
    "optimizer": "adam", "batch_size": 32, "width": 8, "depth": 1, "data": "linear", "rates": (1e-3, 1e-1, 3),
    "seeds": (0, 1), "budget": {"epochs": 4}, "device": "cpu", "gradient_noise": True, "checkpoint_seconds": 0.0,
}  # fmt: skip


def test_a_trial_records_it_and_goes_on_with_it_bit_for_bit(tmp_path: Path) -> None:
    def numbers(config: dict[str, Any], steps: int) -> tuple[TrialBuffer, list[Any]]:
        trainable, course = MLPTrainable(config), TrialBuffer()
        for _ in range(steps):
            course.take(0, trainable.train()["payload"])
        names = ("lane", "update", "split", "metric", "value")
        return course, list(zip(*(course.curves[name] for name in names), strict=True))

    course, whole = numbers(CONFIG, 4)
    assert {split for _, _, split, metric, _ in whole if metric in NOISE} == {"train"}
    for metric in NOISE:
        mine = {(lane, update) for lane, update, _, name, _ in whole if name == metric}
        assert mine == {(lane, update) for lane, update, split, _, _ in whole if split == "validation"}
    assert len(mine) == 6 * len(set(course.curves["update"]))
    config = {**CONFIG, "checkpoint": str(tmp_path / "trial.pt")}
    numbers(config, 2)
    assert numbers(config, 2)[1] == whole
