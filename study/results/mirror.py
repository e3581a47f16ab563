"""Mirrors results to a URI: the driver works in a local folder, the spool, and a thread sends what changes.

The tables and the journal are appended to and locked, which object stores cannot do. The thread keeps the study running
while the store is away, and sends the heartbeats of `study.results.ownership`. The spool is removed once everything has
been sent. Until then `study resume URI` on this machine continues from it, and on other machines from what was sent.
Trials write checkpoints to the URI directly, from whatever node they run on.

A study can be resumed from the URI at any time: a trial's curves and lanes arrive before its row, the journal is never
newer than the tables, and merged parts are deleted after the part that replaces them has arrived.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from pyarrow.fs import FileInfo

from analysis.remote import cache_folder, fetch, listing, reason
from analysis.schema import FOLDERS, ResultsError
from study.errors import Halted, StorageError
from study.results import CONFIRM
from study.results.ownership import HOLDER, LOCK_SECONDS, Lease, in_use, recorded_owner, running_owner, wait_until_free
from study.tuning import JOURNAL
from trainables import storage
from trainables.storage import at, is_uri, join

if TYPE_CHECKING:
    import optuna

# Pause between two pushes, and the longest one while the store does not answer.
PUSH_SECONDS, RETRY_SECONDS = 3.0, 15.0
# How long a study that has ended waits for a store that does not answer.
PATIENCE_SECONDS = 600.0

# The order in which a trial's end is written.
_WRITTEN = tuple(FOLDERS[name] for name in ("curves", "predictions", "lanes", "trials"))
# Folders that are not mirrored.
_LOCAL = ("checkpoints", "tune")
_JOURNALS = (JOURNAL, f"{CONFIRM}/{JOURNAL}")
# The URIs of this process's spools.
_URIS: dict[Path, str] = {}

Stamp = tuple[int, int]
"""Modification time in nanoseconds, and size in bytes, of a file."""


def home(folder: Path) -> Path | str:
    """The place of a results folder for everyone: its URI if it is, or lies in, a spool of this process."""
    for spool, uri in _URIS.items():
        if folder.is_relative_to(spool):
            return join(uri, *folder.relative_to(spool).parts)
    return folder


def typed(place: Path | str) -> str:
    """A place as the user would type it: a URI, or a path, relative if it lies below the working folder."""
    place = place if isinstance(place, str) else home(place)
    if isinstance(place, Path) and place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    return str(place)


def has_study(place: str) -> bool:
    """Whether a folder, a URI or its spool holds a study; True for a URI that cannot be reached, which may."""
    if is_uri(place) and (_spool(place) / "spec.toml").exists():
        return True
    try:
        stream = storage.read(join(place, "spec.toml"))
    except (OSError, ValueError):  # Arrow's error for an unknown query
        return is_uri(place)
    if stream:
        stream.close()
    return stream is not None


def set_home(study: optuna.Study, folder: Path) -> None:
    """Record in a database's study whose results folder it belongs to, for everyone."""
    study.set_user_attr("results", str(home(folder)))


def check_home(study: optuna.Study, folder: Path) -> None:
    """Raise a `StorageError` if a database's study belongs to another results folder, which still holds a study."""
    recorded, here = study.user_attrs.get("results"), str(home(folder))
    if recorded and recorded != here and has_study(recorded):
        raise StorageError("tuning.storage", f"its study {study.study_name} belongs to {recorded}, not to {here}")
    if recorded != here:  # new, or moved
        set_home(study, folder)


@contextmanager
def mirrored(place: Path | str, command: str, say: Callable[[str], None], *, new: bool = False) -> Iterator[Path]:
    """The folder in which to run a study whose results go to a place: a folder itself, or the spool of a URI.

    `new` says that the study begins. Raises StorageError if the URI cannot be used, another run owns it, or it holds a
    study that should not be there, or none; and Halted if not everything could be sent, which is safe in the spool.
    """
    if isinstance(place, Path):
        yield place
        return
    spool = _spool(place)
    lock = FileLock(spool.parent / "lock", timeout=LOCK_SECONDS)
    try:
        spool.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise in_use(place, running_owner(place) or "a process of this machine that begins or ends") from None
    except OSError as error:
        message = f"results are gathered in {spool.parent} first, which cannot be written ({error.strerror})"
        raise StorageError(place, f"{message}; set XDG_CACHE_HOME to a folder that can") from error
    try:
        mirror = _claimed(place, spool, command, say, new=new)
        _URIS[spool] = place
        mirror.start()
        try:
            yield spool
        finally:
            del _URIS[spool]
            mirror.close()
    finally:
        lock.release()


