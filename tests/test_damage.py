"""A results folder in which something is wrong: a bit, a file, a link."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
import study
from analysis.results import parts, read_part
from analysis.schema import FOLDERS, PREVIOUS, PROVENANCE, TRIALS, ResultsError, ResultsWarning, seal, unseal
from study.errors import StorageError, StudyError
from study.results.provenance import Record
from study.results.recovery import clear_checkpoints, repair_files, repair_records
from study.spec import recorded
from study.tuning.journal import Journal, damage
from tests.fakes.world import World
from tests.test_histories import MEMORY, SPECS, check_same, computed, undisturbed

KIND = "confirmed"


@pytest.fixture(scope="module")
def finished() -> Iterator[Path]:
    """The results folder of a study with a confirmation."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as top:
        with World(Path(top), SPECS[KIND]) as world:
            world.finish()
        yield Path(top) / "out"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def read(folder: Path) -> dict[str, str]:
    """All that a reader sees of a study."""
    found = analysis.load(folder)
    assert found.confirmation, found.confirmation_trouble
    seen = {}
    for name, each in (("search", found), ("confirmation", found.confirmation)):
        frames = (each.trials, each.lanes, each.curves, each.importance)
        seen[name] = repr((each.spec, each.provenance, [frame.to_dict("list") for frame in frames]))
    return seen


def flip(file: Path, random: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def resumed(folder: Path) -> Any:
    """What `study resume` of a folder returns, or raises; `computed` of a study that ran to its end."""
    with World(folder.parent, SPECS[KIND]) as world:
        world.start()
        while running := world.running():
            world.step(running[0])
        return computed(world) if isinstance(world.ended, study.Outcome) else world.ended


def survey(finished: Path, top: Path, tries: int, resumes: int, seed: int) -> None:
    """Flip single bits: a reader or the next session says which file is damaged, or nothing has changed."""
    random_, before, whole = random.Random(seed), read(finished), undisturbed(KIND)
    files = sorted(file.relative_to(finished) for file in finished.rglob("*") if file.is_file() and file.stat().st_size)
    for number in range(tries):
        name, folder = files[number % len(files)], top / str(number) / "out"
        shutil.copytree(finished, folder)
        flip(folder / name, random_)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                fine = read(folder) == before
            except (ResultsError, AssertionError) as error:
                fine = str(folder) in str(error)
            assert noted or fine, f"{name}: read as other numbers"
            if number < resumes:
                ended = resumed(folder)
                if isinstance(ended, list):
                    check_same(ended, whole)
                else:
                    assert isinstance(ended, StudyError | ResultsError), name
                    assert folder.name in str(ended)
        shutil.rmtree(folder.parent)


def test_no_flipped_bit_is_read_as_other_numbers(finished: Path, tmp_path: Path) -> None:
    survey(finished, tmp_path, 30, 2, seed=0)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_two_thousand_flipped_bits(finished: Path, tmp_path: Path) -> None:
    survey(finished, tmp_path, 2000, 400, seed=1)


@pytest.mark.parametrize("name", ["trials", "lanes", "curves"])
def test_a_flipped_bit_in_a_part_moves_it_aside(folder: Path, name: str) -> None:
    file, said = parts(folder / FOLDERS[name])[0][2], list[str]()
    for seed in range(20):
        content = file.read_bytes()
        flip(file, random.Random(seed))
        repair_files(folder, said.append)
        assert f"{file} is damaged (is damaged: its digest is not that in its name)" in said.pop()
        assert not file.exists()
        file.write_bytes(content)


def test_parts_of_an_earlier_version_have_no_digest(folder: Path) -> None:
    before, tables = read(folder), [folder / name for name in FOLDERS.values()]
    for table in [*tables, *(folder / "confirm" / name for name in FOLDERS.values())]:
        for _, _, file in parts(table):
            pq.write_table(read_part(file), file.with_name(f"{file.name[:15]}.parquet"))
            file.unlink()
    for place in (folder, folder / "confirm"):
        (place / PREVIOUS).unlink()
        content = unseal(place / PROVENANCE)
        del content["spec_toml"]
        (place / PROVENANCE).write_text(json.dumps(content))
        journal = [json.loads(line) for line in (place / "optuna.journal").read_text().splitlines()]
        lines = [json.dumps({key: value for key, value in line.items() if key != "check"}) for line in journal]
        (place / "optuna.journal").write_text("\n".join(lines) + "\n")
    assert read(folder) == before
    ended = resumed(folder)
    assert isinstance(ended, list), ended
    check_same(ended, undisturbed(KIND))


def test_every_flipped_bit_in_a_journal_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "optuna.journal")
    for number in range(4):
        journal.append_logs([{"op_code": number, "value": 0.25}, {"op_code": 9, "text": "\u00e9\n"}])
    journal = Journal(tmp_path / "optuna.journal")  # another session
    journal.append_logs([{"op_code": 5}])
    content = (tmp_path / "optuna.journal").read_bytes()
    assert damage(tmp_path / "optuna.journal") is None
    assert len(list(journal.read_logs(0))) == 9
    for place in range(0, 8 * len(content), 7):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "optuna.journal").write_bytes(changed)
        whole = changed.endswith(b"\n")  # or the last line was cut off
        assert not whole or damage(tmp_path / "optuna.journal"), place


