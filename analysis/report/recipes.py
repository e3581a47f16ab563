"""What each value of a recipe costs: schedule, weight decay, clipping and the like, one at a time."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from analysis.cells import examples_of, floor_of, rank
from analysis.rates import rate_table
from analysis.results import Results, records
from analysis.statistics import LIMITS


def recipe_sensitivity(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The validation metric at each value of each axis that was tuned, for the best cell of each optimizer.

    The other axes stay at the cell's tuned values, and the learning rate is the best one for each value.

    Returns:
        Columns optimizer, trial, axis, value, tuned (whether the value was chosen), learning_rate, estimate, low, high,
        n. A value at which no rate counts, or which a sample of the settings left out, has none of the numbers.
    """
    best, rows = rank(table, results.maximize).drop_duplicates("optimizer"), []
    for cell in records(best):
        lanes = results.pooled.lanes[results.pooled.lanes["cell"] == cell["trial"]]
        # Each recipe is tuned as if it were a cell of its own.
        each = lanes.assign(cell=lanes["recipe"])
        rates = rate_table(each, results.metric, examples_of(results, "validation"), floor_of(results))
        tuned = rates[rates["tuned"]].set_index("cell")
        chosen = json.loads(cell["recipe"] or "{}")
        recipes = [json.loads(recipe or "{}") for recipe in lanes.sort_values("lane")["recipe"].drop_duplicates()]
        for axis in chosen:
            values = list(dict.fromkeys(recipe[axis] for recipe in recipes))
            for value in values if len(values) > 1 else []:
                text = json.dumps(chosen | {axis: value})
                score = tuned.loc[text, ["learning_rate", *LIMITS]].to_dict() if text in tuned.index else {}
                row: dict[str, Any] = {"optimizer": cell["optimizer"], "trial": cell["trial"], "axis": axis}
                rows.append(row | {"value": value, "tuned": value == chosen[axis]} | score)
    return pd.DataFrame(rows, columns=["optimizer", "trial", "axis", "value", "tuned", "learning_rate", *LIMITS])
