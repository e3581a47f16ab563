"""The figures: each function draws a frame that `analysis.series` computed on an Axes and returns the Axes.

    with analysis.style():
        figure, axes = plt.subplots()
        analysis.loss_by_regime(analysis.regime_curves(results, table), axes)

Nothing is changed at import. Sizes suit a column (85 mm) or a page (180 mm) of print.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from numpy.typing import NDArray

from analysis.results import REGIMES
from analysis.tables import optimizer_order

COLUMN_MM, PAGE_MM = 85.0, 180.0

# Okabe and Ito (2008), which stays apart for the colour blind; their yellow is too pale for lines, so wine replaces it.
_LOOKS = {
    "gradient-descent": ("#000000", "P"),
    "sgd": ("#0072B2", "o"),
    "momentum": ("#009E73", "s"),
    "nesterov": ("#56B4E9", "D"),
    "adagrad": ("#CC79A7", "v"),
    "rmsprop": ("#E69F00", "^"),
    "adam": ("#D55E00", "X"),
    "adamw": ("#882255", "*"),
    # Tol's muted scheme (2021) for the rest.
    "adadelta": ("#999933", "<"),
    "amsgrad": ("#332288", ">"),
    "adamax": ("#44AA99", "p"),
    "nadam": ("#661100", "h"),
    "radam": ("#777777", "d"),
}
_REGIME_COLOURS = dict(zip(REGIMES, ("#D55E00", "#0072B2", "#009E73"), strict=True))
_GREY = "#d9d9d9"
AXIS_LABELS = {
    "update": "updates",
    "examples": "training examples",
    "epoch": "epochs",
    "train_seconds": "training time of the stack (s)",
}


@contextmanager
def style() -> Iterator[None]:
    """The one look of all figures, for as long as the context lasts."""
    with mpl.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.5,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "lines.linewidth": 1.4,
            "lines.markersize": 4,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.dpi": 220,
            "text.parse_math": False,  # a dollar in a name is a dollar
            "svg.hashsalt": "study",  # the same figure is the same file
        }
    ):
        yield


def figure(width_mm: float, height_mm: float) -> Figure:
    """An empty figure of that size in millimetres; call it within `style()`."""
    return Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")


def optimizer_look(name: str) -> tuple[str, str]:
    """Colour and marker of an optimizer, the same in every figure; an unknown name gets a pair that follows from it."""
    if name in _LOOKS:
        return _LOOKS[name]
    number = crc32(name.encode())
    return ("#666666", "#A6761D", "#332288", "#44AA99")[number % 4], ("p", "h", "<", ">", "d")[number // 4 % 5]


def shortened(name: str) -> str:
    """A name that fits a legend or an axis."""
    return name if len(name) <= 30 else f"{name[:29]}…"


def settings_text(settings: str) -> str:
    """An optimizer's searched settings in words, `{"beta1":0.9}` as `beta1 0.9`; empty for none."""
    try:
        values = dict(json.loads(settings or "{}"))
    except (TypeError, ValueError):
        return settings
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}".lower() for name, value in values.items()
    )


def optimizer_text(name: str, settings: str) -> str:
    """An optimizer with its settings, such as `adam (beta1 0.9)`."""
    words = settings_text(settings)
    return f"{name} ({words})" if words else name


def short(value: float) -> str:
    """A number in three digits, without the padding of exponents."""
    if 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def metric_text(value: float, metric: str) -> str:
    """A value of the metric for readers: an accuracy in percent, a loss in three digits, a dash for none."""
    if math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return "∞"
    if metric == "accuracy":
        return f"{100 * value:.1f}%"
    return f"{value:#.3g}" if 0.001 <= abs(value) < 100 else short(value)


def interval_text(low: float, high: float, n: int, metric: str) -> str:
    """The limits of an interval for readers; says so where one seed allows none."""
    if n < 2:
        return "one seed" if n else ""
    return f"[{metric_text(low, metric)}, {metric_text(high, metric)}]".replace("%,", ",")


