"""The look of all figures: fonts, sizes, colours and markers, and dark colours for readers who prefer them.

Nothing is changed at import; use `style()` as a context manager. By default figures suit a page of 180 mm; `style`
takes the width of a column or slide, to which they then fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape
from typing import TypeVar
from zlib import crc32

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import optimizer_order
from analysis.schema import Regime
from analysis.text import shortened

COLUMN_MM, PAGE_MM = 85.0, 180.0
# A figure narrower than this has its legend below, and panels below one another.
NARROW_MM = 130.0
# Millimetres: a column of ICML's and IEEE's pages, NeurIPS's text, the text of a beamer slide.
WIDTHS = {"icml": 82.55, "ieee": 88.9, "neurips": 139.7, "beamer": 108.0}
_UNITS = {"mm": 1.0, "cm": 10.0, "in": 25.4, "pt": 25.4 / 72.27}
_WIDTH: ContextVar[float] = ContextVar("width", default=PAGE_MM)

SERIES = "series:"
"""Before the name of a series in the ids of what is drawn for it."""
DARK, GREY, LIGHT_GREY = "#333333", "#777777", "#d9d9d9"
BLUE, ORANGE = "#0072B2", "#D55E00"

# Okabe and Ito (2008), which colour-blind readers can tell apart; wine replaces their yellow, too pale for lines.
_LOOKS = {
    "gradient-descent": ("#000000", "P"),
    "sgd": (BLUE, "o"),
    "momentum": ("#009E73", "s"),
    "nesterov": ("#56B4E9", "D"),
    "adagrad": ("#CC79A7", "v"),
    "rmsprop": ("#E69F00", "^"),
    "adam": (ORANGE, "X"),
    "adamw": ("#882255", "*"),
    # Tol's muted scheme (2021) for the rest.
    "adadelta": ("#999933", "<"),
    "amsgrad": ("#332288", ">"),
    "adamax": ("#44AA99", "p"),
    "nadam": ("#661100", "h"),
    "radam": (GREY, "d"),
    # Fewer colours than optimizers can be told apart: from here on a colour has several markers.
    "sgdw": (BLUE, "s"),
    "lion": (BLUE, "H"),
    "adan": ("#009E73", "<"),
    "lamb": ("#CC79A7", ">"),
    "adafactor": ("#44AA99", "<"),
    "muon": ("#A6761D", "h"),
    "prodigy": ("#E69F00", "p"),
    "schedule-free-sgd": ("#56B4E9", "P"),
    "schedule-free-adamw": ("#882255", "d"),
    "LBFGS": ("#332288", "H"),
    "Rprop": ("#999933", "d"),
    "ASGD": ("#CC79A7", "p"),
}
# Of other names, none of which looks like one above.
_FREE = [(colour, marker) for colour in ("#666666", "#A6761D", "#332288", "#44AA99", "#999933", "#661100")
         for marker in ("p", "h", "<", ">", "d", "H", "P") if (colour, marker) not in _LOOKS.values()]  # fmt: skip
# Regimes and batch sizes have an ordered scale of their own, so that a colour never means an optimizer there.
REGIME_COLOURS: dict[str, str] = {Regime.STOCHASTIC: "#4a1468", Regime.MINI_BATCH: "#1f8f86", Regime.BATCH: "#5fbf55"}

T = TypeVar("T")
_DARK_PAPER = "#14171b"
# The colour that replaces each colour of the figures on dark paper: the same hue, with enough contrast.
_ON_DARK = {
    "#4a1468": "#b58ac9", "#1f8f86": "#35c3bb",
    "#000000": "#e6e9ee", "#ffffff": _DARK_PAPER, "#e6e6e6": "#343b44", LIGHT_GREY: "#3b424b", DARK: "#d5dae1",
    "#444444": "#c3cad3", "#555555": "#b3bcc7", "#666666": "#a2acb8", GREY: "#98a2ae", "#0072b2": "#3583d0",
    "#009e73": "#1fae85", "#882255": "#b8336f", "#cc79a7": "#e89ac6", "#56b4e9": "#8fd6ff", "#e69f00": "#f5c542",
    "#332288": "#8f7fe8", "#661100": "#cf6a52",
    "#d55e00": "#d9540b",
}  # fmt: skip
# For lines only, the dark half of the ordered scale: heat maps are filled with the same colours.
_LINES_ON_DARK = {
    mpl.colors.to_hex(colour): mpl.colors.to_hex(0.55 * colour[:3] + 0.45)
    for colour in mpl.colormaps["viridis"](np.arange(128))
}


def inline(svg: bytes, name: str, alt: str, width: float) -> str:
    """An SVG figure as an element of a page, `width` pixels wide: no references outside, and `name` before its ids."""
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg.decode(), flags=re.DOTALL)
    start = text.index("<svg")
    head, body = text[start : text.index(">", start)], text[text.index(">", start) :]
    box = re.search(r'viewBox="[^"]*"', head)
    assert box
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body)
    body = re.sub(r'(?:xlink:)?(href="|url\()#', rf"\1#{name}-", body).replace("xlink:href", "href").strip()
    return f'<svg role="img" aria-label="{escape(alt)}" width="{width:.0f}" {box[0]}{body}'


def dark_rules() -> str:
    """The style sheet that gives inline figures their colours on dark paper; the cells of heat maps keep theirs.

    Its selectors name no ancestor, as markers lie in a tree of their own.
    """
    pairs = [(kind, *pair) for pair in _ON_DARK.items() for kind in ("fill", "stroke")]
    rules = [f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}' for kind, light, dark in pairs]
    for light, dark in _LINES_ON_DARK.items():
        rules.append(f'[style*="stroke: {light}"]{{stroke:{dark}!important}}')
        rules.append(f':is(text,use)[style*="fill: {light}"]{{fill:{dark}!important}}')  # names and markers of lines
    lines = 'svg[aria-label^="All cells in parallel"] image{filter:invert(.85) hue-rotate(180deg)}'  # as pixels
    return f"svg{{fill:#e6e9ee}}{lines}{''.join(rules)}"


def millimetres(width: str | float) -> float:
    """A width in millimetres: a number, a number with a unit (mm, cm, in, pt), or one of `WIDTHS`.

    Raises:
        ValueError: if it is none of these, or not from 60 to 400 mm.
    """
    text = str(width).strip().lower()
    if text in WIDTHS:
        return WIDTHS[text]
    number, factor = next(((text[:-2], factor) for unit, factor in _UNITS.items() if text.endswith(unit)), (text, 1.0))
    try:
        size = float(number) * factor
    except ValueError:
        size = 0.0
    if not 60 <= size <= 400:
        raise ValueError(
            f"{width}: not a style or width; valid: {', '.join(WIDTHS)}, or 60 to 400 mm, as in 85mm or 3.25in"
        )
    return size


def narrow() -> bool:
    """Whether figures are drawn for a column."""
    return _WIDTH.get() < NARROW_MM


@contextmanager
def style(width: str | float = PAGE_MM) -> Iterator[None]:
    """A context in which figures are drawn in the common style, at most this wide (`millimetres`).

    Text is embedded as TrueType in PDF and kept as text in SVG.
    """
    wide = millimetres(width)
    with mpl.rc_context(
        {
            "figure.figsize": (wide / 25.4, 0.6 * wide / 25.4),
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Geneva"],
            "pdf.fonttype": 42,  # TrueType, as publishers ask for
            "ps.fonttype": 42,
            "svg.fonttype": "none",
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.5,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "lines.linewidth": 1.4,
            "lines.markersize": 4,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.dpi": 220,
            "text.parse_math": False,  # a dollar sign in a name is no formula
            "svg.hashsalt": "study",  # the same figure gives the same file
        }
    ):
        token = _WIDTH.set(wide)
        try:
            yield
        finally:
            _WIDTH.reset(token)


def figure(width_mm: float, height_mm: float) -> Figure:
    """An empty figure of that size in millimetres, or as wide as `style` allows; call it within `style()`."""
    width = _WIDTH.get() if narrow() else min(width_mm, _WIDTH.get())
    return Figure(figsize=(width / 25.4, height_mm / 25.4), layout="constrained")


def optimizer_look(name: str) -> tuple[str, str]:
    """Colour and marker of an optimizer, the same in every figure; those of an unknown name are derived from it."""
    return _LOOKS.get(name) or _FREE[crc32(name.encode()) % len(_FREE)]


def ordered_look(place: int, count: int) -> tuple[str, str]:
    """Colour and marker of the value at `place` among `count` ordered values: dark to light along one scale."""
    colour = mpl.colors.to_hex(mpl.colormaps["viridis"](0.75 * place / max(1, count - 1)))
    return colour, ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")[place % 10]


def series(ax: Axes, names: Iterable[T], label: Callable[[T], str] = str) -> Iterator[T]:
    """The names; all that is drawn on the axes for one of them is a series, which readers of a page can switch off."""
    for name in names:
        before = set(ax.get_children())
        yield name
        for artist in set(ax.get_children()) - before:
            artist.set_gid(SERIES + label(name))


def by_optimizer(data: pd.DataFrame, ax: Axes) -> Iterator[tuple[str, pd.DataFrame, str, str]]:
    """The rows of each optimizer in display order: (label, rows, colour, marker); each is a `series` of the axes."""
    for name in series(ax, optimizer_order(data["optimizer"]), shortened):
        yield shortened(name), data[data["optimizer"] == name], *optimizer_look(name)
