"""Every engine computes what a configuration computes alone, whatever runs beside it and however it is cut up."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.solo import CPU, FAMILIES, TRAINING, builder, difference, fresh, made, small, solo, train_stack, trained
from trainables.config import Budget
from trainables.engines import dense, eager, memory, native
from trainables.engines.choose import choose
from trainables.engines.kernel.build import BuildError
from trainables.lanes.batches import Batches
from trainables.lanes.records import Report
from trainables.lanes.seeds import initialise
from trainables.lanes.stack import Lane, Stack, grid
from trainables.rules import RULES, named
from trainables.workloads import models
from trainables.workloads.catalogue import CATALOGUE, OPTIMIZERS, SOLO
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split

SIZES = (1, 32, TRAINING)


def cases() -> list[Any]:
    """Engine x rule x family x batch size.

    A rule sees the parameters of every network as flat rows, never layers or examples, so the grid need not be full:
    every rule runs with one network, and every network x batch size with one or two rules.
    """
    found = []
    for engine in ("eager", "cuda-graph", "native"):
        chosen = [(rule, "mlp", 32) for rule in RULES if engine != "native" or not OPTIMIZERS[rule].eager]
        chosen += [(rule, family, size) for rule in ("adam", "momentum") for family in FAMILIES for size in SIZES]
        for rule, family, size in dict.fromkeys(chosen):
            slow = rule != "adam" or (engine == "cuda-graph" and family == "cnn")
            marks = [pytest.mark.long] if slow and (family, size) != ("mlp", 32) and engine != "native" else []
            name = f"{engine}-{rule}-{family}-batch{size}"
            found.append(pytest.param(engine, rule, family, size, marks=marks, id=name))
    return found


@pytest.mark.parametrize(("engine", "rule", "family", "batch_size"), cases())
def test_a_lane_is_a_solo_run_of_torch_optim(engine: str, rule: str, family: str, batch_size: int) -> None:
    # Rules that divide by a gradient's size magnify the rounding of one near zero, in proportion to the rate: adagrad's
    # first update of the CNN differs by 2e-13 where the processor sums in another order (AVX2 against AVX-512).
    low, _ = RULES[rule].rates
    configurations = [Lane(low, 3), Lane(10 * low, 8)]
    expected = [solo(family, rule, batch_size, lane, 1, 100) for lane in configurations]
    stack = fresh(family, rule, configurations)
    maker, workload = made(family, batch_size, stack, engine), small(FAMILIES[family][0])
    for pause, (updates, tolerance) in enumerate(((1, 1e-12), (100, 1e-9))):
        for _ in train_stack(stack, maker, workload, batch_size, Budget(updates=updates)):
            pass
        assert (stack.update, stack.alive) == (updates, [0, 1])
        for row, alone in zip(stack.parameters, expected, strict=True):
            assert difference(row, alone[pause]) <= tolerance


EACH = pytest.mark.parametrize(
    ("engine", "family"),
    [
        *(pytest.param("eager", family, id=f"eager-{family}") for family in FAMILIES),
        pytest.param("cuda-graph", "mlp", id="cuda-graph-mlp"),
        pytest.param("native", "mlp", id="native-mlp"),
        pytest.param("native", "cnn", id="native-cnn"),
    ],
)


@EACH
@pytest.mark.parametrize("batch_size", [1, 32])
def test_neighbours_and_place_do_not_change_a_lane(engine: str, family: str, batch_size: int) -> None:
    lane, others = Lane(0.01, 5), [Lane(0.001 * (1 + n), n) for n in range(15)]
    alone = trained(family, "momentum", batch_size, [lane], 20, engine).parameters[0]
    for crowd, place in (([lane, *others], 0), ([*others, lane], 15)):
        beside = trained(family, "momentum", batch_size, crowd, 20, engine).parameters[place]
        assert difference(beside, alone) <= 1e-9


@EACH
@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_diverging_lane_is_taken_out_and_disturbs_no_other(engine: str, family: str, batch_size: int) -> None:
    calm = [Lane(0.001, 1), Lane(0.01, 2)]
    mixed = trained(family, "sgd", batch_size, [calm[0], Lane(1e200, 1), calm[1]], 30, engine)
    alone = trained(family, "sgd", batch_size, calm, 30, engine)
    assert list(mixed.diverged) == [1]
    assert mixed.alive == [0, 2]
    assert mixed.updates.tolist() == [30, mixed.diverged[1] - 1, 30]
    assert math.isnan(mixed.last["validation", "loss"][1])
    for ours, theirs in zip(mixed.parameters, alone.parameters, strict=True):
        assert difference(ours, theirs) <= 1e-9


@EACH
def test_the_same_trial_again_is_the_same_bit_for_bit(engine: str, family: str) -> None:
    runs = [trained(family, "adam", 32, grid(1e-4, 1e-2, 3, [0, 1]), 20, engine) for _ in range(2)]
    assert torch.equal(runs[0].parameters, runs[1].parameters)


@EACH
def test_passes_leave_every_lane_as_it_is(engine: str, family: str) -> None:
    configurations = [*grid(1e-3, 1e-2, 3, [0, 1, 2]), Lane(1e200, 0)]
    together = trained(family, "sgd", 32, configurations, 40, engine)
    parted = trained(family, "sgd", 32, configurations, 40, engine, at_once=4)
    assert parted.at_once == 4
    assert parted.alive == together.alive == list(range(9))
    for ours, theirs in zip(parted.parameters, together.parameters, strict=True):
        assert difference(ours, theirs) <= 1e-9
    assert math.isclose(parted.shares.sum(), parted.seconds, rel_tol=1e-9)
    assert parted.train_seconds.max() < parted.seconds


@EACH
def test_memory_that_runs_out_halves_the_pass_and_loses_nothing(
    engine: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configurations = grid(1e-3, 1e-2, 4, [0, 1])
    undisturbed = trained(family, "adam", 32, configurations, 40, engine)
    kind: Any = type(made(family, 32, undisturbed, engine))
    whole = kind.advance

    def narrow(self: Any, stack: Stack, batches: Batches, rows: slice, stop: int) -> torch.Tensor:
        losses: torch.Tensor = whole(self, stack, batches, rows, stop)
        if rows.stop - rows.start > 3 and stack.update > 5:  # after everything has been changed in place
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return losses

    monkeypatch.setattr(kind, "advance", narrow)
    disturbed = trained(family, "adam", 32, configurations, 40, engine)
    assert disturbed.at_once == 2
    assert disturbed.alive == list(range(8))
    for ours, theirs in zip(disturbed.parameters, undisturbed.parameters, strict=True):
        assert difference(ours, theirs) <= 1e-9


@pytest.mark.parametrize(("engine", "rule"), [("cuda-graph", "adam"), ("solo", "ASGD")])
def test_memory_that_runs_out_in_the_middle_of_a_pass(engine: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = trained("mlp", rule, 32, grid(1e-3, 1e-2, 4, [0]), 30, engine)
    take, calls = Batches.take, [0]

    def full(self: Batches, rows: torch.Tensor, lanes: Any) -> Any:
        calls[0] += 1
        if calls[0] == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take(self, rows, lanes)

    monkeypatch.setattr(Batches, "take", full)
    disturbed = trained("mlp", rule, 32, grid(1e-3, 1e-2, 4, [0]), 30, engine)
    assert disturbed.at_once < 4
    assert difference(disturbed.parameters, undisturbed.parameters) <= 1e-12


def test_memory_that_does_not_hold_one_lane_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(eager.Eager, "advance", full)
    with pytest.raises(torch.OutOfMemoryError):
        trained("mlp", "sgd", 32, grid(1e-3, 1e-2, 4, [0]), 10)


@EACH
def test_halving_gives_up_the_worse_rates_and_leaves_the_others_as_they_are(engine: str, family: str) -> None:
    configurations = [*grid(1e-4, 3e-2, 8, [0, 1]), Lane(1e200, 0), Lane(1e200, 1)]
    whole = trained(family, "sgd", 32, configurations, 40, engine)
    halved = trained(family, "sgd", 32, configurations, 40, engine, halving=True)
    # Of ten reports of 4 updates: nine rates, one of them lost, are 4 after the second, 2 after the third, then 1.
    assert list(halved.diverged) == [16, 17]
    assert sorted(halved.stopped.values()) == [8] * 8 + [12] * 4 + [20] * 2
    assert len({halved.lanes[lane].learning_rate for lane in halved.alive}) == 1
    assert sorted([*halved.stopped, *halved.diverged, *halved.alive]) == list(range(18))
    for lane, update in halved.stopped.items():
        assert halved.updates[lane] == update
        assert math.isfinite(halved.last["validation", "loss"][lane])
        assert math.isnan(halved.last["test", "loss"][lane])
    rows = dict(zip(whole.alive, whole.parameters, strict=True))
    for lane, row in zip(halved.alive, halved.parameters, strict=True):
        assert difference(row, rows[lane]) <= 1e-9


@pytest.mark.parametrize("rule", ["momentum", "adam", "nadam", "radam", "adamw", "adadelta"])
@pytest.mark.parametrize("engine", ["eager", "cuda-graph", "native"])
def test_settings_may_differ_between_lanes(engine: str, rule: str) -> None:
    name, value = {"momentum": ("momentum", 0.5), "adadelta": ("rho", 0.8)}.get(rule, ("beta2", 0.95))
    low = RULES[rule].rates[0]
    own = ((name, value),)
    configurations = [Lane(10 * low, 1), Lane(10 * low, 1, own), Lane(10 * low, 2, own)]
    stack = trained("mlp", rule, 32, configurations, 50, engine)
    for row, lane in zip(stack.parameters, configurations, strict=True):
        assert difference(row, solo("mlp", rule, 32, lane, 50)[0]) <= 1e-9
    assert difference(stack.parameters[1], stack.parameters[0]) > 1e-9


def test_an_unstackable_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"adam has no setting .*momentum.*beta1"):
        Stack.build(builder("mlp"), [Lane(0.1, 0, (("momentum", 0.9),))], RULES["adam"], torch.float64, CPU)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.long) if each == "LBFGS" else each for each in SOLO]
)
def test_any_other_torch_optimizer_runs_lane_by_lane_and_resumes(name: str) -> None:
    configurations = grid(*named(name).rates, 2, [0, 1])
    workload = small("cubic")

    def fresh() -> Stack:
        return Stack.build(builder("mlp"), configurations, named(name), torch.float64, CPU)

    def run(stack: Stack) -> Iterator[Report]:
        return train_stack(stack, made("mlp", 32, stack, "auto"), workload, 32, Budget(epochs=4))

    whole, first, second = fresh(), fresh(), fresh()
    list(run(whole))
    next(run(first))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    list(run(second))
    assert whole.update == 16
    assert 0 not in whole.diverged
    assert torch.equal(second.parameters, whole.parameters)
    alone = solo("mlp", name, 32, configurations[0], 16)[0]
    assert difference(whole.parameters[whole.alive.index(0)], alone) <= 1e-9


@pytest.mark.parametrize(
    ("rule", "engine", "message"),
    [("ASGD", "native", "no update rule"), ("adam", "solo", "adam has one")],
)
def test_an_engine_that_does_not_suit_the_optimizer_is_refused(rule: str, engine: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained("mlp", rule, 32, [Lane(0.01, 0)], 5, engine)


def test_the_engine_of_a_cpu_is_native_where_the_kernel_knows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(wanted: str = "auto", rule: str = "adam", family: str = "mlp", loss: str = "", **how: Any) -> str:
        stack = Stack.build(builder(family), grid(1e-4, 1e-2, 8, range(5)), named(rule), torch.float64, CPU)
        facts = CATALOGUE[FAMILIES[family][0]]
        return choose(builder(family), facts.in_shape, Criterion(facts.task, loss), 32, stack, wanted, **how).name

    for family in FAMILIES:
        assert chosen(family=family) == "native"
    for width, lanes, engine in ((8, 1, "native"), (16, 1, "eager"), (16, 4, "native"), (32, 18, "eager")):

        def build(width: int = width) -> nn.Module:
            return models.build("cnn", (1, 28, 28), 10, width=width, depth=2)

        stack = Stack.build(build, [Lane(0.1, 0)] * lanes, named("adam"), torch.float32, CPU)
        assert choose(build, (1, 28, 28), "classification", 64, stack).name == engine
    assert chosen(rule="LBFGS") == "solo"
    assert chosen(augmented=True) == chosen(loss="tests.user_code:huber") == "eager"
    with pytest.raises(ValueError, match="native does not support augmentation; choose auto"):
        chosen("native", augmented=True)
    with pytest.raises(ValueError, match="native does not support losses of users; choose auto"):
        chosen("native", loss="tests.user_code:huber")

    def no_compiler(dtype: str) -> None:
        raise BuildError("no C compiler")

    monkeypatch.setattr("trainables.engines.native.library", no_compiler)
    assert chosen() == "eager"
    with pytest.raises(BuildError, match="no C compiler"):
        chosen("native")


@pytest.mark.parametrize(
    ("family", "arguments", "in_shape", "outputs"),
    [
        ("mlp", {"width": 128, "depth": 2}, (1, 28, 28), 10),
        ("mlp", {"width": 9, "depth": 3}, (3,), 2),
        ("linear", {}, (1, 8, 8), 10),
    ],
    ids=["wide", "odd", "linear"],
)
def test_the_written_derivatives_are_those_of_autograd(
    family: str, arguments: dict[str, int], in_shape: tuple[int, ...], outputs: int
) -> None:
    network = initialise(lambda: models.build(family, in_shape, outputs, **arguments), 0).double()
    random = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (5, *in_shape), generator=random).double()  # with zeros, where a ReLU has its kink
    y = torch.randint(outputs, (5,), generator=random)
    loss = nn.functional.cross_entropy(network(x), y)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    layers = dense.linear_layers(network)
    assert layers is not None
    leaves = [parameter.detach()[None] for parameter in network.parameters()]
    own, gradients = dense.gradients(layers, leaves, x.movedim(0, -1)[None], y[None], 5, "classification")
    torch.testing.assert_close(own[0], loss.detach(), rtol=1e-13, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=1e-11, atol=1e-14)


def test_a_wide_network_sees_the_whole_split_and_short_batches() -> None:
    workload = small("digits")

    def build() -> nn.Sequential:
        return models.mlp((1, 8, 8), 10, width=64, depth=2)

    def parameters(engine: str, batch_size: int) -> torch.Tensor:
        stack = Stack.build(build, grid(1e-3, 1e-2, 3, [0, 1]), RULES["adam"], torch.float64, CPU)
        maker = choose(build, (1, 8, 8), "classification", batch_size, stack, engine)
        list(train_stack(stack, maker, workload, batch_size, Budget(updates=10)))
        return stack.parameters

    for batch_size in (32, TRAINING):
        assert difference(parameters("native", batch_size), parameters("eager", batch_size)) <= 1e-9


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh()),
    ],
    ids=["stride", "tanh"],
)
def test_the_kernel_does_not_describe_what_it_cannot_compute(network: nn.Sequential) -> None:
    assert native.described(network, (1, 8, 8)) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_examples_leave_the_gradient_as_it_is(family: str) -> None:
    workload = small(FAMILIES[family][0])
    stack = Stack.build(builder(family), grid(0.1, 0.1, 1, [0, 1, 2]), RULES["sgd"], torch.float64, CPU)
    every, batches = slice(0, 3), Batches(workload.train, TRAINING, stack)
    everything = torch.arange(TRAINING).expand(3, -1)

    def gradient(batch: torch.Tensor | None, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        engine = eager.Eager(builder(family)(), Criterion(workload.task), block)
        return engine.gradient(stack, stack.leaves(every), batches, batch, every, 0)

    expected = gradient(None, TRAINING)
    for batch in (None, everything):
        for block in (1, 7, 64, TRAINING):
            torch.testing.assert_close(gradient(batch, block), expected, rtol=1e-12, atol=1e-14)


def test_evaluation_is_the_mean_over_the_split() -> None:
    workload = small("digits")
    stack = Stack.build(builder("cnn"), [Lane(0.1, 0), Lane(0.1, 1)], RULES["sgd"], torch.float64, CPU)
    engine = eager.Eager(builder("cnn")(), Criterion("classification"), 7)
    found = engine.evaluate(stack, slice(0, 2), workload.validation)
    for row, seed in enumerate((0, 1)):
        outputs = initialise(builder("cnn"), seed).double()(workload.validation.inputs)
        loss = nn.functional.cross_entropy(outputs, workload.validation.targets)
        accuracy = (outputs.argmax(1) == workload.validation.targets).double().mean()
        assert math.isclose(found["loss"][row], loss.item(), rel_tol=1e-12)
        assert math.isclose(found["accuracy"][row], accuracy.item(), rel_tol=1e-12)


def test_a_layer_that_lanes_do_not_know_is_named() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d"):
        eager.stacked(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_memory_is_reckoned_from_parameters_buffers_and_activations() -> None:
    stack = Stack.build(builder("mlp"), [Lane(0.1, 0)] * 4, RULES["adam"], torch.float64, CPU)
    network = builder("mlp")()
    kept, working = memory.lane_bytes(network, (2,), 32, stack)
    assert kept == 193 * 3 * 8
    assert working == (3 * 193 + 2 * 32 * models.activations(network, (2,))) * 8
    assert memory.fitting(network, (2,), 32, stack) == 4


def test_lanes_that_memory_does_not_hold_go_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack.build(builder("mlp"), [Lane(0.1, 0)] * 64, RULES["adam"], torch.float64, CPU)
    kept, working = memory.lane_bytes(builder("mlp")(), (2,), 32, stack)
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int((64 * kept + 10.5 * working) / memory.MEMORY_SHARE)}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 1)
    assert memory.fitting(builder("mlp")(), (2,), 32, stack) == 10


def test_the_whole_split_is_not_copied_for_every_lane() -> None:
    split = Split(torch.zeros(7, 2), torch.zeros(7, 1))
    stack = Stack.build(builder("mlp"), [Lane(0.1, 0), Lane(0.1, 1)], RULES["sgd"], torch.float32, CPU)
    assert Batches(split, 7, stack).whole
    assert not Batches(split, 6, stack).whole
