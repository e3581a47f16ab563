"""Schedules of the learning rate: factors by which a lane's rate is multiplied, update by update.

Each schedule equals a class of `torch.optim.lr_scheduler`, whose name is in its description. Warm-up comes first, as
`SequentialLR` joins two schedules: over the first W updates, the share `warmup` of the budget, the factor rises in a
straight line, 1 / (W + 1), 2 / (W + 1) ...; the schedule then has the rest of the budget.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# (numbers of updates from 0, their total) -> factors, both (U,).
Factors = Callable[[np.ndarray, int], np.ndarray]

# The one-cycle schedule's share of the budget in which the rate rises, and the factors at its start and end; torch's.
RISE, START, END = 0.3, 1 / 25, 1 / 25 / 1e4


def _constant(n: np.ndarray, total: int) -> np.ndarray:
    """1 throughout (ConstantLR)."""
    return np.ones(len(n))


def _linear(n: np.ndarray, total: int) -> np.ndarray:
    """From 1 to 0 in a straight line (LinearLR)."""
    return 1 - n / total


def _cosine(n: np.ndarray, total: int) -> np.ndarray:
    """From 1 to 0 by half a cosine wave (CosineAnnealingLR)."""
    return (1 + np.cos(np.pi * n / total)) / 2


def _step(n: np.ndarray, total: int) -> np.ndarray:
    """A tenth from 1/2 of the updates on, a hundredth from 3/4 on (MultiStepLR; StepLR with more than two steps)."""
    return np.where(4 * n >= 3 * total, 0.01, np.where(2 * n >= total, 0.1, 1.0))


def _exponential(n: np.ndarray, total: int) -> np.ndarray:
    """From 1 to 1/100, by the same ratio each update (ExponentialLR)."""
    return np.asarray(0.01 ** (n / total))


def _wsd(n: np.ndarray, total: int) -> np.ndarray:
    """Warm-up, stable, decay: 1, then to 0 in a straight line over the last fifth (ConstantLR, then LinearLR)."""
    return np.minimum(1, (total - n) / max(1, round(total / 5)))


def _one_cycle(n: np.ndarray, total: int, rise: float = RISE) -> np.ndarray:
    """Up from 1/25 to 1 by a cosine, then down to 4e-6 (OneCycleLR with torch's defaults, momentum left as it is)."""
    top, last = rise * total - 1, total - 1
    up, down = n / top if top > 0 else np.ones(len(n)), (n - top) / max(last - top, 1)
    rising, falling = (1 + (START - 1) * (1 + np.cos(np.pi * up)) / 2), END + (1 - END) * (1 + np.cos(np.pi * down)) / 2
    return np.where(n <= top, rising, falling)


SCHEDULES: dict[str, Factors] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "step": _step,
    "exponential": _exponential,
    "one-cycle": _one_cycle,
    "wsd": _wsd,
}


def factors(schedule: str, warmup: float, numbers: np.ndarray, total: int) -> np.ndarray:
    """The factors of some updates.

    Args:
        schedule: one of `SCHEDULES`.
        warmup: share of the budget, from 0, below 1. One-cycle has a warm-up of its own, the first 30% of the budget,
            which becomes this share if that is not 0.
        numbers: of the updates, from 0. Updates beyond the budget have the last factor.
        total: updates of the budget.

    Returns:
        (U,), float64.
    """
    n = np.minimum(numbers, total - 1).astype(np.float64)
    if schedule == "one-cycle":
        return _one_cycle(n, total, warmup or RISE)
    rising = round(warmup * total)
    after = SCHEDULES[schedule](np.maximum(n - rising, 0), max(1, total - rising))
    return np.where(n < rising, (n + 1) / (rising + 1), after)


def factor(schedule: str, warmup: float, number: int, total: int) -> float:
    """The factor of one update, for `torch.optim.lr_scheduler.LambdaLR`; see `factors`."""
    return float(factors(schedule, warmup, np.array([number]), total)[0])
