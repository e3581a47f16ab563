"""One frame per figure: what it draws, computed and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

import numpy as np
import pandas as pd

from analysis.results import REGIMES, Results, pareto, stints, table_of
from analysis.statistics import (
    UNKNOWN_EXAMPLES,
    best_so_far,
    censored_median,
    critical_batch_size,
    expected_best,
    gradient_noise_scale,
    iqm_interval,
    log_interval,
    metric_interval,
    performance_profile,
    smoothed,
)
from analysis.tables import (
    AXES,
    LEAST,
    LIMITS,
    cells,
    curves_of,
    examples_of,
    optimizer_order,
    rank,
    rate_table,
    time_to_target,
    tuned_lanes,
    tuned_rows,
)
from analysis.wording import counted

ADAPTIVE = ("tpe", "gp", "nsga2")
"""Samplers that learn from earlier trials."""

HALF_LIFE = 0.01
"""Half-life of the smoothing of batch losses, as a share of the examples of the shortest training shown."""

SEARCHED = ("optimizer", "width", "depth", "batch_size", "learning_rate")
"""The hyperparameters of a cell, the tuned rate included."""


def progress(results: Results) -> pd.DataFrame:
    """The search trial by trial, each at its own tuned rate.

    Returns:
        Columns trial, optimizer, outcome, value (NaN if none), best (so far, of the trials that completed; of all while
        none has).
    """
    each = results.lanes.assign(cell=results.lanes["trial"])
    tuned = tuned_rows(rate_table(each, results.metric, examples_of(results, "validation")), results.metric)
    frame = results.trials[["trial", "optimizer", "outcome"]]
    frame = frame.assign(value=results.trials["trial"].map(tuned["estimate"]).astype(float))
    whole = frame["value"].where(frame["outcome"] == "completed")
    counted = whole if whole.notna().any() else frame["value"]
    return frame.assign(best=best_so_far(counted, results.maximize))


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
        mean loss over the batches since the last point, of the first seed alone (NaN where it was not recorded), and
        batch_smooth, the same smoothed over examples with the half-life `HALF_LIFE` of the shortest training shown.
    """
    names = ["regime", "trial", "optimizer", "settings", "batch_size", "learning_rate"]
    best = rank(table, results.maximize).drop_duplicates("regime").set_index("regime")
    pieces, half_life = [], HALF_LIFE * float(best["examples"].min())
    for regime in (name for name in REGIMES if name in best.index):
        curves = curves_of(results, best.loc[[regime]])
        frame = band(curves, results.metric, examples_of(results, "validation"))
        batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
        trace = batch[batch["seed"] == batch["seed"].min()].set_index("update")["value"]
        frame["batch_loss"] = frame["update"].map(trace).astype(float)
        frame["batch_smooth"] = smoothed(frame["batch_loss"], frame["examples"], half_life)
        cell = best.loc[regime]
        pieces.append(frame.assign(regime=regime, **{name: cell[name] for name in names[1:]}))
    columns = [*names, *AXES, *LIMITS, "batch_loss", "batch_smooth"]
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def rate_sensitivity(results: Results, table: pd.DataFrame, by: str = "optimizer") -> pd.DataFrame:
    """The validation metric against the learning rate, for the best cell of each value of a column of `cells`.

    Args:
        results: the study.
        table: its `cells`.
        by: `optimizer`, `batch_size`, `width` or `depth`. For all but the first the optimizer is the best cell's.

    Returns:
        The columns of `rate_table`, and optimizer, by, group (the value of it), tuned (whether this rate was chosen).
    """
    ranked = rank(table, results.maximize)
    if by != "optimizer" and len(ranked):
        ranked = ranked[ranked["optimizer"] == ranked["optimizer"].iloc[0]]
    best = ranked.drop_duplicates(by).set_index("trial")
    lanes = results.pooled.lanes
    frame = rate_table(lanes[lanes["cell"].isin(best.index)], results.metric, examples_of(results, "validation"))
    tuned = frame["cell"].map(best["learning_rate"]) == frame["learning_rate"]
    group = frame["cell"].map(best[by])
    return frame.assign(optimizer=frame["cell"].map(best["optimizer"]), by=by, group=group, tuned=tuned)