def loss_by_regime(
    data: pd.DataFrame, ax: Axes, by: str = "update", metric: str = "loss", unit: str = "", raw: bool = True
) -> Axes:
    """The validation metric along training, one line per regime, with its interval over seeds as a band.

    Args:
        data: from `analysis.series.regime_curves`.
        ax: where to draw.
        by: the horizontal axis: update, examples, epoch or train_seconds.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
        raw: whether to add the loss of the batches of one seed, faintly.
    """
    for regime, line in data.groupby("regime", sort=False):
        colour = _REGIME_COLOURS[str(regime)]
        first = line.iloc[0]
        size = f"batch size {first['batch_size']:,}" + (" (full)" if regime == "batch" else "")
        optimizer = optimizer_text(shortened(first["optimizer"]), first["settings"])
        label = f"{regime}: {size}, {optimizer} at rate {short(first['learning_rate'])}"
        _band(ax, line[by], line, colour)
        ax.plot(line[by], line["estimate"], color=colour, label=label, zorder=3)
        if raw and metric == "loss":
            ax.plot(line[by], line["batch_loss"], color=colour, alpha=0.35, linewidth=0.7, zorder=1)
    _metric_axis(ax, data, metric, unit)
    _log_axis_with_zero(ax, data[by])
    ax.set_xlabel(AXIS_LABELS[by])
    return ax


def learning_rate_sensitivity(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """The validation metric against the learning rate: one line per optimizer, its tuned rate ringed.

    Rates at which a seed diverged are crosses in a strip above the plot, one row per optimizer; the mean over the seeds
    that happened to survive is not drawn.

    Args:
        data: from `analysis.series.rate_sensitivity`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
    """
    row = 0
    for name in optimizer_order(data["optimizer"]):
        line = data[data["optimizer"] == name].sort_values("learning_rate")
        colour, marker = optimizer_look(name)
        # NaN breaks the line at a rate that not every seed survived.
        shown = line.assign(**{column: line[column].where(line["eligible"]) for column in ("estimate", "low", "high")})
        _band(ax, shown["learning_rate"], shown, colour, 0.12)
        ax.plot(shown["learning_rate"], shown["estimate"], color=colour, marker=marker, label=shortened(name), zorder=3)
        tuned = shown[shown["tuned"]]
        ax.plot(tuned["learning_rate"], tuned["estimate"], "o", color=colour, markersize=9, fillstyle="none", zorder=4)
        diverged = line.loc[line["diverged"] > 0, "learning_rate"]
        if len(diverged):
            height = np.full(len(diverged), 1.04 + 0.045 * row)
            top = ax.get_xaxis_transform()
            ax.plot(diverged, height, "x", color=colour, transform=top, clip_on=False, markersize=4.5)
            row += 1
    if row:
        middle = 1.04 + 0.045 * (row - 1) / 2
        ax.annotate("diverged", (0, middle), xycoords="axes fraction", xytext=(-4, 0), textcoords="offset points",
                    ha="right", va="center", fontsize=7, color="#555555")  # fmt: skip
    if len(data):
        ax.set_xscale("log")
        _log_ticks(ax, "x", float(data["learning_rate"].min()), float(data["learning_rate"].max()))
    ax.set_xlabel("learning rate")
    _metric_axis(ax, data[data["eligible"]], metric, unit)
    return ax


def heat_map(data: pd.DataFrame, ax: Axes, rows: str, columns: str, metric: str = "loss") -> Axes:
    """The best cells as a table of colours, each with its number and interval; grey with the reason where none is.

    Args:
        data: from `analysis.series.grid`.
        ax: where to draw.
        rows: label of the vertical axis.
        columns: label of the horizontal axis.
        metric: `loss` or `accuracy`.
    """
    labels = [list(dict.fromkeys(data[name])) for name in ("row", "column")]
    values = data["estimate"].to_numpy(dtype=np.float64).reshape(len(labels[0]), len(labels[1]))
    colours = mpl.colormaps["viridis" if metric == "accuracy" else "viridis_r"].with_extremes(bad=_GREY)
    norm = _norm(values, metric)
    ax.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="white", linewidth=1.5)
    for place, cell in enumerate(data.to_dict("records")):
        y, x = divmod(place, len(labels[1]))
        if cell["why"]:
            _cell_text(ax, x, y, cell["why"].replace(" or ", "\nor ").replace("no rate ", "no rate\n"), "", "#444444")
            continue
        luminance = np.dot([0.2126, 0.7152, 0.0722], np.power(colours(norm(cell["estimate"]))[:3], 2.2))
        colour = "black" if luminance > 0.18 else "white"  # whichever contrasts more (WCAG 2)
        interval = interval_text(cell["low"], cell["high"], cell["n"], metric)
        _cell_text(ax, x, y, metric_text(cell["estimate"], metric), interval, colour)
    ax.set_xticks(np.arange(len(labels[1])) + 0.5, labels[1])
    ax.set_yticks(np.arange(len(labels[0])) + 0.5, [shortened(label) for label in labels[0]])
    ax.tick_params(length=0, which="both")
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(columns)
    ax.set_ylabel(rows)
    return ax


