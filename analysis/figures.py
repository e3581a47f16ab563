"""The figures: each function draws a frame that `analysis.series` computed on an Axes and returns the Axes.

    with analysis.style():
        figure, axes = plt.subplots()
        analysis.loss_by_regime(analysis.regime_curves(results, table), axes)

Nothing is changed at import. Sizes suit a column (85 mm) or a page (180 mm) of print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
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
from analysis.wording import interval_text, metric_text, optimizer_text, short, shortened

COLUMN_MM, PAGE_MM = 85.0, 180.0
MOST_LINES, MOST_WORKERS = 300, 32

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
    # The rest of torch's, which train lane by lane.
    "Muon": ("#A6761D", "h"),
    "LBFGS": ("#332288", "H"),
    "Rprop": ("#999933", "d"),
    "Adafactor": ("#44AA99", "<"),
    "ASGD": ("#CC79A7", "p"),
}
_REGIME_COLOURS = dict(zip(REGIMES, ("#D55E00", "#0072B2", "#009E73"), strict=True))
_GREY = "#d9d9d9"
AXIS_LABELS = {
    "update": "updates",
    "examples": "training examples",
    "epoch": "epochs",
    "train_seconds": "training time of the stack (s)",
}


_DARK_PAPER = "#14171b"
_DARK = {
    "#000000": "#e6e9ee", "#ffffff": _DARK_PAPER, "#e6e6e6": "#343b44", "#d9d9d9": "#3b424b", "#333333": "#d5dae1",
    "#444444": "#c3cad3", "#555555": "#b3bcc7", "#666666": "#a2acb8", "#777777": "#98a2ae", "#0072b2": "#4aa8e0",
    "#009e73": "#2cc79b", "#882255": "#d8629c", "#332288": "#8f7fe8", "#661100": "#cf6a52", "#d55e00": "#f27a26",
}  # fmt: skip
"""What the colours of the figures become on dark paper, so that each keeps its hue and stands out."""
# Of lines alone, the dark half of the ordered scale: heat maps are filled with the same colours.
_DARK_LINES = {
    mpl.colors.to_hex(colour): mpl.colors.to_hex(0.55 * colour[:3] + 0.45)
    for colour in mpl.colormaps["viridis"](np.arange(128))
}


def adaptive(svg: bytes) -> bytes:
    """An SVG figure that turns dark where its reader prefers that, the colours of heat maps aside."""
    text = svg.decode()
    rules = [
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
        if f"{kind}: {light}" in text
    ]
    rules += [
        f'[style*="stroke: {light}"]{{stroke:{dark}!important}}'
        for light, dark in _DARK_LINES.items()
        if f"stroke: {light}" in text
    ]
    sheet = "<style>@media (prefers-color-scheme: dark){svg{fill:#e6e9ee}" + "".join(rules) + "}</style>"
    end = text.index("</defs>") + len("</defs>")  # matplotlib's first one, which holds its own style
    return (text[:end] + sheet + text[end:]).encode()


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


def ordered_look(place: int, count: int) -> tuple[str, str]:
    """Colour and marker of a value among others that have an order: dark to light along one scale."""
    colour = mpl.colors.to_hex(mpl.colormaps["viridis"](0.85 * place / max(1, count - 1)))
    return colour, ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")[place % 10]


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
        raw: whether to add the loss of the batches of one seed, faintly, and dotted the same smoothed.
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
            ax.plot(line[by], line["batch_loss"], color=colour, alpha=0.25, linewidth=0.6, zorder=1)
            ax.plot(line[by], line["batch_smooth"], color=colour, alpha=0.8, linewidth=0.8, linestyle=":", zorder=2)
    _metric_axis(ax, data, metric, unit)
    _log_axis_with_zero(ax, data[by])
    ax.set_xlabel(AXIS_LABELS[by])
    return ax


def learning_rate_sensitivity(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """The validation metric against the learning rate: one line per group, its tuned rate ringed.

    Rates at which a seed diverged are crosses in a strip above the plot, one row per group; the mean over the seeds
    that happened to survive is not drawn.

    Args:
        data: from `analysis.series.rate_sensitivity`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
    """
    row, by = 0, str(data["by"].iloc[0]) if len(data) else "optimizer"
    spacing = min(0.045, 0.25 / max(1, data.loc[data["diverged"] > 0, "group"].nunique()))
    groups = optimizer_order(data["group"]) if by == "optimizer" else sorted(data["group"].unique())
    for place, name in enumerate(groups):
        line = data[data["group"] == name].sort_values("learning_rate")
        colour, marker = optimizer_look(name) if by == "optimizer" else ordered_look(place, len(groups))
        label = shortened(name) if by == "optimizer" else f"{_words(by, metric)} {name:,}"
        # NaN breaks the line at a rate that not every seed survived.
        shown = line.assign(**{column: line[column].where(line["eligible"]) for column in ("estimate", "low", "high")})
        _band(ax, shown["learning_rate"], shown, colour, 0.12)
        ax.plot(shown["learning_rate"], shown["estimate"], color=colour, marker=marker, label=label, zorder=3)
        tuned = shown[shown["tuned"]]
        ax.plot(tuned["learning_rate"], tuned["estimate"], "o", color=colour, markersize=9, fillstyle="none", zorder=4)
        diverged = line.loc[line["diverged"] > 0, "learning_rate"]
        if len(diverged):
            height = np.full(len(diverged), 1.04 + spacing * row)
            top = ax.get_xaxis_transform()
            ax.plot(diverged, height, "x", color=colour, transform=top, clip_on=False, markersize=4.5)
            row += 1
    if row:
        highest = 1.04 + spacing * (row - 1)  # where room is kept for it
        ax.annotate("diverged", (0, highest), xycoords="axes fraction", xytext=(-4, 0), textcoords="offset points",
                    ha="right", va="center", fontsize=7, color="#555555")  # fmt: skip
    if len(data):
        ax.set_xscale("log")
        _log_ticks(ax, "x", float(data["learning_rate"].min()), float(data["learning_rate"].max()))
    ax.set_xlabel("learning rate")
    _metric_axis(ax, data[data["eligible"]], metric, unit)
    return ax


def heat_map(
    data: pd.DataFrame, ax: Axes, rows: str, columns: str, metric: str = "loss", contours: bool = False
) -> Axes:
    """The best cells as a table of colours, each with its number and interval; grey with the reason where none is.

    Args:
        data: from `analysis.series.grid`.
        ax: where to draw.
        rows: label of the vertical axis.
        columns: label of the horizontal axis.
        metric: `loss` or `accuracy`.
        contours: whether to add lines of equally many parameters.
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
        colour = "#111111" if luminance > 0.18 else "#fefefe"  # whichever contrasts more (WCAG 2)
        interval = interval_text(cell["low"], cell["high"], cell["n"], metric)
        if contours and cell["parameters"] > 0:
            interval += f"\n{short(cell['parameters'])} parameters"
        _cell_text(ax, x, y, metric_text(cell["estimate"], metric), interval, colour)
    ax.set_xticks(np.arange(len(labels[1])) + 0.5, labels[1])
    ax.set_yticks(np.arange(len(labels[0])) + 0.5, [shortened(label) for label in labels[0]])
    ax.tick_params(length=0, which="both")
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(columns)
    ax.set_ylabel(rows)
    if contours:  # once the axis points down, or the labels would lean the wrong way
        _parameter_contours(ax, data["parameters"].to_numpy(dtype=np.float64).reshape(values.shape))
    return ax