def best_rates(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The tuned learning rate of the best cell of each optimizer and batch size.

    Returns:
        Columns optimizer, batch_size, regime, trial, learning_rate, below and above (the rates beside it in its grid,
        NaN beyond the edge), on_edge. Only cells that were tuned, over more than one rate.
    """
    ranked = rank(table, results.maximize)
    best = ranked[ranked["rates"] > 1].drop_duplicates(["optimizer", "batch_size"])
    grids = results.pooled.lanes.groupby("cell")["learning_rate"].unique()
    rows = []
    for cell in best.to_dict("records"):
        rates, tuned = np.sort(grids[cell["trial"]]), cell["learning_rate"]
        below, above = rates[rates < tuned], rates[rates > tuned]
        row = {name: cell[name] for name in ("optimizer", "batch_size", "regime", "trial", "learning_rate", "on_edge")}
        row |= {"below": below[-1] if below.size else math.nan, "above": above[0] if above.size else math.nan}
        rows.append(row)
    columns = ["optimizer", "batch_size", "regime", "trial", "learning_rate", "below", "above", "on_edge"]
    return pd.DataFrame(rows, columns=columns).sort_values(["optimizer", "batch_size"], ignore_index=True)


def noise_and_speed(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """How fast and how smoothly the best cell of each optimizer and batch size learns, at its tuned rate.

    Speed is the number of training examples until the validation loss first falls to a level common to all cells:
    halfway, on the log scale, from the loss at initialisation to the best final loss of the study. Noise is the
    standard deviation of the log loss about its trend over the second half of the evaluations: of each from the line
    through its two neighbours, straight in the updates or in their logarithm, whichever fits better (after Gasser et
    al. 1986). Neither an exponential nor a power law adds to it.

    Returns:
        Columns optimizer, batch_size, regime, trial, learning_rate; examples, examples_low, examples_high (infinite
        where a seed never reached the level), reached (seeds that did), noise, noise_low, noise_high, seeds; and level,
        the common loss.
    """
    best = rank(table, results.maximize).drop_duplicates(["optimizer", "batch_size"])
    curves = curves_of(results, best)
    losses = curves[(curves["split"] == "validation") & (curves["metric"] == "loss") & (curves["value"] > 0)]
    losses = losses.sort_values(["cell", "seed", "update"])
    lanes = losses.groupby(["cell", "seed"])["value"]
    level = math.sqrt(lanes.first().median() * lanes.last().min()) if len(losses) else math.nan
    reached = time_to_target(losses, level, maximize=False).set_index(["trial", "lane"])["examples"]
    rows = []
    for cell in best.to_dict("records"):
        own = losses[losses["cell"] == cell["trial"]]
        times = reached.reindex(pd.MultiIndex.from_frame(own[["trial", "lane"]].drop_duplicates())).fillna(math.inf)
        times = times.clip(lower=own.loc[own["update"] > 0, "examples"].min())  # there already at initialisation
        late = own[own.groupby("seed")["update"].rank(pct=True) > 0.5]
        noise = pd.Series([_scatter(lane["update"], lane["value"]) for _, lane in late.groupby("seed")], dtype=float)
        row = {name: cell[name] for name in ("optimizer", "batch_size", "regime", "trial", "learning_rate")}
        row |= {"reached": int(np.isfinite(times).sum()), "seeds": len(times)}
        for name, values in {"examples": times, "noise": noise[noise > 0]}.items():
            interval = log_interval(values)
            row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    columns = ["optimizer", "batch_size", "regime", "trial", "learning_rate", "examples", "examples_low"]
    columns += ["examples_high", "reached", "noise", "noise_low", "noise_high", "seeds"]
    numbers = dict.fromkeys(columns[4:], "float64") | {"reached": "int64", "seeds": "int64"}
    return pd.DataFrame(rows, columns=columns).astype(numbers).assign(level=level)


def _scatter(places: pd.Series[int], values: pd.Series[float]) -> float:
    """The standard deviation of the logarithms of a lane's values about their trend; NaN for fewer than three."""
    logs, found = np.log(values.to_numpy(dtype=np.float64)), []
    for x in (places.to_numpy(dtype=np.float64), np.log(np.maximum(places.to_numpy(dtype=np.float64), 1.0))):
        share = (x[2:] - x[1:-1]) / np.maximum(x[2:] - x[:-2], LEAST)
        off = logs[1:-1] - share * logs[:-2] - (1 - share) * logs[2:]
        found.append(math.sqrt(np.mean(off**2 / (1 + share**2 + (1 - share) ** 2))) if off.size else math.nan)
    return min(found)


def steps_to_target(results: Results) -> pd.DataFrame:
    """Updates until the validation metric reaches the target, for each optimizer and batch size.

    They are those of the cell and learning rate that need the fewest: every batch size is tuned for this, as in Shallue
    et al. (2019). They are interpolated between evaluations, whose distance would else be the larger part of the error.

    Returns:
        One row per optimizer, batch size and seed: optimizer, batch_size, regime, cell, learning_rate, seed, updates.
        Only cells and rates whose every seed reached the target. Empty if the workload has none.
    """
    columns = ["optimizer", "batch_size", "regime", "cell", "learning_rate", "seed", "updates"]
    if results.target is None:
        return pd.DataFrame(columns=columns)
    pooled = results.pooled
    reached = time_to_target(results.curves, results.target, results.maximize, between=True)
    reached = reached[["trial", "lane", "update"]].rename(columns={"update": "updates"})
    reached["updates"] = reached["updates"].clip(lower=1)  # there already at initialisation
    lanes = pooled.lanes.drop(columns="updates").merge(reached, on=["trial", "lane"], how="left")
    described = pooled.trials.drop_duplicates("cell").set_index("cell")[["optimizer", "batch_size", "regime"]]
    lanes = lanes.join(described, on="cell")
    of_rate = lanes.groupby(["cell", "learning_rate"])["updates"]
    lanes["median"] = of_rate.transform("median").where(of_rate.transform("count") == of_rate.transform("size"))
    rates = lanes.dropna(subset="median").sort_values(["median", "cell", "learning_rate"])
    chosen = rates.drop_duplicates(["optimizer", "batch_size"])[["cell", "learning_rate"]]
    kept = lanes.merge(chosen, on=["cell", "learning_rate"])
    return kept.sort_values(["optimizer", "batch_size", "seed"], ignore_index=True)[columns]


def batch_scaling(steps: pd.DataFrame) -> pd.DataFrame:
    """The critical batch size of each optimizer, fitted to `steps_to_target` over the seeds that its cells share.

    Returns:
        Columns optimizer, critical, low, high (its interval), n (seeds fitted), smallest_steps, smallest_examples. An
        optimizer without a fit, for which see `analysis.statistics.critical_batch_size`, is absent.
    """
    rows = []
    for name, own in steps.groupby("optimizer"):
        by_seed = own.pivot_table(index="batch_size", columns="seed", values="updates").dropna(axis=1)
        fit = critical_batch_size(by_seed.index.to_numpy(dtype=float), by_seed.to_numpy(dtype=float))
        if fit is not None:
            rows.append(
                {"optimizer": name, "critical": fit.critical.estimate, "low": fit.critical.low}
                | {"high": fit.critical.high, "n": fit.critical.n}
                | {"smallest_steps": fit.steps.estimate, "smallest_examples": fit.examples.estimate}
            )
    columns = ["optimizer", "critical", "low", "high", "n", "smallest_steps", "smallest_examples"]
    return pd.DataFrame(rows, columns=columns)


def throughput(results: Results) -> pd.DataFrame:
    """Training examples per second of each trial's whole stack of lanes, evaluation excluded.

    Returns:
        Columns trial, optimizer, batch_size, engine, parameters, lanes, examples_per_second. A trial in which a lane
        ended early, and so left the others faster, is left out.
    """
    trials, ended = results.trials, results.lanes["outcome"] != "completed"
    early = results.lanes.loc[ended | results.lanes["stopped_update"].notna(), "trial"]
    timed = trials[(trials["train_seconds"] > 0) & trials["lanes"].notna() & ~trials["trial"].isin(early)]
    rates = timed["examples"] * timed["lanes"] / timed["train_seconds"]
    columns = ["trial", "optimizer", "batch_size", "engine", "parameters", "lanes"]
    return timed[columns].assign(examples_per_second=rates.astype(float)).reset_index(drop=True)


def expected_search(results: Results) -> pd.DataFrame:
    """The best value to expect of a search of each size, per optimizer, over the trials at their own tuned rates.

    Returns:
        Columns optimizer, trials (1, 2, ... as many as it had), expected.

    Raises:
        ValueError: if the sampler was adaptive: its trials are no random draw, their order is the method itself.
    """
    sampler = str(table_of(results.spec, "tuning").get("sampler", "tpe"))
    if sampler in ADAPTIVE:
        raise ValueError(
            f"the sampler, {sampler}, learned from earlier trials, so they are no random draw of the space, and what a "
            f"smaller search would have found cannot be told from them; samplers random, qmc and grid allow it"
        )
    found = progress(results)
    pieces = []
    for name, own in found.groupby("optimizer"):
        if (own["value"].notna() & (own["outcome"] == "completed")).any():
            expected = expected_best(own["value"].where(own["outcome"] == "completed"), results.maximize)
            counts = np.arange(1, len(expected) + 1)
            pieces.append(pd.DataFrame({"optimizer": name, "trials": counts, "expected": expected}))
    columns = ["optimizer", "trials", "expected"]
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=columns)


