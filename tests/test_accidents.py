"""Random histories of a study: kills, damaged and edited files, a moved folder, and other runs that want it."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

import study
from study.errors import StorageError
from study.results import ownership
from tests.test_histories import Histories, check_same, check_whole, computed, undisturbed

pytestmark = pytest.mark.filterwarnings("ignore::analysis.schema.ResultsWarning")


class Accidents(Histories):
    """Draws what happens to a study and to its folder."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0

    @precondition(lambda self: not self.world.alive)
    @rule(which=st.integers(0, 40), bit=st.integers(0, 10**6))
    def flip(self, which: int, bit: int) -> None:
        self.world.flip(which, bit)

    @precondition(lambda self: not self.world.alive)
    @rule()
    def move(self) -> None:
        self.world.move()

    @precondition(lambda self: not self.world.alive and self.kind == "plain" and self.more < 2)
    @rule()
    def extend(self) -> None:
        self.world.calm()
        self.more += 1
        before = (self.world.folder / "spec.toml").exists()
        self.world.start(more=1)
        if not before or isinstance(self.world.ended, BaseException):
            self.more -= 1

    @precondition(lambda self: not self.world.alive and (self.world.folder / "spec.toml").exists())
    @rule(text=st.sampled_from(["one", "another"]))
    def edit(self, text: str) -> None:
        file = self.world.folder / "spec.toml"
        lines = file.read_text().splitlines(keepends=True)
        lines = [f'description = "{text}"\n' if line.startswith("description = ") else line for line in lines]
        file.write_text("".join(lines))

    @precondition(lambda self: self.world.alive)
    @rule(how=st.sampled_from(["resume", "extend", "run"]))
    def run_again(self, how: str) -> None:
        raised: list[BaseException] = []

        def start() -> None:
            place = self.world.place
            try:
                study.run(self.world.tables, place) if how == "run" else study.resume(place, more=int(how == "extend"))
            except StorageError as error:
                raised.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        assert raised
        assert "a study runs in it: process" in str(raised[0]) or "already holds a study" in str(raised[0])

    def teardown(self) -> None:
        try:
            self.world.finish()
            check_same(computed(self.world), undisturbed(self.kind, self.more))
            check_whole(self.world)
        finally:
            self.world.__exit__()
            shutil.rmtree(self.top, ignore_errors=True)


def run(kind: str, histories: int, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    for more in (0, 1, 2) if kind == "plain" else (0,):
        undisturbed(kind, more)
    monkeypatch.setattr(ownership, "LOCK_SECONDS", 0.05)
    chosen = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)} | how
    machine = type("Accidents", (Accidents,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=histories, stateful_step_count=10, **chosen))


@pytest.mark.parametrize(("kind", "histories"), [("plain", 3)])
def test_a_study_survives_accidents(kind: str, histories: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(kind, histories, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "histories"), [("plain", 35), ("confirmed", 15)])
def test_a_study_survives_fifty_accidents(kind: str, histories: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(kind, histories, monkeypatch)


@pytest.mark.nightly
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("kind", "histories"), [("plain", 350), ("confirmed", 150)])
def test_a_study_survives_many_accidents(kind: str, histories: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(kind, histories, monkeypatch, derandomize=False)
