"""Sections of the page: the claims of `source_report.toml`, filled with our numbers and judged by their rules.

The file holds, for each experiment, what the report prints, and templates (Jinja) for prose, captions and claims. An
experiment computes `Measured`; its facts are the names that templates and rules use. A claim has

    text, printed, ours, why    templates
    unless                      [condition, reason] pairs: the claim is not checked for the first condition that holds
    agrees, differs             conditions; without `differs`, a claim differs where it does not agree
    rule, of                    a rule that claims share, and the fact that the rule calls `it`

The facts `printed` and `asked` (thresholds of rules) are tables of the file.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.exhibit import Exhibit
from analysis.report.tables import Table
from analysis.results import Results
from analysis.statistics import Interval
from analysis.text import counted, duration, short

FEWEST = 3
"""Seeds below which no range or interval is compared with the report."""
Verdict = Literal["agrees", "differs", "not checked"]
VERDICTS: tuple[Verdict, Verdict, Verdict] = ("agrees", "differs", "not checked")

Truth = Mapping[str, Callable[..., Any]]
"""What the results do not hold and the caller computes with torch, such as the true coefficients of a draw, by name."""


@dataclass(frozen=True)
class Claim:
    """A statement of the report beside our numbers; all but the verdict are texts for readers."""

    text: str
    printed: str
    ours: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Measured:
    """What an experiment computed from the results of its studies.

    `facts` are the values of the names in templates and rules, `figures` numbers with the function that draws them;
    of a frame of `tables` the file chooses and names the columns. `shared` are figures of the ordinary report.
    """

    facts: Mapping[str, Any]
    figures: Mapping[str, tuple[pd.DataFrame, Callable[[], Figure]]]
    tables: Mapping[str, pd.DataFrame]
    studies: Sequence[Results]
    shared: Sequence[Exhibit] = ()


@cache
def source() -> dict[str, Any]:
    """The content of `source_report.toml`."""
    return tomllib.loads((Path(__file__).parent / "source_report.toml").read_text(encoding="utf-8"))


def printed(experiment: str) -> dict[str, Any]:
    """The numbers that the report prints of an experiment."""
    return dict(source()[experiment]["printed"])


def asked(experiment: str) -> dict[str, Any]:
    """The thresholds of an experiment's rules."""
    return dict(source()[experiment]["asked"])


def text(value: Any) -> str:
    """A value as templates and tables show it: three digits, intervals with their limits."""
    if isinstance(value, Interval):
        return _with_limits(value, short)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}"
    return short(float(value)) if isinstance(value, float) else str(value)


def intervals(rows: pd.DataFrame, *columns: str) -> pd.Series[Any]:
    """The intervals of rows whose columns are the estimate, low, high and n."""
    return pd.Series([Interval(*row) for row in rows[list(columns)].to_numpy(dtype=object)], rows.index, dtype=object)


def _with_limits(value: Interval, form: Callable[[float], str]) -> str:
    limits = value.n > 1 and math.isfinite(value.high)
    return form(value.estimate) + f" [{form(value.low)}, {form(value.high)}]" * limits


def percent(share: float | Interval) -> str:
    """A share in per cent, with its limits if it has any."""
    if isinstance(share, Interval):
        return _with_limits(share, percent)
    return short(100 * share) + "%" * (not math.isnan(share))


def signed(share: float | Interval) -> str:
    """A relative difference in per cent with its sign, and its limits if it has any."""
    return _with_limits(share, signed) if isinstance(share, Interval) else f"{100 * share:+.2f}%"


