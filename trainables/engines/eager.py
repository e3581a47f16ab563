"""Engines: ways to make the updates of a stack. All compute the same, within lane equality's tolerance.

`Eager` runs operation by operation and starts at once. `Compiled` runs programs (`trainables.engines.compiled`) that
are many times faster on small networks and take some seconds to compile. `Graph` records one update of a GPU and
replays it. `choose` picks one from the trial and the kind of device alone, so that the same trial always takes the
same.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.criterion import Criterion
from trainables.data import Split, Task
from trainables.engines import compiled
from trainables.engines.vmapped import Copies, Manner, Rows, Turns, drawing, updated
from trainables.lanes.stack import Batches, Builder, Stack, initialise
from trainables.models import Fixed, Shift, activations, layered, multiplications
from trainables.rules import RULES, Number
from trainables.usercode.importing import is_foreign
from trainables.usercode.vmap_support import TRIED_EXAMPLES, manner_of

NAMES = ("eager", "compiled", "cuda-graph", "solo")
Forward = Callable[[Sequence[Tensor], Tensor], Tensor]

# What one block of examples may leave behind in a forward pass: about a core's cache, or a modest part of a GPU.
BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
# What a tile's parameters, state and activations may take in a compiled program: a core's cache again.
TILE_BYTES = {"narrow": 2 << 20, "wide": 8 << 20}
# The longest vector of a processor's registers, in bytes: tiles of whole vectors waste none.
VECTOR_BYTES = 64
# Narrow tiles have at least so many lanes, if there are.
FEWEST_LANES = 16
# Networks of more parameters are compiled with matrix products.
NARROW_PARAMETERS = 4_000
# Examples in a block, at most; updates in a program, at most, and as many as make about so many operations.
MOST_EXAMPLES = 256
MOST_UPDATES = 4
WHOLE_OPERATIONS = 8_500_000
# Of a device's memory, or of a processor's part of a machine's, so much is for lanes.
MEMORY_SHARE = 0.7
# Small batches into which examples are cut where the gradient's noise is estimated: more are surer and take longer.
CHUNKS = 50
# Updates between two words from the host, where a GPU replays them.
GRAPH_UPDATES = 512
FEWEST_REPLAYS = 8
# What `choose` reckons with, on a processor: `study bench` measured these (tests/benchmarks). Seconds of compiling; of
# starting an eager update's operations; per product, eager and compiled; and per parameter of an eager rule.
COMPILE_SECONDS = {"narrow": 15.0, "wide": 10.0, "convolutional": 20.0}
EAGER_SECONDS = 2.5e-4
PRODUCTS = {"narrow": (4.1e-10, 2.1e-10), "wide": (2.0e-11, 1.9e-11), "convolutional": (1.5e-10, 5.4e-11)}
RULE_SECONDS = 4e-9


class Engine(Protocol):
    """A way to make the updates of a stack.

    Attributes:
        name: one of `NAMES`; or vmap or loop, where a user's model leaves no choice.
        criterion: what outputs are judged by.
    """

    name: str
    criterion: Criterion

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Make the updates from `stack.update` to `stop` of some rows of the stack, in place.

        Returns:
            Each update's losses before it, (updates, rows).
        """

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """Compile, record and import what the updates will need, so that it does not count as training."""

    def evaluate(self, stack: Stack, rows: slice, examples: Split) -> dict[str, Tensor]:
        """Mean loss, and accuracy if there is a score, of some rows on fixed examples, each (rows,), float64."""

    def predict(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """The class that some rows see in each example, and its softmax probability, each (rows, n)."""

    def noise(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """How much the gradient of some rows differs between examples, which are a random sample.

        Both are unbiased, from gradients of batches of two sizes (McCandlish et al. 2018, appendix A.1): chunks of the
        examples, and all of them. So either may be negative.

        Returns:
            The squared norm of the gradient's mean, and the trace of its covariance, each (rows,), float64.
        """


class Eager:
    """Stacked tensors, one operation after another.

    Args:
        network: one network of the family.
        in_shape: shape of one example.
        criterion: what outputs are judged by.
        block: examples to pass at a time.
    """

    name: str = "eager"

    def __init__(self, network: nn.Sequential, in_shape: tuple[int, ...], criterion: Criterion, block: int) -> None:
        self.forward, self.criterion, self.block = stacked(network), criterion, block
        # Derivatives as they are written for programs spare dense networks a fifth of the time of differentiating.
        written = not criterion.loss and not _convolutional(network)
        self.dense = compiled.layers(network, in_shape) if written else None

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """As `Engine.advance`."""
        parameters, leaves, rates = stack.parameters[rows], stack.leaves(rows), stack.rates(rows)
        state = {name: buffer[rows] for name, buffer in stack.state.items()}
        settings = stack.settings(rows)
        numbers = {name: _column(value, parameters) for name, value in settings.items()}
        table = stack.rule.coefficients(stack.update + 1, stop, settings)
        losses = parameters.new_empty(stop - stack.update, len(parameters))
        for done in range(stop - stack.update):
            update = stack.update + done
            batch = None if batches.whole else batches.rows(update)
            losses[done], gradients = self.gradient(stack, leaves, batches, batch, rows, update)
            coefficients = {name: _column(column[done], parameters) for name, column in table.items()}
            stack.rule.step(parameters, gradients, state, rates, coefficients, numbers)
        return losses

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """As `Engine.warm_up`: an update of one lane, of a copy."""
        scratch = stack.scratch()
        self.advance(scratch, batches, slice(0, 1), scratch.update + 1)

    def gradient(
        self, stack: Stack, leaves: Sequence[Tensor], batches: Batches, batch: Tensor | None, rows: slice, update: int
    ) -> tuple[Tensor, Tensor]:
        """Losses and gradients of some rows for one batch, blocks of examples at a time.

        Args:
            stack: the lanes.
            leaves: the parameters, each (k, *shape).
            batches: gives the examples.
            batch: rows of the split for each seed, (seeds, B); None if all lanes see the whole split, which is not
                copied.
            rows: of the stack.
            update: updates made so far.

        Returns:
            Mean losses over the batch, (k,), and their gradients, (k, P).
        """
        forward = self._forward(stack, rows, update, training=True)
        if batch is None:
            return self._common(forward, leaves, batches.examples)
        blocks = (batches.take(part, rows) for part in batch.split(self.block, 1))
        return self._summed(forward, leaves, blocks, batch.shape[1])

    def _forward(self, stack: Stack, rows: slice, update: int, *, training: bool) -> Forward:
        """The forward pass of some rows; the same at any time here."""
        return self.forward

    def _common(self, forward: Forward, leaves: Sequence[Tensor], examples: Split) -> tuple[Tensor, Tensor]:
        """As `gradient`, for examples that all lanes see."""
        inputs, targets = examples.inputs[None].split(self.block, 1), examples.targets[None].split(self.block, 1)
        return self._summed(forward, leaves, zip(inputs, targets, strict=True), len(examples))

    def _summed(
        self, forward: Forward, leaves: Sequence[Tensor], blocks: Iterable[tuple[Tensor, Tensor]], count: int
    ) -> tuple[Tensor, Tensor]:
        """As `gradient`, for `count` examples block by block."""
        losses = gradients = None
        for x, y in blocks:
            loss, parts = self._differentiated(forward, leaves, x, y, count)
            flat = torch.cat([part.reshape(len(part), -1) for part in parts], 1)
            losses = loss if losses is None else losses + loss
            gradients = flat if gradients is None else gradients.add_(flat)
        assert losses is not None
        assert gradients is not None
        return losses, gradients

    def _differentiated(
        self, forward: Forward, leaves: Sequence[Tensor], x: Tensor, y: Tensor, count: int
    ) -> tuple[Tensor, list[Tensor]]:
        """A block's share of the losses of a batch of `count` examples, (k,), and of their gradients, each (k, ...)."""
        if self.dense is None:
            each = self.criterion.losses(forward(leaves, x), y).sum(1) / count
            return each.detach(), list(torch.autograd.grad(each.sum(), leaves, materialize_grads=True))
        with torch.no_grad():
            x, y = x.movedim(1, -1), y.movedim(1, -1)
            return compiled.gradients(self.dense, leaves, x, y, 1 / count, self.criterion.task, wide=True)

    def evaluate(self, stack: Stack, rows: slice, examples: Split) -> dict[str, Tensor]:
        """As `Engine.evaluate`."""
        forward = self._forward(stack, rows, stack.update, training=False)
        return evaluation(forward, stack.leaves(rows), examples, self.criterion, self.block)

    @torch.no_grad()
    def predict(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """As `Engine.predict`; the class is the one by which `evaluate` counts."""
        leaves, forward = stack.leaves(rows), self._forward(stack, rows, stack.update, training=False)
        outputs = torch.cat([forward(leaves, x[None]) for x in examples.inputs.split(self.block)], 1)
        classes = outputs.argmax(2)
        return classes, outputs.softmax(2).gather(2, classes[..., None])[..., 0]

    def noise(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """As `Engine.noise`, whichever way the updates are made."""
        leaves, large, count = stack.leaves(rows), len(examples), min(CHUNKS, len(examples))
        forward = self._forward(stack, rows, stack.update, training=False)
        pairs = zip(examples.inputs.tensor_split(count), examples.targets.tensor_split(count), strict=True)
        chunks = [Split(x, y) for x, y in pairs]
        # The mean of 1 / size is what the noise of a chunk's gradient is proportional to, where sizes differ by one.
        small = count / sum(1 / len(chunk) for chunk in chunks)
        whole = torch.zeros_like(stack.parameters[rows])
        squares = whole.new_zeros(len(whole), dtype=torch.float64)
        for chunk in chunks:
            _, found = self._common(forward, leaves, chunk)
            squares += _square(found) / count
            whole += found * (len(chunk) / large)
        square = (large * _square(whole) - small * squares) / (large - small)
        return square, (squares - _square(whole)) / (1 / small - 1 / large)


class Compiled(Eager):
    """Programs of `trainables.engines.compiled`, tile by tile.

    Batches of full size are made by programs of whole updates. Batches too large for the cache, and what those leave
    over, the epoch's short last batch among them, go block by block; a block is filled up with examples of no weight.

    Args:
        network: one network of the family.
        in_shape: shape of one example.
        criterion: what outputs are judged by.
        batch_size: examples per update.
        stack: the lanes, all of them, from which the sizes of tiles and blocks follow.
    """

    name = "compiled"

    def __init__(
        self, network: nn.Sequential, in_shape: tuple[int, ...], criterion: Criterion, batch_size: int, stack: Stack
    ) -> None:
        super().__init__(network, in_shape, criterion, block_size(activations(network, in_shape), stack))
        layers = compiled.layers(network, in_shape)
        if layers is None:
            raise TypeError(f"no program is known for a network with these layers: {network}; choose the engine eager")
        size, lanes = stack.parameters.element_size(), len(stack.lanes)
        numbers = stack.parameters.shape[1] * (2 + len(stack.rule.buffers))
        kind = _kind(network, stack)
        self.wide = kind == "wide"
        # A block leaves its activations and about as many derivatives behind; wide layers are bound by parameters.
        example = 0 if self.wide else 2 * activations(network, in_shape)
        limit = TILE_BYTES["wide" if self.wide else "narrow"] // size
        vector = 1 if self.wide else VECTOR_BYTES // size
        fewest = 1 if self.wide else FEWEST_LANES
        tile = max(fewest, limit // (numbers + min(batch_size, MOST_EXAMPLES) * example) // vector * vector)
        self.tile = math.ceil(lanes / math.ceil(lanes / tile) / vector) * vector
        block = max(1, 2 * limit // (self.tile * example)) if example else MOST_EXAMPLES
        self.examples = math.ceil(batch_size / math.ceil(batch_size / block))
        # Several updates at once spare a tiny network half its time, and cost the compiler that much more.
        work = 6 * multiplications(network, in_shape) * batch_size * self.tile
        most = 1 if kind == "convolutional" else min(MOST_UPDATES, WHOLE_OPERATIONS // work)
        self.updates = 0 if self.examples < batch_size else max(1, most)
        fixed = tuple(
            (name, None if isinstance(v, np.ndarray) else v) for name, v in stack.settings(slice(None)).items()
        )
        shapes = (self.tile, self.examples, batch_size, stack.parameters.dtype)
        self.program = _program(tuple(layers), criterion.task, stack.rule.name, fixed, self.wide, self.updates, shapes)

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """As `Engine.advance`."""
        losses = stack.parameters.new_empty(stop - stack.update, rows.stop - rows.start)
        for start in range(rows.start, rows.stop, self.tile):
            end = min(start + self.tile, rows.stop)
            losses[:, start - rows.start : end - rows.start] = self._advance(stack, batches, slice(start, end), stop)
        return losses

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """As `Engine.warm_up`: whole updates from the start of an epoch, then its last, which may be a short one."""
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
        whole = self._shared(batches) if batches.whole else None
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
        """The same back, (T, P)."""
        return torch.cat([piece.flatten(1) for piece in pieces], 1) if self.wide else pieces[0].t()

    def _batch(self, batches: Batches, rows: Tensor, lanes: Tensor, updates: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (U, T, B, ...)."""
        x, y = batches.take(rows, lanes)
        return x.unflatten(1, (updates, -1)).transpose(0, 1), y.unflatten(1, (updates, -1)).transpose(0, 1)

    def _shares(self, count: int, total: int, like: Tensor) -> Tensor:
        """Weights of the examples in a block: a short block is filled up with examples that do not count."""
        shares = like.new_zeros(self.examples)
        shares[:count] = 1 / total
        return shares

    def _blocks(self, batches: Batches, update: int, lanes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One batch, which may be an epoch's short last one, in blocks."""
        rows = batches.rows(update)
        for part in rows.split(self.examples, 1):
            # With one of its own: another example's loss, were it infinite, would spoil the sum even so.
            filling = part[:, -1:].expand(-1, self.examples - part.shape[1])
            x, y = self._batch(batches, torch.cat([part, filling], 1), lanes, 1)
            yield x[0], y[0], self._shares(part.shape[1], rows.shape[1], batches.examples.inputs)

    def _shared(self, batches: Batches) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The whole split in blocks, the same for all lanes."""
        x, y = batches.examples.inputs, batches.examples.targets
        found = []
        for start in range(0, len(x), self.examples):
            rows = torch.arange(start, start + self.examples, device=x.device)
            rows = rows.clamp(max=len(x) - 1)
            shares = self._shares(min(self.examples, len(x) - start), len(x), x)
            found.append((x[rows][None], y[rows][None], shares))
        return found


class Graph(Eager):
    """On a GPU: one update is recorded as a CUDA graph and replayed, with no word from the host inside an epoch.

    Everything that changes from update to update, the rows of the batch and the coefficients, is read from tables on
    the device at a place that the graph itself moves on. An epoch's short last batch is left to `Eager`. Where there is
    no GPU, the same update runs unrecorded.
    """

    name = "cuda-graph"

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """As `Engine.advance`."""
        losses, first = [], stack.update
        update, on_gpu = Update(self, stack, batches, rows), stack.parameters.is_cuda
        try:
            while stack.update < stop:
                count = max(1, min(batches.full(stack.update), stop - stack.update, update.most))
                # Recording pays from some updates on.
                if batches.full(stack.update) < 1 or (on_gpu and stop - first < FEWEST_REPLAYS):
                    count = 1
                    losses.append(super().advance(stack, batches, rows, stack.update + 1))
                else:
                    losses.append(update.replay(count))
                stack.update += count
        finally:
            stack.update = first
        return torch.cat(losses)


class Update:
    """One update of some rows, as a CUDA graph where there is a GPU, and the tables that it reads.

    Args:
        engine: knows the network and the task.
        stack: the lanes.
        batches: their batches.
        rows: of the stack.
    """

    def __init__(self, engine: Eager, stack: Stack, batches: Batches, rows: slice) -> None:
        self.engine, self.stack, self.batches, self.rows = engine, stack, batches, rows
        self.parameters = stack.parameters[rows]
        self.leaves, self.rates = stack.leaves(rows), stack.rates(rows)
        self.state = {name: buffer[rows] for name, buffer in stack.state.items()}
        self.values = stack.settings(rows)
        self.settings = {name: _column(value, self.parameters) for name, value in self.values.items()}
        device = self.parameters.device
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        # Rows of the batches until the host is heard again; none where all lanes see the whole split.
        self.most = min(GRAPH_UPDATES, batches.per_epoch)
        rows_each = 0 if batches.whole else batches.batch_size
        self.order = torch.zeros(len(batches.seeds), self.most, rows_each, dtype=torch.long, device=device)
        self.losses = self.parameters.new_empty(self.most, len(self.parameters))
        self.table: dict[str, Tensor] = {}
        self.recorded: torch.cuda.CUDAGraph | None = None

    def replay(self, count: int) -> Tensor:
        """Make so many updates, all of one epoch with batches of full size; returns their losses."""
        first = self.stack.update
        self.place.zero_()
        if not self.batches.whole:
            rows = self.batches.rows(first, count)
            self.order[:, :count] = rows.view(len(rows), count, -1)
        for name, column in self.stack.rule.coefficients(first + 1, first + count, self.values).items():
            if name not in self.table:
                self.table[name] = self.parameters.new_empty(self.most, column.shape[1], 1)
            self.table[name][:count, :, 0] = self.parameters.new_tensor(column)
        if self.recorded is None and self.parameters.is_cuda:
            self._record()
        for _ in range(count):
            if self.recorded is None:
                self._update()
            else:
                self.recorded.replay()
        return self.losses[:count].clone()

    def _update(self) -> None:
        batch = None if self.batches.whole else self.order.index_select(1, self.place)[:, 0]
        loss, found = self.engine.gradient(self.stack, self.leaves, self.batches, batch, self.rows, self.stack.update)
        row = {name: column.index_select(0, self.place)[0] for name, column in self.table.items()}
        self.stack.rule.step(self.parameters, found, self.state, self.rates, row, self.settings)
        self.losses.index_copy_(0, self.place, loss[None])
        self.place += 1

    def _record(self) -> None:
        """Record one update; what warming up changes is put back."""
        tensors = [self.parameters, *self.state.values(), self.place]
        before = [tensor.clone() for tensor in tensors]
        side = torch.cuda.Stream(self.parameters.device)
        side.wait_stream(torch.cuda.current_stream(self.parameters.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update()
                self.place.zero_()
        torch.cuda.current_stream(self.parameters.device).wait_stream(side)
        self.recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.recorded):
            self._update()
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)


class General(Eager):
    """Any module of a user's: all lanes at once by torch.func. If that cannot be, it evaluates for `Solo`, in turn.

    Args:
        network: one of the user's, on the lanes' device and in their type.
        manner: how its lanes can run.
        criterion: what outputs are judged by.
        block: examples to pass at a time where a batch may be cut.
    """

    name = "vmap"

    def __init__(self, network: nn.Module, manner: Manner, criterion: Criterion, block: int) -> None:
        self.copies, self.manner, self.criterion, self.dense = Copies(network, manner), manner, criterion, None
        self.block = block

    def gradient(
        self, stack: Stack, leaves: Sequence[Tensor], batches: Batches, batch: Tensor | None, rows: slice, update: int
    ) -> tuple[Tensor, Tensor]:
        """As `Eager.gradient`; batches are not cut where examples of a batch are not independent of each other."""
        if not self.manner.whole:
            return super().gradient(stack, leaves, batches, batch, rows, update)
        x, y = batches.take(batch, rows) if batch is not None else _whole(batches.examples)
        return self._summed(self._forward(stack, rows, update, training=True), leaves, [(x, y)], x.shape[1])

    def _forward(self, stack: Stack, rows: slice, update: int, *, training: bool) -> Pass:
        # What evaluation does to buffers is forgotten.
        extras = {name: extra[rows] if training else extra[rows].clone() for name, extra in stack.extras.items()}
        seeds = [stack.lanes[lane].seed for lane in stack.alive[rows]]
        return Pass(self.copies, Rows(extras, seeds, update), training)

    def _differentiated(
        self, forward: Forward, leaves: Sequence[Tensor], x: Tensor, y: Tensor, count: int
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Eager._differentiated`; lanes that take turns are differentiated in their turn."""
        assert isinstance(forward, Pass)
        losses = self.criterion.losses
        _, loss, parts = self.copies.gradients(leaves, x, y, forward.rows, losses, count, training=forward.training)
        return loss, parts


@dataclass(frozen=True)
class Pass:
    """A forward pass of some rows of a user's network.

    Attributes:
        copies: of the network.
        rows: which.
        training: whether it trains or is evaluated.
    """

    copies: Copies
    rows: Rows
    training: bool

    def __call__(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """As `stacked` has it."""
        return self.copies.outputs(parameters, x, self.rows, training=self.training)


class Solo:
    """Lane by lane, by ordinary torch: for optimizers that no rule knows, and models whose lanes cannot run at once.

    Evaluation is stacked where it can be.

    Args:
        network: one network, on the lanes' device and in their type.
        criterion: what outputs are judged by.
        stacked: an engine for all but the updates.
        name: solo, or loop if it is for the model's sake.
        may_draw: whether the network or the optimizer may draw random numbers.
    """

    def __init__(
        self, network: nn.Module, criterion: Criterion, stacked: Eager, name: str = "solo", *, may_draw: bool = False
    ) -> None:
        self.turns, self.criterion, self.name, self.may_draw = Turns(network), criterion, name, may_draw
        self.evaluate, self.predict, self.noise = stacked.evaluate, stacked.predict, stacked.noise

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """As `Engine.warm_up`: an update of one lane, of a copy."""
        scratch = stack.scratch()
        self.advance(scratch, batches, slice(0, 1), scratch.update + 1)

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """As `Engine.advance`."""
        losses = stack.parameters.new_empty(stop - stack.update, rows.stop - rows.start)
        network, parameters = self.turns.network, self.turns.parameters
        network.train()
        for row in range(rows.start, rows.stop):
            lane, extras = stack.alive[row], {name: extra[row] for name, extra in stack.extras.items()}
            own = [leaf.detach()[0] for leaf in stack.leaves(slice(row, row + 1))]
            self.turns.enter(own, extras)
            optimizers = self._optimizers(stack, parameters, lane)
            for update in range(stack.update, stop):
                x, y = batches.take(batches.rows(update), slice(row, row + 1))

                def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
                    return self.criterion.losses(network(x[0])[None], y).mean()

                with drawing(stack.lanes[lane].seed, update, x.device, when=self.may_draw):
                    losses[update - stack.update, row - rows.start] = updated(network, optimizers, loss)
            self.turns.leave(own, extras)
            stack.solo[lane] = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
        return losses

    @staticmethod
    def _optimizers(stack: Stack, parameters: list[nn.Parameter], lane: int) -> list[torch.optim.Optimizer]:
        """The lane's optimizers, as far as they had come."""
        mine = stack.lanes[lane]
        found = stack.rule.reference(parameters, mine.learning_rate, dict(mine.settings))
        for optimizer, state in zip(found, stack.solo.get(lane, []), strict=False):
            optimizer.load_state_dict(copy.deepcopy(state))  # the optimizer would go on in these very tensors
        return found


def _whole(examples: Split) -> tuple[Tensor, Tensor]:
    return examples.inputs[None], examples.targets[None]


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
    """The engine of a trial: a function of the trial and the kind of device alone.

    Args:
        build: makes one network of the family, or of a user's model.
        in_shape: shape of one example.
        criterion: what outputs are judged by; a task's own if that is given.
        batch_size: examples per update.
        stack: all lanes of the trial.
        updates: of each lane; None if the budget is in seconds.
        wanted: one of `NAMES`, or auto: compiled if that saves more than compiling costs, a recorded graph on a GPU.
        sample: `general.TRIED_EXAMPLES` or so on which to try a user's model; noise if not given.
        name: of that model, for messages.

    Raises:
        ValueError: if the engine that is wanted does not suit the optimizer or the model.
        TypeError: if it does not know a layer of the network.
    """
    if isinstance(criterion, str):
        criterion = Criterion(criterion)
    network = build()
    block = block_size(activations(network, in_shape), stack)
    if stack.rule.solo and wanted not in ("auto", "solo"):
        raise ValueError(f"{stack.rule.name} has no update rule over lanes, so its engine is solo, not {wanted}")
    if wanted == "solo" and not stack.rule.solo:
        raise ValueError(f"the engine solo is for optimizers without a rule over lanes; {stack.rule.name} has one")
    if not layered(network):
        return _general(build, in_shape, criterion, stack, wanted, block, sample, name)
    if stack.rule.solo:
        network = network.to(stack.parameters.device, stack.parameters.dtype)
        stacked = Eager(network, in_shape, criterion, block)
        return Solo(network, criterion, stacked, may_draw=is_foreign(stack.rule.name))
    written = not criterion.loss and stack.rule.name in RULES
    if wanted == "compiled" and not written:
        raise ValueError("the engine compiled knows neither users' losses nor their rules; choose auto")
    if wanted == "auto":
        wanted = "eager"
        if stack.parameters.is_cuda:
            wanted = "cuda-graph"
        elif written and updates and compiler() and compiled.layers(network, in_shape) is not None:
            saved = updates * saving(network, in_shape, batch_size, stack)
            wanted = "compiled" if saved > COMPILE_SECONDS[_kind(network, stack)] else "eager"
    if wanted == "compiled":
        return Compiled(network, in_shape, criterion, batch_size, stack)
    return (Graph if wanted == "cuda-graph" else Eager)(network, in_shape, criterion, block)


_MANNERS: dict[Hashable, Manner] = {}


def _general(
    build: Builder,
    in_shape: tuple[int, ...],
    criterion: Criterion,
    stack: Stack,
    wanted: str,
    block: int,
    sample: Tensor | None,
    name: str,
) -> Engine:
    """The engine of a user's model, as `choose` has it."""
    if wanted not in ("auto", "solo"):
        raise ValueError(f"the engine {wanted} knows the layers of the shipped models only; for {name} choose auto")
    if sample is None:
        noise = torch.randn(TRIED_EXAMPLES, *in_shape, generator=torch.Generator().manual_seed(0))
        sample = noise.to(stack.parameters)
    network = initialise(build, 0).to(stack.parameters.device, stack.parameters.dtype)
    # Workers train many trials of a model, and trying a large one takes seconds.
    key = (repr(build), tuple(sample.shape), sample.dtype, sample.device.type)
    manner = _MANNERS.get(key) or manner_of(build, sample, name)
    if isinstance(build, functools.partial):  # whose text says all of it
        _MANNERS[key] = manner
    engine = General(network, manner, criterion, block)
    if manner.together and not stack.rule.solo:
        return engine
    return Solo(network, criterion, engine, "solo" if stack.rule.solo else "loop", may_draw=True)


def lane_bytes(network: nn.Module, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> tuple[int, int]:
    """Bytes that a lane takes: for good (parameters and the rule's buffers), and while its updates are made.

    The latter are gradients, the rule's intermediate results, and activations with their derivatives.
    """
    size, numbers = stack.parameters.element_size(), stack.parameters.shape[1]
    activation = activations(network, in_shape)
    # Batches of users' models may have to stay whole.
    together = min(batch_size, block_size(activation, stack)) if layered(network) else batch_size
    extras = sum(extra[:1].numel() * extra.element_size() for extra in stack.extras.values())
    return numbers * (1 + len(stack.rule.buffers)) * size + extras, (3 * numbers + 2 * activation * together) * size


def fitting(network: nn.Module, in_shape: tuple[int, ...], batch_size: int, stack: Stack, share: float = 1.0) -> int:
    """Lanes that may train at once, by the memory of this kind of machine, not by what is free at the moment.

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


def saving(network: nn.Sequential, in_shape: tuple[int, ...], batch_size: int, stack: Stack) -> float:
    """Seconds that a compiled update of the whole stack saves on a processor, by the constants that were measured."""
    kind = _kind(network, stack)
    products = 3 * multiplications(network, in_shape) * batch_size * len(stack.lanes)
    numbers = stack.parameters.numel()
    eager, quick = PRODUCTS[kind]
    return EAGER_SECONDS + products * (eager - quick) + numbers * RULE_SECONDS


def compiler() -> bool:
    """Whether this machine can compile: torch needs a C++ compiler for a processor."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _convolutional(network: nn.Sequential) -> bool:
    return any(isinstance(layer, nn.Conv2d) for layer in network)


def _kind(network: nn.Sequential, stack: Stack) -> str:
    if _convolutional(network):
        return "convolutional"
    return "wide" if stack.parameters.shape[1] > NARROW_PARAMETERS else "narrow"


@functools.cache
def _program(
    network: tuple[compiled.Layer, ...],
    task: Task,
    optimizer: str,
    settings: tuple[tuple[str, float | None], ...],
    wide: bool,
    updates: int,
    shapes: tuple[int, int, int, torch.dtype],
) -> compiled.Program:
    """One program for all trials that want it, for as long as the process lives."""
    return compiled.Program(network, task, optimizer, settings, wide, updates, shapes)


def _square(rows: Tensor) -> Tensor:
    """Squared norms of some rows, (k, P) -> (k,), float64: float32 would not hold those of large gradients."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square()


def _column(value: float | np.ndarray, like: Tensor) -> Number:
    """A setting or coefficient of some rows as a number, or as (k, 1)."""
    return np.asarray(value).item() if np.size(value) == 1 else like.new_tensor(value)[:, None]


@torch.no_grad()
def evaluation(
    forward: Forward, leaves: Sequence[Tensor], examples: Split, criterion: Criterion, block: int
) -> dict[str, Tensor]:
    """Mean loss, and accuracy if there is a score, of every lane on fixed examples, each (K,), float64."""
    loss = torch.zeros(len(leaves[0]), dtype=torch.float64, device=leaves[0].device)
    correct = torch.zeros_like(loss)
    for x, y in zip(examples.inputs.split(block), examples.targets.split(block), strict=True):
        outputs = forward(leaves, x[None])
        loss += criterion.losses(outputs, y[None]).sum(1, dtype=torch.float64)
        if criterion.scored:
            correct += criterion.scores(outputs, y[None]).sum(1, dtype=torch.float64)
    found = {"loss": loss / len(examples)}
    if criterion.scored:
        found["accuracy"] = correct / len(examples)
    return found


def stacked(network: nn.Sequential) -> Forward:
    """The forward pass of K networks at once, layer by layer of one of them.

    Returns:
        (parameters, each (K, *shape), inputs (K or 1, B, *in_shape)) -> outputs (K, B, out_features).

    Raises:
        TypeError: if a layer is none that lanes know.
    """
    layers = list(network)
    for layer in layers:
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.Flatten | Shift | Fixed):
            known = "Linear, Conv2d, ReLU, MaxPool2d, Flatten, Shift, Fixed"
            raise TypeError(f"lanes cannot stack the layer {layer}; they know {known}")
    matrices = {layer: layer.matrix for layer in layers if isinstance(layer, Fixed)}

    def forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        left = iter(parameters)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight, bias = next(left), next(left)
                x = torch.baddbmm(bias.unsqueeze(1), x.expand(len(weight), -1, -1), weight.transpose(1, 2))
            elif isinstance(layer, nn.Conv2d):
                x = _convolution(x, next(left), next(left), layer)
            elif isinstance(layer, nn.MaxPool2d):
                x = _unfold_lanes(F.max_pool2d(_fold_lanes(x), layer.kernel_size), len(x))
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(layer, Shift):
                x = x - next(left).unsqueeze(1)
            elif isinstance(layer, Fixed):
                # To the device once: a recorded CUDA graph could not copy it there.
                matrices[layer] = matrices[layer].to(x)
                x = F.linear(x, matrices[layer])
            else:
                x = x.relu()
        return x

    return forward


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, layer: nn.Conv2d) -> Tensor:
    """Each lane's convolution of its own images, as groups; of shared images, (1, B, ...), as one wide convolution."""
    lanes = len(weight)
    y = F.conv2d(
        _fold_lanes(x),
        weight.flatten(0, 1),
        bias.flatten(),
        stride=layer.stride,
        padding=layer.padding,
        groups=len(x),
    )
    return _unfold_lanes(y, lanes)


def _fold_lanes(x: Tensor) -> Tensor:
    """(K, B, C, H, W) -> (B, K C, H, W); no copy of what `_unfold_lanes` gave."""
    return x.transpose(0, 1).flatten(1, 2)


def _unfold_lanes(x: Tensor, lanes: int) -> Tensor:
    """(B, K C, H, W) -> (K, B, C, H, W), a view."""
    folded = x.view(len(x), lanes, -1, *x.shape[2:])
    return folded.transpose(0, 1)


def block_size(numbers_per_example: int, stack: Stack) -> int:
    """Examples to pass at a time, so that what they leave behind stays within `BLOCK_BYTES`.

    Where parameters are many, it may take some times as much as they do: each block reads them and writes a gradient.
    All lanes count, those that have diverged too, so that a resumed trial has the blocks of an undisturbed one.
    """
    device, lane_bytes = stack.parameters.device.type, len(stack.lanes) * stack.parameters.element_size()
    limit = max(BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]), 8 * stack.parameters.shape[1] * lane_bytes)
    return max(1, limit // (numbers_per_example * lane_bytes))