def searched(table: pd.DataFrame, maximize: bool) -> pd.DataFrame:
    """What each ranked cell was and reached, one column per hyperparameter that took more than one value.

    Returns:
        Columns trial, those of `SEARCHED` that vary, parameters, train_seconds and validation; best first.
    """
    ranked = rank(table, maximize)
    names = [name for name in SEARCHED if ranked[name].nunique() > 1]
    return ranked[["trial", *names, "parameters", "train_seconds", "validation"]]


def across(results: Sequence[Results]) -> pd.DataFrame:
    """How each optimizer does over several studies: the interquartile mean of its scores, with a bootstrap interval.

    A score is what the optimizer's best cell at its tuned rate reached with one seed, relative to the mean of the best
    optimizer of that study: of a loss the logarithm of the ratio, of an accuracy the difference. Test where a study has
    it, else validation. Agarwal et al. (2021).

    Args:
        results: the studies; all with the same metric.

    Returns:
        Columns optimizer, studies, estimate, low, high (a loss back as a ratio), n (scores). Optimizers that lack a
        tuned cell in a study are left out, since what they would have scored there is unknown. Best first.

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
        own = values if maximize else np.log(values.clip(lower=LEAST))
        means = own.groupby(lanes["optimizer"]).mean()
        for name, group in own.groupby(lanes["optimizer"]):
            scores[name, place] = (group - (means.max() if maximize else means.min())).to_numpy(dtype=np.float64)
    rows = []
    for name in optimizer_order(name for name, _ in scores):
        own = [scores[name, place] for place in range(len(results)) if (name, place) in scores]
        if len(own) == len(results):
            interval = iqm_interval(own, rng=np.random.default_rng(0))
            rows.append(
                {"optimizer": name, **asdict(interval if maximize else interval.map(np.exp)), "studies": len(own)}
            )
    frame = pd.DataFrame(rows, columns=["optimizer", "studies", *LIMITS])
    return frame.sort_values("estimate", ascending=not maximize, kind="stable", ignore_index=True)


def profile(results: Sequence[Results]) -> pd.DataFrame:
    """Performance profiles of the optimizers (Dolan and More 2002).

    A problem is a study, width, depth and batch size at which all optimizers ran; an optimizer solves it in the median
    over seeds of the updates that its best rate and settings need to reach the target.

    Returns:
        Columns optimizer, ratio (times the updates of the fastest), share (of problems solved within it), problems.
    """
    times: list[pd.DataFrame] = []
    for place, study in enumerate(results):
        if study.target is None:
            continue
        pooled = study.pooled
        reached = time_to_target(study.curves, study.target, study.maximize)[["trial", "lane", "update"]]
        lanes = pooled.lanes.merge(reached, on=["trial", "lane"], how="left", suffixes=("", "_reached"))
        medians = lanes.groupby(["cell", "learning_rate"])["update"].agg(censored_median).groupby("cell").min()
        own = pooled.trials.drop_duplicates("cell").assign(study=place)
        times.append(own.assign(updates=own["cell"].map(medians)))
    columns = ["optimizer", "ratio", "share", "problems"]
    if not times:
        return pd.DataFrame(columns=columns)
    every = pd.concat(times, ignore_index=True).replace({"updates": {math.inf: math.nan}})
    problem = ["study", "width", "depth", "batch_size"]
    by_problem = every.pivot_table(index="optimizer", columns=problem, values="updates", aggfunc="min", dropna=False)
    ran = every.assign(ran=1).pivot_table(index="optimizer", columns=problem, values="ran", dropna=False)
    contested = by_problem.loc[:, ran.notna().all()].clip(lower=1)
    if len(contested) < 2 or contested.empty or contested.isna().all(axis=None):
        return pd.DataFrame(columns=columns)
    slowest = float(np.nanmax((contested / contested.min()).to_numpy(dtype=np.float64)))
    ratios = np.geomspace(1.0, max(slowest, 1.1), 200)
    shares = performance_profile(contested.to_numpy(dtype=float), ratios)
    pieces = [
        pd.DataFrame({"optimizer": name, "ratio": ratios, "share": share, "problems": contested.shape[1]})
        for name, share in zip(contested.index, shares, strict=True)
    ]
    return pd.concat(pieces, ignore_index=True)


def loss_and_time(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The completed cells by what they reached and how long their stack of lanes trained.

    Returns:
        Columns trial, optimizer, batch_size, regime, train_seconds, validation, front (whether no other cell is as good
        in both and better in one).
    """
    front = pareto(table, ["metric", "train_seconds"], results.maximize)
    whole = table.assign(front=front)[(table["outcome"] == "completed") & table["validation"].notna()]
    columns = ["trial", "optimizer", "batch_size", "regime", "train_seconds", "validation", "front"]
    return whole[columns].sort_values("train_seconds", ignore_index=True)


