"""Engines for processors that call the compiled kernel (`kernel/`).

`Native` makes all updates of an epoch, or an evaluation, in one call: for narrow dense networks and for convolutions.
`Wide` is for large dense networks, whose products torch computes as fast as the processor can. It takes one lane after
another, so that a lane's parameters stay in the cache from the forward pass to the update, which the kernel makes.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.engines.eager import Eager
from trainables.engines.kernel.build import identity, library
from trainables.lanes.batches import Batches
from trainables.lanes.stack import Stack
from trainables.rules import EMA
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split
from trainables.workloads.models import Fixed, Shift, activations, multiplications

_MOMENTS = ("beta1", "beta2", "eps")
# Rule -> its number in the kernel, and its settings and coefficients in the order in which the kernel takes them.
KERNELS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "gradient-descent": (0, (), ()),
    "sgd": (0, (), ()),
    "momentum": (1, ("momentum",), ()),
    "nesterov": (2, ("momentum",), ()),
    "adagrad": (3, ("eps",), ()),
    "rmsprop": (4, ("alpha", "eps"), ()),
    "adadelta": (5, ("rho", "eps"), ()),
    "adam": (6, _MOMENTS, ("mean", "root")),
    "adamw": (7, (*_MOMENTS, "weight_decay"), ("mean", "root")),
    "amsgrad": (8, _MOMENTS, ("mean", "root")),
    "adamax": (9, _MOMENTS, ("mean",)),
    "nadam": (10, _MOMENTS, ("now", "root", "ahead")),
    "radam": (11, _MOMENTS, ("mean", "rectified", "plain")),
}
# Buffers of a rule, at most.
_STATE = 3
# The activations and derivatives of a block of examples: they fit into a core's second-level cache.
BLOCK_BYTES = 128 << 10
# An update of a parameter costs about a tenth of this many multiplications. More copies of a lane in a tile share the
# work of the batch, but each repeats the update.
RULE_MULTIPLICATIONS = 320
# Updates of a call: the coefficients of all of them are in memory.
MOST_UPDATES = 4096
# Larger dense networks leave the cache as stacked lanes.
WIDE_PARAMETERS = 16_000
# Parameters of a convolutional network, per lane up to the fourth, from which torch is faster.
FILTERS_PARAMETERS = 20_000

_DENSE, _RELU, _CONVOLUTION, _PAD, _POOL, _SHIFT, _FIXED = range(7)


class _Work(ctypes.Structure):
    """The kernel's Work, as kernel/kernel.c declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers",)),
        *((name, ctypes.c_int64) for name in ("count", "block", "copies")),
        *((name, ctypes.c_void_p) for name in ("constants", "inputs", "values", "classes", "order", "seeds")),
        *((name, ctypes.c_int64) for name in ("width", "first", "last")),
    )


