"""Repairs a results folder before a study is resumed in it.

Optuna's storage says which trials there are and the tables what they gave; whatever was cut off between the two is put
right here: half-written files are removed, damaged ones moved aside, trials that had ended but were not yet told are
told, and those whose rows were lost are run again. Ray Tune's own snapshots are not needed and not read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from analysis.results import FOLDERS, TABLES, parts
from study.results.writer import Table
from study.tuning.searcher import STATES, values
from study.tuning.space import Space, fair_optimizer
from trainables import storage as files

JOURNAL = "optuna.journal"


@dataclass
class State:
    """How far a study is.

    Attributes:
        rows: the trials table's rows of trials that have ended, by number.
        redo: trials that Optuna knows the end of, but whose rows were lost.
        begun: trials that have begun and not ended.
    """

    rows: dict[int, dict[str, Any]]
    redo: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)


def repair_files(folder: Path, say: Callable[[str], None]) -> None:
    """Remove what was half written and move aside what is damaged: table parts, and the journal.

    A journal that lacks the end of its last line loses that line, which had not been acted upon. If a line in it is
    damaged, the whole is moved aside; `reconcile` then fills a new one from the tables.

    Args:
        folder: the results folder; no other process runs in it.
        say: is told what was found.
    """
    for name in FOLDERS.values():
        for unfinished in (folder / name).glob("*.tmp"):
            unfinished.unlink()
        for _, _, file in parts(folder / name):
            if message := _damage(file):
                aside = _move_aside(folder, file)
                say(f"{file} is damaged ({message}); moved to {aside}. The trials it held run again")
    journal = folder / JOURNAL
    # A driver that was killed while it wrote leaves its lock; Optuna would wait for it.
    for lock in folder.glob(f"{JOURNAL}.lock*"):
        lock.unlink()
    if not journal.exists():
        return
    *lines, rest = journal.read_bytes().split(b"\n")
    if rest:
        say(f"{journal}: the last line was cut off and is dropped")
        os.truncate(journal, journal.stat().st_size - len(rest))
    for number, line in enumerate(lines, start=1):
        try:
            fine = "op_code" in json.loads(line)
        except (ValueError, TypeError):
            fine = False
        if not fine:
            aside = _move_aside(folder, journal)
            say(f"{journal}: line {number} is damaged; moved to {aside}. Optuna's storage is made anew from the tables")
            return


def _damage(file: Path) -> str | None:
    """Why a part cannot be read, or None."""
    try:
        pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        return str(error).splitlines()[0]
    return None


def _move_aside(folder: Path, file: Path) -> Path:
    damaged = folder / "damaged"
    damaged.mkdir(exist_ok=True)
    aside = damaged / f"{file.parent.name if file.parent != folder else ''}{'-' * (file.parent != folder)}{file.name}"
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{number}-{file.name}")
    shutil.move(file, aside)
    return aside


def reconcile(study: optuna.Study, space: Space, folder: Path) -> State:
    """Bring Optuna's storage and the tables together.

    Afterwards every trial in the storage is in a final state or waits to be run, and every row of the tables is of a
    trial that has ended for good.

    Args:
        study: Optuna's.
        space: the cells.
        folder: the results folder.
    """
    tables = {name: Table(name, folder) for name in TABLES}
    rows, incomplete = _rows(folder, predictions=space.spec.recording.predictions)
    known = study.get_trials(deepcopy=False)
    ended = {
        number: row for number, row in rows.items() if row["outcome"] != "interrupted" and number not in incomplete
    }
    for number in range(len(known), max(ended, default=-1) + 1):
        # The storage was lost, or a part of it: trials that were not in the tables yet are asked for again.
        study.add_trial(_frozen(study, space, ended[number]) if number in ended else _placeholder(space, number))
    state = State(ended)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            if trial.number not in ended:
                state.redo.append(trial.number)
        elif trial.number in ended:
            _tell(study, space, trial, ended[trial.number])
        else:
            if trial.state == TrialState.RUNNING or trial.params:
                state.begun.append(trial.number)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    if gone := (set(rows) | incomplete) - set(ended):
        for table in tables.values():
            table.drop(gone)
    # A trial that was stopped and whose rows were lost begins anew: its checkpoint may be past where it is to end.
    going_on = {
        space.checkpoint(trial.number)
        for trial in study.get_trials(deepcopy=False)
        if trial.number not in ended and "stopped" not in trial.user_attrs
    }
    for name in files.names(space.checkpoints):
        # Of a trial that ended just before its checkpoint would have been removed, or half written.
        if (place := files.join(space.checkpoints, name)) not in going_on:
            files.delete(place)
    return state


def _rows(folder: Path, *, predictions: bool) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The rows of the trials table by number, and the trials that have rows in some tables only.

    Trials that completed have predictions too, if these are asked for.
    """
    pieces = [pq.read_table(file) for _, _, file in parts(folder / FOLDERS["trials"])]
    rows = {row["trial"]: row for piece in pieces for row in piece.to_pylist()}
    there = {name: _trials_in(folder, name) for name in ("lanes", "curves", "predictions")}
    # A trial that failed before its first report has neither lanes nor curves.
    lacking = {
        number for number, row in rows.items() if row["lanes"] and number not in there["lanes"] & there["curves"]
    }
    if predictions:
        lacking |= {number for number, row in rows.items() if row["outcome"] == "completed"} - there["predictions"]
    return rows, lacking | (set().union(*there.values()) - set(rows))


