"""The objectives of a study, as Optuna is told them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Direction: TypeAlias = Literal["minimize", "maximize"]


def directions(objectives: list[str], metric: str) -> list[Direction]:
    """Which way each objective is better: costs are minimized."""
    best: Direction = "maximize" if metric == "accuracy" else "minimize"
    return [best if objective == "metric" else "minimize" for objective in objectives]


def values(objectives: list[str], row: Mapping[str, Any]) -> list[float]:
    """A completed trial's values, from its row of the trials table."""
    return [float(row["value" if objective == "metric" else objective]) for objective in objectives]
