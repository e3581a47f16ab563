"""Sensitivity to the learning rate, by optimizer, batch size or width."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.cells import examples_of, floor_of, optimizer_order, rank
from analysis.figures import axes, exhibit, style
from analysis.rates import rate_table
from analysis.results import Results, records
from analysis.statistics import LEAST
from analysis.text import listing, seed_counts, short, shortened


def rate_sensitivity(results: Results, table: pd.DataFrame, by: str = "optimizer") -> pd.DataFrame:
    """The validation metric against the learning rate, for the best cell of each value of a column of `cells`.

    Args:
        results: the study.
        table: its `cells`.
        by: `optimizer`, `batch_size`, `width` or `depth`. For the last three only the best cell's optimizer is used.

    Returns:
        The columns of `rate_table`, optimizer, by, group (the value of that column), failed (lanes that diverged, or
        ended no better than before training), untrained (the median metric before training; NaN if not recorded) and
        decades (the group's `tolerance`).
    """
    ranked = rank(table, results.maximize)
    if by != "optimizer" and len(ranked):
        ranked = ranked[ranked["optimizer"] == ranked["optimizer"].iloc[0]]
    best = ranked.drop_duplicates(by).set_index("trial")
    lanes = results.pooled.lanes[results.pooled.lanes["cell"].isin(best.index)]
    frame = rate_table(lanes, results.metric, examples_of(results, "validation"), floor_of(results))
    lanes = lanes[lanes["recipe"] == lanes["cell"].map(best["recipe"])]
    group = frame["cell"].map(best[by])
    frame = frame.assign(optimizer=frame["cell"].map(best["optimizer"]), by=by, group=group)
    frame = frame.join(_against_start(results, lanes), on=["cell", "learning_rate"])
    widths = {cell: tolerance(own, results.metric) for cell, own in frame.groupby("cell")}
    return frame.assign(decades=frame["cell"].map(widths).astype(float))


def _against_start(results: Results, lanes: pd.DataFrame) -> pd.DataFrame:
    """The number of failed lanes and the metric before training of each (cell, learning rate)."""
    curves, metric = results.curves, results.metric
    first = curves[(curves["update"] == 0) & (curves["split"] == "validation") & (curves["metric"] == metric)]
    first = first[["trial", "lane", "value"]].rename(columns={"value": "start"})
    both = lanes.merge(first, on=["trial", "lane"], how="left")
    gain = (both[f"validation_{metric}"] - both["start"]) * (1 if results.maximize else -1)
    both["failed"] = (both["outcome"] == "diverged") | (gain <= 0)  # an untrained accuracy is that of chance
    return both.groupby(["cell", "learning_rate"]).agg(failed=("failed", "sum"), untrained=("start", "median"))


def tolerance(rates: pd.DataFrame, metric: str, factor: float = 1.1) -> float:
    """How little a cell depends on its learning rate: the width of the range around the best that is nearly as good.

    A parabola is fitted to the logarithm of the loss, or of the share of errors, against that of the rate, at all rates
    within ten times the best: so the width is not that of a single lucky rate.

    Args:
        rates: rows of `rate_table` of one cell.
        metric: `loss` or `accuracy`.
        factor: the largest loss, or share of errors, that counts, as a multiple of the smallest.

    Returns:
        Decades, at most those that were tried; NaN with fewer than three such rates.
    """
    known = rates[rates["eligible"]].sort_values("learning_rate")
    scores = known["estimate"].to_numpy(dtype=np.float64)
    logs = np.log(np.maximum(1 - scores if metric == "accuracy" else scores, LEAST))
    steps = np.log10(known["learning_rate"].to_numpy(dtype=np.float64))
    near = logs <= logs.min(initial=math.inf) + math.log(10)
    if near.sum() < 3:
        return math.nan
    curvature = float(np.polyfit(steps[near], logs[near], 2)[0])
    tried = float(steps[near].max() - steps[near].min())
    return min(tried, 2 * math.sqrt(math.log(factor) / curvature)) if curvature > 0 else tried


def learning_rate_sensitivity(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """Draw `rate_sensitivity`: one line per group, its name at its end, its tuned rate ringed.

    Rates at which a seed diverged are crosses above the plot, one row per group; a mean over the surviving seeds is
    not drawn there. Losses above `most` are triangles at the upper edge.
    """
    top = most(data, metric)
    row, by = 0, str(data["by"].iloc[0]) if len(data) else "optimizer"
    spacing = min(0.045, 0.25 / max(1, data.loc[data["diverged"] > 0, "group"].nunique()))
    groups = optimizer_order(data["group"]) if by == "optimizer" else sorted(data["group"].unique())
    words = shortened if by == "optimizer" else f"{axes.column_label(by)} {{:,}}".format
    at_end = (lambda name: shortened(name, 18)) if by == "optimizer" else "{:,}".format if style.narrow() else words
    ends = []
    for place, name in enumerate(style.series(ax, groups, words)):
        line = data[data["group"] == name].sort_values("learning_rate")
        colour, marker = style.optimizer_look(name) if by == "optimizer" else style.ordered_look(place, len(groups))
        # NaN breaks the line at a rate that not every seed survived.
        shown = line.assign(**{column: line[column].where(line["eligible"]) for column in ("estimate", "low", "high")})
        known = shown[(shown["n"] > 1) & shown["estimate"].notna()]
        ax.vlines(known["learning_rate"], known["low"], known["high"], color=colour, alpha=0.5, linewidth=0.8)
        ax.plot(shown["learning_rate"], shown["estimate"], color=colour, marker=marker, zorder=3)
        near = shown.assign(estimate=shown["estimate"].clip(upper=top))[["learning_rate", "estimate"]].dropna()
        ends += [(at_end(name), colour, *end) for end in near.to_numpy()[-1:]]
        far = shown.loc[shown["estimate"] > top, "learning_rate"]
        if len(far):  # an empty line that is not clipped would shrink the axes
            ax.plot(far, [1.0] * len(far), "^", color=colour, markersize=7, fillstyle="none", clip_on=False, zorder=5,
                    transform=ax.get_xaxis_transform())  # fmt: skip
        tuned = shown[shown["tuned"]]
        ax.plot(tuned["learning_rate"], tuned["estimate"], "o", color=colour, markersize=9, fillstyle="none", zorder=4)
        diverged = line.loc[line["diverged"] > 0, "learning_rate"]
        if len(diverged):
            axes.crosses_above(ax, diverged, 1.04 + spacing * row, colour)
            row += 1
    if row:
        axes.label_above(ax, "diverged", 1.04 + spacing * (row - 1))
    if len(data):
        ax.set_xscale("log")
        axes.log_ticks(ax, "x", float(data["learning_rate"].min()), float(data["learning_rate"].max()))
    ax.set_xlabel("learning rate")
    axes.metric_axis(ax, data.loc[data["eligible"], "estimate"].clip(upper=top), metric, unit)
    axes.label_ends(ax, ends)
    return ax


def most(data: pd.DataFrame, metric: str) -> float:
    """The largest loss that is worth an axis: twice that before training; NaN if that is not recorded."""
    return math.inf if metric == "accuracy" else 2 * float(data["untrained"].max())


def figure(results: Results, table: pd.DataFrame, by: str = "optimizer") -> exhibit.Exhibit:
    """Sensitivity of the best cell of each optimizer, or of the best optimizer at each batch size or width."""
    data, metric, unit = rate_sensitivity(results, table, by), results.metric, exhibit.unit_of(results)
    name, title, words = "learning-rate-sensitivity", "Sensitivity to the learning rate", axes.column_label(by)
    cells, reason = "each optimizer at every learning rate of its grid", "no cell ran at three learning rates"
    if (data["recipe"] != "").any():
        cells += ", with its tuned recipe"
    if by != "optimizer":
        data = exhibit.varied(data, "group")
        name, title = f"rate-by-{words.replace(' ', '-')}", f"{title}, by {words}"
        cells, reason = f"{listing(data['optimizer'])} at each {words}", f"the best optimizer ran at one {words} only"
    data = exhibit.varied(data, "learning_rate", 3)
    seeds = data.loc[data["eligible"], "n"]
    return exhibit.Exhibit(
        name,
        title,
        f"{_words(data, metric)}The best cell of {cells}: {exhibit.mean_of(results)} of the final validation {metric} "
        f"over {seed_counts(seeds)}, with 95% intervals as bars. Ring: tuned rate"
        f"{_marks(data, metric)}.",
        data,
        lambda: exhibit.with_legend(lambda ax: learning_rate_sensitivity(data, ax, metric, unit), height=85),
        reason,
    )


def _words(data: pd.DataFrame, metric: str) -> str:
    """The tolerance of each group in a sentence."""
    groups = data.drop_duplicates("group").dropna(subset="decades").sort_values("group")
    if groups.empty:
        return ""
    if len(groups) > 4:
        groups = groups.sort_values("decades").iloc[[0, -1]].assign(which=["fewest: ", "most: "])
    by = "" if groups["by"].iloc[0] == "optimizer" else f"{axes.column_label(groups['by'].iloc[0])} "
    rates = np.log10(data["learning_rate"].where(data["eligible"])).groupby(data["group"])
    whole = groups["decades"] >= groups["group"].map(rates.max() - rates.min()) - 1e-9
    widths = listing(
        f"{row.get('which', '')}{'all ' if every else ''}{row['decades']:.1f}{' tried' if every else ''} "
        f"({by}{row['group'] if not by else format(row['group'], ',')})"
        for row, every in zip(records(groups), whole, strict=True)
    )
    measure = "loss" if metric == "loss" else "share of errors"
    return (
        f"Range of rates that give at most 1.1 times the best {measure}, in decades (by a parabola, no intervals): "
        f"{widths}. "
    )


def _marks(data: pd.DataFrame, metric: str) -> str:
    """What rings, crosses, gaps and triangles are, and how many lanes failed."""
    failed, top = data["failed"].sum(), most(data, metric)
    words = f"; {failed} of {data['lanes'].sum()} lanes failed, or ended no better than an untrained network"
    far = f"; triangle: a loss above {short(top)}, twice that before training"
    smooth = " (smoothed over its neighbours)" if (data["tuned"] & ~data["best"]).any() else ""
    gaps = (~data["eligible"] & (data["diverged"] == 0)).any()
    gap = "; gap: a rate that was stopped early or ran on fewer seeds" if gaps else ""
    return (
        f"{smooth}; cross: a seed diverged{gap}"
        + (words if failed else "")
        + (far if (data["estimate"] > top).any() else "")
    )
