"""Looks over the nodes of a cluster before a study runs on them."""

from __future__ import annotations

import importlib.metadata
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from study.cluster.ray import all_fitting, fitting, name_of
from study.errors import ClusterError, StorageError
from study.spec.model import Resources
from trainables import storage

# What numbers depend on, beside our own code, which travels. That Ray and Python are the same, Ray sees to.
PACKAGES = ("torch", "numpy")
# For what takes no import of torch: that a node is silent is told within half a minute.
ANSWER_SECONDS = 20.0
# For users' modules, which import it, the first time perhaps from a slow disk of the network.
IMPORT_SECONDS = 60.0
PAUSE_SECONDS = 1.0
# The report's timeline shows what workers' clocks say.
CLOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Node:
    """What a node says of itself.

    Attributes:
        name: host and address.
        resources: as Ray counts them.
        versions: of `PACKAGES`; empty for one that is not there.
        free_bytes: memory that is free.
        ahead_seconds: of its clock before this machine's, about.
        sees: whether it can write into the results folder.
        missing: modules that it cannot import, with the reason.
        problem: why it could not be asked; empty if it could.
    """

    name: str
    resources: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)
    free_bytes: int = 0
    ahead_seconds: float = 0.0
    sees: bool = True
    missing: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def survey(place: Path | str, modules: Sequence[str] = (), code: Path | None = None) -> list[Node]:
    """Ask every node of the cluster that this process is connected to.

    Args:
        place: the results folder, which is there, or a URI.
        modules: that every node must be able to import.
        code: folder of users' modules, as it is here; Ray has sent it along.

    Raises:
        StorageError: if the URI cannot be written to from here.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    mark = storage.join(place, f".seen-{uuid.uuid4().hex}")
    try:
        storage.write(mark, lambda stream: stream.write(b"seen"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"--out {place}", [f"cannot be written to from here ({error}); give another place"]
        ) from error
    try:
        asked = _asked(nodes, place, mark, modules, code, PAUSE_SECONDS)
        return sorted(next(found for found in asked if found is not None), key=lambda node: node.name)
    finally:
        with suppress(OSError):
            storage.delete(mark)


def joined(
    node: dict[str, Any], place: Path | str, modules: Sequence[str] = (), code: Path | None = None
) -> Iterator[list[str] | None]:
    """`mistakes` of a node that has joined while a study runs; None, at once, for as long as it has not told.

    Where results go to a store, whether the node reaches it is not asked: the study must not wait for the store.
    """
    mark = "" if storage.is_uri(place) else storage.join(place, "spec.toml")
    for found in _asked([node], place, mark, modules, code, pause=0.0):
        yield None if found is None else mistakes(found, place)


def _asked(
    nodes: Sequence[dict[str, Any]],
    place: Path | str,
    mark: str,
    modules: Sequence[str],
    code: Path | None,
    pause: float,
) -> Iterator[list[Node] | None]:
    """As `survey`, some nodes of `ray.nodes()`: None after every pause, in seconds, until all is known of all of them.

    Users' modules are asked for when nothing else is wrong; the place, if there is a mark, a file in it.
    """

    def facts(packages: Sequence[str], mark: str) -> dict[str, Any]:
        # Travels as it stands, with nothing of ours: the node may lack it.
        import importlib.metadata
        import os
        import time
        from pathlib import Path

        versions = {}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = ""
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        if "://" not in mark:
            sees = not mark or (Path(mark).exists() and os.access(Path(mark).parent, os.W_OK))
        else:
            try:
                from pyarrow.fs import FileSystem

                system, path = FileSystem.from_uri(mark)
                with system.open_input_file(path) as there:
                    content = there.read()
                with system.open_output_stream(path) as stream:
                    stream.write(content)
                sees = True
            except (ImportError, OSError, ValueError):
                sees = False
        return {"versions": versions, "free_bytes": free, "sees": sees, "clock": time.time()}

    def imports(modules: Sequence[str], code: str) -> dict[str, Any]:
        import importlib
        import sys
        from pathlib import Path

        missing = {}
        # Before the folder that the study was started in; a trial then sees to it that it has the right ones.
        sent = [place for entry in sys.path if (place := Path(entry, "code")).joinpath("inspected.json").is_file()]
        sys.path[:0] = [str(place) for place in (Path(code), *sent) if code and place.is_dir()]
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001  whatever a user's module raises there
                missing[module] = f"{type(error).__name__}: {error}"
        return {"missing": missing}

    found = yield from _answers(facts, (PACKAGES, mark), nodes, ANSWER_SECONDS, pause, "answered")
    if modules and not mistakes(found, place):
        what = f"imported {', '.join(modules)}"
        can = yield from _answers(imports, (list(modules), str(code or "")), nodes, IMPORT_SECONDS, pause, what)
        found = [replace(a, missing=b.missing, problem=b.problem) for a, b in zip(found, can, strict=True)]
    yield found


def _answers(
    question: Callable[..., dict[str, Any]],
    about: tuple[Any, ...],
    nodes: Sequence[dict[str, Any]],
    seconds: float,
    pause: float,
    what: str,
) -> Generator[None, None, list[Node]]:
    """What nodes answer to a question, in their order; until then nothing after every pause."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        ray.remote(question)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(*about): node
        for node in nodes
    }
    silent = f"has not {what} within {seconds:.0f} s; look at its logs, or take it out of the cluster"
    found = {node["NodeID"]: Node(name_of(node), node["Resources"], problem=silent) for node in nodes}
    waiting, looked, until = list(asked), time.time(), time.monotonic() + seconds
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=pause)
        for each in ready:
            found[asked[each]["NodeID"]] = _told(asked[each], each, looked)
        looked = time.time()
        if time.monotonic() > until:
            break
        if waiting:
            yield
    return [found[node["NodeID"]] for node in nodes]


