"""Frames, against independent counts and the planted truth of a synthetic study."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import analysis
from analysis.cells import optimizer_order
from analysis.schema import FOLDERS
from analysis.statistics import censored_median
from tests.conftest import (
    PLANTED,
    curve_row,
    lane_row,
    trial_row,
    write_confirmation,
    write_spec,
    write_study,
    write_tables,
)

losses = st.floats(1e-12, 1e12)
shares = st.floats(0, 1)


def lanes_frame(values: dict[float, list[float]], metric: str = "loss", trial: int = 0) -> pd.DataFrame:
    """Lanes of one trial: learning rate -> value per seed, NaN for a diverged lane."""
    rows = [
        lane_row(trial=trial, learning_rate=rate, seed=seed, outcome="diverged" if math.isnan(value) else "completed")
        | {"validation_loss": value, f"validation_{metric}": value}
        for rate, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    return pd.DataFrame(rows).assign(lane=range(len(rows)), cell=trial, recipe="")


# Tuning


def test_the_best_mean_on_the_log_scale_is_tuned() -> None:
    # The arithmetic mean would choose 0.1 (0.5 against 0.505), the geometric 0.01 (0.1 against 0.5).
    lanes = lanes_frame({0.01: [0.01, 1.0], 0.1: [0.5, 0.5]})
    assert analysis.tuned_rates(lanes, "loss").to_dict() == {0: 0.01}


def test_accuracy_is_maximised() -> None:
    lanes = lanes_frame({0.01: [0.8, 0.9], 0.1: [0.95, 1.0]}, "accuracy")
    assert analysis.tuned_rates(lanes, "accuracy", 100).to_dict() == {0: 0.1}


def test_a_rate_at_which_one_seed_diverged_is_not_eligible() -> None:
    lanes = lanes_frame({0.01: [1.0, 1.0], 0.1: [0.001, math.nan]})
    assert analysis.tuned_rates(lanes, "loss").to_dict() == {0: 0.01}
    table = analysis.rate_table(lanes, "loss")
    assert list(table["eligible"]) == [True, False]
    assert list(table["diverged"]) == [0, 1]
    assert list(table["n"]) == [2, 1]


def test_a_rate_that_lacks_a_seed_is_not_eligible() -> None:
    lanes = lanes_frame({0.01: [1.0, 1.0], 0.1: [0.001]})
    assert analysis.tuned_rates(lanes, "loss").to_dict() == {0: 0.01}


@pytest.mark.parametrize("outcome", ["failed", "interrupted", "out of memory"])
def test_only_lanes_that_ended_well_are_eligible(outcome: str) -> None:
    lanes = lanes_frame({0.01: [1.0, 1.0]}).assign(outcome=outcome)
    assert analysis.tuned_rates(lanes, "loss").empty
    assert len(analysis.tuned_rates(lanes.assign(outcome="stopped"), "loss")) == 1


def test_a_rate_given_up_by_halving_is_not_eligible_however_good_it_was() -> None:
    lanes = lanes_frame({0.01: [0.5, 0.5], 0.1: [0.1, 0.1]})
    early = lanes["learning_rate"] == 0.1
    lanes = lanes.assign(
        outcome=["stopped" if each else "completed" for each in early],
        stopped_update=[5 if each else None for each in early],
    )
    assert analysis.tuned_rates(lanes, "loss").to_dict() == {0: 0.01}
    assert analysis.rate_table(lanes, "loss")["eligible"].tolist() == [True, False]
    # Nor if the others came to nothing.
    lanes.loc[~early, "outcome"] = "diverged"
    assert analysis.tuned_rates(lanes, "loss").empty


def test_without_survivors_there_is_no_tuned_rate() -> None:
    assert analysis.tuned_rates(lanes_frame({0.01: [math.nan] * 2}), "loss").empty
    assert analysis.tuned_rates(lanes_frame({0.01: [0.5]}).head(0), "loss").empty


@given(st.lists(losses, min_size=1, max_size=5), st.permutations([0.001, 0.01, 0.1]), st.randoms())
def test_ties_go_to_the_middle_rate(values: list[float], rates: list[float], random: Any) -> None:
    shuffled = [random.sample(values, len(values)) for _ in rates]
    lanes = lanes_frame(dict(zip(rates, shuffled, strict=True)))
    assert analysis.tuned_rates(lanes.sample(frac=1, random_state=0), "loss").to_dict() == {0: 0.01}
    assert analysis.tuned_rates(lanes[lanes["learning_rate"] < 0.1], "loss").to_dict() == {0: 0.001}


def test_equal_accuracies_go_to_the_lower_loss_and_then_to_the_middle_rate() -> None:
    accuracy = {0.001: [1.0, 1.0], 0.01: [1.0, 1.0], 0.1: [1.0, 1.0], 1.0: [0.9, 1.0]}
    lanes = lanes_frame(accuracy, "accuracy").assign(validation_loss=[0.3, 0.4, 1e-3, 2e-3, 1e-9, 0.0, 0.0, 0.0])
    assert analysis.tuned_rates(lanes, "accuracy", 50, 1e-7).to_dict() == {0: 0.1}
    assert analysis.tuned_rates(lanes, "accuracy", 50, 0.5).to_dict() == {0: 0.01}


def test_losses_below_the_floor_tie() -> None:
    lanes = lanes_frame({0.001: [1e-20, 0.0], 0.01: [0.0, 1e-30], 0.1: [0.0, 0.0], 1.0: [1e-3, 0.0]})
    assert analysis.tuned_rates(lanes, "loss").to_dict() == {0: 0.1}
    assert analysis.tuned_rates(lanes, "loss", floor=1e-14).to_dict() == {0: 0.01}
    assert analysis.rate_table(lanes, "loss", floor=1e-14)["estimate"].iloc[0] == pytest.approx(1e-14)


def test_cells_take_the_floor_that_their_trials_recorded(tmp_path: Path) -> None:
    losses = {0.001: [1e-20, 0.0], 0.01: [0.0, 1e-30], 0.1: [0.0, 0.0]}
    assert cell_of(tmp_path / "old", ({}, losses, 0)).iloc[0]["learning_rate"] == 0.1
    cell = cell_of(tmp_path / "new", ({"loss_floor": 1e-14}, losses, 0)).iloc[0]
    assert (cell["learning_rate"], cell["validation"]) == (0.01, pytest.approx(1e-14))


# Cells


def test_of_equal_accuracies_the_lower_loss_is_first(tmp_path: Path) -> None:
    write_spec(tmp_path, metric="accuracy")
    seen = {0: ([0.9, 0.8, 0.7], 0.3), 1: ([0.7, 0.9, 0.8], 0.2), 2: ([0.9, 0.9, 0.9], 0.9), 3: ([0.8, 0.7, 0.9], 0.2)}
    lanes = [
        lane_row(trial=trial, lane=seed, seed=seed, validation_accuracy=accuracy, validation_loss=loss)
        for trial, (accuracies, loss) in seen.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    write_tables(tmp_path, trials=[trial_row(trial=trial, width=4 + trial) for trial in seen], lanes=lanes)
    table = analysis.cells(analysis.load(tmp_path))
    assert analysis.rank(table, maximize=True)["trial"].to_list() == [2, 1, 3, 0]
    assert table["validation"].nunique() == 2  # though seeds come in other orders


def test_what_was_stopped_early_is_not_ranked_with_what_completed(tmp_path: Path) -> None:
    write_spec(tmp_path)
    trials = [
        trial_row(trial=0, optimizer="sgd", outcome="stopped"),
        trial_row(trial=1, optimizer="adam"),
        trial_row(trial=2, optimizer="adam"),  # the same cell again
        trial_row(trial=3, optimizer="adam", width=16),
    ]
    losses = [0.1, 0.4, 0.4, 0.2]
    lanes = [
        lane_row(trial=n, lane=seed, seed=seed, outcome=trials[n]["outcome"], validation_loss=loss + seed / 100)
        for n, loss in enumerate(losses)
        for seed in range(2)
    ]
    write_tables(tmp_path, trials=trials, lanes=lanes)
    results = analysis.load(tmp_path)
    table = analysis.cells(results)
    assert analysis.rank(table, maximize=False)["trial"].to_list() == [3, 1]
    entries = {entry.name: entry for entry in analysis.compare(results, table).entries}
    assert entries["adam"].reason == ""
    assert entries["sgd"].reason == "1 trial stopped"
    stopped = analysis.grid(table, "optimizer", "batch_size", maximize=False).set_index("row")
    assert stopped.loc["sgd", "why"] == "stopped"
    assert math.isnan(stopped.loc["sgd", "estimate"])
    # Before any trial has completed there is only what was stopped.
    assert analysis.rank(table[table["outcome"] == "stopped"], maximize=False)["trial"].to_list() == [0]


def test_cells_recover_the_planted_truth(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    table = analysis.cells(results)
    assert len(table) == len(results.trials) == 48
    best = analysis.rank(table, maximize=False).iloc[0]
    assert (best["optimizer"], best["batch_size"], best["width"], best["depth"]) == ("adam", 32, 32, 2)
    assert best["validation_low"] < best["validation"] < best["validation_high"]
    for optimizer, group in table[table["validation"].notna()].groupby("optimizer"):
        grid = results.lanes["learning_rate"].unique()
        distance = np.abs(np.log10(grid / PLANTED[str(optimizer)][1]))
        assert (np.abs(np.log10(group["learning_rate"] / PLANTED[str(optimizer)][1])) <= distance.min() + 0.25).all()


def test_cells_agree_with_an_independent_count(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    for row in analysis.cells(results).to_dict("records"):
        lanes = results.lanes[results.lanes["trial"] == row["trial"]]
        assert row["diverged_share"] == pytest.approx(lanes["diverged_update"].notna().mean())
        tuned = lanes[lanes["learning_rate"] == row["learning_rate"]]
        if len(tuned):
            assert row["test"] == pytest.approx(stats.gmean(tuned["test_loss"]))
            assert (row["n"], row["test_n"], row["seeds"], row["rates"]) == (3, 3, 3, 6)
            assert row["on_edge"] == (row["learning_rate"] in (1e-4, 1.0))
        else:
            assert row["outcome"] == "diverged"
            assert math.isnan(row["validation"])
            assert not row["on_edge"]


@pytest.mark.parametrize("rates", [(0.01, 0.1, 1.0), (1e-4, 1e-3, 0.01)])
def test_a_tuned_rate_at_the_end_of_its_grid_is_on_the_edge(make_study: Callable[..., Path], rates: Any) -> None:
    results = analysis.load(make_study(optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32], rates=rates))
    assert analysis.cells(results)["on_edge"].tolist() == [True]


def test_one_rate_is_no_edge(make_study: Callable[..., Path]) -> None:
    results = analysis.load(make_study(optimizers=["adam"], widths=[8], depths=[1], rates=[0.01]))
    assert not analysis.cells(results)["on_edge"].any()


def test_an_empty_study_has_no_cells(tmp_path: Path) -> None:
    write_spec(tmp_path, target=0.1)
    results = analysis.load(tmp_path)
    table = analysis.cells(results)
    assert table.empty
    assert analysis.compare(results, table).entries == []
    for frame in (
        analysis.rank(table, maximize=False),
        analysis.regime_curves(results, table),
        analysis.rate_sensitivity(results, table),
        analysis.grid(table, "optimizer", "batch_size", maximize=False),
        analysis.progress(results),
        analysis.winners_curse(results, table),
        analysis.target_times(results, table),
    ):
        assert frame.empty


# Replicates


def cell_of(folder: Path, *trials: tuple[dict[str, Any], dict[float, list[float]], int]) -> pd.DataFrame:
    """`cells` of trials given as (columns, learning rate -> losses, first seed)."""
    write_spec(folder)
    rows = [trial_row(trial=number) | columns for number, (columns, _, _) in enumerate(trials)]
    lanes = [
        lane_row(
            trial=number, lane=lane, learning_rate=rate, seed=first + place, validation_loss=loss, test_loss=2 * loss
        )
        | {"outcome": rows[number]["outcome"]}
        for number, (_, values, first) in enumerate(trials)
        for lane, (rate, place, loss) in enumerate(
            (rate, place, loss) for rate, losses in values.items() for place, loss in enumerate(losses)
        )
    ]
    write_tables(folder, trials=rows, lanes=lanes)
    return analysis.cells(analysis.load(folder))


def test_replicates_are_one_cell_with_the_seeds_of_all(tmp_path: Path) -> None:
    first, second = [0.1, 0.2, 0.15], [0.3, 0.12, 0.18]  # a budget in seconds holds different numbers of updates
    table = cell_of(
        tmp_path,
        ({"replicate": 0}, {0.01: first, 0.1: [1] * 3}, 0),
        ({"replicate": 1, "updates": 800}, {0.01: second, 0.1: [1] * 3}, 3),
    )
    cell = table.iloc[0]
    assert (len(table), cell["trial"], cell["trials"], cell["seeds"]) == (1, 0, 2, 6)
    for split, factor in (("validation", 1), ("test", 2)):
        expected = analysis.log_interval([factor * loss for loss in first + second])
        assert_allclose(cell[[split, f"{split}_low", f"{split}_high"]].astype(float),
                        [expected.estimate, expected.low, expected.high])  # fmt: skip
    assert (cell["n"], cell["test_n"]) == (6, 6)


def test_two_replicates_of_three_seeds_are_a_trial_of_six(tmp_path: Path) -> None:
    """Against the same study whose lanes stand in one trial, every statistic agrees."""
    options: dict[str, Any] = {"optimizers": ["sgd", "adam"], "widths": [8], "depths": [1], "target": 0.1}
    results = analysis.load(write_study(tmp_path, replicates=2, **options))
    trials, lanes = results.trials[results.trials["replicate"] == 0], results.lanes
    number = lanes["trial"] % len(trials)
    whole = analysis.Results(
        results.path, results.spec, "", results.provenance, trials, lanes.assign(trial=number, lane=lanes.index)
    )
    table, expected = analysis.cells(results), analysis.cells(whole)
    pd.testing.assert_frame_equal(table.drop(columns="trials"), expected.drop(columns="trials"))
    assert set(table["trials"]) == {2}
    found, one = analysis.compare(results, table), analysis.compare(whole, expected)
    assert [entry.score for entry in found.entries] == [entry.score for entry in one.entries]
    assert found.seeds == one.seeds == 6
    frames = analysis.rate_sensitivity(results, table), analysis.rate_sensitivity(whole, expected)
    both = [frame.drop(columns=["failed", "untrained"]) for frame in frames]  # from the curves of renumbered lanes
    pd.testing.assert_frame_equal(*both)
    assert (analysis.regime_curves(results, table)["n"] == 6).all()
    assert (analysis.target_times(results, table)["seeds"] == 6).all()
    assert len(analysis.progress(results)) == 2 * len(table)


def test_a_rate_that_only_one_replicate_tried_is_not_eligible(tmp_path: Path) -> None:
    grown = {0.01: [0.2, 0.2], 0.1: [0.1, 0.1], 1.0: [0.01, 0.01]}
    table = cell_of(tmp_path, ({"extensions": 1}, grown, 0), ({"replicate": 1}, {0.01: [0.2, 0.2], 0.1: [0.1, 0.1]}, 2))
    cell = table.iloc[0]
    assert (cell["learning_rate"], cell["n"], cell["rates"], cell["extensions"]) == (0.1, 4, 2, 1)
    assert cell["on_edge"]


def test_identical_repeats_count_once(tmp_path: Path) -> None:
    losses = {0.01: [0.2, 0.3]}
    table = cell_of(tmp_path, ({}, losses, 0), ({}, losses, 0), ({}, losses, 0))
    assert table[["trial", "trials", "seeds", "n"]].to_numpy().tolist() == [[0, 1, 2, 2]]
    assert table["validation_high"].iloc[0] == analysis.log_interval([0.2, 0.3]).high


@pytest.mark.parametrize("outcome", ["stopped", "diverged", "failed"])
def test_what_did_not_complete_is_not_pooled_with_what_did(tmp_path: Path, outcome: str) -> None:
    table = cell_of(
        tmp_path,
        ({"outcome": outcome, "updates": 90}, {0.01: [0.01, 0.01]}, 0),
        ({"replicate": 1}, {0.01: [0.2, 0.3]}, 2),
    )
    assert table[["trial", "trials", "outcome", "n"]].to_numpy().tolist() == [[1, 1, "completed", 2]]
    left = analysis.load(tmp_path).pooled.left_out
    assert left[["trial", "outcome"]].to_numpy().tolist() == [[0, outcome]]


def test_stopped_trials_pool_where_they_came_as_far(tmp_path: Path) -> None:
    stopped = {"outcome": "stopped", "updates": 90}
    trials = [({**stopped, "updates": 30}, 0), (stopped, 2), (stopped, 4)]
    table = cell_of(tmp_path, *((columns, {0.01: [0.2, 0.3]}, seed) for columns, seed in trials))
    assert table[["trial", "trials", "n", "updates"]].to_numpy().tolist() == [[1, 2, 4, 90]]


def test_settings_tell_cells_apart(tmp_path: Path) -> None:
    losses = {0.01: [0.2, 0.3]}
    table = cell_of(tmp_path, *(({"settings": text}, losses, 0) for text in ('{"beta1":0.9}', '{"beta1":0.5}', None)))
    assert table["settings"].to_list() == ['{"beta1":0.9}', '{"beta1":0.5}', ""]


def curse_of(folder: Path) -> tuple[analysis.Results, pd.DataFrame]:
    results = analysis.load(folder)
    return results, analysis.winners_curse(results, analysis.cells(results))


def test_a_planted_curse_is_recovered(tmp_path: Path) -> None:
    folder = write_study(tmp_path, batch_sizes=[32], seeds=4, replicates=2)
    results, curse = curse_of(write_confirmation(folder, curse=1.3, noise=0))
    table = analysis.cells(results)
    assert_allclose(curse["curse"], 1.3)
    assert analysis.average_curse(results, curse).estimate == pytest.approx(1.3)
    best = analysis.rank(table, maximize=False).head(3)
    assert curse["trial"].to_list() == best["trial"].to_list()
    assert_allclose(curse[["search", "search_low", "search_high"]].astype(float),
                    best[["validation", "validation_low", "validation_high"]])  # fmt: skip
    assert curse["search_n"].to_list() == [8] * 3
    assert curse["rank_search"].to_list() == curse["rank_confirmed"].to_list() == [1, 2, 3]
    results, curse = curse_of(write_confirmation(folder, curse=1.3))
    average = analysis.average_curse(results, curse)
    assert average.estimate == pytest.approx(stats.gmean(curse["curse"]))
    assert average.low < 1.3 < average.high
    assert ((curse["curse_low"] < 1.3) & (curse["curse_high"] > 1.3)).all()
    assert_allclose(curse["curse"], curse["confirmed"] / curse["search"])


def test_the_curse_of_an_accuracy_is_a_positive_difference(tmp_path: Path) -> None:
    folder = write_study(tmp_path, metric="accuracy", optimizers=["adam"], batch_sizes=[32], seeds=6)
    results, curse = curse_of(write_confirmation(folder, curse=3.0, top=2))
    assert_allclose(curse["curse"].astype(float), curse["search"] - curse["confirmed"], atol=1e-3)
    assert (curse["curse_low"] > 0).all()
    assert analysis.average_curse(results, curse).estimate == pytest.approx(curse["curse"].mean())
    # Fresh scores are plain means, as in the verdict and in the difference; means of log-odds would be higher.
    results, curse = curse_of(write_confirmation(folder, noise=2.0, top=2))
    lanes = analysis.fresh_lanes(results, analysis.rank(analysis.cells(results), maximize=True)).groupby("cell")
    for name, split in (("confirmed", "validation"), ("test", "test")):
        assert_allclose(curse[name], lanes[f"{split}_accuracy"].mean()[curse["trial"]])
    assert_allclose(curse["curse"].astype(float), curse["search"] - curse["confirmed"], atol=1e-3)


def test_survivors_do_not_confirm_a_cell_that_diverged(tmp_path: Path) -> None:
    results, curse = curse_of(write_confirmation(write_study(tmp_path, batch_sizes=[32]), diverged=2))
    first = curse.iloc[0]
    assert (first["outcome"], first["diverged"], first["seeds"], first["confirmed_n"]) == ("diverged", 2, 10, 0)
    assert curse[["confirmed", "test", "curse", "rank_confirmed"]].iloc[0].isna().all()
    assert curse["rank_confirmed"].to_list()[1:] == [1, 2]
    assert analysis.average_curse(results, curse).estimate == pytest.approx(stats.gmean(curse["curse"].iloc[1:]))


def test_a_rate_that_is_no_longer_the_tuned_one_confirms_nothing(tmp_path: Path) -> None:
    results = analysis.load(write_confirmation(write_study(tmp_path, batch_sizes=[32])))
    table = analysis.cells(results)
    table.loc[analysis.rank(table, maximize=False)["trial"].iloc[0], "learning_rate"] = 0.123
    assert analysis.winners_curse(results, table)["rank_search"].to_list() == [2, 3]


def test_what_completed_at_an_older_rate_hides_no_divergence(tmp_path: Path) -> None:
    folder = write_confirmation(write_study(tmp_path, batch_sizes=[32]))
    trials, lanes = (pq.read_table(folder / "confirm" / FOLDERS[name]).to_pylist() for name in ("trials", "lanes"))
    first = [lane | {"trial": 3, "learning_rate": 0.5} for lane in lanes if lane["trial"] == 0]
    lost = {"outcome": "diverged", "validation_loss": math.nan, "test_loss": math.nan}
    write_tables(
        folder / "confirm",
        trials=[trials[0] | {"outcome": "diverged"}, *trials[1:], trials[0] | {"trial": 3}],
        lanes=[*(lane | (lost if lane["trial"] == 0 else {}) for lane in lanes), *first],
    )
    _, curse = curse_of(folder)
    assert curse["outcome"].to_list() == ["diverged", "completed", "completed"]
    assert curse["diverged"].to_list() == [10, 0, 0]


def test_one_fresh_seed_bounds_no_curse(tmp_path: Path) -> None:
    _, curse = curse_of(write_confirmation(write_study(tmp_path, batch_sizes=[32]), seeds=1))
    assert (curse["curse_low"] == 0).all()
    assert np.isposinf(curse["curse_high"]).all()


# Several objectives


@st.composite
def objective_frames(draw: st.DrawFn) -> pd.DataFrame:
    value = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan])
    rows = draw(st.lists(st.tuples(value, value, value, st.sampled_from(["completed", "stopped"])), max_size=12))
    return pd.DataFrame(rows, columns=["validation", "train_seconds", "parameters", "outcome"])


@given(objective_frames(), st.booleans())
def test_the_front_is_what_nothing_dominates(table: pd.DataFrame, maximize: bool) -> None:
    objectives = ["metric", "train_seconds", "parameters"]
    front = analysis.pareto(table, objectives, maximize)
    costs = table[["validation", "train_seconds", "parameters"]].assign(
        validation=table["validation"] * (-1 if maximize else 1)
    )
    costs = costs[table["outcome"] == "completed"].dropna()
    points = costs.to_numpy(dtype=float)
    for row, cost in costs.iterrows():
        dominated = any(all(other <= cost) and any(other < cost) for other in points)
        assert front[row] == (not dominated)
        # Ties are kept, and something on the front is as good as any cell.
        assert all(front[costs.index[(points == cost.to_numpy()).all(axis=1)]] == front[row])
        assert any(all(other <= cost) for other in costs[front[costs.index]].to_numpy())
    assert not front.drop(costs.index).any()


def test_of_the_metric_alone_the_front_is_the_best(quick_study: Path) -> None:
    table = analysis.cells(analysis.load(quick_study))
    best = analysis.rank(table, maximize=False).iloc[0]
    assert table.loc[analysis.pareto(table, ["metric"], False), "trial"].to_list() == [best["trial"]]


def test_time_to_target_is_the_first_evaluation_that_reaches_it() -> None:
    values = {0: [1.0, 0.5, 0.6, 0.4], 1: [1.0, 0.9, 0.8, 0.7], 2: [0.5, 0.1, 0.1, 0.1]}
    curves = pd.DataFrame(
        [
            curve_row(lane=lane, update=10 * place, value=value)
            for lane, line in values.items()
            for place, value in enumerate(line)
        ]
        + [
            curve_row(lane=1, update=5, value=0.0, split="batch"),
            curve_row(lane=1, update=5, value=0.0, metric="accuracy"),
        ]
    )
    times = analysis.time_to_target(curves.sample(frac=1, random_state=0), 0.5, maximize=False)
    assert list(times["lane"]) == [0, 1, 2]
    assert list(times["reached"]) == [True, False, True]
    assert_array_equal(times["update"], [10, math.nan, 0])
    assert_array_equal(times["examples"], [320, math.nan, 0])
    assert_allclose(times["epoch"], [0.032, math.nan, 0])
    assert censored_median(times["update"]) == 10


def test_time_to_target_of_an_accuracy_looks_upwards() -> None:
    curves = pd.DataFrame([curve_row(update=u, value=u / 10, metric="accuracy") for u in range(11)])
    assert analysis.time_to_target(curves, 0.8, maximize=True)["update"].tolist() == [8]


def test_target_times_names_the_fastest_first(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    times = analysis.target_times(results, analysis.cells(results))
    assert list(times["regime"].unique()) == ["stochastic", "mini-batch", "batch"]
    mini_batch = times[times["regime"] == "mini-batch"]
    assert mini_batch["examples"].is_monotonic_increasing
    sgd = mini_batch[mini_batch["optimizer"] == "sgd"].iloc[0]
    assert (sgd["reached"], sgd["seeds"], sgd["update"]) == (0, 3, math.inf)
    assert math.isnan(mini_batch["p"].iloc[0])
    own = {}
    for row in (mini_batch.iloc[0], sgd):
        curves = analysis.curves_of(results, mini_batch[mini_batch["trial"] == row["trial"]])
        reached = analysis.time_to_target(curves, 0.1, maximize=False)["examples"]
        own[row["optimizer"]] = reached, curves["examples"].max()
    (fast, end), (slow, late) = own.values()
    assert sgd["p"] == analysis.log_rank_p(fast, slow, end, late) == pytest.approx(0.1)
    assert not ((times["regime"] == "batch") & (times["optimizer"] == "momentum")).any()


def test_a_workload_without_target_has_no_times(make_study: Callable[..., Path]) -> None:
    results = analysis.load(make_study(widths=[8], depths=[1]))
    assert analysis.target_times(results, analysis.cells(results)).empty


# Grids


def test_optimizers_are_listed_in_a_fixed_order() -> None:
    assert optimizer_order(["zeta", "adam", "sgd", "alpha", "sgd"]) == ["sgd", "adam", "alpha", "zeta"]
