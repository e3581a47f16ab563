"""The source report's numbers beside ours: from the results of its experiments to verdicts, figures and one page.

`PRINTED` holds what the report prints; all else is computed from results folders by the run that makes the page. Each
experiment has a function that returns its `Section`; `write_page` puts all that have been run on one page.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from analysis import figures, series, tables
from analysis.exhibits import Exhibit, write_file
from analysis.figures import PAGE_MM
from analysis.report import environment
from analysis.results import REGIMES, Results, ResultsError, load
from analysis.statistics import Interval, log_interval, t_interval
from analysis.wording import short

PARTS = "reproduction.json"
"""File of OUT: spec name -> its results folder within OUT."""
TRUTH = "truth.json"
"""File of a results folder: what only the data's maker knows, one entry per draw of the data."""

Verdict = Literal["agrees", "differs", "not checked"]

TOLERANCE = 0.02
"""Between a closed form and what it predicts, relative."""
MLP_RANGE = (30.0, 60.0)
"""Mean squared errors at which the 64-32 network counts as having ended where the report's did."""
MEASURED_EPOCHS = 4
"""Last epochs over which a stalled loss is averaged."""
DRAWS = 400
"""Further draws of the cubic data among which the report's is placed."""


@dataclass(frozen=True)
class Claim:
    """One thing that the report says, and what became of it.

    Attributes:
        text: what it says, in our words.
        printed: its number; empty if it gives none.
        ours: our number, with what it is an interval or range of.
        verdict: how they compare.
        why: in what they differ, or why they could not be compared; the rule of the verdict.
    """

    text: str
    printed: str
    ours: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Table:
    """A table of a section.

    Attributes:
        title: what stands above it.
        head: column heads.
        rows: texts.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Attributes:
        name: of the experiment, as `--only` takes it.
        title: its heading.
        about: what was run, and in what that departs from the report, one paragraph each.
        claims: the report's, with verdicts.
        drawings: figures, with captions and alternative texts.
        tables: numbers.
        slips: what is not right in the report and its arithmetic, one paragraph each.
        seconds: that the runs took.
        command: that makes this section again.
        links: (text, path from the page) of what lies beside it, an ordinary report say.
        provenance: commit, versions, hardware and seeds, in a line.
    """

    name: str
    title: str
    about: Sequence[str]
    claims: Sequence[Claim]
    drawings: Sequence[Exhibit] = ()
    tables: Sequence[Table] = ()
    slips: Sequence[str] = ()
    seconds: float = math.nan
    command: str = ""
    links: Sequence[tuple[str, str]] = ()
    provenance: str = ""


@dataclass(frozen=True)
class ConstantStep:
    """What stochastic gradient descent with a constant step comes to on a linear model.

    Attributes:
        floor: mean squared error of the least-squares fit.
        noise: what the steps add to the loss of the next, unseen observation, in the mean once all has settled.
    """

    floor: float
    noise: float

    @property
    def total(self) -> float:
        """Where the loss stalls."""
        return self.floor + self.noise


