"""Gives the sampler the completed trials of an earlier study of the same workload, which are not results of this one.

They are copied into the results folder when the study begins: what is resumed sees the same, whatever became of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from analysis import results
from analysis.schema import Outcome, ResultsError, seal, unseal
from study.errors import SpecError, StorageError
from study.spec import Spec
from study.spec.changes import differences, fixed_settings
from study.tuning import compat
from study.tuning.space import Cell, Space
from study.tuning.storage import values
from trainables.storage import write_text

FILE = "warm_start.json"


@dataclass(frozen=True)
class Known:
    """The trials of an earlier study that lie in the space of this one."""

    completed: int = 0  # trials of it that completed
    cells: tuple[Cell, ...] = ()  # of those in the space, in their order
    values: tuple[list[float], ...] = ()  # of the same; several values if there are several objectives
    # settings of [lanes] by which its values may be better or worse than ours of the same cells
    lanes: tuple[str, ...] = ()


def read(spec: Spec) -> Known:
    """What the study that a spec names as `tuning.warm_start` knows; nothing if it names none.

    Raises:
        SpecError: if there is no such study, it has another workload or budget, or no trial of it lies in the space.
    """
    place = spec.tuning.warm_start
    if place is None:
        return Known()
    key = f"tuning.warm_start = {place}"
    try:
        earlier = results.load(place)
    except ResultsError as error:
        raise SpecError(key, str(error)) from error
    recorded = results.table_of(earlier.provenance, "spec")
    both = [recorded, fixed_settings(spec)]
    theirs, ours = (
        {name: value for name, value in each.items() if name.split(".")[0] in ("workload", "budget")} for each in both
    )
    if not theirs:
        raise SpecError(key, "its provenance.json records no settings; give a study of a newer version")
    # A key that is not recorded is one that a later version has added.
    if changed := differences(theirs, {name: value for name, value in ours.items() if name in theirs}):
        advice = "its values do not compare with those of this study"
        raise SpecError(key, [f"has {name} = {old}, not {new}; {advice}" for name, (old, new) in changed.items()])
    completed = earlier.trials[earlier.trials["outcome"] == Outcome.COMPLETED]
    rows = results.records(completed.fillna({"settings": ""}))
    pairs = [(cell, values(spec.tuning.objectives, row)) for row in rows if (cell := _cell(spec, row))]
    if not pairs:
        raise SpecError(key, f"none of its {len(rows)} completed trials has a cell of this search; leave it out")
    aside = ("lanes.engine", "lanes.seeds")
    lanes = ({key: each[key] for key in each if key.startswith("lanes.") and key not in aside} for each in both)
    told = tuple(f"{key} {old}, not {new}" for key, (old, new) in differences(*lanes).items())
    cells, scores = zip(*pairs, strict=True)
    return Known(len(rows), cells, scores, told)


def _cell(spec: Spec, row: dict[str, Any]) -> Cell | None:
    """The cell of a row of an earlier trials table; None if it is not a cell of the spec."""
    cell = Space(spec, "", "").cell_of(row)
    dimensions = spec.dimensions() | spec.search.settings_of(cell["optimizer"])
    fits = cell.keys() == dimensions.keys() and all(cell[name] in dimensions[name] for name in dimensions)
    return cell if fits else None


def write(folder: Path, known: Known) -> None:
    """Keep in a results folder what the sampler starts with, if it is anything."""
    if known.cells:
        write_text(folder / FILE, seal(vars(known)))


def warmed(study: optuna.Study, space: Space, folder: Path) -> optuna.Study:
    """A study whose sampler knows what `write` has kept; the study itself if the spec names no earlier one.

    Raises:
        StorageError: if the file cannot be read.
    """
    if space.spec.tuning.warm_start is None:
        return study
    file = folder / FILE
    try:
        known = Known(**unseal(file))
    except (OSError, ValueError, TypeError) as error:
        advice = "restore it from a copy, or remove tuning.warm_start from spec.toml"
        message = f"the earlier trials of the warm start cannot be read ({error}); {advice}"
        raise StorageError(str(file), message) from error
    trials = []
    for cell, scores in zip(known.cells, known.values, strict=True):
        distributions = space.distributions(cell, 0)
        params = {name: cell[name] for name in distributions}
        trials.append(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE, values=scores, params=params, distributions=distributions
            )
        )
    return compat.with_earlier(study, trials)
