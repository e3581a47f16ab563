"""The stack: K networks of one cell side by side, what each has come to, and the batches that each sees.

The K networks of a trial differ in learning rate and seed only, so their parameters are the rows of one tensor. Lanes
with equal seeds share initialisation and batches, so comparisons between them are paired.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.augment import Augment
from trainables.config import examples_per_epoch, updates_per_epoch
from trainables.data import Split
from trainables.models import layered, trained
from trainables.rules import Rule, State

Builder = Callable[[], nn.Module]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lane:
    """One configuration.

    Attributes:
        learning_rate: step size.
        seed: of initialisation and batches.
        settings: of the optimizer, (name, value), where they are not the rule's own.
    """

    learning_rate: float
    seed: int
    settings: tuple[tuple[str, float], ...] = ()


def grid(low: float, high: float, count: int, seeds: Sequence[int]) -> list[Lane]:
    """Lanes for `count` learning rates, evenly spaced on a log scale from low to high, times seeds."""
    rates = np.geomspace(low, high, count).tolist() if count > 1 else [low]
    return [Lane(rate, seed) for rate in rates for seed in seeds]


def beyond(rates: Sequence[float], tried: Sequence[float], best: float) -> list[float]:
    """Rates to try next: half as many as the grid has, in its spacing, beyond the edge on which the best one lies.

    Args:
        rates: of the grid as it was at first.
        tried: all rates so far, those that diverged too.
        best: one of them.

    Returns:
        From the edge outwards; none if the best lies within, the grid has no spacing, or floats end there.
    """
    low, high, count = min(rates), max(rates), len(set(rates))
    if low == high or min(tried) < best < max(tried):
        return []
    ratio = (high / low) ** (1 / (count - 1))
    steps = [ratio**step for step in range(1, math.ceil(count / 2) + 1)]
    found = [best / step for step in steps] if best == min(tried) else [best * step for step in steps]
    return [rate for rate in found if sys.float_info.min <= rate <= sys.float_info.max]


@dataclass
class Stack:
    """K networks side by side, and how far each has come: what a checkpoint holds.

    Attributes:
        rule: the optimizer.
        lanes: all L lanes of the stack.
        alive: (K,) places in `lanes` of those that still train; the rows of the tensors below.
        parameters: (K, P), each row one network.
        state: the rule's buffers, each (K, P).
        shapes: shape of each parameter, in the module's order.
        extras: what else a user's network has, by name, each (K, *shape): buffers, and frozen parameters where they
            differ from seed to seed.
        update: updates made.
        reports: reports made.
        seconds: seconds of training of the whole stack.
        at_once: rows in a pass; fewer than there are lanes if memory does not hold all.
        diverged: lane -> first update whose loss was not finite.
        stopped: lane -> the update after which it was given up, by halving.
        solo: lane -> the state of its own torch optimizer, where there is no rule.
        updates, train_seconds, shares: (L,) per lane: updates (the good ones, if it diverged), seconds it was in the
            stack, its share of them.
        last: (split, metric) -> (L,) last values, NaN where there are none.
    """

    rule: Rule
    lanes: list[Lane]
    alive: list[int]
    parameters: Tensor
    state: State
    shapes: list[torch.Size]
    extras: dict[str, Tensor] = field(default_factory=dict)
    update: int = 0
    reports: int = 0
    seconds: float = 0.0
    at_once: int = 0
    diverged: dict[int, int] = field(default_factory=dict)
    stopped: dict[int, int] = field(default_factory=dict)
    solo: dict[int, Any] = field(default_factory=dict)
    updates: np.ndarray = field(init=False)
    train_seconds: np.ndarray = field(init=False)
    shares: np.ndarray = field(init=False)
    last: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at_once = self.at_once or len(self.lanes)
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

        Raises:
            ValueError: if a lane has a setting that the rule does not know.
        """
        for name in {name for lane in lanes for name, _ in lane.settings if not rule.solo}:
            if name not in rule.settings:
                raise ValueError(f"{rule.name} has no setting {name!r}; it has {', '.join(rule.settings) or 'none'}")
        rows = {seed: initialise(build, seed) for seed in dict.fromkeys(lane.seed for lane in lanes)}
        # What is frozen is a lane's own if it differs from seed to seed, be there but one.
        compared = rows if len(rows) > 1 or layered(next(iter(rows.values()))) else _with_another(rows, build)
        flat = {
            seed: torch.cat([p.detach().to(dtype).flatten() for p in trained(net).values()])
            for seed, net in rows.items()
        }
        parameters = torch.stack([flat[lane.seed] for lane in lanes]).to(device)
        shapes = [p.shape for p in trained(next(iter(rows.values()))).values()]
        extras = extras_of(compared, [lane.seed for lane in lanes], dtype, device)
        return cls(rule, list(lanes), list(range(len(lanes))), parameters, rule.state(parameters), shapes, extras)

    def leaves(self, rows: slice) -> list[Tensor]:
        """The parameters of some rows one by one, (k, *shape), as views that share memory and ask gradients."""
        leaves, start = [], 0
        for shape in self.shapes:
            size = shape.numel()
            view = self.parameters[rows, start : start + size].view(-1, *shape)
            leaves.append(view.detach().requires_grad_())
            start += size
        return leaves

    def rates(self, rows: slice) -> Tensor:
        """Learning rates of some rows, (k, 1)."""
        return self.parameters.new_tensor([[self.lanes[lane].learning_rate] for lane in self.alive[rows]])

    def settings(self, rows: slice) -> dict[str, float | np.ndarray]:
        """The optimizer's settings in some rows: one number if all lanes have the same, else (k,)."""
        found: dict[str, float | np.ndarray] = {}
        for name, usual in self.rule.settings.items():
            values = [dict(lane.settings).get(name, usual) for lane in self.lanes]
            same = len(set(values)) == 1
            found[name] = values[0] if same else np.array([values[lane] for lane in self.alive[rows]])
        return found

    def diverge(self, first_bad: dict[int, int]) -> None:
        """Take diverged lanes out of the stack: lane -> first update whose loss was not finite."""
        self.diverged |= first_bad
        for values in self.last.values():
            values[list(first_bad)] = math.nan
        for lane, update in first_bad.items():
            self.updates[lane] = update - 1
        self._keep(set(first_bad))

    def stop(self, lanes: Sequence[int]) -> None:
        """Take lanes out of the stack that are not worth more time; their last values stand."""
        self.stopped |= dict.fromkeys(lanes, self.update)
        self._keep(set(lanes))

    def free(self) -> None:
        """Forget the networks once the budget is spent; what became of the lanes stays."""
        self.parameters = self.parameters.new_empty(0, self.parameters.shape[1])
        self.state, self.solo, self.extras = {}, {}, {}

    def _keep(self, without: set[int]) -> None:
        rows = [row for row, lane in enumerate(self.alive) if lane not in without]
        self.alive = [self.alive[row] for row in rows]
        self.parameters = self.parameters[rows]
        self.state = {name: buffer[rows] for name, buffer in self.state.items()}
        self.extras = {name: extra[rows] for name, extra in self.extras.items()}
        self.solo = {lane: state for lane, state in self.solo.items() if lane not in without}

    def scratch(self) -> Stack:
        """A copy whose parameters and state may be changed without harm."""
        state = {name: buffer.clone() for name, buffer in self.state.items()}
        extras = {name: extra.clone() for name, extra in self.extras.items()}
        return replace(self, parameters=self.parameters.clone(), state=state, extras=extras, solo=dict(self.solo))

    def spend(self, rows: slice, seconds: float) -> None:
        """Charge seconds of training to the stack, to each lane that was in the pass and, in equal shares, to all."""
        lanes = self.alive[rows]
        self.seconds += seconds
        self.train_seconds[lanes] += seconds
        self.shares[lanes] += seconds / len(lanes)

    def passes(self, work: Callable[[slice], Result], *, trains: bool) -> list[Result]:
        """Do some work on all rows, `at_once` at a time, halving that when memory runs out.

        Args:
            work: of some rows.
            trains: whether it changes their parameters and state, which are then put back if memory runs out.

        Raises:
            RuntimeError: the device's own, if memory does not hold a single lane.
        """
        results, row = [], 0
        while row < len(self.alive):
            rows = slice(row, min(row + self.at_once, len(self.alive)))
            changed = [self.parameters, *self.state.values(), *self.extras.values()]
            tensors = [each[rows] for each in changed] if trains else []
            before, solo = [tensor.to("cpu", copy=True) for tensor in tensors], dict(self.solo)
            try:
                results.append(work(rows))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or rows.stop - rows.start == 1:
                    raise
                for tensor, values in zip(tensors, before, strict=True):
                    tensor.copy_(values)
                self.solo = solo
                self.at_once = (rows.stop - rows.start + 1) // 2
            else:
                row = rows.stop
                continue
            # Only here are the tensors of the failed attempt free.
            if self.parameters.is_cuda:
                torch.cuda.empty_cache()
        return results

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors, numbers, strings, lists and dicts, for `torch.save`."""
        return {
            "lanes": _identity(self.lanes),
            "alive": self.alive,
            "parameters": self.parameters,
            "state": self.state,
            "extras": self.extras,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "diverged": self.diverged,
            "stopped": self.stopped,
            "solo": self.solo,
            "per_lane": {name: torch.from_numpy(getattr(self, name)) for name in _PER_LANE},
            "last": {"/".join(key): torch.from_numpy(values) for key, values in self.last.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; the stack must have been built for the same trial.

        Raises:
            ValueError: if the lanes are others.
        """
        if saved["lanes"] != _identity(self.lanes):
            raise ValueError("the checkpoint belongs to a trial with other lanes")
        device = self.parameters.device
        self.alive = saved["alive"]
        self.parameters = saved["parameters"].to(device)
        self.state = {name: buffer.to(device) for name, buffer in saved["state"].items()}
        self.extras = {name: extra.to(device) for name, extra in saved["extras"].items()}
        self.diverged, self.stopped, self.solo = saved["diverged"], saved["stopped"], saved["solo"]
        for name in _COUNTERS:
            setattr(self, name, saved["counters"][name])
        for name in _PER_LANE:
            setattr(self, name, saved["per_lane"][name].cpu().numpy())
        self.last = {_key(name): values.cpu().numpy() for name, values in saved["last"].items()}


