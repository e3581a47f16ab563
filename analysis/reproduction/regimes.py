"""Experiment 4 of the source report: batches of one, of 32 and of everything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis.cells import cells, curves_of
from analysis.figures.exhibit import panels, with_legend
from analysis.figures.regimes.learning_curves import loss_by_regime, regime_curves
from analysis.figures.style import PAGE_MM, REGIME_COLOURS
from analysis.reproduction.claims import Measured, Truth, intervals, printed
from analysis.reproduction.losses import losses_of
from analysis.results import Results, records
from analysis.schema import AXES, REGIMES
from analysis.statistics import Interval, log_interval, t_interval


def regimes(runs: Mapping[str, Results], _: Truth) -> Measured:
    """Experiment 4: three batch sizes, as the report drew them, corrected, and tuned."""
    report, fixed, tuned = printed("regimes"), runs["regimes"], runs["regimes-tuned"]
    table, tuned_table = cells(fixed), cells(tuned)
    traces = update_losses(fixed)
    numbers, ends = regime_numbers(fixed, table, traces), regime_ends(tuned_table)
    curves, tuned_curves = regime_curves(fixed, table), regime_curves(tuned, tuned_table)
    drawn = as_drawn(traces, report)
    whole = float(fixed.trials["epochs"].max()) >= report["epochs"]
    facts = {
        "alone": fixed.alone and tuned.alone,
        "seeds": int(fixed.lanes["seed"].nunique()),
        "rates": [
            f"{row['regime']} {row['learning_rate']:.3g}" for row in records(tuned_curves.drop_duplicates("regime"))
        ],
        **regime_facts(numbers, ends, whole=whole),
        **time_facts(curves, tuned_curves),
    }
    shown = {
        "regimes-as-drawn": (drawn, lambda: with_legend(lambda ax: _draw_as_drawn(drawn, ax), 0.9 * PAGE_MM, 85.0)),
        "regimes-put-right": (curves, lambda: _four_panels(fixed, curves)),
        "regimes-tuned": (tuned_curves, lambda: _four_panels(tuned, tuned_curves)),
    }
    return Measured(facts, shown, {"numbers": numbers, "ends": ends}, [fixed, tuned])


def update_losses(study: Results) -> pd.DataFrame:
    """The batch loss of every update of a study whose cells differ in regime alone, with regime and seed."""
    lanes = study.lanes[["trial", "lane", "seed"]].merge(study.trials[["trial", "regime"]], on="trial")
    return losses_of(study.curves).merge(lanes, on=["trial", "lane"])[["regime", "seed", "update", "epoch", "value"]]


def as_drawn(traces: pd.DataFrame, report: Mapping[str, Any]) -> pd.DataFrame:
    """The first seed's losses at the horizontal places (x) that the report's code gives them and calls epochs."""
    own = traces[traces["seed"] == traces["seed"].min()]
    step = {regime: 1 / ticks for regime, ticks in report["ticks_per_epoch"].items()}
    step["batch"] = report["batch_drawn_to"] / report["batch_points"]
    x = (own["update"] - 1) * own["regime"].map(step).astype(float)
    return pd.DataFrame({"regime": own["regime"], "x": x, "value": own["value"]}).reset_index(drop=True)


def jitter(values: ArrayLike) -> float:
    """The noise of a curve: standard deviation about its trend over its second half, as a share of the mean there.

    The root of the mean square of second differences over six, to which a straight line adds nothing (Gasser et al.
    1986); NaN for fewer than three points.
    """
    late = np.asarray(values, dtype=np.float64)
    late = late[len(late) // 2 :]
    if len(late) < 3:
        return math.nan
    return float(math.sqrt(np.mean(np.diff(late, 2) ** 2) / 6) / late.mean())


def regime_numbers(study: Results, table: pd.DataFrame, traces: pd.DataFrame) -> pd.DataFrame:
    """Speed, noise and descent of each regime, stochastic first.

    Columns regime, updates; first and final (Intervals of the validation loss over that at initialisation, after one
    epoch and at the end, infinite for a seed that diverged), and by how much they have fallen; noise (Interval of the
    `jitter` of the batch losses); falling (share of seeds whose validation loss ends below its start); seconds (of one
    network trained alone for an epoch; NaN where they were not measured).
    """
    losses = losses_of(curves_of(study, table), "validation")
    lost = study.lanes[study.lanes["outcome"] == "diverged"].merge(study.trials[["trial", "regime"]], on="trial")
    rows = []
    for regime in (name for name in REGIMES if name in set(table["regime"])):
        cell = table[table["regime"] == regime].iloc[0]
        own = losses[losses["cell"] == cell["trial"]]
        by_seed = own.groupby("seed")
        start, end = by_seed["value"].first(), by_seed["value"].last()
        first = own[own["epoch"] >= 1 - 1e-9].groupby("seed")["value"].first().reindex(start.index)
        diverged = start.index.isin(lost.loc[lost["regime"] == regime, "seed"])
        first, end = first.mask(diverged, math.inf), end.mask(diverged, math.inf)
        noise = traces[traces["regime"] == regime].sort_values("update").groupby("seed")["value"].agg(jitter)
        rows.append(
            {"regime": regime, "updates": int(cell["updates"])}
            | {"first": log_interval(first / start), "final": log_interval(end / start), "noise": t_interval(noise)}
            | {"falling": float((end < start).mean())}
            | {"seconds": cell["train_seconds"] / max(1.0, cell["epochs"]) if study.alone else math.nan}
        )
    frame = pd.DataFrame(rows, columns=["regime", "updates", "first", "final", "noise", "falling", "seconds"])
    return frame.assign(first_fall=frame["first"].map(fall), final_fall=frame["final"].map(fall))


def fall(left: Interval) -> Interval:
    """The share by which a loss has fallen, from the share that is left."""
    return Interval(1 - left.estimate, 1 - left.high, 1 - left.low, left.n)


def regime_ends(table: pd.DataFrame) -> pd.DataFrame:
    """The tuned regimes, stochastic first: regime, learning_rate, loss (Interval), ratio (to the stochastic loss)."""
    rows = table[table["validation"].notna()].set_index("regime").reindex(REGIMES).dropna(subset=["validation"])
    frame = rows[["learning_rate"]].assign(loss=intervals(rows, "validation", "validation_low", "validation_high", "n"))
    one = rows["validation"].get("stochastic", math.nan)
    return frame.assign(ratio=rows["validation"] / one).reset_index()


def regime_facts(numbers: pd.DataFrame, ends: pd.DataFrame, *, whole: bool) -> dict[str, Any]:
    """The facts of the claims that the report makes by eye of its figure, from `regime_numbers` and `regime_ends`.

    `whole`: whether the run had the report's epochs; otherwise no other facts are needed.
    """
    by_regime = {row["regime"]: row for row in records(numbers)}
    ranked = sorted(records(ends), key=lambda row: row["loss"].estimate)
    facts: dict[str, Any] = {"whole": whole and set(by_regime) == set(REGIMES), "ranked": ranked}
    facts |= {"full_end": next((row for row in ranked if row["regime"] == "batch"), None), "lowest": ""}
    if not facts["whole"]:
        return facts
    rows = [by_regime[name] for name in REGIMES]
    intervals = [row[name] for row in rows for name in ("first", "final", "noise")]
    by_fall = sorted(rows, key=lambda row: row["first"].estimate)
    first, second, *_ = sorted(rows, key=lambda row: row["final"].estimate)
    return facts | dict(zip(("one", "mini", "full"), rows, strict=True)) | {
        "n": min(each.n for each in intervals),
        "bounded": all(math.isfinite(each.high) for each in intervals),
        "by_fall": [row["regime"] for row in by_fall],
        "lowest": first["regime"] if first["final"].high < second["final"].low else "",
        "apart": all(a["first"].high < b["first"].low for a, b in pairwise(by_fall)),
    }  # fmt: skip


def time_facts(fixed: pd.DataFrame, tuned: pd.DataFrame) -> dict[str, Any]:
    """How batches of 32 compare with the other regimes in the same time, by curves at one rate and at tuned rates.

    The answer is better or worse if the intervals are apart at all of their evaluations; empty otherwise.
    """
    rows, counts, missing = [], [], ""
    for name, words in (("batch", "the full batch"), ("stochastic", "batches of one")):
        for curves, which in ((fixed, "at 0.001"), (tuned, "each at its tuned rate")):
            if (losses := same_seconds(curves, name)) is None:
                missing = missing or f"{words}, {which}"
                continue
            seconds, mini, other = losses
            counts += [each.n for each in (*mini, *other)]
            better = max(each.high for each in mini) < min(each.low for each in other)
            worse = min(each.low for each in mini) > max(each.high for each in other)
            row = {"words": words, "which": which, "seconds": seconds, "mini": mini, "other": other}
            rows.append(row | {"answer": "better" if better else "worse" if worse else ""})
    return {"times": rows, "times_missing": missing, "times_n": min(counts, default=0)}


def same_seconds(curves: pd.DataFrame, regime: str) -> tuple[float, list[Interval], list[Interval]] | None:
    """The validation losses of batches of 32 and of another regime in the same time.

    Returns the shorter training of the two, in seconds for all seeds; the losses of the mini-batches, then the other's,
    each at its last evaluation before that time and, if there is one, its first after it. None without one before.
    """
    if curves.empty:
        return None
    curves = curves.dropna(subset=["train_seconds"]).sort_values("train_seconds")
    both = [curves[curves["regime"] == name] for name in ("mini-batch", regime)]
    seconds = min(float(line["train_seconds"].max()) for line in both)
    before = [int((line["train_seconds"] <= seconds).sum()) for line in both]
    if not all(before):
        return None
    mini, other = (
        intervals(line.iloc[count - 1 : count + 1], "estimate", "low", "high", "n").to_list()
        for line, count in zip(both, before, strict=True)
    )
    return seconds, mini, other


def _four_panels(study: Results, data: pd.DataFrame) -> Figure:
    """The curves of the regimes against updates, examples, epochs and seconds."""

    def draw(ax: Axes, by: str) -> Axes:
        return loss_by_regime(data, ax, by, raw=False, seconds=study.seconds_label)

    drawn = panels(draw, list(AXES), 2, 53, "validation loss, mean squared error")
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=1)
    return drawn


def _draw_as_drawn(data: pd.DataFrame, ax: Axes) -> None:
    # Rasterized: a hundred thousand points as paths would take megabytes of the page.
    for regime, colour in REGIME_COLOURS.items():
        own = data[data["regime"] == regime]
        ax.plot(own["x"], own["value"], color=colour, linewidth=0.8, label=regime, rasterized=True)
    ax.set(xlabel="epochs, as the report's axis has them", ylabel="loss of the batch")
