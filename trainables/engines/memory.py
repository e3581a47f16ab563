"""Memory of lanes: how many fit at once, and how many examples to pass at a time."""

from __future__ import annotations

import os

import torch
from torch import nn

from trainables.lanes.stack import Stack
from trainables.workloads.models import activations, layered

# Activations that one block of examples may leave in a forward pass: about a core's cache, or a small part of a GPU.
BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
# Part of a GPU's memory, or of one core's part of a machine's, that lanes may take.
MEMORY_SHARE = 0.7


def block_size(numbers_per_example: int, stack: Stack) -> int:
    """Examples to pass at a time, so that their activations stay within `BLOCK_BYTES`.

    Where parameters are many, activations may take some times as much as they do, because each block reads them and
    writes a gradient. Diverged lanes count too, so that a resumed trial has the blocks of an undisturbed one.
    """
    device, lane_bytes = stack.parameters.device.type, len(stack.lanes) * stack.parameters.element_size()
    limit = max(BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]), 8 * stack.parameters.shape[1] * lane_bytes)
    return max(1, limit // (numbers_per_example * lane_bytes))


def lane_bytes(network: nn.Module, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> tuple[int, int]:
    """Bytes that a lane takes permanently (parameters, the rule's buffers), and in addition during its updates.

    The latter are gradients, the rule's intermediate results, and activations with their derivatives.
    """
    size, numbers = stack.parameters.element_size(), stack.parameters.shape[1]
    activation = activations(network, in_shape)
    # Batches of user models may have to stay whole.
    together = min(batch_size, block_size(activation, stack)) if layered(network) else batch_size
    extras = sum(extra[:1].numel() * extra.element_size() for extra in stack.extras.values())
    return numbers * (1 + len(stack.rule.buffers)) * size + extras, (3 * numbers + 2 * activation * together) * size


def fitting(network: nn.Module, in_shape: tuple[int, ...], batch_size: int, stack: Stack, share: float = 1.0) -> int:
    """Lanes that may train at once, by the total memory of the device, whatever part of it is free at the moment.

    Args:
        network: one network.
        in_shape: shape of one example.
        batch_size: examples per update.
        stack: all lanes.
        share: of a GPU that the trial has.
    """
    device = stack.parameters.device
    if device.type == "cuda":
        memory = int(share * torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (os.cpu_count() or 1)
    kept, working = lane_bytes(network, in_shape, batch_size, stack)
    left = MEMORY_SHARE * memory - kept * len(stack.lanes)
    return max(1, min(len(stack.lanes), int(left / working)))
