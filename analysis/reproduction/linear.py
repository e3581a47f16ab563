"""Experiments 1 and 2 of the source report: linear models of linear and of cubic data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import figures
from analysis.exhibits import Exhibit
from analysis.figures import PAGE_MM
from analysis.reproduction.closed_forms import (
    ConstantStep,
    constant_step,
    cubic_population,
    stalls_in_order,
    stalls_of_draws,
)
from analysis.reproduction.section import (
    FEWEST,
    TRUTH,
    Claim,
    Section,
    Table,
    completed,
    digits,
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
    truth,
)
from analysis.results import Results
from analysis.statistics import Interval, log_interval, t_interval
from analysis.wording import counted, short

TOLERANCE = 0.02
"""Between a closed form and what it predicts, relative."""


MEASURED_EPOCHS = 4
"""Last epochs over which a stalled loss is averaged."""


COMMON = 0.05
"""A share of draws above which one of them is nothing unusual."""


DRAWS = 400
"""Further draws of the cubic data among which the report's is placed."""


RESAMPLED = 2000
"""Means of as many draws as ours among which ours is placed."""


ZOOM = 8
"""Epoch from which a second panel shows the stall."""


ORDERED = 64
"""Simulated draws on which a fixed order of the observations is compared with a new one in each epoch."""


def step_check(told: Mapping[str, Any]) -> dict[str, float]:
    """What follows from the report's printed loss, target, weights and gradient of one observation.

    The gradient of (prediction - y)^2 by the weights is 2 (prediction - y) x, so x follows from it, and from x and the
    weights the bias, which is not printed.

    Returns:
        error (prediction - y), prediction, bias, bias_limit (of PyTorch's initialisation), step (1 - 2 r (|x|^2 + 1),
        the share of the error that a step of the printed rate r leaves), loss_after.
    """
    weights, gradient = np.array(told["weights"]), np.array(told["gradient"])
    # Of the two roots, the one that a fresh network can predict: a number near 0.
    error = min((sign * math.sqrt(told["loss"]) for sign in (1, -1)), key=lambda e: abs(told["target"] + e))
    x = gradient / (2 * error)
    prediction = told["target"] + error
    step = 1 - 2 * told["learning_rate"] * (float(x @ x) + 1)
    found = {"error": error, "prediction": prediction, "bias": prediction - float(x @ weights)}
    return found | {"bias_limit": 1 / math.sqrt(len(x)), "step": step, "loss_after": (step * error) ** 2}


