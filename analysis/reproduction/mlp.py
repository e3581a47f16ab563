"""Experiment 3 of the source report: the 64-32 network on cubic data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from analysis import figures
from analysis.figures import PAGE_MM
from analysis.reproduction.closed_forms import constant_step, cubic_population, without_x1
from analysis.reproduction.section import (
    FEWEST,
    Claim,
    Section,
    Table,
    Verdict,
    drawing,
    epoch_losses,
    interval,
    not_checked,
    panel,
    percent,
    printed,
    records,
    span_claim,
    spans,
    told_of_runs,
)
from analysis.results import Results
from analysis.statistics import log_interval
from analysis.wording import counted, short

MLP_RANGE = (30.0, 60.0)
"""Mean squared errors at which the 64-32 network counts as having ended where the report's did."""
MUCH = 2.0
"""Times lower from which on a loss is much lower."""


def scale(told: Mapping[str, Any]) -> float:
    """By what the report's loss of the 64-32 network is too large: it divides by another data set's batches."""
    return float(told["examples"] / told["divided_by_examples"] * told["batch_size"])


def mlp(parts: Mapping[str, Results]) -> Section:
    """Experiment 3: the 64-32 network."""
    told, study = printed()["mlp"], parts["mlp-64-32"]
    losses, factor, least = epoch_losses(study.curves), scale(told), without_x1()
    true = {int(epoch): value / factor for epoch, value in told["loss"].items()}
    found = spans(losses, true)
    last = max(true)
    whole = bool(len(found)) and int(found["epoch"].max()) == last
    ends_at = losses[losses["epoch"] == losses["epoch"].max()]
    # Every lane: one that diverged has ended too, and not where the report's did.
    final = study.lanes[["trial", "lane", "seed"]].merge(ends_at, on=["trial", "lane"], how="left")
    batches = math.ceil(told["examples"] / told["batch_size"])
    linear_floor = constant_step(*cubic_population()[:2], 1e-6, cubic_population()[2]).floor
    claims = [
        span_claim(
            f"The loss falls over 1,000 epochs, with ups and downs (its numbers divided by {factor:,.0f}, see below)",
            found,
            len(true),
        ),
        final_claim(final["loss"], true[last], whole=whole),
        better_claim(
            final["loss"], told["loss"][str(last)], printed()["cubic_linear"]["loss"][-1], factor, whole=whole
        ),
    ]
    table = [
        (
            f"{row['epoch']:,}",
            f"{told['loss'][str(row['epoch'])]:,.2f}",
            short(row["printed"]),
            short(row["middle"]),
            f"{short(row['low'])} to {short(row['high'])}",
            "yes" if row["inside"] else "no",
        )
        for row in records(found)
    ]
    ends = [
        (str(row["seed"]), short(row["loss"]), ending(row["loss"], least, linear_floor))
        for row in records(final.sort_values("loss"))
    ]
    return Section(
        "mlp",
        "The 64-32 network",
        [
            f"2-64-32-1 ReLU network, Adam at 0.001, batches of 32, 1,000 epochs, float64; {final['seed'].nunique()} "
            f"seeds over {study.trials['trial'].nunique()} draws of 10,000 observations.",
            f"The best function of x2 alone leaves the variance of x1², {short(least)}; the best linear model "
            f"{short(linear_floor)}.",
        ],
        claims,
        [
            drawing(
                "mlp-losses",
                "Training loss of the 64-32 network",
                "Mean squared error over each epoch's batches, before their updates: one line per seed. Points: what "
                f"the report prints, divided by {factor:,.0f}; open: as printed. Dashed: what a fit that ignores x1 "
                "leaves, and what the best linear model leaves.",
                "Mean squared error against epochs on logarithmic axes, one line per seed, beside the report's points.",
                losses,
                panel(lambda ax: _draw_mlp(losses, told["loss"], factor, (least, linear_floor), ax), PAGE_MM, 90.0),
            )
        ],
        [
            Table(
                "The printed losses and the true ones",
                ("epoch", "printed", f"divided by {factor:,.0f}", "ours, geometric mean", "range of seeds", "inside"),
                table,
            ),
            Table("Where each seed ended", ("seed", "mean squared error", "what it has learned"), ends),
        ],
        [
            f"The loss is summed as loss x {told['batch_size']} and divided by {told['divided_by_examples']} / "
            f"{told['batch_size']} = {told['divided_by_examples'] / told['batch_size']:g}, batches of the first "
            f"experiment's data, where {told['examples']:,} observations were meant: too large by {told['examples']:,} "
            f"x {told['batch_size']} / {told['divided_by_examples']} = {factor:,.0f}. The last "
            f"{told['loss'][str(last)]:,.2f} is {true[last]:.2f}.",
            f"An epoch's last batch has {told['examples'] - (batches - 1) * told['batch_size']} observations and is "
            f"weighted as {told['batch_size']}: {batches} x {told['batch_size']} = {batches * told['batch_size']:,}, "
            f"{percent(batches * told['batch_size'] / told['examples'] - 1)} too many.",
            f"The network is said to have 64 x 32 = {64 * 32:,} weights instead of 2. Counted: 2 x 64 + 64 + 64 x 32 + "
            f"32 + 32 + 1 = {2 * 64 + 64 + 64 * 32 + 32 + 32 + 1:,}; the linear model has 3.",
            *_slow(losses, linear_floor, true),
        ],
        **told_of_runs("mlp", [study]),
    )


