"""Figures: what stands on the Axes (numbers, labels, limits), not pixels."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from numpy.testing import assert_allclose

import analysis
from analysis.figures import axes, exhibit, style
from analysis.figures.batch_size.steps_to_target import steps_against_batch_size
from analysis.figures.batch_size.throughput import throughput, throughput_against_batch_size
from analysis.figures.batch_size.tuned_rate import best_rates, rate_against_batch_size
from analysis.figures.performance_profile import performance_profiles
from analysis.figures.rate_sensitivity import _marks, learning_rate_sensitivity, most, tolerance
from analysis.figures.regimes import learning_curves
from analysis.figures.regimes.gradient_noise import noise_scale
from analysis.figures.regimes.noise_speed import noise_against_speed, noise_and_speed
from analysis.figures.registry import figures_of
from analysis.figures.search import loss_time
from analysis.figures.search.expected_best import expected_best_of
from analysis.figures.search.importance import importance_bars
from analysis.figures.search.isolation import isolation, searched
from analysis.figures.search.loss_time import loss_against_time, loss_and_time
from analysis.figures.search.parallel_coordinates import _scale, parallel_coordinates
from analysis.figures.search.timeline import trial_timeline
from analysis.figures.style import optimizer_look
from analysis.text import interval_text, metric_text, short
from tests.conftest import PLANTED, write_study


@pytest.fixture
def ax() -> Iterator[Axes]:
    with analysis.style():
        yield style.figure(85, 70).subplots()


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


@pytest.mark.parametrize(
    ("width", "expected"), [("icml", 82.55), (85, 85), ("3.5in", 88.9), ("246pt", 86.5), ("8.5cm", 85)]
)
def test_style_takes_widths(width: str | float, expected: float) -> None:
    with analysis.style(width=width):
        assert style.figure(180, 60).get_figwidth() * 25.4 == pytest.approx(expected, abs=0.1)
    with pytest.raises(ValueError, match=r"not a style or width; valid: icml, ieee, neurips, beamer, or 60 to 400 mm"):
        style.millimetres("narrow")


@pytest.mark.parametrize("width", ["icml", pytest.param("ieee", marks=pytest.mark.long)])
def test_figures_fit_a_column(study: Any, width: str) -> None:
    """No text is below 6 points, none is cut off, and every axes keeps a good part of the width and the height."""
    for _, shown in figures_of(*study, analysis.compare(*study)):
        if shown.data.empty:
            continue
        with analysis.style(width=width):
            (_, drawn), *_ = shown.drawings()
            drawn.draw_without_rendering()
            inches = drawn.get_size_inches()
            found = drawn.get_tightbbox().extents
            assert (found[:2] > -0.01).all(), shown.name
            assert (found[2:] < inches + 0.01).all(), shown.name
            assert inches[0] == pytest.approx(style.millimetres(width) / 25.4)
            assert inches[1] < 1.9 * inches[0], shown.name
            texts = [text for text in drawn.findobj(mpl.text.Text) if text.get_text().strip()]  # type: ignore[attr-defined]
            assert min(text.get_fontsize() for text in texts) >= 6, shown.name
            boxes = [ax.get_position() for ax in drawn.axes if ax.get_visible()]
            columns = {round(box.x0, 2) for box in boxes}
            assert min(box.width for box in boxes) > 0.5 / len(columns), shown.name
            assert min(box.height for box in boxes) * inches[1] > 0.7, shown.name


def test_optimizers_and_regimes_share_no_colour() -> None:
    assert not {look[0].lower() for look in style._LOOKS.values()} & {c.lower() for c in style.REGIME_COLOURS.values()}


# What a reader sees who lacks one kind of cone, of linear red, green and blue (Machado, Oliveira and Fernandes 2009).
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def seen(colour: str, eye: Any) -> Any:
    """A colour in Oklab (Ottosson 2020), as seen with an eye."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(eye) @ linear, 0, 1)
    cones = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]] @ linear
    return [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]] @ np.cbrt(cones)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("eye", "least"), [(np.eye(3), 0.12), (PROTAN, 0.075), (DEUTAN, 0.075)])
