"""Specs that nobody means: each is answered within a second by one short message."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import tempfile
import time
import tomllib
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.errors import SpecError
from study.results.confirm import most_winners
from study.spec import check, read
from study.spec.changes import planned_trials, resolved
from study.spec.explain import _fields_at
from study.spec.model import Spec
from study.spec.reading import SHIPPED
from study.usercode import client
from tests.processes import said, started
from tests.test_spec import GOOD
from trainables.usercode.request import Answer

TEXTS = {
    "seeds": "[lanes]\nseeds = 20_000_000",
    "cpus": "[resources]\ncpus_per_trial = 1_000_000_000",
    "a long list": f"[search]\nwidth = {list(range(1, 50_000))}",
    "a million values": f"[search]\nwidth = {list(range(1, 1_000_001))}",
    "digits": f"[resources]\ncpus_per_trial = {'9' * 4401}",
    "fewer digits": f"[lanes]\nseeds = {'9' * 4000}",
    "digits of a float": f"[workload]\ntarget = {'9' * 400}",
    "an exponent": "[budget]\nseconds = 1e999",
    "nested arrays": f"[search]\nwidth = {'[' * 900}{']' * 900}",
    "nested tables": f"[search]\nwidth = {'{a = ' * 900}1{'}' * 900}",
    "a nested list": f"[search]\nwidth = {'[' * 90}1{']' * 90}",
    "a long text": f'[lanes]\nengine = "{"x" * 100_000}"',
    "a long key": f"[lanes]\n{'x' * 100_000} = 1",
    "lists in a list": f"[search]\nwidth = {[[number] for number in range(900)]}",
    "many keys": "[lanes]\n" + "\n".join(f"key{number} = 1" for number in range(20_000)),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_absurd_spec_is_answered_by_a_short_message(text: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(SpecError) as raised:
        read(file)
    assert time.process_time() - began < 1
    assert len(str(raised.value)) < 5000


def test_a_number_that_python_does_not_print_is_answered() -> None:
    for tables in ({"lanes": {"seeds": 10**5000}}, {"search": {"width": 10**5000}}, {"budget": {"seconds": 10**5000}}):
        with pytest.raises(SpecError):
            check(GOOD | tables)


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 10**6, 10**9, 2**63, 10**400, -(10**400), 1e308, 5e-324, -0.0, 0.5]),
    st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    st.integers(),
    st.floats(),
)
WORDS = st.one_of(
    st.sampled_from(
        ["", "full", "auto", "adam", "sgd", "mnist", "cnn", "a.b:c", ":", "${X}", "//u:p@h", "\0", "é" * 200]
    ),
    st.text(max_size=5),
)
PLAIN = st.one_of(NUMBERS, WORDS, st.booleans(), st.sampled_from([None, datetime.date(2026, 1, 1), b"", (), object()]))
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["low", "high", "log", "adam", "x"]), inner, max_size=3),
        st.fixed_dictionaries({"low": NUMBERS, "high": NUMBERS}, optional={"log": st.booleans()}),
    ),
    max_leaves=4,
)
SHIPPED_TABLES = [tomllib.loads(file.read_text()) for file in sorted(SHIPPED.rglob("*.toml"))] + [GOOD]
# Section -> its keys, of the schema.
FIELDS = {name: _fields_at([name]) for name in Spec.model_fields if name not in ("name", "description")}
SETTINGS = st.dictionaries(
    st.sampled_from(["sgd", "adam", "momentum"]),
    st.dictionaries(st.sampled_from(["beta1", "momentum", "eps"]), VALUES, max_size=2),
    max_size=2,
)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """The tables of a shipped spec, with up to four changes."""
    tables: dict[str, Any] = deepcopy(draw(st.sampled_from(SHIPPED_TABLES)))
    for _ in range(draw(st.integers(1, 4))):
        section = draw(st.sampled_from(sorted(FIELDS)))
        place = tables.get(section, {})
        if isinstance(place, dict) and draw(st.integers(0, 9)):
            key = draw(st.sampled_from([*FIELDS[section], "typo"] if draw(st.booleans()) else [*place, "typo"]))
            place[key] = draw(SETTINGS if key == "settings" else VALUES)
            tables[section] = place
            if draw(st.integers(0, 5)) == 0:
                del place[key]
        else:
            tables[section] = draw(VALUES)
    return tables


def answered(tables: dict[str, Any]) -> None:
    """It is valid, and written and read again the same; or one message says what is wrong."""
    try:
        spec = resolved(check(tables))
    except SpecError:
        return
    assert check(tomllib.loads(spec.to_toml())) == spec
    assert planned_trials(spec) >= 1
    assert most_winners(spec) >= 0


@pytest.fixture(autouse=True)
def without_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for the user code that a spec happens to name."""
    monkeypatch.setattr(client, "ask", lambda request: Answer(mistakes=["workload.model: there is no such module"]))


FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=200, derandomize=True, **FUZZ)  # type: ignore[arg-type]
@given(specs())
def test_no_spec_ends_in_a_traceback(tables: dict[str, Any]) -> None:
    answered(tables)


@pytest.mark.nightly
@settings(max_examples=2000, **FUZZ)  # type: ignore[arg-type]
@given(specs())
def test_no_spec_of_many_ends_in_a_traceback(tables: dict[str, Any]) -> None:
    answered(tables)


@settings(max_examples=60, derandomize=True, **FUZZ)  # type: ignore[arg-type]
@given(st.sampled_from(sorted(SHIPPED.glob("*.toml"))), st.integers(0), st.binary(min_size=1, max_size=3))
def test_no_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, file: Path, place: int, new: bytes
) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content) : place % len(content) + len(new)] = new
    changed = tmp_path_factory.mktemp("spec") / "spec.toml"
    changed.write_bytes(content)
    with suppress(SpecError):
        read(changed)


