"""The search space: what Optuna samples, and the configurations of trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from study.cluster import packing
from study.cluster.build import builder
from study.spec import Spec
from study.spec.dimensions import Dimension, Range
from study.spec.given import GivenCell
from study.spec.model import part
from trainables import config, storage

Cell = dict[str, Any]
"""optimizer, batch_size, width and depth as the spec writes them, and the optimizer's settings as `adam.beta1`."""


@dataclass(frozen=True)
class Space:
    """The cells of a spec, and the trials that run them."""

    spec: Spec  # the study's
    data_folder: str  # where downloaded data lie, absolute
    checkpoints: str  # folder in which running trials keep their state, or its URI
    # settings of trials whose rate is not searched (learning_rate, and the recipe's values), and cells of those that no
    # sampler proposes, by number
    fixed: dict[int, dict[str, Any]] = field(default_factory=dict)
    cells: dict[int, Cell] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)  # at the confirmation, for which a trial adds seeds; 0 if none
    code: str = ""  # folder of user code; empty if there is none

    def suggest(self, trial: optuna.Trial | optuna.trial.FixedTrial) -> Cell:
        """The cell of an Optuna trial; settings are suggested only with their optimizer."""
        if trial.number in self.cells:
            return self.cells[trial.number]
        cell = {name: _suggest(trial, name, dimension) for name, dimension in self.spec.dimensions().items()}
        own = self.spec.search.settings_of(cell["optimizer"])
        return cell | {name: _suggest(trial, name, dimension) for name, dimension in own.items()}

    def configuration(self, cell: Cell, number: int, replicate: int = 0) -> dict[str, Any]:
        """A trial's configuration for Ray Tune: the fields of `TrialConfig`, replicate, and searched for the tables.

        `replicate` is the number of earlier trials of the same cell; each has seeds of its own.
        """
        spec = self.spec
        workload, resources, lanes = spec.workload, spec.resources, spec.lanes
        batch_size = workload.facts.train if cell["batch_size"] == "full" else cell["batch_size"]
        fixed, look = self.fixed.get(number), self.looks.get(number, 0)
        seeds = spec.confirm_seeds(look) if fixed else spec.lane_seeds(replicate)
        axes = {name: [value] for name, value in fixed.items()} if fixed else spec.axes(cell["optimizer"])
        listed = axes.get("learning_rate")
        trial = config.TrialConfig(
            optimizer=cell["optimizer"],
            batch_size=batch_size,
            width=cell.get("width", 0),
            depth=cell.get("depth", 0),
            data=workload.data,
            model=workload.model,
            model_args=workload.arguments() | _under("model", cell),
            settings=settings(cell),
            metric=workload.metric,
            loss=workload.loss or "",
            score=workload.score or "",
            label_smoothing=workload.label_smoothing,
            standardize=workload.standardize,
            data_seed=seeds[0] if workload.redraw else 0,
            augment=part(workload.augment, config.Augmentation),
            dtype=workload.dtype,
            rates=(min(listed), max(listed), len(listed)) if listed else spec.rates(cell["optimizer"]),
            axes={name: values for name, values in axes.items() if not (fixed and name == "learning_rate")},
            sample=0 if fixed else lanes.sample or 0,
            seeds=tuple(seeds),
            budget=part(spec.budget, config.Budget),
            engine=lanes.engine,
            halving=lanes.halving and not fixed,
            extensions=lanes.extensions,
            refine=lanes.refine,
            test_values=bool(fixed),
            weights_mib=spec.confirm.weights_mib / spec.budget.trials if fixed and spec.confirm and not look else 0.0,
            trial=number,
            data_folder=self.data_folder,
            code=self.code,
            digest=workload.user_code.digest,
            device=self._device(cell, batch_size),
            share=min(1.0, resources.gpus) or 1.0,
            threads=resources.cpus_per_trial,
            checkpoint=self.checkpoint(number),
            **vars(part(workload, config.Reading)),
            **vars(part(spec.recording, config.Recording)),
        )
        return {**asdict(trial), "replicate": replicate, "searched": searched(cell)}

    def _device(self, cell: Cell, batch_size: int) -> str:
        """The device on which a cell trains: cpu or cuda."""
        resources, shape = self.spec.resources, self.spec.workload.facts.in_shape
        if not resources.gpus or not resources.cpu_nodes:
            return "cuda" if resources.gpus else "cpu"
        build = builder(self.spec, cell.get("width", 0), cell.get("depth", 0), **_under("model", cell))
        try:
            return "cpu" if packing.small(build, shape, batch_size) else "cuda"
        except Exception:  # noqa: BLE001  the trial reports a model that cannot be built
            return "cuda"

    def checkpoint(self, number: int) -> str:
        """The file in which a running trial keeps its state."""
        return storage.join(self.checkpoints, f"trial-{number:05d}.pt")

    def distributions(self, cell: Cell, number: int) -> dict[str, BaseDistribution]:
        """Optuna's distributions of the parameters that a trial of a cell has; none if no sampler proposes its cell."""
        recorder = optuna.trial.FixedTrial(cell, number)
        self.suggest(recorder)
        return recorder.distributions

    def given(self, written: GivenCell) -> Cell:
        """A cell of the spec as `cell_of` has it."""
        size = self.spec.workload.facts.train if written.batch_size == "full" else written.batch_size
        return self.cell_of({**written.model_dump(), "batch_size": size, "settings": json.dumps(written.searched())})

    def cell_of(self, row: dict[str, Any]) -> Cell:
        """The cell of a row of the trials table."""
        batch_size = row["batch_size"]
        if batch_size == self.spec.workload.facts.train and "full" in self.spec.search.batch_size.ends():
            batch_size = "full"
        cell = {"optimizer": row["optimizer"], "batch_size": batch_size, "width": row["width"], "depth": row["depth"]}
        own = json.loads(row["settings"]) if row["settings"] else {}
        return {name: cell[name] for name in self.spec.search.dimensions()} | {
            name if name.startswith("model.") else f"{row['optimizer']}.{name}": value for name, value in own.items()
        }


def settings(cell: Cell) -> dict[str, float]:
    """The optimizer's own settings in a cell, under torch.optim's names."""
    return _under(cell["optimizer"], cell)


def searched(cell: Cell) -> dict[str, Any]:
    """The settings in the trials table: the optimizer's, and the model's arguments as `model.heads`."""
    return settings(cell) | {f"model.{name}": value for name, value in _under("model", cell).items()}


def _under(what: str, cell: Cell) -> dict[str, Any]:
    return {name.removeprefix(f"{what}."): value for name, value in cell.items() if name.startswith(f"{what}.")}


def key(cell: Cell) -> str:
    """The same text for the same cell."""
    return json.dumps(cell, sort_keys=True)


def _suggest(trial: optuna.Trial | optuna.trial.FixedTrial, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Range):
        suggest: Callable[..., Any] = trial.suggest_int if dimension.whole else trial.suggest_float
        return suggest(name, dimension.low, dimension.high, log=dimension.log)
    if len(dimension.values) == 1:
        return dimension.values[0]
    return trial.suggest_categorical(name, dimension.values)