def test_an_ended_trial_is_synced_and_its_values_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    file = tmp_path / "optuna.journal"
    study = optuna.create_study(storage=optuna.storages.JournalStorage(Journal(file)))
    trial = study.ask({"width": optuna.distributions.IntDistribution(1, 8)})
    before = len(synced)
    trial.set_user_attr("replicate", 0)
    assert synced[before:] == [file.stat().st_size]
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    assert synced[before + 1 :] == [file.stat().st_size]


def test_a_journal_of_an_earlier_version_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "optuna.journal"
    file.write_text('{"op_code": 0, "worker_id": "x", "study_name": "s", "directions": [1]}\n')
    assert damage(file) is None
    Journal(file).append_logs([{"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": {}}])
    assert damage(file) is None
    file.write_text('{"op_code": 0}\n')
    assert "Optuna cannot read it" in str(damage(file))


def test_a_damaged_provenance_is_replaced_by_the_previous_one(folder: Path) -> None:
    said = list[str]()
    text = (folder / PROVENANCE).read_text()
    (folder / PROVENANCE).write_text(text.replace('"seeds"', '"beeds"'))
    with pytest.warns(ResultsWarning, match=r"its digest is not that of its content; read \.provenance\.json"):
        analysis.load(folder)
    repair_records(folder, said.append)
    assert "moved to" in said[0]
    assert (folder / "damaged" / PROVENANCE).exists()
    assert unseal(folder / PROVENANCE)["seeds"]


@pytest.mark.parametrize("lost", ["truncated", "missing"])
def test_a_lost_provenance_never_turns_the_check_of_the_spec_off(folder: Path, lost: str) -> None:
    for name in (PROVENANCE, PREVIOUS):
        if lost == "missing":
            (folder / name).unlink()
        else:
            (folder / name).write_text((folder / name).read_text()[:100])
    spec = folder / "spec.toml"
    spec.write_text(spec.read_text().replace("seeds = 1", "seeds = 2"))
    before = {file: file.read_bytes() for file in folder.rglob("*.parquet") if file.is_file()}
    with pytest.raises(StorageError, match=r"so it cannot be checked that its trials ran with .*spec.toml;"):
        study.resume(folder)
    assert {file: file.read_bytes() for file in folder.rglob("*.parquet") if file.is_file()} == before


def test_an_edited_spec_is_told_and_read_as_it_ran(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, file = read(folder), folder / "spec.toml"
    file.write_text("# mine\n" + file.read_text())
    assert read(folder) == before
    file.write_text(file.read_text().replace("every_update = false", "every_update = true"))
    with pytest.warns(ResultsWarning, match=r"spec\.toml: was edited .*recording\.every_update; shown is the spec"):
        assert read(folder) == before
    ended = resumed(folder)
    assert isinstance(ended, list)
    check_same(ended, undisturbed(KIND))
    assert "spec.toml was edited: recording.every_update = true (was false)" in capsys.readouterr().err
    assert analysis.load(folder).spec["recording"]["every_update"]


@pytest.mark.parametrize("text", ['{"winners": [', None])
def test_damaged_winners_are_confirmed_again(folder: Path, text: str | None) -> None:
    file = folder / "confirm/winners.json"
    file.unlink() if text is None else file.write_text(text)
    ended = resumed(folder)
    assert isinstance(ended, list), ended
    check_same(ended, undisturbed(KIND))
    assert (folder / "superseded/confirm/trials.parquet").is_dir()


def as_another_table(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["outcome"]).replace_schema_metadata(TRIALS.metadata), file)


