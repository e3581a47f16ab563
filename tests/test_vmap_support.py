"""Awkward models, optimizers and rules: lanes that cannot be stacked run in turn, hidden state is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.solo import train_stack
from trainables.config import Budget
from trainables.engines.choose import choose
from trainables.lanes.batches import Batches
from trainables.lanes.equality import prove
from trainables.lanes.reference import relative
from trainables.lanes.stack import Lane, Stack, grid
from trainables.lanes.train import advance
from trainables.rules import RULES, Rule, named
from trainables.usercode.importing import UserCodeError
from trainables.usercode.probe import try_optimizer
from trainables.usercode.vmap_support import support_of
from trainables.workloads import models
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data, Split

IN, OUT = 6, 3


@pytest.fixture(scope="module")
def examples() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, IN, generator=generator, dtype=torch.float64)
    splits = [Split(each, each[:, :OUT].sin()) for each in x.split(30)]
    return Data("waves", "regression", *splits, out_features=OUT)


class Net(nn.Module):
    """Two layers; what is awkward comes on top."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(IN, 8), nn.Linear(8, OUT)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.hidden(x))
        return out


class Checkpointed(Net):
    def hidden(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().hidden, x, use_reentrant=False)
        return out


class Reassigned(Net):
    """A running mean that is another tensor after each update."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


class Clipped(Net):
    """Gradients that are cut off, by hooks of parameters: seldom, so that a try may not show it."""

    def __init__(self, limit: float = 1e-3) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_hook(lambda gradient: gradient.clamp(-limit, limit))


class Halved(Net):
    """A backward hook of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.last.register_full_backward_hook(
            lambda module, given, _: tuple(g and g / 2 if g is None else g / 2 for g in given)
        )


class Twice(Net):
    """One layer under two names, with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.again = self.norm

    def hidden(self, x: Tensor) -> Tensor:
        out: Tensor = self.again(self.norm(super().hidden(x)))
        return out


class Seldom(Net):
    """A layer that is left out in one batch of ten."""

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        return h * 0 if self.training and torch.rand(()) < 0.1 else h


class Counting(Net):
    """Warms up by a number of its own, too slowly for a try to show it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = super().forward(x) * min(1.0, 0.5 + self.calls // 10)
        return out


class Remembering(Net):
    """Keeps the last batch's mean in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [torch.zeros(8, dtype=torch.float64)]

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        out, self.kept = h - self.kept[0], [h.detach().mean(0)]
        return out


class Drawn(Net):
    """Features that are drawn at the beginning and kept as no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = [torch.randn(IN, IN, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x @ self.waves[0])
        return out


class Lazily(Net):
    def hidden(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(8))
        out: Tensor = super().hidden(x) * self.mask
        return out


class Teacher(Net):
    """Follows itself, so slowly that a few updates hardly show it."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(IN, 8).requires_grad_(False)

    def hidden(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.slow.weight.lerp_(self.first.weight, 1e-6)
        return super().hidden(x) + torch.tanh(self.slow(x))


class Cached(Net):
    """Keeps its weights from one evaluation to the next, until it trains."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> nn.Module:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            out: Tensor = super().forward(x)
            return out
        if self.kept is None:
            self.kept = self.last.weight.detach().clone()
        return torch.nn.functional.linear(self.hidden(x), self.kept, self.last.bias)


class ByNumpy(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.last.bias, float(np.random.default_rng().normal()))


class ByPython(Net):
    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) * (random.random() < 0.9)


class Frozen(Net):
    """A first layer that is drawn and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(IN, IN).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(torch.tanh(self.before(x)))
        return out


class Skipping(Net):
    """A layer that takes part in every other batch: torch's optimizers leave it alone in between."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(8, 8)

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        return h + self.extra(h) if torch.rand(()) < 0.5 else h


class MaxNorm(Net):
    """Bounds its weights in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data = torch.renorm(self.first.weight.data, 2, 0, 0.5)
        out: Tensor = super().forward(x)
        return out


class InPlace(Net):
    """Writes into its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.div_(2).sub_(0.1))
        return out


def rectified() -> nn.Module:
    """Writes into its inputs what writing again does not change."""
    return nn.Sequential(nn.ReLU(inplace=True), nn.LayerNorm(IN), nn.Linear(IN, OUT))