def linear(parts: Mapping[str, Results]) -> Section:
    """Experiment 1: the update by hand, and a linear model of linear data."""
    told, once, study = printed(), parts["linear-by-hand"], parts["linear"]
    losses, lost = ended_losses(study)
    found = spans(losses, dict(enumerate(told["linear"]["loss"], start=1)))
    ended = completed(study)
    weights = coefficients(study)
    steps = by_hand(once)
    claims = [
        _gradient_claim(told["by_hand"]),
        _step_claim(steps),
        span_claim("Over 20 epochs of SGD at 0.003 the loss falls by six powers of ten", found, 20, lost),
        weights_claim(weights, whole=len(found) == 20, lost=lost),
    ]
    first = steps[steps["seed"] == steps["seed"].min()] if len(steps) else steps
    shown = weights[weights["seed"] == weights["seed"].min()] if len(weights) else weights
    return Section(
        "linear",
        "A linear model of linear data",
        [
            "100 observations of 10 features, 3 of which matter, drawn anew for each seed "
            f"({counted(len(ended), 'seed')}); a linear model, SGD at 0.003, one observation at a time, 20 epochs, "
            "float64.",
            "The report's data were drawn without a seed, so its numbers are one draw among those that ours span. It "
            "goes through the observations in the same order in every epoch, we in a new order each time.",
        ],
        claims,
        [
            _losses_drawing("linear", losses, found, "Training loss of the linear model", lambda _: None),
            drawing(
                "linear-weights",
                "Weights against the true coefficients",
                f"Each point is a weight after training, {counted(len(ended), 'draw')} of the data; on the line, "
                "weight and coefficient are equal. Crosses at zero: the features that do not matter.",
                "Scatter plot of trained weights against true coefficients; all points lie on the diagonal.",
                weights,
                panel(lambda ax: _draw_weights(weights, ax), 0.5 * PAGE_MM, 80.0),
            ),
        ],
        [
            Table(
                "The weights of the first draw",
                ("feature", "true coefficient", "weight", "weight minus coefficient"),
                [
                    (
                        f"x{row['feature']}" + (" (informative)" if row["informative"] else ""),
                        f"{row['coefficient']:.4f}",
                        f"{row['weight']:.4f}",
                        f"{row['weight'] - row['coefficient']:+.2g}",
                    )
                    for row in records(shown)
                ],
            ),
            Table(
                "One update by hand, first draw: new = old - 0.1 x 2 (prediction - y) x",
                ("parameter", "old", "x", "gradient", "new by hand", "new by the program"),
                [
                    (
                        str(row["parameter"]),
                        *(
                            f"{value:.4f}"
                            for value in (row["before"], row["x"], row["gradient"], row["after"], row["program"])
                        ),
                    )
                    for row in records(first)
                ],
            ),
        ],
        [
            "That gradients are set to None is said to support sparse ones. They are None because nothing has been "
            "propagated back yet; of a fresh layer they always are.",
            "Stochastic gradient descent is defined as taking observations at random (section 1.2.1). The code of this "
            "experiment and of the next goes through them in the same order in every epoch.",
            "The cell that makes the data is numbered 40, those that print an observation and train 29 to 36: it was "
            "run again afterwards, so the draw that the text shows being made is not the one trained on.",
        ],
        **told_of_runs("linear", [once, study]),
    )


def coefficients(study: Results) -> pd.DataFrame:
    """The trained weights beside the true coefficients.

    Returns:
        Columns seed, feature (from 1), coefficient, weight, informative; of the lanes that recorded weights.
    """
    told = {entry["seed"]: entry["coefficients"] for entry in truth(study)}
    rows = []
    for lane in records(completed(study)):
        if lane["weights"] is None or lane["seed"] not in told:
            continue
        for number, (weight, true) in enumerate(zip(lane["weights"], told[lane["seed"]], strict=False), start=1):
            rows.append({"seed": lane["seed"], "feature": number, "coefficient": true, "weight": weight})
    frame = pd.DataFrame(rows, columns=["seed", "feature", "coefficient", "weight"])
    return frame.assign(informative=frame["coefficient"] != 0)


def by_hand(once: Results) -> pd.DataFrame:
    """The parameters after one update, by the formula and by the program.

    Returns:
        Columns seed, parameter (x1 ... x10, bias), x (1 for the bias), before, gradient, after (by hand), program.
    """
    program = {lane["seed"]: lane["weights"] for lane in records(completed(once))}
    rows = []
    for entry in truth(once):
        if program.get(entry["seed"]) is None:
            continue
        names = [*(f"x{n}" for n in range(1, len(entry["x"]) + 1)), "bias"]
        columns = (
            names,
            [*entry["x"], 1.0],
            entry["before"],
            entry["gradient"],
            entry["after"],
            program[entry["seed"]],
        )
        for name, x, before, gradient, after, made in zip(*columns, strict=True):
            rows.append(
                {"seed": entry["seed"], "parameter": name, "x": x, "before": before, "gradient": gradient}
                | {"after": after, "program": made}
            )
    return pd.DataFrame(rows, columns=["seed", "parameter", "x", "before", "gradient", "after", "program"])


