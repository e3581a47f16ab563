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

OPTIMIZERS = (
    *("gradient-descent", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta"),
    *("adam", "adamw", "amsgrad", "adamax", "nadam", "radam"),
)
"""The order in which optimizers are listed; others follow by name."""

UNKNOWN_EXAMPLES = 1000
"""Validation examples assumed where provenance names none; it only sets how far a perfect accuracy is from infinity."""

CELL = ["optimizer", "width", "depth", "batch_size"]
"""What makes a cell."""

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
        every seed of the trial ran at this rate and survived, and halving did not give it up.
    """
    rows = []
    survived = lanes["outcome"].isin(_SURVIVED)
    for (trial, rate), group in lanes.groupby(["trial", "learning_rate"], sort=True):
        values = group.sort_values("seed")[f"validation_{metric}"].where(survived)
        # Rates given up early, by halving, are shown for what they reached but cannot be the tuned one.
        whole = bool(group["stopped_update"].isna().all())
        diverged = int((group["outcome"] == "diverged").sum())
        interval = metric_interval(values, metric, examples)
        rows.append(
            {"trial": trial, "learning_rate": rate, "lanes": len(group), "diverged": diverged}
            | asdict(interval)
            | {"eligible": whole}
        )
    table = pd.DataFrame(rows, columns=["trial", "learning_rate", "lanes", "diverged", *_LIMITS, "eligible"])
    table["eligible"] &= table["n"] == table["trial"].map(lanes.groupby("trial")["seed"].nunique())
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
    sign = -1 if metric == "accuracy" else 1
    score = [sign * float(f"{value:.12g}") for value in table["estimate"].to_numpy(dtype=np.float64)]
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
    kinds = dict.fromkeys(measured, "float64") | dict.fromkeys(["rates", "seeds", "n", "test_n"], "int64")
    table = pd.DataFrame(rows, columns=measured).astype(kinds | {"on_edge": "bool"})
    return pd.concat([results.trials[columns].reset_index(drop=True), table], axis=1)


def rank(table: pd.DataFrame, maximize: bool) -> pd.DataFrame:
    """The rows of `cells` that can be compared, best validation metric first, ties by trial.

    They have a tuned rate and saw the whole budget: what the scheduler stopped had less. While no trial has completed,
    those that have not are ranked among themselves. A cell that was tried again counts once.
    """
    tuned = table[table["validation"].notna()]
    whole = tuned[tuned["outcome"] == "completed"]
    ordered = (whole if len(whole) else tuned).sort_values(["validation", "trial"], ascending=[not maximize, True])
    return ordered.drop_duplicates(CELL, ignore_index=True)


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
        neutral: the effect that means no difference: ratio 1, or difference 0.
    """

    best: pd.Series[Any]
    rival: pd.Series[Any]
    split: str
    effect: Interval
    wins: int
    p: float
    neutral: float

    @property
    def differs(self) -> bool:
        """Whether the interval excludes that there is no difference."""
        return self.effect.low > self.neutral or self.effect.high < self.neutral

    def favours_rival(self, metric: str) -> bool:
        """Whether the rival is the better one on the compared split, against the choice made on validation."""
        sign = 1 if metric == "accuracy" else -1
        return sign * (self.effect.estimate - self.neutral) < 0


def compare_best(results: Results, table: pd.DataFrame) -> Comparison | None:
    """The best cell beside the best cell of the next-best optimizer, paired by seed.

    Args:
        results: the study.
        table: its `cells`.

    Returns:
        The comparison; None unless two optimizers have a tuned cell. `effect.n` is 0 if they share no seed.
    """
    best_of_each = rank(table, results.maximize).drop_duplicates("optimizer")
    if len(best_of_each) < 2:
        return None
    best, rival = best_of_each.iloc[0], best_of_each.iloc[1]
    split = "test" if min(best["test_n"], rival["test_n"]) > 0 else "validation"
    column = f"{split}_{results.metric}"
    lanes = tuned_lanes(results, best_of_each.head(2)).pivot_table(index="seed", columns="trial", values=column)
    pairs = lanes.reindex(columns=[best["trial"], rival["trial"]]).dropna()
    first, second = pairs.to_numpy(dtype=np.float64).T
    if results.maximize:
        differences = first - second
        # The t interval of few differences can pass what two accuracies can differ by.
        effect = t_interval(differences).map(lambda values: np.clip(values, -1.0, 1.0))
        return Comparison(best, rival, split, effect, int((first > second).sum()), sign_flip_p(differences), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a loss of zero has no ratio; t_interval drops the pair
        differences = np.log(first) - np.log(second)
    with np.errstate(over="ignore"):
        ratio = t_interval(differences).map(np.exp)
    return Comparison(best, rival, split, ratio, int((first < second).sum()), sign_flip_p(differences), 1.0)


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


def progress(table: pd.DataFrame, maximize: bool) -> pd.DataFrame:
    """The search trial by trial: columns trial, optimizer, value (NaN if none), best (so far), from rows of `cells`."""
    ordered = table.sort_values("trial", ignore_index=True)
    frame = ordered[["trial", "optimizer"]].assign(value=ordered["validation"])
    return frame.assign(best=best_so_far(frame["value"], maximize))


def time_to_target(curves: pd.DataFrame, target: float, maximize: bool) -> pd.DataFrame:
    """When each lane first reaches the target on the validation split.

    Args:
        curves: rows of `analysis.results.CURVES`; accuracy counts if `maximize`, else loss.
        target: the value that counts as solved; reaching it exactly counts.
        maximize: whether larger is better.

    Returns:
        One row per lane of the curves: trial, lane, reached, and update, examples, epoch, train_seconds at the first
        evaluation that reached the target. A lane that never did is censored: reached is False and these are NaN.
    """
    metric = "accuracy" if maximize else "loss"
    points = curves[(curves["split"] == "validation") & (curves["metric"] == metric)]
    hit = points["value"] >= target if maximize else points["value"] <= target
    first = points[hit].sort_values(["trial", "lane", "update"]).drop_duplicates(["trial", "lane"])
    lanes = points[["trial", "lane"]].drop_duplicates().sort_values(["trial", "lane"])
    table = lanes.merge(first[["trial", "lane", *AXES]], on=["trial", "lane"], how="left")
    return table.astype(dict.fromkeys(AXES, float)).assign(reached=table["update"].notna())


def censored_median(values: ArrayLike) -> float:
    """The median of times, shape (n,), of which NaN ones were not reached and count as infinite; NaN for none."""
    times = np.asarray(values, dtype=np.float64)
    return float(np.median(np.where(np.isnan(times), np.inf, times))) if times.size else math.nan


def target_times(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """Time to target of the best cell of each regime and optimizer, at its tuned rate.

    Returns:
        Columns regime, optimizer, trial, batch_size, learning_rate, reached (seeds), seeds, and the medians over seeds
        of update, examples, epoch, train_seconds, infinite where half of the seeds never reach the target. Fastest
        in examples first within a regime. Empty if the workload has no target.
    """
    columns = ["regime", "optimizer", "trial", "batch_size", "learning_rate", "reached", "seeds", *AXES]
    rows: list[dict[str, Any]] = []
    if results.target is not None:
        best = rank(table, results.maximize).drop_duplicates(["regime", "optimizer"])
        curves = curves_of(results, best)
        times = time_to_target(curves, results.target, results.maximize)
        for cell in best.to_dict("records"):
            own = times[times["trial"] == cell["trial"]]
            medians = {axis: censored_median(own[axis]) for axis in AXES}
            shown = {name: cell[name] for name in columns[:5]}
            rows.append(shown | {"reached": int(own["reached"].sum()), "seeds": len(own)} | medians)
    frame = pd.DataFrame(rows, columns=columns)
    order = frame["regime"].map({name: place for place, name in enumerate(REGIMES)})
    return frame.assign(order=order).sort_values(["order", "examples", "trial"], ignore_index=True)[columns]


def curves_of(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The curves of the lanes of some rows of `cells` at their tuned rate; seed is added to the columns."""
    lanes = tuned_lanes(results, rows)[["trial", "lane", "seed"]]
    return results.curves[results.curves["trial"].isin(lanes["trial"])].merge(lanes, on=["trial", "lane"])


def band(curves: pd.DataFrame, metric: str, examples: int = UNKNOWN_EXAMPLES) -> pd.DataFrame:
    """The validation metric along training: mean and interval over the given lanes, point by point.

    Args:
        curves: rows of `analysis.results.CURVES` of the lanes of one trial, whose points share their update numbers.
        metric: `loss` or `accuracy`.
        examples: validation examples.

    Returns:
        One row per point: update, examples, epoch, train_seconds (mean over lanes), estimate, low, high, n.
    """
    points = curves[(curves["split"] == "validation") & (curves["metric"] == metric)]
    rows = [
        {axis: group[axis].mean() for axis in AXES} | asdict(metric_interval(group["value"], metric, examples))
        for _, group in points.groupby("update", sort=True)
    ]
    return pd.DataFrame(rows, columns=[*AXES, *_LIMITS]).astype(dict.fromkeys(AXES, float))


def regime_curves(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The learning curve of the best cell of each regime, at its tuned rate.

    Args:
        results: the study.
        table: its `cells`.

    Returns:
        The columns of `band`, behind regime, trial, optimizer, batch_size, learning_rate; and batch_loss, the mean
        loss over the batches since the last point, of the first seed alone (NaN where it was not recorded).
    """
    names = ["regime", "trial", "optimizer", "batch_size", "learning_rate"]
    best = rank(table, results.maximize).drop_duplicates("regime").set_index("regime")
    pieces = []
    for regime in (name for name in REGIMES if name in best.index):
        curves = curves_of(results, best.loc[[regime]])
        frame = band(curves, results.metric, examples_of(results, "validation"))
        batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
        trace = batch[batch["seed"] == batch["seed"].min()].set_index("update")["value"]
        frame["batch_loss"] = frame["update"].map(trace).astype(float)
        cell = best.loc[regime]
        pieces.append(frame.assign(regime=regime, **{name: cell[name] for name in names[1:]}))
    columns = [*names, *AXES, *_LIMITS, "batch_loss"]
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def rate_sensitivity(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The validation metric against the learning rate, for the best cell of each optimizer.

    Returns:
        The columns of `rate_table`, and optimizer and tuned (whether this rate was chosen).
    """
    best = rank(table, results.maximize).drop_duplicates("optimizer").set_index("trial")
    lanes = results.lanes[results.lanes["trial"].isin(best.index)]
    frame = rate_table(lanes, results.metric, examples_of(results, "validation"))
    tuned = frame["trial"].map(best["learning_rate"]) == frame["learning_rate"]
    return frame.assign(optimizer=frame["trial"].map(best["optimizer"]), tuned=tuned)


def binned(values: pd.Series[int], limit: int = 8) -> pd.Series[str]:
    """Labels of whole numbers: themselves, or powers of two where more than `limit` would have to be told apart."""
    if values.nunique() <= limit:
        return values.astype(str)
    powers = np.floor(np.log2(values.clip(lower=1))).astype(int)
    labels = [f"{2**power}-{2 ** (power + 1) - 1}" if power else "0-1" for power in powers.tolist()]
    return pd.Series(labels, index=values.index)


def grid(table: pd.DataFrame, rows: str, columns: str, maximize: bool) -> pd.DataFrame:
    """The best cell of each pair of values of two columns of `cells`, chosen over all the others.

    Args:
        table: `cells` of a study.
        rows: column whose values make the rows, such as `optimizer`.
        columns: column whose values make the columns, such as `batch_size`.
        maximize: whether larger is better.

    Returns:
        Columns row, column (labels, in order of appearance), trial, estimate, low, high, n, and why: empty where there
        is an estimate, else `not run`, or how the trials there ended. Every pair of labels has its row.
    """
    labels = {name: table[name] if name == "optimizer" else binned(table[name]) for name in (rows, columns)}
    order = {
        name: optimizer_order(label) if name == "optimizer" else list(label[table[name].sort_values().index].unique())
        for name, label in labels.items()
    }
    named = table.assign(row=labels[rows], column=labels[columns])
    if "batch_size" in (rows, columns):
        place, name = ("row", rows) if rows == "batch_size" else ("column", columns)
        whole_split = (table["regime"] == "batch").groupby(named[place]).all()
        full = set(whole_split[whole_split].index)
        titles = {label: f"full ({label})" if label in full else label for label in order[name]}
        named[place], order[name] = named[place].map(titles), list(titles.values())
    best = rank(named, maximize).drop_duplicates(["row", "column"])
    endings = named.groupby(["row", "column"])["outcome"].agg(lambda outcomes: " or ".join(sorted(set(outcomes))))
    whole = pd.MultiIndex.from_product([order[rows], order[columns]], names=["row", "column"])
    found = best.rename(columns={"validation": "estimate", "validation_low": "low", "validation_high": "high"})
    result = found.set_index(["row", "column"])[["trial", *_LIMITS]].reindex(whole)
    why = endings.reindex(whole).replace("completed", "no rate survived").fillna("not run")
    result["why"] = why.where(result["estimate"].isna(), "")
    return result.astype({"n": float}).fillna({"n": 0}).astype({"n": int}).reset_index()
