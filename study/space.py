"""From the spec to what Optuna samples and what a trial trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna

from study.spec import Choice, Range, Spec


@dataclass(frozen=True)
class Space:
    """The space of cells as an Optuna define-by-run function; picklable, as Ray Tune's snapshots need it.

    Calling it with an Optuna trial suggests what is searched and returns the trial's whole configuration, the fields of
    `trainables.tune.Trial`.
    """

    spec: Spec
    data_folder: str

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """Suggest a cell."""
        cell: dict[str, Any] = {}
        for name, dimension in self.spec.search.dimensions().items():
            if isinstance(dimension, Range):
                cell[name] = trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
            elif len(dimension.values) > 1:
                cell[name] = trial.suggest_categorical(name, dimension.values)
            else:
                cell[name] = dimension.values[0]
        return self.configuration(cell, trial.number)

    def configuration(self, cell: dict[str, Any], number: int) -> dict[str, Any]:
        """A trial's configuration.

        Args:
            cell: width, depth, batch_size and optimizer, as the spec writes them.
            number: the trial's.
        """
        spec = self.spec
        workload, resources = spec.workload, spec.resources
        batch_size = workload.facts.train if cell["batch_size"] == "full" else cell["batch_size"]
        return {
            "trial": number,
            "optimizer": cell["optimizer"],
            "width": cell.get("width", 0),
            "depth": cell.get("depth", 0),
            "batch_size": batch_size,
            "data": workload.data,
            "model": workload.model,
            "model_args": workload.arguments(),
            "metric": workload.metric,
            "standardize": workload.standardize,
            "data_folder": self.data_folder,
            "dtype": workload.dtype,
            "device": "cuda" if resources.gpus_per_trial else "cpu",
            "threads": resources.cpus_per_trial,
            "rates": spec.rates(cell["optimizer"]),
            "seeds": spec.lane_seeds(),
            "budget": spec.budget.limit(),
            "engine": spec.lanes.engine,
            "halving": spec.lanes.halving,
            "every_update": spec.recording.every_update,
            "augment": workload.augmentation(),
        }


def lists(spec: Spec) -> dict[str, list[int | str]]:
    """The searched entries of a space that is all lists, for the grid sampler."""
    dimensions = spec.search.dimensions().items()
    return {name: list(d.values) for name, d in dimensions if isinstance(d, Choice) and len(d.values) > 1}
