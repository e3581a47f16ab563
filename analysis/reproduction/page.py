"""The page of all experiments that have been run in a folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from analysis.figures.exhibit import write_file
from analysis.report.page import render
from analysis.reproduction.claims import Measured, Section, section, source
from analysis.reproduction.layers import layers
from analysis.reproduction.linear import cubic_linear, linear
from analysis.reproduction.mlp import mlp
from analysis.reproduction.mnist import is_whole, mnist
from analysis.reproduction.regimes import regimes
from analysis.results import Results, load
from analysis.schema import ResultsError
from analysis.text import duration

EXPERIMENTS: dict[str, Callable[[Mapping[str, Results]], Measured] | None] = {
    "linear": linear,
    "cubic-linear": cubic_linear,
    "mlp": mlp,
    "regimes": regimes,
    "mnist": None,  # reads studies of its own, see `analysis.reproduction.mnist`
    "layers": layers,
}
"""The experiments in the order of the page, with the functions that measure their results."""


def specs_of(experiment: str) -> list[str]:
    """The specs that an experiment runs."""
    return list(source()[experiment].get("specs", []))


def run_of(out: Path, experiment: str, spec: str) -> tuple[Path, int] | None:
    """The results folder of a spec that the page shows, and its epochs (0 if its budget is in another unit).

    Of all runs that have finished below OUT/EXPERIMENT this is the longest, of these that of most lanes, then the
    newest. ValueError if there is none and a spec or its provenance is damaged.
    """
    runs, damaged = [], None
    for file in out.glob(f"{experiment}/{spec}*/spec.toml"):
        try:
            own = tomllib.loads(file.read_text(encoding="utf-8"))
            finished = json.loads((file.parent / "provenance.json").read_text(encoding="utf-8")).get("finished")
            size = int(own["budget"].get("epochs") or 0), own["budget"]["trials"] * own["lanes"]["seeds"]
        except (ValueError, KeyError) as error:
            damaged = error
            continue
        if own["name"] == spec and finished:
            runs.append((*size, finished, file.parent))
    if damaged and not runs:
        raise ValueError(str(damaged))
    return (max(runs)[-1], max(runs)[0]) if runs else None


def sections(out: Path) -> tuple[list[Section], list[str]]:
    """The sections of all experiments that have been run in a folder, and the reasons why others are missing."""
    made, troubles = [], []

    @cache
    def loaded(experiment: str, spec: str) -> Results | None:
        if (run := run_of(out, experiment, spec)) is None:
            return None
        results = load(run[0])
        if not (results.lanes["outcome"] == "completed").any():
            raise ResultsError(f"{run[0]}: no lane has completed; `study status` says why")
        return results

    def also(spec: str) -> Results | None:
        try:
            return loaded(spec, spec)
        except Exception:  # noqa: BLE001  reported where its own section would be
            return None

    for name, measure in EXPERIMENTS.items():
        try:
            if measure is None:
                measured = mnist(out) if is_whole(out) else None
            else:
                parts = {spec: loaded(name, spec) for spec in specs_of(name)}
                whole = all(part is not None for part in parts.values())
                parts |= {spec: also(spec) for spec in source()[name].get("also", [])}
                measured = measure({spec: part for spec, part in parts.items() if part}) if whole else None
            if measured is not None:
                made.append(section(name, measured))
        except Exception as error:  # noqa: BLE001  damaged files may raise anything
            reason = f"{type(error).__name__}: {error}"
            troubles.append(f"{name}: left out, its files in {out / name} are damaged ({reason})")
    return made, troubles


def write_page(out: Path, command: str = "", say: Callable[[str], None] = print) -> Path | None:
    """Write the page of all experiments that have been run in a folder, with figures in `figures/`.

    `say` prints the reasons why experiments are missing, which the page shows too. Returns the path of `index.html`;
    None if there is nothing to show yet.
    """
    made, troubles = sections(out)
    for trouble in troubles:
        say(trouble)
    if not made and not troubles:
        return None
    (out / "figures").mkdir(parents=True, exist_ok=True)
    page = render(
        "reproduction.html.j2",
        sections=[_shown(each, out) for each in made],
        total=duration(sum(each.seconds for each in made)),
        troubles=troubles,
        source=source()["source"],
        command=command or "study reproduce",
    )
    write_file(out / "index.html", page.encode())
    return out / "index.html"


def _shown(section: Section, out: Path) -> dict[str, Any]:
    """The values of the template for a section."""
    verdicts = [claim.verdict for claim in section.claims]
    return vars(section) | {
        "figures": [figure.save(out, "", pdf=True) for figure in section.figures],
        "time": duration(section.seconds),
        "counts": [verdicts.count(verdict) for verdict in ("agrees", "differs", "not checked")],
    }