def test_common_optimizers_have_colours_apart_in_both_themes(dark: bool, eye: Any, least: float) -> None:
    names = ["gradient-descent", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
    colours = [optimizer_look(name)[0] for name in names]
    shown = [seen(style._ON_DARK.get(each.lower(), each) if dark else each, eye) for each in colours]
    for (one, first), (other, second) in combinations(zip(names, shown, strict=True), 2):
        assert np.linalg.norm(first - second) > least, (one, other)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.064, 0.5, 2.0], [0.0, 0.1, 0.2, 0.5, 1.0, 2.0]),  # a short study had 0 and 1 only
        ([1.0, 5.0, 20.0], [0.0, 2.0, 5.0, 10.0, 20.0]),
        ([1.0, 9000.0], [0.0, 10.0, 100.0, 1000.0]),
        ([500.0, 100_000.0], [0.0, 1000.0, 10_000.0, 100_000.0]),  # long labels of a short run
        ([1.0, 20_000.0], [0.0, 10.0, 100.0, 1000.0, 10_000.0]),
    ],
)
def test_an_axis_of_training_has_ticks_that_say_where_one_is(ax: Axes, values: list[float], ticks: list[float]) -> None:
    axes.log_axis_with_zero(ax, pd.Series(values))
    assert_allclose(ax.get_xticks(), ticks)


@pytest.mark.parametrize(("most", "ticks"), [(1.1, 3), (2.0, 6), (3.9, 3), (4.0, 4), (30.0, 3)])
def test_ticks_of_a_short_axis_are_what_they_say(ax: Axes, most: float, ticks: int) -> None:
    axes.log_axis(ax, "x", pd.Series([1.0, most]), margin=1.02)
    draw(ax)
    low, high = ax.get_xlim()
    shown = {tick.get_text(): place for tick, place in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)}
    shown = {text: place for text, place in shown.items() if low <= place <= high}
    assert len(shown) >= ticks
    assert "1" in shown
    assert_allclose([float(text) for text in shown], list(shown.values()))


def test_learning_curves_have_a_panel_for_each_batch_size_with_every_optimizer(ax: Axes, study: Any) -> None:
    results, table = study
    data = analysis.optimizer_curves(results, table)
    assert list(dict.fromkeys(data["panel"])) == ["batch size 1", "batch size 32", "full batch"]
    panel = data[data["panel"] == "batch size 32"]
    assert set(panel["optimizer"]) == {"sgd", "momentum", "rmsprop", "adam"}
    analysis.curves_by_optimizer(panel, ax, "update")
    best = analysis.rank(table, maximize=False).query("optimizer == 'adam' and batch_size == 32").iloc[0]
    own = panel[(panel["optimizer"] == "adam") & (panel["split"] == "validation")]
    assert own["estimate"].iloc[-1] == pytest.approx(best["validation"], rel=0.2)  # the curves' noise is their own
    assert_allclose(line(ax, "adam").get_ydata(), own["estimate"])
    few = analysis.optimizer_curves(results, table.assign(batch_size=range(2, 2 + len(table))))
    assert list(dict.fromkeys(few["panel"])) == ["stochastic", "mini-batch", "batch"]


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


