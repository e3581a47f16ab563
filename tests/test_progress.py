from __future__ import annotations

import io
import math
import pickle
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from study.progress import ProgressDisplay
from study.watch import describe

CONFIG = {"optimizer": "adam", "batch_size": 32, "width": 16, "depth": 2}


def ended(name: str, value: float, rate: float | None = 0.003) -> Any:
    result = {"outcome": name, "value": value, "learning_rate": rate}
    return SimpleNamespace(trial_id=f"{name}{value}", last_result=result, config=CONFIG)


def display(**options: Any) -> ProgressDisplay:
    made = ProgressDisplay(5, "loss", **{"maximize": False, "quiet": False, **options})
    made.console = Console(file=io.StringIO(), width=200)
    made.live = None
    return made


def tell(shown: ProgressDisplay, *trials: Any) -> None:
    for trial in trials:
        shown.on_trial_start(0, [], trial)
    for trial in trials:
        shown.on_trial_complete(0, [], trial)


def test_trials_are_counted_by_how_they_ended_and_the_best_is_a_completed_one() -> None:
    shown = display()
    tell(
        shown,
        ended("completed", 0.5),
        ended("completed", 0.3),
        ended("running", 0.1),
        ended("diverged", math.nan, None),
    )
    shown.on_trial_start(0, [], ended("running", 9.0))
    assert shown.ended == 4
    assert shown.scored == 3
    assert shown.summary() == (
        "4/5 trials (2 completed, 1 stopped, 1 diverged), 1 running; "
        "best loss 0.3: adam, batch 32, width 16, depth 2, rate 0.003"
    )


def test_more_accuracy_is_better() -> None:
    shown = display(maximize=True)
    tell(shown, ended("completed", 0.5), ended("completed", 0.9), ended("completed", 0.7))
    assert shown.best
    assert shown.best[0] == 0.9


def test_without_a_terminal_the_last_line_is_the_summary() -> None:
    shown = display()
    with shown:
        tell(shown, ended("completed", 0.5))
        shown.on_step_end(0, [])
    assert shown.console.file.getvalue() == shown.summary() + "\n"  # type: ignore[attr-defined]


def test_it_survives_the_pickling_of_ray_tunes_snapshots() -> None:
    shown = display()
    tell(shown, ended("completed", 0.5))
    assert pickle.loads(pickle.dumps(shown)).counts == {"completed": 1}


def test_a_linear_model_has_no_size() -> None:
    assert describe({**CONFIG, "width": 0, "depth": 0}, None) == "adam, batch 32"
