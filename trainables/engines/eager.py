"""The eager engine: stacked tensors, one operation after another. It starts at once, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.engines import dense
from trainables.engines.base import Engine
from trainables.formulas import Number
from trainables.lanes.batches import Batches
from trainables.lanes.stack import Stack
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split
from trainables.workloads.models import Fixed, Shift

Forward = Callable[[Sequence[Tensor], Tensor], Tensor]

# Small batches into which examples are cut to estimate the gradient noise: more are more precise and take longer.
CHUNKS = 50


class Eager(Engine):
    """Stacked tensors, one operation after another.

    Args:
        network: one network of a shipped family, or of its layers.
        criterion: the loss and the score.
        block: examples to pass at a time.
    """

    name: str = "eager"

    def __init__(self, network: nn.Sequential, criterion: Criterion, block: int) -> None:
        self._forward, self.criterion, self.block = stacked(network), criterion, block
        self._dense = None if criterion.loss or criterion.smoothing else dense.linear_layers(network)

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Make the updates one by one."""
        parameters, leaves, adjust = stack.parameters[rows], stack.leaves(rows), stack.adjustment(rows)
        rates = parameters.new_tensor(stack.rates(rows, stack.update, stop))[:, :, None]
        state = {name: buffer[rows] for name, buffer in stack.state.items()}
        settings = stack.settings(rows)
        numbers = {name: column(value, parameters) for name, value in settings.items()}
        table = stack.rule.coefficients(stack.update + 1, stop, settings)
        losses = parameters.new_empty(stop - stack.update, len(parameters))
        for done in range(stop - stack.update):
            update = stack.update + done
            batch = None if batches.whole else batches.rows(update)
            losses[done], gradients = self.gradient(stack, leaves, batches, batch, rows, update)
            coefficients = {name: column(values[done], parameters) for name, values in table.items()}
            if adjust:
                adjust(parameters, gradients)
            stack.rule.step(parameters, gradients, state, rates[done % len(rates)], coefficients, numbers)
        return losses

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
        forward = self.forward(stack, rows, update, training=True)
        if batch is None:
            return self._shared(forward, leaves, batches.examples)
        blocks = (batches.take(part, rows) for part in batch.split(self.block, 1))
        return self.summed(forward, leaves, blocks, batch.shape[1])

    def forward(self, stack: Stack, rows: slice, update: int, *, training: bool) -> Forward:
        """The forward pass of some rows after this many updates."""
        return self._forward

    def differentiated(
        self, forward: Forward, leaves: Sequence[Tensor], x: Tensor, y: Tensor, count: int
    ) -> tuple[Tensor, list[Tensor]]:
        """A block's part in the losses of a batch of `count` examples, (k,), and in their gradients, each (k, ...)."""
        if self._dense is None:
            each = self.criterion.training_losses(forward(leaves, x), y).sum(1) / count
            return each.detach(), list(torch.autograd.grad(each.sum(), leaves, materialize_grads=True))
        with torch.no_grad():
            x, y = x.movedim(1, -1), y.movedim(1, -1)
            return dense.gradients(self._dense, leaves, x, y, count, self.criterion.task)

    def summed(
        self, forward: Forward, leaves: Sequence[Tensor], blocks: Iterable[tuple[Tensor, Tensor]], count: int
    ) -> tuple[Tensor, Tensor]:
        """Mean losses, (k,), and gradients, (k, P), of `count` examples that come in blocks of (inputs, targets)."""
        losses = gradients = None
        for x, y in blocks:
            loss, parts = self.differentiated(forward, leaves, x, y, count)
            flat = torch.cat([part.reshape(len(part), -1) for part in parts], 1)
            losses = loss if losses is None else losses + loss
            gradients = flat if gradients is None else gradients.add_(flat)
        assert losses is not None
        assert gradients is not None
        return losses, gradients

    def _shared(self, forward: Forward, leaves: Sequence[Tensor], examples: Split) -> tuple[Tensor, Tensor]:
        """Mean losses and gradients of examples that all lanes see."""
        inputs, targets = examples.inputs[None].split(self.block, 1), examples.targets[None].split(self.block, 1)
        return self.summed(forward, leaves, zip(inputs, targets, strict=True), len(examples))

    @torch.no_grad()
    def evaluate(self, stack: Stack, rows: slice, examples: Split) -> dict[str, Tensor]:
        """Sum losses and scores over blocks."""
        leaves, forward = stack.leaves(rows), self.forward(stack, rows, stack.update, training=False)
        loss = torch.zeros(len(leaves[0]), dtype=torch.float64, device=leaves[0].device)
        correct = torch.zeros_like(loss)
        for x, y in zip(examples.inputs.split(self.block), examples.targets.split(self.block), strict=True):
            outputs = forward(leaves, x[None])
            loss += self.criterion.losses(outputs, y[None]).sum(1, dtype=torch.float64)
            if self.criterion.scored:
                correct += self.criterion.scores(outputs, y[None]).sum(1, dtype=torch.float64)
        means = {"loss": loss / len(examples)}
        return means | {"accuracy": correct / len(examples)} if self.criterion.scored else means

    @torch.no_grad()
    def each(self, stack: Stack, rows: slice, examples: Split, metric: str) -> Tensor | None:
        """Pass blocks, as `evaluate` does."""
        leaves, forward = stack.leaves(rows), self.forward(stack, rows, stack.update, training=False)
        found = []
        for x, y in zip(examples.inputs.split(self.block), examples.targets.split(self.block), strict=True):
            values = self.criterion.each(metric, forward(leaves, x[None]), y[None])
            if values is None:
                return None
            found.append(values)
        return torch.cat(found, 1)

    @torch.no_grad()
    def predict(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """Take the largest output, as `evaluate` does."""
        leaves, forward = stack.leaves(rows), self.forward(stack, rows, stack.update, training=False)
        outputs = torch.cat([forward(leaves, x[None]) for x in examples.inputs.split(self.block)], 1)
        classes = outputs.argmax(2)
        return classes, outputs.softmax(2).gather(2, classes[..., None])[..., 0]

    def noise(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """Compare the gradients of `CHUNKS` chunks with that of all examples."""
        leaves, large, count = stack.leaves(rows), len(examples), min(CHUNKS, len(examples))
        forward = self.forward(stack, rows, stack.update, training=False)
        pairs = zip(examples.inputs.tensor_split(count), examples.targets.tensor_split(count), strict=True)
        chunks = [Split(x, y) for x, y in pairs]
        # The noise of a chunk's gradient is proportional to 1 / size, whose mean counts where sizes differ by one.
        small = count / sum(1 / len(chunk) for chunk in chunks)
        whole = torch.zeros_like(stack.parameters[rows])
        squares = whole.new_zeros(len(whole), dtype=torch.float64)
        for chunk in chunks:
            _, found = self._shared(forward, leaves, chunk)
            squares += _square(found) / count
            whole += found * (len(chunk) / large)
        square = (large * _square(whole) - small * squares) / (large - small)
        return square, (squares - _square(whole)) / (1 / small - 1 / large)


def column(value: float | np.ndarray, like: Tensor) -> Number:
    """A setting or coefficient of some rows, as a number if they share it, otherwise as (k, 1)."""
    return np.asarray(value).item() if np.size(value) == 1 else like.new_tensor(value)[:, None]


def _square(rows: Tensor) -> Tensor:
    """Squared norms of some rows, (k, P) -> (k,), in float64: float32 would overflow for large gradients."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square()


def stacked(network: nn.Sequential) -> Forward:
    """The forward pass of K networks at once, from the layers of one of them.

    Returns:
        (parameters, each (K, *shape), inputs (K or 1, B, *in_shape)) -> outputs (K, B, out_features).

    Raises:
        TypeError: if a layer is not supported.
    """
    layers = list(network)
    for layer in layers:
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.Flatten | Shift | Fixed):
            known = "Linear, Conv2d, ReLU, MaxPool2d, Flatten, Shift, Fixed"
            raise TypeError(f"lanes cannot stack the layer {layer}; valid: {known}")
    matrices = {layer: layer.matrix for layer in layers if isinstance(layer, Fixed)}

    def forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        remaining = iter(parameters)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight, bias = next(remaining), next(remaining)
                x = torch.baddbmm(bias.unsqueeze(1), x.expand(len(weight), -1, -1), weight.transpose(1, 2))
            elif isinstance(layer, nn.Conv2d):
                x = _convolution(x, next(remaining), next(remaining), layer)
            elif isinstance(layer, nn.MaxPool2d):
                x = _unfold_lanes(F.max_pool2d(_fold_lanes(x), layer.kernel_size), len(x))
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(layer, Shift):
                x = x - next(remaining).unsqueeze(1)
            elif isinstance(layer, Fixed):
                # Moved to the device once: a recorded CUDA graph could not copy it there.
                matrices[layer] = matrices[layer].to(x)
                x = F.linear(x, matrices[layer])
            else:
                x = x.relu()
        return x

    return forward


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, layer: nn.Conv2d) -> Tensor:
    """Each lane's convolution of its own images, as groups; of shared images, (1, B, ...), as one wide convolution."""
    y = F.conv2d(
        _fold_lanes(x),
        weight.flatten(0, 1),
        bias.flatten(),
        stride=layer.stride,
        padding=layer.padding,
        groups=len(x),
    )
    return _unfold_lanes(y, len(weight))


def _fold_lanes(x: Tensor) -> Tensor:
    """(K, B, C, H, W) -> (B, K C, H, W); copies nothing if `_unfold_lanes` made the tensor."""
    return x.transpose(0, 1).flatten(1, 2)


def _unfold_lanes(x: Tensor, lanes: int) -> Tensor:
    """(B, K C, H, W) -> (K, B, C, H, W), a view."""
    folded = x.view(len(x), lanes, -1, *x.shape[2:])
    return folded.transpose(0, 1)
