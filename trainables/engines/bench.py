"""Time of one update of a lane, by each engine and by the ordinary torch loop, measured in one run on the same work.

The baseline is `reference.updates`: one configuration, tensors in memory, batches by index, torch.optim, one thread.
It and the engines take turns, so that drift in the machine's speed affects all alike; ratios are taken turn by turn.
JAX takes part where it is installed and has the network. `python -m trainables` runs this with torch and numpy alone.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables.engines import jax_peer
from trainables.engines.choose import choose
from trainables.engines.kernel.build import unavailable
from trainables.lanes.batches import Batches
from trainables.lanes.cost import update_seconds
from trainables.lanes.reference import mean_loss, updates
from trainables.lanes.seeds import initialise
from trainables.lanes.stack import Lane, Stack, grid
from trainables.lanes.train import advance, without_denormals
from trainables.rules import RULES
from trainables.workloads import models
from trainables.workloads.catalogue import Task
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split

ROUNDS = 5
TURN_SECONDS = 0.4


@dataclass(frozen=True)
class Work:
    """One line of the table."""

    name: str
    network: tuple[str, tuple[int, ...], int, int, int]  # family, in_shape, out_features, width, depth
    batch_size: int
    examples: int  # random numbers, on which times do not depend
    lanes: int = 18  # 6 rates x 3 seeds, as in shipped specs
    dtype: str = "float32"
    seeds: int = 3  # among the lanes; lanes with the same seed share batches

    @property
    def task(self) -> Task:
        """Regression with one output, otherwise classification."""
        return "regression" if self.network[2] == 1 else "classification"

    def build(self) -> nn.Module:
        """One network."""
        family, in_shape, out_features, width, depth = self.network
        return models.build(family, in_shape, out_features, width=width, depth=depth)

    def multiplications(self) -> int:
        """Of one example's forward pass."""
        return models.multiplications(self.build(), self.network[1])

    def data(self, device: torch.device) -> Split:
        """The examples."""
        random = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.examples, *self.network[1], generator=random)
        if self.task == "regression":
            targets = torch.randn(self.examples, 1, generator=random)
        else:
            targets = torch.randint(self.network[2], (self.examples,), generator=random)
        return Split(inputs, targets).to(device, getattr(torch, self.dtype))

    def grid(self) -> list[Lane]:
        """The lanes."""
        return grid(1e-5, 1e-4, self.lanes // self.seeds, range(self.seeds))


_MLP, _WIDE = ("mlp", (2,), 1, 16, 2), ("mlp", (1, 28, 28), 10, 128, 2)
_CNN, _CNN_8 = ("cnn", (1, 28, 28), 10, 4, 2), ("cnn", (1, 28, 28), 10, 8, 2)
# Examples in whole batches, so that no short batch affects the times.
WORKS = (
    Work("2-16-8-1 MLP, batch 1", _MLP, 1, 10_000),
    Work("2-16-8-1 MLP, batch 32", _MLP, 32, 10_016),
    Work("2-16-8-1 MLP, batch 10,000", _MLP, 10_000, 10_000),
    Work("2-16-8-1 MLP, batch 1, 256 lanes", _MLP, 1, 10_000, 256, "float64"),
    Work("784-128-64-10 MLP, batch 32", _WIDE, 32, 2_048),
    Work("784-128-64-10 MLP, batch 256", _WIDE, 256, 2_048),
    Work("4-8 channel CNN, batch 4", _CNN, 4, 2_048),
    Work("4-8 channel CNN, batch 64", _CNN, 64, 2_048),
    Work("8-16 channel CNN, batch 64, 4 lanes", _CNN_8, 64, 2_048, 4, seeds=2),
)
# The source report's figure of three regimes: 10 epochs of 10,000 examples each, every lane a seed of its own.
FIGURE_SEEDS, FIGURE_EPOCHS = 64, 10
FIGURE = [replace(work, lanes=FIGURE_SEEDS, seeds=FIGURE_SEEDS, dtype="float64") for work in WORKS[:3]]


@without_denormals()
def measure(work: Work, device: torch.device, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Time the ordinary loop and each engine of the device in turn, with Adam, without denormal numbers as in trials.

    Returns:
        One row per engine, of medians over the rounds: solo_us, microseconds per update of the ordinary loop; lane_us,
        of the stack, divided by its lanes; ratio, of the rounds' solo to lane; bound_us, what the arithmetic of a
        lane's update takes at the speed of the device's matrix product.
    """
    names = ["eager", "cuda-graph" if device.type == "cuda" else "native"]
    if device.type == "cpu" and unavailable():
        names.remove("native")
    solo, stacks = _solo(work, device), {name: _stack(work, device, name) for name in names}
    if device.type == "cpu" and work.network[0] == "mlp" and work.task == "regression" and find_spec("jax"):
        stacks["jax"] = _jax(work)
    for make in (solo, *stacks.values()):
        make(1)  # the first update loads libraries, and compiles JAX's program
    units, turns = {"jax": work.examples // work.batch_size}, []
    for _ in range(rounds):
        one = _per_update(solo, device)
        each = {name: _per_update(make, device, units.get(name, 1)) / work.lanes for name, make in stacks.items()}
        turns.append((one, each))
    bound = operations(work) / _speed(device, getattr(torch, work.dtype)) * 1e6
    return [
        {
            "name": work.name,
            "engine": name,
            "lanes": work.lanes,
            "device": str(device),
            "solo_us": median(one for one, _ in turns) * 1e6,
            "lane_us": median(each[name] for _, each in turns) * 1e6,
            "ratio": median(one / each[name] for one, each in turns),
            "bound_us": bound,
        }
        for name in stacks
    ]


@without_denormals()
def figure(device: str = "cpu", rounds: int = 3) -> dict[str, Any]:
    """Seconds of the regime figure per seed, and of an epoch of its network in each regime, on one thread.

    Returns:
        `figure`: loop_seconds of the ordinary loop, without the report's own bookkeeping; lane_seconds by the fastest
        engine of each regime; their ratio. `epochs`: a row for each regime, measured as every trial does, and by the
        ordinary loop.
    """
    torch.set_num_threads(1)
    where, loop, lane, epochs = torch.device(device), 0.0, 0.0, []
    for work in FIGURE:
        best = min(measure(work, where, rounds), key=lambda row: row["lane_us"])
        solo, stacked, count = best["solo_us"] / 1e6, best["lane_us"] / 1e6, work.examples // work.batch_size
        loop, lane = loop + solo * count * FIGURE_EPOCHS, lane + stacked * count * FIGURE_EPOCHS
        alone = update_seconds(
            work.build,
            RULES["adam"],
            work.data(where),
            work.batch_size,
            Lane(1e-4, 0),
            Criterion(work.task),
            multiplications=work.multiplications(),
        )
        epochs.append({"batch_size": work.batch_size, "measured": count * alone, "loop": count * solo})
    shares = {"loop_seconds": loop, "lane_seconds": lane, "ratio": loop / lane}
    return {"figure": {"seeds": FIGURE_SEEDS, **shares}, "epochs": epochs}


def operations(work: Work) -> int:
    """Floating-point operations of one update: two per multiplication, three passes (forward, and both gradients)."""
    return 6 * work.multiplications() * work.batch_size


Make = Callable[[int], object]
"""Makes a number of updates."""


def _solo(work: Work, device: torch.device) -> Make:
    """The ordinary loop."""
    network = initialise(work.build, 0).to(device, getattr(torch, work.dtype))
    order = torch.randperm(work.examples).to(device).split(work.batch_size)
    batches = cycle(order[: work.examples // work.batch_size])
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4)]
    loop = updates(network, optimizers, work.data(device), mean_loss(Criterion(work.task)), batches)
    return lambda count: deque(islice(loop, count), maxlen=0)


def _stack(work: Work, device: torch.device, name: str) -> Make:
    """A stack with an engine."""
    stack = Stack.build(work.build, work.grid(), RULES["adam"], getattr(torch, work.dtype), device)
    batches = Batches(work.data(device), work.batch_size, stack)
    engine = choose(work.build, work.network[1], work.task, work.batch_size, stack, name)
    return lambda count: advance(stack, engine, batches, stack.update + count)


def _jax(work: Work) -> Make:
    """The same stack in JAX; updates are rounded up to whole epochs."""
    # One thread, as torch has; JAX reads it when it is imported.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    examples = work.data(torch.device("cpu"))
    sizes = [layer.in_features for layer in work.build().modules() if isinstance(layer, nn.Linear)]
    rates = np.array([lane.learning_rate for lane in work.grid()])
    arrays = examples.inputs.numpy(), examples.targets.numpy()
    train = jax_peer.epochs([*sizes, work.network[2]], *arrays, work.batch_size, rates, work.seeds)
    return lambda count: train(-(-count * work.batch_size // work.examples))


def _per_update(make: Make, device: torch.device, unit: int = 1) -> float:
    """Seconds per update, over about `TURN_SECONDS`, in whole multiples of `unit` updates."""
    count = unit
    while True:
        started = time.perf_counter()
        make(count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - started
        if spent > TURN_SECONDS / 2:
            return spent / count
        count = max(2 * count, int(count * TURN_SECONDS / max(spent, 1e-6)) // unit * unit)


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _per_update(lambda count: [a @ a for _ in range(count)], device)


def run(device: str = "cpu", only: str = "") -> dict[str, Any]:
    """Measure every work whose name contains `only`, on one thread; the result is plain JSON."""
    torch.set_num_threads(1)
    rows = [row for work in WORKS if only in work.name for row in measure(work, torch.device(device))]
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"torch": torch.__version__, "python": platform.python_version(), "hardware": hardware, "rows": rows}
