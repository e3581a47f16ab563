"""Experiment 6: what the source report recommends and does not do, a search over layers, widths and optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, series, tables
from analysis.figures import PAGE_MM
from analysis.reproduction.section import (
    Claim,
    Section,
    Table,
    drawing,
    interval,
    not_checked,
    panel,
    records,
    score_text,
    told_of_runs,
)
from analysis.results import Results
from analysis.statistics import Interval, log_interval
from analysis.wording import short

MUCH = 2.0
"""A loss so many times lower is much lower."""
EQUAL = 0.05
"""How far the numbers of parameters of networks lie apart that count as equally large, relative."""


def layers(parts: Mapping[str, Results]) -> Section:
    """Experiment 6: what the report recommends: layers, width and optimizers, each tuned."""
    study = parts["layers"]
    table = tables.cells(study)
    scored = on_fresh_seeds(study, table)
    shapes, optimizers = equal_shapes(study, scored), best_of_optimizers(study, scored)
    heat = series.grid(table, "depth", "width", study.maximize)
    rates = series.rate_sensitivity(study, table)
    return Section(
        "layers",
        "Layers, width and optimizers",
        [
            "The report recommends to try the number of layers and their width, and optimizers other than plain "
            "gradient descent, and does not. A search over both on the cubic data, standardised, batches of 32, each "
            f"cell at its tuned rate, {int(study.lanes['seed'].nunique())} seeds; losses are in variances of y.",
            _of_seeds(study),
        ],
        [
            shape_claim(shapes),
            optimizer_claim(optimizers, table),
        ],
        [
            drawing(
                "layers-shapes",
                "Width and depth",
                "Validation loss of the best optimizer at its tuned rate, in variances of y: geometric mean, in "
                "brackets the 95% t interval over the search's seeds. Hidden layers of equal width.",
                "Heat map of validation loss: rows are depths, columns widths.",
                heat,
                _heat(heat, study.metric),
            ),
            drawing(
                "layers-optimizers",
                "Optimizers at every learning rate",
                "Best shape of each optimizer. Line: geometric mean of the final validation loss over the search's "
                "seeds; band: pointwise 95% t interval; ring: tuned rate; cross: a seed diverged there.",
                "Validation loss against learning rate, one line per optimizer.",
                rates,
                panel(
                    lambda ax: figures.learning_rate_sensitivity(rates, ax, study.metric, "variances of y"),
                    0.78 * PAGE_MM,
                    85.0,
                ),
            ),
        ],
        [
            Table(
                "Equally many parameters, each with its best optimizer at its tuned rate",
                ("network", "parameters", "optimizer", "rate", "validation loss", "times the wide one's, by seed"),
                [
                    (
                        row["network"],
                        f"{row['parameters']:.0f}",
                        row["optimizer"],
                        short(row["learning_rate"]),
                        row["text"],
                        row["ratio_text"],
                    )
                    for row in records(shapes)
                ],
            ),
            Table(
                "The best cell of each optimizer by the search; SGD's is its best on the fresh seeds, which favours it",
                ("optimizer", "width", "depth", "rate", "validation loss", "in the search", "SGD's over it, by seed"),
                [
                    (
                        row["optimizer"],
                        str(row["width"]),
                        str(row["depth"]),
                        short(row["learning_rate"]),
                        score_text(row),
                        short(row["searched"]),
                        "1" if math.isnan(row["gain"].estimate) else interval(row["gain"]),
                    )
                    for row in records(optimizers)
                ],
            ),
        ],
        [],
        **told_of_runs("layers", [study]),
    )


def _of_seeds(study: Results) -> str:
    again = study.confirmation
    if again is None:
        return "Nothing was confirmed, so scores are on the seeds by which shape, optimizer and rate were chosen."
    return (
        "What was chosen by the search's seeds has scores there that flatter it. Claims and tables below are about "
        f"{again.lanes['seed'].nunique()} fresh seeds, on which every cell trained again at its tuned rate."
    )


def on_fresh_seeds(study: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The cells, best in the search first, with what they scored on seeds that the search never saw.

    Shape, optimizer and rate are chosen by the search's seeds, so its scores flatter what was chosen.

    Returns:
        Rows of `tables.cells` whose validation (with low, high and n) is that of the confirmation; `searched` is what
        it was. Cells that did not complete again are left out; without a confirmation the search's scores stay.
    """
    ranked = tables.rank(table, study.maximize).assign(searched=lambda rows: rows["validation"])
    again = tables.winners_curse(study, table).set_index("trial")
    if again.empty:
        return ranked
    found = ranked[ranked["trial"].isin(again.index[again["confirmed"].notna()])].copy()
    for name, column in (("validation", ""), ("validation_low", "_low"), ("validation_high", "_high"), ("n", "_n")):
        found[name] = again.loc[found["trial"], f"confirmed{column}"].to_numpy()
    return found


def _paired(study: Results, rows: pd.DataFrame) -> pd.Series[float]:
    """The losses by (cell, seed) on which `on_fresh_seeds` rests."""
    lanes = tables.fresh_lanes(study, rows)
    lanes = tables.tuned_lanes(study, rows) if lanes.empty else lanes
    return lanes.set_index(["cell", "seed"])[f"validation_{study.metric}"]


