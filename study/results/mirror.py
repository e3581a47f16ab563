"""Results at a URI of an object store: worked on in a folder of the driver's, the spool, and mirrored from there.

The tables and the journal need what an object store lacks: to be appended to, and locked. So the driver writes into the
spool, and a thread sends what has changed every few seconds. While the store cannot be reached the study goes on. The
spool is removed once all of it has been sent; until then `study resume URI` on this machine goes on from it, and on any
other machine from what was sent. Trials' checkpoints go to the URI directly, from whatever node they run on.

What arrives is always such that a study can be resumed from it: a trial's curves and lanes come before its row, the
journal is never newer than the tables, and the parts that were merged go after the part that holds them all.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from analysis.remote import cache_folder, fetch, listing, reason
from analysis.results import FOLDERS, ResultsError
from study.errors import Halted, StorageError, StudyError
from trainables import storage
from trainables.storage import at, is_uri, join

# As in a folder; the modules that have these names import Ray, whose environment is not set yet.
JOURNAL, HOLDER, CONFIRM = "optuna.journal", ".holder.json", "confirm"
# Between two looks at what has changed, and between two tries to reach a store that does not answer, at most.
PUSH_SECONDS, RETRY_SECONDS = 3.0, 15.0
# A run that has not been heard of for so long is dead; it says that it lives with every push.
DEAD_SECONDS = 60.0
# For what has to come to pass after two runs have claimed a URI at the same time.
SETTLE_SECONDS = 1.0
# How long a study that has ended waits for a store that does not answer.
PATIENCE_SECONDS = 600.0

# The order in which a trial's end is written.
_WRITTEN = tuple(FOLDERS[name] for name in ("curves", "predictions", "lanes", "trials"))
_OURS = ("checkpoints", "tune")
_JOURNALS = (JOURNAL, f"{CONFIRM}/{JOURNAL}")
# Spools of this process.
_URIS: dict[Path, str] = {}

Stamp = tuple[int, int]


def home(folder: Path) -> Path | str:
    """Where a results folder is for everybody: the URI, if the folder is, or lies in, a spool of this process."""
    for spool, uri in _URIS.items():
        if folder.is_relative_to(spool):
            return join(uri, *folder.relative_to(spool).parts)
    return folder


def typed(place: Path | str) -> str:
    """A place as the user would type it; the URI of what is mirrored to one."""
    place = place if isinstance(place, str) else home(place)
    if isinstance(place, Path) and place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    return str(place)


def has_study(place: str) -> bool:
    """Whether there is a study at a folder or URI, or in the spool of one; what cannot be reached may have one."""
    if is_uri(place) and (_spool(place) / "spec.toml").exists():
        return True
    try:
        stream = storage.read(join(place, "spec.toml"))
    except (OSError, ValueError):  # Arrow's word for a query that it does not know
        return is_uri(place)
    if stream:
        stream.close()
    return stream is not None


@contextmanager
def mirrored(place: Path | str, command: str, say: Callable[[str], None], *, new: bool = False) -> Iterator[Path]:
    """A folder to run a study in, whose results are at a place.

    Args:
        place: a folder, which is the one, or a URI.
        command: what the user ran, for those who find the URI held.
        say: told when the store cannot be reached, and when it can again.
        new: whether the study is to begin.

    Raises:
        StorageError: if the URI cannot be used, another run holds it, or it has a study though `new`, or none though
            not `new`.
        Halted: if not everything could be sent; it is safe in the spool.
    """
    if isinstance(place, Path):
        yield place
        return
    spool = _spool(place)
    lock = FileLock(spool.parent / "lock", timeout=1)
    try:
        spool.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        who = running(place) or "a process of this machine that is about to begin, or to end"
        raise StorageError(place, [f"a study runs in it: {who}; wait for it, or stop it"]) from None
    except OSError as error:
        told = f"results are gathered in {spool.parent} first, which cannot be written ({error.strerror})"
        raise StorageError(place, [f"{told}; set XDG_CACHE_HOME to a folder that can"]) from error
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


def running(uri: str) -> str | None:
    """Who runs a study at a URI, in words; None if nobody does, as far as can be told from here.

    Raises:
        StorageError: if it cannot be read.
    """
    try:
        held = _holder(uri)
        system, path = at(join(uri, HOLDER))
        silent = bool(held) and time.time() - system.get_file_info(path).mtime_ns / 1e9 > 2 * DEAD_SECONDS
    except (OSError, ValueError) as error:
        raise StorageError(uri, [f"cannot be read ({reason(error)}); is it there, and may you read it?"]) from error
    return _words(held) if held and not held["ended"] and not silent and not _dead(held) else None


def send(folder: Path, uri: str) -> None:
    """Copy the files of a folder to a URI.

    Raises:
        OSError: if that fails.
    """
    for file in [each for each in sorted(folder.rglob("*")) if each.is_file()]:
        _put(join(uri, *file.relative_to(folder).parts), file.read_bytes())


def _spool(uri: str) -> Path:
    return cache_folder(uri, "spool") / "results"


def _put(place: str, content: bytes) -> None:
    storage.write(place, lambda stream: stream.write(content))


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _holder(uri: str) -> dict[str, Any]:
    """What the last run at a URI said of itself; empty if there was none."""
    stream = storage.read(join(uri, HOLDER))
    found = dict(json.load(stream)) if stream else {}
    return found if "session" in found else {}  # a folder that was copied there has one of another kind


def _words(held: dict[str, Any]) -> str:
    return f"process {held['pid']} on {held['host']} since {held['since']} ({held['command']})"


def _dead(held: dict[str, Any]) -> bool:
    """Whether a run is known to be dead, since it was one of this machine."""
    if held["host"] != platform.node():
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _claimed(uri: str, spool: Path, command: str, say: Callable[[str], None], *, new: bool) -> _Mirror:
    """Make a URI ours and its spool as new as the URI."""
    tokens, mine = spool.parent / "sessions", uuid.uuid4().hex
    try:
        held = _holder(uri)
        _wait_for_death(uri, held, say)
        there = listing(*at(uri))
        # The spool is newer if the last run here was the last of all; else another machine has gone on without it.
        ours = held.get("session") in _tokens(tokens) or "spec.toml" not in there
        if not ours and spool.exists():
            say(f"{uri}: was gone on with elsewhere; what {spool} has of an earlier run is out of date and dropped")
        if not ours or not (spool / "spec.toml").exists():
            shutil.rmtree(spool, ignore_errors=True)
        if new and there:
            what = "already holds a study" if "spec.toml" in there else f"is not empty, it holds {min(there)}"
            raise StorageError(f"--out {uri}", [f"{what}; give a URI where there is nothing yet"])
        if new and spool.exists():
            told = f"an earlier run could not send its results, they are in {spool}; `study resume {uri}` goes on"
            raise StorageError(f"--out {uri}", [f"{told}; to begin anew, remove that folder"])
        if not new and not spool.exists():
            fetch(uri, spool, unread=_OURS)
        for below in (spool, spool / CONFIRM):
            shutil.rmtree(below / "checkpoints", ignore_errors=True)  # `reconcile` looks at the URI itself
        # Should we die in between, the URI tells whose it is.
        _put(str(tokens), f"{held.get('session', '')}\n{mine}\n".encode())
        mirror = _Mirror(uri, spool, mine, command, say)
        mirror.known = {name: (0, 0) if ours else _stamp(spool / name) for name in there if not _skipped(name)}
        mirror.beat()
        time.sleep(SETTLE_SECONDS)
        mirror.beat()
    except (OSError, ValueError) as error:
        if isinstance(error, StudyError | ResultsError):
            raise
        told = f"cannot be used ({reason(error)}); is it there, may you write to it, and does the store answer?"
        raise StorageError(uri, [told]) from error
    if mirror.lost:
        raise StorageError(uri, [f"a study has begun in it: {mirror.lost}; give another URI"])
    return mirror


def _tokens(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _wait_for_death(uri: str, held: dict[str, Any], say: Callable[[str], None]) -> None:
    """Wait until it is sure that the run which holds a URI is dead; clocks of other machines are not believed.

    Raises:
        StorageError: if it lives.
    """
    if not held or held["ended"] or _dead(held):
        return
    say(f"{uri}: held by {_words(held)}; waiting up to {DEAD_SECONDS:.0f} s to see whether it lives")
    until = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        if (current := _holder(uri)) != held:
            if current.get("ended"):
                return
            raise StorageError(
                uri, [f"a study runs in it: {_words(current)}; wait for it, or stop it with SIGTERM there"]
            )


def _skipped(name: str) -> bool:
    """Whether a file is none of the results: locks, what is half written, trials' checkpoints, Ray Tune's."""
    parts = name.split("/")
    return name.endswith(".tmp") or any(part.startswith(".") or part in _OURS for part in parts)


def _stamp(file: Path) -> Stamp:
    facts = file.stat()
    return facts.st_mtime_ns, facts.st_size


class _Mirror(threading.Thread):
    """Sends what changes in a spool.

    Attributes:
        known: files at the URI, as they were in the spool when they were sent.
        lost: who has taken the URI from us; empty if nobody.
    """

    def __init__(self, uri: str, spool: Path, session: str, command: str, say: Callable[[str], None]) -> None:
        super().__init__(name="mirror", daemon=True)
        self.uri, self.spool, self.say = uri, spool, say
        self.me = {"session": session, "host": platform.node(), "pid": os.getpid(), "since": _now(), "command": command}
        self.known: dict[str, Stamp] = {}
        self.lost, self.beats, self.beaten = "", 0, 0.0
        self._seen: set[str] = set()
        self._ended, self._away = threading.Event(), False

    def run(self) -> None:
        """Push until the study has ended."""
        pause = PUSH_SECONDS
        while not self._ended.wait(pause) and not self.lost:
            begun = time.monotonic()
            if self._pushed():
                pause = min(max(PUSH_SECONDS, 4 * (time.monotonic() - begun)), RETRY_SECONDS)
            else:
                pause = min(2 * pause, RETRY_SECONDS)
        if self.lost and not self._ended.is_set():
            # The study ends as if it had been stopped; what a shell started in the background ignores SIGINT.
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)

    def _pushed(self) -> bool:
        """Push, and tell when the store goes and comes back."""
        try:
            self.push()
        except Exception as error:  # noqa: BLE001  whatever is wrong with the store, the study goes on
            if not self._away:
                self.say(f"{self.uri}: cannot be written to ({reason(error)}); the study goes on, trying again ...")
            self._away = True
            return False
        if self._away:
            self.say(f"{self.uri}: can be written to again")
        self._away = False
        return True

    def beat(self, ended: str = "") -> None:
        """Say that we live, unless another run has taken over."""
        held = _holder(self.uri)
        if self.beats and held.get("session") != self.me["session"]:
            self.lost = _words(held) if held else "an unknown process, which has emptied it"
            return
        self.beats += 1
        _put(join(self.uri, HOLDER), json.dumps({**self.me, "beat": self.beats, "ended": ended}).encode())
        self.beaten = time.monotonic()

    def push(self) -> None:
        """Send what has changed since the last time, and delete what is gone."""
        self.beat()
        if self.lost:
            return
        journals = self._journals()
        found = self._scan()
        # First what comes to be last: see the module.
        for name, stamp in reversed(found.items()):
            if self.known.get(name) != stamp:
                with suppress(FileNotFoundError):  # merged in the meantime
                    content = (self.spool / name).read_bytes()
                    self._send(name, stamp, content)
        for name, (stamp, content) in journals.items():
            self._send(name, stamp, content)
        there = set(found) | set(journals) | {name for name in _JOURNALS if (self.spool / name).exists()}
        # Twice not there: a look that began before a merge and ended after it sees neither the parts nor the whole.
        for name in [each for each in self.known if each not in there | self._seen]:
            storage.delete(join(self.uri, name))
            del self.known[name]
        self._seen = there
        for marker in [*self.spool.glob("checkpoints/*"), *self.spool.glob(f"{CONFIRM}/checkpoints/*")]:
            storage.delete(join(self.uri, *marker.relative_to(self.spool).parts))
            marker.unlink(missing_ok=True)

    def _send(self, name: str, stamp: Stamp, content: bytes) -> None:
        _put(join(self.uri, name), content)
        self.known[name] = stamp
        if time.monotonic() - self.beaten > PUSH_SECONDS:
            self.beat()

    def _journals(self) -> dict[str, tuple[Stamp, bytes]]:
        """The journals that have changed, to their last whole line."""
        found = {}
        for name in _JOURNALS:
            if (self.spool / name).exists() and self.known.get(name) != (stamp := _stamp(self.spool / name)):
                content = (self.spool / name).read_bytes()
                found[name] = stamp, content[: content.rfind(b"\n") + 1]
        return found

    def _scan(self) -> dict[str, Stamp]:
        """The files of the spool but for the journals: rows of trials first, then what was written before these."""
        tables = [self.spool / below / table for table in reversed(_WRITTEN) for below in ("", CONFIRM)]
        found: dict[str, Stamp] = {}
        for top in [*tables, self.spool]:
            for folder, _, names in os.walk(top):
                for file in [Path(folder, name) for name in names]:
                    name = file.relative_to(self.spool).as_posix()
                    if name not in found and name not in _JOURNALS and not _skipped(name):
                        with suppress(FileNotFoundError):
                            found[name] = _stamp(file)
        return found

    def close(self) -> None:
        """Send the rest and let go of the URI; the spool is removed then.

        Raises:
            Halted: if that could not be done; the spool stays.
        """
        self._ended.set()
        self.join()
        until, kept = time.monotonic() + PATIENCE_SECONDS, f"what was not sent is safe in {self.spool}"
        while not self.lost and not (self._pushed() and self._pushed() and self._released()):
            left = until - time.monotonic()
            if left <= 0:
                told = f"{self.uri}: the results could not be sent; {kept}. Mend that, then `study resume {self.uri}`"
                raise Halted(f"{told} on this machine")
            self.say(f"{self.uri}: waiting {left:.0f} s more to send the results; Ctrl-C leaves them in {self.spool}")
            time.sleep(min(RETRY_SECONDS, left))
        if self.lost:
            raise Halted(f"{self.uri}: another run has taken it over: {self.lost}; this one has ended")
        shutil.rmtree(self.spool, ignore_errors=True)

    def _released(self) -> bool:
        """Let go of the URI, if it holds all that was sent."""
        try:
            there = listing(*at(self.uri))
            self.known = {name: stamp for name, stamp in self.known.items() if name in there}
            if set(self._scan()) - set(self.known):
                return False
            if not self.known and not self.spool.exists():
                storage.delete(join(self.uri, HOLDER))  # of a study that did not begin
            else:
                self.beat(ended=_now())
        except OSError:
            return False
        return True
