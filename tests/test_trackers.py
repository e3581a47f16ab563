"""What trials report, asked of the real servers over HTTP: TensorBoard, MLflow and optuna-dashboard."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from analysis.schema import ResultsError
from study.errors import StorageError, UsageError
from study.progress.trackers import MLflow, TensorBoard, WeightsAndBiases
from study.results.writer import Listener
from study.tuning import dashboard
from tests.conftest import trial_row

START_SECONDS = 120.0
ROOT = Path(__file__).parent.parent
CONFIG = {
    "trial": 0, "optimizer": "adam", "width": 8, "depth": 2, "batch_size": 32, "model": "mlp", "data": "linear",
    "settings": {"beta1": 0.9}, "rates": (1e-4, 1.0, 8), "seeds": [1, 2],
}  # fmt: skip


@contextmanager
def running(command: list[str], log: Path, says: str = "") -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process group of its own, and its address, which it prints after `says`."""
    with log.open("wb") as file:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(says + r"(http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield process, found[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, body: Any = None, method: str | None = None) -> Any:
    """What a server answers, as JSON; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def until(true: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What `true` gives once that is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def report(update: int, value: float, learning_rate: float | None = 0.01) -> dict[str, Any]:
    return {
        "value": value, "learning_rate": learning_rate, "report": update // 10, "update": update,
        "examples": 32 * update, "epoch": update / 10, "train_seconds": 0.1 * update, "outcome": "completed",
    }  # fmt: skip


def row(trial: int, outcome: str, updates: int, value: float | None = None, **more: Any) -> dict[str, Any]:
    return trial_row(trial=trial, outcome=outcome, updates=updates, value=value, **more)


def tell(begin: Callable[[], Listener]) -> None:
    """A study in two sittings: 0 is interrupted and goes on, 1 diverges, 2 fails, 3 is stopped, 4 never begins."""
    first = begin()
    for trial in range(4):
        first.began(trial, {**CONFIG, "trial": trial})
    first.reported(0, report(10, 0.5))
    first.reported(0, report(20, 0.4))
    first.reported(1, report(10, math.nan, None))
    first.ended(row(1, "diverged", 10))
    first.ended(row(2, "failed", 0, error="Traceback\n" * 20 + "RuntimeError: a bug"))
    first.reported(3, report(10, 0.9))
    first.ended(row(3, "stopped", 10, 0.9, learning_rate=0.01))
    first.ended(row(0, "interrupted", 20, 0.4))
    first.ended(row(4, "interrupted", 0, settings='{"beta1": 0.8}'))
    first.close()
    time.sleep(1)  # TensorBoard tells the event files of a run apart by the second
    second = begin()
    second.began(0, CONFIG)
    second.reported(0, report(20, 0.4))
    second.reported(0, report(30, 0.3))
    second.began(0, CONFIG)  # its worker died, after its last checkpoint
    second.reported(0, report(30, 0.3))
    second.reported(0, report(40, 0.2, 0.02))
    second.ended(row(0, "completed", 40, 0.2, learning_rate=0.02))
    second.close()


@pytest.mark.parametrize("loader", ["true", "false"])
def test_tensorboard_shows_each_trial(tmp_path: Path, loader: str) -> None:
    # Each of its two readers has its own way of leaving out what was written twice.
    tell(lambda: TensorBoard(tmp_path / "runs", "loss"))
    command = ["-m", "tensorboard.main", "--logdir", str(tmp_path / "runs"), "--port", "0", "--host", "127.0.0.1"]
    with running([sys.executable, *command, f"--load_fast={loader}"], tmp_path / "log") as (_, address):
        until(lambda: len(ask(f"{address}/data/runs")) == 5)
        until(lambda: "final_loss" in ask(f"{address}/data/plugin/scalars/tags").get("trial-00003", {}))

        def points(trial: int, tag: str, plugin: str = "scalars/scalars") -> Any:
            return ask(f"{address}/data/plugin/{plugin}?{urlencode({'run': f'trial-{trial:05d}', 'tag': tag})}")

        def curve(trial: int, tag: str) -> list[tuple[int, float]]:
            return [(step, pytest.approx(value)) for _, step, value in points(trial, tag)]

        until(lambda: len(points(0, "loss")) == 4)
        assert curve(0, "loss") == [(10, 0.5), (20, 0.4), (30, 0.3), (40, 0.2)]
        assert curve(0, "learning_rate") == [(10, 0.01), (20, 0.01), (30, 0.01), (40, 0.02)]
        assert curve(0, "final_loss") == [(40, 0.2)]
        assert curve(3, "final_loss") == [(10, 0.9)]
        # Nothing is made up for those without a value.
        assert set(ask(f"{address}/data/plugin/scalars/tags")) == {"trial-00000", "trial-00003"}
        outcomes = [points(trial, "outcome", "text/text")[-1]["text"] for trial in range(5)]
        assert [re.sub("<[^>]*>", "", text) for text in outcomes] == [
            "completed", "diverged", "failed", "stopped", "interrupted"
        ]  # fmt: skip
        assert "RuntimeError: a bug" in points(2, "error", "text/text")[0]["text"]

        experiment = ask(f"{address}/data/plugin/hparams/experiment", {"experimentName": ""})
        assert {info["name"] for info in experiment["hparamInfos"]} >= {"optimizer", "width", "batch_size", "beta1"}
        asked = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"],
            "colParams": [{"metric": info["name"], "includeInResult": True} for info in experiment["metricInfos"]]
            + [{"hparam": info["name"], "includeInResult": True} for info in experiment["hparamInfos"]],
            "startIndex": 0,
            "sliceSize": 10,
        }
        groups = ask(f"{address}/data/plugin/hparams/session_groups", asked)["sessionGroups"]
        found = {group["sessions"][0]["name"]: group for group in groups}
        assert found["trial-00000"]["hparams"]["optimizer"] == "adam"
        assert found["trial-00000"]["hparams"]["beta1"] == pytest.approx(0.9)
        assert found["trial-00004"]["hparams"]["beta1"] == pytest.approx(0.8)
        finals = {
            name: value["value"]
            for name, group in found.items()
            for value in group["metricValues"]
            if value["name"]["tag"] == "final_loss"
        }
        assert finals == {"trial-00000": pytest.approx(0.2), "trial-00003": pytest.approx(0.9)}
        assert {name: group["sessions"][0]["status"] for name, group in found.items()} == {
            "trial-00000": "STATUS_SUCCESS",
            "trial-00001": "STATUS_FAILURE",
            "trial-00002": "STATUS_FAILURE",
            "trial-00003": "STATUS_SUCCESS",
            "trial-00004": "STATUS_UNKNOWN",
        }


class Wandb(ModuleType):
    """In place of the package: each run keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.runs: list[Any] = []
        self.Settings = dict

    def init(self, **options: Any) -> Any:
        run = SimpleNamespace(options=options, points=[], summary={}, ended=[])
        run.log = lambda values, step: run.points.append((step, values))
        run.finish = lambda exit_code: run.ended.append(exit_code)
        self.runs.append(run)
        return run


def test_weights_and_biases_gets_a_run_for_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    runs = sys.modules["wandb"].runs
    tell(lambda: WeightsAndBiases(tmp_path, "a/b", "loss"))
    found = {run.options["name"]: run for run in runs[:-1]}
    assert sorted(found) == [f"trial-{trial:05d}" for trial in range(5)]
    first, again = found["trial-00000"], runs[-1]  # after the interruption it has the same identity
    assert first.options["id"] == again.options["id"] != found["trial-00001"].options["id"]
    expected = {"mode": "offline", "project": "a-b", "resume": "allow"}
    assert all(run.options.items() >= expected.items() for run in runs)
    assert first.options["config"]["beta1"] == 0.9
    assert first.points == [(10, {"loss": 0.5, "learning_rate": 0.01}), (20, {"loss": 0.4, "learning_rate": 0.01})]
    assert again.points[-1] == (40, {"loss": 0.2, "learning_rate": 0.02})
    assert again.summary == {"final_loss": 0.2, "outcome": "completed"}
    assert found["trial-00001"].points == [(10, {})]
    assert found["trial-00002"].summary["error"].splitlines()[-1] == "RuntimeError: a bug"
    assert [run.ended for run in (*found.values(), again)] == [[1], [1], [1], [0], [1], [0]]


def test_weights_and_biases_itself_takes_the_runs(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra `wandb`, which the pins of the tests do not include")
    tell(lambda: WeightsAndBiases(tmp_path, "kept", "loss"))
    files = [file for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb") if file.stat().st_size]
    assert len(files) == 6  # five trials, one of them in two sittings


@pytest.fixture(scope="module")
def mlflow_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The real server, in a virtual environment of its own: it bounds pyarrow below the version that is used here."""
    version = metadata.version("mlflow-skinny")
    place = request.config.cache.mkdir(f"mlflow-{version}") / "venv"
    installed = place / "installed"
    if not installed.is_file():
        uv = str(Path(sys.executable).with_name("uv"))
        # The pins hold there too, but for pyarrow's.
        pins = tmp_path_factory.mktemp("pins") / "pins.txt"
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        pins.write_text("\n".join(line for line in lines if not line.startswith("pyarrow==")))
        package = ["--python", str(place / "bin" / "python"), "--constraint", str(pins), f"mlflow=={version}"]
        for command in (
            [uv, "venv", "--clear", "--python", sys.executable, str(place)],
            [uv, "pip", "install", *package],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
            except (OSError, subprocess.SubprocessError) as error:
                why = getattr(error, "stderr", "") or error
                pytest.skip(f"no MLflow server: mlflow {version} could not be installed in {place} with uv: {why}")
        installed.touch()
    folder = tmp_path_factory.mktemp("mlflow")
    command = [str(place / "bin" / "mlflow"), "server", "--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    with running(command, folder / "log", "running on ") as server:
        yield server


def mlflow_runs(address: str, study: str) -> dict[int, dict[str, Any]]:
    """Runs by trial; a trial with two would be found out."""
    api = f"{address}/api/2.0/mlflow"
    experiment = ask(f"{api}/experiments/get-by-name?{urlencode({'experiment_name': study})}")["experiment"]
    found = ask(f"{api}/runs/search", {"experiment_ids": [experiment["experiment_id"]]}).get("runs", [])
    runs: dict[int, dict[str, Any]] = {}
    for run in found:
        data = {kind: {each["key"]: each["value"] for each in run["data"].get(kind, [])} for kind in ("params", "tags")}
        metrics = {}
        for name in {each["key"] for each in run["data"].get("metrics", [])}:
            query = urlencode({"run_id": run["info"]["run_id"], "metric_key": name})
            history = ask(f"{api}/metrics/get-history?{query}")["metrics"]
            metrics[name] = [(int(point["step"]), point["value"]) for point in history]
        assert int(data["tags"]["trial"]) not in runs
        runs[int(data["tags"]["trial"])] = {**data, "metrics": metrics, "status": run["info"]["status"]}
    return runs


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_mlflow_has_a_run_for_each_trial(mlflow_server: tuple[Any, str], tmp_path: Path) -> None:
    address, said = mlflow_server[1], []  # type: ignore[var-annotated]
    tell(lambda: MLflow(address, "kept", tmp_path, "loss", said.append))
    assert said == []
    runs = mlflow_runs(address, "kept")
    assert {trial: run["status"] for trial, run in runs.items()} == {
        0: "FINISHED", 1: "FAILED", 2: "FAILED", 3: "FINISHED", 4: "KILLED"
    }  # fmt: skip
    assert {trial: run["tags"]["outcome"] for trial, run in runs.items()} == {
        0: "completed", 1: "diverged", 2: "failed", 3: "stopped", 4: "interrupted"
    }  # fmt: skip
    assert runs[0]["params"] == {
        "optimizer": "adam", "width": "8", "depth": "2", "batch_size": "32", "model": "mlp", "data": "linear",
        "beta1": "0.9",
    }  # fmt: skip
    assert runs[0]["metrics"] == {
        "loss": [(10, 0.5), (20, 0.4), (30, 0.3), (40, 0.2)],
        "learning_rate": [(10, 0.01), (20, 0.01), (30, 0.01), (40, 0.02)],
        "final_loss": [(40, 0.2)],
    }
    assert [runs[trial]["metrics"] for trial in (1, 2, 4)] == [{}, {}, {}]
    assert runs[2]["tags"]["error"].splitlines()[-1] == "RuntimeError: a bug"
    assert len(runs[2]["tags"]["error"].splitlines()) == 10
    assert runs[4]["params"]["beta1"] == "0.8"
    assert all(run["tags"]["folder"] == str(tmp_path) for run in runs.values())


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_mlflow_gets_later_what_it_did_not_take(
    mlflow_server: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address = mlflow_server
    said: list[str] = []
    tracker = MLflow(address, "away", tmp_path, "loss", said.append)
    tracker.began(0, CONFIG)
    tracker.reported(0, report(10, 0.5))
    until(tracker._calls.empty)
    until(lambda: mlflow_runs(address, "away")[0]["metrics"].get("loss"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        tracker.reported(0, report(20, 0.4))
        tracker.ended(row(0, "completed", 20, 0.4))
        assert time.monotonic() - start < 0.5
        until(lambda: said)
        time.sleep(2.5)  # it tries again
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    until(lambda: mlflow_runs(address, "away")[0]["status"] == "FINISHED")
    tracker.close()
    assert mlflow_runs(address, "away")[0]["metrics"]["loss"] == [(10, 0.5), (20, 0.4)]
    assert len(said) == 1
    assert said[0].startswith(f"MLflow at {address} does not accept data")


def test_an_mlflow_server_that_is_not_there_ends_nothing(tmp_path: Path) -> None:
    with socket.socket() as held:  # bound, but nothing listens
        held.bind(("127.0.0.1", 0))
        said: list[str] = []
        start = time.monotonic()
        address = f"http://someone:secret@127.0.0.1:{held.getsockname()[1]}"
        tell(lambda: MLflow(address, "gone", tmp_path, "loss", said.append))
    assert time.monotonic() - start < 20
    assert len(said) == 2  # tell begins two
    assert "secret" not in said[0]


SPECS = {
    "journal": 'name = "shown"\n[workload]\nmetric = "loss"\n',
    "url": 'name = "shown"\n[workload]\nmetric = "loss"\n[tuning]\nstorage = "sqlite:///{folder}/optuna.db"\n',
}


def stored(folder: Path, kind: str) -> tuple[optuna.Study, Path]:
    """A results folder with three trials in Optuna's storage, and the storage's file."""
    folder.mkdir()
    spec = SPECS[kind].format(folder=folder)
    (folder / "spec.toml").write_text(spec)
    file = folder / ("optuna.journal" if kind == "journal" else "optuna.db")
    storage: BaseStorage = (
        JournalStorage(JournalFileBackend(str(file)))
        if kind == "journal"
        else RDBStorage(tomllib.loads(spec)["tuning"]["storage"])
    )
    study = optuna.create_study(storage=storage, study_name="shown")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=3)
    return study, file


@pytest.mark.long
@pytest.mark.parametrize("kind", list(SPECS))
def test_the_dashboard_shows_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "results"
    study, file = stored(folder, kind)
    before = file.read_bytes()
    code = "import sys, pathlib; from study.tuning.dashboard import serve; serve(pathlib.Path(sys.argv[1]), port=0)"
    log = tmp_path / "log"
    with running([sys.executable, "-c", code, str(folder)], log, "dashboard: ") as (process, address):
        (shown,) = ask(f"{address}/api/studies")["study_summaries"]
        assert shown["study_name"] == "shown"
        detail = ask(f"{address}/api/studies/{shown['study_id']}")
        assert [trial["values"] for trial in detail["trials"]] == [[trial.value] for trial in study.trials]
        for method, path in (("POST", "studies"), ("DELETE", f"studies/{shown['study_id']}")):
            with pytest.raises(urllib.error.HTTPError, match="403") as refused:
                ask(f"{address}/api/{path}", {"study_name": "more", "directions": ["minimize"]}, method)
            refused.value.close()
        assert file.read_bytes() == before
        # The study goes on beside it.
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        until(lambda: len(ask(f"{address}/api/studies/{shown['study_id']}")["trials"]) == 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert log.read_text().strip() == f"dashboard: {address}/  (Ctrl-C ends it)"
    assert sorted(path.name for path in folder.iterdir()) == sorted(["spec.toml", file.name])


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1:8080", "200 OK"),
        ("localhost", "200 OK"),
        ("[::1]:8080", "200 OK"),
        ("evil.example:8080", "403"),
        ("", "403"),
    ],
)
def test_the_dashboard_answers_to_this_machine_alone(host: str, answer: str) -> None:
    """A page on the web can have its own name resolve to 127.0.0.1 (DNS rebinding)."""
    answers = list[str]()
    application = dashboard._guarded(lambda environ, start: [start("200 OK", [])], "127.0.0.1")
    list(
        application({"HTTP_HOST": host, "REQUEST_METHOD": "GET"}, lambda status, headers: answers.append(status) or b"")
    )
    assert answers[0].startswith(answer)


def test_the_dashboard_needs_a_study(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such folder"):
        dashboard.serve(tmp_path / "none")
    folder = tmp_path / "results"
    _, file = stored(folder, "journal")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen"):
        dashboard.serve(folder, port=taken.getsockname()[1])
    (folder / "spec.toml").write_text(SPECS["journal"].replace("shown", "other"))
    with pytest.raises(StorageError, match="does not hold the study other"):
        dashboard.serve(folder)
    (folder / "spec.toml").write_text(SPECS["url"].format(folder=tmp_path))
    with pytest.raises(StorageError, match="cannot be read"):
        dashboard.serve(folder)
    file.unlink()
    (folder / "spec.toml").write_text(SPECS["journal"])
    with pytest.raises(StorageError, match=r"no optuna\.journal"):
        dashboard.serve(folder)
    assert not file.exists()


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("tensorboard", "tensorboard", lambda folder: TensorBoard(folder, "loss")),
        ("mlflow", "mlflow", lambda folder: MLflow("http://127.0.0.1", "name", folder, "loss", print)),
        ("optuna_dashboard", "dashboard", dashboard.serve),
    ],
)
def test_a_missing_package_is_named(
    package: str, extra: str, use: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=re.escape(f'pip install "optimizer-study[{extra}]"')):
        use(tmp_path)


def test_an_address_that_is_no_server_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the address of a tracking server"):
        MLflow("sqlite:///here.db", "name", tmp_path, "loss", print)


def test_nothing_is_imported_before_its_time() -> None:
    code = "import sys, study.progress.trackers; print({'torch', 'tensorboard', 'mlflow', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