_COUNTERS = ("update", "reports", "seconds", "at_once")
_PER_LANE = ("updates", "train_seconds", "shares")


class Batches:
    """The batches of every lane: a fresh order of the training split each epoch, drawn from seed and epoch alone.

    Attributes:
        examples: the training split.
        batch_size: examples per update; the last batch of an epoch may be smaller.
        per_epoch: updates in an epoch; without the short one if that is to be dropped.
        augment: what is done to each example, if anything.
        whole: whether every lane sees the same whole split as it is, in one batch.
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
        """Serve the lanes that are still in the stack."""
        seeds = [stack.lanes[lane].seed for lane in stack.alive]
        self.seeds = list(dict.fromkeys(seeds))
        self.seed_of_row = torch.tensor([self.seeds.index(seed) for seed in seeds], device=stack.parameters.device)
        self.epoch = -1

    def full(self, update: int) -> int:
        """Batches of full size that are left in the epoch after so many updates."""
        return len(self.examples) // self.batch_size - update % self.per_epoch

    def rows(self, update: int, count: int = 1) -> Tensor:
        """The next batches after so many updates, all of one epoch: rows of the split, (seeds, count x batch)."""
        epoch, place = divmod(update, self.per_epoch)
        if epoch != self.epoch:
            # One order a seed, not a lane: thousands of lanes share a few.
            orders = [batch_order(seed, epoch, len(self.examples)) for seed in self.seeds]
            self.order = torch.stack(orders).to(self.examples.inputs.device)
            if self.augment:
                each = [self.augment.draw(stream(seed, 2, epoch), len(self.examples)) for seed in self.seeds]
                draws = torch.stack(each).to(self.examples.inputs)
                if self.draws.shape == draws.shape:
                    self.draws.copy_(draws)  # in place: a recorded CUDA graph reads them where they were
                else:
                    self.draws = draws
            self.epoch = epoch
        return self.order[:, place * self.batch_size : (place + count) * self.batch_size]

    def take(self, rows: Tensor, lanes: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Examples, (k, n, ...), for some rows of the stack, from rows of the split for each seed, (seeds, n)."""
        seeds = self.seed_of_row[lanes]
        mine = rows[seeds]
        # Whole rows at once: several times faster than indexing with (k, n) numbers.
        x = self.examples.inputs.index_select(0, mine.flatten())
        if self.augment:
            x = self.augment(x, self.draws[seeds[:, None], mine].flatten(0, 1))
        y = self.examples.targets.index_select(0, mine.flatten())
        return x.unflatten(0, mine.shape), y.unflatten(0, mine.shape)