def as_a_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def as_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("change", [as_another_table, as_a_link, as_a_folder])
def test_what_is_no_part_is_moved_aside_and_its_trials_run_again(folder: Path, change: Callable[[Path], None]) -> None:
    file = parts(folder / "trials.parquet")[0][2]
    file = file.rename(file.with_name(f"{file.name[:15]}.parquet"))
    change(file)
    said = list[str]()
    repair_files(folder, said.append)
    assert f"{file} is damaged" in said[0]
    ended = resumed(folder)
    assert isinstance(ended, list), ended
    check_same(ended, undisturbed(KIND))


def test_parts_of_a_later_version_are_left_alone(folder: Path) -> None:
    file = parts(folder / "trials.parquet")[0][2]
    table = pq.read_table(file).replace_schema_metadata({"version": "2"})
    file.unlink()
    file = file.with_name(f"{file.name[:15]}.parquet")
    pq.write_table(table, file)
    assert "written with schema version 2" in str(resumed(folder))
    assert pq.read_table(file).equals(table)


def test_rows_of_a_trial_that_lost_others_are_kept(folder: Path) -> None:
    part = parts(folder / "lanes.parquet")[0][2]
    part.write_bytes(part.read_bytes()[:-1])
    curves = {name: read_part(parts(folder / name)[0][2]) for name in ("curves", "trials.parquet")}
    ended = resumed(folder)
    assert isinstance(ended, list), ended
    check_same(ended, undisturbed(KIND))
    for name, table in (("curves", "curves"), ("trials", "trials.parquet")):
        (kept,) = (folder / "superseded" / name).iterdir()
        assert read_part(kept).equals(curves[table])


def test_missing_lanes_are_named(folder: Path) -> None:
    parts(folder / "lanes.parquet")[0][2].unlink()
    with pytest.raises(ResultsError, match=r"lanes.parquet: lacks lanes of the trials [01]; `study resume"):
        analysis.load(folder)


def test_nothing_is_deleted_through_a_link(tmp_path: Path) -> None:
    outside, folder, said = tmp_path / "outside", tmp_path / "out", list[str]()
    for place in (outside, folder):
        place.mkdir()
    for name in ("trial-00001.pt", "trial-00009.pt", "letters.txt"):
        (outside / name).write_text(name)
    (folder / "checkpoints").symlink_to(outside)
    clear_checkpoints(str(folder / "checkpoints"), {str(folder / "checkpoints/trial-00001.pt")}, folder, said.append)
    assert len(list(outside.iterdir())) == 3
    assert "is a link to" in said[0]
    assert (folder / "checkpoints").is_dir()
    place = folder / "checkpoints"
    (place / "notes").mkdir()
    (place / "notes/text").write_text("mine")
    (place / "letters.txt").symlink_to(outside / "letters.txt")
    (place / "trial-00002.pt").symlink_to(outside / "trial-00001.pt")
    (place / "trial-00003.pt").mkdir()
    for name in ("trial-00001.pt", "trial-00001.pt.host.7.tmp"):
        (place / name).write_text(name)
    clear_checkpoints(str(place), {str(place / "trial-00001.pt")}, folder, said.append)
    assert [file.name for file in place.iterdir()] == ["trial-00001.pt"]
    assert len(list(outside.iterdir())) == 3
    kept = {file.name for file in (folder / "damaged").iterdir()}
    assert kept == {"checkpoints-notes", "checkpoints-letters.txt", "checkpoints-trial-00003.pt"}
    assert (folder / "damaged/checkpoints-notes/text").read_text() == "mine"


def test_sealed_text_is_that_of_its_content(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "\u00e9"], "b": {"2": True}}
    file = tmp_path / "file.json"
    file.write_text(seal(content))
    assert unseal(file) == content
    file.write_text(seal(content).replace("2.5", "3.5"))
    with pytest.raises(ResultsError, match=r"file.json: is damaged: its digest"):
        unseal(file)
    file.write_text(json.dumps(content))  # of an earlier version
    assert unseal(file) == content


def test_the_merged_parts_that_a_crash_left_are_removed(folder: Path) -> None:
    found = [file for _, _, file in parts(folder / "curves")]
    whole = pa.concat_tables([read_part(file) for file in found])
    pq.write_table(whole, folder / "curves/0000001-0000002.parquet")
    repair_files(folder, pytest.fail)
    assert [file.name for file in (folder / "curves").iterdir()] == ["0000001-0000002.parquet"]


def test_events_are_kept_on_a_full_disk(folder: Path, tmp_path: Path) -> None:
    """The driver dies before there is space again."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("needs to mount a small tmpfs, as root")
    try:
        record = Record(place, recorded(folder), "study run", {})
        with suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        record.note("node lost", "node b is gone")
        assert unseal(place / PROVENANCE)["sessions"][0]["events"][0]["text"] == "node b is gone"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
