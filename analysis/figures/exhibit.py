"""A figure of the report with its title, caption and numbers, or the reason why it is missing."""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis.figures.style import COLUMN_MM, PAGE_MM, SERIES, figure, inline, narrow, style
from analysis.results import Results, table_of
from analysis.text import metric_text, short

SCREEN_DPI = 130  # larger than in print, for which the figures are laid out
FAILED = "drawing it failed"
LETTER_INCHES = 0.061  # a letter of an axis label on average


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report; the caption says first what is seen, `reason` says why it has no data.

    `views` are drawings of the same data by the words on their tabs, if there are several; the first is `draw`.
    """

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    draw: Callable[[], Figure]
    reason: str
    views: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)

    def drawings(self) -> Iterator[tuple[str, Figure]]:
        """The word on its tab and the drawing of each view, whose axis labels fit; call it within `style()`."""
        for tab, draw in (self.views or {"": self.draw}).items():
            drawn = draw()
            # A label longer than its axes makes the constrained layout shrink them until nothing is left.
            shares = (0.7, 0.5) if narrow() else (0.75, 0.7)
            width, height = (
                share * x / LETTER_INCHES for share, x in zip(shares, drawn.get_size_inches(), strict=True)
            )
            for ax in drawn.axes:
                spec = ax.get_subplotspec()
                rows, columns = spec.get_gridspec().get_geometry() if spec else (1, 1)
                ax.set_xlabel(_folded(ax.get_xlabel(), width / columns))
                ax.set_ylabel(_folded(ax.get_ylabel(), height / rows))
            drawn.supylabel(_folded(drawn.get_supylabel(), height), fontsize=8)
            yield tab, drawn

    def save(self, out: Path, prefix: str, *, pdf: bool = False, width: str | float = PAGE_MM) -> dict[str, Any]:
        """Write SVG, CSV and, if asked for, PDF to `out/figures`; those of an earlier report are deleted.

        Returns:
            What the template shows: name, title, caption, files, image (an SVG element; None if missing), or the
            reason; views: the tab of each drawing, and its SVG element and `points` as `image` and as `column`, the
            drawing for a phone and for columns in print.
        """
        stem = out / "figures" / f"{prefix}{self.name}"
        shown: dict[str, Any] = {"name": stem.name, "title": self.title, "caption": self.caption}
        tabs = list(self.views) or [""]
        files = {tab: f"{stem}-{tab}" if place else str(stem) for place, tab in enumerate(tabs)}
        for file in [f"{each}.{kind}" for each in files.values() for kind in ("svg", "pdf", "csv")]:
            Path(file).unlink(missing_ok=True)
        if self.data.empty:
            return shown | {"image": None, "reason": self.reason}
        drawings: list[dict[str, Any]] = []
        try:
            with style(width):
                for tab, drawn in self.drawings():
                    image = self._written(drawn, files[tab], pdf=pdf)
                    drawings.append({"tab": tab, "image": (image, json.dumps(points(drawn)))})
            with style(COLUMN_MM):
                for view, (tab, drawn) in zip(drawings, self.drawings(), strict=True):
                    svg, name = _bytes(drawn, "svg", {"Date": None}), f"{Path(files[tab]).name}-column"
                    view["column"] = (self._inlined(svg, name, drawn), json.dumps(points(drawn)))
        except Exception as error:  # noqa: BLE001 - one figure that fails must not prevent the report
            return shown | {"image": None, "reason": f"{FAILED} ({type(error).__name__}: {error})"}
        write_file(stem.with_name(f"{stem.name}.csv"), self.data.to_csv(index=False).encode())
        kinds = ("svg", "pdf", "csv") if pdf else ("svg", "csv")
        shown["files"] = {kind.upper(): f"figures/{stem.name}.{kind}" for kind in kinds}
        # Of one panel each: two stand beside each other in print.
        pairs = len(drawings) > 1 and len(drawn.axes) == 1
        return shown | {"views": drawings, "image": drawings[0]["image"][0], "pairs": pairs}

    def _written(self, drawn: Figure, file: str, *, pdf: bool) -> str:
        """Write a drawing; returns it as an SVG element."""
        images: dict[str, bytes] = {}
        for kind, date in {"svg": "Date", **({"pdf": "CreationDate"} if pdf else {})}.items():
            images[kind] = _bytes(drawn, kind, {date: None, "Title": self.title})
            drawn.set_layout_engine("none")  # keeps the layout, which takes most of the time
            write_file(Path(f"{file}.{kind}"), images[kind])
        return self._inlined(images["svg"], Path(file).name, drawn)

    def _inlined(self, svg: bytes, name: str, drawn: Figure) -> str:
        seen = f"{self.title}. {re.split(r'(?<=[.!?]) (?=[A-Z])', self.caption)[0]}"
        return inline(svg, name, seen, SCREEN_DPI * drawn.get_figwidth())


def _bytes(drawn: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    """A drawing as a file; its series are attributes, since several artists of one would have the same id."""
    drawn.savefig(buffer := io.BytesIO(), format=kind, metadata=metadata)
    return buffer.getvalue().replace(f' id="{SERIES}'.encode(), b' data-series="')


def points(drawn: Figure) -> list[tuple[str, float, float, str]]:
    """The points of all series of a figure that has been drawn, for readers who point at them.

    Returns:
        Name of the series, place in the SVG (points from the left, from the top), and the values in words, with the
        limits of the bar or band there, after its label where it is no interval of the value.
    """
    listed: list[tuple[str, float, float, str]] = []
    height, scale = 72 * drawn.get_figheight(), 72 / drawn.dpi
    for ax in drawn.axes:
        for line in ax.get_lines():
            name = str(line.get_gid() or "").removeprefix(SERIES)
            beside = line.get_transform() in (ax.get_xaxis_transform(), ax.get_yaxis_transform())
            if not name or beside or line.get_linestyle() not in ("-", "None"):
                continue
            words, limits = _limits(ax, str(line.get_gid()))
            values = np.asarray(line.get_xydata(), dtype=float)
            for (x, y), (across, up) in zip(values, line.get_transform().transform(values), strict=True):
                if ax.bbox.contains(across, up):
                    low, high = min(limits.get(x, [y])), max(limits.get(x, [y]))
                    shown = _value(ax, y) + (f"{words} [{_value(ax, low)}, {_value(ax, high)}]" if low < high else "")
                    text = f"{ax.get_xlabel()} {short(x)}: {shown}".replace("\n", " ")
                    listed.append((name, round(across * scale, 1), round(height - up * scale, 1), text))
    return listed


def _limits(ax: Axes, series: str) -> tuple[str, dict[float, list[float]]]:
    """The label of the bars or the band of a series, if they have one, and the heights of their ends at each place."""
    heights, words = dict[float, list[float]](), ""
    for drawn in (drawn for drawn in ax.collections if drawn.get_gid() == series):
        label = str(drawn.get_label())
        words = words or (f", {label[1:]}" if label.startswith("_") and not label.startswith("_child") else "")
        for x, y in (vertex for path in drawn.get_paths() for vertex in np.asarray(path.vertices, dtype=float)):
            heights.setdefault(float(x), []).append(float(y))
    return words, heights


def _value(ax: Axes, value: float) -> str:
    return (
        metric_text(value, "accuracy") if isinstance(ax.yaxis.get_major_formatter(), PercentFormatter) else short(value)
    )


def _folded(label: str, letters: float) -> str:
    """A label on as many lines as it needs."""
    lines = [(line, math.ceil(len(line) / max(8, int(letters)))) for line in label.split("\n")]
    return "\n".join(textwrap.fill(line, len(line) // count + 4) if count > 1 else line for line, count in lines)


Place = Literal["outside right upper", "outside upper center"]


def with_legend(
    draw: Callable[[Axes], Any],
    width: float = 0.78 * PAGE_MM,
    height: float = 80.0,
    place: Place = "outside right upper",
) -> Figure:
    """A figure of one panel with a legend at a place, or below in a column, if anything is labelled; millimetres."""
    drawn = figure(width, 0.8 * height if narrow() else height)
    draw(drawn.subplots())
    legend(drawn, place)
    return drawn


def panels(draw: Callable[[Axes, str], Any], columns: list[str], across: int, row_mm: float, label: str) -> Figure:
    """A figure with one panel per column name, `across` in a row of a page; all share the vertical axis, `label`."""
    across = min(across, len(columns), 2 if narrow() else across)
    rows = -(-len(columns) // across)
    drawn = figure(PAGE_MM, 8 + (0.75 * row_mm if narrow() else row_mm) * rows)
    axes = drawn.subplots(rows, across, sharey=True, squeeze=False).ravel()
    for place, ax in enumerate(axes):
        ax.set_visible(place < len(columns))
        if place < len(columns):
            draw(ax, columns[place])
        ax.set_ylabel("")
    drawn.supylabel(label, fontsize=8)
    return drawn


def legend(drawn: Figure, place: Place) -> None:
    """The legend of a figure, of each label once: at a place, or below the axes in a column, as wide as the column."""
    found: dict[str, Any] = {}
    for ax in drawn.axes:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if not found:
        return
    longest = max(map(len, found)) * 0.056 + 0.5  # inches at 7 pt
    columns = max(1, min(len(found), int(drawn.get_figwidth() / longest)))
    if narrow():
        drawn.set_figheight(drawn.get_figheight() + 0.14 * math.ceil(len(found) / columns))
        drawn.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)
    else:
        across = columns if place == "outside upper center" else 1
        drawn.legend(list(found.values()), list(found), loc=place, ncols=across)


def varied(data: pd.DataFrame, column: str, least: int = 2) -> pd.DataFrame:
    """The data, or none of it if a column has fewer than `least` values, so that there is nothing to see."""
    return data if len(data) and data[column].nunique() >= least else data.head(0)


def mean_of(results: Results) -> str:
    """The mean over seeds that suits the study's metric, in words."""
    return "geometric mean" if results.metric == "loss" else "mean on the log-odds scale"


def best_here(results: Results, shown: str) -> str:
    """Which means are best on the seeds that chose them, in a sentence that is no verdict."""
    return f"{'Highest' if results.maximize else 'Lowest'} mean on the seeds of the search: {shown}."


def unit_of(results: Results) -> str:
    """The unit of a loss, from provenance; empty for an accuracy."""
    return str(table_of(results.provenance, "data").get("loss", "")) if results.metric == "loss" else ""


def metric_label(results: Results) -> str:
    """The metric with its unit, on two lines."""
    return "\n".join(filter(None, [f"validation {results.metric}", unit_of(results)]))


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically, so that a reader never sees part of a report."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)  # temporary files are private, but a report is shared
    temporary.replace(path)
