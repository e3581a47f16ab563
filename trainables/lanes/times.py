"""The updates at which training pauses to evaluate or to report."""

from __future__ import annotations

import math

from trainables.config import Budget, Recording, examples_per_epoch, updates_per_epoch
from trainables.lanes.stack import Stack

# Multiplications per lane that evaluation may take beyond its share of training: some hundredths of a second.
FREE_MULTIPLICATIONS = 3e8


def spent(budget: Budget, stack: Stack) -> bool:
    """Whether a stack has used the whole budget or has no lane left."""
    return stack.reports >= budget.reports or not stack.alive


class EvaluationTimes:
    """The updates at which lanes are evaluated: 0, the end of each report's part, and a series in between.

    The series is 1, 2, 3, 4, 6, 8, 12, 16 ... or every second, fourth ... of these: as many as keep the cost of
    evaluation within a share of training, beyond `FREE_MULTIPLICATIONS`.

    Args:
        budget: how long lanes train, not in seconds (`Budget.in_updates`).
        batch_size: examples per update.
        training_examples: in the split.
        evaluated: examples that one evaluation passes forward.
        multiplications: of one network for one example.
        share: of training's multiplications that evaluation may take.
    """

    def __init__(
        self,
        budget: Budget,
        batch_size: int,
        training_examples: int,
        *,
        evaluated: int = 0,
        multiplications: int = 1,
        share: float = Recording.evaluation_share,
    ) -> None:
        self.budget = budget
        self.epoch_examples = examples_per_epoch(batch_size, training_examples, drop_last=budget.drop_last)
        self.batch_size = min(batch_size, training_examples)
        self.per_epoch = updates_per_epoch(batch_size, self.epoch_examples)
        total = budget.total_updates(batch_size, training_examples)
        assert total is not None
        self.total: int = total
        # An update passes an example forward once, and backward at the price of two more passes.
        affordable = 3 * share * self.progress(self.total)[0] + FREE_MULTIPLICATIONS / multiplications
        ends = {self.end(part) for part in range(budget.reports + 1)}
        self.every = 1
        while len(ends | set(self.series())) * evaluated > affordable and len(self.series()) > 1:
            self.every *= 2

    def series(self) -> list[int]:
        """The updates in between, up to the end of the budget."""
        powers = [1 << exponent for exponent in range(1, 62)]
        stops = [1, *(stop for power in powers for stop in (power, power + power // 2))][:: self.every]
        return [stop for stop in stops if stop <= self.total]

    def end(self, part: int) -> int:
        """Updates made after this many reports."""
        return -(-self.total * part // self.budget.reports)

    def next_stop(self, stack: Stack) -> int | None:
        """The update at which to pause next, or None if the next report is due."""
        made, part = stack.update, stack.reports + 1
        following = next((stop for stop in self.series() if stop > made), math.inf)
        end = self.end(part)
        return int(min(following, end)) if made < end else None

    def progress(self, update: int) -> tuple[int, float]:
        """Training examples used, and epochs, after this many updates."""
        epochs, rest = divmod(update, self.per_epoch)
        # The last batch of an epoch may be short, so a whole epoch is counted by its examples.
        examples = epochs * self.epoch_examples + rest * self.batch_size
        return examples, examples / self.epoch_examples
