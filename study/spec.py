"""The spec: one TOML file that says what to search, how long, and on what.

`read` finds every mistake in one go and says for each the key, the value and what is valid.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import tomlkit
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from trainables import lanes as training
from trainables import models
from trainables.data import CATALOGUE, Facts
from trainables.engines import NAMES
from trainables.rules import RULES, SOLO, named

SHIPPED = Path(__file__).parent / "specs"
LIMITS = ("epochs", "updates", "examples", "seconds")


class SpecError(ValueError):
    """A spec that cannot be run; the message lists every mistake."""

    def __init__(self, source: str, mistakes: Iterable[str]) -> None:
        self.mistakes = list(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {mistake}" for mistake in self.mistakes))


class Section(BaseModel):
    """A table of the spec: unknown keys are mistakes, and text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Choice(Section):
    """Values to choose from; one value is fixed."""

    values: tuple[int | str, ...]

    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def ends(self) -> list[int | str]:
        """The values by which any question of size can be settled: all of them."""
        return list(self.values)


class Range(Section):
    """Whole numbers from low to high, both included, on a log scale if asked."""

    low: int
    high: int
    log: bool = False

    def size(self) -> int:
        """How many values there are."""
        return self.high - self.low + 1

    def ends(self) -> list[int | str]:
        """The values by which any question of size can be settled: the lowest and the highest."""
        return sorted({self.low, self.high})


Dimension: TypeAlias = Choice | Range


# Far beyond any network; what is larger is a slip of the keyboard.
LARGEST = 1_000_000


