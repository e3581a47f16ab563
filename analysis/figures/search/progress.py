"""The search, trial by trial."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.cells import examples_of, floor_of
from analysis.figures import axes, exhibit, style
from analysis.rates import rate_table
from analysis.results import Results, records
from analysis.schema import Outcome
from analysis.statistics import best_so_far
from analysis.text import listing, metric_text, seed_counts


def progress(results: Results) -> pd.DataFrame:
    """The value of every trial at its own tuned rate.

    Returns:
        Columns trial, optimizer, outcome, value (NaN if none), best (so far, of the trials that completed; of all while
        none has).
    """
    each = results.lanes.assign(cell=results.lanes["trial"])
    rates = rate_table(each, results.metric, examples_of(results, "validation"), floor_of(results))
    tuned = rates[rates["tuned"]].set_index("cell")
    frame = results.trials[["trial", "optimizer", "outcome"]]
    frame = frame.assign(value=results.trials["trial"].map(tuned["estimate"]).astype(float))
    whole = frame["value"].where(frame["outcome"] == Outcome.COMPLETED)
    counted = whole if whole.notna().any() else frame["value"]
    return frame.assign(best=best_so_far(counted, results.maximize))


def search_progress(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """Draw `progress`: every trial, hollow if it did not complete, and the best so far.

    Trials without a value are crosses above the plot.
    """
    for label, own, colour, marker in style.by_optimizer(data, ax):
        whole = own["outcome"] == Outcome.COMPLETED
        looks: dict[str, Any] = {"linestyle": "", "color": colour, "marker": marker, "zorder": 3}
        ax.plot(own["trial"], own["value"].where(whole), label=label, **looks)
        ax.plot(own["trial"], own["value"].where(~whole), fillstyle="none", **looks)
        axes.crosses_above(ax, own.loc[own["value"].isna(), "trial"], 1.03, colour)
    if data["value"].isna().any():
        axes.label_above(ax, "no value", 1.03)
    ax.step(data["trial"], data["best"], where="post", color=style.DARK, label="best so far", zorder=2)
    ax.set_xlabel("trial, in the order of the search")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.metric_axis(ax, data["value"], metric, unit)
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The value of every trial and the best so far."""
    data, metric, unit = progress(results), results.metric, exhibit.unit_of(results)
    best = data[data["value"] == data["best"]].drop_duplicates("best").tail(1)  # of equal ones the first
    best_trials = listing(
        f"{row['optimizer']} in trial {row['trial']}, {metric_text(row['value'], metric)}" for row in records(best)
    )
    return exhibit.Exhibit(
        "search-progress",
        "The search, trial by trial",
        f"{exhibit.best_here(results, best_trials)} Each at its tuned rate ({exhibit.mean_of(results)} over "
        f"{seed_counts(table['n'])}), and the best so far; no intervals. Hollow: a trial that was stopped or ended "
        f"early; cross: one without a value.",
        exhibit.varied(data, "trial", 3),
        lambda: exhibit.with_legend(lambda ax: search_progress(data, ax, metric, unit), height=75),
        "fewer than three trials have ended",
    )
