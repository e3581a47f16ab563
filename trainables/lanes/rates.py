"""Settings of a trial: which is best so far, which learning rates to try next, which to give up."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainables.config import TrialConfig
from trainables.lanes.stack import Setting, Stack
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data

# Losses that differ by less than this share are equal: sums in another order differ in the last digits, which must not
# decide. Accuracies are equal that differ by less than two validation examples. `analysis.statistics` has both.
EQUAL, RESOLVED = 1e-12, 2
# A gain in the score (2% of a loss) that is not worth two more rates.
NEGLIGIBLE = 0.02
EXTENSION, REFINEMENT = "extension", "refinement"


@dataclass(frozen=True)
class Measure:
    """The scale on which learning rates are compared: higher scores are better.

    Attributes:
        metric: loss or accuracy, on the validation split.
        examples: in that split.
        floor: losses below it count as it.
    """

    metric: str
    examples: int
    floor: float = sys.float_info.min

    @classmethod
    def of(cls, config: TrialConfig, data: Data, criterion: Criterion) -> Measure:
        """The measure of a trial."""
        return cls(config.metric, len(data.validation), criterion.floor(data.train))

    @property
    def step(self) -> float:
        """Accuracies that differ by less are equal."""
        return RESOLVED / self.examples - EQUAL

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Negative logarithms of losses, or log-odds of accuracies; NaN stays NaN.

        Log-odds are shrunk by half an example, so that an accuracy of 1 stays finite.
        """
        if self.metric == "loss":
            return np.asarray(-np.log(np.maximum(values, self.floor)))
        shrunk = (values * self.examples + 0.5) / (self.examples + 1)
        return np.asarray(np.log(shrunk / (1 - shrunk)))

    def value(self, score: float) -> float:
        """The metric that has a score."""
        if self.metric == "loss":
            with np.errstate(over="ignore"):  # rounding may lead beyond the largest float
                return float(np.exp(-score))
        value = ((self.examples + 1) / (1 + math.exp(-score)) - 0.5) / self.examples
        return min(max(value, 0.0), 1.0)


def seed_scores(stacks: Sequence[Stack], measure: Measure) -> dict[Setting, np.ndarray]:
    """Scores so far of each setting, (seeds,); NaN where a seed no longer trains. Recipes are in the lanes' order.

    Args:
        stacks: with no setting in common.
        measure: of the trial.
    """
    found: dict[Setting, list[float]] = {}
    for stack in stacks:
        values = stack.last.get(("validation", measure.metric), np.full(len(stack.lanes), math.nan)).copy()
        values[list(stack.stopped)] = math.nan
        for lane, score in zip(stack.lanes, measure.scores(values), strict=True):
            found.setdefault(lane.setting, []).append(float(score))
    return {setting: np.array(scores) for setting, scores in found.items()}


