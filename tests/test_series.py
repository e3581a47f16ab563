"""What the figures draw, against independent counts and planted truths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

import analysis
from analysis import Results, statistics
from analysis.figures.batch_size.steps_to_target import batch_scaling, steps_to_target
from analysis.figures.batch_size.throughput import throughput
from analysis.figures.batch_size.tuned_rate import best_rates
from analysis.figures.heat_map import binned
from analysis.figures.performance_profile import profile
from analysis.figures.regimes.gradient_noise import gradient_noise
from analysis.figures.regimes.learning_curves import HALF_LIFE
from analysis.figures.regimes.noise_speed import _scatter, noise_and_speed
from analysis.figures.search.expected_best import expected_search
from analysis.figures.search.importance import importance_spread
from analysis.figures.search.loss_time import loss_and_time
from analysis.figures.search.timeline import busy, timeline
from analysis.results import spent
from analysis.schema import CURVES, LANES, TRIALS
from tests.conftest import curve_row, lane_row, trial_row


def made(
    trials: list[dict[str, Any]],
    lanes: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    target: float | None = None,
    **spec: Any,
) -> Results:
    """Results of a study of these rows, which no folder holds."""
    workload = {"metric": "loss"} | ({} if target is None else {"target": target})
    frames = [
        pa.Table.from_pylist(rows, schema=schema).to_pandas()
        for rows, schema in ((trials, TRIALS), (lanes, LANES), (curves, CURVES))
    ]
    results = Results(Path(), {"name": "made", "workload": workload, **spec}, "", {}, *frames[:2])
    results.__dict__["curves"] = frames[2]
    return results


def scaled_study(critical: float, smallest: float, noise: float, seeds: int = 8, missed: str = "") -> Results:
    """Updates to the target that follow S = S_min (1 + B_crit / B), each seed with its own luck."""
    rng, sizes = np.random.default_rng(3), [4, 16, 64, 256, 1024]
    trials, lanes, curves = [], [], []
    for trial, size in enumerate(sizes):
        trials.append(trial_row(trial=trial, batch_size=size))
        for lane, (rate, slower) in enumerate([(0.1, 3)] * seeds + [(0.01, 1)] * seeds):
            steps = round(smallest * (1 + critical / size) * math.exp(rng.normal(0, noise)) * slower)
            lanes.append(lane_row(trial=trial, lane=lane, learning_rate=rate, seed=lane % seeds, validation_loss=0.05))
            points = {0: 1.0, steps - 1: 0.5, steps: 0.1, steps + 1: 0.5}
            if missed == f"{size} {rate} {lane % seeds}":
                points.pop(steps)
            curves += [curve_row(trial=trial, lane=lane, update=update, value=v) for update, v in points.items()]
    return made(trials, lanes, curves, target=0.1)


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
    assert list(frame.index.get_level_values("column").unique()) == ["1", "32", "full (10,000)"]
    chosen = table[(table["optimizer"] == "adam") & (table["batch_size"] == 32)]
    assert frame.loc[("adam", "32"), "estimate"] == chosen["validation"].min()
    assert frame.loc[("sgd", "1"), "why"] == "not run"
    assert frame.loc[("momentum", "full (10,000)"), "why"] == "diverged"
    assert (frame["why"] == "").sum() == 10
    assert frame.loc[frame["why"] == "", "n"].eq(3).all()


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_bins_are_few_and_in_order(numbers: list[int]) -> None:
    values = pd.Series(sorted(numbers))
    labels = list(dict.fromkeys(binned(values)))
    assert len(labels) <= max(8, 15)
    assert len(binned(values)) == len(values)
    firsts = [int(label.replace(",", "").split("-")[0]) for label in labels]
    assert firsts == sorted(firsts)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(0.3, 20))
def test_smoothing_is_the_unbiased_moving_average_of_pandas(values: list[float], half_life: float) -> None:
    found = statistics.smoothed(values, np.arange(1, len(values) + 1), half_life)
    assert_allclose(found, pd.Series(values).ewm(halflife=half_life).mean(), rtol=1e-6, atol=1e-6)


def test_smoothing_of_a_constant_is_the_constant_however_uneven() -> None:
    found = statistics.smoothed([math.nan, 2.0, 2.0, math.nan, 2.0], [1, 2, 50, 51, 900], 10.0)
    assert math.isnan(found[0])
    assert_allclose(found[1:], 2.0)


def test_smoothing_forgets_half_of_the_past_in_a_half_life() -> None:
    # Dense points do not count more than the way that they stand for.
    dense = statistics.smoothed([0.0] * 1000 + [1.0] * 10, [*np.arange(1, 1001), *np.arange(1001, 1011)], 10.0)
    sparse = statistics.smoothed([0.0, 1.0], [1000, 1010], 10.0)
    assert_allclose([dense[-1], sparse[-1]], 0.5, atol=1e-12)


def test_batch_losses_are_smoothed_over_the_same_examples_in_every_regime(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    curves = analysis.regime_curves(results, analysis.cells(results))
    half_life = HALF_LIFE * curves.groupby("regime")["examples"].max().min()
    for _, own in curves.groupby("regime"):
        expected = statistics.smoothed(own["batch_loss"], own["examples"], half_life)
        assert_allclose(own["batch_smooth"], expected)
        assert math.isnan(expected[0])
        assert np.isfinite(expected[1:]).all()


@pytest.mark.parametrize("by", ["batch_size", "width", "depth"])
def test_sensitivity_by_another_column_stays_with_the_best_optimizer(quick_study: Path, by: str) -> None:
    results = analysis.load(quick_study)
    table = analysis.cells(results)
    frame = analysis.rate_sensitivity(results, table, by)
    assert set(frame["optimizer"]) == {"adam"}
    adam = table[table["optimizer"] == "adam"]
    assert sorted(frame["group"].unique()) == sorted(adam[by].unique())
    for value, own in frame[frame["tuned"]].groupby("group"):
        assert own["estimate"].to_list() == [adam.loc[adam[by] == value, "validation"].min()]


def test_best_rates_name_their_neighbours(make_study: Callable[..., Path]) -> None:
    results = analysis.load(make_study(optimizers=["adam"], widths=[8], depths=[1], rates=[1e-3, 1e-2, 1e-1]))
    frame = best_rates(results, analysis.cells(results))
    assert list(frame["batch_size"]) == [1, 32, 10_000]
    assert frame["learning_rate"].eq(1e-2).all()
    assert frame["below"].eq(1e-3).all()
    assert frame["above"].eq(1e-1).all()
    assert not frame["on_edge"].any()
    edge = replace(results, lanes=results.lanes[results.lanes["learning_rate"] < 0.05])
    assert best_rates(edge, analysis.cells(edge))["above"].isna().all()
    one = replace(results, lanes=results.lanes[results.lanes["learning_rate"] == 1e-2])
    assert best_rates(one, analysis.cells(one)).empty


def falling(slope: float, noise: float, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return [math.exp(-slope * point + rng.normal(0, noise)) for point in range(400)]


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_noise_is_the_scatter_about_the_trend_and_speed_the_way_down(noise: float) -> None:
    trials, lanes, curves = [], [], []
    for trial, (slope, scatter) in enumerate(((0.02, noise), (0.04, 0.1))):
        trials.append(trial_row(trial=trial, batch_size=(32, 64)[trial]))
        for seed in range(6):
            line = falling(slope, scatter, 10 * trial + seed)
            lanes.append(lane_row(trial=trial, lane=seed, seed=seed, validation_loss=line[-1]))
            curves += [curve_row(trial=trial, lane=seed, update=n, value=value) for n, value in enumerate(line)]
    results = made(trials, lanes, curves)
    frame = noise_and_speed(results, analysis.cells(results)).set_index("batch_size")
    assert_allclose(frame.loc[32, "noise"], noise, rtol=0.15)
    assert frame.loc[32, "noise_low"] < noise < frame.loc[32, "noise_high"]
    assert_allclose(frame["noise"][64], 0.1, rtol=0.15)
    # Halfway to the best, exp(-16), is exp(-8): point 200 of the second cell; the first comes there at its end, 400.
    assert math.isinf(frame.loc[32, "examples"]) or frame.loc[32, "examples"] > 32 * 350
    assert_allclose(frame["examples"][64], 32 * 200, rtol=0.1)
    assert frame["seeds"].eq(6).all()


def test_steps_to_target_are_those_of_the_fastest_rate() -> None:
    results = scaled_study(critical=100, smallest=50, noise=0.0)
    steps = steps_to_target(results)
    assert steps["learning_rate"].eq(0.01).all()  # a third of the updates that the other rate needs
    assert steps.groupby("batch_size")["updates"].unique().map(list).to_dict() == {
        size: [round(50 * (1 + 100 / size))] for size in (4, 16, 64, 256, 1024)
    }
    assert steps_to_target(made([], [], [])).empty


def test_steps_between_evaluations_are_interpolated() -> None:
    line = {0: 1.0, 100: 0.4, 200: 0.025}  # straight on the log scale from 100 on: 0.1 is halfway
    curves = [curve_row(update=update, value=value) for update, value in line.items()]
    results = made([trial_row()], [lane_row(validation_loss=0.025)], curves, target=0.1)
    assert_allclose(steps_to_target(results)["updates"], 150)
    easy = made([trial_row()], [lane_row(validation_loss=0.025)], curves, target=2.0)
    assert steps_to_target(easy)["updates"].to_list() == [1]  # there already at initialisation


@pytest.mark.parametrize("critical", [30.0, 100.0])
def test_the_critical_batch_size_survives_sparse_evaluations(critical: float) -> None:
    """Evaluations at 1, 2, 3, 4, 6, 8, 12 ...: their distance is up to half of the updates themselves."""
    rng, sizes, points = (
        np.random.default_rng(1),
        [8, 32, 128, 512],
        sorted({n << k for n in (2, 3) for k in range(14)}),
    )
    trials = [trial_row(trial=trial, batch_size=size) for trial, size in enumerate(sizes)]
    lanes, curves = [], []
    for trial, size in enumerate(sizes):
        for seed in range(10):
            steps = 60 * (1 + critical / size) * math.exp(rng.normal(0, 0.05))
            lanes.append(lane_row(trial=trial, lane=seed, seed=seed, validation_loss=0.01))
            curves += [
                curve_row(trial=trial, lane=seed, update=update, value=0.1 ** (update / steps))
                for update in [0, *points]
            ]
    fit = batch_scaling(steps_to_target(made(trials, lanes, curves, target=0.1))).iloc[0]
    assert fit["low"] < critical < fit["high"]
    assert_allclose(fit["critical"], critical, rtol=0.1)


@pytest.mark.parametrize("shape", ["exponential", "power law"])
def test_a_smooth_curve_has_no_noise(shape: str) -> None:
    places = np.array([256, 384, 500, 512, 600, 700, 768, 800, 900, 1000])
    values = np.exp(-places / 300) if shape == "exponential" else places**-0.5
    assert _scatter(pd.Series(places), pd.Series(values)) < 1e-9


def test_what_the_scheduler_stopped_is_not_the_best_so_far() -> None:
    trials = [trial_row(trial=0), trial_row(trial=1, outcome="stopped", updates=5)]
    lanes = [lane_row(trial=0, validation_loss=0.5), lane_row(trial=1, outcome="stopped", validation_loss=0.2)]
    found = analysis.progress(made(trials, lanes, []))
    assert found["value"].to_list() == [0.5, 0.2]
    assert found["best"].to_list() == [0.5, 0.5]


def test_a_rate_at_which_a_seed_never_arrives_does_not_count() -> None:
    steps = steps_to_target(scaled_study(critical=100, smallest=50, noise=0.0, missed="64 0.01 3"))
    assert steps.loc[steps["batch_size"] == 64, "learning_rate"].eq(0.1).all()
    assert steps.loc[steps["batch_size"] == 16, "learning_rate"].eq(0.01).all()


@pytest.mark.parametrize("critical", [20.0, 150.0])
def test_a_planted_critical_batch_size_is_found(critical: float) -> None:
    (fit,) = batch_scaling(steps_to_target(scaled_study(critical, 80, 0.05))).to_dict("records")
    assert fit["low"] < critical < fit["high"]
    assert_allclose(fit["critical"], critical, rtol=0.15)
    assert_allclose(fit["smallest_steps"], 80, rtol=0.1)
    assert_allclose(fit["smallest_examples"], 80 * critical, rtol=0.2)
    assert (fit["optimizer"], fit["n"]) == ("adam", 8)


def test_throughput_counts_whole_stacks_alone() -> None:
    trials = [
        trial_row(trial=0, examples=1000, lanes=4, train_seconds=2.0, engine="eager"),
        trial_row(trial=1, examples=1000, lanes=4, train_seconds=1.0, engine="eager"),
        trial_row(trial=2, examples=1000, lanes=None, train_seconds=1.0),
    ]
    lanes = [lane_row(trial=0), lane_row(trial=1, outcome="diverged"), lane_row(trial=2)]
    frame = throughput(made(trials, lanes, []))
    assert frame[["trial", "examples_per_second"]].to_numpy().tolist() == [[0, 2000.0]]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_nothing_is_expected_of_an_adaptive_search(quick_study: Path, sampler: str) -> None:
    results = analysis.load(quick_study)
    with pytest.raises(ValueError, match=f"the sampler, {sampler}, learns from earlier trials"):
        expected_search(replace(results, spec=results.spec | {"tuning": {"sampler": sampler}}))


def test_the_expected_best_ends_at_the_best_and_begins_at_the_mean(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    results = replace(results, spec=results.spec | {"tuning": {"sampler": "random"}})
    frame, found = expected_search(results), analysis.progress(results)
    for name, own in frame.groupby("optimizer"):
        values = found.loc[found["optimizer"] == name, "value"]
        values = values.fillna(values.max())  # a trial that diverged counts as the worst
        assert_allclose(own["expected"].iloc[[0, -1]], [values.mean(), values.min()])
        assert list(own["trials"]) == list(range(1, 13))


def test_a_profile_by_hand() -> None:
    reached = {("adam", 8): 10, ("sgd", 8): 30, ("adam", 16): 40, ("sgd", 16): 20, ("sgd", 32): 5, ("adam", 64): 7}
    trials, lanes, curves = [], [], []
    for trial, ((name, width), update) in enumerate(reached.items()):
        trials.append(trial_row(trial=trial, optimizer=name, width=width))
        lanes.append(lane_row(trial=trial, validation_loss=0.05))
        curves += [curve_row(trial=trial, update=0), curve_row(trial=trial, update=update, value=0.05)]
    frame = profile([made(trials, lanes, curves, target=0.1)])
    assert frame["problems"].eq(2).all()  # at widths 32 and 64 one optimizer ran alone
    shares = {name: own.set_index("ratio")["share"] for name, own in frame.groupby("optimizer")}
    assert (shares["adam"].iloc[0], shares["sgd"].iloc[0]) == (0.5, 0.5)
    assert shares["adam"][shares["adam"].index > 2.01].eq(1).all()
    assert shares["sgd"][shares["sgd"].index < 2.9].eq(0.5).all()
    assert shares["sgd"].iloc[-1] == 1
    assert profile([made(trials, lanes, curves)]).empty
    third = [row | {"optimizer": "momentum"} for row in trials if row["optimizer"] == "sgd"]
    both = [made(trials, lanes, curves, target=0.1), made([*trials, *third], lanes, curves, target=0.1)]
    assert profile(both)["problems"].eq(4).all()  # also those of the study that has not all optimizers


def test_the_front_of_loss_and_time_is_that_of_the_search(quick_study: Path) -> None:
    table = analysis.cells(analysis.load(quick_study))
    frame = loss_and_time(analysis.load(quick_study), table)
    expected = table[analysis.pareto(table, ["metric", "train_seconds"], maximize=False)]
    assert set(frame.loc[frame["front"], "trial"]) == set(expected["trial"])
    assert len(frame) == (table["outcome"] == "completed").sum()


def test_the_timeline_begins_with_the_first_trial() -> None:
    trials = [
        trial_row(trial=0, started=1000.0, worker="b:1", wall_seconds=5.0),
        trial_row(trial=1, started=1002.0, worker="a:1", wall_seconds=1.0),
        trial_row(trial=2, started=None, worker=None),
    ]
    frame = timeline(made(trials, [], []))
    assert frame[["trial", "started", "ended"]].to_numpy().tolist() == [[1, 2.0, 3.0], [0, 0.0, 5.0]]
    assert list(frame["place"]) == ["a:1", "b:1"]


def stay(started: float, ended: float, worker: str, *gpus: str, share: float = 1.0) -> dict[str, Any]:
    return {"started": started, "ended": ended, "worker": worker, "gpus": list(gpus), "share": share, "cpus": 2}


def test_a_trial_that_went_on_elsewhere_was_busy_where_and_when_it_ran() -> None:
    stays = [stay(0.0, 3600.0, "a:1", "a:0", share=0.25), stay(9000.0, 10800.0, "e:7", "e:0", share=0.5)]
    trials = [
        trial_row(trial=0, started=0.0, wall_seconds=5400.0, worker="e:7", gpus=["e:0"], stints=stays),
        trial_row(trial=1, stints=[stay(9000.0, 9900.0, "e:8")]),
        trial_row(trial=2, outcome="interrupted", wall_seconds=0.0),  # cut off before a worker told of it
    ]
    results = made(trials, [], [])
    again = made([trial_row(trial=0, stints=[stay(10800.0, 12600.0, "a:9", "a:0")])], [], [])
    results.__dict__["_confirmed"] = (again, "")
    frame = timeline(results)
    assert frame[["trial", "confirming", "place", "started", "ended"]].to_numpy().tolist() == [
        [0, 0, "a GPU 0", 0.0, 3600.0],
        [0, 1, "a GPU 0", 10800.0, 12600.0],
        [0, 0, "e GPU 0", 9000.0, 10800.0],
        [1, 0, "e:8", 9000.0, 9900.0],
    ]
    # The pause, in which nothing ran, does not count.
    assert busy(frame).to_numpy().tolist() == [
        ["a", 2, 0.75, 1.0], ["e", 2, 0.25, 1.5], ["a GPU 0", 2, 0.75, 1.0], ["e GPU 0", 1, 0.25, 1.0],
    ]  # fmt: skip
    nodes = {"a": 2, "b": 4, "e": 1, "f": 0}
    assert busy(frame, nodes).to_numpy().tolist()[4:] == [
        ["b", 0, 0.0, 0.0], ["f", 0, 0.0, 0.0], ["a, 1 idle GPU", 0, 0.0, 0.0], ["b, 4 idle GPUs", 0, 0.0, 0.0],
    ]  # fmt: skip
    rows = results.trials.to_dict("records")
    assert [spent(row, 1.0, 1.0) for row in rows] == [(2 * 5400.0, 0.25 * 3600 + 0.5 * 1800), (2 * 900.0, 0.0), (0, 0)]


def test_gpus_are_busy_while_a_trial_has_them() -> None:
    def on(number: int, started: float, seconds: float, worker: str, *gpus: str) -> dict[str, Any]:
        return trial_row(trial=number, started=started, wall_seconds=seconds, worker=worker, gpus=list(gpus))

    trials = [
        on(0, 0.0, 4.0, "a:1", "a:0"),
        on(1, 2.0, 4.0, "a:2", "a:0"),  # shares it
        on(2, 5.0, 1.0, "a:3", "a:0"),  # where the first was
        on(3, 0.0, 2.0, "a:4", "a:1", "a:2"),
        on(4, 9.0, 1.0, "b:5"),
    ]
    frame = timeline(made(trials, [], []))
    assert frame[["trial", "place", "gpu", "slot", "slots"]].to_numpy().tolist() == [
        [0, "a GPU 0", True, 0, 2], [1, "a GPU 0", True, 1, 2], [2, "a GPU 0", True, 0, 2],
        [3, "a GPU 1", True, 0, 1], [3, "a GPU 2", True, 0, 1], [4, "b:5", False, 0, 1],
    ]  # fmt: skip
    assert busy(frame).to_numpy().tolist() == [
        ["a", 4, 6 / 7, 11 / 6], ["b", 1, 1 / 7, 1.0],
        ["a GPU 0", 3, 6 / 7, 9 / 6], ["a GPU 1", 1, 2 / 7, 1.0], ["a GPU 2", 1, 2 / 7, 1.0],
    ]  # fmt: skip
    for trials in ([], [trial_row(started=None, worker=None)]):
        assert busy(timeline(made(trials, [], []))).empty


def test_importance_has_its_spread_over_repeats() -> None:
    rows = [{"parameter": name, "repeat": n, "importance": share + n / 100} for n in range(5)
            for name, share in (("width", 0.2), ("optimizer", 0.7))]  # fmt: skip
    frame = importance_spread(pd.DataFrame(rows))
    assert list(frame["parameter"]) == ["optimizer", "width"]
    assert_allclose(frame.loc[0, ["estimate", "low", "high", "n"]].astype(float), [0.7, 0.71075, 0.73925, 4])
    assert importance_spread(pd.DataFrame({"parameter": [], "repeat": [], "importance": []})).empty


def test_the_noise_scale_is_that_of_the_best_cells_lanes() -> None:
    trials = [trial_row()]
    lanes = [lane_row(lane=seed, seed=seed, validation_loss=0.1) for seed in range(3)]
    points = {"gradient_square": [1.0, 2.0, 3.0], "gradient_noise": [10.0, 30.0, 20.0]}
    curves = [
        curve_row(lane=seed, update=update, split="train", metric=metric, value=value)
        for metric, values in points.items()
        for seed, value in enumerate(values)
        for update in (0, 5)
    ]
    results = made(trials, lanes, curves)
    frame = gradient_noise(results, analysis.cells(results))
    assert list(frame["update"]) == [0, 5]
    expected = analysis.gradient_noise_scale(*points.values())
    assert frame["estimate"].eq(expected.estimate).all()
    assert expected.estimate == 10.0
    assert frame["n"].eq(3).all()
