"""The workloads' data: loaded once, split with a fixed seed, resident on the device.

torchvision and scikit-learn are imported by the data sets that need them, so that the others need torch and numpy only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.errors import DataError
from trainables.storage import data_folder
from trainables.usercode.importing import EXPECTED, UserCodeError, called, imported, is_import_path
from trainables.workloads import deepobs
from trainables.workloads.catalogue import CATALOGUE, Facts, Task

CPU = torch.device("cpu")
# torchvision's class, and the folder and files that it looks for under the data folder.
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": ("KMNIST", "KMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}


@dataclass(frozen=True)
class Split:
    """Examples of one split.

    Attributes:
        inputs: (n, *in_shape), floating.
        targets: (n, out_features) floating for regression, (n,) int64 class numbers for classification.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def head(self, count: int) -> Split:
        """The first `count` examples."""
        return Split(self.inputs[:count], self.targets[:count])

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The same examples on a device, in a floating type; class numbers stay integers."""
        floating = self.targets.is_floating_point()
        targets = self.targets.to(device, dtype if floating else torch.int64)
        return Split(self.inputs.to(device, dtype), targets)


@dataclass(frozen=True)
class Data:
    """A data set in its three splits. Settings are chosen on validation; test is evaluated once, at the end.

    Attributes:
        name: one of `catalogue.CATALOGUE`, or an import path.
        task: regression or classification.
        train, validation, test: the splits.
        mean, std: by which the inputs were standardised, one number per column or channel; none if they were not.
        outputs: that a model of a user's data set needs; 0 for a data set of the catalogue.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    outputs: int = 0

    @property
    def out_features(self) -> int:
        """Outputs that a model must have."""
        return self.outputs or CATALOGUE[self.name].out_features

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one example's inputs."""
        return tuple(self.train.inputs.shape[1:])


def load(
    name: str,
    folder: Path | None = None,
    *,
    standardize: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    code: str = "",
) -> Data:
    """Load a data set; a second call in the same process returns the same tensors.

    Args:
        name: one of `catalogue.CATALOGUE`, or the import path of a user's data set (`trainables.usercode.importing`).
        folder: of downloaded data; `data_folder()` if not given.
        standardize: subtract the training split's mean and divide by its standard deviation: inputs per column, or per
            channel of an image; a regression's targets too, so that its loss is in variances of y.
        seed: by which synthetic data are drawn and the others split.
        dtype: floating type of inputs and regression targets.
        device: of all splits.
        code: folder of the bundle that has a user's data set.

    Raises:
        DataError: if the data cannot be loaded, or must not be standardised.
        UserCodeError: if a user's data set cannot be used.
    """
    return _load(name, folder or data_folder(), standardize, seed, dtype, device, code if is_import_path(name) else "")


@cache
def _load(
    name: str, folder: Path, standardize: bool, seed: int, dtype: torch.dtype, device: torch.device, code: str
) -> Data:
    """Load a data set once per process; the same import path may name another data set in another bundle."""
    if is_import_path(name):
        splits, task, outputs = _user_splits(name, folder, seed, code)
    elif name not in CATALOGUE:
        raise DataError(f"no data set is called {name!r}; there are {', '.join(CATALOGUE)}")
    elif standardize and name == "quadratic":
        raise DataError("quadratic is a problem in its own units, and another one if standardised: standardize=False")
    else:
        task, outputs = CATALOGUE[name].task, CATALOGUE[name].out_features
        make = {"cubic": _cubic, "linear": _linear, "digits": _digits, "quadratic": _quadratic}
        splits = _torchvision(name, folder, seed) if name in _TORCHVISION else make[name](seed)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if standardize:
        splits, mean, std = _standardized(splits, targets_too=task == "regression")
    train, validation, test = (split.to(device, dtype) for split in splits)
    return Data(name, task, train, validation, test, mean, std, outputs)


def facts_of(data: Data, about: str = "") -> Facts:
    """The properties of a loaded data set."""
    sizes = len(data.train), len(data.validation), len(data.test)
    return Facts(data.task, data.in_shape, data.out_features, *sizes, about)


