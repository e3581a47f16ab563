"""Whole studies on real Ray: every trial ends in the tables and in Optuna as what it was."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import analysis
from study import api
from study.cluster import head, ray
from study.errors import ClusterError, Halted, SpecError, StorageError
from study.progress import status as watch
from study.results import mirror, provenance
from study.session import Outcome, run_session, stoppable
from study.spec import check
from study.spec.changes import fixed_settings, resolved, with_values
from study.spec.dimensions import Choice
from study.spec.model import Confirm
from study.tuning import importance
from study.tuning.storage import create_study, delete_study, open_study
from tests.test_spec import changed
from trainables import storage as files
from trainables import tune as trainables_tune
from trainables.tune import MLPTrainable


@dataclass
class Narrow(ray.Cluster):
    """A Ray on which no more trials are under way than the test wants."""

    at_once: int = 2

    def room(self, on_gpus: int = 0) -> int:
        return self.at_once


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the whole module, two CPUs; starting it takes longer than the studies."""
    with ray.connected(SPEC, None):
        yield


@pytest.fixture
def run(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def go(spec: Any, **options: Any) -> Outcome:
        folder, data_folder = tmp_path / "results", tmp_path / "data"
        on = Narrow(spec.resources, at_once=options.pop("at_once", 2))
        return run_session(spec, folder, data_folder, on, "the command", show="quiet")

    monkeypatch.chdir(tmp_path)
    return go


SPEC = check(
    changed(
        workload={"data": "linear", "model": "mlp", "target": 0.5},
        search={"width": [4, 8], "depth": [1, 2], "batch_size": [8, "full"], "optimizer": ["sgd", "adam"]},
        lanes={"rates": 3, "seeds": 2, "extensions": 0, "refine": 0},
        budget={"trials": 6, "epochs": 3},
        tuning={"sampler": "random", "scheduler": "none"},
    )
)


def storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))


def optuna_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="good", storage=storage(folder)).trials


@pytest.mark.long
def test_session_fills_every_table(run: Any) -> None:
    outcome = run(SPEC)
    assert (outcome.ended, outcome.planned, outcome.scored, outcome.interrupted) == (6, 6, 6, False)
    found = analysis.load(outcome.folder)
    assert list(found.trials["trial"]) == list(range(6))
    assert set(found.trials["outcome"]) == {"completed"}
    assert len(found.lanes) == 6 * 6
    assert found.provenance["command"] == "the command"
    assert found.provenance["finished"]
    for _, trial in found.trials.iterrows():
        lanes = found.lanes[found.lanes["trial"] == trial["trial"]]
        assert trial["value"] == pytest.approx(
            analysis.log_interval(
                lanes.loc[lanes["learning_rate"] == trial["learning_rate"], "validation_loss"]
            ).estimate
        )
        curve = found.curves[(found.curves["trial"] == trial["trial"]) & (found.curves["split"] == "validation")]
        last = curve[curve["update"] == trial["updates"]].set_index("lane")["value"]
        assert last.to_dict() == lanes.set_index("lane")["validation_loss"].dropna().to_dict()
        assert curve["update"].min() == 0
    # Optuna holds the same trials, in a final state, with every report.
    for told, (_, trial) in zip(optuna_trials(outcome.folder), found.trials.iterrows(), strict=True):
        assert told.state == TrialState.COMPLETE
        assert told.value == trial["value"]
        assert list(told.intermediate_values.values()) == list(trial["reported"])
        assert len(trial["reported"]) == 3
        assert told.params["optimizer"] == trial["optimizer"]
    # Nothing but the tables and Optuna's journal: what resuming needs is gone with the last trial.
    names = {path.name for path in outcome.folder.iterdir()}
    assert names == {
        "spec.toml", "provenance.json", "trials.parquet", "lanes.parquet", "curves", "optuna.journal", ".lock",
        ".provenance.json.previous",
    }  # fmt: skip
    assert "6 of 6: 6 completed" in watch.status(outcome.folder)
    assert analysis.write_report(outcome.folder).is_file()


