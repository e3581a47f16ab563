"""Numbers, names and cells in words, as figures and reports write them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from statistics import median
from typing import Any

import pandas as pd


def shortened(name: str, length: int = 30) -> str:
    """A name that fits a legend or an axis: of an import path the end, of anything else both ends."""
    if len(name) <= length:
        return name
    end = name.replace(":", ".").rsplit(".", 1)[-1]
    if len(end) < length:
        return f"…{end}"
    half = (length - 1) // 2
    return f"{end[:half]}…{end[-half:]}"


def settings_text(settings: str) -> str:
    """Settings of an optimizer, or a recipe, in words, `{"beta1":0.9}` as `beta1 0.9`; empty for none."""
    try:
        values = dict(json.loads(settings or "{}"))
    except (TypeError, ValueError):
        return settings
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}".lower() for name, value in values.items()
    )


def optimizer_text(name: str, settings: str) -> str:
    """An optimizer with its settings, such as `adam (beta1 0.9)`."""
    words = settings_text(settings)
    return f"{name} ({words})" if words else name


def short(value: float) -> str:
    """A number in three digits; a dash for NaN, ∞ for infinity."""
    if math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours; a dash for NaN."""
    if not math.isfinite(seconds):
        return short(seconds)
    value, unit = (seconds, "s") if seconds < 120 else (seconds / 60, "min")
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} h"
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def cost(cpu_hours: float, gpu_hours: float) -> str:
    """Processor time such as `12 CPU-minutes and 1.5 GPU-hours`; below 0.1 hours it is given in minutes."""
    words = [
        f"{short(hours)} {name}-hours" if hours >= 0.1 else f"{short(60 * hours)} {name}-minutes"
        for name, hours in (("CPU", cpu_hours), ("GPU", gpu_hours))
        if hours > 0
    ]
    return " and ".join(words) or "0 CPU-hours"


def metric_text(value: float, metric: str) -> str:
    """A value of the metric: an accuracy in percent, a loss in three digits, a dash for NaN."""
    if not math.isfinite(value):
        return short(value)
    if metric == "accuracy":
        return f"{100 * value:.1f}%"
    return f"{value:#.3g}" if 0.001 <= abs(value) < 100 else short(value)


def shared_power(values: Iterable[float], metric: str) -> int:
    """The power of ten in which a column of losses below 0.001 is written, so that it has one exponent; 0 for none."""
    known = [value for value in values if 0 < value < math.inf]
    if metric == "accuracy" or not known or median(known) >= 0.001:
        return 0
    return math.floor(math.log10(median(known)))


def interval_text(low: float, high: float, n: int, metric: str) -> str:
    """The limits of an interval for readers; says so where one seed allows none."""
    if n < 2:
        return "one seed" if n else ""
    return f"[{metric_text(low, metric)}, {metric_text(high, metric)}]".replace("%,", ",")


def estimate_text(score: Any, metric: str) -> str:
    """An `Interval` of the metric in a sentence, such as `0.71 [0.65, 0.78]` or `2.13 [1.23, 3.71] x 1e-4`."""
    if metric == "loss" and 0 < score.estimate < 0.001 and score.n > 1 and math.isfinite(score.high):
        power = math.floor(math.log10(score.estimate))
        value, low, high = (metric_text(each / 10.0**power, metric) for each in (score.estimate, score.low, score.high))
        return f"{value} [{low}, {high}] x 1e{power}"
    limits = f" {interval_text(score.low, score.high, score.n, metric)}" if score.n > 1 else ""
    return f"{metric_text(score.estimate, metric)}{limits}"


def p_value_text(p: float) -> str:
    """A p-value, such as `0.031`; simulated ones are not known below 0.0001."""
    return "< 0.0001" if p < 1e-4 else short(p)


def p_text(p: float) -> str:
    """A p-value with its sign of comparison, such as `p = 0.031` or `p < 0.0001`."""
    return f"p {p_value_text(p)}" if p < 1e-4 else f"p = {p_value_text(p)}"


def effect_text(effect: Any, metric: str) -> tuple[str, str]:
    """An `Interval` of a ratio of losses or a difference of accuracies: `1.08 times`, `[0.97, 1.2]`; a dash for NaN."""
    if math.isnan(effect.estimate):
        return short(effect.estimate), ""
    limits = (effect.low, effect.high)
    if metric == "accuracy":
        shown = "" if math.isinf(effect.low) else f"[{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]"
        return f"{100 * effect.estimate:+.2f} percentage points", shown
    return f"{short(effect.estimate)} times", "" if math.isinf(effect.high) else f"[{', '.join(map(short, limits))}]"


def effect_phrase(effect: Any, metric: str) -> str:
    """`effect_text` in a sentence, without limits where one seed allows none."""
    return " ".join(filter(None, effect_text(effect, metric)))


def limits_text(row: Any, name: str, metric: str) -> str:
    """The limits of a score of a row in brackets; says so where one seed allows none."""
    count = row["n"] if name == "validation" else row[f"{name}_n"]
    return interval_text(row[f"{name}_low"], row[f"{name}_high"], count, metric)


def cell_text(row: Any) -> str:
    """A cell in words, such as `adam (beta1 0.9), width 32, depth 2, batch size 32`."""
    return f"{optimizer_text(row['optimizer'], row['settings'])}, {shape_text(row)}"


def shape_text(row: Any) -> str:
    """A cell but for its optimizer in words, such as `width 32, depth 2, batch size 32`; without sizes of 0."""
    batch = f"batch size {row['batch_size']:,}" + (" (full)" if row["regime"] == "batch" else "")
    return ", ".join([*(f"{name} {row[name]}" for name in ("width", "depth") if row[name]), batch])


def cell_at_rate(cell: Any) -> str:
    """A cell at its tuned setting in words, such as `... at learning rate 0.1, schedule cosine`."""
    recipe = settings_text(cell["recipe"])
    return f"{cell_text(cell)} at learning rate {short(cell['learning_rate'])}{recipe and ', ' + recipe}"


def counted(number: Any, noun: str) -> str:
    """A number with its noun, such as `3 seeds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seed_counts(counts: pd.Series[int], noun: str = "seed") -> str:
    """The range of numbers of seeds, such as `3 seeds` or `3 to 8 seeds`."""
    known = counts[counts > 0]
    if known.empty:
        return f"{noun}s"
    low, high = int(known.min()), int(known.max())
    return counted(low, noun) if low == high else f"{low} to {high} {noun}s"


def band_note(counts: pd.Series[int]) -> str:
    """The caption of a band of intervals over that many seeds."""
    return "band: pointwise 95% t interval" if (counts > 1).any() else "no band, because one seed gives no interval"


def listing(names: Iterable[str]) -> str:
    """Distinct names, joined by commas."""
    return ", ".join(dict.fromkeys(names))


def joined(names: list[str]) -> str:
    """Names in a sentence, such as `sgd, momentum and adam`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def first_upper(text: str) -> str:
    """A text as the start of a sentence."""
    return text[0].upper() + text[1:]
