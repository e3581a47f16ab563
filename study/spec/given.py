"""Cells that a spec writes out: baselines, and cells that the sampler tries first."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from study.spec.dimensions import Section, argument, batch_size, number, one, optimizer, positive, whole_number
from study.spec.lanes import AXES, amount, schedule, share

# Named apart from the fields, whose annotations are evaluated among them.
_SCHEDULE, _SHARE, _AMOUNT = one(schedule), one(share), one(amount)
_LANES = Field(description="One value, as in `[lanes]`; if not given, its default, even if `[lanes]` sets another.")


class GivenCell(Section):
    """One cell, written out."""

    optimizer: Annotated[str, one(optimizer)]
    """One of the shipped ones, or the import path of your own."""
    batch_size: Annotated[int | str, one(batch_size)]
    """Examples per update, or "full"."""
    width: Annotated[int | None, one(whole_number)] = None
    """One value, as in `[search]`."""
    depth: Annotated[int | None, one(whole_number)] = None
    """One value, as in `[search]`."""
    settings: dict[str, Annotated[float, one(number)]] = Field(default_factory=dict)
    """Settings of the optimizer, with torch.optim's names; its defaults if not given."""
    model_args: dict[str, Annotated[bool | int | float | str, one(argument)]] = Field(default_factory=dict)
    """Searched arguments of the model."""

    def searched(self) -> dict[str, Any]:
        """Settings and arguments as the trials table names them: `beta1`, `model.heads`."""
        return self.settings | {f"model.{name}": value for name, value in self.model_args.items()}

    def cell(self) -> dict[str, Any]:
        """The cell as the searcher has it: its dimensions, then `adam.beta1`, `model.heads`."""
        shared = {name: getattr(self, name) for name in ("optimizer", "batch_size", "width", "depth")}
        own = {f"{self.optimizer}.{name}": value for name, value in self.settings.items()}
        arguments = {f"model.{name}": value for name, value in self.model_args.items()}
        return {name: value for name, value in shared.items() if value is not None} | own | arguments


class Baseline(GivenCell):
    """A configuration that is not tuned; the confirmation trains it on the winners' seeds."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    """Its name in reports."""
    learning_rate: Annotated[float, one(positive)]
    """Its learning rate, which is not tuned."""
    schedule: Annotated[str | None, _SCHEDULE, _LANES] = None
    warmup: Annotated[float | None, _SHARE, _LANES] = None
    weight_decay: Annotated[float | None, _AMOUNT, _LANES] = None
    clip_norm: Annotated[float | None, _AMOUNT, _LANES] = None
    clip_value: Annotated[float | None, _AMOUNT, _LANES] = None
    ema: Annotated[float | None, _SHARE, _LANES] = None

    def recipe(self) -> dict[str, Any]:
        """The values that are given of the axes of lanes."""
        return {name: value for name in AXES if (value := getattr(self, name)) is not None}


class Enqueued(GivenCell):
    """A cell of the space that is tried before the sampler proposes any."""
