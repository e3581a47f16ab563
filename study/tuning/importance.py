"""The importance of each searched parameter for the metric, with its uncertainty: a table for the analysis.

PED-ANOVA compares a parameter's values in the best trials with those in all trials; a parameter that only some cells
have, such as an optimizer's setting, is compared among these (Watanabe et al. 2023, arXiv:2304.10255, 2601.20800).
Bootstrap resamples of the trials give the uncertainty.
"""

from __future__ import annotations

import math
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
from analysis.schema import IMPORTANCE, IMPORTANCE_FILE, ResultsError, rows_digest
from study.tuning import JOURNAL, compat
from study.tuning.storage import journal
from trainables import storage

REPEATS = 20
FEWEST_TRIALS = 8
# The best trials are a tenth of all, but at least 5, as Optuna advises, and at most half.
BEST_SHARE, FEWEST_BEST = 0.1, 5
# Stream of random numbers of the root seed, after those of `samplers`.
_PLACE = 5


def refresh(folder: Path, say: Callable[[str], None]) -> None:
    """Write the table again from the journal of a study that may be running.

    A folder without a journal keeps its table: opening a database may take long, or need a password.
    """
    if not (folder / JOURNAL).is_file():  # opening it would make it
        return
    try:
        loaded = results.load(folder)
    except ResultsError:
        return
    try:
        study = optuna.load_study(study_name=loaded.name, storage=journal(folder))
        seed = int(loaded.spec.get("tuning", {}).get("seed", 0))
    except Exception as error:  # noqa: BLE001  a report does not need the table
        say(_trouble(folder, error))
    else:
        write(study, loaded.objectives, seed, folder, say)


def write(study: optuna.Study, objectives: Sequence[str], seed: int, folder: Path, say: Callable[[str], None]) -> None:
    """Write the table of a study, for the metric or the first objective; without one, an earlier table is deleted."""
    file = folder / IMPORTANCE_FILE
    try:
        rows = shares(study, objectives.index("metric") if "metric" in objectives else 0, seed)
        if not rows:
            file.unlink(missing_ok=True)
            return
        sealed = IMPORTANCE.with_metadata({**IMPORTANCE.metadata, b"digest": rows_digest(rows)})
        table = pa.Table.from_pylist(rows, schema=sealed)
        storage.write(file, lambda stream: pq.write_table(table, stream, compression="zstd", write_page_checksum=True))
    except Exception as error:  # noqa: BLE001  the study has ended well without the table
        with suppress(OSError):
            file.unlink(missing_ok=True)
        say(_trouble(folder, error))


def _trouble(folder: Path, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{folder}: the importance of parameters could not be computed ({reason}); all other results are complete"


def shares(study: optuna.Study, objective: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `analysis.schema.IMPORTANCE`: each parameter's share, for all completed trials and for each resample.

    None if there are too few trials, or no parameter matters or varies. A resample in which none does has no rows.
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
        importances = _importances([trials[number] for number in chosen], names, study.directions[objective])
        total = sum(importances.values())
        if not total and not repeat:
            return []
        each = {name: value / total for name, value in importances.items()} if total else {}
        rows += [{"parameter": name, "repeat": repeat, "importance": value} for name, value in each.items()]
    return rows


def _bare(trial: FrozenTrial, objective: int) -> FrozenTrial:
    """A trial with its parameters and one value alone, which copies faster."""
    params, distributions = trial.params, trial.distributions
    return optuna.trial.create_trial(params=params, distributions=distributions, value=trial.values[objective])


def _importances(
    trials: list[FrozenTrial], names: list[str], direction: optuna.study.StudyDirection
) -> dict[str, float]:
    """The importance of each parameter among some trials, not normalized, in the order of the names."""
    share = min(max(BEST_SHARE, FEWEST_BEST / len(trials)), 0.5)
    # In the order of the names: Optuna's order changes between processes, and with it the last digits.
    there = [name for name in names if any(name in trial.params for trial in trials)]
    with warnings.catch_warnings():
        # Optuna warns of few trials, which the resamples show.
        warnings.simplefilter("ignore")
        study = compat.of_trials(trials, direction)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        importances = get_param_importances(study, evaluator=evaluator, params=there, normalize=False)
    return {name: importances.get(name, 0.0) for name in names}
