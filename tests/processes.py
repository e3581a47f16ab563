"""Commands of `study`: in this process, or in processes of their own, which end with the test (see `conftest`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from study.cli import main

STUDY = ("-m", "study")
_started: list[subprocess.Popen[str]] = []


def invoked(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> Result:
    """A command in this process, which has imported what it needs, with the current folder as given."""
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, arguments)


def started(
    folder: Path, *arguments: str, program: tuple[str, ...] = STUDY, **environment: str
) -> subprocess.Popen[str]:
    """A `study` command in a process group of its own, as a shell or a cluster starts it; see `said`."""
    with (folder / "output.txt").open("a") as output:
        return watched(
            [sys.executable, *program, *arguments],
            cwd=folder,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def watched(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Any command, in a process group of its own that ends with the test at the latest."""
    running = subprocess.Popen(command, text=True, start_new_session=True, **options)
    _started.append(running)
    return running


def said(folder: Path) -> str:
    """What the commands started in a folder have printed."""
    return (folder / "output.txt").read_text()


def workers(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """The Ray workers of a study on this machine that train trials."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(running.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process] if "Trainable" in "".join(process.cmdline()[:1]) else []
    return found


@contextlib.contextmanager
def held(running: subprocess.Popen[str]) -> Iterator[None]:
    """Let no trial of a study get on meanwhile."""
    still = workers(running)
    for process in still:
        process.suspend()
    try:
        yield
    finally:
        for process in still:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def end_all() -> None:
    """Kill what a test that failed left running."""
    while _started:
        running = _started.pop()
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
