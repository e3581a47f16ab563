"""Experiment 6: a search over layers, widths and optimizers, which the source report recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.cells import cells, fresh_lanes, rank, tuned_lanes
from analysis.comparisons import winners_curse
from analysis.figures import heat_map, rate_sensitivity
from analysis.reproduction.claims import Measured, Truth, asked, intervals
from analysis.results import Results, records
from analysis.statistics import NOTHING, Interval, log_interval


def layers(runs: Mapping[str, Results], _: Truth) -> Measured:
    """Experiment 6: layers, width and optimizers, each tuned; its figures are those of the ordinary report."""
    study = runs["layers"]
    table = cells(study)
    scored = on_fresh_seeds(study, table)
    shapes, optimizers = equal_shapes(study, scored), best_of_optimizers(study, scored)
    again = study.confirmation
    facts = {
        "seeds": int(study.lanes["seed"].nunique()),
        "fresh": 0 if again is None else int(again.lanes["seed"].nunique()),
        **shape_facts(shapes),
        **optimizer_facts(optimizers),
        "edges": int(table["on_edge"].sum()),
        "cells": len(table),
    }
    shared = [
        replace(heat_map.figure(study, table, "depth", "width"), name="layers-shapes"),
        replace(rate_sensitivity.figure(study, table), name="layers-optimizers"),
    ]
    return Measured(facts, {}, {"shapes": shapes, "optimizers": optimizers}, [study], shared)


def on_fresh_seeds(study: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The cells, best in the search first, with their scores on seeds that the search never saw.

    Shape, optimizer and rate are chosen by the search's seeds, so its scores flatter the chosen cells. Rows of `cells`
    with score (Interval of the confirmation's validation), validation (its estimate) and searched, the search's
    validation. Cells that did not complete again are left out; without a confirmation the search's scores stay.
    """
    scored = rank(table, study.maximize)
    scored = scored.assign(
        searched=scored["validation"], score=intervals(scored, "validation", "validation_low", "validation_high", "n")
    )
    if (again := winners_curse(study, table)).empty:
        return scored
    again = again[again["confirmed"].notna()].set_index("trial")
    scored = scored[scored["trial"].isin(again.index)]
    scores = intervals(again, "confirmed", "confirmed_low", "confirmed_high", "confirmed_n")
    return scored.assign(score=scored["trial"].map(scores), validation=scored["trial"].map(again["confirmed"]))


def _ratios(study: Results, rows: pd.DataFrame, base: pd.DataFrame, *, gain: bool) -> pd.Series[Any]:
    """The loss of each row's cell over that of the row `base`, or the inverse (`gain`), by seed: Intervals.

    The losses are those on which `on_fresh_seeds` rests.
    """
    if base.empty:
        return pd.Series([NOTHING] * len(rows), rows.index, dtype=object)
    lanes = fresh_lanes(study, rows)
    lanes = tuned_lanes(study, rows) if lanes.empty else lanes
    losses = lanes.set_index(["cell", "seed"])[f"validation_{study.metric}"]
    of_base = losses[base["trial"].iloc[0]]
    ratios = [of_base / losses[trial] if gain else losses[trial] / of_base for trial in rows["trial"]]
    return pd.Series([log_interval(each.dropna()) for each in ratios], rows.index, dtype=object)


def equal_shapes(study: Results, scored: pd.DataFrame) -> pd.DataFrame:
    """The networks of about equally many parameters, widest first, each with its best optimizer at its tuned rate.

    They are the largest group of shapes of different depths whose parameters differ by a share of at most
    `asked.equal`. Rows of `on_fresh_seeds`, with network (such as 2 x 14) and ratio (Interval of its loss over the
    widest one's, by seed).
    """
    best = scored.drop_duplicates(["width", "depth"])
    groups = [
        best[(best["parameters"] / size - 1).abs() <= asked("layers")["equal"]]
        for size in best.loc[best["depth"] == best["depth"].min(), "parameters"]
    ]
    group = max((own.sort_values("depth").drop_duplicates("depth") for own in groups), key=len, default=best.head(0))
    group = group.head(0) if len(group) < 2 else group
    names = group["depth"].astype(str) + " x " + group["width"].astype(str)
    return group.assign(network=names, ratio=_ratios(study, group, group.head(1), gain=False))


def best_of_optimizers(study: Results, scored: pd.DataFrame) -> pd.DataFrame:
    """The best cell of each optimizer, best in the search first; last SGD's, which is its best on the fresh seeds.

    Rows of `on_fresh_seeds` and gain, an Interval: plain SGD's loss over the optimizer's, by seed.
    """
    # Near-ties in the search would decide which of SGD's cells all others are measured by; the fresh seeds do.
    own = scored[scored["optimizer"] == "sgd"].nsmallest(1, "validation")
    best = pd.concat([scored[scored["optimizer"] != "sgd"].drop_duplicates("optimizer"), own])
    return best.assign(gain=_ratios(study, best, own, gain=True))


def shape_facts(shapes: pd.DataFrame) -> dict[str, Any]:
    """The widest and the deepest of `equal_shapes`; None without them."""
    rows = records(shapes)
    return {"wide": rows[0] if rows else None, "deep": rows[-1] if rows else None}


def optimizer_facts(optimizers: pd.DataFrame) -> dict[str, Any]:
    """The gains of `best_of_optimizers` over plain SGD."""
    others = optimizers[optimizers["optimizer"] != "sgd"]
    gains: list[Interval] = others["gain"].to_list() if len(others) < len(optimizers) else []
    much = asked("layers")["much"]
    return {
        "gains": list(zip(others["optimizer"], gains, strict=False)),
        "pairs": gains[0].n if gains else 0,
        "better": sum(gain.low > 1 for gain in gains),
        "is_much": any(gain.low > much for gain in gains),
        "is_less": all(gain.high < much for gain in gains),
    }
