"""The entries of a spec that are searched: a list is a choice, {low, high, log} a range, a lone value fixed.

Each kind of entry has a parser from what `tomllib` reads to a dimension; parsers raise ValueError with what is valid.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from trainables.usercode.importing import is_import_path
from trainables.workloads.catalogue import OPTIMIZERS

# Larger numbers are taken for typing errors.
LARGEST = 1_000_000
VALID = "; valid: "
# Values in a list, and of these, mistakes that are told.
MOST_VALUES, MOST_SHOWN = 1000, 5
# Characters of a value in a message.
WIDTH = 120


class Section(BaseModel):
    """A table of the spec: unknown keys are mistakes, and text is not a number."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Choice(Section):
    """Values to choose from; one value is fixed."""

    values: tuple[bool | int | float | str, ...]

    def size(self) -> int:
        """Number of values."""
        return len(self.values)

    def __contains__(self, value: object) -> bool:
        return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.values)

    def at(self, unit: float) -> bool | int | float | str:
        """The value at a position in [0, 1); all take equal shares."""
        return self.values[int(unit * len(self.values))]

    def ends(self) -> list[bool | int | float | str]:
        """The values that decide questions of size: all of them."""
        return list(self.values)


class Range(Section):
    """Numbers from low to high, both included, on a log scale if asked; whole numbers if the bounds are whole."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int)

    def size(self) -> float:
        """Number of values; infinite unless they are whole."""
        return self.high - self.low + 1 if self.whole else math.inf

    def __contains__(self, value: object) -> bool:
        fine = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        return fine and self.low <= value <= self.high  # type: ignore[operator]

    def at(self, unit: float) -> int | float:
        """The value at a position in [0, 1]; a whole number's share is that of its surroundings, +- 1/2."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = low * (high / low) ** unit if self.log else low + (high - low) * unit
        return min(max(round(value), self.low), self.high) if self.whole else value

    def ends(self) -> list[bool | int | float | str]:
        """The values that decide questions of size: the lowest and the highest."""
        return sorted({self.low, self.high})


Dimension: TypeAlias = Choice | Range
Complaint: TypeAlias = Callable[[object], str | None]
"""Value -> what is wrong with it, or None."""


def whole_number(value: object, low: int = 1) -> str | None:
    """What is wrong with a value that is to be a whole number from `low` to `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{shown(value)} is not a whole number{_meant(value)}"
    if low <= value <= LARGEST:
        return None
    return f"{shown(value)} is {f'below {low}' if value < low else f'above {LARGEST}'}"


def batch_size(value: object) -> str | None:
    """What is wrong with a value that is to be a batch size."""
    if isinstance(value, str):
        meant = _meant(value) or f'{VALID}a whole number or "full"'
        return None if value == "full" else f"{shown(value)} is not a batch size{meant}"
    return whole_number(value)


def optimizer(value: object) -> str | None:
    """What is wrong with a value that is to be an optimizer."""
    if not isinstance(value, str):
        return f"{shown(value)} is not the name of an optimizer; its settings stand in [search.settings.NAME]"
    fine = value in OPTIMIZERS or is_import_path(value)
    return None if fine else unknown("optimizer", value, OPTIMIZERS)


def number(value: object) -> str | None:
    """What is wrong with a value that is to be a finite number."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return None if fine else f"{shown(value)} is not a finite number{_meant(value)}"


def in_range(fine: Callable[[float], bool], valid: str) -> Complaint:
    """A function that says what is wrong with a value that is to be a finite number of a range."""

    def complain(value: object) -> str | None:
        return number(value) or (None if fine(float(value)) else f"{value} is out of range{VALID}{valid}")  # type: ignore[arg-type]

    return complain


# A learning rate.
positive = in_range(lambda x: x > 0, "positive numbers, as in 0.01")


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_seconds(value: object) -> float:
    """The seconds of a duration such as 90, "90s", "1.5h"; a ValueError for anything else."""
    text = str(value).strip()
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    with suppress(ValueError):
        if not isinstance(value, bool) and 0 < (seconds := float(number) * unit) < math.inf:
            return seconds
    raise ValueError('must be a duration above 0; valid: seconds as a number, "90s", "30m", "2h", "1d"')


