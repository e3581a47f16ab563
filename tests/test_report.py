"""The report: self-contained, harmless, honest, and written for any state of a study."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import html5lib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

import analysis
from analysis.figures.regimes.learning_curves import TABS
from analysis.paired import compare_with_best
from analysis.report import tables, warnings
from analysis.report.page import whole
from analysis.report.paper import tables_of
from analysis.schema import FOLDERS
from tests.conftest import (
    PART,
    curve_row,
    lane_row,
    trial_row,
    write_confirmation,
    write_provenance,
    write_spec,
    write_study,
    write_tables,
)

FIGURES = 17
"""Of the planted study."""
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Every tag with its attributes and the visible text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]) and "svg" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(index: Path) -> Page:
    return Page(index.read_text(encoding="utf-8"))


def squeezed(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text)


@pytest.fixture(autouse=True)
def words_unless_drawn(request: pytest.FixtureRequest) -> None:
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("words_only")


@pytest.fixture
def drawn() -> None:
    """Asked for by the tests that look at figures."""


@pytest.fixture(scope="module")
def quick_report(quick_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return analysis.write_report(quick_study, tmp_path_factory.mktemp("report"))


def test_no_line_ends_within_a_number() -> None:
    assert whole("<2.4 [1.2, 4.8] x 1e-4, p") == '&lt;2.4 [1.2, 4.8] x <span class="whole">1e-4,</span> p'


def test_losses_of_recipes_share_an_exponent(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"estimate": [5.2e-4, 7e-4], "low": [2.8e-7, 4e-5], "high": [0.987, 0.0985], "n": 2}
    frame = pd.DataFrame({"optimizer": "sgd", "axis": "schedule", "value": ["constant", "cosine"], **scores})
    frame = frame.assign(tuned=[True, False], learning_rate=0.1)
    monkeypatch.setattr(tables, "recipe_sensitivity", lambda *_: frame)
    shown = tables.recipes(SimpleNamespace(metric="loss"), None)  # type: ignore[arg-type]
    assert shown is not None
    assert shown.head[-1] == "validation loss, x 1e-4"
    assert [row[-1] for row in shown.rows] == [("5.20", "[0.00280, 9,870]"), ("7.00", "[0.400, 985]")]


def test_it_refers_to_nothing_outside(quick_report: Path) -> None:
    text = quick_report.read_text(encoding="utf-8")
    page = read(quick_report)
    assert page.all("script") == [{}]  # ours
    assert page.all("link") == page.all("iframe") == []
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("figures/", "tables/", "#", "data:image/png;base64,"))
            assert not value or not value.startswith(("figures/", "tables/")) or (quick_report.parent / value).is_file()
            assert not value or not value.startswith("#") or f'id="{value[1:]}"' in text


def test_every_figure_is_an_svg_with_a_text_and_a_number(quick_report: Path) -> None:
    page = read(quick_report)
    images = page.all("svg")
    assert len(images) == 2 * (FIGURES + 2 * 3)  # two have three more tabs; each also as wide as a phone
    assert all(image["role"] == "img" and len(str(image["aria-label"])) > 30 for image in images)
    titles = [f"Figure {number}. " for number in range(1, FIGURES + 1)]
    places = [squeezed(page).index(title) for title in titles]
    assert places == sorted(places)
    assert len(page.all("figure")) == len({figure["id"] for figure in page.all("figure")}) == FIGURES


def test_ids_are_unique(quick_report: Path) -> None:
    ids = [attributes["id"] for _, attributes in read(quick_report).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_captions_have_at_most_three_sentences(quick_report: Path) -> None:
    captions = re.findall(r"<figcaption>(.*?) <small>", quick_report.read_text(encoding="utf-8"), re.DOTALL)
    assert len(captions) == FIGURES
    for caption in captions:
        assert len(re.findall(r"[.!?](?= [A-Z]|$)", caption.replace("et al. ", ""))) <= 3, caption
        assert "from ." not in caption  # of trials whose engine is not recorded


def test_captions_say_first_what_is_seen(quick_report: Path) -> None:
    captions = re.findall(r"<figcaption>(.*?) <small>", quick_report.read_text(encoding="utf-8"), re.DOTALL)
    for caption in captions:
        assert re.search(r"\d", re.split(r"[.!?] (?=[A-Z])", caption)[0]), caption


def test_every_figure_lies_beside_it_as_svg_and_csv_and_as_pdf_if_asked_for(quick_report: Path) -> None:
    files = quick_report.parent / "figures"
    names = sorted(file.stem for file in files.glob("*.svg"))
    assert {"loss-by-regime", "learning-rate-sensitivity", "steps-to-target", "width-depth"} <= set(names)
    tabs = {f"{name}-{tab}" for name in ("loss-by-regime", "optimizer-curves") for tab in TABS.values()} & set(names)
    whole = [name for name in names if name not in tabs]
    assert len(tabs) == 2 * 3
    assert {file.name for file in files.iterdir()} == {
        *(f"{name}.svg" for name in names),
        *(f"{name}.csv" for name in whole),
        "cells.csv",
    }
    assert len(pd.read_csv(files / "cells.csv")) == 48
    for name in whole:
        assert len(pd.read_csv(files / f"{name}.csv")) > 0
    assert read(quick_report).text.count("SVG") == len(whole)


def test_its_parts_come_in_order(quick_report: Path) -> None:
    text = squeezed(read(quick_report))
    text = text[text.index("Its setting: adam, width 32, depth 2, batch size 32") :]
    first = ["lanes diverged", "Optimizers", "Learning curves", "Figure 2.", "Regimes", "Time to target"]
    first += ["Learning rates", "Optimizer and batch size", "Confirmation", "Batch size", "Width and depth", "Search"]
    parts = [*first, "Leaderboard", "Ledger", "Spec", "Provenance", "Regenerate"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_it_says_what_the_planted_truth_is(quick_report: Path) -> None:
    text = squeezed(read(quick_report))
    assert "Adam is the candidate, not a winner: validation loss 0.00" in text
    assert "Its setting: adam, width 32, depth 2, batch size 32 at learning rate 0.00398." in text
    assert "validation loss, chosen on these seeds" in text
    assert "48 of 48 trials have ended, with 864 lanes" in text
    assert "95% t interval" in text
    assert "3 seeds" in text


def test_its_command_and_spec_are_complete(quick_study: Path, quick_report: Path) -> None:
    text = read(quick_report).text
    assert f"study report {quick_study}" in text
    assert (quick_study / "spec.toml").read_text() in text
    assert "versions.torch" in text
    assert "not recorded" in text  # the commit


def test_a_path_with_a_space_is_quoted(make_study: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_study(optimizers=["adam"], widths=[8], depths=[1]).rename(tmp_path / "my study")
    assert f"study report '{folder}'" in read(analysis.write_report(str(folder))).text


def test_by_default_it_lies_in_the_results_folder_and_leaves_no_traces(
    make_study: Callable[..., Path], drawn: None
) -> None:
    folder = make_study(optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32])
    index = analysis.write_report(folder)
    assert index == folder / "report" / "index.html"
    first = index.read_bytes()
    assert analysis.write_report(folder).read_bytes() == first
    assert [file.name for file in index.parent.iterdir() if file.name.startswith(".")] == []


def test_a_malicious_study_is_harmless(make_study: Callable[..., Path], drawn: None) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    folder = make_study(name=evil, optimizers=["adam", "<b>bold</b>"], widths=[8], depths=[1], batch_sizes=[32])
    (folder / "provenance.json").write_text(json.dumps({"command": evil, evil: [evil], "data": {"loss": evil}}))
    page = read(analysis.write_report(folder))
    assert page.all("script") == [{}]  # ours
    assert page.all("b") == []
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert evil in page.text


STUDIES: dict[str, dict[str, Any]] = {
    "one trial": {"optimizers": ["adam"], "widths": [8], "depths": [1], "batch_sizes": [32]},
    "one seed": {"optimizers": ["adam", "sgd"], "widths": [8], "depths": [1], "seeds": 1},
    "one rate": {"optimizers": ["adam", "sgd"], "widths": [8], "depths": [1], "rates": [0.01]},
    "one optimizer": {"optimizers": ["adam"]},
    "ten optimizers": {
        "optimizers": [
            "gradient-descent",
            "sgd",
            "momentum",
            "nesterov",
            "adagrad",
            "rmsprop",
            "adam",
            "adamw",
            "a",
            "b" * 80,
        ],
        "widths": [8],
        "depths": [1],
        "batch_sizes": [32],
    },
    "all diverged": {"optimizers": ["adam", "sgd"], "widths": [8], "depths": [1], "diverge": lambda cell: True},
    "accuracy": {"metric": "accuracy", "target": 0.9, "widths": [8], "depths": [1], "seeds": 6},
    "many widths": {"optimizers": ["adam"], "widths": range(4, 24), "depths": [1], "batch_sizes": [32]},
    "linear": {"optimizers": ["sgd"], "widths": [1], "depths": [0], "batch_sizes": [1, 10_000]},
}
SAYS = {
    "one trial": "It is the only optimizer of the study.",
    "one seed": "on the 1 seed that chose it",
    "one rate": "so their rate is not tuned",
    "one optimizer": "It is the only optimizer of the study.",
    "all diverged": "No trial has a learning rate at which every seed survived, so there is nothing to compare.",
    "accuracy": "is the candidate, not a winner: validation accuracy",
    "ten optimizers": "Adam is the candidate, not a winner",
    "many widths": "It is the only optimizer of the study.",
    "linear": "Its setting: sgd, width 1, batch size 1 at learning rate",
}


DRAWN_SOON = ("one trial", "all diverged", "linear")  # drawing the others' figures takes longer


@pytest.mark.parametrize(
    "study", [each if each in DRAWN_SOON else pytest.param(each, marks=pytest.mark.long) for each in STUDIES]
)
def test_any_study_has_a_report(make_study: Callable[..., Path], study: str, drawn: None) -> None:
    text = squeezed(read(analysis.write_report(make_study(**STUDIES[study]))))
    assert SAYS[study] in text
    assert "drawing it failed" not in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_a_study_of_which_no_trial_has_ended_has_no_report(tmp_path: Path) -> None:
    write_spec(tmp_path)
    with pytest.raises(analysis.ResultsError, match=r"no trial has ended yet; `study status .*` shows the progress"):
        analysis.write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_nearly_empty_study_has_a_report_that_says_so(tmp_path: Path, drawn: None) -> None:
    write_spec(tmp_path, target=0.1)
    write_tables(tmp_path, trials=[trial_row(outcome="failed", error="RuntimeError: a bug")])
    page = read(analysis.write_report(tmp_path))
    assert "No trial has a learning rate at which every seed survived" in page.text
    assert "Whether it is still running is not recorded" in page.text
    assert page.all("figure") == []
    links = [each["href"] for each in page.all("a")]
    assert "#study-regimes" not in links  # its only figure is not shown
    assert "#study-search" in links
    assert "The search, trial by trial is not shown: fewer than three trials have ended." in squeezed(page)


def test_a_running_study_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL)
    provenance = json.loads((folder / "provenance.json").read_text()) | {"finished": None}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    text = squeezed(read(analysis.write_report(folder)))
    assert "and not finished: it is running or was interrupted" in text
    trials = len(analysis.load(folder).trials)
    assert f"{trials} of {trials} trials have ended; the study is running or was interrupted" in text


def test_every_outcome_is_counted_and_warned_of(tmp_path: Path) -> None:
    write_spec(tmp_path)
    outcomes = ["completed", "stopped", "diverged", "failed", "out of memory", "interrupted"]
    trials = [trial_row(trial=n, outcome=outcome, width=n + 1) for n, outcome in enumerate(outcomes)]
    lanes = [
        lane_row(trial=n, lane=seed, seed=seed, outcome=outcome)
        | ({"validation_loss": 0.1 + seed / 100} if outcome in ("completed", "stopped") else {})
        for n, outcome in enumerate(outcomes)
        for seed in range(2)
    ]
    write_tables(tmp_path, trials=trials, lanes=lanes)
    results = analysis.load(tmp_path)
    counts = tables.outcomes(results)
    assert counts
    assert counts.rows == [[outcome, "1", "2"] for outcome in outcomes]
    text = squeezed(read(analysis.write_report(tmp_path)))
    assert "1 trial stopped by the scheduler used less of the budget" in text
    assert "Not compared: 3 trials (1 failed, 1 out of memory, 1 interrupted)" in text
    assert "2 of 12 lanes diverged (17%)" in text


def test_a_result_on_the_edge_is_warned_of(make_study: Callable[..., Path]) -> None:
    folder = make_study(optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32], rates=[0.01, 0.1])
    text = squeezed(read(analysis.write_report(folder)))
    assert "best cell lies on the edge of its grid for adam (0.01)" in text


def test_a_figure_that_fails_leaves_the_others(make_study: Callable[..., Path], drawn: None, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("analysis.figures.search.progress.search_progress", broken)
    page = read(analysis.write_report(make_study(optimizers=["adam"], widths=[8], depths=[1])))
    assert "The search, trial by trial is not shown: drawing it failed (ZeroDivisionError: by design)." in squeezed(
        page
    )
    assert len(page.all("svg")) > 5


@pytest.mark.long
@pytest.mark.parametrize("options", [{"target": 1.5}, {"target": 1e-9}, {"noise": 1e-9}], ids=str)
def test_every_figure_of_an_odd_study_is_drawn(tmp_path: Path, options: dict[str, Any], drawn: None) -> None:
    """A target met at initialisation, or never; no scatter. One trial took no time, one lane starts low."""
    folder = write_study(tmp_path, optimizers=["adam", "sgd"], widths=[8], depths=[1], **options)
    for name in ("trials", "curves"):
        rows = pq.read_table(folder / FOLDERS[name] / PART).to_pylist()
        if name == "trials":
            rows[0]["train_seconds"] = 0.0
        for row in rows:
            if name == "curves" and (row["lane"], row["update"]) == (6, 0):
                row["value"] = 0.001
        write_tables(folder, **{name: rows})
    assert "drawing it failed" not in read(analysis.write_report(folder)).text


SMALL: dict[str, Any] = {"optimizers": ["adam", "sgd"], "widths": [8], "depths": [1], "batch_sizes": [32]}


@pytest.mark.parametrize("options", [{"metric": "accuracy"}, {"seeds": 1}, {"optimizers": ["adam"]}], ids=str)
def test_any_confirmation_has_a_report(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write_study(tmp_path, **SMALL | options)
    text = squeezed(read(analysis.write_report(write_confirmation(folder, seeds=options.get("seeds", 4)))))
    assert "winner's curse" in text
    held = len(options.get("optimizers", SMALL["optimizers"]))
    ranked = f"of {held} confirmed cells by validation {options.get('metric', 'loss')} on " in text
    assert ranked or held == 1 or options.get("seeds") == 1
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_a_confirmation_that_cannot_be_used_is_warned_of(tmp_path: Path) -> None:
    folder = write_confirmation(write_study(tmp_path, **SMALL))
    (folder / "confirm" / "lanes.parquet" / PART).write_bytes(b"no Parquet")
    text = squeezed(read(analysis.write_report(folder)))
    assert "The confirmation is left out" in text
    assert "cannot be read" in text
    assert "[confirm] in the spec checks this" in text
    (folder / "confirm" / "lanes.parquet" / PART).unlink()
    assert "2 confirmed cells left out: no lane ended" in squeezed(read(analysis.write_report(folder)))


def test_settings_name_a_cell(tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL, settings=['{"momentum":0.95,"nesterov":true}'])
    page = read(analysis.write_report(folder))
    assert "dam (momentum 0.95, nesterov true), width 8, depth 1, batch size" in squeezed(page)
    assert "settings" in page.text.split("Leaderboard")[1].split("Figures")[0]


def test_cells_without_settings_have_no_column_for_them(quick_report: Path) -> None:
    assert "settings" not in read(quick_report).text


def test_replicates_are_counted_in_the_leaderboard(tmp_path: Path) -> None:
    text = squeezed(read(analysis.write_report(write_study(tmp_path, **SMALL, replicates=2))))
    assert "over 6 seeds" in text
    assert "2 trials" in text
    assert "The best 2 of 2 cells" in text


def test_the_front_of_several_objectives_is_shown(tmp_path: Path) -> None:
    objectives = ["metric", "train_seconds", "parameters"]
    folder = write_study(tmp_path, **SMALL | {"widths": [8, 32]}, objectives=objectives)
    front = read(analysis.write_report(folder)).text.split("Pareto front")[1].split("The search, trial by trial")[0]
    assert [name for name in ("train s", "parameters") if name in front] == ["train s", "parameters"]
    assert front.count("adam") == 2
    assert "sgd" not in front


def test_grown_grids_and_left_out_trials_are_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL, replicates=3)
    file = folder / "trials.parquet" / PART
    rows = pq.read_table(file).to_pylist()
    rows[0]["extensions"] = rows[2]["extensions"] = 1  # the same cell
    rows[0]["refinements"], rows[1]["refinements"] = 2, 1
    rows[4] |= {"outcome": "diverged"}
    write_tables(folder, trials=rows)
    text = squeezed(read(analysis.write_report(folder)))
    assert "The learning-rate grid of 1 cell was extended, because its best rate lay on the edge." in text
    assert "The learning-rate grid of 2 cells was refined around its best rate" in text
    assert (
        "of the same cell came further: 1 diverged. A cell of which a trial diverged looks better than it is." in text
    )


def test_what_failed_is_listed_with_its_reason(tmp_path: Path) -> None:
    write_spec(tmp_path)
    errors = ["Traceback\n  somewhere\nValueError: no such thing\n", None, *["out of luck"] * 10]
    trials = [
        trial_row(trial=n, width=n + 1, outcome="out of memory" if n == 1 else "failed", error=error)
        for n, error in enumerate(errors)
    ]
    write_tables(tmp_path, trials=trials, lanes=[])
    failures = tables.failures(analysis.load(tmp_path))
    assert failures
    assert failures.rows[0] == ["0", "adam, width 1, depth 1, batch size 32", "ValueError: no such thing"]
    assert failures.rows[1][2] == "not recorded"
    text = squeezed(read(analysis.write_report(tmp_path)))
    assert "Failed trials, the first 10 of 12" in text
    assert text.count("out of luck") == 8


def test_several_studies_are_sections(quick_study: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other", optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32], name="other")
    index = analysis.write_report([quick_study, other], tmp_path / "both")
    page = read(index)
    assert [section["id"] for section in page.all("section")] == ["across", "1", "2"]
    assert "Not compared: quick, other: no confirmation on fresh seeds" in squeezed(page)
    assert {"1-cells.csv", "2-cells.csv"} <= {file.name for file in (tmp_path / "both" / "figures").iterdir()}


def test_figures_of_several_studies_are_numbered_through(
    quick_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_study(tmp_path / "other", batch_sizes=[1, 32], name="other", target=0.1, noise=0.1)

    def saved(drawing: Any, out: Path, prefix: str, **_: Any) -> dict[str, Any]:
        shown = {"name": prefix + drawing.name, "title": drawing.title, "caption": "", "reason": drawing.reason}
        return shown | {"files": {}, "views": [], "image": None if drawing.data.empty else "drawn"}

    monkeypatch.setattr("analysis.figures.exhibit.Exhibit.save", saved)
    text = read(analysis.write_report([quick_study, other], tmp_path / "both")).text
    numbers = [int(number) for number in re.findall(r"Figure (\d+)\. ", text)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 25
    assert "Figure 1. Performance profile over the studies" in text
    (other / "spec.toml").write_text((other / "spec.toml").read_text().replace("target = 0.1\n", ""))
    text = read(analysis.write_report([quick_study, other], tmp_path / "both")).text
    assert "Performance profile over the studies is not shown: fewer than two studies name a target" in text


def test_a_report_compares_optimizers_once_and_regimes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_confirmation(
        write_study(tmp_path, **SMALL | {"batch_sizes": [1, 32]}), best_of=["optimizer", "regime"]
    )
    calls: list[int] = []

    def counted(scores: Any, looks: int) -> Any:
        calls.append(len(scores.means))
        return compare_with_best(scores, looks)

    monkeypatch.setattr("analysis.comparisons.compare_with_best", counted)
    analysis.write_report(folder)
    assert len(calls) == 2


def test_several_studies_replace_no_report_of_one(quick_study: Path, make_study: Callable[..., Path]) -> None:
    pair = [quick_study, make_study(optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32], name="other")]
    with pytest.raises(analysis.ResultsError, match="several studies need a folder for their common report"):
        analysis.write_report(pair)
    with pytest.raises(analysis.ResultsError, match="holds the report of one study alone"):
        analysis.write_report(pair, pair[1] / "report")
    assert not (pair[1] / "report").exists()


def test_figures_of_an_earlier_report_do_not_outlive_their_data(make_study: Callable[..., Path], drawn: None) -> None:
    folder = make_study(optimizers=["adam"], widths=[8], depths=[1], batch_sizes=[32])
    figures = analysis.write_report(folder).parent / "figures"
    assert (figures / "learning-rate-sensitivity.svg").is_file()
    write_tables(folder, trials=[trial_row(outcome="failed")])
    (folder / "lanes.parquet" / PART).unlink()
    index = analysis.write_report(folder)
    left = {file.stem for file in (index.parent / "figures").iterdir()}
    assert left == {"cells"}


def test_a_folder_that_is_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(analysis.ResultsError, match="no such folder"):
        analysis.write_report(tmp_path / "nothing")
    with pytest.raises(analysis.ResultsError, match="no results folder given"):
        analysis.write_report([])


def planted_study(folder: Path, *, gap: float, draw: int = 0) -> Path:
    """Two optimizers whose losses differ by the factor `gap`, over the same seeds; the edge of sgd's grid is its best.

    Updates to the target follow S = 60 (1 + 100 / B) for both; ten seeds scatter the log loss by 0.1, and share half of
    the variance between the optimizers. `draw` seeds the scatter.
    """
    rng, seeds, noise, critical = np.random.default_rng(draw), 10, 0.1, 100.0
    luck = rng.normal(0, noise / math.sqrt(2), seeds)
    write_spec(folder, target=0.5)
    with (folder / "spec.toml").open("a") as file:
        file.write(
            "\n[search]\nbatch_size = {low = 8, high = 512, log = true}\nwidth = {low = 4, high = 64, log = true}\n"
        )
    write_provenance(folder)
    trials, lanes, curves = [], [], []
    cells = [(name, size, width) for name in ("adam", "sgd") for size in (8, 32, 128, 512) for width in (16, 64)]
    for trial, (name, size, width) in enumerate(cells):
        shape = {"optimizer": name, "batch_size": size, "width": width}
        trials.append(trial_row(trial=trial, **shape, wall_seconds=225.0))
        best = 0.01 * (gap if name == "sgd" else 1) * (1 + size / 100) * (1.3 if width == 16 else 1)
        tuned = 0.1 if name == "sgd" else 0.01
        for lane, (rate, seed) in enumerate((rate, seed) for rate in (0.001, 0.01, 0.1) for seed in range(seeds)):
            final = best * (rate / tuned if rate > tuned else tuned / rate) ** 0.4
            final *= math.exp(luck[seed] + rng.normal(0, noise / math.sqrt(2)))
            steps = round(60 * (1 + critical / size) * math.exp(rng.normal(0, 0.05)) * (1 if rate == tuned else 2))
            row = lane_row(trial=trial, lane=lane, learning_rate=rate, seed=seed, validation_loss=final)
            lanes.append(row | {"test_loss": final * math.exp(rng.normal(0, noise / 10))})
            points = {0: 2.0, steps - 1: 0.9, steps: 0.49, 5 * steps: final}
            curves += [curve_row(trial=trial, lane=lane, update=update, value=v) for update, v in points.items()]
    write_tables(folder, trials=trials, lanes=lanes, curves=curves)
    return folder


def test_a_planted_truth_is_what_the_report_says(tmp_path: Path) -> None:
    folder = write_confirmation(planted_study(tmp_path, gap=1.5), best_of=["optimizer"], noise=0.1)
    text = squeezed(read(analysis.write_report(folder)))
    found = re.search(
        r"Adam wins: test loss (\S+) \[(\S+), (\S+)\] on 10 fresh seeds; (\S+) times \[(\S+), (\S+)\] the loss of the "
        r"best other optimizer, sgd \(all others are excluded, p . 0\.0\S+\)\. Best setting: adam, width 64, depth 1, "
        r"batch size 8 at learning rate 0\.01\. Cost: ",
        text,
    )
    assert found
    mine, low, high, ratio, ratio_low, ratio_high = map(float, found.groups())
    assert_allclose(mine, 0.0108, rtol=0.15)
    assert ratio_low < 1 / 1.5 < ratio_high < 1
    assert low < mine < high
    assert ratio_low < ratio < ratio_high
    # The scatter over seeds: the half width of the interval is t sd / sqrt(n) of the log loss.
    assert 0.05 < math.log(high / low) / 2 / 2.262 * math.sqrt(10) < 0.2
    for name in ("adam", "sgd"):
        critical = re.search(rf"Critical batch size of {name}: (\S+) \[(\S+), (\S+)\]", text)
        assert critical
        assert float(critical[2]) < 100 < float(critical[3])
    assert "The tuned rate of the best cell lies on the edge of its grid for sgd (0.1)" in text
    assert "The best cells lie at the high end of the searched width, 64: better ones may lie beyond." in text
    assert "The best cells lie at the low end of the searched batch size, 8: better ones may lie beyond." in text


def test_it_is_valid_html(quick_report: Path) -> None:
    html5lib.HTMLParser(strict=True).parse(quick_report.read_text(encoding="utf-8"))


@pytest.mark.nightly
def test_a_large_study_makes_a_small_report(tmp_path: Path) -> None:
    """A thousand trials with some 230,000 points; the time that it takes is not asserted."""
    sizes: dict[str, Any] = {"widths": range(4, 29), "depths": [1, 2], "batch_sizes": [1, 8, 32, 256, 10_000]}
    folder = write_study(tmp_path, target=0.1, rates=[1e-3, 1e-2, 1e-1], **sizes)
    assert len(analysis.load(folder).trials) == 1000
    assert len(analysis.load(folder).curves) > 200_000
    code = f"""
