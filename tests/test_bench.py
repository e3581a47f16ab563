"""The measurements run and say what they claim to; nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import trainables.engines.bench
from study.errors import UsageError
from study.verify import bench, size
from trainables.engines.bench import WORKS, Work

JAX = """
import dataclasses, numpy, torch, trainables.engines.bench as bench
from trainables.engines.jax_peer import epochs
bench.TURN_SECONDS = 1e-3
rows = bench.measure(dataclasses.replace(bench.WORKS[1], examples=320), torch.device("cpu"), rounds=1)
assert [row["engine"] for row in rows] == ["eager", "native", "jax"], rows
inputs, targets = numpy.linspace(-1, 1, 64)[:, None], numpy.zeros((64, 1))
train = epochs([1, 4, 1], inputs, targets, 8, numpy.array([0.01, 0.01]), 2)
losses = [float(train(count).max()) for count in (1, 30)]
assert losses[1] < losses[0] / 10, losses
"""


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without JAX: where it was imported, every later fork warns."""
    monkeypatch.setattr(trainables.engines.bench, "TURN_SECONDS", 1e-3)
    monkeypatch.setattr(trainables.engines.bench, "find_spec", lambda name: None)


@pytest.mark.nightly
def test_jax_trains_the_same_work() -> None:
    """In a process of its own."""
    subprocess.run([sys.executable, "-c", JAX], check=True)


@pytest.mark.parametrize("work", WORKS, ids=[work.name for work in WORKS])
def test_every_line_of_the_table_is_measured(work: Work) -> None:
    small = dataclasses.replace(work, lanes=4, examples=min(work.examples, 300), batch_size=min(work.batch_size, 300))
    rows = trainables.engines.bench.measure(small, torch.device("cpu"), rounds=1)
    assert [row["engine"] for row in rows] == ["eager", "native"]
    for row in rows:
        assert row["name"] == work.name
        assert row["ratio"] == pytest.approx(row["solo_us"] / row["lane_us"])
        assert min(row["lane_us"], row["bound_us"]) > 0


def test_the_regime_figure_is_summed_over_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainables.engines.bench, "update_seconds", lambda *_, **__: 0.5)
    works = [dataclasses.replace(work, lanes=4, seeds=2, examples=64) for work in trainables.engines.bench.FIGURE[:2]]
    monkeypatch.setattr(trainables.engines.bench, "FIGURE", works)
    gathered = trainables.engines.bench.figure(rounds=1)
    figure, epochs = gathered["figure"], gathered["epochs"]
    assert figure["ratio"] == pytest.approx(figure["loop_seconds"] / figure["lane_seconds"])
    assert figure["loop_seconds"] == pytest.approx(10 * sum(row["loop"] for row in epochs))
    assert [(row["batch_size"], row["measured"]) for row in epochs] == [(1, 32.0), (32, 1.0)]
    console = Console(width=80, file=io.StringIO(), record=True)
    bench.show(gathered, console)
    assert "batches of 32" in (text := console.export_text())
    assert "…" not in text


def test_operations_are_two_per_product_and_three_passes() -> None:
    mlp = next(work for work in WORKS if work.name == "2-16-8-1 MLP, batch 32")
    assert trainables.engines.bench.operations(mlp) == 6 * 32 * (2 * 16 + 16 * 8 + 8)
    cnn = next(work for work in WORKS if work.name == "4-8 channel CNN, batch 4")
    products = 25 * 4 * 24 * 24 + 25 * 4 * 8 * 8 * 8 + 128 * 32 + 32 * 16 + 16 * 10
    assert trainables.engines.bench.operations(cnn) == 6 * 4 * products


@pytest.mark.long
def test_the_torch_part_needs_torch_and_numpy_alone(tmp_path: Path) -> None:
    code = """
import sys
for name in ("jax", "ray", "optuna", "pandas", "pydantic", "sklearn", "torchvision", "platformdirs", "pyarrow", "rich"):
    sys.modules[name] = None  # importing it raises
from trainables.engines import bench
bench.TURN_SECONDS = 1e-3
import json
print(json.dumps(bench.run("cpu", "2-16-8-1 MLP, batch 32")))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = json.loads(found.stdout)["rows"]
    assert {row["name"] for row in rows} == {"2-16-8-1 MLP, batch 32"}
    assert [row["engine"] for row in rows] == ["eager", "native"]


def test_the_committed_results_print_within_80_columns() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    for file in (Path(__file__).parent / "benchmarks").glob("*.json"):
        bench.show(json.loads(file.read_text()), console)
    text = console.export_text()
    assert "…" not in text
    assert all(work.name in text for work in WORKS)
    assert all(title in text for title in ("plain Ray Tune", "empty trials", "10,000 trials", "512 lanes of a CNN"))


def test_the_table_of_the_readme_has_the_committed_results() -> None:
    tests = Path(__file__).parent
    committed = json.loads((tests / "benchmarks" / "cpu-2-cores.json").read_text())
    readme = (tests.parent / "README.md").read_text()
    ratios = {(row["name"], row["engine"]): row["ratio"] for row in committed["updates"]}
    for work in WORKS:
        each = (ratios.get((work.name, engine)) for engine in ("native", "jax", "eager"))
        numbers = " | ".join(
            "" if ratio is None else f"{ratio:,.0f}x" if ratio >= 20 else f"{ratio:.1f}x" for ratio in each
        )
        assert f"| {work.name} | {work.lanes} | {numbers} |" in readme
    for number in (committed["study"]["ratio"], *(row["ratio"] for row in committed["search"][1:])):
        assert f"{number:,.0f} times" in readme


def test_a_name_that_measures_nothing_is_answered() -> None:
    with pytest.raises(
        UsageError, match=r"no such measurement; valid: figure, study, search, trials, size, or a part of"
    ):
        bench.run("cnns")


@pytest.mark.long
def test_the_solo_run_of_the_peers_trains() -> None:
    config = {"width": 8, "depth": 1, "optimizer": "adam", "learning_rate": 0.01, "seed": 0, "batch_size": 32}
    assert bench.solo_run(config) < 0.1
    assert bench.solo_run({**config, "updates": 1}) > 0.1


@pytest.mark.long
def test_heavy_loads_are_measured() -> None:
    assert size.suggestion(12) > 0
    assert [name for name, _ in size.shapes(6)] == ["memory that 4 trials add"]
    (_, held), (_, expected) = size.stack(16)
    assert held >= 0
    assert expected > 16 * 10_000
    (_, largest), (_, numbers) = size.table(2000, 3)
    assert largest > numbers == 4 * 6000


@pytest.mark.nightly
def test_studies_of_empty_trials_are_measured() -> None:
    (row,) = size.studies([20])
    assert row["trials"] == 20
    assert min(row[f"{command}_seconds"] for command in ("status", "report", "resume", "suggest")) > 0
    console = Console(width=80, file=io.StringIO(), record=True)
    bench.show({"sizes": [row], "loads": [{"name": "a load", "seconds": 1.5, "bytes": 3_000_000}]}, console)
    assert "…" not in (text := console.export_text())
    assert "20 trials" in text
    assert "a load" in text
