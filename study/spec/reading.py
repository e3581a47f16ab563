"""From a TOML file, or its tables, to a valid spec, or to one message that lists every mistake."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from study.errors import SpecError
from study.spec import checks, secrets
from study.spec.dimensions import Dimension, model_argument, setting, similar, size
from study.spec.explain import MOST_TOLD, explain, missing, unknown_key
from study.spec.model import LIMITS, Spec
from study.usercode import bundle
from study.usercode.client import arrays, table
from trainables.usercode.importing import is_table

# Of a spec's file, at most; and of a mistake, the characters.
MOST_BYTES, LINE = 1 << 19, 1000
SHIPPED = Path(__file__).parent / "shipped"


def read(source: str | Path, changes: Mapping[str, Any] | None = None) -> Spec:
    """Read and check a spec.

    Args:
        source: a TOML file, or the name of a shipped spec.
        changes: values that replace the file's, as {"name": "mine", "budget": {"trials": 4}}. Other optimizers get as
            many trials each as the file's, and what it says about optimizers that are left out is dropped.

    Raises:
        SpecError: with every mistake in the file.
    """
    file = find(source)
    tables = _tables(file)
    if names := table(changes or {}, "search").get("optimizer"):
        _compare_others(tables, [names] if isinstance(names, str) else names)
    for section, values in (changes or {}).items():
        if not isinstance(values, Mapping):
            tables[section] = values
        elif isinstance(earlier := tables.get(section) or {}, dict):  # `confirm` may be false
            tables[section] = {**earlier, **values}
            if section == "budget" and (limit := set(values) & set(LIMITS)):
                tables[section] = {k: v for k, v in tables[section].items() if k not in set(LIMITS) - limit}
    return check(tables, str(file), file.absolute().parent)


def _compare_others(tables: dict[str, Any], names: list[str]) -> None:
    """Adapt the tables of a spec to other optimizers than its own."""
    former, trials = table(tables, "search").get("optimizer"), table(tables, "budget").get("trials")
    count = len(former) if isinstance(former, list) else 1
    if count and isinstance(trials, int):
        tables["budget"]["trials"] = -(-trials * len(names) // count)
    for section, key in (("search", "settings"), ("lanes", "learning_rate")):
        by_optimizer = table(tables, section, key)
        if kept := {name: by_optimizer[name] for name in by_optimizer if name in (*names, "low", "high", "count")}:
            tables[section][key] = kept
        elif by_optimizer:
            del tables[section][key]


def recorded(folder: Path) -> Spec:
    """Read the spec that a results folder records, as `read` does.

    Every key is written there; what a version had not got yet is off, so that an earlier study resumes as it was.
    """
    file = folder / "spec.toml"
    tables = {"confirm": False, **_tables(file)}
    if isinstance(lanes := tables.get("lanes", {}), dict):
        tables["lanes"] = {"refine": 0, **lanes}
    return check(tables, str(file), folder.absolute(), trusted=True)


def _tables(file: Path) -> dict[str, Any]:
    text = ""
    if is_table(file.name):
        raise SpecError(
            str(file), f"holds data and is not a spec; `study init my.toml --data {file}` writes one for it"
        )
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{size >> 10} KiB is too large for a spec; valid: at most {MOST_BYTES >> 10} KiB")
        text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        return tomllib.loads(text)
    except RecursionError as error:
        raise SpecError(str(file), "not a spec: tables or arrays are nested too deep") from error
    except UnicodeDecodeError as error:
        mistake = f"not UTF-8: byte {error.start} cannot be decoded; save the file as UTF-8"
        raise SpecError(str(file), mistake) from error
    except ValueError as error:  # also of a number with too many digits
        raise SpecError(str(file), f"not valid TOML: {_syntax(str(error).partition(';')[0], text)}") from error
    except OSError as error:
        raise SpecError(str(file), f"cannot be read: {error.strerror}") from error


# What tomllib says -> what to do.
_SYNTAX = {
    "Invalid value": "text stands in quotes, true and false are in lower case, and numbers begin with a digit",
    "Expected '='": "write key = value, as in epochs = 5",
    "Expected newline": "write one key = value in a line, lists in brackets, 0.1 for 0,1, and 1.0 for 1.",
    "Invalid initial": "a table in {} stands in one line, with no comma at its end",
    "Invalid statement": "a line is key = value, or begins a table, as [budget] does",
    "Unclosed": "a bracket, brace or quote is missing before this line",
    "Cannot declare": "the table is there twice; write all its keys into one",
    "Cannot overwrite": "the key is there twice; a list holds several values",
}


def _syntax(error: str, text: str) -> str:
    """An error of tomllib with the line that it is about, and what to do."""
    advice = next((f"; {advice}" for begins, advice in _SYNTAX.items() if error.startswith(begins)), "")
    if text.lstrip().startswith("{"):
        advice = "; this looks like JSON; `study init` writes a spec"
    lines, place = text.splitlines(), re.search(r"at line (\d+)|at end of document", error)
    line = lines[int(place[1] or len(lines)) - 1 :][:1] if place else []
    return f"{error}{''.join(f': {secrets.redacted(each.strip())[:60]}' for each in line)}{advice}"


def find(source: str | Path) -> Path:
    """The file of a spec that is given as a path, or as the name of a shipped spec."""
    file = Path(source)
    if file.is_file():
        return file
    if (SHIPPED / f"{source}.toml").is_file():
        return SHIPPED / f"{source}.toml"
    if file.is_dir():
        raise SpecError(str(file), "is a directory; give the TOML file in it")
    files = [each for folder in ("", "deepobs") for each in sorted((SHIPPED / folder).glob("*.toml"))]
    shipped = [each.relative_to(SHIPPED).with_suffix("").as_posix() for each in files]
    message = f"no such file, and no shipped spec of that name{similar(source, shipped)}"
    raise SpecError(str(source), f"{message}; shipped: {', '.join(shipped)}")


def check(
    tables: Mapping[str, Any],
    source: str = "spec",
    folder: Path | None = None,
    *,
    trusted: bool = False,
) -> Spec:
    """Check the tables of a spec.

    Args:
        tables: as `tomllib` reads them.
        source: name of the spec in messages.
        folder: where the user's modules are looked for, besides the current folder.
        trusted: whether a results folder records it; those of earlier versions may hold passwords.

    Raises:
        SpecError: with every mistake, also those between sections; if user code has mistakes, with these alone, because
            others may follow from them.
    """
    user_code = bundle.inspect(tables, folder or Path.cwd(), sizes_in(tables), settings_in(tables))
    if user_code.mistakes:
        raise SpecError(source, user_code.mistakes)
    mistakes: list[str] = []
    valid: dict[str, Any] = {}
    for name, field in Spec.model_fields.items():
        if name in tables:
            adapter: TypeAdapter[object] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
            try:
                valid[name] = adapter.validate_python(tables[name], context=user_code)
            except ValidationError as error:
                mistakes += explain(name, error)
        elif field.is_required():
            mistakes.append(missing([name]))
    mistakes += [unknown_key([key]) for key in [each for each in tables if each not in Spec.model_fields][:MOST_TOLD]]
    mistakes += [*checks.mistakes(valid, user_code), *([] if trusted else secrets.mistakes(valid))]
    if mistakes:
        shown = [secrets.redacted(line) for line in mistakes]
        raise SpecError(source, [line if len(line) <= LINE else f"{line[:LINE]} ..." for line in shown])
    return Spec(**valid)


def _ends(entries: Mapping[str, Any], parse: Callable[[object], Dimension]) -> dict[str, list[Any]]:
    """The values at the ends of each entry; none of an invalid one, so that nothing is tried that lacks it."""
    ends: dict[str, list[Any]] = {}
    for name, value in entries.items():
        ends[str(name)] = []
        with suppress(ValueError, TypeError):
            ends[str(name)] = parse(value).ends()
    return ends


def sizes_in(tables: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Width, depth and arguments of a user's model, each with the values at its ends; a list in a list is one."""
    search, arguments = table(tables, "search"), table(tables, "workload", "model_args")
    sizes = {name: search[name] for name in ("width", "depth") if name in search}
    several = {name: value for name, value in arguments.items() if isinstance(value, list)}
    lists = {name: [each for each in value if isinstance(each, list)][:1] for name, value in several.items()}
    refused = {name: value for name, value in lists.items() if value}  # by the model, which says how to adapt it
    return _ends(sizes, size) | _ends(arguments, model_argument) | refused


def settings_in(tables: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Settings of each optimizer, each with the values at its ends, and those of baselines."""
    names = table(tables, "search", "settings")
    ends = {str(name): _ends(table(tables, "search", "settings", name), setting) for name in names}
    for each in arrays(tables, "baseline"):
        for name, values in _ends(table(each, "settings"), setting).items():
            known = ends.setdefault(str(each.get("optimizer")), {}).setdefault(name, [])
            known += [value for value in values if value not in known]
    return {name: settings for name, settings in ends.items() if settings}
