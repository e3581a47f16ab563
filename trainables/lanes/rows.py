"""The rows of the lanes table: one for each lane of a trial. Their columns are described in `analysis.schema`."""

from __future__ import annotations

import math
from typing import Any

import torch

from trainables.lanes.evaluate import RAW
from trainables.lanes.stack import Lane, Stack
from trainables.rules import Rule


def lane_rows(stacks: list[Stack], *, weights: bool = False) -> list[dict[str, Any]]:
    """One row per lane, numbered through all stacks: the lanes table's columns except `trial` and `outcome`.

    A diverged lane has no values.

    Args:
        stacks: of the trial.
        weights: whether to add the parameters, then the other tensors, of the lanes that still train.
    """
    rows = [row for stack in stacks for row in _stack_rows(stack, weights=weights)]
    return [{"lane": number, **row} for number, row in enumerate(rows)]


def _stack_rows(stack: Stack, *, weights: bool) -> list[dict[str, Any]]:
    ended = {}
    if weights and stack.alive:
        with stack.averaged():
            tensors = (stack.parameters, *stack.extras.values())
        table = torch.cat([each.reshape(len(stack.alive), -1).double() for each in tensors], 1).cpu().numpy()
        ended = dict(zip(stack.alive, table, strict=True))
    columns = {
        f"{split}_{metric}": stack.last.get((split, metric))
        for split in ("train", "validation", "test", *RAW)
        for metric in ("loss", "accuracy")
    }
    return [
        {
            "learning_rate": lane.learning_rate,
            "seed": lane.seed,
            **_recipe_columns(lane, stack.rule),
            "round": stack.round,
            "diverged_update": stack.diverged.get(place),
            "stopped_update": stack.stopped.get(place),
            "updates": int(stack.updates[place]),
            "train_seconds": float(stack.train_seconds[place]),
            "train_seconds_share": float(stack.shares[place]),
            **{
                name: None if values is None or math.isnan(values[place]) else float(values[place])
                for name, values in columns.items()
            },
            "weights": ended.get(place),
            "test_values": stack.test_values.get(place),
        }
        for place, lane in enumerate(stack.lanes)
    ]


def _recipe_columns(lane: Lane, rule: Rule) -> dict[str, Any]:
    """The columns of the lanes table on a lane's recipe, with the values in force."""
    recipe, own = lane.recipe, rule.facts.settings.get("weight_decay", 0.0)
    return {
        "recipe": recipe.text() or None,
        "schedule": recipe.schedule or "constant",
        "warmup": recipe.warmup or 0.0,
        "weight_decay": float(lane.options().get("weight_decay", own)),
        "clip_norm": recipe.clip_norm or None,
        "clip_value": recipe.clip_value or None,
        "ema": recipe.ema or 0.0,
    }
