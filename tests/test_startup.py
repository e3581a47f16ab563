"""Commands that do no training import no heavy library, so that they answer at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomlkit

from study.results.provenance import write_provenance
from study.spec import check
from tests.test_spec import GOOD, changed
from trainables.storage import write_text

LIBRARIES = ("torch", "torchvision", "ray", "optuna", "scipy", "matplotlib", "sklearn")
COMMAND = f"""
import sys
from study.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("CODE", code, "IMPORTED", [name for name in {(*LIBRARIES, "pandas", "pydantic")} if name in sys.modules])
"""


def imported_by(*arguments: str, folder: Path) -> tuple[int, set[str]]:
    """The exit code of a command, and which of the libraries it imported."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    code, _, names = found.stdout.rpartition("CODE ")[2].partition(" IMPORTED ")
    return int(code), set(eval(names))


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"], ["init", "--help"], ["--version"]])
def test_help_and_lists_import_no_library(arguments: list[str], tmp_path: Path) -> None:
    assert imported_by(*arguments, folder=tmp_path) == (0, set())


@pytest.mark.parametrize("command", ["check", "run", "manifest slurm", "submit --address http://x:1 --out /x"])
def test_a_mistake_in_a_spec_imports_no_heavy_library(command: str, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text(tomlkit.dumps(changed(budget__epoch=3)))
    code, names = imported_by(*command.split(), "broken.toml", folder=tmp_path)
    assert code == 2
    assert not names & {*LIBRARIES, "pandas"}


def test_a_file_that_is_no_toml_imports_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("a = = 1")
    code, names = imported_by("check", "broken.toml", folder=tmp_path)
    assert (code, names & {*LIBRARIES, "pandas"}) == (2, set())


def test_init_imports_no_heavy_library(tmp_path: Path) -> None:
    code, names = imported_by("init", "--yes", folder=tmp_path)
    assert (code, names & {*LIBRARIES, "pandas"}) == (0, set())


def test_status_imports_no_heavy_library(tmp_path: Path) -> None:
    spec = check(GOOD)
    write_text(tmp_path / "spec.toml", spec.to_toml())
    write_provenance(tmp_path, spec, [{"command": "", "started": "", "ended": None}], finished=False)
    code, names = imported_by("status", str(tmp_path), folder=tmp_path)
    assert (code, names & set(LIBRARIES)) == (0, set())


@pytest.mark.long
def test_user_code_imports_torch_in_its_own_process_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def net(in_shape, out_features):\n"
        "    return torch.nn.Linear(*in_shape, out_features)\n"
        "class Mine(torch.optim.SGD):\n"
        "    pass\n"
    )
    search = {"batch_size": 32, "optimizer": ["adam", "own:Mine"], "settings": {"own:Mine": {"momentum": 2.0}}}
    tables = changed(workload__model="own:net", search=search, budget__epoch=3)
    (tmp_path / "broken.toml").write_text(tomlkit.dumps(tables))
    code, names = imported_by("check", "broken.toml", folder=tmp_path)
    assert (code, names & {*LIBRARIES, "pandas"}) == (2, set())


@pytest.mark.long
def test_help_is_much_faster_than_importing_torch(tmp_path: Path) -> None:
    def fastest(command: list[str]) -> float:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    assert fastest(["-m", "study", "--help"]) < fastest(["-c", "import torch"]) / 3
