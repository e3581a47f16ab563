"""What the figures draw, against independent counts and planted truths."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

import analysis
from analysis import series
from tests.conftest import (
    curve_row,
)

losses = st.floats(1e-12, 1e12)
shares = st.floats(0, 1)


def test_progress_follows_the_order_of_trials(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    table, frame = analysis.cells(results), analysis.progress(results)
    assert list(frame["trial"]) == list(range(48))
    assert frame["best"].iloc[-1] == table["validation"].min()
    assert (frame["best"].diff().dropna() <= 0).all()


def test_band_is_pointwise() -> None:
    values = {0: [1.0, 0.1], 10: [0.5, 0.02]}
    curves = pd.DataFrame(
        [curve_row(lane=lane, update=u, value=v) for u, line in values.items() for lane, v in enumerate(line)]
        + [curve_row(lane=0, update=10, value=9.0, split="train")]
    )
    found = analysis.band(curves, "loss")
    assert list(found["update"]) == [0, 10]
    assert_allclose(found["estimate"], [stats.gmean(values[0]), stats.gmean(values[10])])
    for row, line in zip(found.to_dict("records"), values.values(), strict=True):
        expected = analysis.log_interval(line)
        assert (row["low"], row["high"], row["n"]) == (expected.low, expected.high, 2)


def test_band_leaves_out_points_that_not_every_lane_has() -> None:
    points = [(0, 0), (0, 10), (0, 15), (1, 0), (1, 10), (1, 20)]
    curves = pd.DataFrame([curve_row(trial=trial, update=update) for trial, update in points])
    assert analysis.band(curves, "loss")["update"].to_list() == [0, 10]


def test_regime_curves_follow_the_best_cell_of_each_regime(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    curves = analysis.regime_curves(results, analysis.cells(results))
    assert list(curves["regime"].unique()) == ["stochastic", "mini-batch", "batch"]
    assert set(curves["optimizer"]) == {"adam"}
    assert (curves["n"] == 3).all()
    starts = curves[curves["update"] == 0]
    assert len(starts) == 3
    assert starts["batch_loss"].isna().all()
    assert curves.loc[curves["update"] > 0, "batch_loss"].notna().all()


def test_rate_sensitivity_has_each_rate_of_the_best_cells(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    frame = analysis.rate_sensitivity(results, analysis.cells(results))
    assert frame.groupby("optimizer").size().to_dict() == dict.fromkeys(["adam", "momentum", "rmsprop", "sgd"], 6)
    assert frame.groupby("optimizer")["tuned"].sum().eq(1).all()
    assert frame.loc[frame["tuned"], "eligible"].all()


def test_grid_takes_the_best_of_the_rest_and_says_why_not(quick_study: Path) -> None:
    table = analysis.cells(analysis.load(quick_study))
    table = table[~((table["optimizer"] == "sgd") & (table["batch_size"] == 1))]
    frame = analysis.grid(table, "optimizer", "batch_size", maximize=False).set_index(["row", "column"])
    assert list(frame.index.get_level_values("row").unique()) == ["sgd", "momentum", "rmsprop", "adam"]
    assert list(frame.index.get_level_values("column").unique()) == ["1", "32", "full (10000)"]
    chosen = table[(table["optimizer"] == "adam") & (table["batch_size"] == 32)]
    assert frame.loc[("adam", "32"), "estimate"] == chosen["validation"].min()
    assert frame.loc[("sgd", "1"), "why"] == "not run"
    assert frame.loc[("momentum", "full (10000)"), "why"] == "diverged"
    assert (frame["why"] == "").sum() == 10
    assert frame.loc[frame["why"] == "", "n"].eq(3).all()


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_bins_are_few_and_in_order(numbers: list[int]) -> None:
    values = pd.Series(sorted(numbers))
    labels = list(dict.fromkeys(series.binned(values)))
    assert len(labels) <= max(8, 15)
    assert len(series.binned(values)) == len(values)
    firsts = [int(label.split("-")[0]) for label in labels]
    assert firsts == sorted(firsts)
