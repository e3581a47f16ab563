"""Experiments 1 and 2 of the source report: linear models of linear and of cubic data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.exhibit import with_legend
from analysis.figures.style import PAGE_MM
from analysis.reproduction.claims import FEWEST, Measured, printed
from analysis.reproduction.closed_forms import ConstantStep, cubic_step, stalls_in_order, stalls_of_draws
from analysis.reproduction.curves import draw_losses, ended_losses, span_facts, spans
from analysis.results import Results, records
from analysis.statistics import log_interval, t_interval

TRUTH = "truth.json"
"""File of a results folder with facts about its data that only their generator knows, one entry per draw."""
TOLERANCE = 0.02
"""Relative difference that is allowed between a closed form and a measurement."""
MEASURED_EPOCHS = 4
"""Last epochs over which a stalled loss is averaged."""
DRAWS, RESAMPLED = 400, 2000
"""Further draws of the cubic data, with which the report's is compared, and means of such draws, with which ours is."""
ORDERED = 64
"""Simulated draws on which a fixed order of the observations is compared with a new one in each epoch."""
ZOOM = 8
"""Epoch from which a second panel shows the stall."""


def truth(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder's `TRUTH`; none if it is missing or damaged."""
    try:
        entries = json.loads((folder / TRUTH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    good = isinstance(entries, list) and all(isinstance(entry, dict) and "seed" in entry for entry in entries)
    return entries if good else []


def completed(study: Results) -> pd.DataFrame:
    """The lanes that had their whole budget."""
    return study.lanes[study.lanes["outcome"] == "completed"]


def linear(parts: Mapping[str, Results]) -> Measured:
    """Experiment 1: the update by hand, and a linear model of linear data."""
    report, once, study = printed("linear"), parts["linear-by-hand"], parts["linear"]
    losses, lost = ended_losses(study)
    span = spans(losses, dict(enumerate(report["loss"], start=1)))
    weights, steps = coefficients(study), by_hand(once)
    gaps = np.abs(steps["program"] - steps["after"]) / np.maximum(1, np.abs(steps["after"]))
    facts = {
        "seeds": len(completed(study)),
        "step": step_check(report["by_hand"]),
        "draws": int(steps["seed"].nunique()),
        "gap": float(gaps.max()),
        "curve": span_facts(span, 20, lost),
        "weights": weight_facts(weights, lost),
        "whole": len(span) == 20,
    }
    drawn = {
        "linear-losses": draw_losses(losses, span),
        "linear-weights": (weights, lambda: with_legend(lambda ax: _draw_weights(weights, ax), 0.7 * PAGE_MM, 80.0)),
    }
    tables = {"weights": weights, "steps": steps}
    first = {name: table[table["seed"] == table["seed"].min()] for name, table in tables.items()}
    return Measured(facts, drawn, first, [once, study])


def step_check(report: Mapping[str, Any]) -> dict[str, float]:
    """Consequences of the printed loss, target, weights and gradient of one observation.

    The gradient of (prediction - y)^2 by the weights is 2 (prediction - y) x, so x follows from it, and from x and the
    weights the bias, which is not printed. error is prediction - y, bias_limit that of PyTorch's initialisation, step
    1 - 2 r (|x|^2 + 1), the share of the error that a step of the printed rate r leaves.
    """
    weights, gradient = np.array(report["weights"]), np.array(report["gradient"])
    # Of the two roots, the one that a fresh network can predict: a number near 0.
    error = min((sign * math.sqrt(report["loss"]) for sign in (1, -1)), key=lambda e: abs(report["target"] + e))
    x = gradient / (2 * error)
    prediction = report["target"] + error
    step = 1 - 2 * report["learning_rate"] * (float(x @ x) + 1)
    facts = {"error": error, "prediction": prediction, "bias": prediction - float(x @ weights)}
    return facts | {"bias_limit": 1 / math.sqrt(len(x)), "step": step, "loss_after": (step * error) ** 2}


def coefficients(study: Results) -> pd.DataFrame:
    """The trained weights of the lanes that recorded them, beside the true coefficients of each feature."""
    true = {entry["seed"]: entry["coefficients"] for entry in truth(study.path)}
    rows = [
        (lane["seed"], f"x{number}", coefficient, weight, weight - coefficient, coefficient != 0)
        for lane in records(completed(study))
        if lane["weights"] is not None and lane["seed"] in true
        for number, (weight, coefficient) in enumerate(zip(lane["weights"], true[lane["seed"]], strict=False), start=1)
    ]
    names = ["seed", "feature", "coefficient", "weight", "difference", "informative"]
    return pd.DataFrame(rows, columns=names).astype({"informative": bool})


def by_hand(once: Results) -> pd.DataFrame:
    """Each parameter (x1 ... x10, bias) after one update, by the formula (`after`) and by the program."""
    program = {lane["seed"]: lane["weights"] for lane in records(completed(once))}
    names = ["x", "before", "gradient", "after"]
    frames = []
    for entry in truth(once.path):
        if (made := program.get(entry["seed"])) is not None:
            shown = {name: entry[name] for name in names} | {"x": [*entry["x"], 1.0], "program": made}
            parameters = [*(f"x{n}" for n in range(1, len(entry["x"]) + 1)), "bias"]
            frames.append(pd.DataFrame({"seed": entry["seed"], "parameter": parameters, **shown}))
    return pd.concat(frames) if frames else pd.DataFrame(columns=["seed", "parameter", *names, "program"])


def weight_facts(weights: pd.DataFrame, lost: int = 0) -> dict[str, Any]:
    """Draws whose three largest weights are those of the informative features, of all and `lost` that diverged."""
    size, mine = weights["weight"].abs(), weights["informative"]
    largest = weights.assign(size=size).sort_values("size", ascending=False).groupby("seed").head(3)
    right = largest.groupby("seed")["informative"].all()
    return {
        "right": int(right.sum()),
        "draws": len(right) + lost,
        "large": float(size[mine].min()),
        "small": float(size[~mine].max()),
        "error": float((weights["weight"] - weights["coefficient"]).abs().max()),
    }


def cubic_linear(parts: Mapping[str, Results]) -> Measured:
    """Experiment 2: a linear model of cubic data stalls."""
    report, study = printed("cubic-linear"), parts["cubic-linear"]
    losses, lost = ended_losses(study)
    span = spans(losses, dict(enumerate(report["loss"], start=1)))
    stalls, exact = plateaus(study, losses), cubic_step(report["learning_rate"])
    trouble = "" if truth(study.path) else f"{TRUTH} is missing or damaged"
    facts = {
        "seeds": study.lanes["seed"].nunique(),
        "curve": span_facts(span, report["epochs"], lost),
        "trouble": trouble if len(span) == report["epochs"] else "the run was cut short",
        "first_measured": report["epochs"] - MEASURED_EPOCHS + 1,
        "zoom": ZOOM if len(losses) and losses["epoch"].max() >= ZOOM else 0,
        **stall_facts(report["loss"][-1], stalls, exact, lost),
        **order_facts(report["learning_rate"]),
    }
    drawn = {"cubic-linear-losses": draw_losses(losses, span, lambda ax: _draw_floors(ax, exact), ZOOM)}
    predicted = stalls["floor"] + stalls["noise"]
    table = stalls.assign(
        predicted=predicted,
        gap=100 * (stalls["measured"] / predicted - 1),
        noise_gap=100 * ((stalls["measured"] - stalls["floor"]) / stalls["noise"] - 1),
    )
    return Measured(facts, drawn, {"stalls": table}, [study])


def plateaus(study: Results, losses: pd.DataFrame) -> pd.DataFrame:
    """The stalled loss of each seed, measured over the last `MEASURED_EPOCHS`; floor and noise of its draw."""
    last = losses[losses["epoch"] > losses["epoch"].max() - MEASURED_EPOCHS]
    measured = last.groupby(["trial", "lane"])["loss"].mean().rename("measured").reset_index()
    seeds = study.lanes[["trial", "lane", "seed"]].merge(measured, on=["trial", "lane"])
    predicted = pd.DataFrame(truth(study.path), columns=["seed", "floor", "noise"]).astype({"seed": int})
    return predicted.merge(seeds[["seed", "measured"]], on="seed")


def stall_facts(last: float, stalls: pd.DataFrame, exact: ConstantStep, lost: int = 0) -> dict[str, Any]:
    """How stalled losses, from `plateaus`, compare with their predictions and with `last`, the report's last loss.

    `exact` is for the whole distribution of the data, `lost` the number of draws on which training diverged.
    """
    facts: dict[str, Any] = {"last": last, "exact": exact, "lost": lost, "n": len(stalls), "tolerance": TOLERANCE}
    if len(stalls) < FEWEST:
        return facts
    low, high = float(stalls["measured"].min()), float(stalls["measured"].max())
    others = stalls_of_draws(printed("cubic-linear")["learning_rate"], DRAWS)
    predicted, noise = stalls["floor"] + stalls["noise"], stalls["measured"] - stalls["floor"]
    gaps = [t_interval(stalls["measured"] / predicted - 1), t_interval(noise / stalls["noise"] - 1)]
    means = np.random.default_rng(0).choice(others, (RESAMPLED, len(stalls))).mean(1)
    off = abs(float(predicted.mean()) - exact.total)
    return facts | {
        "low": low,
        "high": high,
        "measured": t_interval(stalls["measured"]),
        "beyond": last / high - 1 if last > high else 1 - last / low,
        "further": DRAWS,
        "mean_of_further": float(others.mean()),
        "place": (last - float(others.mean())) / float(others.std(ddof=1)),
        "as_far": int(min((others >= last).sum(), (others <= last).sum())),
        "floor": t_interval(stalls["floor"]),
        "noise": t_interval(noise),
        "gaps": gaps,
        "within": all(max(abs(gap.low), abs(gap.high)) <= TOLERANCE for gap in gaps),
        "apart": any(gap.low > TOLERANCE or gap.high < -TOLERANCE for gap in gaps),
        "off_mean": float(predicted.mean()) / exact.total - 1,
        "as_rare": float((np.abs(means - exact.total) >= off).mean()),
    }


def order_facts(rate: float) -> dict[str, Any]:
    """By how much a fixed order of the observations moves the stalled loss, in simulated draws of the cubic data."""
    fixed, fresh = stalls_in_order(rate, ORDERED)
    ratio = log_interval(fixed / fresh)
    moved = max(abs(ratio.low - 1), abs(ratio.high - 1)) > TOLERANCE
    return {"order": ratio.map(lambda values: values - 1), "order_moves": moved, "ordered": ORDERED}


def _draw_floors(ax: Axes, exact: ConstantStep) -> None:
    ax.axhline(exact.total, color="#009e73", linestyle="--", linewidth=0.9, label="closed form: floor + noise")
    ax.axhline(exact.floor, color="#d55e00", linestyle=":", linewidth=1.2, label="least-squares floor")


def _draw_weights(weights: pd.DataFrame, ax: Axes) -> None:
    ends = [float(weights["coefficient"].min()), float(weights["coefficient"].max())]
    ax.plot(ends, ends, color="#777777", linewidth=0.8)
    mine, rest = weights[weights["informative"]], weights[~weights["informative"]]
    ax.plot(mine["coefficient"], mine["weight"], "o", color="#0072b2", markersize=3, label="informative")
    ax.plot(rest["coefficient"], rest["weight"], "x", color="#d55e00", markersize=4, label="not informative")
    ax.set(xlabel="true coefficient", ylabel="weight after training")
