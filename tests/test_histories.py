"""Random histories of kills, losses and full disks: a study that is resumed to its end equals an undisturbed one."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import tomllib
from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomlkit
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from optuna.trial import TrialState

import analysis
from study.results import recovery
from study.results.tables import Table
from study.tuning import compat
from tests.fakes.tune import Trial, Tuner
from tests.fakes.world import World

TINY: dict[str, Any] = {
    "name": "tiny",
    "workload": {"data": "linear", "model": "linear"},
    "search": {"batch_size": ["full", 50], "optimizer": ["sgd", "adam"]},
    "lanes": {"rates": 2, "seeds": 1, "engine": "eager", "extensions": 0, "refine": 0},
    "tuning": {"sampler": "random", "scheduler": "none"},
    "budget": {"trials": 3, "updates": 3},
    "recording": {"checkpoint_seconds": 0.0},
    "confirm": False,
}
COSINE = {"schedule": "cosine", "weight_decay": 0.01}
# Recipes too: every kill is one in the middle of a schedule.
EXTENDED = {"extensions": 1, "refine": 1, "schedule": ["constant", "cosine"], "clip_norm": 1.0}
SPECS: dict[str, dict[str, Any]] = {
    "plain": TINY,
    "extended": TINY | {"lanes": TINY["lanes"] | EXTENDED, "budget": {"trials": 3, "updates": 2}},
    "without checkpoints": TINY | {"recording": {"checkpoint_seconds": 1e9}},
    "confirmed": TINY
    | {
        "budget": {"trials": 2, "updates": 2},
        "confirm": {"top": 1, "seeds": 2, "most_seeds": 4},
        "baseline": [{"name": "ours", "optimizer": "momentum", "learning_rate": 0.01, "batch_size": 25} | COSINE],
        "enqueue": [{"optimizer": "adam", "batch_size": 50}],
    },
    "at a URI": TINY,
    "in a database": TINY | {"tuning": TINY["tuning"] | {"storage": "any"}},
    "stopped early": TINY
    | {
        "search": {"batch_size": 50, "optimizer": ["sgd", "adam"]},  # two groups, in which trials compete
        "tuning": TINY["tuning"] | {"scheduler": "asha"},
        "budget": {"trials": 6, "updates": 3},
    },
}
# How many histories of each kind, by what one costs.
HISTORIES = dict.fromkeys(SPECS, 30) | {"plain": 40, "confirmed": 20, "at a URI": 40, "in a database": 10}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
WHEN_AND_WHERE = {"worker", "started", "stints"}


def tables(folder: Path) -> dict[str, str]:
    """What a study computed, as text: everything but when and where."""
    found, texts = analysis.load(folder), {}
    for name in ("trials", "lanes", "curves"):
        frame = getattr(found, name)
        texts[name] = frame.drop(columns=[c for c in frame if "seconds" in c or c in WHEN_AND_WHERE]).to_csv(
            index=False
        )
    return texts


def told(world: World, folder: Path, name: str) -> list[tuple[Any, ...]]:
    """What Optuna's storage holds of each trial."""
    found = world.optuna(folder, name).trials
    parts = ((t.params, t.distributions, t.intermediate_values, t.user_attrs) for t in found)
    rest = [[sorted(each.items()) for each in part] for part in parts]
    return [(t.number, t.state, t.values, *part) for t, part in zip(found, rest, strict=True)]


def computed(world: World) -> list[Any]:
    """All that must not depend on a study's history."""
    folder = world.results()
    found: list[Any] = [tables(folder), told(world, folder, "tiny")]
    if (folder / "confirm").exists():
        found += [tables(folder / "confirm"), told(world, folder / "confirm", "tiny-confirm")]
    return found


@cache
def undisturbed(kind: str, more: int = 0) -> list[Any]:
    """What a study computes to which nothing happens, in a folder and without a scheduler."""
    budget = SPECS[kind]["budget"]
    tables = SPECS[kind] | {"tuning": TINY["tuning"], "budget": budget | {"trials": budget["trials"] + more}}
    with tempfile.TemporaryDirectory(dir=MEMORY) as top, World(Path(top), tables) as world:
        world.finish()
        return computed(world)


