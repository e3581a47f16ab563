"""Results at a URI of a server that speaks S3, and Optuna in PostgreSQL; both really run, go away, and come back."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import sqlalchemy
import tomlkit
from click.testing import CliRunner
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

import analysis
from analysis.remote import cache_folder, fetch, listing
from study import api
from study.cli import main
from study.errors import Halted, StorageError
from study.progress import status
from study.results import mirror, ownership
from study.results.ownership import Owner, running_owner
from study.spec import Spec, check
from study.tuning import storage as database
from tests.conftest import write_study
from tests.processes import STUDY, held, said, started
from tests.servers import S3, Postgres
from tests.test_recovery import Driver, told
from tests.test_resume import KILLED
from trainables import storage as files

TRIALS = 12
TABLES = KILLED | {"budget": {"trials": TRIALS, "epochs": 60}, "recording": {"checkpoint_seconds": 0.1}}
# A program that gives a store up that does not answer after a moment.
IMPATIENT = ("-c", "from study import cli; from study.results import mirror; mirror.PATIENCE_SECONDS = 3.0; cli.main()")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if reason := Postgres.why_not():
        pytest.skip(reason)
    with Postgres() as server:
        yield server


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(TABLES))
    return tmp_path / "spec.toml"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "spec.toml").write_text(tomlkit.dumps(TABLES))
    assert started(folder, "run", "spec.toml", "--out", "out").wait(280) == 0, said(folder)
    return lanes(folder / "out")


def lanes(place: Path | str) -> pd.DataFrame:
    """The lanes table, times aside."""
    found = analysis.load(place)
    assert set(found.trials["outcome"]) == {"completed"}
    return found.lanes.drop(columns=[name for name in found.lanes if "seconds" in name])


def ended(place: Path | str) -> int:
    try:
        return len(analysis.load(place).trials)
    except analysis.ResultsError:
        return 0


def wait_for(what: Callable[[], bool], running: subprocess.Popen[str], folder: Path) -> None:
    until = time.monotonic() + 240
    while not what():
        assert running.poll() is None, said(folder)
        assert time.monotonic() < until, said(folder)
        time.sleep(0.1)


@contextmanager
def under_way(folder: Path, uri: str, trials: int, program: tuple[str, ...] = STUDY) -> Iterator[subprocess.Popen[str]]:
    """A study that so many trials have ended of, at its URI too; no other one does meanwhile."""
    running = started(folder, "run", "spec.toml", "--out", uri, program=program)
    wait_for(lambda: ended(cache_folder(uri, "spool") / "results") >= trials, running, folder)
    with held(running):
        wait_for(lambda: ended(uri) >= trials, running, folder)
        assert ended(uri) < TRIALS
        yield running


def kill(running: subprocess.Popen[str]) -> None:
    running.kill()
    assert running.wait(60) == -signal.SIGKILL


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_killed_study_at_a_uri_resumes_on_another_machine(
    s3: S3, spec: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    uri = s3.uri("deep/killed")
    with under_way(tmp_path, uri, 3) as running:
        assert f"good: running, process {running.pid} on " in status.status(uri)
        # A second run, which knows nothing of the first one's spool, and a third, which does.
        caches = (str(tmp_path / "elsewhere"), os.environ["XDG_CACHE_HOME"])
        for refused in [started(tmp_path, "resume", uri, XDG_CACHE_HOME=cache) for cache in caches]:
            assert refused.wait(120) == 2, said(tmp_path)
        assert said(tmp_path).count(f"a study runs in it: process {running.pid} on ") == 2
        kill(running)
    shutil.rmtree(cache_folder(uri, "spool"))
    before = ended(uri)
    assert f"interrupted; `study resume {uri}` continues it" in status.status(uri)
    assert started(tmp_path, "resume", uri).wait(280) == 0, said(tmp_path)
    assert f"good: {before} of {TRIALS} trials have ended" in said(tmp_path)
    pd.testing.assert_frame_equal(lanes(uri), undisturbed, check_exact=True)
    assert f"report:  {uri}/report/index.html" in said(tmp_path)
    page = files.read(f"{uri}/report/index.html")
    assert page
    assert f"study report {uri}" in page.read().decode()
    assert files.names(f"{uri}/checkpoints") == []
    assert not (cache_folder(uri, "spool") / "results").exists()
    assert "Traceback" not in said(tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_study_waits_for_a_store_that_is_away(s3: S3, spec: Path, tmp_path: Path, undisturbed: pd.DataFrame) -> None:
    uri = s3.uri("away")
    with under_way(tmp_path, uri, 2) as running:
        s3.stop()
    wait_for(lambda: "cannot be written to" in said(tmp_path), running, tmp_path)
    s3.start()
    assert running.wait(280) == 0, said(tmp_path)
    assert said(tmp_path).count("cannot be written to (When") == 1
    assert said(tmp_path).count("can be written to again") == 1
    pd.testing.assert_frame_equal(lanes(uri), undisturbed, check_exact=True)
    assert "Traceback" not in said(tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_study_without_its_store_can_be_resumed_from_the_spool(
    s3: S3, spec: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    uri = s3.uri("gone")
    with under_way(tmp_path, uri, 2, IMPATIENT) as running:
        there = ended(uri)
        s3.stop()
    try:
        assert running.wait(280) == 1, said(tmp_path)
    finally:
        s3.start()
    spool = cache_folder(uri, "spool") / "results"
    assert f"the results could not be sent; what was not sent is safe in {spool}" in said(tmp_path)
    assert f"`study resume {uri}` on this machine" in said(tmp_path)
    assert ended(uri) < TRIALS
    assert ended(uri) >= there
    pd.testing.assert_frame_equal(lanes(spool), undisturbed, check_exact=True)
    assert started(tmp_path, "resume", uri).wait(280) == 0, said(tmp_path)
    pd.testing.assert_frame_equal(lanes(uri), undisturbed, check_exact=True)
    assert not spool.exists()
    assert "Traceback" not in said(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_study_waits_for_its_database_and_survives_a_kill(
    postgres: Postgres, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    tables = TABLES | {"tuning": {**TABLES["tuning"], "storage": postgres.url}}
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(tables))
    out = tmp_path / "out"
    running = started(tmp_path, "run", "spec.toml", "--out", "out")
    wait_for(lambda: ended(out) >= 2, running, tmp_path)
    with held(running):
        postgres.stop()
    wait_for(lambda: "Optuna's database does not answer (" in said(tmp_path), running, tmp_path)
    there = ended(out)
    postgres.start()
    wait_for(lambda: ended(out) > there, running, tmp_path)
    assert said(tmp_path).count("does not answer") == said(tmp_path).count("answers again") == 1
    kill(running)
    assert started(tmp_path, "resume", "out").wait(280) == 0, said(tmp_path)
    pd.testing.assert_frame_equal(lanes(out), undisturbed, check_exact=True)
    trials = database.open_study(check(tables), out).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    assert "Traceback" not in said(tmp_path)


def opened(uri: str, *, new: bool = False, heard: list[str] | None = None) -> Any:
    return mirror.mirrored(uri, "the command", (heard if heard is not None else []).append, new=new)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(ownership, "DEAD_SECONDS", 3.0)


def holder_at(uri: str, **changed: Any) -> None:
    """Put another run's mark there."""
    owner = Owner("study run", host="far", pid=1, since="9:00", session="x", beat=1)
    replace(owner, **changed).write(uri)


