"""The errors that `study` raises for reasons outside its own code.

    StudyError              base class, exit code 1
        Halted              the study cannot continue: no disk space, storage or report folder unavailable
        InputError          the user's input is wrong, exit code 2; lists every mistake
            SpecError       the spec
            UsageError      an argument or option, or an optional package that is not installed
            ClusterError    the Ray cluster does not answer, lacks resources, or has unfit nodes
            StorageError    a results folder, URI or database cannot be used, or another process uses it
    Interrupted             Ctrl-C, SIGTERM or SIGUSR1 ended the study, exit code 130; a KeyboardInterrupt

The commands print the message alone and exit with the code. Data that cannot be loaded raise `study.DataError`,
unreadable results raise `analysis.ResultsError`. This module imports nothing heavy: every other one can use it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from trainables.errors import DataError as DataError


class StudyError(Exception):
    """Base class of the errors in this module."""

    exit_code = 1


class Halted(StudyError, RuntimeError):
    """A study cannot continue because of something outside it; the message says how to resume."""


class InputError(StudyError, ValueError):
    """The user's input is wrong.

    Attributes:
        source: the file, option or place that is wrong.
        mistakes: one line for each mistake.
    """

    exit_code = 2

    def __init__(self, source: str, mistakes: str | Iterable[str]) -> None:
        self.source, self.mistakes = source, [mistakes] if isinstance(mistakes, str) else list(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {mistake}" for mistake in self.mistakes))


class SpecError(InputError):
    """A spec is not valid, or cannot be read."""


class UsageError(InputError):
    """An argument or option is not valid here, or an optional package is missing."""


class ClusterError(InputError):
    """A Ray cluster cannot run the study."""


class StorageError(InputError):
    """A results folder, URI or database cannot be used."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a study, which can be resumed.

    Attributes:
        outcome: a `study.Outcome`: how many trials have ended, and the results folder.
    """

    exit_code = 130

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        resume = f"study.resume({str(outcome.folder)!r}) continues it"
        super().__init__(f"{outcome.ended} of {outcome.planned} trials ended; {resume}")


def require(package: str, extra: str) -> None:
    """Raise a `UsageError` that says what to install, unless an optional package is installed; it is not imported."""
    if importlib.util.find_spec(package) is None:
        command = f'pip install "optimizer-study[{extra}]"'
        raise UsageError(extra, f"needs the package {package.replace('_', '-')}, which is not installed; {command}")