def _told(node: dict[str, Any], reference: Any, looked: float) -> Node:
    """A node's answer, which came after that time."""
    import ray

    try:
        told = ray.get(reference)
    except ray.exceptions.RayError as error:
        why = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return Node(name_of(node), node["Resources"], problem=f"cannot run anything ({why.strip()}); look at its logs")
    if clock := told.pop("clock", None):
        told["ahead_seconds"] = clock - min(max(clock, looked), time.time())
    return Node(name_of(node), node["Resources"], **told)


def mistakes(nodes: Sequence[Node], place: Path | str) -> list[str]:
    """What keeps a study from running on these nodes, each in one line with what to do."""
    here = {package: importlib.metadata.version(package) for package in PACKAGES}
    found = []
    for node in nodes:
        if node.problem:
            found.append(f"node {node.name}: {node.problem}")
            continue
        for package, version in node.versions.items():
            if not version:
                found.append(f"node {node.name}: has no {package}; install {package} {here[package]} there")
            elif version != here[package]:
                found.append(
                    f"node {node.name}: has {package} {version}, here it is {here[package]}; numbers would differ, "
                    "install the same version everywhere"
                )
        if not node.sees:
            advice = "give a folder that all nodes share (NFS) with --out"
            if storage.is_uri(place):
                advice = "does it reach the store, and has it the credentials?"
            found.append(f"node {node.name}: cannot write into {place}; {advice}")
        for module, why in node.missing.items():
            found.append(f"node {node.name}: cannot import {module} ({why}); install there what it needs")
        if abs(node.ahead_seconds) > CLOCK_SECONDS:
            side = "ahead" if node.ahead_seconds > 0 else "behind"
            found.append(f"node {node.name}: its clock is {abs(node.ahead_seconds):.0f} s {side}; set it by NTP")
    return found


def fit_nodes(place: Path | str, modules: Sequence[str] = (), code: Path | None = None) -> list[Node]:
    """The nodes of the cluster that this process is connected to, if a study with some modules can run on all of them.

    Args:
        place: for the results, or a URI; a folder is looked at in the nearest one above it that is there.
        modules: as for `survey`.
        code: likewise.

    Raises:
        ClusterError: with all that keeps it from running.
    """
    if isinstance(place, Path):
        place = place.absolute()
        while not place.is_dir():
            place = place.parent
    nodes = survey(place, modules, code)
    if found := mistakes(nodes, place):
        raise ClusterError("the cluster", found)
    return nodes


def describe(resources: Resources, nodes: Sequence[Node], trial_bytes: int) -> str:
    """Nodes for people, if their memory suffices.

    Args:
        resources: that a trial takes.
        nodes: of `fit_nodes`.
        trial_bytes: of memory that a trial takes which has no GPU; 0 if all have.

    Raises:
        ClusterError: if a node has too little memory for as many trials as its CPUs let.
    """
    lines, found = [], []
    for node in nodes:
        has = [{"Resources": node.resources}]
        on_gpus, at_once = fitting(resources, has), all_fitting(resources, has)
        if at_once * trial_bytes > node.free_bytes > 0:
            found.append(
                f"node {node.name}: {at_once} trials at once take {at_once * trial_bytes / 2**30:.1f} GiB, "
                f"{node.free_bytes / 2**30:.1f} GiB are free; raise resources.cpus_per_trial"
            )
        kind = next((name.split(":", 1)[1] for name in node.resources if name.startswith("accelerator_type:")), "")
        gpus, many = node.resources.get("GPU", 0), f"{at_once} trials at once"
        if resources.cpu_nodes:
            many = f"{at_once} small trials at once"
            if on_gpus:
                many = f"trials at once: {on_gpus} on GPUs, up to {at_once} in all"
        lines.append(
            f"  node    {node.name}: {node.resources.get('CPU', 0):g} CPUs, {gpus:g} GPUs{f' ({kind})' * bool(kind)}, "
            f"{node.free_bytes / 2**30:.1f} GiB free, {many}"
        )
    if found:
        raise ClusterError("the cluster", found)
    return "\n".join(lines)
