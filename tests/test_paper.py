"""Figures and tables for a paper, and flat tables."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import analysis
from analysis.figures.registry import FIGURES
from analysis.report import paper
from analysis.report.tables import Table
from study.cli import main
from tests.conftest import write_confirmation, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("paper")
    small = write_study(top / "small", widths=(8,), depths=(1,), settings=(None, '{"momentum": 0.9}'))
    return write_confirmation(small, best_of=["optimizer", "regime"])


def test_a_paper_has_vector_figures_with_text_and_truetype(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.registry.FIGURES", {"regimes": FIGURES["regimes"]})
    files = analysis.write_figures(folder, "ieee", tmp_path)
    assert {"optimizers.pdf", "loss-by-regime.pdf", "loss-by-regime-epochs.pdf"} <= {file.name for file in files}
    for file in files:
        if file.suffix == ".pdf":
            content = file.read_bytes()
            assert b"/TrueType" in content or b"/CIDFontType2" in content
            assert b"/Type3" not in content
        if file.suffix == ".svg":
            assert "<text" in file.read_text()
    svg = (tmp_path / "figures/optimizers.svg").read_text()
    assert ">adam<" in svg
    assert 'width="252' in svg  # points, of 3.5 inches
    latex = (tmp_path / "tables/optimizers-at-their-best.tex").read_text()
    assert latex.count(r"\\") == 1 + 4
    first = latex.split(r"\midrule")[1].splitlines()[1]
    assert first.startswith(r"\textbf{adam}")
    assert "[" in first
    csv = pd.read_csv(tmp_path / "tables/optimizers-at-their-best.csv")
    assert csv["optimizer"].iloc[0] == "adam"
    assert "test loss, fresh seeds, below" in csv.columns


def test_latex_is_escaped_and_the_best_rows_are_bold() -> None:
    shown = Table("T", ["a_b", "c"], [["5%", ("1", "[0, 2]")], ["{x}", "\N{EN DASH}"]], [0], best=[0])
    assert paper.latex(shown).splitlines()[1:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & c \\",
        r"\midrule",
        r"\textbf{5\%} & \textbf{1} {\scriptsize [0, 2]} \\",
        r"\{x\} & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_bad_widths_are_the_users_mistake(folder: Path) -> None:
    found = CliRunner().invoke(main, ["figures", str(folder), "--style", "narrow"])
    assert found.exit_code == 2
    assert "narrow: not a style or width; valid: icml, ieee, neurips, beamer" in found.output
    assert not (folder / "paper").exists()


@pytest.mark.parametrize("name", ["trials", "lanes", "curves"])
def test_tables_are_flat(folder: Path, name: str) -> None:
    rows = analysis.flat(analysis.load(folder), name)
    assert rows.map(lambda value: not isinstance(value, list | dict) and not hasattr(value, "shape")).all(axis=None)
    found = CliRunner().invoke(main, ["table", str(folder), name, "--csv"])
    assert len(pd.read_csv(io.StringIO(found.output))) == len(rows) == len(getattr(analysis.load(folder), name))
    assert len(CliRunner().invoke(main, ["table", str(folder), name]).output.splitlines()) < 30
    if name == "trials":
        assert set(rows["settings.momentum"].dropna()) == {0.9}
