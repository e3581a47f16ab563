"""The stack: K networks of one cell side by side, and how far each has come.

The K networks of a trial differ in learning rate, recipe and seed only, so their parameters are the rows of one tensor.
Lanes with equal seeds share initialisation and batches, so comparisons between them are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables import schedules
from trainables.config import PLAIN, Recipe, combinations
from trainables.formulas import Number, State
from trainables.lanes.seeds import initialise
from trainables.rules import EMA, Adjustment, Rule
from trainables.workloads.models import Builder, layered, trained

Result = TypeVar("Result")


class Setting(NamedTuple):
    """What a trial tunes: the lanes of a setting differ in their seed only."""

    learning_rate: float
    recipe: Recipe = PLAIN


@dataclass(frozen=True)
class Lane:
    """One configuration of a trial.

    Attributes:
        learning_rate: step size.
        seed: of initialisation and batches.
        settings: (name, value) of the optimizer's settings that differ from the rule's own, the same in all lanes.
        recipe: what is tuned beside the rate.
    """

    learning_rate: float
    seed: int
    settings: tuple[tuple[str, float], ...] = ()
    recipe: Recipe = PLAIN

    @property
    def setting(self) -> Setting:
        """What it shares with the lanes that differ in their seed only."""
        return Setting(self.learning_rate, self.recipe)

    @property
    def scheduled(self) -> bool:
        """Whether the rate changes from update to update."""
        return self.recipe.schedule not in (None, "constant") or bool(self.recipe.warmup)

    def options(self) -> dict[str, float]:
        """The optimizer's settings that differ from its own, with weight decay if that is given."""
        decay = {} if self.recipe.weight_decay is None else {"weight_decay": self.recipe.weight_decay}
        return {**dict(self.settings), **dict(self.recipe.settings), **decay}

    def factors(self, first: int, last: int, total: int) -> np.ndarray:
        """What multiplies the rate in updates `first` to before `last`, from 0, of a budget of `total`; float64."""
        schedule, warmup = self.recipe.schedule or "constant", self.recipe.warmup or 0.0
        return schedules.factors(schedule, warmup, np.arange(first, last), total)

    def rates(self, first: int, last: int, total: int) -> np.ndarray:
        """The rates of updates `first` to before `last`, from 0, of a budget of `total`; float64."""
        return np.asarray(self.learning_rate * self.factors(first, last, total))


def spaced(low: float, high: float, count: int) -> list[float]:
    """`count` learning rates, evenly spaced on a log scale from low to high."""
    return [float(rate) for rate in np.geomspace(low, high, count)] if count > 1 else [low]


def spread(
    rates: tuple[float, float, int],
    axes: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    sample: int = 0,
    settings: tuple[tuple[str, float], ...] = (),
) -> list[Lane]:
    """The lanes with which a trial begins: combinations of `spaced` rates and other axes, times seeds.

    Args:
        rates: lowest, highest and number of the learning rates, unless `axes` lists them.
        axes: name -> values, as `trainables.config.combinations` takes them.
        seeds: of each combination.
        sample: number of the combinations that are drawn at random; 0 for all.
        settings: the optimizer's, which all lanes share.
    """
    found = combinations({"learning_rate": spaced(*rates), **axes}, sample)
    return [Lane(rate, seed, settings, recipe) for rate, recipe in found for seed in seeds]


def grid(low: float, high: float, count: int, seeds: Sequence[int]) -> list[Lane]:
    """Lanes for `spaced` learning rates, times seeds."""
    return spread((low, high, count), {}, seeds)


