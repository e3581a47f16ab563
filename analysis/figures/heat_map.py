"""Heat maps of the best cells: optimizer against batch size, depth against width."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.cells import optimizer_order, rank
from analysis.figures import exhibit, style
from analysis.results import Results
from analysis.schema import Outcome, Regime
from analysis.statistics import LIMITS
from analysis.text import estimate_text, interval_text, metric_text, seed_counts, shared_power, short, shortened


def binned(values: pd.Series[int], limit: int = 8) -> pd.Series[str]:
    """Labels of whole numbers: themselves, or ranges between powers of two if there are more than `limit`."""
    if values.nunique() <= limit:
        return values.map("{:,}".format)
    powers = np.floor(np.log2(values.clip(lower=1))).astype(int)
    labels = [f"{2**power}-{2 ** (power + 1) - 1}" if power else "0-1" for power in powers.tolist()]
    return pd.Series(labels, index=values.index)


def grid(table: pd.DataFrame, rows: str, columns: str, maximize: bool) -> pd.DataFrame:
    """The best cell of each pair of values of two columns of `cells`.

    Args:
        table: `cells` of a study.
        rows: column whose values make the rows, such as `optimizer`.
        columns: column whose values make the columns, such as `batch_size`.
        maximize: whether larger is better.

    Returns:
        Columns row, column (labels), trial, estimate, low, high, n, parameters (of the best cell), and why: empty where
        there is an estimate, otherwise `not run`, or how the trials there ended. Every pair of labels has its row.
    """
    labels = {name: table[name] if name == "optimizer" else binned(table[name]) for name in (rows, columns)}
    if "batch_size" in labels:
        sizes = labels["batch_size"].astype(str)  # also where there is none
        full = (table["regime"] == Regime.BATCH).groupby(sizes).transform("all")
        labels["batch_size"] = sizes.where(~full, "full (" + sizes + ")")
    order = {
        name: optimizer_order(label) if name == "optimizer" else list(label[table[name].sort_values().index].unique())
        for name, label in labels.items()
    }
    named = table.assign(row=labels[rows], column=labels[columns])
    best = rank(named, maximize).drop_duplicates(["row", "column"])
    endings = named.groupby(["row", "column"])["outcome"].agg(lambda outcomes: " or ".join(sorted(set(outcomes))))
    whole = pd.MultiIndex.from_product([order[rows], order[columns]], names=["row", "column"])
    scored = best.rename(columns={"validation": "estimate", "validation_low": "low", "validation_high": "high"})
    result = scored.set_index(["row", "column"])[["trial", *LIMITS, "parameters"]].reindex(whole)
    why = endings.reindex(whole).replace(str(Outcome.COMPLETED), "no rate survived").fillna("not run")
    result["why"] = why.where(result["estimate"].isna(), "")
    return result.astype({"n": float}).fillna({"n": 0}).astype({"n": int}).reset_index()


def heat_map(data: pd.DataFrame, ax: Axes, rows: str, columns: str, metric: str = "loss", sizes: bool = False) -> Axes:
    """Draw `grid`: a coloured cell with its value and interval for each pair, grey with the reason where there is none.

    Args:
        data: from `grid`.
        ax: where to draw.
        rows: label of the vertical axis.
        columns: label of the horizontal axis.
        metric: `loss` or `accuracy`.
        sizes: whether to add the number of parameters.
    """
    labels = [list(dict.fromkeys(data[name])) for name in ("row", "column")]
    values = data["estimate"].to_numpy(dtype=np.float64).reshape(len(labels[0]), len(labels[1]))
    colours = mpl.colormaps["viridis" if metric == "accuracy" else "viridis_r"].with_extremes(bad=style.LIGHT_GREY)
    norm, power = _norm(values, metric), shared_power(data["estimate"], metric)
    if power:
        ax.set_title(f"in units of 1e{power}", loc="right", fontsize=7)
    ax.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="white", linewidth=1.5)
    for place, cell in enumerate(data.to_dict("records")):
        y, x = divmod(place, len(labels[1]))
        if cell["why"]:
            _write(ax, x, y, cell["why"].replace(" or ", "\nor ").replace("no rate ", "no rate\n"), "", "#444444")
            continue
        luminance = np.dot([0.2126, 0.7152, 0.0722], np.power(colours(norm(cell["estimate"]))[:3], 2.2))
        colour = "#111111" if luminance > 0.18 else "#fefefe"  # the one with more contrast (WCAG 2)
        shown, low, high = (cell[name] / 10.0**power for name in ("estimate", "low", "high"))
        interval = interval_text(low, high, cell["n"], metric)
        if sizes and cell["parameters"] > 0:
            interval += f"\n{short(cell['parameters'])} parameters"
        if style.narrow() and len(labels[1]) > 3:
            interval = ""  # they do not fit
        _write(ax, x, y, metric_text(shown, metric), interval, colour)
    length, fold = (14, "\n") if style.narrow() else (30, " ")
    ax.set_xticks(np.arange(len(labels[1])) + 0.5, [label.replace(" ", fold) for label in labels[1]])
    ax.set_yticks(np.arange(len(labels[0])) + 0.5, [shortened(label, length) for label in labels[0]])
    ax.tick_params(length=0, which="both")
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=columns, ylabel=rows)
    return ax


def _norm(values: NDArray[np.float64], metric: str) -> Normalize:
    finite = values[np.isfinite(values) & (values > 0)]
    if not finite.size:
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    if metric == "accuracy":
        return Normalize(low, high if high > low else low + 0.01)
    return LogNorm(low, high if high > low else low * 1.1, clip=True)


def _write(ax: Axes, x: int, y: int, main: str, below: str, colour: str) -> None:
    """Text in the middle of a cell, and smaller text below it."""
    height = 4 * below.count("\n") + 4 if below else 0
    ax.annotate(main, (x + 0.5, y + 0.5), xytext=(0, height), textcoords="offset points",
                ha="center", va="center", color=colour, fontsize=7.5 if below else 6.5)  # fmt: skip
    ax.annotate(below, (x + 0.5, y + 0.5), xytext=(0, -5.5), textcoords="offset points",
                ha="center", va="center", color=colour, fontsize=6)  # fmt: skip


# Name, title, what the best is taken over, why there is nothing to compare, and whether parameters are shown.
_WORDS = {
    ("optimizer", "batch_size"): (
        "optimizer-batch-size", "by optimizer and batch size", "width and depth",
        "fewer than three cells or two batch sizes", False,
    ),
    ("depth", "width"): (
        "width-depth", "by width and depth", "optimizer and batch size", "fewer than three widths and depths", True,
    ),
}  # fmt: skip


def _best(data: pd.DataFrame, results: Results, down: str, across: str) -> str:
    """The best pair in a sentence."""
    known = data.dropna(subset="estimate").sort_values("estimate", ascending=not results.maximize)
    if known.empty:
        return ""
    row = known.iloc[0]
    best = f"{down} {row['row']} with {across} {row['column']}: {estimate_text(row, results.metric)}"
    return exhibit.best_here(results, best) + " "


def figure(results: Results, table: pd.DataFrame, rows: str, columns: str) -> exhibit.Exhibit:
    """The best cell of each optimizer and batch size, or of each depth and width with the number of parameters."""
    data = grid(table, rows, columns, results.maximize)
    # A single column of optimizers is the first figure again.
    shows = data["trial"].nunique() >= 3 and (rows != "optimizer" or data["column"].nunique() > 1)
    name, title, others, alone, sizes = _WORDS[rows, columns]
    down, across = rows.replace("_", " "), columns.replace("_", " ")

    def drawn() -> Figure:
        wide, high = data["column"].nunique(), data["row"].nunique()
        image = style.figure(min(style.PAGE_MM, max(style.COLUMN_MM, 45 + 24 * wide)), 24 + 10 * max(high, 2))
        heat_map(data, image.subplots(), down, across, results.metric, sizes)
        return image

    return exhibit.Exhibit(
        name,
        f"Validation {results.metric} {title}",
        f"{_best(data, results, down, across)}Yellow is best, grey has no value. Validation {results.metric} of the "
        f"best cell over {others}, at its tuned rate: {exhibit.mean_of(results)} over {seed_counts(table['n'])}, with "
        f"the 95% t interval.",
        data if shows else data.head(0),
        drawn,
        alone if len(table) else "no trial has ended yet",
    )
