"""Baselines, enqueued cells, a warm start and a time-out together, on a Ray of the study's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import analysis
from study import api


@pytest.mark.nightly
def test_digits_with_baseline_enqueued_cell_warm_start_and_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_worker: None
) -> None:
    """Through `study.run` on real Ray: the time-out ends the search, and a longer one goes on after a kill."""
    monkeypatch.chdir(tmp_path)
    ours = {"name": "ours", "optimizer": "momentum", "learning_rate": 0.1, "batch_size": 64, "width": 4, "depth": 1}
    first = {"optimizer": "adam", "batch_size": 32, "width": 8}
    tables: dict[str, Any] = {
        "name": "digits",
        "workload": {"data": "digits", "model": "mlp"},
        "search": {"width": [4, 8], "depth": 1, "batch_size": [32, "full"], "optimizer": ["sgd", "adam"]},
        "lanes": {"rates": 2, "seeds": 2, "extensions": 0, "refine": 0},
        "budget": {"trials": 2, "epochs": 2},
        "confirm": {"top": 1, "seeds": 3},
    }
    api.run(tables, "earlier", show="quiet")
    tuning = {"warm_start": "earlier", "timeout": "0.01s"}
    more = {"budget": {"trials": 4, "epochs": 2}, "tuning": tuning, "baseline": [ours], "enqueue": [first]}
    outcome = api.run(tables | more, "here", show="quiet")
    found = analysis.load("here")
    assert found.timed_out == f"stopped after {len(found.trials)} of 4 trials: timeout = 0.01s"
    assert 1 <= len(found.trials) < 4
    assert any("Stopped after" in line for line in outcome.verdict)
    assert any('the baseline "ours"' in line for line in outcome.verdict)
    assert tuple(found.trials.loc[0, ["optimizer", "batch_size", "width"]]) == ("adam", 32, 8)
    assert found.confirmation is not None
    assert "momentum" in set(found.confirmation.trials["optimizer"])
    api.resume("here", timeout="1h", show="quiet")
    found = analysis.load("here")
    assert (len(found.trials), found.timed_out) == (4, "")
    assert Counter(found.trials["optimizer"]) == {"sgd": 2, "adam": 2}
    (entry,) = analysis.compare(found, analysis.cells(found)).baselines
    assert (entry.reason, entry.score.n) == ("", 3)
