"""Figures and tables -> one HTML file that opens offline, with every figure and its numbers as files beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.cells import cells, rank, target_times
from analysis.comparisons import winners_curse
from analysis.figures.batch_size.steps_to_target import batch_scaling, steps_to_target
from analysis.figures.exhibit import Exhibit, unit_of, write_file
from analysis.figures.performance_profile import across_studies
from analysis.figures.regimes.gradient_noise import gradient_noise
from analysis.figures.registry import FIGURES
from analysis.figures.timeline import busy, covered, timeline
from analysis.report.across import across
from analysis.report.verdict import comparison_rows, confirmation, curse_text, study_cost, verdict
from analysis.report.warnings import warnings
from analysis.results import Results, load, pareto, records, table_of
from analysis.schema import Outcome, ResultsError
from analysis.text import (
    cell_at_rate,
    cell_text,
    counted,
    duration,
    limits_text,
    metric_text,
    settings_text,
    short,
)

LEADERBOARD_ROWS = 20
FAILURE_ROWS = 10


def write_report(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path | None = None, *, command: str = ""
) -> Path:
    """Write the report of one or several studies, finished or not.

    Args:
        paths: a results folder or its URI, or several; each becomes a section.
        out_dir: where to write; by default `report/` in the first results folder, or in its local copy.
        command: the command that writes the page again; by default `study report` of these paths.

    Returns:
        The path of `index.html`. Figures lie beside it in `figures/`, each as SVG, PDF and CSV.

    Raises:
        ResultsError: if a folder cannot be read as results, or no trial has ended in any.
    """
    folders = [paths] if isinstance(paths, str | Path) else list(paths)
    if not folders:
        raise ResultsError("no results folder given")
    studies = [load(folder) for folder in folders]  # before any folder is made, so that a mistyped path leaves none
    out = Path(out_dir) if out_dir is not None else studies[0].path / "report"
    if all(study.trials.empty for study in studies):
        raise ResultsError(f"{folders[0]}: no trial has ended yet; `study status {folders[0]}` shows the progress")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    prefixes = ["" if len(folders) == 1 else f"{number}-" for number in range(1, len(folders) + 1)]
    page = render(
        "report.html.j2",
        sections=[_section(study, out, prefix) for study, prefix in zip(studies, prefixes, strict=True)],
        across=_across(studies, out) if len(studies) > 1 else None,
        command=command or shlex.join(["study", "report", *map(str, folders)]),
        failure_rows=FAILURE_ROWS,
    )
    write_file(out / "index.html", page.encode())
    return out / "index.html"


def render(template: str, **values: Any) -> str:
    """The page that a template of `templates/` makes of some values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "settings": settings_text}
    return environment.get_template(template).render(**values)


def _figures(parts: dict[str, list[Exhibit]], out: Path, prefix: str) -> dict[str, list[dict[str, Any]]]:
    """The figures of each part as `Exhibit.save` returns them."""
    return {part: [each.save(out, prefix) for each in figures] for part, figures in parts.items()}


def _across(studies: Sequence[Results], out: Path) -> dict[str, Any]:
    """What the template shows of several studies together."""
    shown: dict[str, Any] = {"figures": _figures({"across": [across_studies(studies)]}, out, ""), "rows": []}
    try:
        table = across(studies)
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
    for row in records(table):
        numbers = [row[name] * (-100 if metric == "accuracy" else 1) + 0.0 for name in ("estimate", "low", "high")]
        limits = f"[{short(min(numbers[1:]))}, {short(max(numbers[1:]))}]"
        rows.append(row | {"score": (short(numbers[0]), limits)})
    return shown | {"text": text, "rows": rows, "measure": f"{metric}, {relative} the best"}


def _section(results: Results, out: Path, prefix: str) -> dict[str, Any]:
    """Everything that the template shows of one study."""
    table, metric = cells(results), results.metric
    ranked = rank(table, results.maximize)
    leaderboard = f"figures/{prefix}cells.csv"
    write_file(out / leaderboard, table.to_csv(index=False).encode())
    figures = {part: [figure(results, table) for figure in each] for part, each in FIGURES.items()}
    front = table[pareto(table, results.objectives, results.maximize)]
    return {
        "id": prefix.rstrip("-") or "study",
        "name": results.name,
        "description": str(results.spec.get("description", "")),
        "verdict": verdict(results, table),
        "confirmation": confirmation(results, table),
        "confirmed": [
            _shown(row, ("search", "confirmed", "test"), metric) | {"curse": curse_text(row, metric)}
            for row in records(winners_curse(results, table))
        ],
        "comparisons": comparison_rows(results, table),
        "best": None if ranked.empty else cell_at_rate(ranked.iloc[0]),
        "course": course(results),
        "outcomes": outcome_counts(results),
        "busy": records(busy(timeline(results), _nodes(results))),
        "failures": failures(results),
        "events": events(results),
        "metric": metric,
        "unit": unit_of(results),
        "leaderboard": [
            _shown(row, ("validation", "test"), metric) | {"rank": place}
            for place, row in enumerate(records(ranked.head(LEADERBOARD_ROWS)), start=1)
        ],
        "leaderboard_file": leaderboard,
        "cells": len(ranked),
        "pooled": (ranked["trials"] > 1).any(),
        "has_settings": (table["settings"] != "").any(),
        "objectives": [name for name in results.objectives if name != "metric"] if len(results.objectives) > 1 else [],
        "front": [
            _shown(row, ("validation",), metric)
            for row in records(front.sort_values(["validation", "trial"], ascending=[not results.maximize, True]))
        ],
        "target": None if results.target is None else short(results.target),
        "times": records(target_times(results, table)),
        "scaling": scaling(results, table),
        "figures": _figures(figures, out, prefix),
        "warnings": warnings(results, table),
        "spec": results.spec_text,
        "provenance": list(_flattened(results.provenance)),
    }


