"""The sections of a spec, each with its own checks; `study.spec.checks` has those between sections.

Sections whose settings a trial gets inherit them from `trainables.config`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tomlkit
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from analysis.schema import OBJECTIVES
from study.spec.dimensions import (
    AS_TOML,
    LARGEST,
    BatchSize,
    Choice,
    Dimension,
    ModelArgument,
    Optimizer,
    Section,
    Setting,
    Whole,
    boolean,
    checked_duration,
    duration_seconds,
    known,
    one_of,
    one_or_more,
    parser,
    whole_number,
)
from study.spec.given import Baseline, Enqueued
from study.spec.lanes import AXES, Lanes, settings_of, share
from study.usercode import bundle
from trainables import config
from trainables.config import Missing
from trainables.usercode.importing import TABLES, is_import_path, is_own, is_table
from trainables.workloads.catalogue import (
    ACTIVATIONS,
    CATALOGUE,
    FAMILIES,
    INITS,
    NORMS,
    TASKS,
    Facts,
    OptimizerFacts,
    Task,
)

# Studies with different root seeds share no lane's seed; a study's search uses at most half of these.
SEEDS = 1_000_000
# Trials that share a GPU, at most.
SHARING = 8
# Looks of the verdict at the fresh seeds.
MOST_LOOKS = 20
LIMITS = ("epochs", "updates", "examples", "seconds")
SAMPLERS = ("tpe", "random", "qmc", "grid", "gp", "nsga2")
MISSING: tuple[Missing, ...] = get_args(Missing)
DESIGNS = ("random", "qmc", "grid")  # whose cells depend on the trial's number alone
SCHEDULERS = ("asha", "hyperband", "none")
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
Part = TypeVar("Part", config.Augmentation, config.Budget, config.Reading, config.Recording)


def part(section: Part, kind: type[Part]) -> Part:
    """What a section tells a trial: the fields that it inherits from a class of `trainables.config`."""
    return kind(**{name: getattr(section, name) for name in kind.__dataclass_fields__})


class ModelArgs(Section):
    """Arguments of the mlp and the cnn; lists and ranges are searched, as those of your own model are."""

    shape: Annotated[Dimension, one_or_more(one_of("shape", ("halving", "constant"))), AS_TOML] | None = None
    """Whether an MLP's width halves from layer to layer or is constant."""
    kernel: Whole | None = None
    """Side of a CNN's filters, in pixels."""
    padding: Annotated[Dimension, BeforeValidator(parser(partial(whole_number, low=0))), AS_TOML] | None = None
    """Pixels of zeros around a CNN's images."""
    activation: Annotated[Dimension, one_or_more(one_of("activation", ACTIVATIONS)), AS_TOML] | None = None
    """Activation of the hidden layers: relu, leaky-relu, elu, gelu, silu, tanh, sigmoid."""
    norm: Annotated[Dimension, one_or_more(one_of("norm", NORMS)), AS_TOML] | None = None
    """`batch` or `layer` normalization before each activation, or `none`."""
    dropout: Annotated[Dimension, BeforeValidator(parser(share, whole=False)), AS_TOML] | None = None
    """Probability with which an activation is set to zero in training; 0 for none."""
    residual: Annotated[Dimension, one_or_more(boolean), AS_TOML] | None = None
    """Whether each hidden layer is followed by another of its width (in a CNN a 3x3 convolution), whose inputs are
    added to its outputs."""
    init: Annotated[Dimension, one_or_more(one_of("init", INITS)), AS_TOML] | None = None
    """Initial weights: `torch` (its own), `kaiming`, `xavier`, `orthogonal`."""


class Augmentation(Section, config.Augmentation):
    """Random changes of the training images, drawn for each example; none by default."""


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _shares(value: object) -> object:
    """Three shares of the examples, as a tuple."""
    shares = value if isinstance(value, list | tuple) else ()
    numbers = [each for each in shares if isinstance(each, float) and each > 0]
    if len(shares) != 3 or len(numbers) != 3 or not math.isclose(sum(numbers), 1):
        raise ValueError("must be three shares that sum to 1, as in split = [0.7, 0.15, 0.15]")
    return tuple(numbers)


_FILES = f"a file is {', '.join(TABLES[:-1])}, or a folder of images with a slash at its end; a function is mine:f"
_MODELS = "or mine:Net of mine.py, torchvision:resnet18, timm:resnet18"


