"""Samplers: which cell a trial runs."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from scipy.stats import qmc

from study.spec import Spec
from study.spec.dimensions import Choice
from study.spec.model import DESIGNS
from study.tuning.space import Cell

# Streams of random numbers of the root seed; `importance` has 5.
_PLACES = {"random": 1, "qmc": 2, "grid": 3, "adaptive": 4}


class Design(optuna.samplers.RandomSampler):
    """The random, qmc and grid samplers: a trial's cell depends on the root seed and the trial's number alone.

    Optuna's samplers of these names depend on which trials have run before and on the process that asks: a study that
    was interrupted, or ran on more processors, would try other cells. Its QMC draws categories at random.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.search, self.kind = spec, spec.search, spec.tuning.sampler
        self.cell = {"random": self._random, "qmc": self._qmc, "grid": self._grid}[self.kind]

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
        """The cell at a point of the unit cube, whose axes are the shared dimensions, then the optimizer's settings."""
        shared = self.spec.dimensions()
        cell: Cell = {name: d.at(unit) for (name, d), unit in zip(shared.items(), units, strict=False)}
        cell["optimizer"] = turn(self.spec, number)[0] or cell["optimizer"]
        own = self.search.settings_of(cell["optimizer"])
        return cell | {name: d.at(unit) for (name, d), unit in zip(own.items(), units[len(shared) :], strict=False)}

    def _axes(self) -> int:
        most = max(len(self.search.settings_of(name)) for name in self.search.optimizers())
        return len(self.spec.dimensions()) + most

    def _random(self, number: int) -> Cell:
        rng = np.random.default_rng([self.spec.tuning.seed, _PLACES["random"], number])
        return self._at(number, rng.random(self._axes()).tolist())

    def _qmc(self, number: int) -> Cell:
        """A scrambled Sobol' sequence (Owen 1998); the seed changes the scrambling alone.

        With `fair` every optimizer has the whole sequence. If they took turns in one, two optimizers would get half of
        the batch sizes each, because neighbouring points lie in different halves.
        """
        seed = np.random.default_rng([self.spec.tuning.seed, _PLACES["qmc"]])
        sequence = qmc.Sobol(self._axes(), scramble=True, rng=seed)
        if place := turn(self.spec, number)[1]:
            sequence.fast_forward(place)
        return self._at(number, sequence.random(1)[0].tolist())

    def _grid(self, number: int) -> Cell:
        """All cells in random order, then again; with `fair`, the optimizers take turns."""
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
    """The sampler of a trial's cell.

    Adaptive samplers are seeded per trial: a study that is resumed must not draw the numbers of its first trials again.
    """
    if spec.tuning.sampler in DESIGNS:
        return Design(spec)
    seed = int(np.random.default_rng([spec.tuning.seed, _PLACES["adaptive"], number]).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.tuning.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=10, warn_independent_sampling=False)
        if spec.tuning.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        # Settings are conditional on their optimizer, hence the grouping.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=bool(spec.search.settings))


def fixed(spec: Spec, number: int) -> Cell:
    """The entries of a trial's cell that no sampler chooses: an enqueued cell, or the optimizer whose turn it is."""
    if number < len(spec.enqueue):
        return spec.enqueue[number].cell()
    optimizer = turn(spec, number)[0]
    return {"optimizer": optimizer} if optimizer else {}


def turn(spec: Spec, number: int) -> tuple[str | None, int]:
    """The optimizer of a trial that is not enqueued, and how many such trials it had before.

    If optimizers take turns (`tuning.fair`), those with enqueued cells wait until the others have as many trials.
    Otherwise there is no optimizer, and all earlier trials count.
    """
    optimizers, place = spec.search.optimizers(), max(0, number - len(spec.enqueue))
    if not spec.tuning.fair:
        return None, place
    taken = Counter(each.optimizer for each in spec.enqueue)
    most = max(taken.values(), default=0)
    uneven = [(name, turns - taken[name]) for turns in range(most) for name in optimizers if turns >= taken[name]]
    if place < len(uneven):
        name, before = uneven[place]
    else:
        turns, which = divmod(place - len(uneven), len(optimizers))
        name, before = optimizers[which], most + turns - taken[optimizers[which]]
    return name if len(optimizers) > 1 else None, before
