"""A user's data set as tensors: from arrays, tensors, data frames and `Dataset`s, with numbers or names as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from trainables.usercode.importing import SPLIT_PAIRS, UserCodeError
from trainables.workloads.catalogue import Task

Array: TypeAlias = NDArray[Any]
SPLITS = ("train", "validation", "test")
# Floats look like classes if they are whole and have at most so many values; whole numbers may not, if they have more.
MOST_CLASSES = 20
CHANNELS = (1, 3, 4)
SAY_TASK = 'say task = "classification" or "regression" in [workload]'


@dataclass(frozen=True)
class Own:
    """A user's data set, before it is standardised.

    Attributes:
        inputs: of train, validation and test, (n, ...), floating.
        targets: of each, class numbers (n,) or numbers to be predicted (n, outputs).
        task: regression or classification.
        outputs: that a model needs.
        classes: names of the classes; empty if the user numbered them from 0.
        columns: names of the inputs' columns; empty if they have none.
        notes: what was made of the data that the user should know.
        doubt: why the user must say which task this is; empty if it is clear.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    task: Task
    outputs: int
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    doubt: str = ""


def examples(path: str, given: Any, task: str | None = None, *, images: bool = False) -> Own:
    """A user's data set from what their function returned.

    Args:
        path: import path, or name of the file, for messages.
        given: {"train": (inputs, targets) or a `Dataset`, "validation": ..., "test": ...}.
        task: regression or classification; if None, floats are a regression's and all others are classes.
        images: whether the model needs images (channels, height, width).

    Raises:
        UserCodeError: if it cannot be used.
    """
    if not isinstance(given, Mapping) or set(given) != set(SPLITS):
        got = f"a dict of {', '.join(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise UserCodeError(f"{path}: returned {got}; expected {SPLIT_PAIRS}")
    pairs = [_unpacked(path, name, given[name]) for name in SPLITS]
    arrays = [_arrays(path, name, pair) for name, pair in zip(SPLITS, pairs, strict=True)]
    columns = tuple(map(str, getattr(next(iter(pairs[0])), "columns", ())))
    for name, pair in zip(SPLITS[1:], arrays[1:], strict=True):
        for what, here, first in zip(("inputs", "targets"), pair, arrays[0], strict=True):
            if here.shape[1:] != first.shape[1:] or _kind(here) != _kind(first):
                message = f"{what} of {name} are {here.dtype} of {here.shape}, of train {first.dtype} of {first.shape}"
                raise UserCodeError(f"{path}: {message}; expected the same but for the count")
    inputs, note = [x for x, _ in arrays], ""
    if images:
        inputs, note = _as_images(inputs)
    own = _with_targets(path, [y for _, y in arrays], task)
    notes = [*own.notes, *([f"{path}: {note}"] if note else [])]
    return replace(own, inputs=[_tensor(x) for x in inputs], columns=columns, notes=notes)


def _unpacked(path: str, split: str, pair: Any) -> Any:
    """A pair as the user has it, or of what a `Dataset` holds, stacked."""
    if isinstance(pair, DataLoader):
        pair = pair.dataset
    if isinstance(pair, TensorDataset):
        return pair.tensors
    if isinstance(pair, Dataset):
        items: Any = pair
        rows = [items[row] for row in range(len(items))] if hasattr(items, "__len__") else list(items)
        if rows and not (isinstance(rows[0], tuple | list) and len(rows[0]) == 2):
            message = f"the Dataset {split} gives {type(rows[0]).__name__}; expected pairs (input, target)"
            raise UserCodeError(f"{path}: {message}")
        return [[np.asarray(each) for each in column] for column in zip(*rows, strict=True)]
    return pair


