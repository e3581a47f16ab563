"""Lane equality, divergence, schedules and resuming: what a lane computes is what its configuration computes alone."""

from __future__ import annotations

import io
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainables import data, lanes, models
from trainables.data import Data, Split
from trainables.lanes import Budget, Lane, Stack
from trainables.rules import RULES

CPU = torch.device("cpu")
TRAINING = 100  # not a multiple of 32: every epoch ends in a short batch
FAMILIES = {
    "linear": ("linear", {}),
    "mlp": ("cubic", {"width": 16, "depth": 2}),
    "cnn": ("digits", {"width": 2, "depth": 2, "kernel": 3, "padding": 1}),
}


def small(name: str) -> Data:
    """A workload's data, with few training examples."""
    full = data.load(name, standardize=True, dtype=torch.float64)
    return Data(full.name, full.task, full.train.head(TRAINING), full.validation.head(20), full.test.head(20))


def builder(family: str) -> lanes.Builder:
    name, arguments = FAMILIES[family]
    facts = data.CATALOGUE[name]
    return partial(models.build, family, facts.in_shape, facts.out_features, **arguments)


def trained(family: str, rule: str, batch_size: int, configurations: list[Lane], updates: int) -> Stack:
    """A stack after so many updates, in float64."""
    stack = Stack.build(builder(family), configurations, RULES[rule], torch.float64, CPU)
    workload = small(FAMILIES[family][0])
    for _ in lanes.train(stack, builder(family), workload, RULES[rule], batch_size, Budget(updates=updates)):
        pass
    return stack


def solo(family: str, rule: str, batch_size: int, lane: Lane, updates: int) -> torch.Tensor:
    """The parameters that an ordinary torch.optim loop ends with."""
    workload, net = small(FAMILIES[family][0]), lanes.initialise(builder(family), lane.seed).double()
    settings = dict(RULES[rule].settings)
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    if rule in ("nesterov", "amsgrad"):
        settings[rule] = True
    optimizer = RULES[rule].torch_class(net.parameters(), lr=lane.learning_rate, **settings)
    criterion = nn.MSELoss() if workload.task == "regression" else nn.CrossEntropyLoss()
    per_epoch = math.ceil(TRAINING / batch_size)
    for update in range(updates):
        epoch, place = divmod(update, per_epoch)
        order = lanes.batch_order(lane.seed, epoch, TRAINING) if batch_size < TRAINING else torch.arange(TRAINING)
        rows = order[place * batch_size : (place + 1) * batch_size]
        optimizer.zero_grad()
        criterion(net(workload.train.inputs[rows]), workload.train.targets[rows]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("batch_size", [1, 32, TRAINING], ids=["batch1", "batch32", "full"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_lane_is_a_solo_run_of_torch_optim(rule: str, family: str, batch_size: int) -> None:
    # Rules that divide by a gradient's size magnify the rounding of one near zero, in proportion to the rate; ten times
    # the lowest rate keeps that below the tolerance after one update.
    low, _ = RULES[rule].rates
    configurations = lanes.grid(low, 10 * low, 2, seeds=[3, 8])
    for updates, tolerance in ((1, 1e-13), (100, 1e-9)):
        stack = trained(family, rule, batch_size, configurations, updates)
        assert stack.alive == [0, 1, 2, 3]
        for row, lane in zip(stack.parameters, configurations, strict=True):
            assert difference(row, solo(family, rule, batch_size, lane, updates)) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 32, TRAINING], ids=["batch1", "batch32", "full"])
def test_neighbours_and_place_do_not_change_a_lane(family: str, batch_size: int) -> None:
    lane, others = Lane(0.01, 5), [Lane(0.001 * (1 + n), n) for n in range(63)]
    alone = trained(family, "momentum", batch_size, [lane], 50).parameters[0]
    for crowd, place in (([lane, *others], 0), ([*others, lane], 63)):
        assert difference(trained(family, "momentum", batch_size, crowd, 50).parameters[place], alone) <= 1e-9


def test_the_same_trial_again_is_the_same_bit_for_bit() -> None:
    runs = [trained("mlp", "adam", 32, lanes.grid(1e-4, 1e-2, 3, [0, 1]), 60) for _ in range(2)]
    assert torch.equal(runs[0].parameters, runs[1].parameters)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 32, TRAINING], ids=["batch1", "batch32", "full"])
