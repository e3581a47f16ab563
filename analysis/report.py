"""Figures and tables -> one HTML file that opens offline, with every figure and its numbers as files beside it."""

from __future__ import annotations

import base64
import io
import math
import shlex
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, series, tables
from analysis.figures import COLUMN_MM, PAGE_MM, interval_text, metric_text, optimizer_text, settings_text, short
from analysis.results import CELL, OUTCOMES, Results, ResultsError, load

LEADERBOARD_ROWS = 20
FAILURE_ROWS = 10
SCREEN_DPI = 130  # larger than in print, where the figures are set for 180 mm


def write_report(paths: str | Path | Sequence[str | Path], out_dir: str | Path | None = None) -> Path:
    """Write the report of one or several studies, finished or not.

    Args:
        paths: a results folder, or several; each becomes a section.
        out_dir: where to write; `report/` in the first results folder if not given.

    Returns:
        The path of `index.html`. Figures lie beside it in `figures/`, each as SVG, PDF and CSV.

    Raises:
        ResultsError: if a folder cannot be read as results, or no trial has ended in any.
    """
    folders = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not folders:
        raise ResultsError("no results folder given")
    out = Path(out_dir) if out_dir is not None else folders[0] / "report"
    studies = [load(folder) for folder in folders]  # before anything is made: a mistyped path leaves no folder behind
    if all(study.trials.empty for study in studies):
        raise ResultsError(f"{folders[0]}: no trial has ended yet; `study status {folders[0]}` says how far it is")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    prefixes = ["" if len(folders) == 1 else f"{number}-" for number in range(1, len(folders) + 1)]
    sections = [_section(study, out, prefix) for study, prefix in zip(studies, prefixes, strict=True)]
    across = _across(studies, out) if len(studies) > 1 else None
    command = shlex.join(["study", "report", *map(str, folders)])
    page = (
        environment()
        .get_template("report.html.j2")
        .render(sections=sections, across=across, command=command, failure_rows=FAILURE_ROWS)
    )
    write(out / "index.html", page.encode())
    return out / "index.html"


