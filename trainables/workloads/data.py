"""The workloads' data: loaded once, split with a fixed seed, resident on the device.

torchvision and scikit-learn are imported by the data sets that need them, so that the others need torch and numpy only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.config import Reading
from trainables.errors import DataError
from trainables.storage import data_folder
from trainables.usercode.importing import called, imported, is_own, is_table
from trainables.workloads import deepobs, tables
from trainables.workloads.catalogue import CATALOGUE, Facts, Task
from trainables.workloads.own import Own, examples

CPU, AS_GIVEN = torch.device("cpu"), Reading()
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
        out_features: outputs that a model must have.
        mean, std: by which the inputs were standardised, one number per column or channel; none if they were not.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    out_features: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, name: str, task: Task, splits: list[Split], out_features: int) -> Data:
        """A data set from its splits, in order."""
        train, validation, test = splits
        return cls(name, task, train, validation, test, out_features)

    def mapped(self, change: Callable[[Split], Split]) -> Data:
        """The same data set with its splits changed."""
        return replace(self, train=change(self.train), validation=change(self.validation), test=change(self.test))

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
    reading: Reading = AS_GIVEN,
    images: bool = False,
) -> Data:
    """Load a data set; a second call in the same process returns the same tensors.

    Args:
        name: one of `catalogue.CATALOGUE`, or the import path or file of a user's data set.
        folder: of downloaded data; `data_folder()` if not given.
        standardize: subtract the training split's mean and divide by its standard deviation: inputs per column, or per
            channel of an image; a regression's targets too, so that its loss is in variances of y.
        seed: by which synthetic data are drawn and the others split.
        dtype: floating type of inputs and regression targets.
        device: of all splits.
        code: folder of the bundle that has a user's data set.
        reading: how a user's data set becomes examples.
        images: whether the model needs images; see `trainables.workloads.own.examples`.

    Raises:
        DataError: if the data cannot be loaded, or must not be standardised.
        UserCodeError: if a user's data set cannot be used.
    """
    source = Source(name, code, reading, images) if is_own(name) else Source(name)
    return _load(source, folder or data_folder(), standardize, seed, dtype, device)


@dataclass(frozen=True)
class Source:
    """Which data set, by the arguments of `load`; the same import path may name another one in another bundle."""

    name: str
    code: str = ""
    reading: Reading = AS_GIVEN
    images: bool = False

    def own(self, folder: Path, seed: int = 0) -> Own:
        """A user's data set, before it is standardised."""
        if is_table(self.name):
            splits, notes = tables.splits(self.name, self.code, self.reading, seed)
            own = examples(self.name, splits, self.reading.task, images=self.images)
            return replace(own, notes=[*notes, *own.notes])
        offered = {"seed": seed, "folder": folder}
        given = called(self.name, "data", offered, self.code)
        return examples(self.name, given, self.reading.task, images=self.images)


@cache
def _load(source: Source, folder: Path, standardize: bool, seed: int, dtype: torch.dtype, device: torch.device) -> Data:
    name = source.name
    if is_own(name):
        return prepared(name, source.own(folder, seed), standardize=standardize, dtype=dtype, device=device)
    if name not in CATALOGUE:
        raise DataError(f"no data set is called {name!r}; there are {', '.join(CATALOGUE)}")
    if standardize and name == "quadratic":
        raise DataError("quadratic is in its own units and cannot be standardized; set standardize = false")
    facts, make = CATALOGUE[name], {"cubic": _cubic, "linear": _linear, "digits": _digits, "quadratic": _quadratic}
    splits = _torchvision(name, folder, seed) if name in _TORCHVISION else make[name](seed)
    return _finished(Data.of(name, facts.task, splits, facts.out_features), standardize, dtype, device)


def prepared(
    name: str, own: Own, *, standardize: bool = False, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Data:
    """A user's data set as trials use it; the arguments are those of `load`."""
    splits = [Split(*pair) for pair in zip(own.inputs, own.targets, strict=True)]
    return _finished(Data.of(name, own.task, splits, own.outputs), standardize, dtype, device)


def _finished(data: Data, standardize: bool, dtype: torch.dtype, device: torch.device) -> Data:
    data = _standardized(data) if standardize else data
    return data.mapped(lambda split: split.to(device, dtype))


def takes_seed(name: str, code: str = "") -> bool:
    """Whether a data set depends on its seed."""
    if is_table(name) or not is_own(name):
        return True
    parameters = inspect.signature(imported(name, code)).parameters.values()
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)


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


def _standardized(data: Data) -> Data:
    """A data set in units of the training split's standard deviations, targets of a regression too."""
    train, targets_too = data.train, data.task == "regression"
    # All axes except that of the columns or channels.
    axes = [axis for axis in range(train.inputs.ndim) if axis != 1]
    mean, std = train.inputs.mean(axes, keepdim=True), _deviation(train.inputs, axes)
    center: Tensor | int = 0
    scale: Tensor | int = 1
    if targets_too:
        center, scale = train.targets.mean(0), _deviation(train.targets, [0])[0]

    def standardized(split: Split) -> Split:
        targets = (split.targets - center) / scale if targets_too else split.targets
        return Split((split.inputs - mean) / std, targets)

    numbers = tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())
    return replace(data.mapped(standardized), mean=numbers[0], std=numbers[1])


def _deviation(values: Tensor, axes: list[int]) -> Tensor:
    """The standard deviation along some axes, which are kept; 1 where it is zero."""
    count = math.prod(values.shape[axis] for axis in axes)
    found = values.std(axes, keepdim=True) if count > 1 else values.sum(axes, keepdim=True) * 0
    return torch.where(found > 0, found, 1.0)
