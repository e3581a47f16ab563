"""Optimizers over several studies: paired differences on fresh seeds, averaged over the studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.cells import cells, optimizer_order
from analysis.comparisons import Comparison, Entry, compare
from analysis.paired import Scores, compare_with_best
from analysis.results import Results, table_of
from analysis.text import counted, effect_phrase, first_upper, joined, listing

LANE = ["optimizer", "width", "depth", "batch_size", "settings", "recipe", "learning_rate", "seed"]


def across(studies: Sequence[Results], compared: Sequence[Comparison] | None = None) -> Comparison:
    """Which optimizer may be the best on average over several studies.

    In every study each optimizer stands with its best cell on fresh seeds, and differences are paired by seed and test
    example; their means over the studies, each counting the same, are compared with the best (`compare_with_best`).
    Of a loss the logarithm is averaged. The studies are taken as they are: another choice of data sets is no part of
    the noise.

    Args:
        studies: all with the same metric, none a repetition of another (`repetitions`).
        compared: what `compare` says of the optimizers of each at the first look; computed if not given.

    Returns:
        One entry per optimizer of any study, without score; one that lacks a fresh score in a study has that as its
        reason, and its cell in another study.

    Raises:
        ValueError: if the studies differ in their metric, or one has no confirmation.
    """
    if len({study.metric for study in studies}) > 1:
        raise ValueError("studies of loss and of accuracy have no common score")
    compared = compared or [compare(study, cells(study), once=True) for study in studies]
    unconfirmed = [study.name for study, each in zip(studies, compared, strict=True) if not each.fresh]
    if unconfirmed:
        raise ValueError(f"{', '.join(unconfirmed)}: no confirmation on fresh seeds ([confirm] in the spec)")
    reasons: dict[str, str] = {}
    for study, each in zip(studies, compared, strict=True):
        found = {entry.name: entry.reason for entry in each.entries}
        for name in {entry.name for other in compared for entry in other.entries}:
            if reason := found.get(name, "not in this study"):
                reasons.setdefault(name, f"{study.name}: {reason}")
    names = optimizer_order(entry.name for each in compared for entry in each.scored if entry.name not in reasons)
    cell_of = {entry.name: entry.cell for each in compared for entry in each.entries if entry.cell is not None}
    missing = [Entry(name, cell_of.get(name), reason=reasons[name]) for name in optimizer_order(reasons)]
    seeds = min(each.seeds for each in compared)
    if not names:
        return Comparison(missing, True, "test", seeds)
    splits = [
        (table_of(study.spec, "workload").get("data"), each.examples)
        for study, each in zip(studies, compared, strict=True)
    ]
    scores = _average([_in_order(each, names) for each in compared], splits)
    entries = [
        Entry(name, None, effect=scores.effect(each.gain), p=each.p, contender=each.contender)
        for name, each in zip(names, compare_with_best(scores), strict=True)
    ]
    order = np.argsort(-scores.means, kind="stable")
    ordered = [entries[place] for place in order]
    return Comparison([*ordered, *missing], True, "test", seeds, scores.examples, scores.reordered(order))


def repetitions(studies: Sequence[Results]) -> dict[int, str]:
    """The studies that repeat lanes of an earlier one, which would count twice: place -> a warning."""
    found: dict[int, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for place, study in enumerate(studies):
        lanes = study.pooled.lanes.merge(study.pooled.trials[["trial", *LANE[:5]]], on="trial")
        data = table_of(study.spec, "workload").get("data")  # losses, as two data sets may give equal accuracies
        rows = lanes[[*LANE, "validation_loss"]].fillna({"settings": ""}).dropna()
        keys = [(data, *row) for row in rows.itertuples(index=False, name=None)]
        same = [seen[key] for key in keys if key in seen]
        if same:
            lanes_text = counted(len(same), "lane")
            found[place] = f"{study.name} ({study.path}) repeats {lanes_text} of {same[0]} and is left out, so that"
            found[place] += " no lane counts twice."
        else:
            seen |= dict.fromkeys(keys, f"{study.name} ({study.path})")
    return found


def _in_order(compared: Comparison, names: list[str]) -> Scores:
    """The joint scores of some optimizers, in an order of their names."""
    assert compared.scores
    listed = [entry.name for entry in compared.scored]
    return compared.scores.reordered([listed.index(name) for name in names])


def _average(scores: Sequence[Scores], splits: Sequence[object]) -> Scores:
    """The mean of scores of several studies; the degrees of freedom are Welch's and Satterthwaite's of its variance.

    Seeds are independent between studies. Examples of the same split are not: their errors add up as if they were the
    same, which is the most that they can do.
    """
    count = len(scores)
    sizes = np.array([np.trace(each.of_seeds) for each in scores])
    freedom = sizes.sum() ** 2 / (sizes**2 / [max(each.seeds - 1, 1) for each in scores]).sum() if sizes.any() else 1.0
    of_examples = np.zeros_like(scores[0].of_examples)
    for split in dict.fromkeys(splits):
        own = [each.of_examples for each, its in zip(scores, splits, strict=True) if its == split]
        of_examples += len(own) * np.sum(own, axis=0) / count**2
    return Scores(
        scores[0].metric,
        np.mean([each.means for each in scores], axis=0),
        np.sum([each.of_seeds for each in scores], axis=0) / count**2,
        of_examples,
        int(freedom) + 1 if min(each.seeds for each in scores) > 1 else 1,
        min(each.examples for each in scores),
        np.mean([np.sqrt(each.of_tuning) for each in scores], axis=0) ** 2,  # one-sided, so they do not average out
    )


def verdict_across(found: Comparison, studies: Sequence[Results], compared: Sequence[Comparison]) -> list[str]:
    """Who is the best over several studies or that nobody is, who is not compared, and whose tuning is unknown."""
    reasons = dict.fromkeys(entry.reason for entry in found.entries if entry.reason)
    lost = [f"{listing(each.name for each in found.entries if each.reason == why)} ({why})" for why in reasons]
    missing = [f"Not compared: {'; '.join(lost)}."] if lost else []
    if len(found.scored) < 2:
        return ["Fewer than two optimizers have a fresh score in every study, so there is no comparison.", *missing]
    first, metric = found.contenders[0], studies[0].metric
    seeds = counted(found.seeds, "fresh seed")
    where = f"in {found.split} {metric}, on average over {len(studies)} studies with at least {seeds} each"
    if len(found.contenders) > 1:
        said = f"No winner: {joined([entry.name for entry in found.contenders])} may each be the best {where}."
    else:
        against = f"{'against' if metric == 'accuracy' else 'the loss of'} the best other optimizer"
        best = f"is the best {where}: {effect_phrase(first.effect, metric)} {against}"
        whole = f"{first_upper(first.name)} {best}."
        said = (
            whole
            if found.winner
            else f"No winner: of those that every study has, {first.name} {best}, but those left out may be better."
        )
    untuned = [
        f"{name} ({study.name})"
        for study, each in zip(studies, compared, strict=True)
        for name in each.untuned
        if name in [other.name for other in found.scored]
    ]
    unknown = "It is unknown, and not in the intervals, how far these tuned rates are from the best ones"
    return [said, *missing, *([f"{unknown}: {listing(untuned)}."] if untuned else [])]
