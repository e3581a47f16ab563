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
    ended_losses,
    few,
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
    """Experiment 3: the 64-32 network.

    Args:
        parts: results of mlp-64-32; and of cubic-linear and layers, if they are there.
    """
    told, study = printed()["mlp"], parts["mlp-64-32"]
    (losses, lost), factor, least = ended_losses(study), scale(told), without_x1()
    true = {int(epoch): value / factor for epoch, value in told["loss"].items()}
    found = spans(losses, true)
    last = max(true)
    whole = bool(len(found)) and int(found["epoch"].max()) == last
    ends_at = losses[losses["epoch"] == losses["epoch"].max()]
    # Every lane: one that diverged has no loss here, and has not ended where the report's did.
    final = study.lanes[["trial", "lane", "seed"]].merge(ends_at, on=["trial", "lane"], how="left")
    batches = math.ceil(told["examples"] / told["batch_size"])
    linear_floor = constant_step(*cubic_population()[:2], 1e-6, cubic_population()[2]).floor
    lines = ended_losses(parts["cubic-linear"])[0] if "cubic-linear" in parts else None
    claims = [
        span_claim(
            f"The loss falls over 1,000 epochs, with ups and downs (its numbers divided by {factor:,.0f}, see below)",
            found,
            len(true),
            lost,
        ),
        final_claim(final["loss"], true[last], whole=whole),
        better_claim(
            final["loss"],
            told["loss"][str(last)],
            printed()["cubic_linear"]["loss"][-1],
            factor,
            ours=None if lines is None else _last(lines, printed()["cubic_linear"]["epochs"]),
            whole=whole,
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
            f"2-64-32-1 ReLU network, Adam at 0.001, batches of 32, 1,000 epochs, float64; "
            f"{counted(final['seed'].nunique(), 'seed')} over {counted(study.trials['trial'].nunique(), 'draw')} of "
            "10,000 observations.",
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
            *slow(losses, linear_floor, true, lost, _standardised(parts.get("layers"), linear_floor)),
        ],
        **told_of_runs("mlp", [study]),
    )


def _last(losses: pd.DataFrame, epochs: int) -> pd.Series[float] | None:
    """The losses of an epoch; None if fewer than `FEWEST` seeds have come to it."""
    found = losses.loc[losses["epoch"] == epochs, "loss"]
    return found if len(found) >= FEWEST else None


def slow(
    losses: pd.DataFrame, linear_floor: float, true: Mapping[int, float], lost: int, standardised: str = ""
) -> list[str]:
    """What is not right in saying that the network needed many epochs for its parameters.

    Args:
        losses: of `epoch_losses`.
        linear_floor: what the best line leaves.
        true: epoch -> what the report prints, on this scale.
        lost: seeds that diverged.
        standardised: how soon networks on standardised data are there, in words.
    """
    passed = losses[losses["loss"] < linear_floor].groupby(["trial", "lane"])["epoch"].min()
    first, count = min(true), lost + len(losses[["trial", "lane"]].drop_duplicates())
    if passed.empty or true[first] >= linear_floor:
        return []
    low, high = int(passed.min()), int(passed.max())
    when = f"{low} epochs" if low == high else f"{low} to {high} epochs"
    return [
        "Far more parameters are said to be the reason for training it so much longer. Its own true loss at epoch "
        f"{first} is {short(linear_floor / true[first])} times below what the best line leaves; of ours {len(passed)} "
        f"of {counted(count, 'seed')} pass that, after {when}.{standardised}"
    ]