def environment() -> jinja2.Environment:
    """Where the templates are, and what they may use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": _number, "settings": settings_text}
    return environment


def _across(studies: Sequence[Results], out: Path) -> dict[str, Any]:
    """What the template shows of several studies together."""
    profile = series.profile(studies)
    drawing = Drawing(
        "across",
        "performance-profile-across",
        "Performance profile over the studies",
        "Share of the problems (study, width, depth and batch size at which several optimizers ran) that an optimizer "
        "brings to the study's target within a multiple of the updates of the fastest; medians over seeds, each at its "
        "best rate; no band.",
        "Step lines: share of problems solved against the multiple of the fastest, one per optimizer.",
        profile,
        lambda: _with_legend(lambda ax: figures.performance_profiles(profile, ax)),
        "no study names a target that several optimizers reached",
    ).save(out, "")
    lists = {"figures": [drawing] * bool(drawing["image"]), "absent": [drawing] * (not drawing["image"])}
    shown: dict[str, Any] = {name: {"across": found} for name, found in lists.items()} | {"rows": []}
    try:
        table = series.across(studies)
    except ValueError as error:
        return shown | {"text": f"Not compared: {error}."}
    metric = studies[0].metric
    relative = "percentage points behind" if metric == "accuracy" else "times"
    text = (
        f"The interquartile mean over studies and seeds of each optimizer's best cell at its tuned rate, as {relative} "
        f"the best optimizer of the study; in brackets the 95% bootstrap interval, resampling seeds within studies. "
        f"Optimizers without a tuned cell in every study are left out."
    )
    rows = []
    for row in _records(table):
        numbers = [row[name] * (-100 if metric == "accuracy" else 1) for name in ("estimate", "low", "high")]
        limits = f"[{_number(min(numbers[1:]))}, {_number(max(numbers[1:]))}]"
        rows.append(row | {"score": (_number(numbers[0]), limits)})
    return shown | {"text": text, "rows": rows, "measure": f"{metric}, {relative} the best"}


def _section(results: Results, out: Path, prefix: str) -> dict[str, Any]:
    """Everything that the template shows of one study."""
    table = tables.cells(results)
    ranked = tables.rank(table, results.maximize)
    times = tables.target_times(results, table)
    leaderboard = f"figures/{prefix}cells.csv"
    write(out / leaderboard, table.to_csv(index=False).encode())
    drawings = [drawing.save(out, prefix) for drawing in _drawings(results, table)]
    return {
        "id": prefix.rstrip("-") or "study",
        "name": results.name,
        "description": str(results.spec.get("description", "")),
        "verdict": verdict(results, table),
        "confirmation": confirmation(results, table),
        "confirmed": [
            _shown(row, ("search", "confirmed", "test"), results.metric) | {"curse": _curse(row, results.metric)}
            for row in _records(tables.winners_curse(results, table))
        ],
        "comparisons": comparison_rows(results, table),
        "best": None if ranked.empty else _at_rate(ranked.iloc[0]),
        "course": course(results),
        "outcomes": outcome_counts(results),
        "failures": failures(results),
        "metric": results.metric,
        "unit": _unit(results),
        "leaderboard": [
            _shown(row, ("validation", "test"), results.metric) | {"rank": place}
            for place, row in enumerate(_records(ranked.head(LEADERBOARD_ROWS)), start=1)
        ],
        "leaderboard_file": leaderboard,
        "cells": len(ranked),
        "pooled": (ranked["trials"] > 1).any(),
        "has_settings": (table["settings"] != "").any(),
        "objectives": [name for name in results.objectives if name != "metric"] if len(results.objectives) > 1 else [],
        "front": [_shown(row, ("validation",), results.metric) for row in _records(_front(results, table))],
        "target": None if results.target is None else short(results.target),
        "times": times.to_dict("records"),
        "scaling": scaling(results, table),
        "figures": {
            part: [drawing for drawing in drawings if drawing["part"] == part and drawing["image"]] for part in PARTS
        },
        "absent": {
            part: [drawing for drawing in drawings if drawing["part"] == part and not drawing["image"]]
            for part in PARTS
        },
        "warnings": warnings(results, table),
        "spec": results.spec_text,
        "provenance": list(_flattened(results.provenance)),
    }


def verdict(results: Results, table: pd.DataFrame) -> str:
    """Which cell is best, whether it beats the best cell of every other optimizer, and what finding out has cost.

    Args:
        results: the study.
        table: its `tables.cells`.
    """
    ranked, metric = tables.rank(table, results.maximize), results.metric
    if results.trials.empty:
        return "No trial has ended yet, so there is nothing to compare."
    if ranked.empty:
        return "No trial has a learning rate at which every seed survived, so there is nothing to compare."
    best, compared = ranked.iloc[0], tables.comparisons(results, table)
    again = next((row for row in _records(tables.winners_curse(results, table)) if row["trial"] == best["trial"]), None)
    if compared and compared[0].effect.n > 1:
        sentences = _comparison_text(compared, metric, results, of_search=again is not None)
    else:
        split = "test" if best["test_n"] else "validation"
        score = f"{split} {metric} {_value(best, split, metric)} over {_count(best['n'], 'seed')}"
        sentences = [f"Best on the validation split is {_at_rate(best)}: {score}, for {_cost(results)}."]
        sentences.append(_why_not_compared(compared))
    if again and again["confirmed_n"]:
        name, split = ("test", "test") if again["test_n"] else ("confirmed", "validation")
        place = "" if again["rank_confirmed"] == 1 else f", though only as number {again['rank_confirmed']:.0f}"
        score = f"{split} {metric} {_value(again, name, metric)}"
        sentences.append(f"It was confirmed on {_count(again['seeds'], 'fresh seed')}{place}: {score}.")
    elif again:
        sentences.append(f"It is not confirmed: {_loss_of_seeds(again)}.")
    if best["outcome"] != "completed":
        sentences.append("No trial has completed its budget, so this is provisional.")
    return " ".join(sentences)


def _why_not_compared(compared: Sequence[tables.Comparison]) -> str:
    if not compared:
        return "Only one optimizer has a result, so it is compared with no other."
    other = f"the best {compared[0].rival['optimizer']} cell, the next-best optimizer's"
    if compared[0].effect.n == 0:
        return f"It shares no seed with {other}, so their difference has no interval."
    return f"It shares one seed with {other}, which says nothing about their difference."


def _comparison_text(
    compared: Sequence[tables.Comparison], metric: str, results: Results, *, of_search: bool
) -> list[str]:
    """The best cell against the next-best optimizer's in a sentence, and against all the others in another.

    `of_search` says which seeds a comparison is over where the text speaks of others, too.
    """
    first = compared[0]
    best, rival, count = first.best, first.rival, first.effect.n
    pairs = _count(count, "paired fresh seed" if first.fresh else "paired seed")
    pairs += " of the search" if of_search and not first.fresh else ""
    p = f"Holm p = {short(first.holm)}" if len(compared) > 1 else f"sign-flip p = {short(first.p)}"
    ours, theirs = (
        f"{metric_text(score.estimate, metric)} {interval_text(score.low, score.high, score.n, metric)}"
        for score in first.scores
    )
    evidence = f"{_effect(first, metric)}, better on {first.wins} of {pairs}, {p}, for {_cost(results)}"
    against = f"{first.split} {metric} {ours} against {theirs} for {_at_rate(rival)}; {evidence}"
    if not first.differs:
        text = f"No clear winner: {_at_rate(best)} is best on the validation split, with {against}."
    elif first.favours_rival(metric):
        text = f"No clear winner: {_at_rate(best)} is best on the validation split, but the test split contradicts it: "
        text += f"{against}."
    elif first.holm < 0.05:
        text = f"{_at_rate(best)} wins: {against}."
    else:
        text = f"{_at_rate(best)} leads: {against}. "
        least = min(1.0, 2 / 2**count * len(compared))
        if least >= 0.05:
            text += f"{_count(count, 'seed')} cannot reach p < .05 in an exact test (at best {short(least)})"
        else:
            text += "That is more than the scatter over seeds explains, but not by the exact test"
        text += ": confirm it on more, fresh seeds."
    others = [comparison for comparison in compared[1:] if comparison.effect.n > 1]
    if not others:
        return [text[0].upper() + text[1:]]
    near = [comparison.rival["optimizer"] for comparison in others if not comparison.differs]
    worse = f"Of the other {len(others)} optimizers, {len(others) - len(near)} differ from it by more than the scatter"
    rest = f"{worse} over seeds; {_listing(near)} may be as good." if near else f"{worse} over seeds."
    return [text[0].upper() + text[1:], rest]


def _effect(comparison: tables.Comparison, metric: str) -> str:
    effect = comparison.effect
    if metric == "accuracy":
        return f"{100 * effect.estimate:+.2f} percentage points [{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]"
    return f"{short(effect.estimate)} times [{short(effect.low)}, {short(effect.high)}]"


def _at_rate(cell: Any) -> str:
    return f"{_cell(cell)} at learning rate {short(cell['learning_rate'])}"


def _cost(results: Results) -> str:
    """Processor hours of all trials, such as `0.8 CPU-hours`; those of the confirmation included."""
    again = results.confirmation
    seconds = float(results.trials["wall_seconds"].sum()) + (
        float(again.trials["wall_seconds"].sum()) if again is not None else 0.0
    )
    each = {"GPU": "gpus_per_trial", "CPU": "cpus_per_trial"}
    resources = {"cpus_per_trial": 1.0} | _table(results.spec, "resources")
    hours = {name: seconds * float(resources.get(key, 0)) / 3600 for name, key in each.items()}
    words = [
        f"{short(value)} {name}-hours" if value >= 0.1 else f"{short(60 * value)} {name}-minutes"
        for name, value in hours.items()
        if value > 0
    ]
    return " and ".join(words) or "no time"


def comparison_rows(results: Results, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The best cell against the best cell of each other optimizer, as the report's table shows it."""
    rows = []
    for comparison in tables.comparisons(results, table):
        chance, score = comparison.superiority, comparison.scores[1]
        limits = interval_text(score.low, score.high, score.n, results.metric)
        effect = _effect(comparison, results.metric) if comparison.effect.n else "\N{EN DASH}"
        share = f"{chance.estimate:.0%}" if chance.n else "\N{EN DASH}"
        row = {name: comparison.rival[name] for name in [*CELL, "regime", "learning_rate", "on_edge"]}
        rows.append(
            row
            | {"split": comparison.split, "score": (metric_text(score.estimate, results.metric), limits)}
            | {"effect": effect}
            | {"wins": f"{comparison.wins} of {comparison.effect.n}", "fresh": comparison.fresh}
            | {"superiority": (share, f"[{chance.low:.0%}, {chance.high:.0%}]" if chance.n else "")}
            | {"p": comparison.p, "holm": comparison.holm}
        )
    return rows


