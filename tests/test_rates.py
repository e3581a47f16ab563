"""Which learning rate of a trial is best, and which rates it adds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_tune import CONFIG, course, stack_with, to_the_end, told, tuned_rate
from trainables.lanes.rates import Measure, between, grid_loss, losers, next_round, ranked
from trainables.lanes.stack import Lane, Stack
from trainables.rules import RULES
from trainables.tune import MLPTrainable, ModelTrainable, TrialConfig
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split

LOSS = Measure("loss", 100)


def stack_of(rates: list[float], losses: np.ndarray, name: str = "grid") -> Stack:
    """A stack whose lanes have those last validation losses, rates x seeds."""
    lanes = [Lane(rate, seed) for rate in rates for seed in range(losses.shape[1])]
    stack = Stack(RULES["sgd"], lanes, list(range(len(lanes))), torch.zeros(len(lanes), 1), {}, [], round=name)
    stack.last["validation", "loss"] = losses.flatten()
    return stack


def refined(losses: Any, rates: list[float], refine: int, extensions: int = 0) -> list[Stack]:
    """All stacks of a trial in which `losses` gives (seeds,) losses of a rate."""
    stacks = [stack_of(rates, np.array([losses(rate) for rate in rates]))]
    while (following := next_round(stacks, LOSS, extensions=extensions, refine=refine))[1]:
        name, added = following[0], [setting.learning_rate for setting in following[1]]
        stacks.append(stack_of(added, np.array([losses(rate) for rate in added]), name))
    return stacks


# Ties and floors


def test_equal_losses_go_to_the_middle_rate_and_of_two_to_the_lower() -> None:
    assert tuned_rate([stack_with("loss", [[0.5], [0.5], [0.5]])], LOSS)[0] == pytest.approx(0.1)
    assert tuned_rate([stack_with("loss", [[0.5], [0.5]])], LOSS)[0] == pytest.approx(0.01)
    values = [[0.5, 0.2], [0.2, 0.5], [0.9, 0.9], [0.2, 0.5], [0.5, 0.2]]
    order = [setting.learning_rate for setting in ranked([stack_with("loss", values)], LOSS)]
    assert order == pytest.approx([10**-1.5, 10**-0.5, 0.01, 1.0, 0.1])


def test_equal_accuracies_go_to_the_lower_loss() -> None:
    measure = Measure("accuracy", 50, 1e-7)
    accuracies = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.9, 0.9]]
    stack = stack_with("accuracy", accuracies, [[0.3, 0.3], [0.01, 0.01], [0.02, 0.02], [1e-6, 1e-6]])
    rate, value = tuned_rate([stack], measure)
    assert (rate, value) == (pytest.approx(10 ** (-4 / 3)), 1.0)
    # Below the floor losses differ by rounding alone.
    stack = stack_with("accuracy", accuracies, [[1e-8, 0.0], [1e-30, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert tuned_rate([stack], measure)[0] == pytest.approx(10 ** (-4 / 3))


def test_a_lucky_example_does_not_choose_a_rate_at_which_the_loss_explodes() -> None:
    # As 220 validation examples of the breast cancer data gave it: means of log-odds prefer the last rate by a hair.
    accuracies, losses = [[0.955, 0.964, 0.964], [0.95, 0.959, 0.975]], [[0.11, 0.1, 0.1], [500.0, 667.0, 800.0]]
    measure, stack = Measure("accuracy", 220), stack_with("accuracy", accuracies, losses)
    scores = measure.scores(np.array(accuracies)).mean(axis=1)
    assert scores[1] > scores[0]
    assert tuned_rate([stack], measure)[0] == pytest.approx(0.01)
    # Three examples more are a difference, two are none.
    for more, best in ((2, 0.01), (3, 1.0)):
        stack = stack_with("accuracy", [[0.9], [0.9 + more / 220 * 0.999]], [[0.1], [0.2]])
        assert tuned_rate([stack], measure)[0] == pytest.approx(best)


@pytest.mark.parametrize("examples", [1, 7, 50, 297, 360, 10_000])
def test_an_accuracy_is_at_most_1_and_at_least_0(examples: int) -> None:
    for value in (0.0, 1.0):
        found = tuned_rate([stack_with("accuracy", [[value] * 3])], Measure("accuracy", examples))[1]
        assert 0 <= found <= 1
        assert found == pytest.approx(value, abs=1e-11)


def test_losses_below_the_floor_tie_and_count_as_it() -> None:
    stack = stack_with("loss", [[1e-20], [0.0], [1e-30], [1e-3]])
    assert tuned_rate([stack], LOSS)[0] == pytest.approx(10 ** (-4 / 3))
    rate, value = tuned_rate([stack], Measure("loss", 100, 1e-14))
    assert (rate, value) == (pytest.approx(10 ** (-4 / 3)), pytest.approx(1e-14))
    stack.last["validation", "loss"][1] = 1e-2  # of the two others the lower
    assert tuned_rate([stack], Measure("loss", 100, 1e-14))[0] == pytest.approx(0.01)


def test_halving_keeps_the_rates_that_ties_go_to() -> None:
    stack = stack_with("accuracy", [[1.0]] * 4, [[0.3], [0.2], [0.01], [0.01]])
    assert losers(stack, Measure("accuracy", 50), 2) == [0, 1]
    assert losers(stack, Measure("accuracy", 50), 1) == [0, 1, 3]


def test_halving_keeps_lost_rates_only_if_too_few_count() -> None:
    stack = stack_with("loss", [[0.5, math.nan], [0.6, 0.6], [0.7, 0.7]])
    assert losers(stack, LOSS, 2) == [0, 1]
    assert losers(stack, LOSS, 3) == []


def test_the_floor_follows_precision_task_and_targets() -> None:
    inputs, targets = torch.zeros(4, 2), torch.tensor([[1.0], [5.0], [1.0], [5.0]])
    single, double = 2.0**-23, 2.0**-52
    regression = Criterion("regression")
    assert regression.floor(Split(inputs, targets)) == pytest.approx(4 * single**2)
    assert regression.floor(Split(inputs.double(), targets.double())) == pytest.approx(4 * double**2)
    assert regression.floor(Split(inputs, torch.ones(4, 1))) == np.finfo(np.float64).tiny
    assert Criterion("classification").floor(Split(inputs, torch.zeros(4).long())) == single
    assert Criterion("classification", loss="own:loss").floor(Split(inputs, targets)) == np.finfo(np.float64).tiny


EASY: dict[str, Any] = {**CONFIG, "data": "tests.user_code:easy", "rates": (1e-5, 1e-1, 5), "dtype": "float32"}


def test_easy_classes_are_tuned_by_their_loss() -> None:
    result = to_the_end(MLPTrainable({**EASY, "metric": "accuracy", "budget": {"epochs": 15}}))[-1]
    rows = result["payload"].lanes
    perfect = {row["learning_rate"] for row in rows if row["validation_accuracy"] == 1}
    assert len(perfect) > 1
    losses = {rate: [row["validation_loss"] for row in rows if row["learning_rate"] == rate] for rate in perfect}
    assert result["learning_rate"] == max(perfect) == min(perfect, key=lambda rate: max(losses[rate]))
    assert result["value"] == 1.0


def test_losses_of_easy_classes_stop_at_the_floor() -> None:
    result = to_the_end(MLPTrainable({**EASY, "rates": (1e-3, 1.0, 4), "budget": {"epochs": 100}}))[-1]
    rows = result["payload"].lanes
    assert min(row["validation_loss"] for row in rows) == 0
    assert result["value"] == pytest.approx(result["loss_floor"]) == 2.0**-23


# Refinement


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25, 0.4, 0.5, -0.3])
def test_refinement_finds_a_planted_optimum_between_grid_rates(shift: float) -> None:
    def losses(rate: float) -> np.ndarray:
        return np.exp((math.log10(rate) + 2 - shift) ** 2 + np.array([0.0, 0.3, -0.2]))

    grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    stacks = refined(losses, grid, 2)
    rate, _ = tuned_rate(stacks, LOSS)
    assert rate
    assert abs(math.log10(rate) + 2 - shift) <= 1 / 8 + 1e-9
    # The loss is a parabola, whose vertex the estimate meets; the seeds' common scatter is no error.
    scores = {rate: -np.log(losses(rate)) for rate in grid}
    nearest = min(grid, key=lambda rate: abs(math.log10(rate) + 2 - shift))
    gain, error = grid_loss(scores, nearest)
    assert gain == pytest.approx((math.log10(nearest) + 2 - shift) ** 2, abs=1e-12)
    assert error == pytest.approx(0.0, abs=1e-12)
    spent = {0.0: ["grid"], 0.25: ["grid", "refinement 1", "refinement 2"], 0.5: ["grid", "refinement 1"]}
    if shift in spent:
        assert [stack.round for stack in stacks] == spent[shift]


def test_refinement_stops_where_noise_dominates() -> None:
    random = np.random.default_rng(0)

    def losses(rate: float, noise: float) -> np.ndarray:
        return np.exp((math.log10(rate) + 1.9) ** 2 + random.normal(0, noise, 5))

    grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert len(refined(lambda rate: losses(rate, 0.001), grid, 2)) > 1
    assert len(refined(lambda rate: losses(rate, 0.5), grid, 2)) == 1


def test_the_error_is_that_of_paired_differences_to_the_better_neighbour() -> None:
    scores = {0.01: np.array([1.0, 1.0]), 0.1: np.array([3.0, 6.0]), 1.0: np.array([2.0, 3.0])}
    gain, error = grid_loss(scores, 0.1)
    assert gain == pytest.approx((2.5 - 1.0) ** 2 / (8 * (2 * 4.5 - 1.0 - 2.5)))
    assert error == pytest.approx(np.std([1.0, 3.0], ddof=1) / math.sqrt(2))
    assert grid_loss({rate: own[:1] for rate, own in scores.items()}, 0.1)[1] == 0


def test_unknown_neighbours_are_refined_and_flat_ones_are_not() -> None:
    scores = {0.01: np.array([1.0, math.nan]), 0.1: np.array([2.0, 2.1]), 1.0: np.array([1.0, 1.0])}
    assert grid_loss(scores, 0.1) == (math.inf, 0)
    assert grid_loss(scores, 1.0) == (math.inf, 0)
    flat = {rate: np.array([1.0, 2.0]) for rate in (0.01, 0.1, 1.0)}
    assert grid_loss(flat, 0.1) == (0, 0)


def test_extensions_come_before_refinements() -> None:
    def losses(rate: float) -> np.ndarray:
        return np.exp(np.full(2, (math.log10(rate) - 0.3) ** 2))

    stacks = refined(losses, [1e-4, 1e-3, 1e-2, 1e-1], 2, extensions=2)
    assert [stack.round for stack in stacks] == ["grid", "extension 1", "refinement 1", "refinement 2"]
    assert tuned_rate(stacks, LOSS)[0] == pytest.approx(10**0.25)
    # Without extensions nothing beyond the grid is tried: that is what they are for.
    stacks = refined(losses, [1e-4, 1e-3, 1e-2, 1e-1], 2)
    assert all(lane.learning_rate <= 1e-1 for stack in stacks for lane in stack.lanes)
    assert len(stacks) == 3
    assert len(refined(losses, [1e-4, 1e-3, 1e-2, 1e-1], 0)) == 1


@pytest.mark.parametrize(
    ("rates", "tried", "best", "number", "expected"),
    [
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1], 1e-2, 1, [10**-2.5, 10**-1.5]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1], 1e-2, 2, [10**-2.25, 10**-1.75]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1], 1e-1, 1, [10**-1.5]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1, 1.0, 10.0], 1e-1, 1, [10**-1.5, 10**-0.5]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 10**-1.5, 1e-1], 1e-2, 1, [10**-2.5]),
        ([0.1], [0.1], 0.1, 1, []),
        ([0.1, 0.1], [0.1, 0.1], 0.1, 1, []),
        ([1e-300, 1e300], [1e-300, 1e300], 1e300, 1, [1.0]),
    ],
)
def test_rates_between(rates: list[float], tried: list[float], best: float, number: int, expected: list[float]) -> None:
    assert between(rates, tried, best, number) == pytest.approx(expected, rel=1e-12)


# Refinements of whole trials. Above 1 every lane of sgd diverges on these data.
FINE: dict[str, Any] = {
    **CONFIG,
    "optimizer": "sgd",
    "rates": (1e-3, 1e-1, 3),
    "extensions": 1,
    "refine": 2,
    "budget": {"epochs": 2},
    "every_update": True,
    "checkpoint_seconds": 0.0,
}
ROUNDS = ["grid"] * 6 + ["extension 1"] * 4 + ["refinement 1"] * 4 + ["refinement 2"] * 4


@pytest.fixture(scope="module")
def fine() -> list[dict[str, Any]]:
    """The results of that trial where nothing disturbs it."""
    return to_the_end(MLPTrainable(FINE))


def test_a_refined_trial_reports_its_rounds(fine: list[dict[str, Any]]) -> None:
    assert [row["round"] for row in fine[-1]["payload"].lanes] == ROUNDS
    assert [result["refinements"] for result in fine] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [result["extensions"] for result in fine] == [0] + [1] * 7
    assert [result["extending"] for result in fine] == [False] + [True] * 6 + [False]
    assert [result["done"] for result in fine] == [False] * 7 + [True]
    values = [result["value"] for result in fine]
    assert values == sorted(values, reverse=True)
    rates = sorted({row["learning_rate"] for row in fine[-1]["payload"].lanes})
    assert rates[0] < fine[-1]["learning_rate"] < rates[-1]


@pytest.mark.parametrize("engine", ["native", "eager", "cuda-graph", "vmap", "solo"])
def test_refined_lanes_equal_those_of_a_grid_with_their_rates(engine: str) -> None:
    how: dict[str, Any] = {
        "vmap": {"model": "tests.user_code:Residual"},
        "solo": {"optimizer": "ASGD", "rates": (1e-4, 1.0, 3)},
    }.get(engine, {"engine": engine})
    kind = ModelTrainable if engine == "vmap" else MLPTrainable
    config = {**FINE, "extensions": 0, "refine": 1, "every_update": False} | how
    result = to_the_end(kind(config))[-1]
    rows = result["payload"].lanes
    assert result["engine"] == engine
    assert {row["round"] for row in rows} == {"grid", "refinement 1"}
    low, high, count = config["rates"]
    whole = to_the_end(kind({**config, "rates": (low, high, 2 * count - 1), "refine": 0}))[-1]["payload"].lanes
    for row in rows:
        (same,) = [
            other
            for other in whole
            if other["seed"] == row["seed"] and math.isclose(other["learning_rate"], row["learning_rate"])
        ]
        assert row["diverged_update"] == same["diverged_update"]
        assert row["test_loss"] == pytest.approx(same["test_loss"], rel=1e-9)


@pytest.mark.parametrize("stop_after", range(1, 8))
def test_a_refined_trial_resumes_bit_for_bit(stop_after: int, tmp_path: Path, fine: list[dict[str, Any]]) -> None:
    config = {**FINE, "checkpoint": str(tmp_path / "trial.pt")}
    first = MLPTrainable(config)
    begun = [first.train() for _ in range(stop_after)]
    rest = to_the_end(MLPTrainable(config))
    assert told(begun + rest) == told(fine)
    assert course([result["payload"] for result in rest]) == course([result["payload"] for result in fine])


def test_ray_tunes_checkpoints_hold_refinements_too(tmp_path: Path, fine: list[dict[str, Any]]) -> None:
    first, second = MLPTrainable(FINE), MLPTrainable(FINE)
    begun = [first.train() for _ in range(5)]
    first.save_checkpoint(str(tmp_path))
    second.load_checkpoint(str(tmp_path))
    assert told(begun + to_the_end(second)) == told(fine)


def test_refinements_are_halved_and_halved_neighbours_are_unknown() -> None:
    config = {**FINE, "rates": (1e-4, 1.0, 5), "budget": {"epochs": 4}, "halving": True}
    rows = to_the_end(MLPTrainable(config))[-1]["payload"].lanes
    own = [row for row in rows if row["round"].startswith("refinement")]
    assert {row["round"] for row in own} == {"refinement 1", "refinement 2"}
    survivors = {
        row["learning_rate"] for row in own if row["stopped_update"] is None and row["diverged_update"] is None
    }
    assert 1 <= len(survivors) <= 2


def test_further_rounds_of_a_budget_in_seconds_make_the_updates_of_the_grid() -> None:
    config = {**FINE, "budget": {"seconds": 0.05}, "every_update": False}
    trainable = MLPTrainable(config)
    result = to_the_end(trainable)[-1]
    first, *others = trainable.run.stacks
    assert result["refinements"] == sum(stack.round.startswith("refinement") for stack in others) > 0
    assert first.update > 0
    assert {stack.update for stack in others if stack.alive} == {first.update}


def test_a_single_rate_is_not_refined() -> None:
    results = to_the_end(MLPTrainable({**FINE, "rates": (1e-1, 1e-1, 1)}))
    assert (len(results), results[-1]["refinements"]) == (2, 0)


def test_refine_is_part_of_a_trials_identity() -> None:
    plain, asked = ({"optimizer": "sgd", "batch_size": 1, "refine": refine} for refine in (0, 1))
    assert TrialConfig.of(plain).identity() != TrialConfig.of(asked).identity()
