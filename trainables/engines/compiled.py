"""The compiled engine: updates of stacked lanes as programs of torch.compile, one per shape and optimizer.

A program makes whole updates of a fixed number of lanes, a tile. A stack is trained tile by tile, the last one filled
up with copies, so that one program serves any number of lanes. Programs are much faster than `Eager` on small networks.

There are two layouts. `narrow`: lanes are the innermost axis, (B, features, T), so that the smallest network fills the
processor's vectors; a product is multiply and sum. `wide`: lanes are the outermost axis, (T, features, B), as in
`dense`; batched matrix products pay from some dozens of features on. Derivatives are written out layer by layer:
automatic differentiation of these forms leads to loops over masks and scattered writes that take several times longer.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.criterion import Criterion
from trainables.data import Task
from trainables.engines import dense
from trainables.engines.eager import Eager
from trainables.engines.memory import block_size
from trainables.lanes.batches import Batches
from trainables.lanes.stack import Stack
from trainables.models import activations, multiplications
from trainables.rules import RULES, State

Tensors = dict[str, Tensor]

# Memory of a tile's parameters, state and activations: about a core's cache.
TILE_BYTES = {"narrow": 2 << 20, "wide": 8 << 20}
# The longest vector of a processor's registers, in bytes: tiles of whole vectors waste none.
VECTOR_BYTES = 64
# Fewest lanes of a narrow tile. Networks of more parameters are compiled in the wide layout.
FEWEST_LANES, NARROW_PARAMETERS = 16, 4_000
# Examples in a block, at most; updates in a program, at most, and fewer where they have more operations than this.
MOST_EXAMPLES = 256
MOST_UPDATES = 4
WHOLE_OPERATIONS = 8_500_000
# Sums that are computed together because they read the same inputs.
GROUP = 4
# Positions in a 2x2 window, in the order of torch's max pooling: (down, right).
WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))
# Measured by `study bench` on a processor (tests/benchmarks): seconds of compiling; of starting an eager update's
# operations; per product, eager and compiled; and per parameter of an eager rule.
COMPILE_SECONDS = {"narrow": 15.0, "wide": 10.0, "convolutional": 20.0}
EAGER_SECONDS = 2.5e-4
PRODUCTS = {"narrow": (4.1e-10, 2.1e-10), "wide": (2.0e-11, 1.9e-11), "convolutional": (1.5e-10, 5.4e-11)}
RULE_SECONDS = 4e-9


def pays(network: nn.Sequential, in_shape: tuple[int, ...], batch_size: int, stack: Stack, updates: int) -> bool:
    """Whether programs for this network exist, can be compiled here, and save more time than compiling takes."""
    if not compiler() or layers(network, in_shape, wide=False) is None:
        return False
    return updates * saving(network, in_shape, batch_size, stack) > COMPILE_SECONDS[_kind(network, stack)]


def saving(network: nn.Sequential, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> float:
    """Seconds that a compiled update of the whole stack saves on a processor, by the measured constants."""
    kind = _kind(network, stack)
    products = 3 * multiplications(network, in_shape) * batch_size * len(stack.lanes)
    numbers = stack.parameters.numel()
    eager, quick = PRODUCTS[kind]
    return EAGER_SECONDS + products * (eager - quick) + numbers * RULE_SECONDS


def compiler() -> bool:
    """Whether this machine has a C++ compiler, which torch.compile needs for a processor."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _kind(network: nn.Sequential, stack: Stack) -> str:
    if any(isinstance(layer, nn.Conv2d) for layer in network):
        return "convolutional"
    return "wide" if stack.parameters.shape[1] > NARROW_PARAMETERS else "narrow"


