"""`study bench`: what our trials cost beside what a user would run otherwise, on this machine, in one run.

Six parts: an update of a lane beside the solo loop, and the source report's regime figure (both in
`trainables.engines.bench`); a shipped study, from the command to its report, beside its runs in plain torch; a whole
search beside plain Ray Tune and plain Optuna, on the same networks, examples and processors; what Ray adds to a
trial that does nothing; and, if asked for, how costs grow with sizes (`study.verify.size`).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, islice
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
from study.errors import UsageError
from study.results import CONFIRM
from study.results.provenance import commit, hardware, versions
from study.session import run_session
from study.spec import Spec, check, reading
from study.spec.changes import planned_trials
from study.verify import size
from trainables.lanes.reference import alone
from trainables.lanes.stack import Lane
from trainables.rules import named
from trainables.storage import data_folder, write_text
from trainables.workloads import data, models

# Peers run so many (configuration, seed) runs, and are scaled; they would take hours for all.
RAY_RUNS, OPTUNA_RUNS = 8, 24
EMPTY_TRIALS, PLAIN_TRIALS = 2000, 40
SIZES = (100, 1000, 10_000)
PARTS = ("figure", "study", "search", "trials", "size")
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


def run(only: str = "", device: str = "cpu") -> dict[str, Any]:
    """Measure and gather everything.

    Args:
        only: `figure`, `study`, `search`, `trials`, `size`, or part of the name of a line of the first table;
            everything but `size`, which takes half an hour, if empty. A `UsageError` if nothing has this name.
        device: for the first table.
    """
    if only not in (*PARTS, "") and not any(only in work.name for work in trainables.engines.bench.WORKS):
        names = "; ".join(work.name for work in trainables.engines.bench.WORKS)
        raise UsageError(
            f"--only {only}", f"no such measurement; valid: {', '.join(PARTS)}, or a part of a name: {names}"
        )
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    found: dict[str, Any] = {"commit": commit(), "began": began, "versions": versions(), "hardware": hardware()}
    if only in ("", "study"):
        found["study"] = shipped("quick")
    if only in ("", "search"):
        found["search"] = searches(SEARCH)
    if only in ("", "search", "trials"):
        found["trials"] = empty_trials(EMPTY_TRIALS, PLAIN_TRIALS)
    if only == "size":
        found |= {"sizes": size.studies(SIZES), "loads": size.loads()}
    # Last, since JAX's threads do not survive the fork by which Ray starts.
    if only in ("", "figure"):
        found |= trainables.engines.bench.figure(device)
    if only not in PARTS:
        found["updates"] = trainables.engines.bench.run(device, only)["rows"]
    return found


def shipped(name: str) -> dict[str, Any]:
    """A study from the command to its report, beside the training of all its runs one after another in plain torch.

    Of plain torch, some updates of each cell are timed, and multiplied by those that its lanes made. It evaluates
    nothing and writes nothing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        command = [sys.executable, "-m", "study", "run", name, "--out", str(folder)]
        seconds = size.timed(lambda: subprocess.run(command, check=True, capture_output=True))
        spec, runs, plain = reading.read(folder / "spec.toml"), 0, 0.0
        for stage in (folder, folder / CONFIRM):
            if stage.is_dir():
                study = results.load(stage)
                made = study.lanes.groupby("trial")["updates"].sum()
                cells: Any = study.trials.to_dict("records")
                plain += sum(_plain_update_seconds(spec, cell) * made[cell["trial"]] for cell in cells)
                runs += len(study.lanes)
    shares = {"seconds": seconds, "plain_seconds": plain, "ratio": plain / seconds}
    return {"name": name, "runs": runs, **shares, "cores": os.cpu_count()}


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