def checked_duration(value: object) -> object:
    """The value, if it is a duration or None; otherwise a ValueError."""
    if value is not None:
        duration_seconds(value)
    return value


def boolean(value: object) -> str | None:
    """What is wrong with a value that is to be true or false."""
    return None if isinstance(value, bool) else f"{shown(value)} is not true or false"


def one(complain: Complaint) -> BeforeValidator:
    """A validator of a single value."""

    def check(value: object) -> object:
        if complaint := complain(value):
            raise ValueError(complaint)
        return value

    return BeforeValidator(check)


def one_of(what: str, names: Iterable[str]) -> Complaint:
    """A function that says what is wrong with a value that is to be one of some names."""
    return lambda value: None if isinstance(value, str) and value in names else unknown(what, value, names)


def _meant(value: object) -> str:
    """The numbers that a text, or a whole number with a fraction of zero, stand for; empty if there are none."""
    if isinstance(value, str) and (pair := re.fullmatch(r"\s*(\d+)\s*(?:,|-|:|\.\.|to)\s*(\d+)\s*", value)):
        return f"; write [{pair[1]}, {pair[2]}], or {{low = {pair[1]}, high = {pair[2]}}} for a range"
    try:
        meant = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        return ""
    return f"; write {meant:g}" if math.isfinite(meant) and (isinstance(value, str) or meant.is_integer()) else ""