@cache
def printed() -> dict[str, Any]:
    """What the report prints, `source_report.json`."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "source_report.json").read_text(encoding="utf-8"))
    return found


def constant_step(x: ArrayLike, y: ArrayLike, rate: float, weights: ArrayLike | None = None) -> ConstantStep:
    """The stationary loss of SGD on single observations, each drawn anew, for a linear model with intercept.

    With z = (x, 1), H = E[z z'] and e the residual of the least-squares fit, the error d of the parameters goes over
    into (I - 2 r z z') d + 2 r z e, r being the rate. Its mean vanishes, and its covariance S is the fixed point of
    S = E[(I - 2 r z z') S (I - 2 r z z')] + 4 r^2 E[e^2 z z'], a linear equation; the loss of the next observation is
    E[e^2] + tr(H S). No step has to be small for this.

    Args:
        x: (n, p) inputs.
        y: (n,) targets.
        rate: the learning rate, for the squared error without a factor of one half.
        weights: (n,) probabilities of the observations; equal if not given.

    Raises:
        ValueError: if the rate is so large that nothing settles.
    """
    inputs, targets = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    share = np.full(len(inputs), 1 / len(inputs)) if weights is None else np.asarray(weights, dtype=np.float64)
    z = np.column_stack([inputs, np.ones(len(inputs))])
    second = (z * share[:, None]).T @ z
    residual = targets - z @ np.linalg.solve(second, (z * share[:, None]).T @ targets)
    size = len(second)
    pairs = np.einsum("ni,nj->nij", z, z).reshape(len(z), size * size)
    fourth = ((pairs * share[:, None]).T @ pairs).reshape(size, size, size, size)
    eye = np.eye(size)
    # Row (i, j) by column (k, l): z_i z_k S_kl z_l z_j.
    both = fourth.transpose(0, 2, 1, 3).reshape(size**2, size**2)
    change = 2 * rate * (np.kron(second, eye) + np.kron(eye, second)) - 4 * rate**2 * both
    if np.linalg.eigvals(np.eye(size**2) - change).__abs__().max() >= 1:
        raise ValueError(f"at a rate of {rate:g} the squared parameters grow for ever")
    source = 4 * rate**2 * (z * (share * residual**2)[:, None]).T @ z
    covariance = np.linalg.solve(change, source.ravel()).reshape(size, size)
    return ConstantStep(float(share @ residual**2), float((second * covariance).sum()))


def cubic_population(order: int = 12) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The distribution of y = x1^2 + 14 x2^3, x1 ~ N(-3, 1), x2 ~ N(10, 1), as points that give its moments exactly.

    Args:
        order: points an axis, of Gauss-Hermite quadrature; polynomials of degree 2 order - 1 are integrated exactly.

    Returns:
        x (order^2, 2), y (order^2,) and probabilities (order^2,).
    """
    points, weights = np.polynomial.hermite_e.hermegauss(order)
    first, second = (axis.ravel() for axis in np.meshgrid(points - 3, points + 10, indexing="ij"))
    share = np.outer(weights, weights).ravel()
    return np.column_stack([first, second]), first**2 + 14 * second**3, share / share.sum()


def without_x1() -> float:
    """What the best function of x2 alone leaves of the cubic data, as a mean squared error: the variance of x1^2."""
    x, _, share = cubic_population()
    squares = x[:, 0] ** 2
    return float(share @ squares**2 - (share @ squares) ** 2)


def stalls_of_draws(rate: float, draws: int, observations: int = 10_000, seed: int = 0) -> NDArray[np.float64]:
    """Where the loss is predicted to stall for other draws of the cubic data, (draws,).

    Args:
        rate: learning rate.
        draws: how many.
        observations: in each.
        seed: of the draws.
    """
    random, found = np.random.default_rng([seed, 1]), np.empty(draws)
    for number in range(draws):
        x = np.column_stack([random.normal(-3, 1, observations), random.normal(10, 1, observations)])
        found[number] = constant_step(x, x[:, 0] ** 2 + 14 * x[:, 1] ** 3, rate).total
    return found


def epoch_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over each epoch's batches of their loss before the update, as the report prints it.

    Args:
        curves: rows of `analysis.results.CURVES`; of the split batch, each is the mean over the updates since the last.

    Returns:
        Columns trial, lane, epoch (1 for the first), loss.
    """
    batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
    batch = batch.sort_values(["trial", "lane", "update"])
    made = batch.groupby(["trial", "lane"])["update"].diff().fillna(batch["update"])
    number = np.ceil(batch["epoch"] - 1e-9).astype(int)
    sums = pd.DataFrame({"loss": batch["value"] * made, "made": made}).groupby([batch["trial"], batch["lane"], number])
    total = sums.sum()
    return (total["loss"] / total["made"]).rename("loss").rename_axis(["trial", "lane", "epoch"]).reset_index()


def spans(losses: pd.DataFrame, told: Mapping[int, float]) -> pd.DataFrame:
    """The report's loss of some epochs beside the range of ours.

    Args:
        losses: of `epoch_losses`.
        told: epoch -> what the report prints, on the scale of ours.

    Returns:
        Columns epoch, printed, low, middle (geometric mean), high, n, inside; the epochs that both have.
    """
    rows = []
    for epoch, own in losses.groupby("epoch")["loss"]:
        if (value := told.get(int(str(epoch)))) is not None:
            low, high = float(own.min()), float(own.max())
            rows.append(
                {"epoch": epoch, "printed": value, "low": low, "middle": log_interval(own).estimate, "high": high}
                | {"n": len(own), "inside": low <= value <= high}
            )
    return pd.DataFrame(rows, columns=["epoch", "printed", "low", "middle", "high", "n", "inside"])


def span_claim(text: str, found: pd.DataFrame, wanted: int, unit: str = "") -> Claim:
    """Whether the report's losses lie within the range of our seeds at every epoch, or by how much they do not.

    Args:
        text: what the report says.
        found: of `spans`.
        wanted: epochs that the report prints.
        unit: of the losses, if it needs a word.
    """
    if len(found) < wanted:
        return not_checked(text, f"the run was cut to {len(found)} of the {wanted} epochs that the report prints")
    first, last = found.iloc[0], found.iloc[-1]
    told = f"{_digits(first['printed'])} down to {_digits(last['printed'])}{unit}"
    ours = (
        f"{_spread(first)} down to {_spread(last)}{unit}: geometric means and ranges of {first['n']} seeds, epochs "
        f"{first['epoch']} and {last['epoch']}"
    )
    out = found[~found["inside"]]
    if out.empty:
        return Claim(text, told, ours, "agrees", f"inside the range of our seeds at all {wanted} epochs")
    above = out["printed"] > out["high"]
    excess = np.where(above, out["printed"] / out["high"], out["low"] / out["printed"])
    side = "above" if above.all() else "below" if not above.any() else "outside"
    why = (
        f"{side} the range of our seeds at {len(out)} of {wanted} epochs, by {_percent(float(excess.max()) - 1)} at "
        "most"
    )
    return Claim(text, told, ours, "differs", why)


def not_checked(text: str, why: str) -> Claim:
    """A claim that nothing could be held against."""
    return Claim(text, "", "", "not checked", why)


def _spread(row: Any) -> str:
    return f"{short(row['middle'])} [{short(row['low'])}, {short(row['high'])}]"


def _percent(share: float) -> str:
    return f"{short(100 * share)}%"


def _digits(value: float) -> str:
    """A number of the report, or one to be held against it: five digits."""
    return f"{float(f'{value:.5g}'):,.10g}"


def _interval(found: Interval) -> str:
    """An estimate with its limits, where there are any."""
    limits = f" [{short(found.low)}, {short(found.high)}]" if found.n > 1 and math.isfinite(found.high) else ""
    return f"{short(found.estimate)}{limits}"


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
    losses = epoch_losses(study.curves)
    found = spans(losses, dict(enumerate(told["linear"]["loss"], start=1)))
    ended = _whole(study)
    weights = coefficients(study)
    steps = by_hand(once)
    claims = [
        _gradient_claim(told["by_hand"]),
        _step_claim(steps),
        span_claim("Over 20 epochs of SGD at 0.003 the loss falls by six powers of ten", found, 20),
        _weights_claim(weights, whole=len(found) == 20),
    ]
    first = steps[steps["seed"] == steps["seed"].min()] if len(steps) else steps
    shown = weights[weights["seed"] == weights["seed"].min()] if len(weights) else weights
    return Section(
        "linear",
        "A linear model of linear data",
        [
            f"100 observations of 10 features, 3 of which matter, drawn anew for each of {len(ended)} seeds; a linear "
            f"model, SGD at 0.003, one observation at a time, 20 epochs, float64.",
            "The report's data were drawn without a seed, so its numbers are one draw among those that ours span. It "
            "goes through the observations in the same order in every epoch, we in a new order each time.",
        ],
        claims,
        [
            _losses_drawing("linear", losses, found, "Training loss of the linear model", lambda _: None),
            Exhibit(
                "linear",
                "linear-weights",
                "Weights against the true coefficients",
                f"Each point is a weight after training, {len(ended)} draws of the data; on the line, weight and "
                f"coefficient are equal. Crosses at zero: the features that do not matter.",
                "Scatter plot of trained weights against true coefficients; all points lie on the diagonal.",
                weights,
                _panel(lambda ax: _draw_weights(weights, ax), 0.5 * PAGE_MM, 80.0),
                "no run has finished",
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
                    for row in _records(shown)
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
                    for row in _records(first)
                ],
            ),
        ],
        [],
        **_records_of("linear", [once, study]),
    )


def coefficients(study: Results) -> pd.DataFrame:
    """The trained weights beside the true coefficients.

    Returns:
        Columns seed, feature (from 1), coefficient, weight, informative; of the lanes that recorded weights.
    """
    truth = {entry["seed"]: entry["coefficients"] for entry in _truth(study)}
    rows = []
    for lane in _records(_whole(study)):
        if lane["weights"] is None or lane["seed"] not in truth:
            continue
        for number, (weight, true) in enumerate(zip(lane["weights"], truth[lane["seed"]], strict=False), start=1):
            rows.append({"seed": lane["seed"], "feature": number, "coefficient": true, "weight": weight})
    frame = pd.DataFrame(rows, columns=["seed", "feature", "coefficient", "weight"])
    return frame.assign(informative=frame["coefficient"] != 0)


def by_hand(once: Results) -> pd.DataFrame:
    """The parameters after one update, by the formula and by the program.

    Returns:
        Columns seed, parameter (x1 ... x10, bias), x (1 for the bias), before, gradient, after (by hand), program.
    """
    program = {lane["seed"]: lane["weights"] for lane in _records(_whole(once))}
    rows = []
    for entry in _truth(once):
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
        "that "
        f"is left, {found['bias']:.4f}, {'is' if good else 'is not'} within the {found['bias_limit']:.3f} of a fresh "
        f"layer. A step of 0.1 leaves {found['step']:.3f} of the error, so the loss of this observation becomes "
        f"{short(found['loss_after'])}"
    )
    text = "The gradient of one observation's loss follows from loss and weights, and a step against it is an update"
    ours = f"prediction {found['prediction']:.4f}, bias {found['bias']:.4f}"
    return Claim(text, f"loss {told['loss']:.4f}, y = {told['target']:.4f}", ours, "agrees" if good else "differs", why)


def _step_claim(steps: pd.DataFrame) -> Claim:
    text = "An optimizer of the library makes the same update as the formula"
    if steps.empty:
        return not_checked(text, "no run has finished")
    gap = float((np.abs(steps["program"] - steps["after"]) / np.maximum(1, np.abs(steps["after"]))).max())
    count, good = steps["seed"].nunique(), gap <= 1e-9
    ours = f"largest relative difference {gap:.1g} over {count} draws and 11 parameters"
    return Claim(text, "", ours, "agrees" if good else "differs", "tolerance 1e-9")


def _weights_claim(weights: pd.DataFrame, *, whole: bool) -> Claim:
    text = "Only the three informative coefficients end far from zero"
    if weights.empty or not whole:
        return not_checked(text, "the run was cut before the report's 20 epochs")
    found = []
    for _, own in weights.groupby("seed"):
        three = own.reindex(own["weight"].abs().sort_values(ascending=False).index).head(3)
        found.append(bool(three["informative"].all()))
    small = float(weights.loc[~weights["informative"], "weight"].abs().max())
    large = float(weights.loc[weights["informative"], "weight"].abs().min())
    error = float((weights["weight"] - weights["coefficient"]).abs().max())
    ours = (
        f"the three largest weights are the informative ones in {sum(found)} of {len(found)} draws; of all others the "
        f"largest is {short(small)}, of the informative the smallest {short(large)}"
    )
    why = (
        f"largest distance of a weight from its coefficient: {short(error)}; the report's own weights are not in its "
        "text"
    )
    return Claim(text, "", ours, "agrees" if all(found) else "differs", why)


def cubic_linear(parts: Mapping[str, Results]) -> Section:
    """Experiment 2: a linear model of cubic data stalls."""
    told, study = printed()["cubic_linear"], parts["cubic-linear"]
    losses = epoch_losses(study.curves)
    found = spans(losses, dict(enumerate(told["loss"], start=1)))
    whole = len(found) == told["epochs"]
    stalls = plateaus(study, losses)
    exact = constant_step(*cubic_population()[:2], told["learning_rate"], cubic_population()[2])
    text = f"After 15 epochs the loss has stalled near {short(told['loss'][-1])}"
    claims = [
        span_claim("The loss falls fast at first, then no more", found, told["epochs"]),
        _stall_claim(text, told["loss"][-1], stalls, exact) if whole else not_checked(text, "the run was cut short"),
        _floor_claim(told["loss"][-1], stalls, exact, whole=whole),
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
        for row in _records(stalls)
    ]
    return Section(
        "cubic-linear",
        "A linear model of cubic data",
        [
            f"10,000 observations of y = x1² + 14 x2³, drawn anew for each of {study.lanes['seed'].nunique()} seeds; a "
            "linear model, SGD at 0.003, one observation at a time, 15 epochs, float64. As before, the report keeps "
            "one "
            f"order of the observations and we do not.",
            f"Closed forms: the least-squares fit leaves {short(exact.floor)}, and steps of a constant size keep the "
            f"parameters moving about it, which adds {short(exact.noise)} to the loss of the next observation: the "
            f"covariance of the parameters is the fixed point of a linear equation in moments of the data up to the "
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
            )
        ],
        [
            Table(
                f"Where each draw of the data stalls: predicted from its moments, and measured (epochs "
                f"{told['epochs'] - MEASURED_EPOCHS + 1} to {told['epochs']})",
                ("seed", "floor", "noise", "floor + noise", "measured", "difference", "difference of the noise"),
                rows,
            )
        ],
        [],
        **_records_of("cubic-linear", [study]),
    )


def plateaus(study: Results, losses: pd.DataFrame) -> pd.DataFrame:
    """Where each lane's loss stalls: measured over the last `MEASURED_EPOCHS`, and predicted from its draw's moments.

    Returns:
        Columns seed, floor, noise, measured.
    """
    last = losses[losses["epoch"] > losses["epoch"].max() - MEASURED_EPOCHS]
    measured = last.groupby(["trial", "lane"])["loss"].mean().rename("measured").reset_index()
    seeds = study.lanes[["trial", "lane", "seed"]].merge(measured, on=["trial", "lane"])
    truth = pd.DataFrame(_truth(study), columns=["seed", "floor", "noise"])
    return truth.merge(seeds[["seed", "measured"]], on="seed")


def _stall_claim(text: str, told: float, stalls: pd.DataFrame, exact: ConstantStep) -> Claim:
    ours = t_interval(stalls["measured"])
    low, high = float(stalls["measured"].min()), float(stalls["measured"].max())
    spread = float(stalls["measured"].std()) if len(stalls) > 1 else math.nan
    place = f"{(told - ours.estimate) / spread:+.1f} standard deviations over draws from our mean"
    numbers = (
        f"{_interval(ours)}: mean and 95% t interval of {ours.n} draws, which range from {short(low)} to {short(high)}"
    )
    if low <= told <= high:
        return Claim(text, _digits(told), numbers, "agrees", f"inside the range of our draws, {place}")
    beyond = told / high - 1 if told > high else 1 - told / low
    others = stalls_of_draws(printed()["cubic_linear"]["learning_rate"], DRAWS)
    share = min(float((others >= told).mean()), float((others <= told).mean()))
    why = (
        f"{_percent(beyond)} outside the range of our draws, {place}. An unusual draw of the data explains it: of "
        f"{DRAWS} further draws, {_percent(share)} are predicted to stall as far out; their mean is "
        f"{_digits(float(others.mean()))}, that of all draws {_digits(exact.total)}"
    )
    return Claim(text, _digits(told), numbers, "differs", why)


def _floor_claim(told: float, stalls: pd.DataFrame, exact: ConstantStep, *, whole: bool) -> Claim:
    text = "It stalls because a linear model cannot represent the response"
    if not whole or stalls.empty:
        return not_checked(text, "the run was cut short")
    gaps = {
        "floor": t_interval(stalls["floor"]).estimate / exact.floor - 1,
        "stall": float((stalls["measured"] / (stalls["floor"] + stalls["noise"])).mean()) - 1,
        "noise": float(((stalls["measured"] - stalls["floor"]) / stalls["noise"]).mean()) - 1,
    }
    share = exact.noise / exact.total
    good = max(abs(gaps["stall"]), abs(gaps["noise"])) <= TOLERANCE
    ours = (
        f"floor {_interval(t_interval(stalls['floor']))}, noise of the constant step "
        f"{_interval(t_interval(stalls['measured'] - stalls['floor']))}: means and 95% t intervals over draws"
    )
    why = (
        f"only in part: no linear model gets below {short(exact.floor)}, but {_percent(share)} of where it stalls is "
        "the "
        f"noise of a constant step at batch size 1, which a smaller one takes away. Measured against what each draw's "
        f"moments predict: stall {_signed(gaps['stall'])}, noise {_signed(gaps['noise'])} "
        f"({'within' if good else 'not within'} the {_percent(TOLERANCE)} allowed)"
    )
    return Claim(text, f"{_digits(told)}, no cause computed", ours, "differs", why)


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}%"


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
    final = losses[losses["epoch"] == losses["epoch"].max()].merge(
        study.lanes[["trial", "lane", "seed", "outcome"]], on=["trial", "lane"]
    )
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
        for row in _records(found)
    ]
    ends = [
        (str(row["seed"]), short(row["loss"]), ending(row["loss"], least, linear_floor))
        for row in _records(final.sort_values("loss"))
    ]
    return Section(
        "mlp",
        "The 64-32 network",
        [
            f"2-64-32-1 ReLU network, Adam at 0.001, batches of 32, 1,000 epochs, float64; "
            f"{final['seed'].nunique()} seeds over {study.trials['trial'].nunique()} draws of 10,000 observations.",
            f"The best function of x2 alone leaves the variance of x1², {short(least)}; the best linear model "
            f"{short(linear_floor)}.",
        ],
        claims,
        [
            Exhibit(
                "mlp",
                "mlp-losses",
                "Training loss of the 64-32 network",
                f"Mean squared error over each epoch's batches, before their updates: one line per seed. Points: what "
                f"the report prints, divided by {factor:,.0f}; open: as printed. Dashed: what a fit that ignores x1 "
                f"leaves, and what the best linear model leaves.",
                "Mean squared error against epochs on logarithmic axes, one line per seed, beside the report's points.",
                losses,
                _panel(lambda ax: _draw_mlp(losses, told["loss"], factor, (least, linear_floor), ax), PAGE_MM, 90.0),
                "no run has finished",
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
            f"The loss is summed as loss x {told['batch_size']} and divided by "
            f"{told['divided_by_examples']} / {told['batch_size']} = "
            f"{told['divided_by_examples'] / told['batch_size']:g}, "
            f"batches of the first experiment's data, where {told['examples']:,} observations were meant: too large by "
            f"{told['examples']:,} x {told['batch_size']} / {told['divided_by_examples']} = {factor:,.0f}. The last "
            f"{told['loss'][str(last)]:,.2f} is {true[last]:.2f}.",
            f"An epoch's last batch has {told['examples'] - (batches - 1) * told['batch_size']} observations and is "
            f"weighted as {told['batch_size']}: {batches} x {told['batch_size']} = {batches * told['batch_size']:,}, "
            f"{_percent(batches * told['batch_size'] / told['examples'] - 1)} too many.",
            f"The network is said to have 64 x 32 = {64 * 32:,} weights instead of 2. Counted: "
            f"2 x 64 + 64 + 64 x 32 + 32 + 32 + 1 = {2 * 64 + 64 + 64 * 32 + 32 + 32 + 1:,}; the linear model has 3.",
        ],
        **_records_of("mlp", [study]),
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
        losses: (n,) mean squared errors of the last epoch.
        told: the report's, on this scale.
        whole: whether the run had all epochs.
    """
    text = "It ends far below the linear model, at what a fit that ignores x1 leaves"
    if not whole:
        return not_checked(text, "the run was cut before the report's 1,000 epochs")
    values = np.asarray(losses, dtype=np.float64)
    low, high = MLP_RANGE
    inside, below, above = ((low <= values) & (values <= high)).sum(), (values < low).sum(), (~(values <= high)).sum()
    rest = [f"{n} {word}" for n, word in ((below, "ended lower"), (above, "higher")) if n]
    ours = f"{_interval(log_interval(values))}: geometric mean and 95% t interval of {len(values)} seeds"
    why = (
        f"{inside} of {len(values)} seeds end between {low:g} and {high:g}; {' and '.join(rest) or 'none elsewhere'}. "
        f"Asked for: at least half"
    )
    return Claim(text, f"{told:.2f}", ours, "agrees" if 2 * inside >= len(values) else "differs", why)


def better_claim(losses: ArrayLike, told: float, told_linear: float, factor: float, *, whole: bool) -> Claim:
    """How much lower the network's loss is than the linear model's."""
    text = "The network's loss is much lower than the linear model's"
    if not whole:
        return not_checked(text, "the run was cut before the report's 1,000 epochs")
    ours = log_interval(told_linear / np.asarray(losses, dtype=np.float64))
    why = (
        f"more than the report says: its own numbers differ by {short(told_linear / told)}, on one scale by "
        f"{short(factor * told_linear / told)}"
    )
    good: Verdict = "agrees" if ours.estimate > 1 else "differs"
    return Claim(text, f"{short(told_linear / told)} times", f"{_interval(ours)} times", good, why)


def regimes(parts: Mapping[str, Results]) -> Section:
    """Experiment 4: three batch sizes, as the report drew them, put right, and tuned."""
    told, fixed, tuned = printed()["regimes"], parts["regimes"], parts["regimes-tuned"]
    table, tuned_table = tables.cells(fixed), tables.cells(tuned)
    traces = update_losses(fixed)
    numbers = regime_numbers(fixed, table, traces)
    curves, tuned_curves = series.regime_curves(fixed, table), series.regime_curves(tuned, tuned_table)
    drawn = as_drawn(traces, told)
    cut = float(fixed.trials["epochs"].max()) < told["epochs"] if len(fixed.trials) else True
    mini = math.ceil(told["batch_sizes"]["batch"] / told["batch_sizes"]["mini-batch"])
    stretched = told["batch_drawn_to"] / told["batch_points"]
    seeds = int(fixed.lanes["seed"].nunique())
    return Section(
        "regimes",
        "Three regimes of one optimizer",
        [
            f"2-16-8-1 ReLU network, Adam, batch sizes 1, 32 and 10,000 (all), 10 epochs, float64; {seeds} seeds, "
            "which "
            "share initialisation and order across the three. First at Adam's usual 0.001 for all three, as the "
            "report "
            f"has it, then each at its own tuned rate.",
            "The report's picture itself is not in its text; the first figure draws ours by its code.",
        ],
        [*regime_claims(numbers, regime_ends(tuned_table), cut=cut), time_claim(curves, tuned_curves, cut=cut)],
        [
            Exhibit(
                "regimes",
                "regimes-as-drawn",
                "As the report drew it",
                f"The loss of each update's own batch, before it, one seed. Each curve has its own horizontal scale: "
                f"10/3,130 of an epoch an update for batches of 32, and {stretched:g} epochs for the batch regime, "
                "whose "
                f"last update is thereby drawn at {stretched * (told['batch_points'] - 1):g} instead of 9.",
                "Loss against epochs: a noisy stochastic curve that falls at once, a mini-batch curve below its "
                "spikes, "
                "and a batch curve that looks constant.",
                drawn,
                _panel(lambda ax: _draw_as_drawn(drawn, ax), 0.78 * PAGE_MM, 85.0),
                "no run has finished",
            ),
            Exhibit(
                "regimes",
                "regimes-put-right",
                "Put right",
                f"The loss of one validation split for all three, at the same rate of 0.001, against updates, "
                f"observations, epochs and seconds of training all {seeds} seeds together. Line: geometric mean over "
                f"{seeds} seeds; band: pointwise 95% t interval.",
                "Four panels of validation loss against updates, observations, epochs and seconds, one line per "
                "regime.",
                curves,
                _four_panels(curves),
                "no run has finished",
            ),
            Exhibit(
                "regimes",
                "regimes-tuned",
                "Each at its own tuned rate",
                f"As above, each regime at the learning rate that is best for it after 10 epochs "
                f"({_rates_text(tuned_curves)}).",
                "Four panels of validation loss against updates, observations, epochs and seconds, one line per "
                "regime.",
                tuned_curves,
                _four_panels(tuned_curves),
                "no run has finished",
            ),
        ],
        [
            Table(
                "What the report claims by eye, in numbers; rate 0.001, means and 95% t intervals over seeds",
                ("regime", "updates", "fall of the loss in 1 epoch", "in all", "noise", "seconds an epoch and seed"),
                [
                    (
                        row["regime"],
                        f"{row['updates']:,}",
                        row["first_text"],
                        row["final_text"],
                        _percent(row["noise"]),
                        short(row["seconds"]),
                    )
                    for row in _records(numbers)
                ],
            ),
            Table(
                "Each at its own tuned rate",
                ("regime", "rate", "validation loss", "times the stochastic one's"),
                [
                    (row["regime"], short(row["learning_rate"]), row["text"], short(row["ratio"]))
                    for row in _records(regime_ends(tuned_table))
                ],
            ),
        ],
        [
            "The figure is said to compare optimizers. All three curves use Adam; what differs is the batch size, so "
            "neither stochastic nor batch gradient descent, as the text defines them, is in it.",
            f"The batch curve's {told['batch_points']} losses are drawn over {told['batch_drawn_to']} epochs: "
            f"{told['batch_drawn_to']} / {told['batch_points']} = {stretched:g} epochs an update, where there is one "
            "an "
            f"epoch.",
            f"{told['batch_sizes']['batch']:,} / {told['batch_sizes']['mini-batch']} = "
            f"{told['batch_sizes']['batch'] / told['batch_sizes']['mini-batch']:g}, so an epoch has {mini} updates, "
            "the "
            f"last of {told['batch_sizes']['batch'] - (mini - 1) * told['batch_sizes']['mini-batch']} observations; "
            "its "
            f"loss is weighted as a full one's.",
            "Batch gradient descent is said to lower the loss always. It does where the step is small enough: for a "
            "quadratic loss below 2 over its largest curvature, above which it diverges.",
        ],
        **_records_of("regimes", [fixed, tuned]),
    )


def update_losses(study: Results) -> pd.DataFrame:
    """The batch loss of every update of a study whose cells differ in regime alone.

    Returns:
        Columns regime, seed, update, epoch, value.
    """
    batch = study.curves[(study.curves["split"] == "batch") & (study.curves["metric"] == "loss")]
    regime = study.trials.set_index("trial")["regime"]
    lanes = study.lanes[["trial", "lane", "seed"]]
    found = batch.merge(lanes, on=["trial", "lane"]).assign(regime=lambda frame: frame["trial"].map(regime))
    return found[["regime", "seed", "update", "epoch", "value"]]


def as_drawn(traces: pd.DataFrame, told: Mapping[str, Any]) -> pd.DataFrame:
    """The first seed's losses with the horizontal places that the report's code gives them.

    Returns:
        Columns regime, x (what its axis calls epochs), value.
    """
    own = traces[traces["seed"] == traces["seed"].min()]
    step = {regime: 1 / ticks for regime, ticks in told["ticks_per_epoch"].items()}
    step["batch"] = told["batch_drawn_to"] / told["batch_points"]
    frame = pd.DataFrame({"regime": own["regime"], "value": own["value"]})
    frame.insert(1, "x", (own["update"] - 1) * own["regime"].map(step).astype(float))
    return frame.reset_index(drop=True)


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
    """Speed, noise and descent of each regime.

    Returns:
        One row per regime, stochastic first: regime, updates; first and final (Intervals of the validation loss over
        that at initialisation, after one epoch and at the end), first_text and final_text; noise (mean `jitter` of the
        batch losses); seconds (of training an epoch, per lane); falling (share of seeds whose validation loss ends
        below its start).
    """
    curves = tables.curves_of(study, table)
    losses = curves[(curves["split"] == "validation") & (curves["metric"] == "loss")].sort_values("update")
    rows = []
    for regime in (name for name in REGIMES if name in set(table["regime"])):
        cell = table[table["regime"] == regime].iloc[0]
        own = losses[losses["cell"] == cell["trial"]]
        by_seed = own.groupby("seed")
        start, end = by_seed["value"].first(), by_seed["value"].last()
        first = own[own["epoch"] >= 1 - 1e-9].groupby("seed")["value"].first()
        noise = traces[traces["regime"] == regime].sort_values("update").groupby("seed")["value"].agg(jitter)
        intervals = {"first": log_interval(first / start), "final": log_interval(end / start)}
        rows.append(
            {"regime": regime, "updates": int(cell["updates"]), **intervals}
            | {f"{name}_text": _fall(interval) for name, interval in intervals.items()}
            | {"noise": float(noise.mean()), "falling": float((end < start).mean()), "seeds": len(end)}
            | {"seconds": float(cell["train_seconds"]) / max(1.0, float(cell["epochs"])) / max(1, len(end))}
        )
    return pd.DataFrame(rows)


def _fall(share: Interval) -> str:
    """By how much a loss has fallen, from what is left of it, in per cent."""
    low, high = _percent(1 - share.high), _percent(1 - share.low)
    return _percent(1 - share.estimate) + (f" [{low}, {high}]" if share.n > 1 else "")


def regime_ends(table: pd.DataFrame) -> pd.DataFrame:
    """The tuned regimes.

    Returns:
        Columns regime, learning_rate, on_edge, loss, low, high, text (loss with interval), ratio (to the stochastic).
    """
    order = {name: place for place, name in enumerate(REGIMES)}
    rows = table[table["validation"].notna()].sort_values("regime", key=lambda names: names.map(order))
    ends = [
        {"regime": row["regime"], "learning_rate": row["learning_rate"], "on_edge": row["on_edge"]}
        | {"loss": row["validation"], "low": row["validation_low"], "high": row["validation_high"]}
        | {"text": _interval(Interval(row["validation"], row["validation_low"], row["validation_high"], row["n"]))}
        for row in _records(rows)
    ]
    columns = ["regime", "learning_rate", "on_edge", "loss", "low", "high", "text"]
    frame = pd.DataFrame(ends, columns=columns)
    first = frame.loc[frame["regime"] == "stochastic", "loss"]
    return frame.assign(ratio=frame["loss"] / (float(first.iloc[0]) if len(first) else math.nan))


def regime_claims(numbers: pd.DataFrame, ends: pd.DataFrame, *, cut: bool) -> list[Claim]:
    """What the report claims by eye of its figure, checked by number.

    Args:
        numbers: of `regime_numbers`.
        ends: of `regime_ends`, at tuned rates.
        cut: whether the run had fewer epochs than the report's.
    """
    fast = "Batches of one bring the fastest fall"
    noisy = "Batches of one bring an overwhelming noise, batches of 32 little, the full batch none"
    flat = "The full batch's loss looks constant, but falls"
    middle = "Batches of 32 are a good balance: a quick fall with little noise"
    if cut or set(numbers.get("regime", [])) != set(REGIMES):
        return [
            not_checked(text, "the run was cut before the report's 10 epochs") for text in (fast, noisy, flat, middle)
        ]
    one, mini, full = (numbers[numbers["regime"] == name].iloc[0] for name in REGIMES)

    def words(column: str) -> str:
        return ", ".join(f"{row[column]} ({name})" for name, row in zip(REGIMES, (one, mini, full), strict=True))

    ordered = one["first"].high < mini["first"].low and mini["first"].high < full["first"].low
    speed = (
        "after one epoch, intervals of the ratio to the initial loss do not overlap, in this order. By then it has "
        "made "
        f"{short(one['updates'] / mini['updates'])} times the updates of batches of 32 and "
        f"{short(one['updates'] / full['updates'])} times those of the full batch, which are what the fall is owed to"
    )
    share = f"{_percent(one['noise'])}, {_percent(mini['noise'])}, {_percent(full['noise'])} of the mean loss"
    loud = one["noise"] > mini["noise"] > full["noise"]
    drop = full["final"]
    best = ends.sort_values("loss").iloc[0] if len(ends) else None
    return [
        Claim(fast, "", words("first_text"), "agrees" if ordered else "differs", speed),
        Claim(
            noisy,
            "",
            share,
            "agrees" if loud else "differs",
            "scatter about the trend in the second half of training. Most of it is that a batch of one is a noisy "
            "measure "
            "of the loss, not that the network is the worse: on the validation split the curves are far smoother",
        ),
        Claim(
            flat,
            "",
            f"a fall by {full['final_text']} in 10 updates; it fell on {_percent(full['falling'])} of the seeds",
            "agrees" if drop.high < 1 else "differs",
            "10 updates of at most about 0.001 in each parameter cannot do more; another rate can "
            f"({_full_text(ends)})",
        ),
        _balance_claim(middle, one, mini, best, ends),
    ]


def _balance_claim(text: str, one: Any, mini: Any, best: Any, ends: pd.DataFrame) -> Claim:
    ours = f"falls by {one['final_text']} (stochastic) and {mini['final_text']} (mini-batch) in 10 epochs"
    good = mini["noise"] < one["noise"] and mini["final"].high < 1
    loses = mini["final"].low > one["final"].high
    why = "less noise than batches of one" + (", though it ends higher at the same rate" if loses else "")
    if best is not None:
        order = ", ".join(f"{row['regime']} {row['text']}" for row in _records(ends.sort_values("loss")))
        why += f". With each at its own tuned rate {best['regime']} is best after 10 epochs: {order}"
    return Claim(text, "", ours, "agrees" if good else "differs", why)


def same_seconds(curves: pd.DataFrame) -> tuple[float, Interval, Interval] | None:
    """The validation loss of batches of 32 and of batches of one in the same time.

    Args:
        curves: of `analysis.series.regime_curves`.

    Returns:
        Seconds of training of all seeds, the shorter whole training of the two; the losses of mini-batches and of
        single observations at the last evaluations up to then. None if a regime is missing.
    """
    lines = [curves[curves["regime"] == name] for name in ("mini-batch", "stochastic")]
    if any(line.empty for line in lines):
        return None
    seconds = min(float(line["train_seconds"].max()) for line in lines)
    last = [line[line["train_seconds"] <= seconds].iloc[-1] for line in lines]
    mini, one = (Interval(float(row["estimate"]), float(row["low"]), float(row["high"]), int(row["n"])) for row in last)
    return seconds, mini, one


def time_claim(fixed: pd.DataFrame, tuned: pd.DataFrame, *, cut: bool) -> Claim:
    """Whether batches of 32 do better than batches of one in the same computing time.

    Args:
        fixed: of `analysis.series.regime_curves`, at the same rate for both.
        tuned: likewise, each at its tuned rate.
        cut: whether the run had fewer epochs than the report's.
    """
    text, found = "In the same computing time batches of 32 may do better than batches of one", same_seconds(fixed)
    own = same_seconds(tuned)
    if cut or found is None or own is None:
        return not_checked(text, "the run was cut before the report's 10 epochs")
    (seconds, mini, one), (tuned_seconds, tuned_mini, tuned_one) = found, own
    ours = f"at 0.001 each, in {short(seconds)} s: {_interval(mini)} (mini-batch), {_interval(one)} (stochastic)"
    better = tuned_mini.high < tuned_one.low
    why = (
        f"each at its own tuned rate, in {short(tuned_seconds)} s of all seeds and rates: {_interval(tuned_mini)} "
        f"(mini-batch), {_interval(tuned_one)} (stochastic). The verdict is about these, the intervals being apart or "
        f"not; seconds are those of our program on this machine"
    )
    if better or tuned_one.high < tuned_mini.low:
        return Claim(text, "", ours, "agrees" if better else "differs", why)
    return Claim(text, "", ours, "not checked", why)


def _full_text(ends: pd.DataFrame) -> str:
    own = ends[ends["regime"] == "batch"]
    if own.empty:
        return "none was tried"
    row = own.iloc[0]
    return f"at its tuned {short(row['learning_rate'])} the loss ends at {row['text']}"


def _rates_text(curves: pd.DataFrame) -> str:
    firsts = curves.drop_duplicates("regime") if len(curves) else curves
    return ", ".join(f"{row['regime']} {short(row['learning_rate'])}" for row in _records(firsts))


EQUAL = 0.05
"""How far the numbers of parameters of networks lie apart that count as equally large, relative."""


def layers(parts: Mapping[str, Results]) -> Section:
    """Experiment 6: what the report recommends: layers, width and optimizers, each tuned."""
    study = parts["layers"]
    table = tables.cells(study)
    shapes, optimizers = equal_shapes(study, table), best_of(table, "optimizer", maximize=study.maximize)
    heat = series.grid(table, "depth", "width", study.maximize)
    rates = series.rate_sensitivity(study, table)
    return Section(
        "layers",
        "Layers, width and optimizers",
        [
            "The report recommends to try the number of layers and their width, and optimizers other than plain "
            "gradient "
            "descent, and does not. A search over both on the cubic data, standardised, batches of 32, each cell at "
            "its "
            f"tuned rate, {int(study.lanes['seed'].nunique())} seeds; losses are in variances of y.",
        ],
        [
            shape_claim(shapes),
            optimizer_claim(optimizers, table),
        ],
        [
            Exhibit(
                "layers",
                "layers-shapes",
                "Width and depth",
                "Validation loss of the best optimizer at its tuned rate, in variances of y: geometric mean, in "
                "brackets "
                "the 95% t interval over seeds. Hidden layers of equal width; dashed: equally many parameters.",
                "Heat map of validation loss: rows are depths, columns widths.",
                heat,
                _heat(heat, study.metric),
                "no run has finished",
            ),
            Exhibit(
                "layers",
                "layers-optimizers",
                "Optimizers at every learning rate",
                "Best shape of each optimizer. Line: geometric mean of the final validation loss over seeds; band: "
                "pointwise 95% t interval; ring: tuned rate; cross: a seed diverged there.",
                "Validation loss against learning rate, one line per optimizer.",
                rates,
                _panel(
                    lambda ax: figures.learning_rate_sensitivity(rates, ax, study.metric, "variances of y"),
                    0.78 * PAGE_MM,
                    85.0,
                ),
                "no run has finished",
            ),
        ],
        [
            Table(
                "Equally many parameters, each with its best optimizer at its tuned rate",
                ("network", "parameters", "optimizer", "rate", "validation loss", "times the wide one's, by seed"),
                [
                    (
                        row["network"],
                        f"{row['parameters']:.0f}",
                        row["optimizer"],
                        short(row["learning_rate"]),
                        row["text"],
                        row["ratio_text"],
                    )
                    for row in _records(shapes)
                ],
            ),
            Table(
                "The best cell of each optimizer",
                ("optimizer", "width", "depth", "rate", "validation loss", "rate on the edge"),
                [
                    (
                        row["optimizer"],
                        str(row["width"]),
                        str(row["depth"]),
                        short(row["learning_rate"]),
                        _row_text(row),
                        "yes" if row["on_edge"] else "no",
                    )
                    for row in _records(optimizers)
                ],
            ),
        ],
        [],
        **_records_of("layers", [study]),
    )


def best_of(table: pd.DataFrame, by: str, *, maximize: bool) -> pd.DataFrame:
    """The best cell of each value of a column of `tables.cells`, best first."""
    return tables.rank(table, maximize).drop_duplicates(by)


def equal_shapes(study: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The networks of about equally many parameters, widest first, each with its best optimizer at its tuned rate.

    They are the largest group of shapes of different depths whose parameters lie within `EQUAL` of the first's.

    Returns:
        Columns network, width, depth, parameters, optimizer, learning_rate, validation, text, ratio (an Interval: its
        loss over the widest one's, by seed) and ratio_text.
    """
    best = tables.rank(table, study.maximize).drop_duplicates(["width", "depth"])
    groups = [
        best[(best["parameters"] / size - 1).abs() <= EQUAL].sort_values("depth").drop_duplicates("depth")
        for size in best.loc[best["depth"] == best["depth"].min(), "parameters"]
    ]
    columns = ["network", "width", "depth", "parameters", "optimizer", "learning_rate", "validation", "text", "ratio"]
    group = max(groups, key=len, default=best.head(0))
    if len(group) < 2:
        return pd.DataFrame(columns=[*columns, "ratio_text"])
    lanes = tables.tuned_lanes(study, group).set_index(["cell", "seed"])[f"validation_{study.metric}"]
    widest, rows = lanes[group["trial"].iloc[0]], []
    for row in _records(group):
        ratio = log_interval((lanes[row["trial"]] / widest).dropna())
        first = row["trial"] == group["trial"].iloc[0]
        rows.append(
            {name: row[name] for name in columns[1:7]}
            | {"network": f"{row['depth']} x {row['width']}", "text": _row_text(row), "ratio": ratio}
            | {"ratio_text": "1" if first else _interval(ratio)}
        )
    return pd.DataFrame(rows)


def shape_claim(shapes: pd.DataFrame) -> Claim:
    """Whether a deep and narrow network beats a wide and shallow one of equally many parameters."""
    text = "A deep and narrow network may do better than a wide and shallow one"
    if len(shapes) < 2:
        return not_checked(text, "no two shapes with equally many parameters have a tuned rate")
    wide, deep = shapes.iloc[0], shapes.iloc[-1]
    ratio: Interval = deep["ratio"]
    ours = (
        f"{deep['network']} against {wide['network']}: {_interval(ratio)} times the loss, geometric mean and 95% t "
        f"interval of {ratio.n} paired seeds"
    )
    counts = (
        f"{deep['parameters']:.0f} and {wide['parameters']:.0f} parameters, each with its best optimizer at its tuned "
        "rate"
    )
    if ratio.high < 1:
        return Claim(text, "", ours, "agrees", counts)
    verdict: Verdict = "differs" if ratio.low > 1 else "not checked"
    words = counts if ratio.low > 1 else f"{counts}; the interval holds 1, so these seeds do not tell"
    return Claim(text, "", ours, verdict, words)


def optimizer_claim(optimizers: pd.DataFrame, table: pd.DataFrame) -> Claim:
    """Whether momentum, RMSprop and Adam beat plain SGD, all tuned."""
    text = "Momentum, RMSprop and Adam do much better than plain gradient descent"
    plain, others = optimizers[optimizers["optimizer"] == "sgd"], optimizers[optimizers["optimizer"] != "sgd"]
    if plain.empty or others.empty:
        return not_checked(text, "not all of them have a tuned rate")
    base = plain.iloc[0]
    better = others[others["validation_high"] < base["validation_low"]]
    ours = ", ".join(f"{row['optimizer']} {_row_text(row)}" for row in _records(optimizers.sort_values("validation")))
    edge = int(table["on_edge"].sum())
    why = (
        f"best cells over all shapes; {len(better)} of {len(others)} lie below SGD with no overlap of 95% intervals, "
        "the "
        f"best at {short(float(base['validation'] / others['validation'].min()))} times less"
        + (f"; {edge} of {len(table)} cells have their rate on the edge of the grid" if edge else "")
    )
    return Claim(text, "", ours, "agrees" if len(better) == len(others) else "differs", why)


def _row_text(row: Mapping[str, Any]) -> str:
    return _interval(Interval(row["validation"], row["validation_low"], row["validation_high"], row["n"]))


@dataclass(frozen=True)
class Experiment:
    """An experiment whose section is made from ordinary results.

    Attributes:
        specs: that it needs.
        make: its section, from those specs' results.
    """

    specs: tuple[str, ...]
    make: Callable[[Mapping[str, Results]], Section] = field(repr=False)


SECTIONS: dict[str, Experiment | None] = {
    "linear": Experiment(("linear-by-hand", "linear"), linear),
    "cubic-linear": Experiment(("cubic-linear",), cubic_linear),
    "mlp": Experiment(("mlp-64-32",), mlp),
    "regimes": Experiment(("regimes", "regimes-tuned"), regimes),
    "mnist": None,  # made by `analysis.reproduction_mnist`
    "layers": Experiment(("layers",), layers),
}
"""The experiments in the order of the page."""


def sections(out: Path) -> list[Section]:
    """The sections of what has been run in a folder, in order."""
    try:
        folders: dict[str, str] = json.loads((out / PARTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        folders = {}
    found = []
    for name, experiment in SECTIONS.items():
        if experiment is None:
            if _mnist_is_whole(out / name / "run.json"):
                found.append(_mnist(out))
        elif all(spec in folders for spec in experiment.specs):
            parts = {spec: load(out / folders[spec]) for spec in experiment.specs}
            if lost := [spec for spec, results in parts.items() if _whole(results).empty]:
                raise ResultsError(f"{out / folders[lost[0]]}: no lane has completed; `study status` says why")
            found.append(experiment.make(parts))
    return found


def _mnist_is_whole(file: Path) -> bool:
    """Whether the experiment on images came to its last part: the candidates that came nearest, on fresh seeds."""
    folders = json.loads(file.read_text(encoding="utf-8")).get("folders", []) if file.is_file() else []
    return any(name.startswith("nearest") for name in folders)


def _mnist(out: Path) -> Section:
    """The section of the images, which `analysis.reproduction_mnist` makes."""
    from analysis.reproduction_mnist import UNCHECKED, section  # it draws images, which the others need not wait for

    made = section(out)
    verdicts: dict[str, Verdict] = {"agrees": "agrees", "differs": "differs", UNCHECKED: "not checked"}
    claims = [Claim(each.claim, each.report, each.ours, verdicts[each.verdict], each.why) for each in made.claims]
    drawings = [
        Exhibit(
            "mnist", f"mnist-{each.name}", each.title, each.caption, each.alt, each.data, each.draw, "it was not run"
        )
        for each in made.figures
    ]
    found = [
        Table(
            each.title, [str(name) for name in each.data], [[_cell(value) for value in row] for row in each.data.values]
        )
        for each in made.tables
    ]
    return Section("mnist", made.title, made.notes, claims, drawings, found, seconds=made.seconds, command=made.command)


def _cell(value: Any) -> str:
    """A value of a table in words."""
    if isinstance(value, float):
        return short(value) if math.isfinite(value) else ""
    return str(value)


def write_page(out: Path, command: str = "") -> Path:
    """Write the page of all experiments that have been run in a folder.

    Args:
        out: the folder; figures go to `figures/` in it.
        command: that made it.

    Returns:
        The path of `index.html`.

    Raises:
        ResultsError: if a results folder cannot be read, or nothing in it completed.
    """
    made = sections(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    shown = [_shown(section, out) for section in made]
    counts = [(section.name, section.title, *_verdicts(section), duration(section.seconds)) for section in made]
    total = duration(sum(section.seconds for section in made if math.isfinite(section.seconds)))
    page = (
        environment()
        .get_template("reproduction.html.j2")
        .render(
            sections=shown, counts=counts, total=total, source=printed()["source"], command=command or "study reproduce"
        )
    )
    write_file(out / "index.html", page.encode())
    return out / "index.html"


def _verdicts(section: Section) -> tuple[int, int, int]:
    verdicts = [claim.verdict for claim in section.claims]
    return verdicts.count("agrees"), verdicts.count("differs"), verdicts.count("not checked")


def _shown(section: Section, out: Path) -> dict[str, Any]:
    """What the template shows of a section."""
    drawings = [drawing.save(out, "") for drawing in section.drawings]
    return vars(section) | {"figures": drawings, "time": duration(section.seconds)}


def duration(seconds: float) -> str:
    """Seconds for readers."""
    if not math.isfinite(seconds):
        return "\N{EN DASH}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _records_of(name: str, studies: Sequence[Results]) -> dict[str, Any]:
    """What a section tells of its runs: seconds, command, links and provenance."""
    sessions = studies[-1].provenance.get("sessions") or [{}]
    last, hardware, versions = sessions[-1], sessions[-1].get("hardware", {}), sessions[-1].get("versions", {})
    gone = [_session_seconds(study.provenance) for study in studies]
    links = []
    out = studies[0].path.parent.parent
    for study in studies:
        place = os.path.relpath(study.path, out)
        links.append((f"{study.name}: spec", f"{place}/spec.toml"))
        if (study.path / "report" / "index.html").is_file():
            links.append((f"{study.name}: ordinary report", f"{place}/report/index.html"))
    told = (
        f"commit {last.get('commit') or 'unknown'}; {versions_text(versions)}; "
        f"{hardware.get('cpu', 'unknown processor')}, "
        f"{hardware.get('cpus', '?')} processors; seeds {_seeds_text(studies[-1])}"
    )
    command = shlex.join(["study", "reproduce", "--only", name])
    return {"seconds": sum(gone), "command": command, "links": links, "provenance": told}


def versions_text(versions: Mapping[str, str]) -> str:
    """The versions on which numbers depend most."""
    return ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "numpy") if name in versions)


def _seeds_text(study: Results) -> str:
    seeds = sorted(study.lanes["seed"].unique())
    return f"{seeds[0]} to {seeds[-1]}" if seeds else "none"


def _session_seconds(provenance: Mapping[str, Any]) -> float:
    """Seconds of all the sessions of a study that ended, as far as was told."""
    whole = [each for each in provenance.get("sessions", []) if each.get("ended")]
    return sum(
        (datetime.fromisoformat(each["ended"]) - datetime.fromisoformat(each["started"])).total_seconds()
        for each in whole
    )


def _whole(study: Results) -> pd.DataFrame:
    """The lanes that had their whole budget."""
    return study.lanes[study.lanes["outcome"] == "completed"]


def _truth(study: Results) -> list[dict[str, Any]]:
    """What the data's maker told of each draw; nothing if it did not."""
    file = study.path / TRUTH
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _panel(draw: Callable[[Axes], Any], width: float, height: float) -> Callable[[], Figure]:
    """A figure of one panel with its legend, if it needs one, below."""

    def made() -> Figure:
        figure = figures.figure(width, height)
        ax = figure.subplots()
        draw(ax)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return figure

    return made


def _four_panels(curves: pd.DataFrame) -> Callable[[], Figure]:
    def made() -> Figure:
        figure = figures.figure(PAGE_MM, 125)
        panels = figure.subplots(2, 2, sharey=True).ravel()
        for ax, by in zip(panels, tables.AXES, strict=True):
            figures.loss_by_regime(curves, ax, by, raw=False)
            ax.set_ylabel("")
        figure.supylabel("validation loss, mean squared error", fontsize=8)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=1)
        return figure

    return made


def _heat(data: pd.DataFrame, metric: str) -> Callable[[], Figure]:
    def made() -> Figure:
        figure = figures.figure(0.7 * PAGE_MM, 24 + 13 * max(2, data["row"].nunique()))
        figures.heat_map(data, figure.subplots(), "hidden layers", "width", metric, contours=True)
        return figure

    return made


def _losses_drawing(
    name: str, losses: pd.DataFrame, found: pd.DataFrame, title: str, more: Callable[[Axes], None]
) -> Exhibit:
    """Our losses by epoch with their range, beside the report's."""
    by_epoch = losses.groupby("epoch")["loss"]
    data = pd.DataFrame(
        [{"epoch": epoch, "low": own.min(), "high": own.max()} | _limits(log_interval(own)) for epoch, own in by_epoch]
    ).merge(found[["epoch", "printed"]], on="epoch", how="left")

    def draw(ax: Axes) -> None:
        blue = figures.optimizer_look("sgd")[0]
        ax.fill_between(data["epoch"], data["low"], data["high"], color=blue, alpha=0.15, linewidth=0, label="range")
        ax.fill_between(data["epoch"], data["lower"], data["upper"], color=blue, alpha=0.3, linewidth=0,
                        label="95% t interval")  # fmt: skip
        ax.plot(data["epoch"], data["estimate"], color=blue, label="ours, geometric mean")
        ax.plot(data["epoch"], data["printed"], "o", color="#000000", markersize=3.5, label="printed in the report")
        more(ax)
        figures.log_axis(ax, "y")
        ax.set_xlabel("epochs")
        ax.set_ylabel("mean squared error over the epoch")

    count = int(by_epoch.size().max()) if len(losses) else 0
    return Exhibit(
        name,
        f"{name}-losses",
        title,
        f"Mean over each epoch of the loss before each update. Line: geometric mean over {count} seeds, each with its "
        "own "
        f"draw of the data; bands: 95% t interval, and the whole range. Points: the report.",
        "Training loss against epochs on a logarithmic axis: our mean, interval and range, and the report's points.",
        data,
        _panel(draw, 0.78 * PAGE_MM, 90.0),
        "no run has finished",
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


def _draw_as_drawn(data: pd.DataFrame, ax: Axes) -> None:
    # As images: a hundred thousand points as paths would take megabytes of the page.
    for regime, colour in zip(REGIMES, ("#d55e00", "#0072b2", "#009e73"), strict=True):
        own = data[data["regime"] == regime]
        ax.plot(own["x"], own["value"], color=colour, linewidth=0.8, label=regime, rasterized=True)
    ax.set_xlabel("epochs, as the report's axis has them")
    ax.set_ylabel("loss of the batch")
