"""Figures and tables -> one HTML file that opens offline, with every figure and its numbers as files beside it."""

from __future__ import annotations

import base64
import io
import math
import shlex
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, series, tables
from analysis.figures import COLUMN_MM, PAGE_MM, interval_text, metric_text, optimizer_text, settings_text, short
from analysis.results import OUTCOMES, Results, ResultsError, load

LEADERBOARD_ROWS = 20
FAILURE_ROWS = 10
SCREEN_DPI = 130  # larger than in print, where the figures are set for 180 mm


def write_report(paths: str | Path | Sequence[str | Path], out_dir: str | Path | None = None) -> Path:
    """Write the report of one or several studies, finished or not.

    Args:
        paths: a results folder, or several; each becomes a section.
        out_dir: where to write; `report/` in the first results folder if not given.

    Returns:
        The path of `index.html`. Figures lie beside it in `figures/`, each as SVG, PNG and CSV.

    Raises:
        ResultsError: if a folder cannot be read as results.
    """
    folders = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not folders:
        raise ResultsError("no results folder given")
    out = Path(out_dir) if out_dir is not None else folders[0] / "report"
    studies = [load(folder) for folder in folders]  # before anything is made: a mistyped path leaves no folder behind
    (out / "figures").mkdir(parents=True, exist_ok=True)
    prefixes = ["" if len(folders) == 1 else f"{number}-" for number in range(1, len(folders) + 1)]
    sections = [_section(study, out, prefix) for study, prefix in zip(studies, prefixes, strict=True)]
    command = shlex.join(["study", "report", *map(str, folders)])
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(sections=sections, command=command, failure_rows=FAILURE_ROWS)
    )
    _write(out / "index.html", page.encode())
    return out / "index.html"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": _number, "settings": settings_text}
    return environment


def _section(results: Results, out: Path, prefix: str) -> dict[str, Any]:
    """Everything that the template shows of one study."""
    table = tables.cells(results)
    ranked = tables.rank(table, results.maximize)
    times = tables.target_times(results, table)
    leaderboard = f"figures/{prefix}cells.csv"
    _write(out / leaderboard, table.to_csv(index=False).encode())
    return {
        "id": prefix.rstrip("-") or "study",
        "name": results.name,
        "description": str(results.spec.get("description", "")),
        "verdict": verdict(results, table),
        "confirmation": confirmation(results, table),
        "confirmed": [
            _shown(row, ("search", "confirmed", "test"), results.metric) | {"curse": _curse(row, results.metric)}
            for row in _records(tables.winners_curse(results, table))
        ],
        "course": course(results),
        "outcomes": outcome_counts(results),
        "failures": failures(results),
        "metric": results.metric,
        "unit": _unit(results),
        "leaderboard": [
            _shown(row, ("validation", "test"), results.metric) | {"rank": place}
            for place, row in enumerate(_records(ranked.head(LEADERBOARD_ROWS)), start=1)
        ],
        "leaderboard_file": leaderboard,
        "cells": len(ranked),
        "pooled": (ranked["trials"] > 1).any(),
        "has_settings": (table["settings"] != "").any(),
        "objectives": [name for name in results.objectives if name != "metric"] if len(results.objectives) > 1 else [],
        "front": [_shown(row, ("validation",), results.metric) for row in _records(_front(results, table))],
        "target": None if results.target is None else short(results.target),
        "times": times.to_dict("records"),
        "figures": [drawing.save(out, prefix) for drawing in _drawings(results, table)],
        "warnings": warnings(results, table),
        "spec": results.spec_text,
        "provenance": list(_flattened(results.provenance)),
    }


