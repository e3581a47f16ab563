from __future__ import annotations

import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.errors import DataError
from trainables.storage import data_folder
from trainables.workloads import data
from trainables.workloads.catalogue import CATALOGUE

LOCAL = ["cubic", "linear", "digits", "quadratic"]


@pytest.mark.parametrize("name", LOCAL)
def test_the_catalogue_says_what_loading_gives(name: str) -> None:
    facts, loaded = CATALOGUE[name], data.load(name)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (facts.train, facts.validation, facts.test)
    assert loaded.in_shape == facts.in_shape
    assert loaded.task == facts.task
    assert loaded.train.inputs.dtype == torch.float32
    if facts.task == "classification":
        assert set(loaded.train.targets.tolist()) == set(range(facts.out_features))
    else:
        assert loaded.train.targets.shape == (facts.train, facts.out_features)


@pytest.mark.parametrize("name", LOCAL)
def test_splits_depend_on_the_seed_alone_and_do_not_overlap(name: str) -> None:
    first = data.load(name, seed=1)
    data._load.cache_clear()
    again, other = data.load(name, seed=1), data.load(name, seed=2)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    if name not in ("digits", "quadratic"):  # which hold a few images, and the test points, twice
        rows = torch.cat([split.inputs for split in (first.train, first.validation, first.test)])
        assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("name", LOCAL[:-1])
def test_standardizing_uses_the_training_split(name: str) -> None:
    loaded = data.load(name, standardize=True, dtype=torch.float64)
    axes = [axis for axis in range(loaded.train.inputs.ndim) if axis != 1]
    torch.testing.assert_close(loaded.train.inputs.mean(axes), torch.zeros(loaded.in_shape[0], dtype=torch.float64))
    torch.testing.assert_close(loaded.train.inputs.std(axes), torch.ones(loaded.in_shape[0], dtype=torch.float64))
    assert loaded.validation.inputs.mean().abs() > 1e-9
    if loaded.task == "regression":
        torch.testing.assert_close(loaded.train.targets.std(), torch.tensor(1.0, dtype=torch.float64))


def test_cubic_has_the_moments_of_the_source_report() -> None:
    loaded = data.load("cubic", dtype=torch.float64)
    x, y = loaded.train.inputs, loaded.train.targets[:, 0]
    torch.testing.assert_close(y, x[:, 0] ** 2 + 14 * x[:, 1] ** 3)
    # E[y] = 14430 and Var[y] = 1.835e7; four standard errors of 10,000 draws.
    assert abs(y.mean() - 14430) < 4 * (1.835e7 / 1e4) ** 0.5
    assert abs(y.var() / 1.835e7 - 1) < 0.08
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    assert abs(residual.square().mean() / 3.54e5 - 1) < 0.1


def test_linear_has_three_informative_columns() -> None:
    loaded = data.load("linear", dtype=torch.float64)
    design = torch.cat([loaded.train.inputs, torch.ones(100, 1, dtype=torch.float64)], 1)
    weights = torch.linalg.lstsq(design, loaded.train.targets).solution
    assert int((weights.abs() > 1e-6).sum()) == 3
    # The other splits follow the same weights.
    validation = torch.cat([loaded.validation.inputs, torch.ones(100, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(validation @ weights, loaded.validation.targets)


def test_the_quadratic_problem_is_not_standardized() -> None:
    with pytest.raises(DataError, match="in its own units"):
        data.load("quadratic", standardize=True)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'minst'.*cubic, linear, digits, mnist"):
        data.load("minst")


def test_the_data_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDY_DATA", "here")
    assert data_folder() == tmp_path / "here"
    monkeypatch.delenv("STUDY_DATA")
    assert data_folder().is_absolute()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_data_that_cannot_be_had_says_what_was_tried_and_where_to_put_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load(name, tmp_path)
    message = str(caught.value)
    assert name in message
    assert "http" in message
    assert "STUDY_DATA" in message
    assert str(tmp_path) in message
    assert "cifar-10-batches-py" in message or "train-images-idx3-ubyte," in message
    assert "\n" not in message


@pytest.mark.usefixtures("offline")
def test_a_truncated_file_is_data_that_cannot_be_had(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:500])
    with pytest.raises(DataError, match="mnist is unavailable"):
        data.load("mnist", tmp_path)


def test_images_become_floats_and_the_official_test_file_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    facts = CATALOGUE["mnist"]
    monkeypatch.setitem(CATALOGUE, "mnist", type(facts)(**{**vars(facts), "validation": 10, "test": 10}))
    loaded = data.load("mnist", tmp_path)
    assert loaded.train.inputs.shape == (30, 1, 28, 28)
    assert (len(loaded.validation), len(loaded.test)) == (10, 10)
    # Image i of either file is filled with 2 i.
    assert loaded.train.inputs[3].unique().tolist() == [pytest.approx(6 / 255)]
    halves = torch.cat([loaded.validation.inputs[:, 0, 0, 0], loaded.test.inputs[:, 0, 0, 0]])
    assert sorted((halves * 255 / 2).round().int().tolist()) == list(range(20))


def write_images(folder: Path) -> None:
    """Files in MNIST's format: 30 training and 20 test images."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 30), ("t10k", 20)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8) * 2, 28 * 28)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


@pytest.mark.long
def test_the_real_mnist(mnist_folder: Path) -> None:
    loaded = data.load("mnist", mnist_folder, standardize=True)
    assert len(loaded.train) == 60_000
    assert loaded.train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert loaded.train.inputs.mean().abs() < 1e-4
    assert loaded.validation.targets.bincount().min() > 400
