"""One run at a time: the lock of a results folder, and who holds it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from study.errors import StorageError
from study.results.provenance import now
from trainables import storage

LOCK, HOLDER = ".lock", ".holder.json"
# Another process takes the lock for a moment to see whether it is free.
LOCK_SECONDS = 1.0


@contextmanager
def held(folder: Path, command: str) -> Iterator[None]:
    """Lock a results folder, so that no other run writes into it; the system releases the lock if this process dies.

    Raises:
        StorageError: if another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise StorageError(
            str(folder),
            [f"a study runs in it: {holder(folder) or 'by an unknown process'}; wait for it, or stop it with SIGTERM"],
        ) from None
    except OSError as error:
        raise StorageError(str(folder), [f"cannot be written to: {error.strerror}"]) from error
    try:
        who = {"host": platform.node(), "pid": os.getpid(), "since": now(), "command": command}
        try:
            storage.write_text(folder / HOLDER, json.dumps(who) + "\n")
        except OSError as error:
            told = f"cannot be written to: {error.strerror}; make space or fix that, then try again"
            raise StorageError(str(folder), [told]) from error
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process runs a study in a results folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return holder(folder) is not None  # the lock of a folder that cannot be written to cannot be tried


def holder(folder: Path) -> str | None:
    """The process that has locked a results folder, in words; None if it is unknown."""
    try:
        who = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, KeyError):
        return None