def _gradient_claim(told: Mapping[str, Any]) -> Claim:
    found = step_check(told)
    good = abs(found["bias"]) <= found["bias_limit"]
    why = (
        f"the loss makes the error {found['error']:.4f}; dividing the gradient by twice that gives x, and the bias "
        f"that is left, {found['bias']:.4f}, {'is' if good else 'is not'} within the {found['bias_limit']:.3f} of a "
        f"fresh layer. A step of 0.1 leaves {found['step']:.3f} of the error, so the loss of this observation becomes "
        f"{short(found['loss_after'])}"
    )
    text = "The gradient of one observation's loss follows from loss and weights, and a step against it is an update"
    ours = f"prediction {found['prediction']:.4f}, bias {found['bias']:.4f}"
    return Claim(text, f"loss {told['loss']:.4f}, y = {told['target']:.4f}", ours, "agrees" if good else "differs", why)


def _step_claim(steps: pd.DataFrame) -> Claim:
    text = "An optimizer of the library makes the same update as the formula"
    if steps.empty:
        return not_checked(text, f"no run has finished, or its {TRUTH} is missing or damaged")
    gap = float((np.abs(steps["program"] - steps["after"]) / np.maximum(1, np.abs(steps["after"]))).max())
    count, good = steps["seed"].nunique(), gap <= 1e-9
    ours = f"largest relative difference {gap:.1g} over {counted(count, 'draw')} and 11 parameters"
    return Claim(text, "", ours, "agrees" if good else "differs", "tolerance 1e-9")


def weights_claim(weights: pd.DataFrame, *, whole: bool, lost: int = 0) -> Claim:
    """Whether the largest weights are those of the informative features, in every draw.

    Args:
        weights: of `coefficients`.
        whole: whether the run had all epochs.
        lost: draws on which training diverged; there they are not.
    """
    text = "Only the three informative coefficients end far from zero"
    if not whole:
        return not_checked(text, "the run was cut before the report's 20 epochs")
    if weights.empty:
        return not_checked(text, f"{TRUTH}, which tells the true coefficients, is missing or damaged")
    found = []
    for _, own in weights.groupby("seed"):
        three = own.reindex(own["weight"].abs().sort_values(ascending=False).index).head(3)
        found.append(bool(three["informative"].all()))
    small = float(weights.loc[~weights["informative"], "weight"].abs().max())
    large = float(weights.loc[weights["informative"], "weight"].abs().min())
    error = float((weights["weight"] - weights["coefficient"]).abs().max())
    ours = (
        f"the three largest weights are the informative ones in {sum(found)} of "
        f"{counted(len(found) + lost, 'draw')}; of all others the largest is "
        f"{short(small)}, of the informative the smallest {short(large)}"
    )
    why = (
        f"largest distance of a weight from its coefficient: {short(error)}; the report's own weights are not in its "
        "text"
    )
    return Claim(text, "", ours, "agrees" if all(found) and not lost else "differs", why)


