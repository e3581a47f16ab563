"""How much parameters matter: what is planted is found, and nothing that goes wrong harms a study."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from click.testing import CliRunner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import analysis
from analysis.schema import IMPORTANCE, IMPORTANCE_FILE
from study.cli import main
from study.tuning import importance
from tests.conftest import trial_row, write_spec, write_tables

Objective = Callable[[optuna.Trial], float | list[float]]


def planted(trial: optuna.Trial) -> float:
    """The rate decides; the width hardly does, and the batch size does not."""
    rate = trial.suggest_float("adam.beta1", 0.01, 1.0, log=True)
    trial.suggest_categorical("batch_size", [1, 32, "full"])
    return abs(float(np.log10(rate)) + 1) + 0.001 * trial.suggest_int("width", 4, 64, log=True)


def conditional(trial: optuna.Trial) -> float:
    """The optimizer decides, and of the good one its own setting; the other's setting is without effect."""
    if trial.suggest_categorical("optimizer", ["sgd", "momentum"]) == "sgd":
        return 10 + 0 * trial.suggest_float("sgd.weight_decay", 0.0, 1.0)
    return trial.suggest_float("momentum.momentum", 0.0, 1.0)


def searched(
    objective: Objective, trials: int, directions: tuple[str, ...] = ("minimize",), **storage: Any
) -> optuna.Study:
    """A study of random trials, of which every tenth fails and as many are pruned."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=directions, sampler=optuna.samplers.RandomSampler(seed=1), study_name="quick", **storage
    )
    for number in range(trials):
        trial = study.ask()
        value = objective(trial)
        if number % 10 == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 10 == 7 and len(directions) == 1:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return study


def shares(study: optuna.Study, objective: int = 0, seed: int = 0) -> pd.DataFrame:
    """The shares by parameter (columns) and repeat."""
    frame = pd.DataFrame(importance.shares(study, objective, seed), columns=IMPORTANCE.names)
    return frame.pivot(index="repeat", columns="parameter", values="importance")


def folder_with(tmp_path: Path, objective: Objective, trials: int) -> Path:
    """A results folder with a journal and without tables."""
    folder = tmp_path / "results"
    write_spec(folder)
    searched(objective, trials, storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))))
    return folder


def quiet(message: str) -> None:
    raise AssertionError(message)


def test_shares_rank_the_deciding_parameter_first() -> None:
    found = shares(searched(planted, 100))
    assert list(found.index) == list(range(importance.REPEATS + 1))
    assert list(found) == ["adam.beta1", "batch_size", "width"]
    assert np.allclose(found.sum(axis=1), 1, rtol=1e-12)
    assert (found.idxmax(axis=1) == "adam.beta1").all()
    assert found.loc[0, "adam.beta1"] > 0.8
    assert found.loc[1:, "adam.beta1"].std() < 0.1


def test_shares_follow_the_direction_of_the_study() -> None:
    ordinary, mirrored = searched(planted, 60), searched(lambda trial: -planted(trial), 60, ("maximize",))
    assert shares(ordinary).equals(shares(mirrored))


def test_shares_use_one_of_several_objectives() -> None:
    study = searched(lambda trial: [float(trial.number), planted(trial)], 60, ("minimize", "minimize"))
    assert shares(study, objective=1).loc[0].idxmax() == "adam.beta1"
    assert shares(study, objective=1).loc[0, "adam.beta1"] > shares(study, objective=0).loc[0, "adam.beta1"]


def test_shares_compare_settings_among_cells_that_have_them() -> None:
    found = shares(searched(conditional, 150))
    assert list(found) == ["momentum.momentum", "optimizer", "sgd.weight_decay"]
    assert found.notna().all(axis=None)
    assert (found["sgd.weight_decay"] == 0).all()  # none of the best has it
    assert (found["optimizer"] > 0).all()
    assert (found["momentum.momentum"] > found["optimizer"]).all()


def test_shares_are_missing_where_a_resample_lacks_the_setting() -> None:
    def rare(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("optimizer", ["sgd", "momentum"]) == "sgd" or trial.number > 5:
            return trial.suggest_float("width", 0, 1)
        return trial.suggest_float("width", 0, 1) + trial.suggest_float("momentum.momentum", 0, 1)

    study = searched(rare, 30)
    completed = study.get_trials(states=(TrialState.COMPLETE,))
    assert 1 < sum("momentum.momentum" in trial.params for trial in completed) < 4
    found = shares(study)
    assert (found["momentum.momentum"] == 0).any()
    assert np.allclose(found.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("objective", "trials"),
    [
        (planted, 9),  # of which one failed and one was pruned
        (lambda trial: 0 * trial.suggest_int("width", 4, 64), 40),
        (lambda trial: trial.number * trial.suggest_int("width", 4, 4), 40),
    ],
    ids=["too few trials", "nothing matters", "nothing varies"],
)
def test_shares_may_be_empty(objective: Objective, trials: int, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, objective, trials)
    (folder / IMPORTANCE_FILE).write_bytes(b"of other trials")
    importance.refresh(folder, quiet)
    assert not (folder / IMPORTANCE_FILE).exists()
    assert analysis.load(folder).importance.empty


def test_results_without_importance_have_an_empty_table(tmp_path: Path) -> None:
    write_spec(tmp_path)
    found = analysis.load(tmp_path).importance
    assert list(found) == IMPORTANCE.names
    assert found.empty
    (tmp_path / IMPORTANCE_FILE).write_bytes(b"damaged")
    with pytest.raises(analysis.ResultsError, match=rf"{IMPORTANCE_FILE}: cannot be read"):
        _ = analysis.load(tmp_path).importance


@pytest.mark.long
def test_refresh_is_reproducible_across_processes(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, conditional, 40)
    importance.refresh(folder, quiet)
    expected = analysis.load(folder).importance
    code = (
        "import sys, pathlib; from study.tuning import importance; importance.refresh(pathlib.Path(sys.argv[1]), print)"
    )
    code += "; assert not {'torch', 'ray'} & set(sys.modules)"
    # Another process orders its sets otherwise.
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
    pd.testing.assert_frame_equal(analysis.load(folder).importance, expected, check_exact=True)
    study = searched(conditional, 40)
    assert shares(study, seed=0).equals(shares(study, seed=0))
    assert not shares(study, seed=0).loc[1:].equals(shares(study, seed=1).loc[1:])
    assert shares(study, seed=0).loc[0].equals(shares(study, seed=1).loc[0])


def test_report_writes_importance_but_not_the_journal(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, planted, 40)
    write_tables(folder, trials=[trial_row(outcome="failed")])  # without any there is no report
    journal = folder / "optuna.journal"
    with journal.open("ab") as written:
        written.write(b'{"op_code": 4, "wor')  # another process is writing
    before = journal.read_bytes(), journal.stat().st_mtime_ns
    found = CliRunner().invoke(main, ["report", str(folder)])
    assert (found.exit_code, found.stderr) == (0, "")
    assert (journal.read_bytes(), journal.stat().st_mtime_ns) == before
    names = {path.name for path in folder.iterdir()}
    assert names == {"spec.toml", "optuna.journal", "trials.parquet", IMPORTANCE_FILE, "report"}
    assert analysis.load(folder).importance["repeat"].nunique() == importance.REPEATS + 1


@pytest.mark.parametrize("trouble", ["journal", "study", "optuna", "disk"])
def test_failed_importance_is_reported_in_one_line(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = folder_with(tmp_path, planted, 40), list[str]()
    if trouble in ("optuna", "disk"):
        (folder / IMPORTANCE_FILE).write_bytes(b"of earlier trials")
    if trouble == "journal":
        (folder / "optuna.journal").write_text("no journal\n" * 3)
    elif trouble == "study":
        write_spec(folder, name="other")
    elif trouble == "optuna":
        monkeypatch.setattr(importance, "get_param_importances", lambda *_, **__: 1 / 0)
    else:
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    importance.refresh(folder, told.append)
    assert len(told) == 1
    assert "importance of parameters could not be computed" in told[0]
    assert "\n" not in told[0]
    assert {path.name for path in folder.iterdir()} == {"spec.toml", "optuna.journal"}


def test_refresh_ignores_folders_without_results(tmp_path: Path) -> None:
    importance.refresh(tmp_path / "nowhere", quiet)
    importance.refresh(tmp_path, quiet)
    (tmp_path / "optuna.journal").touch()
    importance.refresh(tmp_path, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.journal"]
