"""The batches of every lane."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.config import examples_per_epoch, updates_per_epoch
from trainables.lanes.seeds import AUGMENTATION, batch_order, stream
from trainables.lanes.stack import Stack
from trainables.workloads.augment import Augment
from trainables.workloads.data import Split


class Batches:
    """The batches of every lane: each epoch a new order of the training split, drawn from seed and epoch alone.

    Attributes:
        examples: the training split.
        batch_size: examples per update; the last batch of an epoch may be smaller.
        per_epoch: updates in an epoch, without the short one if that is dropped.
        augment: random changes of each example, if any.
        whole: whether every lane sees the same unchanged split, in one batch.
    """

    def __init__(
        self,
        examples: Split,
        batch_size: int,
        stack: Stack,
        augment: Augment | None = None,
        *,
        drop_last: bool = False,
    ) -> None:
        self.examples, self.augment = examples, augment
        self.batch_size = min(batch_size, len(examples))
        used = examples_per_epoch(batch_size, len(examples), drop_last=drop_last)
        self.per_epoch = updates_per_epoch(batch_size, used)
        self.whole = self.batch_size == len(examples) and augment is None
        self.draws = examples.inputs.new_empty(0)
        self.align(stack)

    def align(self, stack: Stack) -> None:
        """Serve the lanes that are still in the stack; call it whenever lanes have left."""
        seeds = [stack.lanes[lane].seed for lane in stack.alive]
        self.seeds = list(dict.fromkeys(seeds))
        self.seed_of_row = torch.tensor([self.seeds.index(seed) for seed in seeds], device=stack.parameters.device)
        self.epoch = -1

    def full(self, update: int) -> int:
        """Full batches that are left in the epoch after this many updates."""
        return len(self.examples) // self.batch_size - update % self.per_epoch

    def rows(self, update: int, count: int = 1) -> Tensor:
        """Rows of the split in the `count` batches after `update` updates, all of one epoch: (seeds, examples)."""
        epoch, place = divmod(update, self.per_epoch)
        if epoch != self.epoch:
            self._shuffle(epoch)
        return self.order[:, place * self.batch_size : (place + count) * self.batch_size]

    def take(self, rows: Tensor, lanes: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (k, n, ...), of k rows of the stack.

        Args:
            rows: of the split for each seed, (seeds, n).
            lanes: rows of the stack.
        """
        seeds = self.seed_of_row[lanes]
        mine = rows[seeds]
        # Selecting whole rows at once is several times faster than indexing with (k, n) numbers.
        x = self.examples.inputs.index_select(0, mine.flatten())
        if self.augment:
            x = self.augment(x, self.draws[seeds[:, None], mine].flatten(0, 1))
        y = self.examples.targets.index_select(0, mine.flatten())
        return x.unflatten(0, mine.shape), y.unflatten(0, mine.shape)

    def _shuffle(self, epoch: int) -> None:
        """Draw an epoch's order, and the numbers for augmentation: per seed, which thousands of lanes may share."""
        count, inputs = len(self.examples), self.examples.inputs
        self.order = torch.stack([batch_order(seed, epoch, count) for seed in self.seeds]).to(inputs.device)
        if self.augment:
            each = [self.augment.draw(stream(seed, AUGMENTATION, epoch), count) for seed in self.seeds]
            draws = torch.stack(each).to(inputs)
            if self.draws.shape == draws.shape:
                self.draws.copy_(draws)  # in place: a recorded CUDA graph reads this memory
            else:
                self.draws = draws
        self.epoch = epoch
