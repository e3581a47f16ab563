"""The gradient noise scale along training."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.cells import best_of_regimes
from analysis.figures import axes, exhibit, style
from analysis.figures.batch_size.scaling import gradient_noise_scale
from analysis.results import Results, records
from analysis.statistics import LIMITS
from analysis.text import listing, seed_counts, short


def gradient_noise(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The gradient noise scale along the training of the best cell of each regime, at its tuned rate.

    Returns:
        Columns regime, trial, batch_size, update, examples, estimate, low, high, n. Empty if it was not recorded.
    """
    rows = []
    for cell, curves in best_of_regimes(results, table):
        wide = curves[curves["metric"].isin(["gradient_square", "gradient_noise"])].pivot_table(
            index=["update", "examples", "seed"], columns="metric", values="value"
        )
        for (update, examples), own in wide.groupby(level=["update", "examples"]):
            scale = gradient_noise_scale(own["gradient_square"], own["gradient_noise"])
            rows.append((cell["regime"], cell["trial"], cell["batch_size"], update, examples, *astuple(scale)))
    frame = pd.DataFrame(rows, columns=["regime", "trial", "batch_size", "update", "examples", *LIMITS])
    return frame.astype(dict.fromkeys(["batch_size", "update", "examples", *LIMITS], float))


def noise_scale(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `gradient_noise`: one line per regime, broken where it is infinite, and a dotted line at its batch size."""
    for regime in style.series(ax, data["regime"].unique()):
        line = data[data["regime"] == regime]
        colour, finite = style.REGIME_COLOURS[str(regime)], line.replace(math.inf, math.nan)
        axes.band(ax, line["examples"], line.assign(high=line["high"].replace(math.inf, 1e12)), colour)
        ax.plot(finite["examples"], finite["estimate"], color=colour, marker=".", label=str(regime), zorder=3)
        ax.axhline(line["batch_size"].iloc[0], color=colour, linestyle=":", linewidth=0.8, zorder=1)
    finite = data[np.isfinite(data["estimate"]) & (data["estimate"] > 0)]
    if len(finite):
        axes.log_axis(ax, "y", pd.concat([finite["estimate"], data["batch_size"]]))
    axes.log_axis_with_zero(ax, data["examples"])
    ax.set(xlabel=axes.LABELS["examples"], ylabel="gradient noise scale (examples)")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The gradient noise scale of the best cell of each regime."""
    data = gradient_noise(results, table)
    last = data.drop_duplicates("regime", keep="last")
    ends = listing(
        f"{row['regime']} {short(row['estimate'])} [{short(row['low'])}, {short(row['high'])}]" for row in records(last)
    )
    return exhibit.Exhibit(
        "gradient-noise",
        "Gradient noise scale along training",
        f"At the end of training the gradient noise scale is, in examples: {ends}. It is tr(Σ) / |G|², the batch size "
        f"at which noise and signal of the gradient are equal, on a fixed subset of the training split, for the best "
        f"cell of each regime at its tuned rate over {seed_counts(data['n'])}. Band: "
        f"pointwise 95% interval; dotted: the batch size of the cell.",
        data,
        lambda: exhibit.with_legend(lambda ax: noise_scale(data, ax)),
        "not recorded; set gradient_noise = true under [recording] in the spec to record it",
    )
