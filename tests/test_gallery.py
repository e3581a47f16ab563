"""The gallery: each figure's call draws on given axes, and changes no settings of matplotlib."""

from __future__ import annotations

import inspect
from pathlib import Path

import matplotlib as mpl
import pytest

import analysis
from analysis.figures.style import figure
from tests.gallery import PAGE, calls

DRAWING = {
    name for name in analysis.__all__ if "ax" in getattr(inspect.unwrap(getattr(analysis, name)), "__annotations__", {})
}


@pytest.mark.filterwarnings("ignore:No artists with labels")
def test_calls_draw_on_given_axes_and_change_no_settings(quick_study: Path) -> None:
    results = analysis.load(quick_study)
    results.spec["tuning"] = {"sampler": "grid"}
    table = analysis.cells(results)
    for code, image in calls():
        before = mpl.rcParams.copy()
        ax = figure(130, 70).subplots()
        exec(code, {"analysis": analysis, "results": results, "table": table, "ax": ax})
        assert mpl.rcParams.copy() == before, code
        # The planted study has no importance, times of workers or gradient noise.
        assert ax.has_data() or Path(image).stem in ("importance", "timeline", "gradient-noise"), code


def test_every_drawing_function_is_in_the_gallery_with_its_image() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(DRAWING) > 15
    assert [name for name in sorted(DRAWING) if f"analysis.{name}(" not in text] == []
    images = [PAGE.parent / image for _, image in calls()]
    assert sorted(image.resolve() for image in images) == sorted((PAGE.parent / "images/gallery").resolve().iterdir())
    assert sum(image.stat().st_size for image in images) < 1_000_000