class Compiled(Eager):
    """Compiled programs, tile by tile.

    Full batches are made by programs of whole updates. Batches too large for the cache, and the rest, such as the
    epoch's short last batch, go block by block; a block is filled up with examples of no weight.

    Args:
        network: one network of the family.
        in_shape: shape of one example.
        criterion: the loss and the score.
        batch_size: examples per update.
        stack: all lanes, which determine the sizes of tiles and blocks.
    """

    name = "compiled"

    def __init__(
        self, network: nn.Sequential, in_shape: tuple[int, ...], criterion: Criterion, batch_size: int, stack: Stack
    ) -> None:
        super().__init__(network, criterion, block_size(activations(network, in_shape), stack))
        kind = _kind(network, stack)
        self.wide = kind == "wide"
        chain = layers(network, in_shape, wide=self.wide)
        if chain is None:
            raise TypeError(f"no program is known for a network with these layers: {network}; choose the engine eager")
        size, lanes = stack.parameters.element_size(), len(stack.lanes)
        numbers = stack.parameters.shape[1] * (2 + len(stack.rule.buffers))
        # A block leaves its activations and about as many derivatives; wide layers are bound by parameters.
        example = 0 if self.wide else 2 * activations(network, in_shape)
        limit = TILE_BYTES["wide" if self.wide else "narrow"] // size
        vector = 1 if self.wide else VECTOR_BYTES // size
        fewest = 1 if self.wide else FEWEST_LANES
        tile = max(fewest, limit // (numbers + min(batch_size, MOST_EXAMPLES) * example) // vector * vector)
        self.tile = math.ceil(lanes / math.ceil(lanes / tile) / vector) * vector
        block = max(1, 2 * limit // (self.tile * example)) if example else MOST_EXAMPLES
        self.examples = math.ceil(batch_size / math.ceil(batch_size / block))
        # Several updates at once halve the time of a tiny network, and multiply that of compiling.
        work = 6 * multiplications(network, in_shape) * batch_size * self.tile
        most = 1 if kind == "convolutional" else min(MOST_UPDATES, WHOLE_OPERATIONS // work)
        self.updates = 0 if self.examples < batch_size else max(1, most)
        settings = stack.settings(slice(None)).items()
        fixed = tuple((name, None if isinstance(value, np.ndarray) else value) for name, value in settings)
        shapes = (self.tile, self.examples, batch_size, stack.parameters.dtype)
        self.program = _program(tuple(chain), criterion.task, stack.rule.name, fixed, self.wide, self.updates, shapes)

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Train tile by tile."""
        losses = stack.parameters.new_empty(stop - stack.update, rows.stop - rows.start)
        for start in range(rows.start, rows.stop, self.tile):
            end = min(start + self.tile, rows.stop)
            losses[:, start - rows.start : end - rows.start] = self._advance(stack, batches, slice(start, end), stop)
        return losses

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """Compile and run whole updates from the start of an epoch, then its last update, which may be short."""
        scratch = stack.scratch()
        scratch.update = 0
        if self.updates:
            self.advance(scratch, batches, slice(0, 1), self.updates)
        if not self.updates or self.updates > 1 or batches.full(batches.per_epoch - 1) < 1:
            scratch.update = batches.per_epoch - 1
            self.advance(scratch, batches, slice(0, 1), batches.per_epoch)

    @torch.no_grad()
    def _advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """One tile's updates; the last tile is filled up with copies of its first lane."""
        count = rows.stop - rows.start
        lanes = torch.arange(self.tile, device=stack.parameters.device)
        lanes = torch.where(lanes < count, lanes, 0) + rows.start
        losses = stack.parameters.new_empty(stop - stack.update, count)
        pieces = self._in(stack, stack.parameters[lanes])
        buffers = {name: self._in(stack, buffer[lanes]) for name, buffer in stack.state.items()}
        states = [{name: parts[number] for name, parts in buffers.items()} for number in range(len(pieces))]
        own = lanes - rows.start
        rates, settings = stack.rates(rows)[own, 0], stack.settings(rows)
        table = {
            name: rates.new_tensor(column[:, 0] if column.shape[1] == 1 else np.ascontiguousarray(column[:, own.cpu()]))
            for name, column in stack.rule.coefficients(stack.update + 1, stop, settings).items()
        }
        different = {
            name: rates.new_tensor(value)[own] for name, value in settings.items() if isinstance(value, np.ndarray)
        }
        update = stack.update
        whole = self._blocks_of_all(batches) if batches.whole else None
        while update < stop:
            done = update - stack.update
            if self.updates and min(batches.full(update), stop - update) >= self.updates:
                made = self.updates
                x, y = self._batch(batches, batches.rows(update, made), lanes, made)
                columns = {name: column[done : done + made] for name, column in table.items()}
                loss = self.program.whole(pieces, states, rates, columns, different, x, y)
            else:
                made, found, loss = 1, [torch.zeros_like(piece) for piece in pieces], rates.new_zeros(self.tile)
                for x, y, shares in whole or self._blocks(batches, update, lanes):
                    self.program.accumulate(pieces, found, loss, x, y, shares)
                row = {name: column[done] for name, column in table.items()}
                self.program.apply(pieces, found, states, rates, row, different)
            losses[done : done + made] = loss[..., :count]
            update += made
        stack.parameters[rows] = self._out(pieces)[:count]
        for name, parts in buffers.items():
            stack.state[name][rows] = self._out(parts)[:count]
        return losses

    def _in(self, stack: Stack, rows: Tensor) -> list[Tensor]:
        """Rows of the stack, (T, P), as a program takes them."""
        if not self.wide:
            return [rows.t().contiguous()]
        parts = rows.split([shape.numel() for shape in stack.shapes], 1)
        return [part.reshape(-1, *shape).contiguous() for part, shape in zip(parts, stack.shapes, strict=True)]

    def _out(self, pieces: list[Tensor]) -> Tensor:
        """Rows of the stack, (T, P), from the pieces of a program."""
        return torch.cat([piece.flatten(1) for piece in pieces], 1) if self.wide else pieces[0].t()

    def _batch(self, batches: Batches, rows: Tensor, lanes: Tensor, updates: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (U, T, B, ...)."""
        x, y = batches.take(rows, lanes)
        return x.unflatten(1, (updates, -1)).transpose(0, 1), y.unflatten(1, (updates, -1)).transpose(0, 1)

    def _shares(self, count: int, total: int, like: Tensor) -> Tensor:
        """Weights of the examples in a block, zero for those that fill up a short block."""
        shares = like.new_zeros(self.examples)
        shares[:count] = 1 / total
        return shares

    def _blocks(self, batches: Batches, update: int, lanes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One batch in blocks."""
        rows = batches.rows(update)
        for part in rows.split(self.examples, 1):
            # Filled with its own last example: an infinite loss of another would make the sum NaN even at weight 0.
            filling = part[:, -1:].expand(-1, self.examples - part.shape[1])
            x, y = self._batch(batches, torch.cat([part, filling], 1), lanes, 1)
            yield x[0], y[0], self._shares(part.shape[1], rows.shape[1], batches.examples.inputs)

    def _blocks_of_all(self, batches: Batches) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The whole split in blocks, the same for all lanes."""
        x, y = batches.examples.inputs, batches.examples.targets
        found = []
        for start in range(0, len(x), self.examples):
            rows = torch.arange(start, start + self.examples, device=x.device).clamp(max=len(x) - 1)
            shares = self._shares(min(self.examples, len(x) - start), len(x), x)
            found.append((x[rows][None], y[rows][None], shares))
        return found


@dataclass(frozen=True)
class Program:
    """A compiled program, with everything that determines its machine code.

    Attributes:
        network: its layers.
        task: regression or classification.
        optimizer: name of the rule.
        settings: (name, number) of the rule, with None where the number differs between lanes.
        wide: the layout.
        updates: whole updates at once; 0 if gradients are accumulated over blocks and then applied.
        shapes: lanes, examples in a block and in a batch, and type.
    """

    network: tuple[dense.Layer, ...]
    task: Task
    optimizer: str
    settings: tuple[tuple[str, float | None], ...]
    wide: bool
    updates: int
    shapes: tuple[int, int, int, torch.dtype]

    def leaves(self, pieces: list[Tensor]) -> list[Tensor]:
        """The parameters one by one, which the pieces already are if wide; otherwise there is one piece, (P, T)."""
        if self.wide:
            return pieces
        shapes = [shape for layer in self.network for shape in layer.shapes]
        parts = pieces[0].split([math.prod(shape) for shape in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def _gradients(
        self, pieces: list[Tensor], x: Tensor, y: Tensor, shares: Tensor | float
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses and gradients of examples, (T, B, ...)."""
        if self.wide:
            x, y = x.movedim(1, -1), y.movedim(1, -1)
        else:
            x, y = _stored(x.flatten(2).permute(1, 2, 0)).view(*x.shape[1:], -1), y.movedim(0, -1)
            shares = shares[:, None, None] if isinstance(shares, Tensor) else shares
        axis = 2 if self.wide else 0
        losses, found = dense.gradients(self.network, self.leaves(pieces), x, y, shares, self.task, examples=axis)
        return losses, found if self.wide else [torch.cat([part.flatten(0, -2) for part in found])]

    def _apply(
        self, pieces: list[Tensor], found: list[Tensor], states: list[State], rates: Tensor, row: Tensors, own: Tensors
    ) -> None:
        for piece, gradient, state in zip(pieces, found, states, strict=True):

            def fit(value: Tensor, axes: int = piece.ndim) -> Tensor:
                return value.view(-1, *[1] * (axes - 1)) if self.wide and value.ndim else value

            settings = {name: fit(own[name]) if value is None else value for name, value in self.settings}
            columns = {name: fit(value) for name, value in row.items()}
            RULES[self.optimizer].step(piece, gradient, state, fit(rates), columns, settings)

    @cached_property
    def whole(self) -> Any:
        """(pieces, states, rates, columns, own settings, inputs (U, ...), targets (U, ...)) -> losses (U, T)."""

        def run(
            pieces: list[Tensor],
            states: list[State],
            rates: Tensor,
            columns: Tensors,
            own: Tensors,
            x: Tensor,
            y: Tensor,
        ) -> Tensor:
            losses = []
            share = 1 / x.shape[2]
            for update in range(self.updates):
                loss, found = self._gradients(pieces, x[update], y[update], share)
                self._apply(pieces, found, states, rates, {k: column[update] for k, column in columns.items()}, own)
                losses.append(loss)
            return torch.stack(losses)

        return _compiled(run)

    @cached_property
    def accumulate(self) -> Any:
        """(pieces, gradients so far, losses so far, inputs, targets, shares (B,)): adds a block in place."""

        def run(
            pieces: list[Tensor], so_far: list[Tensor], losses: Tensor, x: Tensor, y: Tensor, shares: Tensor
        ) -> None:
            loss, found = self._gradients(pieces, x, y, shares)
            losses.add_(loss)
            for total, part in zip(so_far, found, strict=True):
                total.add_(part)

        return _compiled(run)

    @cached_property
    def apply(self) -> Any:
        """(pieces, gradients, states, rates, coefficients, own settings): one step of the optimizer in place."""
        return _compiled(lambda *arguments: self._apply(*arguments))


@functools.cache
def _program(
    network: tuple[dense.Layer, ...],
    task: Task,
    optimizer: str,
    settings: tuple[tuple[str, float | None], ...],
    wide: bool,
    updates: int,
    shapes: tuple[int, int, int, torch.dtype],
) -> Program:
    """One program for all trials that need it, for the life of the process."""
    return Program(network, task, optimizer, settings, wide, updates, shapes)


def _compiled(function: Callable[..., Any]) -> Any:
    """The function, to be compiled for the shapes of its first call."""
    # torch counts recompilations by code object and gives up after some, so each program gets its own.
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


class NarrowDense(dense.Dense):
    """A linear layer, (B, inputs, T) -> (B, outputs, T)."""

    def forward(self, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Any]:
        """As multiply and sum."""
        x = x.flatten(1, -2)
        return (w * x[:, None]).sum(2) + b, x

    def backward(self, d: Tensor, x: Tensor, w: Tensor, *, inputs: bool) -> tuple[Tensor | None, list[Tensor]]:
        """As multiply and sum; a single example needs no sum."""
        by_inputs = (d[:, :, None] * w).sum(1) if inputs else None
        if len(x) == 1:
            return by_inputs, [d[0, :, None] * x[0, None], d[0]]
        by_weights = _grouped(self.outputs, lambda own: (d[:, own, None] * x[:, None]).sum(0), 0)
        return by_inputs, [by_weights, d.sum(0)]


@dataclass(frozen=True)
class ConvBlock:
    """A convolution, ReLU and 2x2 max pooling, lanes innermost.

    The convolution is computed separately at the four positions of each pooling window, so that pooling and its
    derivative are elementwise. Ties go to the first position, as in torch.

    Attributes:
        channels, filters, kernel, padding: of the convolution.
    """

    channels: int
    filters: int
    kernel: tuple[int, int]
    padding: tuple[int, int]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of its parameters."""
        return [(self.filters, self.channels, *self.kernel), (self.filters,)]

    def forward(self, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Any]:
        """(B, channels, height, width, T) -> (B, filters, height', width', T)."""
        down, right = self.padding
        x = _stored(F.pad(x, (0, 0, right, right, down, down)))
        parts = [
            (_windows(x, self.kernel, at, 2)[:, None] * w[None, :, :, :, :, None, None]).sum((2, 3, 4))
            + b[:, None, None]
            for at in WINDOW
        ]
        top, bottom = torch.maximum(parts[0], parts[1]), torch.maximum(parts[2], parts[3])
        return torch.maximum(top, bottom).relu(), (x, parts)

    def backward(self, d: Tensor, saved: Any, w: Tensor, *, inputs: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Through pooling to the window's largest position, then through the convolution there."""
        x, (a, b, e, f) = saved
        (rows, columns), (height, width) = d.shape[2:4], self.kernel
        top, bottom = torch.maximum(a, b), torch.maximum(e, f)
        d = torch.where(torch.maximum(top, bottom) > 0, d, 0.0)
        upper = torch.where(top >= bottom, d, 0.0)
        lower = d - upper
        first, third = torch.where(a >= b, upper, 0.0), torch.where(e >= f, lower, 0.0)
        parts = [_stored(part) for part in (first, upper - first, third, lower - third)]
        windows = [_windows(x, self.kernel, at, 2)[:, None] for at in WINDOW]

        def some(own: slice) -> Tensor:
            pairs = zip(windows, parts, strict=True)
            return _tree([(window * part[:, own, None, None, None]).sum((0, 5, 6)) for window, part in pairs])

        by_parameters = [_grouped(self.filters, some, 0)]
        by_parameters.append(_tree(parts).sum((0, 2, 3)))
        if not inputs:
            return None, by_parameters
        whole = torch.stack([torch.stack(parts[:2], 4), torch.stack(parts[2:], 4)], 3).flatten(4, 5).flatten(2, 3)
        spare = (x.shape[2] - height + 1 - 2 * rows, x.shape[3] - width + 1 - 2 * columns)
        whole = _stored(F.pad(whole, (0, 0, width - 1, width - 1 + spare[1], height - 1, height - 1 + spare[0])))
        window, flipped = _windows(whole, self.kernel, (0, 0), 1)[:, None], w.flip(2, 3).transpose(0, 1)
        by_inputs = _grouped(
            self.channels, lambda own: (window * flipped[None, own, :, :, :, None, None]).sum((2, 3, 4)), 1
        )
        (down, right), (h, v) = self.padding, x.shape[2:4]
        return by_inputs[:, :, down : h - down, right : v - right], by_parameters


def layers(network: nn.Sequential, in_shape: tuple[int, ...], *, wide: bool) -> list[dense.Layer] | None:
    """The network as layers of a layout; None if it has others."""
    if wide:
        return dense.layers(network)
    found: list[dense.Layer] = []
    shape, modules = in_shape, list(network)
    while modules:
        match modules:
            case [nn.Flatten(), *modules]:
                shape = (math.prod(shape),)
            case [nn.Linear() as layer, *modules] if layer.bias is not None:
                found.append(NarrowDense(layer.in_features, layer.out_features))
                shape = (layer.out_features,)
            case [nn.Conv2d() as layer, nn.ReLU(), nn.MaxPool2d() as pool, *modules] if _plain(layer, pool):
                assert isinstance(layer.padding, tuple)
                kernel, padding = (layer.kernel_size[0], layer.kernel_size[1]), (layer.padding[0], layer.padding[1])
                found.append(ConvBlock(shape[0], layer.out_channels, kernel, padding))
                sizes = zip(shape[1:], padding, kernel, strict=True)
                shape = (layer.out_channels, *((size + 2 * pad - width + 1) // 2 for size, pad, width in sizes))
            case [nn.ReLU(), *modules]:
                found.append(dense.Rectifier())
            case _:
                return None
    return found


def _plain(layer: nn.Conv2d, pool: nn.MaxPool2d) -> bool:
    """Whether `ConvBlock` computes a convolution and its pooling."""
    plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    even = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (2, 2, 0, 1, False)
    return plain and even and layer.bias is not None and isinstance(layer.padding, tuple)


def _grouped(count: int, some: Callable[[slice], Tensor], axis: int) -> Tensor:
    """Sums for `GROUP` of `count` outputs at a time, joined along an axis, so that inputs are read once for all."""
    groups = math.gcd(GROUP, count)
    return torch.stack([some(slice(k, None, groups)) for k in range(groups)], axis + 1).flatten(axis, axis + 1)


def _tree(terms: list[Tensor]) -> Tensor:
    """The sum of one, two or four terms, pairwise."""
    return terms[0] if len(terms) == 1 else _tree(terms[::2]) + _tree(terms[1::2])


def _stored(x: Tensor) -> Tensor:
    """The same tensor, computed once and stored; the compiler would otherwise compute it again for every use."""
    # Only stored tensors have views by strides.
    x = x.contiguous()
    return x.as_strided((x.numel(),), (1,)).view(x.shape)


def _windows(x: Tensor, kernel: tuple[int, int], start: tuple[int, int], stride: int) -> Tensor:
    """All places of a filter, as a view: (B, C, H, W, T) -> (B, C, *kernel, rows, columns, T).

    With a stride of 2, the places of the convolution before 2x2 pooling whose window position is `start`.
    """
    count, channels, height, width, lanes = x.shape
    rows, columns = ((length - size + 1) // stride for length, size in zip((height, width), kernel, strict=True))
    s = x.stride()
    shape = (count, channels, *kernel, rows, columns, lanes)
    return x.as_strided(
        shape, (s[0], s[1], s[2], s[3], stride * s[2], stride * s[3], s[4]), start[0] * s[2] + start[1] * s[3]
    )
