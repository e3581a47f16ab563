"""The source report's numbers beside ours: closed forms, verdicts, and the whole reproduction in small."""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import html5lib
import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import reproduction
from analysis.reproduction import layers, linear, mlp, regimes, sizes
from analysis.reproduction.claims import Claim, asked, judge, percent, printed, render, source
from analysis.reproduction.closed_forms import (
    ConstantStep,
    constant_step,
    cubic_population,
    cubic_step,
    stalls_in_order,
    stalls_of_draws,
    without_x1,
)
from analysis.reproduction.losses import beside, ended_losses, epoch_losses, printed_losses, span_facts
from analysis.reproduction.page import run_of, specs_of
from analysis.schema import ResultsError
from analysis.statistics import Interval
from study.errors import StorageError
from study.results.provenance import write_provenance
from study.spec import SHIPPED, Spec, read
from study.verify import reproduce
from tests.conftest import curve_row
from tests.processes import invoked, said, started
from trainables.workloads import data

EXPERIMENTS = [name for name in reproduction.EXPERIMENTS if name != "mnist"]
SPECS = [spec for name in EXPERIMENTS for spec in specs_of(name)]
TOLERANCE = asked("cubic-linear")["tolerance"]


def walk(x: np.ndarray, y: np.ndarray, rate: float, epochs: int, rng: np.random.Generator) -> float:
    """The mean loss of the later half of SGD on single observations, plainly."""
    z, total, count, weights = np.column_stack([x, np.ones(len(x))]), 0.0, 0, np.zeros(x.shape[1] + 1)
    for epoch in range(epochs):
        for row in rng.permutation(len(x)):
            error = z[row] @ weights - y[row]
            if epoch >= epochs // 2:
                total, count = total + error**2, count + 1
            weights -= 2 * rate * error * z[row]
    return total / count


def test_the_floor_and_the_noise_of_a_constant_step_are_what_a_long_run_shows() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([1.0, -2.0], [1.0, 0.5], (500, 2))
    y = x[:, 0] ** 2 - x[:, 1] + rng.normal(0, 0.3, 500)
    found = constant_step(x, y, 0.02)
    z = np.column_stack([x, np.ones(500)])
    assert found.floor == pytest.approx(float(np.linalg.lstsq(z, y, rcond=None)[1][0]) / 500)
    assert found.noise > 0.05 * found.floor
    assert walk(x, y, 0.02, 60, rng) == pytest.approx(found.total, rel=TOLERANCE)


def test_a_small_step_adds_the_noise_that_theory_knows_and_too_large_a_one_is_told() -> None:
    """For one centred input and independent noise, rate r adds r H s^2 + O(r^2) in each of the two directions."""
    rng = np.random.default_rng(1)
    x = np.array([-1.0, 1.0] * 2000)
    y = 3 * x + np.repeat(rng.choice([-1.0, 1.0], 2000), 2)
    found = constant_step(x[:, None], y, 1e-4)
    assert found.noise / found.floor == pytest.approx(2 * 1e-4, rel=0.01)
    with pytest.raises(ValueError, match="no stationary state; choose a smaller rate"):
        constant_step(x[:, None], y, 1.0)


def test_closed_forms_of_the_cubic_data() -> None:
    _, y, share = cubic_population()
    assert share @ y == pytest.approx(14430)
    assert share @ y**2 - (share @ y) ** 2 == pytest.approx(1.835e7, rel=1e-3)
    # With x2 = 10 + z, x2^3 has parts 30 (z^2 - 1) and z^3 - 3 z that no line has, of variance 1800 and 6; x1^2 has 2.
    floor = 14**2 * (900 * 2 + 6) + 2
    rate = printed("cubic-linear")["learning_rate"]
    exact = cubic_step(rate)
    assert exact.floor == pytest.approx(floor)
    assert without_x1() == pytest.approx(38)
    stalls = stalls_of_draws(rate, 100)
    assert stalls.mean() == pytest.approx(exact.total, rel=TOLERANCE)


def test_a_share_that_is_not_known_is_a_dash() -> None:
    assert (percent(0.112), percent(math.nan)) == ("11.2%", "\N{EN DASH}")


def test_the_printed_scale_is_the_reports_arithmetic() -> None:
    told = printed("mlp")
    assert mlp.scale(told) == 3200
    assert told["loss"][-1] / 3200 == pytest.approx(38.76, abs=0.005)
    assert printed_losses("mlp")["epoch"].tolist() == list(range(100, 1001, 100))


def test_the_printed_gradient_belongs_to_the_printed_loss() -> None:
    found = linear.step_check(printed("linear")["by_hand"])
    assert found["prediction"] == pytest.approx(printed("linear")["by_hand"]["target"] + math.sqrt(4610.3635))
    assert abs(found["bias"]) < found["bias_limit"] == pytest.approx(1 / math.sqrt(10))
    assert found["loss_after"] < 4610


