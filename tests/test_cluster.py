"""Studies on real clusters: Ray nodes with addresses of their own, some of which die, are cut off, or join late."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.job_submission import JobStatus

import analysis
from study.cluster import packing, submit
from study.cluster import ray as cluster
from study.cluster.build import builder
from study.errors import StorageError
from study.progress import status
from study.session import run_session
from study.spec import check
from study.spec.changes import with_values
from tests.nodes import Nodes, why_not
from tests.processes import held, invoked
from tests.test_cli import study
from trainables import tune as trainables_tune
from trainables.tune import MLPTrainable

STUDY = [sys.executable, "-m", "study"]
SPEC = """
name = "apart"
confirm = false
[workload]
data = "linear"
model = "mlp"
[search]
width = [4, 8, 16]
depth = [1, 2]
batch_size = [4, 8, "full"]
optimizer = ["sgd", "momentum", "adam"]
[lanes]
learning_rate = {low = 1e-3, high = 1e-1, count = 3}
seeds = 2
extensions = 0
refine = 0
[budget]
trials = 60
epochs = 100
[tuning]
sampler = "qmc"
scheduler = "none"
[recording]
checkpoint_seconds = 0.2
"""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if reason := why_not():
        pytest.skip(reason)
    with Nodes() as made:
        yield made


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "apart.toml"
    file.write_text(SPEC)
    return file


def numbers(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lanes and curves but for the times they took."""
    results = analysis.load(folder)
    lanes, curves = (
        table.drop(columns=[name for name in table if "seconds" in name]) for table in (results.lanes, results.curves)
    )
    order = ["trial", "lane", "update", "split", "metric"]
    return (
        lanes.sort_values(order[:2]).reset_index(drop=True),
        curves.sort_values(order).reset_index(drop=True),
    )


