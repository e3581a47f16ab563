"""Which optimizer or regime may be the best, on fresh seeds, and what is said where one has no result."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import analysis
from analysis.figures import forest
from analysis.report import verdict, warnings
from analysis.schema import FOLDERS
from tests.conftest import PART, lane_row, trial_row, write_confirmation, write_spec, write_study, write_tables

SMALL: dict[str, Any] = {"widths": [8], "depths": [1], "batch_sizes": [1, 32]}


def compared(folder: Path, by: str = "optimizer") -> analysis.Comparison:
    results = analysis.load(folder)
    return analysis.compare(results, analysis.cells(results), by)


def said(folder: Path) -> str:
    results = analysis.load(folder)
    table = analysis.cells(results)
    return "\n".join(verdict.verdict(results, table, analysis.compare(results, table)))


def ask_for(folder: Path, *optimizers: str) -> None:
    with (folder / "spec.toml").open("a") as file:
        file.write(f"\n[search]\noptimizer = {[*optimizers]}\nbatch_size = [1, 32, 'full']\n")


def fresh(folder: Path, metric: str = "loss", examples: bool = False, **tests: list[float]) -> Path:
    """A study whose search ranks optimizers in the order given, with these test values on fresh seeds."""
    for place, into in enumerate((folder, folder / "confirm")):
        write_spec(into, metric=metric)
        lanes = [
            lane_row(trial=trial, lane=seed, seed=1000 * place + seed)
            | {f"validation_{metric}": 0.9 - trial / 10 if metric == "accuracy" else 1.0 + trial}
            | {f"test_{metric}": value}
            | ({"test_values": np.where(np.arange(100) < round(100 * value), 1.0, 0.0)} if examples and place else {})
            for trial, values in enumerate(tests.values())
            for seed, value in enumerate(values)
        ]
        write_tables(into, trials=[trial_row(trial=t, optimizer=name) for t, name in enumerate(tests)], lanes=lanes)
    return folder


def scattered(center: float, spread: float = 0.02) -> list[float]:
    return [center * (1 + spread * shift) for shift in (-2, -1, -0.5, 0, 0.5, 1, 2, 0.2)]


def test_search_seeds_name_a_candidate_only(tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL)
    found = compared(folder)
    assert (found.fresh, found.split, found.winner, found.contenders) == (False, "validation", None, [])
    assert [entry.name for entry in found.entries] == ["adam", "rmsprop", "momentum", "sgd"]
    text = said(folder)
    assert text.startswith("Adam is the candidate, not a winner: validation loss 0.01")
    assert "on the 3 seeds that chose it. A winner needs fresh seeds: set [confirm] in the spec." in text


def test_fresh_seeds_name_a_winner_with_the_paired_ratio(tmp_path: Path) -> None:
    tests = {"adam": [1.0, 1.1, 0.9, 1.05, 0.95, 1.0], "sgd": [2.0, 2.1, 1.7, 2.2, 1.8, 2.0]}
    found = compared(fresh(tmp_path, **tests))
    assert found.winner
    assert (found.winner.name, found.seeds, found.split) == ("adam", 6, "test")
    expected = stats.ttest_rel(*(np.log(values) for values in tests.values()))
    limits = expected.confidence_interval(0.95)
    assert_allclose([found.winner.effect.low, found.winner.effect.high], np.exp([limits.low, limits.high]), rtol=1e-3)
    assert found.entries[1].p == pytest.approx(expected.pvalue, abs=1e-4)
    text = said(tmp_path)
    assert text.startswith("Adam wins: test loss 0.998 [0.9")
    assert "on 6 fresh seeds; 0.509 times [0.4" in text
    assert "the loss of the best other optimizer, sgd (all others are excluded, p < 0.0001)." in text
    ask_for(tmp_path, "adam", "sgd", "momentum")  # of which no trial ended
    assert "the loss of the best other optimizer, sgd (all others with a result are excluded, p" in said(tmp_path)
    assert "\nBest setting: adam, width 8, depth 1, batch size 32 at learning rate 0.01.\nCost: " in text


def test_fresh_seeds_may_contradict_the_search(tmp_path: Path) -> None:
    found = compared(fresh(tmp_path, adam=scattered(2.0), sgd=scattered(1.0)[::-1]))
    assert found.winner
    assert found.winner.name == "sgd"
    assert "\nBest setting: sgd, " in said(tmp_path)


def test_the_best_setting_is_that_of_fresh_seeds(tmp_path: Path) -> None:
    results = analysis.load(fresh(tmp_path, adam=scattered(2.0), sgd=scattered(1.0)[::-1]))
    found = analysis.best(results)
    assert (found["optimizer"], found["verdict"], found["fresh"], found["seeds"]) == ("sgd", "winner", True, 8)
    assert (found["learning_rate"], found["batch_size"], found["width"]) == (0.01, 32, 8)
    assert found["text"].startswith("sgd, width 8, depth 1, batch size 32 at learning rate 0.01: test loss 1.00 [0.9")
    assert found["text"].endswith(" on 8 fresh seeds (winner)")
    assert analysis.best(results, "adam")["verdict"] == "excluded"
    with pytest.raises(analysis.ResultsError, match="no optimizer 'lion'; it has sgd, adam"):
        analysis.best(results, "lion")
    search = analysis.best(analysis.load(write_study(tmp_path / "search", **SMALL)))
    assert (search["verdict"], search["fresh"]) == ("candidate", False)
    assert json.loads(json.dumps(search)) == search


def test_several_contenders_make_no_winner(tmp_path: Path) -> None:
    folder = fresh(tmp_path, adam=scattered(1.0), sgd=scattered(1.0, 0.03)[::-1], rmsprop=scattered(2.0))
    found = compared(folder)
    assert found.winner is None
    assert {entry.name for entry in found.contenders} == {"adam", "sgd"}
    text = said(folder)
    assert text.startswith(("No winner: sgd and adam may each be the best.", "No winner: adam and sgd may each be"))
    assert "Excluded: rmsprop (p < 0.0001)." in text
    assert "the noise of their difference is 100% from seeds; that of test examples is unknown." in text


def test_the_first_two_contenders_are_to_be_told_apart_though_one_between_them_is_excluded(tmp_path: Path) -> None:
    noisy = scattered(1.4, 0.4)[::-1]
    text = said(fresh(tmp_path, adam=scattered(1.0, 0.004), sgd=scattered(1.05, 0.004)[::-1], rmsprop=noisy))
    assert text.startswith("No winner: adam and rmsprop may each be the best. Adam is first, with")
    assert "Excluded: sgd (p < 0.0001)." in text
    assert "To tell adam and rmsprop apart would take about " in text


def test_a_small_gap_is_told_how_many_seeds_it_needs(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    values = {name: list(np.exp(rng.normal(mean, 0.1, 10))) for name, mean in (("adam", 0.0), ("sgd", 0.05))}
    text = said(fresh(tmp_path, **values))
    assert "would take about" in text
    assert "fresh seeds, if their difference stays" in text


def test_accuracies_differ_in_points(tmp_path: Path) -> None:
    values = {"adam": [0.95, 0.96, 0.95, 0.97, 0.96, 0.95], "sgd": [0.80, 0.82, 0.79, 0.81, 0.80, 0.83]}
    found = compared(fresh(tmp_path, metric="accuracy", examples=True, **values))
    assert (found.examples, found.scores and found.scores.seeds) == (100, 6)
    assert found.winner
    assert found.winner.effect.estimate == pytest.approx(0.1483, abs=1e-3)
    assert "+14.83 percentage points [" in said(tmp_path)
    assert "on 6 fresh seeds and 100 test examples" in said(tmp_path)
    results = analysis.load(tmp_path)
    assert "(dots), with its mean and its 50%" in forest.figure(results, analysis.cells(results), found).caption
    # The examples of the split widen the interval beyond that of the seeds.
    alone = compared(fresh(tmp_path / "seeds", metric="accuracy", **values)).winner
    assert alone
    assert found.winner.score.low < alone.score.low


def test_all_right_on_every_seed_is_no_certainty(tmp_path: Path) -> None:
    found = compared(fresh(tmp_path, metric="accuracy", examples=True, adam=[1.0] * 5, sgd=[1.0] * 5))
    assert found.winner is None
    text = said(tmp_path)
    assert "may each be the best. Adam has test accuracy 100.0% [" in text
    assert "The means of adam and sgd are equal to rounding." in text
    assert all(entry.score.high == 1.0 and 0.9 < entry.score.low < 0.98 for entry in found.scored)
    results = analysis.load(tmp_path)
    confirmed = analysis.winners_curse(results, analysis.cells(results))
    assert (confirmed["test_low"].between(0.9, 0.98) & (confirmed["test_high"] == 1.0)).all()


def test_equal_losses_are_a_tie(tmp_path: Path) -> None:
    found = compared(fresh(tmp_path, adam=[0.5] * 5, sgd=[0.5 * (1 + 1e-9)] * 5))
    assert {entry.name for entry in found.contenders} == {"adam", "sgd"}
    assert all(math.isfinite(entry.effect.high) for entry in found.scored)
    assert "The means of adam and sgd are equal to rounding." in said(tmp_path)


@pytest.mark.parametrize(("adam", "excluded"), [(0.5, False), (0.1, True)])
def test_the_first_figure_explains_its_mark_where_an_optimizer_is_excluded(
    tmp_path: Path, adam: float, excluded: bool
) -> None:
    results = analysis.load(fresh(tmp_path, adam=[adam] * 5, sgd=[0.5] * 5))
    table = analysis.cells(results)
    shown = forest.figure(results, table, analysis.compare(results, table))
    assert ("excluded: not the best" in shown.caption) is excluded


def test_optimizers_without_a_result_are_named_with_the_reason(tmp_path: Path, words_only: None) -> None:
    folder = write_confirmation(write_study(tmp_path, **SMALL, optimizers=["adam", "sgd"]), best_of=["optimizer"])
    ask_for(folder, "adam", "sgd", "momentum", "rmsprop", "nadam")
    rows = pq.read_table(folder / "trials.parquet" / PART).to_pylist()
    rows += [trial_row(trial=90 + n, optimizer="rmsprop", outcome=o) for n, o in enumerate(["failed", "out of memory"])]
    rows += [trial_row(trial=95, optimizer="nadam", width=99)]
    write_tables(folder, trials=rows)
    found = compared(folder)
    reasons = {entry.name: entry.reason for entry in found.entries if entry.reason}
    assert reasons == {
        "momentum": "no trial of it has ended",
        "rmsprop": "1 trial failed; 1 trial ran out of memory",
        "nadam": "no learning rate at which every seed survived",
    }
    assert [entry.name for entry in found.entries][:2] == ["adam", "sgd"]
    text = said(folder)
    assert "Without a fresh score: momentum (no trial of it has ended), rmsprop (1 trial failed; 1 trial ran" in text
    page = analysis.write_report(folder).read_text(encoding="utf-8")
    for name, reason in reasons.items():
        assert page.count(reason) >= 2, name  # verdict and table
    results = analysis.load(folder)
    frame = analysis.forest(results, found)
    assert set(frame["optimizer"]) == {"adam", "sgd", *reasons}


def test_batch_sizes_without_a_result_are_named(tmp_path: Path, words_only: None) -> None:
    folder = write_study(tmp_path, **SMALL, optimizers=["adam", "sgd"])
    ask_for(folder, "adam", "sgd")  # and batch sizes 1, 32 and full
    assert "Without a result: batch size 10,000 (no trial of it has ended)." in said(folder)
    page = analysis.write_report(folder).read_text(encoding="utf-8")
    assert page.count("batch size 10,000 (no trial of it has ended)") == 2  # verdict and first figure


def test_losses_of_few_examples_are_warned_of(tmp_path: Path) -> None:
    folder = fresh(tmp_path, adam=[0.5] * 4, sgd=[0.6] * 4)
    for heavy, warned in ((1.0, False), (200.0, True)):
        rows = pq.read_table(folder / "confirm" / FOLDERS["lanes"] / PART).to_pylist()
        write_tables(folder / "confirm", lanes=[row | {"test_values": [1.0] * 199 + [heavy]} for row in rows])
        results = analysis.load(folder)
        table = analysis.cells(results)
        every = warnings.warnings(results, table, analysis.winners_curse(results, table))
        said_so = [text for text in every if "of the test examples makes up" in text]
        assert bool(said_so) is warned
    assert said_so[0].startswith("1% of the test examples makes up 50% of the test loss")


def test_regimes_are_compared_too(tmp_path: Path) -> None:
    folder = write_confirmation(write_study(tmp_path, **SMALL), best_of=["optimizer", "regime"])
    ask_for(folder, "adam")
    found = compared(folder, "regime")
    assert {entry.name: entry.reason for entry in found.entries} == {
        "mini-batch": "", "stochastic": "", "batch": "no trial of it has ended",
    }  # fmt: skip
    assert found.fresh


def test_survivors_of_fresh_seeds_score_nothing(tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL, optimizers=["adam", "sgd", "momentum"])
    found = compared(write_confirmation(folder, best_of=["optimizer"], diverged=2))
    assert {entry.name: entry.reason for entry in found.entries if entry.reason} == {
        "adam": "2 of 10 fresh seeds diverged"
    }
    assert found.scored[0].name == "momentum"
    assert found.winner is None  # adam may be better
    text = said(folder)
    assert text.startswith("No winner: momentum is the best of those confirmed, with test loss")
    assert "but adam may be better." in text


def test_an_optimizer_that_was_not_confirmed_is_no_contender(tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL)
    found = compared(write_confirmation(folder, top=1))
    reasons = {entry.name: entry.reason for entry in found.entries}
    assert reasons == {"adam": "", **dict.fromkeys(["rmsprop", "momentum", "sgd"], "not confirmed on fresh seeds")}
    assert found.winner is None
    assert math.isnan(found.entries[0].effect.estimate)
    assert "It is the only optimizer with a fresh score." in said(folder)
    results = analysis.load(folder)
    assert forest.figure(results, analysis.cells(results), found).caption.startswith("May be the best: adam. Every")


def test_a_confirmation_without_any_score_is_no_missing_one(tmp_path: Path, words_only: None) -> None:
    folder = write_confirmation(write_study(tmp_path, **SMALL), top=1, diverged=1)
    assert "A winner needs fresh seeds: no confirmed cell has completed on all of them." in said(folder)
    page = analysis.write_report(folder).read_text(encoding="utf-8")
    assert "1 of 10 fresh seeds diverged" in page
    assert "no result yet" not in page


def test_a_single_fresh_seed_is_said_once(tmp_path: Path) -> None:
    text = said(fresh(tmp_path, adam=[0.5], sgd=[0.6]))
    words = "Adam has test loss 0.500 on 1 fresh seed: one seed allows no interval, so no winner can be named."
    assert text.startswith(words)
    results = analysis.load(tmp_path)
    curse = verdict.confirmation(results, analysis.winners_curse(results, analysis.cells(results)))
    assert "is 1 times on average and 1 times for the best" in curse[1]


def test_a_candidate_has_the_seeds_of_its_own_cell(tmp_path: Path) -> None:
    """Of another cell twice as many seeds ran."""
    folder = fresh(tmp_path, adam=[0.5] * 3, sgd=[0.6] * 6)
    shutil.rmtree(folder / "confirm")
    assert " on the 3 seeds that chose it." in said(folder)
    results = analysis.load(folder)
    table = analysis.cells(results)
    caption = forest.figure(results, table, analysis.compare(results, table)).caption
    assert "chosen on these 3 to 6 seeds (dots)" in caption


@pytest.mark.parametrize("worst", [0.0, 1e-40, math.inf])
def test_example_losses_without_a_mean_are_compared(tmp_path: Path, worst: float) -> None:
    """Zero on every example of a seed, below what float32 holds, or beyond it."""
    folder = fresh(tmp_path, adam=[0.0, 0.1, 0.2, 0.1], sgd=[0.5, 0.4, 0.6, 0.5], rmsprop=[0.0] * 4)
    rows = pq.read_table(folder / "confirm" / FOLDERS["lanes"] / PART).to_pylist()
    for row in rows:
        row["test_values"] = [row["test_loss"], row["test_loss"], worst]
    write_tables(folder / "confirm", lanes=rows)
    found = compared(folder)
    assert [entry.name for entry in found.entries][-1] == "sgd"
    assert all(math.isfinite(entry.score.estimate) for entry in found.entries)
    assert "nan" not in said(folder)


def test_zero_losses_are_compared(tmp_path: Path) -> None:
    found = compared(fresh(tmp_path, adam=[0.0] * 6, sgd=[0.5] * 6))
    assert found.winner
    assert found.winner.name == "adam"
    results = analysis.load(tmp_path)
    table = analysis.cells(results)
    (floor,) = warnings._floor(results)
    assert floor.startswith("The test loss of 6 of 12 lanes is below 2.23e-308, the smallest loss that the precision")
    assert floor in warnings.warnings(results, table, analysis.winners_curse(results, table))


@pytest.mark.parametrize("study", [{"optimizers": ["adam"]}, {}, {"diverge": lambda cell: True}])
def test_any_study_has_a_verdict(make_study: Callable[..., Path], study: dict[str, Any]) -> None:
    text = said(make_study(**SMALL | study))
    assert "nan" not in text
    assert "Cost: " in text


@pytest.mark.long
def test_equal_optimizers_have_a_winner_in_one_study_of_twenty(tmp_path: Path) -> None:
    rng, named = np.random.default_rng(0), 0
    for draw in range(200):
        values = np.exp(rng.normal(0, 0.2, (4, 10)) + rng.normal(0, 0.2, 10))
        tests = dict(zip(("adam", "sgd", "momentum", "rmsprop"), values.tolist(), strict=True))
        named += compared(fresh(tmp_path / str(draw), **tests)).winner is not None
    assert named <= 16
