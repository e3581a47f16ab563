"""Runs a study: spec -> Optuna and Ray Tune -> results folder."""

from __future__ import annotations

import datetime as dt
import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study import cluster
from study.spec import Spec, SpecError
from trainables import data

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: the results folder.
        ended: trials that ended, in whatever way.
        planned: trials that the spec asks for.
        scored: trials with a value.
    """

    folder: Path
    ended: int
    planned: int
    scored: int

    @property
    def interrupted(self) -> bool:
        """Whether trials are missing."""
        return self.ended < self.planned


def planned_trials(spec: Spec) -> int:
    """Trials that a run makes: the budget's, but no more than a grid has cells."""
    return min(spec.budget.trials, spec.cells()) if spec.tuning.sampler == "grid" else spec.budget.trials


def claim_folder(spec: Spec, out: Path | None) -> Path:
    """Make the folder where a run writes: `out`, or the first of results/NAME, results/NAME-2 ... that is free.

    Making it is what claims it: two runs that start together get two folders.

    Raises:
        SpecError: if `out` has something in it already, or cannot be made.
    """
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held = sorted(path.name for path in out.iterdir())
        except OSError as error:
            raise SpecError(f"--out {out}", [f"cannot be made: {error.strerror}; give another folder"]) from error
        if held:
            what = "already holds a study" if "spec.toml" in held else f"is not empty, it holds {held[0]}"
            raise SpecError(f"--out {out}", [f"{what}; give a folder that does not exist yet"])
        return out
    for number in itertools.count(1):
        folder = Path("results") / (spec.name if number == 1 else f"{spec.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise SpecError(str(folder), [f"cannot be made: {error.strerror}; name another with --out"]) from error
        return folder
    raise AssertionError("unreachable")


def run(
    spec: Spec, out: Path | None = None, *, address: str | None = None, command: str = "", quiet: bool = False
) -> Outcome:
    """Run a study from its beginning.

    Args:
        spec: what to search.
        out: the results folder; see `claim_folder`.
        address: of a Ray cluster; this machine if not given.
        command: what the user ran, for the provenance.
        quiet: show no progress.

    Raises:
        SpecError: if the study cannot start with this spec, folder or cluster.
        trainables.data.DataError: if the data cannot be had.
    """
    data_folder = data.data_folder().absolute()
    data.load(spec.workload.data, data_folder)  # fetched once, here, before anything is written
    folder = claim_folder(spec, out).absolute()
    try:
        with cluster.connected(spec, address) as concurrency:
            return start(spec, folder, data_folder, concurrency, command, quiet=quiet)
    finally:
        # Nothing was written if Ray did not start.
        if not any(folder.iterdir()):
            folder.rmdir()


def start(spec: Spec, folder: Path, data_folder: Path, concurrency: int, command: str, *, quiet: bool) -> Outcome:
    """Run a study on the Ray that this process is connected to.

    Args:
        spec: what to search.
        folder: the results folder, absolute; made if it is not there.
        data_folder: where downloaded data lie, absolute.
        concurrency: trials at once.
        command: for the provenance.
        quiet: show no progress.
    """
    # Ray, Optuna and Tune are imported once cluster.connected has set their environment.
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from ray import tune

    from study.collect import Collector, write_provenance, write_text
    from study.outcomes import TruthfulSearch
    from study.progress import ProgressDisplay
    from study.space import Space
    from trainables.tune import TRAINABLES

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started, planned = dt.datetime.now(dt.UTC), planned_trials(spec)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "spec.toml", spec.to_toml())
    write_provenance(folder, spec, command, finished=False, started=started)
    mode = "max" if spec.workload.metric == "accuracy" else "min"
    search = TruthfulSearch(
        Space(spec, str(data_folder)),
        sampler=_sampler(spec),
        storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))),
        study_name=spec.name,
        mode=mode,
    )
    collector = Collector(spec, folder)
    display = ProgressDisplay(planned, spec.workload.metric, maximize=mode == "max", quiet=quiet)
    resources = {"cpu": spec.resources.cpus_per_trial, "gpu": spec.resources.gpus_per_trial}
    tuner = tune.Tuner(
        tune.with_resources(TRAINABLES[spec.workload.model], resources),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=_scheduler(spec, mode),
            metric="value",
            mode=mode,
            num_samples=planned,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[collector, display],
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with display:
        tuner.fit()
    search.interrupt()
    outcome = Outcome(folder, display.ended, planned, display.scored)
    write_provenance(folder, spec, command, finished=not outcome.interrupted, started=started)
    return outcome


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['trial']:05d}"


def _sampler(spec: Spec) -> BaseSampler:
    import optuna

    from study.space import lists

    seed = spec.tuning.seed
    match spec.tuning.sampler:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        case "grid":
            return optuna.samplers.GridSampler(lists(spec), seed=seed)
        case _:
            return optuna.samplers.TPESampler(seed=seed)


def _scheduler(spec: Spec, mode: str) -> TrialScheduler:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from trainables.lanes import Budget

    if spec.tuning.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(max_t=Budget(**spec.budget.limit()).reports, grace_period=1, reduction_factor=3)
