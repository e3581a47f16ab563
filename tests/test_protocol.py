"""The whole protocol on simulated studies with a planted truth: tuning, choice, confirmation and verdict.

A study has four optimizers in twelve networks each, six rates and three seeds. At a rate x decades from its optimum, a
cell's log loss is 0.92 x^2 (a factor of 2.5 at one decade) above the truth. Rates are refined, cells ranked, winners
chosen and compared by the functions that a real study calls.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.paired import paired_scores
from analysis.schema import LANES, TRIALS
from study.results.confirm import chosen
from tests.conftest import lane_row, trial_row
from tests.test_rates import LOSS, refined
from tests.test_tune import tuned_rate
from trainables.config import Budget, TrialConfig
from trainables.lanes.rows import lane_rows
from trainables.lanes.trial import TrialRun

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
SHAPES = [(width, depth, size) for width in (8, 16) for depth in (1, 2) for size in (1, 32, 10_000)]
GRID = np.geomspace(1e-4, 1.0, 6).tolist()
REGIMES = {1: "stochastic", 32: "mini-batch", 10_000: "batch"}
SPEC = {"name": "simulated", "workload": {"data": "none", "metric": "loss"}, "search": {"optimizer": [*OPTIMIZERS]}}
SHARED, OWN = 0.2, 0.2  # scatter of the log loss over seeds, common to all lanes of a seed, and each lane's own


def results(trials: list[dict[str, Any]], lanes: list[dict[str, Any]]) -> analysis.Results:
    frames = (
        pd.DataFrame(rows, columns=names).astype({"settings": object} if "settings" in names else {})
        for rows, names in ((trials, TRIALS.names), (lanes, LANES.names))
    )
    return analysis.Results(Path("none"), dict(SPEC), "", {}, *frames)


def log_loss(truth: float, optimum: float, rate: float) -> float:
    return truth + 0.92 * (math.log10(rate) - optimum) ** 2


def simulated(
    rng: np.random.Generator,
    truths: dict[str, float],
    *,
    refine: int = 2,
    off_grid: bool = True,
    fresh_seeds: int = 10,
) -> tuple[analysis.Results, dict[str, float]]:
    """A study with its confirmation, and the true log loss of each optimizer's confirmed cell at its tuned rate.

    Args:
        rng: source of the scatter.
        truths: log loss of each optimizer's best cells.
        refine: rounds of refinement.
        off_grid: whether the optimal rates lie anywhere between the grid's; otherwise on one of them.
        fresh_seeds: of each confirmed cell.
    """
    luck = rng.normal(0, SHARED, 3)
    trials, lanes, optima = [], [], []
    for trial, (name, (width, depth, size)) in enumerate((name, shape) for name in OPTIMIZERS for shape in SHAPES):
        optimum = math.log10(GRID[3]) + (rng.uniform(-0.4, 0.4) if off_grid else 0.0)
        optima.append(optimum)

        def losses(rate: float, at: tuple[float, float] = (truths[name], optimum)) -> np.ndarray:
            return np.exp(log_loss(*at, rate) + luck + rng.normal(0, OWN, 3))

        shape = {"optimizer": name, "width": width, "depth": depth, "batch_size": size, "regime": REGIMES[size]}
        trials.append(trial_row(trial=trial, **shape, lanes=18))
        for stack in refined(losses, GRID, refine):
            values = stack.last["validation", "loss"]
            lanes += [
                lane_row(trial=trial, lane=len(lanes), learning_rate=lane.learning_rate, seed=lane.seed)
                | {"validation_loss": value, "test_loss": value}
                for lane, value in zip(stack.lanes, values, strict=True)
            ]
    study = results(trials, lanes)
    ranked = analysis.rank(analysis.cells(study), maximize=False)
    winners, fresh = ranked[chosen(ranked, 3)], rng.normal(0, SHARED, fresh_seeds)
    again: list[dict[str, Any]] = []
    truly: dict[str, float] = {}
    for place, row in enumerate(winners.to_dict("records")):
        true = log_loss(truths[row["optimizer"]], optima[row["trial"]], row["learning_rate"])
        truly.setdefault(row["optimizer"], true)
        values = np.exp(true + fresh + rng.normal(0, OWN, fresh_seeds))
        again += [
            lane_row(trial=place, lane=seed, learning_rate=row["learning_rate"], seed=1000 + seed)
            | {"validation_loss": value, "test_loss": value}
            for seed, value in enumerate(values)
        ]
    names = ["optimizer", "width", "depth", "batch_size", "regime"]
    confirmed = [trial_row(trial=n, **{k: row[k] for k in names}) for n, row in enumerate(winners.to_dict("records"))]
    study.__dict__["_confirmed"] = results(confirmed, again), ""
    return study, truly


def compared(study: analysis.Results) -> analysis.Comparison:
    return analysis.compare(study, analysis.cells(study))


EQUAL = dict.fromkeys(OPTIMIZERS, -5.0)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("studies", [5, pytest.param(1000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("off_grid", [True, False], ids=["off the grid", "on the grid"])
def test_equal_optimizers_have_no_winner_and_the_interval_covers(studies: int, off_grid: bool) -> None:
    """At most 5% of the studies claim a winner or exclude any of the optimizers; 93-97% of the intervals cover."""
    rng, wins, apart, excluded, covered = np.random.default_rng(1), 0, 0, 0, 0
    for _ in range(studies):
        study, truly = simulated(rng, EQUAL, off_grid=off_grid)
        found = compared(study)
        assert found.fresh
        best = found.scored[0]
        wins += found.winner is not None
        apart += len(found.contenders) < len(OPTIMIZERS)
        excluded += len(OPTIMIZERS) - len(found.contenders)
        covered += best.score.low <= math.exp(truly[best.name]) <= best.score.high
    if studies < 1000:
        assert wins == 0
        assert covered >= 4
        return
    print(f"winners {wins}, any excluded {apart}, a given one {excluded / 4}, covered {covered}, of {studies} studies")
    assert wins <= 0.05 * studies
    assert apart <= 0.05 * studies
    assert 0.93 * studies <= covered <= 0.97 * studies


@pytest.mark.timeout(3000)
@pytest.mark.nightly
def test_a_factor_of_two_is_found() -> None:
    rng, named, wrong = np.random.default_rng(2), 0, 0
    for _ in range(300):
        study, _ = simulated(rng, EQUAL | {"adam": -5.0 - math.log(2)})
        winner = compared(study).winner
        named += winner is not None and winner.name == "adam"
        wrong += winner is not None and winner.name != "adam"
    print(f"named {named}, wrong {wrong} of 300")
    assert named >= 270
    assert wrong == 0


@pytest.mark.timeout(3000)
@pytest.mark.nightly
@pytest.mark.parametrize("count", [3, 5])
def test_equal_optimizers_are_not_told_apart_across_studies(count: int) -> None:
    """A given optimizer in at most 5%; any of the four in somewhat more, since their tuned rates differ a little."""
    rng, apart, excluded = np.random.default_rng(count), 0, 0
    for _ in range(100):
        studies = [simulated(rng, EQUAL)[0] for _ in range(count)]
        left = len(analysis.across(studies).contenders)
        apart += left < len(OPTIMIZERS)
        excluded += len(OPTIMIZERS) - left
    print(f"{count} studies: any excluded {apart}, excluded {excluded} of 4, of 100 reports")
    assert excluded / 4 <= 5
    assert apart <= 15


@pytest.mark.nightly
def test_without_refinement_the_grid_costs_more() -> None:
    """What refinement is for: an optimum between two rates costs up to 16% of the loss."""
    rng = np.random.default_rng(3)
    losses = [
        abs(sum(simulated(rng, EQUAL, refine=rounds)[1].values()) / 4 + 5) for rounds in (0, 2) for _ in range(50)
    ]
    assert np.mean(losses[:50]) > 1.4 * np.mean(losses[50:])


def test_the_simulation_tunes_as_a_trial_does() -> None:
    stacks = refined(lambda rate: np.exp([log_loss(-5.0, -1.5, rate)] * 3), GRID, 2)
    assert tuned_rate(stacks, LOSS)[0] == pytest.approx(10**-1.5, rel=0.3)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_intervals_cover_other_splits_of_real_data(metric: str) -> None:
    """Digits split anew 120 times, ten seeds each: the interval of one split covers the mean over all of them.

    A fifth of all images are tested each time, without replacement, which makes coverage 97% rather than 95%.
    """
    intervals, means = [], []
    for split in range(1, 121):
        config = TrialConfig(
            optimizer="adam", batch_size=32, width=16, depth=1, data="digits", model="mlp", metric=metric,
            data_seed=split, rates=(0.01, 0.01, 1), seeds=tuple(range(1000 * split, 1000 * split + 10)),
            budget=Budget(epochs=5), test_values=True, evaluation_share=0.0,
        )  # fmt: skip
        run = TrialRun(config, "mlp")
        run.begin()
        assert list(run.reports())[-1].finished
        rows = lane_rows(run.stacks)
        each = np.array([[row["test_values"] for row in rows]])
        scores = paired_scores([[row[f"test_{metric}"] for row in rows]], metric, each)
        intervals.append(scores.interval(0))
        means.append(float(scores.means[0]))
    truth = np.mean(means) if metric == "accuracy" else math.exp(-np.mean(means))
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    print(f"{metric}: covered {covered:.3f}")
    assert 0.92 <= covered <= 0.995