@dataclass
class Stack:
    """K networks side by side, and how far each has come: the content of a checkpoint.

    Attributes:
        rule: the optimizer.
        lanes: all L lanes of the stack.
        round: of the search for the best rate: grid, extension 1, refinement 1 ...
        alive: (K,) places in `lanes` of those that still train; the rows of the tensors below.
        parameters: (K, P), each row one network.
        state: the rule's buffers, each (K, P).
        shapes: shape of each parameter, in the module's order.
        extras: other tensors of user models by name, each (K, *shape): buffers, and frozen parameters where they
            differ between seeds.
        total: updates of the budget, on which schedules depend; 0 if no lane has one.
        update: updates made.
        reports: reports made.
        seconds: seconds of training of the whole stack.
        at_once: rows in a pass; fewer than there are lanes if memory does not hold all.
        diverged: lane -> first update whose loss was not finite.
        stopped: lane -> the update after which halving gave it up.
        solo: lane -> the state of its own torch optimizer, where there is no rule.
        test_values: lane -> (n,) float32, the metric of each test example at the end, where asked for.
        updates, train_seconds, shares: (L,) per lane: updates (those before divergence), seconds it was in the stack,
            its share of them.
        last: (split, metric) -> (L,) last values, NaN where there are none.
    """

    rule: Rule
    lanes: list[Lane]
    alive: list[int]
    parameters: Tensor
    state: State
    shapes: list[torch.Size]
    extras: dict[str, Tensor] = field(default_factory=dict)
    round: str = "grid"
    total: int = 0
    update: int = 0
    reports: int = 0
    seconds: float = 0.0
    at_once: int = 0
    diverged: dict[int, int] = field(default_factory=dict)
    stopped: dict[int, int] = field(default_factory=dict)
    solo: dict[int, Any] = field(default_factory=dict)
    test_values: dict[int, np.ndarray] = field(default_factory=dict)
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
        cls,
        build: Builder,
        lanes: Sequence[Lane],
        rule: Rule,
        dtype: torch.dtype,
        device: torch.device,
        total: int = 0,
    ) -> Stack:
        """Initialise every lane's network from its seed.

        Args:
            build: makes one network from torch's global generator.
            lanes: the L configurations.
            rule: the optimizer.
            dtype: type of the parameters; initial values are always drawn in torch's default type.
            device: of all tensors.
            total: updates of the budget, where lanes have schedules.

        Raises:
            ValueError: if the rule does not know a setting of a lane, or a schedule lacks the budget's updates.
        """
        known = {*rule.settings, "weight_decay"}
        for name in {name for lane in lanes for name in lane.options() if not rule.solo}:
            if name not in known:
                raise ValueError(f"{rule.name} has no setting {name!r}; it has {', '.join(rule.settings) or 'none'}")
        if total < 1 and any(lane.scheduled for lane in lanes):
            raise ValueError("a schedule of the learning rate needs the number of updates in the budget")
        networks = {seed: initialise(build, seed) for seed in dict.fromkeys(lane.seed for lane in lanes)}
        rows = {
            seed: torch.cat([p.detach().to(dtype).flatten() for p in trained(network).values()])
            for seed, network in networks.items()
        }
        parameters = torch.stack([rows[lane.seed] for lane in lanes]).to(device)
        first = next(iter(networks.values()))
        shapes = [p.shape for p in trained(first).values()]
        if len(networks) == 1 and not layered(first):
            # Only a second seed shows which frozen parameters differ between seeds.
            networks[max(networks) + 1] = initialise(build, max(networks) + 1)
        extras = extras_of(networks, [lane.seed for lane in lanes], dtype, device)
        own = rule.bound(shapes)
        own = own.with_ema() if any(lane.recipe.ema for lane in lanes) else own
        alive, state = list(range(len(lanes))), own.state(parameters)
        return cls(own, list(lanes), alive, parameters, state, shapes, extras, total=total)

    def leaves(self, rows: slice) -> list[Tensor]:
        """The parameters of some rows one by one, (k, *shape), as views that share memory and require gradients."""
        return [view.detach().requires_grad_() for view in self.split(self.parameters[rows])]

    def split(self, rows: Tensor) -> list[Tensor]:
        """Numbers of networks, (k, P), as views of the shapes of their parameters, (k, *shape)."""
        parts = rows.split([shape.numel() for shape in self.shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @cached_property
    def scheduled(self) -> bool:
        """Whether any lane's rate changes from update to update."""
        return any(lane.scheduled for lane in self.lanes)

    @cached_property
    def _options(self) -> list[dict[str, float]]:
        return [{**lane.options(), EMA: lane.recipe.ema or 0.0} for lane in self.lanes]

    @cached_property
    def _adjustments(self) -> np.ndarray:
        """What each lane does to gradients, (3, L)."""
        # A rule that knows weight decay itself decays as it sees fit.
        own = "weight_decay" in self.rule.settings
        decays = [0.0 if own else options.get("weight_decay", 0.0) for options in self._options]
        values, norms = ([getattr(lane.recipe, name) for lane in self.lanes] for name in ("clip_value", "clip_norm"))
        return np.array([[value or math.inf for value in values], [norm or math.inf for norm in norms], decays])

    def rates(self, rows: slice, first: int, last: int) -> np.ndarray:
        """Learning rates of some rows in updates `first` to before `last`, from 0: (updates, k), float64.

        (1, k) if no lane of the stack has a schedule.
        """
        lanes = [self.lanes[lane] for lane in self.alive[rows]]
        rates = np.array([[lane.learning_rate for lane in lanes]])
        if not self.scheduled:
            return rates
        columns = {lane.recipe: lane.factors(first, last, self.total) for lane in {o.recipe: o for o in lanes}.values()}
        return np.ascontiguousarray(rates * np.stack([columns[lane.recipe] for lane in lanes], 1))

    def settings(self, rows: slice) -> dict[str, float | np.ndarray]:
        """The optimizer's settings in some rows: one number if all lanes share it, otherwise (k,)."""
        found: dict[str, float | np.ndarray] = {}
        for name, usual in self.rule.settings.items():
            values = [options.get(name, usual) for options in self._options]
            same = len(set(values)) == 1
            found[name] = values[0] if same else np.array([values[lane] for lane in self.alive[rows]])
        return found

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the parameters to evaluate in place of those that train, where the rule has an average."""
        training = self.parameters
        if self.rule.average:
            settings = {name: self._column(value) for name, value in self.settings(slice(None)).items()}
            self.parameters = self.rule.average(training, self.state, settings)
        try:
            yield
        finally:
            self.parameters = training

    def _column(self, value: float | np.ndarray) -> Number:
        return self.parameters.new_tensor(value)[:, None] if isinstance(value, np.ndarray) else value

    def adjustments(self, rows: slice) -> np.ndarray | None:
        """What some rows do to gradients before the rule, float64; None if no lane of the stack does anything.

        Returns:
            (3, k): largest value and largest norm, infinite for no limit, and coupled weight decay.
        """
        table = self._adjustments
        if np.isinf(table[:2]).all() and not table[2].any():
            return None
        return np.ascontiguousarray(table[:, self.alive[rows]])

    def adjustment(self, rows: slice) -> Adjustment | None:
        """`adjustments` as a function of stacked tensors."""
        table = self.adjustments(rows)
        return None if table is None else Adjustment.of(*self.parameters.new_tensor(table)[:, :, None])

    def diverge(self, first_bad: dict[int, int]) -> None:
        """Remove diverged lanes: lane -> first update whose loss was not finite."""
        self.diverged |= first_bad
        for values in self.last.values():
            values[list(first_bad)] = math.nan
        for lane, update in first_bad.items():
            self.updates[lane] = update - 1
        self._remove(set(first_bad))

    def stop(self, lanes: Sequence[int]) -> None:
        """Remove lanes that halving gives up; their last values are kept."""
        self.stopped |= dict.fromkeys(lanes, self.update)
        self._remove(set(lanes))

    def free(self) -> None:
        """Release the networks once the budget is spent; the lanes' results are kept."""
        self.parameters = self.parameters.new_empty(0, self.parameters.shape[1])
        self.state, self.solo, self.extras = {}, {}, {}

    def _remove(self, lanes: set[int]) -> None:
        rows = [row for row, lane in enumerate(self.alive) if lane not in lanes]
        self.alive = [self.alive[row] for row in rows]
        self.parameters = self.parameters[rows]
        self.state = {name: buffer[rows] for name, buffer in self.state.items()}
        self.extras = {name: extra[rows] for name, extra in self.extras.items()}
        self.solo = {lane: state for lane, state in self.solo.items() if lane not in lanes}

    def scratch(self) -> Stack:
        """A copy whose parameters and state may be changed."""
        state = {name: buffer.clone() for name, buffer in self.state.items()}
        extras = {name: extra.clone() for name, extra in self.extras.items()}
        return replace(self, parameters=self.parameters.clone(), state=state, extras=extras, solo=dict(self.solo))

    def spend(self, rows: slice, seconds: float) -> None:
        """Charge seconds of training to the stack, to each lane of the pass, and in equal shares to them all."""
        lanes = self.alive[rows]
        self.seconds += seconds
        self.train_seconds[lanes] += seconds
        self.shares[lanes] += seconds / len(lanes)

    def passes(self, work: Callable[[slice], Result], *, trains: bool) -> list[Result]:
        """Work on all rows, `at_once` at a time, halving that number when memory runs out.

        Args:
            work: called with some rows.
            trains: whether it changes their parameters and state, which are then restored if memory runs out.

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
            # Only after the except clause are the tensors of the failed attempt free.
            if self.parameters.is_cuda:
                torch.cuda.empty_cache()
        return results

    def state_dict(self) -> dict[str, Any]:
        """The stack as tensors, numbers, strings, lists and dicts, for `torch.save`."""
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
            "test_values": {lane: torch.from_numpy(values) for lane, values in self.test_values.items()},
            "per_lane": {name: torch.from_numpy(getattr(self, name)) for name in _PER_LANE},
            "last": {"/".join(key): torch.from_numpy(values) for key, values in self.last.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`; the stack must have been built for the same trial.

        Raises:
            ValueError: if the lanes differ.
        """
        if saved["lanes"] != _identity(self.lanes):
            raise ValueError("the checkpoint belongs to a trial with other lanes")
        device = self.parameters.device
        self.alive = saved["alive"]
        self.parameters = saved["parameters"].to(device)
        self.state = {name: buffer.to(device) for name, buffer in saved["state"].items()}
        self.extras = {name: extra.to(device) for name, extra in saved["extras"].items()}
        self.diverged, self.stopped, self.solo = saved["diverged"], saved["stopped"], saved["solo"]
        kept = saved.get("test_values", {})  # earlier versions did not save them
        self.test_values = {lane: values.cpu().numpy() for lane, values in kept.items()}
        for name in _COUNTERS:
            setattr(self, name, saved["counters"][name])
        for name in _PER_LANE:
            setattr(self, name, saved["per_lane"][name].cpu().numpy())
        keys = {name: tuple(name.split("/")) for name in saved["last"]}
        self.last = {(keys[name][0], keys[name][1]): values.cpu().numpy() for name, values in saved["last"].items()}


_COUNTERS = ("update", "reports", "seconds", "at_once")
_PER_LANE = ("updates", "train_seconds", "shares")


def extras_of(
    networks: dict[int, nn.Module], seeds: Sequence[int], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """The tensors of user models that are not trained but belong to a lane; see `Stack.extras`.

    Args:
        networks: seed -> network, of two or more seeds.
        seeds: of the lanes.
        dtype: of floating tensors.
        device: of all tensors.
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


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch has a class for a GPU, and only a message for the CPU."""
    texts = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    return any(
        isinstance(each, MemoryError | torch.OutOfMemoryError) or any(text in str(each) for text in texts)
        for each in causes
    )


def _identity(lanes: Sequence[Lane]) -> list[tuple[Any, ...]]:
    """The lanes as a checkpoint has them; earlier versions knew no recipes."""
    recipes = [[lane.recipe.text()] if lane.recipe != PLAIN else [] for lane in lanes]
    return [
        (lane.learning_rate, lane.seed, list(lane.settings), *recipe)
        for lane, recipe in zip(lanes, recipes, strict=True)
    ]
