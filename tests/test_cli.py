"""The commands as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import tomlkit
from click.testing import CliRunner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.exceptions import RayError

import analysis
from study import session
from study.cli import main
from study.cli.options import SECTIONS, ended_by_second_interrupt
from study.spec import read
from tests.processes import held, invoked, said, started, watched
from tests.test_spec import changed
from trainables.usercode.importing import UserCodeError

TINY = changed(
    workload={"data": "linear", "model": "linear", "target": 0.1},
    search={"batch_size": [1, "full"], "optimizer": ["sgd", "adam"]},
    lanes={"rates": 3, "seeds": 2, "refine": 0},
    budget={"trials": 4, "epochs": 5},
    tuning={"sampler": "grid", "scheduler": "none"},
)


def study(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "study", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=280, check=False)


def test_what_a_users_module_does_wrong_later_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise UserCodeError("own:Net: raised KeyError: 'x' [own.py:7]")

    monkeypatch.setattr("study.spec.read", wrong)
    result = CliRunner().invoke(main, ["check", "own.toml"])
    assert result.exit_code == 2
    assert result.output == "study: own:Net: raised KeyError: 'x' [own.py:7]\n"


def test_an_error_of_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RayError("the head is gone\nand more")

    monkeypatch.setattr("study.api.run", lost)
    result = CliRunner().invoke(main, ["run", "quick"])
    assert result.exit_code == 1
    assert result.output.startswith("study: Ray failed (the head is gone); finished trials are safe")
    assert isinstance(CliRunner().invoke(main, ["--debug", "run", "quick"]).exception, RayError)


def test_list_names_every_shipped_spec_with_a_line(tmp_path: Path) -> None:
    lines = study("list", folder=tmp_path).stdout.splitlines()
    names = ["deepobs-quadratic", "digits-cnn", "mlp", "mnist-cnn", "quick", "report-mnist"]
    names += [f"deepobs/{name}" for name in ("cifar10_3c3d", "fmnist_2c2d", "mnist_2c2d", "mnist_logreg", "mnist_mlp")]
    assert [line.split()[0] for line in lines] == names
    assert all(len(line) > 40 for line in lines)


BAD = {
    "a bad spec": "bad.toml",
    "a missing file": "none.toml",
    "a directory": "folder",
    "no TOML": "broken.toml",
    "not UTF-8": "latin.toml",
}


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_bad_spec_is_one_message_exit_code_2_and_nothing_left(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text(tomlkit.dumps(changed(search__width=-4, search__optimizer="sdg")))
    (tmp_path / "broken.toml").write_text("name = ")
    (tmp_path / "latin.toml").write_bytes("name = 'é'".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    found = CliRunner().invoke(main, [command, name])  # a process of its own would import torch each time
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.startswith(f"study: {name}: ")
    if name == "bad.toml":
        assert "search.width = -4: -4 is below 1" in found.stderr
        assert "did you mean sgd?); valid: gradient-descent" in found.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_data_that_cannot_be_had_leaves_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 9 of this machine refuses at once, as a proxy that leads nowhere.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    for name, value in {**nowhere, "no_proxy": "", "STUDY_DATA": str(tmp_path / "data")}.items():
        monkeypatch.setenv(name, value)
    found = invoked(monkeypatch, tmp_path, "run", "mnist-cnn")
    assert found.exit_code == 2
    assert found.stderr.startswith("study: mnist is unavailable:")
    assert str(tmp_path / "data/MNIST/raw") in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_folder_without_results_is_the_users_mistake(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, [command, "."])
    assert found.exit_code == 2
    assert found.stderr == "study: .: not a results folder, because it has no spec.toml; `study run SPEC` makes one\n"
    assert list(tmp_path.iterdir()) == []


def test_check_prints_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(tomlkit.dumps(TINY))
    found = CliRunner().invoke(main, ["check", "tiny.toml", "--seeds", "3"])
    assert found.exit_code == 0
    assert "good: valid" in found.stdout
    assert re.search(r"cells +4 \(2 optimizer x 2 batch_size\)", found.stdout)
    assert re.search(r"lanes +9 a trial: 3 rates x 3 seeds", found.stdout)
    assert "batch size 1 (stochastic): 500 updates a lane" in found.stdout
    assert "batch size 100 (batch): 5 updates a lane" in found.stdout
    assert re.search(r"memory +at most about \d+ MiB", found.stdout)
    assert re.search(r"time +about .* on this machine", found.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


@pytest.mark.long
@pytest.mark.usefixtures("one_worker")
def test_a_study_from_the_shell_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(tomlkit.dumps(TINY))
    found = study("run", "tiny.toml", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "\nnext:    `study best results/good`, `study export results/good --to model.pt`, `study ext" in found.stdout
    assert found.stdout.endswith("results: results/good\nreport:  results/good/report/index.html\n")
    assert "may each be the best" in found.stdout or " wins: " in found.stdout or "candidate" in found.stdout
    assert "4/4 trials (4 completed)" in found.stderr
    results = tmp_path / "results/good"
    provenance = json.loads((results / "provenance.json").read_text())
    assert provenance["command"].endswith("run tiny.toml")
    (session,) = provenance["sessions"]
    assert set(session["phase_seconds"]) == {"start", "search", "report"}
    assert all(seconds > 0 for seconds in session["phase_seconds"].values())
    assert "Traceback" not in found.stderr
    assert "Warning" not in found.stderr
    assert len(analysis.load(results).trials) == 4
    page = (results / "report/index.html").read_text()
    assert f"study report {results}" in page

    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["status", "results/good"])
    assert said.exit_code == 0
    assert "good: finished" in said.stdout
    assert "trials  4 of 4: 4 completed" in said.stdout

    again = CliRunner().invoke(main, ["report", "results/good", "--pdf"])
    assert again.stdout == "report:  results/good/report/index.html\n"
    assert (results / "report/figures/loss-by-regime.pdf").read_bytes().startswith(b"%PDF")
    assert "study report --pdf results/good" in (results / "report/index.html").read_text()

    refused = CliRunner().invoke(main, ["run", "tiny.toml", "--out", "results/good"])
    assert refused.exit_code == 2
    assert "already holds a study" in refused.stderr


@pytest.mark.long
def test_ctrl_c_leaves_every_trial_in_the_tables_and_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = changed(budget={"trials": 4, "epochs": 1_000_000}, tuning={"scheduler": "none"})
    (tmp_path / "endless.toml").write_text(tomlkit.dumps(endless))
    command = [sys.executable, "-m", "study", "run", "endless.toml"]
    running = watched(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = tmp_path / "results/good/optuna.journal"
    while not (journal.is_file() and journal.read_text().count('"batch_size"') >= 2):  # two trials were suggested
        assert running.poll() is None
        time.sleep(0.2)
    time.sleep(3)
    its_own = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    _, output = running.communicate(timeout=120)
    assert running.returncode == 130, output
    assert "stopping: running trials save their state" in output
    assert "interrupted: 0 of 4 trials ended; `study resume results/good` continues it, `study report" in output
    assert not (tmp_path / "results/good/report").exists()  # nobody waits for it
    assert not psutil.wait_procs(its_own, timeout=60)[1]
    trials = analysis.load(tmp_path / "results/good").trials
    assert len(trials) >= 2
    assert set(trials["outcome"]) == {"interrupted"}
    storage = JournalStorage(JournalFileBackend(str(journal)))
    told_trials = optuna.load_study(study_name="good", storage=storage).trials
    assert {trial.state for trial in told_trials} == {TrialState.WAITING}
    assert {trial.number for trial in told_trials} == set(trials["trial"])
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(main, ["status", "results/good"]).stdout
    assert "good: interrupted; `study resume results/good` continues it" in shown
    assert f"0 of 4: {len(trials)} interrupted" in shown


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """Also while trials cannot save their state."""
    endless = changed(budget={"trials": 4, "epochs": 1_000_000}, tuning={"scheduler": "none"})
    (tmp_path / "endless.toml").write_text(tomlkit.dumps(endless))
    running = started(tmp_path, "run", "endless.toml")
    while "/4 trials" not in said(tmp_path):
        assert running.poll() is None, said(tmp_path)
        time.sleep(0.2)
    its_own = psutil.Process(running.pid).children(recursive=True)
    with held(running):
        running.send_signal(signal.SIGINT)
        while "a second Ctrl-C ends at once" not in said(tmp_path):
            assert running.poll() is None, said(tmp_path)
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert said(tmp_path).rstrip().endswith("`study resume` continues from what was saved before")
    assert "interrupted: " not in said(tmp_path)
    assert not psutil.wait_procs(its_own, timeout=60)[1]


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_mnist_from_the_shell(tmp_path: Path, mnist_folder: Path) -> None:
    tables = tomlkit.parse(read("mnist-cnn").to_toml()).unwrap()
    tables["search"] |= {"width": 8, "depth": 2, "batch_size": 16, "optimizer": ["momentum"]}
    tables["lanes"] = {
        "learning_rate": {"low": 0.001, "high": 0.004, "count": 2},
        "seeds": 1,
        "extensions": 0,
        "refine": 0,
    }
    (tmp_path / "small.toml").write_text(tomlkit.dumps(tables))
    arguments = ["--trials", "1", "--epochs", "1", "--out", "out"]
    command = [sys.executable, "-m", "study", "run", "small.toml", *arguments]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "STUDY_DATA": str(mnist_folder)}, check=True, timeout=280)
    trials = analysis.load(tmp_path / "out").trials
    assert list(trials["examples"]) == [60_000]
    assert trials["value"].max() > 0.97


def test_help_lists_every_command_in_a_section_with_a_short_summary() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(main.commands)
    for name, command in main.commands.items():
        assert 0 < len(command.get_short_help_str(1000)) <= 60, name


def test_a_command_forgets_interrupts_of_earlier_sessions_in_its_process() -> None:
    session.ASKED.set()
    with ended_by_second_interrupt():
        assert not session.ASKED.is_set()
