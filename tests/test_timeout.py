"""The time-out of a search: what still runs, what is told, and that a longer one goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray.tune.search import Searcher

import analysis
import study
from analysis.report import verdict
from study.cli import main
from study.errors import SpecError, UsageError
from study.progress import status
from study.results import provenance
from study.results.provenance import Record
from study.spec import check
from study.spec.dimensions import duration_seconds
from tests.fakes.world import World
from tests.test_histories import SPECS, TINY, computed, undisturbed
from tests.test_outcomes import search
from tests.test_spec import changed

LONG: dict[str, Any] = TINY | {
    "tuning": TINY["tuning"] | {"timeout": "2h"},
    "budget": {"trials": 6, "updates": 2},
    "confirm": {"top": 1, "seeds": 2},
    "search": {"batch_size": ["full", 50], "optimizer": ["sgd", "adam", "momentum"]},
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the time is up, as its only entry."""
    up = [False]
    monkeypatch.setattr(Record, "time_up", lambda record: up[0])
    return up


@pytest.mark.parametrize(
    ("value", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1 d", 86_400), (7, 7), (0.5, 0.5), ("12", 12)]
)
def test_durations(value: object, seconds: float) -> None:
    assert duration_seconds(value) == seconds
    assert check(changed(tuning={"timeout": value})).tuning.timeout == value


@pytest.mark.parametrize("value", ["2x", "", "h", "-1h", 0, "inf", "nan", True, [1]])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(SpecError, match=r"tuning.timeout = .*: must be a duration above 0; valid: seconds as a number"):
        check(changed(tuning={"timeout": value}))


def test_no_trial_begins_after_the_time_out(tmp_path: Path, clock: list[bool]) -> None:
    with World(tmp_path, LONG) as world:
        world.start()
        while len(analysis.load(world.folder).trials) < 2:
            world.step(world.running()[0])
        began = {trial.number for trial in world.running()} | {0, 1}
        clock[0] = True
        world.finish()
        found = analysis.load(world.results())
        assert set(found.trials["trial"]) == began == {0, 1, 2, 3}
        assert set(found.trials["outcome"]) == {"completed"}
        assert Counter(found.trials["optimizer"]) == {"sgd": 2, "adam": 1, "momentum": 1}
        assert found.confirmation is not None
        assert found.provenance["finished"]
        assert world.ended.ended == world.ended.planned == 4 + len(found.confirmation.trials)
        assert not (world.folder / "checkpoints").exists()
        text = "stopped after 4 of 6 trials: timeout = 2h"
        assert f"tiny: {text}; `study resume" in status.status(world.folder)
        table = analysis.cells(found)
        said = "\n".join(verdict.verdict(found, table, analysis.compare(found, table)))
        assert f"S{text[1:]}. Unequal effort: sgd had 2 trials, momentum had 1 trial, adam had 1 trial." in said
        # The same time-out ends it again at once; a longer one goes on to where a study without one would be.
        world.finish()
        assert world.ended.ended == world.ended.planned == 4 + len(found.confirmation.trials)
        clock[0] = False
        world.finish()
        found = analysis.load(world.results())
        assert len(found.trials) == 6
        assert not found.timed_out
        mine = computed(world)[:2]
    with World(tmp_path / "other", LONG) as world:
        world.finish()
        assert computed(world)[:2] == mine


def test_trials_that_began_are_continued_after_a_kill(tmp_path: Path, clock: list[bool]) -> None:
    with World(tmp_path, LONG) as world:
        world.start()
        world.step(world.running()[0])
        clock[0] = True
        world.kill_driver()
        world.start()
        assert sorted(trial.number for trial in world.running()) == [0, 1]
        world.step(world.running()[0])
        world.terminate()  # while they end
        assert isinstance(world.ended, study.Interrupted)
        assert not analysis.load(world.results()).timed_out
        world.finish()
        found = analysis.load(world.results())
        assert list(found.trials["trial"]) == [0, 1]
        assert found.timed_out == "stopped after 2 of 6 trials: timeout = 2h"


def test_a_study_has_at_least_one_trial() -> None:
    searcher = search(check(changed()))
    searcher.time_up = lambda: True
    assert isinstance(searcher.suggest("a"), dict)
    assert searcher.suggest("b") == Searcher.FINISHED


def test_a_time_out_does_not_change_what_an_undisturbed_study_computes(tmp_path: Path) -> None:
    tables = SPECS["plain"] | {"tuning": TINY["tuning"] | {"timeout": 1e6}}
    with World(tmp_path, tables) as world:
        world.finish()
        assert computed(world) == undisturbed("plain")


def test_time_counts_over_sessions_also_those_that_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(provenance.time, "monotonic", lambda: now[0])
    spec = check(changed(tuning={"timeout": "60s"}))
    first = Record(tmp_path, spec, "study run", {})
    with first.phase("search"):
        now[0] += 35
        first.tick()  # the last that is written before a kill
        now[0] += 5
    second = Record(tmp_path, spec, "study resume", {})
    with second.phase("search"):
        now[0] += 24
        assert not second.time_up()  # 35 + 24
        now[0] += 1
        assert second.time_up()
    second.end(finished=True)
    sessions = json.loads((tmp_path / "provenance.json").read_text())["sessions"]
    assert [each["phase_seconds"]["search"] for each in sessions] == [35.0, 25.0]


def test_resume_takes_a_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("study.api._connect_and_run", lambda spec, *_: taken.append(spec.tuning.timeout))
    monkeypatch.setattr("study.api._with_report", lambda outcome: outcome)
    (tmp_path / "spec.toml").write_text(check(changed(tuning={"timeout": "1h"})).to_toml())
    study.resume(tmp_path)
    study.resume(tmp_path, timeout="2h")
    study.resume(tmp_path, like=check(changed(tuning={"timeout": "3h"})))
    study.resume(tmp_path, like=check(changed()))
    assert taken == ["1h", "2h", "3h", None]
    with pytest.raises(UsageError, match="timeout soon: 1 mistake\n  must be a duration above 0"):
        study.resume(tmp_path, timeout="soon")


@pytest.mark.parametrize("command", ["run quick", "check quick", "resume results/mine", "extend mine --trials 1"])
def test_a_bad_time_out_is_reported_by_its_option(command: str) -> None:
    found = CliRunner().invoke(main, [*command.split(), "--timeout", "soon"])
    assert found.exit_code == 2
    assert "Invalid value for '--timeout': 'soon' must be a duration above 0; valid: seconds" in found.output
