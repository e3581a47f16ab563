"""Sensitivity to the learning rate, by optimizer, batch size or width."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.cells import examples_of, floor_of, optimizer_order, rank, rate_table
from analysis.figures import axes, exhibit, style
from analysis.results import Results
from analysis.text import band_note, listing, seed_counts, shortened


def rate_sensitivity(results: Results, table: pd.DataFrame, by: str = "optimizer") -> pd.DataFrame:
    """The validation metric against the learning rate, for the best cell of each value of a column of `cells`.

    Args:
        results: the study.
        table: its `cells`.
        by: `optimizer`, `batch_size`, `width` or `depth`. For the last three only the best cell's optimizer is used.

    Returns:
        The columns of `rate_table`, optimizer, by, group (the value of that column) and tuned (whether this rate was
        chosen).
    """
    ranked = rank(table, results.maximize)
    if by != "optimizer" and len(ranked):
        ranked = ranked[ranked["optimizer"] == ranked["optimizer"].iloc[0]]
    best = ranked.drop_duplicates(by).set_index("trial")
    lanes = results.pooled.lanes[results.pooled.lanes["cell"].isin(best.index)]
    frame = rate_table(lanes, results.metric, examples_of(results, "validation"), floor_of(results))
    tuned = frame["cell"].map(best["learning_rate"]) == frame["learning_rate"]
    group = frame["cell"].map(best[by])
    return frame.assign(optimizer=frame["cell"].map(best["optimizer"]), by=by, group=group, tuned=tuned)


def learning_rate_sensitivity(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """Draw `rate_sensitivity`: one line per group, its tuned rate ringed.

    Rates at which a seed diverged are crosses above the plot, one row per group; a mean over the surviving seeds is
    not drawn there.
    """
    row, by = 0, str(data["by"].iloc[0]) if len(data) else "optimizer"
    spacing = min(0.045, 0.25 / max(1, data.loc[data["diverged"] > 0, "group"].nunique()))
    groups = optimizer_order(data["group"]) if by == "optimizer" else sorted(data["group"].unique())
    for place, name in enumerate(groups):
        line = data[data["group"] == name].sort_values("learning_rate")
        colour, marker = style.optimizer_look(name) if by == "optimizer" else style.ordered_look(place, len(groups))
        label = shortened(name) if by == "optimizer" else f"{axes.column_label(by)} {name:,}"
        # NaN breaks the line at a rate that not every seed survived.
        shown = line.assign(**{column: line[column].where(line["eligible"]) for column in ("estimate", "low", "high")})
        axes.band(ax, shown["learning_rate"], shown, colour, 0.12)
        ax.plot(shown["learning_rate"], shown["estimate"], color=colour, marker=marker, label=label, zorder=3)
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
    axes.metric_axis(ax, data.loc[data["eligible"], "estimate"], metric, unit)
    return ax


def figure(results: Results, table: pd.DataFrame, by: str = "optimizer") -> exhibit.Exhibit:
    """Sensitivity of the best cell of each optimizer, or of the best optimizer at each batch size or width."""
    data, metric, unit = rate_sensitivity(results, table, by), results.metric, exhibit.unit_of(results)
    name, title, words = "learning-rate-sensitivity", "Sensitivity to the learning rate", axes.column_label(by)
    cells, reason = "each optimizer at every learning rate of its grid", "no cell has a tuned learning rate yet"
    lines = f"optimizer: {listing(data['optimizer'])}"
    if by != "optimizer":
        data = exhibit.varied(data, "group")
        name, title, lines = f"rate-by-{words.replace(' ', '-')}", f"{title}, by {words}", words
        cells, reason = f"{listing(data['optimizer'])} at each {words}", f"the best optimizer ran at one {words} only"
    seeds = data.loc[data["eligible"], "n"]
    return exhibit.Exhibit(
        name,
        title,
        f"The best cell of {cells}. Line: {exhibit.mean_of(results)} of the final validation {metric} over "
        f"{seed_counts(seeds)}; {band_note(seeds)}. Ring: tuned rate; cross: a seed diverged.",
        f"Final validation {metric} against learning rate, one line per {lines}.",
        data,
        lambda: exhibit.with_legend(lambda ax: learning_rate_sensitivity(data, ax, metric, unit), height=85),
        reason,
    )
