"""The loss of outputs, and a score from 0 to 1, called accuracy: for classes, or by a user's function."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.usercode.importing import EXPECTED, UserCodeError, describe_error, function
from trainables.workloads.catalogue import Task
from trainables.workloads.data import Split


@dataclass(frozen=True)
class Criterion:
    """A loss and a score of each example.

    Attributes:
        task: squared error, averaged over outputs, or cross-entropy in nats and the share of correct classes.
        loss, score: import paths of a user's, which replace the task's.
        code: folder of the user code's bundle.
        smoothing: share of the label that all classes share equally in training, as torch.nn.CrossEntropyLoss has it.
    """

    task: Task
    loss: str = ""
    score: str = ""
    code: str = ""
    smoothing: float = 0.0

    @property
    def scored(self) -> bool:
        """Whether there is a score."""
        return bool(self.score) or self.task == "classification"

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Loss of each example in each lane, (K, B).

        Args:
            outputs: (K, B, out_features).
            targets: (K or 1, B, out_features) for regression, class numbers (K or 1, B) for classification.
            smoothing: of labels, for the cross-entropy.
        """
        if self.loss:
            return self._each(self.loss, "loss", outputs, targets)
        if self.task == "regression":
            return (outputs - targets).square().mean(2)
        lanes, batch, classes = outputs.shape
        labels, logits = targets.expand(lanes, batch).reshape(-1), outputs.reshape(-1, classes)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing).view(lanes, batch)

    def training_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The losses whose mean is differentiated: with smoothed labels; the arguments are those of `losses`."""
        return self.losses(outputs, targets, self.smoothing)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Score of each example in each lane, (K, B), floating or boolean; the arguments are those of `losses`."""
        if self.score:
            return self._each(self.score, "score", outputs, targets)
        return outputs.argmax(2) == targets

    def each(self, metric: str, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Loss or score of each example, (K, B), float64; None if a user's function mixes the examples of a batch.

        Args:
            metric: loss or accuracy.
            outputs: (K, B, out_features).
            targets: as for `losses`.
        """
        judge, path = (self.losses, self.loss) if metric == "loss" else (self.scores, self.score)
        found = judge(outputs, targets).double()
        if path:  # a function that averages, or weights by the batch, gives an example alone another value
            alone = judge(outputs[:1, :1], targets[:1, :1]).double()
            if not torch.allclose(alone, found[:1, :1], rtol=1e-4, atol=1e-6, equal_nan=True):
                return None
        return found

    def floor(self, train: Split) -> float:
        """The smallest loss that the precision resolves; smaller ones differ by rounding alone and count as it.

        Squared errors are resolved to the square of the dtype's epsilon, in variances of the targets, and cross-entropy
        to epsilon. Of a user's loss nothing is known: the smallest normal double.

        Args:
            train: the training split, in the trial's dtype.
        """
        epsilon, floor = torch.finfo(train.inputs.dtype).eps, sys.float_info.min
        if self.loss:
            return floor
        if self.task == "classification":
            return epsilon
        return max(epsilon**2 * train.targets.double().var(0, correction=0).mean().item(), floor)

    def refuse(self, metric: str, means: np.ndarray) -> None:
        """Refuse values of a user's loss or score by which lanes cannot be compared.

        Args:
            metric: loss or accuracy.
            means: over examples, of each lane.

        Raises:
            UserCodeError: if a loss is negative, or a score is not from 0 to 1.
        """
        path = self.loss if metric == "loss" else self.score if metric == "accuracy" else ""
        bad = means[(means < 0) | ((means > 1) if metric == "accuracy" else False)]
        if path and len(bad):
            what = "loss" if metric == "loss" else "score"
            raise UserCodeError(f"{path}: gives a mean of {bad[0]:g} in training; expected {EXPECTED[what]}")

    def _each(self, path: str, what: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """A user's loss or score of all lanes' examples, (K, B), computed as one batch of K B examples."""
        lanes, count = outputs.shape[:2]
        targets = targets.expand(lanes, *targets.shape[1:]).flatten(0, 1)
        return called_on(path, what, outputs.flatten(0, 1), targets, self.code).view(lanes, count)


def called_on(path: str, what: str, outputs: Tensor, targets: Tensor, code: str = "") -> Tensor:
    """A user's loss or score of n examples, (n,).

    Args:
        path: import path.
        what: loss or score.
        outputs: (n, out_features).
        targets: (n, ...).
        code: folder of the bundle.

    Raises:
        UserCodeError: if it raises, or returns something else.
    """
    made = function(path, what, code)
    try:
        found = made(outputs, targets)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason, given = describe_error(error, path.partition(":")[0]), f"outputs {tuple(outputs.shape)} and targets"
        raise UserCodeError(f"{path}: called with {given} {tuple(targets.shape)}, it raised {reason}") from error
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (len(outputs),):
        summed = what == "loss" and shape == ()
        advice = ', as torch\'s own give with reduction="none"' if summed else ", a tensor"
        raise UserCodeError(f"{path}: gave {shape} for {len(outputs)} examples; expected {EXPECTED[what]}{advice}")
    return found  # type: ignore[no-any-return]