# Of three kinds of URL; each is in no file that a run leaves.
SECRETS = {
    "DATABASE_SECRET": "horse-battery-1",
    "MLFLOW_SECRET": "staple-correct-2",
    "AWS_SECRET_ACCESS_KEY": "zebra-3",
}
STORAGE = "postgresql://me:${DATABASE_SECRET}@db.example/studies?sslmode=require"
SERVER = "https://me:${MLFLOW_SECRET}@mlflow.example"


@pytest.mark.parametrize(
    ("section", "key", "url"),
    [
        ("tuning", "storage", "postgresql://me:horse-battery-1@db/studies"),
        ("tuning", "storage", "postgresql+psycopg://me:horse@battery/horse-battery-1@db/studies"),
        ("tuning", "storage", "mysql://db/studies?user=me&password=horse-battery-1"),
        ("tuning", "storage", "postgresql://me:${DATABASE}horse-battery-1@db/studies"),
        ("recording", "mlflow", "https://me:horse-battery-1@server:5000"),
        ("recording", "mlflow", "https://server:5000/?access_token=horse-battery-1"),
    ],
)
def test_a_password_in_a_spec_is_refused_and_not_repeated(section: str, key: str, url: str) -> None:
    with pytest.raises(SpecError) as raised:
        check(GOOD | {section: {**GOOD.get(section, {}), key: url}})
    assert f"{section}.{key}: has a password, which would be saved in the results; write ${{NAME}}" in str(raised.value)
    with pytest.raises(SpecError) as with_another:
        check(GOOD | {section: {**GOOD.get(section, {}), key: [url]}})
    for error in (raised, with_another):
        assert "horse" not in str(error.value)


def test_a_url_without_a_password_is_fine() -> None:
    for url in ("postgresql://me@db/studies", STORAGE, "sqlite:////tmp/a:b/x.db", "redis://db:6379/0"):
        assert check(GOOD | {"tuning": {**GOOD.get("tuning", {}), "storage": url}}).tuning.storage == url


def files_with(folder: Path, word: str) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if word.encode() in file.read_bytes() or re.search(re.escape(word), str(file))]


def test_the_files_of_a_run_hold_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from study.progress import trackers
    from study.tuning import storage
    from tests.fakes.world import World
    from tests.test_histories import TINY

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    opened, logged = list[str](), list[str]()
    database = storage.RDBStorage

    def open_database(url: str, **options: Any) -> Any:
        opened.append(url)
        return database(f"sqlite:///{tmp_path}/studies.db", **options)

    class Server:
        began = reported = ended = close = lambda *_: None

        def __init__(self, uri: str, *_: Any) -> None:
            logged.append(uri)

    monkeypatch.setattr(storage, "RDBStorage", open_database)
    monkeypatch.setattr(trackers, "MLflow", Server)
    tables = TINY | {"tuning": TINY["tuning"] | {"storage": STORAGE}, "recording": {"mlflow": SERVER}}
    with World(tmp_path / "world", TINY) as world:
        world.top.mkdir()
        world.tables = tables
        world.start()
        world.step(world.running()[0])
        world.terminate()
        world.finish()
    assert opened[0] == STORAGE.replace("${DATABASE_SECRET}", SECRETS["DATABASE_SECRET"])
    assert logged[0] == SERVER.replace("${MLFLOW_SECRET}", SECRETS["MLFLOW_SECRET"])
    said = capfd.readouterr()
    for word in SECRETS.values():
        assert not files_with(tmp_path, word)
        assert word not in said.out + said.err
    assert STORAGE in (world.folder / "spec.toml").read_text()
    monkeypatch.delenv("DATABASE_SECRET")
    with pytest.raises(SpecError, match="names the environment variable DATABASE_SECRET, which is not set; set it"):
        storage.open_study(read(world.folder / "spec.toml"), world.folder)
    assert os.environ["MLFLOW_SECRET"]


@pytest.mark.long
@pytest.mark.usefixtures("one_worker")
def test_neither_processes_nor_files_of_a_run_show_a_password(tmp_path: Path) -> None:
    """By `ps` all the time while it runs, and in all that it leaves, Ray's folder included."""
    planted = SECRETS | {"DATABASE_SECRET": "271828182"}
    # Without servers: the seconds that SQLite waits for a lock are secret, and a study continues without its MLflow.
    storage = {"storage": f"sqlite:///{tmp_path}/studies.db?timeout=${{DATABASE_SECRET}}"}
    server = "http://me:${MLFLOW_SECRET}@127.0.0.1:9"
    tables = GOOD | {"budget": {"trials": 1, "updates": 2}, "confirm": False, "recording": {"mlflow": server}}
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(tables | {"tuning": GOOD.get("tuning", {}) | storage}))
    with tempfile.TemporaryDirectory(prefix="ps", dir="/tmp") as temporary:  # Ray's sockets need a short path
        running = started(tmp_path, "run", "spec.toml", TMPDIR=temporary, RAY_TMPDIR=temporary, **planted)
        seen = set[str]()
        while running.poll() is None:
            listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
            seen.update(listed.splitlines())
            time.sleep(0.2)
        assert running.returncode == 0, said(tmp_path)
        assert any("raylet" in line and temporary in line for line in seen)
        assert any(file.stat().st_size for file in Path(temporary).rglob("*") if file.is_file())
        for word in planted.values():
            assert not [line for line in seen if word in line]
            assert not files_with(tmp_path, word)
            assert not files_with(Path(temporary), word)