def argument(value: object) -> str | None:
    """What is wrong with a value that is to be an argument of the user's model."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    fine = isinstance(value, bool | str)
    return None if fine else f"{shown(value)} is not true or false, a number or text"


def parser(complain: Complaint, *, whole: bool = True, ranges: bool = True) -> Callable[[object], Dimension]:
    """A parser of entries; numbers of a range of whole bounds are whole unless `whole` is false."""

    def parse(value: object) -> Dimension:
        if isinstance(value, Dimension):
            return value
        if isinstance(value, dict):
            if not ranges:
                bounds = {"low", "high"} & set(value)
                raise ValueError((None if bounds else complain(value)) or "must be one value or a list of values")
            return _range(value, complain, whole=whole)
        values: list[Any] = value if isinstance(value, list) else [value]
        if len(values) > MOST_VALUES:
            raise ValueError(f"{len(values)} values are too many; valid: at most {MOST_VALUES}, or a range")
        if not values:
            raise ValueError("an empty list leaves nothing to choose; give at least one value")
        if complaints := [text for text in map(complain, values) if text]:
            raise ValueError(_joined(complaints[:MOST_SHOWN]))
        if len(set(values)) < len(values):
            raise ValueError("a value is given twice; give each once")
        return Choice(values=tuple(values))

    return parse


def _range(table: dict[str, Any], complain: Complaint, *, whole: bool) -> Range:
    if extra := sorted(set(table) - {"low", "high", "log"}):
        valid = "low, high, log, as in {low = 4, high = 64, log = true}; a choice is a list, as in [4, 16, 64]"
        raise ValueError(f"unknown {', '.join(extra)} in a range{VALID}{valid}")
    if missing := [bound for bound in ("low", "high") if bound not in table]:
        raise ValueError(f"a range needs {' and '.join(missing)}, as in {{low = 4, high = 64, log = true}}")
    low, high, log = table["low"], table["high"], table.get("log", False)
    if not isinstance(log, bool):
        raise ValueError("log must be true or false")
    if "full" in (low, high):
        raise ValueError('"full" can be in a list, not a bound of a range')
    numbers = [text for text in map(number, (low, high)) if text]
    if not numbers and log and low <= 0:
        raise ValueError(f"a log range cannot start at {low:g}; it starts above 0")
    if complaints := [text for text in map(complain, (low, high)) if text] or numbers:
        raise ValueError("; ".join(complaints))
    if low > high:
        raise ValueError(f"low = {low} is above high = {high}")
    kind = int if whole and isinstance(low, int) and isinstance(high, int) else float
    return Range(low=kind(low), high=kind(high), log=log)


def plain(dimension: Dimension) -> object:
    """A dimension as TOML has it."""
    if not isinstance(dimension, Choice):
        return dimension.model_dump()
    return dimension.values[0] if len(dimension.values) == 1 else list(dimension.values)


def one_or_more(complain: Complaint) -> BeforeValidator:
    """A validator of one value or a list."""
    return BeforeValidator(parser(complain, ranges=False))


AS_TOML = PlainSerializer(plain)
size, setting, model_argument = parser(whole_number), parser(number, whole=False), parser(argument)
Whole = Annotated[Dimension, BeforeValidator(size), AS_TOML]
BatchSize = Annotated[Dimension, BeforeValidator(parser(batch_size)), AS_TOML]
Optimizer = Annotated[Dimension, BeforeValidator(parser(optimizer, ranges=False)), AS_TOML]
Setting = Annotated[Dimension, BeforeValidator(setting), AS_TOML]
ModelArgument = Annotated[Dimension, BeforeValidator(model_argument), AS_TOML]


def known(
    what: str, names: Iterable[str], own: Callable[[str], bool] = lambda name: False, others: str = ""
) -> BeforeValidator:
    """A validator that accepts some names only, and those that `own` says are of the user's; `others` says which."""
    valid = tuple(names)

    def check(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be one name in quotes{VALID}{', '.join(valid)}")
        if value not in valid and not own(value):
            message = unknown(what, value, valid)
            raise ValueError(f"{message}; {others}" if others and VALID in message else message)
        return value

    return BeforeValidator(check)


def _joined(complaints: list[str]) -> str:
    """Complaints about the values of a list; a list of what is valid stands once, at the end."""
    parts = [text.partition(VALID) for text in complaints]
    return "; ".join(head for head, _, _ in parts) + next((mark + tail for _, mark, tail in parts if mark), "")


def unknown(what: str, value: object, valid: Iterable[str]) -> str:
    """The message about an unknown name: how it is spelled here, or the most similar one and all that are valid."""
    names = list(valid)
    spelled = {_letters(name): name for name in names}
    if isinstance(value, str) and (name := spelled.get(_letters(value)) or spelled.get(_letters(value.split(".")[-1]))):
        return f"{shown(value)}: write {shown(name)}"
    several = [spelled.get(_letters(each), "") for each in value.split(",")] if isinstance(value, str) else [""]
    if all(several):
        return f"{shown(value)}: write {', '.join(map(shown, several))}, each in quotes of its own"
    return f"unknown {what} {shown(value)}{similar(value, names)}{VALID}{', '.join(names)}"


def similar(value: object, valid: Iterable[str]) -> str:
    """A question about the valid name most like a value, or that begins like it; empty if there is none."""
    by_letters, given = {_letters(name): name for name in valid}, _letters(str(value))
    long = [each for each in by_letters if len(given) > 2 and len(each) > 2]
    if given in ("none", "off") and "constant" in by_letters:  # a schedule
        return " (did you mean constant?)"
    begins = [each for each in long if each.startswith(given) or given.startswith(each)]
    near = difflib.get_close_matches(given, list(by_letters), 1) or begins
    return f" (did you mean {by_letters[near[0]]}?)" if near else ""


def _letters(name: str) -> str:
    """A name in lower case without punctuation, as names are compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def shown(value: object) -> str:
    """A value as TOML writes it, on one line; a long one is cut off."""
    text = _as_toml(value, 0)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]} ..."


def _as_toml(value: object, depth: int) -> str:
    match value:
        case list() | tuple() | dict() if depth > 3:
            return "..."
        case list() | tuple():
            return f"[{', '.join(_as_toml(each, depth + 1) for each in value[:WIDTH])}]"
        case dict():
            return f"{{{', '.join(f'{key} = {_as_toml(item, depth + 1)}' for key, item in value.items())}}}"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case bool():
            return str(value).lower()
        case int() if abs(value) > 10**WIDTH:
            return "a number of too many digits"
        case _:
            return str(value)
