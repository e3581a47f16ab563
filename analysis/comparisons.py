"""The best cell against the best cell of each other optimizer, and against its own score on fresh seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import LEAST, examples_of, fresh_lanes, rank, tuned_lanes
from analysis.results import Results, records
from analysis.schema import CELL
from analysis.statistics import Interval, curse_interval, holm, metric_interval, sign_flip_p, superiority, t_interval


@dataclass(frozen=True)
class Comparison:
    """The best cell against the best cell of another optimizer, over the seeds that they share.

    Both were chosen on validation over the search's seeds; the test split and fresh seeds are used if both have them.

    Attributes:
        best: row of `cells`.
        rival: row of `cells`.
        split: `test` where both have it, otherwise `validation`.
        fresh: whether the seeds are those of the confirmation, which the search never saw.
        effect: of a loss the ratio best / rival (geometric mean), of an accuracy the difference best - rival; paired.
        scores: the best cell's and the rival's own metric on the split, over the same seeds.
        wins: pairs in which the best cell is better.
        superiority: share of the untied pairs in which it is better, with its exact interval.
        p: `sign_flip_p` of the pairs.
        holm: p adjusted for all comparisons that `comparisons` made.
        neutral: the effect that means no difference: ratio 1, or difference 0.
    """

    best: pd.Series[Any]
    rival: pd.Series[Any]
    split: str
    fresh: bool
    effect: Interval
    scores: tuple[Interval, Interval]
    wins: int
    superiority: Interval
    p: float
    holm: float
    neutral: float

    @property
    def differs(self) -> bool:
        """Whether the interval excludes equality."""
        return self.effect.low > self.neutral or self.effect.high < self.neutral

    def favours_rival(self, metric: str) -> bool:
        """Whether the rival is better on the compared split, although the best cell won on validation."""
        sign = 1 if metric == "accuracy" else -1
        return sign * (self.effect.estimate - self.neutral) < 0


def comparisons(results: Results, table: pd.DataFrame) -> list[Comparison]:
    """The best cell against the best cell of every other optimizer, paired by seed, with Holm's adjustment.

    Returns:
        One comparison per rival, the best rival first; `effect.n` is 0 where the two share no seed.
    """
    best_of_each = rank(table, results.maximize).drop_duplicates("optimizer")
    pairs = [_compare(results, best_of_each.iloc[[0, place]]) for place in range(1, len(best_of_each))]
    adjusted = holm([comparison.p for comparison in pairs])
    return [replace(comparison, holm=float(p)) for comparison, p in zip(pairs, adjusted, strict=True)]


def _compare(results: Results, rows: pd.DataFrame) -> Comparison:
    """Compare two rows of `cells`, the better one first."""
    best, rival = rows.iloc[0], rows.iloc[1]
    lanes = fresh_lanes(results, rows)
    # The survivors alone would flatter a cell that diverged on a fresh seed.
    fresh = lanes["cell"].nunique() == 2 and bool((lanes["outcome"] == "completed").all())
    lanes = lanes if fresh else tuned_lanes(results, rows)
    tested = lanes.groupby("cell")[f"test_{results.metric}"].count().min() > 0
    split = "test" if tested else "validation"
    by_seed = lanes.pivot_table(index="seed", columns="cell", values=f"{split}_{results.metric}")
    pairs = by_seed.reindex(columns=[best["trial"], rival["trial"]]).dropna()
    first, second = pairs.to_numpy(dtype=np.float64).T
    if results.maximize:
        gains = first - second
        # The t interval of few differences can exceed the largest possible difference of two accuracies.
        effect, neutral = t_interval(gains).map(lambda values: np.clip(values, -1.0, 1.0)), 0.0
    else:
        # A loss of zero counts as the smallest number: the ratio is then unbounded, but the pair counts.
        gains = np.log(np.maximum(second, LEAST)) - np.log(np.maximum(first, LEAST))
        with np.errstate(over="ignore"):
            effect, neutral = t_interval(-gains).map(np.exp), 1.0
    wins = int((first > second if results.maximize else first < second).sum())
    examples = examples_of(results, split)
    scores = metric_interval(first, results.metric, examples), metric_interval(second, results.metric, examples)
    p = sign_flip_p(gains)
    return Comparison(best, rival, split, fresh, effect, scores, wins, superiority(gains), p, p, neutral)


def winners_curse(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The confirmed cells with their scores in the search and on the confirmation's fresh seeds.

    The curse is of a loss the ratio confirmed / search (geometric means), of an accuracy the difference search -
    confirmed (as a share): above 1, or positive, means worse than in the search. Its interval is Welch's, of log losses
    or of accuracies, since the two sets of seeds are independent.

    Returns:
        Columns trial, those of `CELL`, regime, learning_rate; rank_search (in the leaderboard), rank_confirmed (among
        the confirmed); outcome, seeds and diverged of the fresh lanes; search, confirmed and test (both over fresh
        seeds), each with _low, _high and _n; curse, curse_low, curse_high. Best in the search first. Where a fresh seed
        did not complete, confirmed, test and curse are NaN. Empty without a confirmation.
    """
    metric, ranked = results.metric, rank(table, results.maximize)
    search, fresh = tuned_lanes(results, ranked), fresh_lanes(results, ranked)
    rows: list[dict[str, Any]] = []
    confirmed = ranked.assign(rank_search=range(1, len(ranked) + 1))[ranked["trial"].isin(fresh["cell"])]
    for cell in records(confirmed):
        own = fresh[fresh["cell"] == cell["trial"]]
        diverged = int((own["outcome"] == "diverged").sum())
        endings = own.loc[own["outcome"] != "completed", "outcome"].to_list()
        row = cell | {"seeds": len(own), "diverged": diverged}
        row["outcome"] = "diverged" if diverged else [*endings, "completed"][0]
        row |= {f"search{end}": cell[f"validation{end}"] for end in ("", "_low", "_high")} | {"search_n": cell["n"]}
        values = own.head(0) if endings else own  # the survivors alone would flatter the cell
        before = search.loc[search["cell"] == cell["trial"], f"validation_{metric}"]
        after = values[f"validation_{metric}"]
        row |= metric_interval(after, metric, examples_of(results, "validation")).named("confirmed")
        row |= metric_interval(values[f"test_{metric}"], metric, examples_of(results, "test")).named("test")
        row |= curse_interval(before.to_numpy()[:, None], after.to_numpy()[:, None], metric).named("curse")
        rows.append(row)
    limits = [f"{name}{end}" for name in ("search", "confirmed", "test") for end in ("", "_low", "_high", "_n")]
    columns = ["trial", *CELL, "regime", "learning_rate", "rank_search", "rank_confirmed", "outcome", "seeds"]
    columns += ["diverged", *limits, "curse", "curse_low", "curse_high"]
    kinds = {"trial": "int64", "learning_rate": "float64", "confirmed": "float64"}
    frame = pd.DataFrame(rows, columns=columns).astype(kinds)
    return frame.assign(rank_confirmed=frame["confirmed"].rank(method="min", ascending=not results.maximize))


def average_curse(results: Results, curse: pd.DataFrame) -> Interval:
    """The curse averaged over the confirmed cells, from `winners_curse`: geometric mean of ratios, or mean difference.

    Cells share their seeds, so each seed's average over the cells is one value of Welch's two samples. Seeds that not
    every cell ran, and cells without a confirmed score, are left out.
    """
    confirmed = curse[curse["confirmed"].notna()]
    search, fresh = (
        lanes.pivot_table(index="seed", columns="cell", values=f"validation_{results.metric}")
        .dropna()
        .to_numpy(dtype=float)
        for lanes in (tuned_lanes(results, confirmed), fresh_lanes(results, confirmed))
    )
    return curse_interval(search, fresh, results.metric)
