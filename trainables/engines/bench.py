"""Time of one update of a lane, by each engine and by the ordinary torch loop, measured in one run on the same work.

The baseline is `reference.updates`: one configuration, tensors in memory, batches by index, torch.optim, one thread.
It and the engines take turns, so that drift in the machine's speed affects all alike; ratios are taken turn by turn.
JAX takes part where it is installed and has the network. `python -m trainables` runs this with torch and numpy alone.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.engines import jax_peer
from trainables.engines.choose import choose
from trainables.engines.kernel.build import unavailable
from trainables.lanes.batches import Batches
from trainables.lanes.cost import update_seconds
from trainables.lanes.reference import mean_loss, updates
from trainables.lanes.seeds import initialise
from trainables.lanes.stack import Lane, Stack, grid
from trainables.lanes.train import advance
from trainables.rules import RULES
from trainables.workloads import models
from trainables.workloads.catalogue import Task
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split

ROUNDS = 5
TURN_SECONDS = 0.4


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes:
        name: shown in the table.
        family, in_shape, out_features, width, depth: the network.
        batch_size: examples per update.
        examples: training examples; random numbers, on which times do not depend.
        lanes: of the stack.
        dtype: of the parameters.
        seeds: among the lanes; lanes with the same seed share batches.
    """

    name: str
    family: str
    in_shape: tuple[int, ...]
    out_features: int
    width: int
    depth: int
    batch_size: int
    examples: int
    lanes: int
    dtype: str
    seeds: int = 3

    @property
    def task(self) -> Task:
        """Regression with one output, otherwise classification."""
        return "regression" if self.out_features == 1 else "classification"

    def build(self) -> nn.Module:
        """One network."""
        return models.build(self.family, self.in_shape, self.out_features, width=self.width, depth=self.depth)


_Network = tuple[str, tuple[int, ...], int, int, int]
_MLP: _Network = ("mlp", (2,), 1, 16, 2)
_WIDE: _Network = ("mlp", (1, 28, 28), 10, 128, 2)
_CNN: _Network = ("cnn", (1, 28, 28), 10, 4, 2)
_CNN_8: _Network = ("cnn", (1, 28, 28), 10, 8, 2)
# Examples in whole batches, so that no short batch affects the times; 18 lanes: 6 rates x 3 seeds, as in shipped specs.
WORKS = (
    Work("2-16-8-1 MLP, batch 1", *_MLP, 1, 10_000, 18, "float32"),
    Work("2-16-8-1 MLP, batch 32", *_MLP, 32, 10_016, 18, "float32"),
    Work("2-16-8-1 MLP, batch 10,000", *_MLP, 10_000, 10_000, 18, "float32"),
    Work("2-16-8-1 MLP, batch 1, 256 lanes", *_MLP, 1, 10_000, 256, "float64"),
    Work("784-128-64-10 MLP, batch 32", *_WIDE, 32, 2_048, 18, "float32"),
    Work("784-128-64-10 MLP, batch 256", *_WIDE, 256, 2_048, 18, "float32"),
    Work("4-8 channel CNN, batch 4", *_CNN, 4, 2_048, 18, "float32"),
    Work("4-8 channel CNN, batch 64", *_CNN, 64, 2_048, 18, "float32"),
    Work("8-16 channel CNN, batch 64, 4 lanes", *_CNN_8, 64, 2_048, 4, "float32", 2),
)


# The source report's figure of three regimes: 10 epochs of 10,000 examples each, every lane a seed of its own.
FIGURE_SEEDS = 64
FIGURE = (
    (Work("regime figure, batch 1", *_MLP, 1, 10_000, FIGURE_SEEDS, "float64", FIGURE_SEEDS), 100_000),
    (Work("regime figure, batch 32", *_MLP, 32, 10_016, FIGURE_SEEDS, "float64", FIGURE_SEEDS), 3_130),
    (Work("regime figure, batch 10,000", *_MLP, 10_000, 10_000, FIGURE_SEEDS, "float64", FIGURE_SEEDS), 10),
)