@pytest.mark.long
def test_session_writes_parameter_importance(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = SPEC.recording.model_copy(update={"gradient_noise": True})
    spec = with_values(SPEC.model_copy(update={"recording": recording}), "budget", trials=9)
    found = analysis.load(run(spec).folder)
    assert set(found.curves.query("split == 'train'")["metric"]) == {"loss", "gradient_square", "gradient_noise"}
    assert set(found.importance["parameter"]) == {"optimizer", "batch_size", "width", "depth"}
    assert found.importance.groupby("repeat")["importance"].sum().tolist() == pytest.approx([1.0] * 21)
    # A study that went well ends well whatever Optuna makes of it.
    monkeypatch.setattr(importance, "get_param_importances", lambda *_, **__: 1 / 0)
    outcome = run(spec)
    assert (outcome.ended, outcome.interrupted) == (9, False)
    assert analysis.load(outcome.folder).importance.empty


@pytest.mark.nightly
def test_session_is_reproducible(run: Any, tmp_path: Path) -> None:
    first = analysis.load(run(SPEC).folder)
    frames = [first.lanes, first.curves]
    (tmp_path / "results").rename(tmp_path / "earlier")
    second = analysis.load(run(SPEC, at_once=1).folder)
    for ours, theirs in zip(frames, [second.lanes, second.curves], strict=True):
        timed = [name for name in ours if "seconds" in name]
        assert ours.drop(columns=timed).equals(theirs.drop(columns=timed))


@pytest.mark.long
def test_asha_prunes_trials_in_optuna(run: Any) -> None:
    spec = SPEC.model_copy(
        update={
            "tuning": SPEC.tuning.model_copy(update={"scheduler": "asha", "sampler": "tpe"}),
            "budget": SPEC.budget.model_copy(update={"trials": 12, "epochs": 9}),
        }
    )
    outcome = run(spec)
    trials = analysis.load(outcome.folder).trials
    stopped = trials[trials["outcome"] == "stopped"]
    assert len(stopped)
    assert (stopped["epochs"] < 9).all()
    assert (trials.loc[trials["outcome"] == "completed", "epochs"] == 9).all()
    told = optuna_trials(outcome.folder)
    for _, trial in trials.iterrows():
        pruned = trial["outcome"] == "stopped"
        assert told[trial["trial"]].state == (TrialState.PRUNED if pruned else TrialState.COMPLETE)
        assert told[trial["trial"]].value == trial["value"]


class Troubled(MLPTrainable):
    """Trial 1 raises, 2 kills its worker, 3 diverges, 4 runs out of memory later, 5 is bad, 7 interrupts the study."""

    def setup(self, config: dict[str, Any]) -> None:
        if config["trial"] == 3:
            config = {**config, "optimizer": "sgd", "rates": (1e200, 1e201, 3)}
        super().setup(config)

    def step(self) -> dict[str, Any]:
        import os
        import signal

        driver = Path(str(self.trial.data_folder)) / "driver"
        if self.trial.trial == 2:
            os._exit(1)
        if self.trial.trial == 7 and self.run.stack.reports == 1 and driver.exists():
            pid = int(driver.read_text())
            driver.unlink()
            os.kill(pid, signal.SIGINT)
            time.sleep(2)
        return super().step()

    def _step(self) -> dict[str, Any]:
        number = self.trial.trial
        if number == 1:
            raise RuntimeError("a bug in the model")
        if number == 4 and self.run.stack.reports == 1:
            raise MemoryError("too many lanes")
        result = super()._step()
        # Each trial is better than all before, but for one, which the scheduler stops.
        if number != 3:
            result["value"] = 1e9 if number == 5 else 1.0 - number / 100
        return result


ENDS = {
    0: ("completed", TrialState.COMPLETE, None),
    1: ("failed", TrialState.FAIL, "RuntimeError: a bug in the model"),
    2: ("failed", TrialState.FAIL, "died"),
    3: ("diverged", TrialState.FAIL, None),
    4: ("out of memory", TrialState.FAIL, "MemoryError: too many lanes"),
    5: ("stopped", TrialState.PRUNED, None),
    6: ("completed", TrialState.COMPLETE, None),
    7: ("interrupted", TrialState.WAITING, None),
}


@pytest.mark.long
def test_outcomes_agree_in_tables_optuna_status_and_report(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(trainables_tune.TRAINABLES, "mlp", Troubled)
    tuning = SPEC.tuning.model_copy(update={"scheduler": "asha"})
    recording = SPEC.recording.model_copy(update={"checkpoint_seconds": 0.0})
    # One optimizer and batch size, in which all trials compete.
    search = SPEC.search.model_copy(
        update={"optimizer": Choice(values=("adam",)), "batch_size": Choice(values=("full",))}
    )
    spec = SPEC.model_copy(update={"tuning": tuning, "recording": recording, "search": search})
    spec = with_values(spec, "budget", trials=9)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/driver").write_text(str(os.getpid()))
    outcome = run(spec, at_once=1)
    assert outcome.interrupted
    assert outcome.ended == 7
    found = analysis.load(outcome.folder)
    trials = found.trials.set_index("trial")
    told = {trial.number: trial for trial in optuna_trials(outcome.folder)}
    for number, (ended, state, error) in ENDS.items():
        assert trials.loc[number, "outcome"] == ended
        assert told[number].state == state
        assert told[number].user_attrs["outcome"] == ended
        if error:
            assert error in trials.loc[number, "error"]
            assert error in told[number].user_attrs["error"] or number == 2
        else:
            assert pd.isna(trials.loc[number, "error"])
    assert told[5].value == trials.loc[5, "value"] == 1e9
    assert trials["value"].isna().to_dict() == {n: n in (1, 2, 3, 4) for n in ENDS}
    # What a trial had done is kept, however it ended.
    assert trials["epochs"].to_dict() == {0: 3, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 3, 7: 1}
    assert found.lanes.groupby("trial").size().to_dict() == {0: 6, 3: 6, 4: 6, 5: 6, 6: 6, 7: 6}
    assert set(found.lanes.loc[found.lanes["trial"] == 3, "outcome"]) == {"diverged"}
    status = watch.status(outcome.folder)
    assert "7 of 9: " in status
    for ended, count in Counter(ended for ended, *_ in ENDS.values()).items():
        assert f"{count} {ended}" in status
    assert "trial 1: RuntimeError: a bug in the model" in status
    page = analysis.write_report(outcome.folder).read_text()
    for ended, *_ in ENDS.values():
        assert ended in page
    assert "a bug in the model" in page
    # It goes on with what was interrupted, from its checkpoint, and with what had not begun.
    again = run(spec, at_once=1)
    assert (again.ended, again.interrupted) == (9, False)
    trials = analysis.load(outcome.folder).trials.set_index("trial")
    assert trials["outcome"].to_dict() == {n: e[0] for n, e in ENDS.items()} | {7: "completed", 8: "completed"}
    assert trials.loc[7, "epochs"] == 3
    assert [len(reports) for reports in trials.loc[[7, 8], "reported"]] == [3, 3]
    assert {trial.state for trial in optuna_trials(outcome.folder)[7:]} == {TrialState.COMPLETE}


class KilledOnce(MLPTrainable):
    """A worker that is killed when it is about to become trial 3."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        import os

        alive = Path(new_config["data_folder"]) / "alive"
        if new_config["trial"] == 3 and alive.exists():
            alive.unlink()
            os._exit(1)
        return super().reset_config(new_config)


@pytest.mark.long
def test_session_reruns_a_trial_given_to_a_dead_worker(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(trainables_tune.TRAINABLES, "mlp", KilledOnce)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/alive").touch()
    outcome = run(SPEC, at_once=1)
    assert not (tmp_path / "data/alive").exists()
    assert list(analysis.load(outcome.folder).trials["outcome"]) == ["completed"] * 6
    assert [trial.state for trial in optuna_trials(outcome.folder)] == [TrialState.COMPLETE] * 6


@pytest.mark.long
def test_session_extends_and_confirms_a_finished_study(run: Any, tmp_path: Path) -> None:
    confirm = {"top": 2, "seeds": 3}
    grid = {"batch_size": [8, "full"], "optimizer": ["sgd", "adam"], "width": 4, "depth": 1}
    tables = {"name": "good", "workload": {"data": "linear", "model": "mlp"}, "search": grid, "confirm": confirm}
    tables |= {"lanes": {"rates": 3, "seeds": 2, "extensions": 0, "refine": 0}, "budget": {"trials": 4, "epochs": 3}}
    spec = check(tables | {"tuning": {"sampler": "grid", "scheduler": "none"}})
    first = run(spec)
    assert (first.ended, first.planned) == (4 + 2, 4 + 2) or first.ended == 4 + 3
    confirmed = analysis.load(first.folder).confirmation
    assert confirmed is not None
    status = watch.status(first.folder)
    assert "  trials  4 of 4: 4 completed" in status
    assert f"  confirm {first.ended - 4} of {first.ended - 4}: {first.ended - 4} completed" in status
    assert "  search: best validation loss" in status
    assert "  confirmed: best validation loss" in status
    assert set(confirmed.lanes["seed"]) == {500_000, 500_001, 500_002}
    for group in ("optimizer", "regime"):  # the best cell of each is among them
        assert confirmed.trials[group].nunique() == 2
    searched = analysis.load(first.folder).trials.set_index("trial")
    best = searched["value"].idxmin()
    assert confirmed.trials["learning_rate"].iloc[0] == searched.loc[best, "learning_rate"]
    assert "Confirmation" in analysis.write_report(first.folder).read_text()
    before = confirmed.lanes
    # All four cells again, with fresh seeds; nothing of what there was is computed again.
    outcome = run(with_values(spec, "budget", trials=8))
    found = analysis.load(outcome.folder)
    assert list(found.trials["replicate"]) == [0] * 4 + [1] * 4
    seeds = found.lanes.groupby("trial")["seed"].unique().map(sorted).map(tuple)
    assert list(seeds) == [(0, 1)] * 4 + [(2, 3)] * 4
    assert set(analysis.cells(found)["n"]) == {4}
    assert len(found.provenance["sessions"]) == 2
    assert all(platform.node() in session["nodes"] for session in found.provenance["sessions"])
    assert found.confirmation is not None
    assert found.confirmation.lanes.head(len(before)).equals(before)
    states = {trial.state for trial in optuna_trials(outcome.folder)}
    assert states == {TrialState.COMPLETE}


@pytest.mark.nightly
def test_session_with_several_objectives_reports_the_pareto_front(run: Any) -> None:
    tuning = SPEC.tuning.model_copy(update={"objectives": ["metric", "train_seconds", "parameters"]})
    outcome = run(SPEC.model_copy(update={"tuning": tuning}))
    trials = analysis.load(outcome.folder).trials
    told = optuna_trials(outcome.folder)
    for trial, (_, row) in zip(told, trials.iterrows(), strict=True):
        assert trial.values == [row["value"], row["train_seconds"], row["parameters"]]
    front = {t.number for t in optuna.load_study(study_name="good", storage=storage(outcome.folder)).best_trials}
    status = watch.status(outcome.folder)
    assert {int(number) for number in re.findall(r"front .*\(trial (\d+)\)", status)} == front
    assert "Pareto front" in analysis.write_report(outcome.folder).read_text()


@pytest.mark.nightly
def test_session_halts_on_a_locked_database_without_losing_trials(run: Any, tmp_path: Path) -> None:
    """Somebody else holds the database for longer than it waits."""
    Path("databases").mkdir()
    tuning = SPEC.tuning.model_copy(update={"storage": "sqlite:///databases/studies.db"})
    spec = resolved(with_values(SPEC.model_copy(update={"tuning": tuning}), "budget", trials=3))
    file = Path("databases/studies.db").absolute()
    assert spec.tuning.storage == f"sqlite:///{file}"
    holds = sqlite3.connect(file, check_same_thread=False, timeout=60)

    def hold() -> None:
        folder = tmp_path / "results"
        while not (folder / "spec.toml").is_file() or len(analysis.load(folder).trials) < 1:
            time.sleep(0.02)
        holds.execute("BEGIN EXCLUSIVE")

    thread = threading.Thread(target=hold)
    thread.start()
    with pytest.raises(Halted, match=r"database is locked.*Every trial that had ended is safe"):
        run(spec, at_once=1)
    thread.join()
    holds.rollback()
    before = analysis.load(tmp_path / "results").trials
    assert 1 <= len(before) < 3
    assert run(spec).ended == 3
    trials = open_study(spec, tmp_path / "results").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert [trial.value for trial in trials] == list(analysis.load(tmp_path / "results").trials["value"])


@pytest.mark.long
def test_session_halts_when_its_folder_is_removed(run: Any, tmp_path: Path) -> None:
    spec = with_values(SPEC, "budget", trials=200)
    folder = tmp_path / "results"

    def remove() -> None:
        while not (folder / "spec.toml").is_file() or len(analysis.load(folder).trials) < 1:
            time.sleep(0.02)
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)

    thread = threading.Thread(target=remove)
    thread.start()
    with pytest.raises(Halted, match="results: was removed while the study ran in it; run the study again"):
        run(spec)
    thread.join()
    assert not folder.exists()


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    return [{"Resources": each} for each in resources]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("inherited", [signal.SIG_IGN, signal.default_int_handler])
def test_stoppable_handles_signals_in_the_background_too(number: signal.Signals, inherited: Any) -> None:
    before = signal.signal(signal.SIGINT, inherited)
    try:
        with stoppable():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            if inherited is signal.SIG_IGN:  # what has been stopped saves undisturbed
                signal.raise_signal(number)
        assert signal.getsignal(signal.SIGINT) is inherited
    finally:
        signal.signal(signal.SIGINT, before)


def test_fitting_counts_per_node() -> None:
    assert ray.fitting(SPEC.resources, nodes({"CPU": 7.0})) == 7
    shared = SPEC.resources.model_copy(update={"gpus_per_trial": 0.25})
    assert ray.fitting(shared, nodes({"CPU": 64.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 9.0})) == 11
    odd = SPEC.resources.model_copy(update={"gpus_per_trial": 0.4})  # a part lies on one GPU, too
    assert ray.fitting(odd, nodes({"CPU": 64.0, "GPU": 2.0})) == 4
    wide = SPEC.resources.model_copy(update={"cpus_per_trial": 4})
    assert ray.fitting(wide, nodes({"CPU": 3.0}, {"CPU": 3.0})) == 0


def test_reach_refuses_a_closed_port_at_once() -> None:
    with pytest.raises(ClusterError, match=r"--address 127.0.0.1:9: 1 mistake\n.*nothing answers.*ray start --head"):
        head.reach("127.0.0.1:9")


def test_reach_refuses_servers_other_than_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would ask it for minutes, and then end the process."""
    monkeypatch.setattr(head, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ClusterError, match="the server there is not a Ray head, whose port is 6379"):
            head.reach(address)


def test_claim_folder_never_returns_a_used_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        places = [stack.enter_context(api.claimed_folder(SPEC, None, "study run")) for _ in range(2)]
        assert places == [tmp_path / "results/good", tmp_path / "results/good-2"]
    assert not Path("results").exists()  # nothing was written
    Path("results/good").mkdir(parents=True)
    with api.claimed_folder(SPEC, Path("results/good"), "study run") as folder:
        (folder / "spec.toml").touch()
    Path("file").touch()
    for out, message in (
        ("results/good", "already holds a study"),
        (".", "is not empty: it holds file"),
        ("file", "cannot be created: File exists"),
        ("file/below", "cannot be created: Not a directory"),
    ):
        with pytest.raises(StorageError, match=message), api.claimed_folder(SPEC, Path(out), "study run"):
            pass


def test_run_without_a_cluster_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClusterError, match="nothing answers"):
        api.run(SPEC, address="127.0.0.1:9")
    assert not Path("results").exists()


def test_resume_refuses_changed_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"not a results folder, because it has no spec\.toml"):
        api.resume(tmp_path)
    with pytest.raises(StorageError, match="no such folder"):
        api.resume(tmp_path / "nowhere")
    provenance.write_provenance(tmp_path, SPEC, [{"command": "", "started": "", "ended": None}], finished=False)
    changed_spec = SPEC.model_copy(update={"lanes": SPEC.lanes.model_copy(update={"seeds": 9})})
    files.write_text(tmp_path / "spec.toml", changed_spec.to_toml())
    message = (
        rf"spec.toml: 1 mistake\n  lanes.seeds = 9: was {SPEC.lanes.seeds} when the study ran; restore the old value"
    )
    with pytest.raises(SpecError, match=message):
        api.resume(tmp_path)
    free = {"description": "x", "resources": {"cpus_per_trial": 2}, "confirm": {"seeds": 4}, "budget__trials": 9}
    free |= {"recording": {"tensorboard": True}, "tuning__storage": "sqlite:///elsewhere.db"}
    assert fixed_settings(check(changed(**free))) == fixed_settings(check(changed()))
    files.write_text(tmp_path / "spec.toml", SPEC.model_copy(update={"confirm": Confirm(seeds=9)}).to_toml())
    (tmp_path / "confirm").mkdir()
    files.write_text(tmp_path / "confirm/provenance.json", '{"spec": {"lanes.seeds": 4}}')
    with pytest.raises(SpecError, match=r"confirm.seeds = 9: was 4 when winners were confirmed; restore the old value"):
        api.resume(tmp_path)


