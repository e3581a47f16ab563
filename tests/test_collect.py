from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import results
from analysis.schema import LANES, ResultsError
from study.results import provenance, writer
from study.results.tables import Table, TrialBuffer
from study.spec import check
from study.spec.changes import fixed_settings
from tests.conftest import lane_row
from tests.test_spec import changed
from trainables import storage
from trainables.lanes.records import Point
from trainables.tune import Payload


def rows(first: int, count: int) -> dict[str, list[Any]]:
    made = [lane_row(trial=number) for number in range(first, first + count)]
    return {name: [row.get(name) for row in made] for name in LANES.names}


def stored(folder: Path) -> list[int]:
    return list(results._read("lanes", folder)["trial"])


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3), max_size=150))
def test_table_holds_what_was_appended_in_few_parts(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    table, total = Table("lanes", folder), 0
    for number, count in enumerate(counts):
        if number % 10 == 9:
            table = Table("lanes", folder)  # another process goes on
        table.append(rows(total, count))
        total += count
    assert stored(folder) == list(range(total))
    # At most seven parts of each span: 1, 8, 64 appends.
    assert len(list((folder / "lanes.parquet").iterdir())) <= 21


@pytest.mark.parametrize(
    ("diverged", "stopped", "ended", "outcome"),
    [(None, None, "completed", "completed"), (3, None, "completed", "diverged"), (None, 8, "completed", "stopped")],
)
def test_lane_outcome_is_its_own_or_that_of_its_trial(
    diverged: int | None, stopped: int | None, ended: str, outcome: str
) -> None:
    lane = {"diverged_update": diverged, "stopped_update": stopped}
    assert writer._lane_outcome(lane, ended) == outcome


def test_trial_buffer_turns_every_loss_into_a_curve() -> None:
    progress = TrialBuffer()
    point = Point(5, 160, 0.5, 1.25, [0, 2], {("batch", "loss"): [0.1, 0.2]})
    progress.take(7, Payload([point]))
    assert progress.curves["lane"] == [0, 2]
    assert progress.curves["value"] == [0.1, 0.2]
    assert progress.curves["update"] == [5, 5]
    assert progress.curves["trial"] == [7, 7]
    assert progress.curves["train_seconds"] == [1.25, 1.25]


def test_table_survives_a_crash_while_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("lanes", tmp_path)
    for number in range(7):
        table.append(rows(number, 1))
    unlink = Path.unlink

    def crash(file: Path, missing_ok: bool = False) -> None:
        if file.suffix == ".parquet":
            raise KeyboardInterrupt
        unlink(file, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            table.append(rows(7, 1))
    assert len(list((tmp_path / "lanes.parquet").iterdir())) == 9
    assert stored(tmp_path) == list(range(8))
    again = Table("lanes", tmp_path)
    again.append(rows(8, 1))
    assert stored(tmp_path) == list(range(9))


def test_reader_follows_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("lanes", tmp_path)
    for number in range(7):
        table.append(rows(number, 1))
    read, asked = results.read_part, []

    def merged_meanwhile(file: Path) -> pa.Table:
        asked.append(file.name[:15])
        if len(asked) == 2:
            table.append(rows(7, 1))
        return read(file)

    monkeypatch.setattr(results, "read_part", merged_meanwhile)
    assert stored(tmp_path) == list(range(8))
    assert asked == ["0000007-0000007", "0000006-0000006", "0000001-0000008"]


def test_reader_names_a_missing_part(tmp_path: Path) -> None:
    Table("lanes", tmp_path)
    (tmp_path / "lanes.parquet/0000001-0000001.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"lanes\.parquet/0000001-0000001\.parquet: listed, but not there"):
        stored(tmp_path)


def test_reader_ignores_unfinished_parts(tmp_path: Path) -> None:
    table = Table("lanes", tmp_path)
    table.append(rows(0, 1))
    (tmp_path / "lanes.parquet/0000002-0000002.parquet.host.1.tmp").write_bytes(b"half")
    assert stored(tmp_path) == [0]
    table.append(rows(1, 1))
    assert stored(tmp_path) == [0, 1]


def test_table_drops_rows_of_some_trials(tmp_path: Path) -> None:
    table = Table("lanes", tmp_path)
    for number in range(11):
        table.append(rows(number, 2))  # every trial but the ends in two appends
    table.drop({0, 4, 11})
    assert stored(tmp_path) == [1, 2, 3, *range(5, 11)]
    Table("lanes", tmp_path).append(rows(0, 1))
    assert stored(tmp_path) == [0, 1, 2, 3, *range(5, 11)]


def test_table_is_one_dataset_for_other_tools(tmp_path: Path) -> None:
    table = Table("lanes", tmp_path)
    for number in range(20):
        table.append(rows(number, 2))
    assert len(pd.read_parquet(tmp_path / "lanes.parquet")) == 40


def test_table_refuses_rows_that_do_not_fit_the_schema(tmp_path: Path) -> None:
    bad = rows(0, 1)
    bad["trial"] = [None]
    table = Table("lanes", tmp_path)
    with pytest.raises((ValueError, TypeError)):
        table.append(bad)
    assert list((tmp_path / "lanes.parquet").iterdir()) == []


def test_write_provenance_records_seeds_versions_and_hardware(tmp_path: Path) -> None:
    spec = check(changed(tuning__seed=3, lanes__seeds=2, confirm={"seeds": 2}))
    sessions = [provenance.new_session("study run good") | {"started": "2026-01-02T00:00:00+00:00"}]
    provenance.write_provenance(tmp_path, spec, sessions, finished=False)
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert found["command"] == "study run good"
    assert found["started"] == "2026-01-02T00:00:00+00:00"
    assert found["finished"] is None
    assert found["seeds"] == {"root": 3, "lanes": [3_000_000, 3_000_001], "confirm": [3_500_000, 3_500_001]}
    assert provenance.read_provenance(tmp_path)["sessions"] == sessions
    assert found["spec"] == json.loads(json.dumps(fixed_settings(spec)))
    assert found["spec"]["lanes.seeds"] == 2
    first = found["sessions"][0]
    assert {"python", "torch", "ray", "optuna"} <= set(first["versions"])
    assert first["hardware"]["cpus"] >= 1
    assert first["hardware"]["memory_bytes"] > 2**28
    assert found["data"]["loss"] == "mean squared error in variances of y"
    plain = check(changed(workload__standardize=False))
    provenance.write_provenance(tmp_path, plain, sessions, finished=True)
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert found["data"]["loss"] == "mean squared error"
    assert found["finished"]


def test_write_text_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spec.toml"
    storage.write_text(file, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_text(file, "new")
    assert file.read_text() == "old"
