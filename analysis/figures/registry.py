"""All figures of the report, in its order.

A new figure is a module with three functions (compute a frame, draw it on axes, and `figure`, which adds the caption)
and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd

from analysis.comparisons import Comparison
from analysis.figures import forest, heat_map, optimizer_curves, performance_profile, rate_sensitivity
from analysis.figures.batch_size import steps_to_target, throughput, tuned_rate
from analysis.figures.exhibit import Exhibit
from analysis.figures.regimes import gradient_noise, learning_curves, noise_speed
from analysis.figures.search import (
    expected_best,
    importance,
    isolation,
    loss_time,
    parallel_coordinates,
    progress,
    timeline,
)
from analysis.results import Results

FIGURES: dict[str, tuple[Callable[[Results, pd.DataFrame], Exhibit], ...]] = {
    "curves": (optimizer_curves.figure,),
    "regimes": (learning_curves.figure,),
    "learning rates": (rate_sensitivity.figure,),
    "optimizer and batch size": (partial(heat_map.figure, rows="optimizer", columns="batch_size"),),
    "batch size": (
        partial(rate_sensitivity.figure, by="batch_size"),
        tuned_rate.figure,
        steps_to_target.figure,
        throughput.figure,
        noise_speed.figure,
        gradient_noise.figure,
    ),
    "width and depth": (
        partial(heat_map.figure, rows="depth", columns="width"),
        partial(rate_sensitivity.figure, by="width"),
    ),
    "search": (
        progress.figure,
        expected_best.figure,
        performance_profile.figure,
        importance.figure,
        isolation.figure,
        parallel_coordinates.figure,
        loss_time.figure,
    ),
    "ledger": (timeline.figure,),
}
"""The figures of each part of the report but the first; each takes the study and its `cells`."""


def figures_of(results: Results, table: pd.DataFrame, compared: Comparison) -> Iterator[tuple[str, Exhibit]]:
    """The figures of a study with the parts of the report that they belong to, in order.

    `table` is its `cells`, `compared` the comparison of its optimizers.
    """
    yield "optimizers", forest.figure(results, table, compared)
    for part, makers in FIGURES.items():
        yield from ((part, make(results, table)) for make in makers)
