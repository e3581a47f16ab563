"""The loader: what it reads, what it skips, and what it says about a folder that it cannot read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import ResultsError, load
from analysis.cells import cells
from analysis.results import Results, _read, parts
from analysis.schema import CURVES, FOLDERS, LANES, TRIALS, regime
from tests.conftest import (
    PART,
    curve_row,
    lane_row,
    trial_row,
    write_confirmation,
    write_provenance,
    write_spec,
    write_study,
    write_tables,
)


def write_part(folder: Path, name: str, *trials: int, worker: str = "a") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [trial_row(trial=trial, worker=worker) for trial in trials]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRIALS), folder / name)


def test_a_study_reads_back(quick_study: Path) -> None:
    results = load(quick_study)
    assert (results.name, results.metric, results.maximize, results.target) == ("quick", "loss", False, 0.1)
    assert len(results.trials) == 48
    assert len(results.lanes) == 48 * 6 * 3
    assert list(results.trials) == [*(name for name in TRIALS.names if name != "rows"), "stack_seconds"]
    assert list(results.lanes) == LANES.names
    assert list(results.curves) == CURVES.names
    assert results.spec_text.startswith('name = "quick"')


def test_a_study_without_tables_is_empty(tmp_path: Path) -> None:
    write_spec(tmp_path)
    results = load(tmp_path)
    assert results.trials.empty
    assert results.lanes.empty
    assert results.curves.empty
    assert results.provenance == {}


@pytest.mark.parametrize("name", ["lanes", "curves"])
def test_a_missing_table_is_named(make_study: Callable[..., Path], name: str) -> None:
    folder = make_study(optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32])
    shutil.rmtree(folder / FOLDERS[name])
    with pytest.raises(
        ResultsError, match=rf"{FOLDERS[name]}: missing, .*; restore it, or `study resume .*` runs them"
    ):
        load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_a_folder_without_spec_is_no_results_folder(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"has no spec\.toml"):
        load(tmp_path)


@pytest.mark.parametrize(("file", "text"), [("spec.toml", "name = "), ("provenance.json", '{"commit": ')])
def test_a_broken_text_file_is_named(tmp_path: Path, file: str, text: str) -> None:
    write_spec(tmp_path)
    write_provenance(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ResultsError, match=file):
        load(tmp_path)


def test_a_truncated_part_is_named(make_study: Callable[..., Path]) -> None:
    part = make_study(widths=[8], depths=[1]) / "lanes.parquet" / PART
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(ResultsError, match=rf"lanes\.parquet/{PART}: cannot be read"):
        load(part.parent.parent)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    write_spec(tmp_path)
    folder = tmp_path / "trials.parquet"
    folder.mkdir()
    table = pa.Table.from_pylist([trial_row()], schema=TRIALS)
    pq.write_table(table.replace_schema_metadata({"version": "2"}), folder / PART)
    with pytest.raises(ResultsError, match="schema version 2, but this program reads version 1"):
        load(tmp_path)


def test_a_part_from_before_a_column_was_added_has_it_empty(tmp_path: Path) -> None:
    write_part(tmp_path / "trials.parquet", PART, 0)
    file = tmp_path / "trials.parquet" / PART
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["engine", "lanes_at_once"]), file)
    found = _read("trials", tmp_path)
    assert found["trial"].tolist() == [0]
    assert found["engine"].isna().all()


def test_a_part_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    write_spec(tmp_path)
    folder = tmp_path / "trials.parquet"
    folder.mkdir()
    table = pa.Table.from_pylist([trial_row()], schema=TRIALS).drop_columns(["optimizer", "width"])
    pq.write_table(table.replace_schema_metadata(TRIALS.metadata), folder / PART)
    with pytest.raises(ResultsError, match="lacks optimizer, width"):
        load(tmp_path)


def test_leftovers_of_a_merge_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "trials.parquet"
    write_spec(tmp_path)
    write_part(folder, "0000001-0000001.parquet", 0, worker="leftover")
    write_part(folder, "0000002-0000002.parquet", 1, worker="leftover")
    write_part(folder, "0000001-0000002.parquet", 0, 1, worker="merged")
    write_part(folder, "0000003-0000003.parquet", 2, worker="new")
    write_part(folder, ".tmp-0000004-0000004.parquet", 3)
    assert [part[:2] for part in parts(folder)] == [(1, 2), (3, 3)]
    assert list(load(tmp_path).trials["worker"]) == ["merged", "merged", "new"]


def test_a_row_reported_twice_counts_once(tmp_path: Path) -> None:
    write_spec(tmp_path)
    write_part(tmp_path / "trials.parquet", "0000001-0000001.parquet", 1, 0)
    write_part(tmp_path / "trials.parquet", "0000002-0000002.parquet", 1, worker="again")
    trials = load(tmp_path).trials
    assert list(trials["trial"]) == [0, 1]
    assert list(trials["worker"]) == ["a", "again"]


def test_parts_keep_the_schema(quick_study: Path) -> None:
    schema = pq.read_schema(quick_study / "trials.parquet" / PART)
    assert schema.metadata[b"version"] == b"1"
    assert schema.field("width").metadata[b"description"]


def test_a_write_without_rows_is_readable(tmp_path: Path) -> None:
    write_spec(tmp_path)
    write_tables(tmp_path, trials=[], lanes=[], curves=[])
    assert load(tmp_path).curves.empty


def test_a_confirmation_is_results_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path, widths=[8], depths=[1])
    assert load(folder).confirmation is None
    found = load(write_confirmation(folder))
    assert found.confirmation is found.confirmation is not None
    assert (len(found.confirmation.trials), found.confirmation_trouble) == (3, "")
    assert len(found.trials) == 12


def test_an_empty_or_broken_confirmation_is_none_and_says_why(tmp_path: Path) -> None:
    write_spec(tmp_path)
    assert load(tmp_path).confirmation_trouble == ""
    (tmp_path / "confirm").mkdir()
    assert "no spec.toml" in load(tmp_path).confirmation_trouble
    write_spec(tmp_path / "confirm")
    found = load(tmp_path)
    assert (found.confirmation, found.confirmation_trouble) == (None, "no trial of it has ended yet")


def test_objectives_are_the_metric_unless_named(tmp_path: Path) -> None:
    write_spec(tmp_path)
    assert load(tmp_path).objectives == ["metric"]
    write_spec(tmp_path, objectives=["metric", "train_seconds"])
    assert load(tmp_path).objectives == ["metric", "train_seconds"]
    write_spec(tmp_path, objectives=["metric", "beauty"])
    with pytest.raises(ResultsError, match=r"tuning\.objectives must be some of metric, train_seconds"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, "stochastic"), (2, "mini-batch"), (99, "mini-batch"), (100, "batch"), (101, "batch")],
)
def test_regime_follows_from_the_batch_size(batch_size: int, expected: str) -> None:
    assert regime(batch_size, 100) == expected


def test_importing_analysis_is_light_and_changes_nothing() -> None:
    code = """