def timeline(results: Results) -> pd.DataFrame:
    """When which GPU, or which worker without one, ran which trial, those of the confirmation included.

    Returns:
        Columns trial, confirming, optimizer, outcome, worker, node, gpu (whether `place` is one), place (the GPU or the
        worker), started and ended (seconds since the first trial started; pauses between sessions included), slot
        (among the trials that share a place at that time, from 0) and slots (that the place has). A trial that went on
        elsewhere has a row for each stay, one with several GPUs for each of them. Trials of which no time is recorded
        are left out.
    """
    parts = [
        stints(each.trials).merge(each.trials[["trial", "optimizer", "outcome"]], on="trial").assign(confirming=again)
        for again, each in enumerate((results, results.confirmation))
        if each is not None
    ]
    timed = pd.concat(parts, ignore_index=True)
    gpus = [_gpus(named) for named in timed["gpus"]]
    frame = timed[["trial", "confirming", "optimizer", "outcome", "worker"]].assign(
        node=timed["worker"].str.rsplit(":", n=1).str[0],
        gpu=np.array([bool(found) for found in gpus], dtype=bool),
        place=pd.Series([found or [worker] for found, worker in zip(gpus, timed["worker"], strict=True)], timed.index),
        started=timed["started"] - timed["started"].min(),
        ended=timed["ended"] - timed["started"].min(),
    )
    frame = frame.explode("place").sort_values(["gpu", "place", "started"], ascending=[False, True, True])
    return _slots(frame.reset_index(drop=True))