def _readable(value: object) -> object:
    """Refuse a file of a kind that is not read, before it is taken for an unknown name."""
    if isinstance(value, str) and not is_own(value) and re.search(r"[./\\]", value):
        raise ValueError(f"{_FILES}; convert or unpack others first, as by pandas.read_excel(...).to_csv(...)")
    return value


class Workload(Section, config.Reading):
    """Data, model family and metric; never the optimizer."""

    data: Annotated[str, known("data set", CATALOGUE, is_own, _FILES), BeforeValidator(_readable)]
    """A shipped data set; a file beside the spec (.csv, .tsv, .parquet, .npz, or a folder of images with a slash at its
    end); or the import path of your own, `mine:rings`."""
    task: Annotated[Task, known("task", TASKS)] | None = None
    """`regression` or `classification`; needed only for your own data whose targets could be either."""
    features: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    """Columns to use as inputs; all others if not given."""
    exclude: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    """Columns that are not inputs, if `features` is not given."""
    split: Annotated[tuple[float, float, float], BeforeValidator(_shares)] = (0.7, 0.15, 0.15)
    """Shares of training, validation and test examples."""
    missing: Annotated[Missing, known("missing", MISSING)] = "error"
    """What happens to missing values: `error`, `drop` (the row), or `mean` (of the training split)."""
    model: Annotated[str, known("model", FAMILIES, is_import_path, _MODELS)]
    """`linear`, `mlp`, `cnn`; `quadratic` for the data set of that name; DeepOBS's `deepobs-logreg`, `deepobs-mlp`,
    `deepobs-2c2d`, `deepobs-3c3d` for images; or the import path of your own."""
    model_args: ModelArgs = ModelArgs()
    """Arguments of a shipped model."""
    own_args: dict[str, ModelArgument] = Field(default_factory=dict)
    """The spec's `model_args` if the model is the user's."""
    metric: Annotated[str, known("metric", ("loss", "accuracy"))] = "loss"
    """`loss`, or `accuracy` for a classification, which is then the default; on the validation split."""
    loss: ImportPath | None = None
    """Import path of your own, which replaces squared error or cross-entropy."""
    score: ImportPath | None = None
    """Import path of the user's, which replaces accuracy; the spec may give it as `metric`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that all classes share in training, as torch.nn.CrossEntropyLoss has it; 0 for none. With it
    the native kernel is not used."""
    target: float | None = None
    """The metric value that counts as solved."""
    standardize: bool = True
    """Mean 0 and standard deviation 1 over the training split, also of a regression's targets."""
    redraw: bool = False
    """Whether each trial draws new data, by its first seed; otherwise all trials use the same data."""
    augment: Augmentation = Augmentation()
    """Random changes of the training images."""
    dtype: Annotated[str, known("dtype", ("float32", "float64"))] = "float32"
    """`float32` or `float64`."""
    _user_code: bundle.UserCode = PrivateAttr(default=bundle.UserCode())

    @model_validator(mode="before")
    @classmethod
    def _sort_user_code(cls, values: Any, info: ValidationInfo) -> Any:
        """Move what a spec says about user code to the fields for it, and choose the default metric."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if is_import_path(str(values.get("metric", ""))):
            values["metric"], values["score"] = "accuracy", values["metric"]
        if is_import_path(str(values.get("model", ""))) and "model_args" in values:
            values["own_args"] = values.pop("model_args")
        if "metric" not in values:
            facts = CATALOGUE.get(str(values.get("data"))) or (info.context and info.context.facts)
            if values.get("score") or (facts and facts.task == "classification" and not values.get("loss")):
                values["metric"] = "accuracy"
        return values

    @model_validator(mode="after")
    def _keep_user_code(self, info: ValidationInfo) -> Workload:
        if info.context:
            self._user_code = info.context
        return self

    @model_validator(mode="after")
    def _only_images_are_augmented(self) -> Workload:
        if self.augment and len(self.facts.in_shape) != 3:
            raise ValueError(
                f"augment is for images; {self.data} has inputs of shape {self.facts.in_shape}; leave it out"
            )
        return self

    @property
    def facts(self) -> Facts:
        """Properties of the data set."""
        facts = CATALOGUE.get(self.data) or self._user_code.facts
        assert facts, "a user's data set is tried before its facts are asked for"
        return facts

    @property
    def user_code(self) -> bundle.UserCode:
        """The bundle of user code."""
        return self._user_code

    @property
    def code(self) -> str:
        """Folder of the bundle of user code; empty if there is none."""
        return self._user_code.code

    def given_args(self) -> dict[str, Dimension]:
        """The model's arguments that the spec gives."""
        return {name: value for name, value in vars(self.model_args).items() if value is not None} | self.own_args

    def with_args(self, values: Mapping[str, Any]) -> Workload:
        """The same workload with one value for each of some arguments; others than the model has are left out."""
        given = {name: Choice(values=(value,)) for name, value in values.items()}
        args = self.model_args.model_copy(update={name: given[name] for name in vars(self.model_args) if name in given})
        own = {name: given.get(name, each) for name, each in self.own_args.items()}
        return self.model_copy(update={"model_args": args, "own_args": own})

    def arguments(self) -> dict[str, Any]:
        """The model's arguments that are given and not searched."""
        fixed = {name: d for name, d in self.given_args().items() if isinstance(d, Choice) and d.size() == 1}
        return {name: choice.values[0] for name, choice in fixed.items()}

    def searched(self) -> dict[str, Dimension]:
        """The model's arguments that are searched, by their names in a cell: `model.heads`."""
        return {f"model.{name}": d for name, d in self.given_args().items() if name not in self.arguments()}


