"""What a section of the page is made of, and what all experiments need to make theirs."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures
from analysis.exhibits import Exhibit
from analysis.results import Results
from analysis.statistics import Interval, log_interval
from analysis.wording import counted, short

FEWEST = 3
"""Seeds below which no range or interval is held against the report."""
OUT = Path("results/reproduction")
"""Where `study reproduce` works unless told otherwise."""
TRUTH = "truth.json"
"""File of a results folder: what only the data's maker knows, one entry per draw of the data."""


Verdict = Literal["agrees", "differs", "not checked"]


@dataclass(frozen=True)
class Claim:
    """One thing that the report says, and what became of it.

    Attributes:
        text: what it says, in our words.
        printed: its number; empty if it gives none.
        ours: our number, with what it is an interval or range of.
        verdict: how they compare.
        why: in what they differ, or why they could not be compared; the rule of the verdict.
    """

    text: str
    printed: str
    ours: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Table:
    """A table of a section.

    Attributes:
        title: what stands above it.
        head: column heads.
        rows: texts.
        caption: what its columns are, where that needs words.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @classmethod
    def of(cls, title: str, caption: str, data: pd.DataFrame) -> Table:
        """A table of a frame whose columns are named for readers."""
        rows = [[_cell_text(value) for value in row] for row in data.to_numpy(dtype=object)]
        return cls(title, [str(name) for name in data], rows, caption)


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Attributes:
        name: of the experiment, as `--only` takes it.
        title: its heading.
        about: what was run, and in what that departs from the report, one paragraph each.
        claims: the report's, with verdicts.
        drawings: figures, with captions and alternative texts.
        tables: numbers.
        slips: what is not right in the report and its arithmetic, one paragraph each.
        seconds: that the runs took.
        command: that makes this section again.
        links: (text, path from the page) of what lies beside it, an ordinary report say.
        provenance: commit, versions, hardware and seeds, in a line.
    """

    name: str
    title: str
    about: Sequence[str]
    claims: Sequence[Claim]
    drawings: Sequence[Exhibit] = ()
    tables: Sequence[Table] = ()
    slips: Sequence[str] = ()
    seconds: float = math.nan
    command: str = ""
    links: Sequence[tuple[str, str]] = ()
    provenance: str = ""


@cache
def printed() -> dict[str, Any]:
    """What the report prints, `source_report.json`."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "source_report.json").read_text(encoding="utf-8"))
    return found


def epoch_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over each epoch's batches of their loss before the update, as the report prints it.

    Args:
        curves: rows of `analysis.results.CURVES`; of the split batch, each is the mean over the updates since the last.

    Returns:
        Columns trial, lane, epoch (1 for the first), loss.
    """
    batch = curves[(curves["split"] == "batch") & (curves["metric"] == "loss")]
    batch = batch.sort_values(["trial", "lane", "update"])
    made = batch.groupby(["trial", "lane"])["update"].diff().fillna(batch["update"])
    number = np.ceil(batch["epoch"] - 1e-9).astype(int)
    sums = pd.DataFrame({"loss": batch["value"] * made, "made": made}).groupby([batch["trial"], batch["lane"], number])
    total = sums.sum()
    return (total["loss"] / total["made"]).rename("loss").rename_axis(["trial", "lane", "epoch"]).reset_index()


def ended_losses(study: Results) -> tuple[pd.DataFrame, int]:
    """The `epoch_losses` of the lanes that did not diverge, and how many did."""
    lost = study.lanes.loc[study.lanes["outcome"] == "diverged", ["trial", "lane"]]
    gone = pd.MultiIndex.from_frame(lost)
    losses = epoch_losses(study.curves)
    return losses[~pd.MultiIndex.from_frame(losses[["trial", "lane"]]).isin(gone)].reset_index(drop=True), len(lost)


