"""Axes that several figures share: the metric, batch sizes, logarithmic scales with readable labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from analysis.figures.style import narrow
from analysis.results import SECONDS_ALONE
from analysis.text import short

LABELS = {
    "update": "updates",
    "examples": "training examples",
    "epoch": "epochs",
    "train_seconds": SECONDS_ALONE,
}


def column_label(name: str, metric: str = "") -> str:
    """The name of a column on an axis."""
    return f"validation {metric}" if name == "validation" else name.replace("_", " ")


def metric_axis(ax: Axes, values: pd.Series[float], metric: str, unit: str) -> None:
    """A vertical axis of the metric: percent for an accuracy, logarithmic for a loss.

    The limits follow the values, not their intervals: that of two seeds can span so many decades that no line is left
    to see.
    """
    ax.set_ylabel(f"validation {metric}" + (f"\n{unit}" if unit else ""))
    if metric == "accuracy":
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    elif len(positive := _positive(values)):
        log_axis(ax, "y", positive, max(1.3, float(positive.max() / positive.min()) ** 0.06))


def size_axis(ax: Axes, sizes: pd.Series[int]) -> None:
    """A logarithmic horizontal axis of batch sizes, with a tick at each of up to seven."""
    ax.set_xlabel("batch size")
    log_axis(ax, "x", sizes)
    distinct = np.sort(sizes.unique()).astype(float)
    if 0 < distinct.size <= 7:
        ax.xaxis.set_major_locator(ticker.FixedLocator(distinct.tolist()))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))


def log_axis(ax: Axes, which: Literal["x", "y"], values: pd.Series[Any] | None = None, margin: float = 1.3) -> None:
    """A logarithmic axis around the positive values, or around all that has been drawn if no values are given."""
    ax.set(**{f"{which}scale": "log"})
    if values is None:
        low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    else:
        positive = _positive(values)
        if positive.empty:
            ax.set(**{f"{which}scale": "linear"})
            return
        low, high = float(positive.min()) / margin, float(positive.max()) * margin
        ax.set(**{f"{which}lim": (low, high)})
    log_ticks(ax, which, low, high)


def _positive(values: pd.Series[Any]) -> pd.Series[float]:
    numbers = values.astype(float)
    return numbers[(numbers > 0) & np.isfinite(numbers)]


def log_ticks(ax: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis of less than two decades, powers of ten on a longer one."""
    axis, ratio = (ax.yaxis if which == "y" else ax.xaxis), high / low
    subs = (1.0, 2.0, 5.0) if ratio < 20 else (1.0, 3.0) if ratio < 100 else (1.0,)
    axis.set_major_locator(
        ticker.MaxNLocator(6, steps=[1, 2, 5, 10]) if ratio < 5 else ticker.LogLocator(subs=subs, numticks=12)
    )
    axis.set_minor_locator(ticker.NullLocator() if ratio < 100 else ticker.LogLocator(subs=range(2, 10), numticks=12))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value) if ratio < 100 else _power(value)))


def log_axis_with_zero(ax: Axes, values: pd.Series[float]) -> None:
    """A horizontal axis that is logarithmic from the first positive value on, and linear from zero to it."""
    positive = _positive(values)
    if positive.empty:
        return
    start, end = float(positive.min()), float(positive.max())
    if end / start < 10:
        ax.set_xlim(0, end * 1.02)
        return
    ax.set_xscale("symlog", linthresh=start, linscale=0.5)
    ax.set_xlim(0, end * 1.1)
    ratio = end / start
    subs = (1.0, 2.0, 5.0) if ratio < 50 else (1.0, 3.0) if ratio < 300 and end < 1e4 else (1.0,)
    decades = range(math.floor(math.log10(start)), math.floor(math.log10(end)) + 1)
    # Not closer to the first value than that, where the label of zero is near.
    places = [sub * 10.0**decade for decade in decades for sub in subs if 1.4 * start <= sub * 10.0**decade <= end]
    step = max(1, math.ceil(len(places) / (3 if narrow() or (end >= 1e4 and len(subs) > 1) else 5)))
    ax.xaxis.set_major_locator(ticker.FixedLocator([0.0, *places[::step]]))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda value, _: _power(value) if len(subs) == 1 else short(value))
    )


def _power(value: float) -> str:
    """A power of ten in Unicode, since mathtext is off."""
    if value == 0:
        return "0"
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def band(
    ax: Axes, x: pd.Series[float], line: pd.DataFrame, colour: str, alpha: float = 0.2, label: str | None = None
) -> None:
    """The interval (columns low, high, n) as a band; left out where one seed gives none."""
    limits = line[["low", "high"]].where(line["n"] > 1).astype(float)
    low, high = limits["low"], limits["high"]
    ax.fill_between(x.astype(float), low, high, color=colour, alpha=alpha, linewidth=0, label=label)


def crosses_above(ax: Axes, x: pd.Series[Any], height: float, colour: str) -> None:
    """Crosses above the plot at axes height `height`, for points without a value."""
    if x.empty:  # an empty line that is not clipped would lie in the corner of the figure, and shrink the axes
        return
    ax.plot(x, np.full(len(x), height), "x", color=colour, transform=ax.get_xaxis_transform(), clip_on=False,
            markersize=4.5)  # fmt: skip


def label_above(ax: Axes, text: str, height: float) -> None:
    """A label to the left of the crosses above the plot."""
    ax.annotate(text, (0, height), xycoords="axes fraction", xytext=(-4, 0), textcoords="offset points", ha="right",
                va="center", fontsize=7, color="#555555")  # fmt: skip


def label_ends(ax: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Names right of the axes, at the heights of the ends of their lines but apart from each other.

    Args:
        ax: with its limits; about 60 mm high, as the distance between names is a share of that.
        ends: name, colour, x and y of the last point of each line.
    """
    transform = ax.transData + ax.transAxes.inverted()
    order = sorted(ends, key=lambda end: float(transform.transform(end[2:])[1]))
    step = min(0.062, 1 / max(1, len(order)))
    heights = [float(np.clip(transform.transform(end[2:])[1], 0, 1)) for end in order]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + step)
    for place in reversed(range(len(heights))):  # what was pushed beyond the top moves down
        heights[place] = min(heights[place], 1 - step * (len(heights) - 1 - place))
    for (name, colour, x, y), height in zip(order, heights, strict=True):
        ax.annotate(name, (x, y), (1.04, height), textcoords="axes fraction", va="center", fontsize=7, color=colour,
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6, "shrinkB": 3,
                                "relpos": (0, 0.5)},
                    annotation_clip=False)  # fmt: skip
