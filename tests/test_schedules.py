"""Schedules equal torch's, and lanes with recipes equal the ordinary loop with torch's schedulers and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

from tests.solo import FAMILIES, builder, difference, small, solo, trained
from trainables.config import PLAIN, Recipe
from trainables.engines.native import KERNELS
from trainables.lanes.seeds import batch_order, initialise
from trainables.lanes.stack import Lane
from trainables.rules import RULES, named
from trainables.schedules import SCHEDULES, factors
from trainables.workloads.models import trained as trained_parameters

UPDATES = 100


def torchs_scheduler(schedule: str, warmup: float, total: int, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The same schedule from torch's own parts."""
    rising = round(warmup * total)
    rest = total - rising
    if schedule == "one-cycle":
        rate = optimizer.param_groups[0]["lr"]
        return torchs.OneCycleLR(optimizer, rate, total, pct_start=warmup or 0.3, cycle_momentum=False)
    stable = rest - max(1, round(rest / 5))
    make: dict[str, Callable[[], LRScheduler]] = {
        "constant": lambda: torchs.LambdaLR(optimizer, lambda n: 1.0),
        "linear": lambda: torchs.LinearLR(optimizer, 1.0, 0.0, rest),
        "cosine": lambda: torchs.CosineAnnealingLR(optimizer, rest),
        "step": lambda: torchs.MultiStepLR(optimizer, [math.ceil(rest / 2), math.ceil(3 * rest / 4)]),
        "exponential": lambda: torchs.ExponentialLR(optimizer, 0.01 ** (1 / rest)),
        "wsd": lambda: torchs.SequentialLR(
            optimizer,
            [torchs.ConstantLR(optimizer, 1.0), torchs.LinearLR(optimizer, 1.0, 0.0, rest - stable)],
            [stable],
        ),
    }
    if not rising:
        return make[schedule]()
    if schedule == "wsd":  # torch does not nest sequences
        parts = [torchs.LinearLR(optimizer, 1 / (rising + 1), 1.0, rising), torchs.ConstantLR(optimizer, 1.0)]
        parts.append(torchs.LinearLR(optimizer, 1.0, 0.0, rest - stable))
        return torchs.SequentialLR(optimizer, parts, [rising, rising + stable])
    warming = torchs.LinearLR(optimizer, 1 / (rising + 1), 1.0, rising)
    return torchs.SequentialLR(optimizer, [warming, make[schedule]()], [rising])


@pytest.mark.filterwarnings("ignore:Detected call of", "ignore:The epoch parameter")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0.0, 100), (0.1, 100), (0.25, 37), (0.0, 5), (0.4, 3)])
def test_factors_equal_torchs_schedulers(schedule: str, warmup: float, total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torchs_scheduler(schedule, warmup, total, optimizer)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = 0.5 * factors(schedule, warmup, np.arange(total), total)
    assert found == pytest.approx(np.array(expected), rel=1e-9, abs=1e-15)


def test_factors_do_not_depend_on_where_a_segment_begins() -> None:
    for schedule in SCHEDULES:
        whole = factors(schedule, 0.1, np.arange(60), 50)
        assert (
            np.concatenate([factors(schedule, 0.1, np.arange(*part), 50) for part in ((0, 7), (7, 60))]) == whole
        ).all()
        assert (whole[50:] == whole[49]).all()
        assert (whole >= 0).all()
        assert whole.max() <= 1


# Lanes

# No clipping beside clipping by value, norm and both; decay of some lanes only; all schedules.
RECIPES = [
    Recipe(),
    Recipe("cosine", 0.1, 0.01, 0.05),
    Recipe("one-cycle", None, None, None, 0.02),
    Recipe("wsd", 0.2, 0.1, 0.3, 0.01),
    Recipe("step", None, 0.0, 0.0, 0.0),
    Recipe("linear", 0.05, 1e-3),
    Recipe("exponential", None, None, 1e-3),
]


def ordinary(family: str, rule: str, lane: Lane, batch_size: int = 32) -> torch.Tensor:
    """The parameters after `UPDATES` updates of a loop written with torch's own parts."""
    workload, recipe = small(FAMILIES[family][0]), lane.recipe
    network = initialise(builder(family), lane.seed).double()
    kind: Any = RULES[rule].torch_class if rule in RULES else getattr(torch.optim, rule)
    options: dict[str, Any] = {} if recipe.weight_decay is None else {"weight_decay": recipe.weight_decay}
    options |= {"momentum": 0.9} if rule in ("momentum", "nesterov") else {}
    options |= {rule: True} if rule in ("nesterov", "amsgrad") else {}
    optimizer = kind(network.parameters(), lr=lane.learning_rate, **options)
    scheduler = torchs_scheduler(recipe.schedule or "constant", recipe.warmup or 0.0, UPDATES, optimizer)
    loss = nn.MSELoss() if workload.task == "regression" else nn.CrossEntropyLoss()
    made = 0
    for epoch in range(UPDATES):
        for rows in batch_order(lane.seed, epoch, len(workload.train)).split(batch_size):
            if made == UPDATES:
                return torch.cat([p.detach().flatten() for p in trained_parameters(network).values()])
            optimizer.zero_grad()
            loss(network(workload.train.inputs[rows]), workload.train.targets[rows]).backward()
            if recipe.clip_value:
                nn.utils.clip_grad_value_(network.parameters(), recipe.clip_value)
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimizer.step()
            scheduler.step()
            made += 1
    raise AssertionError("an epoch has no updates")


@pytest.mark.filterwarnings("ignore:Detected call of", "ignore:The epoch parameter")
@pytest.mark.parametrize(
    ("family", "rule", "engine"),
    [
        *(("mlp", rule, "native") for rule in KERNELS),
        *(("mlp", rule, "eager") for rule in ("momentum", "adamw", "radam")),
        ("cnn", "momentum", "native"),
        ("cnn", "adamw", "eager"),
        ("mlp", "adam", "cuda-graph"),
        ("mlp", "ASGD", "solo"),
    ],
)
def test_lanes_with_recipes_equal_torchs_loop(family: str, rule: str, engine: str) -> None:
    rate, recipes = 10 * named(rule).rates[0], RECIPES if rule in ("momentum", "adamw") else RECIPES[1:4]
    lanes = [Lane(rate, place % 2, (), recipe) for place, recipe in enumerate(recipes)]
    stack = trained(family, rule, 32, lanes, UPDATES, engine)
    for row, lane in zip(stack.parameters, lanes, strict=True):
        assert difference(row, ordinary(family, rule, lane)) < 1e-9


@pytest.mark.parametrize("rule", sorted(RULES.keys() - KERNELS.keys()))
def test_lanes_of_newer_rules_with_recipes_equal_the_rule_alone(rule: str) -> None:
    recipes = [PLAIN, Recipe("cosine", 0.1, None if rule == "adan" else 0.01, 0.05), RECIPES[2]]
    lanes = [Lane(10 * named(rule).rates[0], place % 2, (), recipe) for place, recipe in enumerate(recipes)]
    stack = trained("mlp", rule, 32, lanes, 30)
    for row, lane in zip(stack.parameters, lanes, strict=True):
        assert difference(row, solo("mlp", rule, 32, lane, 30)[0]) < 1e-9