def _slow(losses: pd.DataFrame, linear_floor: float, true: Mapping[int, float]) -> list[str]:
    """What is not right in saying that the network needed many epochs for its parameters."""
    passed = losses[losses["loss"] < linear_floor].groupby(["trial", "lane"])["epoch"].min()
    first = min(true)
    if passed.empty or first > losses["epoch"].max():
        return []
    return [
        "Far more parameters are said to be why it had to train for far more epochs. Its own loss at epoch "
        f"{first} is {short(linear_floor / true[first])} times below what the best line leaves; ours pass that after "
        f"{passed.min()} to {passed.max()} epochs. What costs them is the scale of y: on standardised data the layers "
        "study, further down, needs 4."
    ]


def ending(loss: float, least: float, linear_floor: float) -> str:
    """What a mean squared error on the cubic data says of the network, in words."""
    if not math.isfinite(loss):
        return "diverged"
    if loss < MLP_RANGE[0]:
        return f"x1 as well: below {short(MLP_RANGE[0])}"
    if loss <= MLP_RANGE[1]:
        return f"about what ignoring x1 leaves, {short(least)}"
    return "x2, not yet to the end" if loss < linear_floor else "no more than a line"


def final_claim(losses: ArrayLike, told: float, *, whole: bool) -> Claim:
    """Whether at least half of the seeds end where the report's network did.

    Args:
        losses: (n,) mean squared errors of the last epoch.
        told: the report's, on this scale.
        whole: whether the run had all epochs.
    """
    text = "It ends far below the linear model"
    if not whole:
        return not_checked(text, "the run was cut before the report's 1,000 epochs")
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < FEWEST:
        return not_checked(text, f"of {counted(len(values), 'seed')} there is no half to speak of")
    low, high = MLP_RANGE
    inside, below, above = ((low <= values) & (values <= high)).sum(), (values < low).sum(), (~(values <= high)).sum()
    rest = [f"{n} {word}" for n, word in ((below, "ended lower"), (above, "higher")) if n]
    lost = int(np.isnan(values).sum())
    ours = (
        f"{interval(log_interval(values[~np.isnan(values)]))}: geometric mean and 95% t interval of {len(values)} seeds"
    )
    ours += f", {lost} of which diverged and are not in it" * bool(lost)
    why = (
        f"{inside} of {len(values)} seeds end between {low:g} and {high:g}, about what a fit that ignores x1 leaves; "
        f"{' and '.join(rest) or 'none elsewhere'}. Asked for: at least half"
    )
    return Claim(text, f"{told:.2f}", ours, "agrees" if 2 * inside >= len(values) else "differs", why)


def better_claim(losses: ArrayLike, told: float, told_linear: float, factor: float, *, whole: bool) -> Claim:
    """How much lower the network's loss is than the linear model's."""
    text = "The network's loss is much lower than the linear model's"
    if not whole:
        return not_checked(text, "the run was cut before the report's 1,000 epochs")
    values = np.asarray(losses, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < FEWEST:
        return not_checked(text, f"{counted(len(values), 'seed')} give no interval to speak of")
    ours = log_interval(told_linear / values)
    true = factor * told_linear / told
    why = (
        f"the report's loss of the linear model over ours of the network. Its own two numbers differ by "
        f"{short(told_linear / told)}, on one scale by {short(true)}"
    )
    good: Verdict = "agrees" if ours.low > MUCH else "differs"
    return Claim(text, f"{short(told_linear / told)} times", f"{interval(ours)} times", good, why)


def _draw_mlp(
    losses: pd.DataFrame, told: Mapping[str, float], factor: float, floors: tuple[float, float], ax: Axes
) -> None:
    for number, (_, own) in enumerate(losses.groupby(["trial", "lane"])):
        ax.plot(own["epoch"], own["loss"], color="#0072b2", alpha=0.45, linewidth=0.6, rasterized=True,
                label="ours, one line per seed" if number == 0 else None)  # fmt: skip
    epochs, values = [int(epoch) for epoch in told], np.array(list(told.values()))
    ax.plot(epochs, values / factor, "o", color="#000000", markersize=4, zorder=4, label=f"printed / {factor:,.0f}")
    ax.plot(epochs, values, "o", color="#000000", markersize=4, fillstyle="none", zorder=4, label="as printed")
    for floor, colour, name in zip(floors, ("#009e73", "#d55e00"), ("ignoring x1", "best line"), strict=True):
        ax.axhline(floor, color=colour, linestyle="--", linewidth=0.9, label=f"{name}: {short(floor)}")
    figures.log_axis(ax, "x")
    figures.log_axis(ax, "y")
    ax.set_xlabel("epochs")
    ax.set_ylabel("mean squared error")
