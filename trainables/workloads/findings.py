"""What a user should know of their data before a study: scores without learning, and what looks wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.usercode.importing import LIKE_ID
from trainables.workloads.own import SPLITS, Own, listed

# Names of columns that hold IDs. Without such a name, a column that counts the examples from 0 or 1 does.
ID = re.compile(
    r"(?i:^(row|index|key|nr|no|number|unnamed.*)$|(^|[^a-z])(id|ids|uuid)([^a-z]|$)|[^a-z](nr|no|number)$)"
    r"|[a-z](I[dD]|No|Nr|Number)$"
)
# Classes with fewer training examples are reported.
FEW = 5


def baselines(own: Own, *, standardize: bool) -> dict[str, float]:
    """Metric -> its value on validation of what ignores the inputs: the training split's class shares, or mean.

    Args:
        own: the data set.
        standardize: whether a regression's losses are in variances of the training targets.
    """
    train, validation = own.targets[:2]
    if own.task == "regression":
        train, validation = train.double(), validation.double()
        scale = train.std(0, keepdim=True) if standardize and len(train) > 1 else torch.ones(1)
        errors = (validation - train.mean(0)) / torch.where(scale > 0, scale, 1.0)
        return {"loss": float(errors.square().mean())}
    counts = torch.bincount(train, minlength=own.outputs).double()
    shares = (counts + 1) / (counts.sum() + own.outputs)  # a class that training lacks must not make it infinite
    accuracy = (validation == counts.argmax()).double().mean()
    return {"accuracy": float(accuracy), "loss": float(-shares.log()[validation].mean())}


def warnings(own: Own) -> list[str]:
    """What looks wrong with a data set, one line each."""
    return [*_targets(own), *_columns(own), *_duplicates(own)]


def _targets(own: Own) -> Iterator[str]:
    train = own.targets[0]
    if own.task == "regression":
        for column in range(train.shape[1]):
            if bool((train[:, column] == train[0, column]).all()):
                which = "" if train.shape[1] == 1 else f" of output {column}"
                yield f"all training targets{which} are {float(train[0, column]):g}: there is nothing to learn"
        return
    counts = [torch.bincount(each, minlength=own.outputs).tolist() for each in own.targets]
    names = own.classes or tuple(map(str, range(own.outputs)))
    lacking = [number for number, count in enumerate(counts[0]) if not count]
    for number in lacking[:3]:
        others = [f"{each[number]:,} in {split}" for split, each in zip(SPLITS[1:], counts[1:], strict=True)]
        yield f"class {names[number]} has no training example ({' and '.join(others)}): it cannot be learned"
    if lacking[3:]:
        yield f"{len(lacking) - 3} more classes have no training example"
    folded = [name.strip().lower() for name in names]
    if twins := [f'"{name}"' for name, each in zip(names, folded, strict=True) if folded.count(each) > 1]:
        yield f"classes that differ only in spaces or in upper and lower case: {listed(twins)}"
    if few := [names[number] for number, count in enumerate(counts[0]) if 0 < count < FEW]:
        yield f"fewer than {FEW} training examples: {'class' if len(few) == 1 else 'classes'} {listed(few)}"


def _columns(own: Own) -> Iterator[str]:
    """Columns that say nothing, or that number the examples."""
    if own.inputs[0].ndim != 2:
        return
    train, joined = own.inputs[0], torch.cat(own.inputs)
    names = own.columns or tuple(map(str, range(train.shape[1])))
    constant = (train == train[0]).all(0) if len(train) > 1 else torch.zeros(train.shape[1], dtype=torch.bool)
    if same := [name for name, each in zip(names, constant.tolist(), strict=True) if each]:
        yield f"the same in all training examples: {'column' if len(same) == 1 else 'columns'} {listed(same)}"
    numbering = {name: x for name, x in zip(names, joined.T, strict=True) if _numbers(x)}
    ids = [n for n, x in numbering.items() if ID.search(n) or (x.min() in (0, 1) and x.max() - x.min() == len(x) - 1)]
    for columns, what, condition in (
        (ids, LIKE_ID, ""),
        (
            [name for name in numbering if name not in ids],
            "a different whole number in every example",
            "if it is an ID, ",
        ),
    ):
        if columns:
            advice = f"{condition}leave it out (exclude = {json.dumps(columns, ensure_ascii=False)})"
            yield f"{what}: {listed(columns)}; {advice}"


def _numbers(column: Tensor) -> bool:
    """Whether a column has another whole number for every example, as an ID has."""
    return len(column) > FEW and bool((column == column.floor()).all()) and len(column.unique()) == len(column)


def _duplicates(own: Own) -> Iterator[str]:
    """Examples of validation and test that training has too."""
    seen = {hash(row.tobytes()) for row in own.inputs[0].numpy()}
    for split, inputs in zip(SPLITS[1:], own.inputs[1:], strict=True):
        if count := sum(hash(row.tobytes()) in seen for row in inputs.numpy()):
            yield f"{count:,} of {len(inputs):,} {split} examples have the inputs of a training example"