def _standardised(study: Results | None, linear_floor: float) -> str:
    """After how many epochs Adam's networks of the layers study pass the best line, their data being standardised."""
    if study is None:
        return ""
    _, y, share = cubic_population()
    variance = float(share @ y**2 - (share @ y) ** 2)
    lanes = study.lanes.merge(
        study.trials[["trial", "optimizer", "learning_rate"]], on="trial", suffixes=("", "_tuned")
    )
    lanes = lanes[(lanes["optimizer"] == "adam") & (lanes["learning_rate"] == lanes["learning_rate_tuned"])]
    curves = study.curves[(study.curves["split"] == "validation") & (study.curves["metric"] == "loss")]
    curves = curves.merge(lanes[["trial", "lane"]], on=["trial", "lane"])
    below = curves[curves["value"] * variance < linear_floor]
    first = below.groupby(["trial", "lane"])["epoch"].min()
    if len(lanes) < FEWEST or 2 * len(first) < len(lanes):
        return ""
    return (
        " So parameters are not what takes epochs, but the scale of the data and the rate: with both mended, in the "
        f"layers study further down, {len(first)} of {len(lanes)} networks trained by Adam pass it within "
        f"{math.ceil(first.max())} epochs."
    )


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
        losses: (n,) mean squared errors of the last epoch; not finite where a seed diverged.
        told: the report's, on this scale.
        whole: whether the run had all epochs.
    """
    text = "It ends where a fit that ignores x1 would"
    if not whole:
        return not_checked(text, "the run was cut before the report's 1,000 epochs")
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < FEWEST:
        return few(text, len(values))
    low, high = MLP_RANGE
    inside, below, above = ((low <= values) & (values <= high)).sum(), (values < low).sum(), (~(values <= high)).sum()
    rest = [f"{n} {word}" for n, word in ((below, "ended lower"), (above, "higher")) if n]
    why = (
        f"{inside} of {len(values)} seeds end between {low:g} and {high:g}, about what a fit that ignores x1 leaves; "
        f"{' and '.join(rest) or 'none elsewhere'}. Asked for: at least half"
    )
    ended = values[np.isfinite(values)]
    ours = (
        f"{interval(log_interval(ended))}: geometric mean and 95% t interval of {counted(len(ended), 'seed')}"
        + _diverged(len(values) - len(ended))
        if len(ended)
        else "all seeds diverged"
    )
    return Claim(text, f"{told:.2f}", ours, "agrees" if 2 * inside >= len(values) else "differs", why)


def better_claim(
    losses: ArrayLike, told: float, told_linear: float, factor: float, *, ours: ArrayLike | None = None, whole: bool
) -> Claim:
    """How much lower the network's loss is than the linear model's.

    Args:
        losses: (n,) mean squared errors of the network; not finite where a seed diverged, which is not lower then.
        told: the report's, as printed.
        told_linear: the report's of the linear model.
        factor: by what `told` is too large.
        ours: (m,) our linear models' losses; the report's is used without them.
        whole: whether the run had all epochs.
    """
    text = "The network's loss is much lower than the linear model's"
    if not whole:
        return not_checked(text, "the run was cut before the report's 1,000 epochs")
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < FEWEST:
        return few(text, len(values))
    line = told_linear if ours is None else log_interval(ours).estimate
    ratios = line / values[np.isfinite(values)]
    found, lower = log_interval(ratios), int((ratios > MUCH).sum())
    if 2 * lower < len(values):
        good: Verdict = "differs"
    elif len(ratios) < FEWEST:
        return not_checked(text, f"{len(values) - len(ratios)} of {len(values)} seeds diverged")
    else:
        good = "agrees" if found.low > MUCH else "differs"
    whose = "the report's loss of the linear model" if ours is None else f"our linear model's loss ({short(line)})"
    why = (
        f"{whose} over ours of the network, more than {MUCH:g} for {lower} of {len(values)} "
        f"seeds. Asked for: half of them, and the interval above {MUCH:g}. The report's own two numbers differ by "
        f"{short(told_linear / told)}, on one scale by {short(factor * told_linear / told)}"
    )
    numbers = f"{interval(found)} times" + _diverged(len(values) - len(ratios)) if len(ratios) else "all seeds diverged"
    return Claim(text, f"{short(told_linear / told)} times", numbers, good, why)


def _diverged(count: int) -> str:
    return f"; {count} more diverged" * bool(count)


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
