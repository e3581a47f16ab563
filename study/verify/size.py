"""How costs grow: thousands of trials, many lanes, a large table; `study bench --only size`."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from analysis import results
from study.cluster import ray
from study.session import run_session
from study.spec import Spec, check
from study.tuning.samplers import sampler
from study.tuning.space import Space
from trainables.engines.memory import lane_bytes
from trainables.storage import data_folder
from trainables.tune import LaneTrainable, trainable

# Trials of different shapes that one worker runs; its memory is compared from the first third on.
SHAPES = 300
LANES, ROWS, FEATURES = 512, 1_000_000, 50


def empty(count: int, sampler: str = "random") -> Spec:
    """A search by trials of one update of one lane."""
    return check(
        {
            "name": "empty",
            "workload": {"data": "linear", "model": "linear", "dtype": "float64"},
            "search": {"batch_size": {"low": 1, "high": 100}, "optimizer": ["sgd", "adam"]},
            "lanes": {"rates": 1, "seeds": 1, "extensions": 0, "refine": 0},
            "budget": {"trials": count, "updates": 1},
            "tuning": {"sampler": sampler},
            "confirm": False,
        }
    )


def search(spec: Spec, here: ray.Cluster, folder: Path) -> dict[str, Any]:
    """Run a search, and what each of its trials cost."""
    with memory() as held:
        run_session(spec, folder, data_folder(), here, "", show="quiet")
    trials = results.load(folder).trials
    ends = (trials["started"] + trials["wall_seconds"]).sort_values().to_numpy()
    return scale("ours", ends, held, folder)


@contextmanager
def memory() -> Iterator[list[tuple[float, int]]]:
    """The resident memory of this process every half second: time and bytes."""
    samples = [(time.time(), resident())]
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.5):
            samples.append((time.time(), resident()))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def resident(process: str = "self") -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scale(name: str, ends: np.ndarray, held: list[tuple[float, int]], folder: Path) -> dict[str, Any]:
    """Per-trial figures of a run from the times at which its trials ended, and in its last quarter.

    The first quarter is left out, since its first trials wait for workers to import torch.
    """
    quarters = [ends[len(ends) * part // 4 - 1] for part in (1, 2, 3, 4)]
    times, sizes = np.array(held).T
    at_quarters = np.interp(quarters, times, sizes)
    each = len(ends) / 4
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        "name": name,
        "trials": len(ends),
        "seconds_per_trial": (quarters[3] - quarters[0]) / (3 * each),
        "seconds_per_trial_last_quarter": (quarters[3] - quarters[2]) / each,
        "driver_bytes_per_trial": (at_quarters[3] - at_quarters[0]) / (3 * each),
        "files": len(files),
        "bytes_per_trial": sum(file.stat().st_size for file in files) / len(ends),
    }


def studies(counts: Sequence[int]) -> list[dict[str, Any]]:
    """What studies of many empty trials cost: a trial, the seconds of commands, and a suggestion of TPE after them.

    The resume finds a finished study and its report, which it keeps.
    """
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "empty"
            with ray.connected(spec := empty(count), None) as here:
                row = search(spec, here, folder) | {"name": f"{count:,} trials"}
            for command in ("status", "report", "resume"):
                row[f"{command}_seconds"] = _command(command, folder)
            rows.append({**row, "suggest_seconds": suggestion(count)})
    return rows


def suggestion(count: int) -> float:
    """Seconds of one suggestion by TPE after a number of trials, in memory."""
    space = Space(empty(count + 1, "tpe"), "", "")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, trial.number % 7)
    study.sampler = sampler(space.spec, count)
    return timed(lambda: space.suggest(study.ask()))


def loads() -> list[dict[str, Any]]:
    """Seconds and bytes of heavy loads, each in a process of its own."""
    rows = []
    for load in (shapes, stack, table):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows += pool.submit(_load, load).result()
    return rows


def _load(load: Callable[[], list[tuple[str, int]]]) -> list[dict[str, Any]]:
    begun, found = time.perf_counter(), load()
    return [{"name": name, "bytes": size, "seconds": time.perf_counter() - begun} for name, size in found]


def shapes(count: int = SHAPES) -> list[tuple[str, int]]:
    """What a worker's memory grows by in two thirds of its trials, all of different shapes."""
    tables = empty(1).tables()
    tables["workload"] |= {"model": "mlp"}
    tables["search"] |= {"width": {"low": 4, "high": 512}, "depth": [1, 2, 3]}
    space = Space(check(tables), str(data_folder()), "")
    worker: LaneTrainable | None = None
    for number in range(count):
        cell = {"optimizer": ("sgd", "adam")[number % 2], "batch_size": 1 + number % 100, "width": 4 + number}
        worker = _trained(worker, space, {**cell, "depth": 1 + number % 3}, number)
        if number == count // 3:
            before = resident()
    return [(f"memory that {count - count // 3} trials add", resident() - before)]


