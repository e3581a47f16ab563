"""Updates of stacked lanes as compiled programs: forward, derivatives and optimizer in one piece of machine code.

A program makes some whole updates of a fixed number of lanes, a tile; a stack is trained tile by tile, the last one
filled up with copies. So one program serves any number of lanes, and diverged lanes cost no recompilation.

Two layouts. `narrow`: lanes are the innermost axis, (B, features, T), so that the smallest network fills the
processor's vectors; a product is multiply and sum. `wide`: lanes are the outermost axis, (T, features, B), and products
are batched matrix products, which pay from some dozens of features on. The derivatives are written out, layer by layer:
automatic differentiation of these forms leads to loops over masks and scattered writes that cost several times more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.data import Task
from trainables.rules import RULES, State

Tensors = dict[str, Tensor]

# So many sums are formed at a time, which read what they share once.
GROUP = 4
# Positions in a 2x2 window, in the order in which max pooling looks: (down, right).
WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Dense:
    """A linear layer.

    Attributes:
        inputs, outputs: features.
    """

    inputs: int
    outputs: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of its parameters."""
        return [(self.outputs, self.inputs), (self.outputs,)]

    def forward(self, x: Tensor, w: Tensor, b: Tensor, *, wide: bool) -> tuple[Tensor, Any]:
        """(B, inputs, T) -> (B, outputs, T), or (T, inputs, B) -> (T, outputs, B); and what backward needs."""
        x = x.flatten(1, -2)
        x = x.expand(len(w), -1, -1) if wide else x
        y = torch.baddbmm(b[..., None], w, x) if wide else (w * x[:, None]).sum(2) + b
        return y, x

    def backward(
        self, d: Tensor, x: Tensor, w: Tensor, *, wide: bool, inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """From the loss's derivative by the outputs to those by the inputs, if asked, and by the parameters."""
        if wide:
            by_inputs = torch.bmm(w.transpose(1, 2), d) if inputs else None
            return by_inputs, [torch.bmm(d, x.transpose(1, 2)), d.sum(2)]
        by_inputs = (d[:, :, None] * w).sum(1) if inputs else None
        if len(x) == 1:
            return by_inputs, [d[0, :, None] * x[0, None], d[0]]
        by_weights = _grouped(self.outputs, lambda own: (d[:, own, None] * x[:, None]).sum(0), 0)
        return by_inputs, [by_weights, d.sum(0)]


@dataclass(frozen=True)
class Rectifier:
    """ReLU."""

    shapes: tuple[()] = ()

    def forward(self, x: Tensor, *, wide: bool) -> tuple[Tensor, Any]:
        """Elementwise."""
        y = x.relu()
        return y, y

    def backward(self, d: Tensor, y: Tensor, *, wide: bool, inputs: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Elementwise; zero where the input was not positive."""
        return torch.where(y > 0, d, 0.0), []


@dataclass(frozen=True)
class ConvBlock:
    """A convolution, ReLU and 2x2 max pooling, lanes innermost.

    The convolution is computed at the four positions of each pooling window apart, so that pooling and its derivative
    are elementwise. Ties go to the first position, as in torch.

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

    def forward(self, x: Tensor, w: Tensor, b: Tensor, *, wide: bool) -> tuple[Tensor, Any]:
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

    def backward(
        self, d: Tensor, saved: Any, w: Tensor, *, wide: bool, inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """As for `Dense`."""
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


Layer = Dense | Rectifier | ConvBlock


def _grouped(count: int, some: Callable[[slice], Tensor], axis: int) -> Tensor:
    """Sums for some of `count` outputs at a time, put together along an axis: they share what they read."""
    groups = math.gcd(GROUP, count)
    return torch.stack([some(slice(k, None, groups)) for k in range(groups)], axis + 1).flatten(axis, axis + 1)


def _tree(terms: list[Tensor]) -> Tensor:
    """The sum of one, two or four terms, pairwise."""
    return terms[0] if len(terms) == 1 else _tree(terms[::2]) + _tree(terms[1::2])


def _stored(x: Tensor) -> Tensor:
    """The same tensor, but computed once and kept, where the compiler would compute it again for every use."""
    # A view by strides, unlike any other, exists of stored tensors only.
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


def layers(network: nn.Sequential, in_shape: tuple[int, ...]) -> list[Layer] | None:
    """The network in these layers; None if it has others."""
    found: list[Layer] = []
    shape, modules = in_shape, list(network)
    while modules:
        match modules:
            case [nn.Flatten(), *modules]:
                shape = (math.prod(shape),)
            case [nn.Linear() as layer, *modules] if layer.bias is not None:
                found.append(Dense(layer.in_features, layer.out_features))
                shape = (layer.out_features,)
            case [nn.Conv2d() as layer, nn.ReLU(), nn.MaxPool2d() as pool, *modules] if _plain(layer, pool):
                assert isinstance(layer.padding, tuple)
                kernel, padding = (layer.kernel_size[0], layer.kernel_size[1]), (layer.padding[0], layer.padding[1])
                found.append(ConvBlock(shape[0], layer.out_channels, kernel, padding))
                sizes = zip(shape[1:], padding, kernel, strict=True)
                shape = (layer.out_channels, *((size + 2 * pad - width + 1) // 2 for size, pad, width in sizes))
            case [nn.ReLU(), *modules]:
                found.append(Rectifier())
            case _:
                return None
    return found


def _plain(layer: nn.Conv2d, pool: nn.MaxPool2d) -> bool:
    """Whether a convolution and its pooling are of the one kind that `ConvBlock` computes."""
    plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    even = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (2, 2, 0, 1, False)
    return plain and even and layer.bias is not None and isinstance(layer.padding, tuple)


def gradients(
    network: Sequence[Layer],
    leaves: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    shares: Tensor | float,
    task: Task,
    *,
    wide: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Losses of a tile's lanes and their derivatives.

    Args:
        network: its layers.
        leaves: parameters, each (*shape, T), or (T, *shape) if wide.
        x: inputs, (B, *in_shape, T), or (T, *in_shape, B) if wide.
        y: targets, (B, out_features, T) or class numbers (B, T); if wide, lanes first and examples last.
        shares: weight of each example in the loss, (B,) or one number: 1 / B for the mean.
        task: squared error, meaned over out_features, or cross-entropy in nats.
        wide: the layout.

    Returns:
        losses (T,), gradients like `leaves`.
    """
    if isinstance(shares, Tensor) and not wide:
        shares = shares[:, None, None]
    left = iter(leaves)
    saved: list[Any] = []
    parameters: list[list[Tensor]] = []
    shapes: list[torch.Size] = []
    for layer in network:
        own = [next(left) for _ in layer.shapes]
        shapes.append(x.shape)
        x, kept = layer.forward(x, *own, wide=wide)
        saved.append(kept)
        parameters.append(own)
    if task == "regression":
        error = x - y
        terms, d = error.square().mean(1, keepdim=True), error * (2 / x.shape[1])
    else:
        z = x - x.amax(1, keepdim=True)
        powers = z.exp()
        total = powers.sum(1, keepdim=True)
        hit = y.unsqueeze(1) == torch.arange(x.shape[1], device=x.device)[:, None]
        terms = total.log() - torch.where(hit, z, 0.0).sum(1, keepdim=True)
        d = powers / total - hit.to(x.dtype)
    losses = (terms * shares).sum((1, 2) if wide else (0, 1))
    by_output: Tensor | None = d * shares
    found: list[Tensor] = []
    for number in reversed(range(len(network))):
        assert by_output is not None
        weights = parameters[number][:1]
        by_output, own = network[number].backward(by_output, saved[number], *weights, wide=wide, inputs=number > 0)
        found = [*own, *found]
        by_output = None if by_output is None else by_output.reshape(shapes[number])
    return losses, found


@dataclass(frozen=True)
class Program:
    """What is compiled: everything that fixes the machine code. Equal programs are compiled once in a process.

    Attributes:
        network: its layers.
        task: regression or classification.
        optimizer: name of the rule.
        settings: its settings as (name, number), None instead of a number where it differs between lanes.
        wide: the layout.
        updates: whole updates at once; 0 if gradients of examples are accumulated and applied apart.
        shapes: lanes, examples in a block and in a batch, and type, for which the machine code is made.
    """

    network: tuple[Layer, ...]
    task: Task
    optimizer: str
    settings: tuple[tuple[str, float | None], ...]
    wide: bool
    updates: int
    shapes: tuple[int, int, int, torch.dtype]

    def leaves(self, pieces: list[Tensor]) -> list[Tensor]:
        """The parameters one by one. Pieces are these if wide; else they are one piece, (P, T)."""
        if self.wide:
            return pieces
        shapes = [shape for layer in self.network for shape in layer.shapes]
        parts = pieces[0].split([math.prod(shape) for shape in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def _gradients(
        self, pieces: list[Tensor], x: Tensor, y: Tensor, shares: Tensor | float
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses and gradients of examples as they come, (T, B, ...)."""
        if self.wide:
            x, y = x.movedim(1, -1), y.movedim(1, -1)
        else:
            x, y = _stored(x.flatten(2).permute(1, 2, 0)).view(*x.shape[1:], -1), y.movedim(0, -1)
        losses, found = gradients(self.network, self.leaves(pieces), x, y, shares, self.task, wide=self.wide)
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

        def run(
            pieces: list[Tensor],
            found: list[Tensor],
            states: list[State],
            rates: Tensor,
            row: Tensors,
            own: Tensors,
        ) -> None:
            self._apply(pieces, found, states, rates, row, own)

        return _compiled(run)


def _compiled(function: Callable[..., Any]) -> Any:
    """A function compiled for the shapes that it is called with."""
    # torch counts recompilations by code object, and gives up after some; each program has its own.
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)
