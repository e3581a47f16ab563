"""The spec: one TOML file that says what to search, how long, and on what.

`read` finds every mistake in one go and says for each the key, the value and what is valid.
"""

from __future__ import annotations

import difflib
import itertools
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

import tomlkit
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from analysis.results import OBJECTIVES
from study.errors import SpecError
from study.usercode import bundle
from trainables import config, models
from trainables.criterion import Criterion
from trainables.data import CATALOGUE, Facts
from trainables.engines.eager import NAMES
from trainables.lanes.stack import Builder
from trainables.rules import RULES, SOLO, Rule, named
from trainables.usercode.importing import is_foreign

T = TypeVar("T", config.Augmentation, config.Budget, config.Recording)
# Studies whose root seeds differ share no lane's seed; a study has no more than half of these for its search.
SEEDS = 1_000_000
SHIPPED = Path(__file__).parent / "shipped"
# Trials that share a GPU, at most.
SHARING = 8
LIMITS = ("epochs", "updates", "examples", "seconds")


class Section(BaseModel):
    """A table of the spec: unknown keys are mistakes, and text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def part(self, kind: type[T]) -> T:
        """The fields that this section inherits from a class of `trainables.config`, as an instance of it."""
        return kind(**{name: getattr(self, name) for name in kind.__dataclass_fields__})


class Choice(Section):
    """Values to choose from; one value is fixed."""

    values: tuple[bool | int | float | str, ...]

    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def at(self, unit: float) -> bool | int | float | str:
        """The value at a place from 0 to 1, 1 excluded; all take equal shares."""
        return self.values[int(unit * len(self.values))]

    def ends(self) -> list[bool | int | float | str]:
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

    def at(self, unit: float) -> int:
        """The value at a place from 0 to 1; on a log scale a number's share is that of its neighbourhood, +- 1/2."""
        low, high = self.low - 0.5, self.high + 0.5
        value = low * (high / low) ** unit if self.log else low + (high - low) * unit
        return min(max(round(value), self.low), self.high)

    def ends(self) -> list[int | float | str]:
        """The values by which any question of size can be settled: the lowest and the highest."""
        return sorted({self.low, self.high})


class Reals(Section):
    """Real numbers from low to high, on a log scale if asked."""

    low: float
    high: float
    log: bool = False

    def size(self) -> float:
        """How many values there are."""
        return math.inf

    def at(self, unit: float) -> float:
        """The value at a place from 0 to 1."""
        return self.low * (self.high / self.low) ** unit if self.log else self.low + (self.high - self.low) * unit

    def ends(self) -> list[int | float | str]:
        """The lowest and the highest value."""
        return [self.low, self.high]


Dimension: TypeAlias = Choice | Range | Reals


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
    fine = isinstance(value, str) and (value in known or is_foreign(value))
    return None if fine else _unknown("optimizer", value, known)


def _dimension(mistake: Callable[[object], str | None], *, ranges: bool = True) -> Callable[[object], Dimension]:
    """A parser of one entry of [search]: a list is a choice, a table a range, a lone value fixed."""

    def parse(value: object) -> Dimension:
        if isinstance(value, Dimension):
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


def _setting(value: object) -> Dimension:
    """Parse one entry of [search.settings.OPTIMIZER]."""
    if isinstance(value, Dimension):
        return value
    values: list[Any] = (
        list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    )
    if isinstance(value, dict) and (
        set(value) - {"log"} != {"low", "high"} or not isinstance(value.get("log", False), bool)
    ):
        raise ValueError("a range of a setting is written {low = 0.5, high = 0.99}, with log = true if wanted")
    if not values or any(isinstance(v, str | dict | list) for v in values):
        raise ValueError("must be a number, a list of numbers or a range, as in {low = 0.5, high = 0.99}")
    if not isinstance(value, dict):
        if any(isinstance(v, bool) or not math.isfinite(v) for v in values) or len(set(values)) < len(values):
            raise ValueError("needs finite numbers, each named once")
        return Choice(values=tuple(values))
    low, high, log = float(value["low"]), float(value["high"]), value.get("log", False)
    if not low < high or (log and low <= 0) or not math.isfinite(high):
        raise ValueError("a range needs low below high, and low above 0 on a log scale")
    return Reals(low=low, high=high, log=log)


