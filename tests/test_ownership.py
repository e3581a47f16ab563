"""One run owns a results folder, from before it writes anything to its end."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study import api
from study.errors import ClusterError, StorageError
from study.results.ownership import HOLDER, LOCK, Owner, own_folder, recorded_owner, running_owner
from study.results.provenance import write_provenance
from study.spec import check
from tests.test_spec import changed
from trainables import storage

SPEC = check(changed())


def elsewhere(what: Callable[[], object]) -> Exception | None:
    """What a call in another thread raises."""
    raised: list[Exception] = []

    def call() -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def begun(folder: Path) -> Path:
    folder.mkdir()
    storage.write_text(folder / "spec.toml", SPEC.to_toml())
    write_provenance(folder, SPEC, [{"command": "", "started": "", "ended": None}], finished=False)
    return folder


def test_of_two_runs_into_one_folder_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, second = tmp_path / "out", list[Any]()

    def download(spec: Any) -> Path:
        if not second:
            second.append(None)
            second[0] = elsewhere(lambda: api.run(SPEC, out))
            raise ClusterError("ray", "is away")
        raise AssertionError("the second got as far as the first")

    monkeypatch.setattr(api, "download", download)
    with pytest.raises(ClusterError):
        api.run(SPEC, out)
    assert isinstance(second[0], StorageError)
    assert "a study runs in it: process" in str(second[0])
    assert not out.exists()


@pytest.mark.parametrize(
    "how", [{"more": 1}, {}, {"like": check(changed(lanes__seeds=9))}], ids=["extend", "resume", "run --resume"]
)
def test_a_study_that_runs_is_neither_resumed_nor_extended(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor compared: its spec is another's to write until it ends."""
    folder, second = begun(tmp_path / "out"), list[Any]()

    def connect(*given: Any) -> None:
        assert not second
        second.append(elsewhere(lambda: api.resume(folder, **how)))

    monkeypatch.setattr(api, "_connect_and_run", connect)
    monkeypatch.setattr(api, "_with_report", lambda outcome: None)
    before = (folder / "spec.toml").read_text()
    api.resume(folder, more=3)
    assert "a study runs in it: process" in str(second[0])
    assert (folder / "spec.toml").read_text() == before


def test_the_owner_may_own_again(tmp_path: Path) -> None:
    with own_folder(tmp_path, "study resume"):
        with own_folder(tmp_path, "another part of it"):
            assert json.loads((tmp_path / HOLDER).read_text())["command"] == "study resume"
        assert running_owner(tmp_path)
        assert isinstance(elsewhere(own_folder(tmp_path, "study extend").__enter__), StorageError)
    assert not running_owner(tmp_path)


def test_a_dead_owner_is_recognised_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / LOCK).touch()

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("study.results.ownership.FileLock.acquire", refused)
    for pid, dead in ((process.pid, True), (os.getpid(), False)):
        Owner("study run", pid=pid).write(tmp_path)
        assert (running_owner(tmp_path) is None) == dead


def test_a_process_of_a_container_with_the_same_host_name_is_not_taken_for_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here, there = Owner("study run", pid=process.pid), Owner("study run", pid=process.pid, machine="another")
    assert (here.is_dead(), there.is_dead()) == (True, False)
    (tmp_path / HOLDER).write_text(
        json.dumps({"command": "x", "host": platform.node(), "pid": process.pid, "since": ""})
    )
    owner = recorded_owner(tmp_path)  # of an earlier version
    assert owner
    assert owner.is_dead()


@pytest.mark.parametrize("given", ["a folder", "a link"])
def test_a_run_that_does_not_start_leaves_what_was_there(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for an empty folder, as it would have made."""

    def away(*_: Any) -> None:
        raise ClusterError("ray", "is away")

    monkeypatch.setattr(api, "_connect_and_run", away)
    (tmp_path / "there").mkdir()
    if given == "a link":
        (tmp_path / "out").symlink_to(tmp_path / "there")
    with pytest.raises(ClusterError):
        api.run(SPEC, tmp_path / "out")
    assert list((tmp_path / "there").iterdir()) == []
    assert (tmp_path / "out").is_symlink() == (given == "a link")
