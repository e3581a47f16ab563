"""From the spec to what Optuna samples and what a trial trains."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from scipy.stats import qmc

from study.cluster import packing
from study.spec import Spec
from study.spec.dimensions import Choice, Dimension, Range
from study.spec.model import part
from trainables import config, models, storage

Cell = dict[str, Any]
"""optimizer, batch_size, width, depth as the spec writes them, and the optimizer's settings as `adam.beta1`."""

_PLACES = {"random": 1, "qmc": 2, "grid": 3, "adaptive": 4}


@dataclass(frozen=True)
class Space:
    """The cells of a spec, and the trials that run them.

    Args:
        spec: the study's.
        data_folder: where downloaded data lie, absolute.
        checkpoints: folder in which running trials keep their state, or its URI.
        fixed: learning rates of cells whose rate is not to be searched, by trial.
        code: folder of the modules that users brought; empty if there are none.
    """

    spec: Spec
    data_folder: str
    checkpoints: str
    fixed: dict[int, float] = field(default_factory=dict)
    code: str = ""

    def suggest(self, trial: optuna.Trial | optuna.trial.FixedTrial) -> Cell:
        """Ask Optuna's trial for what is searched; settings are asked for with their optimizer alone."""
        cell = {name: _suggest(trial, name, dimension) for name, dimension in self.spec.dimensions().items()}
        own = self.spec.search.settings_of(cell["optimizer"])
        return cell | {name: _suggest(trial, name, dimension) for name, dimension in own.items()}

    def configuration(self, cell: Cell, number: int, replicate: int = 0) -> dict[str, Any]:
        """A trial's configuration for Ray Tune: the fields of `TrialConfig`, replicate, and searched for the tables.

        Args:
            cell: what it runs.
            number: the trial's.
            replicate: how many earlier trials had the same cell; each has seeds of its own.
        """
        spec = self.spec
        workload, resources, lanes = spec.workload, spec.resources, spec.lanes
        batch_size = workload.facts.train if cell["batch_size"] == "full" else cell["batch_size"]
        rate = self.fixed.get(number)
        seeds = spec.confirm_seeds() if rate else spec.lane_seeds(replicate)
        trial = config.TrialConfig(
            optimizer=cell["optimizer"],
            batch_size=batch_size,
            width=cell.get("width", 0),
            depth=cell.get("depth", 0),
            data=workload.data,
            model=workload.model,
            model_args=self._arguments(cell),
            settings=settings(cell),
            metric=workload.metric,
            loss=workload.loss or "",
            score=workload.score or "",
            standardize=workload.standardize,
            data_seed=seeds[0] if workload.redraw else 0,
            augment=part(workload.augment, config.Augmentation),
            dtype=workload.dtype,
            rates=(rate, rate, 1) if rate else spec.rates(cell["optimizer"]),
            seeds=tuple(seeds),
            budget=part(spec.budget, config.Budget),
            engine=lanes.engine,
            halving=lanes.halving and not rate,
            extensions=lanes.extensions,
            trial=number,
            data_folder=self.data_folder,
            code=self.code,
            digest=workload.brought.digest,
            device=self._device(cell, batch_size),
            share=min(1.0, resources.gpus) or 1.0,
            threads=resources.cpus_per_trial,
            checkpoint=self.checkpoint(number),
            **vars(part(spec.recording, config.Recording)),
        )
        return {**asdict(trial), "replicate": replicate, "searched": searched(cell)}

    def _arguments(self, cell: Cell) -> dict[str, Any]:
        return self.spec.workload.arguments() | _under("model", cell)

    def _device(self, cell: Cell, batch_size: int) -> str:
        """The kind of device on which a cell trains."""
        resources, workload = self.spec.resources, self.spec.workload
        if not resources.gpus:
            return "cpu"
        shape, outputs = workload.facts.in_shape, workload.facts.out_features
        size = {"width": cell.get("width", 0), "depth": cell.get("depth", 0), **self._arguments(cell)}
        build = partial(models.build, workload.model, shape, outputs, bundle=workload.code, **size)
        if not resources.cpu_nodes:
            return "cuda"
        try:
            return "cpu" if packing.small(build, shape, batch_size) else "cuda"
        except Exception:  # noqa: BLE001  a model that cannot be built is for its trial to tell of
            return "cuda"

    def checkpoint(self, number: int) -> str:
        """The file in which a running trial keeps its state."""
        return storage.join(self.checkpoints, f"trial-{number:05d}.pt")

    def distributions(self, cell: Cell) -> dict[str, BaseDistribution]:
        """Of the parameters that Optuna was asked for in a cell."""
        recorder = optuna.trial.FixedTrial(cell)
        self.suggest(recorder)
        return recorder.distributions

    def cell_of(self, row: dict[str, Any]) -> Cell:
        """The cell that a row of the trials table was a trial of."""
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
    """What the trials table has as settings: the optimizer's own, and the model's arguments as `model.heads`."""
    return settings(cell) | {f"model.{name}": value for name, value in _under("model", cell).items()}