def _number(low: int) -> Callable[[object], str | None]:
    def mistake(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{_show(value)} is not a whole number"
        return f"{value} is below {low}" if value < low else f"{value} is above {LARGEST}" if value > LARGEST else None

    return mistake


def _batch_size(value: object) -> str | None:
    if isinstance(value, str):
        return None if value == "full" else f'{_show(value)} is not a batch size; a whole number or "full"'
    return _number(1)(value)


def _optimizer(value: object) -> str | None:
    known = (*RULES, *SOLO)
    return None if isinstance(value, str) and value in known else _unknown("optimizer", value, known)


def _dimension(mistake: Callable[[object], str | None], *, ranges: bool = True) -> Callable[[object], Dimension]:
    """A parser of one entry of [search]: a list is a choice, a table a range, a lone value fixed."""

    def parse(value: object) -> Dimension:
        if isinstance(value, Choice | Range):
            return value
        if isinstance(value, dict):
            return _range(value, mistake, ranges=ranges)
        values: list[Any] = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("an empty list leaves nothing to choose; give at least one value")
        if found := [text for text in map(mistake, values) if text]:
            raise ValueError("; ".join(found))
        if len(set(values)) < len(values):
            raise ValueError("a value stands twice; name each once")
        return Choice(values=tuple(values))

    return parse


def _range(value: dict[str, object], mistake: Callable[[object], str | None], *, ranges: bool) -> Range:
    if not ranges:
        raise ValueError("must be a name or a list of names")
    if unknown := sorted(set(value) - {"low", "high", "log"}):
        raise ValueError(f"unknown {', '.join(unknown)} in a range; valid: low, high, log")
    if missing := [bound for bound in ("low", "high") if bound not in value]:
        raise ValueError(f"a range needs {' and '.join(missing)}, as in {{low = 4, high = 64, log = true}}")
    if not isinstance(value.get("log", False), bool):
        raise ValueError("log must be true or false")
    bounds = [value["low"], value["high"]]
    if "full" in bounds:
        raise ValueError('"full" is a choice of a list, not the bound of a range')
    found = [text for text in map(mistake, bounds) if text]
    if value.get("log") and value["low"] == 0:
        found = ["a log range cannot start at 0; the lowest valid value is 1"]
    if found:
        raise ValueError("; ".join(found))
    if bounds[0] > bounds[1]:  # type: ignore[operator]
        raise ValueError(f"low = {bounds[0]} is above high = {bounds[1]}")
    return Range.model_validate(value)


def _plain(dimension: Dimension) -> object:
    if isinstance(dimension, Range):
        return dimension.model_dump()
    return dimension.values[0] if len(dimension.values) == 1 else list(dimension.values)


_AS_TOML = PlainSerializer(_plain)
Whole = Annotated[Dimension, BeforeValidator(_dimension(_number(1))), _AS_TOML]
BatchSize = Annotated[Dimension, BeforeValidator(_dimension(_batch_size)), _AS_TOML]
Optimizer = Annotated[Dimension, BeforeValidator(_dimension(_optimizer, ranges=False)), _AS_TOML]
Positive = Annotated[int, Field(ge=1)]


def _known(what: str, names: Iterable[str]) -> BeforeValidator:
    valid = tuple(names)

    def check(value: object) -> object:
        if value not in valid:
            raise ValueError(_unknown(what, value, valid))
        return value

    return BeforeValidator(check)


class ModelArgs(Section):
    """A model family's own arguments."""

    shape: Literal["halving", "constant"] | None = None
    kernel: Positive | None = None
    padding: Annotated[int, Field(ge=0, le=1000)] | None = None


class Augmentation(Section):
    """Random changes of the training images, each example its own; none if nothing is given.

    Attributes:
        rotate: degrees either way, at most.
        translate: share of height and width either way, at most.
        flip: whether left and right change places in half of the images.
        jitter: brightness, contrast and saturation times 1 - jitter to 1 + jitter.
    """

    rotate: Annotated[float, Field(gt=0, le=180)] | None = None
    translate: Annotated[float, Field(gt=0, lt=1)] | None = None
    flip: bool = False
    jitter: Annotated[float, Field(gt=0, lt=1)] | None = None


class Workload(Section):
    """Data, model family and metric; never the optimizer.

    Attributes:
        data: a data set of `trainables.data.CATALOGUE`.
        model: linear, mlp or cnn.
        model_args: `shape` of an MLP (halving or constant), `kernel` and `padding` of a CNN.
        metric: loss, or accuracy for a classification, which is then the default; on the validation split.
        target: the metric value that counts as solved.
        standardize: mean 0 and standard deviation 1 over the training split, a regression's targets too.
        augment: what is done to each training image.
        dtype: float32 or float64.
    """

    data: Annotated[str, _known("data set", CATALOGUE)]
    model: Annotated[str, _known("model", models.FAMILIES)]
    model_args: ModelArgs = ModelArgs()
    metric: Annotated[str, _known("metric", ("loss", "accuracy"))] = "loss"
    target: float | None = None
    standardize: bool = True
    augment: Augmentation = Augmentation()
    dtype: Annotated[str, _known("dtype", ("float32", "float64"))] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, values: Any) -> Any:
        if isinstance(values, dict) and "metric" not in values:
            facts = CATALOGUE.get(str(values.get("data")))
            if facts and facts.task == "classification":
                return {**values, "metric": "accuracy"}
        return values

    @property
    def facts(self) -> Facts:
        """What is known of the data set."""
        return CATALOGUE[self.data]

    @model_validator(mode="after")
    def _images(self) -> Workload:
        if self.augmentation() and len(self.facts.in_shape) != 3:
            raise ValueError(f"augment is for images; {self.data} has inputs of shape {self.facts.in_shape}")
        return self

    def augmentation(self) -> dict[str, Any]:
        """What is done to the training images, as far as it was given."""
        return {name: value for name, value in self.augment.model_dump(exclude_none=True).items() if value}

    def arguments(self) -> dict[str, Any]:
        """The model family's arguments that were given."""
        return self.model_args.model_dump(exclude_none=True)