def _parameter_contours(ax: Axes, parameters: NDArray[np.float64]) -> None:
    """Lines of equally many parameters over a table of at least 2 x 2 cells."""
    if min(parameters.shape) < 2 or not (parameters > 0).all() or np.ptp(parameters) == 0:
        return
    low, high = float(np.log10(parameters.min())), float(np.log10(parameters.max()))
    y, x = (np.arange(size) + 0.5 for size in parameters.shape)
    ax.contour(x, y, np.log10(parameters), levels=np.linspace(low, high, 5)[1:-1], colors="#f27a26", linewidths=1.0,
               linestyles="--")  # fmt: skip


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


def noise_against_speed(data: pd.DataFrame, ax: Axes) -> Axes:
    """How smoothly against how fast: one point per optimizer and batch size, with intervals over seeds both ways.

    Args:
        data: from `analysis.series.noise_and_speed`. Cells of which a seed never reached the common level are hollow
            and stand in a strip at the right.
        ax: where to draw.
    """
    for regime in (name for name in REGIMES if name in set(data["regime"])):
        for name in optimizer_order(data.loc[data["regime"] == regime, "optimizer"]):
            own = data[(data["regime"] == regime) & (data["optimizer"] == name)]
            colour, (_, marker) = _REGIME_COLOURS[regime], optimizer_look(name)
            reached = own[np.isfinite(own["examples"])]
            for x, low, high, y in reached[["examples", "examples_low", "examples_high", "noise"]].to_numpy():
                ax.plot([low, high] if np.isfinite(high) else [x, x], [y, y], color=colour, alpha=0.35, linewidth=0.8)
            for x, y, low, high in reached[["examples", "noise", "noise_low", "noise_high"]].to_numpy():
                ax.plot([x, x], [low, high] if np.isfinite(high) else [y, y], color=colour, alpha=0.35, linewidth=0.8)
            ax.plot(reached["examples"], reached["noise"], linestyle="", color=colour, marker=marker, markersize=5,
                    clip_on=False)  # fmt: skip
            late = own[~np.isfinite(own["examples"])]
            side = ax.get_yaxis_transform()
            ax.plot(np.full(len(late), 1.02), late["noise"], linestyle="", color=colour, marker=marker,
                    fillstyle="none", transform=side, clip_on=False)  # fmt: skip
    present = [name for name in REGIMES if name in set(data["regime"])]
    for regime in present:
        ax.plot([], [], "s", color=_REGIME_COLOURS[regime], label=regime)
    for name in optimizer_order(data["optimizer"]):
        ax.plot([], [], linestyle="", marker=optimizer_look(name)[1], color="#777777", label=shortened(name))
    ax.set_xlabel("training examples until the loss is halfway (log scale)")
    ax.set_ylabel("noise of the validation loss\n(sd of its logarithm)")
    reached = data[np.isfinite(data["examples"]) & (data["noise"] > 0)]
    if len(reached):
        _log_axis(ax, "x", reached["examples"])
        _log_axis(ax, "y", data.loc[data["noise"] > 0, "noise"])
    return ax


