"""Which engine trains a trial: a function of the trial and the kind of device alone, so that it is always the same."""

from __future__ import annotations

import functools
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from trainables.engines.base import Engine
from trainables.engines.eager import Eager
from trainables.engines.graph import Graph
from trainables.engines.kernel.build import BuildError
from trainables.engines.memory import block_size
from trainables.engines.native import Native, Wide, pays, unsupported, wide
from trainables.engines.solo import Solo
from trainables.engines.vmapped import Vmapped, VmapSupport
from trainables.lanes.seeds import initialise
from trainables.lanes.stack import Stack
from trainables.usercode.importing import is_import_path
from trainables.usercode.vmap_support import TRIED_EXAMPLES, support_of
from trainables.workloads.catalogue import Task
from trainables.workloads.criterion import Criterion
from trainables.workloads.models import Builder, activations, layered


def choose(
    build: Builder,
    in_shape: tuple[int, ...],
    criterion: Criterion | Task,
    batch_size: int,
    stack: Stack,
    wanted: str = "auto",
    *,
    augmented: bool = False,
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
        wanted: one of `catalogue.ENGINES`, or auto: a recorded graph on a GPU; on a CPU native where the kernel knows
            what the trial computes, is faster and can be built, otherwise eager.
        augmented: whether examples are changed at random.
        sample: about `TRIED_EXAMPLES` examples on which to try a user's model; noise if not given.
        name: of that model, for messages.

    Raises:
        ValueError: if the wanted engine does not support the optimizer, the model or the device.
        BuildError: if native is wanted and there is no kernel on this machine.
        TypeError: if no engine supports a layer of the network.
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
            raise ValueError(
                f"the engine {wanted} stacks plain layers of the shipped models only; choose auto for {name}"
            )
        return _for_user_model(build, in_shape, criterion, stack, block, sample, name)
    if rule.solo:
        network = network.to(stack.parameters.device, stack.parameters.dtype)
        return Solo(network, Eager(network, criterion, block), may_draw=is_import_path(rule.name))
    cuda = stack.parameters.is_cuda
    if wanted == "cuda-graph" or (wanted == "auto" and cuda):
        return Graph(network, criterion, block)
    lacks = unsupported(stack, criterion, augmented=augmented)
    if wanted == "native" and lacks:
        raise ValueError(f"the engine native does not support {lacks}; choose auto")
    if wanted == "native" or (wanted == "auto" and not lacks and pays(network, in_shape, stack)):
        kind = Wide if wide(network, stack) else Native
        try:
            return kind(network, in_shape, criterion, block, batch_size, stack)
        except BuildError:
            if wanted == "native":
                raise
    return Eager(network, criterion, block)


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
