"""Every command and snippet of the README, run as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

from study.spec import check

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = (line for block in blocks("sh") for line in block.splitlines())
    return [re.split(r"\s+#\s", line)[0].strip() for line in lines]


def test_the_two_commands_are_there_and_in_the_makefile() -> None:
    assert commands()[:2] == ["make study", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{name}: .venv/installed\n" in makefile for name in ("study", "test"))


def test_the_spec_is_valid() -> None:
    (spec,) = blocks("toml")
    assert check(tomllib.loads(spec)).name == "my-study"


def test_files_that_it_names_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    named = re.findall(r"`((?:trainables|study|analysis|tests)/[\w./]+)`", README)
    assert links
    assert named
    for path in links + named:
        assert (ROOT / path).exists(), path


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_command_and_snippet_runs(tmp_path: Path) -> None:
    """One folder, in the README's order; `make` is what called this."""
    (tmp_path / "my-study.toml").write_text(blocks("toml")[0])
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    shell, python = commands()[2:], blocks("python")
    assert {command.split()[0] for command in shell} == {"study", "ray", "eval"}
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
