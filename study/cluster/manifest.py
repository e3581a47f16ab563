"""Renders a study as what a kind of cluster takes: a Slurm script, a KubeRay RayJob, a cluster file for `ray up`.

All end in the same `study run --resume`, which begins the study where it is not yet there and goes on where it is: so a
job that is started again, by hand or by the cluster, resumes.
"""

from __future__ import annotations

import math
import platform
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jinja2

from study.errors import UsageError
from study.spec import SHIPPED, Spec

Kind = Literal["slurm", "kuberay", "ray-up"]
# Options that mean something to one kind only.
FOREIGN: dict[Kind, tuple[str, ...]] = {"slurm": ("image",), "kuberay": (), "ray-up": ("time",)}
# Seconds between a warning and the end of a Slurm job: a study saves and Ray stops in less.
WARNING_SECONDS = 180
SHORTEST_SECONDS = 600
# Seconds that `study run` waits for a node on which a trial fits: images are pulled and machines start meanwhile.
NODE_SECONDS = 600
# Where nodes that share no folder get one.
SHARED = "/results"
# KubeRay refuses longer names.
_NAME_LENGTH = 47
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^/]+/?.*")
# Numbers depend on these, and Ray refuses nodes of another version: the same everywhere.
PINNED = ("ray", "torch", "torchvision", "optuna", "numpy")
# EC2 machines as (GPUs, CPUs, type), from the cheapest: with L4 GPUs, and without.
MACHINES = (
    (0, 2, "m7i.large"),
    (0, 4, "m7i.xlarge"),
    (0, 8, "m7i.2xlarge"),
    (0, 16, "m7i.4xlarge"),
    (0, 32, "m7i.8xlarge"),
    (0, 48, "m7i.12xlarge"),
    (0, 64, "m7i.16xlarge"),
    (0, 96, "m7i.24xlarge"),
    (0, 192, "m7i.48xlarge"),
    (1, 4, "g6.xlarge"),
    (1, 8, "g6.2xlarge"),
    (1, 16, "g6.4xlarge"),
    (1, 32, "g6.8xlarge"),
    (1, 64, "g6.16xlarge"),
    (4, 48, "g6.12xlarge"),
    (4, 96, "g6.24xlarge"),
    (8, 192, "g6.48xlarge"),
)
# Machine images that EC2 looks up by name in any region: plain Ubuntu, and one with NVIDIA's driver.
IMAGES = (
    "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
)


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
    """The manifest of a study, as text.

    Args:
        kind: of cluster.
        spec: the study.
        source: what the user calls the spec, a file or the name of a shipped one.
        nodes: that run trials.
        cpus_per_node: of each of them; what a node's trials take if not given, and 8 or so without GPUs.
        gpus_per_node: of each of them; what one trial takes if not given.
        out: the results folder as all nodes see it, or a URI.
        image: of containers (kuberay) or machines (ray-up).
        time: that the job may take, HH:MM:SS; a day if not given.

    Raises:
        UsageError: with every option that cannot be.
    """
    asked = {"image": image, "time": time}
    mistakes = [
        f"--{name} {asked[name]}: means nothing to {kind}; leave it out"
        for name in FOREIGN[kind]
        if asked[name] is not None
    ]
    seconds, wrong = _seconds(time or "24:00:00")
    mistakes += wrong
    resources = spec.resources
    gpus = math.ceil(resources.gpus) if gpus_per_node is None else gpus_per_node
    cpus = _cpus(spec, gpus) if cpus_per_node is None else cpus_per_node
    share = resources.gpus_per_trial if resources.gpus_per_trial == "auto" else f"{resources.gpus:g}"
    for name, has, needs in (("cpus", cpus, resources.cpus_per_trial), ("gpus", gpus, resources.gpus)):
        if has < needs:
            mistakes.append(
                f"--{name}-per-node {has}: a trial takes {needs:g}; give {math.ceil(needs)} or more, "
                f"or lower resources.{name}_per_trial"
            )
    machine = _machine(cpus, gpus)
    if kind == "ray-up" and machine is None:
        mistakes.append(
            f"--cpus-per-node {cpus} --gpus-per-node {gpus}: no machine has as many; valid: at most 192 and 8"
        )
    below = "results" if kind == "slurm" else SHARED
    out = f"{below}/{spec.name}" if out is None else out
    mistakes += _misplaced(kind, out)
    if image is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", image):
        mistakes.append(f"--image {image!r}: must be letters, digits and ._:/@-, as in registry.example/study:1")
    if not source.isprintable():
        mistakes.append(f"{source!r}: the name of a spec cannot have control characters here; rename it")
    if mistakes:
        raise UsageError(f"study manifest {kind}", mistakes)
    shipped = not Path(source).is_file() and (SHIPPED / f"{source}.toml").is_file()
    template = _environment().get_template(f"{kind}.j2")
    return template.render(
        spec=spec,
        toml=spec.to_toml(),
        source=source,
        shipped=shipped,
        label=label(spec.name),
        needs=f"Of a trial: cpus_per_trial = {resources.cpus_per_trial}, gpus_per_trial = {share}",
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        machine=machine,
        memory_gib=max(4, 2 * cpus),
        out=out,
        shared=None if _URI.fullmatch(out) else SHARED,
        image=image,
        images=IMAGES,
        time=time or "24:00:00",
        seconds=seconds,
        warning_seconds=WARNING_SECONDS,
        node_seconds=NODE_SECONDS,
        command=command,
        pinned={name: version(name) for name in PINNED},
        python=platform.python_version(),
        ours=version("optimizer-study"),
    )


