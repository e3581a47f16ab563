"""Learning rates of a trial: which is best so far, which to add beyond the grid, which to give up."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from trainables.lanes.stack import Stack


def scores(stack: Stack, metric: str, validation_examples: int) -> dict[float, float]:
    """Score of each learning rate on the validation split so far, higher is better; NaN if the rate does not count.

    A rate counts if every seed still trains with it. The score is the mean over seeds of the negative log loss, or of
    the logit accuracy, which is shrunk by half an example so that an accuracy of 1 stays finite.
    """
    values = stack.last.get(("validation", metric), np.full(len(stack.lanes), math.nan)).copy()
    values[list(stack.stopped)] = math.nan
    n = validation_examples
    if metric == "accuracy":
        shaved = (values * n + 0.5) / (n + 1)
        each = np.log(shaved / (1 - shaved))
    else:
        with np.errstate(divide="ignore"):  # a loss of zero has the best score, infinity
            each = -np.log(values)
    rates = np.array([lane.learning_rate for lane in stack.lanes])
    # Sums in another order differ in the last digits, which must not decide between equals.
    return {float(rate): float(f"{each[rates == rate].mean():.12g}") for rate in np.unique(rates)}


def tuned(stacks: Sequence[Stack], metric: str, validation_examples: int) -> tuple[float | None, float]:
    """The best learning rate on the validation split so far, by `scores`, and the metric there.

    Args:
        stacks: with no learning rate in common.
        metric: loss or accuracy.
        validation_examples: in the split.

    Returns:
        The rate, the lower of equals, and the mean score transformed back; None and NaN if no rate counts.
    """
    found = [scores(stack, metric, validation_examples) for stack in stacks]
    finite = {rate: score for each in found for rate, score in each.items() if not math.isnan(score)}
    if not finite:
        return None, math.nan
    rate = max(finite, key=lambda r: (finite[r], -r))
    if metric == "accuracy":
        n = validation_examples
        return rate, float(((n + 1) / (1 + np.exp(-finite[rate])) - 0.5) / n)
    return rate, float(np.exp(-finite[rate]))


def beyond(rates: Sequence[float], tried: Sequence[float], best: float) -> list[float]:
    """Rates to try next: half as many as the grid has, in its spacing, beyond the edge on which the best one lies.

    Args:
        rates: of the original grid.
        tried: all rates so far, including those that diverged.
        best: one of them.

    Returns:
        From the edge outwards; empty if the best is not on an edge, the grid has no spacing, or floats end there.
    """
    low, high, count = min(rates), max(rates), len(set(rates))
    if low == high or min(tried) < best < max(tried):
        return []
    ratio = (high / low) ** (1 / (count - 1))
    steps = [ratio**step for step in range(1, math.ceil(count / 2) + 1)]
    found = [best / step for step in steps] if best == min(tried) else [best * step for step in steps]
    return [rate for rate in found if sys.float_info.min <= rate <= sys.float_info.max]


def rungs(reports: int, rates: int) -> dict[int, int]:
    """Halving's plan, report -> rates to keep: ... 4 at 1/8 of the budget, 2 at 1/4, and 1 at half of it."""
    rounds = math.ceil(math.log2(rates)) if rates > 1 else 0
    found = {math.ceil(reports / 2**part): 2 ** (part - 1) for part in range(rounds, 0, -1)}
    return {report: keep for report, keep in found.items() if report < reports}


def losers(stack: Stack, metric: str, validation_examples: int, keep: int) -> list[int]:
    """The lanes that still train, without those of the best `keep` rates; of equal rates the lower is kept."""
    now = {stack.lanes[lane].learning_rate for lane in stack.alive}
    found = {rate: score for rate, score in scores(stack, metric, validation_examples).items() if rate in now}
    kept = sorted(found, key=lambda rate: (math.isnan(found[rate]), -found[rate], rate))[:keep]
    return [lane for lane in stack.alive if stack.lanes[lane].learning_rate not in kept]