def check_same(mine: list[Any], others: list[Any]) -> None:
    """Both are equal; pytest's own comparison of such texts takes minutes."""
    assert len(mine) == len(others)
    for one, other in zip(mine, others, strict=True):
        lines = one.values() if isinstance(one, dict) else one
        for line, expected in zip_longest(lines, other.values() if isinstance(other, dict) else other):
            if line != expected:
                pairs = zip_longest(*(str(each).split("\n") for each in (line, expected)))
                raise AssertionError(next((pair for pair in pairs if pair[0] != pair[1]), None))


def check_whole(world: World) -> None:
    """No row is there twice and nothing is left over."""
    folder = world.results()
    found = analysis.load(folder)
    assert not found.trials["trial"].duplicated().any()
    assert not found.lanes.duplicated(["trial", "lane"]).any()
    assert not found.curves.duplicated(["trial", "lane", "update", "split", "metric"]).any()
    assert found.provenance["finished"]
    left = [file for file in folder.rglob("*") if file.suffix in (".tmp", ".pt", ".lock") and file.name != ".lock"]
    assert not left
    assert not (folder / "checkpoints").exists()
    assert not (folder / "tune").exists()


def check_stopped(world: World, whole: list[Any]) -> None:
    """Whatever the scheduler stopped, numbers are those of the trials that nothing stopped."""
    mine, all_of_it = tables(world.results()), whole[0]
    assert not set(mine["curves"].splitlines()) - set(all_of_it["curves"].splitlines())
    for name in ("trials", "lanes"):
        completed = {line for line in mine[name].splitlines() if "completed" in line}
        assert not completed - set(all_of_it[name].splitlines())
    ends = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    outcomes = analysis.load(world.results()).trials["outcome"]
    assert [trial.state for trial in world.optuna(world.results(), "tiny").trials] == [ends[each] for each in outcomes]