def test_a_diverging_lane_is_taken_out_and_disturbs_no_other(family: str, batch_size: int) -> None:
    calm = [Lane(0.001, 1), Lane(0.01, 2)]
    mixed = trained(family, "sgd", batch_size, [calm[0], Lane(1e200, 1), calm[1]], 60)
    alone = trained(family, "sgd", batch_size, calm, 60)
    assert list(mixed.diverged) == [1]
    assert mixed.alive == [0, 2]
    assert mixed.updates.tolist() == [60, mixed.diverged[1] - 1, 60]
    assert math.isnan(mixed.last["validation", "loss"][1])
    for ours, theirs in zip(mixed.parameters, alone.parameters, strict=True):
        assert difference(ours, theirs) <= 1e-9


def test_divergence_is_dated_by_the_update_that_was_not_finite() -> None:
    # One weight, x = 1, y = 0: w <- w (1 - 2 lr), so the loss w^2 overflows float64 when |w| passes 1e154.
    ones = Split(torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(1, 1))

    workload = Data("linear", "regression", ones, ones, ones)
    stack = Stack.build(build, [Lane(5e9, 0), Lane(0.1, 0)], RULES["sgd"], torch.float64, CPU)
    weight = sum(stack.parameters[0].tolist())
    reports = list(lanes.train(stack, build, workload, RULES["sgd"], 4, Budget(updates=100)))
    # The sum s of weight and bias is the output, and shrinks or grows by the factor 1 - 4 lr per update.
    expected = math.ceil((154.127 - math.log10(abs(weight))) / math.log10(4 * 5e9)) + 1
    assert stack.diverged == {0: expected}
    assert len(reports) == 10


def test_a_trial_whose_lanes_all_diverge_ends_at_once() -> None:
    stack = Stack.build(builder("mlp"), [Lane(1e200, 0)], RULES["sgd"], torch.float64, CPU)
    reports = list(lanes.train(stack, builder("mlp"), small("cubic"), RULES["sgd"], 1, Budget(epochs=50)))
    assert len(reports) == 1
    assert reports[0].finished
    assert stack.alive == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resuming_from_a_checkpoint_is_bit_for_bit(rule: str, stop_after: int) -> None:
    configurations = [*lanes.grid(1e-4, 1e-2, 2, [0, 1]), Lane(1e200, 0)]
    workload, budget = small("cubic"), Budget(epochs=5)

    def fresh() -> Stack:
        return Stack.build(builder("mlp"), configurations, RULES[rule], torch.float64, CPU)

    def run(stack: Stack) -> lanes.Iterator[lanes.Report]:
        return lanes.train(stack, builder("mlp"), workload, RULES[rule], 32, budget)

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


def test_a_checkpoint_of_other_lanes_is_refused() -> None:
    one, other = ([Lane(rate, 0)] for rate in (0.1, 0.2))
    saved = Stack.build(builder("mlp"), one, RULES["sgd"], torch.float64, CPU).state_dict()
    with pytest.raises(ValueError, match="other lanes"):
        Stack.build(builder("mlp"), other, RULES["sgd"], torch.float64, CPU).load_state_dict(saved)


def test_equal_seeds_share_initialisation_and_batches_and_others_do_not() -> None:
    stack = Stack.build(builder("mlp"), [Lane(0.1, 4), Lane(0.2, 4), Lane(0.1, 5)], RULES["sgd"], torch.float64, CPU)
    assert torch.equal(stack.parameters[0], stack.parameters[1])
    assert not torch.equal(stack.parameters[0], stack.parameters[2])
    batch = lanes.Batches(small("cubic").train, 32, stack)(7)
    assert batch is not None
    assert batch.shape == (3, 4)  # update 7 is the short last batch of the second epoch
    assert torch.equal(batch[0], batch[1])
    assert not torch.equal(batch[0], batch[2])


@given(st.integers(1, 40), st.integers(1, 12))
def test_an_epoch_uses_every_example_once(count: int, batch_size: int) -> None:
    examples = Split(torch.arange(count, dtype=torch.float32)[:, None], torch.zeros(count, 1))
    stack = Stack.build(lambda: nn.Sequential(nn.Linear(1, 1)), [Lane(0.1, 0)], RULES["sgd"], torch.float32, CPU)
    batches = lanes.Batches(examples, batch_size, stack)
    rows = (batches(update) for update in range(batches.per_epoch))
    seen = [row for batch in rows for row in (range(count) if batch is None else batch[0].tolist())]
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_examples_leave_the_gradient_as_it_is(family: str) -> None:
    workload = small(FAMILIES[family][0])
    stack = Stack.build(builder(family), lanes.grid(0.1, 0.1, 1, [0, 1, 2]), RULES["sgd"], torch.float64, CPU)
    forward, leaves = lanes.stacked(builder(family)()), stack.leaves()
    everything = torch.arange(TRAINING).expand(3, -1)
    expected = lanes.gradient(forward, leaves, workload.train, None, workload.task, TRAINING)
    for batch in (None, everything):
        for block in (1, 7, 64, TRAINING):
            found = lanes.gradient(forward, leaves, workload.train, batch, workload.task, block)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


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
    ],
)
def test_a_budget_in_updates(budget: Budget, batch_size: int, updates: int) -> None:
    assert budget.total_updates(batch_size, TRAINING) == updates
    stack = Stack.build(builder("linear"), [Lane(0.001, 0)], RULES["sgd"], torch.float64, CPU)
    reports = list(lanes.train(stack, builder("linear"), small("linear"), RULES["sgd"], batch_size, budget))
    assert stack.update == updates
    assert [report.number for report in reports] == list(range(1, budget.reports + 1))
    assert [report.finished for report in reports] == [False] * (budget.reports - 1) + [True]
    points = [point for report in reports for point in report.points]
    assert [point.update for point in points] == sorted({point.update for point in points})
    assert points[0].update == 0
    assert points[-1].update == updates


