"""What a trial is told; nothing else decides its numbers.

Every group of settings is declared once, here. The section of the spec that offers a group inherits its fields
(`study.spec.model`), and so does `TrialConfig`, whose keys are therefore flat, as Ray Tune's are. Constraints are those
of `annotated_types`, which pydantic checks in a spec. This module imports nothing heavy.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

Missing = Literal["error", "drop", "mean"]
# Larger numbers are taken for typing errors.
MOST = 10**12
Positive = Annotated[int, Ge(1), Le(MOST)]
# Reports of a trial whose budget is not in epochs.
REPORTS = 10


@dataclass(frozen=True)
class Budget:
    """How long every lane trains; exactly one of epochs, updates, examples and seconds is set.

    Attributes:
        epochs, updates, examples: the limit of every lane's training.
        seconds: the limit, as the time of one network trained alone, without evaluation. From the measured time of an
            update, each trial computes how many updates its lanes make.
        min_updates: lower bound on updates, for batches so large that the budget would end at once.
        drop_last: whether an epoch leaves out its last batch if that is short.
    """

    epochs: Annotated[int, Ge(1), Le(10**6)] | None = None
    updates: Positive | None = None
    examples: Positive | None = None
    seconds: Annotated[float, Gt(0)] | None = None
    min_updates: Annotated[int, Ge(0), Le(MOST)] = 0
    drop_last: bool = False

    def total_updates(self, batch_size: int, training_examples: int) -> int | None:
        """Updates in the budget; None if it is in seconds."""
        used = examples_per_epoch(batch_size, training_examples, drop_last=self.drop_last)
        per_epoch = updates_per_epoch(batch_size, used)
        if self.seconds is not None:
            return None
        if self.epochs is not None:
            total = self.epochs * per_epoch
        elif self.examples is not None:
            whole, rest = divmod(self.examples, used)
            total = whole * per_epoch + math.ceil(rest / batch_size)
        else:
            assert self.updates is not None
            total = self.updates
        return max(total, self.min_updates, 1)

    def in_updates(self, update_seconds: float | None) -> Budget:
        """The same budget in updates if it is in seconds, which requires the seconds of an update."""
        if self.seconds is None:
            return self
        assert update_seconds
        return replace(self, seconds=None, updates=max(1, round(self.seconds / update_seconds)))

    @property
    def reports(self) -> int:
        """Equal parts of the budget, each followed by a report: one per epoch, or `REPORTS`."""
        return self.epochs or min(REPORTS, self.updates or REPORTS)


def examples_per_epoch(batch_size: int, training_examples: int, *, drop_last: bool) -> int:
    """Training examples used in an epoch: all, or only those in full batches if a short last batch is dropped."""
    short = training_examples % min(batch_size, training_examples)
    return training_examples - short if drop_last else training_examples


def updates_per_epoch(batch_size: int, examples: int) -> int:
    """Updates in an epoch of this many examples, including the last one, which may be short."""
    return math.ceil(examples / batch_size)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images, drawn for each example; none by default.

    Attributes:
        rotate: at most this many degrees either way.
        translate: at most this share of height and width either way.
        flip: whether left and right change places in half of the images.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
    """

    rotate: Annotated[float, Gt(0), Le(180)] | None = None
    translate: Annotated[float, Gt(0), Lt(1)] | None = None
    flip: bool = False
    jitter: Annotated[float, Gt(0), Lt(1)] | None = None

    def __bool__(self) -> bool:
        return bool(self.rotate or self.translate or self.flip or self.jitter)


@dataclass(frozen=True)
class Recording:
    """What a trial keeps.

    Attributes:
        every_update: whether the curves hold the loss of every update, instead of means between evaluations.
        gradient_noise: whether the curves hold the gradient's squared norm and its noise at every evaluation.
        weights: whether the lanes table holds each lane's final parameters; for small networks.
        predictions: whether each lane's predicted class of each test example is kept, in a table of its own.
        evaluation_share: share of training's cost that evaluations between reports may take.
        checkpoint_seconds: seconds between two checkpoints of a running trial, which are made at reports.
    """

    every_update: bool = False
    gradient_noise: bool = False
    weights: bool = False
    predictions: bool = False
    evaluation_share: Annotated[float, Ge(0)] = 1 / 3
    checkpoint_seconds: Annotated[float, Ge(0)] = 30.0


