"""How training scales with the batch size: the critical batch size and the gradient noise scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.statistics import NOTHING, Interval, log_interval

LEAST_SIZES = 4
"""Batch sizes that a fit with two parameters needs, so that it can fail."""


@dataclass(frozen=True)
class BatchScaling:
    """How the steps to a target depend on the batch size.

    Attributes:
        steps: S_min, the fewest steps of any batch size.
        examples: E_min, the fewest examples of any batch size.
        critical: B_crit = E_min / S_min, the batch size that needs twice as many of either.
    """

    steps: Interval
    examples: Interval
    critical: Interval


def _fit_scaling(log_sizes: NDArray[np.float64], log_steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The logarithms of S_min and B_crit for one seed, shape (2,); None where its points do not identify them."""

    def residuals(point: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(point[0] + np.logaddexp(0, point[1] - log_sizes) - log_steps)

    fit = optimize.least_squares(residuals, [log_steps.min() - math.log(2), log_sizes.mean()], method="lm")
    margin = math.log(4)
    within = log_sizes.min() - margin <= fit.x[1] <= log_sizes.max() + margin
    return np.asarray(fit.x) if fit.success and within else None


def critical_batch_size(batch_sizes: ArrayLike, steps: ArrayLike, level: float = 0.95) -> BatchScaling | str:
    """Fit the trade of steps against examples, (S / S_min - 1) (E / E_min - 1) = 1 (McCandlish et al. 2018).

    With E = B S that is S = S_min (1 + B_crit / B), fitted seed by seed by least squares on log S and averaged by
    `log_interval`. A seed identifies B_crit if it reached the target at four batch sizes or more, and the fitted
    B_crit lies between a quarter of the smallest batch size and four times the largest: beyond, the points show only
    one of the two limits. Other seeds are left out. Near these ends that biases the estimate inwards, and the interval
    seldom covers B_crit; well inside, coverage is nominal, by simulation with five and ten seeds.

    Args:
        batch_sizes: shape (b,), > 0.
        steps: shape (b, seeds), >= 0; steps to the target, NaN where a seed never reached it. Zeros are left out.
        level: confidence level.

    Returns:
        The scaling with the number of seeds that identify B_crit, or the reason why there is none: fewer than four
        batch sizes; most seeds do not identify it (under perfect scaling noise lets a few seem to); or a test for lack
        of fit rejects the curve at 5%.

    Raises:
        ValueError: if a batch size is not positive, or steps are negative.
    """
    sizes, array = np.asarray(batch_sizes, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"batch sizes are positive, got {sizes.min()} to {sizes.max()}")
    if (array < 0).any():
        raise ValueError(f"steps are not negative, got {np.nanmin(array)}")
    fits, tried = [], 0
    for column in array.T:
        reached = np.isfinite(column) & (column > 0)
        if np.unique(sizes[reached]).size < LEAST_SIZES:
            continue
        tried += 1
        fit = _fit_scaling(np.log(sizes[reached]), np.log(column[reached]))
        if fit is not None:
            fits.append(fit)
    if not tried:
        return f"fewer than {LEAST_SIZES} batch sizes reached the target"
    if 2 * len(fits) <= tried:
        return "it lies beyond the batch sizes that reached the target"
    if math.isnan(p := lack_of_fit_p(sizes, array)):
        return "one seed, or batch sizes that few seeds share, cannot show whether the curve fits"
    if p < 0.05:
        return "the updates do not follow S_min (1 + B_crit / B)"
    log_least, log_critical = np.array(fits).T
    with np.errstate(over="ignore"):
        seeds = [np.exp(logs) for logs in (log_least, log_least + log_critical, log_critical)]
    return BatchScaling(*(log_interval(values, level) for values in seeds))


def lack_of_fit_p(batch_sizes: NDArray[np.float64], steps: NDArray[np.float64]) -> float:
    """P of the F test that the mean log steps deviate from the fitted curve no more than by the seeds' scatter.

    Seeds are blocks, because they share initialisation and order of examples between batch sizes.

    Args:
        batch_sizes: shape (b,).
        steps: shape (b, seeds); seeds that lack a batch size, and batch sizes that no other seed lacks, are left out.

    Returns:
        p; NaN for one seed, or fewer than four batch sizes that all seeds reached; 0 or 1 for steps without scatter.
    """
    logs = np.log(np.where(np.isfinite(steps) & (steps > 0), steps, np.nan))
    logs = logs[:, np.isfinite(logs).sum(axis=0) >= LEAST_SIZES]
    whole = np.isfinite(logs).all(axis=1)
    logs, sizes = logs[whole], np.log(batch_sizes[whole])
    count, seeds = logs.shape
    if seeds < 2 or np.unique(sizes).size < LEAST_SIZES:
        return math.nan
    fit = _fit_scaling(sizes, logs.mean(axis=1))
    if fit is None:
        return math.nan
    deviations = logs.mean(axis=1) - fit[0] - np.logaddexp(0, fit[1] - sizes)
    scatter = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    lack, pure = seeds * float(deviations @ deviations) / (count - 2), float((scatter**2).sum())
    if pure < 1e-12:
        return 1.0 if lack < 1e-9 else 0.0
    freedom = (count - 1) * (seeds - 1)
    return float(stats.f.sf(lack / (pure / freedom), count - 2, freedom))


def gradient_noise_scale(squares: ArrayLike, noises: ArrayLike, level: float = 0.95) -> Interval:
    """The simple noise scale tr(Sigma) / |G|^2: each averaged first, then divided (McCandlish et al. 2018, appendix A).

    The interval is Fieller's (1954): the ratios r for which the mean of noises - r * squares is not significantly
    different from 0, by Student's t. At a level of 95% it covered 95% to 98% in simulations with five and ten lanes,
    where intervals of the logarithm by the delta method and by the jackknife covered 81% to 95%. It has no upper limit
    where the mean of the squares might be 0.

    Args:
        squares: shape (lanes,); unbiased estimates of |G|^2, which may be negative. Lanes without two finite values are
            dropped.
        noises: shape (lanes,); unbiased estimates of tr(Sigma).
        level: confidence level.

    Returns:
        The interval, in [0, inf]; the estimate is infinite if the squares average to 0 or less, otherwise 0 if the
        noises do. Limits are 0 and infinity for one lane, and where every ratio is rejected; all are NaN for none.
    """
    lanes = np.stack([np.asarray(squares, dtype=np.float64).ravel(), np.asarray(noises, dtype=np.float64).ravel()])
    lanes = lanes[:, np.isfinite(lanes).all(axis=0)]
    count = int(lanes.shape[1])
    if count == 0:
        return NOTHING
    scale = np.abs(lanes).max(axis=1)  # so that no square over- or underflows
    scale[scale == 0] = 1.0
    square, noise = (lanes / scale[:, None]).mean(axis=1).tolist()
    ratio = max(noise / square, 0.0) if square > 0 else math.inf
    low, high = 0.0, math.inf
    if count > 1:
        spread = stats.t.ppf(0.5 + level / 2, count - 1) ** 2 * np.cov(lanes / scale[:, None]) / count
        # The accepted ratios r are those with a r^2 - 2 b r + c <= 0.
        a, b, c = square**2 - spread[0, 0], square * noise - spread[0, 1], noise**2 - spread[1, 1]
        root = b + math.sqrt(max(b**2 - a * c, 0.0))
        if c > 0 and root > 0:
            low = min(c / root, ratio)
        if a > 0 and root > 0:
            high = max(root / a, ratio)
    with np.errstate(over="ignore"):
        factor = scale[1] / scale[0]
        # A limit of 0 stays 0 even if the factor overflows.
        return Interval(ratio, low, high, count).map(
            lambda values: np.multiply(values, factor, out=np.zeros_like(values), where=values != 0)
        )