class Search(Section):
    """The space of cells. In TOML a list is a choice, {low, high, log} a range, a lone value fixed."""

    width: Whole | None = None
    depth: Whole | None = None
    batch_size: BatchSize
    optimizer: Optimizer

    def dimensions(self) -> dict[str, Dimension]:
        """The entries that are there, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class Rates(Section):
    """A learning-rate grid: count values, evenly spaced on a log scale."""

    low: Annotated[float, Field(gt=0)]
    high: Annotated[float, Field(gt=0)]
    count: Positive = 8

    @model_validator(mode="after")
    def _ordered(self) -> Rates:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self


class Lanes(Section):
    """What each trial trains side by side: learning rates x seeds.

    Attributes:
        learning_rate: the grid for all optimizers; if not given, each optimizer's own range at `rates` values.
        rates: values in an optimizer's own range.
        seeds: seeds of initialisation and batches.
        engine: eager, compiled, cuda-graph or solo; auto takes what is fastest for the trial.
        halving: whether the worse half of the rates is given up at 1/2, 1/4, 1/8 ... of the budget.
    """

    learning_rate: Rates | None = None
    rates: Positive = 8
    seeds: Positive = 5
    engine: Annotated[str, _known("engine", ("auto", *NAMES))] = "auto"
    halving: bool = False


class Budget(Section):
    """How many trials, and how long each lane trains: one of epochs, updates, examples, seconds.

    Attributes:
        trials: cells to try.
        epochs, updates, examples, seconds: per lane; seconds are of training the whole stack.
        min_updates: updates to make even so, so that full batches get more than one update an epoch's worth.
    """

    trials: Positive = 64
    epochs: Positive | None = None
    updates: Positive | None = None
    examples: Positive | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    min_updates: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        given = [limit for limit in LIMITS if getattr(self, limit) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(LIMITS)}; {' and '.join(given) or 'none'} given")
        return self

    def limit(self) -> dict[str, Any]:
        """The fields of `trainables.lanes.Budget`."""
        return self.model_dump(exclude_none=True, exclude={"trials"})


class Recording(Section):
    """What is kept.

    Attributes:
        every_update: whether the curves hold the loss of every update, instead of means between evaluations.
    """

    every_update: bool = False


class Tuning(Section):
    """How cells are proposed and stopped, and the root of every seed."""

    sampler: Annotated[str, _known("sampler", ("tpe", "random", "qmc", "grid"))] = "tpe"
    scheduler: Annotated[str, _known("scheduler", ("asha", "none"))] = "asha"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Resources(Section):
    """What one trial takes. A fraction of a GPU shares it."""

    cpus_per_trial: Positive = 1
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _whole_gpus(self) -> Resources:
        if self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ValueError(
                f"gpus_per_trial = {self.gpus_per_trial}: above 1 it must be whole; valid: 0, 0.25, 0.5, 1, 2"
            )
        return self


class Spec(Section):
    """A study's spec, valid."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    description: str = ""
    workload: Workload
    search: Search
    lanes: Lanes = Lanes()
    budget: Budget
    tuning: Tuning = Tuning()
    recording: Recording = Recording()
    resources: Resources = Resources()

    def lane_seeds(self) -> list[int]:
        """The seeds of the lanes; studies with other root seeds share none of the first thousand."""
        return [self.tuning.seed * 1000 + number for number in range(self.lanes.seeds)]

    def rates(self, optimizer: str) -> tuple[float, float, int]:
        """Lowest and highest learning rate of an optimizer's grid, and how many."""
        if grid := self.lanes.learning_rate:
            return grid.low, grid.high, grid.count
        return (*named(optimizer).rates, self.lanes.rates)

    def cells(self) -> int:
        """Cells in the space."""
        return math.prod(dimension.size() for dimension in self.search.dimensions().values())

    def to_toml(self) -> str:
        """The spec with every default filled in."""
        return tomlkit.dumps(self.model_dump(exclude_none=True))


def read(source: str | Path, changes: Mapping[str, Any] | None = None) -> Spec:
    """Read and check a spec.

    Args:
        source: a TOML file, or the name of a shipped spec.
        changes: values that replace the file's, as {"budget": {"trials": 4}}.

    Raises:
        SpecError: with every mistake in the file.
    """
    file = find(source)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except tomllib.TOMLDecodeError as error:
        raise SpecError(str(file), [f"not valid TOML: {error}"]) from error
    except UnicodeDecodeError as error:
        mistake = f"not UTF-8: byte {error.start} cannot be decoded; save the file as UTF-8"
        raise SpecError(str(file), [mistake]) from error
    except OSError as error:
        raise SpecError(str(file), [f"cannot be read: {error.strerror}"]) from error
    for section, values in (changes or {}).items():
        if isinstance(tables.get(section, {}), dict):
            tables[section] = {**tables.get(section, {}), **values}
            if section == "budget" and (limit := set(values) & set(LIMITS)):
                tables[section] = {k: v for k, v in tables[section].items() if k not in set(LIMITS) - limit}
    return check(tables, str(file))


