"""Throughput against the batch size, by engine."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import axes, exhibit, style
from analysis.results import Results, records
from analysis.schema import Outcome
from analysis.text import counted, short


def throughput(results: Results) -> pd.DataFrame:
    """Training examples per second of each trial's whole stack of lanes, without evaluation.

    Returns:
        Columns trial, optimizer, batch_size, engine, parameters, lanes, examples_per_second. Trials in which a lane
        ended early are left out, because the remaining lanes then ran faster.
    """
    trials, ended = results.trials, results.lanes["outcome"] != Outcome.COMPLETED
    early = results.lanes.loc[ended | results.lanes["stopped_update"].notna(), "trial"]
    timed = trials[(trials["stack_seconds"] > 0) & trials["lanes"].notna() & ~trials["trial"].isin(early)]
    rates = timed["examples"] * timed["lanes"] / timed["stack_seconds"]
    columns = ["trial", "optimizer", "batch_size", "engine", "parameters", "lanes"]
    return timed[columns].assign(examples_per_second=rates.astype(float)).reset_index(drop=True)


def throughput_against_batch_size(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `throughput`: a point per trial and a line through the medians of each engine."""
    data = data.fillna({"engine": "not recorded"})
    for place, engine in enumerate(style.series(ax, sorted(data["engine"].unique()))):
        own = data[data["engine"] == engine]
        colour = (style.BLUE, style.ORANGE, "#009E73", "#CC79A7", style.GREY)[place % 5]
        ax.plot(own["batch_size"], own["examples_per_second"], ".", color=colour, alpha=0.4, markersize=4)
        medians = own.groupby("batch_size")["examples_per_second"].median()
        ax.plot(medians.index, medians, color=colour, marker="o", label=str(engine), zorder=3)
    axes.log_axis(ax, "y", data["examples_per_second"])
    axes.size_axis(ax, data["batch_size"])
    ax.set_ylabel("examples per second, all lanes")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """Throughput of every trial."""
    data = throughput(results)
    named = data.fillna({"engine": "engine not recorded"})
    medians = named.groupby(["engine", "batch_size"])["examples_per_second"].median().sort_values().reset_index()
    ends = " to ".join(
        f"{short(row['examples_per_second'])} ({row['engine']}, batch size {row['batch_size']:,})"
        for row in records(medians.iloc[[0, -1]] if len(medians) else medians)
    )
    return exhibit.Exhibit(
        "throughput",
        "Throughput",
        f"Median training examples per second of a trial's whole stack of lanes, without evaluation: from {ends}. "
        f"Points: {counted(len(data), 'trial')} of every width and depth; line: median by engine; no intervals.",
        exhibit.varied(data, "batch_size", 3),
        lambda: exhibit.with_legend(lambda ax: throughput_against_batch_size(data, ax)),
        "trials at fewer than three batch sizes ran with all their lanes to the end",
    )