def stack(count: int = LANES) -> list[tuple[str, int]]:
    """What lanes of a CNN take beside what `trainables.engines.memory` expects of them."""
    tables = empty(1).tables()
    tables["workload"] |= {"data": "digits", "model": "cnn", "dtype": "float32"}
    tables["search"] = {"batch_size": 64, "optimizer": "adam", "width": 8, "depth": 1}
    tables["lanes"] |= {"rates": 8, "seeds": count // 8}
    spec = check(tables)
    space = Space(spec, str(data_folder()), "")
    cell = {"optimizer": "adam", "batch_size": 64, "width": 8, "depth": 1}
    one = check({**tables, "lanes": {**tables["lanes"], "rates": 1, "seeds": 1}})
    worker = _trained(None, Space(one, str(data_folder()), ""), cell, 0)  # what a worker holds anyway
    with memory() as held:
        worker = _trained(worker, space, cell, 1)
    kept, working = lane_bytes(worker.run.build(), spec.workload.facts.in_shape, 64, worker.run.stack)
    peak = max(size for _, size in held) - held[0][1]
    return [(f"{count} lanes of a CNN", peak), ("as expected of them", (kept + working) * count)]


def table(rows: int = ROWS, features: int = FEATURES) -> list[tuple[str, int]]:
    """The most that any process of a study of a large table holds, beside the bytes of its numbers."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs = np.random.default_rng(0).standard_normal((rows, features), dtype=np.float32)
        np.savez(Path(scratch) / "large.npz", x=inputs, y=inputs[:, 0] > 0)
        text = f"""name = "large"
confirm = false
workload = {{data = "{scratch}/large.npz", model = "mlp"}}
search = {{batch_size = {min(10_000, rows // 4)}, optimizer = "adam", width = 16, depth = 1}}
lanes = {{rates = 2, seeds = 1, extensions = 0, refine = 0}}
budget = {{trials = 1, epochs = 1}}
"""
        (spec := Path(scratch) / "large.toml").write_text(text)
        size, begun, done = inputs.nbytes, time.time(), threading.Event()
        del inputs
        largest = [0]

        def follow() -> None:
            while not done.wait(0.2):
                largest[0] = max(largest[0], *(_resident_since(begun, each) for each in Path("/proc").glob("[0-9]*")))

        (thread := threading.Thread(target=follow, daemon=True)).start()
        _command("run", spec, "--out", Path(scratch) / "results")
        done.set()
        thread.join()
    return [(f"a study of {rows:,} x {features}, its largest process", largest[0]), ("its numbers", size)]


def _resident_since(begun: float, process: Path) -> int:
    """Bytes that a process holds; 0 if it is older, or has ended."""
    try:
        return resident(process.name) if process.stat().st_mtime >= begun else 0
    except (OSError, IndexError):
        return 0


def _trained(worker: LaneTrainable | None, space: Space, cell: dict[str, Any], number: int) -> LaneTrainable:
    """A worker that has run a trial, the one that is given or a new one."""
    config = space.configuration(cell, number) | {"checkpoint": None}
    if worker is None:
        worker = trainable(space.spec.workload.model)(config)
    else:
        worker.reset_config(config)
    while not worker.train()["done"]:  # type: ignore[no-untyped-call]
        pass
    return worker


def _command(*words: object) -> float:
    """Seconds of a `study` command."""
    command = [sys.executable, "-m", "study", *map(str, words)]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