def command(spec: str, out: str) -> str:
    """What runs in the end, everywhere.

    Args:
        spec: the spec as the shell is to read it.
        out: the results folder, likewise.
    """
    return f"study run {spec} --resume --out {out} --address auto --wait {NODE_SECONDS} --plain"


def label(name: str) -> str:
    """A study's name as Kubernetes takes names: small letters, digits and dashes, the first a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"study-{plain}"
    return plain[:_NAME_LENGTH].rstrip("-")


def _cpus(spec: Spec, gpus: int) -> int:
    """CPUs for the trials that fit on a node's GPUs at once; without GPUs, 8 or as many more as trials fill.

    Where small cells take CPUs alone, there are as many again, so that they keep no GPU from work, if machines with
    these GPUs have as many.
    """
    each = spec.resources.cpus_per_trial
    if spec.resources.gpus:
        cpus = each * max(1, math.floor(gpus / spec.resources.gpus))
        machine, larger = _machine(cpus, gpus), _machine(2 * cpus, gpus)
        roomy = machine and larger and machine[0] == larger[0]
        return 2 * cpus if spec.resources.cpu_nodes and roomy else cpus
    return each * math.ceil(8 / each)


def _machine(cpus: int, gpus: int) -> tuple[int, int, str] | None:
    """The smallest machine that has as much."""
    fit = [each for each in MACHINES if each[0] >= gpus and each[1] >= cpus and bool(each[0]) == bool(gpus)]
    return min(fit, default=None)


def _seconds(time: str) -> tuple[int, list[str]]:
    """HH:MM:SS in seconds, and what is wrong with it."""
    parts = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", time)
    if not parts:
        return 0, [f"--time {time!r}: must be HH:MM:SS, as in 24:00:00"]
    hours, minutes, rest = map(int, parts.groups())
    seconds = hours * 3600 + minutes * 60 + rest
    if seconds < SHORTEST_SECONDS:
        return seconds, [f"--time {time}: too short to start, run and save; give 00:10:00 or more"]
    return seconds, []


def _misplaced(kind: Kind, out: str) -> list[str]:
    """Why results cannot go to `out`."""
    if not out or not out.isprintable():
        return [f"--out {out!r}: must be a path or a URI, without control characters"]
    if _URI.fullmatch(out) or kind == "slurm":
        return []
    below = Path(out).parts
    if below[:2] != Path(SHARED).parts or len(below) < 3 or ".." in below:
        return [f"--out {out!r}: the nodes share the folder {SHARED} alone; valid: {SHARED}/NAME, or a URI as s3://B/N"]
    return []


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "manifests"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML: what comes from users goes through `shell` or `yaml`
    )
    environment.filters |= {"shell": shlex.quote, "yaml": _yaml, "heredoc": _heredoc}
    return environment


def _yaml(value: Any, indent: int = 0) -> str:
    """A text as a YAML scalar, whatever is in it: a block of lines where that reads well, or else in quotes.

    Args:
        value: the text.
        indent: spaces before the lines of a block.
    """
    text = str(value)
    if re.fullmatch(r"([\x20-\x7e]*\n)+", text) and text[0] not in " \n":
        return "|\n" + "".join(" " * indent + line for line in text.splitlines(keepends=True)).rstrip("\n")
    kept = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(kept)}"'


def _heredoc(text: str, word: str) -> str:
    """A text for a shell's standard input, with nothing in it expanded, ended by a word that is no line of it."""
    while word in text.splitlines():
        word += "_"
    return f"<<'{word}'\n{text.rstrip(chr(10))}\n{word}"
