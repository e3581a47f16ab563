"""`study init`: a new spec from a few answers, as commented TOML that is checked before it is written."""

from __future__ import annotations

import errno
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import jinja2
import tomlkit

from study.errors import SpecError, UsageError
from study.spec.model import SAMPLERS, SCHEDULERS
from study.spec.reading import check
from study.usercode import bundle
from trainables.usercode.importing import LIKE_ID, REASON, is_import_path, is_own, is_table
from trainables.workloads.catalogue import CATALOGUE, DEEPOBS, RULES, SOLO, Facts

# In the order of asking.
QUESTIONS = {
    "data": "Data set",
    "label": "Column to predict",
    "model": "Model",
    "optimizers": "Optimizers, comma separated",
    "trials": "Trials (cells to try)",
    "epochs": "Epochs per lane",
    "seeds": "Seeds per learning rate",
    "name": "Name of the study",
}
# Data sets with more training examples get larger batches and no full one, because an epoch takes long.
_SMALL = 10_000
LEFT_OUT = "# Left out: "  # begins a line of the spec, for each column that is excluded
# Sizes that a user's model may take; the first that it accepts is used.
_SEARCHED = (("width", "depth"), ("width",), ("depth",), ())


@dataclass(frozen=True)
class Answers:
    """What a new spec is made from; the defaults are for small real data that need no download."""

    data: str = "digits"  # a data set of `trainables.workloads.catalogue.CATALOGUE`, or a user's import path or file
    model: str = "cnn"  # a model family, or the import path of a user's model
    optimizers: tuple[str, ...] = ("sgd", "momentum", "adam")  # to compare
    trials: int = 24  # cells to try
    epochs: int = 5  # per lane
    seeds: int = 3  # per learning rate
    name: str = "study"  # of the study
    label: str = ""  # column to predict, of a table
    task: str = ""  # classification or regression, if the data do not say
    exclude: tuple[tuple[str, str], ...] = ()  # columns of a table that cannot be inputs, each with the reason


def offered(data: str) -> tuple[str, ...]:
    """The model families to offer for a data set, the usual one first."""
    if data == "quadratic":
        return ("quadratic",)
    facts = _tried(Answers(data=data)).facts
    return ("cnn", "mlp") if facts and len(facts.in_shape) == 3 else ("mlp", "linear")


def _tried(answers: Answers) -> bundle.UserCode:
    """A data set's facts, for a user's with the mistakes found by trying it."""
    if answers.data in CATALOGUE:
        return bundle.UserCode(facts=CATALOGUE[answers.data])
    workload = {name: getattr(answers, name) for name in ("data", "label", "task") if getattr(answers, name)}
    workload |= {"exclude": [column for column, _ in answers.exclude]}
    workload |= {"missing": "mean"} if has_columns(answers.data) else {}
    return bundle.inspect({"workload": workload}, Path.cwd(), {})


def _with_inputs(answers: Answers) -> tuple[Answers, Facts | None]:
    """The answers, without those columns of a table that its reader advises to exclude, and the data set's facts."""
    answers, facts = _with_usable(answers)
    if has_columns(answers.data) and facts:
        for advice in (each.rpartition("exclude = ")[2] for each in facts.warnings if each.startswith(LIKE_ID)):
            ids = json.loads(advice.removesuffix(")"))
            if len(ids) < facts.in_shape[0]:  # an input must be left
                reasons = [(column, f"{_printable(column)} has {LIKE_ID}") for column in ids]
                answers = replace(answers, exclude=(*answers.exclude, *reasons))
                return answers, _tried(answers).facts
    return answers, facts


def _with_usable(answers: Answers) -> tuple[Answers, Facts | None]:
    """The answers, without those columns of a table that cannot be inputs, and the data set's facts."""
    tried = _tried(answers)
    for mistake in tried.mistakes:
        told, *reasons = mistake.split(REASON)
        if advice := re.search(r"exclude = \[.*\]", told):
            columns = json.loads(advice[0].removeprefix("exclude = "))
            reasons = [_printable(reason) for reason in reasons]
            reasons += [""] * (len(columns) - len(reasons))  # a value may hold the words between two reasons
            answers = replace(answers, exclude=tuple(zip(columns, reasons, strict=False)))
            return answers, _tried(answers).facts
    return answers, tried.facts


def _printable(text: str) -> str:
    """A text that fits a comment of the spec."""
    return "".join(each if each.isprintable() else " " for each in text)


def has_columns(data: str) -> bool:
    """Whether a data set is a table, one of whose columns is to be predicted."""
    return data.lower().endswith((".csv", ".tsv", ".parquet"))


