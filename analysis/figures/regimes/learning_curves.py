"""Learning curves of the best cell of each regime."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import best_of_regimes, examples_of, floor_of
from analysis.figures import axes, exhibit, style
from analysis.results import SECONDS_ALONE, Results
from analysis.schema import AXES, Regime
from analysis.statistics import LEAST, LIMITS, UNKNOWN_EXAMPLES, metric_interval, smoothed
from analysis.text import band_note, estimate_text, listing, optimizer_text, seed_counts, short, shortened

HALF_LIFE = 0.01
"""Half-life of the smoothing of batch losses, as a share of the examples of the shortest training shown."""
TABS = {"epoch": "epochs", "update": "updates", "examples": "examples", "train_seconds": "seconds"}
"""The words on the tabs of figures along training, by column."""


def band(
    curves: pd.DataFrame,
    metric: str,
    examples: int = UNKNOWN_EXAMPLES,
    floor: float = LEAST,
    split: str = "validation",
) -> pd.DataFrame:
    """The metric along training: mean and interval over the given lanes, point by point.

    Args:
        curves: rows of `schema.CURVES` of the lanes of one cell. Points that not all lanes have are left out, because
            trials with a budget in seconds do not share all update numbers.
        metric: `loss` or `accuracy`.
        examples: validation examples.
        floor: losses below it count as it.
        split: `validation` or `train`.

    Returns:
        One row per point: update, examples, epoch, train_seconds (mean over lanes), estimate, low, high, n.
    """
    points = curves[(curves["split"] == split) & (curves["metric"] == metric)]
    counts = points.groupby("update")["value"].transform("size")
    rows = [
        {axis: group[axis].mean() for axis in AXES}
        | asdict(metric_interval(group["value"], metric, examples, floor=floor))
        for _, group in points[counts == counts.max()].groupby("update", sort=True)
    ]
    return pd.DataFrame(rows, columns=[*AXES, *LIMITS]).astype(dict.fromkeys(AXES, float))


def regime_curves(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The learning curve of the best cell of each regime, at its tuned rate.

    Returns:
        Columns regime, trial, optimizer, settings, batch_size, learning_rate, those of `band`, batch_loss (mean loss
        over the batches since the last point, of the first seed; NaN where not recorded) and batch_smooth (the same
        smoothed over examples, with `HALF_LIFE`).
    """
    names = ["regime", "trial", "optimizer", "settings", "batch_size", "learning_rate"]
    best = list(best_of_regimes(results, table))
    pieces, half_life = [], HALF_LIFE * float(min((cell["examples"] for cell, _ in best), default=math.nan))
    for cell, curves in best:
        frame = band(curves, results.metric, examples_of(results, "validation"), floor_of(results))
        batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
        trace = batch[batch["seed"] == batch["seed"].min()].set_index("update")["value"]
        frame["batch_loss"] = frame["update"].map(trace).astype(float)
        frame["batch_smooth"] = smoothed(frame["batch_loss"], frame["examples"], half_life)
        pieces.append(frame.assign(**{name: cell[name] for name in names}))
    columns = [*names, *AXES, *LIMITS, "batch_loss", "batch_smooth"]
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def loss_by_regime(
    data: pd.DataFrame,
    ax: Axes,
    by: str = "update",
    metric: str = "loss",
    unit: str = "",
    raw: bool = True,
    seconds: str = SECONDS_ALONE,
) -> Axes:
    """Draw `regime_curves`: one line per regime, with its interval as a band.

    Args:
        data: from `regime_curves`.
        ax: where to draw.
        by: the horizontal axis: update, examples, epoch or train_seconds.
        metric: `loss` or `accuracy`.
        unit: unit of the metric, for the label.
        raw: whether to add the batch loss of one seed (faint) and its smoothed version (dotted).
        seconds: what train_seconds are, `Results.seconds_label`.
    """
    for regime in style.series(ax, data["regime"].unique()):
        line = data[data["regime"] == regime]
        colour, first = style.REGIME_COLOURS[str(regime)], line.iloc[0]
        size = f"batch size {first['batch_size']:,}" + (" (full)" if regime == Regime.BATCH else "")
        optimizer = optimizer_text(shortened(first["optimizer"]), first["settings"])
        label = f"{regime}: {size}, {optimizer} at rate {short(first['learning_rate'])}"
        axes.band(ax, line[by], line, colour)
        ax.plot(line[by], line["estimate"], color=colour, label=label, zorder=3)
        if raw and metric == "loss":
            ax.plot(line[by], line["batch_loss"], color=colour, alpha=0.25, linewidth=0.6, zorder=1)
            ax.plot(line[by], line["batch_smooth"], color=colour, alpha=0.8, linewidth=0.8, linestyle=":", zorder=2)
    axes.metric_axis(ax, data["estimate"], metric, unit)
    axes.log_axis_with_zero(ax, data[by])
    ax.set_xlabel(seconds if by == "train_seconds" else axes.LABELS[by])
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The learning curves of the best cell of each regime."""
    data, metric, unit = regime_curves(results, table), results.metric, exhibit.unit_of(results)

    def draw(by: str) -> Figure:
        return exhibit.with_legend(
            lambda ax: loss_by_regime(data, ax, by, metric, unit, seconds=results.seconds_label),
            0.8 * style.PAGE_MM,
            80,
            "outside upper center",
        )

    ends = data.sort_values("update").drop_duplicates("regime", keep="last")
    ends = ends.sort_values("estimate", ascending=not results.maximize)
    whose = "its best cell" if ends["optimizer"].nunique() > 1 else f"its best cell of {listing(ends['optimizer'])}"
    best = listing(f"{row['regime']}: {estimate_text(row, metric)}" for _, row in ends.head(1).iterrows())
    caption = (
        f"{exhibit.best_here(results, best)} Each regime at {whose}; line: "
        f"{exhibit.mean_of(results)} over {seed_counts(data['n'])}; {band_note(data['n'])}, which may be clipped; "
        f"{results.seconds_label} leave out evaluation."
    )
    if metric == "loss" and data["batch_loss"].notna().any():
        half_life = HALF_LIFE * float(data.groupby("regime")["examples"].max().min())
        caption += (
            f" Faint: batch loss of one seed; dotted: its moving average (half-life {short(half_life)} examples)."
        )
    return exhibit.Exhibit(
        "loss-by-regime",
        f"Validation {metric} by regime",
        caption,
        exhibit.varied(data, "regime"),
        partial(draw, "update"),
        "one regime only" if len(data) else "no cell has a tuned learning rate yet",
        {tab: partial(draw, by) for by, tab in sorted(TABS.items(), key=lambda pair: pair[0] != "update")},
    )
