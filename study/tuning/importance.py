"""How much each searched parameter matters to the metric, and how sure that is: a table for the analysis.

PED-ANOVA asks how far the values that the best trials have of a parameter differ from those that all trials have; a
parameter that only some cells have, an optimizer's own setting, counts as far as it tells good from bad among these
(Watanabe et al. 2023, arXiv:2304.10255; arXiv:2601.20800). Trials drawn anew from those that there are, with
replacement, give the spread.
"""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from analysis import results

REPEATS = 20
FEWEST_TRIALS = 8
# The best trials are a tenth of all, but so many at least, which Optuna advises, and no more than half.
BEST_SHARE, FEWEST_BEST = 0.1, 5
# Of this module's random numbers, after those of `study.tuning.space`.
_PLACE = 5


def refresh(folder: Path, say: Callable[[str], None]) -> None:
    """Write the table anew from the journal of a study that may be running; nothing but the table is written.

    A folder without a journal keeps the table that it has: opening a database may take long, or need a password.

    Args:
        folder: the results folder; one that is none is left to those who need it.
        say: told in one line if there can be no table.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = folder / "optuna.journal"
    if not journal.is_file():  # opening it would make it
        return
    try:
        found = results.load(folder)
    except results.ResultsError:
        return
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.load_study(study_name=found.name, storage=storage)
        seed = int(found.spec.get("tuning", {}).get("seed", 0))
    except Exception as error:  # noqa: BLE001  whatever is wrong with a journal, the report does without
        say(_trouble(folder, error))
    else:
        write(study, found.objectives, seed, folder, say)


def write(study: optuna.Study, objectives: Sequence[str], seed: int, folder: Path, say: Callable[[str], None]) -> None:
    """Write the table of a study into its results folder; if there can be none, an earlier one is out of date and goes.

    Args:
        study: Optuna's; it is only read.
        objectives: what it pursues; the metric counts, or the first if that is not among them.
        seed: the study's root seed.
        folder: the results folder.
        say: told in one line if it went wrong; that harms nothing else.
    """
    file = folder / results.IMPORTANCE_FILE
    # Reports of a running study may write it at the same time.
    unfinished = file.with_name(f"{file.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        rows = shares(study, objectives.index("metric") if "metric" in objectives else 0, seed)
        if not rows:
            file.unlink(missing_ok=True)
            return
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema=results.IMPORTANCE), unfinished, compression="zstd")
            unfinished.replace(file)  # not forced to disk: what is lost is computed again
        finally:
            unfinished.unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001  whatever Optuna or the disk says, the study has ended well
        with suppress(OSError):
            file.unlink(missing_ok=True)
        say(_trouble(folder, error))


def _trouble(folder: Path, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{folder}: the importance of parameters could not be computed ({reason}); all else is there"


def shares(study: optuna.Study, objective: int, seed: int) -> list[dict[str, Any]]:
    """The rows of the table: each parameter's share of the importance, for all trials and for each resample of them.

    Args:
        study: Optuna's; its completed trials count.
        objective: which of its values.
        seed: the study's root seed.

    Returns:
        Rows of `analysis.results.IMPORTANCE`; none if trials are too few, or no parameter matters or varies. So it is
        with a single resample, too.
    """
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [_bare(trial, objective) for trial in completed if math.isfinite(trial.values[objective])]
    seen: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            seen.setdefault(name, set()).add(repr(value))
    names = sorted(name for name, values in seen.items() if len(values) > 1)
    if len(trials) < FEWEST_TRIALS or not names:
        return []
    random = np.random.default_rng([seed, _PLACE])
    samples = [np.arange(len(trials)), *random.integers(len(trials), size=(REPEATS, len(trials)))]
    rows: list[dict[str, Any]] = []
    for repeat, chosen in enumerate(samples):
        found = _importances([trials[number] for number in chosen], names, study.directions[objective])
        total = sum(found.values())
        if not total and not repeat:
            return []
        each = {name: value / total for name, value in found.items()} if total else {}
        rows += [{"parameter": name, "repeat": repeat, "importance": value} for name, value in each.items()]
    return rows


def _bare(trial: FrozenTrial, objective: int) -> FrozenTrial:
    """A trial's parameters and one of its values, which is all that counts and quickly copied."""
    params, distributions = trial.params, trial.distributions
    return optuna.trial.create_trial(params=params, distributions=distributions, value=trial.values[objective])


def _importances(
    trials: list[FrozenTrial], names: list[str], direction: optuna.study.StudyDirection
) -> dict[str, float]:
    """The importance of each name among some trials, in the order of the names, as it comes."""
    share = min(max(BEST_SHARE, FEWEST_BEST / len(trials)), 0.5)
    # Named in order: Optuna's own order changes from process to process, and with it the last digits.
    there = [name for name in names if any(name in trial.params for trial in trials)]
    with warnings.catch_warnings():
        # That trials are few is what the spread shows.
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction=direction)
        study.add_trials(trials)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        found = get_param_importances(study, evaluator=evaluator, params=there, normalize=False)
    return {name: found.get(name, 0.0) for name in names}
