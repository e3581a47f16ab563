"""The CUDA graph engine: one update is recorded on the GPU and replayed without a call from the host in between."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.engines.eager import Eager, column
from trainables.lanes.batches import Batches
from trainables.lanes.stack import Stack

# Updates that one table on the device serves, and the fewest for which recording pays.
GRAPH_UPDATES = 512
FEWEST_REPLAYS = 8
# The learning rates in the table of coefficients.
_RATE = "learning rate"


class Graph(Eager):
    """Eager's update, recorded as a CUDA graph and replayed.

    The values that change from update to update, the rows of the batch and the coefficients, are read from tables on
    the device at an index that the graph itself increments. An epoch's short last batch is left to `Eager`. Without a
    GPU, the same update runs unrecorded.
    """

    name = "cuda-graph"

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Replay the recorded update."""
        losses, first = [], stack.update
        update, on_gpu = Update(self, stack, batches, rows), stack.parameters.is_cuda
        try:
            while stack.update < stop:
                count = max(1, min(batches.full(stack.update), stop - stack.update, update.most))
                if batches.full(stack.update) < 1 or (on_gpu and stop - first < FEWEST_REPLAYS):
                    count = 1
                    losses.append(super().advance(stack, batches, rows, stack.update + 1))
                else:
                    losses.append(update.replay(count))
                stack.update += count
        finally:
            stack.update = first
        return torch.cat(losses)


class Update:
    """One update of some rows, as a CUDA graph where there is a GPU, and the tables that it reads.

    Args:
        engine: computes the gradients.
        stack: the lanes.
        batches: their batches.
        rows: of the stack.
    """

    def __init__(self, engine: Eager, stack: Stack, batches: Batches, rows: slice) -> None:
        self.engine, self.stack, self.batches, self.rows = engine, stack, batches, rows
        self.parameters = stack.parameters[rows]
        self.leaves, self.adjust = stack.leaves(rows), stack.adjustment(rows)
        self.rates = self.parameters.new_tensor(stack.rates(rows, stack.update, stack.update + 1))[
            0, :, None
        ]  # of a constant one
        self.state = {name: buffer[rows] for name, buffer in stack.state.items()}
        self.values = stack.settings(rows)
        self.settings = {name: column(value, self.parameters) for name, value in self.values.items()}
        device = self.parameters.device
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.most = min(GRAPH_UPDATES, batches.per_epoch)
        # Rows of the batches until the tables are filled again; none where all lanes see the whole split.
        rows_each = 0 if batches.whole else batches.batch_size
        self.order = torch.zeros(len(batches.seeds), self.most, rows_each, dtype=torch.long, device=device)
        self.losses = self.parameters.new_empty(self.most, len(self.parameters))
        self.table: dict[str, Tensor] = {}
        self.recorded: torch.cuda.CUDAGraph | None = None

    def replay(self, count: int) -> Tensor:
        """Make `count` updates, all of one epoch with full batches; returns their losses, (count, k)."""
        first = self.stack.update
        self.place.zero_()
        if not self.batches.whole:
            rows = self.batches.rows(first, count)
            self.order[:, :count] = rows.view(len(rows), count, -1)
        columns = self.stack.rule.coefficients(first + 1, first + count, self.values)
        if self.stack.scheduled:
            columns[_RATE] = self.stack.rates(self.rows, first, first + count)
        for name, values in columns.items():
            if name not in self.table:
                self.table[name] = self.parameters.new_empty(self.most, values.shape[1], 1)
            self.table[name][:count, :, 0] = self.parameters.new_tensor(values)
        if self.recorded is None and self.parameters.is_cuda:
            self._record()
        for _ in range(count):
            if self.recorded is None:
                self._update()
            else:
                self.recorded.replay()
        return self.losses[:count].clone()

    def _update(self) -> None:
        batch = None if self.batches.whole else self.order.index_select(1, self.place)[:, 0]
        loss, found = self.engine.gradient(self.stack, self.leaves, self.batches, batch, self.rows, self.stack.update)
        row = {name: values.index_select(0, self.place)[0] for name, values in self.table.items()}
        if self.adjust:
            self.adjust(self.parameters, found)
        self.stack.rule.step(self.parameters, found, self.state, row.pop(_RATE, self.rates), row, self.settings)
        self.losses.index_copy_(0, self.place, loss[None])
        self.place += 1

    def _record(self) -> None:
        """Record one update after three that warm up; the values that these change are restored."""
        tensors = [self.parameters, *self.state.values(), self.place]
        before = [tensor.clone() for tensor in tensors]
        side = torch.cuda.Stream(self.parameters.device)
        side.wait_stream(torch.cuda.current_stream(self.parameters.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update()
                self.place.zero_()
        torch.cuda.current_stream(self.parameters.device).wait_stream(side)
        self.recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.recorded):
            self._update()
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)
