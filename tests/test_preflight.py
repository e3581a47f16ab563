"""What is wrong with a cluster's nodes, from what they say of themselves."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import tomlkit
from click.testing import CliRunner, Result
from ray._private import ray_constants

from study import api, plan
from study.cli import main
from study.cluster import nodes as preflight
from study.cluster import ray as cluster
from study.cluster.nodes import Node
from study.cluster.ray import Cluster
from study.errors import ClusterError
from study.spec import Spec, check
from study.spec.model import Resources
from tests.processes import said, started
from tests.test_spec import changed

HERE = {package: importlib.metadata.version(package) for package in preflight.PACKAGES}
FIT = Node("a (10.0.0.1)", {"CPU": 4.0}, HERE, free_bytes=8 << 30)
NFS = Path("/nfs/out")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"versions": {**HERE, "torch": "1.0"}},
            f"has torch 1.0, here it is {HERE['torch']}; results would differ; install the same version everywhere",
        ),
        ({"versions": {**HERE, "numpy": ""}}, f"has no numpy; install numpy {HERE['numpy']} there"),
        ({"ahead_seconds": 90.0}, "its clock is 90 s ahead; set it by NTP"),
        ({"ahead_seconds": -7.0}, "its clock is 7 s behind; set it by NTP"),
        (
            {"missing": {"own": "ModuleNotFoundError: No module named 'timm'"}},
            "cannot import own (ModuleNotFoundError: No module named 'timm'); install what it needs there",
        ),
        ({"sees": False}, "cannot write into /nfs/out; give a folder that all nodes share (NFS) with --out"),
        # Of one that is silent nothing else is known.
        (
            {"problem": "has not answered within 20 s; look at its logs", "versions": {}, "sees": False},
            "has not answered within 20 s; look at its logs",
        ),
    ],
)
def test_each_mistake_is_one_message_that_names_the_node(wrong: dict[str, Any], told: str) -> None:
    assert preflight.mistakes([FIT], NFS) == []
    unfit = replace(FIT, name="b (10.0.0.2)", **wrong)
    assert preflight.mistakes([FIT, unfit], NFS) == [f"node b (10.0.0.2): {told}"]


def test_too_little_memory_is_one_message_that_names_the_node() -> None:
    assert "4 trials at once" in preflight.describe(Resources(), [FIT], 2 << 30)
    with pytest.raises(ClusterError) as told:
        preflight.describe(Resources(), [FIT, replace(FIT, name="b (10.0.0.2)", free_bytes=3 << 30)], 1 << 30)
    assert told.value.mistakes == [
        "node b (10.0.0.2): 4 trials at once take 4.0 GiB, 3.0 GiB are free; raise resources.cpus_per_trial"
    ]


def test_trials_at_once_are_told_on_gpus_and_in_all() -> None:
    both = [replace(FIT, resources={"CPU": 16.0, "GPU": 1.0, "accelerator_type:H100": 1.0}), FIT]
    told = preflight.describe(Resources(gpus_per_trial=0.5, cpu_nodes=True), both, 0).splitlines()
    assert "16 CPUs, 1 GPUs (H100), 8.0 GiB free, trials at once: 2 on GPUs, up to 16 in all" in told[0]
    assert "4 CPUs, 0 GPUs, 8.0 GiB free, 4 small trials at once" in told[1]
    told = preflight.describe(Resources(gpus_per_trial=0.5), both, 0).splitlines()
    assert [line.split(", ")[-1] for line in told] == ["2 trials at once", "0 trials at once"]


def test_small_cells_may_fill_a_nodes_cpus_and_need_its_memory(
    there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probed(spec: Spec) -> list[plan.Probe]:
        """Of a small cell that takes 1 GiB, and a large one that takes 100."""
        return [plan.Probe(8, 1, 1.0, memory << 30, "eager", 6, small) for memory, small in ((1, True), (100, False))]

    monkeypatch.setattr(plan, "probed", probed)
    found = checked(tmp_path, resources={"gpus_per_trial": 0.5})
    assert found.exit_code == 0, found.output
    found = checked(tmp_path, resources={"gpus_per_trial": 0.5, "cpu_nodes": True})
    assert found.exit_code == 2, found.output
    assert "a (10.0.0.1): 16 trials at once take 16.0 GiB, 8.0 GiB are free; raise" in found.output


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster at every address, of one node with a GPU of two GiB."""

    @contextmanager
    def connected(spec: Spec, address: str, bundle: Path | None) -> Iterator[Cluster]:
        yield Cluster(Resources())

    monkeypatch.setattr(preflight, "gpu_bytes", lambda: 2 << 30)
    monkeypatch.setattr(cluster, "reach", lambda address: None)
    monkeypatch.setattr(cluster, "connected", connected)
    node = replace(FIT, resources={"CPU": 16.0, "GPU": 1.0})
    monkeypatch.setattr(preflight, "survey", lambda *of: [node])


