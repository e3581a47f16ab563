"""Closed forms: the stationary loss of a linear model under a constant step, and moments of the cubic data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ConstantStep:
    """The stationary loss of SGD with a constant step on a linear model.

    `floor` is the mean squared error of the least-squares fit, `noise` the mean excess loss of the next, unseen
    observation that the steps cause.
    """

    floor: float
    noise: float

    @property
    def total(self) -> float:
        """Where the loss stalls."""
        return self.floor + self.noise


def constant_step(x: ArrayLike, y: ArrayLike, rate: float, weights: ArrayLike | None = None) -> ConstantStep:
    """The stationary loss of SGD on single independent observations, for a linear model with intercept.

    Let z = (x, 1), H = E[z z'] and e the residual of the least-squares fit. A step of rate r takes the error d of the
    parameters to (I - 2 r z z') d + 2 r z e. The mean of d vanishes, and its covariance S is the fixed point of
    S = E[(I - 2 r z z') S (I - 2 r z z')] + 4 r^2 E[e^2 z z'], a linear equation; the loss of the next observation is
    E[e^2] + tr(H S). This is exact for every step at which S is finite.

    Shapes: x (n, p), y (n,) and weights (n,), the probabilities of the observations (equal if not given). The rate is
    for the squared error without a factor of one half. ValueError if it is too large for a stationary state.
    """
    inputs, targets = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    share = np.full(len(inputs), 1 / len(inputs)) if weights is None else np.asarray(weights, dtype=np.float64)
    z = np.column_stack([inputs, np.ones(len(inputs))])
    second = (z * share[:, None]).T @ z
    residual = targets - z @ np.linalg.solve(second, (z * share[:, None]).T @ targets)
    size = len(second)
    pairs = np.einsum("ni,nj->nij", z, z).reshape(len(z), size * size)
    fourth = ((pairs * share[:, None]).T @ pairs).reshape(size, size, size, size)
    eye = np.eye(size)
    # Row (i, j) by column (k, l): z_i z_k S_kl z_l z_j.
    both = fourth.transpose(0, 2, 1, 3).reshape(size**2, size**2)
    change = 2 * rate * (np.kron(second, eye) + np.kron(eye, second)) - 4 * rate**2 * both
    if np.abs(np.linalg.eigvals(np.eye(size**2) - change)).max() >= 1:
        raise ValueError(f"at a rate of {rate:g} the parameters have no stationary state; choose a smaller rate")
    source = 4 * rate**2 * (z * (share * residual**2)[:, None]).T @ z
    covariance = np.linalg.solve(change, source.ravel()).reshape(size, size)
    return ConstantStep(float(share @ residual**2), float((second * covariance).sum()))


@cache
def cubic_population(order: int = 12) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The distribution of y = x1^2 + 14 x2^3, x1 ~ N(-3, 1), x2 ~ N(10, 1), as points with exactly its moments.

    `order` is the points per axis of Gauss-Hermite quadrature, exact for polynomials of degree 2 order - 1. Returns x
    (order^2, 2), y (order^2,) and probabilities (order^2,).
    """
    points, weights = np.polynomial.hermite_e.hermegauss(order)
    first, second = (axis.ravel() for axis in np.meshgrid(points - 3, points + 10, indexing="ij"))
    share = np.outer(weights, weights).ravel()
    return np.column_stack([first, second]), first**2 + 14 * second**3, share / share.sum()


def cubic_step(rate: float) -> ConstantStep:
    """`constant_step` of the whole distribution of the cubic data."""
    x, y, share = cubic_population()
    return constant_step(x, y, rate, share)


def without_x1() -> float:
    """Mean squared error of the best function of x2 alone on the cubic data: the variance of x1^2."""
    x, _, share = cubic_population()
    squares = x[:, 0] ** 2
    return float(share @ squares**2 - (share @ squares) ** 2)


def stalls_in_order(
    rate: float, draws: int, observations: int = 10_000, epochs: int = 4, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulated stationary losses with observations in a fixed order, and in a new order each epoch: arrays (draws,).

    The draws of the cubic data are all trained at once from their least-squares fits; both orders see the same. Of the
    epochs, at least 2, the last one is averaged.
    """
    random = np.random.default_rng([seed, 2])
    z = np.ones((observations, draws, 3))
    z[..., 0], z[..., 1] = random.normal(-3, 1, (observations, draws)), random.normal(10, 1, (observations, draws))
    y = z[..., 0] ** 2 + 14 * z[..., 1] ** 3
    start = np.stack([np.linalg.lstsq(z[:, draw], y[:, draw], rcond=None)[0] for draw in range(draws)])
    stalls = []
    for fresh in (False, True):
        weights = start.copy()
        for _ in range(epochs):
            total = np.zeros(draws)
            for row in random.permutation(observations) if fresh else range(observations):
                error = np.einsum("dk,dk->d", weights, z[row]) - y[row]
                total += error**2
                weights -= (2 * rate * error)[:, None] * z[row]
        stalls.append(total / observations)
    return stalls[0], stalls[1]


@cache
def stalls_of_draws(rate: float, draws: int, observations: int = 10_000, seed: int = 0) -> NDArray[np.float64]:
    """The predicted stationary losses of further draws of the cubic data, (draws,)."""
    random, stalls = np.random.default_rng([seed, 1]), np.empty(draws)
    for number in range(draws):
        x = np.column_stack([random.normal(-3, 1, observations), random.normal(10, 1, observations)])
        stalls[number] = constant_step(x, x[:, 0] ** 2 + 14 * x[:, 1] ** 3, rate).total
    return stalls