def _under(what: str, cell: Cell) -> dict[str, Any]:
    return {name.removeprefix(f"{what}."): value for name, value in cell.items() if name.startswith(f"{what}.")}


def key(cell: Cell) -> str:
    """The same text for the same cell."""
    return json.dumps(cell, sort_keys=True)


def _suggest(trial: optuna.Trial | optuna.trial.FixedTrial, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Range):
        return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
    if not isinstance(dimension, Choice):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    if len(dimension.values) == 1:
        return dimension.values[0]
    return trial.suggest_categorical(name, dimension.values)


class Design(optuna.samplers.BaseSampler):
    """The cells of the random, qmc and grid samplers: functions of the root seed and the trial's number alone.

    Optuna's own samplers of these names depend on what has completed or run before, and on which process asks: a study
    that was interrupted, or that ran on more processors, would try other cells. Its QMC draws categories at random.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec, self.search, self.kind = spec, spec.search, spec.tuning.sampler
        self.cell = {"random": self._random, "qmc": self._qmc, "grid": self._grid}[self.kind]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """None: every parameter is sampled by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None, likewise."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The entry of the trial's cell."""
        return self.cell(trial.number)[param_name]

    def _at(self, number: int, units: list[float]) -> Cell:
        """The cell at a point of the unit cube: the shared dimensions, then the optimizer's settings."""
        shared = self.spec.dimensions()
        cell: Cell = {name: d.at(unit) for (name, d), unit in zip(shared.items(), units, strict=False)}
        cell["optimizer"] = fair_optimizer(self.spec, number) or cell["optimizer"]
        own = self.search.settings_of(cell["optimizer"])
        return cell | {name: d.at(unit) for (name, d), unit in zip(own.items(), units[len(shared) :], strict=False)}

    def _axes(self) -> int:
        most = max(len(self.search.settings_of(name)) for name in self.search.optimizers())
        return len(self.spec.dimensions()) + most

    def _random(self, number: int) -> Cell:
        rng = np.random.default_rng([self.spec.tuning.seed, _PLACES["random"], number])
        return self._at(number, rng.random(self._axes()).tolist())

    def _qmc(self, number: int) -> Cell:
        """A scrambled Sobol' sequence (Owen 1998); the same for every seed but for the scrambling."""
        seed = np.random.default_rng([self.spec.tuning.seed, _PLACES["qmc"]])
        sequence = qmc.Sobol(self._axes(), scramble=True, rng=seed)
        if number:
            sequence.fast_forward(number)
        return self._at(number, sequence.random(1)[0].tolist())

    def _grid(self, number: int) -> Cell:
        """All cells in a random order, then all again; with `fair`, the optimizers take turns."""
        optimizers, fair = self.search.optimizers(), self.spec.tuning.fair
        turn = number % len(optimizers)
        names, place = ([optimizers[turn]], number // len(optimizers)) if fair else (optimizers, number)
        counts = [int(self.spec.cells_of(name)) for name in names]
        order = np.random.default_rng([self.spec.tuning.seed, _PLACES["grid"], turn * fair])
        index = int(order.permutation(sum(counts))[place % sum(counts)])
        optimizer = names[0]
        for optimizer, count in zip(names, counts, strict=True):  # noqa: B007  the one that the index falls into
            if index < count:
                break
            index -= count
        shared = {name: d for name, d in self.spec.dimensions().items() if name != "optimizer"}
        cell: Cell = {"optimizer": optimizer}
        for name, dimension in (shared | self.search.settings_of(optimizer)).items():
            assert isinstance(dimension, Choice)
            index, entry = divmod(index, len(dimension.values))
            cell[name] = dimension.values[entry]
        return cell


def sampler(spec: Spec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that proposes the cell of a trial.

    Adaptive samplers get a seed for each trial, so that a study which goes on in a new process does not draw the
    numbers of its first trials again.

    Args:
        spec: the study's.
        number: of the trial.
    """
    if spec.tuning.sampler in ("random", "qmc", "grid"):
        return Design(spec)
    seed = int(np.random.default_rng([spec.tuning.seed, _PLACES["adaptive"], number]).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.tuning.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=10, warn_independent_sampling=False)
        if spec.tuning.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        # Settings belong to their optimizer alone, which is what grouping is for.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=bool(spec.search.settings))


def fair_optimizer(spec: Spec, number: int) -> str | None:
    """The optimizer whose turn it is, if the spec demands equal budgets."""
    optimizers = spec.search.optimizers()
    return optimizers[number % len(optimizers)] if spec.tuning.fair else None