def test_an_epochs_loss_is_the_mean_over_its_updates_however_they_were_gathered() -> None:
    values = np.arange(1.0, 7.0)  # two epochs of three updates
    rows = [curve_row(split="batch", update=n, epoch=n / 3, value=v) for n, v in enumerate(values, start=1)]
    gathered = [
        curve_row(split="batch", update=1, epoch=1 / 3, value=1.0),
        curve_row(split="batch", update=3, epoch=1.0, value=2.5),
        curve_row(split="batch", update=6, epoch=2.0, value=5.0),
    ]
    for each in (rows, gathered):
        found = epoch_losses(pd.DataFrame([*each, curve_row(update=6, epoch=2.0, value=99.0)]))
        assert found["epoch"].tolist() == [1, 2]
        assert found["loss"].tolist() == [2.0, 5.0]


def span_claim(found: pd.DataFrame, wanted: int, lost: int = 0) -> Claim:
    return judge("linear", "fall", {"curve": span_facts(found, wanted, lost)})


def stall_claim(told: float, stalls: pd.DataFrame, exact: ConstantStep, lost: int = 0, name: str = "stall") -> Claim:
    return judge("cubic-linear", name, {"whole": True, **linear.stall_facts(told, stalls, exact, lost)})


def end_claim(ends: list[float], *, whole: bool = True) -> Claim:
    return judge("mlp", "end", {"last": 124035.55, "factor": 3200.0, "whole": whole, **mlp.end_facts(ends)})


def better_claim(ends: list[float], lines: list[float] | None = None) -> Claim:
    facts = {"last": 124035.55, "factor": 3200.0, "whole": True, **mlp.end_facts(ends)}
    return judge("mlp", "better", facts | mlp.better_facts(ends, 595410, lines))


def spans(ours: pd.DataFrame, told: dict[int, float]) -> pd.DataFrame:
    return beside(ours, pd.DataFrame(told.items(), columns=["epoch", "printed"])).dropna(subset="printed")


def losses(by_epoch: dict[int, list[float]]) -> pd.DataFrame:
    rows = [{"trial": n, "lane": 0, "epoch": e, "loss": v} for e, own in by_epoch.items() for n, v in enumerate(own)]
    return pd.DataFrame(rows, columns=["trial", "lane", "epoch", "loss"])


@pytest.mark.parametrize(
    ("told", "verdict", "why"),
    [
        ({1: 5.0, 2: 2.0}, "agrees", "at most a factor of 3 wide, at all 2 epochs"),
        ({1: 5.0, 2: 3.3}, "differs", "above the range of our seeds at 1 of 2 epochs, by 10% at most"),
        ({1: 5.0, 2: 0.5}, "differs", "below the range of our seeds at 1 of 2 epochs, by 100% at most"),
        ({1: 99.0, 2: 0.5}, "differs", "outside the range"),
        ({1: 5.0, 2: 2.0, 3: 1.0}, "not checked", "cut to 2 of the 3 epochs"),
    ],
    ids=str,
)
def test_a_printed_course_agrees_if_our_seeds_span_it(told: dict[int, float], verdict: str, why: str) -> None:
    found = spans(losses({1: [4.0, 6.0, 9.0], 2: [1.0, 2.0, 3.0]}), told)
    claim = span_claim(found, len(told))
    assert claim.verdict == verdict
    assert why in claim.why


@pytest.mark.parametrize(
    ("lowest", "told", "verdict", "why"),
    [
        (0.31, 2.0, "agrees", "inside the range"),
        (0.29, 2.0, "not checked", "wider than a decade at 1 of 2 epochs, 1.0 decades at most, so nearly any loss"),
        (0.0012, 2.0, "not checked", "3.4 decades at most"),
        (0.0, 2.0, "not checked", "inf decades"),
        (0.0012, 3.1, "differs", "above the range of our seeds at 1 of 2 epochs"),
    ],
)
def test_a_range_wider_than_a_decade_is_no_evidence(lowest: float, told: float, verdict: str, why: str) -> None:
    found = spans(losses({1: [4.0, 6.0, 9.0], 2: [lowest, 2.0, 3.0]}), {1: 5.0, 2: told})
    claim = span_claim(found, 2)
    assert claim.verdict == verdict
    assert why in claim.why


def test_every_claim_can_fail() -> None:
    """No rule holds or fails by its text alone, but for claims that have no number to compare and are never checked."""
    for experiment, prose in source().items():
        for name, claim in prose.get("claims", {}).items() if isinstance(prose, dict) else ():
            rule = source()["rules"].get(claim.get("rule"), {}) | claim
            fixed = [rule["agrees"], rule.get("differs", "")]
            assert not {"true", "false"} & set(fixed) or fixed == ["false", "false"], (experiment, name)