import analysis
analysis.write_report({str(folder)!r})
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # In KiB; getrusage would count what the parent, which ran other tests, had before the child's program began.
    assert int(found.stdout) < 2 * 1024**2
    assert (folder / "report/index.html").stat().st_size < 10e6


def test_that_some_trials_had_a_gpu_and_some_none_is_told_of_those_that_ran(quick_study: Path) -> None:
    results = analysis.load(quick_study)

    def told(*each_had: list[str] | None) -> list[str]:
        stints: list[object] = [
            None if had is None else [{"started": 0.0, "ended": 1.0, "worker": "a:1", "gpus": had}] for had in each_had
        ]
        trials = results.trials.assign(stints=stints + [None] * (len(results.trials) - len(stints)), worker=None)
        other = replace(results, trials=trials)
        table = analysis.cells(other)
        every = warnings.warnings(other, table, analysis.winners_curse(other, table))
        return [each for each in every if "had a GPU" in each]

    assert told(["a:0"], [], []) == [
        "1 trial had a GPU and 2 had none: compare seconds only within one of these groups."
    ]
    assert told([], None) == told(["a:0"], None) == []  # one that nothing ran, as it was cut off before


@pytest.mark.parametrize("sessions", [{"a": 1}, ["x"], [{"nodes": ["b"]}], [{"nodes": {"b": 2}, "events": None}]])
def test_sessions_of_a_damaged_provenance_leave_a_report(sessions: object, tmp_path: Path) -> None:
    folder = write_study(tmp_path, **SMALL)
    provenance = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(provenance | {"sessions": sessions}))
    text = squeezed(read(analysis.write_report(folder)))
    assert ("b, 2 idle GPUs" in text) == (sessions == [{"nodes": {"b": 2}, "events": None}])


