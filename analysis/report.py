"""Figures and tables -> one HTML file that opens offline, with every figure and its numbers as files beside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import figures, series, tables
from analysis.exhibits import PARTS, Exhibit, exhibits, unit_of, with_legend, write_file
from analysis.results import CELL, OUTCOMES, Results, ResultsError, hours, load, pareto, stints, table_of
from analysis.wording import (
    cell_at_rate,
    cell_text,
    counted,
    interval_text,
    limits_text,
    listing,
    metric_text,
    number_text,
    seconds_text,
    seed_counts,
    settings_text,
    short,
    value_text,
)

LEADERBOARD_ROWS = 20
FAILURE_ROWS = 10


def write_report(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path | None = None, *, command: str = ""
) -> Path:
    """Write the report of one or several studies, finished or not.

    Args:
        paths: a results folder or its URI, or several; each becomes a section.
        out_dir: where to write; `report/` in the first results folder, or in what was fetched of it, if not given.
        command: what writes it again, as the page says; `study report` of these paths if not given.

    Returns:
        The path of `index.html`. Figures lie beside it in `figures/`, each as SVG, PDF and CSV.

    Raises:
        ResultsError: if a folder cannot be read as results, or no trial has ended in any.
    """
    folders = [paths] if isinstance(paths, str | Path) else list(paths)
    if not folders:
        raise ResultsError("no results folder given")
    studies = [load(folder) for folder in folders]  # before anything is made: a mistyped path leaves no folder behind
    out = Path(out_dir) if out_dir is not None else studies[0].path / "report"
    if all(study.trials.empty for study in studies):
        raise ResultsError(f"{folders[0]}: no trial has ended yet; `study status {folders[0]}` says how far it is")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    prefixes = ["" if len(folders) == 1 else f"{number}-" for number in range(1, len(folders) + 1)]
    sections = [_section(study, out, prefix) for study, prefix in zip(studies, prefixes, strict=True)]
    across = _across(studies, out) if len(studies) > 1 else None
    command = command or shlex.join(["study", "report", *map(str, folders)])
    page = (
        environment()
        .get_template("report.html.j2")
        .render(sections=sections, across=across, command=command, failure_rows=FAILURE_ROWS)
    )
    write_file(out / "index.html", page.encode())
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
    environment.filters |= {"short": number_text, "settings": settings_text}
    return environment


def _across(studies: Sequence[Results], out: Path) -> dict[str, Any]:
    """What the template shows of several studies together."""
    profile = series.profile(studies)
    drawing = Exhibit(
        "across",
        "performance-profile-across",
        "Performance profile over the studies",
        "Share of the problems (study, width, depth and batch size at which several optimizers ran) that an optimizer "
        "brings to the study's target within a multiple of the updates of the fastest; medians over seeds, each at its "
        "best rate; no band.",
        "Step lines: share of problems solved against the multiple of the fastest, one per optimizer.",
        profile,
        lambda: with_legend(lambda ax: figures.performance_profiles(profile, ax)),
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
        numbers = [row[name] * (-100 if metric == "accuracy" else 1) + 0.0 for name in ("estimate", "low", "high")]
        limits = f"[{number_text(min(numbers[1:]))}, {number_text(max(numbers[1:]))}]"
        rows.append(row | {"score": (number_text(numbers[0]), limits)})
    return shown | {"text": text, "rows": rows, "measure": f"{metric}, {relative} the best"}


def _section(results: Results, out: Path, prefix: str) -> dict[str, Any]:
    """Everything that the template shows of one study."""
    table = tables.cells(results)
    ranked = tables.rank(table, results.maximize)
    times = tables.target_times(results, table)
    leaderboard = f"figures/{prefix}cells.csv"
    write_file(out / leaderboard, table.to_csv(index=False).encode())
    drawings = [drawing.save(out, prefix) for drawing in exhibits(results, table)]
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
        "best": None if ranked.empty else cell_at_rate(ranked.iloc[0]),
        "course": course(results),
        "outcomes": outcome_counts(results),
        "busy": _records(series.busy(series.timeline(results), _nodes(results))),
        "failures": failures(results),
        "events": events(results),
        "metric": results.metric,
        "unit": unit_of(results),
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
    if any(comparison.effect.n > 1 for comparison in compared):
        confirmed = again is None or bool(again["confirmed_n"])
        sentences = _comparison_text(compared, metric, results, of_search=again is not None, confirmed=confirmed)
    else:
        split = "test" if best["test_n"] else "validation"
        score = f"{split} {metric} {value_text(best, split, metric)} over {counted(best['n'], 'seed')}"
        sentences = [f"Best on the validation split is {cell_at_rate(best)}: {score}, for {_cost(results)}."]
        sentences.append(_why_not_compared(compared))
    if again and again["confirmed_n"]:
        name, split = ("test", "test") if again["test_n"] else ("confirmed", "validation")
        place = "" if again["rank_confirmed"] == 1 else f", though only as number {again['rank_confirmed']:.0f}"
        score = f"{split} {metric} {value_text(again, name, metric)}"
        sentences.append(f"It was confirmed on {counted(again['seeds'], 'fresh seed')}{place}: {score}.")
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
    compared: Sequence[tables.Comparison], metric: str, results: Results, *, of_search: bool, confirmed: bool
) -> list[str]:
    """The best cell against the next-best optimizer's in a sentence, and against all the others in another.

    An optimizer that turns out better than the chosen one comes first. `of_search` says which seeds a comparison is
    over where the text speaks of others, too; what was not `confirmed` where it was tried does not win.
    """
    told = [comparison for comparison in compared if comparison.effect.n > 1]
    against_it = [comparison for comparison in told if comparison.differs and comparison.favours_rival(metric)]
    first = [*against_it, *told][0]
    best, rival, count = first.best, first.rival, first.effect.n
    pairs = counted(count, "paired fresh seed" if first.fresh else "paired seed")
    pairs += " of the search" if of_search and not first.fresh else ""
    p = f"Holm p = {short(first.holm)}" if len(compared) > 1 else f"sign-flip p = {short(first.p)}"
    ours, theirs = (
        f"{metric_text(score.estimate, metric)} {interval_text(score.low, score.high, score.n, metric)}"
        for score in first.scores
    )
    evidence = f"{_effect(first, metric)}, better on {first.wins} of {pairs}, {p}, for {_cost(results)}"
    against = f"{first.split} {metric} {ours} against {theirs} for {cell_at_rate(rival)}; {evidence}."
    winner, advice = cell_at_rate(best), ""
    if against_it:
        what = "fresh seeds contradict" if first.fresh else "the test split contradicts"
        text = f"No clear winner: {winner} is best on the search's validation split, but {what} it: {against}"
    elif not first.differs:
        text = f"No clear winner: {winner} is best on the validation split, with {against}"
    elif first.holm < 0.05 and confirmed and all(comparison.differs for comparison in told):
        text = f"{winner} wins: {against}"
    else:
        text = f"{winner} leads: {against}"
        least = min(1.0, 2 / 2**count * len(compared))
        if least >= 0.05:
            advice = f"{counted(count, 'seed')} cannot reach p < .05 in an exact test (at best {short(least)})"
        elif first.holm >= 0.05:
            advice = "That is more than the scatter over seeds explains, but not by the exact test"
        advice += ": confirm it on more, fresh seeds." if advice else ""
    rest = [comparison for comparison in told if comparison is not first and not against_it]
    names = listing(comparison.rival["optimizer"] for comparison in rest if not comparison.differs)
    worse, others = sum(comparison.differs for comparison in rest), ""
    if len(rest) == 1:
        rest_name = rest[0].rival["optimizer"]
        others = f"{names} may be as good, too." if names else f"{rest_name} is worse by more than the scatter, too."
    elif worse:
        others = f"Of the other {len(rest)} optimizers, {worse} are worse by more than the scatter over seeds"
        others += f"; {names} may be as good." if names else "."
    elif names:
        others = f"{names} may be as good, too."
    sentences = [text, advice, others]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences if sentence]


def _effect(comparison: tables.Comparison, metric: str) -> str:
    effect = comparison.effect
    if metric == "accuracy":
        return f"{100 * effect.estimate:+.2f} percentage points [{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]"
    return f"{number_text(effect.estimate)} times [{number_text(effect.low)}, {number_text(effect.high)}]"


def _cost(results: Results) -> str:
    """Processor hours of all trials, such as `0.8 CPU-hours`; those of the confirmation included."""
    resources = {"cpus_per_trial": 1, "gpus_per_trial": 0} | table_of(results.spec, "resources")
    given = (float(resources["cpus_per_trial"]), 1.0 if (gpus := resources["gpus_per_trial"]) == "auto" else gpus)
    on_cpus, on_gpus = hours(results, *given)
    words = [
        f"{short(value)} {name}-hours" if value >= 0.1 else f"{short(60 * value)} {name}-minutes"
        for name, value in (("GPU", on_gpus), ("CPU", on_cpus))
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
            | {"score": (metric_text(score.estimate, results.metric), f"{comparison.split} {limits}")}
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
        "The best cell of the search"
        if best["rank_search"] == 1
        else f"{cell_text(best)} (the search's best is missing)"
    )
    seeds = f"{seed_counts(curse['seeds'], 'fresh seed')}, against {seed_counts(curse['search_n'])} in the search"
    if best["confirmed_n"] == 0:
        place = f"{name} cannot be confirmed on {seeds}: {_loss_of_seeds(best)}."
    elif len(held) == 1:
        place = f"{name} alone was confirmed, on {seeds}, so its place is not checked."
    elif best["rank_confirmed"] == 1:
        place = f"{name} holds the first place of {len(held)} confirmed cells on {seeds}."
    else:
        first = held.sort_values("rank_confirmed").iloc[0]
        place = f"{name} falls to place {best['rank_confirmed']:.0f} of {len(held)} confirmed cells on {seeds}; "
        place += f"first is {cell_text(first)}."
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
    return f"{short(estimate)} times", f"[{short(low)}, {number_text(high)}]"


def _loss_of_seeds(row: Any) -> str:
    """Why a cell that was run again has no confirmed score."""
    if row["diverged"]:
        return f"{row['diverged']} of {counted(row['seeds'], 'fresh seed')} diverged"
    return f"its lanes there ended as {row['outcome']}"


def _front(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    front = table[pareto(table, results.objectives, results.maximize)]
    return front.sort_values(["validation", "trial"], ascending=[not results.maximize, True])


def course(results: Results) -> list[str]:
    """How the study went: whether it still runs, trials done of those planned, processor hours."""
    trials, provenance = results.trials, results.provenance
    planned = table_of(results.spec, "budget").get("trials")
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
        f"The trials took {seconds_text(float(trials['wall_seconds'].sum()))} of trial time, "
        f"{seconds_text(float(trials['train_seconds'].sum()))} of which was training; that is {_cost(results)}{again}."
    )
    busy = series.timeline(results).drop_duplicates(["confirming", "trial", "started"])
    if len(busy):
        ends = pd.concat([pd.Series(1, busy["started"]), pd.Series(-1, busy["ended"])]).sort_index(kind="stable")
        slots, span = int(ends.groupby(level=0).sum().cumsum().max()), series.covered(busy)
        share = min(1.0, float((busy["ended"] - busy["started"]).sum()) / (slots * span)) if slots * span > 0 else 1.0
        lines.append(
            f"{counted(busy['worker'].nunique(), 'worker')} ran them, {slots} at once at most; such a place was busy "
            f"{share:.0%} of the time in which any trial ran."
        )
    grown = results.pooled.trials.groupby("cell")["extensions"].max()
    if (grown > 0).any():
        some = counted(int((grown > 0).sum()), "cell")
        lines.append(f"The learning-rate grid of {some} grew, its best rate being on the edge.")
    return lines


def _nodes(results: Results) -> dict[str, int]:
    """The nodes of all sessions, and the most GPUs that each had."""
    found: dict[str, int] = {}
    for session in _sessions(results):
        for node, gpus in table_of(session, "nodes").items():
            found[node] = max(int(gpus), found.get(node, 0))
    return found


def _sessions(results: Results) -> list[dict[str, Any]]:
    """What provenance tells of each session; of a damaged one, what is left."""
    sessions = results.provenance.get("sessions")
    return [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []


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
    return [(row["trial"], cell_text(row), reason[-1]) for row, reason in zip(_records(lost), reasons, strict=True)]


def warnings(results: Results, table: pd.DataFrame) -> list[str]:
    """What a reader must know before trusting the numbers, most telling first."""
    ranked, found = tables.rank(table, results.maximize), []
    if score := table_of(results.spec, "workload").get("score"):
        found.append(f"What is called accuracy here is the mean of {score} over examples, from 0 to 1.")
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
            f"{counted(unshown, 'confirmed cell')} left out: no lane ended, or the cell's tuned rate is another by now."
        )
    if (ranked["rates"] == 1).any():
        found.append("Some cells ran at one learning rate only: there the rate is given, not tuned.")
    seeds = int(ranked["n"].min()) if len(ranked) else 0
    if 0 < seeds < 6:
        found.append(
            f"{counted(seeds, 'seed').capitalize()} cannot give p < .05 in an exact paired test, whatever the "
            f"difference; it takes 6."
        )
    if len(ranked) and ranked["epochs"].max() > 1.5 * ranked["epochs"].min():
        found.append(
            f"The cells compared differ in training, from {short(ranked['epochs'].min())} to "
            f"{short(ranked['epochs'].max())} epochs and from {short(ranked['updates'].min())} to "
            f"{short(ranked['updates'].max())} updates: read the curves against the axis that you pay for."
        )
    stays = stints(results.trials).dropna(subset=["gpus"])
    on_gpus = stays["trial"][stays["gpus"].map(len) > 0].nunique()
    if 0 < on_gpus < (ran := stays["trial"].nunique()):
        told = f"{counted(on_gpus, 'trial')} had a GPU and {ran - on_gpus} had none"
        found.append(f"{told}: seconds compare within either alone.")
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
            f"{counted(stopped, 'trial')} stopped by the scheduler saw less of the budget, so what they had reached is "
            f"not compared with trials that completed."
        )
    left = results.pooled.left_out["outcome"].value_counts()
    if len(left):
        found.append(
            f"Trials left out of their cells, for which others count that came further: "
            f"{listing(f'{count} {name}' for name, count in left.items())}."
            + (" Where one diverged, its cell looks too good." if "diverged" in left else "")
        )
    given_up = int(lanes["stopped_update"].notna().sum())
    if given_up:
        found.append(
            f"Halving gave up {given_up:,} of {len(lanes):,} lanes before the end of the budget: their learning rates "
            f"were behind others then. They are not eligible as the tuned one, and figures leave them out."
        )
    sampler, shares = table_of(results.spec, "tuning").get("sampler"), results.trials["optimizer"].value_counts()
    if sampler in series.ADAPTIVE and len(shares) > 1 and shares.max() > 1.5 * shares.min():
        found.append(
            f"The sampler, {sampler}, gave more trials to what looked good early: {shares.max()} to {shares.idxmax()}, "
            f"{shares.min()} to {shares.idxmin()}. [tuning] fair = true gives every optimizer the same."
        )
    lost = int((~results.trials["outcome"].isin(["completed", "stopped", "diverged"])).sum())
    if lost:
        found.append(f"Not compared: {counted(lost, 'trial')} that failed, ran out of memory or was interrupted.")
    return found


def scaling(results: Results, table: pd.DataFrame) -> list[str]:
    """The critical batch size of each optimizer of which it can be told, beside the gradient noise scale."""
    found = series.batch_scaling(series.steps_to_target(results))
    lines = [
        f"Critical batch size of {row['optimizer']}: {short(row['critical'])}"
        + (f" [{short(row['low'])}, {number_text(row['high'])}]" if row["n"] > 1 else " (one seed, no interval)")
        + f", above which larger batches save few updates; at best {short(row['smallest_steps'])} updates, or "
        f"{short(row['smallest_examples'])} examples."
        for row in _records(found)
    ]
    noise = series.gradient_noise(results, table)
    for regime, own in noise.groupby("regime", sort=False):
        last = own.iloc[-1]
        lines.append(
            f"Gradient noise scale at the end of the best {regime} training: {number_text(last['estimate'])} "
            f"[{number_text(last['low'])}, {number_text(last['high'])}] examples."
        )
    return lines


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _shown(row: dict[str, Any], names: Sequence[str], metric: str) -> dict[str, Any]:
    """A row whose named scores are what the template shows: (value, limits)."""
    return row | {name: (metric_text(row[name], metric), limits_text(row, name, metric)) for name in names}


def _when(time: Any) -> str:
    return str(time or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")


def events(results: Results) -> list[tuple[str, str]]:
    """What befell nodes and workers while the study ran: (time, words), in order."""
    found = []
    for session in _sessions(results):
        for event in session.get("events") or []:
            found.append((_when(event.get("time")), str(event.get("text"))))
    return found


def _flattened(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Provenance as rows (dotted name, text), but for `events` and `nodes`, which have tables of their own."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value, start=1))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if key in ("events", "nodes"):
                continue
            yield from _flattened(inner, f"{name}.{key}" if name else str(key))
    elif name:
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        yield name, "not recorded" if value is None else text
