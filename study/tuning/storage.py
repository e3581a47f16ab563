"""Optuna's storage in a database whose server may be away for a while: what is asked of it then waits.

A server that goes in the middle of an answer leaves open whether it did what it was asked. What sets a value can be
asked again; what creates a trial or changes its state looks first whether that was done. This rests on a study having
one driver, as ours has.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

# How long an answer is waited for, and at most between two tries.
PATIENCE_SECONDS, RETRY_SECONDS = 3600.0, 15.0

T = TypeVar("T")


def opened(url: str, say: Callable[[str], None] = lambda text: None) -> BaseStorage:
    """Optuna's storage at a URL.

    Args:
        url: of the database. SQLite, which is a file, has no server to wait for.
        say: told when the server goes away, and when it is back.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError: if it cannot be opened.
    """
    if url.startswith("redis") or make_url(url).get_backend_name() == "sqlite":
        return get_storage(url)
    return PatientStorage(url, say)


class PatientStorage(_CachedStorage):
    """A database that is asked again while its server does not answer; see the module."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        # Connections that broke are found before they are used.
        super().__init__(backend := RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
        self._say, self._within = say, threading.local()
        weakref.finalize(self, backend.engine.dispose)

    def __getstate__(self) -> dict[str, Any]:
        """Without whom to tell: Ray Tune pickles the search for snapshots from which nothing is resumed."""
        return {**super().__getstate__(), "_say": None, "_within": None}

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, once the server answers; within another such question, that one is asked again."""
        if getattr(self._within, "asking", False):
            return ask()
        self._within.asking = True
        try:
            return self._asked(ask)
        finally:
            self._within.asking = False

    def _asked(self, ask: Callable[[], T]) -> T:
        begun, pause, away = time.monotonic(), 0.5, False
        while True:
            try:
                answer = ask()
            except (StorageInternalError, DBAPIError) as error:
                why, waited = _unanswered(error), time.monotonic() - begun
                if why is None or waited > PATIENCE_SECONDS:
                    raise
                if not away:
                    self._say(f"Optuna's database does not answer ({why}); waiting up to an hour for it ...")
                away = True
                time.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS)
            else:
                if away:
                    self._say(f"Optuna's database answers again, after {time.monotonic() - begun:.0f} s")
                return answer

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study, once."""
        tries = 0

        def create() -> int:
            nonlocal tries
            tries += 1
            try:
                return super(PatientStorage, self).create_new_study(directions, study_name)
            except DuplicatedStudyError:
                if tries == 1 or study_name is None:
                    raise
                return self.get_study_id_from_name(study_name)

        return self._patiently(create)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once."""
        number = self.get_n_trials(study_id)

        def create() -> int:
            trials = self.get_all_trials(study_id, deepcopy=False)
            if len(trials) > number:
                return trials[number]._trial_id
            return super(PatientStorage, self).create_new_trial(study_id, template_trial)

        created = self._patiently(create)
        if self.get_trial_number_from_id(created) != number:  # Optuna itself tried again
            raise StorageInternalError(f"trial {number} was created twice, when the database went away")
        return created

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change a trial's state; whether that could be done, now or by a try that was not answered."""
        tries = 0

        def change() -> bool:
            nonlocal tries
            tries += 1
            try:
                changed = super(PatientStorage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if tries == 1:
                    raise
                changed = False
            return changed or (tries > 1 and self.get_trial(trial_id).state == state)

        return self._patiently(change)


def _unanswered(error: BaseException) -> str | None:
    """What the driver said, if an error comes of a server that did not answer.

    It need not be the error's cause: Optuna asks once more within the transaction that broke, and SQLAlchemy then only
    says that it did.
    """
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, OperationalError | InterfaceError):
        reason = reason.__cause__ or reason.__context__
    return " ".join(str(reason.orig).split()) if reason is not None else None


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(_CachedStorage, name)

    @wraps(method)
    def asked(self: PatientStorage, *given: Any, **named: Any) -> Any:
        return self._patiently(lambda: method(self, *given, **named))

    return asked


for _name in vars(BaseStorage):
    if not _name.startswith("_") and _name not in vars(PatientStorage):
        setattr(PatientStorage, _name, _patient(_name))