def test_captions_and_axes_say_whose_seconds_they_show(study: Any) -> None:
    old, _ = study
    raw = old.trials.drop(columns="stack_seconds")
    new = replace(old, trials=raw.assign(update_seconds=1e-3 / raw["batch_size"]))
    for results, words in ((old, "seconds of the whole stack of lanes"), (new, "seconds of one network trained alone")):
        for module in (learning_curves, loss_time):
            shown = module.figure(results, analysis.cells(results))
            assert words in shown.caption
            with analysis.style():
                labels = [panel.get_xlabel() for _, drawn in shown.drawings() for panel in drawn.axes]
            assert words in " ".join(labels).replace("\n", " ")
    data = learning_curves.regime_curves(new, analysis.cells(new))
    ends = data.groupby("regime")[["update", "batch_size", "train_seconds"]].max()
    assert_allclose(ends["train_seconds"], 1e-3 * ends["update"] / ends["batch_size"])


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
    names = {found.get_text(): found.xyann[1] for found in ax.texts if found.get_text() != "diverged"}
    assert set(names) == {"sgd", "momentum", "rmsprop", "adam"}
    heights = sorted(names.values())
    assert np.diff(heights).min() > 0.06  # names do not overlap
    assert (heights[0], heights[-1]) == (pytest.approx(names["adam"]), pytest.approx(names["sgd"]))
    adam = data[data["optimizer"] == "adam"]
    (own,) = [found for found in ax.get_lines() if found.get_gid() == "series:adam" and found.get_linestyle() == "-"]
    assert_allclose(own.get_ydata(), adam["estimate"].where(adam["eligible"]).to_numpy())
    crosses = [found for found in ax.get_lines() if found.get_marker() == "x"]
    assert sum(len(found.get_xdata()) for found in crosses) == (data["diverged"] > 0).sum()
    rings = [found for found in ax.get_lines() if found.get_fillstyle() == "none" and found.get_marker() == "o"]
    assert len(rings) == 4
    assert [found.get_text() for found in ax.texts].count("diverged") == 1
    draw(ax)
    assert _marks(data, "loss").startswith("; cross: a seed diverged; ")
    assert _marks(data.assign(best=False), "loss").startswith(" (smoothed over its neighbours); cross: a seed diverged")
    assert "gap: a rate that was stopped early or ran on fewer seeds" in _marks(data.assign(eligible=False), "loss")


def test_sensitivity_clips_losses_that_are_far_above_untrained_ones(ax: Axes, study: Any) -> None:
    data = analysis.rate_sensitivity(*study)
    assert data["untrained"].median() == pytest.approx(1.2, rel=0.1)  # planted
    worst = data[data["eligible"]].groupby("optimizer")["learning_rate"].idxmin()["adam"]
    data.loc[worst, ["estimate", "high"]] = 1e6
    analysis.learning_rate_sensitivity(data, ax)
    assert ax.get_ylim()[1] < 4
    marks = [found for found in ax.get_lines() if found.get_marker() == "^" and found.get_fillstyle() == "none"]
    (far,) = [found for found in marks if found.get_gid() == "series:adam"]
    assert far.get_xydata().tolist() == [[data.loc[worst, "learning_rate"], 1.0]]
    assert f"triangle: a loss above {short(most(data, 'loss'))}, twice that before training" in _marks(data, "loss")
    draw(ax)
    assert not [text for name, *_, text in exhibit.points(ax.figure) if "1e6" in text]


def test_sensitivity_without_a_recorded_start_clips_nothing(ax: Axes, study: Any) -> None:
    data = analysis.rate_sensitivity(*study).assign(untrained=math.nan)
    data.loc[data["estimate"].idxmax(), "estimate"] = 1e6
    analysis.learning_rate_sensitivity(data, ax)
    assert ax.get_ylim()[1] > 1e6
    assert "triangle" not in _marks(data, "loss")
    assert most(data, "accuracy") == math.inf


def test_heat_map_writes_each_number_with_its_interval(ax: Axes, study: Any) -> None:
    data = analysis.grid(study[1], "optimizer", "batch_size", maximize=False)
    assert analysis.heat_map(data, ax, "optimizer", "batch size") is ax
    texts = [text.get_text() for text in ax.texts]
    for row in data.to_dict("records"):
        if row["why"]:
            assert row["why"] in texts
        else:
            assert metric_text(row["estimate"], "loss") in texts
            assert interval_text(row["low"], row["high"], row["n"], "loss") in texts
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "32", "full (10,000)"]
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


