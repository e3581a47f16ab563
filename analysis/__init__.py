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
    from analysis.figures import (
        expected_best_of,
        heat_map,
        importance_bars,
        isolation,
        learning_rate_sensitivity,
        loss_against_time,
        loss_by_regime,
        noise_against_speed,
        noise_scale,
        parallel_coordinates,
        performance_profiles,
        rate_against_batch_size,
        search_progress,
        steps_against_batch_size,
        style,
        throughput_against_batch_size,
        trial_timeline,
    )
    from analysis.report import (
        write_report,
    )
    from analysis.results import (
        Results,
        ResultsError,
        load,
        pareto,
    )
    from analysis.series import (
        across,
        band,
        batch_scaling,
        best_rates,
        busy,
        expected_search,
        gradient_noise,
        grid,
        importance_spread,
        loss_and_time,
        noise_and_speed,
        profile,
        progress,
        rate_sensitivity,
        regime_curves,
        searched,
        steps_to_target,
        throughput,
        timeline,
    )
    from analysis.statistics import (
        BatchScaling,
        Interval,
        best_so_far,
        censored_median,
        critical_batch_size,
        curse_interval,
        edge_of,
        expected_best,
        gradient_noise_scale,
        holm,
        iqm_interval,
        log_interval,
        log_rank_p,
        logit_interval,
        metric_interval,
        performance_profile,
        sign_flip_p,
        smoothed,
        superiority,
        t_interval,
        welch_interval,
    )
    from analysis.tables import (
        Comparison,
        average_curse,
        cells,
        comparisons,
        curves_of,
        edges,
        fresh_lanes,
        optimizer_order,
        rank,
        rate_table,
        target_times,
        time_to_target,
        tuned_lanes,
        tuned_rates,
        winners_curse,
    )

__all__ = [
    "BatchScaling",
    "Comparison",
    "Interval",
    "Results",
    "ResultsError",
    "across",
    "average_curse",
    "band",
    "batch_scaling",
    "best_rates",
    "best_so_far",
    "busy",
    "cells",
    "censored_median",
    "comparisons",
    "critical_batch_size",
    "curse_interval",
    "curves_of",
    "edge_of",
    "edges",
    "expected_best",
    "expected_best_of",
    "expected_search",
    "fresh_lanes",
    "gradient_noise",
    "gradient_noise_scale",
    "grid",
    "heat_map",
    "holm",
    "importance_bars",
    "importance_spread",
    "iqm_interval",
    "isolation",
    "learning_rate_sensitivity",
    "load",
    "log_interval",
    "log_rank_p",
    "logit_interval",
    "loss_against_time",
    "loss_and_time",
    "loss_by_regime",
    "metric_interval",
    "noise_against_speed",
    "noise_and_speed",
    "noise_scale",
    "optimizer_order",
    "parallel_coordinates",
    "pareto",
    "performance_profile",
    "performance_profiles",
    "profile",
    "progress",
    "rank",
    "rate_against_batch_size",
    "rate_sensitivity",
    "rate_table",
    "regime_curves",
    "search_progress",
    "searched",
    "sign_flip_p",
    "smoothed",
    "steps_against_batch_size",
    "steps_to_target",
    "style",
    "superiority",
    "t_interval",
    "target_times",
    "throughput",
    "throughput_against_batch_size",
    "time_to_target",
    "timeline",
    "trial_timeline",
    "tuned_lanes",
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
                globals()[name] = found
                return found
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
