"""The formulas of the optimizers' updates over stacked parameters, and the tables that list them.

Most are unit updates, (parameters, gradients, state, coefficients, settings) -> u, and change the state in place. Some
need more than flat rows: the shapes of a network's parameters, the rate itself, or numbers that belong to a whole lane.
Those make the whole step in place: (parameters, gradients, state, rates, coefficients, settings) -> None.

To add an optimizer, write its formula here, list it in `UPDATES` or `STEPS`, add its settings to
`workloads.catalogue.OPTIMIZERS`, and its place in tables and figures to `analysis.cells.OPTIMIZERS`. It runs in the
eager engine until the native kernel has it (`engines.native.KERNELS` and `engines/kernel/rules.h`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Number: TypeAlias = "float | Tensor"
State = dict[str, Tensor]
Numbers = Mapping[str, Number]
Step = Callable[[Tensor, Tensor, State, Tensor, Numbers, Numbers], None]
UnitUpdate = Callable[[Tensor, Tensor, State, Numbers, Numbers], Tensor]
# (U, 1) numbers of updates from 1, settings as floats or (L,) arrays -> columns, (U, 1) or (U, L)
Columns = Callable[[np.ndarray, Mapping[str, Any]], dict[str, np.ndarray]]

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


def gradient(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Steepest descent: u = g."""
    return g


