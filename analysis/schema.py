"""The layout of a results folder: files, tables and their columns, outcomes. The writer and the reader share it.

A results folder holds `spec.toml`, `provenance.json` and the tables of `TABLES`. Each table is a folder of Parquet
parts that only grows: a part is named `FIRST-LAST-DIGEST.parquet` after the appends that it holds and a digest of its
bytes, which earlier versions left out. `importance.parquet` is a single file, derived from the trials. JSON files hold
a digest of their content. The subfolder `confirm/` is a results folder too: the best cells, run again at their tuned
learning rates on seeds that the search did not use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

CELL = ["optimizer", "width", "depth", "batch_size", "settings"]
"""The columns that identify a cell."""

AXES = ("update", "examples", "epoch", "train_seconds")
"""The four measures of the length of training."""

OBJECTIVES = ("metric", "train_seconds", "updates", "examples", "parameters")
"""The objectives of a search; all but the metric are minimized."""

TRIES = 5
"""Attempts at listing and reading the parts of a table, which a running study may merge meanwhile."""


class ResultsError(ValueError):
    """A folder that cannot be read as results; the message names the file and what was expected."""


class DamagedError(ResultsError):
    """A file whose bytes are not those that were written."""


class ResultsWarning(UserWarning):
    """Something is wrong with a results folder that can be read all the same."""


PROVENANCE, PREVIOUS = "provenance.json", ".provenance.json.previous"
"""The record of a study's sessions, with the spec that its trials ran with; and the one that was written before."""


PART_NAME = re.compile(r"(\d+)-(\d+)(?:-([0-9a-f]{16}))?\.parquet")
"""First and last append, and the digest, in the name of a part."""


def digest(content: bytes) -> str:
    """16 hexadecimal digits that any change of some bytes changes."""
    return hashlib.sha256(content).hexdigest()[:16]


def part_name(first: int, last: int, content: bytes) -> str:
    """The name of the part of a table that holds the appends first to last in these bytes."""
    return f"{first:07d}-{last:07d}-{digest(content)}.parquet"


def seal(content: Mapping[str, Any]) -> str:
    """JSON text of a table with a digest of its content, for `unseal`."""
    return json.dumps({**content, "digest": _content_digest(content)}, indent=1) + "\n"


def unseal(file: Path) -> dict[str, Any]:
    """The table in a JSON file, without its digest; one of an earlier version has none, and is taken as it is.

    Raises:
        DamagedError: if it is no JSON table, or its content is not that of its digest.
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file}: is damaged: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{file}: is damaged: not a JSON object")
    if (kept := content.pop("digest", None)) is not None and kept != _content_digest(content):
        raise DamagedError(f"{file}: is damaged: its digest is not that of its content")
    return content


def rows_digest(rows: list[dict[str, Any]]) -> str:
    """A digest of the rows of a small table."""
    return digest(json.dumps(rows).encode())


def dotted(tables: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested tables, as `section.key` and value."""
    for name, value in tables.items():
        yield from dotted(value, f"{path}{name}.") if isinstance(value, dict) else [(f"{path}{name}", value)]


def _content_digest(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())


class Outcome(StrEnum):
    """How a trial or a lane ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    FAILED = "failed"
    OUT_OF_MEMORY = "out of memory"
    INTERRUPTED = "interrupted"


class Regime(StrEnum):
    """How much of the training split an update uses."""

    STOCHASTIC = "stochastic"
    MINI_BATCH = "mini-batch"
    BATCH = "batch"


REGIMES = tuple(str(each) for each in Regime)
"""The regimes as plain text, in order."""


def regime(batch_size: int, training_examples: int) -> Regime:
    """Stochastic at batch size 1, batch at the whole training split, otherwise mini-batch."""
    if batch_size >= training_examples:
        return Regime.BATCH
    return Regime.STOCHASTIC if batch_size == 1 else Regime.MINI_BATCH


def _column(name: str, kind: pa.DataType, description: str, *, optional: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=optional, metadata={"description": description})


_optional = partial(_column, optional=True)


def _schema(*columns: pa.Field) -> pa.Schema:
    return pa.schema(columns, metadata={"version": str(SCHEMA_VERSION)})


STINT = pa.struct(
    [
        ("started", pa.float64()),
        ("ended", pa.float64()),
        ("worker", pa.string()),
        ("gpus", pa.list_(pa.string())),
        ("share", pa.float64()),
        ("cpus", pa.int64()),
    ]
)
"""One stay of a trial on a worker: Unix times in seconds; host:process; host:id of each GPU and the share of each that
the trial had; CPUs. The stay on a worker that was killed ends at the trial's last checkpoint."""

