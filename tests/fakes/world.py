"""A cluster, a disk, a store, a database and the driver of one study, to which anything may happen.

`World.start` runs `study.run`, or `study.resume` once there is something to resume, in a thread. The thread stops in
the fake of Ray Tune and waits until one of the verbs tells what happens next, so that a history is deterministic. Only
Ray and the servers are replaced: the session, searcher, scheduler, writer, recovery and trainables are real.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import ray
import ray.tune
import sqlalchemy.engine.default
import tomlkit
import torch

import analysis
import study
from analysis.results import parts
from analysis.schema import FOLDERS
from study.errors import StudyError
from study.results import mirror, ownership
from tests.fakes.store import Server, Store
from tests.fakes.tune import NODE_DIED, Trial, Tuner


class Killed(BaseException):
    """SIGKILL: no handler of the project may catch it."""


class World(AbstractContextManager["World"]):
    """See the module.

    Args:
        top: a folder of this world's own.
        tables: of the spec; `tuning.storage` is any text to have Optuna in a database.
        at_uri: whether the results are at a URI of an object store.

    Attributes:
        nodes: each has room for one worker.
        tuner: what the driver waits in; None while no driver runs.
        ended: what the last driver returned or raised.
        full: whether the disk takes nothing more.
    """

    def __init__(self, top: Path, tables: dict[str, Any], *, at_uri: bool = False) -> None:
        self.top, self.tables = top, tables
        self.place: Path | str = "s3://bucket/out" if at_uri else top / "out"
        self.database = f"sqlite:///{top}/optuna.db" if "storage" in tables["tuning"] else ""
        if self.database:
            self.tables = tables | {"tuning": tables["tuning"] | {"storage": self.database}}
        self.store, self.server = Store(), Server()
        self.nodes = ["node-0", "node-1"]
        self.joined = 2
        self.tuner: Tuner | None = None
        self.ended: Any = None
        self.full = self.machine = 0
        self.orphans = self._more = 0
        self.damaged: dict[Path, bytes] = {}
        self._killing: tuple[int, float] | None = None
        self._thread: threading.Thread | None = None
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._event: Callable[[Tuner], object] | None = None
        self._synced: dict[str, int] = {}
        self._left: list[tuple[Path, bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> World:
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        tuner = type("Tuner", (Tuner,), {"world": self})
        patch.setattr(ray.tune, "Tuner", tuner)
        patch.setattr(ray.tune, "with_resources", lambda trainable, resources: trainable)
        for name in ("init", "shutdown"):
            patch.setattr(ray, name, lambda *_, **__: None)
        patch.setattr(ray, "nodes", self._ray_nodes)
        patch.setattr("study.cluster.ray.LOOK_SECONDS", 0.0)
        patch.setattr("analysis.report.page.report", lambda folders, *_, **__: (Path(folders[0]) / "report", [[]]))
        # Facts of the provenance that are slow to find.
        patch.setattr(subprocess, "run", _no_program)
        patch.setattr(metadata, "version", _version)
        # Without a GPU these only queue the seed, with a stack trace each, which takes longer than a step.
        for device in (torch.cuda, torch.mtia, torch.xpu):
            patch.setattr(device, "manual_seed_all", lambda seed: None)
        self._fsync, self._sleep = os.fsync, time.sleep
        patch.setattr(os, "fsync", self._sync)
        patch.setattr(time, "sleep", lambda seconds: None if self._inside() else self._sleep(seconds))
        patch.setattr(tomlkit, "dumps", _toml)
        if isinstance(self.place, str):
            self._replace_store(patch)
        if self.database:
            self._replace_server(patch)
        return self

    def _replace_store(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("trainables.storage._file_system", lambda bucket, query: self.store.system)
        systems = SimpleNamespace(from_uri=lambda uri: (self.store.system, uri.removeprefix("s3://")))
        patch.setattr("analysis.remote.FileSystem", systems)
        patch.setenv("XDG_CACHE_HOME", str(self.top / "machine-0"))
        # The mirror sends what has changed when `send` says so, and once at the end.
        patch.setattr(mirror, "PUSH_SECONDS", 1e6)
        patch.setattr(mirror, "PATIENCE_SECONDS", 0.0)
        for name in ("DEAD_SECONDS", "SETTLE_SECONDS"):
            patch.setattr(ownership, name, 0.0)
        self._patch = patch

    def _replace_server(self, patch: pytest.MonkeyPatch) -> None:
        dialect = sqlalchemy.engine.default.DefaultDialect
        execute, commit = dialect.do_execute, dialect.do_commit

        def do_execute(dialect: Any, cursor: Any, *given: Any, **named: Any) -> Any:
            if self._inside():
                self.server.execute()
            return execute(dialect, cursor, *given, **named)

        def do_commit(dialect: Any, connection: Any) -> None:
            if not self._inside():
                return commit(dialect, connection)
            killing = self._killing_now()
            if killing is None or killing > 0.5:
                commit(dialect, connection)
                if killing is None:
                    return self.server.committed()
            raise self._killed()

        patch.setattr(dialect, "do_execute", do_execute)
        patch.setattr(dialect, "do_commit", do_commit)
        # SQLite is a file, for which no session waits.
        patch.setattr("study.tuning.storage.make_url", lambda url: SimpleNamespace(get_backend_name=lambda: "server"))

    def _inside(self) -> bool:
        """Whether it is the driver that asks."""
        return threading.current_thread() is self._thread

    def __exit__(self, *failure: object) -> None:
        if self.tuner:
            self.kill_driver()
        self._stack.close()

    # What there is.

    @property
    def folder(self) -> Path:
        """The results folder on the driver's disk: the spool, if the results are at a URI."""
        return self.place if isinstance(self.place, Path) else mirror._spool(self.place)

    def results(self) -> Path:
        """The results in a folder of this machine."""
        if isinstance(self.place, Path):
            return self.place
        folder = self.top / "fetched"
        for name, content in self.store.below("bucket/out").items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return folder

    def optuna(self, folder: Path, name: str) -> optuna.Study:
        """What Optuna's storage says, in a database or in a folder of the results."""
        backend = optuna.storages.journal.JournalFileBackend(str(folder / "optuna.journal"))
        return optuna.load_study(
            study_name=name, storage=self.database or optuna.storages.JournalStorage(backend)
        )  # fmt: skip

    # The driver, from outside.

    @property
    def alive(self) -> bool:
        """Whether a driver runs."""
        return self.tuner is not None

    def running(self) -> list[Trial]:
        """Trials that have a worker."""
        return self.tuner.running() if self.tuner else []

    def start(self, more: int = 0) -> None:
        """Start a driver: the study's first, or one that resumes it, with more trials.

        One that refuses a damaged file, which it names, is started again with the file as it was.
        """
        assert not self.alive
        self._more = more
        self._synced = {str(file): file.stat().st_size for file in self.folder.rglob("*.journal")}
        self.orphans, self.ended = 0, None
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()
        self._wait()
        damaged, self.damaged = self.damaged, {}
        if damaged and isinstance(self.ended, StudyError | analysis.ResultsError):
            assert any(str(file) in str(self.ended) for file in damaged), self.ended
            for file, content in damaged.items():
                file.write_bytes(content)
            self.start(more)

    def step(self, trial: Trial) -> None:
        """Train one step of a trial."""
        self._happens(lambda tuner: tuner.step(trial))

    def kill_worker(self, trial: Trial, *, stepped: bool = False) -> None:
        """Kill a trial's worker, with or without a step whose result is lost."""
        self._happens(lambda tuner: tuner.kill_workers([trial], stepped=stepped))

    def kill_between(self, trial: Trial, *, twice: bool) -> None:
        """Kill a worker while it is given a trial."""
        self._happens(lambda tuner: tuner.kill_between(trial, twice=twice))

    def lose_node(self, node: str) -> None:
        """Lose a node and the worker on it."""
        self.nodes.remove(node)

        def lose(tuner: Tuner) -> None:
            tuner.idle = [worker for worker in tuner.idle if worker.node != node]
            tuner.kill_workers([t for t, worker in tuner.workers.items() if worker.node == node], NODE_DIED)

        if self.alive:
            self._happens(lose)

    def join_node(self) -> None:
        """Add a node."""
        self.joined += 1
        self.nodes.append(f"node-{self.joined}")
        if self.alive:
            self._happens(lambda tuner: None)

    def terminate(self) -> None:
        """SIGTERM, as Ray Tune's own handler takes it: the loop ends after this step, workers are stopped."""
        self._happens(lambda tuner: setattr(tuner, "interrupted", True))

    def kill_driver(self) -> None:
        """SIGKILL while the driver waits for a result; its workers die with it."""

        def kill(tuner: Tuner) -> None:
            raise self._killed()

        self._happens(kill)

    def kill_at_write(self, after: int, share: float) -> None:
        """SIGKILL within a later write of the driver, or of a worker, which dies with it.

        Args:
            after: writes that are still made.
            share: of the bytes that reach the disk.
        """
        self._killing = after, share

    def fill_disk(self, writes: int) -> None:
        """Let so many writes fail, as on a disk that is full for a while."""
        self.full = writes

    def lose_store(self, requests: int) -> None:
        """Let so many requests to the object store fail."""
        self.store.away = requests

    def send(self) -> None:
        """Let the mirror send what has changed."""
        (thread,) = [each for each in threading.enumerate() if each.name == "mirror"]
        self._happens(lambda tuner: thread._pushed())  # type: ignore[attr-defined]

    def change_machine(self) -> None:
        """Let the next driver run on the other one of two machines, which share the store alone."""
        assert not self.alive
        self.machine = 1 - self.machine
        self._patch.setenv("XDG_CACHE_HOME", str(self.top / f"machine-{self.machine}"))

    def lose_database(self, statements: int) -> None:
        """Let so many statements of the driver fail."""
        self.server.away = statements

    def lose_commit(self, after: int) -> None:
        """Let the server go after a commit, before it says that it was made."""
        self.server.lost = after

    def damage_part(self, table: str, which: int, share: float) -> None:
        """Cut a part of a table to a share of its bytes, while no driver runs."""
        assert not self.alive
        if found := [file for _, _, file in parts(self.folder / FOLDERS[table])]:
            cut(found[which % len(found)], share)

    def damage_journal(self, share: float, *, middle: bool) -> None:
        """Cut off the end of Optuna's journal, or make a line in it unreadable."""
        assert not self.alive
        file = self.folder / "optuna.journal"
        if not file.exists():
            return
        if middle:
            lines = file.read_bytes().split(b"\n")
            lines[int(share * (len(lines) - 1))] = b"{}"
            file.write_bytes(b"\n".join(lines))
        else:
            cut(file, share)

    def flip(self, which: int, bit: int) -> None:
        """Flip a bit of a file of the results, while no driver runs; but of those that users edit."""
        assert not self.alive
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file() and file.stat().st_size]
        if files := [file for file in files if file.name not in ("spec.toml", ".holder.json")]:
            file = files[which % len(files)]
            content = bytearray(file.read_bytes())
            self.damaged.setdefault(file, bytes(content))
            content[bit // 8 % len(content)] ^= 1 << bit % 8
            file.write_bytes(content)

    def move(self) -> None:
        """Give the results folder another name, while no driver runs."""
        assert isinstance(self.place, Path)
        place = self.place.with_name(f"{self.place.name}-moved")
        self.damaged = {place / file.relative_to(self.place): content for file, content in self.damaged.items()}
        self.place = self.place.rename(place)

    def calm(self) -> None:
        """Take back what has not happened yet, and see that there is a node."""
        self._killing, self.full, self.store.away = None, 0, 0
        self.server.away, self.server.lost = 0, None
        if not self.nodes:
            self.join_node()

    def finish(self) -> None:
        """Run the study to its end, with as many drivers as it takes."""
        self.calm()
        for _ in range(3):
            if not self.alive:
                self.start()
            while running := self.running():
                self.step(running[0])
            if isinstance(self.ended, study.Outcome):
                return
        raise AssertionError(f"does not end: {self.ended!r}") from self.ended

    # The driver, from inside.

    def pause(self, tuner: Tuner) -> None:
        """Wait for the next event, and let it happen."""
        self.tuner = tuner
        self._waits.release()
        self._go.acquire()
        assert self._event
        self._event(tuner)

    def _drive(self) -> None:
        try:
            begun = mirror.has_study(str(self.place))
            self.ended = study.resume(self.place, more=self._more, show="quiet") if begun else study.run(
                self.tables, self.place, show="quiet"
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001  tests look at whatever it was
            self.ended = error
        self.tuner = None
        self.calm()
        for file, content in self._left:
            if file.parent.is_dir():
                file.write_bytes(content)
        self._left.clear()
        self._waits.release()

    def _killed(self) -> Killed:
        """The error that ends the driver, whose mirror can send nothing more."""
        self.store.away = sys.maxsize
        return Killed()

    def _happens(self, event: Callable[[Tuner], object]) -> None:
        assert self.alive
        self._event = event
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        assert self._waits.acquire(timeout=60), "the driver hangs"
        if self.tuner is None:
            assert self._thread
            self._thread.join()
            if isinstance(self.ended, AssertionError):
                raise self.ended

    def _sync(self, descriptor: int) -> None:
        """Stands in for `os.fsync`, with which every durable write ends."""
        if not self._inside():
            return self._fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return None
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        before, size = self._synced.get(str(file), 0), os.fstat(descriptor).st_size
        if (share := self._killing_now()) is not None:
            os.ftruncate(descriptor, before + int(share * (size - before)))
            # What unwinds cleans up, which a killed process cannot.
            self._left.append((file, file.read_bytes()))
            raise self._killed()
        if self.full:
            self.full -= 1
            os.ftruncate(descriptor, before + (size - before) // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if file.suffix == ".journal":
            self._synced[str(file)] = size
        return None

    def _killing_now(self) -> float | None:
        """The share of a write that is made, if the driver is killed in it; called for every write."""
        if not self._killing:
            return None
        after, share = self._killing
        self._killing = (after - 1, share) if after else None
        return None if after else share

    def _ray_nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": "127.0.0.1", "Alive": True,
             "Resources": {"CPU": 1.0}}
            for name in self.nodes
        ]  # fmt: skip


def cut(file: Path, share: float) -> None:
    """Leave a share of a file's bytes."""
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


@cache
def _cached_toml(content: str) -> str:
    return _dumps(json.loads(content))


def _toml(tables: Any) -> str:
    """As `tomlkit.dumps`, which takes as long as a session's trials."""
    return _cached_toml(json.dumps(tables))


def _no_program(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError


_version, _dumps = cache(metadata.version), tomlkit.dumps
