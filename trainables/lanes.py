"""Lanes: many configurations of one cell trained together as one program.

The K networks of a trial differ in learning rate and seed only, so their parameters are stacked on a leading axis and
each update is one forward and one backward pass for all of them. A lane computes what its configuration computes alone
with torch.optim. Lanes with equal seeds share initialisation and batches, so comparisons between them are paired.

Read `train` first; it is the whole loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.data import Data, Split, Task
from trainables.models import activations, multiplications
from trainables.rules import Rule, State

# What one block of examples may leave behind in a forward pass: about a core's cache, or a modest part of a GPU.
BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
# Reports of a trial whose budget is not in epochs.
REPORTS = 10
# Training examples on which the loss is followed.
TRAIN_SUBSET = 1000
# Evaluating may cost this share of training, plus so many multiplications a lane (some hundredths of a second).
EVALUATION_SHARE = 1 / 3
FREE_MULTIPLICATIONS = 3e8

Builder = Callable[[], nn.Sequential]
Forward = Callable[[Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Lane:
    """One configuration: a learning rate, and the seed of its initialisation and batches."""

    learning_rate: float
    seed: int


def grid(low: float, high: float, count: int, seeds: Sequence[int]) -> list[Lane]:
    """Lanes for `count` learning rates, evenly spaced on a log scale from low to high, times seeds."""
    rates = np.geomspace(low, high, count).tolist() if count > 1 else [low]
    return [Lane(rate, seed) for rate in rates for seed in seeds]


@dataclass(frozen=True)
class Budget:
    """How long every lane trains: one of epochs, updates, examples or seconds.

    Attributes:
        epochs, updates, examples, seconds: the limit; seconds are of training, evaluation excluded.
        min_updates: updates to make even so, for batches so large that the budget would end at once.
    """

    epochs: int | None = None
    updates: int | None = None
    examples: int | None = None
    seconds: float | None = None
    min_updates: int = 0

    def total_updates(self, batch_size: int, training_examples: int) -> int | None:
        """Updates in the budget; None if it is in seconds."""
        per_epoch = updates_per_epoch(batch_size, training_examples)
        if self.seconds is not None:
            return None
        if self.epochs is not None:
            total = self.epochs * per_epoch
        elif self.examples is not None:
            whole, rest = divmod(self.examples, training_examples)
            total = whole * per_epoch + math.ceil(rest / batch_size)
        else:
            assert self.updates is not None
            total = self.updates
        return max(total, self.min_updates, 1)

    @property
    def reports(self) -> int:
        """Reports in which a trial spends its budget, evenly: one per epoch, or `REPORTS`."""
        return self.epochs or min(REPORTS, self.updates or REPORTS)


@dataclass(frozen=True)
class Point:
    """One evaluation of the lanes that still train.

    Attributes:
        update, examples, epoch, train_seconds: how far training had come; seconds are of the whole stack.
        lanes: (k,) places of the lanes in the trial.
        values: (split, metric) -> (k,) values. Splits are train (a fixed subset of `TRAIN_SUBSET` examples),
            validation, and batch: the mean loss of the batches since the previous point, each before its update.
    """

    update: int
    examples: int
    epoch: float
    train_seconds: float
    lanes: list[int]
    values: dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Report:
    """What a trial tells after each part of its budget.

    Attributes:
        number: 1 for the first.
        examples, epoch: how far training had come.
        points: the evaluations since the last report.
        finished: whether the budget is spent, or no lane is left.
    """

    number: int
    examples: int
    epoch: float
    points: list[Point]
    finished: bool


@dataclass
class Stack:
    """K networks side by side, and how far each has come. This is all that a checkpoint holds.

    Attributes:
        lanes: all lanes of the trial, L of them.
        alive: (K,) places in `lanes` of those that still train; the rows of the tensors below.
        parameters: (K, P), each row one network.
        state: the rule's buffers, each (K, P).
        shapes: shape of each parameter, in the module's order.
        update: updates made.
        reports: reports made.
        seconds: seconds of training of the whole stack.
        diverged: lane -> first update whose loss was not finite.
        updates, train_seconds, shares: (L,) per lane: updates (the good ones, if it diverged), seconds it was in the
            stack, its share of them.
        last: (split, metric) -> (L,) last values, NaN where there are none.
    """

    lanes: list[Lane]
    alive: list[int]
    parameters: Tensor
    state: State
    shapes: list[torch.Size]
    update: int = 0
    reports: int = 0
    seconds: float = 0.0
    diverged: dict[int, int] = field(default_factory=dict)
    updates: np.ndarray = field(init=False)
    train_seconds: np.ndarray = field(init=False)
    shares: np.ndarray = field(init=False)
    last: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.updates = np.zeros(len(self.lanes), dtype=np.int64)
        self.train_seconds = np.zeros(len(self.lanes))
        self.shares = np.zeros(len(self.lanes))

    @classmethod
    def build(
        cls, build: Builder, lanes: Sequence[Lane], rule: Rule, dtype: torch.dtype, device: torch.device
    ) -> Stack:
        """Initialise every lane's network from its seed.

        Args:
            build: makes one network from torch's global generator.
            lanes: the L configurations.
            rule: the optimizer.
            dtype: type of the parameters; initial values are drawn in torch's default type whatever it is.
            device: where the stack stays.
        """
        rows = {seed: initialise(build, seed) for seed in dict.fromkeys(lane.seed for lane in lanes)}
        flat = {
            seed: torch.cat([p.detach().to(dtype).flatten() for p in net.parameters()]) for seed, net in rows.items()
        }
        parameters = torch.stack([flat[lane.seed] for lane in lanes]).to(device)
        shapes = [p.shape for p in next(iter(rows.values())).parameters()]
        return cls(list(lanes), list(range(len(lanes))), parameters, rule.state(parameters), shapes)

    def leaves(self) -> list[Tensor]:
        """The parameters one by one, (K, *shape), as views that share memory with `parameters` and ask gradients."""
        leaves, start = [], 0
        for shape in self.shapes:
            size = shape.numel()
            view = self.parameters[:, start : start + size].view(-1, *shape)
            leaves.append(view.detach().requires_grad_())
            start += size
        return leaves

    def rates(self) -> Tensor:
        """Learning rates of the lanes that still train, (K, 1)."""
        return self.parameters.new_tensor([[self.lanes[lane].learning_rate] for lane in self.alive])

    def drop(self, first_bad: dict[int, int]) -> None:
        """Take diverged lanes out of the stack: lane -> first update whose loss was not finite."""
        self.diverged |= first_bad
        for values in self.last.values():
            values[list(first_bad)] = math.nan
        for lane, update in first_bad.items():
            self.updates[lane] = update - 1
        rows = [row for row, lane in enumerate(self.alive) if lane not in first_bad]
        self.alive = [self.alive[row] for row in rows]
        self.parameters = self.parameters[rows]
        self.state = {name: buffer[rows] for name, buffer in self.state.items()}

    def spend(self, seconds: float) -> None:
        """Charge seconds of training to the stack and, in equal shares, to the lanes in it."""
        self.seconds += seconds
        self.updates[self.alive] = self.update
        self.train_seconds[self.alive] = self.seconds
        self.shares[self.alive] += seconds / len(self.alive)

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors, numbers, strings, lists and dicts, for `torch.save`."""
        return {
            "lanes": [(lane.learning_rate, lane.seed) for lane in self.lanes],
            "alive": self.alive,
            "parameters": self.parameters,
            "state": self.state,
            "counters": {"update": self.update, "reports": self.reports, "seconds": self.seconds},
            "diverged": self.diverged,
            "per_lane": {name: torch.from_numpy(getattr(self, name)) for name in _PER_LANE},
            "last": {"/".join(key): torch.from_numpy(values) for key, values in self.last.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; the stack must have been built for the same trial.

        Raises:
            ValueError: if the lanes are others.
        """
        if saved["lanes"] != [(lane.learning_rate, lane.seed) for lane in self.lanes]:
            raise ValueError("the checkpoint belongs to a trial with other lanes")
        device = self.parameters.device
        self.alive = saved["alive"]
        self.parameters = saved["parameters"].to(device)
        self.state = {name: buffer.to(device) for name, buffer in saved["state"].items()}
        self.update, self.reports = saved["counters"]["update"], saved["counters"]["reports"]
        self.seconds, self.diverged = saved["counters"]["seconds"], saved["diverged"]
        for name in _PER_LANE:
            setattr(self, name, saved["per_lane"][name].numpy())
        self.last = {_key(name): values.numpy() for name, values in saved["last"].items()}


_PER_LANE = ("updates", "train_seconds", "shares")


def train(stack: Stack, build: Builder, data: Data, rule: Rule, batch_size: int, budget: Budget) -> Iterator[Report]:
    """Train every lane of a stack, in place, and report after each part of the budget.

    Args:
        stack: the lanes; a stack restored from a checkpoint goes on where that was made, bit for bit.
        build: makes one network of the family, as for `Stack.build`.
        data: on the stack's device, in its type.
        rule: the optimizer.
        batch_size: examples per update; the last batch of an epoch may be smaller.
        budget: how long.

    Yields:
        Report: `budget.reports` of them, fewer if every lane diverges.
    """
    network = build()
    forward = stacked(network)
    block = block_size(activations(network, data.in_shape), stack)
    batches = Batches(data.train, batch_size, stack)
    subset = data.train.head(TRAIN_SUBSET)
    schedule = Schedule(
        budget,
        batch_size,
        len(data.train),
        evaluated=len(subset) + len(data.validation),
        multiplications=multiplications(network, data.in_shape),
    )

    def evaluate(batch_losses: Tensor | None) -> list[Point]:
        """The point at which training stands; none if no lane is left. A lane without a finite value has diverged."""
        values = {
            (split, metric): numbers
            for split, part in (("train", subset), ("validation", data.validation))
            for metric, numbers in evaluation(forward, stack.leaves(), part, data.task, block).items()
        }
        if batch_losses is not None:
            values["batch", "loss"] = batch_losses.mean(0, dtype=torch.float64)
        table = torch.stack(list(values.values())).cpu().numpy()
        finite = np.isfinite(table).all(0)
        if not finite.all():
            drop({lane: stack.update + 1 for lane, good in zip(stack.alive, finite, strict=True) if not good})
        columns = dict(zip(values, table[:, finite], strict=True))
        for key, numbers in columns.items():
            stack.last.setdefault(key, np.full(len(stack.lanes), math.nan))[stack.alive] = numbers
        examples, epoch = schedule.progress(stack.update)
        point = Point(
            stack.update, examples, epoch, stack.seconds, list(stack.alive), {k: v.tolist() for k, v in columns.items()}
        )
        return [point] if stack.alive else []

    def drop(first_bad: dict[int, int]) -> None:
        stack.drop(first_bad)
        batches.align(stack)

    points = evaluate(None) if stack.update == 0 else []
    while stack.reports < budget.reports and stack.alive:
        while stack.alive and (stop := schedule.next_stop(stack)):
            losses = advance(stack, forward, batches, data.task, rule, stop, block)
            if first_bad := _not_finite(losses, stack):
                losses = losses[:, [lane not in first_bad for lane in stack.alive]]
                drop(first_bad)
            if stack.alive:
                points += evaluate(losses)
        stack.reports += 1
        finished = stack.reports == budget.reports or not stack.alive
        if finished and stack.alive:
            for metric, numbers in evaluation(forward, stack.leaves(), data.test, data.task, block).items():
                stack.last["test", metric] = np.full(len(stack.lanes), math.nan)
                stack.last["test", metric][stack.alive] = numbers.tolist()
        yield Report(stack.reports, *schedule.progress(stack.update), points, finished)
        points = []


def advance(stack: Stack, forward: Forward, batches: Batches, task: Task, rule: Rule, stop: int, block: int) -> Tensor:
    """Make updates until `stop`, the timed region; returns each update's losses before it, (updates, K)."""
    leaves, rates, first = stack.leaves(), stack.rates(), stack.update
    losses = stack.parameters.new_empty(stop - first, len(stack.alive))
    started = time.perf_counter()
    while stack.update < stop:
        batch = batches(stack.update)
        losses[stack.update - first], gradients = gradient(forward, leaves, batches.examples, batch, task, block)
        stack.update += 1
        rule.step(stack.parameters, gradients, stack.state, stack.update, rates)
    if stack.parameters.is_cuda:
        torch.cuda.synchronize(stack.parameters.device)
    stack.spend(time.perf_counter() - started)
    return losses


def gradient(
    forward: Forward, leaves: Sequence[Tensor], examples: Split, batch: Tensor | None, task: Task, block: int
) -> tuple[Tensor, Tensor]:
    """Losses and gradients of all lanes for one batch, blocks of examples at a time.

    Args:
        forward: the stacked forward pass.
        leaves: the parameters, each (K, *shape).
        examples: the training split.
        batch: rows of the split for each lane, (K, B); None if all lanes see the whole split, which is then not copied.
        task: regression or classification.
        block: examples at a time.

    Returns:
        Mean losses over the batch, (K,), and their gradients, (K, P).
    """
    blocks: Iterable[tuple[Tensor, Tensor]]
    if batch is None:
        count = len(examples)
        blocks = zip(examples.inputs[None].split(block, 1), examples.targets[None].split(block, 1), strict=True)
    else:
        count = batch.shape[1]
        blocks = ((examples.inputs[rows], examples.targets[rows]) for rows in batch.split(block, 1))
    losses = gradients = None
    for x, y in blocks:
        loss = example_losses(forward(leaves, x), y, task).sum(1) / count
        parts = torch.autograd.grad(loss.sum(), leaves)
        flat = torch.cat([part.flatten(1) for part in parts], 1)
        losses = loss.detach() if losses is None else losses + loss.detach()
        gradients = flat if gradients is None else gradients.add_(flat)
    assert losses is not None
    assert gradients is not None
    return losses, gradients


def example_losses(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Loss of each example in each lane, (K, B).

    Args:
        outputs: (K, B, out_features).
        targets: (K or 1, B, out_features) for regression, class numbers (K or 1, B) for classification.
        task: squared error, meaned over out_features, or cross-entropy in nats.
    """
    if task == "regression":
        return (outputs - targets).square().mean(2)
    lanes, batch, classes = outputs.shape
    labels = targets.expand(lanes, batch).reshape(-1)
    return F.cross_entropy(outputs.reshape(-1, classes), labels, reduction="none").view(lanes, batch)


@torch.no_grad()
def evaluation(
    forward: Forward, leaves: Sequence[Tensor], examples: Split, task: Task, block: int
) -> dict[str, Tensor]:
    """Mean loss, and accuracy of a classification, of every lane on fixed examples, each (K,), float64."""
    loss = torch.zeros(len(leaves[0]), dtype=torch.float64, device=leaves[0].device)
    correct = torch.zeros_like(loss)
    for x, y in zip(examples.inputs.split(block), examples.targets.split(block), strict=True):
        outputs = forward(leaves, x[None])
        loss += example_losses(outputs, y[None], task).sum(1, dtype=torch.float64)
        if task == "classification":
            correct += (outputs.argmax(2) == y).sum(1)
    found = {"loss": loss / len(examples)}
    if task == "classification":
        found["accuracy"] = correct / len(examples)
    return found


def stacked(network: nn.Sequential) -> Forward:
    """The forward pass of K networks at once, layer by layer of one of them.

    Returns:
        (parameters, each (K, *shape), inputs (K or 1, B, *in_shape)) -> outputs (K, B, out_features).

    Raises:
        TypeError: if a layer is none that lanes know.
    """
    layers = list(network)
    for layer in layers:
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.Flatten):
            raise TypeError(f"lanes cannot stack the layer {layer}; they know Linear, Conv2d, ReLU, MaxPool2d, Flatten")

    def forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        left = iter(parameters)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight, bias = next(left), next(left)
                x = torch.baddbmm(bias.unsqueeze(1), x.expand(len(weight), -1, -1), weight.transpose(1, 2))
            elif isinstance(layer, nn.Conv2d):
                x = _convolution(x, next(left), next(left), layer)
            elif isinstance(layer, nn.MaxPool2d):
                x = _unfold_lanes(F.max_pool2d(_fold_lanes(x), layer.kernel_size), len(x))
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(2)
            else:
                x = x.relu()
        return x

    return forward


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, layer: nn.Conv2d) -> Tensor:
    """Each lane's convolution of its own images, as groups; of shared images, (1, B, ...), as one wide convolution."""
    lanes = len(weight)
    y = F.conv2d(
        _fold_lanes(x),
        weight.flatten(0, 1),
        bias.flatten(),
        stride=layer.stride,
        padding=layer.padding,
        groups=len(x),
    )
    return _unfold_lanes(y, lanes)


def _fold_lanes(x: Tensor) -> Tensor:
    """(K, B, C, H, W) -> (B, K C, H, W); no copy of what `_unfold_lanes` gave."""
    return x.transpose(0, 1).flatten(1, 2)


def _unfold_lanes(x: Tensor, lanes: int) -> Tensor:
    """(B, K C, H, W) -> (K, B, C, H, W), a view."""
    folded = x.view(len(x), lanes, -1, *x.shape[2:])
    return folded.transpose(0, 1)


class Batches:
    """The batches of every lane: a fresh order of the training split each epoch, drawn from seed and epoch alone."""

    def __init__(self, examples: Split, batch_size: int, stack: Stack) -> None:
        self.examples = examples
        self.batch_size = min(batch_size, len(examples))
        self.per_epoch = updates_per_epoch(batch_size, len(examples))
        self.align(stack)

    def align(self, stack: Stack) -> None:
        """Serve the lanes that are still in the stack."""
        seeds = [stack.lanes[lane].seed for lane in stack.alive]
        self.seeds = list(dict.fromkeys(seeds))
        self.seed_of_lane = torch.tensor([self.seeds.index(seed) for seed in seeds], device=stack.parameters.device)
        self.epoch = -1

    def __call__(self, update: int) -> Tensor | None:
        """The batch for the next update, after so many: rows of the split, (K, B); None for the whole of it."""
        count = len(self.examples)
        if self.batch_size == count:
            return None
        epoch, place = divmod(update, self.per_epoch)
        if epoch != self.epoch:
            # One order a seed, not a lane: thousands of lanes share a few.
            orders = [batch_order(seed, epoch, count) for seed in self.seeds]
            self.order = torch.stack(orders).to(self.examples.inputs.device)
            self.epoch = epoch
        return self.order[:, place * self.batch_size : (place + 1) * self.batch_size][self.seed_of_lane]


class Schedule:
    """When lanes are evaluated: before the first update, at the end of each report's part, and in between.

    In between are 1, 2, 3, 4, 6, 8, 12, 16 ... updates, or every second, fourth ... of these: as many as keep the cost
    of evaluating within `EVALUATION_SHARE` of training's, beyond an allowance that is too small to notice.

    Args:
        budget: how long.
        batch_size: examples per update.
        training_examples: in an epoch.
        evaluated: examples that one evaluation passes forward.
        multiplications: of one network for one example.
    """

    def __init__(
        self, budget: Budget, batch_size: int, training_examples: int, *, evaluated: int = 0, multiplications: int = 1
    ) -> None:
        self.budget, self.training_examples = budget, training_examples
        self.batch_size = min(batch_size, training_examples)
        self.per_epoch = updates_per_epoch(batch_size, training_examples)
        self.total = budget.total_updates(batch_size, training_examples)
        self.every = 2  # of a budget in seconds, which may hold any number of updates
        if self.total is not None:
            # An update passes an example forward once, and backward at the price of two more.
            affordable = 3 * EVALUATION_SHARE * self.progress(self.total)[0] + FREE_MULTIPLICATIONS / multiplications
            ends = {self.end(part) for part in range(budget.reports + 1)}
            self.every = 1
            while len(ends | set(self.series())) * evaluated > affordable and len(self.series()) > 1:
                self.every *= 2

    def series(self) -> list[int]:
        """The updates in between, up to the end of the budget; of one in seconds, without end in practice."""
        powers = [1 << exponent for exponent in range(1, 62)]
        stops = [1, *(stop for power in powers for stop in (power, power + power // 2))][:: self.every]
        return [stop for stop in stops if self.total is None or stop <= self.total]

    def end(self, part: int) -> int:
        """Updates after so many reports, of a budget that is not in seconds."""
        assert self.total is not None
        return -(-self.total * part // self.budget.reports)

    def next_stop(self, stack: Stack) -> int | None:
        """The update to pause at, or None if the part that leads to the next report is done."""
        made, part = stack.update, stack.reports + 1
        following = next((stop for stop in self.series() if stop > made), math.inf)
        if self.total is not None:
            end = self.end(part)
            return int(min(following, end)) if made < end else None
        assert self.budget.seconds is not None
        left = self.budget.seconds * part / self.budget.reports - stack.seconds
        if left <= 0 and made * self.budget.reports >= self.budget.min_updates * part:
            return None
        affordable = math.ceil(left * made / stack.seconds) if left > 0 and made else 1
        return int(min(following, made + affordable))

    def progress(self, update: int) -> tuple[int, float]:
        """Training examples used and passes over the training split made in so many updates."""
        epochs, rest = divmod(update, self.per_epoch)
        # The last batch of an epoch may be short, so a whole epoch is counted by its examples.
        examples = epochs * self.training_examples + rest * self.batch_size
        return examples, examples / self.training_examples


def initialise(build: Builder, seed: int) -> nn.Sequential:
    """The network that every lane with this seed starts from; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream(seed, 0))
        return build()


def batch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which a lane with this seed sees the training split in an epoch, from 0: (count,) row numbers."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_stream(seed, 1, epoch)))


def updates_per_epoch(batch_size: int, training_examples: int) -> int:
    """Updates in one pass over the training split, the last and perhaps short one included."""
    return math.ceil(training_examples / batch_size)


def block_size(numbers_per_example: int, stack: Stack) -> int:
    """Examples to pass at a time, so that what they leave behind stays within `BLOCK_BYTES`.

    Where parameters are many, it may take some times as much as they do: each block reads them and writes a gradient.
    All lanes count, those that have diverged too, so that a resumed trial has the blocks of an undisturbed one.
    """
    device, lane_bytes = stack.parameters.device.type, len(stack.lanes) * stack.parameters.element_size()
    limit = max(BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]), 8 * stack.parameters.shape[1] * lane_bytes)
    return max(1, limit // (numbers_per_example * lane_bytes))


def _not_finite(losses: Tensor, stack: Stack) -> dict[int, int]:
    """Lanes whose loss stopped being finite, or whose next must: lane -> first update with such a loss."""
    bad = torch.cat([~losses.isfinite(), ~stack.parameters.isfinite().all(1)[None]])
    hit = bad.any(0)
    if not bool(hit.any()):
        return {}
    first = stack.update - len(losses) + bad.int().argmax(0) + 1
    dated = zip(stack.alive, first.tolist(), hit.tolist(), strict=True)
    return {lane: update for lane, update, found in dated if found}


def _stream(*numbers: int) -> int:
    """A seed for one purpose, well apart from every other purpose's."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _key(name: str) -> tuple[str, str]:
    split, metric = name.split("/")
    return split, metric
