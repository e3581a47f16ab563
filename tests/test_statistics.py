"""Numbers and intervals, against closed forms, scipy and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

import analysis
from analysis import Interval, statistics
from analysis.statistics import best_by_parabola

losses = st.floats(1e-12, 1e12)
shares = st.floats(0, 1)
some_scores = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
few_times = st.one_of(st.just(math.nan), st.integers(1, 6).map(float))


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


def test_losses_below_the_floor_count_as_it() -> None:
    floored = [1e-14, 1e-3, 1e-3]
    assert analysis.log_interval([0.0, 1e-3, 1e-3], floor=1e-14) == analysis.log_interval(floored)
    assert analysis.metric_interval([1e-30, 1e-3, 1e-3], "loss", floor=1e-14) == analysis.log_interval(floored)
    plain = analysis.log_interval([0.0, 1e-3, 1e-3])
    assert plain.estimate == pytest.approx((2.2250738585072014e-308 * 1e-6) ** (1 / 3))
    assert 0 < plain.estimate < plain.high


def test_the_curse_of_losses_below_the_floor_is_none() -> None:
    search, fresh = np.full((3, 1), 1e-30), np.array([[0.0], [1e-20], [1e-14]])
    assert analysis.curse_interval(search, fresh, "loss", 1e-14).estimate == pytest.approx(1.0)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no negative value"):
        analysis.log_interval([-1.0, 1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        analysis.logit_interval([0.5, 1.5], 10)


def test_metric_interval_chooses_by_metric() -> None:
    assert analysis.metric_interval([0.5, 0.6], "loss") == analysis.log_interval([0.5, 0.6])
    assert analysis.metric_interval([0.5, 0.6], "accuracy", 50) == analysis.logit_interval([0.5, 0.6], 50)


# Several workloads


def quartile_mean(values: list[float]) -> float:
    """The mean of what remains without a quarter, rounded down, at either end."""
    cut = len(values) // 4
    return math.fsum(sorted(values)[cut : len(values) - cut]) / (len(values) - 2 * cut)


problem_times = st.one_of(st.sampled_from([math.nan, math.inf, 0.0, 1.0, 2.0]), st.floats(1e-3, 1e3))


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_performance_profile_counts_problems(solvers: int, problems: int, data: st.DataObject) -> None:
    times = np.array([[data.draw(problem_times) for _ in range(problems)] for _ in range(solvers)])
    ratios = sorted(data.draw(st.lists(st.floats(1, 100), max_size=4)))
    found = statistics.performance_profile(times, [1.0, *ratios, math.inf])
    assert found.shape == (solvers, len(ratios) + 2)
    for column, ratio in enumerate(ratios, start=1):
        for solver in range(solvers):
            solved = 0
            for problem in range(problems):
                own, others = times[solver, problem], times[:, problem]
                best = min((time for time in others if math.isfinite(time)), default=math.nan)
                solved += own == best or (best > 0 and math.isfinite(own) and own / best <= ratio)
            assert found[solver, column] == pytest.approx(solved / problems)
    ever = np.isfinite(times)
    assert_allclose(found[:, -1], ever.mean(axis=1))
    assert (np.diff(found, axis=1) >= 0).all()
    assert found[:, 0].sum() >= ever.any(axis=0).mean() - 1e-12  # somebody is the fastest wherever it was solved


def test_performance_profile_closed_form() -> None:
    times = [[1.0, 4.0, math.nan, math.nan], [2.0, 1.0, 3.0, math.nan]]
    expected = [[0.25, 0.25, 0.5, 0.5], [0.5, 0.75, 0.75, 0.75]]
    assert_array_equal(statistics.performance_profile(times, [1.0, 2.0, 4.0, math.inf]), expected)
    assert_array_equal(statistics.performance_profile(np.ones((2, 0)), [1.0]), [[math.nan], [math.nan]])
    assert statistics.performance_profile(np.ones((0, 2)), [1.0]).shape == (0, 1)


def test_performance_profile_refuses_the_impossible() -> None:
    with pytest.raises(ValueError, match="not negative"):
        statistics.performance_profile([[-1.0, math.nan]], [1.0])
    for ratio in (0.5, math.nan):
        with pytest.raises(ValueError, match="at least 1"):
            statistics.performance_profile([[1.0]], [2.0, ratio])


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


gliomas = (
    [6, 13, 21, 30, 37, 38, 49, 50, 63, 79, 86, 98, 202, 219],
    [31, 47, 80, 82, 82, 149],
    [10, 10, 12, 13, 14, 15, 16, 17, 18, 20, 24, 24, 25, 28, 30, 33, 35, 37, 40, 40, 46, 48, 76, 81, 82, 91, 112, 181],
    [34, 40, 70],
)  # Bland and Altman 2004: died and censored after weeks, by kind of tumour
leukemia = (
    [6, 6, 6, 7, 10, 13, 16, 22, 23],
    [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35],
    [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23],
    [],
)  # Freireich et al. 1963, as in Cox 1972: relapsed and censored after weeks, with 6-MP and with placebo


@pytest.mark.parametrize(("weeks", "chi2"), [(gliomas, 7.4966), (leukemia, 16.793)], ids=["gliomas", "leukemia"])
def test_log_rank_p_of_published_trials(weeks: tuple[list[int], ...], chi2: float) -> None:
    samples = [[*weeks[i], *[math.nan] * len(weeks[i + 1])] for i in (0, 2)]
    ends = [[*[math.nan] * len(weeks[i]), *weeks[i + 1]] for i in (0, 2)]
    found = statistics.log_rank_p(samples[0], samples[1], ends[0], ends[1])
    assert found == pytest.approx(stats.chi2.sf(chi2, 1), abs=2e-3)  # the published tests are asymptotic


def excess(people: list[tuple[float, bool]], chosen: tuple[int, ...]) -> Fraction:
    """Events of the chosen people minus those expected, by one table per time of an event."""
    found = Fraction(0)
    for event in sorted({time for time, died in people if died}):
        at_risk = [place for place, (time, _) in enumerate(people) if time >= event]
        deaths = [place for place in at_risk if people[place] == (event, True)]
        found += sum(place in chosen for place in deaths)
        found -= Fraction(len(deaths) * sum(place in chosen for place in at_risk), len(at_risk))
    return found


@given(st.lists(few_times, min_size=1, max_size=4), st.lists(few_times, min_size=1, max_size=4), st.integers(0, 7))
def test_log_rank_p_counts_all_splits(first: list[float], second: list[float], end: int) -> None:
    found = statistics.log_rank_p(first, second, end, end)
    people = [(end, False) if math.isnan(time) else (time, True) for time in [*first, *second]]
    splits = [excess(people, chosen) for chosen in itertools.combinations(range(len(people)), len(first))]
    if math.isnan(found):
        return
    own = excess(people, tuple(range(len(first))))
    expected = min(1.0, 2 * min(np.mean([each >= own for each in splits]), np.mean([each <= own for each in splits])))
    assert found == pytest.approx(expected)
    assert_allclose(statistics.log_rank_p(second, first, end, end), found, rtol=1e-9)


def test_three_times_against_three_never_reach_significance() -> None:
    assert statistics.log_rank_p([1, 2, 3], [7, 8, 9], 9, 9) == pytest.approx(0.1)


def test_log_rank_p_is_nan_where_undefined() -> None:
    nothing = [math.nan, math.nan]
    early = np.arange(2.0, 51.0)  # 49 * (1 / 49) is not 1
    for first, second, end in (
        ([], [1.0, 2.0], 5.0),
        ([], [], 5.0),
        (nothing, nothing, 5.0),
        ([3.0, 3.0], [3.0], 5.0),
        (early, nothing, 1.0),
    ):
        assert math.isnan(statistics.log_rank_p(first, second, end, end))


def test_log_rank_p_takes_infinity_for_what_was_never_reached() -> None:
    expected = statistics.log_rank_p([1.0, 2.0, math.nan], [3.0, 4.0, math.nan], 9.0, 9.0)
    assert 0 < expected < 1
    assert statistics.log_rank_p([1.0, 2.0, math.inf], [3.0, 4.0, math.inf], math.inf, 9.0) == expected
    dropped = statistics.log_rank_p([1.0, 2.0, math.nan], [3.0, 4.0, math.nan], [0.0, 0.0, math.nan], 9.0)
    assert dropped == statistics.log_rank_p([1.0, 2.0], [3.0, 4.0, math.nan], 0.0, 9.0)


def test_log_rank_p_rejects_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    times = rng.exponential(1.0, (300, 2, 6))
    times[times > 1.5] = math.nan
    assert 0.01 <= np.mean([statistics.log_rank_p(*pair, 1.5, 1.5) < 0.05 for pair in times]) <= 0.07


@given(
    st.lists(st.one_of(st.sampled_from([math.nan, math.inf, -math.inf]), some_scores), max_size=7),
    st.booleans(),
)
def test_expected_best_is_the_mean_over_all_sets(values: list[float], maximize: bool) -> None:
    best, worst = (max, min) if maximize else (min, max)
    finite = [value for value in values if math.isfinite(value)]
    found = statistics.expected_best(values, maximize)
    assert found.shape == (len(values),)
    if not finite:
        assert np.isnan(found).all()
        return
    filled = [value if math.isfinite(value) else worst(finite) for value in values]
    expected = [
        np.mean([best(chosen) for chosen in itertools.combinations(filled, size)]) for size in range(1, len(values) + 1)
    ]
    assert_allclose(found, expected, rtol=1e-9, atol=1e-6)
    assert found[-1] == pytest.approx(best(finite))


@pytest.mark.parametrize("trials", [1, 2, 1000])
def test_expected_best_of_ranks_closed_form(trials: int) -> None:
    ranks, drawn = np.random.default_rng(0).permutation(trials) + 1.0, np.arange(1, trials + 1)
    assert_allclose(statistics.expected_best(ranks, True), drawn * (trials + 1) / (drawn + 1), rtol=1e-10)
    assert_allclose(statistics.expected_best(ranks, False), (trials + 1) / (drawn + 1), rtol=1e-10)


def test_expected_best_of_many_trials_by_exact_binomials() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(0, 2, 1000))
    found = statistics.expected_best(values, True)
    for size in (2, 37, 500, 999):
        counts = [math.comb(place, size - 1) for place in range(1000)]
        exact = sum(Fraction(value) * count for value, count in zip(values, counts, strict=True))
        assert found[size - 1] == pytest.approx(float(exact / math.comb(1000, size)), rel=1e-10)


# The edge of a space


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), shares)
def test_edge_of_a_linear_range(low: float, width: float, place: float) -> None:
    found = statistics.edge_of(low + place * width, low, low + width, log=False)
    if min(abs(place - 0.05), abs(place - 0.95)) > 1e-6:
        assert found == ("low" if place < 0.05 else "high" if place > 0.95 else "")


@given(st.floats(1e-8, 1e8), st.floats(1.001, 1e8), shares)
def test_edge_of_a_logarithmic_range(low: float, factor: float, place: float) -> None:
    found = statistics.edge_of(low * factor**place, low, low * factor, log=True)
    if min(abs(place - 0.05), abs(place - 0.95)) > 1e-6:
        assert found == ("low" if place < 0.05 else "high" if place > 0.95 else "")


@pytest.mark.parametrize(
    ("value", "low", "high", "log", "edge"),
    [
        (5.0, 0.0, 100.0, False, "low"),
        (95.0, 0.0, 100.0, False, "high"),
        (5.1, 0.0, 100.0, False, ""),
        (1.4, 1.0, 1000.0, True, "low"),
        (1.5, 1.0, 1000.0, True, ""),
        (700.0, 1.0, 1000.0, True, ""),
        (720.0, 1.0, 1000.0, True, "high"),
        (3.0, 3.0, 3.0, False, ""),
        (3.0, 3.0, 3.0, True, ""),
        (math.nan, 0.0, 1.0, False, ""),
        (-math.inf, 0.0, 1.0, False, "low"),
        (math.inf, 1.0, 2.0, True, "high"),
        (0.0, 1.0, 2.0, True, "low"),
    ],
)
def test_edge_of(value: float, low: float, high: float, log: bool, edge: str) -> None:
    assert statistics.edge_of(value, low, high, log) == edge


@pytest.mark.parametrize(
    ("low", "high", "log"), [(2.0, 1.0, False), (0.0, 1.0, True), (0.0, math.inf, False), (math.nan, 1.0, False)]
)
def test_edge_of_no_range(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="range from"):
        statistics.edge_of(1.0, low, high, log)


# The best of neighbours

SHAPES = {
    "parabola": lambda x: 0.92 * x**2,
    "cubic": lambda x: 0.92 * x**2 + 2 * max(x, 0) ** 3,
    "kink": lambda x: abs(x),
    "cliff": lambda x: 0.3 * x**2 + (3 if x > 0.3 else 0),
    "plateau": lambda x: 1.5 * max(0, abs(x) - 0.7),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_parabola_loses_no_more_than_the_best_mean_does(shape: str) -> None:
    random, truth = np.random.default_rng(0), SHAPES[shape]
    lost, shortfalls = {"best mean": 0.0, "parabola": 0.0}, list[tuple[float, float]]()
    for _ in range(400):
        optimum = random.uniform(-0.4, 0.4)
        places = np.array([-1.6, -0.8, -0.4, -0.2, 0.0, 0.2, 0.4, 0.8, 1.6])
        loss = np.array([truth(place - optimum) for place in places])
        scores = -loss[:, None] - random.normal(0, 0.2, 3) - random.normal(0, 0.2, (9, 3))
        best = int(scores.mean(axis=1).argmax())
        lost["best mean"] += loss[best] - loss.min()
        row, gain = best_by_parabola(places, scores, best, 0.8)
        lost["parabola"] += loss[row] - loss.min()
        shortfalls.append((loss[row], gain))
    assert lost["parabola"] < lost["best mean"] + 400 * 0.0005  # a plateau costs next to nothing either way
    if shape == "parabola":
        assert lost["parabola"] < 0.6 * lost["best mean"]
        true, expected = np.array(shortfalls).T  # the best place has loss 0
        assert 0.8 < expected.mean() / true.mean() < 1.5
        assert np.corrcoef(expected, true)[0, 1] > 0.25


def test_a_parabola_without_noise_keeps_the_best() -> None:
    places = np.array([0.0, 1.0, 2.0, 3.0])
    scores = np.repeat([[-4.0], [-1.0], [-1.1], [-9.0]], 3, axis=1)  # its parabola peaks between 1 and 2
    row, gain = best_by_parabola(places, scores, 1, 1.0)
    assert row == 1
    bend, slope = -1.55, 1.45  # through (-1, -4), (0, -1), (1, -1.1)
    assert gain == pytest.approx(slope**2 / (4 * -bend))


def test_ties_and_single_seeds_keep_the_best() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(0, 1, (5, 1))
    best = int(scores[:, 0].argmax())
    assert best_by_parabola(np.arange(5.0), scores, best, 4.0) == (best, 0.0)
    scores = np.array([[1.0, 2.0], [1.0, 2.0], [0.9, 1.8], [0.7, 1.9]])
    assert best_by_parabola(np.arange(4.0), scores, 1, 3.0)[0] == 0
    assert best_by_parabola(np.arange(4.0), scores, 1, 3.0, settled=True)[0] == 1
