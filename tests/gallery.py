"""The figures of docs/gallery.md: `python -m tests.gallery RESULTS` runs its calls and writes the images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import analysis
from analysis.figures.exhibit import legend
from analysis.figures.style import SERIES, figure

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"


def calls() -> Iterator[tuple[str, str]]:
    """The code and the image of each section of the page."""
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        code, image = re.search(r"```python\n(.*?)```", section, re.DOTALL), re.search(r"\]\((.*?)\)", section)
        assert code, section
        assert image, section
        yield code[1], image[1]


def main(folder: str) -> None:
    """Write the images of a study."""
    results = analysis.load(folder)
    table = analysis.cells(results)
    for code, image in calls():
        with analysis.style(width="130mm"):
            drawn = figure(130, 70)
            exec(code, {"analysis": analysis, "results": results, "table": table, "ax": drawn.subplots()})
            legend(drawn, "outside right upper")
            file = PAGE.parent / image
            drawn.savefig(file, metadata={"Date": None})
        file.write_text(file.read_text(encoding="utf-8").replace(f' id="{SERIES}', ' data-series="'), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
