"""The forest plot: every optimizer of the spec at its best cell, with its score, its seeds and its interval."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis.cells import fresh_lanes, tuned_lanes
from analysis.comparisons import Comparison, Entry, missing_sizes
from analysis.figures import axes, exhibit, style
from analysis.results import Results, records
from analysis.statistics import Interval
from analysis.text import counted, effect_phrase, listing, p_text, shortened


def forest(results: Results, compared: Comparison) -> pd.DataFrame:
    """The entries of a comparison and its baselines with their seeds, one row per entry and seed.

    Returns:
        Columns optimizer (or the name of a baseline), baseline (whether it is one), score, low, high (95%), inner_low,
        inner_high (50%), effect, effect_low, effect_high, p, contender, reason; seed and value: of each of its seeds
        (NaN for an entry without a score). In the order of the comparison.
    """
    rows: list[dict[str, Any]] = []
    entries = [(entry, False) for entry in compared.entries] + [(entry, True) for entry in compared.baselines]
    for entry, baseline in entries:
        own: dict[str, Any] = {"optimizer": entry.name, "baseline": baseline, "score": entry.score.estimate}
        own |= {"low": entry.score.low, "high": entry.score.high}
        own |= {"effect": entry.effect.estimate, "effect_low": entry.effect.low, "effect_high": entry.effect.high}
        own |= {"p": entry.p, "contender": entry.contender, "reason": entry.reason}
        own |= {"inner_low": entry.inner.low, "inner_high": entry.inner.high}
        rows += [own | {"seed": seed, "value": value} for seed, value in _seeds(results, entry, compared).items()]
    return pd.DataFrame(rows)


def _seeds(results: Results, entry: Entry, compared: Comparison) -> pd.Series[float]:
    """The metric of each seed of an entry; NaN if it has no score."""
    if entry.reason:
        return pd.Series(math.nan, [math.nan])
    assert entry.cell is not None
    lanes = (fresh_lanes if compared.fresh else tuned_lanes)(results, entry.cell.to_frame().T.infer_objects())
    return lanes.set_index("seed")[f"{compared.split}_{results.metric}"].astype(float)


def forest_plot(data: pd.DataFrame, ax: Axes, label: str, metric: str = "loss") -> Axes:
    """Draw `forest`: a row per optimizer with its seeds as dots, its mean, its 95% interval thin and its 50% one thick.

    Where there is no score, the row has the reason.
    """
    rows = data.drop_duplicates("optimizer").reset_index(drop=True)
    known = data["value"].dropna()
    for place, row in enumerate(records(rows)):
        name = row["optimizer"]
        colour, marker = (style.GREY, "D") if row["baseline"] else style.optimizer_look(name)
        values = data.loc[data["optimizer"] == name, "value"].dropna()
        if values.empty:
            ax.text(
                0.01, place, row["reason"], transform=ax.get_yaxis_transform(), va="center", fontsize=7, color="#555555"
            )
            continue
        ax.plot(values, [place + 0.24] * len(values), ".", color=colour, markersize=3.5, alpha=0.6)
        if math.isfinite(row["low"]) and math.isfinite(row["high"]):
            ax.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.0, solid_capstyle="butt")
            inner = [row["inner_low"], row["inner_high"]]
            ax.plot(inner, [place, place], color=colour, linewidth=3.2, solid_capstyle="butt")
        ax.plot(row["score"], place, marker, color=colour, markersize=4.5, markerfacecolor="white")
    names = [shortened(name) for name in rows["optimizer"]]
    labels = [f"{name}\n(not tuned)" if given else name for name, given in zip(names, rows["baseline"], strict=True)]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(label)
    ends = pd.concat([known, rows["low"], rows["high"]])
    if metric == "accuracy":
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    elif (known > 0).any():
        least, most = float(known[known > 0].min()), float(known.max())
        # An interval of few seeds can span decades; the axis follows the seeds and at most a factor of three beyond.
        inside = ends[(ends > least / 3) & (ends < most * 3)]
        axes.log_axis(ax, "x", inside, 1.1)
    return ax


def _drawn(data: pd.DataFrame, label: str, metric: str) -> Figure:
    """The plot with the effects to its right."""
    rows = data.drop_duplicates("optimizer").reset_index(drop=True)
    drawn = style.figure(style.PAGE_MM, 24 + 9.5 * len(rows))
    ax = forest_plot(data, drawn.subplots(), label, metric)
    if rows["p"].notna().any() and not style.narrow():
        for place, row in enumerate(records(rows)):
            if not row["reason"]:
                effect = Interval(row["effect"], row["effect_low"], row["effect_high"], 2)
                text = f"{effect_phrase(effect, metric).replace('percentage ', '')},  {p_text(row['p'])}"
                text += "" if row["contender"] else ",  excluded"
                ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
        ax.text(1.02, -0.75, "against the best other, p (is the best)", transform=ax.get_yaxis_transform(), fontsize=7,
                color="#555555", va="bottom")  # fmt: skip
    return drawn


def figure(results: Results, table: pd.DataFrame, compared: Comparison) -> exhibit.Exhibit:
    """The forest plot of the study's optimizers, from their comparison."""
    data, metric = forest(results, compared), results.metric
    label = ", ".join(filter(None, [f"{compared.split} {metric}", exhibit.unit_of(results)]))
    seeds = counted(compared.seeds, "fresh seed" if compared.fresh else "seed")
    if (fewest := min((each.score.n for each in compared.scored), default=compared.seeds)) < compared.seeds:
        seeds = f"{fewest} to {seeds}"  # of an earlier look alone, or of cells that fewer trials ran
    noise = "over seeds and test examples" if compared.examples else "over seeds"
    if compared.fresh:
        names = listing(entry.name for entry in compared.contenders)
        each = "each " if len(compared.contenders) > 1 else ""
        caption = f"{'Winner' if compared.winner else f'May {each}be the best'}: {names}. "
        caption += f"Every optimizer at its best cell, on {seeds} that the search did not use (dots), with its "
    else:
        caption = f"Candidates only: each optimizer's cell was chosen on these {seeds} (dots). Also shown: "
    excluded = (~data["contender"].astype(bool) & data["p"].notna()).any()
    mark = "; excluded: not the best (p < .05)" if compared.fresh and excluded else ""
    mark = "; comparisons also allow for imperfectly tuned rates" + mark if compared.fresh else ""
    mean = "mean" if compared.fresh and metric == "accuracy" else exhibit.mean_of(results)
    caption += f"{mean} and its 50% (thick) and 95% (thin) intervals {noise}{mark}."
    lost = [f"{name} ({reason})" for name, reason in missing_sizes(results, table).items()]
    rest = ["baselines (not tuned, against the best optimizer)"] if compared.baselines else []
    rest += [f"without a result: {listing(lost)}"] if lost else []
    caption += f" Also in the spec, {'; '.join(rest)}." if rest else ""
    return exhibit.Exhibit(
        "optimizers",
        f"{compared.split.capitalize()} {metric} of every optimizer at its best",
        caption,
        data if compared.scored else data.head(0),
        lambda: _drawn(data, label, metric),
        "no optimizer has a tuned learning rate yet",
    )
