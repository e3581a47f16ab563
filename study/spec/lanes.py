"""The section [lanes]: what each trial trains side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from study.spec.dimensions import (
    AS_TOML,
    Choice,
    Dimension,
    Section,
    in_range,
    known,
    one,
    one_of,
    one_or_more,
    positive,
)
from trainables.config import Positive
from trainables.schedules import SCHEDULES
from trainables.workloads import catalogue
from trainables.workloads.catalogue import ENGINES, OPTIMIZERS, OptimizerFacts

# Lanes of a trial, at most; more are taken for a mistake.
MOST_LANES = 10_000


class Rates(Section):
    """A learning-rate grid: count values, evenly spaced on a log scale."""

    low: Annotated[float, one(positive)]
    high: Annotated[float, one(positive)]
    count: Annotated[int, Field(ge=1, le=1000)] = 8

    @model_validator(mode="after")
    def _ordered(self) -> Rates:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self


def _kind(value: Any) -> str:
    """Which form a learning rate has: a grid, values, or one of the two for each of several optimizers."""
    if isinstance(value, Rates) or (isinstance(value, Mapping) and {"low", "high", "count"} & set(value)):
        return FORMS[0]
    return FORMS[2] if isinstance(value, Mapping) else FORMS[1]


FORMS = ("<grid>", "<values>", "<by optimizer>")
"""Parts of a mistake's place that the user has not written."""

schedule = one_of("schedule", SCHEDULES)
share = in_range(lambda x: 0 <= x < 1, "a share, at least 0 and below 1, as in 0.1")
amount = in_range(lambda x: x >= 0, "0 and positive numbers")
Schedules = Annotated[Dimension, one_or_more(schedule), AS_TOML]
Shares = Annotated[Dimension, one_or_more(share), AS_TOML]
Amounts = Annotated[Dimension, one_or_more(amount), AS_TOML]
Values = Annotated[Dimension, one_or_more(positive), AS_TOML]
_Grid: TypeAlias = Annotated[Rates, Tag("<grid>")] | Annotated[Values, Tag("<values>")]
_Table: TypeAlias = Annotated[dict[str, Annotated[_Grid, Discriminator(_kind)]], Tag("<by optimizer>")]
LearningRate = Annotated[_Grid | _Table, Discriminator(_kind)]


class Lanes(Section):
    """Lanes of each trial: settings x seeds. A setting is a learning rate and a recipe (schedule, weight decay ...)."""

    learning_rate: LearningRate | None = None
    """`{low, high, count}`, a list, or a table that gives each optimizer one of the two; by default each
    optimizer's own range."""
    rates: Annotated[int, Field(ge=1, le=1000)] = 8
    """Number of learning rates, spread over an optimizer's own range."""
    schedule: Schedules | None = None
    """Of the rate: constant, linear, cosine, step, exponential, one-cycle, wsd. A list is tuned beside the rate, lane
    by lane; so are lists of the five keys below."""
    warmup: Shares | None = None
    """Share of the budget in which the rate rises in a straight line."""
    weight_decay: Amounts | None = None
    """Weight decay, as in the optimizer's class of torch.optim; by default the class's own value."""
    clip_norm: Amounts | None = None
    """Largest norm of a network's gradient; 0 for no limit."""
    clip_value: Amounts | None = None
    """Largest absolute value of a gradient's component; 0 for no limit."""
    ema: Shares | None = None
    """Share that an exponential moving average of the parameters keeps at each update, as 0.999; 0 for none. A lane
    with an average is evaluated, chosen and exported with it, as by torch's AveragedModel."""
    settings: dict[str, Amounts] = Field(default_factory=dict)
    """Settings of optimizers to tune as well, under torch.optim's names: `{momentum = [0.0, 0.9]}`."""
    sample: Positive | None = None
    """Train only this many of the combinations, drawn at random, the same in every trial."""
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Seeds of initialisation and batches."""
    engine: Annotated[str, known("engine", ("auto", *ENGINES))] = "auto"
    """`auto` takes the fastest for the trial; or native, eager, cuda-graph, solo."""
    halving: bool = False
    """Whether the worse half of each recipe's rates is dropped at 1/2, 1/4, 1/8 ... of the budget."""
    extensions: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a trial may add half as many rates beyond its best one, while that is the lowest or the highest."""
    refine: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a trial may then add the two rates around its best one, at half and a quarter of the grid's spacing,
    while this spacing matters more than the noise over seeds."""

    def axes(self) -> dict[str, Choice]:
        """The axes that are given besides the learning rate."""
        named = {name: getattr(self, name) for name in AXES}
        return {name: choice for name, choice in (named | self.settings).items() if choice is not None}

    def grid_of(self, optimizer: str, own: tuple[float, float]) -> tuple[tuple[float, float, int], list[float] | None]:
        """(lowest, highest, count) of an optimizer's learning rates, and the rates themselves if they are listed.

        Args:
            optimizer: its name.
            own: lowest and highest rate where the spec gives none.
        """
        given: Any = self.learning_rate
        if isinstance(given, dict):
            given = given.get(optimizer)
        if isinstance(given, Choice):
            values = sorted(float(value) for value in given.values)
            return (values[0], values[-1], len(values)), values
        return ((given.low, given.high, given.count) if given else (*own, self.rates)), None


def settings_of(optimizer: str, facts: OptimizerFacts) -> Mapping[str, float]:
    """The settings of an optimizer that a spec can change, with their default values."""
    return catalogue.settings_of(optimizer) if optimizer in OPTIMIZERS else facts.settings


AXES = ("schedule", "warmup", "weight_decay", "clip_norm", "clip_value", "ema")
"""Axes that every optimizer has."""