def cubic_linear(parts: Mapping[str, Results]) -> Section:
    """Experiment 2: a linear model of cubic data stalls."""
    told, study = printed()["cubic_linear"], parts["cubic-linear"]
    losses, lost = ended_losses(study)
    found = spans(losses, dict(enumerate(told["loss"], start=1)))
    whole = len(found) == told["epochs"]
    stalls, untold = plateaus(study, losses), "" if truth(study) else f"{TRUTH} is missing or damaged"
    trouble = untold if whole else "the run was cut short"
    exact = constant_step(*cubic_population()[:2], told["learning_rate"], cubic_population()[2])
    text = f"After 15 epochs the loss has stalled near {short(told['loss'][-1])}"
    claims = [
        span_claim("The loss falls fast at first, then no more", found, told["epochs"], lost),
        not_checked(text, trouble) if trouble else stall_claim(text, told["loss"][-1], stalls, exact, lost),
        floor_claim(told["loss"][-1], stalls, exact, trouble),
    ]
    rows = [
        (
            str(row["seed"]),
            *(
                f"{short(value)}"
                for value in (row["floor"], row["noise"], row["floor"] + row["noise"], row["measured"])
            ),
            f"{100 * (row['measured'] / (row['floor'] + row['noise']) - 1):+.1f}%",
            f"{100 * ((row['measured'] - row['floor']) / row['noise'] - 1):+.1f}%",
        )
        for row in records(stalls)
    ]
    return Section(
        "cubic-linear",
        "A linear model of cubic data",
        [
            "10,000 observations of y = x1² + 14 x2³, drawn anew for each seed "
            f"({counted(study.lanes['seed'].nunique(), 'seed')}); a linear model, SGD at 0.003, one observation at a "
            "time, 15 epochs, float64. As before, the report keeps one order of the observations and we do not.",
            f"Closed forms: the least-squares fit leaves {short(exact.floor)}, and steps of a constant size keep the "
            f"parameters moving about it, which adds {short(exact.noise)} to the loss of the next observation: the "
            "covariance of the parameters is the fixed point of a linear equation in moments of the data up to the "
            f"eighth, solved exactly. Together {short(exact.total)}.",
        ],
        claims,
        [
            _losses_drawing(
                "cubic-linear",
                losses,
                found,
                "Training loss of the linear model on cubic data",
                lambda ax: _floors(ax, exact),
                zoom=ZOOM,
            )
        ],
        [
            Table(
                "Where each draw of the data stalls: predicted from its moments, and measured (epochs "
                f"{told['epochs'] - MEASURED_EPOCHS + 1} to {told['epochs']})",
                ("seed", "floor", "noise", "floor + noise", "measured", "difference", "difference of the noise"),
                rows,
            )
        ],
        [
            "Here too the code goes through the observations in the same order in every epoch, where stochastic "
            f"gradient descent is said to take them at random. {order_text(told['learning_rate'])}",
        ],
        **told_of_runs("cubic-linear", [study]),
    )


def plateaus(study: Results, losses: pd.DataFrame) -> pd.DataFrame:
    """Where each lane's loss stalls: measured over the last `MEASURED_EPOCHS`, and predicted from its draw's moments.

    Returns:
        Columns seed, floor, noise, measured.
    """
    last = losses[losses["epoch"] > losses["epoch"].max() - MEASURED_EPOCHS]
    measured = last.groupby(["trial", "lane"])["loss"].mean().rename("measured").reset_index()
    seeds = study.lanes[["trial", "lane", "seed"]].merge(measured, on=["trial", "lane"])
    predicted = pd.DataFrame(truth(study), columns=["seed", "floor", "noise"]).astype({"seed": int})
    return predicted.merge(seeds[["seed", "measured"]], on="seed")


def stall_claim(text: str, told: float, stalls: pd.DataFrame, exact: ConstantStep, lost: int = 0) -> Claim:
    """Whether the report's loss is within the range of ours, and whether its draw of the data may be why it is not.

    Args:
        text: what the report says.
        told: its last loss.
        stalls: of `plateaus`.
        exact: of all draws.
        lost: draws on which training diverged; they stall nowhere.
    """
    if lost > len(stalls) and lost + len(stalls) >= FEWEST:
        return Claim(text, digits(told), "", "differs", f"{lost} of {lost + len(stalls)} draws diverged")
    if len(stalls) < FEWEST:
        return few(text, len(stalls), "draw")
    ours = t_interval(stalls["measured"])
    low, high = float(stalls["measured"].min()), float(stalls["measured"].max())
    others = stalls_of_draws(printed()["cubic_linear"]["learning_rate"], DRAWS)
    place = (
        f"{(told - float(others.mean())) / float(others.std(ddof=1)):+.1f} standard deviations from the mean that is "
        f"predicted over {DRAWS} further draws"
    )
    numbers = (
        f"{interval(ours)}: mean and 95% t interval of {ours.n} draws, which range from {short(low)} to {short(high)}"
        + f"; {lost} more diverged" * bool(lost)
    )
    if low <= told <= high:
        return Claim(text, digits(told), numbers, "agrees", f"inside the range of our draws, {place}")
    beyond = told / high - 1 if told > high else 1 - told / low
    count = int(min((others >= told).sum(), (others <= told).sum()))
    explained = (
        f"Another draw of the data would do: {percent(count / DRAWS)} of them"
        if count > COMMON * DRAWS
        else f"A rare draw of the data may be why: {counted(count, 'draw')} of them"
        if count
        else "No draw of the data is known that would: none of them"
    )
    why = (
        f"{percent(beyond)} outside the range of our draws, {place}. {explained} stall as far out; their mean is "
        f"{digits(float(others.mean()))}, that of all draws {digits(exact.total)}"
    )
    return Claim(text, digits(told), numbers, "differs", why)