def test_a_heat_map_on_a_phone_leaves_out_what_overlaps() -> None:
    data = pd.DataFrame({"row": "1", "column": [*"234567"], "estimate": 0.5, "low": 0.4, "high": 0.6, "n": 3})
    for width, shown in ((style.PAGE_MM, True), (style.COLUMN_MM, False)):
        with analysis.style(width):
            panel = style.figure(width, 40).subplots()
            analysis.heat_map(data.assign(why="", parameters=1770), panel, "depth", "width", sizes=True)
        assert any("1,770 parameters" in text.get_text() for text in panel.texts) == shown


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
    looks = [optimizer_look(name) for name in PLANTED]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(PLANTED)
    assert optimizer_look("mine:Rule") == optimizer_look("mine:Rule")
    assert optimizer_look("mine:Rule")[0] not in {colour for colour, _ in looks}
    assert not set(style._FREE) & set(style._LOOKS.values())


def test_ten_long_names_fit_a_phone(tmp_path: Path) -> None:
    names = [f"my_lab.optimizers:SharpnessAwareMinimization{letter}" for letter in "ABCDEFGHIJ"]
    folder = write_study(tmp_path, optimizers=names, widths=[8, 16], depths=[1], batch_sizes=[1, 32, 256, 10_000],
                         rates=[0.003, 0.01, 0.03], seeds=2, metric="accuracy")  # fmt: skip
    results = analysis.load(folder)
    table = analysis.cells(results)
    every = {each.name: each for _, each in figures_of(results, table, analysis.compare(results, table))}
    with analysis.style(style.COLUMN_MM):
        for name in ("optimizer-batch-size", "isolation", "parallel-coordinates"):
            ((_, drawn),) = every[name].drawings()
            drawn.draw_without_rendering()
            labels = [[text for text in panel.get_xticklabels() if text.get_text()] for panel in drawn.axes]
            labels += [drawn.axes[0].texts[:12]] if name == "parallel-coordinates" else []  # names, and the next axis
            for some in labels:
                boxes = [text.get_window_extent() for text in some]
                assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), (name, [*map(str, some)])
    assert "smallest ratio of the second to the first: " in every["tuned-rate"].caption
    assert sum(name in every["tuned-rate"].caption for name in names) == 2


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


def test_sensitivity_by_batch_size_names_each_size(ax: Axes, study: Any) -> None:
    data = analysis.rate_sensitivity(*study, "batch_size")
    learning_rate_sensitivity(data, ax)
    names = {found.get_text(): found.get_color() for found in ax.texts if found.get_text() != "diverged"}
    assert set(names) == {"batch size 1", "batch size 32", "batch size 10,000"}
    assert len(set(names.values())) == 3
    draw(ax)
    with analysis.style(style.COLUMN_MM):
        phone = style.figure(85, 70).subplots()
        learning_rate_sensitivity(data, phone)
    assert {found.get_text() for found in phone.texts} >= {"1", "32", "10,000"}
    assert {found.get_gid() for found in phone.get_lines()} == {found.get_gid() for found in ax.get_lines()}


def test_noise_and_speed_have_a_point_per_cell_or_a_cross(ax: Axes, study: Any) -> None:
    data = noise_and_speed(*study)
    noise_against_speed(data, ax)
    points = [found for found in ax.get_lines() if found.get_markersize() == 5 and len(found.get_xdata())]
    late = [found for found in ax.get_lines() if found.get_fillstyle() == "none"]
    assert sum(len(found.get_xdata()) for found in points) == np.isfinite(data["examples"]).sum() > 0
    assert sum(len(found.get_xdata()) for found in late) == np.isinf(data["examples"]).sum() > 0
    assert ax.get_legend_handles_labels()[1][:3] == ["stochastic", "mini-batch", "batch"]
    draw(ax)


def test_tuned_rates_stand_beside_their_guides(ax: Axes, study: Any) -> None:
    data = best_rates(*study)
    rate_against_batch_size(data, ax)
    adam = data[data["optimizer"] == "adam"]
    assert_allclose(line(ax, "adam").get_ydata(), adam["learning_rate"])
    draw(ax)
    values = [text for name, _, _, text in exhibit.points(ax.figure) if name == "adam"]
    bars = "halfway to the neighbouring rates of the grid"
    assert len(values) == len(adam)
    for size, rate, text in zip(adam["batch_size"], adam["learning_rate"], values, strict=True):
        assert text.startswith(f"batch size {short(size)}: {short(rate)}, {bars} [")
    for label, power in (("proportional", 1.0), ("to its square root", 0.5)):
        x, y = line(ax, label).get_data()
        assert_allclose(np.log(y[-1] / y[0]) / np.log(x[-1] / x[0]), power)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "32", "10,000"]
    draw(ax)


