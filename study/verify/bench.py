"""`study bench`: what our trials cost beside what a user would run otherwise, on this machine, in one run.

Six parts: an update of a lane beside the solo loop, and the source report's regime figure (both in
`trainables.engines.bench`); a shipped study, from the command to its report, beside its runs in plain torch; a whole
search beside plain Ray Tune and plain Optuna, on the same networks, examples and processors; what Ray adds to a
trial that does nothing; and, if asked for, what thousands of such trials leave to read.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import nn

import trainables.engines.bench
from analysis import results
from study.cluster import ray
from study.cluster.build import builder, criterion
from study.results import CONFIRM
from study.results.provenance import commit, hardware, versions
from study.session import run_session
from study.spec import Spec, check, reading
from study.spec.changes import planned_trials
from trainables.lanes.reference import alone
from trainables.lanes.stack import Lane
from trainables.rules import named
from trainables.storage import data_folder, write_text
from trainables.workloads import data, models

# Peers run so many (configuration, seed) runs, and are scaled; they would take hours for all.
RAY_RUNS, OPTUNA_RUNS = 8, 24
EMPTY_TRIALS, PLAIN_TRIALS = 2000, 40
SIZES = (100, 1000, 10_000)
# The updates of a cell by plain torch are timed for so long.
PLAIN_SECONDS = 0.2
EPOCHS = 20
SEARCH = check(
    {
        "name": "bench",
        "workload": {"data": "cubic", "model": "mlp", "dtype": "float64"},
        "search": {"width": [8, 16], "depth": [1, 2], "batch_size": 32, "optimizer": ["sgd", "adam"]},
        "lanes": {"rates": 8, "seeds": 5, "extensions": 0, "refine": 0},
        "budget": {"trials": 8, "epochs": EPOCHS},
        "tuning": {"sampler": "grid"},
        "confirm": False,
    }
)


@dataclass(frozen=True)
class SearchRow:
    """A way to make a whole search.

    Attributes:
        name: what ran.
        runs: (configuration, seed) runs that were made and timed.
        seconds: that they took, on all processors, start-up of workers included.
        runs_per_hour: what follows.
        ratio: of ours to these.
    """

    name: str
    runs: int
    seconds: float
    runs_per_hour: float
    ratio: float


def run(only: str = "", device: str = "cpu") -> dict[str, Any]:
    """Measure and gather everything.

    Args:
        only: `figure`, `study`, `search`, `trials`, `size`, or part of the name of a line of the first table;
            everything but `size`, which takes a quarter of an hour, if empty.
        device: for the first table.
    """
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    found: dict[str, Any] = {"commit": commit(), "began": began, "versions": versions(), "hardware": hardware()}
    if only in ("", "study"):
        found["study"] = shipped("quick")
    if only in ("", "search"):
        found["search"] = [asdict(row) for row in searches(SEARCH)]
    if only in ("", "search", "trials"):
        found["trials"] = empty_trials(EMPTY_TRIALS, PLAIN_TRIALS)
    if only == "size":
        found["sizes"] = sizes(SIZES)
    # Last, since JAX's threads do not survive the fork by which Ray starts.
    if only in ("", "figure"):
        found["figure"] = asdict(trainables.engines.bench.figure(device))
        found["epochs"] = [asdict(row) for row in trainables.engines.bench.epochs(device)]
    if only not in ("figure", "study", "search", "trials", "size"):
        found["updates"] = trainables.engines.bench.run(device, only)["rows"]
    return found


def shipped(name: str, *options: str) -> dict[str, Any]:
    """A study from the command to its report, beside the training of all its runs one after another in plain torch.

    Of plain torch, some updates of each cell are timed, and multiplied by those that its lanes made. It evaluates
    nothing and writes nothing.

    Args:
        name: of the spec.
        options: of `study run`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        command = [sys.executable, "-m", "study", "run", name, "--out", str(folder), *options]
        seconds = _timed(lambda: subprocess.run(command, check=True, capture_output=True))
        spec, runs, plain = reading.read(folder / "spec.toml"), 0, 0.0
        for stage in (folder, folder / CONFIRM):
            if stage.is_dir():
                study = results.load(stage)
                made = study.lanes.groupby("trial")["updates"].sum()
                cells: Any = study.trials.to_dict("records")
                plain += sum(_plain_update_seconds(spec, cell) * made[cell["trial"]] for cell in cells)
                runs += len(study.lanes)
    shares = {"seconds": seconds, "plain_seconds": plain, "ratio": plain / seconds}
    return {"name": " ".join([name, *options]), "runs": runs, **shares, "cores": os.cpu_count()}