def _trials_in(folder: Path, name: str) -> set[int]:
    files = [file for _, _, file in parts(folder / FOLDERS[name])]
    return {number for file in files for number in pq.read_table(file, columns=["trial"])["trial"].unique().to_pylist()}


def _attributes(row: dict[str, Any]) -> dict[str, Any]:
    found = {"outcome": row["outcome"], "replicate": row.get("replicate") or 0}
    if row["outcome"] == "stopped":
        found["stopped"] = len(row.get("reported") or [])
    return found | ({"error": row["error"].strip().splitlines()[-1]} if row["error"] else {})


def _reports(study: optuna.Study, row: dict[str, Any]) -> dict[int, float]:
    """The intermediate values that a row's trial had; Optuna takes none where there are several objectives."""
    numbered = enumerate(row.get("reported") or [], start=1)
    return {} if len(study.directions) > 1 else {part: value for part, value in numbered if value is not None}


def _placeholder(space: Space, number: int) -> FrozenTrial:
    """A trial that waits for its cell, of which only a fair optimizer is known."""
    turn = fair_optimizer(space.spec, number)
    fixed = {"fixed_params": {"optimizer": turn}} if turn else {}
    return optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=fixed)


def _frozen(study: optuna.Study, space: Space, row: dict[str, Any]) -> FrozenTrial:
    """A trial that ended, as Optuna would have it."""
    cell = space.cell_of(row)
    distributions, state = space.distributions(cell), STATES[row["outcome"]]
    reports = _reports(study, row)
    told = values(space.spec.tuning.objectives, row) if state == TrialState.COMPLETE else None
    if state == TrialState.PRUNED and reports:
        told = [reports[max(reports)]]
    return optuna.trial.create_trial(
        state=state,
        values=told,
        params={name: cell[name] for name in distributions},
        distributions=distributions,
        user_attrs=_attributes(row),
        intermediate_values=reports,
    )


def _tell(study: optuna.Study, space: Space, trial: FrozenTrial, row: dict[str, Any]) -> None:
    """End a trial whose rows are on disk, but whose end Optuna was not told."""
    frozen, storage = _frozen(study, space, row), study._storage
    for name, distribution in frozen.distributions.items():
        if name not in trial.params:
            inside = distribution.to_internal_repr(frozen.params[name])
            storage.set_trial_param(trial._trial_id, name, inside, distribution)
    for part, value in frozen.intermediate_values.items():
        storage.set_trial_intermediate_value(trial._trial_id, part, value)
    for name, value in frozen.user_attrs.items():
        storage.set_trial_user_attr(trial._trial_id, name, value)
    storage.set_trial_state_values(trial._trial_id, state=frozen.state, values=frozen.values)