def confirmation(results: Results, table: pd.DataFrame) -> list[str]:
    """Whether the winner holds its place on fresh seeds, and how large the winner's curse is; empty if unknown.

    Args:
        results: the study.
        table: its `tables.cells`.
    """
    curse, metric = tables.winners_curse(results, table), results.metric
    if curse.empty:
        return []
    held, best = curse[curse["confirmed"].notna()], curse.iloc[0]
    name = (
        "The best cell of the search" if best["rank_search"] == 1 else f"{_cell(best)} (the search's best is missing)"
    )
    seeds = f"{_seeds(curse['seeds'], 'fresh seed')}, against {_seeds(curse['search_n'])} in the search"
    if best["confirmed_n"] == 0:
        place = f"{name} cannot be confirmed on {seeds}: {_loss_of_seeds(best)}."
    elif len(held) == 1:
        place = f"{name} alone was confirmed, on {seeds}, so its place is not checked."
    elif best["rank_confirmed"] == 1:
        place = f"{name} holds the first place of {len(held)} confirmed cells on {seeds}."
    else:
        first = held.sort_values("rank_confirmed").iloc[0]
        place = f"{name} falls to place {best['rank_confirmed']:.0f} of {len(held)} confirmed cells on {seeds}; "
        place += f"first is {_cell(first)}."
    average = tables.average_curse(results, curse)
    if not average.n:
        return [place]
    neutral, scale = (0.0, "search minus confirmed") if results.maximize else (1.0, "confirmed over search")
    worse = "above 0" if results.maximize else "above 1"
    sentence = f"The winner's curse, {scale} validation {metric} ({worse}: worse on fresh seeds), is "
    if len(held) > 1:
        shown = {"curse": average.estimate, "curse_low": average.low, "curse_high": average.high}
        sentence += f"{' '.join(_curse(shown, metric))} on average"
        sentence += f" and {' '.join(_curse(best, metric))} for the best" if best["confirmed_n"] else ""
    else:
        sentence += " ".join(_curse(held.iloc[0], metric))
    if average.low > neutral:
        return [place, f"{sentence}: the search promised too much."]
    if average.high < neutral:
        return [place, f"{sentence}: the fresh seeds did better."]
    return [place, f"{sentence}: none that stands out from the scatter over seeds."]


def _curse(row: Any, metric: str) -> tuple[str, str]:
    """The curse and its limits, such as `1.08 times` and `[0.97, 1.2]`; a dash for none."""
    estimate, low, high = (float(row[name]) for name in ("curse", "curse_low", "curse_high"))
    if math.isnan(estimate):
        return metric_text(estimate, metric), ""
    if metric == "accuracy":
        return f"{100 * estimate:+.2f} percentage points", f"[{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{short(estimate)} times", f"[{short(low)}, {_number(high)}]"


def _loss_of_seeds(row: Any) -> str:
    """Why a cell that was run again has no confirmed score."""
    if row["diverged"]:
        return f"{row['diverged']} of {_count(row['seeds'], 'fresh seed')} diverged"
    return f"its lanes there ended as {row['outcome']}"


