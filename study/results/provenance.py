"""Writes `provenance.json`: which code, versions and machines the numbers of a results folder come from."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from analysis.results import read_provenance
from analysis.schema import PREVIOUS, PROVENANCE, DamagedError, seal, unseal
from study.spec import Spec
from study.spec.changes import fixed_settings
from trainables import storage
from trainables.engines.kernel import build

SAVE_SECONDS = 30.0
# Space that a running session keeps for its record: a driver that dies on a full disk is to leave what happened.
SPARE, SPARE_BYTES = ".spare", 64 << 10
# Of the data.
_FACTS = ("about", "task", "train", "validation", "test", "classes", "warnings", "baselines")
PACKAGES = ("optimizer-study", "torch", "torchvision", "ray", "optuna", "numpy", "pandas")


def new_session(command: str) -> dict[str, Any]:
    """The record of a session that begins now: its command, code, versions and hardware."""
    return {
        "command": command,
        "started": now(),
        "ended": None,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "events": [],
    }


class Record:
    """The record of a running session in `provenance.json`; `nodes` grows as nodes of the cluster are seen."""

    def __init__(self, folder: Path, spec: Spec, command: str, nodes: dict[str, int]) -> None:
        self.folder, self.spec = folder, spec
        self._phase, self._began, self._saved = "", 0.0, time.monotonic()
        earlier = read_provenance(folder).get("sessions") or []
        self.phase_seconds: dict[str, float] = {}
        self.sessions = [*earlier, new_session(command) | {"nodes": nodes, "phase_seconds": self.phase_seconds}]
        write_provenance(folder, spec, self.sessions, finished=False)
        storage.write_bytes(folder / SPARE, os.urandom(SPARE_BYTES))

    def note(self, kind: str, text: str) -> None:
        """Record what happened to a node or worker, also where the disk is full."""
        self.sessions[-1]["events"].append({"time": now(), "kind": kind, "text": text})
        try:
            write_provenance(self.folder, self.spec, self.sessions, finished=False)
        except OSError:
            with suppress(OSError):  # the next write includes it
                (self.folder / SPARE).unlink(missing_ok=True)
                write_provenance(self.folder, self.spec, self.sessions, finished=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record how long the context lasts."""
        self._phase, self._began = name, time.monotonic()
        try:
            yield
        finally:
            self._count()

    def _count(self) -> None:
        self.phase_seconds[self._phase] = round(time.monotonic() - self._began, 1)

    def tick(self) -> None:
        """Write how long the phase has lasted so far, from time to time, for a session that is killed."""
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._saved = time.monotonic()
            self._count()
            with suppress(OSError):
                write_provenance(self.folder, self.spec, self.sessions, finished=False)

    def time_up(self) -> bool:
        """Whether the search has lasted as long as it may, all sessions together."""
        self._count()
        seconds = sum(session.get("phase_seconds", {}).get("search", 0.0) for session in self.sessions)
        return bool(seconds >= self.spec.tuning.timeout_seconds)

    def end(self, *, finished: bool) -> None:
        """Record that the session has ended."""
        self.sessions[-1]["ended"] = now()
        (self.folder / SPARE).unlink(missing_ok=True)
        write_provenance(self.folder, self.spec, self.sessions, finished=finished)


def add_phase(folder: Path, name: str, seconds: float) -> None:
    """Record how long a part of the last session took that came after its end."""
    content = read_provenance(folder)
    if sessions := content.get("sessions"):
        sessions[-1].setdefault("phase_seconds", {})[name] = round(seconds, 1)
        _write(folder, content)


def write_provenance(folder: Path, spec: Spec, sessions: list[dict[str, Any]], *, finished: bool) -> None:
    """Write `provenance.json`: of each session the record of `new_session`, and whether every trial has ended."""
    facts = spec.workload.facts
    loss = f"mean of {spec.workload.loss}" if spec.workload.loss else "cross-entropy in nats"
    if facts.task == "regression" and not spec.workload.loss:
        loss = "mean squared error" + (" in variances of y" if spec.workload.standardize else "")
    content = {
        "command": sessions[0]["command"],
        "started": sessions[0]["started"],
        "finished": now() if finished else None,
        "sessions": sessions,
        "spec": fixed_settings(spec),
        **({"warm_start": spec.tuning.warm_start} if spec.tuning.warm_start else {}),
        "spec_toml": spec.to_toml(),
        "seeds": {"root": spec.tuning.seed, "lanes": spec.lane_seeds(), "confirm": spec.confirm_seeds()},
        "data": {
            "name": spec.workload.data,
            **{name: value for name in _FACTS if (value := getattr(facts, name))},
            "loss": loss,
        },
    }
    _write(folder, content)


def _write(folder: Path, content: dict[str, Any]) -> None:
    """Write `provenance.json`, and keep the one that was there."""
    file, previous = folder / PROVENANCE, folder / PREVIOUS
    with suppress(OSError, DamagedError):  # there is none yet, or it must not replace a whole one
        unseal(file)
        unfinished = previous.with_name(f"{PREVIOUS}.tmp")
        unfinished.unlink(missing_ok=True)
        unfinished.hardlink_to(file)
        unfinished.replace(previous)
    storage.write_text(file, seal(content))


def now() -> str:
    """The time in UTC, to the second, in ISO format."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect numbers."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # our own, where the code came to a cluster with the job
            installed[name] = metadata.version(name)
    return installed


def hardware() -> dict[str, Any]:
    """Processor, memory, GPUs and native kernel of this machine."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next((line.split(":", 1)[1].strip() for line in models), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "gpus": gpus,
        "system": platform.platform(),
        "kernel": build.unavailable() or build.identity("float32"),
    }


def commit() -> str | None:
    """The git commit of this code, marked if it has changes; None where it is installed as a package."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        shown = subprocess.run(describe, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.strip() or None
