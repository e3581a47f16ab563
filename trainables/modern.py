"""Update rules published since 2018 over stacked parameters: Lion, Adan, LAMB, Adafactor, Muon, Prodigy, schedule-free.

Some need more than flat rows: the shapes of a network's parameters, the rate itself, or numbers that belong to a whole
lane. Those make the whole step, (parameters, gradients, state, rates, coefficients, settings) -> None, in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = "float | Tensor"
State = dict[str, Tensor]
Numbers = Mapping[str, Number]
Step = Callable[[Tensor, Tensor, State, Tensor, Numbers, Numbers], None]

PRODIGY_START = 1e-6
"""Prodigy's first estimate of the distance to the solution."""


def parts(shapes: Sequence[torch.Size]) -> Iterator[tuple[torch.Size, slice]]:
    """The shape of each parameter of a network, and its columns in a flat row."""
    start = 0
    for shape in shapes:
        yield shape, slice(start, start + shape.numel())
        start += shape.numel()


def mean(buffer: Tensor, value: Tensor, decay: Number) -> Tensor:
    """A running mean, updated in place."""
    return buffer.lerp_(value, 1 - decay)


def mean_square(buffer: Tensor, value: Tensor, decay: Number) -> Tensor:
    """A running mean of squares, updated in place."""
    buffer.mul_(decay)
    if isinstance(decay, Tensor):
        return buffer.add_(value.square().mul_(1 - decay))
    return buffer.addcmul_(value, value, value=1 - decay)


def moments(g: Tensor, state: State, s: Numbers) -> tuple[Tensor, Tensor]:
    """The running means of gradients and of their squares, updated in place."""
    return mean(state["exp_avg"], g, s["beta1"]), mean_square(state["exp_avg_sq"], g, s["beta2"])