def test_a_padding_that_keeps_the_size_must_exist() -> None:
    facts = sizes.size_facts()
    assert judge("mnist", "padding", facts).verdict == "agrees"
    claim = judge("mnist", "padding", facts | {"padding": None})
    assert claim.verdict == "differs"
    assert "no padding gives the number" in claim.ours


@pytest.mark.parametrize(
    ("ends", "verdict"), [([31, 40, 70, 20], "agrees"), ([31, 40, 70, 20, 15], "differs")], ids=["half", "fewer"]
)
def test_half_of_the_seeds_must_end_where_the_report_did(ends: list[float], verdict: str) -> None:
    claim = end_claim(ends)
    assert claim.verdict == verdict
    below = sum(value < 30 for value in ends)
    assert f"2 of {len(ends)} seeds" in claim.why
    assert f"{below} ended lower and 1 higher" in claim.why
    lost = end_claim([*ends, math.nan, math.nan])  # seeds that diverged have ended elsewhere
    assert lost.verdict == "differs"
    assert f"2 of {len(ends) + 2} seeds" in lost.why
    assert end_claim(ends, whole=False).verdict == "not checked"


@pytest.mark.parametrize(
    ("ends", "lines", "verdict"),
    [
        ([1.0, 1.1, 0.9], None, "agrees"),
        ([1.0, 1.1, 0.9], [5e5, 6e5, 7e5], "agrees"),
        ([1.0, 1.1, 0.9], [1.0, 1.1, 1.2], "differs"),
        ([5.9e5, 5.8e5, 5.7e5], None, "differs"),
        ([1.0, 1.1, 0.9, math.nan], None, "agrees"),
        ([1.0, 1.1, 0.9, math.inf, math.nan, math.nan, math.nan], None, "differs"),
        ([1.0, 1.1, math.nan], None, "not checked"),
        ([math.nan] * 3, None, "differs"),
        ([1.0, 1.1], None, "not checked"),
    ],
)
def test_much_lower_is_more_than_a_little(ends: list[float], lines: list[float] | None, verdict: str) -> None:
    claim = better_claim(ends, lines)
    assert claim.verdict == verdict
    assert "nan" not in claim.ours + claim.why
    if verdict == "agrees":
        assert ("our linear model's loss" if lines else "the report's loss of the linear model") in claim.why
        assert ("1 more diverged" in claim.ours) == (len(ends) == 4)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_seeds_have_no_range(count: int) -> None:
    words = f"{count} seed has no range" if count == 1 else f"{count} seeds have no range"
    few = [
        span_claim(spans(losses({1: [4.0] * count}), {1: 99.0}), 1),
        span_claim(spans(losses({}), {1: 99.0}), 1, lost=count),
        end_claim([40.0] * count),
        better_claim([40.0] * count),
    ]
    assert {claim.verdict for claim in few} == {"not checked"}
    assert all(words in claim.why for claim in few)


def test_seeds_that_diverged_count() -> None:
    found = spans(losses({1: [4.0, 6.0, 9.0]}), {1: 5.0})
    some = span_claim(found, 1, lost=1)
    assert some.verdict == "agrees"
    assert "1 more diverged" in some.ours
    most = span_claim(found, 1, lost=4)
    assert most.verdict == "differs"
    assert "4 of 7 seeds diverged" in most.why
    exact = ConstantStep(3.0, 2.0)
    stalls = pd.DataFrame({"seed": range(3), "floor": 3.0, "noise": 2.0, "measured": [5.0, 5.01, 4.99]})
    assert stall_claim(5.0, stalls, exact, lost=1).verdict == "agrees"
    assert stall_claim(5.0, stalls, exact, lost=4).verdict == "differs"
    weights = pd.DataFrame({"seed": 0, "coefficient": [1.0, 2.0, 3.0, 0.0], "weight": [1.0, 2.0, 3.0, 0.0]})
    weights["informative"] = weights["coefficient"] != 0
    for lost, verdict in ((0, "agrees"), (1, "differs")):
        facts = {"whole": True, "weights": linear.weight_facts(weights, lost)}
        assert judge("linear", "weights", facts).verdict == verdict


def test_a_lane_that_diverged_has_no_part_in_ranges() -> None:
    curves = [curve_row(lane=lane, split="batch", update=1, epoch=1.0, value=float(lane + 1)) for lane in range(2)]
    lanes = pd.DataFrame({"trial": curves[0]["trial"], "lane": [0, 1], "outcome": ["completed", "diverged"]})
    found, lost = ended_losses(SimpleNamespace(curves=pd.DataFrame(curves), lanes=lanes))  # type: ignore[arg-type]
    assert found["loss"].tolist() == [1.0]
    assert lost == 1


