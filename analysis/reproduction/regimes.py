"""Experiment 4 of the source report: batches of one, of 32 and of everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
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
    few,
    interval,
    not_checked,
    panel,
    percent,
    printed,
    records,
    told_of_runs,
)
from analysis.results import REGIMES, Results
from analysis.statistics import Interval, log_interval, t_interval
from analysis.wording import counted, short

OVERWHELMING, LITTLE, NONE = 1.0, 0.5, 0.01
"""Noise of a batch of one, of 32 and of all observations, as shares of the mean loss, that deserves to be called so."""
CONSTANT = 0.01
"""A fall that looks like none, as a share of the loss at first."""
QUICK = 0.5
"""What is left of the loss after a quick fall, as a share."""


def regimes(parts: Mapping[str, Results]) -> Section:
    """Experiment 4: three batch sizes, as the report drew them, put right, and tuned."""
    told, fixed, tuned = printed()["regimes"], parts["regimes"], parts["regimes-tuned"]
    table, tuned_table = tables.cells(fixed), tables.cells(tuned)
    traces = update_losses(fixed)
    numbers = regime_numbers(fixed, table, traces)
    curves = own_seconds(fixed, table, series.regime_curves(fixed, table))
    tuned_curves = own_seconds(tuned, tuned_table, series.regime_curves(tuned, tuned_table))
    drawn = as_drawn(traces, told)
    cut = float(fixed.trials["epochs"].max()) < told["epochs"] if len(fixed.trials) else True
    mini = math.ceil(told["batch_sizes"]["batch"] / told["batch_sizes"]["mini-batch"])
    stretched = told["batch_drawn_to"] / told["batch_points"]
    seeds = counted(int(fixed.lanes["seed"].nunique()), "seed")
    return Section(
        "regimes",
        "Three regimes of one optimizer",
        [
            f"2-16-8-1 ReLU network, Adam, batch sizes 1, 32 and 10,000 (all), 10 epochs, float64; {seeds}, "
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
                f"observations, epochs and seconds of training all of {seeds} together. Line: geometric mean over "
                f"{seeds}, which share one draw of the data; band: pointwise 95% t interval.",
                "Four panels of validation loss against updates, observations, epochs and seconds, one line per "
                "regime.",
                curves,
                _four_panels(curves),
            ),
            drawing(
                "regimes-tuned",
                "Each at its own tuned rate",
                "As above, each regime at the learning rate that is best for it after 10 epochs "
                f"({_rates_text(tuned_curves)}). All rates trained together: seconds are these lanes' share.",
                "Four panels of validation loss against updates, observations, epochs and seconds, one line per "
                "regime.",
                tuned_curves,
                _four_panels(tuned_curves),
            ),
        ],
        [
            Table(
                "What the report claims by eye, in numbers; rate 0.001: 95% t intervals over seeds, seconds a mean",
                ("regime", "updates", "fall of the loss in 1 epoch", "in all", "noise", "seconds an epoch and seed"),
                [
                    (
                        row["regime"],
                        f"{row['updates']:,}",
                        row["first_text"],
                        row["final_text"],
                        _shares(row["noise"]),
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


def own_seconds(study: Results, table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The curves with the seconds that their own lanes took, in equal shares of those of all that trained together."""
    lanes, pieces = tables.tuned_lanes(study, table), []
    for _, line in curves.groupby("regime", sort=False):
        own = float(lanes.loc[lanes["cell"] == line["trial"].iloc[0], "train_seconds_share"].sum())
        whole = float(line["train_seconds"].max())
        pieces.append(line.assign(train_seconds=line["train_seconds"] * (own / whole if whole else math.nan)))
    return pd.concat(pieces) if pieces else curves


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
        that at initialisation, after one epoch and at the end, infinite for a seed that diverged), first_text and
        final_text; noise (Interval of the `jitter` of the batch losses); seconds (of training an epoch, per lane);
        falling (share of seeds whose validation loss ends below its start).
    """
    curves = tables.curves_of(study, table)
    losses = curves[(curves["split"] == "validation") & (curves["metric"] == "loss")].sort_values("update")
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
        intervals = {"first": log_interval(first / start), "final": log_interval(end / start)}
        rows.append(
            {"regime": regime, "updates": int(cell["updates"]), **intervals}
            | {f"{name}_text": _fall(interval) for name, interval in intervals.items()}
            | {"noise": t_interval(noise), "falling": float((end < start).mean()), "seeds": len(end)}
            | {"seconds": float(cell["train_seconds"]) / max(1.0, float(cell["epochs"])) / max(1, len(end))}
        )
    return pd.DataFrame(rows)


def _shares(found: Interval) -> str:
    """A share with its limits, in per cent."""
    limits = f" [{percent(found.low)}, {percent(found.high)}]" if found.n > 1 and math.isfinite(found.high) else ""
    return percent(found.estimate) + limits


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
    fast = "Batches of one bring a rapid fall"
    noisy = "Batches of one bring an overwhelming noise, batches of 32 little, the full batch none"
    flat = "The full batch's loss looks constant, but falls"
    middle = "Batches of 32 are a good balance: a quick fall with little noise"
    texts = (fast, noisy, flat, middle)
    if cut or set(numbers.get("regime", [])) != set(REGIMES):
        return [not_checked(text, "the run was cut before the report's 10 epochs") for text in texts]
    rows = [numbers[numbers["regime"] == name].iloc[0] for name in REGIMES]
    fewest = min(int(row[name].n) for row in rows for name in ("first", "final", "noise"))
    if fewest < FEWEST:
        return [few(text, fewest) for text in texts]
    if not all(math.isfinite(row[name].high) for row in rows for name in ("first", "final", "noise")):
        return [not_checked(text, "an interval has no limit, as after losses that are not finite") for text in texts]
    return [_fast_claim(fast, rows), _noise_claim(noisy, rows), _flat_claim(flat, rows[2], ends),
            _balance_claim(middle, rows[0], rows[1], ends)]  # fmt: skip


def _fast_claim(text: str, rows: Sequence[Any]) -> Claim:
    one, mini, full = rows
    ordered = one["first"].high < mini["first"].low and mini["first"].high < full["first"].low
    fastest = one["first"].high < min(mini["first"].low, full["first"].low)
    by_fall = sorted(zip(REGIMES, rows, strict=True), key=lambda pair: pair[1]["first"].estimate)
    order = ", ".join(name for name, _ in by_fall)
    apart = all(a["first"].high < b["first"].low for (_, a), (_, b) in pairwise(by_fall))
    why = (
        f"after one epoch, by the ratio to the initial loss; from the largest fall to the least: {order}, and the "
        f"intervals {'do not overlap' if apart else 'of neighbours overlap'}. By then batches of one have made "
        f"{short(one['updates'] / mini['updates'])} times the updates of batches of 32 and "
        f"{short(one['updates'] / full['updates'])} times those of the full batch"
        f"{', which are what the fall is owed to' * ordered}"
    )
    ours = ", ".join(f"{row['first_text']} ({name})" for name, row in zip(REGIMES, rows, strict=True))
    return Claim(text, "", ours, "agrees" if fastest else "differs", why)


def _noise_claim(text: str, rows: Sequence[Any]) -> Claim:
    one, mini, full = (row["noise"] for row in rows)
    good = one.low > OVERWHELMING and mini.high < LITTLE and full.high < NONE
    why = (
        "scatter about the trend in the second half of training, means and 95% t intervals over seeds; asked "
        f"for: the intervals above {percent(OVERWHELMING)}, below {percent(LITTLE)}, below {percent(NONE)}. A batch's "
        "own loss is a noisy measure of the network's, the more so the smaller the batch: the validation split's "
        "curves show the network"
    )
    ours = f"{_shares(one)}, {_shares(mini)}, {_shares(full)} of the mean loss"
    return Claim(text, "", ours, "agrees" if good else "differs", why)


def _flat_claim(text: str, full: Any, ends: pd.DataFrame) -> Claim:
    drop = full["final"]
    good = drop.high < 1 and drop.low > 1 - CONSTANT
    why = f"asked for: a fall, the interval below {percent(CONSTANT)}"
    if good:
        why += (
            ". 10 updates of at most about 0.001 in each parameter cannot do more; another rate may "
            f"({_full_text(ends)})"
        )
    ours = f"a fall by {full['final_text']} in 10 updates; it fell on {percent(full['falling'])} of the seeds"
    return Claim(text, "", ours, "agrees" if good else "differs", why)


def _balance_claim(text: str, one: Any, mini: Any, ends: pd.DataFrame) -> Claim:
    ours = f"falls by {one['final_text']} (stochastic) and {mini['final_text']} (mini-batch) in 10 epochs"
    quiet, loud = mini["noise"].high < one["noise"].low, mini["noise"].low > one["noise"].high
    quick = mini["final"].high < QUICK
    noise = "less noise than" if quiet else "more noise than" if loud else "noise that is not told apart from that of"
    why = f"{noise} batches of one"
    if mini["final"].low > one["final"].high:
        why += f"{', though' if quiet and quick else ', and'} it ends higher at the same rate"
    why += f"; asked for: less, and a fall by at least {percent(1 - QUICK)}"
    ranked = ends[ends["loss"].notna()].sort_values("loss")
    if len(ranked):
        order = ", ".join(f"{row['regime']} {row['text']}" for row in records(ranked))
        why += f". With each at its own tuned rate the losses after 10 epochs are: {order}"
    return Claim(text, "", ours, "agrees" if quiet and quick else "differs", why)


def same_seconds(curves: pd.DataFrame, regime: str) -> tuple[float, list[Interval], list[Interval]] | None:
    """The validation loss of batches of 32 and of another regime in the same time.

    Args:
        curves: of `analysis.series.regime_curves`.
        regime: stochastic or batch.

    Returns:
        Seconds of training of all seeds, the shorter whole training of the two; the losses of the mini-batches, then
        the other's, each at its evaluations just before and, if there is one, after: where it is then lies between.
        None if one of them has none before.
    """
    both = [curves[curves["regime"] == name].dropna(subset=["train_seconds"]) for name in ("mini-batch", regime)]
    if any(line.empty for line in both):
        return None
    seconds = min(float(line["train_seconds"].max()) for line in both)
    mini, other = (_around(line.sort_values("train_seconds"), seconds) for line in both)
    return (seconds, mini, other) if mini and other else None


def _around(line: pd.DataFrame, seconds: float) -> list[Interval]:
    before, after = line[line["train_seconds"] <= seconds].tail(1), line[line["train_seconds"] > seconds].head(1)
    return [_at(row) for row in [*records(before), *records(after)]] if len(before) else []


def _at(row: Any) -> Interval:
    return Interval(float(row["estimate"]), float(row["low"]), float(row["high"]), int(row["n"]))


def time_claim(fixed: pd.DataFrame, tuned: pd.DataFrame, *, cut: bool) -> Claim:
    """Whether batches of 32 do better in the same computing time than the full batch, which the report has just named.

    What they do against batches of one is told beside it. The verdict is about each at its tuned rate.

    Args:
        fixed: of `analysis.series.regime_curves`, at the same rate for both.
        tuned: likewise, each at its tuned rate.
        cut: whether the run had fewer epochs than the report's.
    """
    text = "For the same computing time, batches of 32 may do better than the full batch"
    if cut:
        return not_checked(text, "the run was cut before the report's 10 epochs")
    told, verdict = [], ""
    for name, words in (("batch", "the full batch"), ("stochastic", "batches of one")):
        for curves, which in ((fixed, "at 0.001"), (tuned, "each at its tuned rate")):
            if (found := same_seconds(curves, name)) is None:
                return not_checked(text, f"there are no evaluations of batches of 32 and {words}, {which}")
            seconds, mini, other = found
            if (fewest := min(each.n for each in [*mini, *other])) < FEWEST:
                return few(text, fewest)
            answer = _compared(mini, other)
            if name == "batch":
                verdict = answer
            sides = " against ".join(" to ".join(interval(each) for each in line) for line in (mini, other))
            told.append(f"{answer or 'not told apart'} {'than' if answer else 'from'} {words} {which}, in "
                        f"{short(seconds)} s: {sides}")  # fmt: skip
    why = (
        "the verdict is about the full batch, each at its tuned rate. Better or worse only if the intervals are apart "
        "at the evaluations both before and after that time; seconds are those of our program on this machine"
    )
    verdicts: dict[str, Verdict] = {"better": "agrees", "worse": "differs", "": "not checked"}
    return Claim(text, "", "; ".join(told), verdicts[verdict], why)


def _compared(mini: Sequence[Interval], other: Sequence[Interval]) -> str:
    """Whether one loss is below the other wherever between their evaluations both are; empty if that hangs on where."""
    if max(each.high for each in mini) < min(each.low for each in other):
        return "better"
    return "worse" if min(each.low for each in mini) > max(each.high for each in other) else ""


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
        panels[-1].set_xlabel("training time of these lanes (s)")
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
