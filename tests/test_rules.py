from __future__ import annotations

import pytest
import torch

from analysis.cells import OPTIMIZERS
from trainables.rules import RULES, Rule, State


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
    rule: Rule, parameters: torch.Tensor, gradients: torch.Tensor, state: State, update: int, rates: torch.Tensor
) -> None:
    """One update at the rule's own settings."""
    coefficients = {name: float(column[0, 0]) for name, column in rule.coefficients(update, update).items()}
    rule.step(parameters, gradients, state, rates, coefficients, rule.settings)


@pytest.mark.parametrize("rule", RULES)
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
    assert set(state) == set(rule.buffers)
    apply(rule, parameters, torch.ones(2, 3), state, 1, torch.ones(2, 1))
    assert set(state) == set(rule.buffers)
    assert 0 < rule.rates[0] < rule.rates[1]
