"""Experiments 1 and 2 of the source report: linear models of linear and of cubic data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.exhibit import with_legend
from analysis.figures.style import BLUE, GREY, ORANGE, PAGE_MM
from analysis.reproduction.claims import FEWEST, Measured, Truth, asked, printed
from analysis.reproduction.closed_forms import ConstantStep, cubic_step, stalls_in_order, stalls_of_draws
from analysis.reproduction.losses import beside, draw_losses, ended_losses, printed_losses, span_facts
from analysis.results import Results, records
from analysis.statistics import log_interval, t_interval

DRAWS, RESAMPLED = 400, 2000
"""Further draws of the cubic data, with which the report's is compared, and means of such draws, with which ours is."""
ORDERED = 64
"""Simulated draws on which a fixed order of the observations is compared with a new one in each epoch."""
ZOOM = 8
"""Epoch from which a second panel shows the stall."""


def completed(study: Results) -> pd.DataFrame:
    """The lanes that had their whole budget."""
    return study.lanes[study.lanes["outcome"] == "completed"]


def linear(runs: Mapping[str, Results], truth: Truth) -> Measured:
    """Experiment 1: the update by hand, and a linear model of linear data."""
    report, once, study = printed("linear"), runs["linear-by-hand"], runs["linear"]
    losses, lost = ended_losses(study)
    table = beside(losses, printed_losses("linear"))
    span = table.dropna(subset="printed")
    weights, steps = coefficients(study, truth), by_hand(once, truth)
    gaps = np.abs(steps["program"] - steps["after"]) / np.maximum(1, np.abs(steps["after"]))
    facts = {
        "seeds": len(completed(study)),
        "step": step_check(report["by_hand"]),
        "draws": int(steps["seed"].nunique()),
        "gap": float(gaps.max()),
        "curve": span_facts(span, report["epochs"], lost),
        "weights": weight_facts(weights, lost),
        "whole": len(span) == report["epochs"],
    }
    drawn = {
        "linear-losses": (table, lambda: draw_losses(table)),
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


def coefficients(study: Results, truth: Truth) -> pd.DataFrame:
    """The trained weights of each lane beside the true coefficients, one row per feature."""
    lanes = completed(study)
    frames = [
        pd.DataFrame({"seed": seed, "coefficient": (true := truth["linear"](seed)), "weight": weights[: len(true)]})
        for seed, weights in zip(lanes["seed"], lanes["weights"], strict=True)
    ]
    table = pd.concat(frames).rename_axis("feature").reset_index()
    table["feature"] = [f"x{number + 1}" for number in table["feature"]]
    difference, informative = table["weight"] - table["coefficient"], table["coefficient"] != 0
    return table.assign(difference=difference, informative=informative)


def by_hand(once: Results, truth: Truth) -> pd.DataFrame:
    """Each parameter (x1 ... x10, bias) after one update, by the formula (`after`) and by the program."""
    frames = []
    for lane in records(completed(once)):
        update = truth["linear-by-hand"](lane["seed"])
        names = [*(f"x{n}" for n in range(1, len(lane["weights"]))), "bias"]
        frames.append(pd.DataFrame({"seed": lane["seed"], "parameter": names, **update, "program": lane["weights"]}))
    return pd.concat(frames)


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


def cubic_linear(runs: Mapping[str, Results], truth: Truth) -> Measured:
    """Experiment 2: a linear model of cubic data stalls."""
    report, study = printed("cubic-linear"), runs["cubic-linear"]
    losses, lost = ended_losses(study)
    table = beside(losses, printed_losses("cubic-linear"))
    span = table.dropna(subset="printed")
    stalls, exact = plateaus(study, losses, truth), cubic_step(report["learning_rate"])
    facts = {
        "seeds": study.lanes["seed"].nunique(),
        "curve": span_facts(span, report["epochs"], lost),
        "whole": len(span) == report["epochs"],
        "zoom": ZOOM if len(losses) and losses["epoch"].max() >= ZOOM else 0,
        **stall_facts(report["loss"][-1], stalls, exact, lost),
        **order_facts(report["learning_rate"]),
    }
    drawn = {"cubic-linear-losses": (table, lambda: draw_losses(table, lambda ax: _draw_floors(ax, exact), ZOOM))}
    predicted = stalls["floor"] + stalls["noise"]
    gaps = {
        "predicted": predicted,
        "gap": 100 * (stalls["measured"] / predicted - 1),
        "noise_gap": 100 * ((stalls["measured"] - stalls["floor"]) / stalls["noise"] - 1),
    }
    return Measured(facts, drawn, {"stalls": stalls.assign(**gaps)}, [study])


def plateaus(study: Results, losses: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    """The stalled loss of each seed, measured over the last epochs; floor and noise of its draw."""
    last = losses[losses["epoch"] > losses["epoch"].max() - asked("cubic-linear")["measured_epochs"]]
    measured = last.groupby(["trial", "lane"])["loss"].mean().rename("measured").reset_index()
    seeds = study.lanes[["trial", "lane", "seed"]].merge(measured, on=["trial", "lane"]).sort_values("seed")
    predicted = [truth["cubic-linear"](seed) for seed in seeds["seed"]]
    rows = [(fit.floor, fit.noise) for fit in predicted]
    return pd.DataFrame(rows, columns=["floor", "noise"]).assign(
        seed=seeds["seed"].to_list(), measured=seeds["measured"].to_list()
    )


def stall_facts(last: float, stalls: pd.DataFrame, exact: ConstantStep, lost: int = 0) -> dict[str, Any]:
    """How stalled losses, from `plateaus`, compare with their predictions and with `last`, the report's last loss.

    `exact` is for the whole distribution of the data, `lost` the number of draws on which training diverged.
    """
    facts: dict[str, Any] = {"last": last, "exact": exact, "lost": lost, "n": len(stalls)}
    if len(stalls) < FEWEST:
        return facts
    low, high = float(stalls["measured"].min()), float(stalls["measured"].max())
    others = stalls_of_draws(printed("cubic-linear")["learning_rate"], DRAWS)
    predicted, noise = stalls["floor"] + stalls["noise"], stalls["measured"] - stalls["floor"]
    gaps = [t_interval(stalls["measured"] / predicted - 1), t_interval(noise / stalls["noise"] - 1)]
    means = np.random.default_rng(0).choice(others, (RESAMPLED, len(stalls))).mean(1)
    off, tolerance = abs(float(predicted.mean()) - exact.total), asked("cubic-linear")["tolerance"]
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
        "within": all(max(abs(gap.low), abs(gap.high)) <= tolerance for gap in gaps),
        "apart": any(gap.low > tolerance or gap.high < -tolerance for gap in gaps),
        "off_mean": float(predicted.mean()) / exact.total - 1,
        "as_rare": float((np.abs(means - exact.total) >= off).mean()),
    }


def order_facts(rate: float) -> dict[str, Any]:
    """By how much a fixed order of the observations moves the stalled loss, in simulated draws of the cubic data."""
    fixed, fresh = stalls_in_order(rate, ORDERED)
    return {"order": log_interval(fixed / fresh).map(lambda values: values - 1), "ordered": ORDERED}


def _draw_floors(ax: Axes, exact: ConstantStep) -> None:
    ax.axhline(exact.total, color="#009e73", linestyle="--", linewidth=0.9, label="closed form: floor + noise")
    ax.axhline(exact.floor, color=ORANGE, linestyle=":", linewidth=1.2, label="least-squares floor")


def _draw_weights(weights: pd.DataFrame, ax: Axes) -> None:
    ends = [float(weights["coefficient"].min()), float(weights["coefficient"].max())]
    ax.plot(ends, ends, color=GREY, linewidth=0.8)
    mine, rest = weights[weights["informative"]], weights[~weights["informative"]]
    ax.plot(mine["coefficient"], mine["weight"], "o", color=BLUE, markersize=3, label="informative")
    ax.plot(rest["coefficient"], rest["weight"], "x", color=ORANGE, markersize=4, label="not informative")
    ax.set(xlabel="true coefficient", ylabel="weight after training")