class Scaled(Net):
    """A parameter without dimensions, of zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.hidden(x) * (1 + self.scale))
        return out


class Coupled(Net):
    """Every example but the first depends on the first."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x - x[:1])


def weight_normed() -> nn.Module:
    net = Net()
    net.first = nn.utils.parametrizations.weight_norm(net.first)
    return net


def hooked_chain() -> nn.Module:
    """Layers that lanes know, and a hook on the whole."""
    chain = nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), nn.Linear(8, OUT))
    chain.register_forward_hook(lambda module, given, out: 2 * out)
    return chain


@pytest.mark.parametrize("optimizer", ["adam", "Rprop"])
@pytest.mark.parametrize(
    ("build", "engine"),
    [(Checkpointed, "loop"), (Reassigned, "loop"), (Clipped, "loop"), (Halved, "loop"), (Twice, "vmap"),
     (Seldom, "loop"), (Frozen, "vmap"), (Skipping, "loop"), (MaxNorm, "loop"), (InPlace, "loop"), (rectified, "loop"),
     (Scaled, "vmap"),
     (Coupled, "vmap"), (weight_normed, "vmap"), (hooked_chain, "vmap")],
)  # fmt: skip
def test_awkward_models_equal_networks_alone(
    build: Callable[[], nn.Module], engine: str, optimizer: str, examples: Data
) -> None:
    proof = prove(build, named(optimizer), examples, 10, grid(1e-3, 1e-2, 2, [3, 4]), Criterion("regression"), "own")
    assert proof.difference < 1e-9
    assert proof.engine == ("solo" if optimizer == "Rprop" else engine)


def test_frozen_layers_of_one_seed_are_its_own(examples: Data) -> None:
    few = [Lane(0.01, 7)]
    proof = prove(Frozen, RULES["adam"], examples, 10, few, Criterion("regression"), "own")
    assert proof.difference < 1e-9


@pytest.mark.parametrize("build", [InPlace, rectified])
def test_models_cannot_change_the_examples(build: Callable[[], nn.Module], examples: Data) -> None:
    stack = Stack.build(build, [Lane(0.01, 0)], RULES["sgd"], torch.float64, torch.device("cpu"))
    before = [split.inputs.clone() for split in (examples.train, examples.validation, examples.test)]
    for size in (10, 30):
        engine = choose(build, (IN,), "regression", size, stack)
        list(train_stack(stack, engine, examples, size, Budget(epochs=2)))
    after = [split.inputs for split in (examples.train, examples.validation, examples.test)]
    assert all(map(torch.equal, before, after))


class ScaledSeldom(Scaled):
    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        return h * 0 if self.training and torch.rand(()) < 0.1 else h


def test_gradient_noise_is_equal_in_turn_and_together(examples: Data) -> None:
    found = []
    for build in (Scaled, ScaledSeldom):
        stack = Stack.build(build, [Lane(0.1, 0), Lane(0.1, 1)], RULES["sgd"], torch.float64, torch.device("cpu"))
        engine = choose(build, (IN,), "regression", 10, stack)
        found.append((engine.name, *engine.noise(stack, slice(0, 2), examples.train)))
    assert [name for name, *_ in found] == ["vmap", "loop"]
    for ours, theirs in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)


def test_coupled_batches_stay_whole(examples: Data) -> None:
    assert support_of(Coupled, examples.train.inputs[:16]).whole
    assert not support_of(Scaled, examples.train.inputs[:16]).whole


def test_gradient_hooks_are_applied(examples: Data) -> None:
    """The clipped network moves by no more than its limit lets it."""
    stack = Stack.build(Clipped, [Lane(1.0, 0), Lane(1.0, 1)], RULES["sgd"], torch.float64, torch.device("cpu"))
    before = stack.parameters.clone()
    engine = choose(Clipped, (IN,), "regression", 10, stack)
    advance(stack, engine, Batches(examples.train, 10, stack), 3)
    assert 0 < float((stack.parameters - before).abs().max()) < 3.001e-3