class Search(Section):
    """The space of cells. In TOML a list is a choice, {low, high, log} a range, a lone value fixed."""

    width: Whole | None = None
    """Units of the first hidden layer, or channels of the first convolution."""
    depth: Whole | None = None
    """Hidden layers, or convolutions."""
    batch_size: BatchSize
    """Examples per update; `"full"` is the whole training split."""
    optimizer: Optimizer
    """Optimizers to compare."""
    settings: dict[str, dict[str, Setting]] = Field(default_factory=dict)
    """Settings of one optimizer, with torch.optim's names: `{momentum = {momentum = [0.9, 0.99]}}`; searched only with
    it."""

    def dimensions(self) -> dict[str, Dimension]:
        """The dimensions of every cell, by name."""
        names = ("optimizer", "batch_size", "width", "depth")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def settings_of(self, optimizer: str) -> dict[str, Dimension]:
        """The settings that are searched with an optimizer, by their names in a cell: `adam.beta1`."""
        return {f"{optimizer}.{name}": value for name, value in self.settings.get(optimizer, {}).items()}

    def optimizers(self) -> list[str]:
        """The optimizers that are compared."""
        return [str(name) for name in self.optimizer.ends()]


class Budget(Section, config.Budget):
    """How many trials, and how long each lane trains: one of epochs, updates, examples, seconds."""

    trials: Annotated[int, Field(ge=1, le=LARGEST)] = 64
    """Cells to try."""

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        given = [limit for limit in LIMITS if getattr(self, limit) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(LIMITS)}; {' and '.join(given) or 'none'} given")
        return self


class Tuning(Section):
    """How cells are proposed and stopped, and the root of every seed."""

    sampler: Annotated[str, known("sampler", SAMPLERS)] = "tpe"
    """Proposes cells. With random, qmc and grid, a cell depends only on `seed` and the trial's number."""
    scheduler: Annotated[str, known("scheduler", SCHEDULERS)] = "none"
    """Stops trials that are behind others with their optimizer and batch size."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The root of every seed."""
    fair: bool = True
    """Whether optimizers take turns, so that every one gets the same number of trials."""
    objectives: list[Annotated[str, known("objective", OBJECTIVES)]] = Field(
        default_factory=lambda: ["metric"], min_length=1
    )
    """Objectives to optimize together: the workload's metric, and costs such as `train_seconds`."""
    storage: str | None = None
    """URL of the database for Optuna; a journal file in the results folder if not given."""
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    """Results folder, or URI, of an earlier study of the same workload and budget. The sampler learns from its
    trials."""
    timeout: Annotated[float | str | None, BeforeValidator(checked_duration)] = None
    """No trial of the search begins after this time in all sessions together: "90s", "30m", "2h", "1d", or seconds."""

    @property
    def timeout_seconds(self) -> float:
        """The time-out in seconds; infinite if there is none."""
        return math.inf if self.timeout is None else duration_seconds(self.timeout)


