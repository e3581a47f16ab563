"""The value of every cell against each hyperparameter alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.cells import optimizer_order, rank
from analysis.figures import axes, exhibit, style
from analysis.results import Results
from analysis.text import seed_counts, short, shortened

SEARCHED = ("optimizer", "width", "depth", "batch_size", "learning_rate")
"""The hyperparameters of a cell, including the tuned rate."""


def searched(table: pd.DataFrame, maximize: bool) -> pd.DataFrame:
    """The hyperparameters and the value of each ranked cell, one column per hyperparameter that varied.

    Returns:
        Columns trial, those of `SEARCHED` that vary, parameters, train_seconds and validation; best first.
    """
    ranked = rank(table, maximize)
    names = [name for name in SEARCHED if ranked[name].nunique() > 1]
    return ranked[["trial", *names, "parameters", "train_seconds", "validation"]]


def isolation(data: pd.DataFrame, ax: Axes, by: str, metric: str = "loss", unit: str = "") -> Axes:
    """Draw `searched` against its column `by`: a point per cell, a dash at the best of each value."""
    # Equal rates of two grids can differ in their last digit.
    values = data[by].map(lambda rate: float(f"{rate:.6g}")) if by == "learning_rate" else data[by]
    best = data.groupby(values)["validation"].agg("max" if metric == "accuracy" else "min")
    if by == "optimizer":
        order = optimizer_order(data[by])
        for place, name in enumerate(order):
            own, (colour, marker) = data[data[by] == name], style.optimizer_look(name)
            spread = place + 0.5 * (np.arange(len(own)) * 0.618 % 1 - 0.5)  # even and reproducible
            ax.plot(spread, own["validation"], linestyle="", color=colour, marker=marker, markersize=3, alpha=0.6)
        wide, many = min(16, 80 / len(order)), len(order) > 5
        ax.plot(range(len(order)), best.reindex(order), "_", color=style.DARK, markersize=wide, markeredgewidth=1.4)
        names = [shortened(name, 14 if style.narrow() else 18) for name in order]
        ax.set_xticks(range(len(order)), names, rotation=90 if many else 40, ha="center" if many else "right")
    else:
        ax.plot(data[by], data["validation"], ".", color=style.DARK, alpha=0.4, markersize=4)
        ax.plot(best.index, best, "_", color=style.DARK, markersize=8, zorder=3)
        low, high = float(data[by].min()), float(data[by].max())
        if by == "depth" or high < 4 * low:
            ax.xaxis.set_major_locator(MaxNLocator(integer=by != "learning_rate", nbins=6))
        elif low > 0:
            axes.log_axis(ax, "x", data[by])
    if by in ("batch_size", "width"):
        axes.size_axis(ax, data[by])
    ax.set_xlabel(axes.column_label(by, metric))
    axes.metric_axis(ax, data["validation"], metric, unit)
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """One panel for each hyperparameter that varied."""
    data, metric, unit = searched(table, results.maximize), results.metric, exhibit.unit_of(results)
    label = exhibit.metric_label(results)
    columns = [name for name in SEARCHED if name in data and (data[name].value_counts() > 1).sum() >= 3]
    return exhibit.Exhibit(
        "isolation",
        "Each hyperparameter alone",
        f"{exhibit.best_here(results, best_of(data, columns))} One panel for each hyperparameter that "
        f"has three values with two cells each. Each point is a cell at its tuned rate, with any values of the other "
        f"hyperparameters: {exhibit.mean_of(results)} of the validation {metric} over "
        f"{seed_counts(table['n'])}; no intervals; dash: the best cell of each value.",
        data if columns else data.head(0),
        lambda: exhibit.panels(lambda ax, by: isolation(data, ax, by, metric, unit), columns, 3, 58, label),
        "no hyperparameter has three values with two cells each",
    )


def best_of(data: pd.DataFrame, columns: Iterable[str]) -> str:
    """Some hyperparameters of the best cell of `searched` in words."""
    return ", ".join(
        f"{axes.column_label(name)} "
        f"{value if isinstance(value, str) else short(value) if value < 1000 else f'{value:,}'}"
        for name in columns
        for value in data[name].head(1)
    )
