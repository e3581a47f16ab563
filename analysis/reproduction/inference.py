"""Which optimizer printed the CNN's losses: candidates compared with the report's training table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.reproduction.claims import printed
from analysis.results import Results
from analysis.statistics import log_interval
from analysis.text import short

CANDIDATE = ["inputs", "optimizer", "learning_rate"]
"""What the report does not show, and its printed losses must tell."""
INPUTS = {"raw": "0 to 1", "standardized": "standardized"}
"""How the images may be scaled, and the same in words."""
OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
"""Those that the report names, the simplest first."""
KEPT = 2
"""Candidates that are trained again, on fresh seeds."""
PLATEAU = 0.9
"""Printed losses above this share of the first are the plateau; then comes the fall, down to twice the last."""
NEAR = 0.25
"""The largest distance from the nearest seed that fits: a factor of 1.28, in the root mean square."""


@dataclass(frozen=True)
class Fit:
    """How well the printed losses pass for one more seed of a candidate.

    Attributes:
        distance: root mean square of the log of printed loss over the seeds' geometric mean.
        nearest: the same distance of the printed losses from the nearest seed. Where some seeds learn at once and
            others never, losses between the two are near the mean, but near no seed.
        others: the largest distance of a seed from its nearest curve, the printed one included.
        p: share of all n + 1 curves that are at least as far from their nearest as the printed one. If that were one
            more seed, p <= x would happen with probability x at most.
        plateau, fall, tail: printed losses of each part that lie between the least and the largest seed's.
        of: the number of printed losses in each part.
        seeds: n.
    """

    distance: float
    nearest: float
    others: float
    p: float
    plateau: int
    fall: int
    tail: int
    of: tuple[int, int, int]
    seeds: int

    @property
    def spans(self) -> bool:
        """Whether the seeds span the printed plateau and fall."""
        return spanned(self.plateau + self.fall, self.of[0] + self.of[1], self.seeds)

    @property
    def fits(self) -> bool:
        """The criterion: not the furthest from its nearest, a seed within `NEAR`, and plateau and fall spanned.

        `NEAR` is needed because a single odd seed is the nearest of the printed curve at any distance, and vice versa.
        """
        return self.seeds > 1 and self.p > 1 / (self.seeds + 1) and self.nearest <= NEAR and self.spans


def spanned(inside: int, of: int, seeds: int) -> bool:
    """Whether as many printed losses lie within the range of the seeds as a further seed's would, rounded down.

    A further seed's loss does so with probability (n - 1) / (n + 1), where n is the number of seeds.
    """
    return inside >= math.floor(of * (seeds - 1) / (seeds + 1))


@cache
def printed_table() -> pd.DataFrame:
    """The report's training table: epoch, place in the epoch, both from 1, and loss."""
    rows = [
        (epoch, place, loss)
        for epoch, losses in enumerate(printed("mnist")["mean_loss"], start=1)
        for place, loss in enumerate(losses, start=1)
    ]
    return pd.DataFrame(rows, columns=["epoch", "place", "loss"])


