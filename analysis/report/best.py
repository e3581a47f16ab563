"""The best setting of a study, of all or of one optimizer, with its score on fresh seeds."""

from __future__ import annotations

import json
from typing import Any

from analysis.cells import cells
from analysis.comparisons import Comparison, Entry, compare
from analysis.results import Results, table_of
from analysis.schema import ResultsError
from analysis.text import cell_at_rate, counted, estimate_text

SCORE = {"score": "estimate", "low": "low", "high": "high"}


def best_entry(results: Results, optimizer: str = "") -> tuple[Comparison, Entry]:
    """The comparison of a study's optimizers, and the entry of one of them or of the first; errors as `best`."""
    compared = compare(results, cells(results))
    entries = [entry for entry in compared.entries if optimizer in ("", entry.name)]
    if not entries:
        names = ", ".join(entry.name for entry in compared.entries) or "none"
        raise ResultsError(f"{results.path}: no optimizer {optimizer!r}; it has {names}")
    if entries[0].reason or entries[0].cell is None:
        raise ResultsError(f"{results.path}: {entries[0].name} has no result: {entries[0].reason}")
    return compared, entries[0]


def best(results: Results, optimizer: str = "") -> dict[str, Any]:
    """The best cell at its tuned rate.

    Args:
        results: the study.
        optimizer: whose best cell; that of the first one in the comparison if empty.

    Returns:
        optimizer, settings, learning_rate, recipe, batch_size, width, depth, data, model, metric; split, score, low,
        high, seeds and fresh (whether the search did not use them) of its score; verdict: winner, contender, excluded,
        or candidate (without fresh seeds); text: all that in one line.

    Raises:
        ResultsError: if there is no such optimizer, or it has no score; the message says why.
    """
    return facts(results, *best_entry(results, optimizer))


def facts(results: Results, compared: Comparison, entry: Entry) -> dict[str, Any]:
    """What `best` returns, of an entry of a comparison that has a score."""
    assert entry.cell is not None
    verdict = "candidate"
    if compared.fresh:
        verdict = "winner" if entry is compared.winner else "contender" if entry.contender else "excluded"
    workload, cell = table_of(results.spec, "workload"), entry.cell
    seeds = counted(entry.score.n, "fresh seed" if compared.fresh else "seed")
    chose = "" if compared.fresh else " that chose it"
    score = f"{compared.split} {results.metric} {estimate_text(entry.score, results.metric)}"
    return {
        "optimizer": entry.name,
        "settings": json.loads(cell["settings"] or "{}"),
        "learning_rate": float(cell["learning_rate"]),
        "recipe": json.loads(cell["recipe"] or "{}"),
        **{name: int(cell[name]) for name in ("batch_size", "width", "depth")},
        **{name: str(workload.get(name, "")) for name in ("data", "model")},
        "metric": results.metric,
        "split": compared.split,
        **{name: float(getattr(entry.score, each)) for name, each in SCORE.items()},
        "seeds": int(entry.score.n),
        "fresh": compared.fresh,
        "verdict": verdict,
        "text": f"{cell_at_rate(cell)}: {score} on {seeds}{chose} ({verdict})",
    }
