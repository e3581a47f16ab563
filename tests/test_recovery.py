"""What a crash can leave behind, made by hand, and what a study finds of it; tests/test_resume.py kills real ones."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from analysis import results
from analysis.schema import FOLDERS, LANES
from study.errors import StorageError
from study.results import recovery
from study.results.ownership import own_folder, recorded_owner, running_owner
from study.results.recovery import State, reconcile, repair_files
from study.results.writer import Collector
from study.spec import check
from study.tuning.searcher import TruthfulSearch
from study.tuning.space import Space
from study.tuning.storage import open_study
from tests.test_spec import changed
from trainables.lanes.records import Point
from trainables.tune import Payload

SPEC = check(
    changed(
        search__settings={"adam": {"beta1": {"low": 0.5, "high": 0.95}}},
        lanes={"rates": 2, "seeds": 2},
        tuning={"sampler": "random", "scheduler": "none"},
        budget={"trials": 12, "epochs": 2},
    )
)


class Driver:
    """A session of a study without Ray: trials report twice and end as their number says."""

    def __init__(self, folder: Path, spec: Any = SPEC) -> None:
        self.folder, self.said = folder, list[str]()
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "spec.toml").write_text(spec.to_toml())
        self.space = Space(spec, "/data", str(folder / "checkpoints"))
        repair_files(folder, self.said.append)
        self.study = open_study(spec, folder)
        self.state: State = reconcile(self.study, self.space, folder)
        self.search = TruthfulSearch(self.space, self.study, self.state.redo)
        self.collector = Collector(spec, folder, self.search)

    def begin(self) -> Any:
        config = self.search.suggest("")
        trial = SimpleNamespace(config=config, run_metadata=SimpleNamespace(), error_file=None)
        self.collector.on_trial_start(0, [], trial)
        Path(config["checkpoint"]).write_text("state")
        for part in (1, 2):
            self.collector.on_trial_result(0, [], trial, self.result(config, part))
        return trial

    def result(self, config: dict[str, Any], part: int) -> dict[str, Any]:
        number = config["trial"]
        ending = {3: "running", 5: "diverged", 6: "out of memory"}.get(number, "completed")
        bad = ending in ("diverged", "out of memory")
        reported = [math.nan if bad else 1 / (1 + number) + config["width"] / p for p in range(1, part + 1)]
        value = reported[-1]
        lane = {name: None for name in LANES.names} | {"updates": 10 * part, "train_seconds": 1.0}
        lanes = [lane | {"lane": n, "learning_rate": 0.1, "seed": s, "train_seconds_share": 0.5,
                         "validation_loss": value} for n, s in enumerate(config["seeds"])]  # fmt: skip
        point = Point(10 * part, 100, 1.0, 0.5, [0, 1], {("validation", "loss"): [value, value]})
        return {
            "value": value, "learning_rate": None if math.isnan(value) else 0.1, "report": part, "extending": False,
            "reported": reported, "outcome": ending if part == 2 else "running", "finished": part == 2,
            "update": 10 * part, "lanes": 2, "payload": Payload([point], [], lanes, whole=part == 1),
        }  # fmt: skip

    def run(self, count: int) -> None:
        for _ in range(count):
            self.collector.on_trial_complete(0, [], self.begin())


def told(driver: Driver) -> list[tuple[Any, ...]]:
    return [
        (
            t.number,
            t.state,
            t.values,
            *(sorted(each.items()) for each in (t.params, t.intermediate_values, t.user_attrs, t.distributions)),
        )
        for t in driver.study.get_trials()
    ]


def tables(folder: Path) -> list[Any]:
    found = results.load(folder)
    return [found.trials.to_dict("records"), found.lanes.to_dict("records"), found.curves.to_dict("records")]


@pytest.fixture
def undisturbed(tmp_path: Path) -> tuple[list[Any], list[tuple[Any, ...]]]:
    driver = Driver(tmp_path / "undisturbed")
    driver.run(12)
    return tables(driver.folder), told(driver)


def same(first: Any, second: Any) -> bool:
    return repr(first) == repr(second)  # NaN equals NaN there


def part(folder: Path, table: str, place: int = -1) -> Path:
    return [file for _, _, file in results.parts(folder / FOLDERS[table])][place]


def truncate(file: Path, share: float = 0.5) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def cut_the_last_line(folder: Path) -> None:
    journal = folder / "optuna.journal"
    journal.write_bytes(journal.read_bytes()[:-20])


def spoil_a_line(folder: Path) -> None:
    journal = folder / "optuna.journal"
    lines = journal.read_bytes().split(b"\n")
    lines[len(lines) // 2] = b"\x00" * 40
    journal.write_bytes(b"\n".join(lines))


def halve_the_journal(folder: Path) -> None:
    journal = folder / "optuna.journal"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(lines[: len(lines) // 2]) + b"\n")


def spoil_an_operation(folder: Path) -> None:
    journal = folder / "optuna.journal"
    lines = journal.read_bytes().split(b"\n")
    lines[len(lines) // 2] = b"{}"
    journal.write_bytes(b"\n".join(lines))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, ""),
    "last trials part": (lambda folder: truncate(part(folder, "trials")), "is damaged"),
    "merged trials part": (lambda folder: truncate(part(folder, "trials", 0)), "is damaged"),
    "empty lanes part": (lambda folder: truncate(part(folder, "lanes", 0), 0), "is damaged"),
    "curves part": (lambda folder: truncate(part(folder, "curves"), 0.9), "is damaged"),
    "half-written part": (lambda folder: (folder / "curves/0000099-0000099.tmp").write_text("half"), ""),
    "journal's last line": (cut_the_last_line, "the last line was cut off"),
    "journal's middle": (spoil_a_line, "Optuna's storage is made again from the tables"),
    "journal's middle, valid JSON": (spoil_an_operation, "Optuna's storage is made again from the tables"),
    "half a journal": (halve_the_journal, ""),
    "no journal": (lambda folder: (folder / "optuna.journal").unlink(), ""),
    "lock of a dead driver": (lambda folder: (folder / "optuna.journal.lock").symlink_to("nowhere"), ""),
    "damaged snapshot": (lambda folder: (folder / "tune").mkdir() or (folder / "tune/tuner.pkl").write_text("x"), ""),
    "damaged provenance": (lambda folder: (folder / "provenance.json").write_text("{"), ""),
    "no tables": (lambda folder: [file.unlink() for name in ("trials.parquet", "lanes.parquet", "curves")
                                  for file in (folder / name).iterdir()], ""),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_study_ends_as_an_undisturbed_one(
    damage: Callable[[Path], object], message: str, tmp_path: Path, undisturbed: Any
) -> None:
    driver = Driver(tmp_path / "study")
    driver.run(9)
    driver.begin()  # and the driver dies
    damage(driver.folder)
    again = Driver(driver.folder)
    assert bool(message) == bool(again.said)
    assert message in "".join(again.said)
    again.run(12 - len(again.state.rows))
    if damage is not DAMAGES["damaged provenance"][0]:
        assert same(tables(driver.folder), undisturbed[0])
    assert same(told(again), undisturbed[1])
    assert list((driver.folder / "checkpoints").iterdir()) == []


CRASHES = {"before curves": 0, "before lanes": 1, "before the row": 2, "before Optuna is told": 3, "after": 4}


@pytest.mark.parametrize("point", CRASHES.values(), ids=CRASHES)
def test_a_crash_while_a_trials_end_is_written(
    point: int, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path / "study")
    driver.run(4)
    trial = driver.begin()
    steps = [*(driver.collector.tables[name] for name in ("curves", "lanes", "trials")), driver.search]

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    if point < len(steps):
        monkeypatch.setattr(steps[point], "append" if point < 3 else "end", crash)
        with pytest.raises(KeyboardInterrupt):
            driver.collector.on_trial_complete(0, [], trial)
    else:
        driver.collector.on_trial_complete(0, [], trial)
    again = Driver(driver.folder)
    assert len(again.state.rows) == (4 if point < 3 else 5)
    again.run(12 - len(again.state.rows))
    assert same(tables(driver.folder), undisturbed[0])
    assert same(told(again), undisturbed[1])


def test_interrupted_trials_wait_and_their_rows_give_way(tmp_path: Path, undisturbed: Any) -> None:
    driver = Driver(tmp_path / "study")
    driver.run(2)
    trials = [driver.begin(), driver.begin()]
    driver.collector.on_experiment_end(trials)
    found = results.load(driver.folder).trials
    assert list(found["outcome"]) == ["completed"] * 2 + ["interrupted"] * 2
    assert [t.state for t in driver.study.trials[2:]] == [TrialState.WAITING] * 2
    again = Driver(driver.folder)
    assert again.state.begun == [2, 3]
    assert sorted(file.name for file in (driver.folder / "checkpoints").iterdir()) == [
        "trial-00002.pt", "trial-00003.pt"
    ]  # fmt: skip
    again.run(10)
    assert same(tables(driver.folder), undisturbed[0])
    assert same(told(again), undisturbed[1])


def test_a_full_disk_ends_the_session_and_loses_no_trial(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path / "study")
    driver.run(3)
    trial = driver.begin()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainables.storage.write", full)
        with pytest.raises(OSError, match="No space left"):
            driver.collector.on_trial_complete(0, [], trial)
        driver.collector.on_experiment_end([trial])  # Ray Tune's clean-up; writes nothing more
    assert not list(driver.folder.rglob("*.tmp"))
    assert len(results.load(driver.folder).trials) == 3
    again = Driver(driver.folder)
    again.run(9)
    assert same(tables(driver.folder), undisturbed[0])
    assert same(told(again), undisturbed[1])


def test_a_worker_that_cannot_start_is_a_trial_that_failed(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "study")
    config = driver.search.suggest("")
    trial = SimpleNamespace(config=config, run_metadata=SimpleNamespace(), error_file=None)
    driver.collector.on_trial_error(0, [], trial)
    (row,) = results.load(driver.folder).trials.to_dict("records")
    assert (row["outcome"], row["error"]) == ("failed", "its worker died, and Ray gives no reason")
    assert driver.study.trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(("later", "outcome"), [(0, "interrupted"), (1, "failed")])
def test_a_worker_that_dies_between_two_trials_dies_once(later: int, outcome: str, tmp_path: Path) -> None:
    """Ray Tune tells of it in one step twice, as if the trial had lost a second worker."""
    driver = Driver(tmp_path / "study")
    driver.collector.final = False
    trial = driver.begin()
    trial.num_failures = 2
    driver.collector.on_trial_recover(7, [], trial)
    driver.collector.on_trial_error(7 + later, [], trial)
    assert list(results.load(driver.folder).trials["outcome"]) == [outcome]
    assert driver.collector.orphans == 1 - later


def test_a_worker_that_begins_anew_counts_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "study")
    trial = driver.begin()
    for number in (1, 2):
        driver.collector.on_trial_result(0, [], trial, driver.result(trial.config, number))
    driver.collector.on_trial_complete(0, [], trial)
    curves = results.load(driver.folder).curves
    assert list(curves["update"]) == [10, 20, 10, 20]
    assert [t.intermediate_values.keys() for t in driver.study.trials] == [{1: 0, 2: 0}.keys()]


def test_what_a_worker_did_last_before_an_interruption_is_told_by_the_next(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "study")
    trial = driver.begin()
    driver.collector.on_experiment_end([trial])
    again = Driver(driver.folder)
    config = again.search.suggest("")
    trial = SimpleNamespace(config=config, run_metadata=SimpleNamespace(), error_file=None)
    again.collector.on_trial_start(0, [], trial)
    # The third part was in the checkpoint alone: no result of it ever came.
    result = again.result(config, 4) | {"reported": [0.5, 0.25, 0.125, 0.0625], "value": 0.0625}
    again.collector.on_trial_result(0, [], trial, result | {"payload": replace(result["payload"], whole=True)})
    assert again.study.trials[0].intermediate_values.keys() == {1, 2, 3, 4}
    assert again.study.trials[0].intermediate_values[3] == 0.125


def test_a_stopped_trial_without_rows_begins_anew(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "study")
    going_on, stopped = driver.begin(), driver.begin()
    driver.search.stopped(1, 2)  # and a kill before its rows were written
    files = [Path(trial.config["checkpoint"]) for trial in (going_on, stopped)]
    assert all(file.exists() for file in files)
    Driver(driver.folder)
    assert [file.exists() for file in files] == [True, False]


def test_a_folder_that_takes_no_files_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainables.storage.write", full)
    with pytest.raises(StorageError, match="cannot be written to: No space left on device; make space"):
        own_folder(tmp_path, "study resume").__enter__()
    monkeypatch.undo()
    with own_folder(tmp_path, "study run"):
        pass  # the lock was let go
    (tmp_path / ".holder.json").write_text('{"pid": 1, "host": "h", "since": "s", "command": "c"}')
    monkeypatch.setattr("study.results.ownership.FileLock.acquire", full)
    assert running_owner(tmp_path)
    (tmp_path / ".holder.json").unlink()
    assert not running_owner(tmp_path)


def test_the_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from study.results.ownership import own_folder
with own_folder(Path({str(tmp_path)!r}), "study run other"):
    print("held", flush=True)
    sys.stdin.read()
"""
    assert not running_owner(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    assert running_owner(tmp_path)
    with pytest.raises(StorageError, match=rf"a study runs in it: process {other.pid} on .*\(study run other\)"), \
            own_folder(tmp_path, "study resume"):  # fmt: skip
        pass
    other.kill()
    other.communicate()
    # The dead hold nothing, whatever they left.
    assert recorded_owner(tmp_path)
    assert not running_owner(tmp_path)
    with own_folder(tmp_path, "study resume"):
        assert json.loads((tmp_path / ".holder.json").read_text())["command"] == "study resume"
    assert recorded_owner(tmp_path) is None


def test_files_that_are_moved_aside_never_cover_each_other(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        (tmp_path / "optuna.journal").write_text("x")
        names.append(recovery.move_aside(tmp_path, tmp_path / "optuna.journal").name)
    assert len(set(names)) == 3
    assert len(list((tmp_path / "damaged").iterdir())) == 3


def test_complete_rows_stay_whatever_is_recorded_from_now_on(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "study")
    driver.run(12)
    before, trials = tables(driver.folder), told(driver)
    more = SPEC.recording.model_copy(update={"predictions": True, "weights": True, "every_update": True})
    again = Driver(driver.folder, SPEC.model_copy(update={"recording": more}))
    assert not again.state.redo
    assert same(tables(driver.folder), before)
    assert same(told(again), trials)
    assert not (driver.folder / "superseded").exists()
