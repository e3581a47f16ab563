"""Updates to the target against the batch size, with the critical batch size."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.cells import time_to_target
from analysis.figures import axes, exhibit, style
from analysis.figures.batch_size.scaling import critical_batch_size
from analysis.results import Results, records
from analysis.statistics import NOTHING
from analysis.text import seed_counts, short


def steps_to_target(results: Results) -> pd.DataFrame:
    """Updates until the validation metric reaches the target, for each optimizer and batch size.

    All batch sizes of an optimizer have one architecture (width, depth, settings): the one that reached the target at
    the most batch sizes, of equals the one that needs the fewest updates at the smallest. The learning rate and recipe
    need the fewest: every batch size is tuned for this, as in Shallue et al. (2019). Updates are interpolated between
    evaluations, whose spacing would otherwise be the larger error.

    Returns:
        One row per optimizer, batch size and seed: optimizer, batch_size, regime, cell, learning_rate, seed, updates.
        Only cells and rates at which every seed reached the target. Empty if the workload has none.
    """
    columns = ["optimizer", "batch_size", "regime", "cell", "learning_rate", "seed", "updates"]
    if results.target is None:
        return pd.DataFrame(columns=columns)
    pooled, shape = results.pooled, ["optimizer", "width", "depth", "settings"]
    reached = time_to_target(results.curves, results.target, results.maximize, between=True)
    reached = reached[["trial", "lane", "update"]].rename(columns={"update": "updates"})
    reached["updates"] = reached["updates"].clip(lower=1)  # some reach it at initialisation
    lanes = pooled.lanes.drop(columns="updates").merge(reached, on=["trial", "lane"], how="left")
    described = pooled.trials.drop_duplicates("cell").set_index("cell")[[*shape, "batch_size", "regime"]]
    lanes = lanes.join(described, on="cell")
    setting = ["cell", "recipe", "learning_rate"]
    of_setting = lanes.groupby(setting)["updates"]
    complete = of_setting.transform("count") == of_setting.transform("size")
    lanes["median"] = of_setting.transform("median").where(complete)
    rates = lanes.dropna(subset="median").sort_values(["batch_size", "median", "cell", "learning_rate"])
    fastest = rates.drop_duplicates([*shape, "batch_size"])
    counts = fastest.groupby(shape)["batch_size"].transform("size")
    most = fastest[counts == counts.groupby(fastest["optimizer"]).transform("max")]
    chosen = most.drop_duplicates("optimizer")[shape]
    kept = lanes.merge(fastest.merge(chosen, on=shape)[setting], on=setting)
    return kept.sort_values(["optimizer", "batch_size", "seed"], ignore_index=True)[columns]


def batch_scaling(steps: pd.DataFrame) -> pd.DataFrame:
    """The critical batch size of each optimizer, fitted to `steps_to_target` over the seeds that its cells share.

    Returns:
        Columns optimizer, critical, low, high (its interval), n (seeds fitted), smallest_steps, smallest_examples, and
        reason: why there is none (see `analysis.figures.batch_size.scaling.critical_batch_size`), otherwise empty.
    """
    rows = []
    for name, own in steps.groupby("optimizer"):
        by_seed = own.pivot_table(index="batch_size", columns="seed", values="updates").dropna(axis=1)
        fit = critical_batch_size(by_seed.index.to_numpy(dtype=float), by_seed.to_numpy(dtype=float))
        if isinstance(fit, str):
            rows.append((name, *astuple(NOTHING), math.nan, math.nan, fit))
        else:
            rows.append((name, *astuple(fit.critical), fit.steps.estimate, fit.examples.estimate, ""))
    columns = ["optimizer", "critical", "low", "high", "n", "smallest_steps", "smallest_examples", "reason"]
    return pd.DataFrame(rows, columns=columns)


def steps_against_batch_size(data: pd.DataFrame, fits: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `steps_to_target` beside perfect scaling, which halves the updates when the batch size doubles.

    Args:
        data: from `steps_to_target`; points are medians over seeds, bars their range.
        fits: from `batch_scaling`; each is a curve with a tick at its critical batch size.
        ax: where to draw.
    """
    for label, rows, colour, marker in style.by_optimizer(data, ax):
        own = rows.groupby("batch_size")["updates"].agg(["median", "min", "max"])
        fit = fits[(fits["optimizer"] == rows["optimizer"].iloc[0]) & fits["critical"].notna()]
        ax.vlines(own.index, own["min"], own["max"], color=colour, alpha=0.35, linewidth=2)
        ax.plot(own.index, own["median"], color=colour, marker=marker, linestyle="" if len(fit) else "-", label=label,
                zorder=3)  # fmt: skip
        for critical, smallest in fit[["critical", "smallest_steps"]].to_numpy():
            sizes = np.geomspace(own.index.min(), own.index.max(), 100)
            ax.plot(sizes, smallest * (1 + critical / sizes), color=colour, linewidth=1)
            ax.plot([critical], [2 * smallest], "|", color=colour, markersize=14, markeredgewidth=1.5, zorder=4)
    if len(data):
        sizes = np.sort(data["batch_size"].unique().astype(float))
        first = data[data["batch_size"] == sizes[0]].groupby("optimizer")["updates"].median().min()
        ax.plot(sizes, first * sizes[0] / sizes, "--", color=style.GREY, linewidth=0.9, label="perfect scaling",
                zorder=1)  # fmt: skip
        axes.log_axis(ax, "y", data["updates"], margin=2)
    axes.size_axis(ax, data["batch_size"])
    if fits["critical"].notna().any() and len(data):
        ax.set_xlim(right=max(float(data["batch_size"].max()), float(fits["critical"].max())) * 1.3)
    ax.set_ylabel("updates to the target")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """Updates to the target at each batch size."""
    every = steps_to_target(results)
    data = exhibit.varied(every, "batch_size", 3)
    fits = batch_scaling(data)
    reason, target = "the workload names no target", ""
    if results.target is not None:
        target = short(results.target)
        few = "the target was reached at fewer than three batch sizes"
        reason = "no cell reached the target on every seed" if every.empty else few
    seeds = seed_counts(data.groupby(["optimizer", "batch_size"])["seed"].nunique())
    least = data.groupby(["optimizer", "batch_size"])["updates"].agg(["median", "min", "max"]).sort_values("median")
    fewest = "".join(
        f"Fewest updates to the target: {row['optimizer']} at batch size {row['batch_size']:,}, {short(row['median'])} "
        f"({short(row['min'])} to {short(row['max'])} over seeds). "
        for row in records(least.head(1).reset_index())
    )
    return exhibit.Exhibit(
        "steps-to-target",
        "Updates to the target",
        f"{fewest}Updates until the validation {results.metric} reaches {target}, with one architecture per optimizer, "
        f"at the learning rate that needs the fewest. Points: medians over {seeds}; bars: their range; curve: "
        f"S = S_min (1 + B_crit / B), where it can be fitted; tick: critical batch size.",
        data,
        lambda: exhibit.with_legend(lambda ax: steps_against_batch_size(data, fits, ax)),
        reason,
    )