def find(source: str | Path) -> Path:
    """The file that a command's SPEC means: a path, or the name of a shipped spec."""
    file = Path(source)
    if file.is_file():
        return file
    if (SHIPPED / f"{source}.toml").is_file():
        return SHIPPED / f"{source}.toml"
    if file.is_dir():
        raise SpecError(str(file), ["is a directory; give the TOML file in it"])
    shipped = sorted(spec.stem for spec in SHIPPED.glob("*.toml"))
    raise SpecError(str(source), [f"no such file, and no shipped spec of that name; shipped: {', '.join(shipped)}"])


def check(tables: Mapping[str, Any], source: str = "spec") -> Spec:
    """Check the tables of a spec.

    Args:
        tables: as `tomllib` reads them.
        source: what to call the spec in messages.

    Raises:
        SpecError: with every mistake, those between sections too.
    """
    mistakes: list[str] = []
    valid: dict[str, Any] = {}
    for name in Spec.model_fields:
        if name in tables:
            try:
                valid[name] = _validated(name, tables[name])
            except ValidationError as error:
                mistakes += _explain(name, error, tables[name])
        elif Spec.model_fields[name].is_required():
            mistakes.append(f"{name}: missing; {_needs(name)}")
    known = list(Spec.model_fields)
    mistakes += [f"{key}: unknown key; valid: {', '.join(known)}" for key in tables if key not in known]
    mistakes += _between_sections(valid)
    if mistakes:
        raise SpecError(source, mistakes)
    return Spec(**valid)


def _validated(name: str, value: object) -> object:
    field = Spec.model_fields[name]
    adapter: TypeAdapter[object] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    return adapter.validate_python(value)


def _between_sections(valid: Mapping[str, Any]) -> list[str]:
    """Mistakes that only two entries together make; judged on the sections that are valid."""
    workload: Workload | None = valid.get("workload")
    search: Search | None = valid.get("search")
    tuning: Tuning | None = valid.get("tuning")
    found = []
    if workload:
        found += _workload_mistakes(workload)
    lanes: Lanes | None = valid.get("lanes")
    if search and lanes:
        found += _engine_mistakes(search, lanes)
    budget: Budget | None = valid.get("budget")
    if lanes and budget and lanes.halving and training.Budget(**budget.limit()).reports < 2:
        found.append("lanes.halving: rates are given up between reports and this budget has one; give 2 epochs or more")
    if workload and search:
        found += _cell_mistakes(workload, search)
    if tuning and tuning.sampler == "grid" and search:
        found += [
            f"search.{name} = {_show(_plain(dimension))}: the grid sampler needs lists; write the values out"
            for name, dimension in search.dimensions().items()
            if isinstance(dimension, Range)
        ]
    return found


def _engine_mistakes(search: Search, lanes: Lanes) -> list[str]:
    """An engine that some optimizer of the search cannot have."""
    names = search.optimizer.ends()
    if lanes.engine not in ("auto", "solo") and (solo := [str(name) for name in names if name in SOLO]):
        return [f"lanes.engine: {lanes.engine} does not train {', '.join(solo)}, which runs lane by lane; valid: auto"]
    if lanes.engine == "solo" and (ruled := [str(name) for name in names if name in RULES]):
        return [f"lanes.engine: solo is for {', '.join(SOLO)}; {', '.join(ruled)} trains as lanes; valid: auto"]
    return []


def _workload_mistakes(workload: Workload) -> list[str]:
    found = []
    if workload.metric == "accuracy" and workload.facts.task == "regression":
        found.append(f'workload.metric = "accuracy": {workload.data} is a regression; valid: loss')
    if workload.target is not None and not 0 < workload.target <= (1 if workload.metric == "accuracy" else math.inf):
        valid = "an accuracy, above 0 and at most 1" if workload.metric == "accuracy" else "a loss, above 0"
        found.append(f"workload.target = {workload.target}: must be {valid}")
    accepted = {"linear": set[str](), "mlp": {"shape"}, "cnn": {"kernel", "padding"}}[workload.model]
    for key in workload.arguments().keys() - accepted:
        valid = ", ".join(sorted(accepted)) or "none"
        found.append(f"workload.model_args.{key}: {workload.model} has no such argument; valid: {valid}")
    if workload.model == "cnn" and len(workload.facts.in_shape) != 3:
        images = ", ".join(name for name, facts in CATALOGUE.items() if len(facts.in_shape) == 3)
        found.append(f'workload.model = "cnn": {workload.data} has no images; those that do: {images}')
    return found


