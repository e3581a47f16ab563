"""Tables of learning rates: the metric at each rate of a cell, and which rate is its tuned one."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd

from analysis.schema import Outcome
from analysis.statistics import (
    EQUAL,
    LEAST,
    LIMITS,
    RESOLVED,
    UNKNOWN_EXAMPLES,
    best_by_parabola,
    metric_interval,
    scores_of,
)

_SURVIVED = (Outcome.COMPLETED, Outcome.STOPPED)


def rate_table(
    lanes: pd.DataFrame, metric: str, examples: int = UNKNOWN_EXAMPLES, floor: float = LEAST
) -> pd.DataFrame:
    """One row per cell and learning rate, at the cell's tuned recipe: the metric over the seeds that survived.

    The tuned recipe is that of the best mean of any recipe and rate, of equals the first one.

    Args:
        lanes: rows of `Results.pooled.lanes`.
        metric: `loss` or `accuracy`, on the validation split.
        examples: validation examples.
        floor: losses below it count as it.

    Returns:
        Columns cell, recipe, learning_rate, lanes, diverged (number of diverged lanes), loss (the geometric mean, which
        decides between equal accuracies; NaN if unknown), estimate, low, high, n; shared: whether every seed of the
        cell ran at this rate; eligible: whether all seeds survived, and halving did not stop it; best: whether it is
        the best one of the means and the rule of ties, of all recipes and rates; tuned: whether it is the cell's tuned
        rate (`tuned_rates`); shortfall: of the tuned one from the best possible rate, as
        `best_by_parabola` expects it, in logarithms of a loss or log-odds; NaN of the others.
    """
    places = lanes.sort_values(["cell", "lane"])[["cell", "recipe"]].drop_duplicates()
    places = places.assign(place=range(len(places)))  # of a recipe in a cell, in the order in which the trial ran them
    lanes = lanes.merge(places, on=["cell", "recipe"])
    table, values = _by_rate(lanes, metric, examples, floor)
    table = places.merge(table, on="place")  # in order of place
    equal = _equal(table, metric, examples)
    tied = _lowest(equal)
    first = places.groupby("cell")["place"].min()
    chosen = tied.groupby("cell")["place"].min().reindex(first.index).fillna(first)
    best = _middle(tied[tied["place"].isin(chosen)])
    ties = equal[equal["place"].isin(chosen)]["cell"].value_counts() > 1
    steps = _grid_steps(lanes[lanes["place"].isin(chosen)])
    shortfall: dict[int, float] = {}
    for cell, own in table[table["eligible"] & table["place"].isin(chosen)].groupby("cell"):
        place, gain = best_by_parabola(
            np.log(own["learning_rate"].to_numpy(dtype=np.float64)),
            np.array([scores_of(values[row], metric, examples, floor) for row in own.index]),
            int(np.flatnonzero(own.index == best[cell])[0]),
            steps[cell],
            settled=bool(ties[cell]),
        )
        shortfall[own.index[place]] = gain
    table["recipe"] = table["recipe"].astype(object)  # without lanes, too
    table = table.assign(
        best=table.index.isin(best),
        tuned=table.index.isin(list(shortfall)),
        shortfall=pd.Series(shortfall, table.index, "float64"),
    )
    return table[table["place"].isin(chosen)].drop(columns="place").reset_index(drop=True)


def tuned_rates(
    lanes: pd.DataFrame, metric: str, examples: int = UNKNOWN_EXAMPLES, floor: float = LEAST
) -> pd.Series[float]:
    """The learning rate of each cell with the best validation metric, smoothed over neighbouring rates.

    Rates are compared at the cell's tuned recipe, as `rate_table` chooses it.
    Means over seeds are taken on the scale of `metric_interval`. Only rates at which every seed of the cell ran and
    survived are eligible, because the mean of the survivors would flatter a rate that often diverges. Accuracies that
    differ by less than `RESOLVED` examples are equal, losses to twelve digits. Of equal accuracies the one with the
    lower validation loss is best, and of those, or of equal losses, the middle one; of an even number the lower of the
    two in the middle. Where none are equal, the best mean is often the luckiest of rates that few seeds cannot tell
    apart, so a parabola through the rates around it decides (`best_by_parabola`).

    Args:
        lanes: rows of `Results.pooled.lanes`.
        metric: `loss` or `accuracy`.
        examples: validation examples.
        floor: losses below it count as it.

    Returns:
        Learning rates indexed by cell; a cell without an eligible rate is absent.
    """
    table = rate_table(lanes, metric, examples, floor)
    return table[table["tuned"]].set_index("cell")["learning_rate"].astype(float)


def _by_rate(
    lanes: pd.DataFrame, metric: str, examples: int, floor: float
) -> tuple[pd.DataFrame, list[np.ndarray[Any, Any]]]:
    """Rows of places and learning rates, for `rate_table`, and the values of their seeds."""
    ordered = lanes.sort_values(["place", "learning_rate", "seed"])
    survived = ordered["outcome"].isin(_SURVIVED)
    losses = ordered["validation_loss"].where(survived).to_numpy(dtype=np.float64)
    logs = np.log(np.maximum(losses, floor))
    by_rate = ordered.assign(gone=ordered["outcome"] == "diverged", log=logs).groupby(["place", "learning_rate"])
    table = by_rate.agg(
        lanes=("seed", "size"), diverged=("gone", "sum"), early=("stopped_update", "count"), loss=("log", "mean")
    )
    table["loss"] = np.exp(table["loss"])
    metrics = ordered[f"validation_{metric}"].where(survived).to_numpy(dtype=np.float64)
    values = np.split(metrics, np.cumsum(table["lanes"])[:-1]) if len(table) else []
    limits = [astuple(metric_interval(own, metric, examples, floor=floor)) for own in values]
    table[list(LIMITS)] = limits or np.empty((0, 4))
    # Rates that halving stopped are shown with what they reached, but cannot be the tuned rate.
    table["eligible"] = table.pop("early") == 0
    table = table.reset_index().astype({"lanes": "int64", "diverged": "int64", "n": "int64"})
    seeds = table["place"].map(lanes.groupby("place")["seed"].nunique())
    return table.assign(shared=table["lanes"] == seeds, eligible=table["eligible"] & (table["n"] == seeds)), values


def _grid_steps(lanes: pd.DataFrame) -> pd.Series[float]:
    """The spacing of each cell's first grid, in natural logarithms of the rate; 0 for a single rate."""
    first = lanes[(lanes["round"] == "grid") | lanes["round"].isna()] if "round" in lanes else lanes
    rates = first.groupby("cell")["learning_rate"].agg(["min", "max", "nunique"]).astype(float)
    logs = np.log(rates["max"] / rates["min"]) / np.maximum(rates["nunique"] - 1, 1)
    return pd.Series(logs, rates.index)


def _middle(tied: pd.DataFrame) -> pd.Series[int]:
    """The row of the middle rate of each cell's tied ones; `trainables.lanes.rates.ranked` has the same rule."""
    tied = tied.sort_values(["cell", "learning_rate"])
    place = tied.groupby("cell").cumcount()
    count = tied.groupby("cell")["cell"].transform("size")
    middle = tied[place == (count - 1) // 2]
    return pd.Series(middle.index, middle["cell"], dtype="int64")


def _equal(table: pd.DataFrame, metric: str, examples: int) -> pd.DataFrame:
    """The eligible rows whose metric equals the best one of their cell: accuracies to `RESOLVED` examples."""
    rows = table[table["eligible"]]
    if metric == "loss":
        return _lowest(rows)
    lead = rows.groupby("cell")["estimate"].transform("max") - rows["estimate"]
    return rows[lead < RESOLVED / examples - EQUAL]


def _lowest(rows: pd.DataFrame) -> pd.DataFrame:
    losses = rows["loss"].fillna(math.inf)
    return rows[losses <= losses.groupby(rows["cell"]).transform("min") * (1 + EQUAL)]