def _gpus(named: Sequence[str] | None) -> list[str]:
    """The GPUs of a trial for readers; a study of an older program did not record them."""
    return [] if named is None else [" GPU ".join(each.split(":", 1)) for each in named]


def _slots(frame: pd.DataFrame) -> pd.DataFrame:
    """Number the trials that share a place at a time: each takes the lowest slot that is free when it starts."""
    slots: list[int] = []
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
        nodes: those that were there, and how many GPUs each had: what had no trial is in the answer, too.

    Returns:
        Columns name, trials, share (of the time in which any trial ran) and together (trials at once while there were
        some, on average), nodes first.
    """
    whole, rows = covered(times), []
    stays = times.drop_duplicates(["confirming", "trial", "started"])  # with several GPUs, too, it is one
    for column, some in (("node", stays), ("place", times[times["gpu"]])):
        for name, own in some.groupby(column):
            seconds, lengths = covered(own), own["ended"] - own["started"]
            rows.append(
                {
                    "name": str(name),
                    "trials": len(own.drop_duplicates(["confirming", "trial"])),
                    "share": seconds / whole if whole else 1.0,
                    "together": float(lengths.sum()) / seconds if seconds else 1.0,
                }
            )
    ran = [str(row["name"]) for row in rows]
    idle = [node for node in nodes if node not in ran]
    for node, gpus in nodes.items():
        if (without := gpus - sum(name.startswith(f"{node} GPU ") for name in ran)) > 0:
            idle.append(f"{node}, {counted(without, 'idle GPU')}")
    rows += [{"name": name, "trials": 0, "share": 0.0, "together": 0.0} for name in idle]
    return pd.DataFrame(rows, columns=["name", "trials", "share", "together"])


def covered(times: pd.DataFrame) -> float:
    """Seconds in which at least one of some trials ran; `times` is from `timeline`."""
    total, until = 0.0, -math.inf
    for started, ended in times.sort_values("started")[["started", "ended"]].to_numpy(float):
        total += max(0.0, ended - max(started, until))
        until = max(until, ended)
    return total


def gradient_noise(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The gradient noise scale along the training of the best cell of each regime, at its tuned rate.

    Returns:
        Columns regime, trial, batch_size, update, examples, estimate, low, high, n. Empty if it was not recorded.
    """
    best = rank(table, results.maximize).drop_duplicates("regime").set_index("regime")
    rows = []
    for regime in (name for name in REGIMES if name in best.index):
        curves = curves_of(results, best.loc[[regime]])
        wide = curves[curves["metric"].isin(["gradient_square", "gradient_noise"])].pivot_table(
            index=["update", "examples", "seed"], columns="metric", values="value"
        )
        for (update, examples), own in wide.groupby(level=["update", "examples"]):
            scale = gradient_noise_scale(own["gradient_square"], own["gradient_noise"])
            cell = best.loc[regime]
            row = {"regime": regime, "trial": cell["trial"], "batch_size": cell["batch_size"]}
            rows.append(row | {"update": update, "examples": examples} | asdict(scale))
    frame = pd.DataFrame(rows, columns=["regime", "trial", "batch_size", "update", "examples", *LIMITS])
    return frame.astype(dict.fromkeys(["batch_size", "update", "examples", *LIMITS], float))


