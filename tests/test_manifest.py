"""Manifests: valid by the rules of those who read them, and run through to a finished study."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import tomlkit
import yaml
from click.testing import CliRunner

import analysis
from study.cli import main
from study.cluster import Kind
from study.cluster.manifest import Machine, label, render
from study.errors import UsageError
from study.spec import Spec, check
from tests.test_spec import changed

KINDS: tuple[Kind, ...] = get_args(Kind)
YAML_KINDS: tuple[Kind, ...] = ("kuberay", "ray-up")
SCHEMA = Path(__file__).parents[2] / "shared/reference/kuberay-rayjob-v1.schema.json"
BIN = Path(sys.executable).parent
RUN = "study run {spec} --resume --out {out} --address auto --wait 600 --plain"

# What somebody may type, or have typed for them.
EVIL_TEXT = (
    "a\nSPEC\ntouch pwned\n---\nkind: Evil\n\u2028x: y\u0085z: $(touch pwned) `touch pwned` {{ 7 * 7 }} 😀 \"'\\"
)
EVIL_PATH = """o 'u"t/$(touch pwned)/`touch pwned`;touch pwned #é: {x} \\ """


def spec_of(**changes: Any) -> Spec:
    return check(changed(**changes))


def documents(kind: Kind, spec: Spec, **options: Any) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(kind, spec, **options)))