def send(folder: Path, uri: str) -> None:
    """Copy the files of a folder to a URI."""
    for file in [each for each in sorted(folder.rglob("*")) if each.is_file()]:
        storage.write_bytes(join(uri, *file.relative_to(folder).parts), file.read_bytes())


def _spool(uri: str) -> Path:
    return cache_folder(uri, "spool") / "results"


def _claimed(uri: str, spool: Path, command: str, say: Callable[[str], None], *, new: bool) -> _Mirror:
    """Own a URI and bring its spool up to date."""
    lease, sessions = Lease(uri, command), spool.parent / "sessions"
    try:
        owner = recorded_owner(uri)
        wait_until_free(uri, owner, say)
        last = owner.session if owner else ""
        remote = listing(*at(uri))
        # The spool is newer if the last run at the URI was made here; otherwise another machine has continued it.
        ours = "spec.toml" not in remote or (sessions.exists() and last in sessions.read_text().split())
        if not ours and spool.exists():
            say(f"{uri}: was resumed elsewhere; {spool} holds an earlier run, which is out of date and dropped")
        if not ours or not (spool / "spec.toml").exists():
            shutil.rmtree(spool, ignore_errors=True)
        if new:
            _refuse_used(uri, spool, remote)
        elif not spool.exists():
            fetch(uri, spool, unread=_LOCAL)
        for folder in (spool, spool / CONFIRM):
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # `reconcile` reads those at the URI
        # Should this process die before its first heartbeat, the URI names the last session; after it, ours.
        storage.write_text(sessions, f"{last}\n{lease.owner.session}\n")
        mirror = _Mirror(spool, lease, say)
        mirror.known = {name: (0, 0) if ours else _stamp(spool / name) for name in remote if not _skipped(name)}
        lease.claim()
    except (ResultsError, StorageError):
        raise
    except (OSError, ValueError) as error:
        message = f"cannot be used ({reason(error)}); does it exist, may you write to it, and does the store answer?"
        raise StorageError(uri, message) from error
    if lease.lost:
        raise StorageError(uri, f"a study has begun in it: {lease.lost}; give another URI")
    return mirror


def _refuse_used(uri: str, spool: Path, remote: dict[str, FileInfo]) -> None:
    """Raise a `StorageError` unless a new study can begin at a URI."""
    if remote:
        what = "already holds a study" if "spec.toml" in remote else f"is not empty: it holds {min(remote)}"
        raise StorageError(f"--out {uri}", f"{what}; give a URI where there is nothing yet")
    if spool.exists():
        message = f"an earlier run could not send its results, which are in {spool}; `study resume {uri}` continues it"
        raise StorageError(f"--out {uri}", f"{message}; to start again, remove that folder")


def _skipped(name: str) -> bool:
    """Whether a file is not part of the results: locks, unfinished files, checkpoints, Ray Tune's own."""
    parts = name.split("/")
    return name.endswith(".tmp") or any(part.startswith(".") or part in _LOCAL for part in parts)


def _stamp(file: Path) -> Stamp:
    facts = file.stat()
    return facts.st_mtime_ns, facts.st_size


