"""DeepOBS's networks for images, with its initial values; sizes and values are those of its repository.

Schneider, Balles and Hennig, "DeepOBS: A Deep Learning Optimizer Benchmark Suite", ICLR 2019; its file of a network is
`_logreg.py`, `_mlp.py`, `_2c2d.py` or `_3c3d.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainables.errors import ModelError

Fill = Callable[[Tensor], object]


def _normal(deviation: float) -> Fill:
    """Fills weights from a normal distribution that is cut off at two standard deviations."""
    return lambda weight: nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def _filled(layers: list[nn.Module], weights: Fill, bias: float, dense: Fill | None = None) -> nn.Sequential:
    """The chain of layers with their initial values; linear layers may have weights of another kind."""
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            (dense if dense and isinstance(layer, nn.Linear) else weights)(layer.weight)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)
    return nn.Sequential(*layers)


def _dense(widths: list[int]) -> list[nn.Module]:
    """Linear layers with ReLUs between them, after the image is flattened."""
    pairs = [(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths)]
    return [nn.Flatten(), *itertools.chain.from_iterable(pairs)][:-1]


def logreg(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Logistic regression that starts at zero."""
    return _filled(_dense([torch.Size(in_shape).numel(), outputs]), nn.init.zeros_, 0.0)


def mlp(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """1000-500-100 units."""
    return _filled(_dense([torch.Size(in_shape).numel(), 1000, 500, 100, outputs]), _normal(0.03), 0.0)


def convolutions_2(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """2c2d: 32 and 64 channels of 5x5 filters, each with pooling, then 1024 units."""
    channels, height, width = in_shape
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return _filled([*layers, *_dense([64 * (height // 4) * (width // 4), 1024, outputs])], _normal(0.05), 0.05)


def convolutions_3(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """3c3d: 64, 96 and 128 channels, each with overlapping pooling, then 512 and 256 units."""
    layers: list[nn.Module] = []
    for before, after, kernel, padding in ((in_shape[0], 64, 5, 0), (64, 96, 3, 0), (96, 128, 3, 1)):
        # A window that the image's edge cuts off counts, as with TensorFlow's padding "same".
        pooling = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        layers += [nn.Conv2d(before, after, kernel, padding=padding), nn.ReLU(), pooling]
    with torch.no_grad():
        features = nn.Sequential(*layers)(torch.zeros(1, *in_shape)).numel()
    dense = _dense([features, 512, 256, outputs])
    return _filled([*layers, *dense], nn.init.xavier_normal_, 0.0, nn.init.xavier_uniform_)


_NETWORKS = {
    "deepobs-logreg": logreg,
    "deepobs-mlp": mlp,
    "deepobs-2c2d": convolutions_2,
    "deepobs-3c3d": convolutions_3,
}


def network(name: str, in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """One of `catalogue.DEEPOBS`.

    Raises:
        ModelError: if the inputs are not images, or too small for its convolutions.
    """
    if len(in_shape) != 3:
        raise ModelError(f"{name} needs images (channels, height, width); these inputs have shape {in_shape}")
    try:
        return _NETWORKS[name](in_shape, outputs)
    except RuntimeError as error:
        raise ModelError(f"{name} needs larger images than {in_shape[1]}x{in_shape[2]}") from error
