"""Experiment 3 of the source report: the 64-32 network on cubic data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from analysis.figures.axes import log_axis
from analysis.figures.exhibit import with_legend
from analysis.figures.style import BLUE, ORANGE, PAGE_MM
from analysis.reproduction.claims import FEWEST, Measured, Truth, asked, printed
from analysis.reproduction.closed_forms import cubic_population, cubic_step, without_x1
from analysis.reproduction.losses import beside, ended_losses, losses_of, printed_losses, span_facts
from analysis.results import Results
from analysis.statistics import log_interval
from analysis.text import short


def scale(report: Mapping[str, Any]) -> float:
    """The factor by which the report's loss is too large: it divides by another data set's batches."""
    return float(report["examples"] / report["divided_by_examples"] * report["batch_size"])


def mlp(runs: Mapping[str, Results], _: Truth) -> Measured:
    """Experiment 3: the 64-32 network; `runs` may have cubic-linear and layers too."""
    report, study = printed("mlp"), runs["mlp-64-32"]
    (losses, lost), factor, line = ended_losses(study), scale(report), cubic_step(1e-6).floor
    as_printed = printed_losses("mlp")
    true = as_printed.assign(printed=as_printed["printed"] / factor)
    span = beside(losses, true).dropna(subset="printed")
    # Every lane: one that diverged has no loss here, and has not ended where the report's did.
    ends = losses[losses["epoch"] == losses["epoch"].max()]
    final = study.lanes[["trial", "lane", "seed"]].merge(ends, on=["trial", "lane"], how="left").sort_values("loss")
    linear = printed("cubic-linear")
    facts = {
        "seeds": int(final["seed"].nunique()),
        "draws": int(study.trials["trial"].nunique()),
        "factor": factor,
        "least": without_x1(),
        "line": line,
        "batches": math.ceil(report["examples"] / report["batch_size"]),
        "last": report["loss"][-1],
        "curve": span_facts(span, len(true), lost),
        "whole": len(losses) > 0 and bool(losses["epoch"].max() >= report["epochs"]),
        **end_facts(final["loss"]),
        **better_facts(final["loss"], linear["loss"][-1], _linear_losses(runs.get("cubic-linear"), linear["epochs"])),
        "slow": slow_facts(losses, line, true.iloc[0], lost),
        "standardised": standardised_facts(runs.get("layers"), line),
    }
    floors = {"ignoring x1": without_x1(), "best line": line}
    panel = partial(_draw, losses, as_printed, factor, floors)
    epochs = span.merge(as_printed.rename(columns={"printed": "as_printed"}), on="epoch")
    ended = final.assign(learned=[ending(loss, without_x1(), line) for loss in final["loss"]])
    drawn = {"mlp-losses": (losses, lambda: with_legend(panel, PAGE_MM, 90.0))}
    return Measured(facts, drawn, {"epochs": epochs, "ends": ended}, [study])


def end_facts(losses: ArrayLike) -> dict[str, Any]:
    """Where the seeds ended; their losses are not finite where a seed diverged."""
    values = np.asarray(losses, dtype=np.float64)
    low, high = asked("mlp")["ends"]
    return {
        "n": len(values),
        "inside": int(((low <= values) & (values <= high)).sum()),
        "below": int((values < low).sum()),
        "above": int((~(values <= high)).sum()),
        "end": log_interval(values),
        "diverged": int((~np.isfinite(values)).sum()),
    }


def better_facts(losses: ArrayLike, of_line: float, ours: ArrayLike | None = None) -> dict[str, Any]:
    """How many times lower the network's losses are than the linear model's: ours if given, otherwise the report's.

    Losses are not finite where a seed diverged, which then counts as not lower.
    """
    values = np.asarray(losses, dtype=np.float64)
    base = of_line if ours is None else log_interval(ours).estimate
    ratios = base / values[np.isfinite(values)]
    return {
        "base": base,
        "base_is_ours": ours is not None,
        "base_printed": of_line,
        "ratio": log_interval(ratios),
        "lower": int((ratios > asked("mlp")["much"]).sum()),
    }


def _linear_losses(study: Results | None, epochs: int) -> pd.Series[float] | None:
    """Our linear models' losses after as many epochs as the report's; None for too few seeds."""
    if study is None:
        return None
    losses, _ = ended_losses(study)
    last = losses.loc[losses["epoch"] == epochs, "loss"]
    return last if len(last) >= FEWEST else None


def slow_facts(losses: pd.DataFrame, line: float, first: Any, lost: int) -> dict[str, Any]:
    """After how many epochs seeds pass the best linear model's loss, `line`; empty if none or the report's does not.

    `first` has the epoch of the first printed loss, and that on this scale (printed); `lost` seeds diverged.
    """
    passed = losses[losses["loss"] < line].groupby(["trial", "lane"])["epoch"].min()
    count = lost + len(losses[["trial", "lane"]].drop_duplicates())
    if passed.empty or first["printed"] >= line:
        return {}
    ends = {"first": int(passed.min()), "final": int(passed.max())}
    return {"epoch": int(first["epoch"]), "times": line / first["printed"], "passed": len(passed), "of": count} | ends


def standardised_facts(study: Results | None, line: float) -> dict[str, Any]:
    """After how many epochs Adam's networks of the layers study, on standardised data, pass the best linear model."""
    if study is None:
        return {}
    _, y, share = cubic_population()
    variance = float(share @ y**2 - (share @ y) ** 2)
    tuned = study.trials[["trial", "optimizer", "learning_rate"]]
    lanes = study.lanes.merge(tuned, on="trial", suffixes=("", "_tuned"))
    lanes = lanes[(lanes["optimizer"] == "adam") & (lanes["learning_rate"] == lanes["learning_rate_tuned"])]
    curves = losses_of(study.curves, "validation").merge(lanes[["trial", "lane"]], on=["trial", "lane"])
    first = curves[curves["value"] * variance < line].groupby(["trial", "lane"])["epoch"].min()
    if len(lanes) < FEWEST or 2 * len(first) < len(lanes):
        return {}
    return {"passed": len(first), "of": len(lanes), "epochs": math.ceil(first.max())}


def ending(loss: float, least: float, line: float) -> str:
    """A mean squared error on the cubic data in words."""
    low, high = asked("mlp")["ends"]
    if not math.isfinite(loss):
        return "diverged"
    if loss < low:
        return f"x1 as well: below {short(low)}"
    if loss <= high:
        return f"x2 alone: about the {short(least)} of a fit that ignores x1"
    return "x2 in part" if loss < line else "no more than a linear model"


def _draw(losses: pd.DataFrame, report: pd.DataFrame, factor: float, floors: Mapping[str, float], ax: Axes) -> None:
    for number, (_, own) in enumerate(losses.groupby(["trial", "lane"])):
        ax.plot(own["epoch"], own["loss"], color=BLUE, alpha=0.45, linewidth=0.6, rasterized=True,
                label="ours, one line per seed" if number == 0 else None)  # fmt: skip
    dots: dict[str, Any] = {"color": "#000000", "markersize": 4, "zorder": 4}
    ax.plot(report["epoch"], report["printed"] / factor, "o", label=f"printed / {factor:,.0f}", **dots)
    ax.plot(report["epoch"], report["printed"], "o", fillstyle="none", label="as printed", **dots)
    for (name, floor), colour in zip(floors.items(), ("#009e73", ORANGE), strict=True):
        ax.axhline(floor, color=colour, linestyle="--", linewidth=0.9, label=f"{name}: {short(floor)}")
    log_axis(ax, "x")
    log_axis(ax, "y")
    ax.set(xlabel="epochs", ylabel="mean squared error")
