"""Files as a user's data set: tables (CSV, Parquet), arrays (.npz) and folders of images, divided into splits.

`data = "wine.csv"` in a spec names one; `trainables.config.Reading` says how it is read. pandas and scikit-learn are
imported by what needs them.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.config import Reading
from trainables.usercode.importing import REASON, UserCodeError
from trainables.workloads.own import SPLITS, Array, listed

if TYPE_CHECKING:
    import pandas as pd

_NO_ROWS = "has no rows; expected a line of names, and a line for each example"
# A text column with more different values is not a category.
MOST_CATEGORIES = 20
# Characters of a cell in a message.
LONGEST = 30
_PARTS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
_PARTS |= {split: split for split in SPLITS}
_INPUTS, _TARGETS = ("x", "inputs", "images", "data", "features"), ("y", "targets", "labels", "target", "label")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")
# With thousands' separators, a decimal comma, a currency or a percent sign.
_NUMBER = re.compile(r"[-+]?[$€£¥]?\s?\d+([.,']\d{3})*([.,]\d+)?\s?[%$€£¥]?")


@dataclass
class _Rows:
    """All examples of a file.

    Attributes:
        inputs: (n, ...); a data frame of floats, if it is a table.
        targets: (n,).
        parts: the split of each, as the file names it; None if the file names none.
        groups: of each; examples of a group stay in one split.
        notes: what was made of them.
    """

    inputs: Any
    targets: Array
    parts: Array | None = None
    groups: Array | None = None
    notes: list[str] = field(default_factory=list)


def splits(name: str, code: str, reading: Reading, seed: int) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Inputs and targets of train, validation and test, and notes about what was made of the file.

    Args:
        name: of the file; a folder's ends with a slash. It lies in the bundle, unless it is an absolute path.
        code: folder of the bundle.
        reading: how the file is read and divided.
        seed: of the division.

    Raises:
        UserCodeError: if the file cannot be used so.
    """
    place = Path(name) if Path(name).is_absolute() else Path(code, Path(name).name)
    if name.endswith("/"):
        rows = _images(name, place)
    elif name.lower().endswith(".npz"):
        rows = _arrays(name, place, reading)
    else:
        rows = _table(name, place, reading)
    which = _divided(name, rows, reading, seed)
    inputs = rows.inputs
    if reading.missing == "mean" and hasattr(inputs, "fillna"):
        inputs = inputs.fillna(inputs.iloc[which["train"]].mean()).fillna(0.0)
    chosen = inputs.iloc if hasattr(inputs, "iloc") else inputs
    return {split: (chosen[numbers], rows.targets[numbers]) for split, numbers in which.items()}, rows.notes


def _divided(name: str, rows: _Rows, reading: Reading, seed: int) -> dict[str, Array]:
    """The numbers of the rows of each split: as the file says, or drawn by shares, the same for every class."""
    train, validation, test = reading.split
    classes = reading.task == "classification" or (not reading.task and rows.targets.dtype.kind != "f")
    strata = rows.targets if classes else None
    if rows.parts is None:
        first, rest = _cut(name, np.arange(len(rows.targets)), train / sum(reading.split), rows.groups, strata, seed)
        second, third = _cut(name, rest, validation / (validation + test), rows.groups, strata, seed)
        return dict(zip(SPLITS, (first, second, third), strict=True))
    values, places = np.unique(rows.parts.astype(str), return_inverse=True)
    parts = [_PARTS.get(value.strip().lower(), "") for value in values]
    if wrong := [value for value, part in zip(values, parts, strict=True) if not part]:
        raise UserCodeError(f"{name}: {listed(wrong)} in {reading.split_column}; valid: train, validation, test")
    which = {split: np.flatnonzero(np.array(parts)[places] == split) for split in SPLITS}
    if not len(which["validation"]) and len(which["train"]):
        share = train / (train + validation)
        which["train"], which["validation"] = _cut(name, which["train"], share, rows.groups, strata, seed)
        rows.notes.append(f"{name}: names no validation split; {1 - share:.0%} of its training examples are one")
    if empty := [split for split, numbers in which.items() if not len(numbers)]:
        raise UserCodeError(f"{name}: has no examples for {' and '.join(empty)}; valid: train, validation, test")
    return which