@pytest.mark.parametrize(
    ("measured", "verdict", "said"),
    [
        ([5.0, 5.01, 4.99], "differs", "only in part: on average over draws"),
        ([6.0, 6.01, 5.99], "not checked", "not what the closed form predicts"),
        ([math.nan] * 3, "not checked", "these draws do not tell whether"),
        ([5.0, 5.0], "not checked", "2 seeds have no range"),
        ([5.0, 5.3, 4.7], "not checked", "these draws do not tell whether"),
    ],
)
def test_the_floor_is_judged_draw_by_draw(measured: list[float], verdict: str, said: str) -> None:
    """The population's floor is far from these draws', which says nothing of them."""
    count = len(measured)
    stalls = pd.DataFrame(
        {"seed": range(count), "floor": [3.0, 3.01, 2.99][:count], "noise": 2.0, "measured": measured}
    )
    claim = stall_claim(5.0, stalls, ConstantStep(4.0, 2.0), name="cause")
    assert claim.verdict == verdict
    assert said in claim.why
    if count > 2:
        assert "-16.67% from the mean of all draws" in claim.why


def test_how_rare_a_draw_stalls_beyond_ours_is_told() -> None:
    exact = cubic_step(0.003)
    stalls = pd.DataFrame({"seed": range(3), "floor": 3.4e5, "noise": 1.9e5, "measured": [5.3e5, 5.31e5, 5.32e5]})
    for told, explained in (
        (5.95e5, "8 draws (2%) of these stall as far out, so a rare draw of the data may explain it"),
        (9e5, "None of these stall as far out, so no known draw of the data explains it"),
        (5.5e5, "another draw of the data would explain it"),
    ):
        claim = stall_claim(told, stalls, exact)
        assert claim.verdict == "differs"
        assert explained in claim.why


def test_an_order_that_stays_is_simulated_beside_one_that_does_not() -> None:
    fixed, fresh = stalls_in_order(0.003, 4, observations=2000, epochs=6)
    np.testing.assert_allclose(fixed, fresh, rtol=0.1)
    assert (fixed != fresh).all()
    assert cubic_step(0.003).total == pytest.approx(fixed.mean(), rel=0.15)


def test_epochs_are_said_to_be_owed_to_parameters_only_where_losses_say_so() -> None:
    found = losses({60: [4e5, 4e5], 61: [3e5, 4e5], 100: [1e3, 4e5]})
    slow = mlp.slow_facts(found, 3.54e5, {"epoch": 100, "printed": 4590.0}, 1)
    assert slow == {
        "epoch": 100,
        "times": pytest.approx(77.1, abs=0.05),
        "passed": 1,
        "of": 3,
        "first": 61,
        "final": 61,
    }
    assert mlp.slow_facts(found, 3.54e5, {"epoch": 100, "printed": 4e5}, 0) == {}
    assert mlp.slow_facts(found, 1.0, {"epoch": 100, "printed": 0.5}, 0) == {}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([(2.1, 4.0), (0.9, 3.0)], "agrees"),
        ([(1.1, 4.0), (0.9, 3.0)], "not checked"),
        ([(1.1, 1.9), (0.9, 1.5)], "differs"),
        ([(0.9, 2.0), (0.9, 3.0)], "not checked"),
        ([(0.1, 0.9), (0.2, 0.8)], "differs"),
    ],
)
def test_optimizers_are_much_better_if_one_is_twice_as_good_on_the_same_seeds(
    gains: list[tuple[float, float]], verdict: str
) -> None:
    rows = [{"optimizer": "sgd", "gain": Interval(math.nan, math.nan, math.nan, 0)}]
    rows += [
        {"optimizer": name, "gain": Interval(1.0, *g, 10)} for name, g in zip(("adam", "momentum"), gains, strict=True)
    ]
    facts = {"edges": 0, "cells": 1, **layers.optimizer_facts(pd.DataFrame(rows))}
    assert judge("layers", "optimizers", facts).verdict == verdict