def test_every_table_says_on_which_seeds_and_what_its_intervals_cover(make_study: Callable[..., Path]) -> None:
    folder = make_study(widths=[8], depths=[1], target=0.1, objectives=["metric", "parameters"])
    for fresh in (False, True):
        results = analysis.load(write_confirmation(folder, best_of=["optimizer", "regime"]) if fresh else folder)
        table = analysis.cells(results)
        shown = tables_of(results, table, analysis.compare(results, table), analysis.winners_curse(results, table))
        words = {name: f"{each.caption} {each.head}" for name, each in shown.items() if each}
        for name in ("comparisons", "regimes"):
            assert ("are paired by seed" if fresh else "shown on the same 3 seeds, so") in words[name]
        assert "medians over the seeds of the search, which chose them; no intervals" in words["times"]
        assert words["leaderboard"].startswith("On 3 seeds of the search, which chose rates and cells; ")
        assert "validation, chosen on these seeds" in words["front"]
    assert "over seeds; those of the test split also over test examples" in words["confirmed"]
    single = write_study(folder.parent / "one", widths=[8], depths=[1], batch_sizes=[32], rates=[0.01])
    results = analysis.load(write_confirmation(single, best_of=["optimizer"]))
    compared = tables.compared(analysis.compare(results, analysis.cells(results)), "loss", has_settings=False)
    assert compared
    assert "(unknown, so not of adam, rmsprop, momentum and sgd)" in compared.caption
