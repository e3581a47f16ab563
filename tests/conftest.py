"""Fixtures shared by the tests."""

from __future__ import annotations

import os

# One thread a process, before torch is imported, and inherited by what tests start: the test workers' threads would
# spin against one another, which makes small updates ten times as expensive.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what tests start would compile torch from source each time

import itertools
import json
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

import analysis
from analysis.schema import CURVES, FOLDERS, LANES, TABLES, TRIALS, regime
from tests import processes

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it in the background; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("study", deadline=None, max_examples=30)  # a busy machine is no failure
settings.register_profile("thorough", deadline=None, max_examples=300)  # `make nightly`
settings.load_profile("study")

TRAINING_EXAMPLES, VALIDATION_EXAMPLES = 10_000, 2_000
PART = "0000001-0000001.parquet"

# Planted truth: the best loss of an optimizer, and the rate at which it reaches it; above 30 times that, it diverges.
PLANTED = {
    "gradient-descent": (0.30, 0.3),
    "sgd": (0.20, 0.1),
    "momentum": (0.08, 0.02),
    "nesterov": (0.07, 0.02),
    "adagrad": (0.15, 0.3),
    "rmsprop": (0.05, 0.003),
    "adam": (0.01, 0.01),
    "adamw": (0.02, 0.01),
}
BATCH_PENALTY = {1: 2.0, 32: 1.0, 256: 1.5, TRAINING_EXAMPLES: 8.0}
DEFAULT_RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 1.0, 6))


def write_tables(folder: Path, **tables: Sequence[dict[str, Any]]) -> None:
    """Write the tables of a results folder as one part each, straight with the shared schemas."""
    for name, rows in tables.items():
        (folder / FOLDERS[name]).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows), schema=TABLES[name]), folder / FOLDERS[name] / PART)


def trial_row(**values: Any) -> dict[str, Any]:
    """A row of `trials`, plausible wherever nothing is given."""
    row = {
        "trial": 0, "optimizer": "adam", "width": 8, "depth": 1, "batch_size": 32, "regime": "mini-batch",
        "outcome": "completed", "updates": 900, "examples": 30_000, "epochs": 3.0, "train_seconds": 2.0,
        "wall_seconds": 3.0,
    }  # fmt: skip
    assert set(values) <= set(TRIALS.names)
    return row | values


def lane_row(**values: Any) -> dict[str, Any]:
    """A row of `lanes`, plausible wherever nothing is given; without losses unless given."""
    row = {
        "trial": 0, "lane": 0, "learning_rate": 0.01, "seed": 0, "outcome": "completed", "stopped_update": None,
        "updates": 900, "train_seconds": 2.0, "train_seconds_share": 0.1,
    }  # fmt: skip
    assert set(values) <= set(LANES.names)
    return row | values


def curve_row(**values: Any) -> dict[str, Any]:
    """A row of `curves`; examples, epoch and seconds follow from the update unless given."""
    update = values.get("update", 0)
    row = {
        "trial": 0, "lane": 0, "update": update, "examples": 32 * update, "epoch": 32 * update / TRAINING_EXAMPLES,
        "train_seconds": 0.002 * update, "split": "validation", "metric": "loss", "value": 1.0,
    }  # fmt: skip
    assert set(values) <= set(CURVES.names)
    return row | values


def write_spec(
    folder: Path,
    name: str = "quick",
    metric: str = "loss",
    target: float | None = None,
    trials: int = 48,
    objectives: Sequence[str] = (),
) -> None:
    """Write a `spec.toml`; the name is quoted as JSON, which TOML reads."""
    folder.mkdir(parents=True, exist_ok=True)
    solved = "" if target is None else f"target = {target}\n"
    tuning = f"\n[tuning]\nobjectives = {json.dumps(list(objectives))}\n" if objectives else ""
    (folder / "spec.toml").write_text(
        f'name = {json.dumps(name)}\ndescription = "Cubic regression, small networks."\n\n'
        f'[workload]\ndata = "cubic"\nmodel = "mlp"\nmetric = "{metric}"\n{solved}standardize = true\n\n'
        f"[budget]\ntrials = {trials}\nepochs = 3\n\n[resources]\ncpus_per_trial = 1\n{tuning}",
        encoding="utf-8",
    )


def write_provenance(folder: Path, loss: str = "mean squared error (in variances of y)") -> None:
    """Write a `provenance.json` of a finished study."""
    provenance = {
        "command": "study run quick", "commit": None,
        "started": "2026-11-24T09:00:00+00:00", "finished": "2026-11-24T09:12:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.11.0"},
        "hardware": {"cpu": "Some CPU", "cpus": 2, "memory_bytes": 25_000_000_000, "gpus": []},
        "seeds": {"root": 0, "lanes": [0, 1, 2]},
        "data": {"train": TRAINING_EXAMPLES, "validation": VALIDATION_EXAMPLES, "test": 2000, "loss": loss},
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")


