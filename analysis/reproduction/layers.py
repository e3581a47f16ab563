"""Experiment 6: a search over layers, widths and optimizers, which the source report recommends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.cells import cells, fresh_lanes, rank, tuned_lanes
from analysis.comparisons import winners_curse
from analysis.figures import style
from analysis.figures.exhibit import with_legend
from analysis.figures.heat_map import grid, heat_map
from analysis.figures.rate_sensitivity import learning_rate_sensitivity, rate_sensitivity
from analysis.reproduction.claims import Measured, intervals
from analysis.results import Results, records
from analysis.statistics import NOTHING, Interval, log_interval

MUCH = 2.0
"""A loss that is this many times lower is much lower."""
EQUAL = 0.05
"""Relative difference of the numbers of parameters of networks that count as equally large."""
SCORE = ["validation", "validation_low", "validation_high", "n"]


def layers(parts: Mapping[str, Results]) -> Measured:
    """Experiment 6: layers, width and optimizers, each tuned."""
    study = parts["layers"]
    table = cells(study)
    scored = on_fresh_seeds(study, table)
    shapes, optimizers = equal_shapes(study, scored), best_of_optimizers(study, scored)
    heat = grid(table, "depth", "width", study.maximize)
    rates = rate_sensitivity(study, table)
    again = study.confirmation
    facts = {
        "seeds": int(study.lanes["seed"].nunique()),
        "fresh": 0 if again is None else int(again.lanes["seed"].nunique()),
        **shape_facts(shapes),
        **optimizer_facts(optimizers),
        "edges": int(table["on_edge"].sum()),
        "cells": len(table),
    }

    def drawn_heat() -> Figure:
        figure = style.figure(0.7 * style.PAGE_MM, 24 + 13 * max(2, heat["row"].nunique()))
        heat_map(heat, figure.subplots(), "hidden layers", "width", study.metric)
        return figure

    def drawn_rates() -> Figure:
        return with_legend(lambda ax: learning_rate_sensitivity(rates, ax, study.metric, "variances of y"), height=85.0)

    drawn = {"layers-shapes": (heat, drawn_heat), "layers-optimizers": (rates, drawn_rates)}
    return Measured(facts, drawn, {"shapes": shapes, "optimizers": optimizers}, [study])


def on_fresh_seeds(study: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The cells, best in the search first, with their scores on seeds that the search never saw.

    Shape, optimizer and rate are chosen by the search's seeds, so its scores flatter the chosen cells. Rows of `cells`
    with the confirmation's validation (and its low, high and n), score (the same as an Interval) and searched, the
    search's validation. Cells that did not complete again are left out; without a confirmation the search's stay.
    """
    scored = rank(table, study.maximize).assign(searched=lambda rows: rows["validation"])
    again = winners_curse(study, table).set_index("trial")
    if not again.empty:
        scored = scored[scored["trial"].isin(again.index[again["confirmed"].notna()])].copy()
        columns = ["confirmed", "confirmed_low", "confirmed_high", "confirmed_n"]
        for name, column in zip(SCORE, columns, strict=True):
            scored[name] = again.loc[scored["trial"], column].to_numpy()
    return scored.assign(score=intervals(scored, *SCORE))


def _paired(study: Results, rows: pd.DataFrame) -> pd.Series[float]:
    """The losses by (cell, seed) on which `on_fresh_seeds` rests."""
    lanes = fresh_lanes(study, rows)
    lanes = tuned_lanes(study, rows) if lanes.empty else lanes
    return lanes.set_index(["cell", "seed"])[f"validation_{study.metric}"]


def equal_shapes(study: Results, scored: pd.DataFrame) -> pd.DataFrame:
    """The networks of about equally many parameters, widest first, each with its best optimizer at its tuned rate.

    They are the largest group of shapes of different depths whose parameters lie within `EQUAL` of the first's. Rows of
    `on_fresh_seeds`, with network (such as 2 x 14) and ratio (Interval of its loss over the widest one's, by seed).
    """
    best = scored.drop_duplicates(["width", "depth"])
    groups = [
        best[(best["parameters"] / size - 1).abs() <= EQUAL].sort_values("depth").drop_duplicates("depth")
        for size in best.loc[best["depth"] == best["depth"].min(), "parameters"]
    ]
    group = max(groups, key=len, default=best.head(0))
    group = group.head(0) if len(group) < 2 else group
    losses = _paired(study, group)
    ratios = [log_interval((losses[trial] / losses[group["trial"].iloc[0]]).dropna()) for trial in group["trial"]]
    names = group["depth"].astype(str) + " x " + group["width"].astype(str)
    return group.assign(network=names, ratio=pd.Series(ratios, index=group.index, dtype=object))


def best_of_optimizers(study: Results, scored: pd.DataFrame) -> pd.DataFrame:
    """The best cell of each optimizer, best in the search first; last SGD's, which is its best on the fresh seeds.

    Rows of `on_fresh_seeds` and gain, an Interval: plain SGD's loss over the optimizer's, by seed.
    """
    # Near-ties in the search would decide which of SGD's cells all others are measured by; the fresh seeds do.
    own = scored[scored["optimizer"] == "sgd"].nsmallest(1, "validation")
    best = pd.concat([scored[scored["optimizer"] != "sgd"].drop_duplicates("optimizer"), own])
    losses, plain = _paired(study, best), own["trial"].max()
    gains = [log_interval((losses[plain] / losses[trial]).dropna()) if len(own) else NOTHING for trial in best["trial"]]
    return best.assign(gain=pd.Series(gains, index=best.index, dtype=object))


def shape_facts(shapes: pd.DataFrame) -> dict[str, Any]:
    """The widest and the deepest of `equal_shapes`; None without them."""
    rows = records(shapes)
    return {"wide": rows[0] if rows else None, "deep": rows[-1] if rows else None}


def optimizer_facts(optimizers: pd.DataFrame) -> dict[str, Any]:
    """The gains of `best_of_optimizers` over plain SGD."""
    others = optimizers[optimizers["optimizer"] != "sgd"]
    gains: list[Interval] = others["gain"].to_list() if len(others) < len(optimizers) else []
    return {
        "gains": list(zip(others["optimizer"], gains, strict=False)),
        "pairs": gains[0].n if gains else 0,
        "better": sum(gain.low > 1 for gain in gains),
        "is_much": any(gain.low > MUCH for gain in gains),
        "is_less": all(gain.high < MUCH for gain in gains),
        "much": MUCH,
    }
