"""Figures: what stands on the Axes (numbers, labels, limits), not pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from numpy.testing import assert_allclose

import analysis
from analysis import figures
from tests.conftest import PLANTED


@pytest.fixture
def ax() -> Iterator[Axes]:
    with analysis.style():
        yield figures.figure(85, 70).subplots()


@pytest.fixture(scope="module")
def study(quick_study: Path) -> tuple[analysis.Results, pd.DataFrame]:
    results = analysis.load(quick_study)
    return results, analysis.cells(results)


def draw(ax: Axes) -> None:
    """Render, which is where matplotlib complains about text, ticks and limits."""
    ax.figure.savefig(io.BytesIO(), format="svg")


def line(ax: Axes, label: str) -> Any:
    return next(found for found in ax.get_lines() if str(found.get_label()).startswith(label))


def test_style_ends_with_its_context() -> None:
    before = mpl.rcParams.copy()
    with analysis.style():
        assert mpl.rcParams["axes.grid"]
    assert mpl.rcParams.copy() == before


@pytest.mark.parametrize("by", ["update", "examples", "epoch", "train_seconds"])
def test_loss_by_regime_draws_estimates_from_the_initialisation_on(ax: Axes, study: Any, by: str) -> None:
    data = analysis.regime_curves(*study)
    assert analysis.loss_by_regime(data, ax, by) is ax
    for regime in ("stochastic", "mini-batch", "batch"):
        rows = data[data["regime"] == regime]
        drawn = line(ax, f"{regime}: batch size {rows['batch_size'].iloc[0]:,}")
        assert_allclose(drawn.get_xydata(), rows[[by, "estimate"]].to_numpy(dtype=float))
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim()[0] == 0
    assert ax.get_yscale() == "log"
    draw(ax)
    assert ax.get_xticklabels()[0].get_text() == "0"


def test_loss_by_regime_names_size_optimizer_and_rate(ax: Axes, study: Any) -> None:
    analysis.loss_by_regime(analysis.regime_curves(*study), ax)
    labels = ax.get_legend_handles_labels()[1]
    assert labels == [
        "stochastic: batch size 1, adam at rate 0.0251",
        "mini-batch: batch size 32, adam at rate 0.00398",
        "batch: batch size 10,000 (full), adam at rate 0.00398",
    ]


def test_one_seed_has_a_line_and_no_band(ax: Axes, make_study: Callable[..., Path]) -> None:
    results = analysis.load(make_study(seeds=1, widths=[8], depths=[1]))
    analysis.loss_by_regime(analysis.regime_curves(results, analysis.cells(results)), ax, raw=False)
    assert len(ax.get_lines()) == 3
    assert all(np.isfinite(band.get_datalim(ax.transData).get_points()).sum() == 0 or not band.get_paths()
               for band in ax.collections)  # fmt: skip
    draw(ax)


def test_sensitivity_marks_tuned_and_diverged_rates(ax: Axes, study: Any) -> None:
    data = analysis.rate_sensitivity(*study)
    assert analysis.learning_rate_sensitivity(data, ax) is ax
    assert ax.get_legend_handles_labels()[1] == ["sgd", "momentum", "rmsprop", "adam"]
    adam = data[data["optimizer"] == "adam"]
    assert_allclose(line(ax, "adam").get_ydata(), adam["estimate"].where(adam["eligible"]).to_numpy())
    crosses = [found for found in ax.get_lines() if found.get_marker() == "x"]
    assert sum(len(found.get_xdata()) for found in crosses) == (data["diverged"] > 0).sum()
    rings = [found for found in ax.get_lines() if found.get_fillstyle() == "none"]
    assert len(rings) == 4
    assert [found.get_text() for found in ax.texts] == ["diverged"]
    draw(ax)


def test_heat_map_writes_each_number_with_its_interval(ax: Axes, study: Any) -> None:
    data = analysis.grid(study[1], "optimizer", "batch_size", maximize=False)
    assert analysis.heat_map(data, ax, "optimizer", "batch size") is ax
    texts = [text.get_text() for text in ax.texts]
    for row in data.to_dict("records"):
        if row["why"]:
            assert row["why"] in texts
        else:
            assert figures.metric_text(row["estimate"], "loss") in texts
            assert figures.interval_text(row["low"], row["high"], row["n"], "loss") in texts
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "32", "full (10000)"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["sgd", "momentum", "rmsprop", "adam"]
    mesh = next(found for found in ax.collections if isinstance(found, QuadMesh))
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 1
    draw(ax)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [math.nan], [0.0, 0.5], [0.5, math.nan, 1.0]])
def test_heat_map_of_few_or_equal_values(ax: Axes, values: list[float], metric: str) -> None:
    data = pd.DataFrame({"row": "a", "column": [str(place) for place in range(len(values))], "estimate": values})
    data = data.assign(
        low=data["estimate"], high=data["estimate"], n=2, why=np.where(data["estimate"].isna(), "failed", "")
    )
    analysis.heat_map(data, ax, "optimizer", "width", metric)
    draw(ax)


def test_progress_draws_every_trial_and_the_best(ax: Axes, study: Any) -> None:
    data = analysis.progress(study[0])
    assert analysis.search_progress(data, ax) is ax
    assert_allclose(line(ax, "best so far").get_ydata(), data["best"])
    drawn = [found for found in ax.get_lines() if found.get_label() in PLANTED]
    assert sum(np.isfinite(found.get_ydata()).sum() for found in drawn) == data["value"].notna().sum()
    crosses = [found for found in ax.get_lines() if found.get_marker() == "x"]
    assert sum(len(found.get_xdata()) for found in crosses) == data["value"].isna().sum() == 4
    draw(ax)


def test_every_optimizer_looks_different() -> None:
    looks = [figures.optimizer_look(name) for name in PLANTED]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(PLANTED)
    assert figures.optimizer_look("lion") == figures.optimizer_look("lion")
    assert figures.optimizer_look("lion")[0] not in {colour for colour, _ in looks}


def test_accuracy_is_in_percent(ax: Axes, make_study: Callable[..., Path]) -> None:
    results = analysis.load(make_study(metric="accuracy", widths=[8], depths=[1]))
    analysis.loss_by_regime(analysis.regime_curves(results, analysis.cells(results)), ax, metric="accuracy")
    draw(ax)
    assert ax.get_yscale() == "linear"
    assert all(tick.get_text().endswith("%") for tick in ax.get_yticklabels())


def test_a_dollar_in_a_name_is_no_mathematics(ax: Axes, study: Any) -> None:
    data = analysis.progress(study[0]).replace({"optimizer": {"adam": "$\\frac$"}})
    analysis.search_progress(data, ax)
    ax.legend()
    draw(ax)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (1.0, "1"), (1e-7, "1e-7"), (0.0001, "0.0001"), (12_540, "12,500"), (3e8, "3e8"), (0, "0")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert figures.short(value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("", "adam"),
        ('{"beta1":0.9,"beta2":0.9999}', "adam (beta1 0.9, beta2 0.9999)"),
        ('{"nesterov":true,"k":3}', "adam (nesterov true, k 3)"),
        ("no JSON", "adam (no JSON)"),
        ("3", "adam (3)"),
    ],
)
def test_settings_stand_behind_the_optimizer(settings: str, text: str) -> None:
    assert figures.optimizer_text("adam", settings) == text


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.39, "loss", "0.390"), (120.4, "loss", "120"), (0.9876, "accuracy", "98.8%"), (math.inf, "loss", "∞")],
)
def test_metric_texts(value: float, metric: str, text: str) -> None:
    assert figures.metric_text(value, metric) == text


def test_interval_texts() -> None:
    assert figures.interval_text(0.1, 0.2, 3, "loss") == "[0.100, 0.200]"
    assert figures.interval_text(0.981, 0.99, 3, "accuracy") == "[98.1, 99.0%]"
    assert figures.interval_text(0, math.inf, 1, "loss") == "one seed"
    assert figures.interval_text(math.nan, math.nan, 0, "loss") == ""