def test_steps_have_their_fit_and_perfect_scaling(ax: Axes) -> None:
    sizes = [8, 64, 512]
    rows = [{"optimizer": name, "batch_size": size, "seed": seed, "updates": 50 * (1 + 100 / size) + seed}
            for name in ("adam", "sgd") for size in sizes for seed in (0, 1, 2)]  # fmt: skip
    fits = pd.DataFrame([{"optimizer": "adam", "critical": 100.0, "smallest_steps": 50.0}])
    steps_against_batch_size(pd.DataFrame(rows), fits, ax)
    assert_allclose(line(ax, "sgd").get_ydata(), [50 * (1 + 100 / size) + 1 for size in sizes])
    x, y = line(ax, "perfect scaling").get_data()
    assert_allclose(x * y, x[0] * y[0])
    (tick,) = [found for found in ax.get_lines() if found.get_marker() == "|"]
    assert tick.get_xydata().tolist() == [[100, 100]]  # twice the smallest number of updates, by definition
    draw(ax)


def test_throughput_has_a_line_per_engine(ax: Axes, study: Any) -> None:
    data = throughput(study[0])
    throughput_against_batch_size(data.assign(engine=["eager", None] * (len(data) // 2)), ax)
    assert ax.get_legend_handles_labels()[1] == ["eager", "not recorded"]
    draw(ax)


def test_expected_best_draws_what_was_computed(ax: Axes) -> None:
    data = pd.DataFrame({"optimizer": "sgd", "trials": [1, 2, 3], "expected": [0.5, 0.3, 0.2]})
    expected_best_of(data, ax)
    assert_allclose(line(ax, "sgd").get_ydata(), [0.5, 0.3, 0.2])
    assert ax.get_ylabel() == "expected best validation loss"
    draw(ax)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_parallel_coordinates_draw_the_best_on_top(ax: Axes, study: Any, metric: str) -> None:
    data = searched(study[1], maximize=False)
    parallel_coordinates(data, ax, metric)
    best = [found for found in ax.get_lines() if found.get_color() == style.DARK]
    assert len(best) == max(1, len(data) // 10)
    assert [tick.get_text() for tick in ax.get_xticklabels()][-1] == f"validation {metric}"
    for found in ax.get_lines():
        y = np.asarray(found.get_ydata(), dtype=float)
        assert (y >= 0).all()
        assert (y <= 1).all()
    draw(ax)


def test_sizes_are_not_rounded() -> None:
    assert [text for _, text in _scale(pd.Series([8, 1077]), "batch_size", "loss")[1]] == ["8", "1,077"]


def test_parallel_coordinates_of_many_cells_keep_the_best_and_the_worst(ax: Axes) -> None:
    data = pd.DataFrame({"trial": range(1000), "width": 8, "batch_size": range(1, 1001)})
    data["validation"] = np.linspace(0.1, 10, 1000)
    parallel_coordinates(data, ax, limit=100)
    lines = [found for found in ax.get_lines() if len(found.get_ydata()) == 3]
    assert len(lines) <= 100
    heights = [found.get_ydata()[-1] for found in lines]
    assert (min(heights), max(heights)) == (0, 1)
    assert sum(found.get_color() == style.DARK for found in lines) == 10


@pytest.mark.parametrize("by", ["optimizer", "width", "depth", "batch_size", "learning_rate"])
def test_isolation_marks_the_best_of_each_value(ax: Axes, study: Any, by: str) -> None:
    data = searched(study[1], maximize=False)
    isolation(data, ax, by)
    (best,) = [found for found in ax.get_lines() if found.get_marker() == "_"]
    expected = data.groupby(by)["validation"].min()
    order = ["sgd", "momentum", "rmsprop", "adam"] if by == "optimizer" else expected.index
    assert_allclose(best.get_ydata(), expected[order])
    draw(ax)


def test_isolation_takes_rates_that_differ_in_the_last_digit_as_one(ax: Axes) -> None:
    data = pd.DataFrame({"learning_rate": [0.0010000000000000002, 0.0010000000000000007], "validation": [2.0, 1.0]})
    isolation(data, ax, "learning_rate")
    (best,) = [found for found in ax.get_lines() if found.get_marker() == "_"]
    assert list(best.get_ydata()) == [1.0]


def test_importance_is_a_bar_and_a_line_each(ax: Axes) -> None:
    data = pd.DataFrame({"parameter": ["optimizer", "batch_size"], "estimate": [0.7, 0.3], "low": 0.2, "high": 0.8})
    importance_bars(data, ax)
    assert [bar.get_width() for bar in ax.patches] == [0.7, 0.3]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["optimizer", "batch size"]
    draw(ax)


def test_profiles_end_with_what_is_solved_at_all(ax: Axes) -> None:
    data = pd.DataFrame({"optimizer": "adam", "ratio": [1.0, 2.0, 4.0], "share": [0.5, 0.5, 1.0], "problems": 2})
    performance_profiles(data, ax)
    assert_allclose(line(ax, "adam").get_ydata(), data["share"])
    draw(ax)


def test_the_front_of_loss_and_time_is_drawn(ax: Axes, study: Any) -> None:
    data = loss_and_time(*study)
    loss_against_time(data, ax)
    assert len(line(ax, "Pareto front").get_xdata()) == data["front"].sum()
    draw(ax)


@pytest.mark.parametrize(("length", "unit"), [(1.0, "s"), (500.0, "min"), (20_000.0, "h"), (1e6, "days")])
def test_the_timeline_has_a_row_per_worker(ax: Axes, length: float, unit: str) -> None:
    data = pd.DataFrame({"worker": ["a", "b", "a"], "outcome": ["completed", "failed", "strange"], "started": 0.0})
    data = data.assign(place=data["worker"], gpu=False, slot=0, slots=1)
    trial_timeline(data.assign(ended=length), ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_legend_handles_labels()[1] == ["completed", "failed", "strange"]
    assert ax.get_xlabel() == f"time since the first trial began ({unit})"
    draw(ax)


def test_trials_that_share_a_gpu_share_its_row(ax: Axes) -> None:
    places = ["a.far.example GPU 0", "a.far.example GPU 0", "a.far.example:7"]
    data = pd.DataFrame({"place": places, "gpu": [True, True, False], "outcome": "completed", "started": 0.0})
    trial_timeline(data.assign(ended=5.0, slot=[0, 1, 0], slots=[2, 2, 1]), ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a GPU 0", "a:7"]
    boxes = [path.get_extents() for bars in ax.collections for path in bars.get_paths()]
    assert_allclose([(box.y0, box.height) for box in boxes], [(-0.4, 0.4), (0.0, 0.4), (0.6, 0.8)], atol=1e-12)
    assert_allclose([(box.x0, box.width) for box in boxes], [(0.0, 5.0)] * 3)
    assert ax.get_ylabel() == "GPU, or worker"
    draw(ax)


def test_gradient_noise_that_is_infinite_has_no_point(ax: Axes) -> None:
    data = pd.DataFrame({"regime": "batch", "batch_size": 100, "examples": [0, 100, 200], "n": 3})
    data = data.assign(estimate=[10.0, math.inf, 30.0], low=5.0, high=[20.0, math.inf, math.inf])
    noise_scale(data, ax)
    assert_allclose(line(ax, "batch").get_ydata(), [10, math.nan, 30])
    draw(ax)


@pytest.mark.parametrize("name", ["noise_against_speed", "rate_against_batch_size", "throughput_against_batch_size"])
def test_figures_of_nothing_are_empty(ax: Axes, study: Any, name: str) -> None:
    full = {"noise_against_speed": noise_and_speed, "rate_against_batch_size": best_rates}
    data = full[name](*study) if name in full else throughput(study[0])
    getattr(analysis, name)(data.head(0), ax)
    draw(ax)


def test_a_dark_page_changes_lines_and_keeps_heat_maps() -> None:
    sheet = style.dark_rules()
    assert '[style*="stroke: #0072b2"]{stroke:#3583d0!important}' in sheet
    assert '[style*="fill: #ffffff"]{fill:#14171b!important}' in sheet
    assert 'svg[aria-label^="All cells in parallel"] image{filter:invert(.85) hue-rotate(180deg)}' in sheet
    assert ':is(text,use)[style*="fill: #440154"]{fill:#9873a1!important}' in sheet  # the name of the darkest line
    inside = {mpl.colors.to_hex(colour) for colour in mpl.colormaps["viridis_r"](np.linspace(0, 1, 256))}
    assert not inside & set(re.findall(r'}\[style\*="fill: (#[0-9a-f]{6})', sheet))


def test_an_inline_figure_keeps_only_ids_that_are_used(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], "o")
    file = io.BytesIO()
    ax.figure.savefig(file, format="svg")
    text = style.inline(file.getvalue(), "mine", 'a "line" & <b>', 400)
    ids = re.findall(r' id="([^"]*)"', text)
    assert all(each.startswith("mine-") for each in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) == set(ids) != set()
    assert ElementTree.fromstring(text).get("aria-label") == 'a "line" & <b>'


def test_points_of_a_series_have_their_values_and_limits(ax: Axes) -> None:
    for name in style.series(ax, ["adam", "sgd"]):
        ax.vlines([1.0, 2.0], 0.5, 3.0)
        ax.plot([1.0, 2.0], [1.0, 2.0], label=name)
        ax.plot([1.0, 2.0], [1.0, 2.0], "--")  # training is dashed
    ax.plot([1.0, 2.0], [1.0, 2.0])
    ax.set(xlabel="epochs", xlim=(0, 1.5), ylim=(0, 4))
    draw(ax)
    listed = exhibit.points(ax.figure)
    assert [(name, text) for name, _, _, text in listed] == [(name, "epochs 1: 1 [0.5, 3]") for name in ("adam", "sgd")]
    (_, x, y, _), _ = listed
    box = ax.get_position()
    expected = 72 * ax.figure.get_size_inches() * (box.x0 + box.width / 1.5, 1 - box.y0 - box.height / 4)
    assert (x, y) == pytest.approx(tuple(expected), abs=0.1)


@pytest.mark.parametrize(
    ("losses", "decades"),
    [
        ([9.0, 1.0, 9.0], 2 * math.sqrt(math.log(1.1) / math.log(9))),
        ([1.0, 1.0, 1.0], 2.0),  # to the ends of the grid
        ([1.05, 1.0, math.nan], math.nan),
        ([11.0, 1.0, 11.0], math.nan),  # nothing to fit within ten times the best
    ],
)
def test_tolerance_is_the_width_within_a_tenth_of_the_best(losses: list[float], decades: float) -> None:
    rates = pd.DataFrame({"learning_rate": [0.01, 0.1, 1.0], "estimate": losses})
    rates["eligible"] = rates["estimate"].notna()
    assert tolerance(rates, "loss") == pytest.approx(decades, nan_ok=True)
    right = rates.assign(estimate=1 - rates["estimate"] / 20)
    assert tolerance(right, "accuracy") == pytest.approx(decades, nan_ok=True)


def test_lanes_that_end_above_their_start_failed(tmp_path: Path) -> None:
    results = analysis.load(write_study(tmp_path, optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32]))
    data = analysis.rate_sensitivity(results, analysis.cells(results))
    assert (data["failed"] == data["diverged"]).all()
    curves = results.curves
    curves.loc[curves["update"] == 0, "value"] = 1e-9
    data = analysis.rate_sensitivity(results, analysis.cells(results))
    assert (data["failed"] == data["lanes"]).all()
