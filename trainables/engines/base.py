"""The interface of an engine: a way to compute updates of a stack. All agree within lane equality's tolerance."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from trainables.lanes.batches import Batches
from trainables.lanes.stack import Stack
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split


class Engine(ABC):
    """A way to make the updates of a stack.

    Attributes:
        name: one of `catalogue.ENGINES`, or vmap or loop for user models.
        build: what identifies the code that computes, where other builds may round differently; otherwise empty.
        criterion: the loss, and the score if there is one.
    """

    name: str
    build: str = ""
    criterion: Criterion

    @abstractmethod
    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Make the updates from `stack.update` to `stop` of some rows of the stack, in place.

        Returns:
            Each update's losses before it, (updates, rows).
        """

    @abstractmethod
    def evaluate(self, stack: Stack, rows: slice, examples: Split) -> dict[str, Tensor]:
        """Mean loss, and accuracy if there is a score, of some rows on fixed examples, each (rows,), float64."""

    @abstractmethod
    def each(self, stack: Stack, rows: slice, examples: Split, metric: str) -> Tensor | None:
        """The loss, or the score called accuracy, of each example in some rows, (rows, n), float64.

        None if a user's function gives an example another value in another batch.
        """

    @abstractmethod
    def predict(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """The class that some rows predict for each example, and its softmax probability, each (rows, n)."""

    @abstractmethod
    def noise(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """The gradient noise of some rows, estimated on a random sample of examples.

        Both estimates are unbiased, from gradients of batches of two sizes, chunks of the examples and all of them
        (McCandlish et al. 2018, appendix A.1). So either may be negative.

        Returns:
            The squared norm of the gradient's mean, and the trace of its covariance, each (rows,), float64.
        """

    def warm_up(self, stack: Stack, batches: Batches) -> None:
        """Compile, record and import what the updates need, so that it does not count as training.

        By default this makes one update of one lane of a copy.
        """
        scratch = stack.scratch()
        self.advance(scratch, batches, slice(0, 1), scratch.update + 1)
