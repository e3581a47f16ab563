"""The page of all experiments that have been run in a folder."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from analysis.exhibits import write_file
from analysis.report import environment
from analysis.reproduction.layers import layers
from analysis.reproduction.linear import cubic_linear, linear
from analysis.reproduction.mlp import mlp
from analysis.reproduction.mnist import is_whole, mnist
from analysis.reproduction.regimes import regimes
from analysis.reproduction.section import Section, completed, duration, printed
from analysis.results import Results, ResultsError, load

PARTS = "reproduction.json"
"""File of OUT: spec name -> its results folder within OUT."""


@dataclass(frozen=True)
class Experiment:
    """An experiment whose section is made from ordinary results.

    Attributes:
        specs: that it needs.
        make: its section, from those specs' results.
        also: specs of other experiments, whose results it uses if they are there.
    """

    specs: tuple[str, ...]
    make: Callable[[Mapping[str, Results]], Section] = field(repr=False)
    also: tuple[str, ...] = ()


SECTIONS: dict[str, Experiment | None] = {
    "linear": Experiment(("linear-by-hand", "linear"), linear),
    "cubic-linear": Experiment(("cubic-linear",), cubic_linear),
    "mlp": Experiment(("mlp-64-32",), mlp, also=("cubic-linear", "layers")),
    "regimes": Experiment(("regimes", "regimes-tuned"), regimes),
    "mnist": None,  # made of studies of its own, see `analysis.reproduction.mnist`
    "layers": Experiment(("layers",), layers),
}
"""The experiments in the order of the page."""


def folders_in(out: Path) -> dict[str, str]:
    """Spec name -> its results folder within a reproduction's folder, as `PARTS` has it; nothing if that is damaged."""
    try:
        found = json.loads((out / PARTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: folder for name, folder in found.items() if isinstance(folder, str)}


def sections(out: Path) -> tuple[list[Section], list[str]]:
    """The sections of what has been run in a folder, in order, and what keeps others from being made."""
    folders, found, troubles = folders_in(out), [], []

    @cache
    def loaded(spec: str) -> Results:
        results = load(out / folders[spec])
        if completed(results).empty:
            raise ResultsError(f"{out / folders[spec]}: no lane has completed; `study status` says why")
        return results

    for name, experiment in SECTIONS.items():
        try:
            if experiment is None:
                if is_whole(out):
                    found.append(mnist(out))
            elif all(spec in folders for spec in experiment.specs):
                parts = {spec: loaded(spec) for spec in experiment.specs}
                for spec in experiment.also:
                    # What is wrong with it is told where its own section would be.
                    with suppress(Exception):
                        parts[spec] = loaded(spec)
                found.append(experiment.make(parts))
            else:
                for file in sorted(out.glob(f"{name}/*/spec.toml")):
                    tomllib.loads(file.read_text(encoding="utf-8"))  # a run is not listed whose spec is damaged
        except Exception as error:  # noqa: BLE001  files that are not as they were written may raise anything
            troubles.append(
                f"{name}: left out, its files in {out / name} are damaged ({type(error).__name__}: {error})"
            )
    return found, troubles


def write_page(out: Path, command: str = "", say: Callable[[str], None] = print) -> Path:
    """Write the page of all experiments that have been run in a folder.

    Args:
        out: the folder; figures go to `figures/` in it.
        command: that made it.
        say: is told what keeps experiments off the page; it says so too.

    Returns:
        The path of `index.html`.
    """
    made, troubles = sections(out)
    for trouble in troubles:
        say(trouble)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    shown = [_shown(section, out) for section in made]
    counts = [(section.name, section.title, *_verdicts(section), duration(section.seconds)) for section in made]
    total = duration(sum(section.seconds for section in made if math.isfinite(section.seconds)))
    page = (
        environment()
        .get_template("reproduction.html.j2")
        .render(
            sections=shown,
            counts=counts,
            total=total,
            troubles=troubles,
            source=printed()["source"],
            command=command or "study reproduce",
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
