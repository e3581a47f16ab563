"""Studies of user code, from its spec to its report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from click.testing import CliRunner

import analysis
from analysis.schema import seal
from study import api
from study.cli import main
from study.errors import SpecError
from study.results import export
from study.spec import check, read
from study.usercode import bundle
from tests import user_code
from tests.bundles import NET, TABLES, write
from tests.nodes import Nodes, why_not
from trainables.usercode import importing

OWN: dict[str, Any] = {
    "name": "own",
    "workload": {"data": "digits", "model": "user_code:Normed"},
    "search": {"width": [4, 8], "depth": [1], "batch_size": [32, "full"], "optimizer": ["adam", "user_code:Lion"]},
    "lanes": {"rates": 2, "seeds": 2, "extensions": 0, "refine": 0},
    "budget": {"trials": 4, "epochs": 1, "min_updates": 5},
    "tuning": {"sampler": "qmc", "scheduler": "none"},
    "confirm": {"top": 1, "seeds": 2},
}


def study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("study")), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def user_folder(folder: Path, name: str = "own.toml", **changes: Any) -> Path:
    """A folder with a spec and the module beside it, and the current folder elsewhere."""
    (folder / "mine").mkdir()
    (folder / "elsewhere").mkdir()
    shutil.copy(Path(user_code.__file__), folder / "mine" / "user_code.py")
    tables = OWN | {section: {**OWN[section], **values} if values else values for section, values in changes.items()}
    (folder / "mine" / name).write_text(tomlkit.dumps(tables))
    return folder / "elsewhere"


@pytest.mark.long
def test_model_arguments_are_searched(tmp_path: Path) -> None:
    tables = {
        **TABLES,
        "workload": {"data": "digits", "model": "tests.user_code:Vision", "model_args": {"heads": [1, 2]}},
        "search": {**TABLES["search"], "optimizer": ["adam", "tests.user_code:Lion"],
                   "settings": {"tests.user_code:Lion": {"beta1": [0.8, 0.9]}}},
    }  # fmt: skip
    spec = check(tables, "own", tmp_path)
    assert set(spec.dimensions()) == {"optimizer", "batch_size", "width", "depth", "model.heads"}
    assert spec.cells() == 2 * 2 * (1 + 2)
    file = tmp_path / "spec.toml"
    file.write_text(spec.to_toml())
    assert read(file) == spec
    assert spec.rates("tests.user_code:Lion") == (1e-4, 0.1, 8)
    with pytest.raises(SpecError, match=r"search.settings.*: tests.user_code:Lion has no such setting; valid: beta1"):
        check({**tables, "search": {**tables["search"], "settings": {"tests.user_code:Lion": {"momentum": 0.9}}}})
    with pytest.raises(SpecError, match=r"lanes.engine: native does not train tests.user_code:Lion"):
        check({**tables, "lanes": {"engine": "native"}})


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "workload",
    [{"model": "user_code:Residual"}, {"model": "user_code:Vision", "model_args": {"heads": [1, 2]}},
     {"model": "user_code:Normed"}],
    ids=["residual", "vision", "batch norm"],
)  # fmt: skip
def test_study_of_a_user_model(workload: dict[str, Any], tmp_path: Path) -> None:
    """By the installed command, from a folder where nothing of it lies."""
    here = user_folder(tmp_path, workload=workload, budget={"trials": 2}, confirm=False)
    ran = study(here, "run", "../mine/own.toml", "--plain")
    assert ran.returncode == 0, ran.stderr
    results = analysis.load(here / "results" / "own")
    assert list(results.trials["outcome"]) == ["completed"] * 2
    assert set(results.trials["engine"]) <= {"vmap", "solo"}
    assert (here / "results/own/report/index.html").is_file()


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(600)
def test_study_of_all_kinds_of_user_code(tmp_path: Path) -> None:
    """Model, data, optimizer, loss and score; it is confirmed, and goes on without what the user has by then."""
    own = {
        "data": "user_code:waves",
        "model": "user_code:Shuffled",
        "metric": "user_code:near",
        "loss": "user_code:huber",
    }
    here = user_folder(tmp_path, workload=own)
    ran = study(here, "run", "../mine/own.toml", "--plain")
    assert ran.returncode == 0, ran.stderr
    assert "runs lane by lane" in ran.stderr
    out = here / "results" / "own"
    results = analysis.load(out)
    assert list(results.trials["outcome"]) == ["completed"] * 4
    assert set(results.trials["optimizer"]) == {"adam", "user_code:Lion"}
    assert results.confirmation
    assert set(results.confirmation.trials["outcome"]) == {"completed"}
    assert (out / "code" / "user_code.py").is_file()
    page = (out / "report" / "index.html").read_text()
    assert "user_code:Lion" in page
    assert "Accuracy here means the mean of user_code:near" in page
    assert results.provenance["data"]["loss"] == "mean of user_code:huber"
    shutil.rmtree(tmp_path / "mine")
    more = study(here, "extend", "results/own", "--trials", "1", "--plain")
    assert more.returncode == 0, more.stderr
    assert len(analysis.load(out).trials) == 5
    assert "5 of 5" in study(here, "status", "results/own").stdout


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_study_resumes_with_the_code_it_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder where the module lies, which has been edited since."""
    wider = NET.replace("nn.Linear(torch.Size(in_shape).numel(),", "nn.Sequential(nn.Linear(64, 30), nn.Linear(30,")
    wider = wider.replace("out_features)\n", "out_features))\n")
    write(tmp_path, {"own": "import helping\n" + NET, "beyond/helping": ""})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "beyond"), prepend=os.pathsep)
    tables = {**TABLES, "lanes": {"rates": 2, "seeds": 2, "extensions": 0, "refine": 0}, "tuning": {"sampler": "qmc"}}
    (tmp_path / "own.toml").write_text(tomlkit.dumps(tables))
    module = [sys.executable, "-m", "study"]  # which has the current folder before all others
    again = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    ran = again([*module, "run", "own.toml", "--plain"])
    assert ran.returncode == 0, ran.stderr
    write(tmp_path, {"own": wider, "beyond/helping": "x = 1"})
    more = again([*module, "extend", "results/own", "--trials", "2", "--plain"])
    assert more.returncode == 0, more.stderr
    begun = f"note: {tmp_path / 'own.py'} has been edited since; the study continues with the code it began with, in "
    assert f"{begun}{tmp_path / 'results' / 'own' / 'code'}" in more.stderr
    assert f"note: {tmp_path / 'beyond' / 'helping.py'} is not in the copy and has been edited since" in more.stderr
    trials = analysis.load(tmp_path / "results" / "own").trials
    assert list(trials["outcome"]) == ["completed"] * 4
    assert trials["parameters"].nunique() == 1
    code = tmp_path / "results" / "own" / "code" / "own.py"
    code.write_text(wider)
    refused = again([*module, "extend", "results/own", "--trials", "1", "--plain"])
    assert refused.returncode == 2
    assert f"{code}: differs from the code that the study began with; restore the old code, or run" in refused.stderr


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_failing_model_affects_no_other_trial(tmp_path: Path) -> None:
    here = user_folder(tmp_path, workload={"model": "user_code:Fragile"}, budget={"epochs": 3})
    ran = study(here, "run", "../mine/own.toml", "--plain")
    assert ran.returncode == 0, ran.stderr
    trials = analysis.load(here / "results" / "own").trials.set_index("width")
    assert set(trials.loc[[4], "outcome"]) == {"completed"}
    broken = trials[trials["outcome"] == "failed"]
    assert set(broken.index) == {8}
    assert broken["error"].str.contains("the flux capacitor is empty").all()


