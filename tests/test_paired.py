"""Joint noise over seeds and examples, and multiple comparisons with the best."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import special, stats

from analysis import paired

losses = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(0.1, 10), min_size=n, max_size=n), min_size=2, max_size=2)
)


@given(losses)
def test_two_configurations_are_compared_by_the_paired_t_test(values: list[list[float]]) -> None:
    first, second = np.log(values)
    if np.std(first - second, ddof=1) < 1e-6:
        return
    found = paired.compare_with_best(paired.paired_scores(values, "loss"))
    test = stats.ttest_rel(-first, -second)
    p = 1.0 if test.statistic > 0 else test.pvalue
    assert found[0].p == pytest.approx(max(p, 1 / paired.DRAWS), abs=2e-4)
    if found[1].contender and not found[0].contender:  # a lone contender: the limits are those of the test
        expected = test.confidence_interval(0.95)
        assert_allclose([found[0].gain.low, found[0].gain.high], [expected.low, expected.high], rtol=0.02)


@pytest.mark.parametrize("k", [3, 4, 10])
def test_with_many_seeds_critical_values_are_tukeys(k: int) -> None:
    scores = paired.Scores("loss", np.zeros(k), np.eye(k), np.zeros((k, k)), 61, 0, np.zeros(k))
    errors, largest = paired._differences(scores, *np.triu_indices(k, 1))
    assert_allclose(errors, math.sqrt(2) * (1 - np.eye(k)))
    expected = stats.studentized_range.ppf(0.95, k, 60) / math.sqrt(2)
    assert expected < np.quantile(largest, 0.95) < 1.05 * expected  # each pair has an error of its own


def test_of_equal_configurations_none_is_excluded_in_nineteen_studies_of_twenty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paired, "DRAWS", 2000)
    rng, excluded = np.random.default_rng(4), 0
    for _ in range(400):
        table = np.exp(rng.normal(0, 0.3, 10) + rng.normal(0, 0.2, (4, 10)))
        excluded += not all(each.contender for each in paired.compare_with_best(paired.paired_scores(table, "loss")))
    assert 0.025 <= excluded / 400 <= 0.08


def test_what_cannot_be_told_apart_is_a_contender() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (3, 10))
    table = np.exp(np.log([[1.0], [1.02], [2.0]]) + noise)
    found = paired.compare_with_best(paired.paired_scores(table, "loss"))
    assert [each.contender for each in found] == [True, True, False]
    assert found[2].gain.high < 0 < found[0].gain.high
    assert found[0].gain.low < 0
    assert [each.p > 0.05 for each in found] == [True, True, False]


def test_limits_agree_with_p_and_hold_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an excluded one where a noisier one behind it is not excluded."""
    monkeypatch.setattr(paired, "DRAWS", 1000)
    rng, missed = np.random.default_rng(0), 0
    truths, scatter = -np.array([0.0, 0.1, 0.2, 0.5]), np.array([[0.05], [0.05], [0.3], [0.3]])
    gains = [truth - np.delete(truths, place).max() for place, truth in enumerate(truths)]
    for _ in range(200):
        logs = truths[:, None] + rng.normal(0, 0.2, 10) + rng.normal(0, 1, (4, 10)) * scatter
        ordered = paired.compare_with_best(paired.paired_scores(np.exp(-logs), "loss"))
        assert [each.gain.high >= 0 for each in ordered] == [each.contender for each in ordered]
        missed += any(not each.gain.low <= gain <= each.gain.high for each, gain in zip(ordered, gains, strict=True))
    assert missed <= 0.09 * 200


@given(st.permutations(range(4)))
def test_the_order_changes_nothing(order: list[int]) -> None:
    table = np.exp(np.random.default_rng(3).normal(0, 0.2, (4, 6)) + np.arange(4)[:, None] / 4)
    before = paired.compare_with_best(paired.paired_scores(table, "loss"))
    after = paired.compare_with_best(paired.paired_scores(table[order], "loss"))
    assert [before[place].contender for place in order] == [each.contender for each in after]
    assert_allclose([before[place].p for place in order], [each.p for each in after], atol=0.02)


def test_differences_below_the_rounding_are_ties() -> None:
    table = [[1e-9] * 5, [1e-9 * (1 + 1e-8)] * 5]
    found = paired.compare_with_best(paired.paired_scores(table, "loss", rounding=1e-6))
    assert all(each.contender for each in found)
    assert not all(each.contender for each in paired.compare_with_best(paired.paired_scores(table, "loss")))


def test_one_seed_excludes_nothing() -> None:
    found = paired.compare_with_best(paired.paired_scores([[1.0], [100.0]], "loss"))
    assert [each.contender for each in found] == [True, True]
    assert all(math.isinf(each.gain.high) for each in found)


def test_perfect_accuracies_have_an_interval() -> None:
    right = np.ones((2, 10, 360))
    scores = paired.paired_scores(right.mean(axis=2), "accuracy", right)
    interval = scores.interval(0)
    assert interval.high == 1.0
    # Between the exact binomial limit (.9898) and that of Haldane's correction.
    assert 0.975 < interval.low < 0.9925
    found = paired.compare_with_best(scores)
    assert found[0].gain.low < 0 < found[0].gain.high