class Confirm(Section):
    """The winners run again, each at its tuned rate, on seeds that the search did not use."""

    top: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Number of best cells; the best of every optimizer and of every regime are added."""
    seeds: Annotated[int, Field(ge=2, le=10_000)] = 10
    """Number of fresh seeds of each cell."""
    most_seeds: Annotated[int, Field(ge=4, le=10_000)] | None = None
    """Add batches of `seeds` seeds to the optimizers that may be the best, up to this many each. Batches end when one
    optimizer wins, or more seeds cannot decide."""
    weights_mib: Annotated[float, Field(ge=0)] = 64
    """The trained parameters are kept if those of all seeds and cells take at most this many MiB."""

    @model_validator(mode="after")
    def _most_seeds_allow_a_second_look(self) -> Confirm:
        if self.most_seeds is not None and self.most_seeds < 2 * self.seeds:
            valid = f"{2 * self.seeds} or more"
            raise ValueError(f"most_seeds = {self.most_seeds} adds no batch to {self.seeds} seeds; valid: {valid}")
        if self.looks > MOST_LOOKS:
            most = f"at most {MOST_LOOKS} times seeds, here {MOST_LOOKS * self.seeds}"
            raise ValueError(f"most_seeds = {self.most_seeds} is {self.looks} times seeds; valid: {most}")
        return self

    @property
    def looks(self) -> int:
        """How often the verdict may look at the fresh seeds."""
        return (self.most_seeds or self.seeds) // self.seeds


def _none_if_off(value: object) -> object:
    if value is False:
        return None
    if isinstance(value, str | bool | int | float | list):
        raise ValueError("must be a table, as in [confirm], or false")
    return value


class Recording(Section, config.Recording):
    """What the results folder keeps."""

    tensorboard: bool = False
    """Whether TensorBoard's event files are written, into `tensorboard/` of the results folder."""
    wandb: bool = False
    """Whether runs of Weights & Biases are written offline, into `wandb/` of the results folder; `wandb sync` sends
    them."""
    mlflow: str | None = None
    """Address of an MLflow tracking server."""