def test_resume_lists_ignored_spec_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**changes: Any) -> str:
        api.resume(tmp_path, like=check(changed(**changes)))
        return capsys.readouterr().err

    for name in ("_connect_and_run", "_with_report"):
        monkeypatch.setattr(api, name, lambda *how: None)
    begun = {"resources": {"gpus_per_trial": 0.25}, "tuning": {"storage": "postgresql://me:${SECRET}@there/db"}}
    files.write_text(tmp_path / "spec.toml", check(changed(**begun)).to_toml())
    assert told(**begun) == ""
    assert told(**begun, budget__trials=9) == (
        f"study: note: {tmp_path} keeps its own budget.trials = 4 (asked for: 9); "
        f"`study extend {tmp_path} --trials 5` adds trials\n"
    )
    assert told(recording={"tensorboard": True}, resources={"gpus_per_trial": 0.5}, budget__trials=2) == (
        f"study: note: {tmp_path} keeps its own budget.trials = 4 (asked for: 2), "
        "recording.tensorboard = false (asked for: true), resources.gpus_per_trial = 0.25 (asked for: 0.5), "
        "tuning.storage = postgresql://me:${SECRET}@there/db (asked for: none); "
        f"to change resources, recording, confirm or baseline, edit {tmp_path}/spec.toml and resume it\n"
    )


