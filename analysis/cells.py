"""Tables of cells, lanes and times to target, computed from results.

Trials of one cell are pooled (`analysis.results.pool`): a cell's seeds are those of all its replicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.rates import rate_table
from analysis.results import Results, pool, records, table_of
from analysis.schema import AXES, CELL, Regime
from analysis.statistics import (
    LEAST,
    UNKNOWN_EXAMPLES,
    censored_median,
    edge_of,
    log_rank_p,
    metric_interval,
)

OPTIMIZERS = (
    *("gradient-descent", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta"),
    *("adam", "adamw", "amsgrad", "adamax", "nadam", "radam"),
    *("sgdw", "lion", "adan", "lamb", "adafactor", "muon", "prodigy", "schedule-free-sgd", "schedule-free-adamw"),
)
"""The order in which optimizers are listed; others follow by name."""


def examples_of(results: Results, split: str) -> int:
    """Examples in a split according to provenance, or `UNKNOWN_EXAMPLES`."""
    count = table_of(results.provenance, "data").get(split)
    return count if isinstance(count, int) and count > 0 else UNKNOWN_EXAMPLES


def floor_of(results: Results) -> float:
    """The smallest loss that the trials' precision resolves, as they recorded it; otherwise `LEAST`."""
    known = results.trials["loss_floor"].dropna()
    return float(known.max()) if len(known) else LEAST


def cells(results: Results) -> pd.DataFrame:
    """One row per cell: its tuned rate and its scores at that rate.

    Returns:
        Columns trial (the lowest of those pooled), trials (their number), those of `CELL`, regime, outcome, parameters,
        updates, examples, epochs (of the first trial), train_seconds (mean over trials), extensions (of the grid, the
        largest number of any trial); learning_rate (tuned, NaN if none), recipe (tuned, empty text if only the rate
        is), on_edge (whether the rate is the lowest or highest of several), rates (their number), both of the rates at
        which every seed ran with that recipe; shortfall (as in `rate_table`); seeds, diverged_share (of lanes);
        validation, validation_low, validation_high, validation_loss (the geometric mean; NaN if unknown) and n over
        seeds at the tuned setting; test, test_low, test_high and test_n over the same. Rows are in order of trial.
    """
    metric, lanes, floor = results.metric, results.pooled.lanes, floor_of(results)
    trials = results.pooled.trials.groupby("cell")
    table = trials.first().rename_axis("cell")
    table["trials"] = trials.size()
    table["train_seconds"] = trials["train_seconds"].mean()
    table["extensions"] = trials["extensions"].max().fillna(0).astype("int64")
    table["parameters"] = table["parameters"].astype(float)
    rates = rate_table(lanes, metric, examples_of(results, "validation"), floor)
    tuned = rates[rates["tuned"]].set_index("cell").reindex(table.index)
    shared = rates[rates["shared"]].groupby("cell")["learning_rate"].agg(["min", "max", "nunique"]).reindex(table.index)
    edge = (tuned["learning_rate"] == shared["min"]) | (tuned["learning_rate"] == shared["max"])
    table["learning_rate"] = tuned["learning_rate"]
    recipes = rates.drop_duplicates("cell").set_index("cell")["recipe"].astype(object)  # also without rows
    table["recipe"] = recipes.reindex(table.index, fill_value="")
    table["on_edge"] = edge & (shared["nunique"] > 1)
    table["rates"] = shared["nunique"].fillna(0).astype("int64")
    table["shortfall"] = tuned["shortfall"]
    by_cell = lanes.groupby("cell")
    table["seeds"] = by_cell["seed"].nunique().reindex(table.index, fill_value=0)
    table["diverged_share"] = (lanes["outcome"] == "diverged").groupby(lanes["cell"]).mean()
    # The same accuracies in another order of the seeds have means that differ by rounding.
    scores = tuned[["estimate", "low", "high"]]
    table[["validation", "validation_low", "validation_high"]] = scores.round(12) if results.maximize else scores
    table["validation_loss"] = tuned["loss"]
    table["n"] = tuned["n"].fillna(0).astype("int64")
    at_tuned = lanes[lanes["recipe"] == lanes["cell"].map(table["recipe"])]
    at_tuned = at_tuned[at_tuned["learning_rate"] == at_tuned["cell"].map(table["learning_rate"])]
    tests = {
        cell: metric_interval(values, metric, examples_of(results, "test"), floor=floor).named("test")
        for cell, values in at_tuned.groupby("cell")[f"test_{metric}"]
    }
    names = ["test", "test_low", "test_high", "test_n"]
    table[names] = pd.DataFrame.from_dict(tests, orient="index", columns=names).astype(float).reindex(table.index)
    table["test_n"] = table["test_n"].fillna(0).astype("int64")
    columns = ["trial", "trials", *CELL, "regime", "outcome", "parameters", "updates", "examples", "epochs"]
    columns += ["train_seconds", "extensions", "learning_rate", "recipe", "on_edge", "rates", "shortfall", "seeds"]
    columns += ["diverged_share", "validation", "validation_low", "validation_high", "validation_loss", "n", *names]
    return table.reset_index(drop=True)[columns]