def order_text(rate: float) -> str:
    """Whether a fixed order of the observations moves the stall, told from simulated draws of the cubic data."""
    fixed, fresh = stalls_in_order(rate, ORDERED)
    ratio = log_interval(fixed / fresh)
    moved = max(abs(ratio.low - 1), abs(ratio.high - 1)) > TOLERANCE
    return (
        f"In {ORDERED} simulated draws a fixed order changes where the loss stalls by {_signed(ratio.estimate - 1)} "
        f"[{_signed(ratio.low - 1)}, {_signed(ratio.high - 1)}] against a new one in each epoch (95% t interval, "
        f"paired){', which may be part of' if moved else ', so it does not explain'} where the report's stalls."
    )


def floor_claim(told: float, stalls: pd.DataFrame, exact: ConstantStep, trouble: str = "") -> Claim:
    """How much of the stalled loss is that no line fits, and how much the noise of the step.

    Args:
        told: the report's last loss.
        stalls: of `plateaus`; each draw is measured against its own moments, and the interval over draws must lie
            within `TOLERANCE`.
        exact: of all draws; how rare a mean of ours is there is told, and says nothing of single ones.
        trouble: why it cannot be checked; empty if it can.
    """
    text = "It stalls because a linear model cannot represent the response"
    if trouble:
        return not_checked(text, trouble)
    if len(stalls) < FEWEST:
        return few(text, len(stalls), "draw")
    floor, noise = t_interval(stalls["floor"]), t_interval(stalls["measured"] - stalls["floor"])
    predicted = stalls["floor"] + stalls["noise"]
    gaps = [
        t_interval(stalls["measured"] / predicted - 1),
        t_interval((stalls["measured"] - stalls["floor"]) / stalls["noise"] - 1),
    ]
    stall_gap, noise_gap = (f"{_signed(gap.estimate)} [{_signed(gap.low)}, {_signed(gap.high)}]" for gap in gaps)
    share = exact.noise / exact.total
    good = all(max(abs(gap.low), abs(gap.high)) <= TOLERANCE for gap in gaps)
    apart = any(gap.low > TOLERANCE or gap.high < -TOLERANCE for gap in gaps)
    others = stalls_of_draws(printed()["cubic_linear"]["learning_rate"], DRAWS)
    means = np.random.default_rng(0).choice(others, (RESAMPLED, len(stalls))).mean(1)
    off = abs(float(predicted.mean()) - exact.total)
    rare = float((np.abs(means - exact.total) >= off).mean())
    ours = (
        f"floor {interval(floor)}, noise of the constant step {interval(noise)}: means and 95% t intervals over "
        f"{counted(len(stalls), 'draw')}; of all draws {short(exact.floor)} and {short(exact.noise)}"
    )
    checked = (
        f"Measured against what each draw's own moments predict: stall {stall_gap}, noise {noise_gap}, 95% t intervals "
        f"over draws ({'within' if good else 'not within'} the {percent(TOLERANCE)} allowed). These draws are "
        f"predicted to stall {_signed(float(predicted.mean()) / exact.total - 1)} from the mean of all draws; of means "
        f"of {len(stalls)} out of {DRAWS} further draws {percent(rare)} lie as far off, and nothing here rests on it"
    )
    if not good:
        lead = (
            "what we measure is not what the closed form predicts, so it cannot tell the cause"
            if apart
            else "these draws do not tell whether what we measure is what the closed form predicts"
        )
        return Claim(text, f"{digits(told)}, no cause computed", ours, "not checked", f"{lead}. {checked}")
    why = (
        f"only in part: on average over draws no linear model gets below {short(exact.floor)}, but {percent(share)} of "
        f"where it stalls is the noise of a constant step at batch size 1, which a smaller one takes away. {checked}"
    )
    return Claim(text, f"{digits(told)}, no cause computed", ours, "differs", why)


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}%"