def test_the_same_time_is_judged_on_both_sides_of_it() -> None:
    def claim(batch: list[tuple[float, float]], stochastic: list[tuple[float, float]], n: int = 8) -> Claim:
        points = {"mini-batch": [(0.1, 9.0), (1.0, 1.0)], "batch": batch, "stochastic": stochastic}
        rows = [
            {"regime": regime, "train_seconds": when, "estimate": loss, "low": 0.9 * loss, "high": 1.1 * loss, "n": n}
            for regime, own in points.items()
            for when, loss in own
        ]
        facts = regimes.time_facts(pd.DataFrame(rows), pd.DataFrame(rows))
        return judge("regimes", "time", {"whole": True, "alone": True, **facts})

    near, far, under = [(0.5, 0.95), (2.0, 1.0)], [(0.5, 9.0), (2.0, 9.0)], [(0.5, 0.1), (2.0, 0.1)]
    across = [(0.9, 9.0), (1.1, 1.0)]
    assert claim(far, near).verdict == "agrees"
    assert "not told apart from batches of one" in claim(far, near).ours
    assert claim(near, far).verdict == "not checked"
    assert "better than batches of one" in claim(near, far).ours
    assert claim(across, far).verdict == "not checked"
    assert "1 [0.9, 1.1] against 9 [8.1, 9.9] to 1 [0.9, 1.1]" in claim(across, far).ours
    assert claim(under, under).verdict == "differs"
    # The full batch ends first, between the mini-batches' evaluations, of which one is above it and one below.
    assert claim([(0.2, 5.0), (0.5, 5.0)], far).verdict == "not checked"
    assert claim([(0.01, 5.0)], far).verdict == "not checked"
    assert claim(far, near, n=2).verdict == "not checked"
    assert claim([(math.nan, 5.0)], far).verdict == "not checked"
    facts = regimes.time_facts(pd.DataFrame(), pd.DataFrame())
    assert judge("regimes", "time", {"whole": False, **facts}).verdict == "not checked"


SAID = '{% include "regimes" %}'
PAGE = Path(__file__).parents[1] / "docs" / "reproduction.md"


@pytest.mark.parametrize(
    ("lowest", "answer", "told"),
    [
        ("mini-batch", "worse", "batches of 32. With each at its tuned rate, batches of 32 end at a higher loss than"),
        ("", "", "With each at its tuned rate, batches of 32 cannot be told apart from batches of one in the same"),
    ],
)
def test_what_the_figure_of_tuned_regimes_shows_is_said_in_words(lowest: str, answer: str, told: str) -> None:
    facts = {"lowest": lowest, "times": [{"answer": answer}] * 4, "times_n": 8, "alone": True}
    said = render(SAID, facts)
    assert told in said
    assert ("At one rate" in said) is bool(lowest)
    assert said not in readme()
    # What the README says; the nightly test compares it with a run.
    assert render(SAID, facts | {"lowest": "stochastic", "times": [{"answer": "better"}] * 4}) in readme()
    assert not render(SAID, facts | {"lowest": "", "times_n": 2})


def readme() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").split())


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(1500)
def test_the_readme_says_of_the_regimes_what_their_page_says(tmp_path: Path) -> None:
    ended = reproduce.run(tmp_path, only=["regimes"], show="quiet", say=lambda _: None)
    assert ended.page
    ((section,), _) = reproduction.sections(tmp_path, reproduce.TRUTH)
    (caption,) = (figure.caption for figure in section["figures"] if figure.name == "regimes-tuned")
    (said,) = re.findall(r"At one rate for all.*(?= The same loss as before)", caption)
    assert said in readme()
    assert "With each at its tuned rate" in said


def test_what_a_loss_says_in_words() -> None:
    words = [mlp.ending(loss, 38, 3.5e5) for loss in (5, 40, 1000, 4e5, math.nan)]
    assert [word.split(" ")[0] for word in words] == ["x1", "x2", "x2", "no", "diverged"]


def test_noise_is_scatter_about_the_trend_alone() -> None:
    steps, rng = np.arange(4000.0), np.random.default_rng(0)
    assert regimes.jitter(5000 - steps) == pytest.approx(0, abs=1e-9)
    level = 5000 - steps[2000:].mean()
    assert regimes.jitter(5000 - steps + rng.normal(0, 30, 4000)) == pytest.approx(30 / level, rel=0.1)
    assert math.isnan(regimes.jitter([1.0, 2.0]))


def numbers(**changes: Any) -> pd.DataFrame:
    """Regimes as the report describes them, entries replaced by REGIME_COLUMN."""
    rows, seeds = [], changes.get("seeds", 8)
    for regime, first, noise, updates in (
        ("stochastic", 0.1, 2.0, 100_000),
        ("mini-batch", 0.4, 0.3, 3130),
        ("batch", 0.9975, 0.0, 10),
    ):
        name = regime.replace("-", "")
        share = changes.get(f"{name}_first", first)
        around = Interval(share, share * 0.995, share * 1.001, seeds)
        rows.append(
            {"regime": regime, "updates": updates, "first": around, "final": around}
            | {"first_fall": regimes.fall(around), "final_fall": regimes.fall(around)}
            | {
                "noise": changes.get(f"{name}_noise", Interval(noise, 0.95 * noise, 1.05 * noise, seeds)),
                "falling": 1.0,
            }
        )
    return pd.DataFrame(rows)


