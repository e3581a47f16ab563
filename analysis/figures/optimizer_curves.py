"""Learning curves of every optimizer at its tuned rate, one panel for each batch size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import curves_of, examples_of, floor_of, fresh_lanes, rank
from analysis.figures import axes, exhibit, style
from analysis.figures.regimes.learning_curves import TABS, band
from analysis.results import SECONDS_ALONE, Results
from analysis.schema import AXES, REGIMES
from analysis.statistics import LIMITS
from analysis.text import band_note, estimate_text, seed_counts, shortened

MOST_PANELS = 4


def optimizer_curves(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The learning curves of the best cell of each optimizer and batch size, at its tuned rate.

    Returns:
        Columns panel (the batch size as text; the regime if there are more than `MOST_PANELS` batch sizes), optimizer
        (or the name of a baseline), baseline (whether it is one), trial, batch_size, learning_rate, split (train or
        validation), those of `learning_curves.band`. Panels are in order of batch size. Baselines are on the
        confirmation's seeds, as they have no others.
    """
    ranked = rank(table, results.maximize)
    by_size = _sizes(ranked).nunique() <= MOST_PANELS
    best = ranked.assign(panel=_sizes(ranked) if by_size else ranked["regime"], baseline=False)
    best = best.drop_duplicates(["optimizer", "panel"])
    fixed = results.baselines.assign(baseline=True)
    fixed["panel"] = _sizes(fixed) if by_size else fixed["regime"]
    fixed = fixed[fixed["panel"].isin(best["panel"])]
    curves, pieces = pd.concat([curves_of(results, best), _fresh_curves(results, fixed)]), []
    floor = floor_of(results)
    rows = best.to_dict("records") + fixed.assign(optimizer=fixed["name"]).to_dict("records")
    for cell in rows:
        own = curves[curves["cell"] == cell["trial"]]
        for split in ("train", "validation"):
            # The training loss is followed on at most 1,000 examples, whose noise the interval leaves out.
            line = band(own, results.metric, examples_of(results, "validation"), floor, split)
            names = ("panel", "optimizer", "baseline", "trial", "batch_size", "learning_rate")
            pieces.append(line.assign(split=split, **{name: cell[name] for name in names}))
    columns = ["panel", "optimizer", "baseline", "trial", "batch_size", "learning_rate", "split", *AXES, *LIMITS]
    frame = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=columns)
    frame = frame.astype(dict.fromkeys([*AXES, *LIMITS], float))
    order = [*REGIMES, *best.sort_values("batch_size")["panel"].drop_duplicates()]
    return frame.sort_values("panel", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)[
        columns
    ]


def _sizes(cells: pd.DataFrame) -> pd.Series[str]:
    """The batch sizes of some cells as titles of panels."""
    return cells["batch_size"].map("batch size {:,}".format).where(cells["regime"] != "batch", "full batch")


def _fresh_curves(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The curves of the confirmation's lanes of some baselines, as of `curves_of`."""
    if results.confirmation is None or rows.empty:
        return results.curves.head(0).assign(cell=0, seed=0)
    # Apart from each other: several may have the same cell, at different rates.
    lanes = pd.concat([fresh_lanes(results, row) for _, row in rows.groupby("trial")])
    return results.confirmation.curves.merge(lanes[["trial", "lane", "cell", "seed"]], on=["trial", "lane"])


def curves_by_optimizer(
    data: pd.DataFrame,
    ax: Axes,
    by: str = "epoch",
    metric: str = "loss",
    unit: str = "",
    seconds: str = SECONDS_ALONE,
    baselines: Sequence[str] = (),
) -> Axes:
    """Draw one panel of `optimizer_curves`: validation solid with its interval as a band, training dashed.

    `baselines` are those of all panels, so that each looks different; by default those of this panel.
    """
    given = data["baseline"].astype(bool)
    for label, own, colour, marker in style.by_optimizer(data[~given], ax):
        _lines(ax, own, by, label, colour, marker)
    names = list(baselines or dict.fromkeys(data.loc[given, "optimizer"]))
    for name in style.series(ax, names, shortened):
        own, place = data[given & (data["optimizer"] == name)], names.index(name)
        if len(own):
            colour, marker = (style.GREY, style.DARK)[place % 2], style.ordered_look(place + 3, 10)[1]
            _lines(ax, own, by, f"{shortened(name)} (not tuned)", colour, marker)
    axes.metric_axis(ax, data["estimate"], metric, unit)
    axes.log_axis_with_zero(ax, data[by])
    ax.set_xlabel(seconds if by == "train_seconds" else axes.LABELS[by])
    return ax


def _lines(ax: Axes, own: pd.DataFrame, by: str, label: str, colour: str, marker: str) -> None:
    for split, line in own.groupby("split"):
        if split == "validation":
            axes.band(ax, line[by], line, colour, 0.12)
            ax.plot(line[by], line["estimate"], color=colour, marker=marker, markersize=4, markeredgewidth=0,
                    markevery=max(1, len(line) // 4), label=label, zorder=3)  # fmt: skip
        else:
            ax.plot(line[by], line["estimate"], "--", color=colour, linewidth=0.9, alpha=0.8, zorder=2)


def _drawn(data: pd.DataFrame, by: str, results: Results) -> Figure:
    names, metric = list(dict.fromkeys(data["panel"])), results.metric
    given = list(dict.fromkeys(data.loc[data["baseline"].astype(bool), "optimizer"]))

    def draw(ax: Axes, name: str) -> None:
        panel = data[data["panel"] == name]
        curves_by_optimizer(panel, ax, by, metric, seconds=results.seconds_label, baselines=given)
        ax.set_title(name)
        axes.metric_axis(ax, data["estimate"], metric, "")

    drawn = exhibit.panels(
        draw, names, 2 if len(names) == 4 else 3, 56, exhibit.metric_label(results).replace("validation ", "")
    )
    drawn.axes[-1].plot([], [], "--", color=style.GREY, linewidth=0.9, label="training")
    exhibit.legend(drawn, "outside upper center")
    return drawn


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The learning curves of every optimizer, by batch size."""
    every, metric = optimizer_curves(results, table), results.metric
    given = every["baseline"].astype(bool)
    data = every[~given]  # the baselines' curves are of other seeds, and make no panel on their own
    seeds = data.loc[data["split"] == "validation", "n"]
    panels = data.groupby("panel", sort=False)["optimizer"].nunique()
    ends = (
        data[data["split"] == "validation"].sort_values("update").drop_duplicates(["panel", "optimizer"], keep="last")
    )
    first = ends.sort_values("estimate", ascending=not results.maximize).drop_duplicates("panel").set_index("panel")
    best = "; ".join(
        f"{row['optimizer']} ({name}): {estimate_text(row, metric)}"
        for name, row in first.reindex(panels.index).iterrows()
    )
    return exhibit.Exhibit(
        "optimizer-curves",
        f"Training and validation {metric} of every optimizer",
        f"{exhibit.best_here(results, best)} Every optimizer at its best cell and tuned rate: "
        f"{exhibit.mean_of(results)} of the {metric} over {seed_counts(seeds)}, validation solid, training dashed. "
        f"For validation: {band_note(seeds)}; bands may be clipped."
        + (" Grey: baselines, on the confirmation's seeds." if given.any() else ""),
        every if panels.max() >= 2 else data.head(0),
        partial(_drawn, every, "epoch", results),
        "no batch size has two optimizers with a tuned rate" if len(table) else "no trial has ended yet",
        {tab: partial(_drawn, every, by, results) for by, tab in TABS.items()},
    )
