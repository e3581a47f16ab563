"""Lets one run at a time write results: a file lock for a folder, a lease with heartbeats for a URI.

Both leave `.holder.json`, which names the owner. The system frees a folder's lock when its process dies. Object stores
have no locks: there the owner counts its heartbeats in the record, and is dead once they stop.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from analysis.remote import reason
from study.errors import StorageError
from study.results.provenance import now
from trainables import storage

LOCK, HOLDER = OWNED = ".lock", ".holder.json"
# Long enough for another process that checks whether the lock is free, which takes it for a moment.
LOCK_SECONDS = 1.0
# An owner of a URI whose heartbeat does not change for so long is dead.
DEAD_SECONDS = 60.0
# Between the two heartbeats of a claim: of two runs that claim a URI at the same time, the first sees the second's.
SETTLE_SECONDS = 1.0
UNKNOWN = "an unknown process"
# The folders that this process owns, each with the thread that does.
_OWNED: set[tuple[str, int]] = set()


@cache
def _machine() -> str:
    """What processes share whose ids mean the same: the boot of the machine and the namespace of processes."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return platform.node()


@dataclass(frozen=True)
class Owner:
    """The run that owns a results folder or URI."""

    command: str
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=now)
    session: str = ""  # id of the run at a URI; empty for a folder
    beat: int = 0  # heartbeats so far
    ended: str = ""  # when it let go of the URI; empty while it runs
    machine: str = field(default_factory=_machine)  # containers may have equal host names

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"

    def write(self, place: Path | str) -> None:
        """Write the record at a place."""
        storage.write_text(storage.join(place, HOLDER), json.dumps(asdict(self)) + "\n")

    def is_dead(self) -> bool:
        """Whether its process ran on this machine and is gone; an earlier version did not record the machine."""
        if self.host == platform.node() and self.machine in ("", _machine()):
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except PermissionError:  # it is another user's
                pass
        return False


def recorded_owner(place: Path | str) -> Owner | None:
    """The owner that the record at a folder or URI names, dead or alive; None without a readable record."""
    if not (stream := storage.read(storage.join(place, HOLDER))):
        return None
    try:
        with stream:
            owner = Owner(**{"machine": "", **json.load(stream)})
    except (ValueError, TypeError):
        return None
    # The record of a folder that was copied to a URI has no session.
    return owner if owner.session or not storage.is_uri(place) else None


def running_owner(place: Path | str) -> str | None:
    """Who runs a study at a folder or URI, in words; None if nobody does, as far as can be seen from this machine."""
    if storage.is_uri(place):
        return _running_at(str(place))
    with suppress(OSError):
        owner = recorded_owner(place)
        lock = Path(place, LOCK)
        if not lock.exists():
            return None
        try:
            with FileLock(lock, timeout=0):
                return None
        except Timeout:
            return str(owner or UNKNOWN)
        except OSError:  # a read-only folder: the record is all there is
            return str(owner) if owner and not owner.is_dead() else None
    return None


def _running_at(uri: str) -> str | None:
    try:
        owner = recorded_owner(uri)
        if not owner or owner.ended or owner.is_dead():
            return None
        system, path = storage.at(storage.join(uri, HOLDER))
        silent = time.time() - system.get_file_info(path).mtime_ns / 1e9
    except (OSError, ValueError) as error:
        raise StorageError(uri, f"cannot be read ({reason(error)}); does it exist, and may you read it?") from error
    return str(owner) if silent < 2 * DEAD_SECONDS else None


@contextmanager
def own_folder(folder: Path, command: str) -> Iterator[None]:
    """Own a results folder, which exists; a `StorageError` names its owner if there is one.

    The thread that owns it already goes on owning it.
    """
    mine = str(folder.resolve()), threading.get_ident()
    if mine in _OWNED:
        yield
        return
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise in_use(folder, str(recorded_owner(folder) or UNKNOWN)) from None
    except OSError as error:
        raise StorageError(str(folder), f"cannot be written to: {error.strerror}") from error
    try:
        try:
            Owner(command).write(folder)
        except OSError as error:
            message = f"cannot be written to: {error.strerror}; make space or fix that, then try again"
            raise StorageError(str(folder), message) from error
        _OWNED.add(mine)
        yield
    finally:
        _OWNED.discard(mine)
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def in_use(place: Path | str, owner: str) -> StorageError:
    """The error that a study runs at a place."""
    return StorageError(str(place), f"a study runs in it: {owner}; wait for it, or stop it with SIGTERM")


class Lease:
    """Ownership of a URI, which lasts as long as its heartbeats; `lost` names the run that has taken it over."""

    def __init__(self, uri: str, command: str) -> None:
        self.uri, self.owner, self.lost = uri, Owner(command, session=uuid.uuid4().hex), ""
        self.beaten = 0.0

    def claim(self) -> None:
        """Take the URI, unless another run takes it at the same time."""
        self.beat()
        time.sleep(SETTLE_SECONDS)
        self.beat()

    def beat(self, *, ended: bool = False) -> None:
        """Write a heartbeat, unless another run has taken the URI over."""
        current = recorded_owner(self.uri)
        if self.owner.beat and (not current or current.session != self.owner.session):
            self.lost = str(current or f"{UNKNOWN}, which has emptied it")
            return
        self.owner = replace(self.owner, beat=self.owner.beat + 1, ended=now() if ended else "")
        self.owner.write(self.uri)
        self.beaten = time.monotonic()


def wait_until_free(uri: str, owner: Owner | None, say: Callable[[str], None]) -> None:
    """Wait until the owner of a URI is known to be dead. Clocks of other machines are not trusted."""
    if not owner or owner.ended or owner.is_dead():
        return
    say(f"{uri}: held by {owner}; waiting up to {DEAD_SECONDS:.0f} s to see whether it lives")
    until = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        if (current := recorded_owner(uri)) != owner:
            if current and current.ended:
                return
            raise in_use(uri, str(current or UNKNOWN))