def noise_scale(data: pd.DataFrame, ax: Axes) -> Axes:
    """The gradient noise scale along training, one line per regime; a dotted line at its batch size, to compare.

    Args:
        data: from `analysis.series.gradient_noise`; the line breaks where it is infinite.
        ax: where to draw.
    """
    for regime, line in data.groupby("regime", sort=False):
        colour, finite = _REGIME_COLOURS[str(regime)], line.replace(math.inf, math.nan)  # NaN breaks the line
        _band(ax, line["examples"], line.assign(high=line["high"].replace(math.inf, 1e12)), colour)
        ax.plot(finite["examples"], finite["estimate"], color=colour, marker=".", label=f"{regime}", zorder=3)
        ax.axhline(line["batch_size"].iloc[0], color=colour, linestyle=":", linewidth=0.8, zorder=1)
    finite = data[np.isfinite(data["estimate"]) & (data["estimate"] > 0)]
    if len(finite):
        _log_axis(ax, "y", pd.concat([finite["estimate"], data["batch_size"]]))
    _log_axis_with_zero(ax, data["examples"])
    ax.set_xlabel(AXIS_LABELS["examples"])
    ax.set_ylabel("gradient noise scale (examples)")
    return ax


def rate_against_batch_size(data: pd.DataFrame, ax: Axes) -> Axes:
    """The tuned learning rate against the batch size, one line per optimizer, with linear and square-root guides.

    Bars reach to the neighbouring rates of the grid, the resolution of the answer; open markers lie on its edge.

    Args:
        data: from `analysis.series.best_rates`.
        ax: where to draw.
    """
    for name in optimizer_order(data["optimizer"]):
        own, (colour, marker) = data[data["optimizer"] == name], optimizer_look(name)
        bars = own[["below", "above"]].to_numpy(dtype=np.float64)
        rates = own["learning_rate"].to_numpy(dtype=np.float64)
        ends = np.where(np.isnan(bars), rates[:, None], np.sqrt(bars * rates[:, None]))
        ax.vlines(own["batch_size"], ends[:, 0], ends[:, 1], color=colour, alpha=0.3, linewidth=2)
        ax.plot(own["batch_size"], rates, color=colour, marker=marker, label=shortened(name), zorder=3)
        edge = own[own["on_edge"]]
        ax.plot(edge["batch_size"], edge["learning_rate"], linestyle="", color=colour, marker=marker,
                markerfacecolor="white", zorder=4)  # fmt: skip
    if data["batch_size"].nunique() > 1:
        sizes = np.sort(data["batch_size"].unique().astype(float))
        first = data.loc[data["batch_size"] == sizes[0], "learning_rate"]
        start = float(np.exp(np.log(first).mean()))
        for power, dashes, label in ((1.0, ":", "proportional to batch size"), (0.5, "--", "to its square root")):
            ax.plot(
                sizes,
                start * (sizes / sizes[0]) ** power,
                dashes,
                color="#777777",
                linewidth=0.9,
                label=label,
                zorder=1,
            )
        low, high = float(data["learning_rate"].min()), float(data["learning_rate"].max())
        _log_axis(ax, "y", pd.Series([low, high]), margin=5)
    elif len(data):
        _log_axis(ax, "y", data["learning_rate"], margin=5)
    _size_axis(ax, data["batch_size"])
    ax.set_ylabel("tuned learning rate")
    return ax


