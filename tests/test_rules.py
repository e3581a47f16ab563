from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.cells import OPTIMIZERS
from trainables.formulas import State, orthogonalised
from trainables.rules import RULES, Rule

PUBLISHED = [name for name, rule in RULES.items() if rule.make_step or rule.torch_class is None]


def test_the_report_lists_the_rules_in_their_order() -> None:
    assert tuple(RULES) == OPTIMIZERS


def torch_optimizer(rule: str, parameter: torch.Tensor, rate: float) -> torch.optim.Optimizer:
    """The torch.optim optimizer that a rule stands for, written out independently of the rule's settings."""
    made = {
        "gradient-descent": lambda p: torch.optim.SGD(p, lr=rate),
        "sgd": lambda p: torch.optim.SGD(p, lr=rate),
        "momentum": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9),
        "nesterov": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, nesterov=True),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=rate),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=rate),
        "adam": lambda p: torch.optim.Adam(p, lr=rate),
        "adamw": lambda p: torch.optim.AdamW(p, lr=rate),
        "adadelta": lambda p: torch.optim.Adadelta(p, lr=rate),
        "amsgrad": lambda p: torch.optim.Adam(p, lr=rate, amsgrad=True),
        "adamax": lambda p: torch.optim.Adamax(p, lr=rate),
        "nadam": lambda p: torch.optim.NAdam(p, lr=rate),
        "radam": lambda p: torch.optim.RAdam(p, lr=rate),
    }
    optimizer: torch.optim.Optimizer = made[rule]([parameter])
    return optimizer


def apply(
    rule: Rule,
    parameters: torch.Tensor,
    gradients: torch.Tensor,
    state: State,
    update: int,
    rates: torch.Tensor,
    decay: float | None = None,
) -> None:
    """One update at the rule's own settings, but for weight decay."""
    coefficients = {name: float(column[0, 0]) for name, column in rule.coefficients(update, update).items()}
    bound = rule if rule.whole else rule.bound([parameters.shape[1:]])
    settings = {**rule.settings, **({} if decay is None else {"weight_decay": decay})}
    bound.step(parameters, gradients, state, rates, coefficients, settings)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in PUBLISHED])