def described(network: nn.Sequential, in_shape: tuple[int, ...]) -> np.ndarray | None:
    """The layers of a network as the kernel takes them, (layers, 8) whole numbers; None if it lacks one of them.

    Args:
        network: a chain of the layers that lanes know.
        in_shape: shape of one example.
    """
    rows: list[tuple[int, ...]] = []
    shape = tuple(in_shape)
    for layer in network:
        size = int(np.prod(shape))
        if isinstance(layer, nn.Linear):
            rows.append((_DENSE, layer.in_features, layer.out_features, 0, 0, 0, 0, 0))
            shape = (layer.out_features,)
        elif isinstance(layer, nn.ReLU | Shift):
            rows.append((_RELU if isinstance(layer, nn.ReLU) else _SHIFT, size, size, 0, 0, 0, 0, 0))
        elif isinstance(layer, Fixed):
            rows.append((_FIXED, size, len(layer.matrix), 0, 0, 0, 0, 0))
            shape = (len(layer.matrix),)
        elif isinstance(layer, nn.Flatten):
            shape = (size,)
        elif isinstance(layer, nn.MaxPool2d) and isinstance(layer.kernel_size, int):
            rows.append((_POOL, 0, 0, *shape, layer.kernel_size, 0))
            shape = (shape[0], *(side // layer.kernel_size for side in shape[1:]))
        elif isinstance(layer, nn.Conv2d) and _plain(layer):
            padding, kernel = int(layer.padding[0]), layer.kernel_size[0]
            if padding:
                rows.append((_PAD, 0, 0, *shape, padding, 0))
                shape = (shape[0], *(side + 2 * padding for side in shape[1:]))
            rows.append((_CONVOLUTION, 0, 0, *shape, kernel, layer.out_channels))
            shape = (layer.out_channels, *(side - kernel + 1 for side in shape[1:]))
        else:
            return None
    return np.array(rows, dtype=np.int64)


def wide(network: nn.Sequential, stack: Stack) -> bool:
    """Whether a network is dense and so large that stacked lanes would leave the cache."""
    dense = all(isinstance(layer, nn.Linear | nn.ReLU | nn.Flatten) for layer in network)
    return dense and stack.parameters.shape[1] > WIDE_PARAMETERS


def unsupported(stack: Stack, criterion: Criterion, *, augmented: bool) -> str:
    """What of a trial the kernel does not compute; empty if it computes everything, its network apart."""
    if stack.parameters.is_cuda:
        return "GPUs"
    if criterion.loss:
        return "losses of users"
    if criterion.smoothing:
        return "label smoothing"
    if stack.rule.name not in KERNELS:
        return f"the optimizer {stack.rule.name}"
    return "augmentation" if augmented else ""


def pays(network: nn.Sequential, in_shape: tuple[int, ...], stack: Stack) -> bool:
    """Whether the kernel knows all layers and is faster than torch, as it is not for many filters or few lanes."""
    convolutional = any(isinstance(layer, nn.Conv2d) for layer in network)
    most = FILTERS_PARAMETERS * min(len(stack.lanes), 4)
    return described(network, in_shape) is not None and not (convolutional and stack.parameters.shape[1] > most)


def _plain(layer: nn.Conv2d) -> bool:
    """Whether a convolution is square in every respect and steps pixel by pixel."""
    if isinstance(layer.padding, str) or layer.stride != (1, 1):
        return False
    return len(set(layer.padding)) == 1 and len(set(layer.kernel_size)) == 1


class _Kernel(Eager):
    """What calls the kernel.

    Args:
        network: one network of the family.
        in_shape: shape of one example.
        criterion: what outputs are judged by; its loss is the task's own.
        block: examples that torch passes at a time: in `Wide`; in `Native` where gradient noise is estimated.
        batch_size: examples per update.
        stack: the lanes.

    Raises:
        TypeError: if the kernel does not know a layer.
        BuildError: if there is no kernel on this machine.
    """

    name = "native"

    def __init__(
        self,
        network: nn.Sequential,
        in_shape: tuple[int, ...],
        criterion: Criterion,
        block: int,
        batch_size: int,
        stack: Stack,
    ) -> None:
        super().__init__(network, criterion, block)
        kind = str(stack.parameters.dtype).removeprefix("torch.")
        self.kernel, self.build = library(kind), identity(kind)
        self._prepare(network, in_shape, batch_size, stack)

    @abstractmethod
    def _prepare(self, network: nn.Sequential, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> None:
        """Describe the network to the kernel."""

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """Do nothing: the kernel is compiled already."""


class Native(_Kernel):
    """Whole stretches of updates in one call of the kernel, lanes innermost."""

    def _prepare(self, network: nn.Sequential, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> None:
        layers, dtype = described(network, in_shape), stack.parameters.dtype
        if layers is None:
            raise TypeError(f"the native kernel does not know all layers of {network}; choose the engine eager")
        self.layers = layers
        self.slots = int(self.kernel.native_slots())
        vector = self.slots * stack.parameters.element_size()
        self.most = max(1, BLOCK_BYTES // (2 * activations(network, in_shape) * vector))
        # From the network and the batch alone, so that a lane's numbers do not depend on how many lanes there are.
        self.copies, work = 1, 3 * multiplications(network, in_shape) * batch_size / stack.parameters.shape[1]
        while self.copies < self.slots and work >= 2 * self.copies * RULE_MULTIPLICATIONS:
            self.copies *= 2
        matrices = [layer.matrix.flatten() for layer in network if isinstance(layer, Fixed)]
        self.constants = torch.cat([torch.empty(0), *matrices]).to(dtype)

    @torch.no_grad()
    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Make the updates of an epoch in one call."""
        update, losses = stack.update, []
        while update < stop:
            count = min(stop - update, batches.per_epoch - update % batches.per_epoch, MOST_UPDATES)
            losses.append(self._stretch(stack, batches, rows, update, count))
            update += count
        return torch.cat(losses)

    def _stretch(self, stack: Stack, batches: Batches, rows: slice, update: int, count: int) -> Tensor:
        """The losses, (count, rows), of some updates of one epoch."""
        lanes, number = len(stack.alive), KERNELS[stack.rule.name][0]
        every = slice(0, lanes)
        if batches.whole:
            order, seeds = torch.arange(len(batches.examples))[None], torch.zeros(lanes, dtype=torch.long)
            starts = np.zeros(count, dtype=np.int64)
        else:
            batches.rows(update, count)
            order, seeds = batches.order, batches.seed_of_row
            starts = (update % batches.per_epoch + np.arange(count, dtype=np.int64)) * batches.batch_size
        stops = np.minimum(starts + batches.batch_size, order.shape[1])
        rates, limits = stack.rates(every, update, update + count), stack.adjustments(every)
        settings, columns = numbers_of(stack, update + 1, count)
        losses = torch.empty(count, lanes, dtype=torch.float64)
        places = (ctypes.c_void_p * _STATE)(*(buffer.data_ptr() for buffer in _buffers(stack, every)))
        average, keeps = stack.state.get(EMA), _keeps(stack, update, count)
        updates = _arguments(count, starts, stops, lanes, stack.parameters)
        rule = _arguments(number, rates, len(rates), settings, len(settings))
        rule += _arguments(columns, len(columns), columns.shape[2], limits, average, keeps, losses)

        def train(part: slice) -> int:
            work = self._work(batches.examples, order, seeds, part, batches.batch_size, self.copies)
            return int(self.kernel.native_train(ctypes.byref(work), *updates, places, *rule))

        self._each(train, rows, self.copies)
        return losses[:, rows].to(stack.parameters.dtype)

    @torch.no_grad()
    def evaluate(self, stack: Stack, rows: slice, examples: Split) -> dict[str, Tensor]:
        """Evaluate in one call, or by the eager engine where there is a user's score."""
        if self.criterion.score:
            return super().evaluate(stack, rows, examples)
        lanes, count = len(stack.alive), len(examples)
        order, seeds = torch.arange(count)[None], torch.zeros(lanes, dtype=torch.long)
        losses, shares = torch.empty(2, lanes, dtype=torch.float64)

        def evaluate(part: slice) -> int:
            work = self._work(examples, order, seeds, part, count, self.slots)
            return int(
                self.kernel.native_evaluate(ctypes.byref(work), *_arguments(count, stack.parameters, losses, shares))
            )

        self._each(evaluate, rows, self.slots)
        found = {"loss": losses[rows]}
        return found | {"accuracy": shares[rows]} if self.criterion.scored else found

    def _work(self, examples: Split, order: Tensor, seeds: Tensor, lanes: slice, batch: int, copies: int) -> _Work:
        """What the kernel needs to know of examples and lanes."""
        share = -(-batch // copies)
        block = -(-share // -(-share // self.most))  # blocks of one size
        targets = examples.targets.data_ptr()
        values, classes = (targets, None) if examples.targets.is_floating_point() else (None, targets)
        return _Work(
            self.layers.ctypes.data,
            len(self.layers),
            block,
            copies,
            self.constants.data_ptr(),
            examples.inputs.data_ptr(),
            values,
            classes,
            order.data_ptr(),
            seeds.data_ptr(),
            order.shape[1],
            lanes.start,
            lanes.stop,
        )

    def _each(self, call: Any, rows: slice, copies: int) -> None:
        """Call the kernel for some rows, whole tiles shared out to the trial's threads."""
        tile = self.slots // copies
        tiles = -(-(rows.stop - rows.start) // tile)
        threads = min(torch.get_num_threads(), tiles)
        ends = [min(rows.start + tiles * part // threads * tile, rows.stop) for part in range(threads + 1)]
        parts = [slice(*pair) for pair in pairwise(ends)]
        if threads == 1:
            failed = [call(parts[0])]
        else:
            with ThreadPoolExecutor(threads) as pool:
                failed = list(pool.map(call, parts))
        if any(failed):
            raise MemoryError("can't allocate memory for the native kernel")


class Wide(_Kernel):
    """Large dense networks lane after lane: products by torch, updates by the kernel."""

    def _prepare(self, network: nn.Sequential, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> None:
        self.shapes = [layer.weight.shape for layer in network if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Make the updates one by one, each of them lane after lane."""
        first, count = stack.update, stop - stack.update
        settings, columns = numbers_of(stack, first + 1, count)
        rates, keeps = stack.rates(rows, first, stop), _keeps(stack, first, count)
        adjust = [stack.adjustment(slice(row, row + 1)) for row in range(rows.start, rows.stop)]
        losses = stack.parameters.new_empty(count, rows.stop - rows.start)
        gradients = torch.empty_like(stack.parameters[0])
        parts = self._parts(gradients)
        for done in range(count):
            batch = None if batches.whole else batches.rows(first + done)
            for row in range(rows.start, rows.stop):
                if batch is None:
                    x, y = batches.examples.inputs[None], batches.examples.targets[None]
                else:
                    x, y = batches.take(batch, slice(row, row + 1))
                place, own = row - rows.start, self._parts(stack.parameters[row])
                losses[done, place] = self._gradient(own, parts, x[0].flatten(1), y[0])
                if each := adjust[place]:
                    each(stack.parameters[row : row + 1], gradients[None])
                rate = float(rates[done % len(rates), place])
                column = columns[:, done, min(row, columns.shape[2] - 1)]
                self._step(stack, row, gradients, rate, settings[:, row].copy(), column.copy())
                if keeps is not None:
                    stack.state[EMA][row].lerp_(stack.parameters[row], 1 - float(keeps[done, row]))
        return losses

    def _step(
        self, stack: Stack, row: int, gradients: Tensor, rate: float, settings: np.ndarray, column: np.ndarray
    ) -> None:
        """Make one update of one network from its gradients, (P,)."""
        parameters = stack.parameters[row]
        self.kernel.native_step(
            *_arguments(len(parameters), parameters, gradients),
            (ctypes.c_void_p * _STATE)(*(buffer.data_ptr() for buffer in _buffers(stack, row))),
            *_arguments(KERNELS[stack.rule.name][0]),
            ctypes.c_double(rate),
            *_arguments(settings, len(settings), column, len(column)),
        )

    def _parts(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of each linear layer, as views of a network's numbers."""
        found, start = [], 0
        for out, features in self.shapes:
            middle = start + out * features
            found.append((flat[start:middle].view(out, features), flat[middle : middle + out]))
            start = middle + out
        return found

    def _gradient(
        self, parameters: list[tuple[Tensor, Tensor]], gradients: list[tuple[Tensor, Tensor]], x: Tensor, y: Tensor
    ) -> Tensor:
        """The mean loss of one network over a batch; its derivatives go to `gradients`."""
        total = x.new_zeros(())
        for number, (xs, ys) in enumerate(zip(x.split(self.block), y.split(self.block), strict=True)):
            kept = [xs]
            for weight, bias in parameters:
                kept.append(torch.addmm(bias, kept[-1], weight.t()))
                if len(kept) <= len(parameters):
                    kept[-1].relu_()
            loss, back = _judged(kept[-1], ys, len(x))
            total += loss
            for place in range(len(parameters) - 1, -1, -1):
                weight, (by_weight, by_bias) = parameters[place][0], gradients[place]
                if number:
                    by_weight.addmm_(back.t(), kept[place])
                    by_bias.add_(back.sum(0))
                else:
                    torch.mm(back.t(), kept[place], out=by_weight)
                    torch.sum(back, 0, out=by_bias)
                if place:
                    back = torch.ops.aten.threshold_backward(back @ weight, kept[place], 0)
        return total


def _judged(outputs: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A block's share of the mean loss over `count` examples, and its derivative by the outputs."""
    if targets.is_floating_point():
        error = outputs - targets
        scale = 1 / (count * error.shape[1])
        return error.square().sum() * scale, error * (2 * scale)
    logs = outputs.log_softmax(1)
    right = targets[:, None]
    back = logs.exp()
    back.scatter_add_(1, right, torch.full_like(back[:, :1], -1).expand(len(right), 1))
    return -logs.gather(1, right).sum() / count, back / count


def numbers_of(stack: Stack, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The settings of a stack's rule, (settings, lanes), and its coefficients of updates, (coefficients, count, L).

    L is 1 where lanes do not differ, otherwise the number of lanes. Both are float64.
    """
    _, names, coefficients = KERNELS[stack.rule.name]
    lanes, values = len(stack.alive), stack.settings(slice(0, len(stack.alive)))
    settings = np.empty((len(names), lanes))
    for place, name in enumerate(names):
        settings[place] = values[name]
    table = stack.rule.coefficients(first, first + count - 1, values)
    width = max((table[name].shape[1] for name in coefficients), default=1)
    columns = np.empty((len(coefficients), count, width))
    for place, name in enumerate(coefficients):
        columns[place] = table[name]
    return settings, columns


def _buffers(stack: Stack, rows: slice | int) -> list[Tensor]:
    """The buffers that the kernel's rule changes, of some lanes."""
    return [stack.state[name][rows] for name in stack.rule.buffers if name != EMA]


def _keeps(stack: Stack, first: int, count: int) -> np.ndarray | None:
    """The shares that the moving averages keep in `count` updates from `first`, from 0: (count, L); None if none do."""
    if EMA not in stack.state:
        return None
    lanes = len(stack.alive)
    keeps = np.empty((count, lanes))
    keeps[:] = stack.settings(slice(0, lanes))[EMA]
    if first == 0:
        keeps[0] = 0
    return keeps


def _arguments(*values: int | np.ndarray | Tensor | None) -> list[Any]:
    """Whole numbers, and the places of arrays and tensors, as the kernel takes them; None is no place."""
    return [_argument(value) for value in values]


def _argument(value: int | np.ndarray | Tensor | None) -> Any:
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_void_p(None if value is None else value.ctypes.data)