def steps_against_batch_size(data: pd.DataFrame, fits: pd.DataFrame, ax: Axes) -> Axes:
    """Updates to the target against batch size: perfect scaling halves them when the batch size doubles.

    Args:
        data: from `analysis.series.steps_to_target`; points are medians over seeds, bars the range of the seeds.
        fits: from `analysis.series.batch_scaling`; each is a curve with its critical batch size marked.
        ax: where to draw.
    """
    for name in optimizer_order(data["optimizer"]):
        colour, marker = optimizer_look(name)
        own = data[data["optimizer"] == name].groupby("batch_size")["updates"].agg(["median", "min", "max"])
        ax.vlines(own.index, own["min"], own["max"], color=colour, alpha=0.35, linewidth=2)
        fit = fits[fits["optimizer"] == name]
        ax.plot(own.index, own["median"], color=colour, marker=marker, linestyle="" if len(fit) else "-",
                label=shortened(name), zorder=3)  # fmt: skip
        for critical, smallest in fit[["critical", "smallest_steps"]].to_numpy():
            sizes = np.geomspace(own.index.min(), own.index.max(), 100)
            ax.plot(sizes, smallest * (1 + critical / sizes), color=colour, linewidth=1)
            ax.plot([critical], [2 * smallest], "|", color=colour, markersize=14, markeredgewidth=1.5, zorder=4)
    if len(data):
        sizes = np.sort(data["batch_size"].unique().astype(float))
        first = data[data["batch_size"] == sizes[0]].groupby("optimizer")["updates"].median().min()
        ax.plot(
            sizes, first * sizes[0] / sizes, "--", color="#777777", linewidth=0.9, label="perfect scaling", zorder=1
        )
        _log_axis(ax, "y", data["updates"], margin=2)
    _size_axis(ax, data["batch_size"])
    if len(fits) and len(data):
        ax.set_xlim(right=max(float(data["batch_size"].max()), float(fits["critical"].max())) * 1.3)
    ax.set_ylabel("updates to the target")
    return ax


def throughput_against_batch_size(data: pd.DataFrame, ax: Axes) -> Axes:
    """Training examples per second of a trial's whole stack against the batch size, by engine; line through medians.

    Args:
        data: from `analysis.series.throughput`.
        ax: where to draw.
    """
    engines = sorted(data["engine"].fillna("not recorded").unique())
    for place, engine in enumerate(engines):
        own = data[data["engine"].fillna("not recorded") == engine]
        colour = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777")[place % 5]
        ax.plot(own["batch_size"], own["examples_per_second"], ".", color=colour, alpha=0.4, markersize=4)
        medians = own.groupby("batch_size")["examples_per_second"].median()
        ax.plot(medians.index, medians, color=colour, marker="o", label=engine, zorder=3)
    if len(data):
        _log_axis(ax, "y", data["examples_per_second"])
    _size_axis(ax, data["batch_size"])
    ax.set_ylabel("examples per second, all lanes")
    return ax