@pytest.mark.parametrize(
    ("build", "told"),
    [(Counting, r"own: calls changes from update to update \(2 to 3\).*register_buffer\('calls', torch.tensor\(1\)\)"),
     (Remembering, "own: draws or keeps values that are neither parameters nor buffers.* make each a buffer"),
     (Drawn, "own: draws or keeps values that are neither parameters nor buffers; lanes would share"),
     (Lazily, "own: the buffer mask appears or disappears in a forward pass; register it in __init__"),
     (Teacher, "own: changes slow.weight, a parameter that is not trained; make it a buffer"),
     (Cached, "own: draws or keeps values that are neither parameters nor buffers"),
     (ByNumpy, "own: two networks of one seed begin with different values of last.bias"),
     (ByPython, "own: draws random numbers that are not torch's")],
)  # fmt: skip
def test_support_of_refuses_models_with_hidden_state(build: Callable[[], nn.Module], told: str, examples: Data) -> None:
    with pytest.raises(UserCodeError, match=told):
        support_of(build, examples.train.inputs[:4], "own")


def test_unbatched_images_are_left_to_torch() -> None:
    """Convolutions of (n, 7, 7) are of one channel-less image each in torch; lanes' layers know none such."""
    build = models.build
    made = build("tests.test_vmap_support:unbatched", (7, 7), 4)
    assert not models.layered(made)
    assert made(torch.zeros(5, 7, 7)).shape == (5, 4)


def unbatched(in_shape: tuple[int, ...], out_features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(5, 5, 3), nn.Flatten(), nn.Linear(25, out_features))


def test_relative_difference_with_nan_is_infinite() -> None:
    one, nan, infinity = torch.ones(2), torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf])
    assert relative(one, one) == 0
    assert relative(nan, one) == math.inf
    assert relative(one, nan) == math.inf
    assert relative(one, infinity) == math.inf
    assert relative(nan, nan) == relative(infinity, infinity) == 0
    assert relative(torch.tensor([200.0]), torch.tensor([100.0])) == 1


class Forgetful(torch.optim.SGD):
    """Counts its updates beside its state_dict."""

    count = 0

    def step(self, closure: Any = None) -> None:
        self.count += 1
        if self.count % 5 == 0:
            super().step()


class WithoutClosure(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


class Asking(WithoutClosure):
    """By the extragradient: asks for the loss twice."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()
        super().step()
        closure()


def mixing(p: Tensor, g: Tensor, state: Any, c: Any, s: Any) -> Tensor:
    return g / g.norm()


def normed(p: Tensor, g: Tensor, state: Any, c: Any, s: Any) -> Tensor:
    return g / g.norm(dim=1, keepdim=True)


MIXING = Rule("mixing", mixing, None, (1e-3, 1.0))
NORMED = Rule("normed", normed, None, (1e-3, 1.0))


def test_try_optimizer_refuses_dependent_lanes_and_lost_state(examples: Data) -> None:
    here = "tests.test_vmap_support"
    with pytest.raises(UserCodeError, match="Forgetful: continues differently after its state_dict is loaded"):
        try_optimizer(f"{here}:Forgetful")
    with pytest.raises(UserCodeError, match="MIXING: a lane's update depends on the lanes beside it; take norms"):
        try_optimizer(f"{here}:MIXING")
    for name in ("WithoutClosure", "Asking", "NORMED"):
        try_optimizer(f"{here}:{name}")


@pytest.mark.parametrize("name", ["WithoutClosure", "Asking", "NORMED"])
def test_awkward_optimizers_equal_networks_alone(name: str, examples: Data) -> None:
    rule = named(f"tests.test_vmap_support:{name}")
    proof = prove(Net, rule, examples, 10, grid(1e-3, 1e-2, 2, [3, 4]), Criterion("regression"), "own")
    assert proof.difference < 1e-9
    stack = Stack.build(Net, [Lane(0.1, 0)], rule, torch.float64, torch.device("cpu"))
    engine = choose(Net, (IN,), "regression", 10, stack)
    losses = advance(stack, engine, Batches(examples.train, 10, stack), 30)
    assert losses[-1] < losses[0]


def slips(outputs: Tensor, targets: Tensor) -> Tensor:
    """Above 0 at first and below later."""
    return (outputs - targets).square().mean(1) - 0.5


def test_loss_that_becomes_negative_is_an_error(examples: Data) -> None:
    criterion = Criterion("regression", "tests.test_vmap_support:slips")
    stack = Stack.build(Net, [Lane(0.05, 0)], RULES["adam"], torch.float64, torch.device("cpu"))
    engine = choose(Net, (IN,), criterion, 10, stack)
    with pytest.raises(UserCodeError, match=r"slips: gives a mean of -0\.\d+ .*expected"):
        list(train_stack(stack, engine, examples, 10, Budget(epochs=30)))
