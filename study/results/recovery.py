"""Repairs a results folder before a study is resumed in it.

Optuna's storage lists the trials, and the tables hold their results. After a crash, unfinished files are deleted,
damaged ones are moved aside, trials that ended unknown to Optuna are ended there, and those whose rows were lost run
again. Ray Tune's snapshots are not used.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from analysis.results import parts, read_rows
from analysis.schema import (
    FOLDERS,
    PART_NAME,
    PREVIOUS,
    PROVENANCE,
    ROWS,
    TABLES,
    DamagedError,
    Outcome,
    ResultsError,
    unseal,
)
from study.errors import StorageError
from study.results import CONFIRM
from study.results.tables import SUPERSEDED, Table
from study.tuning import JOURNAL, compat
from study.tuning.journal import damage
from study.tuning.samplers import fixed
from study.tuning.searcher import STATES
from study.tuning.space import Space
from study.tuning.storage import values
from trainables import storage

# What `Space.checkpoint` names, and what is left of one that was being written.
_CHECKPOINT = re.compile(r"trial-\d+\.pt(\..*tmp)?")


@dataclass
class State:
    """Progress of a study."""

    rows: dict[int, dict[str, Any]]  # rows of the trials table, of trials that have ended, by number
    redo: list[int] = field(default_factory=list)  # trials that ended in Optuna's storage, but whose rows were lost
    begun: list[int] = field(default_factory=list)  # trials that have begun and not ended


def repair_files(folder: Path, say: Callable[[str], None]) -> None:
    """Delete unfinished and merged files, and move damaged ones aside: parts of tables, and the journal.

    A journal whose last line is incomplete loses that line, which nothing depends on yet. A damaged journal is moved
    aside; `reconcile` then fills a new one from the tables. A StorageError if another version wrote a part.
    """
    for table, name in FOLDERS.items():
        for unfinished in (folder / name).glob("*.parquet*.tmp"):
            unfinished.unlink()
        while damages := [(file, why) for _, _, file in parts(folder / name) if (why := _damage(file, table))]:
            for file, why in damages:
                aside = move_aside(folder, file)
                say(f"{file} is damaged ({why}); moved to {aside}. The trials it held run again")
        kept = {file for _, _, file in parts(folder / name)}
        for merged in [file for file in (folder / name).glob("*.parquet") if PART_NAME.fullmatch(file.name)]:
            if merged not in kept:
                merged.unlink()
    journal = folder / JOURNAL
    # A driver that was killed while writing leaves its lock, for which Optuna would wait.
    for lock in folder.glob(f"{JOURNAL}.lock*"):
        lock.unlink()
    if not journal.exists():
        return
    if rest := journal.read_bytes().rpartition(b"\n")[2]:
        say(f"{journal}: the last line was cut off and is dropped")
        os.truncate(journal, journal.stat().st_size - len(rest))
    if why := damage(journal):
        aside = move_aside(folder, journal)
        say(f"{journal}: {why}; moved to {aside}. Optuna's storage is made again from the tables")


def repair_records(folder: Path, say: Callable[[str], None]) -> None:
    """Put the previous `provenance.json` in the place of a damaged one, of a study and of its confirmation.

    Raises:
        StorageError: if there is none, and trials have begun: what they ran with could not be checked.
    """
    for place in (folder, folder / CONFIRM):
        file, previous = place / PROVENANCE, place / PREVIOUS
        try:
            unseal(file)
            continue
        except FileNotFoundError:
            why = "is missing"
        except DamagedError as error:
            why = str(error).removeprefix(f"{file}: ")
        try:
            unseal(previous)
        except (OSError, DamagedError) as error:
            if any(parts(place / name) for name in FOLDERS.values()):
                unsure = f"so it cannot be checked that its trials ran with {place / 'spec.toml'}"
                advice = "restore it from a copy, or run the spec into a folder of its own"
                raise StorageError(str(file), f"{why}, {unsure}; {advice}") from error
            content = b""
        else:
            content = previous.read_bytes()
        if file.exists():
            say(f"{file}: {why}; moved to {move_aside(folder, file)}")
        if content:
            say(f"{file}: written again, from {previous.name}")
            storage.write_bytes(file, content)


def _damage(file: Path, table: str) -> str | None:
    """Why a part of a table cannot be used, or None."""
    try:
        read_rows(file, table)
    except (DamagedError, OSError) as error:
        return str(error).removeprefix(f"{file}: ").splitlines()[0]
    except ResultsError as error:
        raise StorageError(str(file.parent), str(error)) from error
    return None


def move_aside(folder: Path, file: Path, to: str = "damaged") -> Path:
    """Move a file, or a folder, below a results folder into another folder there, under a name that is free."""
    place, prefix = folder / to, "" if file.parent == folder else f"{file.parent.name}-"
    place.mkdir(exist_ok=True)
    names = (f"{number}-{file.name}" if number > 1 else f"{prefix}{file.name}" for number in itertools.count(1))
    aside = next(place / name for name in names if not (place / name).exists())
    file.rename(aside)
    return aside


def reconcile(study: optuna.Study, space: Space, folder: Path, say: Callable[[str], None] = print) -> State:
    """Make Optuna's storage and the tables agree.

    Afterwards every trial in the storage has ended or waits to run, and the tables hold only rows of ended trials.
    Those of a trial that has lost others lie in `superseded/`.
    """
    tables = {name: Table(name, folder) for name in TABLES}
    rows, incomplete = _rows(folder)
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
    gone = (set(rows) | incomplete) - set(ended)
    # Rows of an interrupted trial are those of its checkpoint, from which it continues.
    aside = {number for number in gone if number not in rows or rows[number]["outcome"] != Outcome.INTERRUPTED}
    if aside:
        which = ", ".join(map(str, sorted(aside)))
        say(f"{folder}: rows of these trials are missing, and they run again: {which}; the others are in {SUPERSEDED}/")
    if gone:
        for table in tables.values():
            table.drop(gone, aside)
    # A stopped trial whose rows were lost starts again: its checkpoint may lie beyond the point where it stops.
    needed = {
        space.checkpoint(trial.number)
        for trial in study.get_trials(deepcopy=False)
        if trial.number not in ended and "stopped" not in trial.user_attrs
    }
    clear_checkpoints(space.checkpoints, needed, folder, say)
    return state


def clear_checkpoints(place: str, needed: Collection[str], folder: Path, say: Callable[[str], None]) -> None:
    """Delete checkpoints that a crash has left, or cut off; whatever else lies there is moved aside."""
    if not storage.is_uri(place) and Path(place).is_symlink():
        say(f"{place} is a link to {Path(place).resolve()}, whose files are left alone; running trials start again")
        Path(place).unlink()
        Path(place).mkdir()
    for name in storage.names(place):
        file, stray = storage.join(place, name), not _CHECKPOINT.fullmatch(name)
        if not storage.is_uri(file) and (stray or Path(file).is_dir()):
            say(f"{file} is not a checkpoint; moved to {move_aside(folder, Path(file))}")
        elif not stray and file not in needed:
            storage.delete(file)


def _rows(folder: Path) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The rows of the trials table by number, and the trials that have fewer rows in other tables than they had.

    A trial of an earlier version does not say how many; if it has lanes, it has curves, too.
    """
    pieces = [read_rows(file, "trials") for _, _, file in parts(folder / FOLDERS["trials"])]
    rows = {row["trial"]: row for piece in pieces for row in piece.to_pylist()}
    held = {name: _trials_in(folder, name) for name in ROWS.names}
    incomplete = set().union(*held.values()) - set(rows)
    for number, row in rows.items():
        # A trial that failed before its first report has neither lanes nor curves.
        had = row["rows"] or (dict.fromkeys(("lanes", "curves"), 1) if row["lanes"] else {})
        if any(held[name][number] < count for name, count in had.items()):
            incomplete.add(number)
    return rows, incomplete


def _trials_in(folder: Path, name: str) -> Counter[int]:
    """How many rows of a table each trial has."""
    found: Counter[int] = Counter()
    for _, _, file in parts(folder / FOLDERS[name]):
        counts = pq.read_table(file, columns=["trial"])["trial"].value_counts().to_pylist()
        found.update({each["values"]: each["counts"] for each in counts})
    return found


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