def takes_seed(name: str, code: str = "") -> bool:
    """Whether a data set depends on its seed."""
    if not is_import_path(name):
        return True
    parameters = inspect.signature(imported(name, code)).parameters.values()
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)


def _user_splits(path: str, folder: Path, seed: int, code: str) -> tuple[list[Split], Task, int]:
    """A user's splits, their task, and the outputs that a model needs."""
    names = ("train", "validation", "test")
    given = called(path, "data", {"seed": seed, "folder": folder}, optional=("seed", "folder"), code=code)
    if not isinstance(given, Mapping) or set(given) != set(names):
        got = f"a dict of {', '.join(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise UserCodeError(f"{path}: returned {got}; expected {EXPECTED['data']}")
    splits = [_user_split(path, name, given[name]) for name in names]
    for name, split in zip(names[1:], splits[1:], strict=True):
        for what in ("inputs", "targets"):
            here, there = getattr(split, what), getattr(splits[0], what)
            if here.shape[1:] != there.shape[1:] or here.is_floating_point() != there.is_floating_point():
                told = f"{what} of {name} are {here.dtype} of {tuple(here.shape)}, of train {there.dtype} of"
                raise UserCodeError(f"{path}: {told} {tuple(there.shape)}; expected the same but for the count")
    targets = [split.targets for split in splits]
    if targets[0].is_floating_point():
        return splits, "regression", targets[0].shape[1]
    classes = {int(c) for t in targets for c in t.unique()}
    if len(classes) == 1:
        told = f"all targets are {classes.pop()}; expected two classes or more, or floats for regression"
        raise UserCodeError(f"{path}: {told}")
    if min(classes) < 0:
        raise UserCodeError(f"{path}: a class number is below 0; expected classes from 0 on")
    return splits, "classification", 1 + max(classes)


def _user_split(path: str, name: str, pair: Any) -> Split:
    try:
        inputs, targets = (_tensor(each) for each in pair)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserCodeError(f"{path}: {name} is no pair of arrays ({error}); expected {EXPECTED['data']}") from error
    if inputs.ndim < 2 or not len(inputs) or targets.ndim not in (1, 2) or len(targets) != len(inputs):
        told = f"{name} has inputs of {tuple(inputs.shape)} and targets of {tuple(targets.shape)}"
        raise UserCodeError(f"{path}: {told}; expected (n, ...) and (n,) or (n, outputs), n the same and above 0")
    if targets.is_floating_point() and targets.ndim == 1:
        targets = targets[:, None]
    if not targets.is_floating_point() and targets.ndim == 2:
        raise UserCodeError(f"{path}: {name} has whole numbers of {tuple(targets.shape)} as targets; classes are (n,)")
    inputs = inputs if inputs.is_floating_point() else inputs.to(torch.float64)
    for what, values in (("inputs", inputs), ("targets", targets)):
        if not values.isfinite().all():
            raise UserCodeError(f"{path}: {what} of {name} are not all finite; take out or fill in what is missing")
    return Split(inputs, targets)


def _tensor(values: Any) -> Tensor:
    """A user's array as a tensor without gradient; unsigned integers, which torch supports in part, as signed."""
    if isinstance(values, np.ndarray) and values.dtype in (np.uint16, np.uint32):
        values = values.astype(np.int64)
    return torch.as_tensor(values).detach()


def _cubic(seed: int) -> list[Split]:
    facts, random = CATALOGUE["cubic"], np.random.default_rng(seed)
    n = facts.train + facts.validation + facts.test
    x1, x2 = random.normal(-3, 1, n), random.normal(10, 1, n)
    return _cut(np.stack([x1, x2], axis=1), (x1**2 + 14 * x2**3)[:, None], facts)


def linear_coefficients(seed: int = 0) -> np.ndarray:
    """The true coefficients of the data set linear, (10,); all but 3 are zero."""
    return _make_linear(seed)[2]


def _linear(seed: int) -> list[Split]:
    x, y, _ = _make_linear(seed)
    return _cut(x, y[:, None], CATALOGUE["linear"])