def _front(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    front = table[tables.pareto(table, results.objectives, results.maximize)]
    return front.sort_values(["validation", "trial"], ascending=[not results.maximize, True])


def course(results: Results) -> list[str]:
    """How the study went: whether it still runs, trials done of those planned, processor hours."""
    trials, provenance = results.trials, results.provenance
    planned = _table(results.spec, "budget").get("trials")
    of = f" of {planned}" if isinstance(planned, int) else ""
    lines = [f"{len(trials)}{of} trials have ended, with {len(results.lanes):,} lanes (learning rates x seeds)."]
    if provenance.get("finished"):
        lines.append(f"Started {_when(provenance.get('started'))}, finished {_when(provenance['finished'])}.")
    elif provenance.get("started"):
        lines.append(f"Started {_when(provenance['started'])} and has not finished: it still runs or was interrupted.")
    else:
        lines.append("Whether it still runs is not recorded.")
    again = " with the confirmation" if results.confirmation else ""
    lines.append(
        f"The trials took {_seconds(float(trials['wall_seconds'].sum()))} of trial time, "
        f"{_seconds(float(trials['train_seconds'].sum()))} of which was training; that is {_cost(results)}{again}."
    )
    busy = series.timeline(results)
    if len(busy):
        spans = busy.groupby("worker").agg(start=("started", "min"), end=("ended", "max"))
        span = float((spans["end"] - spans["start"]).sum())
        share = min(1.0, float((busy["ended"] - busy["started"]).sum()) / span) if span > 0 else 1.0
        lines.append(
            f"{_count(len(spans), 'worker')} ran them, busy {share:.0%} of the time between their first and last trial."
        )
    grown = results.pooled.trials.groupby("cell")["extensions"].max()
    if (grown > 0).any():
        lines.append(
            f"The learning-rate grid of {_count(int((grown > 0).sum()), 'cell')} grew, its best rate being on the edge."
        )
    return lines


def outcome_counts(results: Results) -> list[tuple[str, int, int]]:
    """Rows (outcome, trials, lanes), for every outcome that occurs; the recorded order, unknown ones last."""
    trials, lanes = results.trials["outcome"].value_counts(), results.lanes["outcome"].value_counts()
    names = [*OUTCOMES, *sorted((set(trials.index) | set(lanes.index)) - set(OUTCOMES))]
    rows = [(name, int(trials.get(name, 0)), int(lanes.get(name, 0))) for name in names]
    return [row for row in rows if row[1] or row[2]]


def failures(results: Results) -> list[tuple[int, str, str]]:
    """Rows (trial, cell, last line of the reason) of every trial that failed or ran out of memory, in order."""
    lost = results.trials[results.trials["outcome"].isin(["failed", "out of memory"])]
    lost = lost.fillna({"settings": "", "error": ""})
    reasons = [error.strip().splitlines() or ["not recorded"] for error in lost["error"]]
    return [(row["trial"], _cell(row), reason[-1]) for row, reason in zip(_records(lost), reasons, strict=True)]


def warnings(results: Results, table: pd.DataFrame) -> list[str]:
    """What a reader must know before trusting the numbers, most telling first."""
    ranked, found = tables.rank(table, results.maximize), []
    best = ranked.drop_duplicates("optimizer")
    edge = [f"{row['optimizer']} ({short(row['learning_rate'])})" for _, row in best[best["on_edge"]].iterrows()]
    if edge:
        found.append(
            f"Tuned rate on the edge of its grid for the best cell of {', '.join(edge)}: a rate outside may be better. "
            f"Widen the range."
        )
    if ranked["on_edge"].any():
        found.append(f"{int(ranked['on_edge'].sum())} of {len(ranked)} tuned rates lie on the edge of their grid.")
    for name, side, bound in tables.edges(results, ranked):
        found.append(
            f"The best cells lie at the {side} end of the searched {name.replace('_', ' ')}, {bound}: better ones may "
            f"lie beyond. Widen the range."
        )
    confirmed = tables.winners_curse(results, table)
    if confirmed["confirmed"].notna().any():
        found.append(
            "Rates and cells were chosen on the search's seeds, which the leaderboard and the figures show; only the "
            "confirmed scores come from seeds that chose nothing."
        )
    elif len(ranked):
        found.append(
            "The learning rate was chosen on the same seeds that are reported, and the best of many cells is partly "
            "the luckiest: expect the winner to do slightly worse on fresh seeds. [confirm] in the spec runs it there."
        )
    if results.confirmation_trouble:
        found.append(f"The confirmation is left out: {results.confirmation_trouble}.")
    unshown = results.confirmation.pooled.trials["cell"].nunique() - len(confirmed) if results.confirmation else 0
    if unshown:
        found.append(
            f"{_count(unshown, 'confirmed cell')} left out: no lane ended, or the cell's tuned rate is another by now."
        )
    if (ranked["rates"] == 1).any():
        found.append("Some cells ran at one learning rate only: there the rate is given, not tuned.")
    seeds = int(ranked["n"].min()) if len(ranked) else 0
    if 0 < seeds < 6:
        found.append(
            f"{_count(seeds, 'seed').capitalize()} cannot give p < .05 in an exact paired test, whatever the "
            f"difference; it takes 6."
        )
    if len(ranked) and ranked["epochs"].max() > 1.5 * ranked["epochs"].min():
        found.append(
            f"The cells compared differ in training, from {short(ranked['epochs'].min())} to "
            f"{short(ranked['epochs'].max())} epochs and from {short(ranked['updates'].min())} to "
            f"{short(ranked['updates'].max())} updates: read the curves against the axis that you pay for."
        )
    lanes = results.lanes
    diverged = int((lanes["outcome"] == "diverged").sum())
    if diverged:
        found.append(
            f"{diverged:,} of {len(lanes):,} lanes diverged ({diverged / len(lanes):.0%}); a rate at which any seed "
            f"diverged is not eligible as the tuned one."
        )
    stopped = int((results.trials["outcome"] == "stopped").sum())
    if stopped:
        found.append(
            f"{_count(stopped, 'trial')} stopped by the scheduler saw less of the budget, so what they had reached is "
            f"not compared with trials that completed."
        )
    left = results.pooled.left_out["outcome"].value_counts()
    if len(left):
        found.append(
            f"Trials left out of their cells, for which others count that came further: "
            f"{_listing(f'{count} {name}' for name, count in left.items())}."
            + (" Where one diverged, its cell looks too good." if "diverged" in left else "")
        )
    given_up = int(lanes["stopped_update"].notna().sum())
    if given_up:
        found.append(
            f"Halving gave up {given_up:,} of {len(lanes):,} lanes before the end of the budget: their learning rates "
            f"were behind others then. They are not eligible as the tuned one, and figures leave them out."
        )
    sampler, shares = _table(results.spec, "tuning").get("sampler"), results.trials["optimizer"].value_counts()
    if sampler in series.ADAPTIVE and len(shares) > 1 and shares.max() > 1.5 * shares.min():
        found.append(
            f"The sampler, {sampler}, gave more trials to what looked good early: {shares.max()} to {shares.idxmax()}, "
            f"{shares.min()} to {shares.idxmin()}. [tuning] fair = true gives every optimizer the same."
        )
    lost = int((~results.trials["outcome"].isin(["completed", "stopped", "diverged"])).sum())
    if lost:
        found.append(f"Not compared: {_count(lost, 'trial')} that failed, ran out of memory or was interrupted.")
    return found


@dataclass(frozen=True)
class Drawing:
    """A figure that the report shows: how it is drawn, and what stands below it.

    Without data there is no image, but `reason` why.
    """

    part: str
    name: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    draw: Callable[[], Figure]
    reason: str

    def save(self, out: Path, prefix: str) -> dict[str, Any]:
        """Write SVG, PDF and CSV; return what the template needs."""
        files = {kind: f"figures/{prefix}{self.name}.{kind}" for kind in ("svg", "pdf", "csv")}
        shown = {"part": self.part, "title": self.title, "caption": self.caption, "alt": self.alt, "files": files}
        if self.data.empty:
            for kind in files.values():  # of an earlier report; it would contradict this one
                (out / kind).unlink(missing_ok=True)
            return shown | {"image": None, "reason": self.reason}
        with figures.style():
            drawn = self.draw()
            svg, pdf = io.BytesIO(), io.BytesIO()
            drawn.savefig(svg, format="svg", metadata={"Date": None, "Title": self.title})
            drawn.set_layout_engine("none")  # keeps what was laid out, which takes most of the time
            drawn.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Title": self.title})
        write(out / files["svg"], svg.getvalue())
        write(out / files["pdf"], pdf.getvalue())
        write(out / files["csv"], self.data.to_csv(index=False).encode())
        image = "data:image/svg+xml;base64," + base64.b64encode(figures.adaptive(svg.getvalue())).decode()
        return shown | {"image": image, "size": [round(SCREEN_DPI * inches) for inches in drawn.get_size_inches()]}


PARTS = ("regimes", "optimizers", "batch size", "width and depth", "search", "ledger")
"""The parts of the report that show figures."""


def _drawings(results: Results, table: pd.DataFrame) -> list[Drawing]:
    """All figures, in the order in which they are shown."""
    metric, unit, maximize = results.metric, _unit(results), results.maximize
    mean = "geometric mean" if metric == "loss" else "mean (on the log-odds scale)"
    none = "no cell has a tuned learning rate yet"
    no_target = "the workload names no target" if results.target is None else "no cell reached the target on every seed"

    def single(
        draw: Callable[[Axes], Any], width: float = 0.78 * PAGE_MM, height: float = 80.0
    ) -> Callable[[], Figure]:
        return lambda: _with_legend(draw, width, height)

    def heat(data: pd.DataFrame, rows: str, columns: str, *, contours: bool) -> Callable[[], Figure]:
        def drawn() -> Figure:
            figure = _heat_map_size(data)
            figures.heat_map(data, figure.subplots(), rows, columns, metric, contours)
            return figure

        return drawn

    def varied(data: pd.DataFrame, *columns: str) -> pd.DataFrame:
        """The frame, emptied if it has one value only of what it should compare."""
        return data if any(data[column].nunique() > 1 for column in columns) else data.head(0)

    curves = series.regime_curves(results, table)
    shortest = float(curves.groupby("regime")["examples"].max().min()) if len(curves) else 0.0

    def regimes() -> Figure:
        figure = figures.figure(PAGE_MM, 125)
        panels = figure.subplots(2, 2, sharey=True).ravel()
        for ax, by in zip(panels, tables.AXES, strict=True):
            figures.loss_by_regime(curves, ax, by, metric, unit)
            ax.set_ylabel("")
        figure.supylabel(f"validation {metric}" + (f", {unit}" if unit else ""), fontsize=8)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=1)
        return figure

    noise = series.noise_and_speed(results, table)
    level = metric_text(float(noise["level"].iloc[0]), "loss") if len(noise) else ""
    rates = series.rate_sensitivity(results, table)
    rates_by = {by: varied(series.rate_sensitivity(results, table, by), "group") for by in ("batch_size", "width")}
    leader = str(rates_by["width"]["optimizer"].iloc[0]) if len(rates_by["width"]) else ""
    of_size = str(rates_by["batch_size"]["optimizer"].iloc[0]) if len(rates_by["batch_size"]) else ""
    profile = series.profile([results])
    batches = varied(series.grid(table, "optimizer", "batch_size", maximize), "row", "column")
    shapes = varied(series.grid(table, "depth", "width", maximize), "row", "column")
    tuned = series.best_rates(results, table)
    steps = varied(series.steps_to_target(results), "batch_size")
    fits = series.batch_scaling(steps)
    speed, found, all_found = series.throughput(results), series.progress(results), series.searched(table, maximize)
    columns = [name for name in series.SEARCHED if name in all_found]
    time, times = series.loss_and_time(results, table), series.timeline(results)
    weights = series.importance_spread(results.importance)
    noises = series.gradient_noise(results, table)
    try:
        expected, why = series.expected_search(results), "no trial has a value yet"
    except ValueError as error:
        expected, why = pd.DataFrame(), str(error)

    def isolations() -> Figure:
        rows = math.ceil(len(columns) / 3)
        figure = figures.figure(PAGE_MM, 8 + 58 * rows)
        panels = figure.subplots(rows, 3, sharey=True, squeeze=False).ravel()
        for ax, by in zip(panels, columns, strict=False):
            figures.isolation(all_found, ax, by, metric, unit)
        for place, ax in enumerate(panels):
            ax.set_visible(place < len(columns))
            ax.set_ylabel("")
        figure.supylabel(f"validation {metric}" + (f", {unit}" if unit else ""), fontsize=8)
        return figure

    seeds = _seeds(curves["n"]), _seeds(rates["n"]), _seeds(table["n"])
    drawings = [
        Drawing(
            "regimes",
            "loss-by-regime",
            f"Validation {metric} by regime",
            f"The best cell of each regime at its tuned learning rate, against updates, training examples, epochs and "
            f"seconds of training of its whole stack of lanes (evaluation excluded). Line: {mean} of the validation "
            f"{metric}, always on the same split, over {seeds[0]}; {_band_note(curves['n'])}."
            + (
                f" Faint: loss of the batches of one seed; dotted: the same smoothed, with a half-life of "
                f"{short(series.HALF_LIFE * shortest)} examples in every regime."
                if curves["batch_loss"].notna().any() and metric == "loss"
                else ""
            ),
            f"Four panels of validation {metric} along training, one line per regime: {_listing(curves['regime'])}.",
            curves,
            regimes,
            none,
        ),
        Drawing(
            "regimes",
            "noise-speed",
            "Noise against speed",
            f"The best cell of each optimizer and batch size at its tuned rate. Across: training examples until the "
            f"validation loss is down to {level}, halfway (on the log scale) from the initial to the best final loss "
            f"of the study; up: scatter of the log validation loss about its trend, late in training. Both: geometric "
            f"mean over {seeds[2]}; bars: 95% t intervals; crosses at the right: a seed never came so far.",
            "Scatter plot of noise against speed, one point per optimizer and batch size, coloured by regime.",
            noise,
            single(lambda ax: figures.noise_against_speed(noise, ax)),
            none,
        ),
        Drawing(
            "regimes",
            "gradient-noise",
            "Gradient noise scale along training",
            f"tr(Σ) / |G|², the batch size at which noise and signal of the gradient are equal, on a fixed subset of "
            f"the training split, for the best cell of each regime at its tuned rate over {seeds[0]}; band: pointwise "
            f"95% interval.",
            "Gradient noise scale against training examples, one line per regime.",
            noises,
            single(lambda ax: figures.noise_scale(noises, ax)),
            "not recorded; [recording] gradient_noise = true in the spec records it",
        ),
        Drawing(
            "optimizers",
            "learning-rate-sensitivity",
            "Sensitivity to the learning rate",
            f"The best cell of each optimizer at every learning rate of its grid. Line: {mean} of the final validation "
            f"{metric} over {seeds[1]}; {_band_note(rates['n'])}; ring: tuned rate; cross: a seed diverged there.",
            f"Final validation {metric} against learning rate, one line per optimizer: {_listing(rates['optimizer'])}.",
            rates,
            single(lambda ax: figures.learning_rate_sensitivity(rates, ax, metric, unit), height=85),
            none,
        ),
        Drawing(
            "optimizers",
            "performance-profile",
            "Performance profile",
            f"Share of the problems (width, depth and batch size at which several optimizers ran) that an optimizer "
            f"solves, that is brings to the target, within a multiple of the updates of the fastest; medians over "
            f"{seeds[2]}, each at its best rate; no band.",
            "Step lines: share of problems solved against the multiple of the fastest, one per optimizer.",
            varied(profile, "optimizer"),
            single(lambda ax: figures.performance_profiles(profile, ax)),
            "the workload names no target" if results.target is None else "no problem was solved that several tried",
        ),
        Drawing(
            "batch size",
            "optimizer-batch-size",
            "Optimizer and batch size",
            f"Validation {metric} of the best cell over width and depth, at its tuned rate: {mean} over {seeds[2]}, in "
            f"brackets the 95% t interval. Yellow is best; grey: no value, with the reason.",
            f"Heat map of validation {metric}: rows are optimizers, columns batch sizes.",
            batches,
            heat(batches, "optimizer", "batch size", contours=False),
            "one optimizer at one batch size" if len(table) else "no trial has ended yet",
        ),
        Drawing(
            "batch size",
            "rate-by-batch-size",
            "Sensitivity to the learning rate, by batch size",
            f"The best cell of {of_size} at each batch size. Line: {mean} of the final validation {metric} over "
            f"{_seeds(rates_by['batch_size']['n'])}; {_band_note(rates_by['batch_size']['n'])}; ring: tuned rate; "
            f"cross: a seed diverged there.",
            f"Final validation {metric} against learning rate, one line per batch size.",
            rates_by["batch_size"],
            single(
                lambda ax: figures.learning_rate_sensitivity(rates_by["batch_size"], ax, metric, unit, "batch_size")
            ),
            "the best optimizer ran at one batch size only",
        ),
        Drawing(
            "batch size",
            "tuned-rate",
            "Tuned learning rate against batch size",
            f"The best cell of each optimizer and batch size, tuned over {seeds[2]}. Bars reach halfway to the "
            f"neighbouring rates of the grid: the resolution of the answer, no confidence interval. Open: on the edge "
            f"of its grid. Guides: rates proportional to the batch size, and to its square root.",
            "Tuned learning rate against batch size, one line per optimizer.",
            varied(tuned, "batch_size"),
            single(lambda ax: figures.rate_against_batch_size(tuned, ax)),
            "one batch size only",
        ),
        Drawing(
            "batch size",
            "steps-to-target",
            "Updates to the target",
            f"Until the validation {metric} reaches {'' if results.target is None else short(results.target)}, at the "
            f"cell and learning rate that need the fewest updates at each batch size. Points: medians over "
            f"{_seeds(steps.groupby(['optimizer', 'batch_size'])['seed'].nunique())}; bars: range over seeds. Curve: "
            f"S = S_min (1 + B_crit / B), where it can be fitted; tick: critical batch size.",
            "Updates to the target against batch size, one line per optimizer, beside perfect scaling.",
            steps,
            single(lambda ax: figures.steps_against_batch_size(steps, fits, ax)),
            no_target if series.steps_to_target(results).empty else "the target was reached at one batch size only",
        ),
        Drawing(
            "batch size",
            "throughput",
            "Throughput",
            "Training examples per second of a trial's whole stack of lanes, evaluation excluded, against the batch "
            "size; points: trials of every width and depth, line: their median by engine; no band.",
            "Examples per second against batch size, one line per engine.",
            speed,
            single(lambda ax: figures.throughput_against_batch_size(speed, ax)),
            "no trial ran with all its lanes to the end",
        ),
        Drawing(
            "width and depth",
            "width-depth",
            "Width and depth",
            f"Validation {metric} of the best cell over optimizer and batch size, at its tuned rate: {mean} over "
            f"{seeds[2]}, in brackets the 95% t interval. Yellow is best; grey: no value, with the reason. Dashed: "
            f"equally many parameters, as named below.",
            f"Heat map of validation {metric}: rows are depths, columns widths.",
            shapes,
            heat(shapes, "depth", "width", contours=True),
            "one width and depth only" if len(table) else "no trial has ended yet",
        ),
        Drawing(
            "width and depth",
            "rate-by-width",
            "Learning-rate shift with width",
            f"The best cell of {leader} at each width. Line: {mean} of the final validation {metric} over "
            f"{_seeds(rates_by['width']['n'])}; {_band_note(rates_by['width']['n'])}; ring: tuned rate; cross: a seed "
            f"diverged there.",
            f"Final validation {metric} against learning rate, one line per width.",
            rates_by["width"],
            single(lambda ax: figures.learning_rate_sensitivity(rates_by["width"], ax, metric, unit, "width")),
            "the best optimizer ran at one width only",
        ),
        Drawing(
            "search",
            "search-progress",
            "The search, trial by trial",
            f"Validation {metric} of each trial at its tuned rate ({mean} over its seeds) and the best so far; no "
            f"band. Cross: a trial without a value.",
            f"Validation {metric} of every trial in order, and the best so far.",
            found,
            single(lambda ax: figures.search_progress(found, ax, metric, unit), height=75),
            "no trial has ended yet",
        ),
        Drawing(
            "search",
            "expected-best",
            "Expected best against budget",
            f"The validation {metric} to expect of the best of so many trials of an optimizer, drawn from those made "
            f"without replacement (unbiased); a trial without a value counts as the worst. No band.",
            f"Expected best validation {metric} against the number of trials, one line per optimizer.",
            expected,
            single(lambda ax: figures.expected_best_of(expected, ax, metric, unit), height=75),
            why,
        ),
        Drawing(
            "search",
            "importance",
            "Importance of the hyperparameters",
            f"Share of the variation among the better trials that each explains (PED-ANOVA, Watanabe et al. 2023); "
            f"bars: all trials, lines: 2.5 to 97.5 percentiles over "
            f"{_count(int(weights['n'].max()) if len(weights) else 0, 'bootstrap repeat')}.",
            "Bar chart of hyperparameter importances.",
            weights,
            single(lambda ax: figures.importance_bars(weights, ax), 110, 15 + 9 * max(2, len(weights))),
            "the study has not recorded it; it takes several completed trials",
        ),
        Drawing(
            "search",
            "isolation",
            "Each hyperparameter by itself",
            f"Validation {metric} of every cell at its tuned rate against each hyperparameter that varied, the others "
            f"being whatever they were; dark: the best of each value. Points are {mean}s over {seeds[2]}; no band.",
            f"Panels of validation {metric} against {', '.join(columns)}.",
            all_found if columns else all_found.head(0),
            isolations,
            none if all_found.empty else "nothing varied",
        ),
        Drawing(
            "search",
            "parallel-coordinates",
            "All cells at once",
            f"Each line is a cell at its tuned rate; orange: the best tenth by validation {metric} ({mean} over "
            f"{seeds[2]}), the others from better (light) to worse (dark); no band.",
            f"Parallel coordinates of {', '.join(columns)} and validation {metric}.",
            all_found if len(columns) > 1 else all_found.head(0),
            single(lambda ax: figures.parallel_coordinates(all_found, ax, metric), PAGE_MM),
            none if all_found.empty else "fewer than two hyperparameters varied",
        ),
        Drawing(
            "search",
            "loss-time",
            f"Validation {metric} against training time",
            f"Every completed cell at its tuned rate ({mean} over {seeds[2]}) against the seconds that its whole stack "
            f"of lanes trained; line: what no other cell beats in both; no band.",
            f"Scatter plot of validation {metric} against training time with its Pareto front.",
            time,
            single(lambda ax: figures.loss_against_time(time, ax, metric, unit)),
            "no cell has completed with a tuned rate",
        ),
        Drawing(
            "ledger",
            "timeline",
            "Which worker did what when",
            "One row per worker, one bar per trial from start to end, coloured by outcome; gaps are waiting, or the "
            "time between sessions.",
            "Timeline of the trials of each worker.",
            times,
            single(
                lambda ax: figures.trial_timeline(times, ax), PAGE_MM, 22 + 4.5 * min(32, times["worker"].nunique())
            ),
            "no trial has recorded when and where it ran",
        ),
    ]
    return sorted(drawings, key=lambda drawing: PARTS.index(drawing.part))


