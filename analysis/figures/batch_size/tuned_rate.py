"""The tuned learning rate against the batch size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.cells import rank
from analysis.figures import axes, exhibit, style
from analysis.results import Results
from analysis.text import listing, seed_counts


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
    for place, (label, own, colour, marker) in enumerate(style.by_optimizer(data, ax)):
        beside = own["batch_size"] * 1.06**place  # equal rates of two optimizers lie side by side
        bars = own[["below", "above"]].to_numpy(dtype=np.float64)
        rates = own["learning_rate"].to_numpy(dtype=np.float64)
        ends = np.where(np.isnan(bars), rates[:, None], np.sqrt(bars * rates[:, None]))
        ax.vlines(beside, ends[:, 0], ends[:, 1], color=colour, alpha=0.3, linewidth=2)
        joined = "" if own["confounded"].any() else "-"
        ax.plot(beside, rates, color=colour, marker=marker, linestyle=joined, label=label, zorder=3)
        edge = own["on_edge"]
        ax.plot(beside[edge], own.loc[edge, "learning_rate"], linestyle="", color=colour, marker=marker,
                markerfacecolor="white", zorder=4)  # fmt: skip
    if data["batch_size"].nunique() > 1:
        sizes = np.sort(data["batch_size"].unique().astype(float))
        start = float(np.exp(np.log(data.loc[data["batch_size"] == sizes[0], "learning_rate"]).mean()))
        for power, dashes, label in ((1.0, ":", "proportional to batch size"), (0.5, "--", "to its square root")):
            guide = start * (sizes / sizes[0]) ** power
            ax.plot(sizes, guide, dashes, color=style.GREY, linewidth=0.9, label=label, zorder=1)
    axes.log_axis(ax, "y", data["learning_rate"], margin=5)
    axes.size_axis(ax, data["batch_size"])
    ax.set_ylabel("tuned learning rate")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The tuned rate of the best cell of each optimizer and batch size."""
    data = best_rates(results, table)
    mixed = listing(data.loc[data["confounded"], "optimizer"])
    warning = f"Confounded, as width, depth or settings differ too, and not joined: {mixed}. " if mixed else ""
    return exhibit.Exhibit(
        "tuned-rate",
        "Tuned learning rate vs. batch size",
        f"{warning}The best cell of each optimizer and batch size, tuned over "
        f"{seed_counts(table['n'])}. Bars show the grid: they reach halfway to the neighbouring rates, and open "
        f"markers lie on its edge.",
        "Tuned learning rate against batch size, one line per optimizer.",
        exhibit.varied(data, "batch_size", 3),
        lambda: exhibit.with_legend(lambda ax: rate_against_batch_size(data, ax)),
        "fewer than three batch sizes",
    )
