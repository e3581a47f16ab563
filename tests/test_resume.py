"""Real studies that are really killed, and go on."""

from __future__ import annotations

import contextlib
import math
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomlkit
from optuna.trial import TrialState

import analysis
from study.spec import read
from study.tuning.storage import open_study
from tests.processes import said, started, workers
from tests.test_spec import changed

KILLED = changed(
    workload={"data": "linear", "model": "mlp"},
    search={
        "width": {"low": 4, "high": 8},
        "depth": [1, 2],
        "batch_size": [2, 8, "full"],
        "optimizer": ["sgd", "adam"],
    },
    lanes={"rates": 3, "seeds": 2, "extensions": 1, "refine": 1},
    budget={"trials": 40, "epochs": 8},
    tuning={"sampler": "qmc", "scheduler": "none"},
    recording={"checkpoint_seconds": 0.0},
)
CONFIRMED = KILLED | {"confirm": {"top": 4, "seeds": 3}}

LOST = r"trial (\d+): its worker was lost; the trial continues"


def ended(folder: Path) -> int:
    try:
        return len(analysis.load(folder / "results/good").trials.query("outcome != 'interrupted'"))
    except analysis.ResultsError:
        return 0


def wait_for(folder: Path, what: Callable[[], object], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline, said(folder)
        if running.poll() is not None:
            return
        time.sleep(0.02)


def numbers(folder: Path, trials: int | None = None) -> dict[str, str]:
    """Everything that a study computed, or its first trials did, times aside."""
    found = analysis.load(folder / "results/good")
    timed = {"worker", "started", "stints"}
    frames = {"trials": found.trials, "lanes": found.lanes, "curves": found.curves}
    return {
        name: frame[frame["trial"] < (trials or math.inf)]
        .drop(columns=[c for c in frame if "seconds" in c or c in timed])
        .to_csv()
        for name, frame in frames.items()
    }


def states(folder: Path) -> dict[int, TrialState]:
    results = folder / "results/good"
    return {trial.number: trial.state for trial in open_study(read(results / "spec.toml"), results).trials}


def whole(folder: Path, tables: dict[str, Any]) -> Path:
    """Run a study that nothing disturbs in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "spec.toml").write_text(tomlkit.dumps(tables))
    assert started(folder, "run", "spec.toml").wait(280) == 0, said(folder)
    assert set(states(folder).values()) == {TrialState.COMPLETE}
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("undisturbed"), CONFIRMED)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(KILLED))
    return tmp_path


def check_equal(folder: Path, undisturbed: Path, trials: int = 40) -> None:
    """The study has so many trials, which are the first of the other's."""
    found, mine = states(folder), numbers(folder)
    for table, text in numbers(undisturbed, trials).items():
        # Line by line: pytest's account of two whole texts takes minutes and hides the first line that differs.
        for line, other in zip_longest(mine[table].splitlines(), text.splitlines()):
            assert line == other, table
    assert sorted(found) == list(range(trials))
    assert set(found.values()) == {TrialState.COMPLETE}
    assert not (folder / "results/good/checkpoints").exists()
    assert analysis.load(folder / "results/good").provenance["finished"]


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_driver_killed_five_times_loses_nothing(study: Path, undisturbed: Path) -> None:
    rng = random.Random(4)
    arguments = ["run", "spec.toml"]
    for moment in sorted(rng.sample(range(1, 36), 5)):
        running = started(study, *arguments)
        wait_for(study, lambda moment=moment: ended(study) >= moment, running)  # type: ignore[misc]
        time.sleep(rng.random() / 2)
        running.kill()
        assert running.wait(60) == -signal.SIGKILL
        arguments = ["resume", "results/good"]
    assert started(study, *arguments).wait(280) == 0, said(study)
    check_equal(study, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sigterm_saves_running_trials_and_confirmation_survives_a_kill(tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(CONFIRMED))
    running = started(tmp_path, "run", "spec.toml")
    wait_for(tmp_path, lambda: ended(tmp_path) >= 10, running)
    running.terminate()
    assert running.wait(120) == 130
    assert TrialState.RUNNING not in states(tmp_path).values()
    outcomes = analysis.load(tmp_path / "results/good").trials["outcome"]
    assert set(outcomes) <= {"completed", "interrupted"}
    assert len(outcomes) < 40
    assert "`study resume results/good` continues it" in said(tmp_path)
    running = started(tmp_path, "resume", "results/good")
    confirmation = tmp_path / "results/good/confirm"
    wait_for(tmp_path, lambda: len(list(confirmation.glob("trials.parquet/*"))) > 1, running)
    running.send_signal(signal.SIGSTOP)
    assert len(analysis.load(confirmation).trials) < 4
    running.kill()
    assert running.wait(60) == -signal.SIGKILL
    assert started(tmp_path, "resume", "results/good").wait(280) == 0, said(tmp_path)
    check_equal(tmp_path, undisturbed)
    mine, theirs = (analysis.load(folder / "results/good").confirmation for folder in (tmp_path, undisturbed))
    assert mine
    assert theirs
    assert list(mine.trials["outcome"]) == ["completed"] * len(theirs.trials)
    timed = [name for name in mine.lanes if "seconds" in name]
    pd.testing.assert_frame_equal(mine.lanes.drop(columns=timed), theirs.lanes.drop(columns=timed), check_exact=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_worker_is_replaced_and_its_trial_resumed(study: Path, undisturbed: Path) -> None:
    running = started(study, "run", "spec.toml")

    def ready(trials: int) -> bool:
        """So many trials have ended, and those that lost a worker: one that lost two would be set aside."""
        lost = {int(number) for number in re.findall(LOST, said(study))}
        if len(workers(running)) < 2 or ended(study) < trials:
            return False
        return not lost or lost <= set(analysis.load(study / "results/good").trials["trial"])

    for moment in (3, 20):
        wait_for(study, lambda moment=moment: ready(moment), running)  # type: ignore[misc]
        killed, other = before = workers(running)
        other.suspend()  # it would run all trials before there is another worker
        killed.kill()
        wait_for(study, lambda before=before: set(workers(running)) - set(before), running)  # type: ignore[misc]
        other.resume()
    assert running.wait(280) == 0, said(study)
    assert re.search(LOST, said(study))
    check_equal(study, undisturbed)


SMALL = KILLED | {"budget": {"trials": 10, "epochs": 8}}


def full_disk(folder: Path) -> Path:
    """A file system of 3 MB."""
    place = folder / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"needs to mount a small tmpfs, as root: {made.stderr.strip()}")
    return place


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_full_disk_loses_at_most_running_trials(tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(SMALL))
    place = full_disk(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/good").symlink_to(place / "good")
    try:
        running = started(tmp_path, "run", "spec.toml", "--out", str(place / "good"))
        wait_for(tmp_path, lambda: ended(tmp_path) >= 3, running)
        filler = place / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"0" * 4096)
                file.flush()
        assert running.wait(120) == 1
        told = said(tmp_path)
        assert "nothing more can be written (No space left on device)" in told
        assert f"`study resume {place / 'good'}`" in told
        assert "Traceback" not in told
        kept = numbers(tmp_path)["trials"].count("completed")
        assert 3 <= kept < 10
        filler.unlink()
        assert started(tmp_path, "resume", str(place / "good")).wait(280) == 0, said(tmp_path)
        assert f"good: {kept} of 10 trials have ended" in said(tmp_path)
        check_equal(tmp_path, undisturbed, 10)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_damaged_files_are_reported_and_their_trials_rerun(study: Path, undisturbed: Path) -> None:
    """A killed study whose files are damaged as well, and a second process that wants in."""
    running = started(study, "run", "spec.toml")
    wait_for(study, lambda: ended(study) >= 12, running)
    results = study / "results/good"
    running.send_signal(signal.SIGSTOP)  # or it might end before the second process has started
    refused = started(study, "resume", "results/good")
    assert refused.wait(60) == 2
    assert f"a study runs in it: process {running.pid} on " in said(study)
    running.kill()
    running.wait()
    part = max((results / "lanes.parquet").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    journal = results / "optuna.journal"
    lines = journal.read_bytes().split(b"\n")
    lines[len(lines) // 2] = b'{"op_code": 5, "worker'
    journal.write_bytes(b"\n".join(lines))
    (results / "tune").mkdir(exist_ok=True)
    for snapshot in ("tuner.pkl", "experiment_state-2026-11-24_09-00-00.json"):
        (results / "tune" / snapshot).write_bytes(b"damaged")
    for checkpoint in (results / "checkpoints").glob("*"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert started(study, "resume", "results/good").wait(280) == 0, said(study)
    told = said(study)
    assert f"{part} is damaged" in told
    assert f"line {len(lines) // 2 + 1} is damaged" in told
    assert "Traceback" not in told
    assert len(list((results / "damaged").iterdir())) == 2
    check_equal(study, undisturbed)