def scaling(results: Results, table: pd.DataFrame) -> list[str]:
    """The critical batch size of each optimizer of which it can be told, beside the gradient noise scale."""
    found = series.batch_scaling(series.steps_to_target(results))
    lines = [
        f"Critical batch size of {row['optimizer']}: {short(row['critical'])}"
        + (f" [{short(row['low'])}, {_number(row['high'])}]" if row["n"] > 1 else " (one seed, no interval)")
        + f", above which larger batches save few updates; at best {short(row['smallest_steps'])} updates, or "
        f"{short(row['smallest_examples'])} examples."
        for row in _records(found)
    ]
    noise = series.gradient_noise(results, table)
    for regime, own in noise.groupby("regime", sort=False):
        last = own.iloc[-1]
        lines.append(
            f"Gradient noise scale at the end of the best {regime} training: {_number(last['estimate'])} "
            f"[{_number(last['low'])}, {_number(last['high'])}] examples."
        )
    return lines


def _with_legend(draw: Callable[[Axes], Any], width: float = 0.78 * PAGE_MM, height: float = 80.0) -> Figure:
    """A figure of one panel with its legend, if it needs one, at its right."""
    figure = figures.figure(width, height)
    ax = figure.subplots()
    draw(ax)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _heat_map_size(data: pd.DataFrame) -> Figure:
    rows, columns = data["row"].nunique(), data["column"].nunique()
    return figures.figure(min(PAGE_MM, max(COLUMN_MM, 45 + 24 * columns)), 24 + 11 * max(rows, 2))