def _own_argument(value: object) -> Dimension:
    """Parse one argument of a user's model: fixed, or searched as a list or a range."""
    if isinstance(value, Dimension):
        return value
    if isinstance(value, dict) and all(isinstance(v, int) for v in value.values()):
        return _range(value, _number(-LARGEST), ranges=True)
    if isinstance(value, dict):
        return _setting(value)
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or any(not isinstance(v, bool | int | float | str) for v in values):
        raise ValueError("must be true or false, a number or text, a list of such, or {low = 1, high = 8}")
    return Choice(values=tuple(values))


def _plain(dimension: Dimension) -> object:
    if not isinstance(dimension, Choice):
        return dimension.model_dump()
    return dimension.values[0] if len(dimension.values) == 1 else list(dimension.values)


_AS_TOML = PlainSerializer(_plain)
Whole = Annotated[Dimension, BeforeValidator(_dimension(_number(1))), _AS_TOML]
BatchSize = Annotated[Dimension, BeforeValidator(_dimension(_batch_size)), _AS_TOML]
Optimizer = Annotated[Dimension, BeforeValidator(_dimension(_optimizer, ranges=False)), _AS_TOML]
Setting = Annotated[Dimension, BeforeValidator(_setting), _AS_TOML]
OwnArgument = Annotated[Dimension, BeforeValidator(_own_argument), _AS_TOML]
Positive = Annotated[int, Field(ge=1)]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]


def _known(what: str, names: Iterable[str], *, or_own: bool = False) -> BeforeValidator:
    valid = tuple(names)

    def check(value: object) -> object:
        if value not in valid and not (or_own and isinstance(value, str) and is_foreign(value)):
            raise ValueError(_unknown(what, value, valid))
        return value

    return BeforeValidator(check)


class ModelArgs(Section):
    """A model family's own arguments."""

    shape: Literal["halving", "constant"] | None = None
    kernel: Positive | None = None
    padding: Annotated[int, Field(ge=0, le=1000)] | None = None


class Augmentation(Section, config.Augmentation):
    """Random changes of the training images, drawn for each example; none by default."""