def checked(folder: Path, **tables: Any) -> Result:
    file = folder / "spec.toml"
    file.write_text(tomlkit.dumps(changed(workload={"data": "linear", "model": "mlp"}, **tables)))
    return CliRunner().invoke(main, ["check", str(file), "--address", "a:6379", "--out", str(folder)])


def test_check_asks_how_many_trials_share_a_gpu_as_run_does(
    there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checked(tmp_path, resources={"gpus_per_trial": "auto"})
    assert found.exit_code == 0, found.output
    assert "1 GPUs, 8.0 GiB free, 2 trials at once" in found.output
    monkeypatch.setattr(preflight, "gpu_bytes", lambda: 0)
    found = checked(tmp_path, resources={"gpus_per_trial": "auto"})
    assert found.exit_code == 2
    assert "no GPU here tells how much memory it has; set resources.gpu_memory_gib" in found.output


def test_check_tells_what_is_wrong_with_the_cluster_before_it_measures(
    there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "survey", lambda *of: [replace(FIT, sees=False)])
    monkeypatch.setattr(plan, "probed", lambda spec: pytest.fail("measured first"))
    found = checked(tmp_path)
    assert found.exit_code == 2, found.output
    assert "node a (10.0.0.1): cannot write into" in found.output


def test_a_node_that_joins_is_looked_over_and_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said, asked, nodes = [], [], {name: ray_node(name, CPU=1.0) | {"NodeID": name} for name in "abc"}
    nodes["head"] = ray_node("head") | {"NodeID": "head"}  # on which no trial is to run

    def look_over(node: dict[str, Any]) -> Iterator[list[str] | None]:
        asked.append(node["NodeID"])
        yield from (None, [f"node {node['NodeID']}: has no torch; install it"])

    def look(*there: str) -> list[str]:
        monkeypatch.setattr(ray, "nodes", lambda: [nodes[name] for name in there])
        said.clear()
        on.look()
        return sorted(said)

    monkeypatch.setattr(cluster, "LOOK_SECONDS", -1.0)

    def note(kind: str, text: str) -> None:
        said.append(f"{kind}: {text}")
        assert kind != "node joined" or {"b", "c"} <= on.seen.keys()  # what is kept then has them

    on = Cluster(Resources(), note=note, look_over=look_over)
    assert look("a", "head") == []
    assert look("a", "head", "b", "c") == [
        "node joined: node b (10.0.0.1) has joined",
        "node joined: node c (10.0.0.1) has joined",
    ]
    assert look("a", "head", "b") == [
        "node lost: node c (10.0.0.1) is gone",
        "node unfit: node b: has no torch; install it; the study uses this node nevertheless",
    ]
    assert look("a", "head", "b") == []
    assert sorted(asked) == ["b", "c"]
    assert on.seen == {"a": 0, "b": 0, "c": 0}


def ray_node(name: str, **resources: float) -> dict[str, Any]:
    """As `ray.nodes()` tells of one."""
    return {"NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1", "Resources": resources, "Alive": True}


def test_a_cluster_without_gpus_is_told_with_its_nodes() -> None:
    told = cluster._too_small(Resources(gpus_per_trial=0.5), [ray_node("a", CPU=4.0)])
    assert told == (
        "a trial takes 1 CPUs and 0.5 GPUs, the nodes have: a (10.0.0.1) 4 CPUs, 0 GPUs; "
        "lower resources.cpus_per_trial or resources.gpus_per_trial"
    )
    told = cluster._too_small(Resources(gpus_per_trial=1, cpu_nodes=True), [ray_node("a", CPU=4.0)])
    assert told == (
        "resources.cpu_nodes serves small cells alone, and a trial of a large one takes 1 CPUs and 1 GPUs, "
        "the nodes have: a (10.0.0.1) 4 CPUs, 0 GPUs; "
        "add a node that has as much, or lower resources.cpus_per_trial or resources.gpus_per_trial"
    )


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray of one node, and modules: one takes its time, one never ends, one lacks what it needs."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "slow.py").write_text("import time\ntime.sleep(6)\n")
    (folder / "stuck.py").write_text("import time\ntime.sleep(600)\n")
    (folder / "broken.py").write_text("import nowhere\n")
    with cluster.connected(check(changed()), None):
        yield folder


@pytest.mark.long
def test_users_modules_may_take_longer_than_an_answer(
    ray_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight.survey(tmp_path)  # so that there are workers
    monkeypatch.setattr(preflight, "ANSWER_SECONDS", 4.0)
    (node,) = preflight.survey(tmp_path, ["slow"], ray_here)
    assert preflight.mistakes([node], tmp_path) == []
    assert node.versions == HERE
    assert not list(tmp_path.iterdir())
    (node,) = preflight.survey(tmp_path, ["broken"], ray_here)
    assert node.missing == {"broken": "ModuleNotFoundError: No module named 'nowhere'"}
    monkeypatch.setattr(preflight, "IMPORT_SECONDS", 1.0)
    (node,) = preflight.survey(tmp_path, ["stuck"], ray_here)
    assert node.problem.startswith("has not imported stuck within 1 s; look at its logs")


def test_what_is_wrong_without_modules_is_told_before_they_are_asked_for(
    ray_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "CLOCK_SECONDS", -1.0)
    (node,) = preflight.survey(tmp_path, ["broken"], ray_here)
    assert not node.missing
    assert len(preflight.mistakes([node], tmp_path)) == 1


@pytest.mark.long
def test_a_node_that_joins_is_asked_without_waiting_for_it(
    ray_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = Cluster(Resources(), joined=True)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(preflight, "fit_nodes", lambda *of: [])
    api.check_nodes(on, check(changed()), tmp_path / "out")
    preflight.survey(tmp_path)  # so that there are workers
    monkeypatch.setattr(preflight, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(preflight, "CLOCK_SECONDS", 1.0)
    for there in (False, True):
        if there:
            (tmp_path / "out/spec.toml").touch()
        begun = time.monotonic()
        answers = on.look_over(ray.nodes()[0])
        assert next(answers) is None
        assert time.monotonic() - begun < 2
        time.sleep(3)  # The driver has something else to do: neither a silent node nor a clock that is behind.
        found = next(mistakes for mistakes in answers if mistakes is not None)
        assert ("cannot write into" in "".join(found)) is not there
        assert len(found) == int(not there)


def test_ray_that_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def start(**_: Any) -> None:
        tries.append(1)
        if len(tries) < needed:
            raise Exception("The current node timed out during startup.\nAnd more")

    monkeypatch.setattr(ray, "init", start)
    needed = 3
    cluster._start("", {})
    assert len(tries) == 3
    tries.clear()
    needed = 9
    with pytest.raises(ClusterError, match=r"did not start here in 3 tries \(The current node timed out during"):
        cluster._start("", {})
    tries.clear()
    with pytest.raises(ClusterError, match="The current node timed out during startup"):
        cluster._start("other:6379", {})
    assert len(tries) == 1


def test_a_study_that_has_ended_leaves_rays_switches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray start --address`, called by the same process afterwards, must not be kept on this machine."""

    def start(*_: Any) -> None:
        seen.append((os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"], ray_constants.ENABLE_RAY_CLUSTER))
        raise ClusterError("ray", "did not start")

    seen = list[tuple[str, bool]]()
    monkeypatch.setattr(cluster, "_start", start)
    with suppress(ClusterError), cluster.connected(check(changed()), None):
        pass  # which sets what stays
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    before = dict(os.environ)
    with pytest.raises(ClusterError), cluster.connected(check(changed()), None):
        pass
    assert seen[-1] == ("0", False)
    assert (dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER) == (before, True)


def test_a_ray_of_this_machine_alone_whatever_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """RAY_ADDRESS and a token of an earlier Ray are left as they are; long folders are replaced."""
    asked: list[dict[str, Any]] = []

    def start(**options: Any) -> None:
        asked.append(options | {"token": os.environ.get("RAY_AUTH_TOKEN")})

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.Cluster, "fits", lambda self: 1)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for root in ("/tmp", "/tmp/" + 55 * "x"):
        monkeypatch.setenv("RAY_TMPDIR", root)
        with cluster.connected(check(changed()), None):
            folder = asked[-1].get("_temp_dir")
            assert (folder is None) == (len(root) < 60)
            assert folder is None or Path(folder).is_dir()
        assert folder is None or not Path(folder).exists()
        assert asked[-1]["address"] == "local"
        assert len(asked[-1]["token"]) == 64
        assert "RAY_AUTH_TOKEN" not in os.environ
    said = capsys.readouterr().err
    assert said.startswith(f"study: /tmp/{55 * 'x'}/ray is too long for Ray's sockets; it uses /tmp/ray-")
    (tmp_path / "missing/.ray").mkdir(parents=True)
    (tmp_path / "missing/.ray/auth_token").write_text("known")
    with cluster.connected(check(changed()), None):
        assert asked[-1]["token"] == "known"


@pytest.mark.long
@pytest.mark.usefixtures("one_worker")
def test_a_study_starts_in_an_unfriendly_environment(tmp_path: Path) -> None:
    """A long temporary folder, a cluster that is gone, and no home."""
    long = tmp_path / ("x" * 60)
    (long / "ray").mkdir(parents=True)
    (long / "ray/ray_current_cluster").write_text("127.0.0.1:9")
    home = tmp_path / "home"
    environment = {"RAY_TMPDIR": str(long), "RAY_ADDRESS": "127.0.0.1:9", "HOME": str(home)}
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(changed(budget={"trials": 1, "updates": 2}, confirm=False)))
    assert started(tmp_path, "run", "spec.toml", **environment).wait(200) == 0, said(tmp_path)
    assert "is too long for Ray's sockets; it uses /tmp/ray-" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert not (home / ".ray/auth_token").exists()
