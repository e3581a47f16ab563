"""A cluster, a disk and the driver of one study, to which anything may happen.

`World.start` runs `study.run`, or `study.resume` once there is something to resume, in a thread. The thread stops in
the fake of Ray Tune and waits until one of the verbs tells what happens next, so that a history is deterministic. Only
Ray is replaced: the session, searcher, scheduler, writer, recovery and trainables are real.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.tune
import torch

import study
from tests.fakes.tune import NODE_DIED, Trial, Tuner


class Killed(BaseException):
    """SIGKILL: no handler of the project may catch it."""


class World(AbstractContextManager["World"]):
    """See the module.

    Args:
        place: of the results.
        tables: of the spec.
        nodes: how many there are, each with room for one worker.

    Attributes:
        tuner: what the driver waits in; None while no driver runs.
        ended: what the last driver returned or raised.
        full: whether the disk takes nothing more.
    """

    def __init__(self, place: Path, tables: dict[str, Any], nodes: int = 2) -> None:
        self.place, self.tables = place, tables
        self.nodes = [f"node-{number}" for number in range(nodes)]
        self.joined = nodes
        self.tuner: Tuner | None = None
        self.ended: Any = None
        self.full = 0
        self.orphans = 0
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
        patch.setattr("analysis.report.page.write_report", lambda folders, **_: Path(folders[0]) / "report")
        # Facts of the provenance that are slow to find.
        patch.setattr(subprocess, "run", _no_program)
        patch.setattr(metadata, "version", _version)
        # Without a GPU these only queue the seed, with a stack trace each, which takes longer than a step.
        for device in (torch.cuda, torch.mtia, torch.xpu):
            patch.setattr(device, "manual_seed_all", lambda seed: None)
        self._fsync = os.fsync
        patch.setattr(os, "fsync", self._sync)
        return self

    def __exit__(self, *failure: object) -> None:
        if self.tuner:
            self.kill_driver()
        self._stack.close()

    # The driver, from outside.

    @property
    def alive(self) -> bool:
        """Whether a driver runs."""
        return self.tuner is not None

    def running(self) -> list[Trial]:
        """Trials that have a worker."""
        return self.tuner.running() if self.tuner else []

    def start(self) -> None:
        """Start a driver: the study's first, or one that resumes it."""
        assert not self.alive
        self._synced = {str(file): file.stat().st_size for file in self.place.rglob("*.journal")}
        self.orphans, self.ended = 0, None
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()
        self._wait()

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
            raise Killed

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

    def calm(self) -> None:
        """Take back what has not happened yet, and see that there is a node."""
        self._killing, self.full = None, 0
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
            begun = (self.place / "spec.toml").exists()
            self.ended = study.resume(self.place, show="quiet") if begun else study.run(
                self.tables, self.place, show="quiet"
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001  tests look at whatever it was
            self.ended = error
        self.tuner = None
        self._killing, self.full = None, 0
        for file, content in self._left:
            if file.parent.is_dir():
                file.write_bytes(content)
        self._left.clear()
        self._waits.release()

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
        if threading.current_thread() is not self._thread:
            return self._fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return None
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        before, size = self._synced.get(str(file), 0), os.fstat(descriptor).st_size
        if self._killing:
            after, share = self._killing
            self._killing = after - 1, share
            if not after:
                self._killing = None
                os.ftruncate(descriptor, before + int(share * (size - before)))
                # What unwinds cleans up, which a killed process cannot.
                self._left.append((file, file.read_bytes()))
                raise Killed
        if self.full:
            self.full -= 1
            os.ftruncate(descriptor, before + (size - before) // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if file.suffix == ".journal":
            self._synced[str(file)] = size
        return None

    def _ray_nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": "127.0.0.1", "Alive": True,
             "Resources": {"CPU": 1.0}}
            for name in self.nodes
        ]  # fmt: skip


def _no_program(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError


_version = cache(metadata.version)