@dataclass(frozen=True)
class Row:
    """Times of a `Work` with an engine, medians over the rounds.

    Attributes:
        name, engine, lanes, device: the work, and where it ran.
        solo_us: microseconds per update of the ordinary loop.
        lane_us: microseconds per update of the stack, divided by its lanes.
        ratio: median of the rounds' solo over lane.
        bound_us: microseconds that the arithmetic of a lane's update takes at the speed of the device's matrix
            product.
    """

    name: str
    engine: str
    lanes: int
    device: str
    solo_us: float
    lane_us: float
    ratio: float
    bound_us: float


def measure(work: Work, device: torch.device, rounds: int = ROUNDS) -> list[Row]:
    """Time the ordinary loop and each engine of the device in turn, with Adam; one row per engine."""
    names = ["eager", "cuda-graph" if device.type == "cuda" else "native"]
    if device.type == "cpu" and unavailable():
        names.remove("native")
    solo, stacks = _solo(work, device), {name: _stack(work, device, name) for name in names}
    if device.type == "cpu" and work.family == "mlp" and work.task == "regression" and find_spec("jax"):
        names.append("jax")
        stacks["jax"] = _jax(work)
    for make in (solo, *stacks.values()):
        make(1)  # the first update loads libraries, and compiles JAX's program
    turns = []
    for _ in range(rounds):
        one = _per_update(solo, device)
        units = {"jax": work.examples // work.batch_size}
        each = {name: _per_update(stacks[name], device, units.get(name, 1)) / work.lanes for name in names}
        turns.append((one, each))
    bound = operations(work) / _speed(device, getattr(torch, work.dtype)) * 1e6
    return [
        Row(
            name=work.name,
            engine=name,
            lanes=work.lanes,
            device=str(device),
            solo_us=statistics.median(one for one, _ in turns) * 1e6,
            lane_us=statistics.median(lane[name] for _, lane in turns) * 1e6,
            ratio=statistics.median(one / lane[name] for one, lane in turns),
            bound_us=bound,
        )
        for name in names
    ]


@dataclass(frozen=True)
class Figure:
    """Time of the source report's regime figure per seed.

    Attributes:
        seeds: lanes that train together.
        loop_seconds: of the ordinary loop, without the report's own bookkeeping.
        lane_seconds: of a lane, by the fastest engine in each regime.
        ratio: loop over lane.
    """

    seeds: int
    loop_seconds: float
    lane_seconds: float
    ratio: float


def figure(device: str = "cpu", rounds: int = 3) -> Figure:
    """Measure the regime figure, regime by regime, on one thread."""
    with _one_thread():
        measured = [(measure(work, torch.device(device), rounds), count) for work, count in FIGURE]
    best = [(min(rows, key=lambda row: row.lane_us), count) for rows, count in measured]
    loop, lane = (sum(getattr(row, key) * n for row, n in best) / 1e6 for key in ("solo_us", "lane_us"))
    return Figure(FIGURE_SEEDS, loop, lane, loop / lane)


@dataclass(frozen=True)
class Epoch:
    """An epoch of one network trained alone, in seconds.

    Attributes:
        batch_size: examples per update.
        measured: by the measurement that every trial makes, `lanes.cost`.
        loop: by the ordinary loop.
    """

    batch_size: int
    measured: float
    loop: float


def epochs(device: str = "cpu", rounds: int = 3) -> list[Epoch]:
    """An epoch of the regime figure's network in each regime, on one thread."""
    found, where = [], torch.device(device)
    with _one_thread():
        for work, _ in FIGURE:
            examples, solo = _examples(work, where), _solo(work, where)
            multiplications = models.multiplications(work.build(), work.in_shape)
            lane, task = Lane(1e-4, 0), Criterion(work.task)
            measured = update_seconds(
                work.build, RULES["adam"], examples, work.batch_size, lane, task, multiplications=multiplications
            )
            solo(1)
            loop = min(_per_update(solo, where) for _ in range(rounds))
            updates = work.examples // work.batch_size
            found.append(Epoch(work.batch_size, updates * measured, updates * loop))
    return found


def operations(work: Work) -> int:
    """Floating-point operations of one update: two per multiplication, three passes (forward, and both gradients)."""
    return 6 * models.multiplications(work.build(), work.in_shape) * work.batch_size


def _examples(work: Work, device: torch.device) -> Split:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(work.examples, *work.in_shape, generator=random)
    if work.task == "regression":
        targets = torch.randn(work.examples, 1, generator=random)
    else:
        targets = torch.randint(work.out_features, (work.examples,), generator=random)
    return Split(inputs, targets).to(device, getattr(torch, work.dtype))


def _solo(work: Work, device: torch.device) -> Callable[[int], None]:
    """The ordinary loop, as a function that makes a number of updates."""
    examples = _examples(work, device)
    network = initialise(work.build, 0).to(device, getattr(torch, work.dtype))
    order, per_epoch = torch.randperm(work.examples).to(device), work.examples // work.batch_size

    def batches() -> Iterator[Tensor]:
        while True:
            yield from order.split(work.batch_size)[:per_epoch]

    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4)]
    loop = updates(network, optimizers, examples, mean_loss(Criterion(work.task)), batches())

    def make(count: int) -> None:
        for _ in range(count):
            next(loop)

    return make


