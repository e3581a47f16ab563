"""The rules, lanes, networks and criteria that a spec means; checking a spec does without them, and without torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from study.spec import Spec
from trainables.lanes.stack import Lane, spread
from trainables.rules import Rule, named
from trainables.workloads import models
from trainables.workloads.criterion import Criterion
from trainables.workloads.models import Builder


def rule(spec: Spec, optimizer: str) -> Rule:
    """The update rule of an optimizer of the search."""
    return named(optimizer, spec.workload.code)


def lanes(spec: Spec, optimizer: str) -> list[Lane]:
    """The lanes with which a trial of an optimizer begins."""
    return spread(spec.rates(optimizer), spec.axes(optimizer), spec.lane_seeds(), spec.lanes.sample or 0)


def builder(spec: Spec, width: int, depth: int, end: int = -1, **chosen: Any) -> Builder:
    """A function that makes one network; arguments of the model that are not chosen have the value at an `end`."""
    workload, facts = spec.workload, spec.workload.facts
    searched = {name.removeprefix("model."): dimension.ends()[end] for name, dimension in workload.searched().items()}
    size = {"width": width, "depth": depth, **workload.arguments(), **searched, **chosen}
    return partial(models.build, workload.model, facts.in_shape, facts.out_features, bundle=workload.code, **size)


def criterion(spec: Spec) -> Criterion:
    """The loss, and the metric that the spec maximizes or minimizes."""
    workload = spec.workload
    own = workload.loss or "", workload.score or "", workload.code
    return Criterion(workload.facts.task, *own, workload.label_smoothing)
