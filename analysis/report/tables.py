"""The tables of the report, as texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.cells import target_times
from analysis.comparisons import Comparison, Entry
from analysis.figures.search.timeline import busy, timeline
from analysis.report.recipes import recipe_sensitivity
from analysis.report.verdict import curse_of
from analysis.results import Results, pareto, records, table_of
from analysis.schema import Outcome
from analysis.text import (
    cell_text,
    counted,
    effect_text,
    interval_text,
    joined,
    limits_text,
    listing,
    metric_text,
    p_value_text,
    seed_counts,
    settings_text,
    shared_power,
    short,
)

Cell = str | tuple[str, str]
"""A text, or a text with a smaller one below it."""
LEADERBOARD_ROWS = 20
FAILURE_ROWS = 10
TEXT = ("optimizer", "settings", "regime", "outcome", "node or GPU", "cell", "reason", "when", "what")
"""The columns that hold text, not numbers."""
TIMES = {"updates": "update", "examples": "examples", "epochs": "epoch", "train s": "train_seconds", "log-rank p": "p"}


@dataclass(frozen=True)
class Table:
    """A table; `text` are the places of the columns that hold text, `best` those of the best rows."""

    label: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: Sequence[int]
    caption: str = ""
    sortable: bool = False
    narrow: bool = False
    best: Sequence[int] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def table(label: str, rows: Iterable[dict[str, Cell]], **options: Any) -> Table | None:
    """A table of rows by heading; None without rows."""
    if not (rows := list(rows)):
        return None
    text = [place for place, name in enumerate(rows[0]) if name in TEXT]
    return Table(label, list(rows[0]), [list(row.values()) for row in rows], text, **options)


def _cell(row: Any, has_settings: bool) -> dict[str, Cell]:
    """A cell at its tuned rate."""
    return {
        "optimizer": row["optimizer"],
        **({"settings": settings_text(row["settings"])} if has_settings else {}),
        **{name: str(row[name] or "\N{EN DASH}") for name in ("width", "depth")},
        "batch size": (f"{row['batch_size']:,}", row["regime"]),
        "tuned rate": (short(row["learning_rate"]), _below_rate(row)),
    }


def _below_rate(row: Any) -> str:
    """What stands below a tuned rate: its recipe, and whether it lies on the edge of the grid."""
    return listing(filter(None, (settings_text(row["recipe"]), "edge of grid" if row.get("on_edge") else "")))


def _in_powers(frame: pd.DataFrame, names: Sequence[str], metric: str) -> tuple[pd.DataFrame, str]:
    """A frame with some scores and their limits in units of one power of ten, and the words for their headings."""
    power = shared_power(frame[list(names)].to_numpy(dtype=float).ravel(), metric)
    columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return frame.assign(**{name: frame[name] / 10.0**power for name in columns}), f", x 1e{power}" if power else ""


def _score(row: Any, name: str, metric: str) -> Cell:
    return metric_text(row[name], metric), limits_text(row, name, metric)


def confirmed(results: Results, curse: pd.DataFrame, has_settings: bool) -> Table | None:
    """The confirmed cells, from `winners_curse`."""
    metric, lost = results.metric, (curse["outcome"] != Outcome.COMPLETED).any()
    curse, unit = _in_powers(
        curse.sort_values("rank_confirmed", kind="stable"), ("search", "confirmed", "test"), metric
    )
    rows = []
    for row in records(curse):
        place, (worse, limits) = row["rank_confirmed"], effect_text(curse_of(row), metric)
        shown: dict[str, Cell] = {
            "rank": (f"{place:.0f}" if row["confirmed_n"] else short(place), f"{row['rank_search']} in search"),
            **_cell(row, has_settings),
            f"validation, chosen on these seeds{unit}": _score(row, "search", metric),
            f"validation, fresh{unit}": _score(row, "confirmed", metric),
            f"test, fresh{unit}": _score(row, "test", metric),
            "winner's curse": (worse.replace("percentage ", ""), limits),
        }
        if lost:
            ended = "" if row["outcome"] == Outcome.COMPLETED else f"{row['diverged'] or ''} {row['outcome']}".strip()
            shown["fresh seeds"] = str(row["seeds"]), ended
        rows.append(shown)
    first = [place for place, row in enumerate(records(curse)) if row["rank_confirmed"] == 1]
    caption = (
        "Ranked by the validation split of the fresh seeds. 95% intervals of each row alone, over seeds; those of the "
        "test split also over test examples, where their values are known. Where several optimizers may be the best, "
        "the intervals of the verdict and the first figure are wider, as they also allow for the choice of the best."
    )
    if metric == "accuracy":
        caption += " Of the search: means on the log-odds scale; fresh: plain means."
    return table("Confirmation", rows, caption=caption, sortable=True, best=first)


def compared(found: Comparison, metric: str, has_settings: bool, by: str = "optimizer") -> Table | None:
    """Every optimizer or regime of the spec at its best cell, against the best of the others."""
    dash = "\N{EN DASH}"
    power = shared_power([each.score.estimate for each in found.scored], metric)
    heading = f"{found.split} {metric}, " + ("fresh seeds" if found.fresh else "chosen on these seeds")
    heading += f", x 1e{power}" if power else ""
    rows: list[dict[str, Cell]] = []
    row: dict[str, Cell]
    for each in [*found.entries, *found.baselines]:
        row = {by: each.name} | _cell(_NO_CELL if each.cell is None else each.cell, has_settings) | {by: each.name}
        if each.cell is not None and each.name == each.cell.get("name"):
            row |= {by: (each.name, f"baseline, {each.cell['optimizer']}")}
        if each.cell is None:
            row |= dict.fromkeys(list(row)[1:], dash)
        score, low, high = (x / 10.0**power for x in (each.score.estimate, each.score.low, each.score.high))
        limits = interval_text(low, high, each.score.n, metric)
        row[heading] = (dash, each.reason) if each.reason else (metric_text(score, metric), limits)
        rows.append(row | (_with_best(each, metric) if found.fresh else {}))
    caption = f"The best cell of every {by} of the spec, chosen on the validation split of the search"
    if found.fresh:
        noise = "seeds and test examples" if found.examples else "seeds only"
        caption += (
            f", on {counted(found.seeds, 'fresh seed')} that the search did not use. Intervals cover {noise}. Those "
            f"against the best other are paired by seed, allow for tuned rates that miss the best ones"
            f"{f' (unknown, so not of {joined(found.untuned)})' if found.untuned else ''}, and hold at 95% for all "
            f"rows at once (multiple comparisons with the best, Hsu 1996). p tests the hypothesis that the row is the "
            f"best."
        )
        if found.most_looks > 1:
            caption += (
                f" This is look {found.looks} of at most {found.most_looks}; each adds seeds for those that may be the "
                f"best and for baselines. p and limits hold for all looks together (Bonferroni). A row that an earlier "
                f"look excluded has that look's seeds."
            )
        if found.baselines:
            caption += (
                " A baseline is not tuned. Its row is against the best optimizer, with limits that hold for all "
                "optimizers and baselines at once (Dunnett 1955); p tests the hypothesis that both are equal."
            )
    else:
        seeds = seed_counts(pd.Series([each.score.n for each in found.scored], dtype=int))
        caption += (
            f" and shown on the same {seeds}, so the best rows look better than they are. 95% intervals cover seeds "
            f"only. A winner needs fresh seeds."
        )
    if by == "regime" and len(rows) < 2:
        return None
    best = [place for place, each in enumerate(found.entries) if each.contender] if found.fresh else [0]
    return table(f"{by.capitalize()}s at their best", rows, caption=caption, sortable=True, best=best)


_NO_CELL: dict[str, Any] = dict.fromkeys(("optimizer", "settings", "recipe", "regime"), "")
_NO_CELL |= dict.fromkeys(("width", "depth", "batch_size", "learning_rate"), 0)


def _with_best(entry: Entry, metric: str) -> dict[str, Cell]:
    """An entry of a comparison against the best of the others."""
    if entry.reason:
        dash = "\N{EN DASH}"
        return {"against the best other": dash, "p (is the best)": dash, "may be the best": "unknown"}
    return {
        "against the best other": effect_text(entry.effect, metric),
        "p (is the best)": p_value_text(entry.p),
        "may be the best": "yes" if entry.contender else "no",
    }


def across(found: Comparison, metric: str) -> Table | None:
    """Every optimizer of several studies against the best of the others, on average."""
    rows: list[dict[str, Cell]] = [
        {"optimizer": (entry.name, entry.reason), **_with_best(entry, metric)} for entry in found.entries
    ]
    scale = "geometric mean of ratios" if metric == "loss" else "mean of differences"
    noise = "seeds and test examples" if found.examples else "seeds only"
    caption = (
        f"Each optimizer's best cell on the {found.split} split and fresh seeds, paired by seed: {scale} over the "
        f"studies, each study counting the same. Intervals cover {noise}, "
        f"allow for tuned rates that miss the best ones, and hold, like p, for all rows at once (multiple comparisons "
        f"with the best, Hsu 1996), for these studies; other data sets may rank optimizers differently."
    )
    return table("Across the studies", rows, caption=caption, sortable=True)


def times(results: Results, cells: pd.DataFrame) -> Table | None:
    """When the best cell of each regime and optimizer reaches the target."""
    rows: list[dict[str, Cell]] = [
        {
            "regime": row["regime"],
            "optimizer": (row["optimizer"], settings_text(row["settings"])),
            "batch size": f"{row['batch_size']:,}",
            "tuned rate": short(row["learning_rate"]),
            "reached by seeds": f"{row['reached']} of {row['seeds']}",
            **{head: short(row[name]) for head, name in TIMES.items()},
        }
        for row in records(target_times(results, cells))
    ]
    target = "" if results.target is None else short(results.target)
    caption = (
        f"Cost until an evaluation first gives a validation {results.metric} of {target}, for the best cell of each "
        f"regime and optimizer at its tuned rate: medians over the seeds of the search, which chose them; no "
        f"intervals. ∞: at least half of the seeds never reached it. p: log-rank test of the examples against the "
        f"fastest of the regime, by permutation of the seeds, for each row alone. Train s: {results.seconds_label}."
    )
    return table("Time to target", rows, caption=caption, sortable=True)


def recipes(results: Results, cells: pd.DataFrame) -> Table | None:
    """The validation metric at each value of what is tuned beside the learning rate; None if nothing is."""
    metric, dash = results.metric, "\N{EN DASH}"
    rows: list[dict[str, Cell]] = []
    frame, scores = recipe_sensitivity(results, cells), ["estimate", "low", "high"]
    power = shared_power(frame["estimate"], metric)
    frame[scores] = frame[scores].astype(float) / 10.0**power
    heading = f"validation {metric}" + (f", x 1e{power}" if power else "")
    for row in records(frame):
        value = row["value"] if isinstance(row["value"], str) else f"{row['value']:g}"
        known = not math.isnan(row["estimate"])
        limits = interval_text(row["low"], row["high"], int(row["n"]), metric) if known else ""
        shown: dict[str, Cell] = {"optimizer": row["optimizer"], "what": row["axis"].replace("_", " ")}
        shown["value"] = (value, "tuned") if row["tuned"] else value
        shown["best rate"] = short(row["learning_rate"]) if known else dash
        rows.append(shown | {heading: (metric_text(row["estimate"], metric), limits)})
    caption = (
        "The best cell of every optimizer at each value of one setting, at the best learning rate for this value. The "
        "other settings have their tuned values. 95% t intervals over the seeds on which all were chosen. Dash: not "
        "tried, or every rate lost a seed."
    )
    return table("Schedules, weight decay and clipping", rows, caption=caption, sortable=True)


def leaderboard(results: Results, ranked: pd.DataFrame, has_settings: bool) -> Table | None:
    """The best cells of the search."""
    metric, pooled = results.metric, (ranked["trials"] > 1).any()
    rows = []
    ranked, unit = _in_powers(ranked, ("validation", "test"), metric)
    for place, row in enumerate(records(ranked.head(LEADERBOARD_ROWS)), start=1):
        shown: dict[str, Cell] = {"rank": str(place), **_cell(row, has_settings)}
        shown[f"validation, chosen on these seeds{unit}"] = _score(row, "validation", metric)
        shown[f"test, same seeds{unit}"] = _score(row, "test", metric)
        if pooled:
            shown["seeds"] = str(row["seeds"]), f"{row['trials']} trials" if row["trials"] > 1 else ""
        ended = "" if row["outcome"] == Outcome.COMPLETED else row["outcome"]
        shown |= {"diverged": f"{row['diverged_share']:.0%}", "updates": (f"{row['updates']:,}", ended)}
        rows.append(shown | {"train s": short(row["train_seconds"])})
    caption = f"On {seed_counts(ranked['n'])} of the search, which chose rates and cells; intervals of each row alone."
    return table("Leaderboard", rows, caption=caption, sortable=True, best=[0])


def front(results: Results, cells: pd.DataFrame, has_settings: bool) -> Table | None:
    """The Pareto front of a search with several objectives."""
    others = [name for name in results.objectives if name != "metric"]
    best = cells[pareto(cells, results.objectives, results.maximize)]
    best = best.sort_values(["validation", "validation_loss", "trial"], ascending=[not results.maximize, True, True])
    rows = [
        {**_cell(row, has_settings), "validation, chosen on these seeds": _score(row, "validation", results.metric)}
        | {name.replace("train_seconds", "train s"): short(row[name]) for name in others}
        for row in records(best)
    ]
    caption = (
        f"Completed cells that no other cell dominates (as good in every objective and better in one), by validation "
        f"{results.metric}."
    )
    if "train_seconds" in others:
        caption += f" Train s: {results.seconds_label}."
    return table("Pareto front", rows, caption=caption, sortable=True)


def outcomes(results: Results) -> Table | None:
    """The number of trials and lanes of every outcome that occurs; unknown ones last."""
    trials, lanes = results.trials["outcome"].value_counts(), results.lanes["outcome"].value_counts()
    names = [*Outcome, *sorted((set(trials.index) | set(lanes.index)) - set(Outcome))]
    rows: list[dict[str, Cell]] = [
        {"outcome": str(name), "trials": f"{trials.get(name, 0):,}", "lanes": f"{lanes.get(name, 0):,}"}
        for name in names
        if name in trials or name in lanes
    ]
    return table("Outcomes", rows, narrow=True)


def use(results: Results) -> Table | None:
    """How busy each node and each GPU was."""
    nodes: dict[str, int] = {}  # of all sessions, with the largest number of GPUs that each had
    for session in _sessions(results):
        for node, gpus in table_of(session, "nodes").items():
            nodes[node] = max(int(gpus), nodes.get(node, 0))
    rows: list[dict[str, Cell]] = [
        {
            "node or GPU": row["name"],
            "trials": f"{row['trials']:,}",
            "busy (share of the time in which any trial ran)": f"{row['share']:.0%}",
            "concurrent trials while busy, mean": f"{row['together']:,.1f}",
        }
        for row in records(busy(timeline(results), nodes))
    ]
    return table("Use of nodes and GPUs", rows, narrow=True)


def failures(results: Results) -> Table | None:
    """The first trials that failed or ran out of memory: cell, and last line of the error."""
    lost = results.trials[results.trials["outcome"].isin([Outcome.FAILED, Outcome.OUT_OF_MEMORY])]
    rows: list[dict[str, Cell]] = []
    for row in records(lost.fillna({"settings": "", "error": ""})):
        lines = row["error"].strip().splitlines() or ["not recorded"]
        rows.append({"trial": str(row["trial"]), "cell": cell_text(row), "reason": lines[-1]})
    return table(_first("Failed trials", "first", rows), rows[:FAILURE_ROWS])


def events(results: Results) -> Table | None:
    """The last events on nodes and workers while the study ran."""
    rows: list[dict[str, Cell]] = [
        {"when": when(event.get("time")), "what": str(event.get("text"))}
        for session in _sessions(results)
        for event in session.get("events") or []
    ]
    return table(_first("Events on nodes and workers", "last", rows), rows[-FAILURE_ROWS:])


def _first(title: str, which: str, rows: Sequence[Any]) -> str:
    return f"{title}, the {which} {FAILURE_ROWS} of {len(rows)}" if len(rows) > FAILURE_ROWS else title


def _sessions(results: Results) -> list[dict[str, Any]]:
    """The sessions in provenance, without damaged entries."""
    sessions = results.provenance.get("sessions")
    return [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []


def when(time: Any) -> str:
    """A time of provenance for readers."""
    return str(time or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")


def provenance(results: Results) -> Table | None:
    """Provenance with dotted names, without `events`, `nodes` and `spec`, which are shown elsewhere."""
    rows = list(_flattened(results.provenance))
    return Table("Provenance", [], rows, (0, 1)) if rows else None


def _flattened(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value, start=1))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if key not in ("events", "nodes", "spec"):
                yield from _flattened(inner, f"{name}.{key}" if name else str(key))
    elif name:
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        yield name, "not recorded" if value is None else text