def course(results: Results) -> list[str]:
    """Progress and cost of the study: state, trials, processor time, use of the workers, grown grids."""
    trials, provenance = results.trials, results.provenance
    planned = table_of(results.spec, "budget").get("trials")
    of = f" of {planned}" if isinstance(planned, int) else ""
    lines = [f"{len(trials)}{of} trials have ended, with {len(results.lanes):,} lanes (learning rates x seeds)."]
    if provenance.get("finished"):
        lines.append(f"Started {_when(provenance.get('started'))}, finished {_when(provenance['finished'])}.")
    elif provenance.get("started"):
        lines.append(f"Started {_when(provenance['started'])} and not finished: it is running or was interrupted.")
    else:
        lines.append("Whether it is still running is not recorded.")
    lines.append(
        f"The trials took {duration(float(trials['wall_seconds'].sum()))} of trial time, "
        f"{duration(float(trials['train_seconds'].sum()))} of which was training; that is {study_cost(results)}"
        f"{' with the confirmation' if results.confirmation else ''}."
    )
    stays = timeline(results).drop_duplicates(["confirming", "trial", "started"])
    if len(stays):
        ends = pd.concat([pd.Series(1, stays["started"]), pd.Series(-1, stays["ended"])]).sort_index(kind="stable")
        slots, span = int(ends.groupby(level=0).sum().cumsum().max()), covered(stays)
        share = min(1.0, float((stays["ended"] - stays["started"]).sum()) / (slots * span)) if slots * span > 0 else 1.0
        lines.append(
            f"They ran on {counted(stays['worker'].nunique(), 'worker')}, at most {slots} at a time, and used that "
            f"capacity for {share:.0%} of the time in which any trial ran."
        )
    grown = results.pooled.trials.groupby("cell")["extensions"].max()
    if (grown > 0).any():
        some = counted(int((grown > 0).sum()), "cell")
        lines.append(f"The learning-rate grid of {some} was extended, because its best rate lay on the edge.")
    return lines


def _nodes(results: Results) -> dict[str, int]:
    """The nodes of all sessions, and the largest number of GPUs that each had."""
    found: dict[str, int] = {}
    for session in _sessions(results):
        for node, gpus in table_of(session, "nodes").items():
            found[node] = max(int(gpus), found.get(node, 0))
    return found


def _sessions(results: Results) -> list[dict[str, Any]]:
    """The sessions in provenance, without damaged entries."""
    sessions = results.provenance.get("sessions")
    return [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []


def outcome_counts(results: Results) -> list[tuple[str, int, int]]:
    """Rows (outcome, trials, lanes) for every outcome that occurs; unknown ones last."""
    trials, lanes = results.trials["outcome"].value_counts(), results.lanes["outcome"].value_counts()
    names = [*Outcome, *sorted((set(trials.index) | set(lanes.index)) - set(Outcome))]
    rows = [(str(name), int(trials.get(name, 0)), int(lanes.get(name, 0))) for name in names]
    return [row for row in rows if row[1] or row[2]]


def failures(results: Results) -> list[tuple[int, str, str]]:
    """Rows (trial, cell, last line of the error) of every trial that failed or ran out of memory, in order."""
    lost = results.trials[results.trials["outcome"].isin([Outcome.FAILED, Outcome.OUT_OF_MEMORY])]
    lost = lost.fillna({"settings": "", "error": ""})
    reasons = [error.strip().splitlines() or ["not recorded"] for error in lost["error"]]
    return [(row["trial"], cell_text(row), reason[-1]) for row, reason in zip(records(lost), reasons, strict=True)]


def events(results: Results) -> list[tuple[str, str]]:
    """Rows (time, text) of what happened to nodes and workers while the study ran, in order."""
    return [
        (_when(event.get("time")), str(event.get("text")))
        for session in _sessions(results)
        for event in session.get("events") or []
    ]


def scaling(results: Results, table: pd.DataFrame) -> list[str]:
    """The critical batch size of each optimizer for which it can be fitted, and the gradient noise scale."""
    lines = [
        f"Critical batch size of {row['optimizer']}: {short(row['critical'])}"
        + (f" [{short(row['low'])}, {short(row['high'])}]" if row["n"] > 1 else " (one seed, no interval)")
        + f", above which larger batches save few updates; at best {short(row['smallest_steps'])} updates, or "
        f"{short(row['smallest_examples'])} examples."
        for row in records(batch_scaling(steps_to_target(results)))
    ]
    for regime, own in gradient_noise(results, table).groupby("regime", sort=False):
        last = own.iloc[-1]
        lines.append(
            f"Gradient noise scale at the end of the best {regime} training: {short(last['estimate'])} "
            f"[{short(last['low'])}, {short(last['high'])}] examples."
        )
    return lines


def _shown(row: dict[str, Any], names: Sequence[str], metric: str) -> dict[str, Any]:
    """A row with its named scores as the template shows them: (value, limits)."""
    return row | {name: (metric_text(row[name], metric), limits_text(row, name, metric)) for name in names}


def _when(time: Any) -> str:
    return str(time or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")


def _flattened(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Provenance as rows (dotted name, text), without `events` and `nodes`, which have their own tables."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value, start=1))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if key not in ("events", "nodes"):
                yield from _flattened(inner, f"{name}.{key}" if name else str(key))
    elif name:
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        yield name, "not recorded" if value is None else text