def searches(spec: Spec) -> list[dict[str, Any]]:
    """The same search by our trials, by plain Ray Tune and by plain Optuna.

    Returns:
        One row for each: runs, the (configuration, seed) runs that were made; seconds that they took on all processors,
        start-up of workers included; runs_per_hour; and the ratio of ours to these.
    """
    with ray.connected(spec, None) as here, tempfile.TemporaryDirectory() as scratch:
        ours = size.timed(lambda: run_session(spec, Path(scratch), data_folder(), here, "", show="quiet"))
        at_once = here.room()
        plain_ray = size.timed(lambda: _plain_ray(SPACE, RAY_RUNS, Path(scratch)))
    plain_optuna = size.timed(lambda: _plain_optuna(OPTUNA_RUNS, at_once))
    made = planned_trials(spec) * spec.lanes.rates * spec.lanes.seeds
    measured = [("ours", made, ours), ("plain Ray Tune", RAY_RUNS, plain_ray)]
    measured.append(("plain Optuna", OPTUNA_RUNS, plain_optuna))
    rows: list[dict[str, Any]] = [
        {"name": n, "runs": k, "seconds": s, "runs_per_hour": k / s * 3600} for n, k, s in measured
    ]
    return [{**row, "ratio": rows[0]["runs_per_hour"] / row["runs_per_hour"]} for row in rows]


# What plain Ray Tune and plain Optuna search: values to choose from; the rate is log-uniform.
SPACE: dict[str, list[Any]] = {
    "width": [8, 16],
    "depth": [1, 2],
    "optimizer": ["sgd", "adam"],
    "seed": [*range(5)],
    "batch_size": [32],
}
EMPTY: dict[str, list[Any]] = {"updates": [1], "optimizer": ["sgd", "adam"], "batch_size": [*range(1, 101)]}
RATES = (1e-5, 1e-2)