def ranked(stacks: Sequence[Stack], measure: Measure) -> dict[Setting, float]:
    """The settings that count, best first, with their metric.

    A setting counts if every seed still trains with it. Its metric is the mean score over seeds, transformed back. Of
    accuracies that differ by less than `RESOLVED` examples the one with the lower loss is best. Of those, or of equal
    losses, the first recipe is, and of its rates the middle one; of an even number the lower of the two in the middle.
    `analysis.rates` has the same rule.
    """
    means = {setting: float(scores.mean()) for setting, scores in seed_scores(stacks, measure).items()}
    recipes = list(dict.fromkeys(setting.recipe for setting in means))
    order = sorted(means, key=lambda setting: (recipes.index(setting.recipe), setting.learning_rate))
    values = {setting: measure.value(means[setting]) for setting in order if not math.isnan(means[setting])}
    losses = {
        setting: float(np.nan_to_num(-scores.mean(), nan=math.inf))
        for setting, scores in seed_scores(stacks, replace(measure, metric="loss")).items()
    }
    found: dict[Setting, float] = {}
    while remaining := [setting for setting in values if setting not in found]:
        if measure.metric == "accuracy":
            highest = max(values[setting] for setting in remaining)
            remaining = [setting for setting in remaining if highest - values[setting] < measure.step]
        lowest = min(losses[setting] for setting in remaining)
        tied = [setting for setting in remaining if losses[setting] <= lowest + EQUAL]  # logarithms
        tied = [setting for setting in tied if setting.recipe == tied[0].recipe]
        best = tied[(len(tied) - 1) // 2]
        found[best] = values[best]
    return found


def tuned(stacks: Sequence[Stack], measure: Measure) -> tuple[Setting | None, float]:
    """The best setting so far, by `ranked`, and the metric there; None and NaN if no setting counts."""
    return next(iter(ranked(stacks, measure).items()), (None, math.nan))


def next_round(stacks: Sequence[Stack], measure: Measure, *, extensions: int, refine: int) -> tuple[str, list[Setting]]:
    """The settings to try after those of the stacks, and the name of their round: "refinement 2", for example.

    They are further rates of the best recipe. The grid is extended while its best rate lies on the edge, then refined
    around the best one while the grid costs more than the seeds' scatter. It depends on the stacks' results alone, so
    that a resumed trial decides the same.

    Args:
        stacks: all so far; they have used their budget.
        measure: of the trial.
        extensions: at most.
        refine: refinements at most.

    Returns:
        Empty text and no settings if tuning ends here.
    """
    order = ranked(stacks, measure)
    if not order:
        return "", []
    best, highest = next(iter(order)), max(order.values())
    if measure.metric == "accuracy" and sum(highest - value < measure.step for value in order.values()) > 1:
        measure = replace(measure, metric="loss")  # which chose the best one of equal accuracies
    grid = [lane.learning_rate for lane in stacks[0].lanes]
    scores = {s.learning_rate: each for s, each in seed_scores(stacks, measure).items() if s.recipe == best.recipe}
    extended, refined = (sum(s.round.startswith(kind) for s in stacks) for kind in (EXTENSION, REFINEMENT))
    name, rates = "", beyond(grid, list(scores), best.learning_rate) if extended < extensions and not refined else []
    if rates:
        name = f"{EXTENSION} {extended + 1}"
    elif refined < refine and (near := between(grid, list(scores), best.learning_rate, refined + 1)):
        gain, error = grid_loss(scores, best.learning_rate)
        # A confirmation has more seeds, and would tell equal optimizers apart by what the grid costs.
        if gain > max(min(error / 2, NEGLIGIBLE), EQUAL):
            name, rates = f"{REFINEMENT} {refined + 1}", near
    return name, [Setting(rate, best.recipe) for rate in rates]


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


def between(rates: Sequence[float], tried: Sequence[float], best: float, number: int) -> list[float]:
    """Rates to try next: the neighbours of the best one at 1/2, 1/4 ... of the grid's spacing on a log scale.

    Args:
        rates: of the original grid.
        tried: all rates so far, including those that diverged.
        best: one of them.
        number: of the refinement, 1 for half the spacing.

    Returns:
        At most two, within the range tried: what lies beyond is for extensions.
    """
    low, high, count = min(rates), max(rates), len(set(rates))
    if low == high:
        return []
    step = math.exp((math.log(high) - math.log(low)) * 0.5**number / (count - 1))
    found = [rate for rate in (best / step, best * step) if min(tried) < rate < max(tried)]
    return [rate for rate in found if not any(math.isclose(rate, other, rel_tol=1e-9) for other in tried)]


def grid_loss(scores: dict[float, np.ndarray], best: float) -> tuple[float, float]:
    """By how much the best rate could still gain between the rates tried, and the standard error to compare it with.

    The gain is that of the vertex of the parabola through the best rate and its two neighbours, in the logarithm of the
    rate. The error is that of the paired difference between the best rate and its better neighbour, because seeds are
    shared: what all rates have in common, such as a seed's initialisation, hides no difference between rates, nor one
    between optimizers.

    Args:
        scores: learning rate -> (seeds,) of all rates tried, NaN where a seed no longer trains.
        best: the best rate.

    Returns:
        Both in units of the score. The gain is infinite where a neighbour is missing, diverged or was given up; the
        error of a single seed is 0.
    """
    rates, own = sorted(scores), scores[best]
    place = rates.index(best)
    sides = [scores[rates[side]] for side in (place - 1, place + 1) if 0 <= side < len(rates)]
    if len(sides) < 2 or any(np.isnan(side).any() for side in sides):
        return math.inf, 0.0
    below, above = (float(side.mean()) for side in sides)
    bend = 2 * float(own.mean()) - below - above
    gain = (above - below) ** 2 / (8 * bend) if bend > EQUAL else 0.0
    differences = own - (sides[0] if below > above else sides[1])
    error = float(differences.std(ddof=1)) / math.sqrt(len(own)) if len(own) > 1 else 0.0
    return gain, error


def rungs(reports: int, rates: int) -> dict[int, int]:
    """Halving's plan, report -> rates to keep of each recipe: ... 4 at 1/8 of the budget, 2 at 1/4, 1 at half of it."""
    rounds = math.ceil(math.log2(rates)) if rates > 1 else 0
    found = {math.ceil(reports / 2**part): 2 ** (part - 1) for part in range(rounds, 0, -1)}
    return {report: keep for report, keep in found.items() if report < reports}


def losers(stack: Stack, measure: Measure, keep: int) -> list[int]:
    """The lanes that still train, without those of the best `keep` rates of each recipe, by `ranked`.

    Recipes do not compete before the end: a schedule that lowers the rate late is behind until then.
    """
    order, alive = ranked([stack], measure), {stack.lanes[lane].setting for lane in stack.alive}
    kept: set[Setting] = set()
    for recipe in {setting.recipe for setting in alive}:
        mine = [setting for setting in order if setting.recipe == recipe]
        now = sorted(setting for setting in alive - order.keys() if setting.recipe == recipe)
        kept |= {*[*mine, *now][:keep]}
    return [lane for lane in stack.alive if stack.lanes[lane].setting not in kept]
