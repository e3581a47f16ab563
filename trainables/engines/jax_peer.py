"""Lanes in JAX as one would write them: vmap over lanes, scan over an epoch, jit around both; a peer of `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def epochs(
    sizes: Sequence[int], inputs: np.ndarray, targets: np.ndarray, batch_size: int, rates: np.ndarray, seeds: int
) -> Callable[[int], np.ndarray]:
    """A function that trains an MLP with Adam on squared error for some epochs, and gives the last losses, (K,).

    Args:
        sizes: features, widths of the hidden layers, outputs.
        inputs: (n, features); its type is that of the parameters.
        targets: (n, outputs).
        batch_size: examples per update; n is a multiple of it.
        rates: learning rate of each lane, (K,).
        seeds: lanes take turns with so many different orders of the examples.
    """
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", inputs.dtype == np.float64)
    random, lanes, x, y = np.random.default_rng(0), len(rates), jnp.asarray(inputs), jnp.asarray(targets)
    shapes = [(lanes, *pair) for pair in zip(sizes[1:], sizes[:-1], strict=True)]
    weights = [jnp.asarray(random.normal(0, shape[2] ** -0.5, shape).astype(inputs.dtype)) for shape in shapes]
    parameters = [(weight, jnp.zeros(weight.shape[:2], inputs.dtype)) for weight in weights]
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    rate, seed_of_lane = jnp.asarray(rates, inputs.dtype), jnp.arange(lanes) % seeds

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        for weight, bias in parameters[:-1]:
            x = jax.nn.relu(x @ weight.T + bias)
        weight, bias = parameters[-1]
        return ((x @ weight.T + bias - y) ** 2).mean()

    def update(carry: Any, rows: Any) -> Any:
        parameters, first, second, count = carry
        mine = rows[seed_of_lane]
        losses, gradients = jax.vmap(jax.value_and_grad(loss))(parameters, x[mine], y[mine])
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)

        def moved(p: Any, m: Any, v: Any) -> Any:
            step = (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
            return p - rate.reshape(-1, *[1] * (p.ndim - 1)) * step

        return (jax.tree.map(moved, parameters, first, second), first, second, count), losses

    @jax.jit  # type: ignore[untyped-decorator]
    def epoch(carry: Any, orders: Any) -> Any:
        return jax.lax.scan(update, carry, orders.reshape(seeds, -1, batch_size).swapaxes(0, 1))

    carry: Any = (parameters, zeros, zeros, jnp.zeros((), inputs.dtype))

    def train(count: int) -> np.ndarray:
        nonlocal carry
        for _ in range(count):
            orders = np.stack([random.permutation(len(inputs)) for _ in range(seeds)])
            carry, losses = epoch(carry, orders)
        return np.asarray(losses[-1])

    return train
