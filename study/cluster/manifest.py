"""Renders the manifest of a study: a Slurm script, a KubeRay RayJob, or a cluster file for `ray up`.

All end in the same `study run --resume`, which starts the study or resumes it. So a job that is started again, by hand
or by the cluster, resumes.
"""

from __future__ import annotations

import math
import platform
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study.cluster import Kind
from study.errors import UsageError
from study.spec import SHIPPED, Spec
from study.spec.init import template

# Options that a kind does not have.
UNUSED: dict[Kind, tuple[str, ...]] = {"slurm": ("image",), "kuberay": (), "ray-up": ("time",)}
# Seconds between a warning and the end of a Slurm job: enough for a study to save and for Ray to stop.
WARNING_SECONDS = 180
SHORTEST_SECONDS = 600
# Seconds that `study run` waits for a node on which a trial fits, while images are pulled and machines start.
NODE_SECONDS = 600
DEFAULT_TIME = "24:00:00"
# The folder that nodes share, where the manifest makes one.
SHARED = "/results"
# KubeRay refuses longer names.
_NAME_LENGTH = 47
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^/]+/?.*")
# Results depend on these, and Ray refuses nodes of another version, so they are the same everywhere.
PINNED = ("ray", "torch", "torchvision", "optuna", "numpy")
# GPUs -> CPUs of the EC2 machines that have them: m7i without GPUs, g6 with L4 GPUs.
MACHINES = {0: (2, 4, 8, 16, 32, 48, 64, 96, 192), 1: (4, 8, 16, 32, 64), 4: (48, 96), 8: (192,)}
# Machine images that EC2 finds by name in any region: Ubuntu, and Ubuntu with NVIDIA's driver.
IMAGES = (
    "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
)


@dataclass(frozen=True)
class Machine:
    """A type of EC2 machine."""

    gpus: int
    cpus: int

    @property
    def name(self) -> str:
        """As EC2 calls it."""
        size = {2: "large", 4: "xlarge"}.get(self.cpus, f"{self.cpus // 4}xlarge")
        return f"{'g6' if self.gpus else 'm7i'}.{size}"

    @classmethod
    def smallest(cls, cpus: int, gpus: int) -> Machine | None:
        """The machine with the fewest GPUs, then CPUs, that has enough of both; one with GPUs only if any is needed."""
        types = [(has, count) for has, counts in MACHINES.items() for count in counts]
        fit = [each for each in types if each[0] >= gpus and each[1] >= cpus and bool(each[0]) == bool(gpus)]
        return cls(*min(fit)) if fit else None


def render(
    kind: Kind,
    spec: Spec,
    *,
    source: str = "spec.toml",
    nodes: int = 2,
    cpus_per_node: int | None = None,
    gpus_per_node: int | None = None,
    out: str | None = None,
    image: str | None = None,
    time: str | None = None,
) -> str:
    """The manifest of a study, as text; a `UsageError` lists every invalid option.

    `source` is what the user calls the spec; a node has as many CPUs and GPUs as its trials take if not given, and at
    least 8 CPUs without GPUs; `image` is one of containers (kuberay) or machines (ray-up).
    """
    resources = spec.resources
    gpus = math.ceil(resources.gpus) if gpus_per_node is None else gpus_per_node
    cpus = _cpus(spec, gpus) if cpus_per_node is None else cpus_per_node
    out = f"{'results' if kind == 'slurm' else SHARED}/{spec.name}" if out is None else out
    if mistakes := list(_mistakes(kind, spec, source, cpus, gpus, out, image, time)):
        raise UsageError(f"study manifest {kind}", mistakes)
    share = resources.gpus_per_trial if resources.gpus_per_trial == "auto" else f"{resources.gpus:g}"
    file = Path(__file__).parent / "manifests" / f"{kind}.j2"
    return template(file, shell=shlex.quote, yaml=_yaml, heredoc=_heredoc).render(
        spec=spec,
        toml=spec.to_toml(),
        source=source,
        shipped=not Path(source).is_file() and (SHIPPED / f"{source}.toml").is_file(),
        label=label(spec.name),
        needs=f"Of a trial: cpus_per_trial = {resources.cpus_per_trial}, gpus_per_trial = {share}",
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        machine=Machine.smallest(cpus, gpus),
        memory_gib=max(4, 2 * cpus),
        out=out,
        shared=None if _URI.fullmatch(out) else SHARED,
        image=image,
        images=IMAGES,
        time=time or DEFAULT_TIME,
        seconds=_seconds(time or DEFAULT_TIME),
        warning_seconds=WARNING_SECONDS,
        node_seconds=NODE_SECONDS,
        command=command,
        pinned={name: version(name) for name in PINNED},
        python=platform.python_version(),
        ours=version("optimizer-study"),
    )


