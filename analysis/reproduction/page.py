"""The page of all experiments that have been run in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from analysis.figures.exhibit import write_file
from analysis.report.page import number, render
from analysis.reproduction.claims import Measured, Truth, section, source
from analysis.reproduction.layers import layers
from analysis.reproduction.linear import cubic_linear, linear
from analysis.reproduction.mlp import mlp
from analysis.reproduction.mnist import mnist
from analysis.reproduction.regimes import regimes
from analysis.results import Results, load, read_provenance
from analysis.schema import ResultsError
from analysis.text import duration

EXPERIMENTS: dict[str, Callable[[Mapping[str, Results], Truth], Measured | None]] = {
    "linear": linear,
    "cubic-linear": cubic_linear,
    "mlp": mlp,
    "regimes": regimes,
    "mnist": mnist,
    "layers": layers,
}
"""The experiments in the order of the page, with the functions that measure their results."""


def specs_of(experiment: str) -> list[str]:
    """The studies without which an experiment is not shown; they run in OUT/EXPERIMENT/NAME."""
    return list(source()[experiment]["specs"])


def sections(out: Path, truth: Truth) -> tuple[list[dict[str, Any]], list[str]]:
    """The sections of all experiments that have been run in a folder, and the reasons why others are missing."""
    made, troubles = [], []
    for name, measure in EXPERIMENTS.items():
        try:
            places = [f"{name}/{spec}" for spec in specs_of(name)] + source()[name].get("also", [])
            runs = {Path(place).name: run for place in places if (run := run_of(out / place))}
            measured = measure(runs, truth) if runs.keys() >= set(specs_of(name)) else None
            if measured is not None:
                made.append(section(name, measured))
        except Exception as error:  # noqa: BLE001  damaged files may raise anything
            reason = f"{type(error).__name__}: {error}"
            troubles.append(f"{name}: left out, its files in {out / name} are damaged ({reason})")
    return made, troubles


def run_of(folder: Path) -> Results | None:
    """The study in a folder, if it has finished; ResultsError if it is damaged or no lane has completed."""
    if not read_provenance(folder).get("finished"):
        return None
    results = load(folder)
    if not (results.lanes["outcome"] == "completed").any():
        raise ResultsError(f"{folder}: no lane has completed; `study status` says why")
    return results


def write_page(out: Path, truth: Truth, command: str = "", say: Callable[[str], None] = print) -> Path | None:
    """Write the page of all experiments that have been run in a folder, with figures in `figures/`.

    `say` prints the reasons why experiments are missing, which the page shows too. Returns the path of `index.html`;
    None if there is nothing to show yet.
    """
    made, troubles = sections(out, truth)
    for trouble in troubles:
        say(trouble)
    if not made and not troubles:
        return None
    (out / "figures").mkdir(parents=True, exist_ok=True)
    drawn = [each | {"figures": [figure.save(out, "", pdf=True) for figure in each["figures"]]} for each in made]
    number(figure for each in drawn for figure in each["figures"])
    page = render(
        "reproduction.html.j2",
        sections=drawn,
        total=duration(sum(each["seconds"] for each in made)),
        troubles=troubles,
        source=source()["source"],
        command=command or "study reproduce",
    )
    write_file(out / "index.html", page.encode())
    return out / "index.html"
