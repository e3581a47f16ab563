"""Warnings about the numbers of a report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.cells import edges, floor_of, rank
from analysis.figures.search.expected_best import ADAPTIVE
from analysis.results import Results, stints, table_of
from analysis.schema import CELL, Outcome
from analysis.text import counted, listing, short

HEAVY = 0.2
"""Share of the loss that a hundredth of the examples may make; beyond, 95% intervals cover clearly less than that."""


def warnings(results: Results, table: pd.DataFrame, curse: pd.DataFrame) -> list[str]:
    """All warnings that apply to a study, its `cells` and its `winners_curse`, the most important first."""
    ranked = rank(table, results.maximize)
    return [
        *_unfinished(results),
        *_score(results),
        *_data(results),
        *_edges(results, ranked),
        *_same_seeds(results, curse, ranked),
        *_floor(results),
        *_heavy_tails(results),
        *_comparability(results, ranked),
        *_lost_lanes(results),
        *_effort(results),
    ]


def _unfinished(results: Results) -> Iterator[str]:
    planned = table_of(results.spec, "budget").get("trials")
    if results.provenance.get("started") and not results.provenance.get("finished"):
        of = f" of {planned}" if isinstance(planned, int) else ""
        yield (
            f"{results.ended}{of} trials have ended; the study is running or was interrupted, so all results are "
            f"provisional."
        )


def _score(results: Results) -> Iterator[str]:
    if score := table_of(results.spec, "workload").get("score"):
        yield f"Accuracy here means the mean of {score} over examples, from 0 to 1."


def _data(results: Results) -> Iterator[str]:
    """What the study found to look wrong with a user's data."""
    warned = table_of(results.provenance, "data").get("warnings")
    for text in warned if isinstance(warned, list) else ():
        yield f"The data: {text}."


def _edges(results: Results, ranked: pd.DataFrame) -> Iterator[str]:
    best = ranked.drop_duplicates("optimizer")
    edge = [f"{row['optimizer']} ({short(row['learning_rate'])})" for _, row in best[best["on_edge"]].iterrows()]
    if edge:
        yield (
            f"The tuned rate of the best cell lies on the edge of its grid for {', '.join(edge)}: a rate outside may "
            f"be better. Widen the range."
        )
    if ranked["on_edge"].any():
        yield f"{int(ranked['on_edge'].sum())} of {len(ranked)} tuned rates lie on the edge of their grid."
    for name, side, bound in edges(results, ranked):
        yield (
            f"The best cells lie at the {side} end of the searched {name.replace('_', ' ')}, {bound}: better ones may "
            f"lie beyond. Widen the range."
        )


def _same_seeds(results: Results, confirmed: pd.DataFrame, ranked: pd.DataFrame) -> Iterator[str]:
    if confirmed["confirmed"].notna().any():
        yield (
            "The leaderboard and all figures but the first show the seeds on which rates and cells were chosen. The "
            "verdict, the first figure and the tables of optimizers and regimes show fresh seeds."
        )
    elif len(ranked):
        check = "The confirmation, which has no score," if results.spec.get("confirm") else "[confirm] in the spec"
        yield (
            f"Rates and cells were chosen on the seeds that are reported, and the best of many cells is partly the "
            f"luckiest: expect the first to score slightly worse on fresh seeds. {check} checks this."
        )
    if results.confirmation_trouble:
        yield f"The confirmation is left out: {results.confirmation_trouble}."
    expected = pd.concat([each[CELL].fillna({"settings": ""}) for each in (confirmed, results.baselines)])
    ran = results.confirmation.pooled.trials[CELL].drop_duplicates() if results.confirmation else expected
    if missing := len(ran) - len(ran.merge(expected.drop_duplicates())):
        yield f"{counted(missing, 'confirmed cell')} left out: no lane ended, or the tuned rate has changed since."


def _floor(results: Results) -> Iterator[str]:
    lanes, floor = (results.confirmation or results).lanes, floor_of(results)
    below = int((lanes["test_loss"] < floor).sum()) if results.metric == "loss" else 0
    if below:
        yield (
            f"The test loss of {below:,} of {len(lanes):,} lanes is below {short(floor)}, the smallest loss that the "
            f"precision resolves; they count as this value and as equal."
        )