@dataclass(frozen=True)
class Reading:
    """How a user's data set becomes examples; all but the task are for files.

    Attributes:
        task: regression or classification; if not given, floats as targets are a regression, and all others classes.
        label: the column of a table to predict.
        features: columns of the inputs; if not given, all that have no other purpose.
        exclude: columns that are not inputs, if features does not say which are.
        split: shares of the training, validation and test split, which are drawn by the data's seed.
        split_column: column that says train, validation or test, instead of `split`.
        group_column: column whose equal values stay in one split.
        missing: whether a missing value is a mistake, drops its row, or becomes the training split's mean.
    """

    task: Literal["regression", "classification"] | None = None
    label: str | None = None
    features: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    split_column: str | None = None
    group_column: str | None = None
    missing: Missing = "error"

    @staticmethod
    def from_fields(given: Mapping[str, Any]) -> Reading:
        """From fields, with lists for tuples; other fields are ignored."""
        known: dict[str, Any] = {each.name: given[each.name] for each in fields(Reading) if each.name in given}
        for name, value in known.items():
            known[name] = tuple(value) if isinstance(value, list) else value
        return Reading(**known)


@dataclass(frozen=True)
class Recipe:
    """How a lane trains besides its learning rate and seed: one value of each axis that a trial tunes beside the rate.

    A field is None where the spec does not give it; its default is then in force. To add an axis, add a field here, one
    in `study.spec.lanes.Lanes`, and a column to `analysis.schema.LANES`.

    Attributes:
        schedule: of the rate, one of `trainables.schedules.SCHEDULES`; constant by default.
        warmup: share of the budget in which the rate rises in a straight line; 0 by default.
        weight_decay: as in the optimizer's class of `torch.optim`; the optimizer's own by default.
        clip_norm: largest norm of the gradient of the whole network; 0, the default, for no limit.
        clip_value: largest absolute value of a component of the gradient, which is limited before its norm; 0, the
            default, for no limit.
        ema: share that an exponential moving average of the parameters keeps at each update; 0, the default, for none.
            The lane is evaluated by the average.
        settings: (name, value) of the optimizer's settings that are tuned lane by lane.
    """

    schedule: str | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None
    settings: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """From values by name; names that are not fields are settings of the optimizer."""
        own = {f.name for f in fields(cls)} - {"settings"}
        known = {name: value for name, value in values.items() if name in own}
        return cls(**known, settings=tuple((name, values[name]) for name in values if name not in own))

    def values(self) -> dict[str, Any]:
        """What is given, by name: the inverse of `of`."""
        return {name: v for name, v in vars(self).items() if v is not None and name != "settings"} | dict(self.settings)

    def text(self) -> str:
        """What is given, as JSON; empty if nothing is. It identifies the recipe in the tables."""
        return json.dumps(self.values()) if self.values() else ""


PLAIN = Recipe()
"""Every axis at its default."""


def combinations(axes: Mapping[str, Sequence[Any]], sample: int = 0) -> list[tuple[float, Recipe]]:
    """The combinations of a trial's axes: pairs of learning rate and recipe, rate by rate in each recipe.

    Args:
        axes: name -> values; `learning_rate` is one of them, the others are those of `Recipe.of`.
        sample: take only as many, drawn at random by number, the same of every trial with as many; 0 for all.
    """
    others = {name: values for name, values in axes.items() if name != "learning_rate"}
    recipes = [Recipe.of(dict(zip(others, values, strict=True))) for values in itertools.product(*others.values())]
    found = list(itertools.product(recipes, axes["learning_rate"]))
    if sample and sample < len(found):
        order = list(range(len(found)))
        random.Random(0).shuffle(order)
        found = [found[place] for place in sorted(order[:sample])]
    return [(rate, recipe) for recipe, rate in found]


