"""One frame per figure: what it draws, computed and nothing else."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from analysis.results import REGIMES, Results
from analysis.statistics import UNKNOWN_EXAMPLES, best_so_far, metric_interval
from analysis.tables import (
    AXES,
    LIMITS,
    curves_of,
    examples_of,
    optimizer_order,
    rank,
    rate_table,
    tuned_rows,
)


def progress(results: Results) -> pd.DataFrame:
    """The search trial by trial, each at its own tuned rate.

    Returns:
        Columns trial, optimizer, value (NaN if none), best (so far).
    """
    each = results.lanes.assign(cell=results.lanes["trial"])
    values = tuned_rows(rate_table(each, results.metric, examples_of(results, "validation")), results.metric)[
        "estimate"
    ]
    frame = results.trials[["trial", "optimizer"]].assign(value=results.trials["trial"].map(values).astype(float))
    return frame.assign(best=best_so_far(frame["value"], results.maximize))


def band(curves: pd.DataFrame, metric: str, examples: int = UNKNOWN_EXAMPLES) -> pd.DataFrame:
    """The validation metric along training: mean and interval over the given lanes, point by point.

    Args:
        curves: rows of `analysis.results.CURVES` of the lanes of one cell. Points that not all of them have are left
            out: trials whose budget is in seconds do not share all update numbers.
        metric: `loss` or `accuracy`.
        examples: validation examples.

    Returns:
        One row per point: update, examples, epoch, train_seconds (mean over lanes), estimate, low, high, n.
    """
    points = curves[(curves["split"] == "validation") & (curves["metric"] == metric)]
    counts = points.groupby("update")["value"].transform("size")
    rows = [
        {axis: group[axis].mean() for axis in AXES} | asdict(metric_interval(group["value"], metric, examples))
        for _, group in points[counts == counts.max()].groupby("update", sort=True)
    ]
    return pd.DataFrame(rows, columns=[*AXES, *LIMITS]).astype(dict.fromkeys(AXES, float))


def regime_curves(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The learning curve of the best cell of each regime, at its tuned rate.

    Args:
        results: the study.
        table: its `cells`.

    Returns:
        The columns of `band`, behind regime, trial, optimizer, settings, batch_size, learning_rate; and batch_loss, the
        mean loss over the batches since the last point, of the first seed alone (NaN where it was not recorded).
    """
    names = ["regime", "trial", "optimizer", "settings", "batch_size", "learning_rate"]
    best = rank(table, results.maximize).drop_duplicates("regime").set_index("regime")
    pieces = []
    for regime in (name for name in REGIMES if name in best.index):
        curves = curves_of(results, best.loc[[regime]])
        frame = band(curves, results.metric, examples_of(results, "validation"))
        batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
        trace = batch[batch["seed"] == batch["seed"].min()].set_index("update")["value"]
        frame["batch_loss"] = frame["update"].map(trace).astype(float)
        cell = best.loc[regime]
        pieces.append(frame.assign(regime=regime, **{name: cell[name] for name in names[1:]}))
    columns = [*names, *AXES, *LIMITS, "batch_loss"]
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def rate_sensitivity(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The validation metric against the learning rate, for the best cell of each optimizer.

    Returns:
        The columns of `rate_table`, and optimizer and tuned (whether this rate was chosen).
    """
    best = rank(table, results.maximize).drop_duplicates("optimizer").set_index("trial")
    lanes = results.pooled.lanes
    frame = rate_table(lanes[lanes["cell"].isin(best.index)], results.metric, examples_of(results, "validation"))
    tuned = frame["cell"].map(best["learning_rate"]) == frame["learning_rate"]
    return frame.assign(optimizer=frame["cell"].map(best["optimizer"]), tuned=tuned)


def binned(values: pd.Series[int], limit: int = 8) -> pd.Series[str]:
    """Labels of whole numbers: themselves, or powers of two where more than `limit` would have to be told apart."""
    if values.nunique() <= limit:
        return values.astype(str)
    powers = np.floor(np.log2(values.clip(lower=1))).astype(int)
    labels = [f"{2**power}-{2 ** (power + 1) - 1}" if power else "0-1" for power in powers.tolist()]
    return pd.Series(labels, index=values.index)


def grid(table: pd.DataFrame, rows: str, columns: str, maximize: bool) -> pd.DataFrame:
    """The best cell of each pair of values of two columns of `cells`, chosen over all the others.

    Args:
        table: `cells` of a study.
        rows: column whose values make the rows, such as `optimizer`.
        columns: column whose values make the columns, such as `batch_size`.
        maximize: whether larger is better.

    Returns:
        Columns row, column (labels, in order of appearance), trial, estimate, low, high, n, and why: empty where there
        is an estimate, else `not run`, or how the trials there ended. Every pair of labels has its row.
    """
    labels = {name: table[name] if name == "optimizer" else binned(table[name]) for name in (rows, columns)}
    order = {
        name: optimizer_order(label) if name == "optimizer" else list(label[table[name].sort_values().index].unique())
        for name, label in labels.items()
    }
    named = table.assign(row=labels[rows], column=labels[columns])
    if "batch_size" in (rows, columns):
        place, name = ("row", rows) if rows == "batch_size" else ("column", columns)
        whole_split = (table["regime"] == "batch").groupby(named[place]).all()
        full = set(whole_split[whole_split].index)
        titles = {label: f"full ({label})" if label in full else label for label in order[name]}
        named[place], order[name] = named[place].map(titles), list(titles.values())
    best = rank(named, maximize).drop_duplicates(["row", "column"])
    endings = named.groupby(["row", "column"])["outcome"].agg(lambda outcomes: " or ".join(sorted(set(outcomes))))
    whole = pd.MultiIndex.from_product([order[rows], order[columns]], names=["row", "column"])
    found = best.rename(columns={"validation": "estimate", "validation_low": "low", "validation_high": "high"})
    result = found.set_index(["row", "column"])[["trial", *LIMITS]].reindex(whole)
    why = endings.reindex(whole).replace("completed", "no rate survived").fillna("not run")
    result["why"] = why.where(result["estimate"].isna(), "")
    return result.astype({"n": float}).fillna({"n": 0}).astype({"n": int}).reset_index()
