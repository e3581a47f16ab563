"""Which optimizer printed the CNN's losses: candidates compared with the report's training table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.reproduction.claims import asked, printed
from analysis.reproduction.losses import losses_of
from analysis.results import Results
from analysis.text import short

CANDIDATE = ["inputs", "optimizer", "learning_rate"]
"""The settings that the report does not print; they are inferred from its losses."""
INPUTS = {"raw": "0 to 1", "standardized": "standardized"}
"""How the images may be scaled, and the same in words."""
OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
"""Those that the report names, the simplest first."""
PLATEAU = 0.9
"""Printed losses above this share of the first are the plateau; then comes the fall, down to twice the last."""
WINDOW = ["epoch", "place"]
"""The columns that identify a printed loss; both count from 1."""


class Fit(NamedTuple):
    """How well the printed losses pass for one more seed of a candidate; distances are root mean squares of logarithms.

    `distance` is that of the printed losses from the seeds' geometric mean, `nearest` from the nearest seed: where some
    seeds learn at once and others never, losses between the two are near the mean, but near no seed. `others` is the
    largest distance of a seed from its nearest curve, the printed one included. `p` is the share of all n + 1 curves
    that are at least as far from their nearest as the printed one: if that were one more seed, p <= x would happen with
    probability x at most. `plateau`, `fall` and `tail` count printed losses of each part between the least and the
    largest seed's, `of` all of each part; `spans`: whether the seeds span plateau and fall.

    `fits` is the criterion: not the furthest from its nearest, a seed within `asked.near`, and spans. That is needed
    because a single odd seed is the nearest of the printed curve at any distance, and vice versa.
    """

    distance: float
    nearest: float
    others: float
    p: float
    plateau: int
    fall: int
    tail: int
    of: list[int]
    seeds: int
    spans: bool
    fits: bool


def spanned(inside: int, of: int, seeds: int) -> bool:
    """Whether as many printed losses lie within the range of the seeds as a further seed's would, rounded down.

    A further seed's loss does so with probability (n - 1) / (n + 1), where n is the number of seeds.
    """
    return inside >= math.floor(of * (seeds - 1) / (seeds + 1))


@cache
def printed_table() -> pd.DataFrame:
    """The report's training table: epoch, place in the epoch, both from 1, and printed, the loss."""
    losses = enumerate(printed("mnist")["mean_loss"], start=1)
    rows = [(epoch, place, loss) for epoch, own in losses for place, loss in enumerate(own, start=1)]
    return pd.DataFrame(rows, columns=[*WINDOW, "printed"])


def window_means(curves: pd.DataFrame, every: int, per_epoch: int) -> pd.DataFrame:
    """The batch losses as the report prints them: means of `every` updates, starting again with each epoch.

    The updates of an epoch after its last whole window are dropped, as the report does. Columns trial, lane, epoch,
    place and loss.
    """
    rows = losses_of(curves)
    epoch, place = np.divmod(rows["update"].to_numpy() - 1, per_epoch)
    frame = rows[["trial", "lane"]].assign(epoch=epoch + 1, place=place // every + 1, loss=rows["value"])
    whole = frame[frame["place"] <= per_epoch // every].groupby(["trial", "lane", *WINDOW])["loss"]
    means = whole.agg(["mean", "size"]).reset_index()
    return means[means["size"] == every].drop(columns="size").rename(columns={"mean": "loss"}).reset_index(drop=True)


def losses(results: Results) -> pd.DataFrame:
    """`window_means` of a study, with `CANDIDATE`, seed and the name of the study."""
    report = printed("mnist")
    means = window_means(results.curves, report["every"], report["epoch_updates"]).assign(study=results.name)
    return means.merge(lanes_of(results)[["trial", "lane", "seed", *CANDIDATE]], on=["trial", "lane"])


def lanes_of(results: Results) -> pd.DataFrame:
    """The lanes of a study with `CANDIDATE`."""
    inputs = "standardized" if results.spec["workload"]["standardize"] else "raw"
    lanes = results.lanes.merge(results.trials[["trial", "optimizer"]], on="trial")
    # Rates of a grid are powers with rounding errors.
    return lanes.assign(inputs=inputs, learning_rate=lanes["learning_rate"].map(lambda rate: float(f"{rate:.6g}")))


def _logs(values: ArrayLike) -> NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(values, dtype=np.float64), np.finfo(np.float64).tiny))


