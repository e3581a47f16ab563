"""Which engine trains a trial: a function of the trial and the kind of device alone, so that it is always the same."""

from __future__ import annotations

import functools
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from trainables.criterion import Criterion
from trainables.data import Task
from trainables.engines import compiled
from trainables.engines.base import Engine
from trainables.engines.compiled import Compiled
from trainables.engines.eager import Eager
from trainables.engines.graph import Graph
from trainables.engines.memory import block_size
from trainables.engines.native import DENSE_LAYERS, WIDE_PARAMETERS, Native, Wide
from trainables.engines.solo import Solo
from trainables.engines.vmapped import Vmapped, VmapSupport
from trainables.lanes.seeds import initialise
from trainables.lanes.stack import Stack
from trainables.models import Builder, activations, layered
from trainables.rules import RULES
from trainables.usercode.importing import is_import_path
from trainables.usercode.vmap_support import TRIED_EXAMPLES, support_of


def choose(
    build: Builder,
    in_shape: tuple[int, ...],
    criterion: Criterion | Task,
    batch_size: int,
    stack: Stack,
    updates: int | None,
    wanted: str,
    *,
    sample: Tensor | None = None,
    name: str = "the model",
) -> Engine:
    """The engine of a trial.

    Args:
        build: makes one network of the family, or of a user's model.
        in_shape: shape of one example.
        criterion: the loss and the score, or a task for its own.
        batch_size: examples per update.
        stack: all lanes of the trial.
        updates: of each lane; None if the budget is in seconds.
        wanted: one of `catalogue.ENGINES`, or auto: a recorded graph on a GPU, compiled where that saves more time
            than compiling takes, otherwise eager. The engine native has to be asked for.
        sample: about `TRIED_EXAMPLES` examples on which to try a user's model; noise if not given.
        name: of that model, for messages.

    Raises:
        ValueError: if the wanted engine does not support the optimizer or the model.
        TypeError: if it does not support a layer of the network.
    """
    if isinstance(criterion, str):
        criterion = Criterion(criterion)
    network, rule = build(), stack.rule
    block = block_size(activations(network, in_shape), stack)
    if rule.solo and wanted not in ("auto", "solo"):
        raise ValueError(f"{rule.name} has no update rule over lanes, so its engine is solo, not {wanted}")
    if wanted == "solo" and not rule.solo:
        raise ValueError(f"the engine solo is for optimizers without a rule over lanes; {rule.name} has one")
    if not layered(network):
        if wanted not in ("auto", "solo"):
            raise ValueError(f"the engine {wanted} supports the shipped models only; choose auto for {name}")
        return _for_user_model(build, in_shape, criterion, stack, block, sample, name)
    if rule.solo:
        network = network.to(stack.parameters.device, stack.parameters.dtype)
        return Solo(network, Eager(network, criterion, block), may_draw=is_import_path(rule.name))
    written = not criterion.loss and rule.name in RULES
    if wanted == "compiled" and not written:
        raise ValueError("the engine compiled does not support losses and rules of users; choose auto")
    if wanted == "native":
        return _native(network, in_shape, criterion, block, batch_size, stack, written=written)
    if wanted == "auto":
        wanted = "eager"
        if stack.parameters.is_cuda:
            wanted = "cuda-graph"
        elif written and updates and compiled.pays(network, in_shape, batch_size, stack, updates):
            wanted = "compiled"
    if wanted == "compiled":
        return Compiled(network, in_shape, criterion, batch_size, stack)
    return (Graph if wanted == "cuda-graph" else Eager)(network, criterion, block)


def _native(
    network: nn.Sequential,
    in_shape: tuple[int, ...],
    criterion: Criterion,
    block: int,
    batch_size: int,
    stack: Stack,
    *,
    written: bool,
) -> Engine:
    """The kernel's engine: stacked lanes, or one lane after another where a dense network is wide."""
    if stack.parameters.is_cuda or not written:
        raise ValueError("the engine native is for CPUs, and supports no losses and rules of users; choose auto")
    if stack.parameters.shape[1] > WIDE_PARAMETERS and all(isinstance(each, DENSE_LAYERS) for each in network):
        return Wide(network, criterion, block, stack)
    return Native(network, in_shape, criterion, block, batch_size, stack)


# A worker trains many trials of a model, and trying a large one takes seconds.
_SUPPORT: dict[Hashable, VmapSupport] = {}


def _for_user_model(
    build: Builder,
    in_shape: tuple[int, ...],
    criterion: Criterion,
    stack: Stack,
    block: int,
    sample: Tensor | None,
    name: str,
) -> Engine:
    """All lanes at once where the model allows it, otherwise one after another."""
    if sample is None:
        noise = torch.randn(TRIED_EXAMPLES, *in_shape, generator=torch.Generator().manual_seed(0))
        sample = noise.to(stack.parameters)
    network: nn.Module = initialise(build, 0).to(stack.parameters.device, stack.parameters.dtype)
    key = (repr(build), tuple(sample.shape), sample.dtype, sample.device.type)
    support = _SUPPORT.get(key) or support_of(build, sample, name)
    if isinstance(build, functools.partial):  # the text of other builders does not identify them
        _SUPPORT[key] = support
    engine = Vmapped(network, support, criterion, block)
    if support.together and not stack.rule.solo:
        return engine
    return Solo(network, engine, "solo" if stack.rule.solo else "loop", may_draw=True)