def verdict(results: Results, table: pd.DataFrame) -> str:
    """One or two sentences: which cell is best, and whether it beats the best cell of the next-best optimizer.

    Args:
        results: the study.
        table: its `tables.cells`.
    """
    ranked, metric = tables.rank(table, results.maximize), results.metric
    if results.trials.empty:
        return "No trial has ended yet, so there is nothing to compare."
    if ranked.empty:
        return "No trial has a learning rate at which every seed survived, so there is nothing to compare."
    best = ranked.iloc[0]
    split = "test" if best["test_n"] else "validation"
    first = f"Best on the validation split is {_cell(best)} at learning rate {short(best['learning_rate'])}"
    curse = tables.winners_curse(results, table)
    again = next((row for row in _records(curse) if row["trial"] == best["trial"]), None)
    if again and again["confirmed_n"]:
        name, split = ("test", "test") if again["test_n"] else ("confirmed", "validation")
        place = "" if again["rank_confirmed"] == 1 else f", though only number {again['rank_confirmed']:.0f} there"
        first += f", confirmed on {_count(again['seeds'], 'fresh seed')}{place}: {split} {metric} "
        first += f"{_value(again, name, metric)}."
    else:
        first += f": {split} {metric} {_value(best, split, metric)} over {_count(best['n'], 'seed')}."
        first += f" It is not confirmed: {_loss_of_seeds(again)}." if again else ""
    first += "" if best["outcome"] == "completed" else " No trial has completed its budget, so this is provisional."
    comparison = tables.compare_best(results, table)
    if comparison is None:
        return f"{first} Only one optimizer has a result, so it is compared with no other."
    return f"{first} {_comparison_text(comparison, metric, of_search=again is not None)}"


def _comparison_text(comparison: tables.Comparison, metric: str, *, of_search: bool) -> str:
    """The comparison in a sentence; `of_search` says which seeds it is over where others were just spoken of."""
    effect, rival = comparison.effect, comparison.rival
    words = [settings_text(rival["settings"]), _shape(rival), f"rate {short(rival['learning_rate'])}"]
    other = f"the best {rival['optimizer']} cell ({', '.join(filter(None, words))})"
    if effect.n == 0:
        return f"It shares no seed with {other}, the next-best optimizer's, so their difference has no interval."
    if effect.n == 1:
        return f"It shares one seed with {other}, the next-best optimizer's, which says nothing about their difference."
    if metric == "accuracy":
        limits = f"{100 * effect.low:+.2f}, {100 * effect.high:+.2f}"
        numbers = f"differs by {100 * effect.estimate:+.2f} percentage points [{limits}] from that of {other}"
    else:
        numbers = f"is {short(effect.estimate)} times [{short(effect.low)}, {short(effect.high)}] that of {other}"
    pairs = _count(effect.n, "paired fresh seed" if comparison.fresh else "paired seed")
    pairs += " of the search" if of_search and not comparison.fresh else ""
    sentence = f"Its {comparison.split} {metric} {numbers}, better on {comparison.wins} of {pairs}"
    if not comparison.differs:
        return f"{sentence}: no clear difference between the two optimizers."
    if comparison.favours_rival(metric):
        return f"{sentence}: the test split contradicts the choice made on validation."
    least = 2 / 2**effect.n
    if least >= 0.05:
        return (
            f"{sentence}. That is more than the scatter over seeds explains, but {_count(effect.n, 'seed')} cannot "
            f"reach p < .05 in an exact test (at best {short(least)}): confirm it on more, fresh seeds."
        )
    return f"{sentence} (sign-flip p = {short(comparison.p)})."


def confirmation(results: Results, table: pd.DataFrame) -> list[str]:
    """Whether the winner holds its place on fresh seeds, and how large the winner's curse is; empty if unknown.

    Args:
        results: the study.
        table: its `tables.cells`.
    """
    curse, metric = tables.winners_curse(results, table), results.metric
    if curse.empty:
        return []
    held, best = curse[curse["confirmed"].notna()], curse.iloc[0]
    name = (
        "The best cell of the search" if best["rank_search"] == 1 else f"{_cell(best)} (the search's best is missing)"
    )
    seeds = f"{_seeds(curse['seeds'], 'fresh seed')}, against {_seeds(curse['search_n'])} in the search"
    if best["confirmed_n"] == 0:
        place = f"{name} cannot be confirmed on {seeds}: {_loss_of_seeds(best)}."
    elif len(held) == 1:
        place = f"{name} alone was confirmed, on {seeds}, so its place is not checked."
    elif best["rank_confirmed"] == 1:
        place = f"{name} holds the first place of {len(held)} confirmed cells on {seeds}."
    else:
        first = held.sort_values("rank_confirmed").iloc[0]
        place = f"{name} falls to place {best['rank_confirmed']:.0f} of {len(held)} confirmed cells on {seeds}; "
        place += f"first is {_cell(first)}."
    average = tables.average_curse(results, curse)
    if not average.n:
        return [place]
    neutral, scale = (0.0, "search minus confirmed") if results.maximize else (1.0, "confirmed over search")
    worse = "above 0" if results.maximize else "above 1"
    sentence = f"The winner's curse, {scale} validation {metric} ({worse}: worse on fresh seeds), is "
    if len(held) > 1:
        shown = {"curse": average.estimate, "curse_low": average.low, "curse_high": average.high}
        sentence += f"{' '.join(_curse(shown, metric))} on average"
        sentence += f" and {' '.join(_curse(best, metric))} for the best" if best["confirmed_n"] else ""
    else:
        sentence += " ".join(_curse(held.iloc[0], metric))
    if average.low > neutral:
        return [place, f"{sentence}: the search promised too much."]
    if average.high < neutral:
        return [place, f"{sentence}: the fresh seeds did better."]
    return [place, f"{sentence}: none that stands out from the scatter over seeds."]


