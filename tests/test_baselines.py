"""Baselines: what the verdict says about tuning, with planted truth."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import analysis
from analysis.figures import style
from analysis.paired import compare_with_controls, paired_scores
from analysis.report import tables, verdict, warnings
from tests.conftest import lane_row, trial_row, write_spec, write_tables

OURS = {"name": "what we use", "optimizer": "adam", "learning_rate": 0.05, "batch_size": 32, "width": 8, "depth": 1}
CENTRES = {"adam": 1.0, "sgd": 1.3}


def study(folder: Path, metric: str = "loss", **fresh: Any) -> Path:
    """A study of adam and sgd, and baselines: (entries, values on fresh seeds), in the order of the confirmation."""
    rng = np.random.default_rng(3)
    luck = rng.normal(0, 0.05, 8)
    search = {name: value * np.exp(luck + rng.normal(0, 0.02, 8)) for name, value in CENTRES.items()}
    lanes: dict[str, list[dict[str, Any]]] = {"": [], "confirm": []}
    trials: dict[str, list[dict[str, Any]]] = {"": [], "confirm": []}
    settings = [({"optimizer": name, "learning_rate": 0.01}, values) for name, values in search.items()]
    for place, (entries, values) in enumerate([*settings, *fresh.values()]):
        for where in ("", "confirm") if place < len(settings) else ("confirm",):
            cell = {name: entries[name] for name in ("optimizer", "width", "settings") if name in entries}
            trials[where].append(trial_row(trial=place, **cell))
            lanes[where] += [
                lane_row(trial=place, lane=seed, seed=seed + 1000 * bool(where), learning_rate=entries["learning_rate"])
                | {f"{split}_loss": float(value) for split in ("validation", "test")}
                | ({f"{split}_accuracy": math.exp(-value) for split in ("validation", "test")})
                if math.isfinite(value)
                else lane_row(trial=place, lane=seed, seed=seed + 1000, learning_rate=entries["learning_rate"])
                | {"outcome": "diverged", "diverged_update": 3}
                for seed, value in enumerate(values)
            ]
    for where in trials:
        write_spec(folder / where, metric=metric)
        write_tables(folder / where, trials=trials[where], lanes=lanes[where])
    with (folder / "spec.toml").open("a") as file:
        file.write('\n[search]\noptimizer = ["adam", "sgd"]\nbatch_size = 32\n[confirm]\nseeds = 8\n')
        for entries, _ in fresh.values():
            file.write("[[baseline]]\n" + "".join(f"{key} = {value!r}\n" for key, value in entries.items()))
    return folder


def noisy(centre: float, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    return centre * np.exp(np.random.default_rng(3).normal(0, 0.05, 8) + rng.normal(0, 0.02, 8))


def said(folder: Path) -> str:
    results = analysis.load(folder)
    table = analysis.cells(results)
    return "\n".join(verdict.verdict(results, table, analysis.compare(results, table)))


def compared(folder: Path) -> analysis.Comparison:
    results = analysis.load(folder)
    return analysis.compare(results, analysis.cells(results))


@pytest.mark.parametrize(
    ("centre", "words"),
    [
        (1.8, 'Tuning beats the baseline "what we use": the baseline\'s test loss is 1.'),
        (1.0, 'Tuning is not shown to beat the baseline "what we use": the baseline\'s test loss is '),
        (0.6, 'The baseline "what we use" beats tuning: the baseline\'s test loss is 0.'),
    ],
)
def test_verdict_says_whether_tuning_beats_a_baseline(tmp_path: Path, centre: float, words: str) -> None:
    folder = study(tmp_path, what_we_use=(OURS, noisy(centre)))
    found = compared(folder)
    (entry,) = found.baselines
    assert [each.name for each in found.entries] == ["adam", "sgd"]
    assert found.winner is found.entries[0]
    # Against the best of two optimizers: wider than the paired t interval, and around the same centre.
    lanes = analysis.load(folder / "confirm").lanes
    ours, best = (np.log(lanes.loc[lanes["trial"] == trial, "test_loss"].to_numpy()) for trial in (2, 0))
    paired = stats.ttest_rel(ours, best)
    limits = paired.confidence_interval(0.95)
    assert entry.effect.estimate == pytest.approx(math.exp(np.mean(ours - best)))
    assert math.exp(limits.low) / 1.02 < entry.effect.low < math.exp(limits.low)
    assert math.exp(limits.high) < entry.effect.high < math.exp(limits.high) * 1.02
    text = said(folder)
    assert words in text
    assert text.startswith("Adam wins: test loss ")
    assert re.search(r"\], [\d.]+ times \[[\d.]+, [\d.]+\] that of the best tuned optimizer, adam \(p", text)


REASON = "The likely reason: the tuned setting of {} was chosen on 8 search seeds. What helps: more search seeds"


@pytest.mark.parametrize(
    ("given", "centre", "words", "others"),
    [
        ({}, 1.8, [], ["The likely reason", "scores worse"]),  # the tuned one is better
        ({}, 0.6, ["beats tuning", REASON.format("adam")], ["scores worse"]),  # it is the best one: said already
        ({}, 0.999, ["is not shown to beat"], ["The likely reason", "scores worse"]),
        ({"optimizer": "sgd"}, 1.25, ['Sgd scores worse tuned than as the baseline "what', REASON.format("sgd")], []),
        ({"optimizer": "sgd"}, 1.298, ["though not significantly: "], ["The likely reason"]),
        ({"optimizer": "sgd", "width": 9}, 1.2, ["Sgd scores worse tuned"], ["The likely reason"]),  # another network
    ],
)  # fmt: skip
def test_verdict_explains_an_optimizer_that_is_behind_its_own_baseline(
    tmp_path: Path, given: dict[str, Any], centre: float, words: list[str], others: list[str]
) -> None:
    text = said(study(tmp_path, what_we_use=(OURS | given, noisy(centre)), other=(OURS | {"name": "x"}, noisy(1.9))))
    assert all(each in text for each in words)
    assert not any(each in text for each in others)


def test_baselines_stand_in_table_and_figure_but_are_no_optimizers(tmp_path: Path) -> None:
    lost = OURS | {"name": "lost", "optimizer": "rmsprop"}
    winner = OURS | {"name": "same", "learning_rate": 0.01}
    given = {"a": (OURS, noisy(1.5)), "b": (lost, [*noisy(1.0)[:6], math.inf, math.inf]), "c": (winner, [])}
    folder = study(tmp_path, **given)
    results = analysis.load(folder)
    table = analysis.cells(results)
    found = compared(folder)
    assert [each.reason for each in found.baselines] == ["", "2 of 8 fresh seeds diverged", ""]
    text = said(folder)
    assert 'Tuning beats the baseline "what we use"' in text
    assert 'The baseline "same" is the best tuned setting itself.' in text
    assert 'Without a fresh score: the baseline "lost" (2 of 8 fresh seeds diverged).' in text
    curse = analysis.winners_curse(results, table)
    assert not [each for each in warnings.warnings(results, table, curse) if "left out" in each]
    shown = tables.compared(analysis.compare(results, table), "loss", has_settings=False)
    assert shown
    assert [row[0] for row in shown.rows][:3] == ["adam", "sgd", ("what we use", "baseline, adam")]
    rows = analysis.forest(results, found).drop_duplicates("optimizer")
    assert list(rows["optimizer"]) == ["adam", "sgd", "what we use", "lost", "same"]
    # Nothing else knows of them.
    assert analysis.best(results)["optimizer"] == "adam"
    assert [each.name for each in analysis.compare(results, table, "regime").entries] == ["mini-batch"]
    assert not analysis.compare(results, table, "regime").baselines
    assert set(table["optimizer"]) == {"adam", "sgd"}


def test_learning_curves_show_a_baseline_on_the_seeds_of_the_confirmation(tmp_path: Path) -> None:
    folder = study(tmp_path, ours=(OURS, noisy(1.5)), lost=(OURS | {"name": "elsewhere", "batch_size": 7}, noisy(1.0)))
    for where in ("", "confirm"):
        lanes = analysis.load(folder / where).lanes
        of_lane = {"split": "validation", "metric": "loss", "examples": 32, "epoch": 1.0, "train_seconds": 1.0}
        curves = [
            {"trial": row["trial"], "lane": row["lane"], "update": update, "value": row["validation_loss"], **of_lane}
            for row in lanes.to_dict("records")
            for update in (1, 2)
        ]
        write_tables(folder / where, curves=curves)
    results = analysis.load(folder)
    data = analysis.optimizer_curves(results, analysis.cells(results))
    given = data[data["baseline"]]
    assert set(data.loc[~data["baseline"], "optimizer"]) == set(CENTRES)
    assert set(given["optimizer"]) == {"what we use"}  # no optimizer has a panel for the other's batch size
    assert_allclose(given["estimate"], np.exp(np.log(noisy(1.5)).mean()))
    looks = []
    for name in ("one", "two"):  # in a panel each
        with analysis.style():
            panel = style.figure(85, 70).subplots()
            analysis.curves_by_optimizer(given.assign(optimizer=name), panel, baselines=["one", "two"])
        looks += [(panel.get_lines()[0].get_color(), panel.get_lines()[0].get_marker())]
    assert all(one != two for one, two in zip(*looks, strict=True))


def test_a_baseline_changes_nothing_among_optimizers(tmp_path: Path) -> None:
    alone, beside = compared(study(tmp_path / "alone")), compared(study(tmp_path / "beside", ours=(OURS, noisy(0.1))))
    for one, other in zip(alone.entries, beside.entries, strict=True):
        assert (one.name, one.score, one.effect, one.p, one.contender) == (
            other.name, other.score, other.effect, other.p, other.contender
        )  # fmt: skip


def test_accuracies_of_a_baseline_are_differences(tmp_path: Path) -> None:
    (entry,) = compared(study(tmp_path, metric="accuracy", ours=(OURS, noisy(1.3)))).baselines
    assert -0.15 < entry.effect.low < entry.effect.estimate < entry.effect.high < -0.05
    assert re.search(r"baseline's test accuracy is [^;]*\], -[^;]* against the best tuned optimizer", said(tmp_path))


def test_a_baseline_without_a_confirmation_has_a_reason(tmp_path: Path) -> None:
    folder = study(tmp_path, ours=(OURS, noisy(1.0)))
    (folder / "confirm").rename(folder / "elsewhere")
    found = compared(folder)
    assert not found.fresh
    assert [(each.name, each.reason) for each in found.baselines] == [("what we use", "not confirmed on fresh seeds")]


def test_controls_of_two_equal_the_paired_t_test() -> None:
    values = np.exp(np.random.default_rng(0).normal(0, 0.3, (2, 7)))
    scores = paired_scores(values, "loss")
    (found,) = compare_with_controls(scores, 1)
    expected = stats.ttest_rel(*-np.log(values)[::-1])
    limits = expected.confidence_interval(0.95)
    assert_allclose([found.gain.low, found.gain.high], [limits.low, limits.high], rtol=1e-3)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-4)


@pytest.mark.long
def test_controls_cover_the_difference_to_the_best_looking_one() -> None:
    """Four optimizers and two baselines, all equal: a plain t interval would miss more than one in ten times."""
    rng, missed, plain = np.random.default_rng(1), 0, 0
    for _ in range(300):
        values = np.exp(rng.normal(0, 0.2, (6, 10)) + rng.normal(0, 0.2, 10))
        found = compare_with_controls(paired_scores(values, "loss"), 2)
        missed += any(not each.gain.low <= 0 <= each.gain.high for each in found)
        best = np.log(values[:4]).mean(axis=1).argmin()
        plain += any(stats.ttest_rel(np.log(values[best]), np.log(each)).pvalue < 0.05 for each in values[4:])
    assert missed <= 25
    assert plain > 35