def _gpus(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (number and value >= 0 and (value <= 1 or value % 1 == 0)):  # type: ignore[operator]
        return value
    raise ValueError('must be a number, whole if above 1, or "auto"; valid: 0, 0.25, 0.5, 1, 2, "auto"')


class Resources(Section):
    """Resources of one trial. With a fraction, several trials share a GPU."""

    cpus_per_trial: Annotated[int, Field(ge=1, le=10_000)] = 1
    """CPUs of one trial, and its number of threads."""
    gpus_per_trial: Annotated[float | Literal["auto"], BeforeValidator(_gpus)] = 0.0
    """GPUs of one trial; `"auto"` is replaced by the share of a GPU that the largest cell needs."""
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of each GPU, for `gpus_per_trial = "auto"`; read from the GPUs if not given."""
    cpu_nodes: bool = False
    """Whether small cells train on CPUs alone, also on nodes without a GPU. Whether a cell is small depends on the cell
    only, so a trial's device, and so its results, never depend on free capacity."""

    @model_validator(mode="after")
    def _cpu_nodes_need_gpus(self) -> Resources:
        if self.cpu_nodes and not self.gpus:
            raise ValueError(
                "cpu_nodes = true lets small cells train without a GPU, but no trial uses one; set gpus_per_trial to "
                '1, 0.25, "auto" ..., or leave cpu_nodes out'
            )
        return self

    @property
    def gpus(self) -> float:
        """GPUs per trial as a number; the smallest possible share for auto."""
        return 1 / SHARING if self.gpus_per_trial == "auto" else self.gpus_per_trial


class Spec(Section):
    """A valid spec of a study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    """Name of the study; its results go to results/NAME."""
    description: str = ""
    """Text for the report."""
    workload: Workload
    search: Search
    lanes: Lanes = Lanes()
    budget: Budget
    tuning: Tuning = Tuning()
    confirm: Annotated[Confirm | None, BeforeValidator(_none_if_off)] = Confirm()
    """Off if None in Python, or false in TOML."""
    baseline: list[Baseline] = Field(default_factory=list)
    """What tuning is compared with."""
    enqueue: list[Enqueued] = Field(default_factory=list)
    """The cells of the first trials."""
    recording: Recording = Recording()
    resources: Resources = Resources()

    def lane_seeds(self, replicate: int = 0) -> list[int]:
        """The seeds of a trial's lanes, after as many earlier trials with the same cell."""
        first = self.tuning.seed * SEEDS + replicate * self.lanes.seeds
        return list(range(first, first + self.lanes.seeds))

    def confirm_seeds(self, look: int = 0) -> list[int]:
        """The seeds that a look at the confirmation adds, which no trial of the search has."""
        count = self.confirm.seeds if self.confirm else 0
        first = self.tuning.seed * SEEDS + SEEDS // 2 + look * count
        return list(range(first, first + count))

    def optimizer_facts(self, name: str) -> OptimizerFacts:
        """Properties of an optimizer of the search."""
        return self.workload.user_code.optimizer(name)

    def rates(self, optimizer: str) -> tuple[float, float, int]:
        """Lowest and highest learning rate of an optimizer's grid, and their number."""
        return self.lanes.grid_of(optimizer, self.optimizer_facts(optimizer).rates)[0]

    def axes(self, optimizer: str) -> dict[str, list[Any]]:
        """The axes of an optimizer's lanes besides the seeds and a grid of rates: name -> values.

        Settings of optimizers are axes of those that have them; `learning_rate` is one if its values are listed.
        """
        known = {*AXES, *settings_of(optimizer, self.optimizer_facts(optimizer))}
        axes = {
            name: [value if isinstance(value, str) else float(value) for value in each.values]
            for name, each in self.lanes.axes().items()
            if name in known
        }
        _, listed = self.lanes.grid_of(optimizer, self.optimizer_facts(optimizer).rates)
        return axes | ({"learning_rate": listed} if listed else {})

    def setting_counts(self, optimizer: str) -> dict[str, int]:
        """The number of values of each axis of an optimizer's lanes, the learning rate first."""
        others = {name: len(values) for name, values in self.axes(optimizer).items() if name != "learning_rate"}
        return {"learning_rate": self.rates(optimizer)[2], **others}

    def settings(self, optimizer: str) -> int:
        """The settings with which a trial of an optimizer begins: all combinations, or a sample of them."""
        every = math.prod(self.setting_counts(optimizer).values())
        return min(every, self.lanes.sample or every)

    def dimensions(self) -> dict[str, Dimension]:
        """The dimensions of every cell, by name, with the searched arguments of the model."""
        return self.search.dimensions() | self.workload.searched()

    def corners(self) -> list[tuple[int, int, int]]:
        """Batch size, width and depth at the ends of each."""
        dimensions, full = self.search.dimensions(), self.workload.facts.train
        sizes = [dimensions[name].ends() if name in dimensions else [0] for name in ("batch_size", "width", "depth")]
        return [(full if b == "full" else int(b), int(w), int(d)) for b, w, d in itertools.product(*sizes)]

    def copy_code(self, folder: Path) -> list[str]:
        """Copy the bundle of user code into a results folder; return notes for the user."""
        bundle.copy_to(self.workload.user_code, folder)
        return list(self.workload.user_code.notes)

    def cells(self) -> float:
        """Number of cells; infinite if a setting is any real number."""
        return sum(self.cells_of(name) for name in self.search.optimizers())

    def cells_of(self, optimizer: str) -> float:
        """Number of cells with an optimizer."""
        shared = math.prod(d.size() for name, d in self.dimensions().items() if name != "optimizer")
        return math.prod((d.size() for d in self.search.settings_of(optimizer).values()), start=shared)

    def tables(self) -> dict[str, Any]:
        """The tables of the spec's file, with all defaults."""
        tables = self.model_dump(exclude_none=True)
        tables.setdefault("confirm", False)  # if left out, it would be the default
        tables = {name: table for name, table in tables.items() if table != []}
        if own := tables["workload"].pop("own_args"):
            tables["workload"]["model_args"] = own
        for name in vars(config.Reading()) if not is_table(self.workload.data) else ():
            if name != "task":
                tables["workload"].pop(name, None)
        return tables

    def to_toml(self) -> str:
        """The tables as text."""
        return tomlkit.dumps(self.tables())