def _curse(row: Any, metric: str) -> tuple[str, str]:
    """The curse and its limits, such as `1.08 times` and `[0.97, 1.2]`; a dash for none."""
    estimate, low, high = (float(row[name]) for name in ("curse", "curse_low", "curse_high"))
    if math.isnan(estimate):
        return metric_text(estimate, metric), ""
    if metric == "accuracy":
        return f"{100 * estimate:+.2f} percentage points", f"[{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{short(estimate)} times", f"[{short(low)}, {_number(high)}]"


def _loss_of_seeds(row: Any) -> str:
    """Why a cell that was run again has no confirmed score."""
    if row["diverged"]:
        return f"{row['diverged']} of {_count(row['seeds'], 'fresh seed')} diverged"
    return f"its lanes there ended as {row['outcome']}"


def _front(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    front = table[tables.pareto(table, results.objectives, results.maximize)]
    return front.sort_values(["validation", "trial"], ascending=[not results.maximize, True])


def course(results: Results) -> list[str]:
    """How the study went: whether it still runs, trials done of those planned, processor hours."""
    trials, provenance = results.trials, results.provenance
    planned = _table(results.spec, "budget").get("trials")
    of = f" of {planned}" if isinstance(planned, int) else ""
    lines = [f"{len(trials)}{of} trials have ended, with {len(results.lanes):,} lanes (learning rates x seeds)."]
    if provenance.get("finished"):
        lines.append(f"Started {_when(provenance.get('started'))}, finished {_when(provenance['finished'])}.")
    elif provenance.get("started"):
        lines.append(f"Started {_when(provenance['started'])} and has not finished: it still runs or was interrupted.")
    else:
        lines.append("Whether it still runs is not recorded.")
    cpus = _table(results.spec, "resources").get("cpus_per_trial", 1)
    seconds = float(trials["wall_seconds"].sum())
    lines.append(
        f"The trials took {_seconds(seconds)} of trial time, {short(seconds * float(cpus) / 3600)} CPU hours at "
        f"{short(float(cpus))} CPU a trial; {_seconds(float(trials['train_seconds'].sum()))} of it was training."
    )
    grown = results.pooled.trials.groupby("cell")["extensions"].max()
    if (grown > 0).any():
        lines.append(
            f"The learning-rate grid of {_count(int((grown > 0).sum()), 'cell')} grew, its best rate being on the edge."
        )
    return lines


def outcome_counts(results: Results) -> list[tuple[str, int, int]]:
    """Rows (outcome, trials, lanes), for every outcome that occurs; the recorded order, unknown ones last."""
    trials, lanes = results.trials["outcome"].value_counts(), results.lanes["outcome"].value_counts()
    names = [*OUTCOMES, *sorted((set(trials.index) | set(lanes.index)) - set(OUTCOMES))]
    rows = [(name, int(trials.get(name, 0)), int(lanes.get(name, 0))) for name in names]
    return [row for row in rows if row[1] or row[2]]


def failures(results: Results) -> list[tuple[int, str, str]]:
    """Rows (trial, cell, last line of the reason) of every trial that failed or ran out of memory, in order."""
    lost = results.trials[results.trials["outcome"].isin(["failed", "out of memory"])]
    lost = lost.fillna({"settings": "", "error": ""})
    reasons = [error.strip().splitlines() or ["not recorded"] for error in lost["error"]]
    return [(row["trial"], _cell(row), reason[-1]) for row, reason in zip(_records(lost), reasons, strict=True)]


def warnings(results: Results, table: pd.DataFrame) -> list[str]:
    """What a reader must know before trusting the numbers, most telling first."""
    ranked, found = tables.rank(table, results.maximize), []
    best = ranked.drop_duplicates("optimizer")
    edge = [f"{row['optimizer']} ({short(row['learning_rate'])})" for _, row in best[best["on_edge"]].iterrows()]
    if edge:
        found.append(
            f"Tuned rate on the edge of its grid for the best cell of {', '.join(edge)}: a rate outside may be better. "
            f"Widen the range."
        )
    if ranked["on_edge"].any():
        found.append(f"{int(ranked['on_edge'].sum())} of {len(ranked)} tuned rates lie on the edge of their grid.")
    confirmed = tables.winners_curse(results, table)
    if confirmed["confirmed"].notna().any():
        found.append(
            "Rates and cells were chosen on the search's seeds, which the leaderboard and the figures show; only the "
            "confirmed scores come from seeds that chose nothing."
        )
    elif len(ranked):
        found.append(
            "The learning rate was chosen on the same seeds that are reported, and the best of many cells is partly "
            "the luckiest: expect the winner to do slightly worse on fresh seeds. [confirm] in the spec runs it there."
        )
    if results.confirmation_trouble:
        found.append(f"The confirmation is left out: {results.confirmation_trouble}.")
    unshown = results.confirmation.pooled.trials["cell"].nunique() - len(confirmed) if results.confirmation else 0
    if unshown:
        found.append(
            f"{_count(unshown, 'confirmed cell')} left out: no lane ended, or the cell's tuned rate is another by now."
        )
    if (ranked["rates"] == 1).any():
        found.append("Some cells ran at one learning rate only: there the rate is given, not tuned.")
    seeds = int(ranked["n"].min()) if len(ranked) else 0
    if 0 < seeds < 6:
        found.append(
            f"{_count(seeds, 'seed').capitalize()} cannot give p < .05 in an exact paired test, whatever the "
            f"difference; it takes 6."
        )
    if len(ranked) and ranked["epochs"].max() > 1.5 * ranked["epochs"].min():
        found.append(
            f"The cells compared differ in training, from {short(ranked['epochs'].min())} to "
            f"{short(ranked['epochs'].max())} epochs and from {short(ranked['updates'].min())} to "
            f"{short(ranked['updates'].max())} updates: read the curves against the axis that you pay for."
        )
    lanes = results.lanes
    diverged = int((lanes["outcome"] == "diverged").sum())
    if diverged:
        found.append(
            f"{diverged:,} of {len(lanes):,} lanes diverged ({diverged / len(lanes):.0%}); a rate at which any seed "
            f"diverged is not eligible as the tuned one."
        )
    stopped = int((results.trials["outcome"] == "stopped").sum())
    if stopped:
        found.append(
            f"{_count(stopped, 'trial')} stopped by the scheduler saw less of the budget, so what they had reached is "
            f"not compared with trials that completed."
        )
    left = results.pooled.left_out["outcome"].value_counts()
    if len(left):
        found.append(
            f"Trials left out of their cells, for which others count that came further: "
            f"{_listing(f'{count} {name}' for name, count in left.items())}."
            + (" Where one diverged, its cell looks too good." if "diverged" in left else "")
        )
    given_up = int(lanes["stopped_update"].notna().sum())
    if given_up:
        found.append(
            f"Halving gave up {given_up:,} of {len(lanes):,} lanes before the end of the budget: their learning rates "
            f"were behind others then. They are not eligible as the tuned one, and figures leave them out."
        )
    lost = int((~results.trials["outcome"].isin(["completed", "stopped", "diverged"])).sum())
    if lost:
        found.append(f"Not compared: {_count(lost, 'trial')} that failed, ran out of memory or was interrupted.")
    return found


@dataclass(frozen=True)
class _Drawing:
    """A figure that the report shows: how it is drawn, and what stands below it."""

    name: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    draw: Callable[[], Figure]

    def save(self, out: Path, prefix: str) -> dict[str, Any]:
        """Write SVG, PNG and CSV; return what the template needs. Without data there is no image but a reason."""
        files = {kind: f"figures/{prefix}{self.name}.{kind}" for kind in ("svg", "png", "csv")}
        shown = {"title": self.title, "caption": self.caption, "alt": self.alt, "files": files, "image": None}
        if self.data.empty:
            for kind in files.values():  # of an earlier report; it would contradict this one
                (out / kind).unlink(missing_ok=True)
            return shown
        with figures.style():
            drawn = self.draw()
            svg, png = io.BytesIO(), io.BytesIO()
            drawn.savefig(svg, format="svg", metadata={"Date": None, "Title": self.title})
            drawn.set_layout_engine("none")  # keeps what was laid out, which takes most of the time
            drawn.savefig(png, format="png", metadata={"Title": self.title})
        _write(out / files["svg"], svg.getvalue())
        _write(out / files["png"], png.getvalue())
        _write(out / files["csv"], self.data.to_csv(index=False).encode())
        image = "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()
        return shown | {"image": image, "size": [round(SCREEN_DPI * inches) for inches in drawn.get_size_inches()]}


def _drawings(results: Results, table: pd.DataFrame) -> list[_Drawing]:
    metric, unit, maximize = results.metric, _unit(results), results.maximize
    curves = series.regime_curves(results, table)
    rates = series.rate_sensitivity(results, table)
    batches = series.grid(table, "optimizer", "batch_size", maximize)
    shapes = series.grid(table, "depth", "width", maximize)
    search = series.progress(results)
    mean = "geometric mean" if metric == "loss" else "mean (on the log-odds scale)"

    def regimes() -> Figure:
        figure = figures.figure(PAGE_MM, 125)
        panels = figure.subplots(2, 2, sharey=True).ravel()
        for ax, by in zip(panels, tables.AXES, strict=True):
            figures.loss_by_regime(curves, ax, by, metric, unit)
            ax.set_ylabel("")
        figure.supylabel(f"validation {metric}" + (f", {unit}" if unit else ""), fontsize=8)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=1)
        return figure

    def with_legend(draw: Callable[[pd.DataFrame, Axes, str, str], Axes], data: pd.DataFrame, height: float) -> Figure:
        figure = figures.figure(PAGE_MM * 0.78, height)
        ax = draw(data, figure.subplots(), metric, unit)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
        return figure

    def sensitivity() -> Figure:
        return with_legend(figures.learning_rate_sensitivity, rates, 85)

    def by_batch() -> Figure:
        figure = _heat_map_size(batches)
        figures.heat_map(batches, figure.subplots(), "optimizer", "batch size", metric)
        return figure

    def by_shape() -> Figure:
        figure = _heat_map_size(shapes)
        figures.heat_map(shapes, figure.subplots(), "depth", "width", metric)
        return figure

    def found() -> Figure:
        return with_legend(figures.search_progress, search, 75)

    seeds = _seeds(curves["n"]), _seeds(rates["n"]), _seeds(table["n"])
    return [
        _Drawing(
            "loss-by-regime",
            f"Validation {metric} by regime",
            f"The best cell of each regime at its tuned learning rate, against updates, training examples, epochs and "
            f"seconds of training of its whole stack of lanes (evaluation excluded). Line: {mean} of the validation "
            f"{metric} over {seeds[0]}; {_band_note(curves['n'])}."
            + (" Faint line: loss of the batches of one seed." if curves["batch_loss"].notna().any() else ""),
            f"Four panels of validation {metric} along training, one line per regime: {_listing(curves['regime'])}.",
            curves,
            regimes,
        ),
        _Drawing(
            "learning-rate-sensitivity",
            "Sensitivity to the learning rate",
            f"The best cell of each optimizer at every learning rate of its grid. Line: {mean} of the final validation "
            f"{metric} over {seeds[1]}; {_band_note(rates['n'])}; ring: tuned rate; cross: a seed diverged there.",
            f"Final validation {metric} against learning rate, one line per optimizer: {_listing(rates['optimizer'])}.",
            rates,
            sensitivity,
        ),
        _Drawing(
            "optimizer-batch-size",
            "Optimizer and batch size",
            f"Validation {metric} of the best cell over width and depth, at its tuned rate: {mean} over {seeds[2]}, in "
            f"brackets the 95% t interval. Lighter is better; grey: no value, with the reason.",
            f"Heat map of validation {metric}: rows are optimizers, columns batch sizes.",
            batches,
            by_batch,
        ),
        _Drawing(
            "width-depth",
            "Width and depth",
            f"Validation {metric} of the best cell over optimizer and batch size, at its tuned rate: {mean} over "
            f"{seeds[2]}, in brackets the 95% t interval. Lighter is better; grey: no value, with the reason.",
            f"Heat map of validation {metric}: rows are depths, columns widths.",
            shapes,
            by_shape,
        ),
        _Drawing(
            "search-progress",
            "The search, trial by trial",
            f"Validation {metric} of each trial at its tuned rate ({mean} over its seeds) and the best so far; no "
            f"band. Cross: a trial without a value.",
            f"Validation {metric} of every trial in order, and the best so far.",
            search,
            found,
        ),
    ]