ENDS = pd.DataFrame(
    [
        {"regime": name, "learning_rate": 0.1, "loss": Interval(loss, loss, loss, 8)}
        for name, loss in (("stochastic", 2.0), ("mini-batch", 1.0), ("batch", 9.0))
    ]
)


def regime_claims(*, whole: bool = True, **changes: Any) -> list[Claim]:
    facts = regimes.regime_facts(numbers(**changes), ENDS, whole=whole)
    return [judge("regimes", name, facts) for name in ("fast", "noise", "flat", "balance")]


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["agrees"] * 4),
        ({"stochastic_first": 0.95}, ["differs", "agrees", "agrees", "agrees"]),
        ({"minibatch_noise": Interval(3.0, 2.9, 3.1, 8)}, ["agrees", "differs", "agrees", "differs"]),
        ({"minibatch_noise": Interval(0.4, 0.1, 2.5, 8)}, ["agrees", "differs", "agrees", "differs"]),
        ({"stochastic_noise": Interval(0.9, 0.8, 0.99, 8)}, ["agrees", "differs", "agrees", "agrees"]),
        ({"batch_noise": Interval(math.nan, math.nan, math.nan, 8)}, ["not checked"] * 4),
        ({"stochastic_first": math.inf}, ["not checked"] * 4),
        ({"batch_first": 1.01}, ["agrees", "agrees", "differs", "agrees"]),
        ({"batch_first": 0.97}, ["agrees", "agrees", "differs", "agrees"]),
        ({"batch_first": 0.5}, ["agrees", "agrees", "differs", "agrees"]),
        ({"minibatch_first": 0.8}, ["agrees", "agrees", "agrees", "differs"]),
        ({"seeds": 2}, ["not checked"] * 4),
        ({"seeds": 1}, ["not checked"] * 4),
    ],
    ids=str,
)
def test_what_the_regimes_are_said_to_show_is_checked_by_number(changes: dict[str, Any], verdicts: list[str]) -> None:
    assert [claim.verdict for claim in regime_claims(**changes)] == verdicts
    assert {claim.verdict for claim in regime_claims(whole=False, **changes)} == {"not checked"}


def test_what_is_said_of_the_regimes_follows_the_numbers() -> None:
    whys = [[claim.why for claim in regime_claims(**changes)] for changes in (
        {}, {"stochastic_first": 0.4, "minibatch_first": 0.3},
        {"minibatch_first": 0.4, "minibatch_noise": Interval(3.0, 2.9, 3.1, 8)})]  # fmt: skip
    assert "stochastic, mini-batch, batch, and the intervals do not overlap" in whys[0][0]
    assert "which explains the fall" in whys[0][0]
    assert "mini-batch, stochastic, batch, and the intervals do not overlap" in whys[1][0]
    assert "which explains the fall" not in whys[1][0]
    assert "less noise than batches of one, and it ends higher" in whys[0][3]
    assert "it ends higher" not in whys[1][3]
    assert "more noise than batches of one, and it ends higher" in whys[2][3]


def test_the_batch_curve_is_drawn_where_the_report_drew_it() -> None:
    rows = [{"regime": "batch", "seed": 0, "update": n, "epoch": float(n), "value": 1.0} for n in range(1, 11)]
    rows += [{"regime": "mini-batch", "seed": 0, "update": 3130, "epoch": 10.0, "value": 1.0}]
    found = regimes.as_drawn(pd.DataFrame(rows), printed("regimes")).set_index("regime")["x"]
    assert found["batch"].tolist() == pytest.approx(np.arange(0, 11, 1.1).tolist())
    assert found["mini-batch"] == pytest.approx(10 - 10 / 3130)


def test_shapes_of_equally_many_parameters_are_found(make_study: Any) -> None:
    """In the planted study parameters are width times depth: 32 x 1 and 16 x 2 are equal, 16 x 1 is not."""
    results = analysis.load(make_study(widths=(16, 32), depths=(1, 2), batch_sizes=(32,), seeds=6))
    shapes = layers.equal_shapes(results, layers.on_fresh_seeds(results, analysis.cells(results)))
    assert shapes["network"].tolist() == ["1 x 32", "2 x 16"]
    ratio = shapes["ratio"].iloc[-1]
    for limits, verdict in (((0.5, 0.9), "agrees"), ((1.1, 1.5), "differs"), ((0.9, 1.1), "not checked")):
        rows = [shapes.iloc[0], shapes.iloc[1].replace(ratio, Interval(1.0, *limits, 6))]
        assert judge("layers", "shape", layers.shape_facts(pd.DataFrame(rows))).verdict == verdict


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_of_the_reproduction_is_valid_and_apart_from_the_others(name: str) -> None:
    spec = read(f"reproduce/{name}")
    assert spec.name == name
    assert not (SHIPPED / f"{name}.toml").exists()