import sys
import analysis
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
for name in analysis.__all__:
    getattr(analysis, name)
assert set(analysis.__all__) <= set(dir(analysis))
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
print(sorted({"torch", "ray", "optuna", "sklearn", "study", "trainables"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import analysis

    with pytest.raises(AttributeError, match="No analysis attribute nothing"):
        _ = analysis.nothing


def timed_study(folder: Path, *each: float | None) -> Results:
    """A study of trials whose stack took 2 s for 900 updates, and one of their lanes, with these seconds per update."""
    write_spec(folder)
    trials = [trial_row(trial=number, lanes=1, update_seconds=seconds) for number, seconds in enumerate(each)]
    lanes = [lane_row(trial=number, seed=number, validation_loss=1.0) for number in range(len(each))]
    curves = [curve_row(trial=number, update=update) for number in range(len(each)) for update in (0, 450, 900)]
    write_tables(folder, trials=trials, lanes=lanes, curves=curves)
    return load(folder)


def test_seconds_are_those_of_one_network_where_all_trials_measured_them(tmp_path: Path) -> None:
    results = timed_study(tmp_path, 0.01, 0.1)
    assert results.alone
    assert results.seconds_label == "seconds of one network trained alone"
    assert results.trials["train_seconds"].to_list() == pytest.approx([9.0, 90.0])
    assert results.trials["stack_seconds"].to_list() == [2.0, 2.0]
    assert results.curves["train_seconds"].to_list() == pytest.approx([0, 4.5, 9.0, 0, 45.0, 90.0])
    assert cells(results)["train_seconds"].to_list() == pytest.approx([49.5])  # of both trials of the cell
    some = replace(results, trials=results.trials.head(1))
    assert some.alone
    assert some.trials["train_seconds"].to_list() == pytest.approx([9.0])


@pytest.mark.parametrize("each", [(None, None), (0.01, None)])
def test_a_study_of_an_older_program_keeps_the_seconds_of_its_stacks(
    tmp_path: Path, each: tuple[float | None, ...]
) -> None:
    results = timed_study(tmp_path, *each)
    assert not results.alone
    assert not replace(results, trials=results.trials.head(1)).alone
    assert results.seconds_label == "seconds of the whole stack of lanes"
    assert results.trials["train_seconds"].to_list() == results.trials["stack_seconds"].to_list() == [2.0, 2.0]
    assert results.curves["train_seconds"].to_list() == pytest.approx([0, 0.9, 1.8] * 2)


def test_a_trial_that_failed_before_training_hides_no_seconds(tmp_path: Path) -> None:
    write_spec(tmp_path)
    failed = trial_row(trial=1, outcome="failed", updates=0, train_seconds=0.0)
    write_tables(tmp_path, trials=[trial_row(update_seconds=0.01), failed], lanes=[], curves=[])
    assert load(tmp_path).trials["train_seconds"].to_list() == pytest.approx([9.0, 0.0])
