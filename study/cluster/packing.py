"""How many trials share a GPU if the spec leaves it open, and which cells run without one."""

from __future__ import annotations

import math

import torch

from study.cluster import nodes
from study.cluster.build import builder, lanes, rule
from study.errors import ClusterError
from study.spec import Spec
from study.spec.model import SHARING
from trainables.engines import memory as lane_memory
from trainables.lanes.stack import Stack
from trainables.workloads import models
from trainables.workloads.models import Builder

# GPU memory of a process that has no tensor there yet.
CONTEXT_BYTES = 600 << 20
# A small cell has at most as many multiplications per update, forward and backward: about a millisecond on one core for
# 48 lanes, by the measured speeds in `trainables.engines`. Where a GPU becomes faster has not been measured.
SMALL_MULTIPLICATIONS = 100_000


def resolved(spec: Spec) -> Spec:
    """The spec with `gpus_per_trial` computed from its largest cell, if it is "auto"; otherwise unchanged."""
    if spec.resources.gpus_per_trial != "auto":
        return spec
    memory = (spec.resources.gpu_memory_gib or 0) * 2**30 or nodes.gpu_bytes()
    if not memory:
        message = (
            '"auto": no GPU here tells how much memory it has; set resources.gpu_memory_gib, or a number in its place'
        )
        raise ClusterError("resources.gpus_per_trial", message)
    largest: float = max(needs(spec, *corner) for corner in spec.corners())
    if any(spec.optimizer_facts(name).solo for name in spec.search.optimizers()):
        largest = memory  # the state of such an optimizer is unknown (LBFGS keeps a hundred gradients)
    return spec.model_copy(
        update={"resources": spec.resources.model_copy(update={"gpus_per_trial": share(largest, memory)})}
    )


def share(needed: float, memory: float) -> float:
    """The share of a GPU that a trial takes: 1 / n, with the largest n up to `SHARING` for which the bytes suffice."""
    together = min(SHARING, int(lane_memory.MEMORY_SHARE * memory // needed))
    return math.floor(1e4 / together) / 1e4 if together > 1 else 1.0  # Ray counts in ten-thousandths


def small(build: Builder, in_shape: tuple[int, ...], batch_size: int) -> bool:
    """Whether a cell runs without a GPU under `resources.cpu_nodes`; depends on the cell alone."""
    return 3 * models.multiplications(build(), in_shape) * batch_size <= SMALL_MULTIPLICATIONS


def needs(spec: Spec, batch_size: int, width: int, depth: int) -> int:
    """GPU memory of a trial, in bytes: all its lanes at once, its data and its process."""
    workload, facts = spec.workload, spec.workload.facts
    build = builder(spec, width, depth)
    heaviest = max(spec.search.optimizers(), key=lambda name: (len(rule(spec, name).buffers), spec.settings(name)))
    # Tensors on the device "meta" take no memory, and blocks are as large as on a GPU.
    every, own = lanes(spec, heaviest), rule(spec, heaviest)
    stack = Stack.build(build, every, own, getattr(torch, workload.dtype), torch.device("meta"), total=1)
    kept, working = lane_memory.lane_bytes(build(), facts.in_shape, batch_size, stack)
    examples = facts.train + facts.validation + facts.test
    numbers = examples * math.prod(facts.in_shape) * stack.parameters.element_size()
    return CONTEXT_BYTES + numbers + (kept + working) * len(every)