def test_mirror_sends_what_changes_in_the_spool(s3: S3, quickly: None) -> None:
    uri = s3.uri("follows")
    with opened(uri, new=True) as spool:
        assert mirror.home(spool / "confirm") == f"{uri}/confirm"
        write_study(spool)
        (spool / "optuna.journal").write_bytes(b'{"op_code": 1}\n{"op_co')
        (spool / ".lock").touch()
        (spool / "curves" / "part.tmp").touch()
        (spool / "tune").mkdir()
        (spool / "tune" / "state").touch()
        (spool / "checkpoints").mkdir()
        files.write(f"{uri}/checkpoints/trial-00003.pt", lambda stream: stream.write(b"state"))
        (spool / "checkpoints" / "trial-00003.pt").touch()
        until = time.monotonic() + 20
        while files.names(f"{uri}/checkpoints") or "optuna.journal" not in listing(*files.at(uri)):
            assert time.monotonic() < until
            time.sleep(0.05)
        part = next((spool / "curves").glob("*.parquet"))
        shutil.copy(part, part.with_name("0000001-0000008.parquet"))
        part.unlink()
    assert mirror.home(spool) == spool
    assert set(listing(*files.at(uri))) == {
        "spec.toml", "provenance.json", "optuna.journal", "curves/0000001-0000008.parquet",
        "lanes.parquet/0000001-0000001.parquet", "trials.parquet/0000001-0000001.parquet",
    }  # fmt: skip
    journal = files.read(f"{uri}/optuna.journal")
    assert journal
    assert journal.read() == b'{"op_code": 1}\n'
    assert not spool.exists()
    assert len(analysis.load(uri).trials) == 48
    with pytest.raises(StorageError, match="already holds a study"), opened(uri, new=True):
        pass
    with opened(uri) as spool:
        assert len(analysis.load(spool).trials) == 48


