"""Arrays and frames in, numbers and intervals out; no plotting.

Every interval is a t interval over seeds. With few seeds the percentile and BCa bootstrap cover too little (84% where
95% is meant, at five seeds), the t interval does not. Losses are averaged as logarithms and accuracies as log-odds,
because on those scales the scatter over seeds is close to symmetric and an interval cannot leave the possible values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from analysis.results import REGIMES, Results

OPTIMIZERS = ("gradient-descent", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
"""The order in which optimizers are listed; others follow by name."""

UNKNOWN_EXAMPLES = 1000
"""Validation examples assumed where provenance names none; it only sets how far a perfect accuracy is from infinity."""

AXES = ("update", "examples", "epoch", "train_seconds")
"""The four measures of how long a lane has trained."""

_SURVIVED = ("completed", "stopped")
_LIMITS = ("estimate", "low", "high", "n")


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


def log_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The geometric mean with the t interval of the logarithms.

    Args:
        values: shape (n,), >= 0; what is not finite is dropped. A zero makes the geometric mean zero and leaves it
            without an upper limit.
        level: confidence level.

    Raises:
        ValueError: if a value is negative.
    """
    sample = _finite(values)
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
    if sample.size == 0:
        return math.nan
    test = stats.permutation_test((sample,), np.mean, permutation_type="samples", rng=np.random.default_rng(0))
    return float(min(test.pvalue, 1.0))


def examples_of(results: Results, split: str) -> int:
    """Examples in a split as provenance tells, else `UNKNOWN_EXAMPLES`."""
    data = results.provenance.get("data")
    count = data.get(split) if isinstance(data, dict) else None
    return count if isinstance(count, int) and count > 0 else UNKNOWN_EXAMPLES


def rate_table(lanes: pd.DataFrame, metric: str, examples: int = UNKNOWN_EXAMPLES) -> pd.DataFrame:
    """One row per trial and learning rate: the validation metric over the seeds that survived.

    Args:
        lanes: rows of `analysis.results.LANES`.
        metric: `loss` or `accuracy`.
        examples: validation examples.

    Returns:
        Columns trial, learning_rate, lanes, diverged (lanes that did), estimate, low, high, n, and eligible: whether
        every seed of the trial ran at this rate and survived.
    """
    rows = []
    for (trial, rate), group in lanes.groupby(["trial", "learning_rate"], sort=True):
        values = group.sort_values("seed")[f"validation_{metric}"].where(group["outcome"].isin(_SURVIVED))
        diverged = int((group["outcome"] == "diverged").sum())
        interval = metric_interval(values, metric, examples)
        rows.append({"trial": trial, "learning_rate": rate, "lanes": len(group), "diverged": diverged} | asdict(interval))
    table = pd.DataFrame(rows, columns=["trial", "learning_rate", "lanes", "diverged", *_LIMITS])
    table["eligible"] = table["n"] == table["trial"].map(lanes.groupby("trial")["seed"].nunique())
    return table


def tuned_rates(lanes: pd.DataFrame, metric: str, examples: int = UNKNOWN_EXAMPLES) -> pd.Series[float]:
    """The learning rate of each trial with the best mean validation metric over seeds.

    Means are taken on the metric's own scale (see `metric_interval`). Only rates at which every seed survived are
    eligible, because the mean of the survivors would flatter a rate that often diverges. Means that agree in twelve
    digits are tied, and a tie goes to the smaller rate.

    Args:
        lanes: rows of `analysis.results.LANES`.
        metric: `loss` or `accuracy`.
        examples: validation examples.

    Returns:
        Learning rates indexed by trial; a trial without an eligible rate is absent.
    """
    table = rate_table(lanes, metric, examples)
    table = table[table["eligible"]]
    score = table["estimate"].map(lambda value: float(f"{value:.12g}")) * (-1 if metric == "accuracy" else 1)
    best = table.assign(score=score).sort_values(["trial", "score", "learning_rate"]).drop_duplicates("trial")
    return best.set_index("trial")["learning_rate"].astype(float)


