"""From a results folder to statistics, figures and a report.

    results = analysis.load("results/quick")
    table = analysis.cells(results)                                       # one row per cell, with intervals
    analysis.loss_by_regime(analysis.regime_curves(results, table), axes)  # compute, then draw
    analysis.write_report("results/quick")

Names are imported when first used: whoever needs only the schema does not pay for matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.figures import heat_map, learning_rate_sensitivity, loss_by_regime, search_progress, style
    from analysis.report import write_report
    from analysis.results import Results, ResultsError, load
    from analysis.series import band, grid, progress, rate_sensitivity, regime_curves
    from analysis.statistics import (
        Interval,
        best_so_far,
        log_interval,
        logit_interval,
        metric_interval,
        sign_flip_p,
        t_interval,
        welch_interval,
    )
    from analysis.tables import (
        Comparison,
        average_curse,
        cells,
        comparisons,
        pareto,
        rank,
        rate_table,
        target_times,
        time_to_target,
        tuned_rates,
        winners_curse,
    )

__all__ = [
    "Comparison",
    "Interval",
    "Results",
    "ResultsError",
    "average_curse",
    "band",
    "best_so_far",
    "cells",
    "comparisons",
    "grid",
    "heat_map",
    "learning_rate_sensitivity",
    "load",
    "log_interval",
    "logit_interval",
    "loss_by_regime",
    "metric_interval",
    "pareto",
    "progress",
    "rank",
    "rate_sensitivity",
    "rate_table",
    "regime_curves",
    "search_progress",
    "sign_flip_p",
    "style",
    "t_interval",
    "target_times",
    "time_to_target",
    "tuned_rates",
    "welch_interval",
    "winners_curse",
    "write_report",
]

_HOMES = ("results", "statistics", "tables", "series", "figures", "report")
"""The modules that hold these names, each of which imports only those before it."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            found = getattr(import_module(f"analysis.{home}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