def _seeds(counts: pd.Series[int], noun: str = "seed") -> str:
    known = counts[counts > 0]
    if known.empty:
        return f"{noun}s"
    low, high = int(known.min()), int(known.max())
    return _count(low, noun) if low == high else f"{low} to {high} {noun}s"


def _band_note(counts: pd.Series[int]) -> str:
    return "band: pointwise 95% t interval" if (counts > 1).any() else "no band, which one seed does not allow"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _shown(row: dict[str, Any], names: Sequence[str], metric: str) -> dict[str, Any]:
    """A row whose named scores are what the template shows: (value, limits)."""
    return row | {name: (metric_text(row[name], metric), _limits(row, name, metric)) for name in names}


def _limits(row: Any, name: str, metric: str) -> str:
    count = row["n"] if name == "validation" else row[f"{name}_n"]
    return interval_text(row[f"{name}_low"], row[f"{name}_high"], count, metric)


def _value(row: Any, name: str, metric: str) -> str:
    """A score with its limits in a sentence."""
    limits = _limits(row, name, metric)
    return f"{metric_text(row[name], metric)} {limits if limits.startswith('[') else '(without an interval)'}"


def _cell(row: Any) -> str:
    """A cell in words, such as `adam (beta1 0.9), width 32, depth 2, batch size 32`."""
    return f"{optimizer_text(row['optimizer'], row['settings'])}, {_shape(row)}"