def _plain_update_seconds(spec: Spec, cell: dict[str, Any]) -> float:
    """Seconds of an update of one network of a trial's cell by the ordinary loop, on one thread."""
    torch.set_num_threads(1)
    workload = spec.workload
    examples = data.load(workload.data, standardize=workload.standardize, dtype=getattr(torch, workload.dtype)).train
    build, lane, rule = builder(spec, cell["width"], cell["depth"]), Lane(1e-6, 0), named(cell["optimizer"])
    _, updates = alone(build, rule, examples, cell["batch_size"], lane, criterion(spec), 10**9)
    next(updates)
    made, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < PLAIN_SECONDS or made < 3:
        next(updates)
        made += 1
    return spent / made


def searches(spec: Spec) -> list[SearchRow]:
    """The same search by our trials, by plain Ray Tune and by plain Optuna."""
    with ray.connected(spec, None) as here, tempfile.TemporaryDirectory() as scratch:
        ours = _timed(lambda: run_session(spec, Path(scratch), data_folder(), here, "", show="quiet"))
        at_once = here.room()
        plain_ray = _timed(lambda: _plain_ray(RAY_RUNS, Path(scratch)))
    plain_optuna = _timed(lambda: _plain_optuna(OPTUNA_RUNS, at_once))
    trials = planned_trials(spec)
    measured = (
        ("ours", trials * spec.lanes.rates * spec.lanes.seeds, ours),
        ("plain Ray Tune", RAY_RUNS, plain_ray),
        ("plain Optuna", OPTUNA_RUNS, plain_optuna),
    )
    best = measured[0][1] / ours
    return [
        SearchRow(name, runs, seconds, runs / seconds * 3600, best / (runs / seconds))
        for name, runs, seconds in measured
    ]


