"""The validation metric against training time, with the Pareto front."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import axes, exhibit, style
from analysis.results import SECONDS_ALONE, Results, pareto, records
from analysis.schema import Outcome
from analysis.text import duration, metric_text, seed_counts


def loss_and_time(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The validation metric and the training time of every completed cell, `Results.seconds_label`.

    Returns:
        Columns trial, optimizer, batch_size, regime, train_seconds, validation, front (whether the cell is on the
        Pareto front of both).
    """
    front = pareto(table, ["metric", "train_seconds"], results.maximize)
    whole = table.assign(front=front)[(table["outcome"] == Outcome.COMPLETED) & table["validation"].notna()]
    columns = ["trial", "optimizer", "batch_size", "regime", "train_seconds", "validation", "front"]
    return whole[columns].sort_values("train_seconds", ignore_index=True)


def loss_against_time(
    data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "", seconds: str = SECONDS_ALONE
) -> Axes:
    """Draw `loss_and_time`: a point per cell and a line through the Pareto front; `seconds` labels the axis."""
    for label, own, colour, marker in style.by_optimizer(data, ax):
        ax.plot(own["train_seconds"], own["validation"], linestyle="", color=colour, marker=marker, alpha=0.75,
                label=label, zorder=3)  # fmt: skip
    front = data[data["front"].astype(bool)].sort_values("train_seconds")
    ax.step(front["train_seconds"], front["validation"], where="post", color=style.DARK, marker="o", markersize=7,
            fillstyle="none", label="Pareto front", zorder=2)  # fmt: skip
    axes.log_axis(ax, "x", data["train_seconds"])
    ax.set_xlabel(seconds)
    axes.metric_axis(ax, data["validation"], metric, unit)
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The validation metric of every completed cell against its training time."""
    data, metric, unit = loss_and_time(results, table), results.metric, exhibit.unit_of(results)
    front = data[data["front"].astype(bool)]
    ends = " to ".join(
        f"{row['optimizer']} at batch size {row['batch_size']:,} ({metric_text(row['validation'], metric)} after "
        f"{duration(row['train_seconds'])})"
        for row in records(front.iloc[sorted({0, len(front) - 1})] if len(front) else front)
    )
    return exhibit.Exhibit(
        "loss-time",
        f"Validation {metric} vs. training time",
        f"On the seeds of the search, the Pareto front has {len(front)} of {len(data)} completed cells: {ends}. "
        f"Each at its tuned rate ({exhibit.mean_of(results)} of the validation {metric} over "
        f"{seed_counts(table['n'])}) against its training time, {results.seconds_label}; no intervals.",
        exhibit.varied(data, "trial", 3),
        lambda: exhibit.with_legend(lambda ax: loss_against_time(data, ax, metric, unit, results.seconds_label)),
        "fewer than three cells have completed with a tuned rate",
    )
