"""The native engine: its kernel equals the ordinary loop, also for odd shapes, and lanes do not touch one another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables.config import PLAIN, Recipe
from trainables.engines.eager import Eager
from trainables.engines.kernel import build, wheels
from trainables.engines.native import KERNELS, Native, Wide
from trainables.lanes.batches import Batches
from trainables.lanes.reference import alone, relative
from trainables.lanes.stack import Lane, Stack
from trainables.rules import RULES, named
from trainables.workloads.catalogue import OPTIMIZERS, Task
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split

TESTS = Path(__file__).parent
CPU = torch.device("cpu")
RECIPE = Recipe("cosine", 0.2, 0.1, 0.5, 0.1)
ODD = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 17])


@pytest.fixture(autouse=True, scope="module")
def _kernel() -> None:
    assert build.unavailable() is None, "the tests need a C compiler"


def dense(features: int, hidden: list[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for pair in pairwise([features, *hidden]):
        layers += [nn.Linear(*pair), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([features, *hidden][-1], outputs))


def convolutional(image: tuple[int, int, int], filters: int, kernel: int, padding: int, pool: int) -> nn.Sequential:
    height, width = ((side + 2 * padding - kernel + 1) // pool for side in image[1:])
    return nn.Sequential(
        nn.Conv2d(image[0], filters, kernel, padding=padding), nn.ReLU(), nn.MaxPool2d(pool),
        nn.Conv2d(filters, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * height * width, 2),
    )  # fmt: skip


def random_split(shape: tuple[int, ...], outputs: int, count: int, task: Task) -> Split:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    if task == "classification":
        return Split(x, torch.randint(0, outputs, (count,), generator=generator))
    return Split(x, torch.randn(count, outputs, generator=generator, dtype=torch.float64))


def trained(
    kind: type[Native | Wide],
    make: Callable[[], nn.Sequential],
    split: Split,
    batch: int,
    rule: str,
    lanes: list[Lane],
    updates: int = 5,
    task: Task = "classification",
) -> tuple[Stack, torch.Tensor, dict[str, torch.Tensor]]:
    """The stack after some updates in two calls, the losses, and an evaluation on the split."""
    shape = tuple(split.inputs.shape[1:])
    stack = Stack.build(make, lanes, named(rule), split.inputs.dtype, CPU, updates)
    engine = kind(make(), shape, Criterion(task), 16, batch, stack)
    batches, rows = Batches(split, batch, stack), slice(0, len(lanes))
    losses = [engine.advance(stack, batches, rows, 2)]
    stack.update = 2
    losses.append(engine.advance(stack, batches, rows, updates))
    return stack, torch.cat(losses), engine.evaluate(stack, rows, split)


def assert_equals_the_ordinary_loop(
    kind: type[Native | Wide],
    make: Callable[[], nn.Sequential],
    split: Split,
    batch: int,
    rule: str,
    lanes: list[Lane],
    task: Task,
) -> None:
    stack, losses, evaluation = trained(kind, make, split, batch, rule, lanes, 5, task)
    eager = Eager(make(), Criterion(task), 16).evaluate(stack, slice(0, len(lanes)), split)
    for place, lane in enumerate(lanes):
        network, updates = alone(make, named(rule), split, batch, lane, Criterion(task), 5)
        expected = torch.stack(list(updates))
        flat = torch.cat([p.detach().flatten() for p in network.parameters()])
        assert relative(losses[:, place], expected) < 1e-9
        assert relative(stack.parameters[place], flat) < 1e-9
    for name, values in evaluation.items():
        assert relative(values, eager[name]) < 1e-9


def test_the_kernel_has_every_rule() -> None:
    assert set(KERNELS) == {name for name in RULES if not OPTIMIZERS[name].eager}
    for name, (_, known, coefficients) in KERNELS.items():
        assert set(known) <= set(RULES[name].settings)
        assert set(coefficients) <= set(RULES[name].coefficients(1, 1))


@settings(max_examples=40)
@given(st.data())
def test_dense_networks_of_odd_sizes_equal_the_ordinary_loop(data: st.DataObject) -> None:
    draw = data.draw
    features, hidden, outputs = draw(ODD), draw(st.lists(ODD, max_size=3)), draw(ODD)
    count = draw(st.sampled_from([1, 2, 7, 31, 64]))
    batch = draw(st.sampled_from([1, 3, 8, 32, count, count + 5]))
    task: Task = draw(st.sampled_from(["classification", "regression"]))
    recipes = draw(st.sampled_from([(PLAIN, PLAIN), (PLAIN, RECIPE), (RECIPE, RECIPE)]))
    count_of_lanes = draw(st.sampled_from([1, 2, 3, 5, 9]))
    lanes = [Lane(10.0 ** -(2 + lane % 2), lane % 2, (), recipes[lane % 2]) for lane in range(count_of_lanes)]
    kind, rule = draw(st.sampled_from([Native, Wide])), draw(st.sampled_from(sorted(KERNELS)))
    split = random_split((features,), outputs, count, task)
    assert_equals_the_ordinary_loop(kind, lambda: dense(features, hidden, outputs), split, batch, rule, lanes, task)


@settings(max_examples=20)
@given(st.data())
def test_convolutions_of_odd_sizes_equal_the_ordinary_loop(data: st.DataObject) -> None:
    draw = data.draw
    image = draw(st.sampled_from([1, 3])), draw(st.integers(6, 11)), draw(st.integers(6, 11))
    filters, kernel, padding = draw(ODD), draw(st.integers(1, 5)), draw(st.integers(0, 2))
    pool, count = draw(st.integers(1, 2)), draw(st.sampled_from([2, 17, 40]))
    batch = draw(st.sampled_from([1, 4, 17, count]))
    lanes = [Lane(10.0 ** -(2 + lane % 2), lane % 2) for lane in range(draw(st.sampled_from([1, 3, 9])))]
    split = random_split(image, 2, count, "classification")
    make = lambda: convolutional(image, filters, kernel, padding, pool)  # noqa: E731
    assert_equals_the_ordinary_loop(Native, make, split, batch, "momentum", lanes, "classification")


CHAINS: dict[str, Callable[[], list[nn.Module]]] = {
    "relu first": lambda: [nn.Flatten(), nn.ReLU(), nn.Linear(16, 3)],
    "relu last": lambda: [nn.Flatten(), nn.Linear(16, 3), nn.ReLU()],
    "two relus": lambda: [nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.ReLU(), nn.Linear(5, 3)],
    "padded": lambda: [
        nn.Conv2d(1, 2, 3),
        nn.ReLU(),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ],
    "pool, relu": lambda: [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)],
    "pool first": lambda: [nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_relus_at_any_place_equal_the_ordinary_loop(chain: str) -> None:
    """The kernel does the work of some in the products beside them."""
    split, lanes = random_split((1, 4, 4), 3, 20, "classification"), [Lane(0.1, 0), Lane(0.03, 1)]
    assert_equals_the_ordinary_loop(
        Native, lambda: nn.Sequential(*CHAINS[chain]()), split, 8, "momentum", lanes, "classification"
    )


@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.float32), (8, torch.float64), (64, torch.float32)])
def test_the_bits_of_a_lane_depend_on_nothing_beside_it(batch: int, dtype: torch.dtype) -> None:
    make = lambda: dense(3, [8], 2)  # noqa: E731
    split = random_split((3,), 2, 64, "classification")
    split = Split(split.inputs.to(dtype), split.targets)
    lanes = [Lane(rate, seed) for rate in (1e-3, 1e-2, 1e200) for seed in range(4)]  # the last rate diverges
    together, losses, _ = trained(Native, make, split, batch, "sgd", lanes)
    for order in ([5], [7, 5, 2], [11, 10, 9, 8, 5]):
        some, found, _ = trained(Native, make, split, batch, "sgd", [lanes[lane] for lane in order])
        place = order.index(5)
        assert torch.equal(some.parameters[place], together.parameters[5])
        assert torch.equal(found[:, place], losses[:, 5])
    assert not torch.isfinite(losses[-1, 8:]).any()
    assert torch.isfinite(losses[:, :8]).all()


def test_a_nan_survives_relu_pooling_and_the_loss() -> None:
    image = (1, 6, 6)
    split = random_split(image, 2, 8, "classification")
    split.inputs[3, 0, 0, 0] = torch.nan
    _, losses, evaluation = trained(Native, lambda: convolutional(image, 2, 3, 1, 2), split, 8, "sgd", [Lane(0.1, 0)])
    assert losses.isnan().all()
    assert evaluation["loss"].isnan().all()


def test_settings_that_differ_between_lanes_are_right_in_float32() -> None:
    lanes = [Lane(1e-3, 0, (("beta2", beta2),)) for beta2 in (0.999, 0.99999)]
    split = random_split((3,), 2, 64, "classification")
    single = Split(split.inputs.float(), split.targets)
    together, _, _ = trained(Native, lambda: dense(3, [8], 2), single, 8, "adam", lanes, 100)
    for place, lane in enumerate(lanes):
        network, updates = alone(
            lambda: dense(3, [8], 2), named("adam"), single, 8, lane, Criterion("classification"), 100
        )
        list(updates)
        flat = torch.cat([p.detach().flatten() for p in network.parameters()])
        assert relative(together.parameters[place], flat) < 2e-6


def test_threads_share_out_the_tiles_with_the_same_bits() -> None:
    split = random_split((3,), 2, 30, "classification")
    lanes = [Lane(0.01, seed) for seed in range(19)]
    one, _, _ = trained(Native, lambda: dense(3, [8], 2), split, 4, "adam", lanes)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three, _, _ = trained(Native, lambda: dense(3, [8], 2), split, 4, "adam", lanes)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.parameters, three.parameters)


def test_a_machine_without_a_compiler_says_so() -> None:
    code = "from trainables.engines.kernel import build; print(build.compilers(), build.unavailable())"
    environment = {**os.environ, "PATH": "", "CC": "", "XDG_CACHE_HOME": "/nonexistent"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(("[] ", f"[['{sys.executable}', '-m', 'ziglang', 'cc']]"))


def test_a_library_of_another_source_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    name = build.name_of("float32")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.name_of("float32") != name


def test_losses_of_large_batches_are_summed_in_float64() -> None:
    """Of 10,000 equal examples: sums in float32 would drift."""
    x = torch.full((10_000, 1), 0.1)
    many, one = Split(x, 3 * x), Split(x[:1], 3 * x[:1])
    make, lanes = lambda: dense(1, [], 1), [Lane(0.0, 0)]
    _, losses, evaluation = trained(Native, make, many, 10_000, "sgd", lanes, task="regression")
    _, expected, _ = trained(Native, make, one, 1, "sgd", lanes, task="regression")
    np.testing.assert_allclose(losses.numpy(), expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(evaluation["loss"].item(), expected[0].item(), rtol=1e-6)


SANITIZED = "gcc -g -fsanitize=address,undefined -fno-sanitize-recover=all"
COMPILERS = {"gcc": "gcc", "clang": "clang", "zig": f"{sys.executable} -m ziglang cc", "sanitizers": SANITIZED}


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_build_by_another_compiler_passes_the_suite(compiler: str, tmp_path: Path) -> None:
    if not shutil.which(COMPILERS[compiler].split()[0]):
        pytest.skip(f"{compiler} is not installed")
    code = (
        "import sys, pytest; from pathlib import Path; from trainables.engines.kernel import build; "
        "build.folders = lambda: [Path(sys.argv[1])]; print(build.identity('float64')); "
        "sys.exit(pytest.main(['-q', '-x', '-n0', '-k', 'native', '-m', 'not nightly', *sys.argv[2:]]))"
    )
    environment = {**os.environ, "CC": COMPILERS[compiler]}
    if compiler == "sanitizers":
        asked = [["gcc", f"-print-file-name={name}.so"] for name in ("libasan", "libstdc++")]
        preload = [subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in asked]
        environment |= {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}  # Python's own leaks
    command = [sys.executable, "-c", code, str(tmp_path), "tests/test_native.py", "tests/test_engines.py"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (" by gcc" in run.stdout) == (compiler in ("gcc", "sanitizers"))


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("platform", wheels.PLATFORMS)
def test_the_kernel_of_each_wheel_can_be_built(platform: str, tmp_path: Path) -> None:
    files = wheels.cross_build(platform, tmp_path)
    assert len(files) == 2 * len(wheels.PLATFORMS[platform])
    own = build.name_of("float32")
    if platform == "manylinux_2_17_x86_64" and build.processor().startswith("x86") and sys.platform == "linux":
        assert own in {file.name for file in files}