def equal_shapes(study: Results, scored: pd.DataFrame) -> pd.DataFrame:
    """The networks of about equally many parameters, widest first, each with its best optimizer at its tuned rate.

    They are the largest group of shapes of different depths whose parameters lie within `EQUAL` of the first's.

    Args:
        study: the study.
        scored: of `on_fresh_seeds`.

    Returns:
        Columns network, width, depth, parameters, optimizer, learning_rate, validation, text, ratio (an Interval: its
        loss over the widest one's, by seed) and ratio_text.
    """
    best = scored.drop_duplicates(["width", "depth"])
    groups = [
        best[(best["parameters"] / size - 1).abs() <= EQUAL].sort_values("depth").drop_duplicates("depth")
        for size in best.loc[best["depth"] == best["depth"].min(), "parameters"]
    ]
    columns = ["network", "width", "depth", "parameters", "optimizer", "learning_rate", "validation", "text", "ratio"]
    group = max(groups, key=len, default=best.head(0))
    if len(group) < 2:
        return pd.DataFrame(columns=[*columns, "ratio_text"])
    losses = _paired(study, group)
    widest, rows = losses[group["trial"].iloc[0]], []
    for row in records(group):
        ratio = log_interval((losses[row["trial"]] / widest).dropna())
        first = row["trial"] == group["trial"].iloc[0]
        rows.append(
            {name: row[name] for name in columns[1:7]}
            | {"network": f"{row['depth']} x {row['width']}", "text": score_text(row), "ratio": ratio}
            | {"ratio_text": "1" if first else interval(ratio)}
        )
    return pd.DataFrame(rows)


def best_of_optimizers(study: Results, scored: pd.DataFrame) -> pd.DataFrame:
    """The best cell of each optimizer, best in the search first; last SGD's, which is its best on the fresh seeds.

    Args:
        study: the study.
        scored: of `on_fresh_seeds`.

    Returns:
        Rows of `scored` and gain, an Interval: plain SGD's loss over the optimizer's, by seed; NaN for SGD's own.
    """
    # Near-ties in the search would decide which of SGD's cells all others are measured by; the fresh seeds do.
    own = scored[scored["optimizer"] == "sgd"].nsmallest(1, "validation")
    best = pd.concat([scored[scored["optimizer"] != "sgd"].drop_duplicates("optimizer"), own])
    losses, plain = _paired(study, best), own["trial"]
    gains = [
        log_interval((losses[plain.iloc[0]] / losses[trial]).dropna())
        if len(plain) and trial != plain.iloc[0]
        else Interval(math.nan, math.nan, math.nan, 0)
        for trial in best["trial"]
    ]
    return best.assign(gain=pd.Series(gains, index=best.index, dtype=object))


def shape_claim(shapes: pd.DataFrame) -> Claim:
    """Whether a deep and narrow network beats a wide and shallow one of equally many parameters."""
    text = "A deep but narrow network may give better results than a few wide layers"
    if len(shapes) < 2:
        return not_checked(text, "no two shapes with equally many parameters have a tuned rate")
    wide, deep = shapes.iloc[0], shapes.iloc[-1]
    ratio: Interval = deep["ratio"]
    ours = (
        f"{deep['network']} against {wide['network']}: {interval(ratio)} times the loss, geometric mean and 95% t "
        f"interval of {ratio.n} paired seeds"
    )
    counts = (
        f"{deep['parameters']:.0f} and {wide['parameters']:.0f} parameters, each with its best optimizer at its tuned "
        "rate. The report says it of its 64-32 network, of 2,305"
    )
    if ratio.high < 1:
        return Claim(text, "", ours, "agrees", counts)
    if ratio.low > 1:
        return Claim(text, "", ours, "differs", f"not here: {counts}")
    return Claim(text, "", ours, "not checked", f"{counts}; the interval holds 1, so these seeds do not tell")


def optimizer_claim(optimizers: pd.DataFrame, table: pd.DataFrame) -> Claim:
    """Whether momentum, RMSprop or Adam beat plain SGD, all tuned.

    Args:
        optimizers: of `best_of_optimizers`.
        table: all cells.
    """
    text = "Gradient descent with momentum, Adam or RMSprop can do much better than plain gradient descent"
    others = optimizers[optimizers["optimizer"] != "sgd"]
    if others.empty or len(others) == len(optimizers):
        return not_checked(text, "not all of them have a tuned rate")
    gains: list[Interval] = others["gain"].to_list()
    told = ", ".join(f"{name} {interval(gain)}" for name, gain in zip(others["optimizer"], gains, strict=True))
    ours = f"SGD's loss over theirs: {told}; geometric means and 95% t intervals of {gains[0].n} paired seeds"
    better, edge = sum(gain.low > 1 for gain in gains), int(table["on_edge"].sum())
    much, less = any(gain.low > MUCH for gain in gains), all(gain.high < MUCH for gain in gains)
    why = (
        f"best cells over all shapes, of SGD's the best on these seeds; {better} of {len(gains)} intervals lie above "
        f"1. Much better is asked to be an interval above {MUCH:g}"
    )
    if not much and not less:
        why += f", and some hold {MUCH:g}: these seeds do not tell"
    if edge:
        why += f"; {edge} of {len(table)} cells have their rate on the edge of the grid"
    return Claim(text, "", ours, "agrees" if much else "differs" if less else "not checked", why)


def _heat(data: pd.DataFrame, metric: str) -> Callable[[], Figure]:
    def made() -> Figure:
        figure = figures.figure(0.7 * PAGE_MM, 24 + 13 * max(2, data["row"].nunique()))
        figures.heat_map(data, figure.subplots(), "hidden layers", "width", metric, contours=False)
        return figure

    return made
