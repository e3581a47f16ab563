"""Lanes of users' models, optimizers, losses and scores compute what each computes alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests import user_code
from trainables.engines.choose import choose
from trainables.lanes import equality
from trainables.lanes.batches import Batches
from trainables.lanes.equality import prove
from trainables.lanes.stack import Lane, Stack, grid
from trainables.lanes.train import advance
from trainables.rules import RULES, Rule, named
from trainables.usercode.importing import UserCodeError
from trainables.usercode.vmap_support import support_of
from trainables.workloads import data, models
from trainables.workloads.criterion import Criterion

CPU = torch.device("cpu")
MODELS = ["Residual", "Vision", "Normed", "Noisy", "plain"]


SCALED = Rule("scaled", RULES["adam"].unit_update, torch.optim.Adam, (1e-3, 1e-1), ("exp_avg", "exp_avg_sq"),
              {"beta1": 0.8, "beta2": 0.99, "eps": 1e-8}, RULES["adam"].columns)  # fmt: skip


IMAGES = Criterion("classification")


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load("digits", standardize=True, dtype=torch.float64)


def maker(name: str, found: data.Data, **arguments: Any) -> Any:
    size = {"width": 8, "depth": 2, **arguments}
    return partial(models.build, f"tests.user_code:{name}", found.in_shape, found.out_features, **size)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "tests.test_vmapped:SCALED", "tests.user_code:Lion"])
@pytest.mark.parametrize("model", MODELS)
def test_lanes_equal_networks_alone(model: str, optimizer: str, digits: data.Data) -> None:
    pairs = grid(1e-3, 1e-2, 2, [3, 4])
    proof = prove(maker(model, digits), named(optimizer), digits, 50, pairs, IMAGES, model)
    assert proof.difference < 1e-8
    expected = {"plain": "native" if optimizer in RULES else "eager"}.get(model, "vmap")
    assert proof.engine == ("solo" if named(optimizer).solo else expected)


STYLED = {
    "mlp dropout": ("mlp", {"dropout": 0.2, "activation": "gelu"}),
    "mlp batch norm": ("mlp", {"norm": "batch", "dropout": 0.1, "activation": "silu", "residual": True}),
    "mlp layer norm": ("mlp", {"norm": "layer", "activation": "tanh", "init": "orthogonal"}),
    "cnn batch norm": ("cnn", {"norm": "batch", "dropout": 0.2, "residual": True, "kernel": 3, "init": "kaiming"}),
    "cnn layer norm": ("cnn", {"norm": "layer", "dropout": 0.2, "activation": "leaky-relu", "kernel": 3}),
}


def styled(name: str, found: data.Data) -> Any:
    family, arguments = STYLED[name]
    size = {"width": 4, "depth": 1} if family == "cnn" else {"width": 16, "depth": 2}
    return partial(models.build, family, found.in_shape, found.out_features, **size, **arguments)


@pytest.mark.parametrize("name", [*STYLED, "Noisy"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_hundred_updates_of_shipped_and_drawing_models(
    name: str, optimizer: str, digits: data.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equality, "UPDATES", 100)
    monkeypatch.setattr(equality, "TURN_SECONDS", 1e-6)
    build = styled(name, digits) if name in STYLED else maker(name, digits)
    proof = prove(build, RULES[optimizer], digits, 50, grid(1e-3, 1e-2, 2, [3, 4]), IMAGES, name)
    assert proof.difference < 1e-9
    assert proof.engine == "vmap"


def test_lanes_draw_apart_where_all_see_the_whole_split(digits: data.Data) -> None:
    lanes = grid(1e-3, 1e-2, 2, [3, 4])
    proof = prove(maker("Noisy", digits), RULES["momentum"], digits, len(digits.train), lanes, IMAGES, "Noisy")
    assert proof.difference < 1e-9
    assert proof.engine == "vmap"


@pytest.mark.parametrize("model", [*MODELS[:4], "mlp dropout", "mlp batch norm", "cnn batch norm"])
def test_lanes_are_equal_after_pauses_in_passes_and_alone(model: str, digits: data.Data) -> None:
    """Interrupted or not, in passes or all at once, alone or among others: the same numbers."""
    build = styled(model, digits) if model in STYLED else maker(model, digits)
    all_lanes = grid(1e-3, 1e-2, 2, [0, 1])

    def trained(those: list[Lane], at_once: int = 0, pauses: tuple[int, ...] = ()) -> Stack:
        stack = Stack.build(build, those, RULES["adam"], torch.float64, torch.device("cpu"))
        for stop in (*pauses, 30):
            saved, stack = (
                stack.state_dict(),
                Stack.build(build, those, RULES["adam"], torch.float64, torch.device("cpu")),
            )
            stack.load_state_dict(saved)
            stack.at_once = at_once or len(those)
            engine = choose(build, digits.in_shape, IMAGES, 100, stack)
            advance(stack, engine, Batches(digits.train, 100, stack), stop)
        return stack

    whole = trained(all_lanes)
    cut = trained(all_lanes, pauses=(7, 19))
    assert torch.equal(whole.parameters, cut.parameters)
    assert all(torch.equal(whole.extras[name], cut.extras[name]) for name in whole.extras)
    for other, rows in ((trained(all_lanes, at_once=3), slice(None)), (trained(all_lanes[2:3]), slice(2, 3))):
        assert torch.allclose(whole.parameters[rows], other.parameters, rtol=1e-8, atol=1e-8)
        for name, extra in whole.extras.items():
            assert torch.allclose(extra[rows].double(), other.extras[name].double(), rtol=1e-8, atol=1e-8)


def test_batch_norm_is_evaluated_by_running_means(digits: data.Data) -> None:
    build = maker("Normed", digits)
    stack = Stack.build(build, [Lane(0.01, 0), Lane(0.01, 1)], RULES["sgd"], torch.float64, torch.device("cpu"))
    engine = choose(build, digits.in_shape, IMAGES, 100, stack)
    advance(stack, engine, Batches(digits.train, 100, stack), 5)
    assert stack.extras["body.1.num_batches_tracked"].tolist() == [5, 5]
    before = {name: extra.clone() for name, extra in stack.extras.items()}
    found = engine.evaluate(stack, slice(0, 2), digits.validation)
    classes, _ = engine.predict(stack, slice(0, 2), digits.validation)
    engine.noise(stack, slice(0, 2), digits.train.head(200))
    assert all(torch.equal(stack.extras[name], extra) for name, extra in before.items())
    net = build().double().eval()
    state = dict(zip(models.trained(net), stack.leaves(slice(1, 2)), strict=True))
    net.load_state_dict({name: leaf[0].detach() for name, leaf in state.items()} | {n: e[1] for n, e in before.items()})
    outputs = net(digits.validation.inputs).detach()
    loss = torch.nn.functional.cross_entropy(outputs, digits.validation.targets)
    assert found["loss"][1].item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.equal(classes[1], outputs.argmax(1))


def test_frozen_parameters_do_not_change(digits: data.Data) -> None:
    build = maker("Residual", digits, frozen=True)
    stack = Stack.build(build, [Lane(0.01, 0), Lane(0.01, 1)], RULES["sgd"], torch.float64, torch.device("cpu"))
    first = {name: extra.clone() for name, extra in stack.extras.items()}
    assert set(first) == {"first.weight", "first.bias"}  # they differ from seed to seed
    engine = choose(build, digits.in_shape, IMAGES, 100, stack)
    before = stack.parameters.clone()
    advance(stack, engine, Batches(digits.train, 100, stack), 5)
    assert all(torch.equal(stack.extras[name], extra) for name, extra in first.items())
    assert not torch.equal(before, stack.parameters)


@pytest.mark.parametrize(
    ("model", "together", "whole", "draws"),
    [("Residual", True, False, False), ("Vision", True, False, False), ("Normed", True, True, False),
     ("Dropped", True, True, True), ("Noisy", True, True, True), ("Shuffled", False, True, True)],
)  # fmt: skip
def test_support_of_finds_how_lanes_can_run(
    model: str, together: bool, whole: bool, draws: bool, digits: data.Data
) -> None:
    support = support_of(maker(model, digits), digits.train.inputs[:4])
    assert (support.together, support.whole, support.draws) == (together, whole, draws)
    assert bool(support.why) is not together


@pytest.mark.parametrize(
    ("name", "optimizer", "engine"),
    [
        ("plain", "adam", "eager"),
        ("plain", "ASGD", "solo"),
        ("mlp dropout", "adam", "vmap"),
        ("Shuffled", "sgd", "loop"),
    ],
)
def test_smoothed_labels_are_torchs(
    name: str, optimizer: str, engine: str, digits: data.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equality, "UPDATES", 100)
    monkeypatch.setattr(equality, "TURN_SECONDS", 1e-6)
    build = styled(name, digits) if name in STYLED else maker(name, digits)
    smoothed = Criterion("classification", smoothing=0.1)
    proof = prove(build, named(optimizer), digits, 50, grid(1e-3, 1e-2, 2, [3, 4]), smoothed, name)
    assert proof.difference < 1e-9
    assert proof.engine == engine


def test_labels_are_smoothed_in_training_alone(digits: data.Data) -> None:
    outputs, targets = torch.randn(2, 7, 10, dtype=torch.float64), digits.train.targets[None, :7]
    smoothed = Criterion("classification", smoothing=0.1)
    torchs = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")(outputs[1], targets[0])
    torch.testing.assert_close(smoothed.training_losses(outputs, targets)[1], torchs, rtol=1e-12, atol=0)
    assert torch.equal(smoothed.losses(outputs, targets), IMAGES.losses(outputs, targets))
    stack = Stack.build(maker("plain", digits), [Lane(0.1, 0)], RULES["sgd"], torch.float64, CPU)
    engine = choose(maker("plain", digits), digits.in_shape, smoothed, 50, stack)
    usual = choose(maker("plain", digits), digits.in_shape, IMAGES, 50, stack, "eager")
    here, there = (each.evaluate(stack, slice(0, 1), digits.validation) for each in (engine, usual))
    assert torch.equal(here["loss"], there["loss"])
    with pytest.raises(ValueError, match="native does not support label smoothing; choose auto"):
        choose(maker("plain", digits), digits.in_shape, smoothed, 50, stack, "native")


def test_lanes_of_one_seed_draw_the_same_and_of_another_differently(digits: data.Data) -> None:
    build = styled("mlp dropout", digits)
    stack = Stack.build(build, [Lane(0.0, 0), Lane(0.0, 0), Lane(0.0, 1)], RULES["sgd"], torch.float64, CPU)
    stack.parameters[:] = stack.parameters[0]
    batches = Batches(digits.train, len(digits.train), stack)  # so that orders do not matter
    losses = advance(stack, choose(build, digits.in_shape, IMAGES, 2000, stack), batches, 3)
    assert torch.equal(losses[:, 0], losses[:, 1])
    assert ((losses[:, 0] - losses[:, 2]).abs() > 1e-6).all()
    assert len(set(losses[:, 0].tolist())) == 3


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_engines_for_plain_layers_refuse_others(engine: str, digits: data.Data) -> None:
    build = styled("mlp dropout", digits)
    stack = Stack.build(build, [Lane(0.1, 0)], RULES["sgd"], torch.float64, CPU)
    with pytest.raises(ValueError, match=f"the engine {engine} stacks plain layers .*; choose auto"):
        choose(build, digits.in_shape, IMAGES, 32, stack, engine)


def test_user_losses_and_scores_are_per_example() -> None:
    outputs, targets = torch.randn(3, 7, 2, dtype=torch.float64), torch.randn(1, 7, 2, dtype=torch.float64)
    own = Criterion("regression", "tests.user_code:huber", "tests.user_code:near")
    found = own.losses(outputs, targets)
    assert found.shape == (3, 7)
    assert torch.equal(found[2], user_code.huber(outputs[2], targets[0]))
    assert own.scored
    assert torch.equal(own.scores(outputs, targets)[1], user_code.near(outputs[1], targets[0]))
    with pytest.raises(UserCodeError, match=r"tests.user_code:plain: called with outputs .* it raised TypeError"):
        Criterion("regression", "tests.user_code:plain").losses(outputs, targets)
