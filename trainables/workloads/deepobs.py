"""DeepOBS's quadratic problem, `quadratic_deep`, with exactly its Hessian and points.

    loss = mean over the points x of (theta - x)^T Q (theta - x) / 2,  Q = R^T diag(eigenvalues) R

In 100 dimensions, theta starts at ones. Ten eigenvalues are large and ninety small, as observed in deep networks
(arXiv:1611.01838). The results of optimizers on it are published (Schneider, Balles and Hennig, "DeepOBS: A Deep
Learning Optimizer Benchmark Suite", ICLR 2019), so a study of it checks everything from the spec to the tables.
"""

from __future__ import annotations

import numpy as np

DIMENSIONS = 100
TRAIN, TEST = 1_000, 896  # DeepOBS draws 1,000 points for each; its test loss is of the first 7 batches of 128
NOISE = 0.6
SEED = 42


def hessian() -> tuple[np.ndarray, np.ndarray]:
    """The Hessian's eigenvalues, (100,), and the rotation R into its eigenvectors' axes, (100, 100)."""
    # numpy's legacy generator, which gives the published numbers.
    random = np.random.RandomState(SEED)
    eigenvalues = np.concatenate([random.uniform(0, 1, DIMENSIONS - 10), random.uniform(30, 60, 10)])
    return eigenvalues, _rotation(random)


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The training and the test points, (1000, 100) and (896, 100), float32; for seed 0 those of DeepOBS."""
    pair = [np.random.RandomState(SEED + 2 * seed + test) for test in (0, 1)]
    train, test = (random.normal(0, NOISE, (TRAIN, DIMENSIONS)).astype(np.float32) for random in pair)
    return train, test[:TEST]


def _rotation(random: np.random.RandomState) -> np.ndarray:
    """A random rotation, built dimension by dimension (Diaconis and Shahshahani, subgroup algorithm, 1987)."""
    angle = 2 * np.pi * random.uniform()
    found = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for size in range(3, DIMENSIONS + 1):
        place = random.normal(size=size)
        mirror = np.eye(size)[0] - place / np.linalg.norm(place)
        mirror /= np.linalg.norm(mirror)
        wider = np.eye(size)
        wider[1:, 1:] = found
        found = wider - 2 * np.outer(mirror, mirror @ wider)
    return -found