@pytest.mark.nightly
def test_check_reports_lane_equality_of_a_user_model(tmp_path: Path) -> None:
    said = study(user_folder(tmp_path), "check", "../mine/own.toml")
    assert said.returncode == 0, said.stderr
    line = next(line for line in said.stdout.splitlines() if "computes alone" in line)
    assert line.startswith("  lanes   equal what each computes alone: ")
    assert "after 20 updates of adam at batch size 32" in line
    assert "times as fast as one after another" in line


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_bundle_is_sent_to_nodes_of_a_cluster(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    here, out = user_folder(tmp_path), tmp_path / "out"
    with Nodes() as nodes:
        for name in ("head", "b"):
            nodes.start(name)
        command = [sys.executable, "-m", "study", "run", "../mine/own.toml", "--out", str(out), "--address", nodes.head]
        # The nodes were started elsewhere, and the package is not on their path from here.
        running = nodes.process("head", command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = running.communicate(timeout=300)
        assert running.returncode == 0, said
    trials = analysis.load(out).trials
    assert list(trials["outcome"]) == ["completed"] * 4
    assert json.loads((out / "code" / "inspected.json").read_text())
    assert {file.name for file in (out / "code").iterdir()} - {"__pycache__"} == {"user_code.py", "inspected.json"}


COMMANDS = ("status {}", "table {} trials", "dashboard {} --port 0")
DRAWING = (pytest.param(f"{name} {{}}", marks=pytest.mark.long) for name in ("report", "figures"))


@pytest.mark.parametrize("command", [*COMMANDS, *DRAWING])
def test_reading_results_never_runs_the_code_in_them(
    command: str, make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in another process, whatever the record of the code says."""
    folder = make_study(seeds=3, depths=[1], widths=[8])
    mark = folder / "ran"
    spec = (folder / "spec.toml").read_text()
    (folder / "spec.toml").write_text(spec.replace('model = "mlp"', 'model = "theirs:Net"'))
    assert "theirs" in (folder / "spec.toml").read_text()
    (folder / "code").mkdir()
    (folder / "code/theirs.py").write_text(f"open({str(mark)!r}, 'w')\n")
    files = {"theirs.py": importing.hash_of(folder / "code/theirs.py")}
    sealed = seal({"files": files, "sources": {"theirs": "/theirs.py"}, "answers": {}})
    (folder / "code/inspected.json").write_text(sealed)
    monkeypatch.setattr("study.tuning.dashboard._storage", lambda *_: sys.exit(0))
    CliRunner().invoke(main, command.format(folder).split())
    assert not mark.exists()


def test_resume_and_best_say_whose_code_they_run_before_they_do(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_study(seeds=3, depths=[1], widths=[8])
    (folder / "code").mkdir()
    sources = {"mine": "/home/me/mine.py"}
    (folder / "code/inspected.json").write_text(seal({"files": {"mine.csv": ""}, "sources": sources}))
    assert bundle.origin(folder, folder) == ""  # a table alone is no code
    (folder / "code/inspected.json").write_text(seal({"files": {"mine.py": ""}, "sources": sources}))
    monkeypatch.setattr(api, "repair_records", lambda *_: None)
    for module, start in ((api, api.resume), (export, export.Setting.of)):
        monkeypatch.setattr(module, "recorded", lambda _: sys.exit(capfd.readouterr().err))
        with pytest.raises(SystemExit, match=f"runs the code in {folder}/code, which was copied from /home/me/mine.py"):
            start(folder)
