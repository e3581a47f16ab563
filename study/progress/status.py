"""How far a study is, read from its results folder alone, so that it can be asked from any shell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

import analysis.results as results
from analysis.text import cost, settings_text
from study.results.ownership import running_owner
from study.spec.model import Resources


def status(folder: Path | str) -> str:
    """Some lines of text: trials by outcome, diverged lanes, the best cell, the cost, and what can be done next."""
    study = results.load(folder)
    again, lanes, resources = study.confirmation, study.lanes, Resources(**study.spec.get("resources", {}))
    if owner := running_owner(folder):
        state = f"running, {owner}"
    elif study.timed_out:
        state = f"{study.timed_out}; `study resume {folder} --timeout TIME` with a longer time continues it"
    elif study.provenance.get("finished"):
        state = f"finished; `study extend {folder} --trials N` adds trials"
    else:
        state = f"interrupted; `study resume {folder}` continues it"
    lines = [
        f"{study.name}: {state}",
        f"  trials  {_counts(study)}",
        *([f"  confirm {_counts(again)}"] if again else []),
        f"  lanes   {len(lanes)}, {int((lanes['outcome'] == 'diverged').sum())} diverged",
        f"  cost    {cost(*results.hours(study, resources.cpus_per_trial, resources.gpus))}",
        *_best(study, "search: "),
        *(_best(again, "confirmed: ", study.baselines) if again else []),
    ]
    if len(study.objectives) > 1:
        lines += _front(study)
    trials = study.trials
    for _, trial in trials[trials["error"].notna()].head(3).iterrows():
        reason = shorten(trial["error"].strip().splitlines()[-1], 160, placeholder=" ...")
        lines.append(f"  failed  trial {trial['trial']}: {reason}")
    return "\n".join(lines)


def _counts(study: results.Results) -> str:
    """Number of trials that ended, number planned, and how they ended."""
    counts = study.trials["outcome"].value_counts()
    ended = len(study.trials) - int(counts.get("interrupted", 0))
    by_outcome = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{ended} of {study.spec['budget']['trials']}: {by_outcome or 'none ended yet'}"


def _completed(study: results.Results) -> pd.DataFrame:
    return study.trials[(study.trials["outcome"] == "completed") & study.trials["value"].notna()]


def _best(study: results.Results, where: str, baselines: pd.DataFrame | None = None) -> list[str]:
    """The line of the best trial; none if there is none. Its interval stands in the report: it needs scipy."""
    completed = _completed(study)
    if completed.empty:
        return []
    best: dict[Any, Any] = completed.sort_values("value", ascending=not study.maximize).iloc[0].to_dict()
    best["settings"] = "" if pd.isna(best["settings"]) else best["settings"]
    given = [] if baselines is None else results.records(baselines)
    same = [each["name"] for each in given if results.same_setting(each, best)]
    whose = "".join(f', the baseline "{name}"' for name in same)
    return [f"  {where}{best_line(study.metric, best, None)} (trial {best['trial']}{whose})"]


def _front(study: results.Results) -> list[str]:
    """The trials that no other trial beats in every objective."""
    completed, lines = _completed(study), []
    table = completed.rename(columns={"value": "validation"})
    for row in completed[results.pareto(table, study.objectives, study.maximize)].to_dict("records"):
        values = [row["value" if name == "metric" else name] for name in study.objectives]
        numbers = ", ".join(f"{name} {n:.4g}" for name, n in zip(study.objectives, values, strict=True))
        lines.append(f"  front   {numbers}: {describe(row, row['learning_rate'])} (trial {row['trial']})")
    return lines


def best_line(metric: str, row: Mapping[Any, Any], interval: tuple[float, float] | None) -> str:
    """A short description of the best trial, with its interval over seeds if there is one."""
    ends = dict.fromkeys(f"{limit:.4g}" for limit in interval or () if math.isfinite(limit))
    limits = f" [{', '.join(ends)}]" if len(ends) == 2 else ""
    return f"best validation {metric} {row['value']:.4g}{limits}: {describe(row, row['learning_rate'])}"


def describe(config: Mapping[Any, Any], rate: float | None) -> str:
    """A short description of a cell, as `adam, batch 32, width 16, depth 2, rate 0.003, schedule cosine`."""
    size = "".join(f", {name} {config[name]}" for name in ("width", "depth") if config[name])
    tuned = f", rate {rate:.2g}" if rate is not None else ""
    settings = config.get("settings")
    own = f", {settings_text(settings)}" if isinstance(settings, str) and settings else ""
    recipe = config.get("recipe")
    also = f", {settings_text(recipe)}" if isinstance(recipe, str) and recipe else ""
    return f"{config['optimizer']}{own}, batch {config['batch_size']}{size}{tuned}{also}"
