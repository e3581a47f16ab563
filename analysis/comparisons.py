"""The best cells of all optimizers or regimes on fresh seeds, and their scores there against those of the search."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import examples_of, floor_of, fresh_lanes, optimizer_order, rank, tuned_lanes
from analysis.paired import (
    LEVEL,
    Scores,
    WithBest,
    compare_with_best,
    compare_with_controls,
    paired_scores,
    seeds_can_help,
)
from analysis.results import Results, records, same_setting, table_of
from analysis.schema import CELL, Outcome, Regime, regime
from analysis.statistics import NOTHING, Interval, curse_interval, metric_interval
from analysis.text import counted

INNER = 0.5
"""Confidence level of the narrower interval beside the one at 95%."""
NO_RIVAL = "no optimizer has a fresh score"
"""Why a baseline has no score, if that is why."""


@dataclass(frozen=True)
class Entry:
    """One optimizer or regime in a comparison, at its best cell of the search; or a baseline, at its own setting.

    Attributes:
        name: of the optimizer, regime or baseline.
        cell: row of `cells` that stands for it, or of `Results.baselines`; None if it has none.
        score: the metric on the comparison's split and seeds.
        effect: against the best of the others, with simultaneous limits: of a loss the ratio (below 1 is better), of an
            accuracy the difference. Without limits on the seeds that chose. Of a baseline against the best optimizer.
        p: of the hypothesis that it is the best; NaN on the seeds that chose. Of a baseline: that it equals the best.
        contender: whether it may be the best; of a baseline whether it may be as good as the best optimizer.
        reason: why it has no score; empty if it has one.
        inner: the score with its interval at `INNER`.
        own, own_p: of a baseline: its effect against the tuned cell of its own optimizer, and p that both are equal.
    """

    name: str
    cell: pd.Series[Any] | None
    score: Interval = NOTHING
    effect: Interval = NOTHING
    p: float = math.nan
    contender: bool = False
    reason: str = ""
    inner: Interval = NOTHING
    own: Interval = NOTHING
    own_p: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """All optimizers or regimes of a study against the best of them.

    Attributes:
        entries: those with a score, best first; then those without.
        fresh: whether the scores are of the confirmation's fresh seeds. Otherwise they are of the seeds that chose, and
            name candidates only.
        split: `test` or `validation`.
        seeds: number of seeds of each score.
        examples: test examples that the intervals cover as a source of noise; 0 if they cover seeds only.
        scores: joint means and noise of the entries with a score, in their order; None unless fresh.
        baselines: those of the spec, in its order, each against the best optimizer; none among regimes.
        looks, most_looks: how often the fresh seeds were looked at, and how often they may be at most.
        open: whether more fresh seeds may decide: which contender wins, or whether an only optimizer differs from a
            baseline.
    """

    entries: list[Entry]
    fresh: bool
    split: str
    seeds: int
    examples: int = 0
    scores: Scores | None = None
    baselines: Sequence[Entry] = ()
    looks: int = 1
    most_looks: int = 1
    open: bool = False

    @property
    def scored(self) -> list[Entry]:
        """The entries with a score, best first."""
        return [entry for entry in self.entries if not entry.reason]

    @property
    def contenders(self) -> list[Entry]:
        """The entries that may be the best, best first; none on the seeds that chose."""
        return [entry for entry in self.entries if entry.contender]

    @property
    def unknown(self) -> list[Entry]:
        """The entries with a cell of the search but without a score on fresh seeds: any of them may be better."""
        return [entry for entry in self.entries if entry.reason and entry.cell is not None]

    @property
    def untuned(self) -> list[str]:
        """The names of the entries of which the distance of the tuned rate from the best one is unknown."""
        known = self.scores.of_tuning if self.scores else ()
        return [entry.name for entry, noise in zip(self.scored, known, strict=False) if not noise]

    @property
    def winner(self) -> Entry | None:
        """The only contender of several entries; None if there is none or more, or if an entry is unknown."""
        alone = len(self.contenders) == 1 and len(self.scored) > 1 and not self.unknown
        return self.contenders[0] if alone else None


def compare(results: Results, table: pd.DataFrame, by: str = "optimizer", *, once: bool = False) -> Comparison:
    """The best cell of every optimizer or regime of the spec, against the best of the others.

    The search's validation split chooses each one's cell. On the confirmation's fresh seeds, multiple
    comparisons with the best (`analysis.paired.compare_with_best`) say which may be the best. Where the confirmation
    adds seeds until one wins (`confirm.most_seeds`), each further look is at those that may be the best at the look
    before; those that a look excludes keep its result. An only optimizer is looked at again with its baselines.

    Args:
        results: the study.
        table: its `cells`.
        by: `optimizer` or `regime`; regimes are compared once.
        once: take the first look's seeds only, as a study without further looks has them.
    """
    best = rank(table, results.maximize).drop_duplicates(by).set_index(by, drop=False)
    names = [*best.index, *(name for name in names_of(results, by) if name not in best.index)]
    cells_of: dict[str, Any] = {name: best.loc[name] if name in best.index else None for name in names}
    fixed = results.baselines if by == "optimizer" else results.baselines.head(0)
    controls = {row["name"]: row for _, row in fixed.iterrows()}
    # Apart from each other: several may have the same cell, at different rates.
    settings = [best.reset_index(drop=True), *(row for _, row in fixed.groupby("name"))]
    lanes = pd.concat([fresh_lanes(results, each) for each in settings], ignore_index=True)
    size, most = looks_of(results)
    number = (lanes["seed"] - lanes["seed"].min()) // size if most > 1 else lanes["seed"] * 0
    planned = 1 if once or by == "regime" else most
    comparison = _look(results, lanes[number == 0], by, cells_of, controls, planned)
    earlier: list[Entry] = []
    for look in range(1, planned):
        left = {entry.name: entry.cell for entry in comparison.contenders}
        alone = len(comparison.scored) == 1
        before, ran = (lanes[number == each].groupby("cell").size() for each in (look - 1, look))
        rivals = {int(cell["trial"]) for cell in left.values() if cell is not None}
        if alone:  # but not for a baseline that was added later
            rivals |= {int(row["trial"]) for row in controls.values()} & set(before[before >= size].index)
        if not comparison.fresh or len(left) < 2 - alone or (ran.reindex(list(rivals), fill_value=0) < size).any():
            break
        earlier = [entry for entry in comparison.entries if not entry.contender] + earlier
        comparison = replace(_look(results, lanes[number <= look], by, left, controls, planned), looks=look + 1)
    if not earlier:
        return comparison
    ordered = sorted([*comparison.entries, *earlier], key=lambda entry: bool(entry.reason))
    return replace(comparison, entries=ordered)


def looks_of(results: Results) -> tuple[int, int]:
    """The fresh seeds that each look at the confirmation adds, and how many looks there may be."""
    confirm = table_of(results.spec, "confirm")
    size, most = int(confirm.get("seeds") or 1), int(confirm.get("most_seeds") or 0)
    return size, max(1, most // size)


def _look(
    results: Results, lanes: pd.DataFrame, by: str, cells_of: dict[str, Any], controls: dict[str, Any], looks: int
) -> Comparison:
    """The comparison on some of the fresh lanes, the seeds of which may be looked at so many times.

    Args:
        results: the study.
        lanes: of `fresh_lanes`.
        by: `optimizer` or `regime`.
        cells_of: name of an optimizer or regime -> its best cell, or None.
        controls: the same of baselines.
        looks: among which the error is shared out.
    """
    every = cells_of | controls
    missing = {name: _why_missing(results, lanes, by, name, cell) for name, cell in every.items()}
    confirmed, given = ([name for name in each if not missing[name]] for each in (cells_of, controls))
    baselines = {name: Entry(name, controls[name], reason=missing[name] or NO_RIVAL) for name in controls}
    if not confirmed:
        return replace(_of_search(results, cells_of, by), baselines=list(baselines.values()))
    trials = [int(every[name]["trial"]) for name in (*confirmed, *given)]
    chosen = lanes[lanes["cell"].isin(trials)]
    split = "test" if chosen[f"test_{results.metric}"].notna().all() else "validation"
    joint = _scores(results, chosen, trials, split)
    scores = joint.reordered(range(len(confirmed))).tuned([every[name]["shortfall"] for name in confirmed])
    against = compare_with_best(scores, looks)
    # At each look one of the contenders may be taken for the best.
    count = sum(each.contender for each in against) * looks
    entries = [
        _entry(name, every[name], scores, place, each, count)
        for place, (name, each) in enumerate(zip(confirmed, against, strict=True))
    ]
    against = compare_with_controls(joint, len(given), looks) if given else []
    for place, (name, each) in enumerate(zip(given, against, strict=True), start=len(confirmed)):
        entry, optimizer = _entry(name, every[name], joint, place, each), str(every[name]["optimizer"])
        if optimizer in confirmed:
            pair = joint.reordered([confirmed.index(optimizer), place])
            (own,) = compare_with_controls(pair, 1, looks * len(given))
            entry = replace(entry, own=joint.effect(own.gain), own_p=own.p)
        baselines[name] = entry
    order = np.argsort(-scores.means, kind="stable")
    ordered = [entries[place] for place in order]
    ordered += [Entry(name, cells_of[name], reason=missing[name]) for name in cells_of if missing[name]]
    scores, rest = scores.reordered(order), list(baselines.values())
    several = [place for place, each in enumerate(ordered) if each.contender]
    more = len(several) > 1 and seeds_can_help(scores.reordered(several), looks)
    if len(confirmed) == 1:
        unlike = [n for n in given if baselines[n].p > 1 - LEVEL and not same_setting(controls[n], every[confirmed[0]])]
        more = any(seeds_can_help(joint.reordered([0, 1 + given.index(name)]), looks) for name in unlike)
    return Comparison(ordered, True, split, scores.seeds, scores.examples, scores, rest, most_looks=looks, open=more)


def _entry(name: str, cell: Any, scores: Scores, place: int, against: WithBest, candidates: int = 1) -> Entry:
    """The entry of one of some joint scores, which looks best among so many candidates."""
    score, inner = (scores.interval(place, candidates, level) for level in (0.95, INNER))
    return Entry(name, cell, score, scores.effect(against.gain), against.p, against.contender, inner=inner)


def names_of(results: Results, by: str) -> list[str]:
    """The optimizers or regimes that the spec asks for, and any others that have trials."""
    search = table_of(results.spec, "search")
    if by == "optimizer":
        given = search.get("optimizer", [])
        listed = [str(each) for each in (given if isinstance(given, list) else [given])]
    else:
        listed = [regime(size, _train(results)) for size in _sizes(results)]
    names = [*listed, *results.trials[by].unique()]
    return [str(name) for name in (optimizer_order(names) if by == "optimizer" else [r for r in Regime if r in names])]


def _train(results: Results) -> int:
    """Training examples according to provenance; more than any batch size if that does not say."""
    train = table_of(results.provenance, "data").get("train")
    return train if isinstance(train, int) else sys.maxsize


def _sizes(results: Results) -> list[int]:
    """The batch sizes of the spec; none of a range."""
    given = table_of(results.spec, "search").get("batch_size", [])
    sizes = [_train(results) if each == "full" else each for each in (given if isinstance(given, list) else [given])]
    return [size for size in sizes if isinstance(size, int)]


def missing_sizes(results: Results, table: pd.DataFrame) -> dict[str, str]:
    """The batch sizes that the spec lists and at which no cell has a tuned rate, with the reason."""
    if not isinstance(table_of(results.spec, "search").get("batch_size"), list):
        return {}
    tuned = set(table.loc[table["validation"].notna(), "batch_size"])
    return {
        f"batch size {size:,}": _why_no_cell(results, "batch_size", size)
        for size in _sizes(results)
        if size not in tuned and size < sys.maxsize
    }


def _of_search(results: Results, cells_of: dict[str, Any], by: str) -> Comparison:
    """The comparison on the seeds that chose: scores without any claim."""
    entries, examples = list[Entry](), examples_of(results, "validation")
    for name, cell in cells_of.items():
        if cell is None:
            entries.append(Entry(name, None, reason=_why_no_cell(results, by, name)))
            continue
        score = Interval(cell["validation"], cell["validation_low"], cell["validation_high"], cell["n"])
        values = tuned_lanes(results, cell.to_frame().T.infer_objects())[f"validation_{results.metric}"]
        inner = metric_interval(values, results.metric, examples, INNER, floor_of(results))
        entries.append(Entry(name, cell, score, inner=inner))
    sign = -1 if results.maximize else 1
    entries.sort(key=lambda entry: (bool(entry.reason), sign * entry.score.estimate if not entry.reason else 0.0))
    seeds = max((entry.score.n for entry in entries), default=0)
    return Comparison(entries, False, "validation", seeds)


def _scores(results: Results, lanes: pd.DataFrame, order: list[int], split: str) -> Scores:
    """The joint scores of cells, in an order of their trials, over the seeds and examples that all have."""
    values = lanes.pivot_table(index="cell", columns="seed", values=f"{split}_{results.metric}").dropna(axis=1)
    values = values.reindex(order)
    if results.metric == "loss":
        values = values.clip(lower=floor_of(results))
    each = None
    if split == "test" and lanes["test_values"].notna().all():
        table = lanes.pivot(index="cell", columns="seed", values="test_values").reindex(order)[values.columns]
        each = np.array([[np.asarray(own, dtype=np.float64) for own in row] for row in table.to_numpy()])
    precise = table_of(results.spec, "workload").get("dtype") == "float64"
    return paired_scores(values, results.metric, each, rounding=1e-14 if precise else 1e-6)


def _why_missing(results: Results, lanes: pd.DataFrame, by: str, name: str, cell: Any) -> str:
    """Why an optimizer or regime has no score on fresh seeds; empty if it has one."""
    if cell is None:
        return _why_no_cell(results, by, name)
    own = lanes[lanes["cell"] == cell["trial"]]
    if own.empty:
        return "not confirmed on fresh seeds"
    if len(own) < (most := int(lanes.groupby("cell").size().max())):
        return f"only {counted(len(own), 'fresh seed')} of {most}"
    lost = own.loc[own["outcome"] != Outcome.COMPLETED, "outcome"].value_counts()
    # The survivors alone would flatter it.
    return "; ".join(f"{count} of {len(own)} fresh seeds {_ended(ending)}" for ending, count in lost.items())


def _why_no_cell(results: Results, by: str, name: str | int) -> str:
    """Why no cell of an optimizer or regime has a tuned rate."""
    own = results.trials.loc[results.trials[by] == name, "outcome"].value_counts()
    if own.empty:
        return "no trial of it has ended"
    if Outcome.COMPLETED in own.index:
        return "no learning rate at which every seed survived"
    return "; ".join(f"{counted(count, 'trial')} {_ended(ending)}" for ending, count in own.items())


def _ended(outcome: Any) -> str:
    """An outcome as a verb."""
    return {Outcome.OUT_OF_MEMORY: "ran out of memory", Outcome.INTERRUPTED: "interrupted"}.get(outcome, str(outcome))


def winners_curse(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The confirmed cells with their scores in the search and on the confirmation's fresh seeds.

    The curse is of a loss the ratio confirmed / search (geometric means), of an accuracy the difference search -
    confirmed (as a share): above 1, or positive, means worse than in the search. Its interval is Welch's, of log losses
    or of accuracies, since the two sets of seeds are independent.

    Returns:
        Columns trial, those of `CELL`, regime, learning_rate, recipe; rank_search (in the leaderboard), rank_confirmed
        (among the confirmed); outcome, seeds and diverged of the fresh lanes; search, confirmed and test (both over
        fresh seeds), each with _low, _high and _n; curse, curse_low, curse_high. Best in the search first. Where a
        fresh seed did not complete, confirmed, test and curse are NaN. Empty without a confirmation.
    """
    metric, ranked, floor = results.metric, rank(table, results.maximize), floor_of(results)
    search, fresh = tuned_lanes(results, ranked), fresh_lanes(results, ranked)
    rows: list[dict[str, Any]] = []
    confirmed = ranked.assign(rank_search=range(1, len(ranked) + 1))[ranked["trial"].isin(fresh["cell"])]
    for cell in records(confirmed):
        own = fresh[fresh["cell"] == cell["trial"]]
        diverged = int((own["outcome"] == "diverged").sum())
        endings = own.loc[own["outcome"] != "completed", "outcome"].to_list()
        row = cell | {"seeds": len(own), "diverged": diverged}
        row["outcome"] = "diverged" if diverged else [*endings, "completed"][0]
        row |= {f"search{end}": cell[f"validation{end}"] for end in ("", "_low", "_high")} | {"search_n": cell["n"]}
        values = own.head(0) if endings else own  # the survivors alone would flatter the cell
        before = search.loc[search["cell"] == cell["trial"], f"validation_{metric}"]
        after = values[f"validation_{metric}"]
        for name, split in (("confirmed", "validation"), ("test", "test")):  # means like those of the comparison
            known = len(values) > 0 and bool(values[f"{split}_{metric}"].notna().all())
            score = _scores(results, values, [cell["trial"]], split).interval(0) if known else NOTHING
            row |= score.named(name)
        row |= curse_interval(before.to_numpy()[:, None], after.to_numpy()[:, None], metric, floor).named("curse")
        rows.append(row)
    limits = [f"{name}{end}" for name in ("search", "confirmed", "test") for end in ("", "_low", "_high", "_n")]
    columns = ["trial", *CELL, "regime", "learning_rate", "recipe", "rank_search", "rank_confirmed", "outcome", "seeds"]
    columns += ["diverged", *limits, "curse", "curse_low", "curse_high"]
    kinds = {"trial": "int64", "learning_rate": "float64", "confirmed": "float64"}
    frame = pd.DataFrame(rows, columns=columns).astype(kinds)
    return frame.assign(rank_confirmed=frame["confirmed"].rank(method="min", ascending=not results.maximize))


def average_curse(results: Results, curse: pd.DataFrame) -> Interval:
    """The curse averaged over the confirmed cells, from `winners_curse`: geometric mean of ratios, or mean difference.

    Cells share their seeds, so each seed's average over the cells is one value of Welch's two samples. Seeds that not
    every cell ran, and cells without a confirmed score, are left out.
    """
    confirmed = curse[curse["confirmed"].notna()]
    if confirmed.empty:
        return NOTHING
    search, fresh = (
        lanes.pivot_table(index="seed", columns="cell", values=f"validation_{results.metric}")
        .dropna()
        .to_numpy(dtype=float)
        for lanes in (tuned_lanes(results, confirmed), fresh_lanes(results, confirmed))
    )
    return curse_interval(search, fresh, results.metric, floor_of(results))
