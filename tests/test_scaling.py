"""The critical batch size and the gradient noise scale: closed forms, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy import stats

from analysis import Interval
from analysis.figures.batch_size import scaling

losses = st.floats(1e-12, 1e12)


POWERS = 2.0 ** np.arange(2, 11)


def scaling_steps(
    sizes: NDArray[np.float64], critical: float, noise: float, seeds: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Steps to the target, shape (sizes, seeds), with S_min = 100 and lognormal noise."""
    return 100 * (1 + critical / sizes[:, None]) * np.exp(rng.normal(0, noise, (sizes.size, seeds)))


@given(st.floats(4, 1024), losses, st.integers(2, 3), st.lists(st.integers(0, 8), unique=True, max_size=6))
def test_critical_batch_size_without_noise_is_exact(
    critical: float, least: float, seeds: int, missed: list[int]
) -> None:
    steps = np.repeat(least * (1 + critical / POWERS[:, None]), seeds, axis=1)
    steps[missed] = math.nan
    reached = np.delete(POWERS, missed)
    beyond = max(reached.min() / 4 / critical, critical / (4 * reached.max()))
    assume(abs(beyond - 1) > 0.01)
    found = scaling.critical_batch_size(POWERS, steps)
    if beyond > 1 or reached.size < 4:
        assert isinstance(found, str)
        return
    assert not isinstance(found, str)
    assert_allclose(found.critical.estimate, critical, rtol=1e-3)
    assert_allclose(found.steps.estimate, least, rtol=1e-3)
    assert_allclose(found.examples.estimate, found.steps.estimate * found.critical.estimate, rtol=1e-9)
    assert found.critical.n == found.steps.n == found.examples.n == seeds
    # McCandlish et al. 2018, equation 2.11
    curve = found.steps.estimate * (1 + found.critical.estimate / POWERS)
    product = (curve / found.steps.estimate - 1) * (POWERS * curve / found.examples.estimate - 1)
    assert_allclose(product, 1, rtol=1e-6)


@pytest.mark.parametrize("seeds", [5, pytest.param(10, marks=pytest.mark.long)])
@pytest.mark.parametrize("critical", [20.0, 200.0])
def test_critical_batch_size_covers_as_it_says(seeds: int, critical: float) -> None:
    rng = np.random.default_rng(seeds)
    sizes, covered, estimates, rejected = POWERS[::2], [], [], 0
    for _ in range(300):
        found = scaling.critical_batch_size(sizes, scaling_steps(sizes, critical, 0.1, seeds, rng))
        if isinstance(found, str):  # one in twenty fails the test for lack of fit
            rejected += 1
            continue
        truths = [(found.steps, 100), (found.examples, 100 * critical), (found.critical, critical)]
        covered.append([interval.low <= truth <= interval.high for interval, truth in truths])
        estimates.append(found.critical.estimate)
    assert rejected <= 27
    assert_allclose(stats.gmean(estimates), critical, rtol=0.02)
    shares_covered = np.mean(covered, axis=0)
    assert (shares_covered >= 0.915).all()
    assert (shares_covered <= 0.985).all()


@pytest.mark.parametrize("critical", [0.0, 1e-3, 1e5, 1e9, 1e300])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_critical_batch_size_far_from_all_batches_is_not_identified(critical: float, noise: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        steps = scaling_steps(POWERS, critical, noise, 10, rng)
        assert isinstance(scaling.critical_batch_size(POWERS, steps), str)


def test_critical_batch_size_leaves_out_seeds_that_tell_nothing() -> None:
    steps = scaling_steps(POWERS, 50.0, 0.05, 4, np.random.default_rng(0))
    expected = scaling.critical_batch_size(POWERS, steps)
    unreached = np.full((POWERS.size, 2), math.nan)
    unreached[:2] = steps[:2, :2]  # two batch sizes are too few
    zero_or_infinite = np.array([[0.0], [math.inf]] + [[math.nan]] * 7)
    assert scaling.critical_batch_size(POWERS, np.hstack([steps, unreached, zero_or_infinite])) == expected
    perfect = 1e6 / POWERS[:, None]
    assert scaling.critical_batch_size(POWERS, np.hstack([steps[:, :1], perfect])) == (
        "it lies beyond the batch sizes that reached the target"
    )
    one = scaling.critical_batch_size(POWERS, steps[:, :1])
    assert one == "one seed, or batch sizes that few seeds share, cannot show whether the curve fits"


def test_critical_batch_size_of_nothing() -> None:
    few = "fewer than 4 batch sizes reached the target"
    assert scaling.critical_batch_size([], np.ones((0, 2))) == few
    assert scaling.critical_batch_size(POWERS, np.ones((9, 0))) == few
    assert scaling.critical_batch_size([8.0, 16.0, 32.0], [[2.0], [1.7], [1.5]]) == few


def test_a_curve_of_another_shape_has_no_critical_batch_size() -> None:
    rng = np.random.default_rng(0)
    steps = (1000 * POWERS[:, None] ** -0.3) * np.exp(rng.normal(0, 0.02, (POWERS.size, 5)))  # a power law
    assert scaling.critical_batch_size(POWERS, steps) == "the updates do not follow S_min (1 + B_crit / B)"


def test_lack_of_fit_rejects_the_right_curve_once_in_twenty() -> None:
    rng = np.random.default_rng(1)
    found = [scaling.lack_of_fit_p(POWERS, scaling_steps(POWERS, 64.0, 0.1, 5, rng)) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


def test_critical_batch_size_refuses_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="positive"):
        scaling.critical_batch_size([0.0, 1.0, 2.0], np.ones((3, 1)))
    with pytest.raises(ValueError, match="not negative"):
        scaling.critical_batch_size([1.0, 2.0, 3.0], -np.ones((3, 1)))


lane_values = st.one_of(st.just(math.nan), st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, allow_subnormal=False))


