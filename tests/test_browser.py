"""The report in a real browser: tabs, values and lines, with and without script, and its parts at a phone's width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import analysis
from tests.conftest import write_confirmation, write_study

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
pytestmark = pytest.mark.long
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
]  # fmt: skip

# What a reader does: looks at the tabs of the learning curves, points at a line, switches it off and on, opens a part.
VISIT = """
const seen = {errors: window.errors}, figure = document.getElementById("optimizer-curves");
const shown = () => [...figure.querySelectorAll(".image")].map(image => getComputedStyle(image).display !== "none");
seen.tabs = [shown()];
for (const label of figure.querySelectorAll("label")) { label.click(); seen.tabs.push(shown()); }
const image = [...figure.querySelectorAll(".image")].at(-1), svg = image.querySelector("svg");
const points = JSON.parse(image.dataset.points), point = points.at(-1), tip = figure.querySelector(".tip");
const at = new DOMPoint(point[1], point[2]).matrixTransform(svg.getScreenCTM());
const move = () => image.dispatchEvent(new PointerEvent("pointermove", {clientX: at.x + 1, clientY: at.y}));
move();
seen.value = tip.hidden ? "" : tip.textContent;
seen.expected = `${point[0]}, ${point[3]}`;
const buttons = [...figure.querySelectorAll(".lines button")];
seen.buttons = buttons.map(button => button.textContent);
const button = buttons.find(each => each.textContent === point[0]);
const visible = () => [...figure.querySelectorAll(".image [data-series]")]
  .filter(line => line.dataset.series === point[0]).map(line => getComputedStyle(line).display !== "none");
seen.lines = [visible()];
button.click(); seen.lines.push(visible()); seen.pressed = button.ariaPressed;
move(); seen.off = tip.hidden ? "" : tip.textContent;
button.click(); seen.lines.push(visible());
location.hash = "#study-search";
addEventListener("hashchange", () => {
  seen.unfolded = document.getElementById("study-search").open;
  const head = document.querySelector("#study-search table.sortable th:first-child button");
  const column = () => [...head.closest("table").tBodies[0].rows].map(row => row.cells[0].firstChild.data.trim());
  head.click(); head.click();
  seen.sorted = column();
  document.body.dataset.seen = JSON.stringify(seen);
});
"""


@pytest.fixture(scope="module")
def browser() -> str:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser on the path: {', '.join(BROWSERS)}")
    return program


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    study = write_study(folder / "study", optimizers=["adam", "sgd"], widths=[8], depths=[1], batch_sizes=[1, 32])
    return analysis.write_report(write_confirmation(study, best_of=["optimizer"]))


def visited(browser: str, page: Path, script: str, folder: Path, width: int = 1280) -> dict[str, Any]:
    """What a script writes to `document.body.dataset.seen` on a page as wide as given, in a frame, as of a phone."""
    catch = "<script>window.errors = []; addEventListener('error', event => errors.push(event.message))</script>"
    tell = "setTimeout(() => parent.postMessage(document.body.dataset.seen ?? '', '*'), 500)"
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{catch}", 1)
    text = text.replace("</body>", f"<script>{script}</script><script>{tell}</script></body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    # A window is never narrower than 500 pixels, but a frame is; only a message tells what is in it.
    frame = folder / "frame.html"
    frame.write_text(
        f'<!doctype html><body><iframe src="page.html" width="{width}" height="900"></iframe>'
        "<script>addEventListener('message', event => { document.body.dataset.seen = event.data; })</script>"
    )
    command = [browser, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert match, done.stderr
    seen: dict[str, Any] = json.loads(html.unescape(match[1]))
    return seen


def test_tabs_values_lines_and_tables_work(browser: str, page: Path, tmp_path: Path) -> None:
    seen = visited(browser, page, VISIT, tmp_path)
    assert seen["errors"] == []
    assert seen["tabs"] == [[place == tab for place in range(4)] for tab in (0, 0, 1, 2, 3)]
    assert seen["value"] == seen["expected"]
    assert re.fullmatch(r"adam, seconds .*: 0\.\d+ \[0\.\d+, 0\.\d+\]", seen["value"])
    assert seen["buttons"] == ["sgd", "adam"]
    before, off, after = seen["lines"]
    assert before == after
    assert all(before)
    assert not any(off)
    assert seen["pressed"] == "false"
    assert not seen["off"].startswith("adam")
    assert seen["unfolded"] is True
    assert seen["sorted"] == sorted(seen["sorted"], key=int, reverse=True)


def test_without_script_tabs_and_parts_still_work(browser: str, page: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    look = VISIT[: VISIT.index("const image")] + (
        'const part = document.getElementById("study-search"); part.querySelector("summary").click();'
        "seen.open = part.open; seen.buttons = document.querySelectorAll('button').length;"
        "document.body.dataset.seen = JSON.stringify(seen);"
    )
    seen = visited(browser, bare, look, tmp_path)
    assert seen["tabs"] == [[place == tab for place in range(4)] for tab in (0, 0, 1, 2, 3)]
    assert seen["open"] is True
    assert seen["buttons"] == 0


def test_a_phone_scrolls_neither_figures_nor_the_page(browser: str, page: Path, tmp_path: Path) -> None:
    look = """
    const texts = [...document.querySelectorAll("figure svg text")].map(each => each.getBoundingClientRect());
    const wide = document.documentElement.scrollWidth, heights = texts.map(box => box.height).filter(each => each > 0);
    const boxes = [...document.querySelectorAll("figure .image, figure .column")];
    const scrolls = boxes.filter(each => each.scrollWidth > each.clientWidth + 1).length;
    document.body.dataset.seen = JSON.stringify({wide, scrolls, least: Math.min(...heights)});
    """
    seen = visited(browser, page, look, tmp_path, width=390)
    assert seen["wide"] <= 390
    assert seen["scrolls"] == 0
    assert seen["least"] > 8.9  # pixels
