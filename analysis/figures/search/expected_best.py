"""The expected best value against the number of trials."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures import axes, exhibit, style
from analysis.figures.search.progress import progress
from analysis.results import Results, records, table_of
from analysis.schema import Outcome
from analysis.statistics import expected_best
from analysis.text import counted, metric_text

ADAPTIVE = ("tpe", "gp", "nsga2")
"""Samplers that learn from earlier trials."""


def expected_search(results: Results) -> pd.DataFrame:
    """The expected best value of a search of each size, per optimizer, over the trials at their own tuned rates.

    Returns:
        Columns optimizer, trials (1, 2, ... up to the number it had), expected.

    Raises:
        ValueError: if the sampler was adaptive, because its trials are not a random sample of the space.
    """
    sampler = str(table_of(results.spec, "tuning").get("sampler", "tpe"))
    if sampler in ADAPTIVE:
        raise ValueError(
            f"the sampler, {sampler}, learns from earlier trials, so the result of a smaller search cannot be "
            f"estimated from its trials; with the samplers random, qmc and grid it can"
        )
    trials = progress(results)
    trials = trials.assign(value=trials["value"].where(trials["outcome"] == Outcome.COMPLETED))
    rows = [
        (name, count, expected)
        for name, own in trials.groupby("optimizer")["value"]
        if own.notna().any()
        for count, expected in enumerate(expected_best(own, results.maximize), start=1)
    ]
    return pd.DataFrame(rows, columns=["optimizer", "trials", "expected"])


def expected_best_of(data: pd.DataFrame, ax: Axes, metric: str = "loss", unit: str = "") -> Axes:
    """Draw `expected_search`: one line per optimizer."""
    for label, own, colour, marker in style.by_optimizer(data, ax):
        every = max(1, len(own) // 12)
        ax.plot(own["trials"], own["expected"], color=colour, marker=marker, markersize=3, markevery=every, label=label,
                zorder=3)  # fmt: skip
    ax.set_xlabel("trials of the optimizer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.metric_axis(ax, data["expected"], metric, unit)
    ax.set_ylabel("expected best " + ax.get_ylabel())
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The expected best value of each optimizer against its number of trials."""
    metric, unit = results.metric, exhibit.unit_of(results)
    try:
        data, reason = exhibit.varied(expected_search(results), "trials", 3), "no optimizer had three trials"
    except ValueError as error:
        data, reason = pd.DataFrame(columns=["optimizer", "trials", "expected"]), str(error)
    best = data.sort_values("expected", ascending=not results.maximize).head(1)
    first = "".join(
        f"Best expected value on the seeds of the search: {row['optimizer']} after {counted(row['trials'], 'trial')}, "
        f"{metric_text(row['expected'], metric)}. "
        for row in records(best)
    )
    return exhibit.Exhibit(
        "expected-best",
        "Expected best vs. number of trials",
        f"{first}Expected validation {metric} of the best of n trials of an optimizer, drawn without replacement "
        f"from those that ran (unbiased); a trial without a value counts as the worst. No intervals.",
        data,
        lambda: exhibit.with_legend(lambda ax: expected_best_of(data, ax, metric, unit), height=75),
        reason,
    )