@pytest.mark.long
def test_uri_has_one_owner(s3: S3, quickly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.uri("held")
    holder_at(uri)
    heard: list[str] = []
    with opened(uri, new=True, heard=heard):  # the other one is dead
        assert "held by process 1 on far since 9:00 (study run); waiting up to 3 s" in heard[0]
        assert "process " + str(os.getpid()) in (running_owner(uri) or "")
        with pytest.raises(StorageError, match=f"a study runs in it: process {os.getpid()} on "), opened(uri):
            pass
    assert running_owner(uri) is None
    assert files.names(uri) == []  # nothing came of it, and nothing is left
    holder_at(uri)
    threading.Timer(1.0, holder_at, [uri], {"beat": 2}).start()
    with pytest.raises(StorageError, match="a study runs in it: process 1 on far"), opened(uri, new=True):
        pass
    holder_at(uri, host=platform.node(), pid=2**22 + 1)  # of this machine, and known to be dead
    began = time.monotonic()
    with opened(uri, new=True):
        assert time.monotonic() - began < 2


def interrupted(uri: str) -> None:
    """A run whose URI another takes while it sleeps, and which then has something to send."""
    with opened(uri, new=True) as spool:
        try:
            for _ in range(100):  # a heartbeat of ours may overwrite one of the other's
                holder_at(uri)
                time.sleep(0.2)
        except KeyboardInterrupt:
            write_study(spool)


def test_run_ends_when_another_takes_its_uri_over(s3: S3, quickly: None) -> None:
    uri, heard = s3.uri("taken"), list[str]()
    with pytest.raises(Halted, match="another run has taken it over: process 1 on far"):
        interrupted(uri)
    assert list(listing(*files.at(uri))) == []
    files.write_bytes(f"{uri}/spec.toml", b"its own")
    holder_at(uri, ended="9:30")
    with opened(uri, heard=heard) as spool:
        assert "was resumed elsewhere" in heard[0]
        assert [path.name for path in spool.iterdir()] == ["spec.toml"]


def unsent(uri: str) -> None:
    """A session that cannot send what it writes."""
    with opened(uri) as spool:
        (spool / "later").write_text("of this session")
        next((spool / "curves").glob("*.parquet")).rename(spool / "curves/0000001-0000002.parquet")


def test_resume_continues_from_unsent_results(s3: S3, quickly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.uri("unsent")
    with opened(uri, new=True) as spool:
        write_study(spool)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "PATIENCE_SECONDS", 0.0)
        patch.setattr(mirror._Mirror, "_pushed", lambda self: False)
        with pytest.raises(Halted, match=r"what was not sent is safe in .*`study resume"):
            unsent(uri)
    assert "later" not in listing(*files.at(uri))
    with opened(uri) as spool:
        assert (spool / "later").read_text() == "of this session"
    there = set(listing(*files.at(uri)))
    assert {"later", "curves/0000001-0000002.parquet"} < there
    assert "curves/0000001-0000001.parquet" not in there


@pytest.mark.long
def test_fetch_follows_merged_parts(s3: S3, tmp_path: Path) -> None:
    uri, system = s3.uri("merged"), files.at(s3.uri("merged"))
    mirror.send(write_study(tmp_path / "study", optimizers=("adam", "sgd"), widths=(8,), depths=(1,)), uri)
    first = analysis.load(uri)
    assert first.path.is_relative_to(os.environ["XDG_CACHE_HOME"])
    part = f"{uri}/curves/0000001-0000001.parquet"
    content = files.read(part)
    assert content
    files.write_bytes(f"{uri}/curves/0000001-0000008.parquet", content.read())
    files.delete(part)
    assert analysis.load(uri).curves.equals(first.curves)
    assert sorted(file.name for file in (first.path / "curves").iterdir()) == ["0000001-0000008.parquet"]
    assert "importance.parquet" not in listing(*system)
    page = CliRunner().invoke(main, ["report", uri])
    assert page.exit_code == 0, page.output
    assert f"sent to: {uri}/report/index.html" in page.output
    assert "report/index.html" in listing(*system)
    with pytest.raises(analysis.ResultsError, match="holds no results"):
        analysis.load(s3.uri("nowhere"))
    with pytest.raises(analysis.ResultsError, match="cannot be fetched"):
        fetch("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", tmp_path)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ftp://host/x", "cannot hold results; valid: a folder (NFS too), s3://BUCKET/NAME, gs://BUCKET/NAME"),
        ("s3://key:secret@bucket/x", "has a user or password; put it where the SDK finds it"),
        ("s3://", "names no bucket; valid: a folder"),
        ("s3:/bucket/x", "is not a URI, as it lacks a slash"),
        ("s3://bucket/x#1", "has characters that are not allowed"),
    ],
)
def test_place_refuses_invalid_uris(uri: str, told: str) -> None:
    found = CliRunner().invoke(main, ["status", uri])
    assert found.exit_code == 2
    assert told in " ".join(found.output.split())
    assert "secret" not in found.output
    for ask in (lambda: api.run("quick", uri), lambda: api.resume(Path(uri) if uri == "s3:/bucket/x" else uri)):
        with pytest.raises(StorageError, match=re.escape(told)) as one:
            ask()
        assert "secret" not in str(one.value)