def strict(schema: Any) -> Any:
    """A schema in which a field that it does not name is a mistake; Kubernetes would drop it in silence."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and "type" in found and "additionalProperties" not in found:
        found["additionalProperties"] = False
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out", [None, "s3://bucket/studies/good"])
def test_every_manifest_ends_in_the_same_run(kind: Kind, out: str | None) -> None:
    text = render(kind, spec_of(), out=out)
    files = {"slurm": '"$own/spec.toml"', "kuberay": "/study/spec.toml", "ray-up": "/home/ubuntu/spec.toml"}
    results = out or ("results/good" if kind == "slurm" else "/results/good")
    assert text.count(RUN.format(spec=files[kind], out=results)) == 1
    assert "PersistentVolumeClaim" not in text or out is None
    assert ("/results" in text) == (out is None and kind != "slurm")


@pytest.mark.parametrize("kind", KINDS)
def test_the_resources_of_the_spec_arrive(kind: Kind) -> None:
    spec = spec_of(resources={"cpus_per_trial": 3, "gpus_per_trial": 0.25})
    text = render(kind, spec, nodes=5)
    assert "cpus_per_trial = 3, gpus_per_trial = 0.25" in text
    if kind == "slurm":
        assert {"#SBATCH --nodes=5", "#SBATCH --cpus-per-task=12", "#SBATCH --gpus-per-node=1"} <= set(text.split("\n"))
        assert "--num-cpus 12 --num-gpus 1 --" in text
        return
    last = list(yaml.safe_load_all(text))[-1]
    if kind == "kuberay":
        group = last["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        assert (group["replicas"], group["maxReplicas"]) == (5, 5)
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"] == {"cpu": "12", "memory": "24Gi", "nvidia.com/gpu": "1"}
        assert resources["requests"] == resources["limits"]
    else:
        trials = last["available_node_types"]["trials"]
        assert (trials["min_workers"], trials["max_workers"], last["max_workers"]) == (5, 5, 5)
        assert trials["resources"] == {"CPU": 16, "GPU": 1}
        assert trials["node_config"]["InstanceType"] == "g6.4xlarge"


@pytest.mark.parametrize("kind", KINDS)
def test_without_gpus_none_is_asked_for(kind: Kind) -> None:
    text = render(kind, spec_of(resources={"cpus_per_trial": 3}))
    assert "nvidia" not in text
    assert "gpus-per-node" not in text
    assert "GPU:" not in text
    assert re.search(r"cpus-per-task=9\n|cpu: \"9\"[,\n]|CPU: 16\b", text)  # whole trials, 8 CPUs or more


@pytest.mark.parametrize("gpus", [1.0, 2.0, 8.0, 0.5])
def test_a_trial_fits_on_the_default_node(gpus: float) -> None:
    spec = spec_of(resources={"cpus_per_trial": 2, "gpus_per_trial": gpus})
    for kind in KINDS:
        render(kind, spec)
    machine = documents("ray-up", spec)[0]["available_node_types"]["trials"]
    assert machine["resources"]["GPU"] >= gpus
    assert machine["resources"]["CPU"] >= 2


def test_small_cells_on_cpus_keep_no_gpu_from_work() -> None:
    for beside, cpus in ((False, 8), (True, 16)):
        resources = {"cpus_per_trial": 2, "gpus_per_trial": 0.5, "cpu_nodes": beside}
        assert f"cpus-per-task={cpus}\n" in render("slurm", spec_of(resources=resources), gpus_per_node=2)
    # But no machine is rented that has more GPUs, and none is asked for that there is not.
    spec = spec_of(resources={"cpus_per_trial": 2, "gpus_per_trial": "auto", "cpu_nodes": True})
    for gpus in (4, 8):
        machine = documents("ray-up", spec, gpus_per_node=gpus)[0]["available_node_types"]["trials"]
        assert machine["resources"]["GPU"] == gpus


@pytest.mark.parametrize(
    ("cpus", "gpus", "name"),
    [(1, 0, "m7i.large"), (3, 0, "m7i.xlarge"), (9, 0, "m7i.4xlarge"), (4, 1, "g6.xlarge"), (65, 1, "g6.24xlarge")],
)
def test_machine_smallest_has_the_fewest_gpus_then_cpus(cpus: int, gpus: int, name: str) -> None:
    machine = Machine.smallest(cpus, gpus)
    assert machine
    assert machine.name == name


@pytest.mark.parametrize("gpus", [0.0, 0.5])
@pytest.mark.parametrize("out", [None, "gs://bucket/x"])
@pytest.mark.parametrize("image", [None, "registry.example/team/study@sha256:0a"])
def test_the_rayjob_fits_the_schema_of_kuberay(gpus: float, out: str | None, image: str | None) -> None:
    if not SCHEMA.is_file():
        pytest.skip("the schema of KubeRay's RayJob is not beside the project, in ../shared/reference")
    found = documents("kuberay", spec_of(resources={"gpus_per_trial": gpus}), out=out, image=image)
    assert [each["kind"] for each in found] == ["ConfigMap", *["PersistentVolumeClaim"] * (not out), "RayJob"]
    job, schema = found[-1], json.loads(SCHEMA.read_text())
    assert (job["apiVersion"], job["kind"]) == (schema["apiVersion"], schema["kind"])
    validator = jsonschema.Draft202012Validator(strict(schema["openAPIV3Schema"]))
    validator.validate(job)
    assert not validator.is_valid(job | {"spec": job["spec"] | {"ttlSecondsAfterFinish": 1}})  # the check checks


@pytest.mark.parametrize("gpus", [0.0, 2.0])
@pytest.mark.parametrize("out", [None, "s3://bucket/x"])
def test_the_cluster_file_passes_rays_own_validation(gpus: float, out: str | None) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(documents("ray-up", spec_of(resources={"gpus_per_trial": gpus}), out=out)[0])
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]
    assert config["worker_setup_commands"][: len(config["setup_commands"])] == config["setup_commands"]
    import ray

    assert any(f"'ray[default]'=={ray.__version__}" in command for command in config["setup_commands"])
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands"):
        for command in config[commands]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def shell_check(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    command = [str(BIN / "shellcheck"), "--shell=bash", "-"]
    found = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("gpus", [0.0, 0.5])
@pytest.mark.parametrize("description", ["plain", EVIL_TEXT], ids=["plain", "evil"])
def test_shellcheck_has_nothing_to_say(gpus: float, description: str) -> None:
    spec = spec_of(description=description, resources={"gpus_per_trial": gpus})
    shell_check(render("slurm", spec))
    shell_check(render("slurm", spec, out=EVIL_PATH))
    scripts = documents("kuberay", spec, out="/results/x y")[0]["data"]
    shell_check(scripts["run.sh"])
    shell_check(scripts["stop.sh"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist-cnn", "mnist-cnn"),
        ("MNIST_cnn.v2", "mnist-cnn-v2"),
        ("1e-3", "study-1e-3"),
        ("x" + "-" * 79, "x"),
        ("A" * 80, "a" * 47),
        ("9" * 40 + "." * 39 + "9", "study-" + "9" * 40),
    ],
)
def test_names_are_names_in_kubernetes(name: str, expected: str) -> None:
    assert label(name) == expected
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", label(name))
    for document in documents("kuberay", spec_of(name=name)):
        assert document["metadata"]["name"] == expected


@pytest.mark.parametrize("kind", YAML_KINDS)
def test_evil_texts_stay_texts_in_yaml(kind: Kind) -> None:
    spec, out = spec_of(description=EVIL_TEXT), f"/results/{EVIL_PATH}"
    plain = documents(kind, spec_of())
    found = documents(kind, spec, out=out, source=EVIL_PATH)
    assert [sorted(each) for each in found] == [sorted(each) for each in plain]
    if kind == "kuberay":
        data = found[0]["data"]
        assert tomlkit.parse(data["spec.toml"]).unwrap() == tomlkit.parse(spec.to_toml()).unwrap()
        words = shlex.split(data["run.sh"].splitlines()[-1])
    else:
        text = render(kind, spec, out=out, source=EVIL_PATH)
        (line,) = [line for line in text.splitlines() if "ray exec --tmux" in line]
        words = shlex.split(shlex.split(line.lstrip("# "))[-1])
        (line,) = [line for line in text.splitlines() if "ray rsync-up" in line]
        assert shlex.split(line.lstrip("# "))[3] == EVIL_PATH
        assert found == plain
    assert words[words.index("--out") + 1] == out


def test_a_shipped_spec_is_not_sent_to_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = render("ray-up", spec_of(), source="quick")
    assert "rsync-up" not in text
    assert RUN.format(spec="quick", out="/results/good") in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_prints_the_manifest_and_nothing_else(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.toml").write_text(tomlkit.dumps(changed()))
    found = CliRunner().invoke(main, ["manifest", kind, "good.toml", "--nodes", "3", "--cpus-per-node", "4"])
    assert found.exit_code == 0, found.stderr
    assert found.stdout == render(kind, spec_of(), source="good.toml", nodes=3, cpus_per_node=4)
    assert found.stderr == ""


BAD = [
    (["slurm", "--time", "1 day"], "--time '1 day': must be HH:MM:SS, as in 24:00:00"),
    (["slurm", "--time", "00:05:00"], "--time 00:05:00: too short"),
    (["slurm", "--image", "x"], "--image x: does not apply to slurm; leave it out"),
    (["ray-up", "--time", "24:00:00"], "--time 24:00:00: does not apply to ray-up; leave it out"),
    (["kuberay", "--gpus-per-node", "0"], "--gpus-per-node 0: a trial takes 0.5; give 1 or more"),
    (["slurm", "--cpus-per-node", "1"], "--cpus-per-node 1: a trial takes 2; give 2 or more"),
    (["ray-up", "--cpus-per-node", "500"], "no machine has as many"),
    (["kuberay", "--out", "results/x"], "--out 'results/x': the nodes share the folder /results alone"),
    (["kuberay", "--out", "/results/../etc"], "valid: /results/NAME"),
    (["ray-up", "--out", "/results"], "valid: /results/NAME"),
    (["slurm", "--out", "a\nb"], "must be a path or a URI, without control characters"),
    (["kuberay", "--image", "x: {y"], "--image 'x: {y': must be letters"),
    (["slurm", "--nodes", "0"], "--nodes"),
    (["pbs"], "pbs"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(each[0]) for each in BAD])
def test_bad_options_are_one_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = changed(resources={"cpus_per_trial": 2, "gpus_per_trial": 0.5})
    Path("good.toml").write_text(tomlkit.dumps(tables))
    found = CliRunner().invoke(main, ["manifest", arguments[0], "good.toml", *arguments[1:]])
    assert found.exit_code == 2
    assert found.stdout == ""
    assert message in found.stderr


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as told:
        render("kuberay", spec_of(), out="x", time="1", image="", cpus_per_node=0)
    assert len(told.value.mistakes) == 4


class Slurm:
    """A Slurm of one node in a folder: `srun` runs its command, `scontrol` notes what is put back into the queue."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "programs"
        self.programs.mkdir()
        self.running: list[subprocess.Popen[str]] = []
        self.program("srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
        self.program("scontrol", 'if [ "$1" = show ]; then hostname; else echo "$@" >>requeued; fi')

    def program(self, name: str, text: str) -> None:
        file = self.programs / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)

    def start(self, script: str, *apart: str, **environment: str) -> subprocess.Popen[str]:
        """Run a script, by way of the command `apart` if there is one."""
        (self.folder / "job.sh").write_text(script)
        given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1"}
        paths = os.pathsep.join([str(self.programs), str(BIN), os.environ["PATH"]])
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        with (self.folder / "said").open("a") as log:
            running = subprocess.Popen(
                [*apart, "bash", "job.sh"],
                cwd=self.folder,
                env={**os.environ, **given, **environment, "PATH": paths, "TMPDIR": str(temporary)},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.running.append(running)
        return running

    def end(self) -> None:
        """Leave nothing running after a test that failed."""
        for running in self.running:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().splitlines() if file.is_file() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    made = Slurm(tmp_path)
    yield made
    made.end()


# A `ray symmetric-run` that runs its command, as the real one on the head, and dies of signals as that does.
FAKE_RAY = 'while [ "$1" != -- ]; do shift; done; shift; "$@"'
# A `study` that is saved by a signal.
FAKE_STUDY = """
printf '%s\\n' "$@" >arguments; cp "$2" spec.toml
trap 'sleep 1; echo saved; exit 130' USR1
touch started; while [ -e started ]; do sleep 0.1; done
"""


def wait_for(
    what: Callable[[], bool], running: subprocess.Popen[str], seconds: float = 120, said: Callable[[], str] = str
) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert running.poll() is None, f"ended with {running.returncode}: {said()}"
        assert time.monotonic() < until
        time.sleep(0.1)


def test_evil_texts_stay_texts_in_the_shell(slurm: Slurm) -> None:
    slurm.program("ray", FAKE_RAY)
    slurm.program("study", FAKE_STUDY.replace("touch started;", ""))
    spec = spec_of(description=EVIL_TEXT)
    running = slurm.start(render("slurm", spec, out=EVIL_PATH))
    assert running.wait(20) == 0, slurm.said
    arguments = (slurm.folder / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--out") + 1] == EVIL_PATH
    assert (slurm.folder / "spec.toml").read_text() == spec.to_toml()
    assert not (slurm.folder / "pwned").exists()
    assert not list((slurm.folder / "tmp").glob("tmp.*"))


def test_the_signal_of_slurm_reaches_the_study_and_the_job_is_put_back(slurm: Slurm) -> None:
    slurm.program("ray", FAKE_RAY)
    slurm.program("study", FAKE_STUDY)
    running = slurm.start(render("slurm", spec_of()))
    wait_for((slurm.folder / "started").exists, running, 20)
    running.send_signal(signal.SIGUSR1)
    assert running.wait(20) == 130, slurm.said
    assert "saved" in slurm.said
    assert slurm.requeued == ["requeue 7"]


def test_a_job_that_is_ended_by_hand_saves_and_stays_out_of_the_queue(slurm: Slurm) -> None:
    slurm.program("ray", FAKE_RAY)
    slurm.program("study", FAKE_STUDY)
    running = slurm.start(render("slurm", spec_of()))
    wait_for((slurm.folder / "started").exists, running, 20)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 130, slurm.said
    assert "saved" in slurm.said
    assert slurm.requeued == []


def test_a_signal_before_the_study_has_started_puts_the_job_back(slurm: Slurm) -> None:
    slurm.program("ray", "touch waiting; exec sleep 60")
    slurm.program("study", FAKE_STUDY)
    running = slurm.start(render("slurm", spec_of()))
    wait_for((slurm.folder / "waiting").exists, running, 20)
    running.send_signal(signal.SIGUSR1)
    assert running.wait(20) == 1, slurm.said
    assert slurm.requeued == ["requeue 7"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_job_ends_as_the_study_does(code: int, slurm: Slurm) -> None:
    slurm.program("ray", FAKE_RAY)
    slurm.program("study", f"exit {code}")
    assert slurm.start(render("slurm", spec_of())).wait(20) == code
    assert slurm.requeued == []


def test_a_ray_that_does_not_start_is_no_success(slurm: Slurm) -> None:
    slurm.program("ray", "echo 'Failed to start Ray'")  # and ends with 0, as `ray symmetric-run` does
    slurm.program("study", FAKE_STUDY)
    assert slurm.start(render("slurm", spec_of())).wait(20) == 1
    assert "the study did not start on" in slurm.said


def test_a_pod_that_has_to_go_waits_until_the_study_has_saved(slurm: Slurm, tmp_path: Path) -> None:
    slurm.program("study", FAKE_STUDY.replace("USR1", "TERM").replace("echo saved", "touch saved"))
    (tmp_path / "spec.toml").touch()
    for name, text in documents("kuberay", spec_of())[0]["data"].items():
        here = text.replace("/study/", f"{tmp_path}/").replace("/tmp/study.pid", f"{tmp_path}/study.pid")
        (tmp_path / name).write_text(here)
    environment = {**os.environ, "PATH": f"{slurm.programs}{os.pathsep}{os.environ['PATH']}"}
    stop = ["bash", "stop.sh"]
    subprocess.run(stop, cwd=tmp_path, check=True, timeout=20)  # nothing has started yet
    running = subprocess.Popen(["bash", "run.sh"], cwd=tmp_path, env=environment, text=True)
    wait_for((tmp_path / "started").exists, running, 20)
    stopping = subprocess.Popen(stop, cwd=tmp_path)
    assert running.wait(20) == 130
    assert stopping.wait(20) == 0
    assert (tmp_path / "saved").exists()
    subprocess.run(stop, cwd=tmp_path, check=True, timeout=20)  # nothing runs any more


# A machine of its own: `ray symmetric-run` wants to be the only Ray, and ends by stopping every Ray process it can see.
APART = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
WIRED = """
set -e
ip link set lo up
ip link add wire type veth peer name end
ip addr add 10.78.0.1/24 dev wire
ip link set wire up
ip link set end up
exec "$@"
"""


# Runs its command on this node and on another one, at the other end of the wire; ends as the first does.
TWO_NODES = """
while [[ "$1" == --* ]]; do shift; done
unshare --net --pid --fork --mount-proc --kill-child bash -ec '
  until ip addr add 10.78.0.2/24 dev end 2>/dev/null; do sleep 0.1; done
  ip link set lo up
  ip link set end up
  exec "$@"' bash "$@" &
other=$!
until process=$(pgrep --parent "$other"); do sleep 0.1; done
ip link set end netns "$process"
code=0
"$@" || code=$?
wait "$other"
exit "$code"
"""


def inside(running: subprocess.Popen[str]) -> int:
    """The process that `unshare` has started."""
    return int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[0])


@pytest.fixture
def ray_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp") as folder:  # Ray's sockets need a short path
        yield folder


@pytest.mark.nightly
@pytest.mark.alone  # two nodes of Ray that start beside another test may take longer than Ray waits for them
@pytest.mark.timeout(900)
def test_the_slurm_script_runs_a_study_on_two_nodes_is_interrupted_and_finishes(slurm: Slurm, ray_folder: str) -> None:
    apart = [*APART, "sh", "-c", WIRED, "sh"]
    possible = (
        subprocess.run([*apart, "true"], capture_output=True, text=True, check=False)
        if shutil.which(APART[0])
        else None
    )
    if possible is None or possible.returncode:
        pytest.skip(f"cannot make namespaces: {possible.stderr.strip() if possible else 'no program unshare'}")
    spec = spec_of(
        name="on-slurm",
        workload={"data": "linear", "model": "linear", "target": 0.1},
        search={"batch_size": [1, 8, 32, "full"], "optimizer": ["sgd", "momentum", "adam"]},
        lanes={"rates": 3, "seeds": 2, "extensions": 0, "refine": 0},
        budget={"trials": 12, "epochs": 150},
        tuning={"sampler": "grid", "scheduler": "none"},
        recording={"checkpoint_seconds": 0.2},
    )
    slurm.program("srun", TWO_NODES)
    script = render("slurm", spec, nodes=2, cpus_per_node=1)
    out = slurm.folder / "results/on-slurm"

    def ended() -> int:
        try:
            return len(analysis.load(out).trials)
        except (analysis.ResultsError, OSError):
            return 0

    running = slurm.start(script, *apart, RAY_TMPDIR=ray_folder, SLURM_JOB_NUM_NODES="2")
    wait_for(lambda: ended() >= 2, running, 300, lambda: slurm.said)
    os.kill(inside(running), signal.SIGUSR1)
    assert running.wait(120) == 130, slurm.said
    assert slurm.requeued == ["requeue 7"]
    first = set(analysis.load(out).trials.query("outcome == 'completed'")["trial"])
    assert 0 < len(first) < 12

    assert slurm.start(script, *apart, RAY_TMPDIR=ray_folder, SLURM_JOB_NUM_NODES="2").wait(300) == 0, slurm.said
    trials = analysis.load(out).trials
    assert len(trials) == 12
    assert set(trials["outcome"]) == {"completed"}
    assert len(set(trials["worker"])) > 1
    assert (out / "report/index.html").is_file()
    sessions = json.loads((out / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert "10.78.0.2" in slurm.said
    assert "0.0.0.0" not in slurm.said
    assert slurm.requeued == ["requeue 7"]
    assert not list((slurm.folder / "tmp").glob("tmp.*"))
