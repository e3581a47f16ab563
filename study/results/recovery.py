"""Repairs a results folder before a study is resumed in it.

Optuna's storage lists the trials, and the tables hold their results. After a crash, unfinished files are deleted,
damaged ones are moved aside, trials that ended unknown to Optuna are ended there, and those whose rows were lost run
again. Ray Tune's snapshots are not used.
"""

from __future__ import annotations

import itertools
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

from analysis.results import parts
from analysis.schema import FOLDERS, TABLES, Outcome
from study.results.tables import Table
from study.tuning import JOURNAL, compat
from study.tuning.samplers import fixed
from study.tuning.searcher import STATES
from study.tuning.space import Space
from study.tuning.storage import values
from trainables import storage


@dataclass
class State:
    """Progress of a study."""

    rows: dict[int, dict[str, Any]]  # rows of the trials table, of trials that have ended, by number
    redo: list[int] = field(default_factory=list)  # trials that ended in Optuna's storage, but whose rows were lost
    begun: list[int] = field(default_factory=list)  # trials that have begun and not ended


def repair_files(folder: Path, say: Callable[[str], None]) -> None:
    """Delete unfinished files and move damaged ones aside: table parts, and the journal.

    A journal whose last line is incomplete loses that line, which nothing depends on yet. A journal with a damaged line
    is moved aside; `reconcile` then fills a new one from the tables.
    """
    for name in FOLDERS.values():
        for unfinished in (folder / name).glob("*.tmp"):
            unfinished.unlink()
        for _, _, file in parts(folder / name):
            if message := _damage(file):
                aside = _move_aside(folder, file)
                say(f"{file} is damaged ({message}); moved to {aside}. The trials it held run again")
    journal = folder / JOURNAL
    # A driver that was killed while writing leaves its lock, for which Optuna would wait.
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
            say(
                f"{journal}: line {number} is damaged; moved to {aside}. Optuna's storage is made again from the tables"
            )
            return


def _damage(file: Path) -> str | None:
    """Why a part cannot be read, or None."""
    try:
        pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        return str(error).splitlines()[0]
    return None


def _move_aside(folder: Path, file: Path) -> Path:
    damaged, prefix = folder / "damaged", "" if file.parent == folder else f"{file.parent.name}-"
    damaged.mkdir(exist_ok=True)
    names = (f"{number}-{file.name}" if number > 1 else f"{prefix}{file.name}" for number in itertools.count(1))
    aside = next(damaged / name for name in names if not (damaged / name).exists())
    shutil.move(file, aside)
    return aside


def reconcile(study: optuna.Study, space: Space, folder: Path) -> State:
    """Make Optuna's storage and the tables agree.

    Afterwards every trial in the storage has ended or waits to run, and the tables hold only rows of ended trials.
    """
    tables = {name: Table(name, folder) for name in TABLES}
    rows, incomplete = _rows(folder, predictions=space.spec.recording.predictions)
    known = study.get_trials(deepcopy=False)
    ended = {
        number: row
        for number, row in rows.items()
        if row["outcome"] != Outcome.INTERRUPTED and number not in incomplete
    }
    for number in range(len(known), max(ended, default=-1) + 1):
        # The storage lost trials; those without rows are suggested again.
        study.add_trial(_frozen(study, space, ended[number]) if number in ended else _placeholder(space, number))
    state = State(ended)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            if trial.number not in ended:
                state.redo.append(trial.number)
        elif trial.number in ended:
            compat.end_as(study, trial, _frozen(study, space, ended[trial.number]))
        else:
            if trial.state == TrialState.RUNNING or trial.user_attrs:
                state.begun.append(trial.number)
            compat.set_waiting(study, trial)
    if gone := (set(rows) | incomplete) - set(ended):
        for table in tables.values():
            table.drop(gone)
    # A stopped trial whose rows were lost starts again: its checkpoint may lie beyond the point where it stops.
    needed = {
        space.checkpoint(trial.number)
        for trial in study.get_trials(deepcopy=False)
        if trial.number not in ended and "stopped" not in trial.user_attrs
    }
    for name in storage.names(space.checkpoints):
        # Left by a crash before it was deleted, or unfinished.
        if (place := storage.join(space.checkpoints, name)) not in needed:
            storage.delete(place)
    return state


def _rows(folder: Path, *, predictions: bool) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The rows of the trials table by number, and the trials with rows in some tables only.

    Completed trials have predictions too, if the spec records them.
    """
    pieces = [pq.read_table(file) for _, _, file in parts(folder / FOLDERS["trials"])]
    rows = {row["trial"]: row for piece in pieces for row in piece.to_pylist()}
    held = {name: _trials_in(folder, name) for name in ("lanes", "curves", "predictions")}
    # A trial that failed before its first report has neither lanes nor curves.
    lacking = {number for number, row in rows.items() if row["lanes"] and number not in held["lanes"] & held["curves"]}
    if predictions:
        completed = {number for number, row in rows.items() if row["outcome"] == Outcome.COMPLETED}
        lacking |= completed - held["predictions"]
    return rows, lacking | (set().union(*held.values()) - set(rows))


def _trials_in(folder: Path, name: str) -> set[int]:
    files = [file for _, _, file in parts(folder / FOLDERS[name])]
    return {number for file in files for number in pq.read_table(file, columns=["trial"])["trial"].unique().to_pylist()}


def _placeholder(space: Space, number: int) -> FrozenTrial:
    """A waiting trial without a cell, but for the entries that no sampler chooses."""
    entries = fixed(space.spec, number)
    attributes = {"fixed_params": entries} if entries else {}
    return optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=attributes)


def _frozen(study: optuna.Study, space: Space, row: dict[str, Any]) -> FrozenTrial:
    """Optuna's record of an ended trial."""
    cell, reported = space.cell_of(row), row.get("reported") or []
    distributions, state = space.distributions(cell, row["trial"]), STATES[Outcome(row["outcome"])]
    # With several objectives Optuna allows no intermediate values.
    several = len(study.directions) > 1
    reports = {part: value for part, value in enumerate(reported, start=1) if value is not None and not several}
    scores = values(space.spec.tuning.objectives, row) if state == TrialState.COMPLETE else None
    if state == TrialState.PRUNED and reports:
        scores = [reports[max(reports)]]
    attributes = {"outcome": row["outcome"], "replicate": row.get("replicate") or 0}
    if row["outcome"] == Outcome.STOPPED:
        attributes["stopped"] = len(reported)
    if row["error"]:
        attributes["error"] = row["error"].strip().splitlines()[-1]
    return optuna.trial.create_trial(
        state=state,
        values=scores,
        params={name: cell[name] for name in distributions},
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=reports,
    )
