"""Figures and tables -> one HTML file that opens offline, with every figure and its numbers as files beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis.cells import cells, rank
from analysis.comparisons import Comparison, compare, winners_curse
from analysis.figures.batch_size.steps_to_target import batch_scaling, steps_to_target
from analysis.figures.exhibit import FAILED, SCREEN_DPI, unit_of, write_file
from analysis.figures.performance_profile import across_studies
from analysis.figures.registry import figures_of
from analysis.figures.search.timeline import covered, timeline
from analysis.figures.style import dark_rules
from analysis.report import tables
from analysis.report.across import across, repetitions, verdict_across
from analysis.report.paper import saved, tables_of
from analysis.report.verdict import confirmation, study_cost, verdict
from analysis.report.warnings import warnings
from analysis.results import Results, load, records, table_of
from analysis.schema import ResultsError, digest
from analysis.text import counted, duration, listing, short


def write_report(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path | None = None, *, pdf: bool = False, command: str = ""
) -> Path:
    """Write the report of one or several studies, finished or not.

    Args:
        paths: a results folder or its URI, or several; each becomes a section.
        out_dir: where to write; by default `report/` in the results folder, or in its local copy. Several studies need
            one, so that none loses its own report.
        pdf: whether to write every figure as PDF, too, which doubles the time.
        command: the command that writes the page again; by default `study report` of these paths.

    Returns:
        The path of `index.html`. Figures lie beside it in `figures/`, each as SVG, its numbers as CSV.

    Raises:
        ResultsError: if a folder cannot be read as results, no trial has ended in any, or the report of several studies
            would replace that of one.
    """
    return report(paths, out_dir, pdf=pdf, command=command)[0]


def report(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path | None = None, *, pdf: bool = False, command: str = ""
) -> tuple[Path, list[list[str]]]:
    """Write the report as `write_report`; returns its page and the verdict of each study."""
    folders = [paths] if isinstance(paths, str | Path) else list(paths)
    if not folders:
        raise ResultsError("no results folder given")
    studies = [load(folder) for folder in folders]  # before any folder is made, so that a mistyped path leaves none
    own = [study.path / "report" for study in studies]
    if len(studies) > 1 and out_dir is None:
        raise ResultsError("several studies need a folder for their common report; for example --out results/compared")
    out = own[0] if out_dir is None else Path(out_dir)
    if len(studies) > 1 and out.resolve() in [each.resolve() for each in own]:
        raise ResultsError(f"{out}: holds the report of one study alone; give another folder for that of several")
    if all(study.trials.empty for study in studies):
        raise ResultsError(f"{folders[0]}: no trial has ended yet; `study status {folders[0]}` shows the progress")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    known = [(study, table, compare(study, table)) for study in studies for table in [cells(study)]]
    prefixes = ["" if len(folders) == 1 else f"{number}-" for number in range(1, len(folders) + 1)]
    several = _across(studies, [_once(*each) for each in known], out, pdf) if len(studies) > 1 else None
    sections = [_section(*each, out, prefix, pdf) for each, prefix in zip(known, prefixes, strict=True)]
    parts = [figures for section in sections for figures in section["figures"].values()]
    number(figure for figures in ([several["figures"]] if several else []) + parts for figure in figures)
    command = command or shlex.join(["study", "report", *map(str, folders)])
    page = render("report.html.j2", sections=sections, across=several, command=command, of=_fingerprint(studies))
    write_file(out / "index.html", page.encode())
    return out / "index.html", [section["verdict"] for section in sections]


def kept_report(folder: Path) -> tuple[Path, list[list[str]]] | None:
    """The page of a study and its verdict, as `report` returns them, if it is whole and up to date; None otherwise."""
    file = folder / "report" / "index.html"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if not text.rstrip().endswith("</html>") or FAILED in text or not (file.parent / "figures").is_dir():
        return None
    study = load(folder)
    if _fingerprint([study]) not in text[:200]:
        return None
    table = cells(study)
    return file, [verdict(study, table, compare(study, table))]


def _fingerprint(studies: Sequence[Results]) -> Markup:
    """An attribute of a page that tells what it was made from: spec, trials and whether the study had finished."""
    made = list[str]()
    with suppress(metadata.PackageNotFoundError):  # where the code came to a cluster with the job
        made.append(metadata.version("optimizer-study"))
    for study in studies:
        ran = [each.trials for each in (study, study.confirmation) if each is not None]
        made += [study.spec_text, str(bool(study.provenance.get("finished")))]
        made += [trials[["trial", "started", "wall_seconds"]].to_json(double_precision=15) for trials in ran]
    return Markup('data-of="{}"').format(digest("\n".join(made).encode()))


def number(figures: Iterable[dict[str, Any]]) -> None:
    """Number the figures that are shown, in the order of the page."""
    for place, figure in enumerate((figure for figure in figures if figure["image"]), start=1):
        figure["number"] = place


def render(template: str, **values: Any) -> str:
    """The page of a template of `templates/` with some values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = whole
    return environment.get_template(template).render(
        dark_rules=Markup(dark_rules()), print_zoom=86 / SCREEN_DPI, **values
    )


