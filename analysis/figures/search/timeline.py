"""Worker timeline: which worker or GPU ran which trial when."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from analysis.figures import exhibit, style
from analysis.results import Results, stints
from analysis.schema import Outcome
from analysis.text import counted, duration, shortened

MOST_WORKERS = 32
COLOURS = {
    Outcome.COMPLETED: style.BLUE,
    Outcome.STOPPED: "#56B4E9",
    Outcome.DIVERGED: style.ORANGE,
    Outcome.FAILED: "#000000",
    Outcome.OUT_OF_MEMORY: "#882255",
    Outcome.INTERRUPTED: "#E69F00",
}
# The domain of a host in the name of a worker or a GPU.
_DOMAIN = re.compile(r"(?<=[A-Za-z0-9-])\.[A-Za-z0-9.-]+(?=[: ])")
_TIME_UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def timeline(results: Results) -> pd.DataFrame:
    """When each GPU, or each worker without one, ran which trial, including the confirmation.

    Returns:
        Columns trial, confirming, optimizer, outcome, worker, node, gpu (whether `place` is one), place (the GPU or the
        worker), started and ended (seconds since the first trial started, pauses between sessions included), slot
        (among the trials that share a place at that time, from 0) and slots (of the place). A trial that moved has a
        row for each stay, one with several GPUs a row for each of them. Trials without a recorded time are left out.
    """
    parts = [
        stints(each.trials).merge(each.trials[["trial", "optimizer", "outcome"]], on="trial").assign(confirming=again)
        for again, each in enumerate((results, results.confirmation))
        if each is not None
    ]
    timed = pd.concat(parts, ignore_index=True)
    # Older versions did not record the GPUs.
    gpus = [[" GPU ".join(name.split(":", 1)) for name in ([] if row is None else row)] for row in timed["gpus"]]
    frame = timed[["trial", "confirming", "optimizer", "outcome", "worker"]].assign(
        node=timed["worker"].str.rsplit(":", n=1).str[0],
        gpu=np.array([bool(names) for names in gpus], dtype=bool),
        place=pd.Series([names or [worker] for names, worker in zip(gpus, timed["worker"], strict=True)], timed.index),
        started=timed["started"] - timed["started"].min(),
        ended=timed["ended"] - timed["started"].min(),
    )
    frame = frame.explode("place").sort_values(["gpu", "place", "started"], ascending=[False, True, True])
    frame = frame.reset_index(drop=True)
    slots: list[int] = []  # each trial takes the lowest slot of its place that is free when it starts
    free: dict[str, list[float]] = {}
    for place, started, ended in zip(frame["place"], frame["started"], frame["ended"], strict=True):
        ends = free.setdefault(place, [])
        slot = next((slot for slot, end in enumerate(ends) if end <= started), len(ends))
        ends[slot : slot + 1] = [ended]
        slots.append(slot)
    return frame.assign(slot=slots, slots=[len(free[place]) for place in frame["place"]])


def busy(times: pd.DataFrame, nodes: Mapping[str, int] = MappingProxyType({})) -> pd.DataFrame:
    """How much of the time each node, and each GPU, had at least one trial.

    Args:
        times: from `timeline`.
        nodes: all nodes and how many GPUs each had; those that had no trial get a row too.

    Returns:
        Columns name, trials, share (of the time in which any trial ran) and together (mean number of concurrent trials
        while there were any), nodes first.
    """
    whole, rows = covered(times), []
    stays = times.drop_duplicates(["confirming", "trial", "started"])  # a stay with several GPUs has several rows
    for column, some in (("node", stays), ("place", times[times["gpu"]])):
        for name, own in some.groupby(column):
            seconds, length = covered(own), float((own["ended"] - own["started"]).sum())
            trials = len(own.drop_duplicates(["confirming", "trial"]))
            rows.append((str(name), trials, seconds / whole if whole else 1.0, length / seconds if seconds else 1.0))
    ran = [name for name, *_ in rows]
    idle = [node for node in nodes if node not in ran]
    without = {node: gpus - sum(name.startswith(f"{node} GPU ") for name in ran) for node, gpus in nodes.items()}
    idle += [f"{node}, {counted(count, 'idle GPU')}" for node, count in without.items() if count > 0]
    rows += [(name, 0, 0.0, 0.0) for name in idle]
    return pd.DataFrame(rows, columns=["name", "trials", "share", "together"])


def covered(times: pd.DataFrame) -> float:
    """Seconds in which at least one trial ran; `times` is from `timeline`."""
    spans = times.sort_values("started")
    until = spans["ended"].cummax().shift(fill_value=-math.inf)
    return float(sum((spans["ended"] - spans["started"].clip(lower=until)).clip(lower=0)))


def trial_timeline(data: pd.DataFrame, ax: Axes, workers: int = MOST_WORKERS) -> Axes:
    """Draw `timeline`: a row per GPU, or per worker without one, and a bar per trial, coloured by outcome.

    Args:
        data: from `timeline`. Trials that share a GPU share its row.
        ax: where to draw.
        workers: maximum number of rows; the busiest are shown.
    """
    lengths = (data["ended"] - data["started"]).groupby(data["place"]).sum().sort_values(ascending=False)
    gpus = set(data["place"][data["gpu"]])
    shown = sorted(lengths.index[:workers], key=lambda place: (place not in gpus, place))
    end = float(data["ended"].max()) if len(data) else 0.0
    scale, unit = next(pair for pair in _TIME_UNITS if end > 2 * pair[0] or pair[0] == 1)
    for outcome in [*COLOURS, *sorted(set(data["outcome"]) - set(COLOURS))]:
        own = data[(data["outcome"] == outcome) & data["place"].isin(shown)]
        if len(own):
            height = 0.8 / own["slots"]
            rows = np.array([shown.index(place) for place in own["place"]]) - 0.4 + (own["slot"] + 0.5) * height
            left, right, low, high = own["started"] / scale, own["ended"] / scale, rows - height / 2, rows + height / 2
            corners = np.stack([[left, low], [right, low], [right, high], [left, high]]).transpose(2, 0, 1)
            # One collection: thousands of bars would take a second each time.
            bars = PolyCollection(list(corners), facecolor=COLOURS.get(outcome, style.GREY), edgecolor="white",
                                  linewidth=0.3, label=str(outcome), rasterized=len(data) > 500, zorder=2)  # fmt: skip
            ax.add_collection(bars)
    ax.margins(x=0)
    ax.autoscale_view()
    ax.set_yticks(range(len(shown)), [shortened(_DOMAIN.sub("", place)) for place in shown], fontsize=6)
    ax.invert_yaxis()
    ax.set_xlabel(f"time since the first trial began ({unit})")
    ax.set_ylabel("GPU" if set(shown) <= gpus and gpus else "GPU, or worker" if gpus else "worker")
    return ax


def figure(results: Results, table: pd.DataFrame) -> exhibit.Exhibit:
    """The worker timeline."""
    data = timeline(results)
    workers, gpus = data["place"].nunique(), bool(data["gpu"].any())
    rows = "One row per worker (host:process)"
    if gpus:
        rows = "One row per GPU (shared by the trials that share it), and per worker without one"
    if workers > MOST_WORKERS:
        rows = f"The {MOST_WORKERS} busiest of {workers} {'GPUs and workers' if gpus else 'workers'}"
    height = 22 + 4.5 * min(MOST_WORKERS, workers)
    return exhibit.Exhibit(
        "timeline",
        "Worker and GPU timeline" if gpus else "Worker timeline",
        f"{counted(len(data), 'run')} of trials on {counted(workers, 'GPU or worker' if gpus else 'worker')} within "
        f"{duration(float(data['ended'].max()))}. {rows}, one bar for each run of a trial, including the "
        f"confirmation, coloured by outcome. Gaps are waiting time, or the time between sessions.",
        data,
        lambda: exhibit.with_legend(lambda ax: trial_timeline(data, ax), style.PAGE_MM, height),
        "no trial has recorded when and where it ran",
    )