def search_progress(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """The value of every trial at its tuned rate and the best so far; trials without a value are crosses at the top.

    Args:
        data: from `analysis.series.progress`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
    """
    for name in optimizer_order(data["optimizer"]):
        own = data[data["optimizer"] == name]
        colour, marker = optimizer_look(name)
        ax.plot(own["trial"], own["value"], linestyle="", color=colour, marker=marker, label=shortened(name), zorder=3)
        missing = own.loc[own["value"].isna(), "trial"]
        if len(missing):
            top = ax.get_xaxis_transform()
            ax.plot(missing, np.full(len(missing), 1.03), "x", color=colour, transform=top, clip_on=False)
    if data["value"].isna().any():
        ax.annotate("no value", (0, 1.03), xycoords="axes fraction", xytext=(-4, 0), textcoords="offset points",
                    ha="right", va="center", fontsize=7, color="#555555")  # fmt: skip
    ax.step(data["trial"], data["best"], where="post", color="#333333", label="best so far", zorder=2)
    ax.set_xlabel("trial, in the order of the search")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(data) == 1:
        ax.set_xlim(data["trial"].iloc[0] - 1, data["trial"].iloc[0] + 1)
    _metric_axis(ax, data.assign(estimate=data["value"]), metric, unit)
    return ax


def _band(ax: Axes, x: pd.Series[float], line: pd.DataFrame, colour: str, alpha: float = 0.2) -> None:
    """The interval as a band; none where one seed leaves it unbounded."""
    bounded = line["n"] > 1
    low, high = line["low"].where(bounded), line["high"].where(bounded)
    ax.fill_between(x.astype(float), low.astype(float), high.astype(float), color=colour, alpha=alpha, linewidth=0)


def _metric_axis(ax: Axes, data: pd.DataFrame, metric: str, unit: str) -> None:
    ax.set_ylabel(f"validation {metric}" + (f"\n{unit}" if unit else ""))
    values = data["estimate"].to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    if metric == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        return
    positive = values[values > 0]
    if positive.size:
        # The limits follow the estimates: the band of two seeds can span so many decades that no line is left to see.
        ax.set_yscale("log")
        margin = max(1.3, float(positive.max() / positive.min()) ** 0.06)
        ax.set_ylim(positive.min() / margin, positive.max() * margin)
        _log_ticks(ax, "y", float(positive.min() / margin), float(positive.max() * margin))


def _log_ticks(ax: Axes, which: str, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis of less than two decades, powers of ten on a longer one."""
    axis, ratio = (ax.yaxis if which == "y" else ax.xaxis), high / low
    if ratio < 4:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 100 else (1.0,), numticks=12))
    axis.set_minor_locator(NullLocator() if ratio < 100 else LogLocator(subs=range(2, 10), numticks=12))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value) if ratio < 100 else _power(value)))


def _log_axis_with_zero(ax: Axes, values: pd.Series[float]) -> None:
    """A logarithmic axis from the first point on, linear below it, so that the initialisation at zero has its place."""
    points = values.to_numpy(dtype=np.float64)
    positive = points[points > 0]
    if not positive.size:
        return
    # The smallest of all first points, since regimes need not share them.
    start, end = float(positive.min()), float(positive.max())
    if end / start < 10:
        ax.set_xlim(0, end * 1.02)
        return
    ax.set_xscale("symlog", linthresh=start, linscale=0.5)
    ax.set_xlim(0, end * 1.1)
    decades = np.arange(math.ceil(math.log10(start) + 0.15), math.floor(math.log10(end)) + 1)
    step = max(1, math.ceil(len(decades) / 5))
    ax.xaxis.set_major_locator(FixedLocator([0.0, *(10.0 ** decades[::step])]))
    ax.xaxis.set_minor_locator(FixedLocator([]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    """A power of ten as an axis shows it, without mathtext."""
    if value == 0:
        return "0"
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _norm(values: NDArray[np.float64], metric: str) -> Normalize:
    finite = values[np.isfinite(values) & (values > 0)]
    if not finite.size:
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    if metric == "accuracy":
        return Normalize(low, high if high > low else low + 0.01)
    return LogNorm(low, high if high > low else low * 1.1, clip=True)


def _cell_text(ax: Axes, x: int, y: int, main: str, below: str, colour: str) -> None:
    ax.annotate(main, (x + 0.5, y + 0.5), xytext=(0, 4 if below else 0), textcoords="offset points",
                ha="center", va="center", color=colour, fontsize=7.5 if below else 6.5)  # fmt: skip
    ax.annotate(below, (x + 0.5, y + 0.5), xytext=(0, -5.5), textcoords="offset points",
                ha="center", va="center", color=colour, fontsize=5.5)  # fmt: skip