def test_each_row_follows_torch_optim_at_its_own_rate(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    gradients = torch.randn(30, 3, 7, dtype=torch.float64, generator=generator)
    gradients[:, :, 0] = 0  # a dead unit
    gradients[:3, :, 1] = 0  # one that wakes up
    rates = torch.tensor([[0.001], [0.01], [0.1]], dtype=torch.float64)
    ours, state = start.clone(), RULES[rule].state(start)
    solo = [row.clone().requires_grad_() for row in start]
    optimizers = [torch_optimizer(rule, p, rate) for p, rate in zip(solo, rates[:, 0].tolist(), strict=True)]
    for update, gradient in enumerate(gradients, start=1):
        apply(RULES[rule], ours, gradient, state, update, rates)
        for parameter, optimizer, row in zip(solo, optimizers, gradient, strict=True):
            parameter.grad = row.clone()
            optimizer.step()
    torch.testing.assert_close(ours, torch.stack([p.detach() for p in solo]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_a_rate_of_zero_moves_nothing_and_the_gradient_is_left_alone(rule: str) -> None:
    parameters = torch.ones(2, 3)
    gradient = torch.full((2, 3), 2.0)
    apply(RULES[rule], parameters, gradient, RULES[rule].state(parameters), 1, torch.zeros(2, 1))
    assert torch.equal(parameters, torch.ones(2, 3))
    assert torch.equal(gradient, torch.full((2, 3), 2.0))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_declares_its_state_and_a_range_of_rates(rule: Rule) -> None:
    parameters = torch.ones(2, 3)
    state = rule.state(parameters)
    assert set(state) == {*rule.buffers, *rule.scalars}
    apply(rule, parameters, torch.ones(2, 3), state, 1, torch.ones(2, 1))
    assert set(state) == {*rule.buffers, *rule.scalars}
    assert 0 < rule.rates[0] < rule.rates[1]


# The newer rules, against the packages of their authors


class Small(torch.nn.Module):
    """Two matrices, a filter, and vectors, one of them wider than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES)


SHAPES = ((3, 5), (3,), (6, 2), (6,), (2, 3, 2, 2))


def published(rule: str, network: list[torch.nn.Parameter], rate: float, decay: float) -> list[torch.optim.Optimizer]:
    """The published optimizers that a rule equals."""
    import lion_pytorch
    import prodigyopt
    import pytorch_optimizer
    import schedulefree

    matrices, others = [p for p in network if p.ndim == 2], [p for p in network if p.ndim != 2]
    made = {
        "lion": lambda: [lion_pytorch.Lion(network, lr=rate, weight_decay=decay)],
        "sgdw": lambda: [pytorch_optimizer.SGDW(network, lr=rate, momentum=0.9, weight_decay=decay)],
        "adan": lambda: [pytorch_optimizer.Adan(network, lr=rate)],
        "lamb": lambda: [pytorch_optimizer.Lamb(network, lr=rate, weight_decay=decay, max_grad_norm=0.0)],
        "adafactor": lambda: [torch.optim.Adafactor(network, lr=rate, weight_decay=decay)],
        "muon": lambda: [
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay),
            torch.optim.AdamW(others, lr=rate, weight_decay=decay),
        ],
        "prodigy": lambda: [prodigyopt.Prodigy(network, lr=rate, weight_decay=decay)],
        "schedule-free-sgd": lambda: [schedulefree.SGDScheduleFree(network, lr=rate, weight_decay=decay)],
        "schedule-free-adamw": lambda: [schedulefree.AdamWScheduleFree(network, lr=rate, weight_decay=decay)],
    }
    return made[rule]()


def in_float64(grad: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
    """Torch's Newton-Schulz iteration without its rounding to bfloat16."""
    a, b, c = coefficients
    x = grad.T if grad.shape[0] > grad.shape[1] else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.shape[0] > grad.shape[1] else x


@pytest.mark.parametrize(
    ("rule", "decay"), [*((rule, 0.0) for rule in PUBLISHED), *((rule, 0.1) for rule in PUBLISHED if rule != "adan")]
)
def test_a_newer_rule_equals_its_published_package(rule: str, decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float64)
    torch.manual_seed(0)
    # Near the solution large steps amplify rounding, those of these two most, and of Adafactor with decay.
    rates = [0.001, 0.003, 0.01] if rule in ("muon", "schedule-free-adamw") else [0.001, 0.01, 0.1]
    if rule == "adafactor":
        rates = [0.0003, 0.001, 0.003]
    if rule in ("prodigy", "schedule-free-sgd"):
        rates = [0.03, 0.3, 1.0]
    networks = [[p.detach().double().requires_grad_() for p in Small().parts] for _ in rates]
    bound = RULES[rule].bound([torch.Size(shape) for shape in SHAPES])
    rows = torch.stack([torch.cat([p.detach().flatten() for p in network]) for network in networks])
    start, state = rows.clone(), bound.state(rows)
    optimizers = [published(rule, network, rate, decay) for network, rate in zip(networks, rates, strict=True)]
    for optimizer in (each for own in optimizers for each in own if hasattr(each, "train")):
        optimizer.train()
    target = torch.randn(rows.shape[1], dtype=torch.float64)
    column = torch.tensor(rates, dtype=torch.float64)[:, None]
    for update in range(1, 101):
        gradient = (rows - target) * torch.linspace(0.1, 2.0, len(target), dtype=torch.float64) + 0.1 * update**-0.5
        if "weight_decay" not in bound.settings:
            gradient += decay * rows
        apply(bound, rows, gradient.clone(), state, update, column, decay)
        for network, own in zip(networks, optimizers, strict=True):
            flat = torch.cat([p.detach().flatten() for p in network])
            theirs = (flat - target) * torch.linspace(0.1, 2.0, len(target), dtype=torch.float64) + 0.1 * update**-0.5
            for p, part in zip(network, theirs.split([p.numel() for p in network]), strict=True):
                p.grad = part.view_as(p).clone()
            for optimizer in own:
                optimizer.step()
    assert not torch.allclose(rows, start, rtol=1e-3)
    found = bound.average(rows, state, bound.settings) if bound.average else rows
    for optimizer in (each for own in optimizers for each in own if hasattr(each, "eval")):
        optimizer.eval()
    expected = torch.stack([torch.cat([p.detach().flatten() for p in network]) for network in networks])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_muon_is_torchs_to_the_precision_of_bfloat16() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 8, 5)
    from torch.optim._muon import _zeropower_via_newtonschulz

    theirs = torch.stack([_zeropower_via_newtonschulz(m, (3.4445, -4.7750, 2.0315), 5, 1e-7).float() for m in matrices])
    torch.testing.assert_close(orthogonalised(matrices), theirs, rtol=0.05, atol=0.02)
    singular = torch.linalg.svdvals(orthogonalised(matrices))
    assert 0.5 < singular.min() < singular.max() < 1.5


def test_bias_corrections_are_those_of_the_powers_to_the_last_bit() -> None:
    n = np.arange(1, 20_001)[:, None]
    for beta1, beta2 in ((0.9, 0.999), (0.0, 0.5), (np.array([0.1, 0.9999]), np.array([0.99, 0.999999]))):
        columns = RULES["adam"].coefficients(1, 20_000, {"beta1": beta1, "beta2": beta2})
        assert np.array_equal(columns["mean"], 1 / (1 - beta1**n))
        assert np.array_equal(columns["root"], 1 / np.sqrt(1 - beta2**n))
