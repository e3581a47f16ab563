"""Figures and tables for a paper: at the width of a column or slide, tables as LaTeX with booktabs and as CSV."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.cells import cells, rank
from analysis.comparisons import Comparison, compare, winners_curse
from analysis.figures.exhibit import write_file
from analysis.figures.registry import figures_of
from analysis.figures.style import millimetres
from analysis.report import tables
from analysis.report.tables import Cell, Table
from analysis.results import Results, load
from analysis.schema import ResultsError

_LATEX = {each: f"\\{each}" for each in ("&", "%", "$", "#", "_", "{", "}")} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "∞": r"$\infty$",
    "\N{EN DASH}": "--",
    "…": r"\ldots{}",
    "<": "$<$",
    ">": "$>$",
}


def write_figures(path: str | Path, width: str | float = "icml", out_dir: str | Path | None = None) -> list[Path]:
    """Write the figures and tables of a study for a paper.

    Args:
        path: a results folder, or its URI.
        width: icml, neurips, ieee or beamer, or a width such as 85mm or 3.25in; a number is in millimetres.
        out_dir: where to write; by default `paper/` in the results folder, or in its local copy.

    Returns:
        The files: each figure with data as PDF, SVG and CSV in `figures/`; each table as TeX and CSV in `tables/`.

    Raises:
        ResultsError: if the folder cannot be read as results, or no trial has ended.
        ValueError: if the width is none.
    """
    wide, results = millimetres(width), load(path)
    if results.trials.empty:
        raise ResultsError(f"{path}: no trial has ended yet; `study status {path}` shows the progress")
    out, table = Path(out_dir or results.path / "paper"), cells(results)
    compared = compare(results, table)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for _, figure in figures_of(results, table, compared):
        figure.save(out, "", pdf=True, width=wide)
    for shown in tables_of(results, table, compared, winners_curse(results, table)).values():
        saved(shown, out, "")
    return sorted(file for folder in ("figures", "tables") for file in (out / folder).glob("*.*"))


def tables_of(
    results: Results, table: pd.DataFrame, compared: Comparison, curse: pd.DataFrame
) -> dict[str, Table | None]:
    """The tables of a study's results, from its cells, `compare` and `winners_curse`; None for one without rows."""
    metric, has_settings = results.metric, bool((table["settings"] != "").any())
    return {
        "comparisons": tables.compared(compared, metric, has_settings),
        "confirmed": tables.confirmed(results, curse, has_settings),
        "regimes": tables.compared(compare(results, table, "regime"), metric, has_settings, by="regime"),
        "times": tables.times(results, table),
        "recipes": tables.recipes(results, table),
        "leaderboard": tables.leaderboard(results, rank(table, results.maximize), has_settings),
        "front": tables.front(results, table, has_settings),
    }


def saved(shown: Table | None, out: Path, prefix: str) -> Table | None:
    """Write a table as TeX and CSV to `out/tables`; returns it with the files."""
    if shown is None:
        return None
    (out / "tables").mkdir(exist_ok=True)
    name = prefix + re.sub(r"[^a-z0-9]+", "-", shown.label.lower()).strip("-")
    files = {"TeX": f"tables/{name}.tex", "CSV": f"tables/{name}.csv"}
    write_file(out / files["TeX"], latex(shown).encode())
    write_file(out / files["CSV"], _frame(shown).to_csv(index=False).encode())
    return replace(shown, files=files)


def latex(shown: Table) -> str:
    """A table as LaTeX, for the package booktabs; the best rows are bold, smaller texts follow in brackets or small."""
    align = "".join("l" if place in shown.text else "r" for place in range(len(shown.head)))
    rows = [
        " & ".join(_in_latex(cell, bold=number in shown.best) for cell in row) + r" \\"
        for number, row in enumerate(shown.rows)
    ]
    head = " & ".join(map(_escaped, shown.head)) + r" \\"
    lines = [f"% {shown.caption}", rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _in_latex(cell: Cell, *, bold: bool) -> str:
    main, below = (cell, "") if isinstance(cell, str) else cell
    text = _escaped(main)
    text = rf"\textbf{{{text}}}" if bold and text else text
    return rf"{text} {{\scriptsize {_escaped(below)}}}" if below else text


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(each, each) for each in text)


def _frame(shown: Table) -> pd.DataFrame:
    """The texts of a table, the smaller ones in columns of their own."""
    columns: dict[str, list[str]] = {}
    for place, name in enumerate(shown.head):
        pairs = [(cell, "") if isinstance(cell, str) else cell for cell in (row[place] for row in shown.rows)]
        columns[name] = [main for main, _ in pairs]
        if any(below for _, below in pairs):
            columns[f"{name}, below"] = [below for _, below in pairs]
    return pd.DataFrame(columns)