def whole(text: str) -> Markup:
    """A text in which no line ends within a number; browsers end them after the hyphen of 1e-4."""
    return Markup(re.sub(r"\S*\de-\d\S*", r'<span class="whole">\g<0></span>', str(escape(text))))


def _once(results: Results, table: pd.DataFrame, compared: Comparison) -> Comparison:
    """The comparison at the first look."""
    return compared if compared.most_looks == 1 else compare(results, table, once=True)


def _across(studies: Sequence[Results], compared: Sequence[Comparison], out: Path, pdf: bool) -> dict[str, Any]:
    """The values of the template for several studies together."""
    repeated = repetitions(studies)
    kept = [study for place, study in enumerate(studies) if place not in repeated]
    comparisons = [each for place, each in enumerate(compared) if place not in repeated]
    shown = {"figures": [across_studies(kept).save(out, "", pdf=pdf)], "warnings": list(repeated.values())}
    if len(kept) < 2:
        return shown | {"verdict": ["Not compared: fewer than two different studies."], "table": None}
    try:
        joint = across(kept, comparisons)
    except ValueError as error:
        return shown | {"verdict": [f"Not compared: {error}."], "table": None}
    shown["table"] = saved(tables.across(joint, kept[0].metric), out, "")
    return shown | {"verdict": verdict_across(joint, kept, comparisons)}


def _section(
    results: Results, table: pd.DataFrame, compared: Comparison, out: Path, prefix: str, pdf: bool
) -> dict[str, Any]:
    """The values of the template for one study."""
    curse, figures = winners_curse(results, table), dict[str, list[dict[str, Any]]]()
    shown = {name: saved(each, out, prefix) for name, each in tables_of(results, table, compared, curse).items()}
    for part, figure in figures_of(results, table, compared):
        figures.setdefault(part, []).append(figure.save(out, prefix, pdf=pdf))
    leaderboard = f"figures/{prefix}cells.csv"
    write_file(out / leaderboard, table.to_csv(index=False).encode())
    return {
        **shown,
        "id": prefix.rstrip("-") or "study",
        "name": results.name,
        "description": str(results.spec.get("description", "")),
        "verdict": verdict(results, table, compared),
        "confirmation": confirmation(results, curse),
        "course": course(results),
        "outcomes": tables.outcomes(results),
        "busy": tables.use(results),
        "failures": tables.failures(results),
        "events": tables.events(results),
        "metric": results.metric,
        "unit": unit_of(results),
        "leaderboard_file": leaderboard,
        "cells": len(rank(table, results.maximize)),
        "seconds": results.seconds_label,
        "several": len(results.objectives) > 1,
        "target": results.target is not None,
        "scaling": scaling(results),
        "figures": figures,
        "warnings": warnings(results, table, curse),
        "spec": results.spec_text,
        "provenance": tables.provenance(results),
    }


def course(results: Results) -> list[str]:
    """Progress and cost of the study: state, trials, processor time, use of the workers, grown grids."""
    trials, provenance = results.trials, results.provenance
    planned = table_of(results.spec, "budget").get("trials")
    of = f" of {planned}" if isinstance(planned, int) else ""
    lines = [f"{results.ended}{of} trials have ended, with {len(results.lanes):,} lanes (learning rates x seeds)."]
    started = f"Started {tables.when(provenance.get('started'))}"
    if results.timed_out:
        lines[0] += f" The search {results.timed_out}."
    if provenance.get("finished"):
        lines.append(f"{started}, finished {tables.when(provenance['finished'])}.")
    elif provenance.get("started"):
        lines.append(f"{started} and not finished: it is running or was interrupted.")
    else:
        lines.append("Whether it is still running is not recorded.")
    lines.append(
        f"The trials ran for {duration(float(trials['wall_seconds'].sum()))} in total, "
        f"{duration(float(trials['stack_seconds'].sum()))} of which was training. The study took {study_cost(results)}"
        f"{', including the confirmation' if results.confirmation else ''}."
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
    added = results.pooled.trials.groupby("cell")[["extensions", "refinements"]].max() > 0
    if added["extensions"].any():
        some = counted(int(added["extensions"].sum()), "cell")
        lines.append(f"The learning-rate grid of {some} was extended, because its best rate lay on the edge.")
    if added["refinements"].any():
        some = counted(int(added["refinements"].sum()), "cell")
        lines.append(
            f"The learning-rate grid of {some} was refined around its best rate, because its spacing could cost more "
            f"than the seeds' scatter."
        )
    return lines


def scaling(results: Results) -> list[str]:
    """The critical batch size of each optimizer for which it can be fitted."""
    fits = batch_scaling(steps_to_target(results))
    lines = [
        f"No critical batch size of {listing(own['optimizer'])}: {reason}."
        for reason, own in fits[fits["reason"] != ""].groupby("reason")
    ]
    for row in records(fits[fits["reason"] == ""]):
        limits = f"[{short(row['low'])}, {short(row['high'])}]" if row["n"] > 1 else "(one seed, no interval)"
        lines.append(
            f"Critical batch size of {row['optimizer']}: {short(row['critical'])} {limits}, above which larger batches "
            f"save few updates; the target takes at least {short(row['smallest_steps'])} updates and at least "
            f"{short(row['smallest_examples'])} examples."
        )
    return lines
