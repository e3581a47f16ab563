"""Statistics of arrays: intervals, tests and curves, independent of studies and figures.

Every interval of a mean is a t interval over seeds. With few seeds the percentile and BCa bootstrap cover too little
(84% instead of 95%, at five seeds). Losses are averaged as logarithms and accuracies as log-odds, because on those
scales the scatter over seeds is close to symmetric and an interval cannot leave the possible values.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

UNKNOWN_EXAMPLES = 1000
"""Examples assumed where provenance names none; the number only limits the log-odds of a perfect accuracy."""

LEAST = float(np.finfo(np.float64).tiny)
"""The floor of losses where no other is known: the smallest normal double."""

EQUAL = 1e-12
"""Losses that differ by less than this share are equal."""

RESOLVED = 2
"""Mean accuracies that differ by less than so many validation examples are equal, with any number of seeds, as all see
the same examples. Where each of two networks is right on two that the other one gets wrong, the standard error of their
difference is two examples (McNemar 1947)."""

EDGE = 0.05
"""Share of a range, next to each bound, that counts as its edge."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the limits of its confidence interval.

    Attributes:
        estimate: NaN without values.
        low: lower limit; with a single value, the lowest possible one.
        high: upper limit; with a single value, the highest possible one.
        n: number of values.
    """

    estimate: float
    low: float
    high: float
    n: int

    def map(self, function: Any) -> Interval:
        """The interval on another scale; `function` is increasing and takes an array."""
        estimate, low, high = (float(value) for value in function(np.array([self.estimate, self.low, self.high])))
        return Interval(estimate, low, high, self.n)

    def named(self, name: str) -> dict[str, float]:
        """The columns of a table with several intervals: NAME, NAME_low, NAME_high and NAME_n."""
        return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), astuple(self), strict=True))


NOTHING = Interval(math.nan, math.nan, math.nan, 0)
"""The interval of no values."""
LIMITS = tuple(each.name for each in fields(Interval))
"""The columns that an interval fills in a table."""


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean with Student's t interval (Student 1908).

    Args:
        values: shape (n,); one per seed. Values that are not finite mark seeds without one and are dropped.
        level: confidence level.

    Returns:
        The interval; limits are infinite for one value, and everything is NaN for none.
    """
    sample = _finite(values)
    if sample.size == 0:
        return NOTHING
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    # A report computes thousands of these, and scipy.stats.t is a hundred times slower than stdtrit.
    half = float(special.stdtrit(sample.size - 1, 0.5 + level / 2)) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half, int(sample.size))


