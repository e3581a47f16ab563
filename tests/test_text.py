"""Numbers, names and intervals as readers meet them."""

from __future__ import annotations

import math

import pytest

from analysis import text as words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (1.0, "1"), (1e-7, "1e-7"), (0.0001, "0.0001"), (12_540, "12,500"), (3e8, "3e8"), (0, "0")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert words.short(value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("", "adam"),
        ('{"beta1":0.9,"beta2":0.9999}', "adam (beta1 0.9, beta2 0.9999)"),
        ('{"nesterov":true,"k":3}', "adam (nesterov true, k 3)"),
        ("no JSON", "adam (no JSON)"),
        ("3", "adam (3)"),
    ],
)
def test_settings_stand_behind_the_optimizer(settings: str, text: str) -> None:
    assert words.optimizer_text("adam", settings) == text


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.39, "loss", "0.390"), (120.4, "loss", "120"), (0.9876, "accuracy", "98.8%"), (math.inf, "loss", "∞")],
)
def test_metric_texts(value: float, metric: str, text: str) -> None:
    assert words.metric_text(value, metric) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (5, "5 s"), (150, "2.5 min"), (600, "10 min"), (7200, "2.0 h"), (math.nan, "–")],
)
def test_durations_are_in_a_suitable_unit(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [((0.0, 0.0), "0 CPU-hours"), ((2.0, 0.0), "2 CPU-hours"), ((0.04, 1.5), "2.4 CPU-minutes and 1.5 GPU-hours")],
)
def test_cost_is_in_hours_or_minutes(hours: tuple[float, float], text: str) -> None:
    assert words.cost(*hours) == text


def test_interval_texts() -> None:
    assert words.interval_text(0.1, 0.2, 3, "loss") == "[0.100, 0.200]"
    assert words.interval_text(0.981, 0.99, 3, "accuracy") == "[98.1, 99.0%]"
    assert words.interval_text(0, math.inf, 1, "loss") == "one seed"
    assert words.interval_text(math.nan, math.nan, 0, "loss") == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adam", "adam"),
        ("my_package.optimizers.adaptive:SharpnessAwareAdamW", "…SharpnessAwareAdamW"),
        ("a_module:SharpnessSharpnessSharpnessSharpnessEnd", "SharpnessSharp…ssSharpnessEnd"),
    ],
)
def test_long_names_keep_what_tells_them_apart(name: str, text: str) -> None:
    assert words.shortened(name) == text
    assert len(text) <= 30


def test_columns_of_small_losses_have_one_exponent() -> None:
    assert words.shared_power([2e-4, 3e-4, math.nan, math.inf], "loss") == -4
    assert words.shared_power([2e-4, 3e-2, 4e-2], "loss") == 0
    assert (
        words.shared_power([2e-4], "accuracy")
        == words.shared_power([], "loss")
        == words.shared_power([0.0], "loss")
        == 0
    )
