"""What becomes of a user's data: tensors, or one message; and what a user is told of them before a study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from study import plan
from study.errors import SpecError
from study.results.provenance import read_provenance, write_provenance
from study.spec import check, recorded
from tests import own_data
from tests.bundles import TABLES
from tests.test_spec import changed
from trainables.usercode.importing import UserCodeError
from trainables.workloads import data, findings, own
from trainables.workloads.own import Own, examples


def thirds(x: Any, y: Any) -> dict[str, tuple[Any, Any]]:
    """Splits of 20 examples each."""
    return {name: (x[n : n + 20], y[n : n + 20]) for name, n in zip(own.SPLITS, (0, 20, 40), strict=True)}


def made(targets: Any, task: str | None = None, **how: Any) -> Own:
    return examples("own:f", thirds(np.random.default_rng(0).normal(size=(60, 2)), np.asarray(targets)), task, **how)


def doubt_of(targets: Any) -> str:
    return made(targets).doubt


CODES = np.arange(60) % 3


def test_floats_that_look_like_classes_are_asked_about() -> None:
    given = own_data.float_labels()
    asked = examples("own_data:float_labels", given)
    assert asked.doubt.startswith("targets look like classes 0, 1, 2 stored as floats: say task = ")
    named = examples("own_data:float_labels", given, "classification")
    assert (named.task, named.outputs, named.doubt) == ("classification", 3, "")
    assert torch.equal(named.targets[0], given["train"][1].long())
    numbers = examples("own_data:float_labels", given, "regression")
    assert (numbers.task, numbers.outputs, numbers.doubt) == ("regression", 1, "")
    assert torch.equal(numbers.targets[0][:, 0], given["train"][1])


def test_one_hot_targets_are_asked_about() -> None:
    given = own_data.one_hot()
    assert "look like one-hot classes: say task = " in examples("own_data:one_hot", given).doubt
    named = examples("own_data:one_hot", given, "classification")
    assert torch.equal(named.targets[0], given["train"][1].argmax(1))
    assert named.outputs == 3
    assert examples("own_data:one_hot", given, "regression").outputs == 3
    with pytest.raises(UserCodeError, match=r"targets of .* are not classes; valid"):
        made(np.ones((60, 3)), "classification")


def test_text_labels_are_classes_in_sorted_order() -> None:
    found = examples("own_data:text_labels", own_data.text_labels())
    assert found.classes == ("cat", "cow", "dog")
    assert found.outputs == 3
    names = [found.classes[number] for number in found.targets[1]]
    assert names == list(own_data.text_labels()["validation"][1])
    assert found.notes == ["own_data:text_labels: targets cat, cow, dog are classes 0 to 2"]
    assert made(pd.Series(["b", "a"] * 30, dtype="category")).classes == ("a", "b")
    with pytest.raises(UserCodeError, match=r'targets are not numbers \(a\), and task = "regression" needs them'):
        made(["a", "b"] * 30, "regression")


def test_what_looks_wrong_with_targets_is_a_warning() -> None:
    lacking = examples("own", own_data.class_missing_from_training())
    (told,) = findings.warnings(lacking)
    assert told.startswith("class 2 has no training example (")
    assert told.endswith("in test): it cannot be learned")
    constant = examples("own", own_data.constant_target())
    assert constant.doubt == ""
    assert findings.warnings(constant) == ["all training targets are 1: there is nothing to learn"]
    twins = made(["Yes", "yes", "no", "none"] * 15)
    assert findings.warnings(twins) == ['classes that differ only in spaces or in upper and lower case: "Yes", "yes"']
    rare = made([0, 1] * 10 + [2] * 3 + [0, 1] * 18 + [2])
    assert findings.warnings(rare) == ["class 2 has no training example (3 in validation and 1 in test): it cannot "
                                       "be learned"]  # fmt: skip
    assert findings.warnings(made([2] * 3 + [0, 1] * 28 + [0])) == ["fewer than 5 training examples: class 2"]


def test_columns_and_copies_that_look_wrong_are_warnings() -> None:
    frame = pd.DataFrame({"id": range(60), "same": 1.0, "count": np.arange(60) % 7, "x": np.linspace(0, 1, 60)})
    found = examples("own", {name: (each[0], each[1]) for name, each in thirds(frame, CODES).items()})
    assert findings.warnings(found) == [
        "the same in all training examples: column same",
        'a different whole number in every example, like an ID: id; leave it out (exclude = ["id"])',
    ]
    random = np.random.default_rng(0).permutation(600)
    ids = {"person_id": random[:60], "userId": random[60:120], "RowNumber": random[120:180], "n": range(60)}
    people = {"acid": random[180:240], "year": range(1950, 2010), "number of visitors": random[240:300], **ids}
    found = examples("own", {name: (each[0], each[1]) for name, each in thirds(pd.DataFrame(people), CODES).items()})
    assert findings.warnings(found) == [
        "a different whole number in every example, like an ID: person_id, userId, RowNumber, n; leave it out "
        '(exclude = ["person_id", "userId", "RowNumber", "n"])',
        "a different whole number in every example: acid, year, number of visitors; if it is an ID, leave it out "
        '(exclude = ["acid", "year", "number of visitors"])',
    ]
    x = np.random.default_rng(0).normal(size=(60, 2))
    x[45], x[46] = x[3], x[4]
    copied = examples("own", thirds(x, CODES))
    assert findings.warnings(copied) == ["2 of 20 test examples have the inputs of a training example"]


def test_baselines_are_scores_of_the_majority_and_the_mean() -> None:
    found = findings.baselines(made([0] * 12 + [1] * 8 + [0] * 5 + [1] * 15 + [0] * 20), standardize=True)
    assert found["accuracy"] == 5 / 20
    expected = -(5 * math.log(13 / 22) + 15 * math.log(9 / 22)) / 20
    assert found["loss"] == pytest.approx(expected)
    y = np.random.default_rng(1).normal(3, 2, 60)
    raw, scaled = (findings.baselines(made(y), standardize=each)["loss"] for each in (False, True))
    assert raw == pytest.approx(np.square(y[20:40] - y[:20].mean()).mean())
    assert scaled == pytest.approx(raw / y[:20].var(ddof=1))


def test_grey_images_get_a_channel_if_the_model_needs_images() -> None:
    given = own_data.grey_images()
    plain, images = (examples("own", given, images=each) for each in (False, True))
    assert plain.inputs[0].shape == (200, 8, 8)
    assert images.inputs[0].shape == (200, 1, 8, 8)
    assert images.notes == ["own: inputs of (8, 8) are taken as grey images, (1, 8, 8)"]
    last = examples("own", thirds(np.zeros((60, 8, 9, 3)), CODES), images=True)
    assert last.inputs[0].shape == (20, 3, 8, 9)
    assert "channels last" in last.notes[0]
    first = examples("own", thirds(np.zeros((60, 3, 8, 9)), CODES), images=True)
    assert (first.inputs[0].shape, first.notes) == ((20, 3, 8, 9), [])


def test_data_frames_and_datasets_are_accepted() -> None:
    frame = examples("own", own_data.data_frame())
    assert (frame.task, frame.columns) == ("regression", ("a", "b", "c", "d"))
    assert torch.equal(frame.inputs[0][:, 0], frame.targets[0][:, 0])
    given = own_data.datasets()
    tensors = examples("own", given)
    assert (tensors.task, tensors.outputs) == ("classification", 3)

    class Rows(Dataset[Any]):
        def __init__(self, rows: TensorDataset) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, row: int) -> Any:
            x, y = self.rows[row]
            return x, int(y)

    for kind in (Rows, lambda rows: DataLoader(rows, batch_size=7)):
        again = examples("own", {name: kind(rows) for name, rows in given.items()})
        for mine, theirs in zip(again.inputs + again.targets, tensors.inputs + tensors.targets, strict=True):
            assert torch.equal(mine, theirs)
    text = pd.DataFrame({"a": np.arange(60.0), "city": ["Rome"] * 60})
    with pytest.raises(UserCodeError, match=r"inputs of train have columns that are not numbers \(city\)"):
        examples("own", thirds(text, CODES))


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (CODES - 1, ("-1", "0", "1")),
        (CODES > 0, ("False", "True")),
        (CODES[:, None], ()),
        (CODES + 1, ()),
        ([["x"], ["y"]] * 30, ("x", "y")),
    ],
)
def test_labels_of_other_kinds_are_classes(targets: Any, classes: tuple[str, ...]) -> None:
    found = made(targets)
    assert (found.task, found.classes, found.doubt) == ("classification", classes, "")
    assert found.targets[0].dtype == torch.int64


def test_whole_numbers_that_may_be_a_regression_are_asked_about() -> None:
    asked = doubt_of(np.arange(60) * 1000)
    assert asked.startswith('targets are 60 whole numbers from 0 to 59000: say task = "classification" or "regression"')
    assert doubt_of(1990 + CODES).startswith("targets are 3 whole numbers from 1990 to 1992: say task")
    named = made(1990 + CODES, "classification")
    assert (named.outputs, named.classes) == (3, ("1990", "1991", "1992"))
    assert made(1990 + CODES, "regression").targets[0].dtype == torch.float64
    assert not doubt_of(CODES)
    assert not doubt_of(np.linspace(0, 1, 60))
    assert not doubt_of(np.arange(60.0))


def test_task_is_a_mistake_for_shipped_data() -> None:
    with pytest.raises(SpecError, match=r'workload.task = "regression": cubic is a shipped data set; leave it out'):
        check(changed(workload__task="regression"))


def test_check_describes_the_data_and_the_report_repeats_its_warnings(tmp_path: Path) -> None:
    workload = {"data": "tests.own_data:class_missing_from_training", "model": "mlp"}
    spec = check({**TABLES, "workload": workload}, "own.toml", tmp_path)
    facts = spec.workload.facts
    line = plan._examples_in_words(spec)
    assert line.startswith("3 classes; 4 features; 200 training, 50 validation, 50 test examples; metric accuracy, 0.")
    assert line.endswith(" without learning")
    (told,) = facts.warnings
    assert told.startswith("class 2 has no training example")
    write_provenance(tmp_path, spec, [{"command": "", "started": ""}], finished=False)
    kept = read_provenance(tmp_path)["data"]
    assert kept["warnings"] == [told]
    assert kept["baselines"] == dict(facts.baselines)
    spec.copy_code(tmp_path)
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    assert recorded(tmp_path).workload.facts == facts
    loaded = data.load(spec.workload.data, tmp_path, code=spec.workload.code)
    assert loaded.out_features == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("float_labels", {}, "workload.data: tests.own_data:float_labels: targets look like classes 0, 1, 2 stored as"),
        ("one_hot", {}, "workload.data: tests.own_data:one_hot: targets of (n, 3) look like one-hot classes: say task"),
        ("text_labels", {"task": "class"}, 'unknown task "class" (did you mean classification?)'),
        ("easy", {"model": "cnn"}, "tests.own_data:easy has no images but inputs of (4,); images are (channels, hei"),
    ],
)
def test_check_reports_data_that_it_cannot_use(name: str, more: dict[str, Any], told: str, tmp_path: Path) -> None:
    workload = {"data": f"tests.own_data:{name}", "model": "mlp", **more}
    with pytest.raises(SpecError) as raised:
        check({**TABLES, "workload": workload}, "own.toml", tmp_path)
    assert told in str(raised.value)
