"""Lane equality, divergence, schedules and resuming: what a lane computes is what its configuration computes alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.solo import CPU, TRAINING, builder, difference, made, small, solo, train_stack, trained
from trainables.config import Budget
from trainables.engines.eager import Eager
from trainables.lanes.batches import Batches
from trainables.lanes.evaluate import EvaluationTimes
from trainables.lanes.rates import rungs as rungs_of
from trainables.lanes.records import Report
from trainables.lanes.seeds import batch_order, initialise
from trainables.lanes.stack import Lane, Stack, grid
from trainables.rules import RULES
from trainables.workloads import data, models
from trainables.workloads.augment import Augment
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data, Split


def test_divergence_is_dated_by_the_update_that_was_not_finite() -> None:
    # One weight, x = 1, y = 0: w <- w (1 - 2 lr), so the loss w^2 overflows float64 when |w| passes 1e154.
    ones = Split(torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(1, 1))

    workload = Data("linear", "regression", ones, ones, ones, 1)
    stack = Stack.build(build, [Lane(5e9, 0), Lane(0.1, 0)], RULES["sgd"], torch.float64, CPU)
    weight = sum(stack.parameters[0].tolist())
    reports = list(train_stack(stack, Eager(build(), Criterion("regression"), 4), workload, 4, Budget(updates=100)))
    # The sum s of weight and bias is the output, and shrinks or grows by the factor 1 - 4 lr per update.
    expected = math.ceil((154.127 - math.log10(abs(weight))) / math.log10(4 * 5e9)) + 1
    assert stack.diverged == {0: expected}
    assert len(reports) == 10


def test_a_trial_whose_lanes_all_diverge_ends_at_once() -> None:
    stack = Stack.build(builder("mlp"), [Lane(1e200, 0)], RULES["sgd"], torch.float64, CPU)
    reports = list(train_stack(stack, made("mlp", 1, stack), small("cubic"), 1, Budget(epochs=50)))
    assert len(reports) == 1
    assert reports[0].finished
    assert stack.alive == []


@pytest.mark.parametrize(("rule", "momentum"), [("schedule-free-sgd", "momentum"), ("schedule-free-adamw", "beta1")])
def test_the_average_is_evaluated_and_training_goes_on(rule: str, momentum: str) -> None:
    lanes = [Lane(0.01, 0), Lane(0.01, 0, ((momentum, 0.5),))]
    stack, workload = Stack.build(builder("mlp"), lanes, RULES[rule], torch.float64, CPU), small("cubic")
    list(train_stack(stack, made("mlp", 32, stack), workload, 32, Budget(updates=20)))
    training = stack.parameters
    values = [[0.9], [0.5]]  # of the momentum
    expected = training + stack.state["lag"] * (1 - 1 / torch.tensor(values, dtype=torch.float64))
    network, x = builder("mlp")().double(), workload.validation
    for row, seen, trained_at in zip(expected, stack.last["validation", "loss"], training, strict=True):
        losses = []
        for parameters in (row, trained_at):
            torch.nn.utils.vector_to_parameters(parameters, network.parameters())
            losses.append(nn.functional.mse_loss(network(x.inputs), x.targets).item())
        assert losses[0] == pytest.approx(seen, rel=1e-12)
        assert losses[1] != pytest.approx(seen, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resuming_from_a_checkpoint_is_bit_for_bit(rule: str, stop_after: int) -> None:
    configurations = [*grid(1e-4, 1e-2, 2, [0, 1]), Lane(1e200, 0)]
    workload, budget = small("cubic"), Budget(epochs=5)

    def fresh() -> Stack:
        return Stack.build(builder("mlp"), configurations, RULES[rule], torch.float64, CPU)

    def run(stack: Stack) -> Iterator[Report]:
        return train_stack(stack, made("mlp", 32, stack), workload, 32, budget)

    whole, first, second = fresh(), fresh(), fresh()
    undisturbed = list(run(whole))
    begun = run(first)
    reports = [next(begun) for _ in range(stop_after)]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    reports += run(second)
    assert torch.equal(second.parameters, whole.parameters)
    assert all(torch.equal(second.state[name], whole.state[name]) for name in whole.state)
    assert second.diverged == whole.diverged
    assert [[(p.update, p.lanes, p.values) for p in r.points] for r in reports] == [
        [(p.update, p.lanes, p.values) for p in r.points] for r in undisturbed
    ]


def test_a_checkpoint_remembers_what_was_given_up_and_the_size_of_passes() -> None:
    stack = trained("mlp", "sgd", 32, grid(1e-3, 1e-1, 4, [0]), 20, halving=True, at_once=3)
    assert stack.stopped
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    again = Stack.build(builder("mlp"), stack.lanes, RULES["sgd"], torch.float64, CPU)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert (again.stopped, again.alive, again.at_once) == (stack.stopped, stack.alive, 3)


def test_every_updates_loss_is_kept_where_asked() -> None:
    configurations = [Lane(0.01, 0), Lane(1e200, 0), Lane(0.02, 1)]
    workload = small("cubic")
    stack = Stack.build(builder("mlp"), configurations, RULES["sgd"], torch.float64, CPU)
    training = train_stack(stack, made("mlp", 32, stack), workload, 32, Budget(epochs=3), every_update=True)
    traces = [trace for report in training for trace in report.traces]
    whens = [when for trace in traces for when, *_ in trace.updates()]
    assert [when[0] for when in whens] == list(range(1, 13))
    assert [when[1] for when in whens][:5] == [32, 64, 96, 100, 132]
    assert [when[3] for when in whens] == sorted(when[3] for when in whens)
    assert math.isclose(whens[-1][3], stack.seconds)
    # A lane that diverges has the losses that it had before.
    assert next(lanes for trace in traces for _, lanes, _ in trace.updates()) == [0, 1, 2]
    assert sum(1 in lanes for trace in traces for _, lanes, _ in trace.updates()) == stack.updates[1] == 1
    network, rows = initialise(builder("mlp"), 1).double(), batch_order(1, 0, TRAINING)[:32]
    expected = nn.functional.mse_loss(network(workload.train.inputs[rows]), workload.train.targets[rows])
    assert math.isclose(traces[0].losses[0, traces[0].lanes.index(2)], expected.item(), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("reports", "rates", "rungs"),
    [(10, 8, {2: 4, 3: 2, 5: 1}), (8, 6, {1: 4, 2: 2, 4: 1}), (1, 8, {}), (2, 8, {1: 1}), (9, 1, {})],
)
def test_rates_are_halved_until_one_is_left_at_half_the_budget(reports: int, rates: int, rungs: dict[int, int]) -> None:
    assert rungs_of(reports, rates) == rungs


@pytest.mark.parametrize("batch_size", [16, TRAINING])
def test_augmented_images_depend_on_seed_epoch_and_example_alone(batch_size: int) -> None:
    workload = small("digits")
    augment = Augment(rotate=20, translate=0.1, mean=(0.3,), std=(0.4,))

    def seen(seeds: list[int], update: int) -> torch.Tensor:
        configurations = [Lane(0.1, seed) for seed in seeds]
        stack = Stack.build(builder("cnn"), configurations, RULES["sgd"], torch.float64, CPU)
        batches = Batches(workload.train, batch_size, stack, augment)
        assert not batches.whole
        return batches.take(batches.rows(update), slice(0, len(seeds)))[0]

    both, alone = seen([4, 7, 4], 0), seen([7], 0)
    assert torch.equal(both[0], both[2])
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
    per_epoch = math.ceil(TRAINING / batch_size)
    assert not torch.equal(seen([7], per_epoch)[0], alone[0])


def test_a_checkpoint_of_other_lanes_is_refused() -> None:
    one, other = ([Lane(rate, 0)] for rate in (0.1, 0.2))
    saved = Stack.build(builder("mlp"), one, RULES["sgd"], torch.float64, CPU).state_dict()
    with pytest.raises(ValueError, match="other lanes"):
        Stack.build(builder("mlp"), other, RULES["sgd"], torch.float64, CPU).load_state_dict(saved)


def test_equal_seeds_share_initialisation_and_batches_and_others_do_not() -> None:
    stack = Stack.build(builder("mlp"), [Lane(0.1, 4), Lane(0.2, 4), Lane(0.1, 5)], RULES["sgd"], torch.float64, CPU)
    assert torch.equal(stack.parameters[0], stack.parameters[1])
    assert not torch.equal(stack.parameters[0], stack.parameters[2])
    batches = Batches(small("cubic").train, 32, stack)
    inputs, _ = batches.take(batches.rows(7), slice(0, 3))
    assert inputs.shape == (3, 4, 2)  # update 7 is the short last batch of the second epoch
    assert torch.equal(inputs[0], inputs[1])
    assert not torch.equal(inputs[0], inputs[2])


@given(st.integers(1, 40), st.integers(1, 12))
def test_an_epoch_uses_every_example_once(count: int, batch_size: int) -> None:
    examples = Split(torch.arange(count, dtype=torch.float32)[:, None], torch.zeros(count, 1))
    stack = Stack.build(lambda: nn.Sequential(nn.Linear(1, 1)), [Lane(0.1, 0)], RULES["sgd"], torch.float32, CPU)
    batches = Batches(examples, batch_size, stack)
    seen = [row for update in range(batches.per_epoch) for row in batches.rows(update)[0].tolist()]
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("engine", ["eager", "cuda-graph", "native"])
def test_a_short_last_batch_can_be_left_out(engine: str) -> None:
    workload, budget, lane = small("cubic"), Budget(epochs=2, drop_last=True), Lane(0.01, 3)
    stack = Stack.build(builder("mlp"), [lane], RULES["sgd"], torch.float64, CPU)
    reports = list(train_stack(stack, made("mlp", 32, stack, engine), workload, 32, budget))
    assert [(report.epoch, report.examples) for report in reports] == [(1, 96), (2, 192)]
    alone = solo("mlp", "sgd", 32, lane, 6, drop_last=True)[0]
    assert stack.update == 6
    assert difference(stack.parameters[0], alone) <= 1e-12


@pytest.mark.parametrize(
    ("budget", "batch_size", "updates"),
    [
        (Budget(epochs=3), 32, 12),
        (Budget(epochs=3), 100, 3),
        (Budget(epochs=3, min_updates=50), 100, 50),
        (Budget(updates=7), 32, 7),
        (Budget(examples=250), 32, 10),
        (Budget(examples=250), 1, 250),
        (Budget(examples=10), 100, 1),
        (Budget(epochs=3, drop_last=True), 32, 9),
        (Budget(epochs=3, drop_last=True), 100, 3),
        (Budget(examples=250, drop_last=True), 32, 8),
    ],
)
def test_a_budget_in_updates(budget: Budget, batch_size: int, updates: int) -> None:
    assert budget.total_updates(batch_size, TRAINING) == updates
    stack = Stack.build(builder("linear"), [Lane(0.001, 0)], RULES["sgd"], torch.float64, CPU)
    reports = list(train_stack(stack, made("linear", batch_size, stack), small("linear"), batch_size, budget))
    assert stack.update == updates
    assert [report.number for report in reports] == list(range(1, budget.reports + 1))
    assert [report.finished for report in reports] == [False] * (budget.reports - 1) + [True]
    points = [point for report in reports for point in report.points]
    assert [point.update for point in points] == sorted({point.update for point in points})
    assert points[0].update == 0
    assert points[-1].update == updates


def test_examples_count_the_short_batch_as_what_it_is() -> None:
    schedule = EvaluationTimes(Budget(epochs=2), 32, TRAINING)
    assert [schedule.progress(update)[0] for update in (0, 1, 3, 4, 5, 8)] == [0, 32, 96, 100, 132, 200]


def test_evaluating_is_thinned_where_it_would_cost_more_than_its_share() -> None:
    def points(multiplications: int) -> int:
        schedule = EvaluationTimes(Budget(epochs=1), 16, 60_000, evaluated=6_000, multiplications=multiplications)
        stops = {*schedule.series(), schedule.end(0), schedule.end(1)}
        assert stops >= {0, 1, 3_750}
        return len(stops)

    # A tiny network is looked at 1, 2, 3, 4, 6 ... 3072 times; the report's CNN as often as a third of training pays.
    assert points(100) == 25
    assert points(115_000) <= 10
    few = EvaluationTimes(Budget(epochs=3), 4, 60_000, evaluated=6_000, multiplications=115_000, share=0)
    assert few.series() == [1]
    assert EvaluationTimes(Budget(epochs=1), 16, 60_000).series()[:8] == [1, 2, 3, 4, 6, 8, 12, 16]


def test_shares_add_up_to_the_stacks_seconds() -> None:
    stack = trained("mlp", "sgd", 32, [Lane(0.01, 0), Lane(1e200, 0), Lane(0.01, 1)], 40)
    assert math.isclose(stack.shares.sum(), stack.seconds, rel_tol=1e-9)
    assert stack.train_seconds[1] < stack.train_seconds[0] == stack.seconds


def test_batch_gradient_descent_on_linear_finds_least_squares() -> None:
    workload = data.load("linear", dtype=torch.float64)
    build = partial(models.build, "linear", (10,), 1)
    stack = Stack.build(build, [Lane(0.1, 0)], RULES["gradient-descent"], torch.float64, CPU)
    for _ in train_stack(stack, Eager(build(), Criterion("regression"), 100), workload, 100, Budget(updates=2000)):
        pass
    ones = torch.ones(100, 1, dtype=torch.float64)
    closed_form = torch.linalg.lstsq(torch.cat([workload.train.inputs, ones], 1), workload.train.targets).solution
    found = stack.parameters[0]
    assert difference(found, closed_form.flatten()) < 1e-9
    assert int((found[:10].abs() > 1).sum()) == 3
    assert int((found[:10].abs() > 1e-6).sum()) == 3
