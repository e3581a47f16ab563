"""Writes a new spec: a commented TOML file from a few answers, valid before it is written."""

from __future__ import annotations

import errno
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import jinja2
import tomlkit

from study.errors import SpecError, UsageError
from study.spec.model import SAMPLERS, SCHEDULERS, check
from study.usercode import bundle
from trainables.data import CATALOGUE, Facts
from trainables.rules import RULES, SOLO
from trainables.usercode.importing import is_foreign

# In the order in which they are asked.
QUESTIONS = {
    "data": "Data set",
    "model": "Model",
    "optimizers": "Optimizers, comma separated",
    "trials": "Trials (cells to try)",
    "epochs": "Epochs per lane",
    "seeds": "Seeds per learning rate",
    "name": "Name of the study",
}
# Data sets with more training examples get larger batches, and no full one: an epoch, or its one update, takes long.
_SMALL = 10_000
# What a user's model may take of its size, tried in this order.
_SEARCHED = (("width", "depth"), ("width",), ("depth",), ())


@dataclass(frozen=True)
class Answers:
    """What a new spec is made from; the defaults are those of small real data that need no download.

    Attributes:
        data: a data set of `trainables.data.CATALOGUE`, or the import path of a user's.
        model: a model family, or the import path of a user's model.
        optimizers: that are compared.
        trials: cells to try.
        epochs: per lane.
        seeds: per learning rate.
        name: of the study.
    """

    data: str = "digits"
    model: str = "cnn"
    optimizers: tuple[str, ...] = ("sgd", "momentum", "adam")
    trials: int = 24
    epochs: int = 5
    seeds: int = 3
    name: str = "study"


def offered(data: str) -> tuple[str, ...]:
    """The model families that suit a data set, the usual one first; a linear model of images is valid besides."""
    if data == "quadratic":
        return ("quadratic",)
    facts = _facts(data)
    return ("cnn", "mlp") if facts and len(facts.in_shape) == 3 else ("mlp", "linear")


def _facts(data: str) -> Facts | None:
    """What is known of a data set; a user's is tried for that. None if there is no such data set."""
    return CATALOGUE.get(data) or bundle.inspect({"workload": {"data": data}}, Path.cwd(), {}).facts


def make(file: Path, given: Mapping[str, Any], *, ask: bool) -> None:
    """Write a spec, never over a file that is there.

    Args:
        file: to write.
        given: answers that are known, by the names in `QUESTIONS`; optimizers as typed, comma separated.
        ask: whether to ask for the others; else they take their defaults.

    Raises:
        SpecError: if the answers make no valid spec.
        UsageError: if the file is there already or cannot be written.
    """
    with _told(file):  # before anybody is asked in vain
        if file.exists() or file.is_symlink():
            raise FileExistsError
        if not file.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {file.parent}; make it first")
    default = Answers(name=re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)[:80].strip("-._") or "study")
    text = render(_completed(given, default))
    if ask:
        text = render(_completed(_asked(given, default), default))
    with _told(file), file.open("x", encoding="utf-8") as out:
        out.write(text)


def render(answers: Answers) -> str:
    """The spec that answers make, as commented TOML.

    Raises:
        SpecError: if it is not valid.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML: what comes from users goes through `toml`
    )
    environment.filters["toml"] = _toml
    facts = _facts(answers.data)
    small = facts is not None and facts.train <= _SMALL
    sizes = [size for size in ((16, 64) if small else (16, 64, 256)) if not facts or size < facts.train]
    for searched in _SEARCHED if is_foreign(answers.model) else [()]:
        text = environment.get_template("init.j2").render(
            answers=answers,
            own=is_foreign(answers.model),
            searched=searched,
            accuracy=facts is not None and facts.task == "classification",
            sizes=[*sizes, *(['"full"'] if small else [])],
            catalogue=CATALOGUE,
            rules=RULES,
            solo=SOLO,
            samplers=SAMPLERS,
            schedulers=SCHEDULERS,
        )
        try:
            check(tomllib.loads(text), "study init", Path.cwd())
        except SpecError as error:
            # A model that takes no depth, say.
            if not searched or not any("cannot be called with" in mistake for mistake in error.mistakes):
                raise
        else:
            break
    return text


def on_terminal() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _asked(given: Mapping[str, Any], default: Answers) -> dict[str, Any]:
    """The given answers and those to the other questions, each asked again until the spec is valid with it."""
    answers = dict(given)
    for field, question in QUESTIONS.items():
        if field in answers:
            continue
        usual = getattr(_completed(answers, default), field)
        number = isinstance(usual, int)

        def checked(text: str, field: str = field, number: bool = number) -> Any:
            value = click.INT(text) if number else text.strip()
            try:
                render(_completed({**answers, field: value}, default))
            except SpecError as error:
                raise click.UsageError("; ".join(error.mistakes)) from error
            return value

        if field == "data":
            for name in _data_sets(answers):
                click.echo(f"  {name:<15}{CATALOGUE[name].about}")
        if field == "model":
            question = f"{question} ({' or '.join(offered(answers['data']))})"
        shown = ", ".join(usual) if isinstance(usual, tuple) else usual
        answers[field] = click.prompt(question, default=shown, value_proc=checked)
    return answers


def _completed(given: Mapping[str, Any], default: Answers) -> Answers:
    """Given answers, and for the rest defaults that go with them."""
    answers = replace(default, **given)
    if "data" not in given:
        suitable = _data_sets(given)
        if default.data not in suitable:
            answers = replace(answers, data=suitable[0])
    if "model" not in given and (answers.data in CATALOGUE or is_foreign(answers.data)):
        answers = replace(answers, model=offered(answers.data)[0])
    if isinstance(answers.optimizers, str):
        names = tuple(name.strip() for name in answers.optimizers.split(","))
        answers = replace(answers, optimizers=tuple(filter(None, names)))
    return answers


def _data_sets(given: Mapping[str, Any]) -> list[str]:
    """The data sets that suit a given model; all if none is given, or one that suits none."""
    suitable = [name for name in CATALOGUE if given.get("model") in offered(name) or is_foreign(given.get("model", ""))]
    return suitable or list(CATALOGUE)


def _toml(value: str | Sequence[str]) -> str:
    """Text, or a list of it, in TOML; what is no Unicode becomes ?, which no name has."""
    if isinstance(value, str):
        return tomlkit.item(value.encode(errors="replace").decode()).as_string()
    return f"[{', '.join(map(_toml, value))}]"


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turn what keeps a file from being written into the user's mistake."""
    try:
        yield
    except FileExistsError as error:
        taken = "is there already and is never written over; give another name, as in `study init other.toml`"
        raise UsageError(str(file), [taken]) from error
    except OSError as error:
        raise UsageError(str(file), [f"cannot be written: {error.strerror}"]) from error
