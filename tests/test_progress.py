from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from study.progress.display import ProgressDisplay, Show
from study.progress.status import best_line, describe
from study.results.recovery import State
from study.spec import check
from tests.conftest import lane_row, trial_row, write_study
from tests.test_spec import changed

CONFIG = {"optimizer": "adam", "batch_size": 32, "width": 16, "depth": 2}


def row(trial: int, outcome: str, value: float | None, **more: Any) -> dict[str, Any]:
    rate = None if value is None else 0.003
    empty = {"lanes": 10, "value": value, "learning_rate": rate, "error": None, "wall_seconds": 36.0}
    return trial_row(trial=trial, outcome=outcome, **CONFIG) | empty | more


def display(
    show: Show = "plain", *, metric: str = "loss", terminal: bool = False, notebook: bool = False, width: int = 200
) -> ProgressDisplay:
    data = {"workload": {"data": "digits", "model": "mlp"}} if metric == "accuracy" else {}
    made = ProgressDisplay(check(changed(resources={"gpus_per_trial": 0.5}, **data)), 5, show)
    made.console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=terminal,
        force_jupyter=notebook,
        highlight=False,
        quiet=show == "quiet",
    )
    made.live.console = made.console
    return made


def tell(shown: ProgressDisplay, *rows: dict[str, Any]) -> None:
    for each in rows:
        shown.began(each["trial"], CONFIG)
    for each in rows:
        lanes = [lane_row(learning_rate=0.003, validation_loss=(each["value"] or 1) * f) for f in (0.9, 1.0, 1.1)]
        lanes.append(lane_row(learning_rate=0.3, validation_loss=7.0))
        shown.reported(each["trial"], {"payload": SimpleNamespace(lanes=lanes), "wall_seconds": 1.0})
        shown.ended(each)


def text(shown: ProgressDisplay) -> str:
    return shown.console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


ROWS = [
    row(0, "completed", 0.5),
    row(1, "completed", 0.3),
    row(2, "stopped", 0.1),
    row(3, "diverged", None),
]


def test_the_time_left_includes_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, followed = display(), display()
    followed.after = 2.5
    for shown in (alone, followed):
        tell(shown, *ROWS[:2])
        assert shown.numbers()["seconds_left"] is None  # too early to tell
        tell(shown, ROWS[2])
        shown.first = 1.0  # the first trial waited for its worker
    monkeypatch.setattr("study.progress.display.time.monotonic", lambda: 101.0)
    assert alone.numbers()["seconds_left"] == 100  # two trials, 50 s each
    assert followed.numbers()["seconds_left"] == 225


def test_trials_are_counted_and_the_best_is_a_completed_one_with_its_interval() -> None:
    shown = display()
    tell(shown, *ROWS)
    shown.began(4, CONFIG)
    assert (shown.done, shown.scored) == (4, 3)
    summary = shown.summary()
    assert summary.startswith("4/5 trials (2 completed, 1 stopped, 1 diverged), 1 running, ")
    assert "2.4 CPU-minutes and 1.2 GPU-minutes" in summary
    assert re.search(r"[\d.]+ lanes/s", summary)
    assert "left; best validation loss 0.3 [0.233, 0.3837]: adam, batch 32, width 16, depth 2, rate 0.003" in summary


def test_more_accuracy_is_better() -> None:
    shown = display(metric="accuracy")
    for number, value in enumerate((0.5, 0.9, 0.7)):
        shown.ended(row(number, "completed", value))
    assert shown.best
    assert shown.best["value"] == 0.9


def test_an_interrupted_trial_is_not_done() -> None:
    shown = display()
    tell(shown, row(0, "completed", 0.5), row(1, "interrupted", 0.4))
    assert shown.done == 1
    assert shown.best
    assert shown.best["trial"] == 0


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_gets_three_lines_within_its_width(width: int) -> None:
    shown = display("auto", terminal=True, width=width)
    tell(shown, *ROWS)
    shown.console.print(shown._lines())
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in text(shown).splitlines()]
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("trials ")
    assert "4/5" in lines[0]
    assert lines[1].startswith("0 running · 2 completed · 1 stopped · 1 diverged · ")
    assert lines[2].startswith("best validation loss 0.3 [0.233, 0.3837]: adam, batch 32")


def test_without_a_terminal_the_last_line_is_the_summary() -> None:
    shown = display()
    with shown:
        tell(shown, ROWS[0])
        shown.tick()
    assert re.sub(r"[\d.]+ lanes/s", "", text(shown)) == re.sub(r"[\d.]+ lanes/s", "", shown.summary() + "\n")


