"""Opens Optuna's storage of a study: a journal in the results folder, or the database that its spec names."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from study.errors import StorageError
from study.spec.secrets import expanded, redacted
from study.tuning import JOURNAL
from study.tuning.journal import Journal, damage

if TYPE_CHECKING:
    from study.spec import Spec

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would print a line for each trial
# How long a session waits for a database that is away, and the longest pause between two attempts to reach it.
PATIENCE_SECONDS, RETRY_SECONDS = 3600.0, 15.0
# What Optuna and SQLAlchemy raise for whatever goes wrong in a database.
DATABASE_ERRORS = (StorageInternalError, DBAPIError)


def directions(objectives: list[str], metric: str) -> list[Literal["minimize", "maximize"]]:
    """Which way each objective is better: costs are minimized."""
    return ["maximize" if name == "metric" and metric == "accuracy" else "minimize" for name in objectives]


def values(objectives: list[str], row: Mapping[str, Any]) -> list[float]:
    """A completed trial's values for Optuna, from its row of the trials table; seconds are those of one network."""
    if (seconds := row.get("update_seconds")) is not None:  # older programs did not measure it
        row = {**row, "train_seconds": row["updates"] * seconds}
    return [float(row["value" if objective == "metric" else objective]) for objective in objectives]


def open_study(spec: Spec, folder: Path) -> optuna.Study:
    """Optuna's study of a results folder; it is created if it does not exist."""
    return _create(spec, _database(spec) or journal(folder), load_if_exists=True)


def create_study(spec: Spec) -> optuna.Study | None:
    """Create the study in the spec's database; None if the spec names none.

    Creating it claims the name: of two runs that start together, one is refused.
    """
    if not (database := _database(spec)):
        return None
    name = f"{spec.name}-confirm"
    try:
        if name in {study.study_name for study in database.get_all_studies()}:
            raise DuplicatedStudyError
        name = spec.name
        return _create(spec, database)
    except DuplicatedStudyError as error:
        message = f"holds a study called {name} already; change the spec's name, or `study resume` its folder"
        raise StorageError("tuning.storage", message) from error


def _create(spec: Spec, storage: BaseStorage, *, load_if_exists: bool = False) -> optuna.Study:
    best = directions(spec.tuning.objectives, spec.workload.metric)
    return optuna.create_study(storage=storage, study_name=spec.name, directions=best, load_if_exists=load_if_exists)


def delete_study(spec: Spec) -> None:
    """Delete the study of a spec from its database, if it is there."""
    if database := _database(spec):
        with suppress(KeyError):
            optuna.delete_study(study_name=spec.name, storage=database)


def journal(folder: Path) -> JournalStorage:
    """The journal of a results folder; a `StorageError` if it is damaged."""
    file = folder / JOURNAL
    if file.exists() and (why := damage(file)):
        raise StorageError(str(file), f"{why}; `study resume {folder}` makes it again from the tables")
    return JournalStorage(Journal(file))


def wait_until_back(spec: Spec, error: BaseException, say: Callable[[str], None]) -> None:
    """Wait until the server of a spec's database answers again; raise the error again if that was not its reason."""
    reason, url = redacted(_no_answer(error)), spec.tuning.storage
    if not reason or not url or make_url(url).get_backend_name() == "sqlite":  # a file has no server to wait for
        raise error
    url = expanded("tuning.storage", url)
    say(f"Optuna's database does not answer ({reason}); waiting up to an hour for it ...")
    begun, pause, engine = time.monotonic(), 0.5, create_engine(url)
    while True:
        try:
            engine.connect().close()
            break
        except DBAPIError:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise error from None
            time.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS)
    engine.dispose()
    say(f"Optuna's database answers again, after {time.monotonic() - begun:.0f} s")


def _no_answer(error: BaseException | None) -> str:
    """The driver's message, if an error or its cause is that a server did not answer; otherwise empty."""
    while error is not None and not isinstance(error, OperationalError | InterfaceError):
        error = error.__cause__ or error.__context__
    return " ".join(str(error.orig).split()) if error is not None else ""


def _database(spec: Spec) -> BaseStorage | None:
    url = spec.tuning.storage
    if not url:
        return None
    url = expanded("tuning.storage", url)
    try:
        # pre-ping: connections that broke while idle are replaced before they are used.
        storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (SQLAlchemyError, ImportError, ValueError) as error:
        message = f"cannot be opened: {redacted(str(error).splitlines()[0])}; correct the URL, or install its driver"
        raise StorageError("tuning.storage", message) from error
    weakref.finalize(storage, _close, storage.scoped_session, storage.engine)
    return storage


def _close(sessions: scoped_session[Session], engine: Engine) -> None:
    """Close a storage's connections, also the one in which an interrupted call has left its transaction open."""
    sessions.remove()
    engine.dispose()
