"""A figure of the report with its title, caption and numbers, or the reason why it is missing."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import PAGE_MM, adaptive, figure, style
from analysis.results import Results, table_of

SCREEN_DPI = 130  # larger than in print, for which the figures are laid out


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report; `alt` describes it for readers who do not see it, `reason` says why it has no data."""

    name: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    draw: Callable[[], Figure]
    reason: str

    def save(self, out: Path, prefix: str, *, pdf: bool = False) -> dict[str, Any]:
        """Write SVG, CSV and, if asked for, PDF to `out/figures`; a PDF of an earlier report is deleted.

        Returns:
            What the template shows: title, caption, alt, files, image (a data URI; None if missing), and size in
            pixels, or the reason.
        """
        files = {kind: f"figures/{prefix}{self.name}.{kind}" for kind in ("svg", "pdf", "csv")}
        shown: dict[str, Any] = {"title": self.title, "caption": self.caption, "alt": self.alt}
        for kind, file in files.items():  # of an earlier report
            if self.data.empty or (kind == "pdf" and not pdf):
                (out / file).unlink(missing_ok=True)
        if self.data.empty:
            return shown | {"image": None, "reason": self.reason}
        images: dict[str, bytes] = {}
        try:
            with style():
                drawn = self.draw()
                for kind, date in {"svg": "Date", **({"pdf": "CreationDate"} if pdf else {})}.items():
                    drawn.savefig(buffer := io.BytesIO(), format=kind, metadata={date: None, "Title": self.title})
                    drawn.set_layout_engine("none")  # keeps the layout, which takes most of the time
                    images[kind] = buffer.getvalue()
        except Exception as error:  # noqa: BLE001 - one figure that fails must not prevent the report
            return shown | {"image": None, "reason": f"drawing it failed ({type(error).__name__}: {error})"}
        for kind, content in (images | {"csv": self.data.to_csv(index=False).encode()}).items():
            write_file(out / files[kind], content)
        shown["files"] = {kind.upper(): files[kind] for kind in (*images, "csv")}
        image = "data:image/svg+xml;base64," + base64.b64encode(adaptive(images["svg"])).decode()
        return shown | {"image": image, "size": [round(SCREEN_DPI * inches) for inches in drawn.get_size_inches()]}


def with_legend(draw: Callable[[Axes], Any], width: float = 0.78 * PAGE_MM, height: float = 80.0) -> Figure:
    """A figure of one panel, with a legend to its right if anything is labelled; sizes in millimetres."""
    drawn = figure(width, height)
    ax = drawn.subplots()
    draw(ax)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        drawn.legend(handles, labels, loc="outside right upper")
    return drawn


def panels(draw: Callable[[Axes, str], Any], columns: list[str], across: int, row_mm: float, label: str) -> Figure:
    """A page-wide figure with one panel per column name, `across` in a row; all share the vertical axis, `label`."""
    rows = -(-len(columns) // across)
    drawn = figure(PAGE_MM, 8 + row_mm * rows)
    axes = drawn.subplots(rows, across, sharey=True, squeeze=False).ravel()
    for place, ax in enumerate(axes):
        ax.set_visible(place < len(columns))
        if place < len(columns):
            draw(ax, columns[place])
        ax.set_ylabel("")
    drawn.supylabel(label, fontsize=8)
    return drawn


def varied(data: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The data, or none of it if no column has more than one value, so that there is nothing to compare."""
    return data if any(data[column].nunique() > 1 for column in columns) else data.head(0)


def mean_of(results: Results) -> str:
    """The mean over seeds that suits the study's metric, in words."""
    return "geometric mean" if results.metric == "loss" else "mean on the log-odds scale"


def unit_of(results: Results) -> str:
    """The unit of a loss, from provenance; empty for an accuracy."""
    return str(table_of(results.provenance, "data").get("loss", "")) if results.metric == "loss" else ""


def metric_label(results: Results) -> str:
    """The metric with its unit."""
    return ", ".join(filter(None, [f"validation {results.metric}", unit_of(results)]))


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically, so that a reader never sees part of a report."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)  # temporary files are private, but a report is shared
    temporary.replace(path)