def cells(results: Results) -> pd.DataFrame:
    """One row per trial: its tuned rate and what it reached there.

    Returns:
        Columns trial, optimizer, width, depth, batch_size, regime, outcome, updates, examples, epochs, train_seconds;
        learning_rate (tuned, NaN if none), on_edge (the lowest or highest of several rates), rates (how many), seeds,
        diverged_share (of lanes); validation, validation_low, validation_high and n over seeds at the tuned rate,
        likewise test, test_low, test_high and test_n. Rows are in order of trial.
    """
    metric, lanes = results.metric, results.lanes
    rates = tuned_rates(lanes, metric, examples_of(results, "validation"))
    columns = ["trial", "optimizer", "width", "depth", "batch_size", "regime", "outcome"]
    columns += ["updates", "examples", "epochs", "train_seconds"]
    rows = []
    lanes_of = dict(iter(lanes.groupby("trial")))
    for trial in results.trials["trial"]:
        own = lanes_of.get(trial, lanes.head(0))
        rate = float(rates.get(trial, math.nan))
        tuned = own[own["learning_rate"] == rate]
        validation = metric_interval(tuned[f"validation_{metric}"], metric, examples_of(results, "validation"))
        test = metric_interval(tuned[f"test_{metric}"], metric, examples_of(results, "test"))
        grid_of = own["learning_rate"]
        rows.append(
            {
                "learning_rate": rate,
                "on_edge": grid_of.nunique() > 1 and rate in (grid_of.min(), grid_of.max()),
                "rates": grid_of.nunique(),
                "seeds": own["seed"].nunique(),
                "diverged_share": (own["outcome"] == "diverged").mean() if len(own) else math.nan,
                "validation": validation.estimate,
                "validation_low": validation.low,
                "validation_high": validation.high,
                "n": validation.n,
                "test": test.estimate,
                "test_low": test.low,
                "test_high": test.high,
                "test_n": test.n,
            }
        )
    measured = ["learning_rate", "on_edge", "rates", "seeds", "diverged_share", "validation", "validation_low"]
    measured += ["validation_high", "n", "test", "test_low", "test_high", "test_n"]
    table = pd.DataFrame(rows, columns=measured).astype({"on_edge": bool})
    return pd.concat([results.trials[columns].reset_index(drop=True), table], axis=1)


def rank(table: pd.DataFrame, maximize: bool) -> pd.DataFrame:
    """The rows of `cells` that have a tuned rate, best validation metric first, ties by trial."""
    tuned = table[table["validation"].notna()]
    return tuned.sort_values(["validation", "trial"], ascending=[not maximize, True], ignore_index=True)


def optimizer_order(names: Iterable[str]) -> list[str]:
    """Distinct optimizers in the order of `OPTIMIZERS`, others behind by name."""
    return sorted(set(names), key=lambda name: (OPTIMIZERS.index(name) if name in OPTIMIZERS else 99, name))


def tuned_lanes(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The lanes of some rows of `cells` that ran at their trial's tuned rate."""
    return results.lanes.merge(rows[["trial", "learning_rate"]], on=["trial", "learning_rate"])


@dataclass(frozen=True)
class Comparison:
    """The best cell against the best cell of the next-best optimizer, over the seeds that they share.

    Attributes:
        best: row of `cells`.
        rival: row of `cells`.
        split: `test` where both have it, else `validation`; either way the cells were chosen on validation.
        effect: of a loss the ratio best / rival (geometric mean), of an accuracy the difference best - rival; paired.
        wins: pairs in which the best cell is better.
        p: `sign_flip_p` of the pairs.
    """

    best: pd.Series[Any]
    rival: pd.Series[Any]
    split: str
    effect: Interval
    wins: int
    p: float

    @property
    def differs(self) -> bool:
        """Whether the interval excludes no difference."""
        same = 0.0 if self.effect.low < 0 else 1.0
        return not self.effect.low <= same <= self.effect.high