def spans(losses: pd.DataFrame, told: Mapping[int, float]) -> pd.DataFrame:
    """The report's loss of some epochs beside the range of ours.

    Args:
        losses: of `epoch_losses`.
        told: epoch -> what the report prints, on the scale of ours.

    Returns:
        Columns epoch, printed, low, middle (geometric mean), high, n, inside; the epochs that both have.
    """
    rows = []
    for epoch, own in losses.groupby("epoch")["loss"]:
        if (value := told.get(int(str(epoch)))) is not None:
            low, high = float(own.min()), float(own.max())
            rows.append(
                {"epoch": epoch, "printed": value, "low": low, "middle": log_interval(own).estimate, "high": high}
                | {"n": len(own), "inside": low <= value <= high}
            )
    return pd.DataFrame(rows, columns=["epoch", "printed", "low", "middle", "high", "n", "inside"])


def span_claim(text: str, found: pd.DataFrame, wanted: int, lost: int = 0) -> Claim:
    """Whether the report's losses lie within the range of our seeds at every epoch, or by how much they do not.

    Args:
        text: what the report says.
        found: of `spans`, of the seeds that did not diverge.
        wanted: epochs that the report prints.
        lost: seeds that diverged. They widen no range; if they are the most, the report's course is not ours.
    """
    count = int(found["n"].min()) if len(found) else 0
    if lost > count:
        why = f"{lost} of {lost + count} seeds diverged, so they do not fall as the report's did"
        return Claim(text, "", "", "differs", why) if lost + count >= FEWEST else few(text, lost + count)
    if len(found) and count < FEWEST:
        return few(text, count)
    if len(found) < wanted:
        return not_checked(text, f"the run was cut to {len(found)} of the {wanted} epochs that the report prints")
    first, last = found.iloc[0], found.iloc[-1]
    told = f"{digits(first['printed'])} down to {digits(last['printed'])}"
    ours = (
        f"{_spread(first)} down to {_spread(last)}: geometric means and ranges of {first['n']} seeds, epochs "
        f"{first['epoch']} and {last['epoch']}" + f"; {lost} more diverged" * bool(lost)
    )
    out = found[~found["inside"]]
    if out.empty:
        return Claim(text, told, ours, "agrees", f"inside the range of our seeds at all {wanted} epochs")
    above = out["printed"] > out["high"]
    excess = np.where(above, out["printed"] / out["high"], out["low"] / out["printed"])
    side = "above" if above.all() else "below" if not above.any() else "outside"
    why = (
        f"{side} the range of our seeds at {len(out)} of {wanted} epochs, by {percent(float(excess.max()) - 1)} at most"
    )
    return Claim(text, told, ours, "differs", why)


def drawing(name: str, title: str, caption: str, alt: str, data: pd.DataFrame, draw: Callable[[], Figure]) -> Exhibit:
    """A figure of a section; see `Exhibit`."""
    return Exhibit("", name, title, caption, alt, data, draw, "no run has finished")


def _cell_text(value: Any) -> str:
    if isinstance(value, float):
        return short(value) if math.isfinite(value) else ""
    return f"{value:,}" if isinstance(value, int) else str(value)


def not_checked(text: str, why: str) -> Claim:
    """A claim that nothing could be held against."""
    return Claim(text, "", "", "not checked", why)


def few(text: str, count: int, noun: str = "seed") -> Claim:
    """A claim that rests on ranges or intervals, where there are too few seeds for them."""
    return not_checked(text, f"{counted(count, noun)} {'has' if count == 1 else 'have'} no range to speak of")


def _spread(row: Any) -> str:
    return f"{short(row['middle'])} [{short(row['low'])}, {short(row['high'])}]"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{short(100 * share)}%"


def digits(value: float) -> str:
    """A number of the report, or one to be held against it: five digits."""
    return f"{float(f'{value:.5g}'):,.10g}"


def interval(found: Interval) -> str:
    """An estimate with its limits, where there are any."""
    limits = f" [{short(found.low)}, {short(found.high)}]" if found.n > 1 and math.isfinite(found.high) else ""
    return f"{short(found.estimate)}{limits}"


def score_text(row: Mapping[str, Any]) -> str:
    """The validation score of a cell with its limits."""
    return interval(Interval(row["validation"], row["validation_low"], row["validation_high"], row["n"]))


