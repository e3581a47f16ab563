"""The verdict of a study in sentences: which cell is best, by how much, and whether fresh seeds confirm it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.cells import rank
from analysis.comparisons import Comparison, average_curse, comparisons, winners_curse
from analysis.results import Results, hours, records, table_of
from analysis.schema import Outcome
from analysis.statistics import Interval
from analysis.text import cell_at_rate, cell_text, cost, counted, estimate_text, listing, seed_counts, short, value_text


def verdict(results: Results, table: pd.DataFrame) -> str:
    """Which of the `cells` is best, whether it beats the best of every other optimizer, and the cost of the study."""
    ranked, metric = rank(table, results.maximize), results.metric
    if results.trials.empty:
        return "No trial has ended yet, so there is nothing to compare."
    if ranked.empty:
        return "No trial has a learning rate at which every seed survived, so there is nothing to compare."
    best, compared = ranked.iloc[0], comparisons(results, table)
    again = next((row for row in records(winners_curse(results, table)) if row["trial"] == best["trial"]), None)
    if any(comparison.effect.n > 1 for comparison in compared):
        confirmed = again is None or bool(again["confirmed_n"])
        sentences = _compared(compared, results, of_search=again is not None, confirmed=confirmed)
    else:
        split = "test" if best["test_n"] else "validation"
        score = f"{split} {metric} {value_text(best, split, metric)} over {counted(best['n'], 'seed')}"
        sentences = [
            f"Best on the validation split is {cell_at_rate(best)}: {score}, for {study_cost(results)}.",
            _why_not_compared(compared),
        ]
    if again and again["confirmed_n"]:
        name, split = ("test", "test") if again["test_n"] else ("confirmed", "validation")
        held = "was confirmed" if again["rank_confirmed"] == 1 else f"ranks only number {again['rank_confirmed']:.0f}"
        score = f"{split} {metric} {value_text(again, name, metric)}"
        sentences.append(f"It {held} on {counted(again['seeds'], 'fresh seed')}: {score}.")
    elif again:
        sentences.append(f"It is not confirmed: {_why_not_confirmed(again)}.")
    if best["outcome"] != Outcome.COMPLETED:
        sentences.append("No trial has completed its budget, so this is provisional.")
    return " ".join(sentences)


def study_cost(results: Results) -> str:
    """Processor time of all trials, including the confirmation."""
    resources = {"cpus_per_trial": 1, "gpus_per_trial": 0} | table_of(results.spec, "resources")
    gpus = 1.0 if (gpus := resources["gpus_per_trial"]) == "auto" else float(gpus)
    return cost(*hours(results, float(resources["cpus_per_trial"]), gpus))


def _why_not_compared(compared: Sequence[Comparison]) -> str:
    if not compared:
        return "Only one optimizer has a result, so there is no comparison."
    other = f"the best {compared[0].rival['optimizer']} cell, that of the next-best optimizer"
    shared = "no seed" if compared[0].effect.n == 0 else "one seed"
    return f"It shares {shared} with {other}, so their difference has no interval."


def _compared(compared: Sequence[Comparison], results: Results, *, of_search: bool, confirmed: bool) -> list[str]:
    """The comparison with the next-best optimizer in one sentence, and with the other optimizers in another.

    An optimizer that turns out better than the chosen one comes first. `of_search`: whether to name the search's seeds,
    because the text mentions fresh ones as well. `confirmed`: whether the best cell has a confirmed score, or was not
    run again; otherwise it cannot win.
    """
    known = [comparison for comparison in compared if comparison.effect.n > 1]
    against_it = [each for each in known if each.differs and each.favours_rival(results.metric)]
    first = [*against_it, *known][0]
    winner, text = cell_at_rate(first.best), _evidence(first, results, len(compared), of_search=of_search)
    advice = ""
    if against_it:
        source = "fresh seeds contradict" if first.fresh else "the test split contradicts"
        text = f"No clear winner: {winner} is best on the search's validation split, but {source} it: {text}"
    elif not first.differs:
        text = f"No clear winner: {winner} is best on the validation split, with {text}"
    elif first.holm < 0.05 and confirmed and all(comparison.differs for comparison in known):
        text = f"{winner} wins: {text}"
    else:
        text = f"{winner} leads: {text}"
        least = min(1.0, 2 / 2**first.effect.n * len(compared))
        if least >= 0.05:
            advice = f"{counted(first.effect.n, 'seed')} cannot reach p < .05 in an exact test (at best {short(least)})"
        elif first.holm >= 0.05:
            advice = "The interval excludes equality, but the exact test is not significant"
        advice += ": confirm it on more, fresh seeds." if advice else ""
    others = "" if against_it else _others([comparison for comparison in known if comparison is not first])
    return [sentence[0].upper() + sentence[1:] for sentence in (text, advice, others) if sentence]


def _evidence(first: Comparison, results: Results, count: int, *, of_search: bool) -> str:
    """The scores of both cells, the effect with its interval, the pairs won, p and the cost of the study."""
    metric = results.metric
    pairs = counted(first.effect.n, "paired fresh seed" if first.fresh else "paired seed")
    pairs += " of the search" if of_search and not first.fresh else ""
    p = f"Holm p = {short(first.holm)}" if count > 1 else f"sign-flip p = {short(first.p)}"
    ours, theirs = (estimate_text(score, metric) for score in first.scores)
    return (
        f"{first.split} {metric} {ours} against {theirs} for {cell_at_rate(first.rival)}; "
        f"{' '.join(effect_text(first.effect, metric))}, better on {first.wins} of {pairs}, {p}, for "
        f"{study_cost(results)}."
    )


def _others(rest: Sequence[Comparison]) -> str:
    """How the optimizers behind the next-best one compare with the best; empty without any."""
    equal = listing(comparison.rival["optimizer"] for comparison in rest if not comparison.differs)
    worse = sum(comparison.differs for comparison in rest)
    if equal and not worse:
        return f"Also statistically indistinguishable from the best: {equal}."
    if len(rest) == 1:
        return f"{rest[0].rival['optimizer']} is significantly worse as well."
    if not worse:
        return ""
    others = f"Of the other {len(rest)} optimizers, {worse} are significantly worse"
    return others + (f"; statistically indistinguishable: {equal}." if equal else ".")


def effect_text(effect: Interval, metric: str) -> tuple[str, str]:
    """A ratio of losses or a difference of accuracies with limits: `1.08 times`, `[0.97, 1.2]`; a dash for NaN."""
    if math.isnan(effect.estimate):
        return short(effect.estimate), ""
    if metric == "accuracy":
        return f"{100 * effect.estimate:+.2f} percentage points", f"[{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]"
    return f"{short(effect.estimate)} times", f"[{short(effect.low)}, {short(effect.high)}]"


def confirmation(results: Results, curse: pd.DataFrame) -> list[str]:
    """Whether the winner keeps its rank on fresh seeds, and the size of the winner's curse, from `winners_curse`."""
    if curse.empty:
        return []
    held, best = curse[curse["confirmed"].notna()], curse.iloc[0]
    name = "The best cell of the search"
    if best["rank_search"] != 1:
        name = f"{cell_text(best)} (the best cell of the search was not run)"
    seeds = f"{seed_counts(curse['seeds'], 'fresh seed')}, against {seed_counts(curse['search_n'])} in the search"
    if best["confirmed_n"] == 0:
        place = f"{name} cannot be confirmed on {seeds}: {_why_not_confirmed(best)}."
    elif len(held) == 1:
        place = f"{name} is the only one confirmed, on {seeds}, so its rank is not checked."
    elif best["rank_confirmed"] == 1:
        place = f"{name} stays first of {len(held)} confirmed cells on {seeds}."
    else:
        first = held.sort_values("rank_confirmed").iloc[0]
        place = f"{name} falls to place {best['rank_confirmed']:.0f} of {len(held)} confirmed cells on {seeds}; "
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
        sentence += f"{' '.join(effect_text(average, metric))} on average"
        sentence += f" and {' '.join(curse_text(best, metric))} for the best" if best["confirmed_n"] else ""
    else:
        sentence += " ".join(curse_text(held.iloc[0], metric))
    better = "the fresh seeds scored better" if average.high < neutral else "not significant"
    return [f"{sentence}: {'the scores of the search were too optimistic' if average.low > neutral else better}."]


def curse_text(row: Any, metric: str) -> tuple[str, str]:
    """The curse of a row of `winners_curse` with its limits."""
    return effect_text(Interval(row["curse"], row["curse_low"], row["curse_high"], row["confirmed_n"]), metric)


def _why_not_confirmed(row: Any) -> str:
    if row["diverged"]:
        return f"{row['diverged']} of {counted(row['seeds'], 'fresh seed')} diverged"
    return f"its lanes there ended as {row['outcome']}"
