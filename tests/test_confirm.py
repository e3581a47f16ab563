"""Which cells a confirmation runs again, and what it costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from study.results.confirm import WINNERS, Winner, confirmation, cost, most_winners, winners
from study.spec import Spec, check
from tests.conftest import write_study
from tests.test_spec import changed

OPTIMIZERS = ["sgd", "momentum", "rmsprop", "adam"]


def spec(**changes: Any) -> Spec:
    """The spec of `quick_study`."""
    search = {"width": [8, 32], "depth": [1, 2], "batch_size": [1, 32, "full"], "optimizer": OPTIMIZERS}
    return check(changed(search=search, budget={"trials": 48, "epochs": 3}, **changes))


def chosen(found: list[Winner]) -> list[tuple[str, Any]]:
    """Optimizer and batch size of each."""
    return [(each.cell["optimizer"], each.cell["batch_size"]) for each in found]


def test_winners_are_the_best_of_all_of_each_optimizer_and_of_each_regime(quick_study: Path, tmp_path: Path) -> None:
    shutil.copytree(quick_study, tmp_path, dirs_exist_ok=True)
    found = winners(spec(confirm={"top": 2}), tmp_path)
    # Best first: adam's two best cells, its best stochastic one, two more optimizers, its best batch one, and sgd's.
    expected = [
        ("adam", 32),
        ("adam", 32),
        ("adam", 1),
        ("rmsprop", 32),
        ("momentum", 32),
        ("adam", "full"),
        ("sgd", 32),
    ]
    assert sorted(chosen(found), key=str) == sorted(expected, key=str)
    assert chosen(found)[:2] == expected[:2]
    assert len({json.dumps(each.cell) for each in found}) == len(found) == most_winners(spec(confirm={"top": 2}))


def test_winners_of_an_earlier_session_come_first(quick_study: Path, tmp_path: Path) -> None:
    shutil.copytree(quick_study, tmp_path, dirs_exist_ok=True)
    few, more = spec(confirm={"top": 1}), spec(confirm={"top": 20})
    before = winners(few, tmp_path)
    file = tmp_path / "confirm" / WINNERS
    file.write_text(json.dumps(json.loads(file.read_text())["winners"][::-1]))  # as earlier versions wrote it
    assert winners(more, tmp_path)[: len(before)] == before[::-1]
    assert len(winners(more, tmp_path)) > len(before)
    assert winners(more, tmp_path) == winners(few, tmp_path)


def test_no_completed_trial_leaves_nothing_to_confirm(tmp_path: Path) -> None:
    folder = write_study(tmp_path, diverge=lambda cell: True)
    assert winners(spec(confirm={"top": 1}), folder) == []
    assert not (folder / "confirm").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"confirm": {"top": 3}}, 3 + 3 + 2),
        ({"confirm": {"top": 3}, "budget": {"trials": 5, "epochs": 3}}, 5),
        ({"confirm": {"top": 3}, "search": {"width": 8, "depth": 1, "batch_size": [32], "optimizer": ["sgd"]}}, 1),
        ({"confirm": {"top": 1}, "search__batch_size": {"low": 1, "high": 64}}, 1 + 3 + 1),
        ({}, 0),
    ],
)
def test_most_winners(changes: dict[str, Any], expected: int) -> None:
    tables = spec().tables() | {"confirm": changes.pop("confirm", False)}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        tables[section] = {**tables[section], key: value} if key else value
    assert most_winners(check(tables)) == expected


def test_cost_counts_lanes_or_trials_of_a_budget_in_seconds() -> None:
    lanes, confirm = {"rates": 4, "seeds": 5}, {"top": 3, "seeds": 10}
    assert cost(spec(lanes=lanes, confirm=confirm)) == 8 * 10 / 20
    timed = changed(budget={"trials": 4, "seconds": 60.0}, confirm=confirm)
    assert cost(check(timed)) == 4
    assert cost(spec()) == 0


def test_a_confirmation_runs_winners_as_they_are() -> None:
    final = confirmation(spec(confirm={"top": 3}), 5)
    assert (final.tuning.fair, final.tuning.scheduler, final.budget.trials) == (False, "none", 5)