def expected_best_of(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """The best value to expect against the size of the search, one line per optimizer.

    Args:
        data: from `analysis.series.expected_search`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
    """
    for name in optimizer_order(data["optimizer"]):
        own, (colour, marker) = data[data["optimizer"] == name], optimizer_look(name)
        shown = own["trials"] <= 12
        ax.plot(own["trials"], own["expected"], color=colour, label=shortened(name), zorder=3)
        ax.plot(own["trials"][shown], own["expected"][shown], linestyle="", color=colour, marker=marker, markersize=3)
    ax.set_xlabel("trials of the optimizer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _metric_axis(ax, data.assign(estimate=data["expected"]), metric, unit)
    ax.set_ylabel("expected best " + ax.get_ylabel())
    return ax


def parallel_coordinates(data: pd.DataFrame, ax: Axes, metric: str = "loss", limit: int = MOST_LINES) -> Axes:
    """One line per cell across its hyperparameters, coloured by rank; the best tenth is drawn on top and thicker.

    Args:
        data: from `analysis.series.searched`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        limit: most lines; of more cells an even sample of the ranks is shown, the best and the worst included.
    """
    names = [name for name in data.columns if name not in ("trial", "parameters", "train_seconds")]
    if data.empty:
        return ax
    # Of more lines than can be told apart, an even sample of the ranks is shown.
    ranks = np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int))
    total, top = len(data), max(1, len(data) // 10)
    data, ranks = data.iloc[ranks], ranks / max(1, total - 1)
    places = pd.DataFrame({name: _axis_places(data[name], name, metric)[0] for name in names})
    colours = mpl.colormaps["viridis_r"]
    best_share = top / max(1, total - 1)
    for place in range(len(data) - 1, -1, -1):  # the best last, on top
        best = ranks[place] < best_share
        colour = "#D55E00" if best else colours(0.1 + 0.9 * ranks[place])
        ax.plot(range(len(names)), places.iloc[place], color=colour, linewidth=1.1 if best else 0.5,
                alpha=0.9 if best else 0.35, zorder=3 if best else 2, rasterized=len(data) > 100)  # fmt: skip
    for x, name in enumerate(names):
        ax.axvline(x, color="#555555", linewidth=0.6, zorder=4)
        for where, text in _axis_places(data[name], name, metric)[1]:
            ax.annotate(text, (x, where), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6, zorder=5,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75})  # fmt: skip
    ax.set_xticks(range(len(names)), [_words(name, metric) for name in names])
    ax.set_yticks([])
    ax.set_xlim(-0.1, len(names) - 0.55)
    ax.set_ylim(-0.05, 1.05)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def isolation(data: pd.DataFrame, ax: Axes, by: str, metric: str = "loss", unit: str = "") -> Axes:
    """Every cell's value against one hyperparameter; the line joins the best of each value of it.

    Args:
        data: from `analysis.series.searched`.
        ax: where to draw.
        by: one of its columns.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
    """
    best = data.groupby(by)["validation"].agg("max" if metric == "accuracy" else "min")
    if by == "optimizer":
        order = optimizer_order(data[by])
        for place, name in enumerate(order):
            own, (colour, marker) = data[data[by] == name], optimizer_look(name)
            spread = place + 0.5 * (np.arange(len(own)) * 0.618 % 1 - 0.5)  # even, and the same each time
            ax.plot(spread, own["validation"], linestyle="", color=colour, marker=marker, markersize=3, alpha=0.6)
        ax.plot(range(len(order)), best.reindex(order), "_", color="#333333", markersize=16, markeredgewidth=1.4)
        ax.set_xticks(range(len(order)), [shortened(name, 18) for name in order], rotation=40, ha="right")
    else:
        ax.plot(data[by], data["validation"], ".", color="#0072B2", alpha=0.4, markersize=4)
        ax.plot(best.index, best, color="#333333", marker="_", markersize=8, label="best", zorder=3)
        low, high = float(data[by].min()), float(data[by].max())
        if by == "depth" or high < 4 * low:
            ax.xaxis.set_major_locator(MaxNLocator(integer=by != "learning_rate", nbins=6))
        elif low > 0:
            _log_axis(ax, "x", data[by])
    if by == "batch_size":
        _size_axis(ax, data[by])
    ax.set_xlabel(_words(by, metric))
    _metric_axis(ax, data.assign(estimate=data["validation"]), metric, unit)
    return ax