def importance_spread(importance: pd.DataFrame) -> pd.DataFrame:
    """The importance of each hyperparameter with its spread over the bootstrap repeats.

    Args:
        importance: from `Results.importance`.

    Returns:
        Columns parameter, estimate (over all trials), low and high (2.5 and 97.5 percentiles over repeats), n
        (repeats). Most important first.
    """
    repeats = importance[importance["repeat"] > 0].groupby("parameter")["importance"]
    frame = importance[importance["repeat"] == 0].set_index("parameter")[["importance"]]
    frame = frame.rename(columns={"importance": "estimate"}).assign(
        low=repeats.quantile(0.025), high=repeats.quantile(0.975), n=repeats.size()
    )
    return frame.sort_values("estimate", ascending=False).reset_index()


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
        Columns row, column (labels, in order of appearance), trial, estimate, low, high, n, parameters (of the best
        cell), and why: empty where there is an estimate, else `not run`, or how the trials there ended. Every pair of
        labels has its row.
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
    result = found.set_index(["row", "column"])[["trial", *LIMITS, "parameters"]].reindex(whole)
    why = endings.reindex(whole).replace("completed", "no rate survived").fillna("not run")
    result["why"] = why.where(result["estimate"].isna(), "")
    return result.astype({"n": float}).fillna({"n": 0}).astype({"n": int}).reset_index()
