"""Experiment 6: what the source report recommends and does not do, a search over layers, widths and optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, series, tables
from analysis.figures import PAGE_MM
from analysis.reproduction.section import (
    Claim,
    Section,
    Table,
    Verdict,
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

EQUAL = 0.05
"""How far the numbers of parameters of networks lie apart that count as equally large, relative."""


def layers(parts: Mapping[str, Results]) -> Section:
    """Experiment 6: what the report recommends: layers, width and optimizers, each tuned."""
    study = parts["layers"]
    table = tables.cells(study)
    shapes, optimizers = equal_shapes(study, table), best_of(table, "optimizer", maximize=study.maximize)
    heat = series.grid(table, "depth", "width", study.maximize)
    rates = series.rate_sensitivity(study, table)
    return Section(
        "layers",
        "Layers, width and optimizers",
        [
            "The report recommends to try the number of layers and their width, and optimizers other than plain "
            "gradient descent, and does not. A search over both on the cubic data, standardised, batches of 32, each "
            f"cell at its tuned rate, {int(study.lanes['seed'].nunique())} seeds; losses are in variances of y.",
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
                "brackets the 95% t interval over seeds. Hidden layers of equal width.",
                "Heat map of validation loss: rows are depths, columns widths.",
                heat,
                _heat(heat, study.metric),
            ),
            drawing(
                "layers-optimizers",
                "Optimizers at every learning rate",
                "Best shape of each optimizer. Line: geometric mean of the final validation loss over seeds; band: "
                "pointwise 95% t interval; ring: tuned rate; cross: a seed diverged there.",
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
                "The best cell of each optimizer",
                ("optimizer", "width", "depth", "rate", "validation loss", "rate on the edge"),
                [
                    (
                        row["optimizer"],
                        str(row["width"]),
                        str(row["depth"]),
                        short(row["learning_rate"]),
                        score_text(row),
                        "yes" if row["on_edge"] else "no",
                    )
                    for row in records(optimizers)
                ],
            ),
        ],
        [],
        **told_of_runs("layers", [study]),
    )


def best_of(table: pd.DataFrame, by: str, *, maximize: bool) -> pd.DataFrame:
    """The best cell of each value of a column of `tables.cells`, best first."""
    return tables.rank(table, maximize).drop_duplicates(by)


def equal_shapes(study: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The networks of about equally many parameters, widest first, each with its best optimizer at its tuned rate.

    They are the largest group of shapes of different depths whose parameters lie within `EQUAL` of the first's.

    Returns:
        Columns network, width, depth, parameters, optimizer, learning_rate, validation, text, ratio (an Interval: its
        loss over the widest one's, by seed) and ratio_text.
    """
    best = tables.rank(table, study.maximize).drop_duplicates(["width", "depth"])
    groups = [
        best[(best["parameters"] / size - 1).abs() <= EQUAL].sort_values("depth").drop_duplicates("depth")
        for size in best.loc[best["depth"] == best["depth"].min(), "parameters"]
    ]
    columns = ["network", "width", "depth", "parameters", "optimizer", "learning_rate", "validation", "text", "ratio"]
    group = max(groups, key=len, default=best.head(0))
    if len(group) < 2:
        return pd.DataFrame(columns=[*columns, "ratio_text"])
    lanes = tables.tuned_lanes(study, group).set_index(["cell", "seed"])[f"validation_{study.metric}"]
    widest, rows = lanes[group["trial"].iloc[0]], []
    for row in records(group):
        ratio = log_interval((lanes[row["trial"]] / widest).dropna())
        first = row["trial"] == group["trial"].iloc[0]
        rows.append(
            {name: row[name] for name in columns[1:7]}
            | {"network": f"{row['depth']} x {row['width']}", "text": score_text(row), "ratio": ratio}
            | {"ratio_text": "1" if first else interval(ratio)}
        )
    return pd.DataFrame(rows)


def shape_claim(shapes: pd.DataFrame) -> Claim:
    """Whether a deep and narrow network beats a wide and shallow one of equally many parameters."""
    text = "A deep and narrow network may do better than a wide and shallow one"
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
        "rate"
    )
    if ratio.high < 1:
        return Claim(text, "", ours, "agrees", counts)
    verdict: Verdict = "differs" if ratio.low > 1 else "not checked"
    words = counts if ratio.low > 1 else f"{counts}; the interval holds 1, so these seeds do not tell"
    return Claim(text, "", ours, verdict, words)


def optimizer_claim(optimizers: pd.DataFrame, table: pd.DataFrame) -> Claim:
    """Whether momentum, RMSprop and Adam beat plain SGD, all tuned."""
    text = "Momentum, RMSprop and Adam do much better than plain gradient descent"
    plain, others = optimizers[optimizers["optimizer"] == "sgd"], optimizers[optimizers["optimizer"] != "sgd"]
    if plain.empty or others.empty:
        return not_checked(text, "not all of them have a tuned rate")
    base = plain.iloc[0]
    better = others[others["validation_high"] < base["validation_low"]]
    ours = ", ".join(f"{row['optimizer']} {score_text(row)}" for row in records(optimizers.sort_values("validation")))
    edge = int(table["on_edge"].sum())
    why = (
        f"best cells over all shapes; {len(better)} of {len(others)} lie below SGD with no overlap of 95% intervals, "
        f"the best at {short(float(base['validation'] / others['validation'].min()))} times less"
        + (f"; {edge} of {len(table)} cells have their rate on the edge of the grid" if edge else "")
    )
    return Claim(text, "", ours, "agrees" if len(better) == len(others) else "differs", why)


def _heat(data: pd.DataFrame, metric: str) -> Callable[[], Figure]:
    def made() -> Figure:
        figure = figures.figure(0.7 * PAGE_MM, 24 + 13 * max(2, data["row"].nunique()))
        figures.heat_map(data, figure.subplots(), "hidden layers", "width", metric, contours=False)
        return figure

    return made