def make(file: Path, given: Mapping[str, Any], *, ask: bool) -> None:
    """Write a new spec from the answers that are given, optimizers as typed; ask for the others, or use defaults."""
    with _writing(file):  # before the first question
        if file.exists() or file.is_symlink():
            raise FileExistsError
        if not file.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {file.parent}; create it first")
    default = Answers(name=re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)[:80].strip("-._") or "study")
    text = render(_completed(given, default))
    if ask:
        text = render(_completed(_asked(given, default), default))
    with _writing(file), file.open("x", encoding="utf-8") as out:
        out.write(text)
    for line in re.findall(rf"^{LEFT_OUT}.*", text, re.MULTILINE):
        click.echo(line.removeprefix("# "))


def template(file: Path, **filters: Callable[..., str]) -> jinja2.Template:
    """A template of plain text; user input in it goes through a filter that quotes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML
    )
    environment.filters |= filters
    return environment.get_template(file.name)


def _cell(model: str, searched: Iterable[str], sizes: list[int]) -> list[str]:
    """A cell of the search in TOML, but for its optimizer."""
    sized = {"mlp": ("width", "depth"), "cnn": ("width", "depth")}.get(model, tuple(searched))
    return [f"batch_size = {sizes[0]}", *(f"{name} = {8 if name == 'width' else 1}" for name in sized)]


def render(answers: Answers) -> str:
    """The spec of some answers, as commented TOML; a `SpecError` if it is not valid."""
    answers, facts = _with_inputs(answers)
    small = facts is not None and facts.train <= _SMALL
    sizes = [size for size in ((16, 64) if small else (16, 64, 256)) if not facts or size < facts.train] or [1]
    first: SpecError | None = None
    for searched in _SEARCHED if is_import_path(answers.model) else [()]:
        text = template(Path(__file__).parent / "shipped" / "init.j2", toml=_toml).render(
            answers=answers,
            own=is_import_path(answers.model),
            divided=is_table(answers.data),
            columns=has_columns(answers.data),
            searched=searched,
            accuracy=facts is not None and facts.task == "classification",
            cell=_cell(answers.model, searched, sizes),
            sizes=[*sizes, *(['"full"'] if small else [])],
            catalogue=CATALOGUE,
            deepobs=DEEPOBS,
            rules=RULES,
            solo=SOLO,
            samplers=SAMPLERS,
            schedulers=SCHEDULERS,
        )
        try:
            check(tomllib.loads(text), "the new spec", Path.cwd())
        except SpecError as error:
            # For example a model that takes no depth. The first adapter is the one with all sizes.
            if not any("cannot be called with" in mistake for mistake in error.mistakes):
                raise
            first = first or error
            if not searched:
                raise first from error
        else:
            break
    return text


def on_terminal() -> bool:
    """Whether the command runs in a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _asked(given: Mapping[str, Any], default: Answers) -> dict[str, Any]:
    """All answers; each question is repeated until the spec is valid with its answer."""
    answers = dict(given)
    for field, question in QUESTIONS.items():
        if field in answers or (field == "label" and not has_columns(answers["data"])):
            continue
        usual = getattr(_completed(answers, default), field)
        number = isinstance(usual, int)

        def checked(text: str, field: str = field, number: bool = number) -> Any:
            value = click.INT(text) if number else text.strip()
            if field == "data" and has_columns(str(value)) and Path(str(value)).is_file():
                return value  # it is valid with its label
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
        if field == "label":
            try:
                render(_completed({**answers, field: ""}, default))
            except SpecError as error:  # it lists the columns
                click.echo("; ".join(error.mistakes))
        shown = (", ".join(usual) if isinstance(usual, tuple) else usual) or None
        answers[field] = click.prompt(question, default=shown, value_proc=checked)
    return answers


def _completed(given: Mapping[str, Any], default: Answers) -> Answers:
    """The given answers, and defaults that suit them for the rest."""
    answers = replace(default, **given)
    if "data" not in given:
        suitable = _data_sets(given)
        if default.data not in suitable:
            answers = replace(answers, data=suitable[0])
    if "model" not in given and (answers.data in CATALOGUE or is_own(answers.data)):
        answers = replace(answers, model=offered(answers.data)[0])
    if isinstance(answers.optimizers, str):
        answers = replace(answers, optimizers=tuple(answers.optimizers.replace(",", " ").split()))
    return answers


def _data_sets(given: Mapping[str, Any]) -> list[str]:
    """The data sets that suit the given model; all if none is given, or if it suits none."""
    model = given.get("model", "")
    suitable = [name for name in CATALOGUE if model in offered(name) or is_import_path(model)]
    return suitable or list(CATALOGUE)


def _toml(value: str | Sequence[str]) -> str:
    """Text, or a list of texts, as TOML; invalid Unicode becomes ?, which no name has."""
    if isinstance(value, str):
        return tomlkit.item(value.encode(errors="replace").decode()).as_string()
    return f"[{', '.join(map(_toml, value))}]"


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Turn errors of the file system into a `UsageError`."""
    try:
        yield
    except FileExistsError as error:
        taken = "exists and is not overwritten; give another name, as in `study init other.toml`"
        raise UsageError(str(file), taken) from error
    except OSError as error:
        raise UsageError(str(file), f"cannot be written: {error.strerror}") from error