def planted_loss(optimizer: str, width: int, depth: int, batch_size: int, rate: float) -> float:
    """The loss that a cell reaches at a rate, without noise; infinite where it diverges."""
    best, tuned = PLANTED.get(optimizer, (0.5, 0.01))
    if rate > 30 * tuned:
        return math.inf
    distance = math.log10(rate / tuned)
    return (
        best * BATCH_PENALTY.get(batch_size, 1.2) * 10 ** (0.4 * distance**2) * (8 / width) ** 0.2 * 1.1 ** (2 - depth)
    )


def write_study(
    folder: Path,
    *,
    optimizers: Sequence[str] = ("sgd", "momentum", "rmsprop", "adam"),
    widths: Sequence[int] = (8, 32),
    depths: Sequence[int] = (1, 2),
    batch_sizes: Sequence[int] = (1, 32, TRAINING_EXAMPLES),
    settings: Sequence[str | None] = (None,),
    replicates: int = 1,
    rates: Sequence[float] = DEFAULT_RATES,
    seeds: int = 3,
    noise: float = 0.08,
    metric: str = "loss",
    target: float | None = None,
    name: str = "quick",
    objectives: Sequence[str] = (),
    diverge: Callable[[dict[str, Any]], bool] = lambda cell: False,
) -> Path:
    """Write the results folder of a grid study with the planted truth, curves included.

    Args:
        folder: where; made if missing.
        optimizers: of the grid.
        widths: of the grid.
        depths: of the grid.
        batch_sizes: of the grid; 10,000 is the whole training split.
        settings: of the grid; without influence on the loss.
        replicates: trials of each cell, each with seeds of its own; all cells once, then all again.
        rates: learning rates of each cell.
        seeds: seeds of each rate.
        noise: standard deviation of the log loss over seeds.
        metric: `loss`, or `accuracy`, which is exp(-2 loss).
        target: of the workload.
        name: of the study.
        objectives: of the search; none leaves them out of the spec.
        diverge: whether every lane of a cell (optimizer, width, depth, batch_size) diverges.
    """
    rng = np.random.default_rng(0)
    grid = list(itertools.product(range(replicates), optimizers, widths, depths, batch_sizes, settings))
    write_spec(folder, name, metric, target, len(grid), objectives)
    write_provenance(folder)
    luck = rng.normal(
        0, noise, seeds * replicates
    )  # of a seed: shared by all cells, as lanes with one seed share their batches
    trials, lanes, curves = [], [], []
    for trial, (replicate, optimizer, width, depth, batch_size, chosen) in enumerate(grid):
        cell = {"optimizer": optimizer, "width": width, "depth": depth, "batch_size": batch_size}
        updates = max(100, 3 * math.ceil(TRAINING_EXAMPLES / batch_size))
        seconds = updates * 2e-4 * (1 + batch_size / 500)
        survivors = 0
        own = range(replicate * seeds, (replicate + 1) * seeds)
        for lane, (rate, seed) in enumerate(itertools.product(rates, own)):
            final = planted_loss(**cell, rate=rate) * math.exp(luck[seed] + rng.normal(0, noise / 2))
            fine = math.isfinite(final) and not diverge(cell)
            survivors += fine
            row = lane_row(
                trial=trial, lane=lane, learning_rate=rate, seed=seed, updates=updates if fine else 17,
                outcome="completed" if fine else "diverged", diverged_update=None if fine else 17,
                train_seconds=seconds, train_seconds_share=seconds / len(rates) / seeds,
            )  # fmt: skip
            if fine:
                for split, factor in {"train": 0.9, "validation": 1.0, "test": 1.05}.items():
                    row[f"{split}_loss"] = final * factor
                    if metric == "accuracy":
                        row[f"{split}_accuracy"] = math.exp(-2 * final * factor)
            lanes.append(row)
            points = [0, *sorted({max(1, round(x)) for x in np.geomspace(max(1, updates / 300), updates, 14)})]
            for update in points if fine else points[:2]:
                shape = final + (1.2 - final) * math.exp(-7 * (update / updates) ** 0.6) if fine else 1.2 + update
                value = shape * math.exp(rng.normal(0, noise / 4))
                where = {
                    "trial": trial, "lane": lane, "update": update, "examples": update * batch_size,
                    "epoch": update * batch_size / TRAINING_EXAMPLES, "train_seconds": seconds * update / updates,
                }  # fmt: skip
                curves.append(curve_row(**where, value=value))
                if metric == "accuracy":
                    curves.append(curve_row(**where, metric="accuracy", value=math.exp(-2 * shape)))
                if update:
                    spread = 1.2 / math.sqrt(batch_size)
                    batch = value * math.exp(rng.normal(0, spread))
                    curves.append(curve_row(**where, split="batch", value=batch))
        trials.append(
            trial_row(
                trial=trial, **cell, regime=regime(batch_size, TRAINING_EXAMPLES), lanes=len(rates) * seeds,
                outcome="completed" if survivors else "diverged", updates=updates, examples=updates * batch_size,
                epochs=updates * batch_size / TRAINING_EXAMPLES, train_seconds=seconds, wall_seconds=seconds * 1.3,
                settings=chosen, replicate=replicate, parameters=width * depth,
            )
        )  # fmt: skip
    write_tables(folder, trials=trials, lanes=lanes, curves=curves)
    return folder