def _arrays(path: str, split: str, pair: Any) -> tuple[Array, Array]:
    """Inputs (n, ...) and targets (n,) or (n, outputs) of a split."""
    try:
        given_inputs, given_targets = pair
        inputs, targets = _array(given_inputs), _array(given_targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserCodeError(f"{path}: {split} is not a pair of arrays ({error}); expected {SPLIT_PAIRS}") from error
    if inputs.ndim < 2 or not len(inputs) or targets.ndim not in (1, 2) or len(targets) != len(inputs):
        message = f"{split} has inputs of {inputs.shape} and targets of {targets.shape}"
        raise UserCodeError(f"{path}: {message}; expected (n, ...) and (n,) or (n, outputs), n the same and above 0")
    if inputs.dtype.kind not in "biuf":
        raise UserCodeError(f"{path}: inputs of {split} {_no_numbers(given_inputs)}; give numbers")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    for what, values in (("inputs", inputs), ("targets", targets)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserCodeError(f"{path}: {what} of {split} are not all finite; take out or fill in what is missing")
    return inputs, targets


def _array(values: Any) -> Array:
    """An array of numbers, or of text; a table that has objects of one kind gets their type."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    for conversion in ("toarray", "to_numpy"):  # of scipy's sparse matrices; of pandas and polars
        values = getattr(values, conversion)() if hasattr(values, conversion) else values
    array = np.asarray(values)
    if array.dtype.kind != "O":
        return array
    if all(isinstance(each, str) for each in array.flat):
        return array.astype(str)
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return array


def _kind(array: Array) -> str:
    """Floats, text or other; the splits' arrays must agree in it."""
    return {"f": "float", "S": "text", "U": "text"}.get(array.dtype.kind, "whole")


def _no_numbers(given: Any) -> str:
    """What inputs are that are not numbers: of a data frame, the columns that are none."""
    columns = [str(name) for name in getattr(given, "columns", ()) if _array(given[name]).dtype.kind not in "biuf"]
    return f"have columns that are not numbers ({', '.join(columns)})" if columns else "are not numbers"


def _tensor(inputs: Array) -> Tensor:
    floating = inputs if inputs.dtype.kind == "f" else inputs.astype(np.float64)
    return torch.from_numpy(np.require(floating, requirements=["C", "W"]))


def _as_images(inputs: list[Array]) -> tuple[list[Array], str]:
    """Inputs as images (n, channels, height, width), and a note about what that took; others are left as they are."""
    shape = inputs[0].shape[1:]
    if len(shape) == 2:
        return [x[:, None] for x in inputs], f"inputs of {shape} are taken as grey images, (1, {shape[0]}, {shape[1]})"
    if len(shape) == 3 and shape[0] not in CHANNELS and shape[2] in CHANNELS:
        moved = (shape[2], *shape[:2])
        return [
            np.moveaxis(x, 3, 1) for x in inputs
        ], f"inputs of {shape} are taken as images with channels last: {moved}"
    return inputs, ""


def _with_targets(path: str, given: list[Array], task: str | None) -> Own:
    """A data set without inputs: targets of all splits, with the task and classes that follow from them."""
    joined, doubt = np.concatenate(given), ""
    number = joined.dtype.kind in "iuf"
    if joined.dtype.kind not in "biufSU":
        raise UserCodeError(f"{path}: targets are neither numbers nor text ({joined.dtype}); expected either")
    if joined.ndim == 2 and task != "regression" and (task or joined.dtype.kind != "f"):
        if not _one_hot(joined):
            raise UserCodeError(
                f"{path}: targets of {given[0].shape} are not classes; valid: (n,), or rows with a single 1 and zeros; "
                "numbers to be predicted are floats"
            )
        doubt = "" if task else f"targets of {given[0].shape} look like one-hot classes: {SAY_TASK}"
        given, joined = [each.argmax(1) for each in given], joined.argmax(1)
    if task is None:
        doubt = doubt or _doubt(joined)
    elif task == "regression" and not number:
        raise UserCodeError(f'{path}: targets are not numbers ({joined[0]}), and task = "regression" needs them')
    elif task == "classification" and joined.dtype.kind == "f" and (joined != np.floor(joined)).any():
        value = joined[joined != np.floor(joined)][0]
        raise UserCodeError(f'{path}: a target is {value:g}, and task = "classification" needs whole numbers or text')
    if task == "regression" or (task is None and joined.dtype.kind == "f"):
        floats = [_tensor(each if each.ndim == 2 else each[:, None]) for each in given]
        return Own([], floats, "regression", floats[0].shape[1], doubt=doubt)
    return _with_classes(path, given, np.unique(joined), doubt, named=task is not None)


def _with_classes(path: str, given: list[Array], values: Array, doubt: str, *, named: bool) -> Own:
    """A data set without inputs: classes are numbered in sorted order of their values, if they have no numbers.

    Args:
        path: for messages.
        given: values of each split.
        values: all that there are, sorted.
        doubt: whether these are classes.
        named: whether values with gaps between them are names, too.
    """
    if len(values) == 1:
        message = f"all targets are {values[0]}; expected two classes or more, or floats for regression"
        raise UserCodeError(f"{path}: {message}")
    dense = values.dtype.kind in "iuf" and values[0] >= 0 and (values[-1] < 2 * len(values) or not named)
    if dense:
        numbers = [torch.from_numpy(each.astype(np.int64)) for each in given]
        return Own([], numbers, "classification", 1 + int(values[-1]), doubt=doubt)
    numbers = [torch.from_numpy(np.searchsorted(values, each)) for each in given]
    names = tuple(f"{value:g}" if values.dtype.kind == "f" else str(value) for value in values)
    note = f"{path}: targets {listed(names)} are classes 0 to {len(names) - 1}"
    return Own([], numbers, "classification", len(names), names, notes=[note], doubt=doubt)


def _one_hot(targets: Array) -> bool:
    """Whether every row of (n, k) targets has a single 1 among zeros."""
    return targets.shape[1] > 1 and bool(np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all())


def _doubt(targets: Array) -> str:
    """Why it is unclear whether numbers are classes; empty if it is clear."""
    if targets.ndim == 2:
        return f"targets of (n, {targets.shape[1]}) look like one-hot classes: {SAY_TASK}" if _one_hot(targets) else ""
    values = np.unique(targets)
    few = 1 < len(values) <= min(MOST_CLASSES, len(targets) // 3)
    if targets.dtype.kind == "f" and few and (values == np.floor(values)).all():
        return f"targets look like classes {listed([f'{value:g}' for value in values])} stored as floats: {SAY_TASK}"
    most = max(MOST_CLASSES, len(targets) // 5)
    if targets.dtype.kind in "iu" and (len(values) > most or values[-1] >= 10 * max(10, len(values))):
        return f"targets are {len(values):,} whole numbers from {values[0]} to {values[-1]}: {SAY_TASK}"
    return ""


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names with commas; if there are more than `most`, the first ones and the last."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most // 2])} ... {names[-1]}"
