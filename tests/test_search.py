"""Whole studies on real Ray: every trial ends in the tables and in Optuna as what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import analysis
from study import cluster, search, watch
from study.search import Outcome
from study.spec import SpecError, check
from tests.test_spec import changed
from trainables import tune as trainables_tune
from trainables.tune import MLPTrainable


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the whole module, two CPUs; starting it takes longer than the studies."""
    with cluster.connected(SPEC, None):
        yield


@pytest.fixture
def run(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def go(spec: Any, **options: Any) -> Outcome:
        folder, data_folder = tmp_path / "results", tmp_path / "data"
        concurrency = options.pop("concurrency", 2)
        return search.session(spec, folder, data_folder, concurrency, "the command", show="quiet")

    monkeypatch.chdir(tmp_path)
    return go


SPEC = check(
    changed(
        workload={"data": "linear", "model": "mlp", "target": 0.5},
        search={"width": [4, 8], "depth": [1, 2], "batch_size": [8, "full"], "optimizer": ["sgd", "adam"]},
        lanes={"rates": 3, "seeds": 2, "extensions": 0},
        budget={"trials": 6, "epochs": 3},
        tuning={"sampler": "random", "scheduler": "none"},
    )
)


def optuna_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    return optuna.load_study(study_name="good", storage=storage).trials


def test_a_study_fills_its_tables(run: Any) -> None:
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
        "spec.toml", "provenance.json", "trials.parquet", "lanes.parquet", "curves", "optuna.journal", ".lock"
    }  # fmt: skip
    assert "6 of 6: 6 completed" in watch.status(outcome.folder)
    assert analysis.write_report(outcome.folder).is_file()


def test_a_repeated_study_has_the_same_numbers(run: Any, tmp_path: Path) -> None:
    first = analysis.load(run(SPEC).folder)
    frames = [first.lanes, first.curves]
    (tmp_path / "results").rename(tmp_path / "earlier")
    second = analysis.load(run(SPEC, concurrency=1).folder)
    for ours, theirs in zip(frames, [second.lanes, second.curves], strict=True):
        timed = [name for name in ours if "seconds" in name]
        assert ours.drop(columns=timed).equals(theirs.drop(columns=timed))


def test_asha_stops_trials_which_are_then_told_as_pruned(run: Any) -> None:
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
    """Trial 1 raises, 2 kills its worker, 3 diverges, 4 runs out of memory in its second epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        if config["trial"] == 3:
            config = {**config, "optimizer": "sgd", "rates": (1e200, 1e201, 3)}
        super().setup(config)

    def step(self) -> dict[str, Any]:
        import os

        if self.trial.trial == 2:
            os._exit(1)
        return super().step()

    def _step(self) -> dict[str, Any]:
        if self.trial.trial == 1:
            raise RuntimeError("a bug in the model")
        if self.trial.trial == 4 and self._iteration == 1:
            raise MemoryError("too many lanes")
        return super()._step()


def test_trials_that_go_wrong_harm_no_other(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trainables_tune.TRAINABLES, "mlp", Troubled)
    outcome = run(SPEC)
    found = analysis.load(outcome.folder)
    trials = found.trials.set_index("trial")
    assert trials["outcome"].to_dict() == {
        0: "completed", 1: "failed", 2: "failed", 3: "diverged", 4: "out of memory", 5: "completed"
    }  # fmt: skip
    assert "a bug in the model" in trials.loc[1, "error"]
    assert trials.loc[2, "error"]
    assert trials["value"].isna().to_list() == [False, True, True, True, True, False]
    assert len(found.lanes[found.lanes["trial"] == 4]) == 6  # what it had done before is kept
    assert trials.loc[4, "epochs"] == 1
    assert set(found.lanes.loc[found.lanes["trial"] == 3, "outcome"]) == {"diverged"}
    states = [trial.state for trial in optuna_trials(outcome.folder)]
    assert states == [TrialState.COMPLETE, *[TrialState.FAIL] * 4, TrialState.COMPLETE]
    status = watch.status(outcome.folder)
    assert "2 completed, 2 failed, 1 diverged, 1 out of memory" in status
    assert "trial 1: RuntimeError: a bug in the model" in status
    assert analysis.write_report(outcome.folder).is_file()


def test_resources_that_no_node_has_are_the_users_mistake() -> None:
    wanted = SPEC.resources.model_copy(update={"gpus_per_trial": 1000.0})
    with pytest.raises(SpecError, match=r"a trial takes 1 CPUs and 1000 GPUs, the nodes have: 2 CPUs, 0 GPUs"):
        cluster._concurrency(wanted, [{"CPU": 2.0}])
    assert cluster._concurrency(SPEC.resources, [{"CPU": 7.0}]) == 7
    shared = SPEC.resources.model_copy(update={"gpus_per_trial": 0.25})
    assert cluster._concurrency(shared, [{"CPU": 64.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 9.0}]) == 11
    wide = SPEC.resources.model_copy(update={"cpus_per_trial": 4})
    with pytest.raises(SpecError, match="a trial takes 4 CPUs"):
        cluster._concurrency(wide, [{"CPU": 3.0}, {"CPU": 3.0}])


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"--address 127.0.0.1:9: 1 mistake\n.*nothing answers.*ray start --head"):
        cluster._reach("127.0.0.1:9")
    cluster._reach("auto")


def test_a_results_folder_is_never_written_into_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Claiming makes the folder, so two runs that start together get two.
    assert search.claim_folder(SPEC, None) == Path("results/good")
    assert search.claim_folder(SPEC, None) == Path("results/good-2")
    assert search.claim_folder(SPEC, Path("results/good")) == Path("results/good")
    Path("results/good/spec.toml").touch()
    Path("file").touch()
    for out, message in (
        ("results/good", "already holds a study"),
        (".", "is not empty, it holds file"),
        ("file", "cannot be made: File exists"),
        ("file/below", "cannot be made: Not a directory"),
    ):
        with pytest.raises(SpecError, match=message):
            search.claim_folder(SPEC, Path(out))


def test_what_could_not_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="nothing answers"):
        search.run(SPEC, address="127.0.0.1:9")
    assert list(Path("results").iterdir()) == []