def _cell_mistakes(workload: Workload, search: Search) -> list[str]:
    facts, found = workload.facts, []
    if {"full", facts.train} <= set(search.batch_size.ends()):
        found.append(f'search.batch_size: {facts.train} and "full" are the same; name one')
    for value in search.batch_size.ends():
        if isinstance(value, int) and value > facts.train:
            found.append(
                f"search.batch_size = {value}: larger than the {facts.train} training examples of {workload.data}; "
                f'"full" means all of them'
            )
    if workload.model == "linear":
        for name in ("width", "depth"):
            if getattr(search, name) is not None:
                found.append(f"search.{name}: a linear model has none; leave it out")
        return found
    if search.width is None or search.depth is None:
        missing = [name for name in ("width", "depth") if getattr(search, name) is None]
        needed = (f"search.{name}: missing; {workload.model} needs it, as in {name} = [1, 2]" for name in missing)
        return [*found, *needed]
    depths = [int(depth) for depth in search.depth.ends()]
    width = min(int(width) for width in search.width.ends())
    if workload.model == "cnn" and len(facts.in_shape) != 3:
        return found
    for depth in depths:
        if message := _misfit(workload, width, depth):
            fitting = [d for d in range(1, depth) if not _misfit(workload, width, d)]
            valid = f"at most {fitting[-1]}" if fitting else "none"
            found.append(f"search.depth = {depth}: {message}; valid depths here: {valid}")
    return found


def _misfit(workload: Workload, width: int, depth: int) -> str | None:
    arguments = workload.arguments()
    try:
        if workload.model == "cnn":
            sizes = {key: arguments[key] for key in ("kernel", "padding") if key in arguments}
            models.cnn_sizes(workload.facts.in_shape, depth=depth, **sizes)
        elif arguments.get("shape", "halving") == "halving" and width >> (depth - 1) == 0:
            return f"width {width} halves to nothing before layer {depth}"
    except models.ModelError as error:
        return str(error)
    return None


def _explain(section: str, error: ValidationError, value: object) -> list[str]:
    """One line per mistake: key, value, what is wrong and what is valid."""
    lines = []
    for problem in error.errors():
        path = [section, *(str(part) for part in problem["loc"] if part != section)]
        key = ".".join(path)
        match problem["type"]:
            case "extra_forbidden":
                valid = _fields_at(path[:-1])
                close = _close(path[-1], valid)
                lines.append(f"{key}: unknown key{close}; valid: {', '.join(valid)}")
            case "missing":
                lines.append(f"{key}: missing")
            case "model_type" | "model_attributes_type" | "dict_type":
                lines.append(f"{key} = {_show(problem['input'])}: must be a table, as in [{key}]")
            case kind:
                message = str(problem["ctx"]["error"]) if kind == "value_error" else _sentence(problem["msg"])
                shown = f" = {_show(problem['input'])}" if not isinstance(problem["input"], Mapping | BaseModel) else ""
                lines.append(f"{key}{shown}: {message}")
    return lines


def _sentence(message: str) -> str:
    plain = message.replace("Input should be", "must be").replace("String should", "must")
    return plain.replace("a valid integer", "a whole number").replace("a valid ", "a ")


def _fields_at(path: list[str]) -> list[str]:
    model: Any = Spec
    for part in path:
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(model.model_fields)


def _needs(name: str) -> str:
    if name == "name":
        return 'as in name = "my-study"'
    return f"the table [{name}] with {', '.join(_fields_at([name]))}"


def _unknown(what: str, value: object, valid: Iterable[str]) -> str:
    names = list(valid)
    return f"unknown {what} {_show(value)}{_close(value, names)}; valid: {', '.join(names)}"


def _close(value: object, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(valid), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _show(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_show(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)
