"""Optimizers over several studies."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import analysis
from analysis.report import tables
from analysis.report.across import verdict_across
from tests.conftest import write_confirmation, write_study
from tests.test_comparisons import fresh, scattered


def study(folder: Path, **tests: list[float]) -> analysis.Results:
    return analysis.load(fresh(folder, **tests))


def said(studies: list[analysis.Results]) -> list[str]:
    compared = [analysis.compare(study, analysis.cells(study)) for study in studies]
    return verdict_across(analysis.across(studies, compared), studies, compared)


def noisy(rng: np.random.Generator, *centers: float) -> dict[str, list[float]]:
    shared = rng.normal(0, 0.2, 10)
    values = [center * np.exp(shared + rng.normal(0, 0.2, 10)) for center in centers]
    return dict(zip(("adam", "sgd", "momentum", "rmsprop"), np.array(values).tolist(), strict=False))


def test_the_mean_over_studies_is_compared_with_the_best(tmp_path: Path) -> None:
    pair = [
        study(tmp_path / "a", adam=scattered(1.0), sgd=scattered(2.0)[::-1]),
        study(tmp_path / "b", adam=scattered(3.0), sgd=scattered(13.5, 0.03)[::-1]),
    ]
    found = analysis.across(pair)
    assert [entry.name for entry in found.entries] == ["adam", "sgd"]
    assert_allclose(found.entries[1].effect.estimate, 3.0, rtol=0.01)  # the geometric mean of 2 and 4.5
    assert found.winner
    caption = tables.across(found, "loss").caption  # type: ignore[union-attr]
    assert "Intervals cover seeds only, allow for tuned rates that miss the best ones, and hold, like p, for" in caption
    lines = said(pair)
    assert re.fullmatch(
        r"Adam is the best in test loss, on average over 2 studies with at least 8 fresh seeds each: "
        r"0\.33\d times \[0\.3\d*, 0\.3\d*\] "
        r"the loss of the best other optimizer\.",
        lines[0],
    )
    unknown = "It is unknown, and not in the intervals, how far these tuned rates are from the best ones"
    assert lines[1:] == [f"{unknown}: adam (quick), sgd (quick)."]  # one rate each


def test_studies_that_disagree_have_no_winner(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pair = [study(tmp_path / "a", **noisy(rng, 1.0, 2.0)), study(tmp_path / "b", **noisy(rng, 2.0, 1.0))]
    found = analysis.across(pair)
    assert found.winner is None
    assert said(pair)[0].startswith("No winner: ")


def test_an_optimizer_that_one_study_lacks_is_named(tmp_path: Path) -> None:
    pair = [
        study(tmp_path / "a", adam=scattered(1.0), sgd=scattered(2.0), momentum=scattered(3.0)),
        study(tmp_path / "b", adam=scattered(1.1), sgd=scattered(2.2)),
    ]
    found = analysis.across(pair)
    reasons = {entry.name: entry.reason for entry in found.entries}
    assert reasons == {"adam": "", "sgd": "", "momentum": "quick: not in this study"}
    assert found.winner is None
    first, second, *_ = said(pair)
    assert first.startswith(
        "No winner: of those that every study has, adam is the best in test loss, on average over 2 studies with at "
        "least 8 fresh seeds each: 0.5"
    )
    assert first.endswith("the loss of the best other optimizer, but those left out may be better.")
    assert second == "Not compared: momentum (quick: not in this study)."


def test_rates_that_were_tuned_are_not_called_unknown(tmp_path: Path) -> None:
    studies = []
    for place in range(2):
        folder = write_study(
            tmp_path / str(place), optimizers=["adam", "sgd"], widths=[8], depths=[1], batch_sizes=[32]
        )
        studies.append(analysis.load(write_confirmation(folder, best_of=["optimizer"])))
    assert len(said(studies)) == 1


def test_studies_without_a_common_scale_are_refused(tmp_path: Path) -> None:
    loss, accuracy = (
        study(tmp_path / "a", adam=scattered(1.0)),
        analysis.load(fresh(tmp_path / "b", metric="accuracy", adam=[0.5, 0.6])),
    )
    with pytest.raises(ValueError, match="no common score"):
        analysis.across([loss, accuracy])
    search = analysis.load(write_study(tmp_path / "c", widths=[8], depths=[1], batch_sizes=[32], name="c"))
    with pytest.raises(ValueError, match=r"c: no confirmation on fresh seeds"):
        analysis.across([loss, search])


def test_repeated_lanes_count_once(tmp_path: Path, words_only: None) -> None:
    rng = np.random.default_rng(0)
    first, other = noisy(rng, 1.0, 2.0), noisy(rng, 1.0, 2.0)
    studies = [study(tmp_path / "a", **first), study(tmp_path / "b", **other), study(tmp_path / "c", **first)]
    found = analysis.repetitions(studies)
    assert list(found) in ([2], [1, 2])
    assert f"({tmp_path / 'c'}) repeats" in found[2]
    page = analysis.write_report([tmp_path / "a", tmp_path / "c"], tmp_path / "both").read_text(encoding="utf-8")
    assert "is left out, so that no lane counts twice." in page


def test_examples_of_one_split_are_counted_once(tmp_path: Path) -> None:
    right = {"adam": [0.9] * 6, "sgd": [0.9] * 6}
    studies = []
    for name in ("a", "b"):
        folder = fresh(tmp_path / name, metric="accuracy", examples=True, **right)
        studies.append(analysis.load(folder))
    same = analysis.across(studies).scores
    studies[1].spec["workload"]["data"] = "other"
    apart, one = analysis.across(studies).scores, analysis.compare(studies[0], analysis.cells(studies[0])).scores
    assert same
    assert apart
    assert one
    assert_allclose(same.of_examples, one.of_examples)
    assert_allclose(apart.of_examples, one.of_examples / 2)


@pytest.mark.long
@pytest.mark.parametrize("count", [3, pytest.param(5, marks=pytest.mark.nightly)])
def test_equal_optimizers_are_told_apart_in_one_report_of_twenty(tmp_path: Path, count: int) -> None:
    rng, excluded = np.random.default_rng(count), 0
    for draw in range(60):
        studies = [study(tmp_path / f"{draw}-{n}", **noisy(rng, *[1.0] * 4)) for n in range(count)]
        excluded += len(analysis.across(studies).contenders) < 4
    assert excluded <= 8  # at 5% more than eight of sixty have a chance of .003
