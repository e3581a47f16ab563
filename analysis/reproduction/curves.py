"""Training losses by epoch, beside those that the report prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import style
from analysis.figures.axes import log_axis
from analysis.figures.style import PAGE_MM, optimizer_look
from analysis.results import Results
from analysis.statistics import log_interval

SPAN = ["epoch", "printed", "low", "middle", "high", "n", "inside"]


def epoch_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over each epoch's batches of their loss before the update, as the report prints it.

    Args:
        curves: rows of `analysis.results.CURVES`; each of the split batch is the mean over the updates since the last.

    Returns:
        Columns trial, lane, epoch (1 for the first), loss.
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


def spans(losses: pd.DataFrame, told: Mapping[int, float]) -> pd.DataFrame:
    """The report's loss beside the range of ours.

    Args:
        losses: from `epoch_losses`.
        told: epoch -> the printed loss, on the scale of ours.

    Returns:
        Columns `SPAN`, for the epochs that both have; middle is the geometric mean.
    """
    rows = []
    for epoch, own in losses.groupby("epoch")["loss"]:
        if (value := told.get(int(str(epoch)))) is not None:
            low, high = float(own.min()), float(own.max())
            rows.append([epoch, value, low, log_interval(own).estimate, high, len(own), low <= value <= high])
    return pd.DataFrame(rows, columns=SPAN)


def span_facts(found: pd.DataFrame, wanted: int, lost: int = 0) -> dict[str, Any]:
    """The facts of the rule `span`: whether the printed losses lie within the range of our seeds.

    Args:
        found: from `spans`, of the seeds that did not diverge.
        wanted: number of epochs that the report prints.
        lost: number of seeds that diverged.
    """
    outside = found[~found["inside"].astype(bool)]
    above = outside["printed"] > outside["high"]
    excess = np.where(above, outside["printed"] / outside["high"], outside["low"] / outside["printed"])
    ends: list[dict[str, Any]] = found.iloc[[0, -1]].to_dict("records") if len(found) else []  # type: ignore[assignment]
    return {
        "n": int(found["n"].min()) if len(found) else 0,
        "lost": lost,
        "wanted": wanted,
        "epochs": len(found),
        "ends": ends,
        "outside": len(outside),
        "side": "above" if above.all() else "outside" if above.any() else "below",
        "excess": float(excess.max()) - 1 if len(excess) else 0.0,
    }


def draw_losses(
    losses: pd.DataFrame, found: pd.DataFrame, more: Callable[[Axes], Any] = lambda _: None, zoom: int = 0
) -> tuple[pd.DataFrame, Callable[[], Figure]]:
    """Our losses by epoch with their interval and range, beside the report's.

    Args:
        losses: from `epoch_losses`.
        found: from `spans`.
        more: adds lines to each panel.
        zoom: the epoch from which a second panel shows the losses on a linear axis; 0 for none.

    Returns:
        The numbers and a function that draws them.
    """
    rows = []
    for epoch, own in losses.groupby("epoch")["loss"]:
        mean = log_interval(own)
        lower, upper = (mean.low, mean.high) if mean.n > 1 else (mean.estimate, mean.estimate)
        rows.append([epoch, own.min(), own.max(), mean.estimate, lower, upper])
    data = pd.DataFrame(rows, columns=["epoch", "low", "high", "estimate", "lower", "upper"])
    data = data.merge(found[["epoch", "printed"]], on="epoch", how="left")
    late = data[data["epoch"] >= zoom] if zoom else data.head(0)

    def made() -> Figure:
        figure = style.figure(PAGE_MM if len(late) else 0.78 * PAGE_MM, 90.0)
        axes = figure.subplots(1, 2 if len(late) else 1, squeeze=False)[0]
        colour, _ = optimizer_look("sgd")
        for ax, shown in zip(axes, (data, late), strict=False):
            x = shown["epoch"]
            ax.fill_between(x, shown["low"], shown["high"], color=colour, alpha=0.15, linewidth=0, label="range")
            ax.fill_between(x, shown["lower"], shown["upper"], color=colour, alpha=0.3, linewidth=0,
                            label="95% t interval")  # fmt: skip
            ax.plot(x, shown["estimate"], color=colour, label="ours, geometric mean")
            ax.plot(x, shown["printed"], "o", color="#000000", markersize=3.5, label="printed in the report")
            more(ax)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlabel("epochs")
        log_axis(axes[0], "y")
        axes[0].set_ylabel("mean squared error over the epoch")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure

    return data, made
