"""Numbers and intervals, against closed forms, scipy and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

import analysis
from analysis import Interval, statistics

losses = st.floats(1e-12, 1e12)
shares = st.floats(0, 1)


# Intervals


def test_t_interval_closed_form() -> None:
    interval = analysis.t_interval([1.0, 2.0, 3.0])
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)  # the quantile of t with two degrees of freedom
    assert interval.n == 3
    assert_allclose([interval.estimate, interval.low, interval.high], [2, 2 - half, 2 + half], rtol=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30).filter(lambda values: np.std(values) > 1e-6))
def test_t_interval_agrees_with_scipy(values: list[float]) -> None:
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    interval = analysis.t_interval(values, level=0.9)
    assert_allclose([interval.low, interval.high], [expected.low, expected.high], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("n", [5, 10, 20])
def test_t_interval_covers_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    intervals = [analysis.t_interval(rng.normal(3.0, 2.0, n)) for _ in range(3000)]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    assert 0.935 <= covered <= 0.965


def test_log_interval_covers_the_geometric_mean() -> None:
    rng = np.random.default_rng(0)
    intervals = [analysis.log_interval(rng.lognormal(-2, 0.5, 5)) for _ in range(3000)]
    covered = np.mean([interval.low <= math.exp(-2) <= interval.high for interval in intervals])
    assert 0.935 <= covered <= 0.965


@given(st.lists(losses, min_size=1, max_size=12))
def test_log_interval_is_the_geometric_mean_inside_its_limits(values: list[float]) -> None:
    interval = analysis.log_interval(values)
    assert_allclose(interval.estimate, stats.gmean(values), rtol=1e-9)
    assert 0 <= interval.low <= interval.estimate * (1 + 1e-12)
    assert interval.high >= interval.estimate * (1 - 1e-12)
    assert interval.n == len(values)


@given(st.lists(shares, min_size=1, max_size=12), st.integers(1, 10_000))
def test_logit_interval_stays_between_0_and_1(values: list[float], examples: int) -> None:
    interval = analysis.logit_interval(values, examples)
    assert 0 <= interval.low <= interval.estimate + 1e-9
    assert interval.estimate - 1e-9 <= interval.high <= 1


@given(shares, st.integers(1, 1000), st.integers(2, 6))
def test_equal_accuracies_average_to_themselves(value: float, examples: int, n: int) -> None:
    interval = analysis.logit_interval([value] * n, examples)
    assert_allclose([interval.estimate, interval.low, interval.high], value, atol=1e-7)


def test_logit_interval_closed_form() -> None:
    accuracies, examples = [0.9, 0.95, 1.0], 100
    logits = [math.log((100 * a + 0.5) / (100 * (1 - a) + 0.5)) for a in accuracies]
    expected = analysis.t_interval(logits)
    interval = analysis.logit_interval(accuracies, examples)
    back = (special.expit([expected.estimate, expected.low]) * 101 - 0.5) / 100
    assert_allclose([interval.estimate, interval.low], back, rtol=1e-12)


@pytest.mark.parametrize(
    ("interval", "limits"),
    [
        (analysis.t_interval, (-math.inf, math.inf)),
        (analysis.log_interval, (0.0, math.inf)),
        (lambda values: analysis.logit_interval(values, 100), (0.0, 1.0)),
    ],
    ids=["t", "log", "logit"],
)
class TestFewValues:
    def test_one_value_bounds_nothing(self, interval: Callable[..., Interval], limits: tuple[float, float]) -> None:
        found = interval([0.25])
        assert found.estimate == pytest.approx(0.25)
        assert (found.low, found.high, found.n) == (*limits, 1)

    def test_no_value_is_nan(self, interval: Callable[..., Interval], limits: tuple[float, float]) -> None:
        for values in ([], [math.nan], [math.nan, math.nan]):
            found = interval(values)
            assert np.isnan([found.estimate, found.low, found.high]).all()
            assert found.n == 0

    def test_a_seed_without_a_value_is_dropped(
        self, interval: Callable[..., Interval], limits: tuple[float, float]
    ) -> None:
        assert interval([0.2, math.nan, 0.4]) == interval([0.2, 0.4])


def test_an_infinite_loss_is_not_left_out() -> None:
    assert analysis.log_interval([1.0, 2.0, math.inf, math.nan]) == Interval(math.inf, 0.0, math.inf, 3)


def test_a_zero_loss_has_no_upper_limit() -> None:
    assert analysis.log_interval([0.0, 1.0]) == Interval(0.0, 0.0, math.inf, 2)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no negative value"):
        analysis.log_interval([-1.0, 1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        analysis.logit_interval([0.5, 1.5], 10)


def test_metric_interval_chooses_by_metric() -> None:
    assert analysis.metric_interval([0.5, 0.6], "loss") == analysis.log_interval([0.5, 0.6])
    assert analysis.metric_interval([0.5, 0.6], "accuracy", 50) == analysis.logit_interval([0.5, 0.6], 50)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8))
def test_sign_flip_p_counts_all_flips(differences: list[int]) -> None:
    flips = np.array(list(itertools.product([1, -1], repeat=len(differences)))) @ np.array(differences)
    expected = min(1.0, 2 * min(np.mean(flips >= sum(differences)), np.mean(flips <= sum(differences))))
    assert analysis.sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "p"), [(3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_five_pairs_never_reach_significance(n: int, p: float) -> None:
    assert analysis.sign_flip_p(np.arange(1, n + 1)) == pytest.approx(p)


def test_sign_flip_p_without_pairs_is_nan() -> None:
    assert math.isnan(analysis.sign_flip_p([]))


# Confirmation


@given(
    *[st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9).filter(lambda values: np.ptp(values) > 1e-3)] * 2,
    st.floats(0.5, 0.99),
)
def test_welch_interval_agrees_with_scipy(first: list[float], second: list[float], level: float) -> None:
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(level)
    found = analysis.welch_interval(first, second, level)
    assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-6, atol=1e-6)
    assert found.n == len(first) + len(second)


def test_welch_interval_of_few_values() -> None:
    assert analysis.welch_interval([3.0], [1.0, 2.0]) == Interval(1.5, -math.inf, math.inf, 3)
    assert analysis.welch_interval([3.0, 3.0], [1.0, 1.0]) == Interval(2.0, 2.0, 2.0, 4)
    for pair in (([], [1.0, 2.0]), ([1.0, math.nan], [1.0, 2.0]), ([1.0, math.inf], [1.0, 2.0])):
        assert math.isnan(analysis.welch_interval(*pair).estimate)


def test_the_interval_of_the_curse_covers_no_curse_as_it_says() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0, 0.3, (5, 3)), rng.normal(0, 0.1, (10, 3))) for _ in range(2000)]
    found = [statistics.curse_interval(np.exp(search), np.exp(fresh), "loss") for search, fresh in pairs]
    assert 0.935 <= np.mean([interval.low <= 1 <= interval.high for interval in found]) <= 0.965


@given(st.lists(losses, min_size=2, max_size=6), st.lists(losses, min_size=2, max_size=6), st.floats(0.1, 10))
def test_the_curse_follows_the_fresh_losses(search: list[float], fresh: list[float], factor: float) -> None:
    before, after = np.array(search)[:, None], np.array(fresh)[:, None]
    once, scaled = (statistics.curse_interval(before, times * after, "loss") for times in (1.0, factor))
    assert_allclose([scaled.estimate, scaled.low], [factor * once.estimate, factor * once.low], rtol=1e-6)
    assert once.estimate == pytest.approx(stats.gmean(fresh) / stats.gmean(search))


# Along the search and along training


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), max_size=20), st.booleans())
def test_best_so_far_is_the_best_of_each_prefix(values: list[float], maximize: bool) -> None:
    found = analysis.best_so_far(values, maximize)
    assert found.shape == (len(values),)
    for place, best in enumerate(found):
        seen = [value for value in values[: place + 1] if not math.isnan(value)]
        expected = (max if maximize else min)(seen) if seen else math.nan
        assert_array_equal(best, expected)


@given(st.lists(st.one_of(st.just(math.nan), st.floats(0, 1e6)), min_size=1, max_size=9))
def test_censored_median_counts_what_was_not_reached_as_late(times: list[float]) -> None:
    median = statistics.censored_median(times)
    reached = sum(not math.isnan(time) for time in times)
    assert math.isfinite(median) == (reached > len(times) / 2)
    assert sum(time <= median for time in times if not math.isnan(time)) >= min(reached, len(times) / 2)