def _heavy_tails(results: Results) -> Iterator[str]:
    """Intervals over examples hold for means of many examples, not where a few make most of the loss."""
    again = results.confirmation
    if again is None or results.metric != "loss" or not (known := again.lanes["test_values"].dropna()).size:
        return
    each = np.sort(np.mean([np.asarray(values, dtype=np.float64) for values in known], axis=0))
    share = float(each[-max(1, len(each) // 100) :].sum() / each.sum()) if each.sum() > 0 else 0.0
    if share > HEAVY:
        yield (
            f"1% of the test examples makes up {share:.0%} of the test loss, so intervals over examples are too "
            f"narrow. Use a larger test split, or accuracy as the metric."
        )


def _comparability(results: Results, ranked: pd.DataFrame) -> Iterator[str]:
    if (ranked["rates"] == 1).any():
        yield "Some cells ran at one learning rate only, so their rate is not tuned."
    if len(ranked) and ranked["epochs"].max() > 1.5 * ranked["epochs"].min():
        yield (
            f"The compared cells trained for {short(ranked['epochs'].min())} to {short(ranked['epochs'].max())} epochs "
            f"and {short(ranked['updates'].min())} to {short(ranked['updates'].max())} updates: compare curves on "
            f"the axis that matters to you (updates, examples, epochs or time)."
        )
    stays = stints(results.trials).dropna(subset=["gpus"])
    on_gpus, ran = stays["trial"][stays["gpus"].map(len) > 0].nunique(), stays["trial"].nunique()
    if 0 < on_gpus < ran:
        yield (
            f"{counted(on_gpus, 'trial')} had a GPU and {ran - on_gpus} had none: compare seconds only within one of "
            f"these groups."
        )


def _lost_lanes(results: Results) -> Iterator[str]:
    lanes, trials = results.lanes, results.trials
    diverged = int((lanes["outcome"] == Outcome.DIVERGED).sum())
    if diverged:
        yield (
            f"{diverged:,} of {len(lanes):,} lanes diverged ({diverged / len(lanes):.0%}); a rate at which any seed "
            f"diverged cannot be the tuned rate."
        )
    if stopped := int((trials["outcome"] == Outcome.STOPPED).sum()):
        yield (
            f"{counted(stopped, 'trial')} stopped by the scheduler used less of the budget and are not compared with "
            f"completed trials."
        )
    left_out = results.pooled.left_out["outcome"].value_counts()
    if len(left_out):
        yield (
            f"Trials left out because other trials of the same cell came further: "
            f"{listing(f'{count} {name}' for name, count in left_out.items())}."
            + (" A cell of which a trial diverged looks better than it is." if Outcome.DIVERGED in left_out else "")
        )
    if given_up := int(lanes["stopped_update"].notna().sum()):
        yield (
            f"Successive halving stopped {given_up:,} of {len(lanes):,} lanes early, because their learning rates were "
            f"behind others. They cannot be the tuned rate, and figures leave them out."
        )


def _effort(results: Results) -> Iterator[str]:
    tuning, shares = table_of(results.spec, "tuning"), results.trials["optimizer"].value_counts()
    sampler = tuning.get("sampler")
    if earlier := tuning.get("warm_start"):
        yield f"The sampler also knew the trials of {earlier}, whose optimizers may have had unequal numbers of trials."
    if sampler in ADAPTIVE and not tuning.get("fair") and len(shares) > 1 and shares.max() > 1.5 * shares.min():
        yield (
            f"The sampler, {sampler}, gave more trials to optimizers that looked good early: {shares.max()} to "
            f"{shares.idxmax()}, {shares.min()} to {shares.idxmin()}. "
            f"[tuning] fair = true gives every optimizer the same."
        )
    ended = [Outcome.COMPLETED, Outcome.STOPPED, Outcome.DIVERGED]
    lost = results.trials.loc[~results.trials["outcome"].isin(ended), "outcome"].value_counts()
    if len(lost):
        endings = listing(f"{count} {name}" for name, count in lost.items())
        yield f"Not compared: {counted(lost.sum(), 'trial')} ({endings})."
