"""How far a study is, read from its results folder alone, so that any shell can ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import analysis.results as results
from study.search import planned_trials
from study.spec import check


def status(folder: Path) -> str:
    """Some lines of text: trials by outcome, lanes that diverged, the best so far.

    Raises:
        analysis.results.ResultsError: if the folder holds no results.
    """
    found = results.load(folder)
    spec = check(found.spec, str(folder / "spec.toml"))
    trials, lanes = found.trials, found.lanes
    counts = trials["outcome"].value_counts()
    by_outcome = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none ended yet"
    state = "finished" if found.provenance.get("finished") else "running, or interrupted"
    lines = [
        f"{found.name}: {state}",
        f"  trials  {len(trials)} of {planned_trials(spec)}: {by_outcome}",
        f"  lanes   {len(lanes)}, {int((lanes['outcome'] == 'diverged').sum())} diverged",
        f"  cost    {trials['wall_seconds'].sum() * spec.resources.cpus_per_trial / 3600:.3f} CPU-hours",
    ]
    completed = trials[(trials["outcome"] == "completed") & trials["value"].notna()]
    if len(completed):
        best = completed.sort_values("value", ascending=not found.maximize).iloc[0]
        cell = describe(best.to_dict(), best["learning_rate"])
        lines.append(f"  best    {found.metric} {best['value']:.4g}: {cell} (trial {best['trial']})")
    for _, trial in trials[trials["error"].notna()].head(3).iterrows():
        lines.append(f"  failed  trial {trial['trial']}: {trial['error'].strip().splitlines()[-1]}")
    return "\n".join(lines)


def describe(config: dict[Any, Any], rate: float | None) -> str:
    """A cell in a few words, as `adam, batch 32, width 16, depth 2, rate 0.003`."""
    size = f", width {config['width']}, depth {config['depth']}" if config["depth"] else ""
    tuned = f", rate {rate:.2g}" if rate is not None else ""
    return f"{config['optimizer']}, batch {config['batch_size']}{size}{tuned}"
