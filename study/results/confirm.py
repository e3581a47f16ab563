"""Chooses the winners of a search, which run again at their tuned setting on seeds that the search never saw.

A confirmation is a study of its own, in the folder `confirm/` of the results: one trial per winner, one rate, no
scheduler. The best of many cells is partly the luckiest one; fresh seeds show by how much. The spec's baselines run on
the same seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import results
from analysis.cells import cells, rank
from analysis.results import parts
from analysis.schema import FOLDERS, DamagedError, Outcome, regime, seal, unseal
from study.results import CONFIRM
from study.results.recovery import move_aside
from study.results.tables import SUPERSEDED
from study.spec import Spec
from study.spec.changes import planned_trials
from study.spec.lanes import Lanes
from study.spec.model import Confirm, Tuning
from study.tuning.space import Cell, Space
from trainables.storage import write_text

WINNERS = "winners.json"


@dataclass(frozen=True)
class Winner:
    """A cell to be confirmed."""

    cell: Cell  # as the spec writes it
    learning_rate: float  # the tuned one, or that of a baseline
    recipe: dict[str, Any] = field(default_factory=dict)  # what was tuned beside it; earlier versions tuned nothing

    @property
    def setting(self) -> dict[str, Any]:
        """The learning rate and the recipe."""
        return {"learning_rate": self.learning_rate, **self.recipe}


def winners(spec: Spec, folder: Path, say: Callable[[str], None] = print) -> list[Winner]:
    """The cells of a finished search to confirm: the best of all, of each optimizer and of each regime; and baselines.

    They are also written to `confirm/winners.json`, after those that were confirmed before. None if no trial completed.
    A baseline that is a winner runs once. If that file is damaged, the confirmation is moved to `superseded/` and runs
    again.
    """
    file = folder / CONFIRM / WINNERS
    try:
        kept = _recorded(file)
    except (OSError, ValueError, TypeError) as error:
        aside = move_aside(folder, file.parent, SUPERSEDED)
        why = str(error).splitlines()[0].removeprefix(f"{file}: ")
        say(f"{file}: {why}; the confirmation was moved to {aside} and runs again")
        kept = []
    study = results.load(folder)
    ranked = rank(cells(study), study.maximize)
    ranked = ranked[ranked["outcome"] == Outcome.COMPLETED]
    assert spec.confirm
    space = Space(spec, "", "")
    for row in ranked[chosen(ranked, spec.confirm.top)].to_dict("records"):
        cell = space.cell_of({str(name): value for name, value in row.items()})
        winner = Winner(cell, float(row["learning_rate"]), json.loads(row["recipe"] or "{}"))
        if winner not in kept:
            kept.append(winner)
    for each in spec.baseline if kept else []:
        baseline = Winner(space.given(each), each.learning_rate, each.recipe())
        same = [one for one in kept if one.cell == baseline.cell and one.recipe == baseline.recipe]
        if not any(isclose(each.learning_rate, one.learning_rate) for one in same):
            kept.append(baseline)
    if kept:
        file.parent.mkdir(exist_ok=True)
        write_text(file, seal({"winners": [asdict(each) for each in kept]}))
    return kept


def _recorded(file: Path) -> list[Winner]:
    """The winners in a file; none if there is no such file and no trial of theirs."""
    if not file.exists():
        if parts(file.parent / FOLDERS["trials"]):
            raise DamagedError(f"{file}: is missing")
        return []
    listed = json.loads(file.read_text(encoding="utf-8"))  # as earlier versions wrote it
    return [Winner(**each) for each in (listed if isinstance(listed, list) else unseal(file)["winners"])]


def chosen(ranked: pd.DataFrame, top: int) -> pd.Series[bool]:
    """Which cells to confirm, of those ranked: the `top` best ones, and the best of each optimizer and regime."""
    best = pd.Series(ranked.index < top, ranked.index)
    for group in ("optimizer", "regime"):
        best |= ~ranked[group].duplicated()
    return best


def most_winners(spec: Spec) -> int:
    """Winners of a search and baselines, at most; 0 without a confirmation."""
    if not spec.confirm:
        return 0
    sizes, full = spec.search.batch_size, spec.workload.facts.train
    among = [full if size == "full" else int(size) for size in (*sizes.ends(), sizes.at(0.5))]
    regimes = {regime(size, full) for size in among}
    # The best cell of all is also the best of its optimizer and of its regime.
    most = spec.confirm.top + len(spec.search.optimizers()) - 1 + len(regimes) - 1
    return int(min(most, spec.cells(), planned_trials(spec))) + len(spec.baseline)


def cost(spec: Spec) -> float:
    """The confirmation in trials of the search, at most: by its lanes, or by trials if the budget is in seconds."""
    if not spec.confirm:
        return 0.0
    lanes = spec.settings(spec.search.optimizers()[0]) * spec.lanes.seeds
    return most_winners(spec) * (1.0 if spec.budget.seconds else spec.confirm.seeds / lanes)


def confirmation(spec: Spec, count: int) -> Spec:
    """The spec of the confirmation of `count` winners."""
    confirm = spec.confirm or Confirm()
    return spec.model_copy(
        update={
            "name": f"{spec.name}-confirm",
            "baseline": [],
            "enqueue": [],
            "lanes": Lanes(rates=1, seeds=confirm.seeds, engine=spec.lanes.engine, extensions=0, refine=0),
            "budget": spec.budget.model_copy(update={"trials": count}),
            "tuning": Tuning(sampler="random", fair=False, seed=spec.tuning.seed, storage=spec.tuning.storage),
        }
    )