def _losses_drawing(
    name: str, losses: pd.DataFrame, found: pd.DataFrame, title: str, more: Callable[[Axes], None], zoom: int = 0
) -> Exhibit:
    """Our losses by epoch with their range, beside the report's; once more from epoch `zoom` on, if there is one."""
    by_epoch = losses.groupby("epoch")["loss"]
    data = pd.DataFrame(
        [{"epoch": epoch, "low": own.min(), "high": own.max()} | _limits(log_interval(own)) for epoch, own in by_epoch]
    ).merge(found[["epoch", "printed"]], on="epoch", how="left")

    def draw(ax: Axes, shown: pd.DataFrame) -> None:
        blue, epochs = figures.optimizer_look("sgd")[0], shown["epoch"]
        ax.fill_between(epochs, shown["low"], shown["high"], color=blue, alpha=0.15, linewidth=0, label="range")
        ax.fill_between(epochs, shown["lower"], shown["upper"], color=blue, alpha=0.3, linewidth=0,
                        label="95% t interval")  # fmt: skip
        ax.plot(epochs, shown["estimate"], color=blue, label="ours, geometric mean")
        ax.plot(epochs, shown["printed"], "o", color="#000000", markersize=3.5, label="printed in the report")
        more(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("epochs")

    late = data[data["epoch"] >= zoom] if zoom else data.head(0)

    def made() -> Figure:
        figure = figures.figure(PAGE_MM if len(late) else 0.78 * PAGE_MM, 90.0)
        axes = figure.subplots(1, 2 if len(late) else 1, squeeze=False)[0]
        for ax, shown in zip(axes, (data, late), strict=False):
            draw(ax, shown)
        figures.log_axis(axes[0], "y")
        axes[0].set_ylabel("mean squared error over the epoch")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure

    count = int(by_epoch.size().max()) if len(losses) else 0
    return drawing(
        f"{name}-losses",
        title,
        f"Mean over each epoch of the loss before each update. Line: geometric mean over {counted(count, 'seed')}, "
        "each with its own draw of the data; bands: 95% t interval, and the whole range. Points: the report."
        + f" Right: from epoch {zoom} on, on a linear axis."
        * bool(len(late)),
        "Training loss against epochs on a logarithmic axis: our mean, interval and range, and the report's points.",
        data,
        made,
    )


def _limits(found: Interval) -> dict[str, float]:
    bounded = found.n > 1
    return {
        "estimate": found.estimate,
        "lower": found.low if bounded else found.estimate,
        "upper": found.high if bounded else found.estimate,
    }


def _floors(ax: Axes, exact: ConstantStep) -> None:
    ax.axhline(exact.total, color="#009e73", linestyle="--", linewidth=0.9, label="closed form: floor + noise")
    ax.axhline(exact.floor, color="#d55e00", linestyle=":", linewidth=1.2, label="least-squares floor")


def _draw_weights(weights: pd.DataFrame, ax: Axes) -> None:
    ends = [float(weights["coefficient"].min()), float(weights["coefficient"].max())]
    ax.plot(ends, ends, color="#777777", linewidth=0.8)
    mine, rest = weights[weights["informative"]], weights[~weights["informative"]]
    ax.plot(mine["coefficient"], mine["weight"], "o", color="#0072b2", markersize=3, label="informative")
    ax.plot(rest["coefficient"], rest["weight"], "x", color="#d55e00", markersize=4, label="not informative")
    ax.set_xlabel("true coefficient")
    ax.set_ylabel("weight after training")
