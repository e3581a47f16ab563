"""Random histories of kills, losses and full disks: a study that is resumed to its end equals an undisturbed one."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import analysis
from tests.fakes.tune import Trial
from tests.fakes.world import World

TINY: dict[str, Any] = {
    "name": "tiny",
    "workload": {"data": "linear", "model": "linear"},
    "search": {"batch_size": ["full", 50], "optimizer": ["sgd", "adam"]},
    "lanes": {"rates": 2, "seeds": 1, "engine": "eager", "extensions": 0},
    "tuning": {"sampler": "random", "scheduler": "none"},
    "budget": {"trials": 3, "updates": 3},
    "recording": {"checkpoint_seconds": 0.0},
}
SPECS: dict[str, dict[str, Any]] = {
    "plain": TINY,
    "extended": TINY | {"lanes": TINY["lanes"] | {"extensions": 1}, "budget": {"trials": 3, "updates": 2}},
    "without checkpoints": TINY | {"recording": {"checkpoint_seconds": 1e9}},
    "confirmed": TINY | {"budget": {"trials": 2, "updates": 2}, "confirm": {"top": 1, "seeds": 2}},
}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
WHEN_AND_WHERE = {"worker", "started", "stints"}


def tables(folder: Path) -> dict[str, str]:
    """What a study computed, as text: everything but when and where."""
    found, texts = analysis.load(folder), {}
    for name in ("trials", "lanes", "curves"):
        frame = getattr(found, name)
        texts[name] = frame.drop(columns=[c for c in frame if "seconds" in c or c in WHEN_AND_WHERE]).to_csv()
    return texts


def told(folder: Path, name: str) -> list[tuple[Any, ...]]:
    """What Optuna's storage holds of each trial."""
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    found = optuna.load_study(study_name=name, storage=storage).trials
    parts = ((t.params, t.distributions, t.intermediate_values, t.user_attrs) for t in found)
    rest = [[sorted(each.items()) for each in part] for part in parts]
    return [(t.number, t.state, t.values, *part) for t, part in zip(found, rest, strict=True)]


def computed(folder: Path, name: str) -> list[Any]:
    """All that must not depend on a study's history."""
    found: list[Any] = [tables(folder), told(folder, name)]
    if (folder / "confirm").exists():
        found += computed(folder / "confirm", f"{name}-confirm")
    return found


@cache
def undisturbed(kind: str) -> list[Any]:
    """What a study computes to which nothing happens."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place, World(Path(place) / "out", SPECS[kind]) as world:
        world.finish()
        return computed(world.place, "tiny")


def check_whole(folder: Path) -> None:
    """No row is there twice, every trial is in a final state, and nothing is left over."""
    found = analysis.load(folder)
    assert not found.trials["trial"].duplicated().any()
    assert not found.lanes.duplicated(["trial", "lane"]).any()
    assert not found.curves.duplicated(["trial", "lane", "update", "split", "metric"]).any()
    assert found.provenance["finished"]
    left = [file for file in folder.rglob("*") if file.suffix in (".tmp", ".pt", ".lock") and file.name != ".lock"]
    assert not left
    assert not (folder / "checkpoints").exists()
    assert not (folder / "tune").exists()


class Histories(RuleBasedStateMachine):
    """Draws what happens to a study of one of `SPECS`."""

    kind: ClassVar[str] = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(dir=MEMORY))
        self.world = World(self.top / "out", SPECS[self.kind])
        self.world.__enter__()
        self.finished = set[int]()
        self.start()

    def trial(self, which: int) -> Trial:
        """One of the trials that run."""
        running = self.world.running()
        return running[which % len(running)]

    def start(self) -> None:
        self.world.calm()
        self.world.start()

    @precondition(lambda self: not self.world.alive)
    @rule()
    def resume(self) -> None:
        self.start()

    @precondition(lambda self: self.world.running())
    @rule(which=st.integers(0, 1), steps=st.integers(1, 4))
    def step(self, which: int, steps: int) -> None:
        for _ in range(steps):
            if self.world.running():
                self.world.step(self.trial(which))

    @precondition(lambda self: any(not trial.num_failures for trial in self.world.running()))
    @rule(which=st.integers(0, 1), stepped=st.booleans())
    def kill_worker(self, which: int, stepped: bool) -> None:
        running = [trial for trial in self.world.running() if not trial.num_failures]
        self.world.kill_worker(running[which % len(running)], stepped=stepped)

    @precondition(lambda self: any(not t.num_failures for t in self.world.running()) and self.world.orphans < 2)
    @rule(which=st.integers(0, 1), twice=st.booleans())
    def kill_worker_between_trials(self, which: int, twice: bool) -> None:
        running = [trial for trial in self.world.running() if not trial.num_failures]
        self.world.orphans += 1
        self.world.kill_between(running[which % len(running)], twice=twice)

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

    def teardown(self) -> None:
        try:
            self.world.finish()
            assert computed(self.world.place, "tiny") == undisturbed(self.kind)
            check_whole(self.world.place)
        finally:
            self.world.__exit__()
            shutil.rmtree(self.top, ignore_errors=True)


def run(kind: str, examples: int = 10, **options: Any) -> None:
    """Try random histories of a kind of study."""
    machine = type("Histories", (Histories,), {"kind": kind})
    undisturbed(kind)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck),
            **options,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("kind", SPECS)
def test_a_disturbed_study_ends_as_an_undisturbed_one(kind: str) -> None:
    run(kind)
