"""Every command and snippet of the README and of docs/, run as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from sklearn.datasets import load_iris, load_wine

from study.spec import read, reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# In the order in which a reader meets them: later pages use what earlier ones made.
PAGES = (
    *("running", "spec", "results", "own-data", "user-code", "python", "cluster"),
    *("protocol", "performance", "reproduction", "contributing"),
)
DOCS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}
TEXT = "\n".join([README, *DOCS.values()])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = (line for block in blocks("sh") for line in block.splitlines())
    return [re.split(r"\s+#\s", line)[0].strip() for line in lines]


def test_the_two_commands_are_there_and_in_the_makefile() -> None:
    assert commands()[:2] == ["make study", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{name}: .venv/installed\n" in makefile for name in ("study", "test"))


def files() -> dict[str, str]:
    """The blocks that are files, by the names in their first lines."""
    found = [(re.match(r"# (\S+\.(?:py|toml))\n", text), text) for text in [*blocks("python"), *blocks("toml")]]
    return {name[1]: text for name, text in found if name}


def test_the_specs_are_valid(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    assert {"my-study.toml", "mine.toml"} <= set(files())
    load_wine(as_frame=True).frame.to_csv(tmp_path / "wine.csv", index=False)
    assert read(tmp_path / "own-table.toml").workload.facts.in_shape == (2,)
    assert read(tmp_path / "my-study.toml").name == "my-study"
    assert read(tmp_path / "mine.toml").workload.model == "mine:Residual"


def test_its_figures_are_made_by_a_command() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nfigures: ")[1].split("\n\n")[0]
    assert "make figures" in " ".join(TEXT.split())
    shown = re.findall(r"!\[[^]]*\]\((?:\.\./)?(\.github/\S+)\.png\)", TEXT)
    assert len(shown) == 2
    assert all(f" {figure}\n" in f"{recipe}\n" for figure in shown)


def test_files_that_it_names_exist() -> None:
    assert {*DOCS, "gallery"} == {path.stem for path in (ROOT / "docs").glob("*.md")}  # which has a test of its own
    pages = {ROOT: README, ROOT / "docs": "\n".join(DOCS.values())}  # links are relative to the page
    links = [folder / link for folder, text in pages.items() for link in re.findall(r"\]\(([^)]+)\)", text)]
    named = re.findall(r"`((?:trainables|study|analysis|tests)/[\w./]+)`", TEXT)
    assert links
    assert named
    for path in [*links, *(ROOT / each for each in named)]:
        assert path.exists(), path


@pytest.mark.nightly
@pytest.mark.alone  # its `ray stop` stops every Ray
@pytest.mark.timeout(1200)
def test_every_command_and_snippet_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In one folder and in the pages' order; `make` is left out, as it is what runs the tests."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    iris = load_iris(as_frame=True)  # the reader's own file
    iris.data.assign(species=iris.target_names[iris.target]).to_csv(tmp_path / "iris.csv", index=False)
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    stop = ["bash", "-c", "ray stop"]
    request.addfinalizer(partial(subprocess.run, stop, env=environment, capture_output=True, check=False))
    # Each command has a shell of its own, so variables are set before.
    exported = [line.split()[1:] for line in commands() if line.startswith("export ")]
    environment |= dict(pair.split("=", 1) for pairs in exported for pair in pairs)
    shell, python = (
        [line for line in commands()[2:] if not line.startswith("export ")],
        [code for code in blocks("python") if code not in files().values()],
    )
    assert {command.split()[0] for command in shell} == {"study", "ray", "eval", "python"}
    for command in [*(["bash", "-c", line] for line in shell), *([sys.executable, "-c", code] for code in python)]:
        if "study dashboard" in command[-1]:
            serves(command, tmp_path, environment)
            continue
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, (command, found.stdout, found.stderr)


def serves(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """A command that serves a page until Ctrl-C."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {command[-1]}"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        (address,) = re.findall(r"http://\S+", server.stdout.readline())
        with urllib.request.urlopen(f"{address}api/studies", timeout=60) as answer:
            assert "my-study" in answer.read().decode()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def test_the_page_of_keys_is_current_and_describes_each() -> None:
    text = reference.page()
    assert DOCS["spec"] == text  # otherwise: python -m study.spec.reference > docs/spec.md
    assert not re.findall(r"^\| `\w+` \|.*\|  \|$", text, re.MULTILINE)
