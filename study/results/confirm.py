"""Chooses the winners of a search, which run again at their tuned learning rate on seeds that the search never saw.

A confirmation is a study of its own, in the folder `confirm/` of the results: one trial per winner, one rate, no
scheduler. The best of many cells is partly the luckiest one; fresh seeds show by how much.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis import results
from analysis.cells import cells, rank
from analysis.schema import Outcome
from study.errors import StorageError
from study.results import CONFIRM
from study.spec import Spec
from study.spec.model import Confirm, Lanes, Tuning
from study.tuning.space import Cell, Space
from trainables.storage import write_text

WINNERS = "winners.json"


@dataclass(frozen=True)
class Winner:
    """A cell to be confirmed."""

    cell: Cell  # as the spec writes it
    learning_rate: float  # the tuned one


def winners(spec: Spec, folder: Path) -> list[Winner]:
    """The cells of a finished search to confirm: the best ones of all, and the best one of each optimizer.

    They are also written to `confirm/winners.json`, after those that were confirmed before.
    """
    file = folder / CONFIRM / WINNERS
    try:
        chosen = [Winner(**each) for each in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    except (ValueError, TypeError) as error:
        raise StorageError(str(file), f"is damaged ({error}); move {file.parent} away to confirm again") from error
    study = results.load(folder)
    ranked = rank(cells(study), study.maximize)
    ranked = ranked[ranked["outcome"] == Outcome.COMPLETED]
    assert spec.confirm
    best = ranked.index.isin(ranked.index[: spec.confirm.top]) | ~ranked["optimizer"].duplicated()
    space = Space(spec, "", "")
    for row in ranked[best].to_dict("records"):
        winner = Winner(space.cell_of({str(name): value for name, value in row.items()}), float(row["learning_rate"]))
        if winner not in chosen:
            chosen.append(winner)
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps([asdict(each) for each in chosen], indent=1) + "\n")
    return chosen


def confirmation(spec: Spec, count: int) -> Spec:
    """The spec of the confirmation of `count` winners."""
    confirm = spec.confirm or Confirm()
    return spec.model_copy(
        update={
            "name": f"{spec.name}-confirm",
            "lanes": Lanes(rates=1, seeds=confirm.seeds, engine=spec.lanes.engine, extensions=0, refine=0),
            "budget": spec.budget.model_copy(update={"trials": count}),
            "tuning": Tuning(sampler="random", scheduler="none", seed=spec.tuning.seed, storage=spec.tuning.storage),
        }
    )