def write_confirmation(
    folder: Path,
    *,
    top: int = 3,
    best_of: Sequence[str] = (),
    seeds: int = 10,
    curse: float = 1.0,
    noise: float = 0.08,
    diverged: int = 0,
) -> Path:
    """Write `confirm/` into a study's folder: its best cells at their tuned rates on fresh seeds.

    Args:
        folder: the study's.
        top: how many cells.
        best_of: optimizer, regime: also the best cell of each.
        seeds: fresh seeds of each.
        curse: planted winner's curse: the factor from a cell's mean loss in the search to that on fresh seeds.
        noise: standard deviation of the log loss over seeds.
        diverged: seeds of the best cell that diverge.
    """
    rng, results = np.random.default_rng(1), analysis.load(folder)
    ranked = analysis.rank(analysis.cells(results), results.maximize)
    firsts = np.array([~ranked[name].duplicated() for name in best_of]).any(axis=0)
    best, trials, lanes = ranked[(ranked.index < top) | firsts], [], []
    for trial, cell in enumerate(best.to_dict("records")):
        shared = ["optimizer", "width", "depth", "batch_size", "regime", "updates", "examples", "epochs"]
        settings = cell["settings"] or None
        trials.append(trial_row(trial=trial, settings=settings, **{name: cell[name] for name in shared}))
        mean = -math.log(cell["validation"]) / 2 if results.maximize else cell["validation"]
        for seed in range(seeds):
            row = lane_row(trial=trial, lane=seed, learning_rate=cell["learning_rate"], seed=1000 + seed)
            loss = mean * curse * math.exp(rng.normal(0, noise))
            row |= {f"{split}_loss": loss for split in ("validation", "test")}
            if results.maximize:
                row |= {f"{split}_accuracy": math.exp(-2 * loss) for split in ("validation", "test")}
            if trial == 0 and seed < diverged:
                row = lane_row(trial=0, lane=seed, learning_rate=cell["learning_rate"], seed=1000 + seed)
                row |= {"outcome": "diverged", "diverged_update": 5}
            lanes.append(row)
    write_spec(folder / "confirm", "confirm", results.metric)
    write_provenance(folder / "confirm")
    write_tables(folder / "confirm", trials=trials, lanes=lanes)
    return folder


# The files that take longest start first, so that no worker is left with one of them at the end.
SLOWEST = ("test_cli.py", "test_histories.py", "test_engines.py", "test_report.py", "test_remote.py", "test_tune.py")


def pytest_xdist_auto_num_workers() -> int:
    """Three for two processors: a third of the time, tests wait for processes that start, end or hang."""
    return math.ceil(1.5 * (os.cpu_count() or 1))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nightly tests are long ones too, so `-m "not long"` leaves out both; the slowest files come first."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker("long")


def pytest_runtest_teardown() -> None:
    """A test that fails, or its set-up, leaves no study running beside the next."""
    processes.end_all()


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts one processor: what a small study costs is starting its workers, and few tests need two of them."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')


@pytest.fixture(scope="session")
def quick_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid study of 48 cells, six rates and three seeds, in which adam at batch size 32 is best."""
    full_momentum = {"optimizer": "momentum", "batch_size": TRAINING_EXAMPLES}
    return write_study(
        tmp_path_factory.mktemp("results") / "quick",
        target=0.1,
        diverge=lambda cell: full_momentum.items() <= cell.items(),
    )


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """A factory of results folders: `write_study` below a temporary folder."""

    def make(**options: Any) -> Path:
        return write_study(tmp_path / "results" / "study", **options)

    return make


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder with the real MNIST files: STUDY_DATA, or the one beside the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STUDY_DATA", beside)).absolute()
    if not (folder / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"needs the MNIST files in {folder}/MNIST/raw; set STUDY_DATA to a folder that has them")
    return folder


@pytest.fixture
def words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with captions but without figures, of which drawing some twenty takes seconds."""

    def unseen(drawing: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return {"title": drawing.title, "image": None, "reason": drawing.caption}

    monkeypatch.setattr("analysis.figures.exhibit.Exhibit.save", unseen)