def _shape(row: Any) -> str:
    """A cell but for its optimizer in words, such as `width 32, depth 2, batch size 32`."""
    batch = f"batch size {row['batch_size']:,}" + (" (full)" if row["regime"] == "batch" else "")
    return f"width {row['width']}, depth {row['depth']}, {batch}" if row["width"] or row["depth"] else batch


def _unit(results: Results) -> str:
    """What a loss is measured in, from provenance; an accuracy needs no word."""
    return str(_table(results.provenance, "data").get("loss", "")) if results.metric == "loss" else ""


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, dict) else {}


def _count(number: Any, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    """A number in a table: three digits, a dash for none, ∞ for never."""
    return short(value) if math.isfinite(value) else metric_text(value, "loss")


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return metric_text(value, "loss")
    return f"{value / 3600:.1f} h" if value >= 5400 else f"{value / 60:.1f} min" if value >= 90 else f"{value:.2g} s"


def _when(time: Any) -> str:
    return str(time or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")


def _flattened(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Provenance as rows (dotted name, text)."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value, start=1))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flattened(inner, f"{name}.{key}" if name else str(key))
    elif name:
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        yield name, "not recorded" if value is None else text


def write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all, so that a reader never meets half a report."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)  # temporary files are private, a report is to be read
    temporary.replace(path)
