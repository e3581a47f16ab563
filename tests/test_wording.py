"""Numbers, names and intervals as readers meet them."""

from __future__ import annotations

import math

import pytest

from analysis import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (1.0, "1"), (1e-7, "1e-7"), (0.0001, "0.0001"), (12_540, "12,500"), (3e8, "3e8"), (0, "0")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert wording.short(value) == text


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
    assert wording.optimizer_text("adam", settings) == text


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.39, "loss", "0.390"), (120.4, "loss", "120"), (0.9876, "accuracy", "98.8%"), (math.inf, "loss", "∞")],
)
def test_metric_texts(value: float, metric: str, text: str) -> None:
    assert wording.metric_text(value, metric) == text


def test_interval_texts() -> None:
    assert wording.interval_text(0.1, 0.2, 3, "loss") == "[0.100, 0.200]"
    assert wording.interval_text(0.981, 0.99, 3, "accuracy") == "[98.1, 99.0%]"
    assert wording.interval_text(0, math.inf, 1, "loss") == "one seed"
    assert wording.interval_text(math.nan, math.nan, 0, "loss") == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adam", "adam"),
        ("my_package.optimizers.adaptive:SharpnessAwareAdamW", "…SharpnessAwareAdamW"),
        ("a_module:SharpnessSharpnessSharpnessSharpnessEnd", "SharpnessSharp…ssSharpnessEnd"),
    ],
)
def test_long_names_keep_what_tells_them_apart(name: str, text: str) -> None:
    assert wording.shortened(name) == text
    assert len(text) <= 30
