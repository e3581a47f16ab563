"""Training losses beside those that the report prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import style
from analysis.figures.axes import band, log_axis
from analysis.reproduction.claims import printed
from analysis.results import Results, records
from analysis.statistics import log_interval

WIDE = 1.0
"""Decades from the lowest to the highest seed above which nearly any printed loss would lie inside."""


def printed_losses(experiment: str) -> pd.DataFrame:
    """The losses that the report prints by epoch, the first after one or `every` epochs: columns epoch and printed."""
    report = printed(experiment)
    epochs = report.get("every", 1) * np.arange(1, len(report["loss"]) + 1)
    return pd.DataFrame({"epoch": epochs, "printed": report["loss"]})


def losses_of(curves: pd.DataFrame, split: str = "batch") -> pd.DataFrame:
    """The losses of a split in rows of `analysis.schema.CURVES`, in order."""
    rows = curves[(curves["split"] == split) & (curves["metric"] == "loss")]
    return rows.sort_values(["trial", "lane", "update"])


def epoch_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over each epoch's batches of their loss before the update, as the report prints it.

    In rows of `analysis.schema.CURVES`, each of the split batch is the mean over the updates since the last. Columns
    trial, lane, epoch (1 for the first), loss.
    """
    batch = losses_of(curves)
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


def beside(
    losses: pd.DataFrame, report: pd.DataFrame, by: Sequence[str] = ("epoch",), slack: float = 0
) -> pd.DataFrame:
    """Our losses beside the report's, which has the columns `by` and printed.

    Returns:
        One row for each of our points: the columns `by`; estimate, low, high, n: geometric mean and 95% t interval over
        seeds; least and largest of the seeds; printed (NaN where the report has none) and inside: whether that lies
        between least and largest, give or take `slack`.
    """
    rows = [
        dict(zip(by, key, strict=True)) | vars(log_interval(own)) | {"least": own.min(), "largest": own.max()}
        for key, own in losses.groupby(list(by))["loss"]
    ]
    table = pd.DataFrame(rows, columns=[*by, "estimate", "low", "high", "n", "least", "largest"])
    table = table.astype(report.dtypes[list(by)].to_dict())  # of no losses, all columns are objects
    table = table.merge(report, on=list(by), how="left")
    return table.assign(inside=table["printed"].between(table["least"] - slack, table["largest"] + slack))


def span_facts(span: pd.DataFrame, wanted: int, lost: int = 0) -> dict[str, Any]:
    """The facts of the rule `span`: whether the printed losses lie within the range of our seeds.

    `span` is from `beside`, of the seeds that did not diverge, where a loss is printed; `wanted` is the number of
    losses that the report prints, `lost` the number of seeds that diverged. `decades` is the width of the widest range,
    `wide` counts the epochs at which it is above `WIDE`.
    """
    with np.errstate(divide="ignore"):
        widths = np.log10(span["largest"] / span["least"])
    outside = span[~span["inside"].astype(bool)]
    above = outside["printed"] > outside["largest"]
    excess = np.where(above, outside["printed"] / outside["largest"], outside["least"] / outside["printed"])
    return {
        "n": int(span["n"].min()) if len(span) else 0,
        "lost": lost,
        "wanted": wanted,
        "epochs": len(span),
        "ends": records(span.iloc[[0, -1]]) if len(span) else [],
        "outside": len(outside),
        "wide": int((widths > WIDE).sum()),
        "decades": max(widths, default=0.0),
        "side": "above" if above.all() else "outside" if above.any() else "below",
        "excess": float(excess.max()) - 1 if len(excess) else 0.0,
    }


def draw_beside(ax: Axes, x: pd.Series[Any], table: pd.DataFrame, colour: str, ours: str) -> None:
    """Draw `beside`: the range and the interval of our seeds as bands, their mean as a line, printed losses as dots."""
    ax.fill_between(x, table["least"], table["largest"], color=colour, alpha=0.15, linewidth=0, label="range")
    band(ax, x, table, colour, 0.3, "95% t interval")
    ax.plot(x, table["estimate"], color=colour, label=ours)
    ax.plot(x, table["printed"], "o", color="#000000", markersize=3.5, label="printed in the report", zorder=4)


def draw_losses(table: pd.DataFrame, more: Callable[[Axes], Any] = lambda _: None, zoom: int = 0) -> Figure:
    """Losses by epoch beside the report's, from `beside`.

    `more` adds lines to each panel; a second panel shows the epochs from `zoom` (0 for none) on a linear axis.
    """
    late = table[table["epoch"] >= zoom] if zoom else table.head(0)
    figure = style.figure(style.PAGE_MM if len(late) else 0.78 * style.PAGE_MM, 90.0)
    axes = figure.subplots(1, 2 if len(late) else 1, squeeze=False)[0]
    for ax, shown in zip(axes, (table, late), strict=False):
        draw_beside(ax, shown["epoch"], shown, style.BLUE, "ours, geometric mean")
        more(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("epochs")
    log_axis(axes[0], "y")
    axes[0].set_ylabel("mean squared error over the epoch")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
