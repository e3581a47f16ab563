"""What the tests of stack, engines and lanes share: small workloads, and the loop that a lane must equal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from trainables.config import Budget, TrialConfig
from trainables.engines.base import Engine
from trainables.engines.choose import choose
from trainables.lanes import reference
from trainables.lanes.records import Report
from trainables.lanes.stack import Lane, Stack
from trainables.lanes.train import train
from trainables.rules import named
from trainables.workloads import catalogue, data, models
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data
from trainables.workloads.models import Builder

CPU = torch.device("cpu")
TRAINING = 100  # not a multiple of 32: every epoch ends in a short batch
FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "linear": ("linear", {}),
    "mlp": ("cubic", {"width": 16, "depth": 2}),
    "cnn": ("digits", {"width": 2, "depth": 2, "kernel": 3, "padding": 1}),
    "quadratic": ("quadratic", {}),
}


@cache
def small(name: str) -> Data:
    """A workload's data, with few training examples."""
    full = data.load(name, standardize=name != "quadratic", dtype=torch.float64)
    few = full.train.head(TRAINING), full.validation.head(20), full.test.head(20)
    return Data(full.name, full.task, *few, full.out_features)


def builder(family: str) -> Builder:
    name, arguments = FAMILIES[family]
    facts = catalogue.CATALOGUE[name]
    return partial(models.build, family, facts.in_shape, facts.out_features, **arguments)


def made(family: str, batch_size: int, stack: Stack, engine: str = "eager") -> Engine:
    facts = catalogue.CATALOGUE[FAMILIES[family][0]]
    return choose(builder(family), facts.in_shape, facts.task, batch_size, stack, engine)


def fresh(family: str, rule: str, configurations: list[Lane], total: int = 0) -> Stack:
    """A stack before its first update of this many, in float64."""
    return Stack.build(builder(family), configurations, named(rule), torch.float64, CPU, total)


def train_stack(
    stack: Stack, engine: Engine, workload: Data, batch_size: int, budget: Budget, **how: Any
) -> Iterator[Report]:
    """Train a stack by `train`, with these settings of a trial."""
    config = TrialConfig(optimizer=stack.rule.name, batch_size=batch_size, budget=budget, **how)
    return train(stack, engine, workload, config)


def trained(
    family: str,
    rule: str,
    batch_size: int,
    configurations: list[Lane],
    updates: int,
    engine: str = "eager",
    at_once: int | None = None,
    **how: Any,
) -> Stack:
    """A stack after so many updates, in float64."""
    stack = fresh(family, rule, configurations, updates)
    stack.at_once = at_once or stack.at_once
    workload, maker = small(FAMILIES[family][0]), made(family, batch_size, stack, engine)
    for _ in train_stack(stack, maker, workload, batch_size, Budget(updates=updates), **how):
        pass
    return stack


@cache
def solo(
    family: str, rule: str, batch_size: int, lane: Lane, *updates: int, drop_last: bool = False
) -> list[torch.Tensor]:
    """The parameters of the ordinary torch.optim loop after each of these numbers of updates."""
    workload = small(FAMILIES[family][0])
    network, losses = reference.alone(
        builder(family),
        named(rule),
        workload.train,
        batch_size,
        lane,
        Criterion(workload.task),
        max(updates),
        drop_last=drop_last,
    )
    found = []
    for update, _ in enumerate(losses, 1):
        if update in updates:
            found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    return found


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