def command(spec: str, out: str) -> str:
    """The command that every kind of cluster runs; both arguments are quoted for the shell."""
    return f"study run {spec} --resume --out {out} --address auto --wait {NODE_SECONDS} --plain"


def label(name: str) -> str:
    """A study's name as Kubernetes allows it: small letters, digits and dashes, the first a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"study-{plain}"
    return plain[:_NAME_LENGTH].rstrip("-")


def _cpus(spec: Spec, gpus: int) -> int:
    """CPUs for the trials that fit on a node's GPUs at once; without GPUs, for at least 8 CPUs' worth of trials.

    Where small cells train on CPUs, twice as many, if machines with these GPUs have as many: so no GPU is left idle.
    """
    each = spec.resources.cpus_per_trial
    if spec.resources.gpus:
        cpus = each * max(1, math.floor(gpus / spec.resources.gpus))
        machine, larger = Machine.smallest(cpus, gpus), Machine.smallest(2 * cpus, gpus)
        roomy = machine and larger and machine.gpus == larger.gpus
        return 2 * cpus if spec.resources.cpu_nodes and roomy else cpus
    return each * math.ceil(8 / each)


def _mistakes(
    kind: Kind, spec: Spec, source: str, cpus: int, gpus: int, out: str, image: str | None, time: str | None
) -> Iterator[str]:
    """What is wrong with the options, one line each."""
    for name, value in (("image", image), ("time", time)):
        if name in UNUSED[kind] and value is not None:
            yield f"--{name} {value}: does not apply to {kind}; leave it out"
    seconds = _seconds(time or DEFAULT_TIME)
    if seconds is None:
        yield f"--time {time!r}: must be HH:MM:SS, as in 24:00:00"
    elif seconds < SHORTEST_SECONDS:
        yield f"--time {time}: too short to start, run and save; give 00:10:00 or more"
    resources = spec.resources
    for name, has, needs in (("cpus", cpus, resources.cpus_per_trial), ("gpus", gpus, resources.gpus)):
        if has < needs:
            advice = f"give {math.ceil(needs)} or more, or lower resources.{name}_per_trial"
            yield f"--{name}-per-node {has}: a trial takes {needs:g}; {advice}"
    if kind == "ray-up" and not Machine.smallest(cpus, gpus):
        yield f"--cpus-per-node {cpus} --gpus-per-node {gpus}: no machine has as many; valid: at most 192 and 8"
    below = Path(out).parts
    shared = below[:2] == Path(SHARED).parts and len(below) > 2 and ".." not in below
    if not out or not out.isprintable():
        yield f"--out {out!r}: must be a path or a URI, without control characters"
    elif not (kind == "slurm" or shared or _URI.fullmatch(out)):
        yield f"--out {out!r}: the nodes share the folder {SHARED} alone; valid: {SHARED}/NAME, or a URI as s3://B/N"
    if image is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", image):
        yield f"--image {image!r}: must be letters, digits and ._:/@-, as in registry.example/study:1"
    if not source.isprintable():
        yield f"{source!r}: the name of a spec cannot have control characters here; rename it"


def _seconds(time: str) -> int | None:
    """A time limit HH:MM:SS in seconds; None if it is none."""
    parts = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", time)
    return parts and sum(int(part) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))


def _yaml(value: Any, indent: int = 0) -> str:
    """A YAML scalar of any text: a block, indented, if all lines are printable ASCII, otherwise quoted."""
    text = str(value)
    if re.fullmatch(r"([\x20-\x7e]*\n)+", text) and text[0] not in " \n":
        return "|\n" + "".join(" " * indent + line for line in text.splitlines(keepends=True)).rstrip("\n")
    kept = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(kept)}"'


def _heredoc(text: str, word: str) -> str:
    """A shell here-document of a text, unexpanded; `word`, which ends it, is lengthened until no line equals it."""
    while word in text.splitlines():
        word += "_"
    return f"<<'{word}'\n{text.rstrip(chr(10))}\n{word}"
