"""What an update of a lane costs, beside the loop that one would write otherwise, in one run on the same work.

The solo loop is the fair baseline: one configuration, tensors in memory, batches by index, torch.optim, one thread. It
and the lanes take turns, so that a machine whose speed drifts is unfair to neither; ratios are taken turn by turn.
`python -m trainables` runs this with torch and numpy alone.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from trainables import lanes, models
from trainables.data import Split, Task
from trainables.rules import RULES

ROUNDS = 5
TURN_SECONDS = 0.4


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes:
        name: what it is called.
        family, in_shape, out_features, width, depth: the network.
        batch_size: examples per update.
        examples: training examples; random numbers, since times do not depend on them.
        lanes: lanes of the stack.
        dtype: of the parameters.
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

    @property
    def task(self) -> Task:
        """Regression with one output, else classification."""
        return "regression" if self.out_features == 1 else "classification"

    def build(self) -> nn.Sequential:
        """One network."""
        size = {"width": self.width, "depth": self.depth}
        return models.build(self.family, self.in_shape, self.out_features, **size)


_MLP: tuple[str, tuple[int, ...], int, int, int] = ("mlp", (2,), 1, 16, 2)
_WIDE: tuple[str, tuple[int, ...], int, int, int] = ("mlp", (1, 28, 28), 10, 128, 2)
_CNN: tuple[str, tuple[int, ...], int, int, int] = ("cnn", (1, 28, 28), 10, 4, 2)
WORKS = (
    Work("2-16-8-1 MLP, batch 1", *_MLP, 1, 10_000, 512, "float64"),
    Work("2-16-8-1 MLP, batch 32", *_MLP, 32, 10_000, 512, "float64"),
    Work("2-16-8-1 MLP, batch 10,000", *_MLP, 10_000, 10_000, 40, "float64"),
    Work("784-128-64-10 MLP, batch 32", *_WIDE, 32, 2_000, 16, "float32"),
    Work("784-128-64-10 MLP, batch 256", *_WIDE, 256, 2_000, 16, "float32"),
    Work("4-8 channel CNN, batch 4", *_CNN, 4, 2_000, 32, "float32"),
    Work("4-8 channel CNN, batch 64", *_CNN, 64, 2_000, 32, "float32"),
)


@dataclass(frozen=True)
class Row:
    """What was measured of a `Work`, medians over the rounds.

    Attributes:
        name, lanes, device: what ran.
        solo_us: microseconds of an update of the solo loop.
        lane_us: microseconds of an update of the stack, by its lanes.
        ratio: solo over lane, the median of each round's.
        bound_us: microseconds that the arithmetic of a lane's update would take at the speed of the device's matrix
            product.
    """

    name: str
    lanes: int
    device: str
    solo_us: float
    lane_us: float
    ratio: float
    bound_us: float


def measure(work: Work, device: torch.device, rounds: int = ROUNDS) -> Row:
    """Time the solo loop and the stack in turn, with Adam."""
    solo, stack = _solo(work, device), _stack(work, device)
    solo(1), stack(1)  # what is paid once is paid here
    pairs = [(_per_update(solo, device), _per_update(stack, device) / work.lanes) for _ in range(rounds)]
    return Row(
        work.name,
        work.lanes,
        str(device),
        statistics.median(one for one, _ in pairs) * 1e6,
        statistics.median(lane for _, lane in pairs) * 1e6,
        statistics.median(one / lane for one, lane in pairs),
        operations(work) / _speed(device, getattr(torch, work.dtype)) * 1e6,
    )


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
    examples, dtype = _examples(work, device), getattr(torch, work.dtype)
    network = lanes.initialise(work.build, 0).to(device, dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    criterion = nn.MSELoss() if work.task == "regression" else nn.CrossEntropyLoss()
    per_epoch = work.examples // work.batch_size
    order = torch.randperm(work.examples).to(device)

    def updates(count: int) -> None:
        for number in range(count):
            place = number % per_epoch * work.batch_size
            rows = order[place : place + work.batch_size]
            optimizer.zero_grad()
            criterion(network(examples.inputs[rows]), examples.targets[rows]).backward()
            optimizer.step()

    return updates


def _stack(work: Work, device: torch.device) -> Callable[[int], None]:
    examples, rule = _examples(work, device), RULES["adam"]
    configurations = lanes.grid(1e-5, 1e-4, work.lanes // 4, range(4))
    stack = lanes.Stack.build(work.build, configurations, rule, getattr(torch, work.dtype), device)
    network = work.build()
    block = lanes.block_size(models.activations(network, work.in_shape), stack)
    forward, batches = lanes.stacked(network), lanes.Batches(examples, work.batch_size, stack)

    def updates(count: int) -> None:
        lanes.advance(stack, forward, batches, work.task, rule, stack.update + count, block)

    return updates


def _per_update(updates: Callable[[int], None], device: torch.device) -> float:
    """Seconds of an update, over about `TURN_SECONDS`."""
    count, spent = 1, 0.0
    while True:
        started = time.perf_counter()
        updates(count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - started
        if spent > TURN_SECONDS / 2:
            return spent / count
        count = max(2 * count, int(count * TURN_SECONDS / max(spent, 1e-6)))


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)

    def products(count: int) -> None:
        for _ in range(count):
            a @ a

    return 2 * size**3 / _per_update(products, device)


def run(device: str = "cpu", only: str = "") -> dict[str, Any]:
    """Measure every work whose name contains `only`, on one thread; what `study bench` prints and writes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [asdict(measure(work, torch.device(device))) for work in WORKS if only in work.name]
    finally:
        torch.set_num_threads(before)
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"torch": torch.__version__, "python": platform.python_version(), "hardware": hardware, "rows": rows}