def _momentum(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Heavy ball (Polyak, 1964) as torch has it: b <- momentum b + g, u = b. From b = 0 the first b is g."""
    return state["momentum_buffer"].mul_(s["momentum"]).add_(g)


def _nesterov(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Nesterov momentum (Sutskever et al., 2013): u = g + momentum b."""
    return (_momentum(p, g, state, c, s) * s["momentum"]).add_(g)


def _sgdw(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """SGDW (Loshchilov and Hutter, 2019): momentum plus decay of the parameters themselves, both times the rate."""
    return _momentum(p, g, state, c, s) + p * s["weight_decay"]


def _adagrad(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Adagrad (Duchi et al., 2011): u = g / (sqrt(sum g^2) + eps)."""
    total = state["sum"].addcmul_(g, g)
    return g / total.sqrt().add_(s["eps"])


def _rmsprop(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """RMSprop (Tieleman and Hinton, 2012), eps after the root."""
    return g / mean_square(state["square_avg"], g, s["alpha"]).sqrt().add_(s["eps"])


def _adam(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Adam (Kingma and Ba, 2015): bias-corrected first moment over root of second."""
    first, second = moments(g, state, s)
    return (first * c["mean"]).div_(second.sqrt().mul_(c["root"]).add_(s["eps"]))


def _adamw(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """AdamW (Loshchilov and Hutter, 2019): Adam plus decay of the parameters themselves, both times the rate."""
    return _adam(p, g, state, c, s).add_(p * s["weight_decay"])


def _adadelta(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Adadelta (Zeiler, 2012): the gradient times the ratio of running root mean squares of steps and gradients."""
    square = mean_square(state["square_avg"], g, s["rho"])
    delta = state["acc_delta"].add(s["eps"]).sqrt_().div_(square.add(s["eps"]).sqrt_()).mul_(g)
    mean_square(state["acc_delta"], delta, s["rho"])
    return delta


def _amsgrad(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """AMSGrad (Reddi et al., 2018): Adam over the largest second moment so far."""
    first, second = moments(g, state, s)
    largest = state["max_exp_avg_sq"]
    largest.copy_(torch.maximum(largest, second))
    return (first * c["mean"]).div_(largest.sqrt().mul_(c["root"]).add_(s["eps"]))


def _adamax(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Adamax (Kingma and Ba, 2015): Adam with the infinity norm."""
    first = mean(state["exp_avg"], g, s["beta1"])
    norm = state["exp_inf"].mul_(s["beta2"])
    norm.copy_(torch.maximum(norm, g.abs().add_(s["eps"])))
    return (first * c["mean"]).div_(norm)


def _nadam(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """NAdam (Dozat, 2016): Adam with Nesterov momentum and its warming schedule."""
    first, second = moments(g, state, s)
    root = second.sqrt().mul_(c["root"]).add_(s["eps"])
    return (first * c["ahead"]).add_(g * c["now"]).div_(root)


def _radam(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """RAdam (Liu et al., 2020): Adam rectified by the variance of its second moment; plain momentum at first."""
    first, second = moments(g, state, s)
    # One of the two is zero: the first once the variance can be rectified, the second before.
    factor = (c["rectified"] / second.sqrt().add_(s["eps"])).add_(c["plain"])
    return factor.mul_(first).mul_(c["mean"])


def _lion(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Lion (Chen et al., 2023): the sign of an interpolation between momentum and gradient."""
    momentum = state["exp_avg"]
    update = torch.sign(momentum * s["beta1"] + g * (1 - s["beta1"]))
    momentum.mul_(s["beta2"]).add_(g * (1 - s["beta2"]))
    return update.add_(p * s["weight_decay"])


def _adan(p: Tensor, g: Tensor, state: State, c: Numbers, s: Numbers) -> Tensor:
    """Adan (Xie et al., 2022) without decay: Adam with a running mean of gradient differences, in Nesterov's place."""
    # The first difference is zero; `first` is 1 in the first update and 0 afterwards.
    difference = (g - state["previous"]) * (1 - c["first"])
    state["previous"].copy_(g)
    first = mean(state["exp_avg"], g, s["beta1"])
    change = mean(state["exp_avg_diff"], difference, s["beta2"])
    square = mean_square(state["exp_avg_sq"], g + difference * s["beta2"], s["beta3"])
    root = square.sqrt().mul_(c["root"]).add_(s["eps"])
    return (first * c["mean"] + change * c["change"]).div_(root)


def _lamb(shapes: Sequence[torch.Size]) -> Step:
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


def _adafactor(shapes: Sequence[torch.Size]) -> Step:
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


def _muon(shapes: Sequence[torch.Size]) -> Step:
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


def _prodigy(shapes: Sequence[torch.Size]) -> Step:
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


def _schedule_free(adam: bool) -> Callable[[Sequence[torch.Size]], Step]:
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


def _averaged(momentum: str) -> Callable[[Tensor, State, Numbers], Tensor]:
    """The average x that schedule-free rules evaluate, from y and z - y."""
    return lambda p, state, s: p + state["lag"] * (1 - 1 / s[momentum])


def no_columns(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns of a rule whose coefficients do not change."""
    return {}


def _bias(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Bias corrections of the mean and of the root mean square: 1 / (1 - beta1^n), 1 / sqrt(1 - beta2^n)."""
    return {**_bias_of_mean(n, s), "root": 1 / np.sqrt(_one_minus_power(s["beta2"], n))}


def _bias_of_mean(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {"mean": 1 / _one_minus_power(s["beta1"], n)}


def _one_minus_power(beta: Any, n: np.ndarray) -> np.ndarray:
    """1 - beta^n; where that rounds to 1, of a larger power, as numpy takes ten times as long for tiny ones."""
    with np.errstate(divide="ignore"):
        enough = np.maximum(60 / -np.log2(beta), 1)
    powers: np.ndarray = beta ** np.minimum(n, enough)
    return 1 - powers


def _warming(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NAdam's: momentum rises as mu_n = beta1 (1 - 0.96^(n momentum_decay) / 2); torch keeps its product in float32."""
    now, following = (s["beta1"] * (1 - 0.5 * 0.96 ** (m * s["momentum_decay"])) for m in (n, n + 1))
    product = np.multiply.accumulate(now.astype(np.float32), axis=0).astype(np.float64)
    return {**_bias(n, s), "now": (1 - now) / (1 - product), "ahead": following / (1 - product * following)}


def _rectification(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """RAdam's: the variance exists once its approximate length exceeds 4, torch rectifies from 5."""
    # The length magnifies rounding some thousand times, so the power is Python's, as torch's is; numpy's differs.
    decay = np.frompyfunc(pow, 2, 1)(s["beta2"], n).astype(np.float64)
    longest = 2 / (1 - s["beta2"]) - 1
    length = longest - 2 * n * decay / (1 - decay)
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    rectified = np.where(length > 5, np.sqrt(np.maximum(ratio, 0) * (1 - decay)), 0.0)
    return {**_bias_of_mean(n, s), "rectified": rectified, "plain": np.where(length > 5, 0.0, 1.0)}


def _adan_columns(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Adan's bias corrections, and whether this is the first update."""
    return {
        "mean": 1 / _one_minus_power(s["beta1"], n),
        "change": s["beta2"] / _one_minus_power(s["beta2"], n),
        "root": 1 / np.sqrt(_one_minus_power(s["beta3"], n)),
        "first": (n == 1).astype(np.float64),
    }


def _adafactor_columns(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The share of the newest squared gradient, and the largest relative step."""
    return {"share": n**-0.8, "most": n**-0.5}


def _root(n: np.ndarray, s: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {"root": 1 / np.sqrt(_one_minus_power(s["beta2"], n))}


_MOMENTS = ("exp_avg", "exp_avg_sq")
# Name -> update, the torch.optim class that computes the same, buffers, coefficients.
UPDATES: dict[str, tuple[UnitUpdate, type[torch.optim.Optimizer] | None, tuple[str, ...], Columns]] = {
    "gradient-descent": (gradient, torch.optim.SGD, (), no_columns),
    "sgd": (gradient, torch.optim.SGD, (), no_columns),
    "momentum": (_momentum, torch.optim.SGD, ("momentum_buffer",), no_columns),
    "nesterov": (_nesterov, torch.optim.SGD, ("momentum_buffer",), no_columns),
    "adagrad": (_adagrad, torch.optim.Adagrad, ("sum",), no_columns),
    "rmsprop": (_rmsprop, torch.optim.RMSprop, ("square_avg",), no_columns),
    "adadelta": (_adadelta, torch.optim.Adadelta, ("square_avg", "acc_delta"), no_columns),
    "adam": (_adam, torch.optim.Adam, _MOMENTS, _bias),
    "adamw": (_adamw, torch.optim.AdamW, _MOMENTS, _bias),
    "amsgrad": (_amsgrad, torch.optim.Adam, (*_MOMENTS, "max_exp_avg_sq"), _bias),
    "adamax": (_adamax, torch.optim.Adamax, ("exp_avg", "exp_inf"), _bias_of_mean),
    "nadam": (_nadam, torch.optim.NAdam, _MOMENTS, _warming),
    "radam": (_radam, torch.optim.RAdam, _MOMENTS, _rectification),
    "sgdw": (_sgdw, None, ("momentum_buffer",), no_columns),
    "lion": (_lion, None, ("exp_avg",), no_columns),
    "adan": (_adan, None, (*_MOMENTS, "exp_avg_diff", "previous"), _adan_columns),
}
_FREE = ("weights", "largest_rate")
# Name -> how the whole step is made, the torch.optim class, buffers, scalars, coefficients, average.
STEPS: dict[str, tuple[Any, type[torch.optim.Optimizer] | None, tuple[str, ...], tuple[str, ...], Columns, Any]] = {
    "lamb": (_lamb, None, _MOMENTS, (), _bias_of_mean, None),
    "adafactor": (_adafactor, torch.optim.Adafactor, ("row_var", "col_var"), (), _adafactor_columns, None),
    "muon": (_muon, None, (*_MOMENTS, "momentum_buffer"), (), _bias, None),
    "prodigy": (_prodigy, None, (*_MOMENTS, "s", "moved"), ("growth", "numerator"), no_columns, None),
    "schedule-free-sgd": (
        _schedule_free(adam=False), None, ("lag",), _FREE, no_columns, _averaged("momentum")
    ),
    "schedule-free-adamw": (
        _schedule_free(adam=True), None, ("lag", "exp_avg_sq"), _FREE, _root, _averaged("beta1")
    ),
}  # fmt: skip