def initialise(build: Builder, seed: int) -> nn.Module:
    """The network that every lane with this seed starts from; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, 0))
        return build()


def _with_another(networks: dict[int, nn.Module], build: Builder) -> dict[int, nn.Module]:
    other = max(networks) + 1
    return {**networks, other: initialise(build, other)}


def extras_of(
    networks: dict[int, nn.Module], seeds: Sequence[int], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What of users' networks is not trained and yet a lane's own: see `Stack.extras`.

    Args:
        networks: seed -> network; two or more tell what differs.
        seeds: of the lanes.
        dtype: type of what is floating.
        device: where it is to be.
    """
    first = next(iter(networks.values()))
    if layered(first):
        return {}
    named = {seed: dict(network.named_buffers()) for seed, network in networks.items()}
    parameters = {seed: dict(network.named_parameters()) for seed, network in networks.items()}
    for name in [name for name, parameter in first.named_parameters() if not parameter.requires_grad]:
        frozen = {seed: each[name] for seed, each in parameters.items()}
        if any(not torch.equal(next(iter(frozen.values())), other) for other in frozen.values()):
            for seed, other in frozen.items():
                named[seed][name] = other
    found = {name: torch.stack([named[seed][name].detach() for seed in seeds]) for name in named[seeds[0]]}
    return {name: (t.to(device, dtype) if t.is_floating_point() else t.to(device)) for name, t in found.items()}


def batch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which a lane with this seed sees the training split in an epoch, from 0: (count,) row numbers."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, 1, epoch)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch has its own for a GPU, and a plain one for the CPU."""
    texts = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    return any(
        isinstance(each, MemoryError | torch.OutOfMemoryError) or any(text in str(each) for text in texts)
        for each in causes
    )


def _identity(lanes: Sequence[Lane]) -> list[tuple[float, int, list[tuple[str, float]]]]:
    return [(lane.learning_rate, lane.seed, list(lane.settings)) for lane in lanes]


def stream(*numbers: int) -> int:
    """A seed for one purpose, well apart from every other purpose's."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _key(name: str) -> tuple[str, str]:
    split, metric = name.split("/")
    return split, metric