def _heat_map_size(data: pd.DataFrame) -> Figure:
    rows, columns = data["row"].nunique(), data["column"].nunique()
    return figures.figure(min(PAGE_MM, max(COLUMN_MM, 45 + 24 * columns)), 24 + 11 * max(rows, 2))


def _seeds(counts: pd.Series[int], noun: str = "seed") -> str:
    known = counts[counts > 0]
    if known.empty:
        return f"{noun}s"
    low, high = int(known.min()), int(known.max())
    return _count(low, noun) if low == high else f"{low} to {high} {noun}s"


def _band_note(counts: pd.Series[int]) -> str:
    return "band: pointwise 95% t interval" if (counts > 1).any() else "no band, which one seed does not allow"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _shown(row: dict[str, Any], names: Sequence[str], metric: str) -> dict[str, Any]:
    """A row whose named scores are what the template shows: (value, limits)."""
    return row | {name: (metric_text(row[name], metric), _limits(row, name, metric)) for name in names}


def _limits(row: Any, name: str, metric: str) -> str:
    count = row["n"] if name == "validation" else row[f"{name}_n"]
    return interval_text(row[f"{name}_low"], row[f"{name}_high"], count, metric)


def _value(row: Any, name: str, metric: str) -> str:
    """A score with its limits in a sentence."""
    limits = _limits(row, name, metric)
    return f"{metric_text(row[name], metric)} {limits if limits.startswith('[') else '(without an interval)'}"


