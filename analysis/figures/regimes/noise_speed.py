"""Noise vs. speed: how smoothly and how fast the best cells learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.cells import curves_of, optimizer_order, rank, time_to_target
from analysis.figures import axes, exhibit, style
from analysis.results import Results
from analysis.schema import Regime
from analysis.statistics import LEAST, log_interval
from analysis.text import metric_text, seed_counts, short, shortened


def noise_and_speed(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """How fast and how smoothly the best cell of each optimizer and batch size learns, at its tuned rate.

    Speed is the number of training examples until the validation loss first falls to a level common to all cells:
    halfway, on the log scale, from the loss at initialisation to the best final loss of the study. Noise is the
    standard deviation of the log loss about its trend over the second half of the evaluations: of each from the line
    through its two neighbours, straight in the updates or in their logarithm, whichever fits better (after Gasser et
    al. 1986). Neither an exponential nor a power law adds to it.

    Returns:
        Columns optimizer, batch_size, regime, trial, learning_rate; examples, examples_low, examples_high (infinite
        where a seed never reached the level), reached (seeds that did), noise, noise_low, noise_high, seeds; and level,
        the common loss.
    """
    best = rank(table, results.maximize).drop_duplicates(["optimizer", "batch_size"])
    curves = curves_of(results, best)
    losses = curves[(curves["split"] == "validation") & (curves["metric"] == "loss") & (curves["value"] > 0)]
    losses = losses.sort_values(["cell", "seed", "update"])
    lanes = losses.groupby(["cell", "seed"])["value"]
    level = math.sqrt(lanes.first().median() * lanes.last().min()) if len(losses) else math.nan
    reached = time_to_target(losses, level, maximize=False).set_index(["trial", "lane"])["examples"]
    names = ["optimizer", "batch_size", "regime", "trial", "learning_rate"]
    rows = []
    for cell in best.to_dict("records"):
        own = losses[losses["cell"] == cell["trial"]]
        times = reached.reindex(pd.MultiIndex.from_frame(own[["trial", "lane"]].drop_duplicates())).fillna(math.inf)
        times = times.clip(lower=own.loc[own["update"] > 0, "examples"].min())  # some reach it at initialisation
        late = own[own.groupby("seed")["update"].rank(pct=True) > 0.5]
        noise = pd.Series([_scatter(lane["update"], lane["value"]) for _, lane in late.groupby("seed")], dtype=float)
        row = {name: cell[name] for name in names}
        row |= {"reached": int(np.isfinite(times).sum()), "seeds": len(times)}
        rows.append(row | log_interval(times).named("examples") | log_interval(noise[noise > 0]).named("noise"))
    columns = [*names, "examples", "examples_low", "examples_high", "reached"]
    columns += ["noise", "noise_low", "noise_high", "seeds"]
    numbers = dict.fromkeys(columns[4:], "float64") | {"reached": "int64", "seeds": "int64"}
    return pd.DataFrame(rows, columns=columns).astype(numbers).assign(level=level)


def _scatter(places: pd.Series[int], values: pd.Series[float]) -> float:
    """The standard deviation of the logarithms of a lane's values about their trend; NaN for fewer than three."""
    logs, scatters = np.log(values.to_numpy(dtype=np.float64)), []
    for x in (places.to_numpy(dtype=np.float64), np.log(np.maximum(places.to_numpy(dtype=np.float64), 1.0))):
        share = (x[2:] - x[1:-1]) / np.maximum(x[2:] - x[:-2], LEAST)
        off = logs[1:-1] - share * logs[:-2] - (1 - share) * logs[2:]
        scatters.append(math.sqrt(np.mean(off**2 / (1 + share**2 + (1 - share) ** 2))) if off.size else math.nan)
    return min(scatters)


def noise_against_speed(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `noise_and_speed`: one point per optimizer and batch size, with intervals in both directions.

    Cells of which a seed never reached the common level are hollow and stand right of the plot.
    """
    present = [name for name in Regime if name in set(data["regime"])]
    for regime in present:
        colour = style.REGIME_COLOURS[regime]
        for _, own, _, marker in style.by_optimizer(data[data["regime"] == regime], ax):
            reached, late = own[np.isfinite(own["examples"])], own[~np.isfinite(own["examples"])]
            bars: dict[str, Any] = {"color": colour, "alpha": 0.35, "linewidth": 0.8}
            across = reached[np.isfinite(reached["examples_high"])]
            ax.hlines(across["noise"], across["examples_low"], across["examples_high"], **bars)
            up = reached[np.isfinite(reached["noise_high"])]
            ax.vlines(up["examples"], up["noise_low"], up["noise_high"], **bars)
            marks: dict[str, Any] = {"linestyle": "", "color": colour, "marker": marker, "clip_on": False}
            if len(reached):
                ax.plot(reached["examples"], reached["noise"], markersize=5, **marks)
            if len(late):
                right = np.full(len(late), 1.02)
                ax.plot(right, late["noise"], fillstyle="none", transform=ax.get_yaxis_transform(), **marks)
    for regime in present:
        ax.plot([], [], "s", color=style.REGIME_COLOURS[regime], label=str(regime))
    for name in optimizer_order(data["optimizer"]):
        ax.plot([], [], linestyle="", marker=style.optimizer_look(name)[1], color=style.GREY, label=shortened(name))
    ax.set_xlabel("training examples until the loss is halfway (log scale)")
    ax.set_ylabel("noise of the validation loss\n(sd of its logarithm)")
    noisy = data["noise"] > 0
    if (np.isfinite(data["examples"]) & noisy).any():
        axes.log_axis(ax, "x", data.loc[noisy, "examples"])
        axes.log_axis(ax, "y", data.loc[noisy, "noise"])
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """Noise vs. speed of the best cell of each optimizer and batch size."""
    data = noise_and_speed(results, table)
    level = metric_text(float(data["level"].iloc[0]), "loss") if len(data) else ""
    ends = [_first(data, "examples", " training examples"), _first(data, "noise", "")]
    return exhibit.Exhibit(
        "noise-speed",
        "Noise vs. speed",
        f"Fastest: {ends[0]}; least noisy: {ends[1]}. Speed: training examples until the validation loss falls to "
        f"{level}, halfway (on the log scale) from the initial to the best final loss; noise: scatter of the log loss "
        f"about its trend, late in training. Each at the best cell and tuned rate: geometric means over "
        f"{seed_counts(table['n'])}, 95% t intervals; hollow, on the right: a seed never reached the level.",
        exhibit.varied(data, "trial", 3),
        lambda: exhibit.with_legend(lambda ax: noise_against_speed(data, ax)),
        "fewer than three cells have a tuned rate",
    )


def _first(data: pd.DataFrame, name: str, unit: str) -> str:
    """The row with the smallest value of a column in words, with its limits."""
    known = data[np.isfinite(data[name])].sort_values(name)
    if known.empty:
        return "none"
    row = known.iloc[0]
    low, high = (row[f"{name}{end}"] for end in ("_low", "_high"))
    limits = f"[{short(low)}, {short(high)}]{unit}" if low < high else f"{unit} (the same evaluation on every seed)"
    return f"{row['optimizer']} at batch size {row['batch_size']:,}, {short(row[name])} {limits}"
