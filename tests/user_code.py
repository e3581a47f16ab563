"""What a user might bring: written as someone would who knows torch and has read the README, and nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


class Residual(nn.Module):
    """A residual network with layer norm; `skip` leaves its first block out of training."""

    def __init__(
        self, in_shape: tuple[int, ...], out_features: int, width: int, depth: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.first = nn.Linear(torch.Size(in_shape).numel(), width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.last = nn.Linear(width, out_features)
        if frozen:
            self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.blocks(self.first(x.flatten(1))))
        return out


class Vision(nn.Module):
    """A small vision transformer."""

    def __init__(self, in_shape: tuple[int, ...], out_features: int, width: int, depth: int, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_shape[0], width, 4, 4)
        self.places = nn.Parameter(torch.zeros(1, (in_shape[1] // 4) * (in_shape[2] // 4), width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.last = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        out: Tensor = self.last(self.body(patches + self.places).mean(1))
        return out


class Normed(nn.Module):
    """A convolutional network with batch norm."""

    def __init__(self, in_shape: tuple[int, ...], out_features: int, width: int, depth: int) -> None:
        super().__init__()
        channels = [in_shape[0], *[width] * depth]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(width * in_shape[1] * in_shape[2], out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(x).flatten(1))
        return out


class Dropped(nn.Module):
    def __init__(self, in_shape: tuple[int, ...], out_features: int, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(torch.Size(in_shape).numel(), width), nn.Linear(width, out_features)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.dropout(self.first(x.flatten(1)).relu()))
        return out


class Shuffled(Dropped):
    """Draws by an operation that lanes cannot share out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)[:, torch.randperm(x[0].numel())])


class Noisy(nn.Module):
    """Every operation by which lanes draw, and dropout within attention."""

    def __init__(self, in_shape: tuple[int, ...], out_features: int, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(torch.Size(in_shape).numel(), 4 * width), nn.Linear(4 * width, out_features)
        self.body = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.1, self.training)
        if self.training:
            x = x + torch.empty_like(x).normal_(std=0.1)
        x = F.dropout1d(self.first(x.flatten(1)).unflatten(1, (4, -1)), 0.1, self.training)
        x = self.body(F.alpha_dropout(x, 0.1, self.training))
        if self.training:
            x = x + 0.1 * torch.randn_like(x) + 0.1 * torch.rand(4, 1) * torch.randn(1, x.shape[2])
            x = x + torch.rand_like(x) * torch.empty_like(x).normal_() + torch.empty_like(x).uniform_(-0.1, 0.1)
        out: Tensor = self.last(x.flatten(1))
        return out


def plain(in_shape: tuple[int, ...], out_features: int, width: int, depth: int) -> nn.Sequential:
    """A chain of layers that lanes know anyway."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(torch.Size(in_shape).numel(), width), nn.ReLU(), nn.Linear(width, out_features)
    )


class Fragile(Residual):
    """Breaks in its fourth batch, if it is eight wide."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Fragile.calls += self.training and self.last.in_features == 8
        if self.training and self.last.in_features == 8 and len(x) > 8 and Fragile.calls > 12:
            raise ValueError("the flux capacitor is empty")
        return super().forward(x)


class Lion(torch.optim.Optimizer):
    """Chen et al. (2023)."""

    def __init__(self, params: Any, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.99) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.add_((group["beta1"] * mean + (1 - group["beta1"]) * p.grad).sign(), alpha=-group["lr"])
                mean.mul_(group["beta2"]).add_(p.grad, alpha=1 - group["beta2"])
        return loss


def waves(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Sines of sums of five numbers."""
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(seed))
    y = x.sum(1).sin() + 2
    return {"train": (x[:200], y[:200]), "validation": (x[200:250], y[200:250]), "test": (x[250:], y[250:])}


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(outputs, targets, reduction="none").mean(1)


def near(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether a prediction is within a half of its target."""
    return ((outputs - targets).abs() < 0.5).float().mean(1)


def pairs(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Two targets for each of five numbers."""
    return {split: (x, torch.cat([y, x[:, :1]], 1)) for split, (x, y) in columns(seed).items()}


def columns(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """The waves, with targets of shape (n, 1)."""
    return {split: (x, y.reshape(len(x), 1)) for split, (x, y) in waves(seed).items()}


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def certain(outputs: Tensor, targets: Tensor) -> Tensor:
    """The probability of the right class."""
    return outputs.softmax(1).gather(1, targets[:, None])[:, 0]


def averaged(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same share of right classes for every example."""
    return (outputs.argmax(1) == targets).float().mean().expand(len(outputs))


def easy() -> dict[str, tuple[Tensor, Tensor]]:
    """Two classes far apart: many rates reach accuracy 1, with very different losses."""
    y = torch.arange(300) % 2
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 6 * y[:, None]
    return {"train": (x[:200], y[:200]), "validation": (x[200:250], y[200:250]), "test": (x[250:], y[250:])}


def noise() -> dict[str, tuple[Tensor, Tensor]]:
    """Targets that do not depend on the inputs: the best network is the one that predicts nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 20, generator=generator), torch.randn(300, 1, generator=generator)
    return {"train": (x[:40], y[:40]), "validation": (x[40:200], y[40:200]), "test": (x[200:], y[200:])}