def rank(table: pd.DataFrame, maximize: bool) -> pd.DataFrame:
    """The rows of `cells` that can be compared, best validation metric first, then by lower loss, then by trial.

    They have a tuned rate and used the whole budget; trials that the scheduler stopped used less. While no trial has
    completed, all with a tuned rate are ranked.
    """
    tuned = table[table["validation"].notna()]
    whole = tuned[tuned["outcome"] == "completed"]
    ordered = whole if len(whole) else tuned
    by = ["validation", "validation_loss", "trial"]
    return ordered.sort_values(by, ascending=[not maximize, True, True], ignore_index=True)


def edges(results: Results, ranked: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The edges of the search space at which the best cells lie, so that better ones may lie beyond.

    The best cell, or half of the best tenth, lies within 5% of such a bound (`edge_of`). Bounds beyond which nothing is
    possible are left out: one example, unit or layer, and the whole training split.

    Args:
        results: the study.
        ranked: its ranked `cells`.

    Returns:
        (width, depth or batch_size; low or high; the bound) for each.
    """
    at_edge = []
    top = ranked.head(max(1, len(ranked) // 10))
    for name in ("width", "depth", "batch_size"):
        space = table_of(results.spec, "search").get(name)
        if isinstance(space, dict):
            low, high, log = float(space["low"]), float(space["high"]), bool(space.get("log", False))
        else:
            sizes = [value for value in (space if isinstance(space, list) else []) if isinstance(value, int)]
            if len(sizes) < 3:
                continue
            low, high, log = float(min(sizes)), float(max(sizes)), min(sizes) > 0
        values = top.loc[top["regime"] != "batch", name] if name == "batch_size" else top[name]
        sides = pd.Series([edge_of(float(value), low, high, log) for value in values], index=values.index, dtype=str)
        whole_split = name == "batch_size" and isinstance(space, list) and "full" in space
        for side, bound, is_limit in (("low", low, low <= 1), ("high", high, whole_split)):
            if len(sides) and not is_limit and (sides.iloc[0] == side or (sides == side).mean() >= 0.5):
                at_edge.append((name, side, f"{bound:g}"))
    return at_edge


def optimizer_order(names: Iterable[str]) -> list[str]:
    """Distinct optimizers in the order of `OPTIMIZERS`, then others by name."""
    return sorted(set(names), key=lambda name: (OPTIMIZERS.index(name) if name in OPTIMIZERS else 99, name))


def tuned_lanes(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The lanes of some rows of `cells` that ran at their cell's tuned setting; the column cell is the rows' trial."""
    keys = rows[["trial", "recipe", "learning_rate"]].rename(columns={"trial": "cell"})
    return results.pooled.lanes.merge(keys, on=["cell", "recipe", "learning_rate"])


def fresh_lanes(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The confirmation's lanes of some rows of `cells`; the column cell is the rows' trial, as in `tuned_lanes`.

    A cell that was confirmed at another setting than its tuned one has none: the search has chosen again since.
    """
    again = results.confirmation
    if again is None:
        return tuned_lanes(results, rows).head(0)
    keys = rows[[*CELL, "trial", "recipe", "learning_rate"]].rename(columns={"trial": "cell", "learning_rate": "tuned"})
    of_trial = again.trials[["trial", *CELL]].fillna({"settings": ""}).merge(keys, on=CELL)
    lanes = again.lanes.merge(of_trial[["trial", "recipe", "cell", "tuned"]], on=["trial", "recipe"])
    lanes = lanes[np.isclose(lanes["learning_rate"], lanes["tuned"].astype(float), rtol=1e-9, atol=0)]
    # Pooled after that choice: trials that completed at an earlier rate must not hide those that diverged at this one.
    kept = pool(again.trials[again.trials["trial"].isin(lanes["trial"])], again.lanes).trials["trial"]
    return lanes[lanes["trial"].isin(kept)].drop(columns="tuned")


def time_to_target(curves: pd.DataFrame, target: float, maximize: bool, between: bool = False) -> pd.DataFrame:
    """When each lane first reaches the target on the validation split.

    Args:
        curves: rows of `analysis.schema.CURVES`; accuracy is used if `maximize`, otherwise loss.
        target: the value that counts as solved; reaching it exactly counts.
        maximize: whether larger is better.
        between: whether to interpolate between the two evaluations around it, linearly in an accuracy or in the
            logarithm of a loss; otherwise the later one is taken.

    Returns:
        One row per lane of the curves: trial, lane, reached, and update, examples, epoch, train_seconds at the first
        evaluation that reached the target. A lane that never did is censored: reached is False and these are NaN.
    """
    metric = "accuracy" if maximize else "loss"
    points = curves[(curves["split"] == "validation") & (curves["metric"] == metric)]
    hit = points["value"] >= target if maximize else points["value"] <= target
    points = points.sort_values(["trial", "lane", "update"])
    first = points[hit.reindex(points.index)].drop_duplicates(["trial", "lane"])
    if between:
        before = points.groupby(["trial", "lane"])[["value", *AXES]].shift().loc[first.index]
        values = np.array([before["value"], np.full(len(first), target), first["value"]], dtype=np.float64)
        start, goal, end = values if maximize else np.log(np.maximum(values, LEAST))
        share = (start - goal) / (start - end)
        for axis in AXES:
            first[axis] = (before[axis] + share * (first[axis] - before[axis])).fillna(first[axis])
    lanes = points[["trial", "lane"]].drop_duplicates().sort_values(["trial", "lane"])
    table = lanes.merge(first[["trial", "lane", *AXES]], on=["trial", "lane"], how="left")
    return table.astype(dict.fromkeys(AXES, float)).assign(reached=table["update"].notna())


def target_times(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """Time to target of the best cell of each regime and optimizer, at its tuned rate.

    Returns:
        Columns regime, optimizer, settings, trial, batch_size, learning_rate, recipe, reached (seeds), seeds, the
        medians over seeds of update, examples, epoch, train_seconds (infinite where half of the seeds never reach the
        target), and p of the log-rank test of the examples against the fastest of the regime (NaN for the fastest, and
        where the test is undefined). Fastest in examples first within a regime. Empty if the workload has no target.
    """
    names = ["regime", "optimizer", "settings", "trial", "batch_size", "learning_rate", "recipe"]
    columns = [*names, "reached", "seeds", *AXES, "p"]
    rows: list[dict[str, Any]] = []
    times: dict[int, tuple[ArrayLike, ArrayLike]] = {}
    if results.target is not None:
        best = rank(table, results.maximize).drop_duplicates(["regime", "optimizer"])
        curves = curves_of(results, best)
        for cell in records(best):
            of_cell = curves[curves["cell"] == cell["trial"]]
            own = time_to_target(of_cell, results.target, results.maximize)
            times[cell["trial"]] = own["examples"], of_cell.groupby(["trial", "lane"])["examples"].max().to_numpy()
            medians = {axis: censored_median(own[axis]) for axis in AXES}
            rows.append({**cell, "reached": int(own["reached"].sum()), "seeds": len(own), **medians})
    order = {name: place for place, name in enumerate(Regime)}
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(order=frame["regime"].map(order)).sort_values(["order", "examples", "trial"])
    frame = frame[columns].reset_index(drop=True)
    fastest = frame.groupby("regime")["trial"].transform("first")
    frame["p"] = [
        math.nan if own == first else log_rank_p(times[first][0], times[own][0], times[first][1], times[own][1])
        for own, first in zip(frame["trial"], fastest, strict=True)
    ]
    return frame


def curves_of(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The curves of the lanes of some rows of `cells` at their tuned rate; cell and seed are added."""
    lanes = tuned_lanes(results, rows)[["trial", "lane", "cell", "seed"]]
    return results.curves[results.curves["trial"].isin(lanes["trial"])].merge(lanes, on=["trial", "lane"])


def best_of_regimes(results: Results, table: pd.DataFrame) -> Iterator[tuple[pd.Series[Any], pd.DataFrame]]:
    """The best row of `cells` of each regime, in order, with its `curves_of`.

    All are of one optimizer, so that regimes differ in less: the best one that has a tuned rate in every regime. Only
    if there is none they may differ.
    """
    ranked = rank(table, results.maximize)
    whole = ranked.groupby("optimizer")["regime"].transform("nunique") == ranked["regime"].nunique()
    if whole.any():
        ranked = ranked[ranked["optimizer"] == ranked.loc[whole, "optimizer"].iloc[0]]
    best = ranked.drop_duplicates("regime")
    for name in Regime:
        if len(own := best[best["regime"] == name]):
            yield own.iloc[0], curves_of(results, own)
