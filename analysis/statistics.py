"""Arrays in, numbers and intervals out; no plotting, and nothing that knows of a study.

Every interval of a mean is a t interval over seeds. With few seeds the percentile and BCa bootstrap cover too little
(84% where 95% is meant, at five seeds), the t interval does not. Losses are averaged as logarithms and accuracies as
log-odds, because on those scales the scatter over seeds is close to symmetric and an interval cannot leave the possible
values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

UNKNOWN_EXAMPLES = 1000
"""Validation examples assumed where provenance names none; it only sets how far a perfect accuracy is from infinity."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the limits of its confidence interval.

    Attributes:
        estimate: the estimate; NaN without values.
        low: lower limit; the lowest possible value where one value alone bounds nothing.
        high: upper limit, likewise.
        n: values that it rests on.
    """

    estimate: float
    low: float
    high: float
    n: int

    def map(self, function: Any) -> Interval:
        """The interval on another scale; `function` is increasing and takes an array."""
        estimate, low, high = (float(value) for value in function(np.array([self.estimate, self.low, self.high])))
        return Interval(estimate, low, high, self.n)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean with Student's t interval (Student 1908).

    Args:
        values: shape (n,); one value per seed. What is not finite marks a seed without a value and is dropped.
        level: confidence level.

    Returns:
        The interval; limits are infinite for one value and everything is NaN for none.
    """
    sample = _finite(values)
    if sample.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(stats.t.ppf(0.5 + level / 2, sample.size - 1) * stats.sem(sample))
    return Interval(mean, mean - half, mean + half, int(sample.size))


def welch_interval(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """The difference of two means, first - second, of independent samples of unequal variance (Welch 1947).

    Args:
        first: shape (n,).
        second: shape (m,).
        level: confidence level.

    Returns:
        The interval, n counting both samples; limits are infinite where a sample has one value, and everything is NaN
        where one has none or any value is not finite.
    """
    samples = [np.asarray(values, dtype=np.float64).ravel() for values in (first, second)]
    count = sum(sample.size for sample in samples)
    if not all(sample.size and np.isfinite(sample).all() for sample in samples):
        return Interval(math.nan, math.nan, math.nan, 0)
    difference = float(samples[0].mean() - samples[1].mean())
    if min(sample.size for sample in samples) == 1:
        return Interval(difference, -math.inf, math.inf, count)
    squares = np.array([sample.var(ddof=1) / sample.size for sample in samples])
    total = float(squares.sum())
    if total == 0:
        return Interval(difference, difference, difference, count)
    freedom = total**2 / float((squares**2 / [sample.size - 1 for sample in samples]).sum())
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(total)
    return Interval(difference, difference - half, difference + half, count)


def log_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The geometric mean with the t interval of the logarithms.

    Args:
        values: shape (n,), >= 0; NaN is dropped. A zero makes the geometric mean zero and leaves it without an upper
            limit; an infinite value makes it infinite, with no lower limit but zero.
        level: confidence level.

    Raises:
        ValueError: if a value is negative.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isposinf(array).any():
        return Interval(math.inf, 0.0, math.inf, int((~np.isnan(array)).sum()))
    sample = _finite(array)
    if (sample < 0).any():
        raise ValueError(f"a geometric mean takes no negative value, got {sample.min()}")
    if (sample == 0).any():
        return Interval(0.0, 0.0, math.inf, int(sample.size))
    with np.errstate(over="ignore"):  # an upper limit beyond the largest float is infinite
        return t_interval(np.log(sample), level).map(np.exp)


def logit_interval(values: ArrayLike, examples: int, level: float = 0.95) -> Interval:
    """The mean accuracy on the log-odds scale with its t interval.

    The log-odds are of (correct + 1/2) / (examples + 1), finite at 0% and 100% (Haldane 1956, Anscombe 1956), and the
    same correction is undone on the way back, so that equal accuracies average to themselves.

    Args:
        values: shape (n,), in [0, 1]; what is not finite is dropped.
        examples: examples that each accuracy was measured on.
        level: confidence level.

    Raises:
        ValueError: if a value is outside [0, 1].
    """
    sample = _finite(values)
    if ((sample < 0) | (sample > 1)).any():
        raise ValueError(f"accuracies lie between 0 and 1, got {sample.min()} to {sample.max()}")
    logits = special.logit((sample * examples + 0.5) / (examples + 1))

    def accuracy(logit: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip((special.expit(logit) * (examples + 1) - 0.5) / examples, 0.0, 1.0)

    return t_interval(logits, level).map(accuracy)


def metric_interval(values: ArrayLike, metric: str, examples: int = UNKNOWN_EXAMPLES, level: float = 0.95) -> Interval:
    """The interval that suits the metric: `log_interval` of a loss, `logit_interval` of an accuracy.

    Args:
        values: shape (n,); one value per seed.
        metric: `loss` or `accuracy`.
        examples: examples that an accuracy was measured on; a loss does not use it.
        level: confidence level.
    """
    return logit_interval(values, examples, level) if metric == "accuracy" else log_interval(values, level)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p of paired differences by flipping their signs (Fisher 1935).

    Exact up to 13 pairs, sampled with a fixed seed beyond. The smallest p that n pairs can reach is 2 / 2**n: five
    pairs never reach .05.

    Args:
        differences: shape (n,); what is not finite is dropped.

    Returns:
        p; NaN without pairs.
    """
    sample = _finite(differences)
    if sample.size < 2:
        return 1.0 if sample.size else math.nan
    test = stats.permutation_test((sample,), np.mean, permutation_type="samples", rng=np.random.default_rng(0))
    return min(float(test.pvalue), 1.0)


def curse_interval(search: NDArray[np.float64], fresh: NDArray[np.float64], metric: str) -> Interval:
    """How much worse the fresh scores are than the search's: shapes (seeds, cells), averaged over cells."""
    if metric == "accuracy":
        return welch_interval(search.mean(axis=1), fresh.mean(axis=1)).map(lambda values: np.clip(values, -1.0, 1.0))
    with np.errstate(divide="ignore", over="ignore"):
        return welch_interval(np.log(fresh).mean(axis=1), np.log(search).mean(axis=1)).map(np.exp)


def best_so_far(values: ArrayLike, maximize: bool) -> NDArray[np.float64]:
    """The best value up to each place.

    Args:
        values: shape (n,), in order of trial; NaN for a trial without a value.
        maximize: whether larger is better.

    Returns:
        Shape (n,); NaN before the first value.
    """
    array = np.asarray(values, dtype=np.float64)
    return np.fmax.accumulate(array) if maximize else np.fmin.accumulate(array)


def censored_median(values: ArrayLike) -> float:
    """The median of times, shape (n,), of which NaN ones were not reached and count as infinite; NaN for none."""
    times = np.asarray(values, dtype=np.float64)
    return float(np.median(np.where(np.isnan(times), np.inf, times))) if times.size else math.nan