def wait_for(what: Callable[[], bool], running: subprocess.Popen[str], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert running.poll() is None, f"ended with {running.returncode}"
        assert time.monotonic() < until
        time.sleep(0.2)


def hosts(folder: Path) -> Counter[str]:
    """Trials by the node on which they ended."""
    try:
        return Counter(analysis.load(folder).trials["worker"].str.split(":").str[0])
    except (analysis.ResultsError, OSError):
        return Counter()


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(1500)
def test_nodes_die_are_cut_off_and_join_and_nothing_is_lost(nodes: Nodes, spec: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    done = study("run", str(spec), "--out", str(alone), "--quiet", folder=tmp_path)
    assert done.returncode == 0, done.stderr

    for name in ("head", "b", "c", "d"):
        nodes.start(name)
    out, said = tmp_path / "out", tmp_path / "said"
    with said.open("w") as log:
        options = {"cwd": tmp_path, "stdout": log, "stderr": log}
        there = ["--address", nodes.head, "--plain"]
        running = nodes.process("head", [*STUDY, "run", str(spec), "--out", str(out), *there], **options)
        wait_for(lambda: set(hosts(out)) == {"head", "b", "c", "d"}, running)
        # Or these two would run all of the study before the others are missed.
        with held(nodes.running["head"]), held(nodes.running["b"]):
            nodes.kill("c")
            wait_for(lambda: "node c (10.77.0.3) is gone" in said.read_text(), running)
            nodes.cut_off("d")
            nodes.start("e")
            wait_for(lambda: "node d (10.77.0.4) is gone" in said.read_text(), running)
            wait_for(lambda: hosts(out)["e"] > 0, running)
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(60) == 130, said.read_text()
        assert 10 < sum(hosts(out).values()) < 60
        again = nodes.process("e", [*STUDY, "resume", str(out), *there], **options)
        assert again.wait(700) == 0, said.read_text()

    for mine, theirs in zip(numbers(out), numbers(alone), strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    results = analysis.load(out)
    assert set(hosts(out)) == {"head", "b", "c", "d", "e"}
    assert (results.trials["outcome"] == "completed").all()
    storage = JournalStorage(JournalFileBackend(str(out / "optuna.journal")))
    trials = optuna.load_study(study_name="apart", storage=storage).trials
    assert len(trials) == 60
    assert {trial.state for trial in trials} == {optuna.trial.TrialState.COMPLETE}
    page = (out / "report" / "index.html").read_text()
    for told in ("node c (", "node d (", "node e (10.77.0.5) has joined", "was lost; the trial continues in another"):
        assert told in page, told


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_study_is_submitted_followed_and_fetched(nodes: Nodes, spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("trials = 60", "trials = 8").replace("epochs = 100", "epochs = 20"))
    nodes.start("head", "--include-dashboard=true", "--dashboard-host=127.0.0.1")
    nodes.start("b")
    # As through a tunnel: the job server listens on the head's loopback alone.
    out, here = tmp_path / "there" / "out", tmp_path / "here"
    here.mkdir()
    submit = [*STUDY, "submit", str(spec), "--address", "http://127.0.0.1:8265", "--out", str(out)]
    sent = nodes.process("head", submit, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = sent.communicate(timeout=300)
    assert sent.returncode == 0, said
    assert "8/8 trials" in said
    assert "results: results/apart" in said
    fetched = analysis.load(here / "results" / "apart")
    assert len(fetched.trials) == 8
    assert (here / "results" / "apart" / "report" / "index.html").exists()
    for mine, theirs in zip(numbers(out), numbers(here / "results" / "apart"), strict=True):
        pd.testing.assert_frame_equal(mine, theirs)

    again = nodes.process("head", submit, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    spec.write_text(spec.read_text().replace("epochs = 20", "epochs = 21"))
    other = nodes.process("head", submit, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 2, said
    assert "holds a study with a different budget.epochs" in said


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_what_is_wrong_with_a_cluster_is_told_before_anything_runs(nodes: Nodes, spec: Path, tmp_path: Path) -> None:
    nodes.start("head")
    nodes.start("b")

    def said(*command: str) -> tuple[int, str]:
        begun = time.monotonic()
        run = nodes.process("head", [*STUDY, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text, _ = run.communicate(timeout=120)
        assert time.monotonic() - begun < 60  # 30 s on a machine of its own
        return run.returncode, text

    there = ["--address", nodes.head]
    code, text = said("check", str(spec), *there, "--out", str(tmp_path / "out"))
    assert code == 0, text
    assert "node    b (10.77.0.2): 1 CPUs, 0 GPUs" in text
    assert "node    head (10.77.0.1)" in text

    # A folder that is the head's alone.
    code, text = said("run", str(spec), *there, "--out", str(nodes.folder / "mine"), "--quiet")
    assert code == 2, text
    assert "node b (10.77.0.2): cannot write into" in text
    assert "all nodes share (NFS)" in text

    spec.write_text(SPEC + "[resources]\ngpus_per_trial = 0.5\n")
    for command in ("check", "run"):
        code, text = said(command, str(spec), *there, "--out", str(tmp_path / "gpu"))
        assert code == 2, text
        assert "a trial takes 1 CPUs and 0.5 GPUs, the nodes have: " in text
        assert "b (10.77.0.2) 1 CPUs, 0 GPUs" in text
    assert not (tmp_path / "gpu").exists()


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_what_is_wrong_with_a_node_that_joins_is_told(nodes: Nodes, spec: Path, tmp_path: Path) -> None:
    nodes.start("head")
    out, said = nodes.folder / "mine", tmp_path / "said"  # a folder that is the head's alone
    with said.open("w") as log:
        command = [*STUDY, "run", str(spec), "--out", str(out), "--address", nodes.head, "--plain"]
        running = nodes.process("head", command, cwd=tmp_path, stdout=log, stderr=log)
        wait_for(lambda: "/60 trials" in said.read_text(), running)
        nodes.start("b")
        wait_for(lambda: f"node b (10.77.0.2): cannot write into {out}" in said.read_text(), running)
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(60) == 130, said.read_text()
    assert said.read_text().count("cannot write into") == 1


@pytest.mark.nightly
@pytest.mark.alone
def test_a_cluster_of_another_version_is_told(nodes: Nodes, spec: Path, tmp_path: Path) -> None:
    head = "import ray; ray.__version__ = '2.1.0'; from ray.scripts.scripts import main; main()"
    nodes.start("head", program=[sys.executable, "-c", head])
    run = nodes.process(
        "head",
        [*STUDY, "run", str(spec), "--address", nodes.head, "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    text, _ = run.communicate(timeout=120)
    assert run.returncode == 2, text
    assert "Version mismatch" in text
    assert "Ray: 2.1.0" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


README = Path(__file__).parents[1] / "README.md"
# What a user of both nodes has done before, which may have left a token in each home.
BEFORE = {
    "fresh": "true",
    "a study": "study run quick --trials 1 --epochs 1 --out used --quiet && ! ls .ray/auth_token",
    "a Ray": "python -c 'import ray; ray.init()' && ls .ray/auth_token",
}


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_the_cluster_of_the_readme_starts_from_any_home(before: str, nodes: Nodes, tmp_path: Path) -> None:
    """Its commands word for word, on two nodes with a home each."""
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL) if "ray start" in text]
    lines = [re.split(r"\s+# ?", line) for line in block.splitlines()]
    shells = {name: nodes.shell(name, tmp_path / name) for name in ("head", "b")}

    def do(name: str, command: str, code: int = 0) -> str:
        found, text = shells[name].type(f"({command}) </dev/null 2>&1" if "export" not in command else command)
        assert found == code, (name, command, text)
        assert "study" not in command or "Traceback" not in text
        return text

    for name in shells:
        do(name, before)
    said = ""
    for command, *comment in lines:
        said += do("head", command)
        if comment and comment[0].startswith("on every node"):
            do("b", command)
        elif comment and (elsewhere := comment[0].partition("on the other nodes: ")[2]):
            do("b", elsewhere.replace("HEAD", nodes.addresses["head"]))
        if " run " in command:
            # The token is enough for `study`, and without one it says what to do.
            there = f"study check quick --address {nodes.head} --out {tmp_path}"
            do("b", f"unset RAY_AUTH_MODE; {there}")
            assert "RAY_AUTH_TOKEN has another" in do("b", f"RAY_AUTH_TOKEN=other {there}", 2)
            refused = do("b", f"unset RAY_AUTH_MODE RAY_AUTH_TOKEN; HOME={tmp_path} {there}", 2)
            assert "the cluster asks for a token, and this machine has none; set RAY_AUTH_TOKEN" in refused
    assert "node    b (10.77.0.2)" in said
    assert "4/4 trials (4 completed)" in said


def listening() -> set[str]:
    """Addresses at which something of this machine listens, as hexadecimal numbers."""
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text().splitlines()]
    return {line[1] for line in lines if line[3] == "0A"}


LISTENING = """
import time
from study.cluster import ray
from study.spec import read
from tests.test_cluster import listening
before = listening()
with ray.connected(read("quick"), None):
    time.sleep(3)
    print(*(listening() - before))
"""


@pytest.mark.nightly
@pytest.mark.alone
def test_nothing_listens_beyond_loopback() -> None:
    found = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, check=True).stdout
    addresses = {address.split(":")[0] for address in found.split()}
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
    assert addresses


class OnTheProcessor(MLPTrainable):
    """A trial for a GPU that its node only says it has."""

    def setup(self, config: dict[str, Any]) -> None:
        super().setup({**config, "device": "cpu"})


class Together(OnTheProcessor):
    """One that begins when another worker runs one too."""

    def step(self) -> dict[str, Any]:
        there = Path(str(self.trial.data_folder))
        (there / f"worker-{os.getpid()}").touch()
        until = time.monotonic() + 100
        while len(list(there.glob("worker-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        return super().step()


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.parametrize(
    "resources", [{"gpus_per_trial": 0.5}, {"gpus_per_trial": "auto", "gpu_memory_gib": 2.0}], ids=["half", "auto"]
)
def test_trials_share_a_gpu(resources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own accounting: of one GPU two trials take half each, however many processors there are."""
    monkeypatch.setitem(trainables_tune.TRAINABLES, "mlp", Together)
    tables = tomllib.loads(SPEC.replace("epochs = 100", "epochs = 20")) | {"resources": resources}
    spec = with_values(check(tables), "budget", trials=4)
    ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        on = cluster.Cluster(spec.resources)
        outcome = run_session(spec, tmp_path / "out", tmp_path, on, "", show="quiet")
        assert on.resources.gpus_per_trial == 0.5
        assert on.room() == 2
    finally:
        ray.shutdown()
    assert outcome.scored == 4
    results = analysis.load(tmp_path / "out")
    trials = results.trials
    # What was left open still is: another session may have other GPUs.
    assert results.spec["resources"]["gpus_per_trial"] == resources["gpus_per_trial"]
    assert {stint["share"] for stints in trials["stints"] for stint in stints} == {0.5}
    assert re.search(r"cost .*CPU-(hours|minutes) and .*GPU-(hours|minutes)", status.status(tmp_path / "out"))
    ends = trials["started"] + trials["wall_seconds"]
    at_once = [int(((trials["started"] <= when) & (ends > when)).sum()) for when in trials["started"]]
    assert max(at_once) == 2
    assert {tuple(gpus) for gpus in trials["gpus"]} == {(f"{platform.node()}:0",)}


@pytest.mark.nightly
@pytest.mark.alone
def test_small_cells_leave_the_gpu_to_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trainables_tune.TRAINABLES, "mlp", OnTheProcessor)
    monkeypatch.setattr(packing, "SMALL_MULTIPLICATIONS", 1000)
    tables = tomllib.loads(SPEC.replace("epochs = 100", "epochs = 5"))
    ray.init(num_cpus=3, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        for name, resources in (("both", {"gpus_per_trial": 1, "cpu_nodes": True}), ("alike", {})):
            spec = with_values(check(tables | {"resources": resources}), "budget", trials=8)
            outcome = run_session(spec, tmp_path / name, tmp_path, cluster.Cluster(spec.resources), "", show="quiet")
            assert outcome.scored == 8
    finally:
        ray.shutdown()
    results = analysis.load(tmp_path / "both")
    trials, on_gpu = results.trials, results.trials["gpus"].str.len() == 1
    sizes, workload = trials[["width", "depth", "batch_size"]].to_numpy().tolist(), spec.workload
    small = [packing.small(builder(spec, w, d), workload.facts.in_shape, size) for w, d, size in sizes]
    assert [not given for given in on_gpu] == small
    assert 0 < on_gpu.sum() < 8
    for mine, theirs in zip(numbers(tmp_path / "both"), numbers(tmp_path / "alike"), strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    busy = analysis.busy(analysis.timeline(results))
    assert list(busy["name"]) == [platform.node(), f"{platform.node()} GPU 0"]
    assert list(busy["trials"]) == [8, on_gpu.sum()]


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_a_port_through_which_no_study_is_driven_is_told(
    address: str, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = invoked(monkeypatch, tmp_path, "run", str(spec), "--address", address)
    assert found.exit_code == 2
    assert "study submit" in found.stderr
    assert "Traceback" not in found.stderr


def test_submit_loses_nothing_of_the_users(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "results" / "apart"
    mine.mkdir(parents=True)
    (mine / "spec.toml").write_text("of another study")
    there = ["--address", "http://127.0.0.1:9", "--out"]
    found = invoked(monkeypatch, tmp_path, "submit", str(spec), *there, "/x")
    assert found.exit_code == 2
    assert "--to results/apart: 1 mistake\n  is not a copy of /x and would be replaced by one" in found.stderr
    (mine / "provenance.json").write_text('{"command": "study run spec.toml --resume --out /x --address auto"}')
    assert "no job server answers" in invoked(monkeypatch, tmp_path, "submit", str(spec), *there, "/x").stderr
    found = invoked(monkeypatch, tmp_path, "submit", str(spec), *there, "results/there")
    assert found.exit_code == 2
    assert "give an absolute path that all nodes share" in found.stderr
    assert "RAY_AUTH_MODE" not in os.environ  # a Ray that this process starts later would not be reached


def test_where_no_job_server_answers_is_told(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = invoked(monkeypatch, tmp_path, "submit", str(spec), "--address", "http://127.0.0.1:9", "--out", "/x")
    assert found.exit_code == 2
    assert "no job server answers" in found.stderr
    assert "ssh -L" in found.stderr


@pytest.mark.parametrize("damage", [lambda log: log[: len(log) // 2], lambda log: log.replace("A", "B")])
def test_fetch_replaces_a_copy_by_a_whole_one_alone(damage: Callable[[str], str], tmp_path: Path) -> None:
    there, to = tmp_path / "there", tmp_path / "results" / "copy"
    for folder, text in ((there, "new " * 5000), (to, "old")):
        folder.mkdir(parents=True)
        (folder / "spec.toml").write_text(text)
    pack = [sys.executable, "-c", submit._PACK, str(there)]
    whole = subprocess.run(pack, capture_output=True, text=True, check=True).stdout
    log = damage(whole)

    class Client:
        submit_job = staticmethod(lambda entrypoint: "job")
        get_job_info = staticmethod(lambda job: SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0))
        get_job_logs = staticmethod(lambda job: log)

    with pytest.raises(StorageError, match=r"did not arrive whole .* is left as it was; copy it by hand"):
        submit.fetch(Client(), str(there), to)
    assert (to / "spec.toml").read_text() == "old"
    log = whole
    submit.fetch(Client(), str(there), to)
    assert (to / "spec.toml").read_text() == "new " * 5000
    assert [each.name for each in to.parent.iterdir()] == ["copy"]