def _cut(
    name: str, rows: Array, share: float, groups: Array | None, strata: Array | None, seed: int
) -> tuple[Array, Array]:
    """Two parts of some rows, the first a share of them: of whole groups, or of each stratum if none is too small."""
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    try:
        if groups is not None:
            drawn = GroupShuffleSplit(1, train_size=share, random_state=seed).split(rows, groups=groups[rows])
            return tuple(rows[part] for part in next(drawn))
        if strata is not None and np.unique(strata[rows], return_counts=True)[1].min() > 1:
            try:
                return tuple(train_test_split(rows, train_size=share, stratify=strata[rows], random_state=seed))
            except ValueError:
                pass  # more classes than examples in one of the parts
        return tuple(train_test_split(rows, train_size=share, random_state=seed))
    except ValueError as error:
        what = "rows" if groups is None else "groups"
        raise UserCodeError(f"{name}: has too few {what} for three splits") from error


def _table(name: str, place: Path, reading: Reading) -> _Rows:
    """The rows of a CSV or Parquet file."""
    import pandas as pd

    frame, columns, notes = _read(name, place)
    label = _label(name, columns, reading)
    taken = [column for column in (label, reading.split_column, reading.group_column) if column]
    features = list(reading.features)  # whatever is excluded, as earlier versions had it
    features = features or [column for column in columns if column not in (*taken, *reading.exclude)]
    named = {"features": reading.features, "exclude": reading.exclude, "split_column, group_column": taken[1:]}
    for key, needed in named.items():
        if unknown := [column for column in needed if column not in columns]:
            raise UserCodeError(f"{name}: has no {listed(unknown)}, of {key}; columns: {listed(columns, 20)}")
    if not features:
        raise UserCodeError(f"{name}: no column is left for the inputs; columns: {listed(columns, 20)}")
    if label in features:
        raise UserCodeError(f"{name}: {label} is the label, and cannot be one of the features")
    if unusable := {column: reason for column in features if (reason := _unusable(frame[column]))}:
        advice = "make numbers of at least one of them"
        if len(unusable) < len(features):
            advice = f"make numbers of them, or write {_without(reading, unusable)}"
        reasons = "".join(f"{REASON}{column} {reason}" for column, reason in unusable.items())
        raise UserCodeError(f"{name}: {len(unusable)} of {len(features)} inputs cannot be used; {advice}{reasons}")
    if empty := [column for column in taken if frame[column].isna().all()]:
        raise UserCodeError(f"{name}: {empty[0]} holds no value, so it cannot be the label, or divide the examples")
    if not reading.task and (reason := _unusable(frame[label], most=max(MOST_CATEGORIES, len(frame) // 5))):
        advice = 'make numbers of them, or say task = "classification" if they are classes'
        raise UserCodeError(f"{name}: the label {label} {reason}; {advice}")
    frame = _without_missing(name, frame, features, taken, reading, notes)
    inputs = pd.concat([_numbers(name, frame[column], notes) for column in features], axis=1)
    optional = reading.split_column, reading.group_column
    parts, groups = (frame[column].to_numpy() if column else None for column in optional)
    targets = frame[label]
    codes = targets.to_numpy() if pd.api.types.is_numeric_dtype(targets) else targets.astype(str).to_numpy(dtype=str)
    return _Rows(inputs, codes, parts, groups, notes)


def _without(reading: Reading, columns: Collection[str]) -> str:
    """What a spec has to say, to leave some more columns out."""
    if reading.features:
        key, names = "features", [each for each in reading.features if each not in columns]
    else:
        key, names = "exclude", [*reading.exclude, *columns]
    return f"{key} = {json.dumps(names, ensure_ascii=False)}"


def _label(name: str, columns: list[str], reading: Reading) -> str:
    """The column to be predicted."""
    if reading.label in columns:
        return reading.label
    have = f"columns: {listed(columns, 20)}"
    if reading.label:
        near = difflib.get_close_matches(reading.label.lower(), [each.lower() for each in columns], 1)
        meant = next((f" (did you mean {each}?)" for each in columns if [each.lower()] == near), "")
        raise UserCodeError(f'{name}: has no column "{reading.label}" for label{meant}; {have}')
    say = f'say which column is to be predicted, as in label = "{columns[-1]}" (`study init --label`)'
    raise UserCodeError(f"{name}: {say}; {have}")


def _read(name: str, place: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A table, the names of its columns, and notes; columns without a name, as of an index, are left out."""
    import pandas as pd

    with _readable(name):
        if place.suffix.lower() == ".parquet":
            frame = pd.read_parquet(place)
        else:
            with place.open(encoding="utf-8-sig") as file:
                first = file.readline()
            if not first.strip():
                raise UserCodeError(f"{name}: {_NO_ROWS}")
            separator = max(",;\t|", key=re.sub('"[^"]*"', "", first).count)
            options: dict[str, Any] = {"na_values": ["?"], "skipinitialspace": True, "low_memory": False}
            with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
                try:  # without index_col pandas would take the first column for row names, and shift the others
                    frame = pd.read_csv(place, sep=separator, index_col=False, **options)
                except pd.errors.ParserWarning as error:
                    lines = f"its lines have more values than the first line has names ({first.strip()[:60]})"
                    raise UserCodeError(f"{name}: {lines}; name every column") from error
            as_text: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True}
            header = pd.read_csv(place, sep=separator, header=None, nrows=1, **as_text)
            frame.columns = header.iloc[0, : len(frame.columns)]  # pandas would number equal names
            _check_names(name, [each.strip() for each in frame.columns], first)
    names = [str(column).strip() for column in frame]
    if twice := [column for column in dict.fromkeys(names) if column and names.count(column) > 1]:
        raise UserCodeError(f"{name}: several columns are called {listed(twice)}; give each a name of its own")
    frame.columns = pd.Index(names)
    unnamed = [column for column in names if not column or column.startswith("Unnamed: ")]
    if frame.empty or len(unnamed) == len(frame.columns):
        raise UserCodeError(f"{name}: {_NO_ROWS}")
    notes = [f"{name}: left out {len(unnamed)} columns without a name"] if unnamed else []
    kept = frame.drop(columns=unnamed).replace([np.inf, -np.inf], np.nan)
    return kept, [column for column in names if column not in unnamed], notes


def _check_names(name: str, names: list[str], first: str) -> None:
    """Raise a `UserCodeError` if the first line of a CSV file holds a row, or a separator that is not read."""
    numbers = [each for each in names if re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", each)]
    if numbers == names and numbers != [str(place) for place in range(len(names))]:
        given = f"has numbers ({listed(numbers, 4)}) in its first line"
        raise UserCodeError(f"{name}: {given}, where the columns' names are expected; add a line of names")
    if len(names) == 1:
        message = f"has only one column in its first line ({first.strip()[:60]})"
        raise UserCodeError(f"{name}: {message}; give all names there, with commas, semicolons, tabs or | between them")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what a reader raises into a `UserCodeError`."""
    try:
        yield
    except (MemoryError, UserCodeError):
        raise
    except UnicodeDecodeError as error:
        raise UserCodeError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserCodeError(f"{name}: cannot be read: {type(error).__name__}: {reason}") from error


def _without_missing(
    name: str, frame: pd.DataFrame, features: list[str], taken: list[str], reading: Reading, notes: list[str]
) -> pd.DataFrame:
    """The table without rows that lack a value that they need; features may if the mean is filled in."""
    lacking = frame[[*taken, *features]].isna()
    counts, missing = lacking.sum(), reading.missing
    if not (total := int(lacking.any(axis=1).sum())):
        return frame
    if missing == "error":
        where = listed([f"{column} {count:,}" for column, count in counts[counts > 0].items()])
        advice = 'missing = "drop" leaves these rows out, missing = "mean" fills in the mean of the training split'
        raise UserCodeError(f"{name}: {total:,} of {len(frame):,} rows lack a value ({where}); {advice}")
    gone = lacking[taken].any(axis=1) if missing == "mean" else lacking.any(axis=1)
    filled = total - int(gone.sum())
    said = [f"left out {int(gone.sum()):,}"] * bool(gone.any()) + [f"filled in means in {filled:,}"] * bool(filled)
    if gone.all():
        some = [column for column in [*taken, *features] if counts[column]]
        without = _without(reading, [column for column in some if column not in taken])
        advice = f'write missing = "mean", or {without}' if missing == "drop" else "fill them in"
        raise UserCodeError(f"{name}: every row lacks a value ({listed(some)}); {advice}")
    notes.append(f"{name}: of {total:,} rows that lack a value {' and '.join(said)}")
    return frame[~gone]


def _unusable(column: pd.Series[Any], most: int = MOST_CATEGORIES) -> str:
    """Why a column is neither of numbers nor of at most so many categories; empty if it is."""
    import pandas as pd

    known = column.dropna().astype(str)
    if known.empty:
        return "holds no value"
    if pd.api.types.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return ""
    if known.map(lambda text: bool(_DATE.fullmatch(text))).all():
        return f"holds dates ({known.iloc[0]})"
    words = known[pd.to_numeric(known, errors="coerce").isna()]
    if words.size and known.map(lambda text: bool(_NUMBER.fullmatch(text.strip()))).all():
        return f"holds numbers that are not written as 1234.5 ({known.iloc[0]})"
    if (count := known.nunique()) <= most:
        return ""
    if words.size < len(known) / 2:
        return f"holds numbers, and text ({_some(words)})"
    return f"holds {count:,} different texts ({_some(known)}), and at most {most} can be categories"


def _some(texts: pd.Series[Any]) -> str:
    """Some values of a column; long ones are cut off."""
    values = (" ".join(text.split()) for text in sorted(texts.unique()))
    return listed([text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in values], 3)


def _numbers(name: str, column: pd.Series[Any], notes: list[str]) -> pd.DataFrame:
    """A usable column as floats; one column of 0 and 1 for each value, if it is text."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return column.astype(np.float64).to_frame()
    known, title = column.dropna().astype(str), str(column.name)
    values = sorted(known.unique())
    notes.append(f"{name}: {title} became {len(values)} columns of 0 and 1, one for each of {listed(values)}")
    return pd.get_dummies(known, prefix=title, prefix_sep="=", dtype=np.float64).reindex(column.index, fill_value=0.0)


def _arrays(name: str, place: Path, reading: Reading) -> _Rows:
    """The examples of an .npz file: `x` and `y`, or `x_train`, `y_train`, `x_test` ..., or similar names."""
    with _readable(name), np.load(place, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    found: dict[str, dict[str, Array]] = {}
    for key, array in arrays.items():
        words = key.lower().split("_")
        part = next((_PARTS[word] for word in words if word in _PARTS), "")
        if key == reading.label or (not reading.label and any(word in _TARGETS for word in words)):
            found.setdefault(part, {})["targets"] = array
        elif key in reading.features or (not reading.features and any(word in _INPUTS for word in words)):
            found.setdefault(part, {})["inputs"] = array
    pairs = {part: each for part, each in found.items() if len(each) == 2}
    if not pairs or ("" in pairs and len(pairs) > 1):
        raise UserCodeError(
            f"{name}: has the arrays {listed(list(arrays), 20)}; expected x and y, or x_train, y_train, x_test ..., or "
            'label = "..." and features = ["..."] with their names'
        )
    if wrong := [part for part, each in pairs.items() if len(each["inputs"]) != len(each["targets"])]:
        shapes = pairs[wrong[0]]["inputs"].shape, pairs[wrong[0]]["targets"].shape
        raise UserCodeError(f"{name}: has inputs of {shapes[0]} and targets of {shapes[1]}; expected as many of each")
    return _joined({part: (each["inputs"], each["targets"]) for part, each in pairs.items()})


def _images(name: str, place: Path) -> _Rows:
    """The images of a folder: in one folder for each class, or in such folders in train, validation and test."""
    from torchvision.datasets import ImageFolder

    if not place.is_dir() or not any(each.is_dir() for each in place.iterdir()):
        raise UserCodeError(f"{name}: holds no folders; expected one with its images for each class")
    inside = {each.name.lower(): each for each in sorted(place.iterdir()) if each.is_dir()}
    parts = {_PARTS[each]: folder for each, folder in inside.items() if each in _PARTS}
    pairs = {}
    for part, folder in (parts or {"": place}).items():
        with _readable(name):
            found = ImageFolder(str(folder))
            images = [np.asarray(image) for image, _ in found]
        if len(sizes := sorted({image.shape[:2] for image in images})) > 1:
            several = listed([f"{width}x{height}" for height, width in sizes])
            raise UserCodeError(f"{name}: has images of several sizes ({several}); make them all of one size")
        pairs[part] = np.stack(images), np.array([found.classes[number] for number in found.targets])
    rows = _joined(pairs)
    pixels = np.moveaxis(rows.inputs, 3, 1).astype(np.float32) / 255
    grey = bool((pixels == pixels[:, :1]).all())
    rows.inputs = pixels[:, :1] if grey else pixels
    return rows


def _joined(pairs: dict[str, tuple[Array, Array]]) -> _Rows:
    """The examples of some parts, which are the splits unless there is one without a name."""
    inputs, targets = (np.concatenate(each) for each in zip(*pairs.values(), strict=True))
    targets = targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets
    parts = np.repeat(list(pairs), [len(y) for _, y in pairs.values()])
    return _Rows(inputs, targets, None if "" in pairs else parts)
