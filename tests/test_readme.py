"""Every command and code block of README, docs and examples, run as they stand there, and the site made of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import yaml
from sklearn.datasets import load_wine

from study.spec import check, read, reference

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
# In the order in which a reader meets them: later pages use what earlier ones made.
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for section in SITE["nav"]
    for each in section.values()
    for page in each
}
DOCS = {Path(page).stem: text for page, text in PAGES.items() if page.startswith("docs/")}
TEXT = "\n".join(text for page, text in PAGES.items() if page != "docs/gallery.md")  # which has a test of its own
# What a block stands on that is no file of its own.
BASE = """
name = "base"
workload = {data = "digits", model = "mlp"}
search = {width = 16, depth = 2, batch_size = 32, optimizer = "adam", settings = {adam = {beta1 = [0.8, 0.9]}}}
budget = {trials = 2, epochs = 1}
"""


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
    parts = [tomllib.loads(text) for text in blocks("toml") if text not in files().values()]
    assert [list(part) for part in parts] == [["baseline"], ["enqueue"], ["lanes"], ["workload"]]
    for part in parts:
        check(tomllib.loads(BASE) | part)
    load_wine(as_frame=True).frame.to_csv(tmp_path / "wine.csv", index=False)
    assert read(tmp_path / "own-table.toml").workload.facts.in_shape == (2,)
    assert read(tmp_path / "my-study.toml").name == "my-study"
    assert read(tmp_path / "mine.toml").workload.model == "mine:Residual"
    check(tomllib.loads(BASE) | {"workload": {"data": "digits", "model": "nets:adapted"}}, "nets.toml", tmp_path)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    opened = re.findall(r"^```(.*)$", TEXT, re.MULTILINE)[::2]
    assert set(opened) == {"sh", "console", "python", "toml", "text"}  # text is output or a drawing


def test_its_figures_are_made_by_a_command() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nfigures: ")[1].split("\n\n")[0]
    assert "make figures" in " ".join(TEXT.split())
    shown = re.findall(r"!\[[^]]*\]\((?:docs/)?images/(\S+)\.png\)", TEXT)
    assert len(shown) == 2
    assert all(f" docs/images/{figure}\n" in f"{recipe}\n" for figure in shown)


def test_files_that_it_names_exist() -> None:
    kept = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), EXAMPLES / "README.md"]
    assert {ROOT / page for page in PAGES} == set(kept)
    links = [  # relative to the page
        (ROOT / page).parent / link.split("#")[0]
        for page, text in PAGES.items()
        for link in re.findall(r"\]\(([^)]+)\)", text)
        if not link.startswith("#")
    ]
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
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    for name, text in files().items():
        (tmp_path / name).write_text(text)
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


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_the_commands_of_the_installation_run_without_make(tmp_path: Path) -> None:
    """Pip alone, from the package index, into an environment of its own."""
    (block,) = blocks("console")
    copied(tmp_path)
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "study", "trainables", "analysis"):
        source = ROOT / name
        copy = partial(shutil.copytree, ignore=shutil.ignore_patterns("built")) if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{Path(sys.base_prefix, 'bin')}{os.pathsep}{os.environ['PATH']}"
    for line in block.splitlines():
        command = ["bash", "-c", line.removeprefix("$ ")]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (tmp_path / "results/quick/report/index.html").is_file()


def copied(folder: Path) -> None:
    """Copy what the site is made of into a folder."""
    for page in ("README.md", "mkdocs.yml", "Makefile"):
        shutil.copy(ROOT / page, folder)
    for pages in ("docs", "examples"):
        shutil.copytree(ROOT / pages, folder / pages)


@pytest.mark.nightly
def test_the_site_builds_without_warnings_and_needs_no_network(tmp_path: Path) -> None:
    copied(tmp_path)
    command = ["make", "-o", ".venv/extras", "docs", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "build/site"
    assert {f"{Path(page).with_suffix('')}.html" for page in PAGES} - {"README.html", "examples/README.html"} <= {
        path.relative_to(site).as_posix() for path in site.rglob("*.html")
    }
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//", page.read_text())
        assert not loaded, page


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.toml")))
def test_an_example_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    spec = read(f"{name}.toml")
    assert spec.name == name.replace("_", "-")
    assert spec.workload.facts.out_features == 3


def test_the_page_of_keys_is_current_and_describes_each() -> None:
    text = reference.page()
    assert DOCS["spec"] == text  # otherwise: python -m study.spec.reference > docs/spec.md
    assert not re.findall(r"^\| `\w+` \|.*\|  \|$", text, re.MULTILINE)
