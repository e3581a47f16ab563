"""Scores of several configurations on the same seeds and test examples: their joint noise, and which may be the best.

Seeds and examples are crossed: every seed's network is scored on the same test examples. A mean over both is uncertain
because other seeds would train other networks and because another test split would hold other examples, so its
variance is the sum of both parts, minus what both count (two-way clustering, Cameron, Gelbach and Miller 2011). Scores
of a loss are negative logarithms, those of an accuracy are shares; larger is better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.statistics import NOTHING, UNKNOWN_EXAMPLES, Interval, accuracy_of, shrunk

Array = NDArray[np.float64]
DRAWS = 20_000
"""Draws of the largest t: a p of .05 is off by .0015."""
MOST_FREEDOM = 60
"""Degrees of freedom beyond which the estimate of a variance counts as exact enough, to save memory."""


@dataclass(frozen=True)
class Scores:
    """Mean scores of k configurations with their joint noise.

    Attributes:
        metric: `loss` or `accuracy`.
        means: (k,), larger is better: negative mean log loss, or mean accuracy.
        of_seeds: (k, k) covariance of the means over seeds.
        of_examples: (k, k) covariance over test examples, without what `of_seeds` holds already; zero if unknown.
        seeds: number of seeds.
        examples: test examples whose values were recorded; 0 if none, then intervals cover seeds only.
        of_tuning: (k,) mean square error of the means as those of the best rates, which tuning finds only about; zero
            where a configuration stands for itself.
    """

    metric: str
    means: Array
    of_seeds: Array
    of_examples: Array
    seeds: int
    examples: int
    of_tuning: Array

    def tuned(self, shortfall: ArrayLike) -> Scores:
        """The same scores as those of configurations whose rates fall short of the best ones.

        Near the top of a parabola whose place is normally distributed, a shortfall is a multiple of chi-squared with
        one degree of freedom: its mean square is three times the square of its mean. The means are not corrected. Few
        seeds can make a parabola look sharp by luck, so that each shortfall counts as at least the median of all.

        Args:
            shortfall: (k,) expected, in logarithms of a loss or in log-odds; 0 if unknown.
        """
        expected = np.asarray(shortfall, dtype=np.float64)
        share = shrunk(self.means, self.examples or UNKNOWN_EXAMPLES)
        scale = share * (1 - share) if self.metric == "accuracy" else 1.0
        return replace(self, of_tuning=3 * (scale * np.maximum(expected, np.median(expected))) ** 2)

    @property
    def covariance(self) -> Array:
        """(k, k) covariance of the means over seeds and examples."""
        return self.of_seeds + self.of_examples

    def freedom(self, direction: Array) -> float:
        """Degrees of freedom of the variance of a combination, (k,), of the means (Satterthwaite 1946)."""
        own, rest = (float(direction @ part @ direction) for part in (self.of_seeds, self.of_examples))
        if rest <= 0:
            return float(max(self.seeds - 1, 1))
        return (own + rest) ** 2 / (own**2 / max(self.seeds - 1, 1) + rest**2 / max(self.examples - 1, 1))

    def parts(self, direction: Array) -> dict[str, float]:
        """The variance of a difference, (k,), of the means as those of the best rates, by source."""
        seeds, examples = (float(direction @ part @ direction) for part in (self.of_seeds, self.of_examples))
        return {"seeds": seeds, "test examples": examples, "tuning": float(direction**2 @ self.of_tuning)}

    def reordered(self, order: ArrayLike) -> Scores:
        """The same configurations in another order."""
        places = np.asarray(order)
        square = np.ix_(places, places)
        return replace(
            self,
            means=self.means[places],
            of_seeds=self.of_seeds[square],
            of_examples=self.of_examples[square],
            of_tuning=self.of_tuning[places],
        )

    def interval(self, place: int, candidates: int = 1, level: float = 0.95) -> Interval:
        """The metric of one configuration.

        Args:
            place: which.
            candidates: number of configurations of which this one was taken because it looks best on these seeds; the
                limits are widened so that they still cover its truth.
            level: confidence level.

        Returns:
            The geometric mean of a loss, or the mean accuracy with limits from the log-odds scale; n are the seeds.
        """
        direction = np.eye(len(self.means))[place]
        mean, variance = float(self.means[place]), float(self.covariance[place, place])
        quantile = max(0.5 + level / 2, level ** (1 / candidates))
        half = float(special.stdtrit(self.freedom(direction), quantile)) * np.sqrt(variance)
        half = np.inf if self.seeds < 2 else half
        if self.metric == "loss":
            with np.errstate(over="ignore"):
                return Interval(-mean, -mean - half, -mean + half, self.seeds).map(np.exp)
        count = self.examples or UNKNOWN_EXAMPLES
        share = float(shrunk(mean, count))
        logit, half = float(special.logit(share)), half / (share * (1 - share))
        return Interval(logit, logit - half, logit + half, self.seeds).map(partial(accuracy_of, examples=count))

    def effect(self, gain: Interval) -> Interval:
        """A difference of means for readers: of a loss the ratio (below 1 is better), otherwise the difference."""
        if self.metric == "accuracy":
            return gain.map(lambda values: np.clip(values, -1.0, 1.0))
        with np.errstate(over="ignore"):
            low, high = (float(np.exp(-end)) for end in (gain.high, gain.low))
            return Interval(float(np.exp(-gain.estimate)), low, high, gain.n)


def paired_scores(values: ArrayLike, metric: str, examples: ArrayLike | None = None, rounding: float = 0.0) -> Scores:
    """The mean scores of k configurations with their noise over seeds and examples.

    Args:
        values: (k, seeds) metric on the split; a loss is positive.
        metric: `loss` or `accuracy`.
        examples: (k, seeds, n) metric of each example, of which `values` are the means; None if not recorded. Not used
            if any is not finite.
        rounding: relative error of a value by the precision in which it was computed.

    Returns:
        The scores. Even where all values are equal the variance is not zero: an accuracy is that of a finite split,
        and a loss is rounded.
    """
    table = np.asarray(values, dtype=np.float64)
    k, seeds = table.shape
    scores = -np.log(table) if metric == "loss" else table
    of_seeds = np.atleast_2d(np.cov(scores)) / seeds if seeds > 1 else np.zeros((k, k))
    of_seeds = of_seeds + np.eye(k) * rounding**2
    each = None if examples is None else np.asarray(examples, dtype=np.float64)
    if each is None or not np.isfinite(each).all():
        return Scores(metric, scores.mean(axis=1), of_seeds, np.zeros((k, k)), seeds, 0, np.zeros(k))
    n = each.shape[2]
    # The influence of each example on the mean score; of a logarithm by its derivative. The examples' mean may be
    # smaller than the value, which is not below a floor: then they hardly matter, and a mean of zero does not divide.
    influence = -each / np.maximum(each.mean(axis=2, keepdims=True), table[:, :, None]) if metric == "loss" else each
    influence = influence - influence.mean(axis=2, keepdims=True)
    of_example = influence.mean(axis=1)
    squares = of_example @ of_example.T
    if metric == "accuracy":  # half an example more that only this one gets right, and half one only it gets wrong
        squares = squares + np.eye(k) / 2
    both = squares / (n * max(n - 1, 1))
    rest = (influence - of_example[:, None]).reshape(k, -1)
    shared = rest @ rest.T / (seeds * n * max((seeds - 1) * (n - 1), 1))
    return Scores(metric, scores.mean(axis=1), of_seeds, _positive(both - shared), seeds, n, np.zeros(k))


def _positive(matrix: Array) -> Array:
    """The nearest matrix without negative variances."""
    weights, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(weights, 0.0)) @ vectors.T)


@dataclass(frozen=True)
class WithBest:
    """One configuration against the best of the others.

    Attributes:
        gain: its mean minus that of the best other one, with limits that hold for all configurations at once.
        p: of the hypothesis that it is the best; at most 1 - level if and only if it is not a contender.
        contender: whether it may be the best.
    """

    gain: Interval
    p: float
    contender: bool


LEVEL = 0.95
"""Simultaneous confidence level of all that is said about one set of scores."""


def compare_with_best(scores: Scores, looks: int = 1) -> list[WithBest]:
    """Multiple comparisons with the best (Hsu 1996): which configurations may be the best, given their joint noise.

    A configuration is excluded if another one is better by more than the simultaneous limits of all pairwise
    differences allow (Tukey 1953; the largest t is simulated with the estimated covariance, from a fixed seed). So of
    equal configurations none is excluded with a probability of `LEVEL`, and all that is said holds at once. Of two
    configurations, p and limits are those of the paired t test.

    Args:
        scores: of k configurations.
        looks: how often at most they are compared while seeds are added. Each look has an equal part of the error
            (Bonferroni), so that what is said at all of them holds at once; p is multiplied by their number.

    Returns:
        One per configuration, in order. With one seed, or one configuration, all are contenders.
    """
    k, means = len(scores.means), scores.means
    gaps = means[:, None] - means
    if k == 1:
        return [WithBest(NOTHING, math.nan, True)]
    if scores.seeds < 2:
        gains = [float(np.delete(gaps[place], place).min()) for place in range(k)]
        return [WithBest(Interval(gain, -np.inf, np.inf, scores.seeds), 1.0, True) for gain in gains]
    errors, largest = _differences(scores, *np.triu_indices(k, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        leads = np.nan_to_num(-gaps / errors, nan=0.0).max(axis=1)  # 0 / 0: equal without any noise
    p = np.array([max(np.mean(largest >= lead), 1 / DRAWS) if lead > 0 else 1.0 for lead in leads])
    p = np.minimum(p * looks, 1.0)
    bounds = np.quantile(largest, 1 - (1 - LEVEL) / looks) * errors
    contender = p > 1 - LEVEL
    return [
        WithBest(_limits(place, gaps, bounds, contender, scores.seeds), float(p[place]), bool(contender[place]))
        for place in range(k)
    ]


def compare_with_controls(scores: Scores, controls: int, looks: int = 1) -> list[WithBest]:
    """The last `controls` configurations, each against the best of those before.

    Limits hold for all pairs of the two kinds at once (Dunnett 1955; the largest t is simulated as for
    `compare_with_best`), so they hold for the best one too, whichever that is. Of one configuration and one control
    they are those of the paired t test.

    Args:
        scores: of all configurations.
        controls: how many of them nothing was chosen from.
        looks: as for `compare_with_best`.

    Returns:
        One per control, in order; p is of the hypothesis that both are equal, and a contender is one that is not worse.
    """
    k, means = len(scores.means) - controls, scores.means
    best = int(np.argmax(means[:k]))
    gains = means[k:] - means[best]
    if scores.seeds < 2:
        return [WithBest(Interval(float(gain), -np.inf, np.inf, scores.seeds), 1.0, True) for gain in gains]
    errors, largest = _differences(scores, *np.array(list(product(range(k), range(k, k + controls)))).T)
    bound, comparisons = float(np.quantile(largest, 1 - (1 - LEVEL) / looks)), []
    for gain, error in zip(gains.tolist(), errors[best, k:].tolist(), strict=True):
        p = min(1.0, looks * max(float(np.mean(largest * error >= abs(gain))), 1 / DRAWS)) if gain else 1.0
        limits = Interval(gain, gain - bound * error, gain + bound * error, scores.seeds)
        comparisons.append(WithBest(limits, p, gain >= 0 or p > 1 - LEVEL))
    return comparisons


def seeds_can_help(scores: Scores, looks: int = 1) -> bool:
    """Whether more seeds may make any of some configurations the winner.

    They cannot if the noise of test examples and tuning, which seeds do not reduce, hides even the largest differences
    that the seeds so far allow (95% intervals of each pair).

    Args:
        scores: of k configurations, with two seeds or more.
        looks: as for `compare_with_best`.
    """
    gaps = scores.means[:, None] - scores.means
    pairs = np.indices(gaps.shape)
    of_seeds, rest = (
        _errors(each, *pairs) for each in (scores.of_seeds, scores.of_examples + np.diag(scores.of_tuning))
    )
    allowed = gaps + float(special.stdtrit(max(scores.seeds - 1, 1), 0.5 + LEVEL / 2)) * of_seeds
    hidden = float(special.ndtri(1 - (1 - LEVEL) / (2 * looks))) * rest
    return bool(((allowed >= hidden) | np.eye(len(gaps), dtype=bool)).all(axis=1).any())


def _errors(covariance: Array, first: NDArray[np.intp], second: NDArray[np.intp]) -> Array:
    """The standard errors of the differences of some pairs; of one covariance, (k, k), or of several."""
    diagonal = np.diagonal(covariance, axis1=-2, axis2=-1)
    pairs = diagonal[..., first] + diagonal[..., second] - 2 * covariance[..., first, second]
    return np.asarray(np.sqrt(np.maximum(pairs, 0.0)))


def _differences(scores: Scores, first: NDArray[np.intp], second: NDArray[np.intp]) -> tuple[Array, Array]:
    """The standard errors of the differences of some pairs, and draws of the largest absolute t of these if all are 0.

    The errors are (k, k), and zero for other pairs. Each draw estimates the seeds' covariance again from as many seeds:
    one common estimate for all pairs would make the largest t too small.
    """
    k = len(scores.means)
    errors, fixed = np.zeros((k, k)), scores.of_examples + np.diag(scores.of_tuning)
    errors[first, second] = errors[second, first] = _errors(scores.of_seeds + fixed, first, second)
    if len(first) == 1:  # without sampling error
        freedom = scores.freedom(np.eye(k)[first[0]] - np.eye(k)[second[0]])
        return errors, np.asarray(special.stdtrit(freedom, 0.5 + (np.arange(DRAWS) + 0.5) / (2 * DRAWS)))
    rng, freedom = np.random.default_rng(0), min(scores.seeds - 1, MOST_FREEDOM)
    noise = rng.standard_normal((DRAWS, k)) @ _root(scores.of_seeds + fixed).T
    seeds = rng.standard_normal((DRAWS, freedom, k)) @ _root(scores.of_seeds).T
    estimated = np.einsum("dsi,dsj->dij", seeds, seeds, optimize=True) / freedom + fixed
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.abs(noise[:, first] - noise[:, second]) / _errors(estimated, first, second)
    return errors, np.asarray(np.nan_to_num(drawn).max(axis=1))


def _root(covariance: Array) -> Array:
    weights, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(weights, 0.0)))


def _limits(place: int, gaps: Array, bounds: Array, contender: NDArray[np.bool_], n: int) -> Interval:
    """The limits of one configuration's gain; `gaps` and `bounds`, (k, k), are those of the differences."""
    others = np.delete(np.arange(len(gaps)), place)
    estimate = float(gaps[place, others].min())
    lows, highs = (gaps[place] + sign * bounds[place] for sign in (-1, 1))
    rivals = others[contender[others]]  # one of them is the best, unless this one is
    low = float(lows[rivals].min()) if rivals.size else max(float(lows[others].min()), 0.0)
    high = float(highs[others].min())  # the best of the others is at least as good as each of them
    high = max(high, 0.0) if contender[place] else min(high, 0.0)
    return Interval(estimate, min(low, estimate), max(high, estimate), n)