class _Mirror(threading.Thread):
    """Sends what changes in a spool."""

    def __init__(self, spool: Path, lease: Lease, say: Callable[[str], None]) -> None:
        super().__init__(name="mirror", daemon=True)
        self.uri, self.spool, self.lease, self.say = lease.uri, spool, lease, say
        self.known: dict[str, Stamp] = {}  # files at the URI, as they were in the spool when they were sent
        self._seen: set[str] = set()
        self._ended, self._away = threading.Event(), False

    def run(self) -> None:
        """Push until the study has ended, or another run takes the URI over, which ends it as Ctrl-C does."""
        pause = PUSH_SECONDS
        while not self._ended.wait(pause) and not self.lease.lost:
            begun = time.monotonic()
            if self._pushed():
                pause = min(max(PUSH_SECONDS, 4 * (time.monotonic() - begun)), RETRY_SECONDS)
            else:
                pause = min(2 * pause, RETRY_SECONDS)
        if self.lease.lost and not self._ended.is_set():
            # Shells start background processes with SIGINT ignored.
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)

    def _pushed(self) -> bool:
        """Push; whether the store took everything. Reports when it goes away and comes back."""
        try:
            self.push()
        except Exception as error:  # noqa: BLE001  whatever is wrong with the store, the study continues
            if not self._away:
                self.say(f"{self.uri}: cannot be written to ({reason(error)}); the study continues, trying again ...")
            self._away = True
            return False
        if self._away:
            self.say(f"{self.uri}: can be written to again")
        self._away = False
        return True

    def push(self) -> None:
        """Send what has changed since the last push, and delete what is gone."""
        self.lease.beat()
        if self.lease.lost:
            return
        journals = self._changed_journals()
        files = self._scan()
        # In the order in which they were written: the scan finds rows first, and parts that precede them later.
        for name, stamp in reversed(files.items()):
            if self.known.get(name) != stamp:
                with suppress(FileNotFoundError):  # merged since the scan
                    self._send(name, stamp, (self.spool / name).read_bytes())
        for name, (stamp, content) in journals.items():
            self._send(name, stamp, content)
        present = set(files) | {name for name in _JOURNALS if (self.spool / name).exists()}
        # Missing in two scans: one that began before a merge and ended after it sees neither the parts nor the whole.
        for name in [each for each in self.known if each not in present | self._seen]:
            storage.delete(join(self.uri, name))
            del self.known[name]
        self._seen = present
        # The writer marks checkpoints to delete by an empty file in the spool.
        for marker in [*self.spool.glob("checkpoints/*"), *self.spool.glob(f"{CONFIRM}/checkpoints/*")]:
            storage.delete(join(self.uri, *marker.relative_to(self.spool).parts))
            marker.unlink(missing_ok=True)

    def _send(self, name: str, stamp: Stamp, content: bytes) -> None:
        storage.write_bytes(join(self.uri, name), content)
        self.known[name] = stamp
        if time.monotonic() - self.lease.beaten > PUSH_SECONDS:
            self.lease.beat()

    def _changed_journals(self) -> dict[str, tuple[Stamp, bytes]]:
        """The journals that have changed, up to their last complete line."""
        changed = {}
        for name in _JOURNALS:
            if (self.spool / name).exists() and self.known.get(name) != (stamp := _stamp(self.spool / name)):
                content = (self.spool / name).read_bytes()
                changed[name] = stamp, content[: content.rfind(b"\n") + 1]
        return changed

    def _scan(self) -> dict[str, Stamp]:
        """The files of the spool except journals: rows of trials first, then the tables written before them."""
        tables = [self.spool / below / table for table in reversed(_WRITTEN) for below in ("", CONFIRM)]
        files: dict[str, Stamp] = {}
        for top in [*tables, self.spool]:
            for folder, _, names in os.walk(top):
                for file in [Path(folder, name) for name in names]:
                    name = file.relative_to(self.spool).as_posix()
                    if name not in files and name not in _JOURNALS and not _skipped(name):
                        with suppress(FileNotFoundError):
                            files[name] = _stamp(file)
        return files

    def close(self) -> None:
        """Send the rest, let go of the URI and remove the spool, which stays if that could not be done."""
        self._ended.set()
        self.join()
        until = time.monotonic() + PATIENCE_SECONDS
        # Two pushes: see there for what one leaves undeleted.
        while not self.lease.lost and not (self._pushed() and self._pushed() and self._released()):
            left = until - time.monotonic()
            if left <= 0:
                raise Halted(
                    f"{self.uri}: the results could not be sent; what was not sent is safe in {self.spool}. "
                    f"Fix that, then `study resume {self.uri}` on this machine"
                )
            self.say(f"{self.uri}: waiting {left:.0f} s more to send the results; Ctrl-C leaves them in {self.spool}")
            time.sleep(min(RETRY_SECONDS, left))
        if self.lease.lost:
            raise Halted(f"{self.uri}: another run has taken it over: {self.lease.lost}; this one has ended")
        shutil.rmtree(self.spool, ignore_errors=True)

    def _released(self) -> bool:
        """Let go of the URI if it holds everything that was sent; whether that was so."""
        try:
            remote = listing(*at(self.uri))
            self.known = {name: stamp for name, stamp in self.known.items() if name in remote}
            if set(self._scan()) - set(self.known):
                return False
            if not self.known and not self.spool.exists():
                storage.delete(join(self.uri, HOLDER))  # the study did not begin
            else:
                self.lease.beat(ended=True)
        except OSError:
            return False
        return True