def solo_run(config: dict[str, Any]) -> float:
    """One configuration with one seed, as one would write it: tensors in memory, torch.optim, one thread.

    With `updates` it makes as many of a linear model, instead of `EPOCHS` of an MLP.
    """
    torch.set_num_threads(1)
    updates = config.get("updates")
    examples = data.load("linear" if updates else "cubic", standardize=True, dtype=torch.float64)
    torch.manual_seed(config.get("seed", 0))
    if updates:
        network: nn.Module = nn.Linear(len(examples.train.inputs[0]), 1).double()
    else:
        network = models.mlp((2,), 1, width=config["width"], depth=config["depth"]).double()
    optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = optimizers[config["optimizer"]](network.parameters(), lr=config["learning_rate"])
    criterion = nn.MSELoss()
    epochs = (torch.randperm(len(examples.train)).split(config["batch_size"]) for _ in range(EPOCHS))
    for rows in islice(chain.from_iterable(epochs), updates):
        optimizer.zero_grad()
        criterion(network(examples.train.inputs[rows]), examples.train.targets[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(criterion(network(examples.validation.inputs), examples.validation.targets))


def _plain_ray(space: dict[str, list[Any]], runs: int, folder: Path) -> list[float]:
    """A function trainable, one configuration a trial, as Ray Tune's documentation shows; the times of their ends."""
    from ray import tune

    tuner = tune.Tuner(
        _reporting_run,
        param_space={name: tune.choice(values) for name, values in space.items()}
        | {"learning_rate": tune.loguniform(*RATES)},
        tune_config=tune.TuneConfig(num_samples=runs, metric="loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(folder / "plain"), verbose=0),
    )
    return [float(result.metrics["timestamp"]) for result in list(tuner.fit()) if result.metrics]  # type: ignore[call-overload]


def _reporting_run(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"loss": solo_run(config)})


def _plain_optuna(runs: int, at_once: int) -> None:
    """`study.optimize` around the solo loop, in as many threads as there are processors."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        config = {name: trial.suggest_categorical(name, values) for name, values in SPACE.items()}
        loss = solo_run(config | {"learning_rate": trial.suggest_float("learning_rate", *RATES, log=True)})
        return loss if math.isfinite(loss) else 1e9

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study().optimize(objective, n_trials=runs, n_jobs=at_once)


def empty_trials(count: int, plain: int) -> list[dict[str, Any]]:
    """What a trial costs beyond its work: trials of one update of one lane, ours and plain Ray Tune's.

    Args:
        count: of ours.
        plain: of plain Ray Tune's, a function trainable with Ray Tune's own loggers and snapshots.
    """
    spec = size.empty(count)
    with ray.connected(spec, None) as here, tempfile.TemporaryDirectory() as scratch:
        ours = size.search(spec, here, Path(scratch) / "empty")
        for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_GLOBAL_CHECKPOINT_S"):
            os.environ.pop(name, None)
        with size.memory() as held:
            ends = np.sort(np.array(_plain_ray(EMPTY, plain, Path(scratch))))
        return [ours, size.scale("plain Ray Tune", ends, held, Path(scratch) / "plain")]


# Each table of `show`: where it is in what `run` gathered, its title and columns, the note below, and a row's cells.
_TABLES: tuple[tuple[str, str, str, str, Callable[[dict[str, Any]], tuple[Any, ...]]], ...] = (
    (
        "updates",
        "one update, Adam",
        "engine K solo lane ratio bound",
        "K lanes; solo, lane: microseconds; bound: times the arithmetic's",
        lambda r: (r["engine"], r["lanes"], r["solo_us"], r["lane_us"], r["ratio"], r["lane_us"] / r["bound_us"]),
    ),
    (
        "figure",
        "the report's regime figure, s a seed",
        "seeds its_loop lane ratio",
        "batches of 1, 32 and 10,000, 10 epochs",
        lambda r: (r["seeds"], r["loop_seconds"], r["lane_seconds"], r["ratio"]),
    ),
    (
        "epochs",
        "an epoch of one network, s",
        "measured_by_a_trial plain_torch",
        "",
        lambda r: (r["measured"], r["loop"]),
    ),
    (
        "study",
        "a shipped study, from command to report",
        "runs seconds plain_torch ratio",
        "plain torch: seconds of training its runs one after another, on one core",
        lambda r: (r["runs"], r["seconds"], r["plain_seconds"], r["ratio"]),
    ),
    (
        "search",
        f"MLP on cubic, {EPOCHS} epochs, batch 32",
        "runs seconds runs_per_hour ours_/_it",
        "",
        lambda r: (r["runs"], r["seconds"], r["runs_per_hour"], r["ratio"]),
    ),
    (
        "trials",
        "empty trials",
        "number s s,_last_quarter KB files KB_on_disk",
        "each: s from one end to the next; KB of the driver's memory, and on disk",
        lambda r: (
            r["trials"],
            r["seconds_per_trial"],
            r["seconds_per_trial_last_quarter"],
            r["driver_bytes_per_trial"] / 1000,
            r["files"],
            r["bytes_per_trial"] / 1000,
        ),
    ),
    (
        "sizes",
        "studies of empty trials",
        "s KB files status report resume suggest",
        "each: s from one end to the next, KB of the driver's memory; of commands and a suggestion: seconds",
        lambda r: (
            r["seconds_per_trial"],
            r["driver_bytes_per_trial"] / 1000,
            r["files"],
            r["status_seconds"],
            r["report_seconds"],
            r["resume_seconds"],
            r["suggest_seconds"],
        ),
    ),
    ("loads", "at size", "s MB", "", lambda r: (r["seconds"], r["bytes"] / 1e6)),
)


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `run` gathered, for people, within 80 columns."""
    for key, title, columns, note, cells in _TABLES:
        if not (rows := found.get(key)):
            continue
        names = [name.replace("_", " ") for name in columns.split()]
        numbers = (Column(name, justify="right", no_wrap=True) for name in names)
        table = Table(Column(title, no_wrap=True), *numbers, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for row in rows if isinstance(rows, list) else [rows]:
            name = row.get("name") or (f"batches of {row['batch_size']:,}" if "batch_size" in row else "")
            table.add_row(name, *(cell if isinstance(cell, str) else _figure(cell) for cell in cells(row)))
        console.print(table)
        if note:
            console.print(note)


def _figure(number: float) -> str:
    """A count as it is, a measurement with three digits."""
    if isinstance(number, int):
        return str(number)
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


def write(found: dict[str, Any], file: Path) -> None:
    """Write what `run` gathered, as JSON."""
    write_text(file, json.dumps(found, indent=1) + "\n")
