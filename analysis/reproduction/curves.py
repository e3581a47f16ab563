"""Training losses by epoch, beside those that the report prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import style
from analysis.figures.axes import log_axis
from analysis.results import Results, records
from analysis.statistics import log_interval

SPAN = ["epoch", "printed", "low", "middle", "high", "n", "inside"]
WIDE = 1.0
"""Decades from the lowest to the highest seed above which nearly any printed loss would lie inside."""


def epoch_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over each epoch's batches of their loss before the update, as the report prints it.

    In rows of `analysis.schema.CURVES`, each of the split batch is the mean over the updates since the last. Columns
    trial, lane, epoch (1 for the first), loss.
    """
    batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
    batch = batch.sort_values(["trial", "lane", "update"])
    made = batch.groupby(["trial", "lane"])["update"].diff().fillna(batch["update"])
    number = np.ceil(batch["epoch"] - 1e-9).astype(int)
    sums = pd.DataFrame({"loss": batch["value"] * made, "made": made}).groupby([batch["trial"], batch["lane"], number])
    total = sums.sum()
    return (total["loss"] / total["made"]).rename("loss").rename_axis(["trial", "lane", "epoch"]).reset_index()


def ended_losses(study: Results) -> tuple[pd.DataFrame, int]:
    """The `epoch_losses` of the lanes that did not diverge, and the number of those that did."""
    lost = study.lanes.loc[study.lanes["outcome"] == "diverged", ["trial", "lane"]]
    losses = epoch_losses(study.curves)
    gone = pd.MultiIndex.from_frame(losses[["trial", "lane"]]).isin(pd.MultiIndex.from_frame(lost))
    return losses[~gone].reset_index(drop=True), len(lost)


def spans(losses: pd.DataFrame, report: Mapping[int, float]) -> pd.DataFrame:
    """The report's losses by epoch beside the range and the geometric mean (middle) of `epoch_losses`.

    Columns `SPAN`, for the epochs that both have.
    """
    rows = []
    for epoch, own in losses.groupby("epoch")["loss"]:
        if (value := report.get(int(str(epoch)))) is not None:
            low, high = float(own.min()), float(own.max())
            rows.append([epoch, value, low, log_interval(own).estimate, high, len(own), low <= value <= high])
    return pd.DataFrame(rows, columns=SPAN)


def span_facts(span: pd.DataFrame, wanted: int, lost: int = 0) -> dict[str, Any]:
    """The facts of the rule `span`: whether the printed losses lie within the range of our seeds.

    `span` is from `spans`, of the seeds that did not diverge; `wanted` is the number of epochs that the report prints,
    `lost` the number of seeds that diverged. `decades` is the width of the widest range, `wide` counts the epochs at
    which it is above `WIDE`.
    """
    widths = [
        math.log10(high / low) if low > 0 else math.inf for low, high in zip(span["low"], span["high"], strict=True)
    ]
    outside = span[~span["inside"].astype(bool)]
    above = outside["printed"] > outside["high"]
    excess = np.where(above, outside["printed"] / outside["high"], outside["low"] / outside["printed"])
    return {
        "n": int(span["n"].min()) if len(span) else 0,
        "lost": lost,
        "wanted": wanted,
        "epochs": len(span),
        "ends": records(span.iloc[[0, -1]]) if len(span) else [],
        "outside": len(outside),
        "wide": sum(width > WIDE for width in widths),
        "decades": max(widths, default=0.0),
        "side": "above" if above.all() else "outside" if above.any() else "below",
        "excess": float(excess.max()) - 1 if len(excess) else 0.0,
    }


def draw_losses(
    losses: pd.DataFrame, span: pd.DataFrame, more: Callable[[Axes], Any] = lambda _: None, zoom: int = 0
) -> tuple[pd.DataFrame, Callable[[], Figure]]:
    """`epoch_losses` with their interval and range beside the report's, from `spans`: numbers and their drawing.

    `more` adds lines to each panel; a second panel shows the epochs from `zoom` (0 for none) on a linear axis.
    """
    rows = []
    for epoch, own in losses.groupby("epoch")["loss"]:
        mean = log_interval(own)
        lower, upper = (mean.low, mean.high) if mean.n > 1 else (mean.estimate, mean.estimate)
        rows.append([epoch, own.min(), own.max(), mean.estimate, lower, upper])
    data = pd.DataFrame(rows, columns=["epoch", "low", "high", "estimate", "lower", "upper"])
    data = data.merge(span[["epoch", "printed"]], on="epoch", how="left")
    late = data[data["epoch"] >= zoom] if zoom else data.head(0)

    def made() -> Figure:
        figure = style.figure(style.PAGE_MM if len(late) else 0.78 * style.PAGE_MM, 90.0)
        axes = figure.subplots(1, 2 if len(late) else 1, squeeze=False)[0]
        for ax, shown in zip(axes, (data, late), strict=False):
            band: dict[str, Any] = {"color": style.BLUE, "linewidth": 0}
            ax.fill_between(shown["epoch"], shown["low"], shown["high"], alpha=0.15, label="range", **band)
            ax.fill_between(shown["epoch"], shown["lower"], shown["upper"], alpha=0.3, label="95% t interval", **band)
            ax.plot(shown["epoch"], shown["estimate"], color=style.BLUE, label="ours, geometric mean")
            ax.plot(shown["epoch"], shown["printed"], "o", color="#000000", markersize=3.5,
                    label="printed in the report")  # fmt: skip
            more(ax)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlabel("epochs")
        log_axis(axes[0], "y")
        axes[0].set_ylabel("mean squared error over the epoch")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure

    return data, made