def fit(curves: ArrayLike, printed_losses: ArrayLike) -> Fit:
    """Compare the printed losses (points,) with those of a candidate's seeds (seeds, points)."""
    ours, theirs = np.asarray(curves, dtype=np.float64), np.asarray(printed_losses, dtype=np.float64)
    everyone, seeds = _logs(np.vstack([ours, theirs])), len(ours)
    gaps = np.sqrt(((everyone[:, None] - everyone[None]) ** 2).mean(2))
    np.fill_diagonal(gaps, math.inf)
    away = gaps.min(1)
    nearest, p = float(away[-1]), float((away >= away[-1] * (1 - 1e-12)).mean())
    inside = (ours.min(0) - slack() <= theirs) & (theirs <= ours.max(0) + slack())
    parts = parts_of(theirs)
    plateau, fall, tail = (int(inside[parts == part].sum()) for part in range(3))
    of = [int((parts == part).sum()) for part in range(3)]
    spans = spanned(plateau + fall, of[0] + of[1], seeds)
    return Fit(
        distance=float(np.sqrt(((everyone[-1] - everyone[:-1].mean(0)) ** 2).mean())),
        nearest=nearest,
        others=float(away[:-1].max()),
        p=p,
        plateau=plateau,
        fall=fall,
        tail=tail,
        of=of,
        seeds=seeds,
        spans=spans,
        fits=seeds > 1 and p > 1 / (seeds + 1) and nearest <= asked("mnist")["near"] and spans,
    )


def slack() -> float:
    """Half a unit of the last printed digit."""
    return float(0.5 * 10.0 ** -printed("mnist")["decimals"])


def parts_of(theirs: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 on the plateau of the printed losses, 1 in their fall, 2 after it, as the whole training table has them."""
    whole = printed_table()["printed"].to_numpy()
    place = np.where(theirs > PLATEAU * whole[0], 0, np.where(theirs > 2 * whole[-1], 1, 2))
    return np.maximum.accumulate(place)


def candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Every candidate of `losses` compared with as many of the printed losses as it trained for, the nearest first.

    Returns:
        One row per candidate: `CANDIDATE`, the fields of `Fit`, points (number of printed losses), and course: how its
        mean loss compares with the printed one where they differ most. Those of most points come first. Candidates that
        diverged on a seed are left out; of one in several studies the longest counts.
    """
    rows = []
    for (study, *key), group in frame.groupby(["study", *CANDIDATE]):
        # All windows that any rate reached: a lane that diverged has fewer.
        of_optimizer = frame[(frame["study"] == study) & (frame["optimizer"] == key[1])]
        theirs = printed_table().merge(of_optimizer[WINDOW].drop_duplicates(), on=WINDOW)["printed"].to_numpy()
        ours = group.pivot_table(index="seed", columns=WINDOW, values="loss").to_numpy()
        if ours.shape[1] < len(theirs) or np.isnan(ours).any():
            continue
        own = fit(ours, theirs)
        ratio = _logs(ours).mean(0) - np.log(theirs)
        far = ratio[np.abs(ratio).argmax()]
        course = "as printed" if own.fits else "falls too early" if far < 0 else "falls too late"
        rows.append((*key, *own, len(theirs), course))
    table = pd.DataFrame(rows, columns=[*CANDIDATE, *Fit._fields, "points", "course"])
    table = table.sort_values(["points", "distance"], ascending=[False, True])
    return table.drop_duplicates(CANDIDATE, ignore_index=True)


def kept(frames: Sequence[pd.DataFrame]) -> list[tuple[str, list[str], list[float]]]:
    """The candidates to train again, as studies: (inputs, optimizers, rates), each optimizer at each rate."""
    table = candidates(pd.concat(frames))
    nearest = table[table["points"] == table["points"].max()].head(asked("mnist")["kept"])
    return [
        (str(inputs), ordered(group["optimizer"]), sorted(group["learning_rate"].unique().tolist()))
        for inputs, group in nearest.groupby("inputs")
    ]


def candidate_text(row: Any) -> str:
    """A candidate in words, such as `sgd at 0.001 on inputs from 0 to 1`."""
    inputs = "standardized inputs" if row["inputs"] == "standardized" else "inputs from 0 to 1"
    return f"{row['optimizer']} at {short(row['learning_rate'])} on {inputs}"


def ordered(names: pd.Series[str]) -> list[str]:
    """Those of `OPTIMIZERS` that are among the names, the simplest first."""
    return [name for name in OPTIMIZERS if name in set(names)]
