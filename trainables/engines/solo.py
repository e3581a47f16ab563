"""The solo engine: one lane after another, by ordinary torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainables.engines.base import Engine
from trainables.engines.eager import Eager
from trainables.lanes.batches import Batches
from trainables.lanes.reference import set_rate, step
from trainables.lanes.seeds import drawing
from trainables.lanes.stack import Stack
from trainables.rules import EMA
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split
from trainables.workloads.models import trained


class LaneModule:
    """One network that holds the values of one lane at a time: ordinary torch, with hooks, checkpointing and all.

    Args:
        network: on the lanes' device and in their type.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.parameters = network, list(trained(network).values())
        self.frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
        self.buffers = dict(network.named_buffers())

    @torch.no_grad()
    def enter(self, parameters: Sequence[Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take a lane's parameters, each of its shape, and its `Stack.extras`."""
        for own, values in zip(self.parameters, parameters, strict=True):
            own.copy_(values)
        for name, values in extras.items():
            if name in self.frozen:
                self.frozen[name].copy_(values)
                continue
            # The network may have replaced its buffer by another tensor.
            owner, _, leaf = name.rpartition(".")
            self.network.get_submodule(owner)._buffers[leaf] = self.buffers[name].copy_(values)

    @torch.no_grad()
    def leave(self, parameters: Sequence[Tensor], extras: Mapping[str, Tensor]) -> None:
        """Write the network's present values, including buffers that it has replaced, back into the lane's tensors."""
        for values, own in zip(parameters, self.parameters, strict=True):
            values.copy_(own)
        now = dict(self.network.named_buffers())
        for name in extras.keys() - self.frozen.keys():
            if now[name].shape != extras[name].shape:
                raise ValueError(f"the buffer {name} of {tuple(extras[name].shape)} became {tuple(now[name].shape)}")
            extras[name].copy_(now[name])


class Solo(Engine):
    """Lane by lane: for optimizers without a rule, and models whose lanes cannot run at once.

    Args:
        network: one network, on the lanes' device and in their type.
        stacked: an engine that evaluates.
        name: solo, or loop where the model is the reason.
        may_draw: whether the network or the optimizer may draw random numbers.
    """

    def __init__(self, network: nn.Module, stacked: Eager, name: str = "solo", *, may_draw: bool = False) -> None:
        self.lane_module, self.stacked, self.name, self.may_draw = LaneModule(network), stacked, name, may_draw
        self.criterion: Criterion = stacked.criterion

    def advance(self, stack: Stack, batches: Batches, rows: slice, stop: int) -> Tensor:
        """Train each lane until `stop` before the next."""
        losses = stack.parameters.new_empty(stop - stack.update, rows.stop - rows.start)
        network, parameters = self.lane_module.network, self.lane_module.parameters
        network.train()
        for row in range(rows.start, rows.stop):
            place = stack.alive[row]
            lane, extras = stack.lanes[place], {name: extra[row] for name, extra in stack.extras.items()}
            own = [leaf.detach()[0] for leaf in stack.leaves(slice(row, row + 1))]
            average = stack.split(stack.state[EMA][row : row + 1]) if EMA in stack.state else []
            self.lane_module.enter(own, extras)
            optimizers = self._optimizers(stack, parameters, place)
            rates = lane.rates(stack.update, stop, stack.total) if lane.scheduled else None
            for update in range(stack.update, stop):
                if rates is not None:
                    set_rate(optimizers, float(rates[update - stack.update]))
                x, y = batches.take(batches.rows(update), slice(row, row + 1))

                def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
                    return self.criterion.training_losses(network(x[0])[None], y).mean()

                with drawing(lane.seed, update, x.device, when=self.may_draw):
                    losses[update - stack.update, row - rows.start] = step(network, optimizers, loss, lane.recipe)
                for mean, now in zip(average, parameters, strict=bool(average)):
                    mean[0].lerp_(now.detach(), 1 - (lane.recipe.ema or 0.0) if update else 1.0)
            self.lane_module.leave(own, extras)
            stack.solo[place] = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
        return losses

    def evaluate(self, stack: Stack, rows: slice, examples: Split) -> dict[str, Tensor]:
        """Evaluate all lanes together where possible."""
        return self.stacked.evaluate(stack, rows, examples)

    def each(self, stack: Stack, rows: slice, examples: Split, metric: str) -> Tensor | None:
        """Evaluate all lanes together where possible."""
        return self.stacked.each(stack, rows, examples, metric)

    def predict(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """Predict for all lanes together where possible."""
        return self.stacked.predict(stack, rows, examples)

    def noise(self, stack: Stack, rows: slice, examples: Split) -> tuple[Tensor, Tensor]:
        """Differentiate all lanes together where possible."""
        return self.stacked.noise(stack, rows, examples)

    @staticmethod
    def _optimizers(stack: Stack, parameters: list[nn.Parameter], lane: int) -> list[torch.optim.Optimizer]:
        """The lane's optimizers in their present state."""
        mine = stack.lanes[lane]
        found = stack.rule.reference(parameters, mine.learning_rate, mine.options())
        for optimizer, state in zip(found, stack.solo.get(lane, []), strict=False):
            optimizer.load_state_dict(copy.deepcopy(state))  # the optimizer changes the tensors that it loads
        return found