def _cell(row: Any) -> str:
    """A cell in words, such as `adam (beta1 0.9), width 32, depth 2, batch size 32`."""
    return f"{optimizer_text(row['optimizer'], row['settings'])}, {_shape(row)}"


def _shape(row: Any) -> str:
    """A cell but for its optimizer in words, such as `width 32, depth 2, batch size 32`."""
    batch = f"batch size {row['batch_size']:,}" + (" (full)" if row["regime"] == "batch" else "")
    return f"width {row['width']}, depth {row['depth']}, {batch}" if row["width"] or row["depth"] else batch


def _unit(results: Results) -> str:
    """What a loss is measured in, from provenance; an accuracy needs no word."""
    return str(_table(results.provenance, "data").get("loss", "")) if results.metric == "loss" else ""


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, dict) else {}


def _count(number: Any, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    """A number in a table: three digits, a dash for none, ∞ for never."""
    return short(value) if math.isfinite(value) else metric_text(value, "loss")


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return metric_text(value, "loss")
    return f"{value / 3600:.1f} h" if value >= 5400 else f"{value / 60:.1f} min" if value >= 90 else f"{value:.2g} s"


def _when(time: Any) -> str:
    return str(time or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")


def _flattened(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Provenance as rows (dotted name, text)."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value, start=1))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flattened(inner, f"{name}.{key}" if name else str(key))
    elif name:
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        yield name, "not recorded" if value is None else text


def _write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all, so that a reader never meets half a report."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)  # temporary files are private, a report is to be read
    temporary.replace(path)