@dataclass(frozen=True, kw_only=True)
class TrialConfig(Recording, Reading):
    """A trial's configuration; the keys of a Ray Tune configuration are its fields.

    Attributes:
        optimizer: an update rule, a class of `torch.optim`, or the import path of the user's.
        batch_size: examples per update.
        width, depth: of the network; the linear and the quadratic model have none.
        data: one of `trainables.workloads.catalogue.CATALOGUE`, or the import path of a user's data set.
        model: model family, the trainable's first if not given; or the import path of a user's model.
        model_args: the model's own arguments.
        settings: of the optimizer, name -> value, where they differ from its defaults.
        metric: `loss` or `accuracy`, on the validation split; the trial reports it as `value`.
        loss, score: import paths of a user's, which replace the task's.
        label_smoothing: of the cross-entropy in training, as torch.nn.CrossEntropyLoss has it.
        standardize: see `trainables.workloads.data.load`.
        data_seed: its `seed`.
        augment: of the training images; may be given as a dict.
        dtype: float32 or float64.
        rates: (lowest, highest, count) of the learning-rate grid; the rule's range with a count of 8 if not given.
        axes: what is tuned beside the rate, name -> values (`Recipe.of`); or `learning_rate` with a list instead of
            `rates`.
        sample: number of the combinations of rates and axes that are drawn at random; 0 for all.
        seeds: one lane per seed at each combination.
        budget: how long each lane trains; may be given as a dict.
        engine: how lanes are computed, or auto.
        halving: whether the worse half of the rates is given up at 1/2, 1/4, 1/8 ... of the budget.
        extensions: times, at most, that rates are added beyond the edge of the grid on which the best one lies.
        refine: times, at most, that rates are then added around the best one, at half and a quarter of the spacing.
        test_values: whether the lanes table holds the metric of each test example, as a confirmation's does.
        weights_mib: the lanes table also holds the final parameters if those of all lanes take at most this many MiB.
        trial: the trial's number, for the tables.
        data_folder: of downloaded data.
        code, digest: folder of user code, and the digest of its files; empty if there is none, or any will do.
        device: cpu, cuda, or auto: cuda if the trial was given a GPU.
        share: of that GPU; the trial may not use more of its memory.
        threads: CPU threads of the trial.
        checkpoint: file or URI in which the trial keeps its state, instead of Ray Tune's checkpoints; the owner of the
            trial deletes it.
    """

    optimizer: str
    batch_size: int
    width: int = 0
    depth: int = 0
    data: str = "cubic"
    model: str = ""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    metric: str = "loss"
    loss: str = ""
    score: str = ""
    label_smoothing: float = 0.0
    standardize: bool = True
    data_seed: int = 0
    augment: Augmentation = Augmentation()
    dtype: str = "float32"

    rates: tuple[float, float, int] | None = None
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    sample: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: Budget = Budget(epochs=1)
    engine: str = "auto"
    halving: bool = False
    extensions: int = 0
    refine: int = 0
    test_values: bool = False
    weights_mib: float = 0.0

    trial: int = 0
    data_folder: str | None = None
    code: str = ""
    digest: str = ""
    device: str = "auto"
    share: float = 1.0
    threads: int = 1
    checkpoint: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TrialConfig:
        """Read a Ray Tune configuration; other keys are ignored."""
        given = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        for name, kind in (("budget", Budget), ("augment", Augmentation)):
            if isinstance(given.get(name), Mapping):
                given[name] = kind(**given[name])
        return cls(**given)

    def reading(self) -> Reading:
        """How a user's data set becomes examples."""
        return Reading.from_fields(vars(self))

    def identity(self) -> str:
        """All settings that affect the trial's numbers, as text; a checkpoint is of the trial that has the same."""
        chosen = {name: value for name, value in asdict(self).items() if name not in _INCIDENTAL}
        chosen["budget"] = {name: value for name, value in chosen["budget"].items() if value is not None}
        chosen["augment"] = {name: value for name, value in chosen["augment"].items() if value}
        for each in fields(Reading):  # a checkpoint of an earlier version has none of these
            if getattr(self.reading(), each.name) == each.default:
                del chosen[each.name]
        for name in ("axes", "sample", "label_smoothing"):  # earlier versions did not have them
            if not chosen[name]:
                del chosen[name]
        return json.dumps(chosen, sort_keys=True, default=repr)


# Settings that do not affect a trial's numbers, or not by more than lane equality allows.
_INCIDENTAL = (
    "checkpoint",
    "checkpoint_seconds",
    "code",
    "data_folder",
    "device",
    "digest",
    "share",
    "test_values",
    "threads",
    "weights",
    "weights_mib",
)
