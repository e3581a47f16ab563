"""The verdict of a study: who wins or that nobody does, the best setting, the cost, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import rank
from analysis.comparisons import Comparison, Entry, average_curse, missing_sizes, names_of
from analysis.results import Results, hours, same_setting, table_of
from analysis.schema import CELL, Outcome
from analysis.statistics import Interval
from analysis.text import (
    cell_at_rate,
    cell_text,
    cost,
    counted,
    effect_phrase,
    estimate_text,
    first_upper,
    joined,
    listing,
    p_text,
    seed_counts,
)

EQUAL = 1e-6
"""Difference of log losses, or of accuracies, that float32 does not resolve."""
SIGNIFICANT = 0.05
MORE = 1000
"""Seeds beyond which "more seeds" is no advice."""


def verdict(results: Results, table: pd.DataFrame, compared: Comparison) -> list[str]:
    """Who wins or that nobody does, the best setting, the cost; then what would change that. One line each.

    `table` is the study's `cells`, `compared` what `compare` says of its optimizers.
    """
    if results.trials.empty:
        return ["No trial has ended yet, so there is nothing to compare."]
    ranked = rank(table, results.maximize)
    if ranked.empty:
        return [
            "No trial has a learning rate at which every seed survived, so there is nothing to compare.",
            *_without_result(compared, missing_sizes(results, table)),
            f"Cost: {study_cost(results)}.",
        ]
    best = compared.scored[0].cell
    assert best is not None
    whose = "Best setting" if compared.winner else "Its setting"
    lines = [_who(results, compared), f"{whose}: {cell_at_rate(best)}."]
    if ranked.iloc[0]["outcome"] != Outcome.COMPLETED:
        lines[0] += " No trial has completed its budget, so this is provisional."
    lines += [
        f"Cost: {study_cost(results)}.",
        *_stopped(results),
        *_without_result(compared, missing_sizes(results, table)),
    ]
    return [*lines[:2], *_baselines(compared, results.metric), *lines[2:], *_what_would_change(compared)]


def _stopped(results: Results) -> Iterator[str]:
    """That the time-out ended the search early, and whether optimizers then had unequal numbers of trials."""
    if results.timed_out:
        names = names_of(results, "optimizer")
        counts = results.trials["optimizer"].value_counts().reindex(names, fill_value=0)
        shares = listing(f"{name} had {counted(count, 'trial')}" for name, count in counts.items())
        yield f"{first_upper(results.timed_out)}." + (f" Unequal effort: {shares}." if counts.nunique() > 1 else "")


def _baselines(compared: Comparison, metric: str) -> Iterator[str]:
    """Whether tuning beats each baseline that has a fresh score."""
    best = compared.scored[0]
    assert best.cell is not None
    for each in compared.baselines:
        if each.reason or each.cell is None:
            continue
        name, than = f'the baseline "{each.name}"', f"the best tuned optimizer, {best.name}"
        if same_setting(each.cell, best.cell):
            yield f"{first_upper(name)} is the best tuned setting itself."
            continue
        against = "against" if metric == "accuracy" else "that of"
        own = f"the baseline's {compared.split} {metric} is {estimate_text(each.score, metric)}"
        shown = f"{own}, {effect_phrase(each.effect, metric)} {against} {than} ({p_text(each.p)})"
        if not each.contender:
            yield f"Tuning beats {name}: {shown}."
        elif each.p < SIGNIFICANT:
            yield f"{first_upper(name)} beats tuning: {shown}. Its cell can be tried first, with [[enqueue]]."
        else:
            yield f"Tuning is not shown to beat {name}: {shown}."
        tuned = next((entry for entry in compared.scored if entry.name == each.cell["optimizer"]), None)
        if tuned is not None and tuned.cell is not None and not same_setting(each.cell, tuned.cell):
            yield from _below_its_baseline(each, tuned, compared.split, metric, told=tuned is best)


def _below_its_baseline(baseline: Entry, tuned: Entry, split: str, metric: str, *, told: bool) -> Iterator[str]:
    """Say if a tuned optimizer is behind the baseline of the same optimizer, with the likely reason and advice.

    `told`: an earlier sentence has compared the two.
    """
    ahead = baseline.own.estimate > 0 if metric == "accuracy" else baseline.own.estimate < 1
    if not ahead:
        return
    assert tuned.cell is not None
    assert baseline.cell is not None
    sure = (baseline.p if told else baseline.own_p) < SIGNIFICANT
    if not told:
        against = "against the tuned one" if metric == "accuracy" else f"the {split} loss of the tuned one"
        effect = f"{effect_phrase(baseline.own, metric)} {against} ({p_text(baseline.own_p)})"
        unsure = "" if sure else ", though not significantly"
        yield f'{first_upper(tuned.name)} scores worse tuned than as the baseline "{baseline.name}"{unsure}: {effect}.'
    if sure and all(baseline.cell[column] == tuned.cell[column] for column in CELL):
        reason, advice = (
            f"was chosen on {counted(int(tuned.cell['n']), 'search seed')}",
            "more search seeds (lanes.seeds)",
        )
        if tuned.cell["on_edge"]:
            reason += " and lies on the edge of its grid"
            advice += " and a wider grid (lanes.rates, lanes.extensions)"
        yield f"The likely reason: the tuned setting of {tuned.name} {reason}. What helps: {advice}."


def study_cost(results: Results) -> str:
    """Processor time of all trials, including the confirmation."""
    resources = {"cpus_per_trial": 1, "gpus_per_trial": 0} | table_of(results.spec, "resources")
    gpus = 1.0 if (gpus := resources["gpus_per_trial"]) == "auto" else float(gpus)
    return cost(*hours(results, float(resources["cpus_per_trial"]), gpus))


def _who(results: Results, compared: Comparison) -> str:
    """The winner with its score and its lead, the contenders, or the candidate of a search without confirmation."""
    best, metric = compared.scored[0], results.metric
    name = first_upper(best.name)
    score = f"{compared.split} {metric} {estimate_text(best.score, metric)}"
    alone = ""
    if len(compared.scored) == 1:
        which = "with a fresh score" if compared.unknown else "with a result"
        alone = f" It is the only optimizer {which if len(compared.entries) > 1 else 'of the study'}."
    if not compared.fresh:
        lacking = results.spec.get("confirm") or results.confirmation
        asked = "no confirmed cell has completed on all of them" if lacking else "set [confirm] in the spec"
        return (
            f"{name} is the candidate, not a winner: {score} on the {counted(best.score.n, 'seed')} that "
            f"chose it. A winner needs fresh seeds: {asked}.{alone}"
        )
    where = f"on {counted(compared.seeds, 'fresh seed')}" + (
        f" and {counted(compared.examples, 'test example')}" if compared.examples else ""
    )
    if compared.most_looks > 1:
        where += f" (look {compared.looks} of at most {compared.most_looks})"
    if compared.seeds < 2:
        return f"{name} has {score} {where}: one seed allows no interval, so no winner can be named."
    if alone:
        return f"{name} has {score} {where}.{alone}"
    if compared.winner:
        rival = compared.scored[1]
        p = p_text(max(each.p for each in compared.scored[1:]))
        against = "against" if results.maximize else "the loss of"
        others = "all others" if len(compared.scored) == len(compared.entries) else "all others with a result"
        return (
            f"{name} wins: {score} {where}; {effect_phrase(best.effect, metric)} {against} the best "
            f"other optimizer, {rival.name} ({others} are excluded, {p})."
        )
    unknown = " and ".join(each.name for each in compared.unknown)
    if len(compared.contenders) == 1:
        first = f"{best.name} is the best of those confirmed, with {score} {where}"
        return f"No winner: {first}, but {unknown} may be better."
    rest = [f"{each.name} ({_when(each, compared)}{p_text(each.p)})" for each in compared.scored if not each.contender]
    excluded = f" Excluded: {listing(rest)}." if rest else ""
    names = joined([each.name for each in compared.contenders])
    has = "has" if len(_equal(compared)) > 1 else "is first, with"
    return f"No winner: {names} may each be the best. {name} {has} {score} {where}.{excluded}"


def _equal(compared: Comparison) -> list[str]:
    """The names of the first contender and of those whose mean equals its own to rounding."""
    assert compared.scores
    lags = compared.scores.means[0] - compared.scores.means
    return [each.name for each, lag in zip(compared.scored, lags, strict=False) if each.contender and lag < EQUAL]


def _when(entry: Entry, compared: Comparison) -> str:
    """On how many seeds an entry was excluded, if an earlier look did that."""
    return f"at {counted(entry.score.n, 'seed')}, " if entry.score and entry.score.n < compared.seeds else ""


def _without_result(compared: Comparison, sizes: dict[str, str]) -> Iterator[str]:
    """The optimizers and batch sizes without a score, with the reasons."""
    lost = [f"{entry.name} ({entry.reason})" for entry in compared.entries if entry.reason]
    lost += [f'the baseline "{entry.name}" ({entry.reason})' for entry in compared.baselines if entry.reason]
    lost += [f"{name} ({reason})" for name, reason in sizes.items()]
    if lost:
        yield f"Without {'a fresh score' if compared.fresh else 'a result'}: {listing(lost)}."


def _what_would_change(compared: Comparison) -> Iterator[str]:
    """How many more seeds or examples would tell the first two optimizers apart, if their difference stays."""
    scores = compared.scores
    if scores is None or compared.winner or len(compared.contenders) < 2 or scores.seeds < 2:
        return
    if len(equal := _equal(compared)) > 1:
        yield f"The means of {joined(equal)} are equal to rounding."
        return
    # Not always the first two: one with little noise may be excluded although a noisier one behind it is not.
    pair = [place for place, each in enumerate(compared.scored) if each.contender][:2]
    direction = np.zeros(len(scores.means))
    direction[pair] = 1, -1
    names = " and ".join(compared.scored[place].name for place in pair)
    gap, parts = float(scores.means @ direction), scores.parts(direction)
    total = sum(parts.values())
    allowed = (gap / 2.5) ** 2  # the critical value of a few comparisons at many degrees of freedom
    known = [f"{part / total:.0%} from {source}" for source, part in parts.items() if part >= 0.005 * total]
    causes = f"the noise of their difference is {joined(known)}"
    causes += "" if scores.examples else "; that of test examples is unknown"
    left, rest = (allowed - total + parts[source] for source in ("seeds", "test examples"))
    seeds = scores.seeds * parts["seeds"] / left if left > 0 else math.inf
    if seeds <= MORE:
        yield (
            f"To tell {names} apart would take about {math.ceil(max(seeds, scores.seeds + 1)):,} fresh seeds, if their "
            f"difference stays: {causes}."
        )
    elif scores.examples and rest > 0:
        needed = math.ceil(scores.examples * parts["test examples"] / rest)
        yield f"To tell {names} apart would take about {needed:,} test examples, not more seeds: {causes}."
    elif parts["tuning"] >= allowed:
        yield f"Fresh seeds cannot tell {names} apart, but more seeds or rates in the search may: {causes}."
    else:
        yield f"{first_upper(names)} cannot be told apart with fewer than {MORE:,} fresh seeds: {causes}."


def confirmation(results: Results, curse: pd.DataFrame) -> list[str]:
    """Whether the winner keeps its rank on fresh seeds, and the size of the winner's curse, from `winners_curse`."""
    if curse.empty:
        return []
    held, best = curse[curse["confirmed"].notna()], curse.iloc[0]
    name = "The best cell of the search"
    if best["rank_search"] != 1:
        name = f"{cell_text(best)} (the best cell of the search was not run)"
    seeds = f"{seed_counts(curse['seeds'], 'fresh seed')}, against {seed_counts(curse['search_n'])} in the search"
    among = f"confirmed cells by validation {results.metric} on {seeds}"
    if best["confirmed_n"] == 0:
        place = f"{name} cannot be confirmed on {seeds}: {_why_not_confirmed(best)}."
    elif len(held) == 1:
        place = f"{name} is the only one confirmed, on {seeds}, so its rank is not checked."
    elif best["rank_confirmed"] == 1:
        place = f"{name} stays first of {len(held)} {among}."
    else:
        first = held.sort_values("rank_confirmed").iloc[0]
        place = f"{name} falls to place {best['rank_confirmed']:.0f} of {len(held)} {among}; "
        place += f"first is {cell_text(first)}."
    return [place, *_curse_sentence(results, curse)]