def _stack(work: Work, device: torch.device, name: str) -> Callable[[int], None]:
    """A stack with an engine, as a function that makes a number of updates."""
    examples = _examples(work, device)
    lanes = grid(1e-5, 1e-4, work.lanes // work.seeds, range(work.seeds))
    stack = Stack.build(work.build, lanes, RULES["adam"], getattr(torch, work.dtype), device)
    batches = Batches(examples, work.batch_size, stack)
    engine = choose(work.build, work.in_shape, work.task, work.batch_size, stack, name)

    def make(count: int) -> None:
        advance(stack, engine, batches, stack.update + count)

    return make


def _jax(work: Work) -> Callable[[int], None]:
    """The same stack in JAX, as a function that makes a number of updates, rounded up to whole epochs."""
    # One thread, as torch has; JAX reads it when it is imported.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    examples = _examples(work, torch.device("cpu"))
    sizes = [layer.in_features for layer in work.build().modules() if isinstance(layer, nn.Linear)]
    rates = np.array([lane.learning_rate for lane in grid(1e-5, 1e-4, work.lanes // work.seeds, range(work.seeds))])
    arrays = examples.inputs.numpy(), examples.targets.numpy()
    train = jax_peer.epochs([*sizes, work.out_features], *arrays, work.batch_size, rates, work.seeds)

    def make(count: int) -> None:
        train(-(-count * work.batch_size // work.examples))

    return make


def _seconds(make: Callable[[int], None], count: int, device: torch.device) -> float:
    started = time.perf_counter()
    make(count)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _per_update(make: Callable[[int], None], device: torch.device, unit: int = 1) -> float:
    """Seconds per update, over about `TURN_SECONDS`, in whole multiples of `unit` updates."""
    count = unit
    while True:
        spent = _seconds(make, count, device)
        if spent > TURN_SECONDS / 2:
            return spent / count
        count = max(2 * count, int(count * TURN_SECONDS / max(spent, 1e-6)) // unit * unit)


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)

    def products(count: int) -> None:
        for _ in range(count):
            a @ a

    return 2 * size**3 / _per_update(products, device)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(device: str = "cpu", only: str = "") -> dict[str, Any]:
    """Measure every work whose name contains `only`, on one thread; the result is plain JSON."""
    with _one_thread():
        found = [row for work in WORKS if only in work.name for row in measure(work, torch.device(device))]
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    rows = [asdict(row) for row in found]
    return {"torch": torch.__version__, "python": platform.python_version(), "hardware": hardware, "rows": rows}