def test_noise_of_examples_counts_once() -> None:
    """All seeds right on the same examples: ten seeds are as uncertain as one test split."""
    right = np.tile(np.arange(400) < 380, (1, 10, 1)).astype(float)
    scores = paired.paired_scores(right.mean(axis=2), "accuracy", right)
    assert scores.parts(np.ones(1))["seeds"] < 1e-9 * scores.covariance[0, 0]
    assert math.sqrt(scores.covariance[0, 0]) == pytest.approx(math.sqrt(0.95 * 0.05 / 400), rel=0.02)
    assert scores.freedom(np.ones(1)) > 300


def crossed(rng: np.random.Generator, k: int, seeds: int, n: int, spread: dict[str, float]) -> np.ndarray:
    """Latent values (k, seeds, n): seeds, examples and their interaction, in part shared by all k."""

    def part(size: float, *shape: int) -> np.ndarray:
        return rng.normal(0, size / math.sqrt(2), (1, *shape)) + rng.normal(0, size / math.sqrt(2), (k, *shape))

    both = part(spread["seeds"], seeds, 1) + part(spread["examples"], 1, n)
    return np.asarray(both + rng.normal(0, spread["rest"], (k, seeds, n)))


SPREADS: dict[str, dict[str, float]] = {
    "seeds": {"seeds": 0.15, "examples": 0.5, "rest": 0.3},
    "examples": {"seeds": 0.03, "examples": 1.0, "rest": 0.3},
    "interaction": {"seeds": 0.0, "examples": 0.1, "rest": 1.0},
}


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("spread", SPREADS)
def test_intervals_cover_seeds_and_examples(metric: str, spread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "DRAWS", 1000)
    rng, chosen, covered, wins = np.random.default_rng(1), SPREADS[spread], [], 0
    variance = chosen["examples"] ** 2 + chosen["rest"] ** 2
    for _ in range(250):
        latent = crossed(rng, 4, 10, 300, chosen)
        if metric == "loss":
            values, truth = np.exp(latent), math.exp(variance / 2)
        else:
            total = math.sqrt(variance + chosen["seeds"] ** 2)
            values, truth = (latent > -0.8).astype(float), float(stats.norm.cdf(0.8 / total))
        scores = paired.paired_scores(values.mean(axis=2), metric, values)
        covered += [each.low <= truth <= each.high for each in (scores.interval(place) for place in range(4))]
        wins += sum(each.contender for each in paired.compare_with_best(scores)) == 1
    assert 0.925 <= np.mean(covered) <= 0.975  # the simulation's own error is about .008
    assert wins / 250 <= 0.06


def test_values_of_examples_give_the_mean_of_the_seeds() -> None:
    rng: Any = np.random.default_rng(0)
    each = rng.exponential(1.0, (3, 5, 40))
    scores = paired.paired_scores(each.mean(axis=2), "loss", each)
    assert_allclose(scores.means, -np.log(each.mean(axis=2)).mean(axis=1))
    assert_allclose(np.diag(scores.of_seeds), np.log(each.mean(axis=2)).var(axis=1, ddof=1) / 5)
    order = [2, 0, 1]
    assert_allclose(scores.reordered(order).covariance, scores.covariance[np.ix_(order, order)])


def test_intervals_are_too_narrow_where_few_examples_make_the_loss() -> None:
    """Log-normal losses of which a hundredth of the examples makes a fifth: what `report.warnings.HEAVY` warns of."""
    rng, spread = np.random.default_rng(0), float(stats.norm.ppf(0.2) - stats.norm.ppf(0.01))
    truth, covered = math.exp(spread**2 / 2), []
    for _ in range(600):
        each = np.exp(rng.normal(0, spread, (1, 1, 360))) * np.ones((1, 4, 1))
        interval = paired.paired_scores(each.mean(axis=2), "loss", each).interval(0)
        covered.append(interval.low <= truth <= interval.high)
    assert 0.85 < np.mean(covered) < 0.935


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_equal_optimizers_at_rates_that_fall_short_are_rarely_excluded(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortfalls up to the error of a mean, expected and not: 5% with their noise, many more without."""
    monkeypatch.setattr(paired, "DRAWS", 500)
    rng, excluded = np.random.default_rng(4), {False: 0, True: 0}
    expected = np.array([0.0, 0.03, 0.06, 0.09])
    for _ in range(300):
        truth = -expected * rng.chisquare(1, 4)
        noise = rng.normal(0, 0.2, 10) + rng.normal(0, 0.2, (4, 10))
        logs = truth[:, None] + noise
        values = np.exp(-logs) if metric == "loss" else special.expit(logs)
        scores = paired.paired_scores(values, metric)
        for tuned in (False, True):
            each = scores.tuned(expected if tuned else np.zeros(4))
            excluded[tuned] += not all(one.contender for one in paired.compare_with_best(each))
    assert excluded[True] <= 0.09 * 300
    assert excluded[False] >= 1.5 * excluded[True]


def test_a_shortfall_widens_the_gain_of_two_but_no_own_interval() -> None:
    values = np.exp(np.random.default_rng(0).normal(0, 0.1, (2, 10)))
    plain = paired.paired_scores(values, "loss")
    short = plain.tuned([0.1, 0.0])
    (narrow, _), (wide, _) = paired.compare_with_best(plain), paired.compare_with_best(short)
    assert wide.gain.high - wide.gain.low > narrow.gain.high - narrow.gain.low
    assert short.interval(0) == plain.interval(0)
    assert short.parts(np.array([1.0, -1.0]))["tuning"] == pytest.approx(3 * (0.1**2 + 0.05**2))