@pytest.mark.parametrize(
    "begun",
    [{"search__settings": {"adam": {"beta1": 0.8}}}, {"lanes": {"learning_rate": {"low": 1e-3, "high": 0.1}}}],
    ids=["settings", "rates"],
)
def test_require_same_refuses_settings_that_a_spec_lacks(begun: dict[str, Any], tmp_path: Path) -> None:
    files.write_text(tmp_path / "spec.toml", check(changed(**begun)).to_toml())
    with pytest.raises(
        StorageError, match=r"holds a study with a different (search.settings.adam|lanes.learning_rate)"
    ):
        api.require_same(check(changed()), tmp_path)
    api.require_same(check(changed(**begun)), tmp_path)


def test_database_holds_each_study_once(tmp_path: Path) -> None:
    tuning = SPEC.tuning.model_copy(update={"storage": f"sqlite:///{tmp_path}/studies.db"})
    spec = SPEC.model_copy(update={"tuning": tuning})
    here = tmp_path / "here"
    created = create_study(spec)
    assert created
    mirror.set_home(created, here)
    with pytest.raises(StorageError, match="holds a study called good already"):
        create_study(spec)
    first = open_study(spec, here)
    mirror.check_home(first, here)
    assert open_study(spec, here)._study_id == first._study_id
    moved = open_study(spec, tmp_path / "moved")
    mirror.check_home(moved, tmp_path / "moved")  # nothing is left in its old folder
    assert moved.user_attrs["results"] == str(tmp_path / "moved")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/spec.toml").touch()
    with pytest.raises(StorageError, match=r"its study good belongs to .*moved, not to .*there"):
        mirror.check_home(open_study(spec, tmp_path / "there"), tmp_path / "there")
    delete_study(spec)
    create_study(spec)
    open_study(spec.model_copy(update={"name": "other-confirm"}), tmp_path)
    with pytest.raises(StorageError, match="holds a study called other-confirm already"):
        create_study(spec.model_copy(update={"name": "other"}))
    for url in ("nonsense", "sqlite:////nowhere/studies.db", "postgresql://nobody@127.0.0.1:9/none", "redis://x"):
        bad = SPEC.model_copy(update={"tuning": SPEC.tuning.model_copy(update={"storage": url})})
        with pytest.raises(StorageError, match=r"tuning.storage: 1 mistake\n  cannot be opened: "):
            open_study(bad, tmp_path)