def window_means(curves: pd.DataFrame, every: int, per_epoch: int) -> pd.DataFrame:
    """The batch losses as the report prints them: means of `every` updates, starting again with each epoch.

    The updates of an epoch after its last whole window are dropped, as the report does.

    Args:
        curves: rows of `results.CURVES`; those of the split batch are used.
        every: updates in a window.
        per_epoch: updates in an epoch.

    Returns:
        One row per (trial, lane, epoch, place): epoch and the window's place in it, both from 1, and loss.
    """
    rows = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
    epoch, place = np.divmod(rows["update"].to_numpy() - 1, per_epoch)
    frame = pd.DataFrame({name: rows[name].to_numpy() for name in ("trial", "lane")})
    frame = frame.assign(epoch=epoch + 1, place=place // every + 1, loss=rows["value"].to_numpy())
    whole = frame[frame["place"] <= per_epoch // every].groupby(["trial", "lane", "epoch", "place"])["loss"]
    means = whole.agg(["mean", "size"]).reset_index()
    return means[means["size"] == every].drop(columns="size").rename(columns={"mean": "loss"}).reset_index(drop=True)


def losses(results: Results, every: int, per_epoch: int) -> pd.DataFrame:
    """`window_means` of a study, with `CANDIDATE`, seed and the name of the study."""
    means = window_means(results.curves, every, per_epoch).assign(study=results.name)
    return means.merge(lanes_of(results)[["trial", "lane", "seed", *CANDIDATE]], on=["trial", "lane"])


def lanes_of(results: Results) -> pd.DataFrame:
    """The lanes of a study with `CANDIDATE`."""
    inputs = "standardized" if results.spec["workload"]["standardize"] else "raw"
    lanes = results.lanes.merge(results.trials[["trial", "optimizer"]], on="trial")
    # Rates of a grid are powers with rounding errors.
    return lanes.assign(inputs=inputs, learning_rate=lanes["learning_rate"].map(lambda rate: float(f"{rate:.6g}")))


def fit(curves: ArrayLike, printed_losses: ArrayLike, decimals: int = 3) -> Fit:
    """Compare the printed losses with the seeds of a candidate.

    Args:
        curves: (seeds, points) losses > 0.
        printed_losses: (points,).
        decimals: to which they are printed; half a unit of the last is allowed.
    """
    ours, theirs = np.asarray(curves, dtype=np.float64), np.asarray(printed_losses, dtype=np.float64)
    everyone = np.log(np.maximum(np.vstack([ours, theirs]), np.finfo(np.float64).tiny))
    gaps = np.sqrt(((everyone[:, None] - everyone[None]) ** 2).mean(2))
    np.fill_diagonal(gaps, math.inf)
    away = gaps.min(1)
    slack = 0.5 * 10.0**-decimals
    inside = (ours.min(0) - slack <= theirs) & (theirs <= ours.max(0) + slack)
    parts = parts_of(theirs)
    return Fit(
        distance=float(np.sqrt(((everyone[-1] - everyone[:-1].mean(0)) ** 2).mean())),
        nearest=float(away[-1]),
        others=float(away[:-1].max()),
        p=float((away >= away[-1] * (1 - 1e-12)).mean()),
        plateau=int(inside[parts == 0].sum()),
        fall=int(inside[parts == 1].sum()),
        tail=int(inside[parts == 2].sum()),
        of=(int((parts == 0).sum()), int((parts == 1).sum()), int((parts == 2).sum())),
        seeds=len(ours),
    )


def parts_of(theirs: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 on the plateau of the printed losses, 1 in their fall, 2 after it, as the whole training table has them."""
    whole = printed_table()["loss"].to_numpy()
    place = np.where(theirs > PLATEAU * whole[0], 0, np.where(theirs > 2 * whole[-1], 1, 2))
    return np.maximum.accumulate(place)


def candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Every candidate compared with as many of the printed losses as it trained for, the nearest first.

    Args:
        frame: from `losses`, of one study or several.

    Returns:
        One row per candidate: `CANDIDATE`, the fields of `Fit`, spans, fits, points (number of printed losses), and
        course: how its mean loss compares with the printed one where they differ most. Those of most points come
        first. Candidates that diverged on a seed are left out; of one in several studies the longest counts.
    """
    rows = []
    where = ["epoch", "place"]
    for (study, *key), group in frame.groupby(["study", *CANDIDATE]):
        # All windows that any rate reached: a lane that diverged has fewer.
        of_optimizer = frame[(frame["study"] == study) & (frame["optimizer"] == key[1])]
        theirs = printed_table().merge(of_optimizer[where].drop_duplicates(), on=where)["loss"].to_numpy()
        ours = group.pivot_table(index="seed", columns=where, values="loss").to_numpy()
        if ours.shape[1] < len(theirs) or np.isnan(ours).any():
            continue
        found = fit(ours, theirs, printed("mnist")["decimals"])
        ratio = np.log(np.maximum(ours, np.finfo(np.float64).tiny)).mean(0) - np.log(theirs)
        far = ratio[np.abs(ratio).argmax()]
        course = "as printed" if found.fits else "falls too early" if far < 0 else "falls too late"
        rows.append(
            dict(zip(CANDIDATE, key, strict=True))
            | vars(found)
            | {"spans": found.spans, "fits": found.fits, "points": len(theirs), "course": course}
        )
    columns = [*CANDIDATE, *Fit.__dataclass_fields__, "spans", "fits", "points", "course"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.sort_values(["points", "distance"], ascending=[False, True])
    return table.drop_duplicates(CANDIDATE, ignore_index=True)


def kept(frames: Sequence[pd.DataFrame], count: int = KEPT) -> list[tuple[str, list[str], list[float]]]:
    """The candidates to train again, as studies: (inputs, optimizers, rates), each optimizer at each rate.

    Args:
        frames: from `losses`, of the studies of all candidates.
        count: number of candidates.
    """
    table = candidates(pd.concat(frames))
    nearest = table[table["points"] == table["points"].max()].head(count)
    return [
        (str(inputs), ordered(group["optimizer"]), sorted(group["learning_rate"].unique().tolist()))
        for inputs, group in nearest.groupby("inputs")
    ]


def training_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The printed losses beside those of one candidate's seeds.

    Args:
        frame: from `losses`, of that candidate.

    Returns:
        One row per printed loss that it trained for: epoch, place, printed, the geometric mean over seeds with its 95%
        t interval (estimate, low, high), the seeds' least and largest, n, and whether the printed one lies inside.
    """
    rows, where = [], ["epoch", "place"]
    slack = 0.5 * 10.0 ** -printed("mnist")["decimals"]
    for (epoch, place, loss), own in frame.merge(printed_table().rename(columns={"loss": "printed"}), on=where).groupby(
        [*where, "printed"]
    )["loss"]:
        least, largest = float(own.min()), float(own.max())
        inside = least - slack <= loss <= largest + slack
        rows.append({"epoch": epoch, "place": place, "printed": loss, **vars(log_interval(own)),
                     "least": least, "largest": largest, "inside": inside})  # fmt: skip
    return pd.DataFrame(rows)


def candidate_text(row: Any) -> str:
    """A candidate in words, such as `sgd at 0.001 on inputs from 0 to 1`."""
    inputs = "standardized inputs" if row["inputs"] == "standardized" else "inputs from 0 to 1"
    return f"{row['optimizer']} at {short(row['learning_rate'])} on {inputs}"


def ordered(names: pd.Series[str]) -> list[str]:
    """Those of `OPTIMIZERS` that are among the names, the simplest first."""
    return [name for name in OPTIMIZERS if name in set(names)]