class Workload(Section):
    """Data, model family and metric; never the optimizer.

    Attributes:
        data: a data set of `trainables.data.CATALOGUE`, or of a user's, by its import path.
        model: linear, mlp, cnn, or quadratic for the data set of that name; or a user's.
        model_args: `shape` of an MLP (halving or constant), `kernel` and `padding` of a CNN.
        own_args: what `model_args` has for a user's model; lists and ranges are searched.
        metric: loss, or accuracy for a classification, which is then the default; on the validation split.
        loss: import path of a user's, in place of squared error or cross-entropy.
        score: import path of a user's, in place of the share that is right; what metric has if it is such a path.
        target: the metric value that counts as solved.
        standardize: mean 0 and standard deviation 1 over the training split, a regression's targets too.
        redraw: whether each trial draws its data anew, from its first seed; else all trials share one draw.
        augment: what is done to each training image.
        dtype: float32 or float64.
    """

    data: Annotated[str, _known("data set", CATALOGUE, or_own=True)]
    model: Annotated[str, _known("model", models.FAMILIES, or_own=True)]
    model_args: ModelArgs = ModelArgs()
    own_args: dict[str, OwnArgument] = {}
    metric: Annotated[str, _known("metric", ("loss", "accuracy"))] = "loss"
    loss: ImportPath | None = None
    score: ImportPath | None = None
    target: float | None = None
    standardize: bool = True
    redraw: bool = False
    augment: Augmentation = Augmentation()
    dtype: Annotated[str, _known("dtype", ("float32", "float64"))] = "float32"
    _brought: bundle.Brought = PrivateAttr(default=bundle.Brought())

    @model_validator(mode="before")
    @classmethod
    def _of_users(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if is_foreign(str(values.get("metric", ""))):
            values["metric"], values["score"] = "accuracy", values["metric"]
        if is_foreign(str(values.get("model", ""))) and "model_args" in values:
            values["own_args"] = values.pop("model_args")
        if "metric" not in values:
            data = str(values.get("data"))
            facts = CATALOGUE.get(data) or (info.context and info.context.facts)
            if values.get("score") or (facts and facts.task == "classification" and not values.get("loss")):
                values["metric"] = "accuracy"
        return values

    @property
    def facts(self) -> Facts:
        """What is known of the data set."""
        found = CATALOGUE.get(self.data) or self._brought.facts
        assert found, "a user's data set is tried before its facts are asked for"
        return found

    @property
    def brought(self) -> bundle.Brought:
        """The copy of the modules that users brought, and what is known of them."""
        return self._brought

    @property
    def code(self) -> str:
        """Folder of the bundle of user code; empty if there is none."""
        return self._brought.code

    @model_validator(mode="after")
    def _tried(self, info: ValidationInfo) -> Workload:
        if info.context:
            self._brought = info.context
        return self

    @property
    def lone(self) -> str:
        """Why a user's model cannot train on a single example; empty if it can."""
        return self._brought.lone

    @model_validator(mode="after")
    def _images(self) -> Workload:
        if self.augment and len(self.facts.in_shape) != 3:
            raise ValueError(f"augment is for images; {self.data} has inputs of shape {self.facts.in_shape}")
        return self

    def arguments(self) -> dict[str, Any]:
        """The model's arguments that were given and are not searched."""
        fixed = {name: d.values[0] for name, d in self.own_args.items() if isinstance(d, Choice) and d.size() == 1}
        return self.model_args.model_dump(exclude_none=True) | fixed

    def builder(self, width: int, depth: int, end: int = -1) -> Builder:
        """What makes one network; of arguments that are searched, the value at `end`."""
        searched = {name.removeprefix("model."): dimension.ends()[end] for name, dimension in self.searched().items()}
        size = {"width": width, "depth": depth, **self.arguments(), **searched}
        return partial(models.build, self.model, self.facts.in_shape, self.facts.out_features, bundle=self.code, **size)

    def criterion(self) -> Criterion:
        """What outputs are judged by."""
        return Criterion(self.facts.task, self.loss or "", self.score or "", self.code)

    def searched(self) -> dict[str, Dimension]:
        """The arguments of a user's model that are searched, by their names in a cell: `model.heads`."""
        return {f"model.{name}": d for name, d in self.own_args.items() if name not in self.arguments()}


class Search(Section):
    """The space of cells. In TOML a list is a choice, {low, high, log} a range, a lone value fixed.

    Attributes:
        width, depth, batch_size, optimizer: what makes a cell.
        settings: optimizer -> its own settings, under torch.optim's names; they are searched with it alone.
    """

    width: Whole | None = None
    depth: Whole | None = None
    batch_size: BatchSize
    optimizer: Optimizer
    settings: dict[str, dict[str, Setting]] = {}

    def dimensions(self) -> dict[str, Dimension]:
        """The entries that every cell has, by name."""
        names = ("optimizer", "batch_size", "width", "depth")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def settings_of(self, optimizer: str) -> dict[str, Dimension]:
        """The settings that are searched with an optimizer, by their names in a cell: `adam.beta1`."""
        return {f"{optimizer}.{name}": value for name, value in self.settings.get(optimizer, {}).items()}

    def optimizers(self) -> list[str]:
        """The optimizers that are compared."""
        return [str(name) for name in self.optimizer.ends()]


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
        extensions: how often a trial may add half as many rates beyond the edge on which its best one lies.
    """

    learning_rate: Rates | None = None
    rates: Positive = 8
    seeds: Positive = 5
    engine: Annotated[str, _known("engine", ("auto", *NAMES))] = "auto"
    halving: bool = False
    extensions: Annotated[int, Field(ge=0, le=10)] = 2


class Budget(Section, config.Budget):
    """How many trials, and how long each lane trains: one of epochs, updates, examples, seconds.

    Attributes:
        trials: cells to try.
    """

    trials: Positive = 64

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        given = [limit for limit in LIMITS if getattr(self, limit) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(LIMITS)}; {' and '.join(given) or 'none'} given")
        return self


class Recording(Section, config.Recording):
    """What is kept.

    Attributes:
        tensorboard: whether TensorBoard's event files are written, into `tensorboard/` of the results folder.
        mlflow: address of an MLflow tracking server.
    """

    tensorboard: bool = False
    mlflow: str | None = None


SAMPLERS = ("tpe", "random", "qmc", "grid", "gp", "nsga2")
SCHEDULERS = ("asha", "hyperband", "none")


class Tuning(Section):
    """How cells are proposed and stopped, and the root of every seed.

    Attributes:
        sampler: proposes cells. Those of random, qmc and grid depend on the trial's number alone.
        scheduler: stops trials that are behind.
        seed: the root of every seed.
        fair: whether every optimizer gets equally many trials and lanes.
        objectives: what is optimized at once: the workload's metric and what it costs.
        storage: URL of the database for Optuna; a journal file in the results folder if not given.
    """

    sampler: Annotated[str, _known("sampler", SAMPLERS)] = "tpe"
    scheduler: Annotated[str, _known("scheduler", SCHEDULERS)] = "asha"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    fair: bool = False
    objectives: Annotated[list[Annotated[str, _known("objective", OBJECTIVES)]], Field(min_length=1)] = ["metric"]
    storage: str | None = None


class Confirm(Section):
    """The winners run again, each at its tuned rate, on seeds that the search never saw.

    Attributes:
        top: so many best cells, and every optimizer's best one besides.
        seeds: fresh seeds of each.
    """

    top: Positive = 3
    seeds: Annotated[int, Field(ge=2, le=10_000)] = 10


def _gpus(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (number and value >= 0 and (value <= 1 or value % 1 == 0)):  # type: ignore[operator]
        return value
    raise ValueError('must be a number, whole if above 1, or "auto"; valid: 0, 0.25, 0.5, 1, 2, "auto"')


class Resources(Section):
    """What one trial takes. A fraction of a GPU shares it.

    Attributes:
        cpus_per_trial: also its threads.
        gpus_per_trial: a number; or auto, which a run replaces by the share that its largest cell needs.
        gpu_memory_gib: of each GPU, for auto; asked of the GPUs if not given.
        cpu_nodes: whether small cells train on CPUs alone, of nodes without a GPU too. Which are small follows from the
            cell, so that it never depends on what is free on which kind of device a trial gets its numbers.
    """

    cpus_per_trial: Positive = 1
    gpus_per_trial: Annotated[float | Literal["auto"], BeforeValidator(_gpus)] = 0.0
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    cpu_nodes: bool = False

    @model_validator(mode="after")
    def _large_ones_take_gpus(self) -> Resources:
        if self.cpu_nodes and not self.gpus:
            raise ValueError(
                "cpu_nodes = true lets small cells do without a GPU, and no trial takes one; set gpus_per_trial to 1, "
                '0.25, "auto" ..., or leave cpu_nodes out'
            )
        return self

    @property
    def gpus(self) -> float:
        """The same as a number; the least there can be if that is open."""
        return 1 / SHARING if self.gpus_per_trial == "auto" else self.gpus_per_trial


class Spec(Section):
    """A study's spec, valid."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    description: str = ""
    workload: Workload
    search: Search
    lanes: Lanes = Lanes()
    budget: Budget
    tuning: Tuning = Tuning()
    confirm: Confirm | None = None
    recording: Recording = Recording()
    resources: Resources = Resources()

    def lane_seeds(self, replicate: int = 0) -> list[int]:
        """The seeds of a trial's lanes.

        Args:
            replicate: how many earlier trials had the same cell.
        """
        first = self.tuning.seed * SEEDS + replicate * self.lanes.seeds
        return list(range(first, first + self.lanes.seeds))

    def confirm_seeds(self) -> list[int]:
        """The seeds of the confirmation, which no trial of the search has."""
        first = self.tuning.seed * SEEDS + SEEDS // 2
        return list(range(first, first + self.confirm.seeds)) if self.confirm else []

    def rates(self, optimizer: str) -> tuple[float, float, int]:
        """Lowest and highest learning rate of an optimizer's grid, and how many."""
        if grid := self.lanes.learning_rate:
            return grid.low, grid.high, grid.count
        return (*self.rule(optimizer).rates, self.lanes.rates)

    def rule(self, optimizer: str) -> Rule:
        """The update rule of an optimizer."""
        return named(optimizer, self.workload.code)

    def dimensions(self) -> dict[str, Dimension]:
        """What every cell has, by name."""
        return self.search.dimensions() | self.workload.searched()

    def corners(self) -> list[tuple[int, int, int]]:
        """Batch size, width and depth at the ends of each."""
        dimensions, full = self.search.dimensions(), self.workload.facts.train
        sizes = [dimensions[name].ends() if name in dimensions else [0] for name in ("batch_size", "width", "depth")]
        return [(full if b == "full" else int(b), int(w), int(d)) for b, w, d in itertools.product(*sizes)]

    def bring(self, folder: Path) -> list[str]:
        """Copy the modules that users brought into a results folder; what should be known before the study runs."""
        bundle.gather(self.workload.brought, folder)
        return list(self.workload.brought.notes)

    def cells(self) -> float:
        """Cells in the space; infinite if a setting is any real number."""
        return sum(self.cells_of(name) for name in self.search.optimizers())

    def cells_of(self, optimizer: str) -> float:
        """Cells with an optimizer."""
        shared = math.prod(d.size() for name, d in self.dimensions().items() if name != "optimizer")
        return math.prod((d.size() for d in self.search.settings_of(optimizer).values()), start=shared)

    def tables(self) -> dict[str, Any]:
        """The tables of the spec's file, with every default filled in."""
        tables = self.model_dump(exclude_none=True)
        if own := tables["workload"].pop("own_args"):
            tables["workload"]["model_args"] = own
        return tables

    def to_toml(self) -> str:
        """The same as text."""
        return tomlkit.dumps(self.tables())


def read(source: str | Path, changes: Mapping[str, Any] | None = None) -> Spec:
    """Read and check a spec.

    Args:
        source: a TOML file, or the name of a shipped spec.
        changes: values that replace the file's, as {"name": "mine", "budget": {"trials": 4}}.

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
        if not isinstance(values, Mapping):
            tables[section] = values
        elif isinstance(tables.get(section, {}), dict):
            tables[section] = {**tables.get(section, {}), **values}
            if section == "budget" and (limit := set(values) & set(LIMITS)):
                tables[section] = {k: v for k, v in tables[section].items() if k not in set(LIMITS) - limit}
    return check(tables, str(file), file.absolute().parent)


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


def check(tables: Mapping[str, Any], source: str = "spec", folder: Path | None = None) -> Spec:
    """Check the tables of a spec.

    Args:
        tables: as `tomllib` reads them.
        source: what to call the spec in messages.
        folder: where modules of the user's are looked for, besides the current folder.

    Raises:
        SpecError: with every mistake, those between sections too; of what users bring first, on which others depend.
    """
    brought = bundle.inspect(tables, folder or Path.cwd(), sizes_in(tables))
    if brought.mistakes:
        raise SpecError(source, brought.mistakes)
    mistakes: list[str] = []
    valid: dict[str, Any] = {}
    for name in Spec.model_fields:
        if name in tables:
            try:
                valid[name] = _validated(name, tables[name], brought)
            except ValidationError as error:
                mistakes += _explain(name, error, tables[name])
        elif Spec.model_fields[name].is_required():
            mistakes.append(f"{name}: missing; {_needs(name)}")
    lanes = valid.get("lanes", Lanes()) if "lanes" in valid or "lanes" not in tables else None
    if lanes and getattr(valid.get("tuning"), "fair", False) and "extensions" not in lanes.model_fields_set:
        # Grids that grow for some optimizers only would not be fair; who asks for both is told.
        valid["lanes"] = lanes.model_copy(update={"extensions": 0})
    known = list(Spec.model_fields)
    mistakes += [f"{key}: unknown key; valid: {', '.join(known)}" for key in tables if key not in known]
    mistakes += _between_sections(valid, brought.code)
    if mistakes:
        raise SpecError(source, mistakes)
    return Spec(**valid)


def sizes_in(tables: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Width, depth and arguments of a user's model, each with the values at its ends, of tables that may be invalid."""
    search, workload = tables.get("search"), tables.get("workload")
    given: dict[str, Any] = {}
    if isinstance(search, Mapping):
        given |= {name: (search[name], _dimension(_number(1))) for name in ("width", "depth") if name in search}
    if isinstance(workload, Mapping) and isinstance(arguments := workload.get("model_args"), Mapping):
        given |= {str(name): (value, _own_argument) for name, value in arguments.items()}
    found = {}
    for name, (value, parse) in given.items():
        with suppress(ValueError, TypeError):  # a mistake that is told of elsewhere
            found[name] = parse(value).ends()
    return found


def _validated(name: str, value: object, brought: bundle.Brought) -> object:
    field = Spec.model_fields[name]
    adapter: TypeAdapter[object] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    return adapter.validate_python(value, context=brought)


def _between_sections(valid: Mapping[str, Any], code: str) -> list[str]:
    """Mistakes that only two entries together make; judged on the sections that are valid."""
    workload: Workload | None = valid.get("workload")
    search: Search | None = valid.get("search")
    tuning: Tuning | None = valid.get("tuning")
    found = []
    if workload:
        found += _workload_mistakes(workload)
    lanes: Lanes | None = valid.get("lanes")
    if search and lanes:
        found += _engine_mistakes(workload, search, lanes, code)
    budget: Budget | None = valid.get("budget")
    if lanes and budget and lanes.halving and budget.reports < 2:
        found.append("lanes.halving: rates are given up between reports and this budget has one; give 2 epochs or more")
    if workload and search:
        found += _cell_mistakes(workload, search)
    if workload and search and budget and workload.lone:
        found += _lone_mistakes(workload, search, budget)
    if workload and "quadratic" in (workload.data, workload.model):
        found += _quadratic_mistakes(workload, search, lanes)
    recording: Recording | None = valid.get("recording")
    if workload and recording and recording.predictions and workload.facts.task == "regression":
        found.append(f"recording.predictions = true: they are of classes, and {workload.data} has none; leave it out")
    if search:
        found += _setting_mistakes(search, code)
    if tuning and search:
        found += _tuning_mistakes(tuning, workload, search, budget, lanes)
    resources: Resources | None = valid.get("resources")
    if resources and resources.cpu_nodes:
        found += _two_kinds_mistakes(tuning, budget, lanes)
    return found


def _two_kinds_mistakes(tuning: Tuning | None, budget: Budget | None, lanes: Lanes | None) -> list[str]:
    """What cannot be where some cells train on GPUs and others on CPUs: it would compare the devices."""
    found, advice = [], "leave out resources.cpu_nodes"
    if budget and budget.seconds:
        found.append(f"budget.seconds = {budget.seconds:g}: a CPU's second is not a GPU's; give epochs, or {advice}")
    if tuning and "train_seconds" in tuning.objectives:
        found.append(f"tuning.objectives: train_seconds of a CPU and of a GPU do not compare; drop it, or {advice}")
    if lanes and lanes.engine == "cuda-graph":
        found.append(f"lanes.engine: cuda-graph is for GPUs, and small cells train on CPUs; valid: auto; or {advice}")
    return found


def _setting_mistakes(search: Search, code: str) -> list[str]:
    found = []
    for optimizer, settings in search.settings.items():
        if optimizer not in search.optimizers():
            valid = ", ".join(search.optimizers())
            found.append(f"search.settings.{optimizer}: not among the optimizers of the search; valid: {valid}")
            continue
        rule = named(optimizer, code)
        known = rule.adjustable()
        for name, dimension in settings.items():
            key = f"search.settings.{optimizer}.{name}"
            if name not in known:
                usual = ", ".join(f"{each} (usually {value:g})" for each, value in known.items()) or "none"
                found.append(f"{key}: {optimizer} has no such setting; valid: {usual}")
                continue
            for value in dimension.ends():
                if message := rule.refused(name, float(value)):
                    found.append(f"{key} = {_show(_plain(dimension))}: {message}")
                    break
    return found


def _tuning_mistakes(
    tuning: Tuning, workload: Workload | None, search: Search, budget: Budget | None, lanes: Lanes | None
) -> list[str]:
    found, optimizers = [], search.optimizers()
    dimensions = search.dimensions() | {n: d for name in optimizers for n, d in search.settings_of(name).items()}
    dimensions |= workload.searched() if workload else {}
    if tuning.sampler == "grid":
        found += [
            f"search.{name} = {_show(_plain(dimension))}: the grid sampler needs lists; write the values out"
            for name, dimension in dimensions.items()
            if not isinstance(dimension, Choice)
        ]
    if len(set(tuning.objectives)) < len(tuning.objectives):
        found.append(f"tuning.objectives = {_show(tuning.objectives)}: an objective stands twice; name each once")
    if len(tuning.objectives) > 1 and tuning.scheduler != "none":
        found.append(
            f'tuning.scheduler = "{tuning.scheduler}": judges the metric alone and would stop cells that are best '
            f'otherwise; with several objectives set scheduler = "none"'
        )
    if tuning.fair and lanes and lanes.extensions:
        found.append(
            f"lanes.extensions = {lanes.extensions}: tuning.fair gives every optimizer equally many lanes, so no grid "
            f"may grow; set extensions = 0"
        )
    if tuning.fair and budget and (rest := budget.trials % len(optimizers)):
        fewer, more = budget.trials - rest, budget.trials - rest + len(optimizers)
        found.append(
            f"budget.trials = {budget.trials}: tuning.fair shares them among {len(optimizers)} optimizers; "
            f"valid: {f'{fewer} or {more}' if fewer else more}"
        )
    return found


def _engine_mistakes(workload: Workload | None, search: Search, lanes: Lanes, code: str) -> list[str]:
    """An engine that some optimizer of the search, or the model, cannot have."""
    names = search.optimizers()
    solo = [name for name in names if named(name, code).solo]
    if lanes.engine not in ("auto", "solo") and solo:
        return [f"lanes.engine: {lanes.engine} does not train {', '.join(solo)}, which runs lane by lane; valid: auto"]
    if lanes.engine not in ("auto", "solo") and workload and is_foreign(workload.model):
        return [f"lanes.engine: {lanes.engine} is for the shipped models; valid with {workload.model}: auto"]
    if lanes.engine == "compiled" and workload and (workload.loss or any(map(is_foreign, names))):
        return ["lanes.engine: compiled knows the shipped losses and optimizers only; valid: auto, eager"]
    if lanes.engine == "solo" and (ruled := [name for name in names if name not in solo]):
        return [f"lanes.engine: solo is for {', '.join(SOLO)}; {', '.join(ruled)} trains as lanes; valid: auto"]
    return []


def _workload_mistakes(workload: Workload) -> list[str]:
    found = []
    if workload.metric == "accuracy" and workload.facts.task == "regression" and not workload.score:
        found.append(
            f'workload.metric = "accuracy": {workload.data} is a regression; valid: loss, package.module:score'
        )
    if workload.target is not None and not 0 < workload.target <= (1 if workload.metric == "accuracy" else math.inf):
        valid = "an accuracy, above 0 and at most 1" if workload.metric == "accuracy" else "a loss, above 0"
        found.append(f"workload.target = {workload.target}: must be {valid}")
    accepted = {"mlp": {"shape"}, "cnn": {"kernel", "padding"}}.get(workload.model, set())
    for key in workload.model_args.model_dump(exclude_none=True).keys() - accepted:
        valid = ", ".join(sorted(accepted)) or "none"
        found.append(f"workload.model_args.{key}: {workload.model} has no such argument; valid: {valid}")
    if workload.model == "cnn" and len(workload.facts.in_shape) != 3:
        images = ", ".join(name for name, facts in CATALOGUE.items() if len(facts.in_shape) == 3)
        found.append(f'workload.model = "cnn": {workload.data} has no images; those that do: {images}')
    return found


def _quadratic_mistakes(workload: Workload, search: Search | None, lanes: Lanes | None) -> list[str]:
    """What DeepOBS's quadratic problem is not: its data and its model go together, as they are."""
    found = []
    if workload.model != "quadratic":
        found.append(f'workload.model = "{workload.model}": the data set quadratic is for one model; valid: quadratic')
    if workload.data != "quadratic":
        found.append(f'workload.data = "{workload.data}": the model quadratic is for one data set; valid: quadratic')
    if workload.data == "quadratic" and workload.standardize:
        found.append("workload.standardize = true: quadratic is a problem in its own units; set standardize = false")
    if workload.model == "quadratic" and search and "Muon" in search.optimizers():
        found.append("search.optimizer: Muon trains matrices and the model quadratic has none; leave it out")
    if workload.model == "quadratic" and lanes and lanes.engine == "compiled":
        found.append("lanes.engine: compiled has no program for the model quadratic; valid: auto, eager")
    return found


def _lone_mistakes(workload: Workload, search: Search, budget: Budget) -> list[str]:
    """The first batch size that leaves a single example to a model that cannot train on one."""
    count, sizes = workload.facts.train, search.batch_size
    given = range(sizes.low, sizes.high + 1) if isinstance(sizes, Range) else sizes.ends()
    for size in sorted(count if size == "full" else min(int(size), count) for size in given):
        if size == 1:
            return [f"search.batch_size = 1: {workload.model} cannot train on one example ({workload.lone})"]
        if count % size == 1 and not budget.drop_last:
            return [
                f"search.batch_size = {size}: the last batch of an epoch has one of the {count} examples, and "
                f"{workload.model} cannot train on one ({workload.lone}); set budget.drop_last = true"
            ]
    return []


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
    if workload.model in ("linear", "quadratic"):
        for name in ("width", "depth"):
            if getattr(search, name) is not None:
                found.append(f"search.{name}: a {workload.model} model has none; leave it out")
        return found
    if is_foreign(workload.model):
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
    plain = plain.replace("List should have at least 1 item after validation, not 0", "needs at least one")
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
