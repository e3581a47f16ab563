"""Chooses the winners of a search, which run again at their tuned setting on seeds that the search never saw.

A confirmation is a study of its own, in the folder `confirm/` of the results: one trial per winner, one rate, no
scheduler. The best of many cells is partly the luckiest one; fresh seeds show by how much. The spec's baselines run on
the same seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import results
from analysis.cells import cells, rank
from analysis.comparisons import compare
from analysis.results import parts, records
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
    look: int = 0  # for which it adds seeds to those of the same setting

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
    for row in records(ranked[chosen(ranked, spec.confirm.top)]):
        _add(kept, _winner(space, row))
    for each in _baselines(spec, space) if kept else []:
        _add(kept, each)
    if kept:
        file.parent.mkdir(exist_ok=True)
        _write(file, kept)
    return kept


def add_seeds(spec: Spec, folder: Path) -> int:
    """Give the optimizers that may be the best, and baselines, the seeds of a further look at a finished confirmation.

    Returns:
        How many trials that adds to `confirm/winners.json`; 0 after the last look, and once more seeds cannot decide.
    """
    assert spec.confirm
    study = results.load(folder)
    compared = compare(study, cells(study))
    if not compared.fresh:
        return 0
    more = compared.open and compared.looks < spec.confirm.looks
    file, space = folder / CONFIRM / WINNERS, Space(spec, "", "")
    kept = _recorded(file)
    before = len(kept)
    leaders = [_winner(space, entry.cell.to_dict()) for entry in compared.contenders if entry.cell is not None]
    for each in leaders if more else []:
        _add(kept, replace(each, look=compared.looks))
    for look in range(1, compared.looks + more):  # also those that were made before a baseline was added
        for each in _baselines(spec, space):
            _add(kept, replace(each, look=look))
    if len(kept) > before:
        _write(file, kept)
    return len(kept) - before


def looks_made(folder: Path) -> int:
    """At how many looks a study's confirmation has seeds; 1 if it has none, or its winners cannot be read."""
    try:
        return 1 + max((winner.look for winner in _recorded(folder / CONFIRM / WINNERS)), default=0)
    except (OSError, ValueError, TypeError):
        return 1


def _winner(space: Space, row: dict[Any, Any]) -> Winner:
    """A row of `analysis.cells` at its tuned setting."""
    return Winner(space.cell_of(row), float(row["learning_rate"]), json.loads(row["recipe"] or "{}"))


def _baselines(spec: Spec, space: Space) -> list[Winner]:
    return [Winner(space.given(each), each.learning_rate, each.recipe()) for each in spec.baseline]


def _add(kept: list[Winner], winner: Winner) -> None:
    """Append a winner, unless the same setting is there with the same seeds."""
    same = [one for one in kept if replace(one, learning_rate=winner.learning_rate) == winner]
    if not any(isclose(winner.learning_rate, one.learning_rate) for one in same):
        kept.append(winner)


def _write(file: Path, kept: list[Winner]) -> None:
    write_text(file, seal({"winners": [asdict(each) for each in kept]}))


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