def duration(seconds: float) -> str:
    """Seconds for readers."""
    if not math.isfinite(seconds):
        return "\N{EN DASH}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def told_of_runs(name: str, studies: Sequence[Results]) -> dict[str, Any]:
    """What a section tells of its runs: seconds, command, links and provenance."""
    sessions = [session for study in studies for session in study.provenance.get("sessions") or []]
    last = sessions[-1] if sessions else {}
    hardware, versions = last.get("hardware", {}), last.get("versions", {})
    commits = list(dict.fromkeys(session.get("commit") or "unknown" for session in sessions)) or ["unknown"]
    gone = [_session_seconds(study.provenance) for study in studies]
    links = []
    out = studies[0].path.parent.parent
    for study in studies:
        place = os.path.relpath(study.path, out)
        links.append((f"{study.name}: spec", f"{place}/spec.toml"))
        if (study.path / "report" / "index.html").is_file():
            links.append((f"{study.name}: ordinary report", f"{place}/report/index.html"))
    told = (
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}; {versions_text(versions)}; "
        f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cpus', '?')} processors; {_seeds_told(studies)}"
    )
    command = ["study", "reproduce", "--only", name, *_sizes(sessions)]
    if out.absolute() != OUT.absolute():
        command += ["--out", str(out)]
    return {"seconds": sum(gone), "command": shlex.join(command), "links": links, "provenance": told}


def _sizes(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options by which a reproduction was made smaller or larger than its specs, from its latest command."""
    commands = [str(each.get("command")) for each in sessions]
    words = shlex.split(next((command for command in reversed(commands) if " reproduce" in command), ""))
    found = []
    for option in ("--seeds", "--epochs"):
        for place, word in enumerate(words):
            if word == option and place + 1 < len(words):
                found += [option, words[place + 1]]
            elif word.startswith(f"{option}="):
                found += word.split("=", 1)
    return found


def versions_text(versions: Mapping[str, str]) -> str:
    """The versions on which numbers depend most."""
    return ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "numpy") if name in versions)


def _seeds_told(studies: Sequence[Results]) -> str:
    """The seeds of all studies; those of one are named once, where they share them."""
    by_seeds: dict[str, list[str]] = {}
    for study in studies:
        by_seeds.setdefault(_seeds_text(study), []).append(study.name)
    if len(by_seeds) == 1:
        return next(iter(by_seeds))
    return "; ".join(f"{', '.join(names)}: {seeds}" for seeds, names in by_seeds.items())


def _seeds_text(study: Results) -> str:
    fresh = study.confirmation
    told = _from_to(study.lanes["seed"])
    return told if fresh is None else f"{told}, confirmed on {_from_to(fresh.lanes['seed'])}"


def _from_to(seeds: pd.Series[int]) -> str:
    if seeds.empty:
        return "no seeds"
    first, last = int(seeds.min()), int(seeds.max())
    return f"seed {first}" if first == last else f"seeds {first} to {last}"


def _session_seconds(provenance: Mapping[str, Any]) -> float:
    """Seconds of all the sessions of a study that ended, as far as was told."""
    whole = [each for each in provenance.get("sessions", []) if each.get("ended")]
    return sum(
        (datetime.fromisoformat(each["ended"]) - datetime.fromisoformat(each["started"])).total_seconds()
        for each in whole
    )


def completed(study: Results) -> pd.DataFrame:
    """The lanes that had their whole budget."""
    return study.lanes[study.lanes["outcome"] == "completed"]


def truth(study: Results) -> list[dict[str, Any]]:
    """What the data's maker told of each draw; nothing if it did not, or what it told is damaged."""
    return read_truth(study.path)


def read_truth(folder: Path) -> list[dict[str, Any]]:
    """The `truth` of a results folder."""
    try:
        found = json.loads((folder / TRUTH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    good = isinstance(found, list) and all(isinstance(entry, dict) and "seed" in entry for entry in found)
    return found if good else []


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame."""
    return frame.to_dict("records")  # type: ignore[return-value]


def panel(draw: Callable[[Axes], Any], width: float, height: float) -> Callable[[], Figure]:
    """A figure of one panel with its legend, if it needs one, below."""

    def made() -> Figure:
        figure = figures.figure(width, height)
        ax = figure.subplots()
        draw(ax)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return figure

    return made
