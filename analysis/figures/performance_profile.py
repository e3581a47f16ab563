"""Performance profiles: the share of problems that each optimizer solves within a factor of the fastest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from analysis.cells import time_to_target
from analysis.figures import axes, exhibit, style
from analysis.results import Results
from analysis.statistics import censored_median, performance_profile
from analysis.text import joined, seed_counts


def profile(results: Sequence[Results]) -> pd.DataFrame:
    """Performance profiles of the optimizers (Dolan and More 2002).

    A problem is a study, width, depth and batch size at which all optimizers ran that every study has; an optimizer
    solves it in the median over seeds of the updates that its best rate and settings need to reach the target.

    Returns:
        Columns optimizer, ratio (multiple of the updates of the fastest), share (of problems solved within it),
        problems.
    """
    times: list[pd.DataFrame] = []
    for place, study in enumerate(results):
        if study.target is None:
            continue
        pooled = study.pooled
        reached = time_to_target(study.curves, study.target, study.maximize)[["trial", "lane", "update"]]
        lanes = pooled.lanes.merge(reached, on=["trial", "lane"], how="left", suffixes=("", "_reached"))
        medians = (
            lanes.groupby(["cell", "recipe", "learning_rate"])["update"].agg(censored_median).groupby("cell").min()
        )
        own = pooled.trials.drop_duplicates("cell").assign(study=place)
        times.append(own.assign(updates=own["cell"].map(medians)))
    columns = ["optimizer", "ratio", "share", "problems"]
    if not times:
        return pd.DataFrame(columns=columns)
    every = pd.concat(times, ignore_index=True).replace({"updates": {math.inf: math.nan}})
    # An optimizer of some studies only would leave the problems of these.
    every = every[every.groupby("optimizer")["study"].transform("nunique") == len(times)]
    problem = ["study", "width", "depth", "batch_size"]
    by_problem = every.pivot_table(index="optimizer", columns=problem, values="updates", aggfunc="min", dropna=False)
    ran = every.assign(ran=1).pivot_table(index="optimizer", columns=problem, values="ran", dropna=False)
    contested = by_problem.loc[:, ran.notna().all()].clip(lower=1)
    if len(contested) < 2 or contested.empty or contested.isna().all(axis=None):
        return pd.DataFrame(columns=columns)
    slowest = float(np.nanmax((contested / contested.min()).to_numpy(dtype=np.float64)))
    ratios = np.geomspace(1.0, max(slowest, 1.1), 200)
    shares = performance_profile(contested.to_numpy(dtype=float), ratios)
    frame = pd.DataFrame(shares.T, ratios, contested.index).rename_axis("ratio").reset_index()
    return frame.melt("ratio", value_name="share").assign(problems=contested.shape[1])[columns]


def performance_profiles(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `profile`: one step line per optimizer."""
    for label, own, colour, marker in style.by_optimizer(data, ax):
        ax.step(own["ratio"], own["share"], where="post", color=colour, marker=marker, markevery=40, label=label)
    axes.log_axis(ax, "x", data["ratio"], margin=1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="updates to the target, as a multiple of the fastest", ylabel="problems solved")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The performance profile of one study."""
    reason = (
        "the workload names no target"
        if results.target is None
        else "fewer than three problems with several optimizers"
    )
    return _figure(exhibit.varied(profile([results]), "optimizer"), "", "", seed_counts(table["n"]), reason)


def across_studies(studies: Sequence[Results]) -> exhibit.Exhibit:
    """The performance profile over several studies."""
    targets = [study for study in studies if study.target is not None]
    reason = "fewer than two studies name a target, or several optimizers reached it in fewer than three problems"
    return _figure(profile(targets if len(targets) > 1 else []), "across", "study, ", "seeds", reason)


def _figure(data: pd.DataFrame, suffix: str, problem: str, seeds: str, reason: str) -> exhibit.Exhibit:
    every = data.groupby("optimizer")["share"].agg(["first", "last"]).round(6)
    best = "; ".join(
        f"{words}: {joined(list(every.index[every[name] == every[name].max()]))} ({every[name].max():.0%})"
        for words, name in (("Fastest most often", "first"), ("solves the most problems", "last"))
        if len(every)
    )
    return exhibit.Exhibit(
        f"performance-profile{suffix and '-' + suffix}",
        "Performance profile" + (" over the studies" if suffix else ""),
        f"{best}. Share of the {data['problems'].max() if len(data) else 0} problems (each a {problem}width, depth "
        f"and batch size at which every optimizer here ran) in which an optimizer reaches the target within a multiple "
        f"of the updates of the fastest. Medians over {seeds}, each at its best rate; no intervals.",
        data if len(data) and data["problems"].iloc[0] >= 3 else data.head(0),
        lambda: exhibit.with_legend(lambda ax: performance_profiles(data, ax)),
        reason,
    )
