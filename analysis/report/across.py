"""Optimizers over several studies: the interquartile mean of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd

from analysis.cells import cells, floor_of, optimizer_order, rank, tuned_lanes
from analysis.results import Results
from analysis.statistics import LIMITS, iqm_interval


def across(results: Sequence[Results]) -> pd.DataFrame:
    """The interquartile mean of each optimizer's scores over several studies, with a bootstrap interval.

    A score is that of the optimizer's best cell at its tuned rate with one seed, relative to the mean of the best
    optimizer of that study: of a loss the logarithm of the ratio, of an accuracy the difference. It is the test score
    where a study has one, otherwise the validation score. Agarwal et al. (2021).

    Args:
        results: the studies; all with the same metric.

    Returns:
        Columns optimizer, studies, estimate, low, high (of a loss as a ratio), n (scores). Optimizers that lack a tuned
        cell in a study are left out, since their scores in it are unknown. Best first.

    Raises:
        ValueError: if the studies differ in their metric.
    """
    metrics = {study.metric for study in results}
    if len(metrics) > 1:
        raise ValueError("studies of loss and of accuracy have no common score")
    maximize, scores = results[0].maximize, {}
    for place, study in enumerate(results):
        best = rank(cells(study), maximize).drop_duplicates("optimizer")
        lanes = tuned_lanes(study, best).merge(best[["trial", "optimizer"]], left_on="cell", right_on="trial")
        split = "test" if lanes[f"test_{study.metric}"].notna().all() else "validation"
        values = lanes[f"{split}_{study.metric}"]
        own = values if maximize else np.log(values.clip(lower=floor_of(study)))
        means = own.groupby(lanes["optimizer"]).mean()
        for name, group in own.groupby(lanes["optimizer"]):
            scores[name, place] = (group - (means.max() if maximize else means.min())).to_numpy(dtype=np.float64)
    rows = []
    for name in optimizer_order(name for name, _ in scores):
        own = [scores[name, place] for place in range(len(results)) if (name, place) in scores]
        if len(own) == len(results):
            interval = iqm_interval(own, rng=np.random.default_rng(0))
            rows.append((name, len(own), *astuple(interval if maximize else interval.map(np.exp))))
    frame = pd.DataFrame(rows, columns=["optimizer", "studies", *LIMITS])
    return frame.sort_values("estimate", ascending=not maximize, kind="stable", ignore_index=True)