ROWS = pa.struct([(name, pa.int64()) for name in ("lanes", "curves", "predictions")])
"""How many rows a trial has in each other table."""

TRIALS = _schema(
    _column("trial", pa.int64(), "number of the trial, as in Optuna's storage"),
    _column("optimizer", pa.string(), "update rule"),
    _column("width", pa.int64(), "units of the first hidden layer, channels of the first convolution; 0 for linear"),
    _column("depth", pa.int64(), "hidden layers, or convolutions; 0 for linear"),
    _column("batch_size", pa.int64(), "examples per update"),
    _column("regime", pa.string(), "stochastic, mini-batch or batch; derived from batch_size"),
    _optional(
        "settings",
        pa.string(),
        "other searched parameters, as JSON: the optimizer's settings, and those of a user's model as model.NAME",
    ),
    _optional("replicate", pa.int64(), "earlier trials of the same cell; each has its own seeds"),
    _optional("parameters", pa.int64(), "parameters of one network"),
    _optional("lanes", pa.int64(), "settings (learning rates and recipes) x seeds trained together"),
    _optional("engine", pa.string(), "engine that computed the updates"),
    _optional("lanes_at_once", pa.int64(), "lanes per pass; fewer than lanes if they did not fit in memory"),
    _optional("extensions", pa.int64(), "times the learning-rate grid grew because its best rate lay on its edge"),
    _optional("refinements", pa.int64(), "times rates were then added around the best one"),
    _optional("loss_floor", pa.float64(), "the smallest loss that the precision resolves; smaller ones count as it"),
    _column("outcome", pa.string(), "how the trial ended"),
    _optional("value", pa.float64(), "the metric at the tuned learning rate; empty if none"),
    _optional("learning_rate", pa.float64(), "the tuned learning rate, chosen on the validation split"),
    _optional("recipe", pa.string(), "the tuned recipe, as in the lanes table; empty if only the rate is tuned"),
    _optional("reported", pa.list_(pa.float64()), "the value after each part of the budget; empty if none"),
    _column("updates", pa.int64(), "optimizer steps per lane"),
    _column("examples", pa.int64(), "training examples used per lane"),
    _column("epochs", pa.float64(), "passes over the training split"),
    _column(
        "train_seconds",
        pa.float64(),
        "training time of the whole stack in seconds, without evaluation. `analysis.load` calls it stack_seconds; its "
        "train_seconds are updates x update_seconds, of one network, if all trials have these",
    ),
    _optional(
        "update_seconds",
        pa.float64(),
        "seconds per update of one network trained alone by the plain torch loop, without augmentation, measured",
    ),
    _column("wall_seconds", pa.float64(), "seconds from start to end, everything included"),
    _optional("started", pa.float64(), "Unix time in seconds"),
    _optional("worker", pa.string(), "host:process of the last worker that ran it"),
    _optional("gpus", pa.list_(pa.string()), "host:id of each GPU it used or shared; none means CPU only"),
    _optional("stints", pa.list_(STINT), "its stays on workers, in order"),
    _optional("error", pa.string(), "the exception, or why its worker died"),
    _optional("rows", ROWS, "how many rows it has in each other table, by which lost ones are noticed"),
)
"""One row per trial, written when the trial ends."""