def solo_run(config: dict[str, Any]) -> float:
    """One configuration with one seed, as one would write it: tensors in memory, torch.optim, one thread."""
    torch.set_num_threads(1)
    examples = data.load("cubic", standardize=True, dtype=torch.float64)
    torch.manual_seed(config["seed"])
    network = models.mlp((2,), 1, width=config["width"], depth=config["depth"]).double()
    optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = optimizers[config["optimizer"]](network.parameters(), lr=config["learning_rate"])
    criterion = nn.MSELoss()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(examples.train)).split(32):
            optimizer.zero_grad()
            criterion(network(examples.train.inputs[rows]), examples.train.targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return float(criterion(network(examples.validation.inputs), examples.validation.targets))


def _plain_ray(runs: int, scratch: Path) -> None:
    """A function trainable, one configuration a trial, as Ray Tune's documentation shows."""
    from ray import tune

    space = {
        "width": tune.choice([8, 16]),
        "depth": tune.choice([1, 2]),
        "optimizer": tune.choice(["sgd", "adam"]),
        "learning_rate": tune.loguniform(1e-5, 1e-2),
        "seed": tune.randint(0, 5),
    }
    tuner = tune.Tuner(
        _reporting_run,
        param_space=space,
        tune_config=tune.TuneConfig(num_samples=runs, metric="loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(scratch / "plain"), verbose=0),
    )
    tuner.fit()


def _reporting_run(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"loss": solo_run(config)})


def _plain_optuna(runs: int, at_once: int) -> None:
    """`study.optimize` around the solo loop, in as many threads as there are processors."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        loss = solo_run(
            {
                "width": trial.suggest_categorical("width", [8, 16]),
                "depth": trial.suggest_int("depth", 1, 2),
                "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
                "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
                "seed": trial.suggest_int("seed", 0, 4),
            }
        )
        return loss if math.isfinite(loss) else 1e9

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study().optimize(objective, n_trials=runs, n_jobs=at_once)


def empty_trials(count: int, plain: int) -> list[dict[str, Any]]:
    """What a trial costs beyond its work: trials of one update of one lane, ours and plain Ray Tune's.

    Args:
        count: of ours.
        plain: of plain Ray Tune's, a function trainable with Ray Tune's own loggers and snapshots.
    """
    spec = _empty(count)
    with ray.connected(spec, None) as here, tempfile.TemporaryDirectory() as scratch:
        ours = _run_empty(spec, here, Path(scratch) / "empty")
        for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_GLOBAL_CHECKPOINT_S"):
            os.environ.pop(name, None)
        folder = Path(scratch) / "plain"
        with Memory() as memory:
            ends = np.sort(_plain_empty(plain, folder))
        return [ours, _scale("plain Ray Tune", ends, memory, folder)]


def sizes(counts: Sequence[int]) -> list[dict[str, Any]]:
    """What studies of many empty trials cost: a trial, as `empty_trials` says, and then the seconds of commands."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "empty"
            with ray.connected(spec := _empty(count), None) as here:
                row = _run_empty(spec, here, folder)
            for command in ("status", "report", "resume"):  # a resume of a finished study writes the report again
                run = [sys.executable, "-m", "study", command, str(folder)]
                row[f"{command}_seconds"] = _timed(partial(subprocess.run, run, check=True, capture_output=True))
            rows.append(row)
    return rows


def _empty(count: int) -> Spec:
    """A search by trials of one update of one lane."""
    tables = SEARCH.tables()
    tables["workload"] |= {"data": "linear", "model": "linear"}
    tables["search"] = {"batch_size": {"low": 1, "high": 100}, "optimizer": ["sgd", "adam"]}
    tables["lanes"] = {"rates": 1, "seeds": 1, "extensions": 0, "refine": 0}
    tables["budget"] = {"trials": count, "updates": 1}
    tables["tuning"] = {"sampler": "random"}
    return check(tables)


def _run_empty(spec: Spec, here: ray.Cluster, folder: Path) -> dict[str, Any]:
    with Memory() as memory:
        run_session(spec, folder, data_folder(), here, "", show="quiet")
    trials = results.load(folder).trials
    ends = (trials["started"] + trials["wall_seconds"]).sort_values().to_numpy()
    return _scale("ours", ends, memory, folder)


class Memory:
    """Follows the resident memory of this process, the driver, every half second."""

    def __enter__(self) -> Memory:
        self.samples: list[tuple[float, int]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.stop.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.samples.append((time.time(), pages * os.sysconf("SC_PAGE_SIZE")))


def _scale(name: str, ends: np.ndarray, memory: Memory, folder: Path) -> dict[str, Any]:
    """Per-trial figures of a run from the times at which its trials ended: in its second and in its last quarter.

    The first quarter is left out, since its first trials wait for workers to import torch.
    """
    quarters = [ends[len(ends) * part // 4 - 1] for part in (1, 2, 3, 4)]
    times, sizes = np.array(memory.samples).T
    held = np.interp(quarters, times, sizes)
    each = len(ends) / 4
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        "name": name,
        "trials": len(ends),
        "seconds_per_trial": (quarters[3] - quarters[0]) / (3 * each),
        "seconds_per_trial_second_quarter": (quarters[1] - quarters[0]) / each,
        "seconds_per_trial_last_quarter": (quarters[3] - quarters[2]) / each,
        "driver_bytes_per_trial": (held[3] - held[0]) / (3 * each),
        "driver_bytes_per_trial_last_quarter": (held[3] - held[2]) / each,
        "files": len(files),
        "bytes_per_trial": sum(file.stat().st_size for file in files) / len(ends),
    }


def _plain_empty(count: int, folder: Path) -> list[float]:
    """Trials of one update as Ray Tune's documentation shows them; the times at which they ended."""
    from ray import tune

    tuner = tune.Tuner(
        _one_update,
        param_space={"batch_size": tune.randint(1, 101), "optimizer": tune.choice(["sgd", "adam"])},
        tune_config=tune.TuneConfig(num_samples=count, metric="loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    return [float(result.metrics["timestamp"]) for result in list(tuner.fit()) if result.metrics]  # type: ignore[call-overload]


def _one_update(config: dict[str, Any]) -> None:
    from ray import tune

    examples = data.load("linear", standardize=True, dtype=torch.float64).train
    network = nn.Linear(len(examples.inputs[0]), 1).double()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = kinds[config["optimizer"]](network.parameters(), lr=0.01)
    rows = slice(config["batch_size"])
    loss = nn.functional.mse_loss(network(examples.inputs[rows]), examples.targets[rows])
    loss.backward()
    optimizer.step()
    tune.report({"loss": float(loss)})


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `run` gathered, for people, within 80 columns."""
    if rows := found.get("updates"):
        table = _table("one update, Adam", "engine", "K", "solo", "lane", "ratio", "bound")
        for row in rows:
            numbers = (row["solo_us"], row["lane_us"], row["ratio"], row["lane_us"] / row["bound_us"])
            table.add_row(row["name"], row["engine"], str(row["lanes"]), *map(_figure, numbers))
        console.print(table)
        console.print("K lanes; solo, lane: microseconds; bound: times the arithmetic's")
    if row := found.get("figure"):
        table = _table("the report's regime figure, s a seed", "seeds", "its loop", "lane", "ratio")
        speeds = (row["loop_seconds"], row["lane_seconds"], row["ratio"])
        table.add_row("batches of 1, 32 and 10,000, 10 epochs", str(row["seeds"]), *map(_figure, speeds))
        console.print(table)
    if rows := found.get("epochs"):
        table = _table("an epoch of one network, s", "measured by a trial", "plain torch")
        for row in rows:
            table.add_row(f"batches of {row['batch_size']:,}", *map(_figure, (row["measured"], row["loop"])))
        console.print(table)
    if row := found.get("study"):
        table = _table("a shipped study, from command to report", "runs", "seconds", "plain torch", "ratio")
        times = (row["seconds"], row["plain_seconds"], row["ratio"])
        table.add_row(row["name"], str(row["runs"]), *map(_figure, times))
        console.print(table)
        console.print(f"plain torch: seconds of training its runs one after another, on one of {row['cores']} cores")
    if rows := found.get("search"):
        table = _table(f"MLP on cubic, {EPOCHS} epochs, batch 32", "runs", "seconds", "runs per hour", "ours / it")
        for row in rows:
            speeds = (row["seconds"], row["runs_per_hour"], row["ratio"])
            table.add_row(row["name"], str(row["runs"]), *map(_figure, speeds))
        console.print(table)
    if rows := found.get("trials"):
        table = _table("empty trials", "number", "s", "s, last quarter", "KB", "files", "KB on disk")
        for row in rows:
            figures = (
                row["seconds_per_trial"],
                row["seconds_per_trial_last_quarter"],
                row["driver_bytes_per_trial"] / 1000,
                row["files"],
                row["bytes_per_trial"] / 1000,
            )
            table.add_row(row["name"], str(row["trials"]), *map(_figure, figures))
        console.print(table)
        console.print("each: s from one end to the next; KB of the driver's memory, and on disk")
    if rows := found.get("sizes"):
        table = _table("studies of empty trials", "s", "KB", "files", "status", "report", "resume, report")
        for row in rows:
            trial = [row["seconds_per_trial"], row["driver_bytes_per_trial"] / 1000, row["files"]]
            commands = [row[f"{command}_seconds"] for command in ("status", "report", "resume")]
            table.add_row(f"{row['trials']:,} trials", *map(_figure, trial + commands))
        console.print(table)
        console.print("each: s from one end to the next, KB of the driver's memory; of commands: seconds")


def _table(what: str, *columns: str) -> Table:
    numbers = (Column(name, justify="right", no_wrap=True) for name in columns)
    return Table(Column(what, no_wrap=True), *numbers, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


def write(found: dict[str, Any], file: Path) -> None:
    """Write what `run` gathered, as JSON."""
    write_text(file, json.dumps(found, indent=1) + "\n")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
