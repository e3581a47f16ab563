"""Prints docs/spec.md, every key of a spec: `python -m study.spec.reference`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from study.spec.dimensions import shown
from study.spec.explain import ARRAYS, INTERNAL
from study.spec.model import Spec

_HEAD = """# Keys of a spec

A spec is a TOML file. In `[search]` a list is a choice, `{low = 1, high = 64, log = true}` a range, and a lone value is
fixed. Required keys must be given; the others may be left out. `study check` lists every mistake.

This page is made from the code by `python -m study.spec.reference > docs/spec.md`.
"""


def page() -> str:
    """The page as Markdown."""
    top = {name: field for name, field in Spec.model_fields.items() if not _section_of(field)}
    parts = [_HEAD, "## Top level", "", *_table(top, {})]
    for name, field in Spec.model_fields.items():
        if section := _section_of(field):
            parts += _section(name, section, f"[[{name}]]" if name in ARRAYS else f"[{name}]")
    return "\n".join(parts) + "\n"


def _section(path: str, section: type[BaseModel], title: str) -> Iterator[str]:
    """A heading, the section's docstring, the table of its keys, then the tables in it."""
    nested = {name: found for name, field in section.model_fields.items() if (found := _section_of(field))}
    yield from ("", f"## `{title}`", "", " ".join((section.__doc__ or "").split()), "")
    keys = {name: field for name, field in section.model_fields.items() if name not in (*INTERNAL, *nested)}
    yield from _table(keys, _inherited(section))
    for name, inner in nested.items():
        yield from _section(f"{path}.{name}", inner, f"[{path}.{name}]")


def _table(fields: dict[str, FieldInfo], inherited: dict[str, str]) -> Iterator[str]:
    yield from ("| key | default | meaning |", "| --- | --- | --- |")
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        text = "required" if field.is_required() else "none" if default in (None, "", (), {}) else f"`{shown(default)}`"
        about = " ".join((field.description or inherited.get(name, "")).split()).replace("|", "\\|")
        yield f"| `{name}` | {text} | {about} |"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key holds, or a list of which it holds; None if its values are plain."""
    annotation: Any = field.annotation
    options = [annotation, *get_args(annotation)] if get_origin(annotation) is not dict else []
    found = [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]
    return found[0] if len(found) == 1 and found[0].__module__ != "study.spec.dimensions" else None


def _inherited(section: type[BaseModel]) -> dict[str, str]:
    """Descriptions of keys that come from a class of `trainables.config`, from the attributes of its docstring."""
    found: dict[str, str] = {}
    for base in section.__mro__:
        if base.__module__ == "trainables.config" and "Attributes:" in (base.__doc__ or ""):
            text = (base.__doc__ or "").split("Attributes:")[1]
            for names, about in re.findall(r"^ {8}([\w, ]+): (.*?)(?=^ {8}\w|\Z)", text, re.MULTILINE | re.DOTALL):
                sentence = " ".join(about.split())
                found |= dict.fromkeys(names.split(", "), sentence[0].upper() + sentence[1:])
    return found


if __name__ == "__main__":
    print(page(), end="")