def few(count: int, noun: str = "seed") -> str:
    """Why too few seeds are not compared."""
    return f"{counted(count, noun)} {'has' if count == 1 else 'have'} no range to speak of"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: source()["parts"][name]), undefined=jinja2.StrictUndefined, finalize=text
)
_TEMPLATES.filters |= {"percent": percent, "signed": signed, "few": few, "counted": counted}
_TEMPLATES.filters |= {"digits": lambda value: f"{float(f'{value:.5g}'):,.10g}", "text": text}
_TEMPLATES.globals |= {"FEWEST": FEWEST, "math": math}


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A template of the file with its values, on one line."""
    return " ".join(_TEMPLATES.from_string(template).render(facts).split())


def judge(experiment: str, name: str, facts: Mapping[str, Any]) -> Claim:
    """A claim of the file, judged by its rule; `facts` are the values of the names that it uses."""
    claim = source()[experiment]["claims"][name]
    claim = source()["rules"].get(claim.get("rule"), {}) | claim
    facts = _known(experiment) | dict(facts)
    if "of" in claim:
        facts["it"] = facts[claim["of"]]

    def holds(condition: str) -> bool:
        return bool(_TEMPLATES.compile_expression(condition, undefined_to_none=False)(**facts))

    for condition, reason in claim.get("unless", ()):
        if holds(condition):
            return Claim(render(claim["text"], facts), "", "", "not checked", render(reason, facts))
    agrees, differs, unknown = VERDICTS
    verdict = agrees if holds(claim["agrees"]) else differs if holds(claim.get("differs", "true")) else unknown
    said, printed, ours, why = (render(claim.get(part, ""), facts) for part in ("text", "printed", "ours", "why"))
    return Claim(said, printed, ours, verdict, why)


def _known(experiment: str) -> dict[str, Any]:
    """The facts that the file itself has."""
    return {name: source()[experiment].get(name) for name in ("printed", "asked")}


def section(name: str, measured: Measured) -> dict[str, Any]:
    """The values of the template for an experiment; its figures are not drawn yet."""
    prose, studies = source()[name], measured.studies
    facts = _known(name) | dict(measured.facts)
    figures = []
    for key, (data, draw) in measured.figures.items():
        title, caption = (render(prose["figures"][key][part], facts) for part in ("title", "caption"))
        figures.append(Exhibit(key, title, caption, data, draw, "no run has finished"))
    claims = [judge(name, key, facts) for key in prose["claims"]]
    sessions = [session for study in studies for session in study.provenance.get("sessions") or []]
    ended = [session for session in sessions if session.get("ended")]
    spans = [datetime.fromisoformat(each["ended"]) - datetime.fromisoformat(each["started"]) for each in ended]
    seconds = sum(span.total_seconds() for span in spans)
    return {
        "name": name,
        "title": render(prose["title"], facts),
        "about": [line for each in prose["about"] if (line := render(each, facts))],
        "claims": claims,
        "counts": [sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS],
        "figures": [*figures, *measured.shared],
        "tables": [_table(prose["tables"][key], frame, facts) for key, frame in measured.tables.items()],
        "corrections": [line for each in prose.get("corrections", ()) if (line := render(each, facts))],
        "seconds": seconds,
        "time": duration(seconds),
        "command": sessions[-1].get("command") if sessions else "",
        "links": [link for study in studies for link in _links(study, studies[0].path.parent.parent)],
        "provenance": _provenance(studies, sessions),
    }


def _table(prose: Mapping[str, Any], frame: pd.DataFrame, facts: Mapping[str, Any]) -> Table:
    """The columns of a frame that the file names: [column, heading] or [column, heading, format]."""

    def cell(value: Any, form: str = "text") -> str:
        return str(_TEMPLATES.filters[form](value)) if form in _TEMPLATES.filters else form % value

    columns = [[cell(value, *form) for value in frame[column]] for column, _, *form in prose["columns"]]
    head = [render(heading, facts) for _, heading, *_ in prose["columns"]]
    title, caption = render(prose["title"], facts), render(prose.get("caption", ""), facts)
    return Table(title, head, list(zip(*columns, strict=True)), (0,), caption)


def _links(study: Results, out: Path) -> list[tuple[str, str]]:
    """The spec of a study and its own report, if there is one: (text, path from the page)."""
    files = {"spec": "spec.toml", "ordinary report": "report/index.html"}
    there = {text: study.path / file for text, file in files.items() if (study.path / file).is_file()}
    return [(f"{study.name}: {text}", os.path.relpath(file, out)) for text, file in there.items()]


def _provenance(studies: Sequence[Results], sessions: Sequence[Mapping[str, Any]]) -> str:
    """Commits, versions and hardware of the sessions, and the studies' seeds."""
    last = sessions[-1] if sessions else {}
    hardware, versions = last.get("hardware", {}), last.get("versions", {})
    commits = dict.fromkeys(session.get("commit") or "unknown" for session in sessions) or ["unknown"]
    parts = [
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}",
        ", ".join(f"{each} {versions[each]}" for each in ("python", "torch", "numpy") if each in versions),
        f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cpus', '?')} processors",
        *dict.fromkeys(_seeds(study) if len(studies) == 1 else f"{study.name}: {_seeds(study)}" for study in studies),
    ]
    return "; ".join(parts)


def _seeds(study: Results) -> str:
    def span(seeds: pd.Series[int]) -> str:
        if seeds.empty:
            return "no seeds"
        first, last = int(seeds.min()), int(seeds.max())
        return f"seed {first}" if first == last else f"seeds {first} to {last}"

    fresh = study.confirmation
    return span(study.lanes["seed"]) + ("" if fresh is None else f", confirmed on {span(fresh.lanes['seed'])}")