def test_plain_lines_follow_ended_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("study.progress.display.time.monotonic", lambda: now)
    shown = display()
    lines = []
    for ended, seconds in (([], 1), ([], 500), (ROWS[:1], 510), ([], 520), ([], 1000), (ROWS[1:3], 1001), ([], 1602)):
        now = float(seconds)
        tell(shown, *ended)
        shown.tick()
        lines.append(len(text(shown).splitlines()))
    assert lines == [0, 1, 1, 2, 2, 3, 4]


def test_a_notebook_gets_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: dict[str, list[str]] = {}
    monkeypatch.setattr("IPython.display.DisplayHandle", partial(Output, outputs))
    shown = display("auto", notebook=True)
    with shown:
        tell(shown, *ROWS)
        shown.shown = -math.inf
        shown.tick()
        shown.tick()  # too soon
    (told,) = outputs.values()
    assert len(told) == 3
    assert "0/5" in told[0]
    assert "0 running · 2 completed · 1 stopped · 1 diverged · " in told[1]
    assert told[2].startswith("4/5 trials (2 completed, 1 stopped, 1 diverged), ")
    assert text(shown) == ""


class Output:
    """What a cell of a notebook shows."""

    def __init__(self, outputs: dict[str, list[str]]) -> None:
        self.told = outputs[str(len(outputs))] = list[str]()

    def display(self, what: Any) -> None:
        console = Console(file=io.StringIO(), width=200)
        console.print(what)
        self.told.append(console.file.getvalue())  # type: ignore[attr-defined]

    update = display


def test_programs_get_an_object_a_line() -> None:
    shown = display("json")
    with shown:
        tell(shown, *ROWS)
        shown.say("a message")
    lines = [json.loads(line) for line in text(shown).splitlines()]
    assert [line["event"] for line in lines] == ["trial"] * 4 + ["message", "end"]
    assert [line["outcome"] for line in lines[:4]] == ["completed", "completed", "stopped", "diverged"]
    assert lines[3]["value"] is None
    assert lines[-1]["done"] == 4
    assert lines[-1]["outcomes"] == {"completed": 2, "stopped": 1, "diverged": 1}
    assert lines[-1]["best_low"] == pytest.approx(0.233, abs=1e-4)


def test_quiet_says_nothing() -> None:
    shown = display("quiet")
    with shown:
        tell(shown, *ROWS)
        shown.say("a message")
    assert text(shown) == ""


def test_a_study_that_goes_on_counts_what_was_done(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", optimizers=["adam"], widths=[8], depths=[1])
    rows = {n: row(n, "completed", 0.5 - n / 10, learning_rate=0.01) for n in range(2)}
    shown = display()
    shown.count_earlier(State(rows, redo=[2], begun=[3]), folder)
    assert (
        text(shown) == "good: 2 of 5 trials have ended, 1 continue from their checkpoints, 1 with lost rows run again\n"
    )
    assert shown.done == shown.before == 2
    assert shown.best
    assert shown.best["trial"] == 1
    assert shown.interval
    assert shown.numbers()["seconds_left"] is None


def test_what_has_no_interval_shows_none() -> None:
    cell = {"value": 0.5, "learning_rate": 0.1, **CONFIG}
    for limits in ((0.0, math.inf), (0.5, 0.5)):  # of one seed, and of equal scores
        assert best_line("loss", cell, limits).startswith("best validation loss 0.5: adam")


def test_sizes_that_a_model_lacks_are_not_shown() -> None:
    assert describe({**CONFIG, "width": 0, "depth": 0}, None) == "adam, batch 32"
    assert describe({**CONFIG, "depth": 0}, None) == "adam, batch 32, width 16"


@pytest.mark.long
@pytest.mark.parametrize("show", ["plain", "json"])
def test_display_outlives_its_reader(show: str) -> None:
    """As `head -1`, which closes the pipe."""
    code = f"""
import os, sys
from study.progress.display import ProgressDisplay
from study.spec import check
from tests.test_spec import changed
read, write = os.pipe()
os.dup2(write, 2 if "{show}" == "plain" else 1)
os.close(read)
shown = ProgressDisplay(check(changed()), 5, "{show}")
for _ in range(3):
    shown.say("told")
with shown:
    shown.tick()
print("still here", file=sys.stderr if "{show}" == "json" else sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).rstrip().endswith("still here")