def welch_interval(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """The difference of two means, first - second, of independent samples of unequal variance (Welch 1947).

    Args:
        first: shape (n,).
        second: shape (m,).
        level: confidence level.

    Returns:
        The interval with the n of both samples; limits are infinite if a sample has one value, and everything is NaN if
        one has none or any value is not finite.
    """
    samples = [np.asarray(values, dtype=np.float64).ravel() for values in (first, second)]
    sizes = np.array([sample.size for sample in samples])
    if not all(sample.size and np.isfinite(sample).all() for sample in samples):
        return NOTHING
    difference, half = float(samples[0].mean() - samples[1].mean()), math.inf
    if sizes.min() > 1:
        squares = np.array([sample.var(ddof=1) / sample.size for sample in samples])
        total = float(squares.sum())
        freedom = total**2 / float((squares**2 / (sizes - 1)).sum()) if total else 1.0
        half = float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(total)
    return Interval(difference, difference - half, difference + half, int(sizes.sum()))


def log_interval(values: ArrayLike, level: float = 0.95, floor: float = LEAST) -> Interval:
    """The geometric mean with the t interval of the logarithms.

    Args:
        values: shape (n,), >= 0; NaN is dropped. An infinite value makes the geometric mean infinite with a lower limit
            of zero.
        level: confidence level.
        floor: values below it count as it, so that a zero is no better than what the precision resolves.

    Raises:
        ValueError: if a value is negative.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isposinf(array).any():
        return Interval(math.inf, 0.0, math.inf, int((~np.isnan(array)).sum()))
    sample = _finite(array)
    if (sample < 0).any():
        raise ValueError(f"a geometric mean takes no negative value, got {sample.min()}")
    with np.errstate(over="ignore"):  # an upper limit beyond the largest float is infinite
        return t_interval(np.log(np.maximum(sample, floor)), level).map(np.exp)


def logit_interval(values: ArrayLike, examples: int, level: float = 0.95) -> Interval:
    """The mean accuracy on the log-odds scale with its t interval.

    The log-odds are of (correct + 1/2) / (examples + 1), finite at 0% and 100% (Haldane 1956, Anscombe 1956). The
    inverse undoes the correction, so that equal accuracies average to themselves.

    Args:
        values: shape (n,), in [0, 1]; values that are not finite are dropped.
        examples: number of examples that each accuracy was measured on.
        level: confidence level.

    Raises:
        ValueError: if a value is outside [0, 1].
    """
    sample = _finite(values)
    if ((sample < 0) | (sample > 1)).any():
        raise ValueError(f"accuracies lie between 0 and 1, got {sample.min()} to {sample.max()}")
    return t_interval(special.logit(shrunk(sample, examples)), level).map(partial(accuracy_of, examples=examples))


def shrunk(accuracy: ArrayLike, examples: int) -> NDArray[np.float64]:
    """Accuracies shrunk by half an example, so that log-odds of 0 and 1 are finite (Haldane 1956, Anscombe 1956)."""
    return np.asarray((np.asarray(accuracy) * examples + 0.5) / (examples + 1))


def accuracy_of(logit: NDArray[np.float64], examples: int) -> NDArray[np.float64]:
    """The accuracies of log-odds that were shrunk; clipped to those that are possible."""
    return np.clip((special.expit(logit) * (examples + 1) - 0.5) / examples, 0.0, 1.0)


def metric_interval(
    values: ArrayLike, metric: str, examples: int = UNKNOWN_EXAMPLES, level: float = 0.95, floor: float = LEAST
) -> Interval:
    """`log_interval` of a loss, `logit_interval` of an accuracy.

    Args:
        values: shape (n,); one per seed.
        metric: `loss` or `accuracy`.
        examples: number of examples that an accuracy was measured on; not used for a loss.
        level: confidence level.
        floor: losses below it count as it; not used for an accuracy.
    """
    return logit_interval(values, examples, level) if metric == "accuracy" else log_interval(values, level, floor)


def scores_of(values: ArrayLike, metric: str, examples: int, floor: float = LEAST) -> NDArray[np.float64]:
    """Negative logarithms of losses, or log-odds of accuracies: larger is better."""
    array = np.asarray(values, dtype=np.float64)
    if metric == "accuracy":
        return np.asarray(special.logit(shrunk(array, examples)))
    return np.asarray(-np.log(np.maximum(array, floor)))


def best_by_parabola(
    places: ArrayLike, scores: ArrayLike, best: int, reach: float, settled: bool = False
) -> tuple[int, float]:
    """The best of several settings on a line, by a parabola through the best mean and what lies around it.

    Counted are the settings within `reach` of the best mean whose paired difference from it is below six standard
    errors, so that a cliff on one side does not bend the parabola. In the simulations of `tests/test_statistics.py` it
    nearly halves what picking the best mean of few seeds loses on a parabola; on kinks, plateaus and cliffs it loses no
    more than that, but for 0.0005.

    Args:
        places: (n,) on the line.
        scores: (n, seeds), larger is better, the same seeds in each row.
        best: row of the best mean.
        reach: distance on the line.
        settled: whether `best` is one of several equal rows, chosen by a rule of ties; then it stays.

    Returns:
        The row with the largest value of the parabola; `best` if it is settled, and with fewer than three such
        settings, a single seed, or a parabola without a maximum.
        And its shortfall, in units of the score: by how much the best place on the line is expected to be better than
        the row's, given the parabola and the error of its top (delta method); 0 where that is unknown.
    """
    line, table = np.asarray(places, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    near = np.abs(line - line[best]) <= reach * (1 + 1e-6)
    means, seeds = table.mean(axis=1), table.shape[1]
    if near.sum() < 3 or seeds < 2:
        return best, 0.0
    own = table[near]
    scatter = own - own.mean(axis=0) - means[near, None] + own.mean()
    noise = float((scatter**2).sum()) / ((len(own) - 1) * (seeds - 1) * seeds)  # of a mean, but for what seeds share
    close = near & (means[best] - means <= 6 * math.sqrt(2 * noise))
    counted = close if close.sum() >= 3 else near
    x = (line - line[best])[counted]
    (bend, slope, _), spread = np.polyfit(x, means[counted], 2, cov="unscaled")
    if bend >= -EQUAL:
        return best, 0.0
    row = best if settled or counted is near else int(np.flatnonzero(counted)[np.argmax(bend * x**2 + slope * x)])
    top, change = -slope / (2 * bend), np.array([slope / (2 * bend**2), -1 / (2 * bend), 0.0])
    distance = (line[row] - line[best] - top) ** 2 + noise * change @ spread @ change
    return row, float(-bend * min(distance, reach**2))


def log_rank_p(first: ArrayLike, second: ArrayLike, first_end: ArrayLike, second_end: ArrayLike) -> float:
    """Two-sided p that two samples of censored times have one distribution: the log-rank test (Mantel 1966).

    By permutation of the samples' log-rank scores (Peto and Peto 1972): exact where there are at most 9,999 ways to
    split them, otherwise sampled with a fixed seed. Three times against three never reach p < .1.

    Args:
        first: shape (n,); times, censored where NaN or infinite.
        second: shape (m,), as first.
        first_end: shape (n,) or a scalar; how long the first sample was observed, used where it is censored. Times
            without an event and without a known end are dropped.
        second_end: shape (m,) or a scalar, as first_end.

    Returns:
        p; NaN where undefined: a sample has fewer than two times or was not observed until the first event, there is no
        event, or all that was observed so long had its event at the same time.
    """
    lengths, reached = [], []
    for times, ends in ((first, first_end), (second, second_end)):
        sample = np.asarray(times, dtype=np.float64)
        known = np.isfinite(sample)
        until = np.where(known, sample, np.broadcast_to(np.asarray(ends, dtype=np.float64), sample.shape))
        lengths.append(until[until > -math.inf])
        reached.append(known[until > -math.inf])
    every, events = np.concatenate(lengths), np.concatenate(reached)
    if not events.any() or min(map(len, lengths)) < 2:
        return math.nan
    start = every[events].min()
    at_risk = [int((length >= start).sum()) for length in lengths]
    if min(at_risk) == 0 or sum(at_risk) == (every[events] == start).sum():
        return math.nan
    # The score of a time: its event, minus the hazard (Nelson and Aalen) that it has lived through.
    moments = np.unique(every[events])
    hazard = [(every[events] == moment).sum() / (every >= moment).sum() for moment in moments]
    scores = events - np.array([np.sum(np.array(hazard)[moments <= time]) for time in every])
    pair = scores[: len(lengths[0])], scores[len(lengths[0]) :]
    rng = np.random.default_rng(0)
    test = stats.permutation_test(pair, _sum_of_first, vectorized=True, n_resamples=9999, rng=rng)
    return min(float(test.pvalue), 1.0)


def _sum_of_first(first: NDArray[np.float64], second: NDArray[np.float64], axis: int = 0) -> NDArray[np.float64]:
    return np.asarray(np.round(first.sum(axis=axis), 12))  # splits that are equal stay equal


def curse_interval(
    search: NDArray[np.float64], fresh: NDArray[np.float64], metric: str, floor: float = LEAST
) -> Interval:
    """How much worse the fresh scores are than those of the search: shapes (seeds, cells), averaged over cells.

    Losses below the floor count as it.
    """
    if metric == "accuracy":
        return welch_interval(search.mean(axis=1), fresh.mean(axis=1)).map(lambda values: np.clip(values, -1.0, 1.0))
    after, before = (np.log(np.maximum(losses, floor)).mean(axis=1) for losses in (fresh, search))
    with np.errstate(over="ignore"):
        return welch_interval(after, before).map(np.exp)


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


def smoothed(values: ArrayLike, places: ArrayLike, half_life: float) -> NDArray[np.float64]:
    """An exponential moving average whose weights halve every `half_life`, free of the bias towards its start.

    Args:
        values: shape (n,); NaN is skipped.
        places: shape (n,), > 0 and increasing: distances from the start, such as training examples. They need not be
            even: a value represents the interval since the place before it.
        half_life: the distance over which the weight of a value halves.

    Returns:
        Shape (n,): the weighted mean of the values up to each place; NaN before the first value.
    """
    array, spots = np.asarray(values, dtype=np.float64), np.asarray(places, dtype=np.float64)
    decay = 0.5 ** (np.diff(spots, prepend=0.0) / half_life)
    total, weight, result = 0.0, 0.0, np.full(array.shape, math.nan)
    for place, value in enumerate(array):
        total, weight = total * decay[place], weight * decay[place]
        if not math.isnan(value):
            total, weight = total + (1 - decay[place]) * value, weight + 1 - decay[place]
        if weight > 0:
            result[place] = total / weight
    return result


def expected_best(values: ArrayLike, maximize: bool) -> NDArray[np.float64]:
    """The expected best value of a search of n trials, for every n.

    Unbiased: the mean over all sets of n trials, where the j-th value from the worst is the best of C(j-1, n-1) among
    C(N, n) sets. Trials must be exchangeable, as in random search but not with an adaptive sampler. (Dodge et al. 2019
    take the sets with replacement, which is biased: Tang et al. 2020.)

    Args:
        values: shape (N,). A trial whose value is not finite counts as the worst finite one: leaving it out would make
            failures free, and a set of failures alone needs some value.
        maximize: whether larger is better.

    Returns:
        Shape (N,), for n = 1..N; NaN where no value is finite.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    finite = _finite(array)
    if finite.size == 0:
        return np.full(array.size, math.nan)
    ranked = np.sort(np.where(np.isfinite(array), array, finite.min() if maximize else finite.max()))
    if not maximize:
        ranked = ranked[::-1]
    place = np.arange(1, array.size + 1)
    drawn = place[:, None]
    # Logarithms, as the binomials overflow. That of C(j-1, n-1) is -inf for j < n, since gammaln is inf at 0, -1, ...;
    # its last column is that of C(N-1, n-1) = C(N, n) n / N.
    logs = special.gammaln(place) - special.gammaln(drawn) - special.gammaln(place - drawn + 1)
    return np.asarray(np.exp(logs - logs[:, -1:] + np.log(drawn / array.size)) @ ranked)


def performance_profile(times: ArrayLike, ratios: ArrayLike) -> NDArray[np.float64]:
    """The share of problems that each solver solves within a factor of the fastest (Dolan and More 2002).

    Args:
        times: shape (solvers, problems), >= 0; NaN or infinite where a solver never solved the problem. A problem that
            nobody solved counts as unsolved for all.
        ratios: shape (r,), >= 1; infinity gives the share ever solved.

    Returns:
        Shape (solvers, r), in [0, 1]; NaN without problems.

    Raises:
        ValueError: if a time is negative or a ratio below 1.
    """
    array, factors = np.asarray(times, dtype=np.float64), np.asarray(ratios, dtype=np.float64)
    if (array < 0).any():
        raise ValueError(f"times are not negative, got {np.nanmin(array)}")
    if not (factors >= 1).all():
        raise ValueError(f"ratios to the fastest are at least 1, got {factors.min()}")
    solvers, problems = array.shape
    if problems == 0:
        return np.full((solvers, factors.size), math.nan)
    solved = np.isfinite(array)
    fastest = np.where(solved, array, np.inf).min(axis=0, initial=np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the fastest time may be 0, or none
        slower = np.where(array == fastest, 1.0, array / fastest)
    return np.asarray((solved[:, :, None] & (slower[:, :, None] <= factors)).mean(axis=1))


def edge_of(value: float, low: float, high: float, log: bool) -> str:
    """The edge of its range at which a value lies: within 5% of a bound, or beyond it.

    Args:
        value: NaN lies at no edge.
        low: lower bound, positive if `log`.
        high: upper bound, not below the lower one.
        log: whether the range is searched on a logarithmic scale.

    Returns:
        `low`, `high`, or an empty text; also for a range of one point, which has no edges.

    Raises:
        ValueError: if the bounds are not a range.
    """
    if not (-math.inf < low <= high < math.inf) or (log and low <= 0):
        raise ValueError(f"no {'logarithmic ' if log else ''}range from {low} to {high}")
    if low == high or math.isnan(value):
        return ""
    if log:
        value, low, high = (math.log(number) if number > 0 else -math.inf for number in (value, low, high))
    if value - low <= EDGE * (high - low):
        return "low"
    return "high" if high - value <= EDGE * (high - low) else ""


def censored_median(values: ArrayLike) -> float:
    """The median of times, shape (n,), in which NaN (not reached) counts as infinite; NaN for none."""
    times = np.asarray(values, dtype=np.float64)
    return float(np.median(np.where(np.isnan(times), np.inf, times))) if times.size else math.nan