def test_check_home_refuses_a_database_of_another_uri(
    s3: S3, postgres: Postgres, quickly: None, tmp_path: Path
) -> None:
    uri = s3.uri("of-database")
    spec = check(TABLES | {"name": "owned", "tuning": {**TABLES["tuning"], "storage": postgres.url}})
    with opened(uri, new=True) as spool:
        created = database.create_study(spec)
        assert created
        mirror.set_home(created, spool)
        assert created.user_attrs["results"] == uri
        spool.mkdir()
        (spool / "spec.toml").write_text(spec.to_toml())
    with pytest.raises(StorageError, match=f"its study owned belongs to {uri}"):
        mirror.check_home(database.open_study(spec, tmp_path), tmp_path)
    database.delete_study(spec)


CUT = {**TABLES, "name": "cut", "budget": {"trials": 2, "epochs": 2}}


def run_to_end(spec: Spec, folder: Path) -> list[tuple[Any, ...]]:
    """Run sessions of a study as `study.session` does while its database goes away; what Optuna was told."""
    heard: list[str] = []
    while True:
        try:
            driver = Driver(folder, spec)
            driver.run(2 - len(driver.state.rows))
            ended = told(driver)
            break
        except Exception as error:  # noqa: BLE001  raised again, unless it comes from the database
            database.wait_until_back(spec, error, heard.append)
    messages = ["Optuna's database does not answer", "Optuna's database answers again"]
    assert [line.split(" (")[0].split(",")[0] for line in heard] in ([], messages)
    return ended


def cut_statements(patch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Cut the connection before a statement or commit; returns a list that grows with each of them."""
    asked: list[int] = []

    def before(connection: sqlalchemy.Connection, *_: object) -> None:
        asked.append(1)
        if len(asked) == number:
            driver: Any = connection.connection.dbapi_connection
            driver.close()

    init = RDBStorage.__init__

    def opened(self: RDBStorage, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        for event in ("before_cursor_execute", "commit"):
            sqlalchemy.event.listen(self.engine, event, before)

    patch.setattr(RDBStorage, "__init__", opened)
    return asked


def cut_answers(patch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Lose the answer to a call that the server has carried out; returns a list that grows with each call."""
    asked: list[int] = []

    def deaf(self: RDBStorage, *given: Any, ask: Callable[..., Any], **named: Any) -> Any:
        answer = ask(self, *given, **named)
        asked.append(1)
        if len(asked) == number:
            raise optuna.exceptions.StorageInternalError from OperationalError("", {}, Exception("cut off"))
        return answer

    for name in ("_create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
        ask = getattr(RDBStorage, name)
        patch.setattr(RDBStorage, name, lambda self, *given, ask=ask, **named: deaf(self, *given, ask=ask, **named))
    return asked


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cut", [cut_statements, cut_answers])
def test_session_survives_a_database_cut_at_any_moment(
    postgres: Postgres, cut: Callable[[pytest.MonkeyPatch, int], list[int]], tmp_path: Path
) -> None:
    """The next session starts from the tables; a trial that the database already holds is not created again."""

    def run(number: int) -> tuple[list[tuple[Any, ...]], int]:
        name = f"{cut.__name__}-{number}"
        spec = check(CUT | {"name": name, "tuning": {**TABLES["tuning"], "storage": postgres.url}})
        with pytest.MonkeyPatch.context() as patch:
            asked = cut(patch, number)
            return run_to_end(spec, tmp_path / str(number)), len(asked)

    undisturbed, count = run(0)
    assert count >= 8
    for number in range(1, count + 1, max(1, count // 10)):
        assert repr(run(number)[0]) == repr(undisturbed), number


def test_wait_until_back_raises_other_errors(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = check(CUT | {"tuning": {**TABLES["tuning"], "storage": postgres.url}})
    with pytest.raises(ValueError, match="a bug"):
        database.wait_until_back(spec, ValueError("a bug"), print)
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.0)
    away = spec.model_copy(
        update={"tuning": spec.tuning.model_copy(update={"storage": "postgresql://x@127.0.0.1:9/x"})}
    )
    heard: list[str] = []
    with pytest.raises(OperationalError, match="cut off"):
        database.wait_until_back(away, OperationalError("", {}, Exception("cut off")), heard.append)
    assert heard == ["Optuna's database does not answer (cut off); waiting up to an hour for it ..."]