def test_the_specs_are_the_ones_that_are_shipped() -> None:
    assert sorted(SPECS) == sorted(file.stem for file in (SHIPPED / "reproduce").glob("*.toml"))


@pytest.mark.parametrize(("seeds", "lanes", "trials"), [(16, 8, 2), (8, 8, 1), (10, 5, 2), (11, 1, 11), (1, 1, 1)])
def test_seeds_of_redrawn_data_are_lanes_times_trials(seeds: int, lanes: int, trials: int) -> None:
    spec = reproduce.sized(read("reproduce/mlp-64-32"), seeds, None)
    assert (spec.lanes.seeds, spec.budget.trials) == (lanes, trials)
    plain = reproduce.sized(read("reproduce/layers"), seeds, 3)
    assert (plain.lanes.seeds, plain.budget.trials, plain.budget.epochs) == (seeds, 36, 3)
    assert plain.confirm
    assert plain.confirm.seeds == max(2, seeds)


def test_at_least_eight_seeds_are_the_default_everywhere() -> None:
    for name in SPECS:
        spec = read(f"reproduce/{name}")
        assert spec.lanes.seeds * (spec.budget.trials if spec.workload.redraw else 1) >= 8


def test_the_update_by_hand_is_the_one_that_torch_makes() -> None:
    told = reproduce.by_hand(3)
    x, before, after = (told[name] for name in ("x", "before", "after"))
    loss = lambda w: (x @ w - told["y"]) ** 2  # noqa: E731
    steps = 1e-5 * np.eye(len(before))
    slope = [(loss(before + step) - loss(before - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(after, before - 0.1 * np.array(slope), rtol=1e-5)


def test_the_coefficients_are_those_of_the_data() -> None:
    for seed in (0, 5):
        examples = data.load("linear", seed=seed).train
        found = examples.inputs.double().numpy() @ data.linear_coefficients(seed)
        np.testing.assert_allclose(found, examples.targets.double().numpy()[:, 0], rtol=1e-3, atol=1e-2)
        assert (data.linear_coefficients(seed) != 0).sum() == 3


def test_a_mistyped_experiment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = invoked(monkeypatch, tmp_path, "reproduce", "--only", "mnits")
    assert found.exit_code == 2
    assert "valid: linear, cubic-linear, mlp, regimes, mnist, layers" in found.stderr
    assert not (tmp_path / "results").exists()


def outlined(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(text)
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert all(re.search(r'aria-label="[^"]{20,}"', image) for image in re.findall(r"<svg [^>]*>", text))
    numbers = [int(number) for number in re.findall(r"<h3>Figure (\d+)\. ", text)]
    assert numbers == list(range(1, text.count("<figure ") + 1))
    return text


@pytest.mark.long
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(600)
def test_experiments_run_are_reused_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiment 1 in full with few seeds: its weights, its verdicts, and that nothing runs twice."""
    said: list[str] = []
    ended = reproduce.run(tmp_path, only=["linear", "mnist"], seeds=3, epochs=30, show="quiet", say=said.append)
    assert ended.page == tmp_path / "index.html"
    assert ended.page
    assert "linear" in outlined(ended.page)
    assert any(line.startswith("mnist: ") for line in said)
    results = analysis.load(tmp_path / "linear/linear")
    assert results.lanes["weights"].map(len).tolist() == [11] * 3
    weights = linear.coefficients(results, reproduce.TRUTH)
    assert weights["difference"].abs().max() < 1
    ((section,), troubles) = reproduction.sections(tmp_path, reproduce.TRUTH)
    assert not troubles
    verdicts = [claim.verdict for claim in section["claims"]]
    assert verdicts[:3] == ["agrees", "agrees", "not checked"]  # its seeds end decades apart
    assert verdicts[3] == "agrees"
    curve = epoch_losses(results.curves).groupby("epoch")["loss"].mean()
    assert curve[20] < curve[1] / 1000

    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("ran again")

    monkeypatch.setattr(reproduce, "run_session", never)
    again = reproduce.run(tmp_path, only=["linear"], seeds=3, show="quiet", say=said.append)
    assert again.page
    assert "done already" in said[-1]
    assert reproduce.is_done(reproduce.sized(read("reproduce/linear"), 2, None), tmp_path / "linear/linear")
    assert not reproduce.is_done(reproduce.sized(read("reproduce/linear"), 4, None), tmp_path / "linear/linear")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    with pytest.raises(StorageError, match=r"holds a study with a different budget\.epochs; give another"):
        reproduce.run(tmp_path, only=["linear"], seeds=3, epochs=2, show="quiet")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_an_out_that_is_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").touch()
    found = invoked(monkeypatch, tmp_path, "reproduce", "--only", "linear", "--out", "out")
    assert found.exit_code == 2
    assert "--out out" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.nightly
def test_damaged_files_leave_the_others_on_the_page(tmp_path: Path) -> None:
    said: list[str] = []
    command, both = "study reproduce --seeds 1 --epochs 2", ["linear", "cubic-linear"]
    small = {"seeds": 1, "epochs": 2, "show": "quiet", "say": said.append}
    reproduce.run(tmp_path, only=both, command=command, **small)
    broken = tmp_path / "mnist/candidates-raw/provenance.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    ended = reproduce.run(tmp_path, only=both, **small)
    assert said.count(f"linear: linear is done already, in {tmp_path / 'linear/linear'}") == 1
    assert ended.page
    text = outlined(ended.page)
    assert '<section id="linear">' in text
    assert command in text
    assert "mnist: left out" in text
    assert any(line.startswith("mnist: left out") for line in said)
    assert not re.search(r"\bnan\b", text)
    assert "1 seeds" not in text
    shutil.rmtree(tmp_path / "cubic-linear/cubic-linear/curves")
    shutil.rmtree(tmp_path / "linear/linear/lanes.parquet")
    page = reproduction.write_page(tmp_path, reproduce.TRUTH, "", said.append)
    assert page
    text = outlined(page)
    assert "<section id=" not in text
    for name in both:
        assert f"{name}: left out, its files in" in text


def test_the_page_shows_finished_runs_only(tmp_path: Path) -> None:
    folder = tmp_path / "linear/linear"
    folder.mkdir(parents=True)
    assert run_of(folder) is None
    session = {"command": "study reproduce", "started": "2026-01-01"}
    write_provenance(folder, read("reproduce/linear"), [session], finished=False)
    assert run_of(folder) is None
    write_provenance(folder, read("reproduce/linear"), [session], finished=True)
    with pytest.raises(ResultsError):
        run_of(folder)


def test_data_are_redrawn_by_trial_and_shared_within() -> None:
    from study.tuning.space import Space

    def seeds(spec: Spec) -> list[tuple[int, int]]:
        space = Space(spec, "", "")
        found = [space.configuration({"optimizer": "sgd", "batch_size": 1}, n, replicate=n) for n in range(2)]
        return [(each["data_seed"], each["seeds"][0]) for each in found]

    redrawn = read("reproduce/linear")
    assert seeds(redrawn) == [(0, 0), (1, 1)]
    fixed = redrawn.model_copy(update={"workload": redrawn.workload.model_copy(update={"redraw": False})})
    assert seeds(fixed) == [(0, 0), (0, 1)]


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(1500)
def test_the_whole_in_small_is_interrupted_resumed_and_reused(tmp_path: Path) -> None:
    """All but the CNN, cut to two epochs and two seeds; killed by Ctrl-C in mid-course, then run again, twice."""
    command = ["reproduce", "--seeds", "2", "--epochs", "2", "--out", "out", "--plain"]
    only = [word for name in EXPERIMENTS for word in ("--only", name)]
    running = started(tmp_path, *command, *only)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("out/layers/layers/trials.parquet/*.parquet")):
        assert time.monotonic() < deadline, said(tmp_path)
        assert running.poll() is None, said(tmp_path)
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait(120) == 130, said(tmp_path)
    before = {path: path.stat().st_mtime for path in tmp_path.glob("out/*/*/trials.parquet/*.parquet")}
    resumed = subprocess.run(
        [sys.executable, "-m", "study", *command, *only], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("done already") == len(SPECS) - 1
    kept = {path: path.stat().st_mtime for path in before if path.exists() and "layers" not in path.parts}
    assert kept == {path: when for path, when in before.items() if path in kept}
    page = tmp_path / "out/index.html"
    assert f"page: {page.relative_to(tmp_path)}" in resumed.stdout
    text = outlined(page)
    for name in EXPERIMENTS:
        assert f'<section id="{name}">' in text
    assert "the run was cut" in text
    assert (tmp_path / "out/layers/layers/report/index.html").exists()
    layers = analysis.load(tmp_path / "out/layers/layers")
    assert len(layers.trials) == 36
    assert layers.provenance["finished"]
    assert len(layers.provenance["sessions"]) == 2
    third = subprocess.run(
        [sys.executable, "-m", "study", *command, "--only", "layers"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert third.returncode == 0, third.stderr
    assert "done already" in third.stderr
    assert outlined(page).count("<section id=") == len(EXPERIMENTS)