def _make_linear(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (n, 10), targets (n,) and coefficients (10,)."""
    from sklearn.datasets import make_regression

    facts = CATALOGUE["linear"]
    count = facts.train + facts.validation + facts.test
    x, y, coefficients = make_regression(count, 10, n_informative=3, coef=True, random_state=seed)
    return x, y, coefficients


def _digits(seed: int) -> list[Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    facts, digits = CATALOGUE["digits"], load_digits()
    images, labels = digits.images[:, None] / 16, digits.target
    train_x, rest_x, train_y, rest_y = train_test_split(
        images, labels, train_size=facts.train, stratify=labels, random_state=seed
    )
    validation_x, test_x, validation_y, test_y = train_test_split(
        rest_x, rest_y, train_size=facts.validation, stratify=rest_y, random_state=seed
    )
    pairs = [(train_x, train_y), (validation_x, validation_y), (test_x, test_y)]
    return [Split(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pairs]


def _quadratic(seed: int) -> list[Split]:
    """Points with targets of zero, against which the squared error of `models.quadratic` is the problem's loss.

    DeepOBS has no third split and publishes its test loss of every epoch. Here only validation is evaluated that often,
    so validation holds the points of test: on this data set, test does not give an independent estimate.
    """
    train, test = (Split(torch.from_numpy(x), torch.zeros(x.shape)) for x in deepobs.points(seed))
    return [train, test, test]


def _cut(inputs: np.ndarray, targets: np.ndarray, facts: Facts) -> list[Split]:
    edges = np.cumsum([facts.train, facts.validation])
    pairs = zip(np.split(inputs, edges), np.split(targets, edges), strict=True)
    return [Split(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pairs]


def _torchvision(name: str, folder: Path, seed: int) -> list[Split]:
    """The official training file; halves of the official test file as validation and test."""
    from torchvision import datasets

    cls, place = _TORCHVISION[name]
    loader = getattr(datasets, cls)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        official = [loader(str(folder), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
        reason = " ".join(str(error).split())
        mirrors = ", ".join(getattr(loader, "mirrors", None) or [loader.url])
        files = [Path(url).stem for url, _ in getattr(loader, "resources", [])]
        wanted = f"the files {', '.join(files)}, unpacked," if files else f"the unpacked folder {Path(place).name}"
        raise DataError(
            f"{name} is unavailable: {folder / place} does not hold it, and downloading from {mirrors} failed: "
            f"{reason}. Put {wanted} in {folder / place}, or set STUDY_DATA to a folder that has {place}. "
            f"The data set digits needs no download."
        ) from error
    train, rest = (_image_split(part.data, part.targets) for part in official)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rest)))
    half = CATALOGUE[name].validation
    return [train, *(Split(rest.inputs[rows], rest.targets[rows]) for rows in (order[:half], order[half:]))]


def _image_split(images: Tensor | np.ndarray, labels: Tensor | list[int]) -> Split:
    """Bytes, (n, h, w) or (n, h, w, c), to floats in [0, 1], (n, c, h, w)."""
    pixels = torch.as_tensor(images).to(torch.float32) / 255
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.as_tensor(labels))


def _standardized(
    splits: list[Split], *, targets_too: bool
) -> tuple[list[Split], tuple[float, ...], tuple[float, ...]]:
    train = splits[0]
    # All axes except that of the columns or channels.
    axes = [axis for axis in range(train.inputs.ndim) if axis != 1]
    mean, std = train.inputs.mean(axes, keepdim=True), _deviation(train.inputs, axes)
    center: Tensor | int = 0
    scale: Tensor | int = 1
    if targets_too:
        center, scale = train.targets.mean(0), _deviation(train.targets, [0])[0]
    found = [Split((s.inputs - mean) / std, (s.targets - center) / scale if targets_too else s.targets) for s in splits]
    return found, tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())


def _deviation(values: Tensor, axes: list[int]) -> Tensor:
    """The standard deviation along some axes, which are kept; 1 where it is zero."""
    count = math.prod(values.shape[axis] for axis in axes)
    found = values.std(axes, keepdim=True) if count > 1 else values.sum(axes, keepdim=True) * 0
    return torch.where(found > 0, found, 1.0)
