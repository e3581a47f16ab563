"""The progress of a study, read from its results folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

import analysis.results as results
from analysis.statistics import metric_interval
from analysis.tables import pareto
from study.results.ownership import running_owner
from study.spec import Spec, check


def status(folder: Path | str) -> str:
    """Lines of text: trials by outcome, diverged lanes, cost, best trial, errors, and the next possible command.

    Args:
        folder: the results folder, or its URI.

    Raises:
        analysis.results.ResultsError: if the folder holds no results.
    """
    study = results.load(folder)
    spec = check(study.spec, str(study.path / "spec.toml"), study.path)
    again, lanes = study.confirmation, study.lanes
    if owner := running_owner(folder):
        state = f"running, {owner}"
    elif study.provenance.get("finished"):
        state = f"finished; `study extend {folder} --trials N` adds trials"
    else:
        state = f"interrupted; `study resume {folder}` continues it"
    lines = [
        f"{study.name}: {state}",
        f"  trials  {_counts(study)}",
        *([f"  confirm {_counts(again)}"] if again else []),
        f"  lanes   {len(lanes)}, {int((lanes['outcome'] == 'diverged').sum())} diverged",
        f"  cost    {cost(*results.hours(study, spec.resources.cpus_per_trial, spec.resources.gpus))}",
        *_best(study, spec, ""),
        *(_best(again, spec, "confirmed: ") if again else []),
    ]
    if len(spec.tuning.objectives) > 1:
        lines += _front(spec, _completed(study))
    trials = study.trials
    for _, trial in trials[trials["error"].notna()].head(3).iterrows():
        reason = shorten(trial["error"].strip().splitlines()[-1], 160, placeholder=" ...")
        lines.append(f"  failed  trial {trial['trial']}: {reason}")
    return "\n".join(lines)


def _counts(study: results.Results) -> str:
    """Number of ended and planned trials, and trials by outcome."""
    counts = study.trials["outcome"].value_counts()
    ended = len(study.trials) - int(counts.get("interrupted", 0))
    by_outcome = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{ended} of {study.spec['budget']['trials']}: {by_outcome or 'none ended yet'}"


def _completed(study: results.Results) -> pd.DataFrame:
    return study.trials[(study.trials["outcome"] == "completed") & study.trials["value"].notna()]


def _best(study: results.Results, spec: Spec, where: str) -> list[str]:
    """The line of the best trial, in a list; empty if no trial completed."""
    completed, lanes = _completed(study), study.lanes
    if completed.empty:
        return []
    best = completed.sort_values("value", ascending=not study.maximize).iloc[0]
    at = lanes[(lanes["trial"] == best["trial"]) & (lanes["learning_rate"] == best["learning_rate"])]
    spread = metric_interval(at[f"validation_{study.metric}"], study.metric, spec.workload.facts.validation)
    row: dict[Any, Any] = best.to_dict()
    return [f"  {where}{best_line(study.metric, row, (spread.low, spread.high))} (trial {best['trial']})"]


def _front(spec: Spec, completed: pd.DataFrame) -> list[str]:
    """Lines of the Pareto front: the trials that no other one dominates."""
    objectives, lines = spec.tuning.objectives, []
    table = completed.rename(columns={"value": "validation"})
    for row in completed[pareto(table, objectives, spec.workload.metric == "accuracy")].to_dict("records"):
        values = [row["value" if name == "metric" else name] for name in objectives]
        numbers = ", ".join(f"{name} {n:.4g}" for name, n in zip(objectives, values, strict=True))
        lines.append(f"  front   {numbers}: {describe(row, row['learning_rate'])} (trial {row['trial']})")
    return lines


def best_line(metric: str, row: Mapping[Any, Any], interval: tuple[float, float] | None) -> str:
    """A short description of the best trial, with its interval over seeds if there is one."""
    limits = ""
    if interval and all(map(math.isfinite, interval)):
        limits = f" [{interval[0]:.4g}, {interval[1]:.4g}]"
    return f"best {metric} {row['value']:.4g}{limits}: {describe(row, row['learning_rate'])}"


def describe(config: Mapping[Any, Any], rate: float | None) -> str:
    """A short description of a cell, as `adam, batch 32, width 16, depth 2, rate 0.003`."""
    size = f", width {config['width']}, depth {config['depth']}" if config["depth"] else ""
    tuned = f", rate {rate:.2g}" if rate is not None else ""
    settings = config.get("settings")
    if isinstance(settings, str):
        settings = json.loads(settings or "{}")
    settings = settings if isinstance(settings, dict) else {}
    shown = "".join(
        f", {name} {value:g}" if isinstance(value, float) else f", {name} {value}" for name, value in settings.items()
    )
    return f"{config['optimizer']}{shown}, batch {config['batch_size']}{size}{tuned}"


def cost(cpu_hours: float, gpu_hours: float) -> str:
    """CPU-hours and GPU-hours as text."""
    return f"{cpu_hours:.3g} CPU-hours" + (f", {gpu_hours:.3g} GPU-hours" if gpu_hours else "")


def duration(seconds: float) -> str:
    """A duration as text, in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