LANES = _schema(
    _column("trial", pa.int64(), "trial of the lane"),
    _column("lane", pa.int64(), "index of the lane in its trial"),
    _column("learning_rate", pa.float64(), "learning rate"),
    _column("seed", pa.int64(), "seed of initialisation and batches; equal seeds are paired across cells"),
    _optional(
        "recipe",
        pa.string(),
        "what the spec gives beside the rate: schedule, warmup, weight_decay, clip_norm, clip_value, ema and settings "
        "of the optimizer, as JSON; empty if nothing. Lanes of a trial with equal rates and recipes differ by "
        "seed only",
    ),
    _optional("schedule", pa.string(), "schedule of the learning rate; constant if not recorded"),
    _optional("warmup", pa.float64(), "share of the budget in which the rate rises; 0 if not recorded"),
    _optional("weight_decay", pa.float64(), "weight decay, as torch.optim's class of the optimizer has it"),
    _optional("clip_norm", pa.float64(), "largest norm of the gradient; empty for no limit"),
    _optional("clip_value", pa.float64(), "largest absolute value of a component of the gradient; empty for no limit"),
    _optional("ema", pa.float64(), "share that the average of the parameters keeps at an update; 0 for no average"),
    _optional("round", pa.string(), "in which its rate was tried: grid, extension 1, refinement 1 ..."),
    _column("outcome", pa.string(), "how the lane ended"),
    _optional("diverged_update", pa.int64(), "first update whose loss was not finite"),
    _optional("stopped_update", pa.int64(), "update at which successive halving stopped the lane's rate"),
    _column("updates", pa.int64(), "optimizer steps made; for a diverged lane those before it diverged"),
    _column("train_seconds", pa.float64(), "training time of the whole stack while this lane was in it"),
    _column("train_seconds_share", pa.float64(), "this lane's share of that time"),
    _optional("train_loss", pa.float64(), "last loss on the fixed training subset"),
    _optional("validation_loss", pa.float64(), "last loss on the validation split"),
    _optional("test_loss", pa.float64(), "loss on the test split at the end"),
    _optional("train_accuracy", pa.float64(), "last accuracy on the fixed training subset"),
    _optional("validation_accuracy", pa.float64(), "last accuracy on the validation split"),
    _optional("test_accuracy", pa.float64(), "accuracy on the test split at the end"),
    *(
        _optional(f"raw_{split}_{metric}", pa.float64(), f"{metric} on the {split} split at the end, without ema")
        for metric in ("loss", "accuracy")
        for split in ("validation", "test")
    ),
    _optional(
        "weights",
        pa.list_(pa.float64()),
        "final parameters in the network's order, then its buffers; empty unless the spec records them, or the trial "
        "is of a confirmation whose parameters are few (confirm.weights_mib)",
    ),
    _optional(
        "test_values",
        pa.list_(pa.float32()),
        "the study's metric of each test example, or of 10,000 evenly spaced ones: its loss; or 1 or 0 for accuracy or "
        "the value of a user's score. Empty unless the trial is of a confirmation; also where a user's loss or score "
        "gives an example another value in another batch",
    ),
)
"""One row per (trial, lane). Losses and accuracies are empty where a lane diverged or has none."""

CURVES = _schema(
    _column("trial", pa.int64(), "trial of the lane"),
    _column("lane", pa.int64(), "index of the lane in its trial"),
    _column("update", pa.int64(), "optimizer steps so far; 0 is the initialisation"),
    _column("examples", pa.int64(), "training examples used so far"),
    _column("epoch", pa.float64(), "passes over the training split so far"),
    _column(
        "train_seconds",
        pa.float64(),
        "training time of the whole stack so far, without evaluation; in `analysis.load` that of one network, as above",
    ),
    _column(
        "split",
        pa.string(),
        "train (a fixed subset of at most 1,000), validation, or batch (mean over the batches since the last point)",
    ),
    _column(
        "metric",
        pa.string(),
        "loss or accuracy; with recording.gradient_noise also, on the split train, gradient_square (squared norm of "
        "the mean gradient) and gradient_noise (trace of the covariance of the per-example gradients)",
    ),
    _column("value", pa.float64(), "value of the metric; for gradient_* an unbiased estimate, which can be negative"),
)
"""One row per (trial, lane, update, split, metric)."""

PREDICTIONS = _schema(
    _column("trial", pa.int64(), "trial of the lane"),
    _column("lane", pa.int64(), "index of the lane in its trial"),
    _column("example", pa.int64(), "index of the example in the test split"),
    _column("target", pa.int64(), "its class"),
    _column("predicted", pa.int64(), "the class that the trained lane predicts"),
    _column("probability", pa.float32(), "the softmax probability of that class"),
)
"""One row per (trial, lane, test example); empty unless the spec has `recording.predictions`."""

IMPORTANCE = _schema(
    _column("parameter", pa.string(), "searched parameter: optimizer, batch_size, width, depth, or e.g. adam.beta1"),
    _column("repeat", pa.int64(), "0 for all completed trials, 1 and up for bootstrap resamples of them"),
    _column("importance", pa.float64(), "the parameter's share of the importance for the metric; a repeat sums to 1"),
)
"""One row per (repeat, parameter): how much each parameter matters. One file, rewritten as trials end."""
IMPORTANCE_FILE = "importance.parquet"

TABLES = {"trials": TRIALS, "lanes": LANES, "curves": CURVES, "predictions": PREDICTIONS}
FOLDERS = {"trials": "trials.parquet", "lanes": "lanes.parquet", "curves": "curves", "predictions": "predictions"}
KEYS = {
    "trials": ["trial"],
    "lanes": ["trial", "lane"],
    "curves": ["trial", "lane", "update", "split", "metric"],
    "predictions": ["trial", "lane", "example"],
}
"""The columns that identify a row of each table."""