def importance_bars(data: pd.DataFrame, ax: Axes) -> Axes:
    """The importance of each hyperparameter, with the spread over bootstrap repeats.

    Args:
        data: from `analysis.series.importance_spread`.
        ax: where to draw.
    """
    rows = np.arange(len(data))
    ax.barh(rows, data["estimate"], color="#56B4E9", height=0.6, zorder=2)
    ax.hlines(rows, data["low"], data["high"], color="#333333", linewidth=1.2, zorder=3)
    ax.set_yticks(rows, [_words(name, "") for name in data["parameter"]])
    ax.invert_yaxis()
    ax.set_xlim(0, max(1.0, float(data["high"].max())) if len(data) else 1.0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("share of the importance (PED-ANOVA)")
    ax.tick_params(axis="y", length=0)
    return ax


def performance_profiles(data: pd.DataFrame, ax: Axes) -> Axes:
    """The share of problems that each optimizer solves within a factor of the fastest.

    Args:
        data: from `analysis.series.profile`.
        ax: where to draw.
    """
    for name in optimizer_order(data["optimizer"]):
        own, (colour, marker) = data[data["optimizer"] == name], optimizer_look(name)
        ax.step(
            own["ratio"], own["share"], where="post", color=colour, marker=marker, markevery=40, label=shortened(name)
        )
    if len(data):
        _log_axis(ax, "x", data["ratio"], margin=1.0)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("updates to the target, as a multiple of the fastest")
    ax.set_ylabel("problems solved")
    return ax


def loss_against_time(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """What each cell reached against how long it trained; the line is the front that no cell beats in both.

    Args:
        data: from `analysis.series.loss_and_time`.
        ax: where to draw.
        metric: `loss` or `accuracy`.
        unit: what the metric is measured in, for the label.
    """
    for name in optimizer_order(data["optimizer"]):
        own, (colour, marker) = data[data["optimizer"] == name], optimizer_look(name)
        ax.plot(own["train_seconds"], own["validation"], linestyle="", color=colour, marker=marker, alpha=0.75,
                label=shortened(name), zorder=3)  # fmt: skip
    front = data[data["front"].astype(bool)].sort_values("train_seconds")
    ax.step(front["train_seconds"], front["validation"], where="post", color="#333333", marker="o", markersize=7,
            fillstyle="none", label="Pareto front", zorder=2)  # fmt: skip
    if (data["train_seconds"] > 0).any():
        _log_axis(ax, "x", data["train_seconds"])
    ax.set_xlabel("training time of the stack (s)")
    _metric_axis(ax, data.assign(estimate=data["validation"]), metric, unit)
    return ax


_OUTCOME_COLOURS = {
    "completed": "#0072B2",
    "stopped": "#56B4E9",
    "diverged": "#D55E00",
    "failed": "#000000",
    "out of memory": "#882255",
    "interrupted": "#E69F00",
}


# Of a host in the name of a worker or a GPU: all after its own name.
_DOMAIN = re.compile(r"(?<=[A-Za-z0-9-])\.[A-Za-z0-9.-]+(?=[: ])")
_TIME_UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def trial_timeline(data: pd.DataFrame, ax: Axes, workers: int = MOST_WORKERS) -> Axes:
    """What ran which trial when: a row per GPU, or per worker without one, a bar per trial, coloured by outcome.

    Trials that share a GPU share its row.

    Args:
        data: from `analysis.series.timeline`.
        ax: where to draw.
        workers: most rows; those that worked longest are shown.
    """
    lengths = (data["ended"] - data["started"]).groupby(data["place"]).sum().sort_values(ascending=False)
    gpus = set(data["place"][data["gpu"]])
    shown = sorted(lengths.index[:workers], key=lambda place: (place not in gpus, place))
    end = float(data["ended"].max()) if len(data) else 0.0
    scale, unit = next(pair for pair in _TIME_UNITS if end > 2 * pair[0] or pair[0] == 1)
    for outcome in [*_OUTCOME_COLOURS, *sorted(set(data["outcome"]) - set(_OUTCOME_COLOURS))]:
        own = data[(data["outcome"] == outcome) & data["place"].isin(shown)]
        if len(own):
            height = 0.8 / own["slots"]
            rows = np.array([shown.index(place) for place in own["place"]]) - 0.4 + (own["slot"] + 0.5) * height
            ax.barh(rows, (own["ended"] - own["started"]) / scale, left=own["started"] / scale, height=height,
                    color=_OUTCOME_COLOURS.get(outcome, "#777777"), edgecolor="white", linewidth=0.3, label=outcome,
                    rasterized=len(data) > 500, zorder=2)  # fmt: skip
    ax.set_yticks(range(len(shown)), [shortened(_DOMAIN.sub("", place)) for place in shown], fontsize=6)
    ax.invert_yaxis()
    ax.set_xlabel(f"time since the first trial began ({unit})")
    worker = "worker (host:process)"
    ax.set_ylabel("GPU" if set(shown) <= gpus and gpus else f"GPU, or {worker}" if gpus else worker)
    return ax


def _words(name: str, metric: str) -> str:
    """A column as an axis names it."""
    return f"validation {metric}" if name == "validation" else name.replace("_", " ")


def _axis_places(values: pd.Series[Any], name: str, metric: str) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Where values lie on a vertical axis from 0 to 1, and some labels of it; losses and rates by their logarithm."""
    if name == "optimizer":
        order = optimizer_order(values)
        step = 1 / max(1, len(order) - 1)
        return np.array([order.index(value) * step for value in values]), [
            (place * step, shortened(label)) for place, label in enumerate(order)
        ]
    numbers = values.to_numpy(dtype=np.float64)
    logarithmic = bool((numbers > 0).all()) and not (name == "validation" and metric == "accuracy") and name != "depth"
    shown = np.log(numbers) if logarithmic else numbers
    low, high = float(shown.min()), float(shown.max())
    span = high - low or 1.0
    marks = np.unique(numbers) if len(np.unique(numbers)) <= 6 else np.array([])
    if not marks.size:
        marks = np.exp(np.linspace(low, high, 5)) if logarithmic else np.linspace(low, high, 5)
    text = (lambda value: metric_text(value, metric)) if name == "validation" else short
    places = [(float((math.log(mark) if logarithmic else mark) - low) / span, text(float(mark))) for mark in marks]
    return (shown - low) / span, places


def _size_axis(ax: Axes, sizes: pd.Series[int]) -> None:
    """A logarithmic axis of batch sizes, which are named themselves where they are few."""
    ax.set_xlabel("batch size")
    distinct = np.sort(sizes.unique())
    if not distinct.size:
        return
    _log_axis(ax, "x", sizes)
    if distinct.size <= 7:
        ax.xaxis.set_major_locator(FixedLocator(distinct.astype(float).tolist()))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _log_axis(ax: Axes, which: str, values: pd.Series[Any], margin: float = 1.3) -> None:
    """A logarithmic axis around the positive ones of some values."""
    positive = values[(values > 0) & np.isfinite(values.astype(float))]
    if positive.empty:
        return
    low, high = float(positive.min()) / margin, float(positive.max()) * margin
    if which == "x":
        ax.set_xscale("log")
        ax.set_xlim(low, high)
    else:
        ax.set_yscale("log")
        ax.set_ylim(low, high)
    _log_ticks(ax, which, low, high)


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


def log_axis(ax: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers, over what has been drawn on it.

    Args:
        ax: where all has been drawn.
        which: x or y.
    """
    if which == "x":
        ax.set_xscale("log")
    else:
        ax.set_yscale("log")
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    _log_ticks(ax, which, low, high)


def _log_ticks(ax: Axes, which: str, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis of less than two decades, powers of ten on a longer one."""
    axis, ratio = (ax.yaxis if which == "y" else ax.xaxis), high / low
    if ratio < 4:
        axis.set_major_locator(MaxNLocator(5))
    else:
        subs = (1.0, 2.0, 5.0) if ratio < 20 else (1.0, 3.0) if ratio < 100 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
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
    height = 4 * below.count("\n") + 4 if below else 0
    ax.annotate(main, (x + 0.5, y + 0.5), xytext=(0, height), textcoords="offset points",
                ha="center", va="center", color=colour, fontsize=7.5 if below else 6.5)  # fmt: skip
    ax.annotate(below, (x + 0.5, y + 0.5), xytext=(0, -5.5), textcoords="offset points",
                ha="center", va="center", color=colour, fontsize=5.5)  # fmt: skip