def _curse_sentence(results: Results, curse: pd.DataFrame) -> list[str]:
    """The winner's curse on average and for the best cell; none if no cell was confirmed."""
    average, metric = average_curse(results, curse), results.metric
    if not average.n:
        return []
    held, best = curse[curse["confirmed"].notna()], curse.iloc[0]
    neutral, scale = (0.0, "search minus confirmed") if results.maximize else (1.0, "confirmed over search")
    sentence = f"The winner's curse, {scale} validation {metric} (above {neutral:g}: worse on fresh seeds), is "
    if len(held) > 1:
        sentence += f"{effect_phrase(average, metric)} on average"
        sentence += f" and {effect_phrase(curse_of(best), metric)} for the best" if best["confirmed_n"] else ""
    else:
        sentence += effect_phrase(curse_of(held.iloc[0]), metric)
    better = "the fresh seeds scored better" if average.high < neutral else "not significant"
    return [f"{sentence}: {'the scores of the search were too optimistic' if average.low > neutral else better}."]


def curse_of(row: Any) -> Interval:
    """The curse of a row of `winners_curse`."""
    return Interval(row["curse"], row["curse_low"], row["curse_high"], row["confirmed_n"])


def _why_not_confirmed(row: Any) -> str:
    if row["diverged"]:
        return f"{row['diverged']} of {counted(row['seeds'], 'fresh seed')} diverged"
    return f"its lanes there ended as {row['outcome']}"
