"""Parallel coordinates: every cell as a line across its hyperparameters."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.cells import optimizer_order
from analysis.figures import axes, exhibit, style
from analysis.figures.search.isolation import SEARCHED, best_of, searched
from analysis.results import Results
from analysis.text import metric_text, seed_counts, short, shortened

MOST_LINES = 300


def parallel_coordinates(data: pd.DataFrame, ax: Axes, metric: str = "loss", limit: int = MOST_LINES) -> Axes:
    """Draw `isolation.searched`: one line per cell, coloured by rank; the best tenth is drawn on top and thicker.

    Args:
        data: from `isolation.searched`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        limit: maximum number of lines; of more cells an even sample of the ranks, including best and worst, is drawn.
    """
    names = [name for name in data.columns if name not in ("trial", "parameters", "train_seconds")]
    if data.empty:
        return ax
    total = len(data)
    drawn = np.unique(np.linspace(0, total - 1, min(limit, total)).astype(int))
    data, ranks = data.iloc[drawn], drawn / max(1, total - 1)
    scales = {name: _scale(data[name], name, metric) for name in names}
    places = pd.DataFrame({name: heights for name, (heights, _) in scales.items()})
    colours, best_share = mpl.colormaps["viridis_r"], max(1, total // 10) / max(1, total - 1)
    for place in range(len(data) - 1, -1, -1):  # the best last, so that they are on top
        best = ranks[place] < best_share
        colour = style.DARK if best else colours(0.1 + 0.9 * ranks[place])
        ax.plot(range(len(names)), places.iloc[place], color=colour, linewidth=1.1 if best else 0.5,
                alpha=0.9 if best or total < 30 else 0.35, zorder=3 if best else 2,
                rasterized=len(data) > 100)  # fmt: skip
    for x, name in enumerate(names):
        ax.axvline(x, color="#555555", linewidth=0.6, zorder=4)
        for height, text in scales[name][1]:
            ax.annotate(text, (x, height), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6, zorder=5,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75})  # fmt: skip
    fold = "\n" if style.narrow() else " "
    ax.set_xticks(range(len(names)), [axes.column_label(name, metric).replace(" ", fold) for name in names])
    ax.set(yticks=[], xlim=(-0.1, len(names) - 0.55), ylim=(-0.05, 1.05))
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def _scale(values: pd.Series[Any], name: str, metric: str) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Heights of the values on an axis from 0 to 1, and labels for it; losses and rates are placed by logarithm."""
    if name == "optimizer":
        order = optimizer_order(values)
        step = 1 / max(1, len(order) - 1)
        heights = np.array([order.index(value) * step for value in values])
        return heights, [
            (place * step, shortened(label, 12 if style.narrow() else 18)) for place, label in enumerate(order)
        ]
    numbers = values.to_numpy(dtype=np.float64)
    logarithmic = bool((numbers > 0).all()) and not (name == "validation" and metric == "accuracy") and name != "depth"
    shown = np.log(numbers) if logarithmic else numbers
    low, high = float(shown.min()), float(shown.max())
    span = high - low or 1.0
    marks = np.unique(numbers)
    exact = "{:,.0f}".format if len(marks) <= 6 and name in ("width", "depth", "batch_size") else short
    if len(marks) > 6:
        marks = np.exp(np.linspace(low, high, 5)) if logarithmic else np.linspace(low, high, 5)
    text = (lambda value: metric_text(value, metric)) if name == "validation" else exact
    labels = [(float((math.log(mark) if logarithmic else mark) - low) / span, text(float(mark))) for mark in marks]
    return (shown - low) / span, labels


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """All cells across the hyperparameters that varied."""
    data, metric = searched(table, results.maximize), results.metric
    columns = [name for name in SEARCHED if name in data]
    few = len(data) <= MOST_LINES
    lines = "Each line is a cell" if few else f"{MOST_LINES} of {len(data):,} cells, evenly by rank,"
    return exhibit.Exhibit(
        "parallel-coordinates",
        "All cells in parallel coordinates",
        f"{exhibit.best_here(results, best_of(data, columns))} {lines} at its tuned rate. Thick: the best tenth by "
        f"validation {metric} ({exhibit.mean_of(results)} over {seed_counts(table['n'])}); the others from better "
        f"(green) to worse (violet); no intervals.",
        exhibit.varied(data, "trial", 3) if len(columns) > 1 else data.head(0),
        lambda: exhibit.with_legend(lambda ax: parallel_coordinates(data, ax, metric), style.PAGE_MM),
        "fewer than three cells have a tuned rate" if len(columns) > 1 else "fewer than two hyperparameters varied",
    )
