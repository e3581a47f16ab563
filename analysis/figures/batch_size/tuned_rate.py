"""The tuned learning rate against the batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

from analysis.cells import rank
from analysis.figures import axes, exhibit, style
from analysis.results import Results, records
from analysis.text import listing, seed_counts, short

BARS = "_halfway to the neighbouring rates of the grid"
"""The label of the bars, which no legend shows."""


def best_rates(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The tuned learning rate of the best cell of each optimizer and batch size.

    Returns:
        Columns optimizer, batch_size, regime, trial, learning_rate, below and above (the neighbouring rates of its
        grid, NaN beyond the edge), on_edge, confounded (whether the cells of the optimizer differ in width, depth or
        settings, too). Only cells tuned over more than one rate.
    """
    ranked, lanes = rank(table, results.maximize), results.pooled.lanes
    best = ranked[ranked["rates"] > 1].drop_duplicates(["optimizer", "batch_size"])
    lanes = lanes[lanes["recipe"] == lanes["cell"].map(best.set_index("trial")["recipe"])]
    apart = lanes["learning_rate"] - lanes["cell"].map(best.set_index("trial")["learning_rate"])
    below = lanes["learning_rate"].where(apart < 0).groupby(lanes["cell"]).max()
    above = lanes["learning_rate"].where(apart > 0).groupby(lanes["cell"]).min()
    best = best.assign(below=best["trial"].map(below), above=best["trial"].map(above))
    shapes = best.groupby("optimizer")[["width", "depth", "settings"]].nunique()
    best["confounded"] = best["optimizer"].map((shapes > 1).any(axis=1)).astype(bool)
    columns = ["optimizer", "batch_size", "regime", "trial", "learning_rate", "below", "above", "on_edge", "confounded"]
    return best[columns].sort_values(["optimizer", "batch_size"], ignore_index=True)


def rate_against_batch_size(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `best_rates`: one line per optimizer, with guides for linear and square-root scaling.

    Points of an optimizer that are confounded are not joined. Bars reach halfway to the neighbouring rates of the grid;
    open markers lie on its edge.
    """
    count = data["optimizer"].nunique()
    for place, (label, own, colour, marker) in enumerate(style.by_optimizer(data, ax)):
        # Equal rates of two optimizers lie side by side, at their true batch size for readers who point at them.
        aside = (place - (count - 1) / 2) * min(4, 16 / count)
        beside: dict[str, Any] = {
            "transform": offset_copy(ax.transData, ax.get_figure(root=True), aside, units="points")
        }
        at = own["batch_size"]
        bars = own[["below", "above"]].to_numpy(dtype=np.float64)
        rates = own["learning_rate"].to_numpy(dtype=np.float64)
        ends = np.where(np.isnan(bars), rates[:, None], np.sqrt(bars * rates[:, None]))
        ax.vlines(at, ends[:, 0], ends[:, 1], color=colour, alpha=0.3, linewidth=2, label=BARS, **beside)
        joined = "" if own["confounded"].any() else "-"
        ax.plot(at, rates, color=colour, marker=marker, linestyle=joined, label=label, zorder=3, **beside)
        edge = own["on_edge"]
        ax.plot(at[edge], own.loc[edge, "learning_rate"], linestyle="", color=colour, marker=marker,
                markerfacecolor="white", zorder=4, **beside)  # fmt: skip
    if data["batch_size"].nunique() > 1:
        sizes = np.sort(data["batch_size"].unique().astype(float))
        start = float(np.exp(np.log(data.loc[data["batch_size"] == sizes[0], "learning_rate"]).mean()))
        for power, dashes, label in ((1.0, ":", "proportional to batch size"), (0.5, "--", "to its square root")):
            guide = start * (sizes / sizes[0]) ** power
            ax.plot(sizes, guide, dashes, color=style.GREY, linewidth=0.9, label=label, zorder=1)
    axes.log_axis(ax, "y", data["learning_rate"], margin=5)
    axes.size_axis(ax, data["batch_size"])
    if len(data):
        ax.set_xlim(data["batch_size"].min() / 2, data["batch_size"].max() * 2)
    ax.set_ylabel("tuned learning rate")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The tuned rate of the best cell of each optimizer and batch size."""
    data = best_rates(results, table)
    mixed = listing(data.loc[data["confounded"], "optimizer"])
    warning = f"; confounded, as width, depth or settings differ too, and not joined: {mixed}" if mixed else ""
    ends = data.groupby("optimizer")[["learning_rate", "batch_size"]].agg(["first", "last"])
    ends = ends.set_axis(["rate", "last_rate", "size", "last_size"], axis="columns").reset_index().assign(which="")
    ends = ends[ends["size"] < ends["last_size"]]
    if len(ends) > 4:
        ends = ends.iloc[(ends["last_rate"] / ends["rate"]).argsort(kind="stable").iloc[[0, -1]]]
        ends = ends.assign(which=["smallest ratio of the second to the first: ", "largest: "])
    rates = listing(
        f"{row['which']}{row['optimizer']} {short(row['rate'])} at {row['size']:,} and {short(row['last_rate'])} at "
        f"{row['last_size']:,}"
        for row in records(ends)
    )
    return exhibit.Exhibit(
        "tuned-rate",
        "Tuned learning rate vs. batch size",
        f"{f'Tuned rates at the smallest and the largest batch size: {rates}. ' if rates else ''}"
        f"Each of the best cell of its optimizer and batch size, tuned over "
        f"{seed_counts(table['n'])}{warning}. Bars are not intervals: they reach halfway to the neighbouring rates of "
        f"the grid, and open markers lie on its edge.",
        exhibit.varied(data, "batch_size", 3),
        lambda: exhibit.with_legend(lambda ax: rate_against_batch_size(data, ax)),
        "fewer than three batch sizes",
    )