@example([(2.2250738585072014e-308, 1.0)], 3.0)  # the ratio overflows
@given(st.lists(st.tuples(lane_values, lane_values), max_size=9), st.floats(1e-9, 1e9))
def test_gradient_noise_scale_is_a_ratio_of_means(lanes: list[tuple[float, float]], factor: float) -> None:
    kept = np.array([pair for pair in lanes if not any(map(math.isnan, pair))]).reshape(-1, 2)
    squares, noises = np.array(lanes).reshape(-1, 2).T
    found = scaling.gradient_noise_scale(squares, noises)
    assert found.n == len(kept)
    if found.n == 0:
        assert np.isnan([found.estimate, found.low, found.high]).all()
        return
    square, noise = kept.mean(axis=0)
    if abs(square) > 1e-9:
        expected = max(noise / square, 0) if square > 0 else math.inf
        assert_allclose(found.estimate, expected, rtol=1e-6, atol=1e-9)
    assert 0 <= found.low <= found.estimate <= found.high
    if found.n == 1:
        assert (found.low, found.high) == (0, math.inf)
    exact = 2.0 ** round(math.log2(factor))  # a power of two changes no rounding
    scaled = scaling.gradient_noise_scale(squares, exact * noises)
    assert_allclose([scaled.low, scaled.high], [exact * found.low, exact * found.high], rtol=1e-12)


@given(st.integers(0, 2**32), st.integers(2, 10), st.floats(0.1, 3), st.floats(0.5, 0.99))
def test_gradient_noise_scale_holds_the_ratios_that_a_t_test_accepts(
    seed: int, lanes: int, spread: float, level: float
) -> None:
    squares, noises = np.random.default_rng(seed).normal([[1], [50]], [[spread], [20]], (2, lanes))
    found = scaling.gradient_noise_scale(squares, noises, level)

    def accepted(ratio: float) -> float:
        return float(stats.ttest_1samp(noises - ratio * squares, 0).pvalue) - (1 - level)

    for limit in (found.low, found.high):
        if 0 < limit < math.inf and limit != found.estimate:
            assert abs(accepted(limit)) <= 1e-6
    for ratio in np.geomspace(1e-3, 1e6, 19):
        if accepted(ratio) > 1e-6:
            assert found.low <= ratio <= found.high


def test_gradient_noise_scale_without_a_gradient_is_infinite() -> None:
    rng = np.random.default_rng(0)
    found = scaling.gradient_noise_scale([0.1, -0.2, 0.05, 0.0], rng.normal(100, 1, 4))
    assert (found.estimate, found.high) == (math.inf, math.inf)
    assert found.low > 100  # even then the scale is surely large
    assert scaling.gradient_noise_scale([0.0, 0.0], [0.0, 0.0]) == Interval(math.inf, 0.0, math.inf, 2)
    assert scaling.gradient_noise_scale([-1.0, -1.1], [2.0, 2.0]) == Interval(math.inf, 0.0, math.inf, 2)
    assert scaling.gradient_noise_scale([1.0, 1.1], [-2.0, -2.1]) == Interval(0.0, 0.0, math.inf, 2)
    assert scaling.gradient_noise_scale([2.0, 2.0], [6.0, 6.0]) == Interval(3.0, 3.0, 3.0, 2)
    assert scaling.gradient_noise_scale([2.0, math.inf], [6.0, 6.0]) == Interval(3.0, 0.0, math.inf, 1)


@pytest.mark.parametrize("lanes", [5, 10])
@pytest.mark.parametrize(("batches", "spread"), [(20, 0.3), (20, 0.8), (1, 0.3)])
def test_gradient_noise_scale_covers_as_it_says(lanes: int, batches: int, spread: float) -> None:
    # Lanes differ in their gradients, and each sees the mean of a few batches of 32 and of 256.
    rng = np.random.default_rng(lanes)
    size, parameters, truth = (2000, lanes), 100, 200.0
    square, noise = np.exp(rng.multivariate_normal([0, 0], spread**2 * np.array([[1, 0.5], [0.5, 1]]), size).T)
    noise *= truth
    norms = []
    for batch in (32, 256):
        unit = noise / (batch * parameters)
        norms.append(unit * rng.noncentral_chisquare(parameters * batches, batches * square / unit) / batches)
    estimates = (256 * norms[1] - 32 * norms[0]) / (256 - 32), (norms[0] - norms[1]) / (1 / 32 - 1 / 256)
    squares, noises = (np.reshape(values.T, size) for values in estimates)
    found = [scaling.gradient_noise_scale(*pair) for pair in zip(squares, noises, strict=True)]
    assert 0.935 <= np.mean([interval.low <= truth <= interval.high for interval in found]) <= 0.985