class Histories(RuleBasedStateMachine):
    """Draws what happens to a study."""

    kind: ClassVar[str] = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(dir=MEMORY))
        self.world = World(self.top, SPECS[self.kind], at_uri=self.kind == "at a URI")
        self.world.__enter__()
        self.world.start()

    def fresh(self) -> list[Trial]:
        """The trials that run and have lost no worker: one that loses two in one session is set aside as failed."""
        return [trial for trial in self.world.running() if not trial.num_failures]

    @precondition(lambda self: not self.world.alive)
    @rule()
    def resume(self) -> None:
        self.world.calm()
        self.world.start()

    @precondition(lambda self: self.world.running())
    @rule(which=st.integers(0, 1), steps=st.integers(1, 4))
    def step(self, which: int, steps: int) -> None:
        for _ in range(steps):
            if running := self.world.running():
                self.world.step(running[which % len(running)])

    @precondition(lambda self: self.fresh())
    @rule(which=st.integers(0, 1), stepped=st.booleans())
    def kill_worker(self, which: int, stepped: bool) -> None:
        self.world.kill_worker(self.fresh()[which % len(self.fresh())], stepped=stepped)

    @precondition(lambda self: self.fresh() and self.world.orphans < 2)
    @rule(which=st.integers(0, 1), twice=st.booleans())
    def kill_worker_between_trials(self, which: int, twice: bool) -> None:
        self.world.orphans += 1  # after three in a row the study gives a trial up
        self.world.kill_between(self.fresh()[which % len(self.fresh())], twice=twice)

    @precondition(lambda self: len(self.world.nodes) > 1 and self.world.orphans < 2)
    @rule(which=st.integers(0, 1))
    def lose_node(self, which: int) -> None:
        self.world.orphans += 1  # a trial that lost a worker before is not tried again at once
        self.world.lose_node(self.world.nodes[which])

    @precondition(lambda self: len(self.world.nodes) < 2)
    @rule()
    def join_node(self) -> None:
        self.world.join_node()

    @precondition(lambda self: self.world.alive)
    @rule()
    def kill_driver(self) -> None:
        self.world.kill_driver()

    @precondition(lambda self: self.world.alive)
    @rule(after=st.integers(0, 12), share=st.sampled_from([0.0, 0.5, 1.0]))
    def kill_driver_at_write(self, after: int, share: float) -> None:
        self.world.kill_at_write(after, share)

    @precondition(lambda self: self.world.alive)
    @rule()
    def terminate(self) -> None:
        self.world.terminate()

    @precondition(lambda self: self.world.alive)
    @rule(writes=st.integers(1, 5))
    def fill_disk(self, writes: int) -> None:
        self.world.fill_disk(writes)

    @precondition(lambda self: not self.world.alive)
    @rule(
        table=st.sampled_from(["trials", "lanes", "curves"]),
        which=st.integers(0, 2),
        share=st.sampled_from([0.0, 0.5, 0.9]),
    )
    def damage_part(self, table: str, which: int, share: float) -> None:
        self.world.damage_part(table, which, share)

    @precondition(lambda self: not self.world.alive and not self.world.database)
    @rule(share=st.sampled_from([0.3, 0.6, 0.9]), middle=st.booleans())
    def damage_journal(self, share: float, middle: bool) -> None:
        self.world.damage_journal(share, middle=middle)

    @precondition(lambda self: self.world.alive and self.kind == "at a URI")
    @rule()
    def send(self) -> None:
        self.world.send()

    @precondition(lambda self: self.world.alive and self.kind == "at a URI")
    @rule(requests=st.integers(1, 20))
    def lose_store(self, requests: int) -> None:
        self.world.lose_store(requests)

    @precondition(lambda self: not self.world.alive and "bucket/out/spec.toml" in self.world.store.files)
    @rule()
    def change_machine(self) -> None:
        self.world.change_machine()

    @precondition(lambda self: self.world.alive and self.world.database)
    @rule(statements=st.integers(1, 6))
    def lose_database(self, statements: int) -> None:
        self.world.lose_database(statements)

    @precondition(lambda self: self.world.alive and self.world.database)
    @rule(after=st.integers(0, 8))
    def lose_commit(self, after: int) -> None:
        self.world.lose_commit(after)

    def teardown(self) -> None:
        try:
            self.world.finish()
            if self.kind == "stopped early":
                check_stopped(self.world, undisturbed(self.kind))
            else:
                check_same(computed(self.world), undisturbed(self.kind))
            check_whole(self.world)
        finally:
            self.world.__exit__()
            shutil.rmtree(self.top, ignore_errors=True)


def run(kind: str, histories: int, **how: Any) -> None:
    """Try random histories of a kind of study, the same ones each time unless told otherwise."""
    undisturbed(kind)
    chosen = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)} | how
    machine = type("Histories", (Histories,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=histories, stateful_step_count=8, **chosen))