def test_a_budget_in_seconds_is_spent_on_training_alone() -> None:
    stack = Stack.build(builder("mlp"), [Lane(0.001, 0)], RULES["sgd"], torch.float64, CPU)
    reports = list(lanes.train(stack, builder("mlp"), small("cubic"), RULES["sgd"], 1, Budget(seconds=0.2)))
    assert len(reports) == 10
    assert stack.seconds >= 0.2
    assert stack.train_seconds.tolist() == [stack.seconds]


def test_examples_count_the_short_batch_as_what_it_is() -> None:
    schedule = lanes.Schedule(Budget(epochs=2), 32, TRAINING)
    assert [schedule.progress(update)[0] for update in (0, 1, 3, 4, 5, 8)] == [0, 32, 96, 100, 132, 200]


def test_evaluating_is_thinned_where_it_would_cost_more_than_its_share() -> None:
    def points(multiplications: int) -> int:
        schedule = lanes.Schedule(Budget(epochs=1), 16, 60_000, evaluated=6_000, multiplications=multiplications)
        stops = {*schedule.series(), schedule.end(0), schedule.end(1)}
        assert stops >= {0, 1, 3_750}
        return len(stops)

    # A tiny network is looked at 1, 2, 3, 4, 6 ... 3072 times; the report's CNN as often as a third of training pays.
    assert points(100) == 25
    assert points(115_000) <= 10
    assert lanes.Schedule(Budget(epochs=1), 16, 60_000).series()[:8] == [1, 2, 3, 4, 6, 8, 12, 16]


def test_shares_add_up_to_the_stacks_seconds() -> None:
    stack = trained("mlp", "sgd", 32, [Lane(0.01, 0), Lane(1e200, 0), Lane(0.01, 1)], 40)
    assert math.isclose(stack.shares.sum(), stack.seconds, rel_tol=1e-9)
    assert stack.train_seconds[1] < stack.train_seconds[0] == stack.seconds


def test_evaluation_is_the_mean_over_the_split() -> None:
    workload = small("digits")
    stack = Stack.build(builder("cnn"), [Lane(0.1, 0), Lane(0.1, 1)], RULES["sgd"], torch.float64, CPU)
    found = lanes.evaluation(lanes.stacked(builder("cnn")()), stack.leaves(), workload.validation, "classification", 7)
    for row, seed in enumerate((0, 1)):
        outputs = lanes.initialise(builder("cnn"), seed).double()(workload.validation.inputs)
        loss = nn.functional.cross_entropy(outputs, workload.validation.targets)
        accuracy = (outputs.argmax(1) == workload.validation.targets).double().mean()
        assert math.isclose(found["loss"][row], loss.item(), rel_tol=1e-12)
        assert math.isclose(found["accuracy"][row], accuracy.item(), rel_tol=1e-12)


def test_a_layer_that_lanes_do_not_know_is_named() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d"):
        lanes.stacked(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_batch_gradient_descent_on_linear_finds_least_squares() -> None:
    workload = data.load("linear", dtype=torch.float64)
    build = partial(models.build, "linear", (10,), 1)
    stack = Stack.build(build, [Lane(0.1, 0)], RULES["gradient-descent"], torch.float64, CPU)
    for _ in lanes.train(stack, build, workload, RULES["gradient-descent"], 100, Budget(updates=2000)):
        pass
    ones = torch.ones(100, 1, dtype=torch.float64)
    closed_form = torch.linalg.lstsq(torch.cat([workload.train.inputs, ones], 1), workload.train.targets).solution
    found = stack.parameters[0]
    assert difference(found, closed_form.flatten()) < 1e-9
    assert int((found[:10].abs() > 1).sum()) == 3
    assert int((found[:10].abs() > 1e-6).sum()) == 3