def lion(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Lion (Chen et al., 2023): the sign of an interpolation between momentum and gradient."""
    momentum = state["exp_avg"]
    update = torch.sign(momentum * s["beta1"] + g * (1 - s["beta1"]))
    momentum.mul_(s["beta2"]).add_(g * (1 - s["beta2"]))
    return update.add_(p * s["weight_decay"])


def adan(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Adan (Xie et al., 2022) without decay: Adam with a running mean of gradient differences, in Nesterov's place."""
    # The first difference is zero; `first` is 1 in the first update and 0 afterwards.
    difference = (g - state["previous"]) * (1 - c["first"])
    state["previous"].copy_(g)
    first = mean(state["exp_avg"], g, s["beta1"])
    change = mean(state["exp_avg_diff"], difference, s["beta2"])
    square = mean_square(state["exp_avg_sq"], g + difference * s["beta2"], s["beta3"])
    root = square.sqrt().mul_(c["root"]).add_(s["eps"])
    return (first * c["mean"] + change * c["change"]).div_(root)


def lamb(shapes: Sequence[torch.Size]) -> Step:
    """LAMB (You et al., 2020): Adam, each parameter's step scaled to the parameter's norm."""

    def step(p: Tensor, g: Tensor, state: State, rates: Tensor, c: Numbers, s: Numbers) -> None:
        p.mul_(1 - rates * s["weight_decay"])
        first, square = moments(g, state, s)
        update = first / square.sqrt().add_(s["eps"])
        for _, columns in parts(shapes):
            weight = p[:, columns].norm(dim=1, keepdim=True).clamp(max=10.0)
            norm = update[:, columns].norm(dim=1, keepdim=True)
            trust = torch.where((weight > 0) & (norm > 0), weight / (norm + s["eps"]), 1.0)
            update[:, columns] *= trust
        p.sub_(update * (rates * c["mean"]))

    return step


def adafactor(shapes: Sequence[torch.Size]) -> Step:
    """Adafactor (Shazeer and Stern, 2018) as torch has it: factored second moments, steps relative to the parameters.

    The means over rows and over columns of a matrix lie in the first entries of its part of two buffers.
    """

    def step(p: Tensor, g: Tensor, state: State, rates: Tensor, c: Numbers, s: Numbers) -> None:
        tiny = torch.finfo(p.dtype).eps
        for shape, columns in parts(shapes):
            own, gradient, size = p[:, columns], g[:, columns], shape.numel()
            if len(shape) > 1:
                each = gradient.reshape(-1, *shape)
                rows, tops = shape[:-1].numel(), size // shape[-2]
                row = state["row_var"][:, columns][:, :rows].view(-1, *shape[:-1], 1)
                column = state["col_var"][:, columns][:, :tops].view(-1, *shape[:-2], 1, shape[-1])
                row.lerp_(each.square().mean(-1, keepdim=True), c["share"])
                column.lerp_(each.square().mean(-2, keepdim=True), c["share"])
                estimate = (row @ column).div_(row.mean(-2, keepdim=True).clamp(min=tiny)).reshape(-1, size)
            else:
                estimate = state["row_var"][:, columns].lerp_(gradient.square(), c["share"])
            update = estimate.clamp(min=tiny**2).rsqrt().mul_(gradient)
            alpha = (own.norm(dim=1, keepdim=True) / math.sqrt(size)).clamp(min=1e-3) * rates.clamp(max=c["most"])
            largest = (update.norm(dim=1, keepdim=True) / (math.sqrt(size) * s["d"])).clamp(min=1.0)
            own.sub_(update * (alpha / largest) + own * (rates * s["weight_decay"]))

    return step


def muon(shapes: Sequence[torch.Size]) -> Step:
    """Muon (Jordan, 2024): momentum whose matrices are orthogonalised; the other parameters follow AdamW.

    Newton and Schulz's iteration runs on the matrices of all lanes at once, in the precision of the parameters, where
    torch.optim.Muon rounds to bfloat16.
    """

    def step(p: Tensor, g: Tensor, state: State, rates: Tensor, c: Numbers, s: Numbers) -> None:
        first, square = moments(g, state, s)
        ahead = torch.lerp(g, mean(state["momentum_buffer"], g, s["momentum"]), s["momentum"])
        update = (first * c["mean"]).div_(square.sqrt().mul_(c["root"]).add_(s["eps"]))
        for shape, columns in parts(shapes):
            if len(shape) == 2:
                matrices = orthogonalised(ahead[:, columns].reshape(-1, *shape))
                update[:, columns] = matrices.reshape(len(p), -1) * math.sqrt(max(1.0, shape[0] / shape[1]))
        p.sub_(update.add_(p * s["weight_decay"]) * rates)

    return step


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (K, m, n) with singular values near 1, by a quintic Newton-Schulz iteration (Jordan, 2024)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.transpose(1, 2) if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def prodigy(shapes: Sequence[torch.Size]) -> Step:
    """Prodigy (Mishchenko and Defazio, 2024): Adam whose rate is multiplied by an estimate d of the distance to go."""

    def step(p: Tensor, g: Tensor, state: State, rates: Tensor, c: Numbers, s: Numbers) -> None:
        d = PRODIGY_START + state["growth"]
        beta3 = s["beta2"] ** 0.5
        moved, total = state["moved"], state["s"]
        gain = (d / PRODIGY_START) * d * rates * (g * moved).sum(1, keepdim=True)
        first, square = moments(g * d, state, s)
        total.mul_(beta3).add_(g * ((d / PRODIGY_START) * d * rates))
        numerator = state["numerator"].mul_(beta3).add_(gain)
        size = total.abs().sum(1, keepdim=True)
        seen = torch.where(size > 0, numerator / size, 0.0)
        now = torch.maximum(d, seen)
        state["growth"].copy_(now - PRODIGY_START)
        change = (first / square.sqrt().add_(now * s["eps"]) + p * s["weight_decay"]) * (d * rates)
        p.sub_(change)
        moved.add_(change)

    return step


def schedule_free(adam: bool) -> Callable[[Sequence[torch.Size]], Step]:
    """Schedule-free SGD, or AdamW (Defazio et al., 2024): gradients at y, between the average x and the iterate z.

    The parameters are y. The buffer `lag` is z - y, so that it starts at zero; `averaged` gives x.
    """
    momentum = "beta1" if adam else "momentum"

    def step(p: Tensor, g: Tensor, state: State, rates: Tensor, c: Numbers, s: Numbers) -> None:
        if adam:
            square = mean_square(state["exp_avg_sq"], g, s["beta2"])
            g = g / square.sqrt().mul_(c["root"]).add_(s["eps"]) + p * s["weight_decay"]
        largest = torch.maximum(state["largest_rate"], rates)
        state["largest_rate"].copy_(largest)
        total = state["weights"].add_(largest.square())
        share = torch.where(total > 0, largest.square() / total, 0.0)
        lag, pull = state["lag"], s[momentum] * (1 - share)
        p.add_(lag * share).add_(g * (rates * (pull - 1)))
        lag.mul_(1 - share).sub_(g * (rates * pull))

    return lambda shapes: step


def averaged(momentum: str) -> Callable[[Tensor, State, Numbers], Tensor]:
    """The average x that schedule-free rules evaluate, from y and z - y."""
    return lambda p, state, s: p + state["lag"] * (1 - 1 / s[momentum])