@pytest.mark.parametrize("kind", SPECS)
def test_a_disturbed_study_ends_as_an_undisturbed_one(kind: str) -> None:
    run(kind, HISTORIES[kind] // 10)


@pytest.mark.long
@pytest.mark.parametrize("kind", SPECS)
def test_two_hundred_histories(kind: str) -> None:
    run(kind, HISTORIES[kind])


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", SPECS)
def test_many_more_histories(kind: str) -> None:
    run(kind, 10 * HISTORIES[kind], derandomize=False)


def forget_lost_rows(patch: pytest.MonkeyPatch) -> None:
    """An ended trial whose rows are lost is not run again."""
    state = recovery.State.__init__

    def without(self: recovery.State, rows: dict[int, Any], *given: Any) -> None:
        state(self, rows, *given)
        self.redo = _Nothing()

    patch.setattr(recovery.State, "__init__", without)


class _Nothing(list[int]):
    def append(self, number: int) -> None: ...


def keep_partial_rows(patch: pytest.MonkeyPatch) -> None:
    """The rows of a trial that has not ended stay in the tables."""
    patch.setattr(Table, "drop", lambda self, trials: None)


def leave_running(patch: pytest.MonkeyPatch) -> None:
    """A trial whose rows were written before the driver died is never told to Optuna."""
    patch.setattr(compat, "end_as", lambda *_: None)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", [forget_lost_rows, keep_partial_rows, leave_running])
def test_histories_find_a_fault(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed("plain")
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        run("plain", 300, phases=[Phase.generate])


def test_no_checkpoint_of_a_stopped_trial_stays_at_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune ends the worker of a trial that a scheduler stopped, which saves, after the trial has ended."""
    cleanup = Tuner._cleanup

    def sent_before(tuner: Tuner) -> None:
        (mirror,) = [each for each in threading.enumerate() if each.name == "mirror"]
        assert mirror._pushed()  # type: ignore[attr-defined]
        cleanup(tuner)

    monkeypatch.setattr(Tuner, "_cleanup", sent_before)
    tables = SPECS["stopped early"] | {"budget": {"trials": 7, "updates": 3}, "recording": {"checkpoint_seconds": 1e9}}
    with World(tmp_path, tables, at_uri=True) as world:
        world.finish()
        assert analysis.load(world.results()).trials["outcome"].iloc[-1] == "stopped"
        assert not world.store.below("bucket/out/checkpoints")


def test_a_study_without_a_completed_trial_has_nothing_to_confirm(tmp_path: Path) -> None:
    rates = {"learning_rate": {"low": 1e200, "high": 1e201, "count": 2}, "seeds": 1, "extensions": 0}
    diverging = {"search": {"batch_size": 50, "optimizer": "sgd"}, "lanes": rates, "confirm": {"top": 1}}
    with World(tmp_path, TINY | diverging) as world:
        world.finish()
        found = analysis.load(world.results())
    assert set(found.trials["outcome"]) == {"diverged"}
    assert (world.ended.ended, world.ended.planned, world.ended.scored) == (3, 3, 0)
    assert found.provenance["finished"]
    assert not (world.results() / "confirm").exists()


def test_a_baseline_of_another_optimizer_runs_in_the_confirmation(tmp_path: Path) -> None:
    with World(tmp_path, SPECS["confirmed"]) as world:
        world.finish()
        found = analysis.load(world.results())
        assert tuple(found.trials.loc[0, ["optimizer", "batch_size"]]) == ("adam", 50)
        assert set(found.trials["optimizer"]) == {"sgd", "adam"}
        assert found.confirmation
        last = found.confirmation.trials.iloc[-1]
        assert (last["optimizer"], last["batch_size"], last["learning_rate"]) == ("momentum", 25, 0.01)
        assert set(found.confirmation.lanes["seed"]) == {500_000, 500_001, 500_002, 500_003}  # in two looks
        assert json.loads(last["recipe"]) == COSINE
        (entry,) = analysis.compare(found, analysis.cells(found)).baselines
        assert (entry.name, entry.reason) == ("ours", "")
        # A baseline that is added later runs then; one that is a winner does not run twice.
        file, winner = world.folder / "spec.toml", found.confirmation.trials.iloc[0]
        new = {"name": "new", "optimizer": "sgd", "learning_rate": 0.5, "batch_size": "full"}
        same = {"name": "same", **{name: winner[name] for name in ("optimizer", "learning_rate", "batch_size")}}
        tables = tomllib.loads(file.read_text())
        tables["baseline"] += [new, same | {"batch_size": int(same["batch_size"])}]
        file.write_text(tomlkit.dumps(tables))
        world.finish()
        found = analysis.load(world.results())
        assert found.confirmation
        assert len(found.confirmation.trials) == last["trial"] + 3  # the new one, at two looks
        entries = analysis.compare(found, analysis.cells(found)).baselines
        assert [(each.name, each.reason) for each in entries] == [("ours", ""), ("new", ""), ("same", "")]


def test_a_study_of_an_earlier_version_resumes_without_a_confirmation(tmp_path: Path) -> None:
    """It recorded nothing where there was none."""
    with World(tmp_path, TINY) as world:
        world.finish()
        file = world.folder / "spec.toml"
        file.write_text(file.read_text().replace("confirm = false\n", ""))
        world.finish()
        assert not (world.results() / "confirm").exists()
        assert "confirm = false\n" in file.read_text()
        file.write_text(file.read_text().replace("confirm = false\n", "") + "\n[confirm]\ntop = 1\nseeds = 2\n")
        world.finish()
        assert analysis.load(world.results()).confirmation
