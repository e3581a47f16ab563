"""The importance of the hyperparameters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from analysis.figures import axes, exhibit, style
from analysis.results import Results, records
from analysis.text import counted


def importance_spread(importance: pd.DataFrame) -> pd.DataFrame:
    """The importance of each hyperparameter with its spread over the bootstrap repeats.

    Args:
        importance: from `Results.importance`.

    Returns:
        Columns parameter, estimate (over all trials), low and high (2.5 and 97.5 percentiles over repeats), n
        (repeats). Most important first.
    """
    repeats = importance[importance["repeat"] > 0].groupby("parameter")["importance"]
    frame = importance[importance["repeat"] == 0].set_index("parameter")[["importance"]]
    frame = frame.rename(columns={"importance": "estimate"}).assign(
        low=repeats.quantile(0.025), high=repeats.quantile(0.975), n=repeats.size()
    )
    return frame.sort_values("estimate", ascending=False).reset_index()


def importance_bars(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw `importance_spread`: one bar per hyperparameter."""
    rows = np.arange(len(data))
    ax.barh(rows, data["estimate"], color=style.LIGHT_GREY, edgecolor=style.GREY, linewidth=0.6, height=0.6, zorder=2)
    ax.hlines(rows, data["low"], data["high"], color=style.DARK, linewidth=1.2, zorder=3)
    ax.set_yticks(rows, [axes.column_label(name) for name in data["parameter"]])
    ax.invert_yaxis()
    ax.set_xlim(0, max(1.0, float(data["high"].max())) if len(data) else 1.0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("share of the importance (PED-ANOVA)")
    ax.tick_params(axis="y", length=0)
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The importance of each hyperparameter that was searched."""
    data = importance_spread(results.importance)
    repeats = counted(int(data["n"].max()) if len(data) else 0, "bootstrap repeat")
    first = "".join(
        f"Most important: {axes.column_label(row['parameter'])}, {row['estimate']:.0%} [{row['low']:.0%}, "
        f"{row['high']:.0%}]. "
        for row in records(data.head(1))
    )
    return exhibit.Exhibit(
        "importance",
        "Importance of the hyperparameters",
        f"{first}How much each hyperparameter affects whether a trial is among the best, as shares (PED-ANOVA, "
        f"Watanabe et al. 2023). Bars: all trials; lines: 2.5 to 97.5 percentiles over {repeats}.",
        exhibit.varied(data, "parameter"),
        lambda: exhibit.with_legend(lambda ax: importance_bars(data, ax), 110, 15 + 9 * max(2, len(data))),
        "not recorded; it needs at least 8 completed trials and two hyperparameters",
    )
