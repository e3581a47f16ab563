"""Studies that belong together: each in a folder of its own, run as far as it has not been."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import search
from study.errors import SpecError
from study.results.provenance import read_provenance
from study.spec.compare import fixed_settings
from study.spec.model import Spec, read

if TYPE_CHECKING:
    from study.cluster.ray import Cluster
    from study.progress.display import Show


@dataclass(frozen=True)
class Parts:
    """What came of some studies.

    Attributes:
        folders: results folder of each that has finished, in the order asked for.
        interrupted: name of the one that was interrupted; empty if none was.
    """

    folders: list[Path]
    interrupted: str


def finish(
    studies: Sequence[tuple[Spec, Path]],
    on: Callable[[Spec], Cluster],
    *,
    command: str,
    show: Show = "auto",
    say: Callable[[str], None] = print,
) -> Parts:
    """Run what is left of some studies, on one Ray.

    Args:
        studies: specs, each with the folder below which its results folder is to be.
        on: of `search.one_ray`.
        command: as for `search.run`.
        show: likewise.
        say: prints a line.
    """
    places = [place(spec, parent) for spec, parent in studies]
    left = []
    for (spec, parent), (folder, finished) in zip(studies, places, strict=True):
        if finished:
            say(f"{parent.name}: {spec.name} is done already, in {folder}")
        else:
            left.append((spec, folder))
    outcomes = search.run_all(left, on, command=command, show=show)
    ended = {outcome.folder for outcome in outcomes if not outcome.interrupted}
    whole = [folder for folder, finished in places if finished or folder.absolute() in ended]
    return Parts(whole, next((spec.name for spec, folder in left if folder.absolute() not in ended), ""))


def place(spec: Spec, parent: Path) -> tuple[Path, bool]:
    """Where a study runs: the first of NAME, NAME-2 ... that holds no other spec; and whether it has finished there.

    A folder whose spec cannot be read is left as it is.
    """
    for number in itertools.count(1):
        folder = parent / (spec.name if number == 1 else f"{spec.name}-{number}")
        if not (folder / "spec.toml").is_file():
            return folder, False
        with suppress(SpecError):
            if _key(read(folder / "spec.toml")) == _key(spec):
                return folder, bool(read_provenance(folder).get("finished"))
    raise AssertionError("unreachable")


def _key(spec: Spec) -> Any:
    """All of a spec by which its numbers could differ."""
    return fixed_settings(spec), spec.budget.trials, spec.confirm
