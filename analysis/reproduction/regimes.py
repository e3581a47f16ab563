"""Experiment 4 of the source report: batches of one, of 32 and of everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis import figures, series, tables
from analysis.figures import PAGE_MM
from analysis.reproduction.section import (
    FEWEST,
    Claim,
    Section,
    Table,
    Verdict,
    drawing,
    interval,
    not_checked,
    panel,
    percent,
    printed,
    records,
    told_of_runs,
)
from analysis.results import REGIMES, Results
from analysis.statistics import Interval, log_interval
from analysis.wording import counted, short

OVERWHELMING, LITTLE, NONE = 1.0, 0.5, 0.01
"""Noise of a batch of one, of 32 and of all observations, as shares of the mean loss, that deserves to be called so."""
CONSTANT = 0.05
"""A fall that looks like none, as a share of the loss at first."""
QUICK = 0.5
"""What is left of the loss after a quick fall, as a share."""


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
            "which share initialisation and order across the three. First at Adam's usual 0.001 for all three, as the "
            "report has it, then each at its own tuned rate.",
            "The report's picture itself is not in its text; the first figure draws ours by its code.",
        ],
        [*regime_claims(numbers, regime_ends(tuned_table), cut=cut), time_claim(curves, tuned_curves, cut=cut)],
        [
            drawing(
                "regimes-as-drawn",
                "As the report drew it",
                "The loss of each update's own batch, before it, one seed. Each curve has its own horizontal scale: "
                f"10/3,130 of an epoch an update for batches of 32, and {stretched:g} epochs for the batch regime, "
                f"whose last update is thereby drawn at {stretched * (told['batch_points'] - 1):g} instead of 9.",
                "Loss against epochs: a noisy stochastic curve that falls at once, a mini-batch curve below its "
                "spikes, and a batch curve that looks constant.",
                drawn,
                panel(lambda ax: _draw_as_drawn(drawn, ax), 0.78 * PAGE_MM, 85.0),
            ),
            drawing(
                "regimes-put-right",
                "Put right",
                "The loss of one validation split for all three, at the same rate of 0.001, against updates, "
                f"observations, epochs and seconds of training all {seeds} seeds together. Line: geometric mean over "
                f"{seeds} seeds; band: pointwise 95% t interval.",
                "Four panels of validation loss against updates, observations, epochs and seconds, one line per "
                "regime.",
                curves,
                _four_panels(curves),
            ),
            drawing(
                "regimes-tuned",
                "Each at its own tuned rate",
                "As above, each regime at the learning rate that is best for it after 10 epochs "
                f"({_rates_text(tuned_curves)}).",
                "Four panels of validation loss against updates, observations, epochs and seconds, one line per "
                "regime.",
                tuned_curves,
                _four_panels(tuned_curves),
            ),
        ],
        [
            Table(
                "What the report claims by eye, in numbers; rate 0.001: 95% t intervals over seeds, of the rest means",
                ("regime", "updates", "fall of the loss in 1 epoch", "in all", "noise", "seconds an epoch and seed"),
                [
                    (
                        row["regime"],
                        f"{row['updates']:,}",
                        row["first_text"],
                        row["final_text"],
                        percent(row["noise"]),
                        short(row["seconds"]),
                    )
                    for row in records(numbers)
                ],
            ),
            Table(
                "Each at its own tuned rate",
                ("regime", "rate", "validation loss", "times the stochastic one's"),
                [
                    (row["regime"], short(row["learning_rate"]), row["text"], short(row["ratio"]))
                    for row in records(regime_ends(tuned_table))
                ],
            ),
        ],
        [
            "The figure is said to compare optimizers. All three curves use Adam; what differs is the batch size, so "
            "neither stochastic nor batch gradient descent, as the text defines them, is in it.",
            f"The batch curve's {told['batch_points']} losses are drawn over {told['batch_drawn_to']} epochs: "
            f"{told['batch_drawn_to']} / {told['batch_points']} = {stretched:g} epochs an update, where there is one "
            "an epoch.",
            f"{told['batch_sizes']['batch']:,} / {told['batch_sizes']['mini-batch']} = "
            f"{told['batch_sizes']['batch'] / told['batch_sizes']['mini-batch']:g}, so an epoch has {mini} updates, "
            f"the last of {told['batch_sizes']['batch'] - (mini - 1) * told['batch_sizes']['mini-batch']} "
            "observations; the axis counts it as a full one.",
            "Batch gradient descent is said to lower the loss always. It does where the step is small enough: for a "
            "quadratic loss below 2 over its largest curvature, above which it diverges.",
        ],
        **told_of_runs("regimes", [fixed, tuned]),
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
    low, high = percent(1 - share.high), percent(1 - share.low)
    return percent(1 - share.estimate) + (f" [{low}, {high}]" if share.n > 1 else "")


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
        | {"text": interval(Interval(row["validation"], row["validation_low"], row["validation_high"], row["n"]))}
        for row in records(rows)
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
    if min(one["seeds"], mini["seeds"], full["seeds"]) < FEWEST:
        few = f"{counted(int(full['seeds']), 'seed')} give no intervals to speak of"
        return [not_checked(text, few) for text in (fast, noisy, flat, middle)]

    def words(column: str) -> str:
        return ", ".join(f"{row[column]} ({name})" for name, row in zip(REGIMES, (one, mini, full), strict=True))

    ordered = one["first"].high < mini["first"].low and mini["first"].high < full["first"].low
    apart = "do not overlap, in this order" if ordered else "overlap, or lie in another order"
    speed = (
        f"after one epoch, intervals of the ratio to the initial loss {apart}. By then it has made "
        f"{short(one['updates'] / mini['updates'])} times the updates of batches of 32 and "
        f"{short(one['updates'] / full['updates'])} times those of the full batch, which are what the fall is owed to"
    )
    share = f"{percent(one['noise'])}, {percent(mini['noise'])}, {percent(full['noise'])} of the mean loss"
    loud = one["noise"] > OVERWHELMING and mini["noise"] < LITTLE and full["noise"] < NONE
    drop = full["final"]
    best = ends.sort_values("loss").iloc[0] if len(ends) else None
    return [
        Claim(fast, "", words("first_text"), "agrees" if ordered else "differs", speed),
        Claim(
            noisy,
            "",
            share,
            "agrees" if loud else "differs",
            "scatter about the trend in the second half of training, means over seeds; asked for: above "
            f"{percent(OVERWHELMING)}, below {percent(LITTLE)}, below {percent(NONE)}. Most of it is that a batch of "
            "one is a noisy measure of the loss, not that the network is the worse: on the validation split the curves "
            "are far smoother",
        ),
        Claim(
            flat,
            "",
            f"a fall by {full['final_text']} in 10 updates; it fell on {percent(full['falling'])} of the seeds",
            "agrees" if drop.high < 1 and drop.estimate > 1 - CONSTANT else "differs",
            f"asked for: a fall, by less than {percent(CONSTANT)}. 10 updates of at most about 0.001 in each parameter "
            f"cannot do more; another rate can ({_full_text(ends)})",
        ),
        _balance_claim(middle, one, mini, best, ends),
    ]


def _balance_claim(text: str, one: Any, mini: Any, best: Any, ends: pd.DataFrame) -> Claim:
    ours = f"falls by {one['final_text']} (stochastic) and {mini['final_text']} (mini-batch) in 10 epochs"
    quiet = mini["noise"] < one["noise"]
    good = quiet and mini["final"].high < QUICK
    loses = mini["final"].low > one["final"].high
    why = (
        f"{'less' if quiet else 'more'} noise than batches of one" + ", though it ends higher at the same rate" * loses
    )
    why += f"; asked for: less, and a fall to below {percent(QUICK)}"
    if best is not None:
        order = ", ".join(f"{row['regime']} {row['text']}" for row in records(ends.sort_values("loss")))
        why += f". With each at its own tuned rate {best['regime']} is best after 10 epochs: {order}"
    return Claim(text, "", ours, "agrees" if good else "differs", why)


def same_seconds(curves: pd.DataFrame, regime: str) -> tuple[float, Interval, list[Interval]] | None:
    """The validation loss of batches of 32 and of another regime in the same time.

    Args:
        curves: of `analysis.series.regime_curves`.
        regime: stochastic or batch.

    Returns:
        Seconds of training of all seeds, the shorter whole training of the two; the loss of the mini-batches at their
        last evaluation up to then; the other's at the evaluations just before and, if there is one, after: where it is
        then lies between. None if a regime is missing.
    """
    mini, other = (curves[curves["regime"] == name] for name in ("mini-batch", regime))
    if mini.empty or other.empty:
        return None
    seconds = min(float(line["train_seconds"].max()) for line in (mini, other))
    around = [other[other["train_seconds"] <= seconds].tail(1), other[other["train_seconds"] > seconds].head(1)]
    last = mini[mini["train_seconds"] <= seconds].iloc[-1]
    return seconds, _at(last), [_at(row) for rows in around for _, row in rows.iterrows()]


def _at(row: Any) -> Interval:
    return Interval(float(row["estimate"]), float(row["low"]), float(row["high"]), int(row["n"]))


def time_claim(fixed: pd.DataFrame, tuned: pd.DataFrame, *, cut: bool) -> Claim:
    """Whether batches of 32 do better in the same computing time: than the full batch, and than batches of one.

    Args:
        fixed: of `analysis.series.regime_curves`, at the same rate for both.
        tuned: likewise, each at its tuned rate.
        cut: whether the run had fewer epochs than the report's.
    """
    text = "Given a fixed amount of computing time, batches of 32 may give better results"
    found = {(name, rate): same_seconds(curves, name) for name in ("batch", "stochastic") for rate, curves in
             (("0.001", fixed), ("tuned", tuned))}  # fmt: skip
    if cut or any(each is None for each in found.values()):
        return not_checked(text, "the run was cut before the report's 10 epochs")
    told, better = [], {}
    for (name, rate), each in found.items():
        assert each
        seconds, mini, around = each
        apart = {side.low > mini.high for side in around}, {side.high < mini.low for side in around}
        better[name, rate] = "better" if apart[0] == {True} else "worse" if apart[1] == {True} else ""
        against = " to ".join(interval(side) for side in around)
        words = f"{better[name, rate]} than" if better[name, rate] else "not told apart from"
        which = "each at its tuned rate" if rate == "tuned" else "at 0.001"
        told.append(f"{words} {name} {which}, in {short(seconds)} s: {interval(mini)} against {against}")
    answers = [answer for (_, rate), answer in better.items() if rate == "tuned"]
    verdict: Verdict = "agrees" if "better" in answers else "differs" if set(answers) == {"worse"} else "not checked"
    why = (
        "the verdict is about each at its tuned rate, intervals being apart at the other's evaluations both before and "
        "after that time; seconds are those of our program on this machine"
    )
    return Claim(text, "", "; ".join(told), verdict, why)


def _full_text(ends: pd.DataFrame) -> str:
    own = ends[ends["regime"] == "batch"]
    if own.empty:
        return "none was tried"
    row = own.iloc[0]
    return f"at its tuned {short(row['learning_rate'])} the loss ends at {row['text']}"


def _rates_text(curves: pd.DataFrame) -> str:
    firsts = curves.drop_duplicates("regime") if len(curves) else curves
    return ", ".join(f"{row['regime']} {short(row['learning_rate'])}" for row in records(firsts))


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


def _draw_as_drawn(data: pd.DataFrame, ax: Axes) -> None:
    # As images: a hundred thousand points as paths would take megabytes of the page.
    for regime, colour in zip(REGIMES, ("#d55e00", "#0072b2", "#009e73"), strict=True):
        own = data[data["regime"] == regime]
        ax.plot(own["x"], own["value"], color=colour, linewidth=0.8, label=regime, rasterized=True)
    ax.set_xlabel("epochs, as the report's axis has them")
    ax.set_ylabel("loss of the batch")
