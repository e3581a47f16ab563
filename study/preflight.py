"""Looks over the nodes of a cluster before a study runs on them."""

from __future__ import annotations

import importlib.metadata
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.cluster import all_fitting, fitting, name_of
from study.spec import Resources, SpecError
from trainables import files

# What numbers depend on, beside our own code, which travels. That Ray and Python are the same, Ray sees to.
PACKAGES = ("torch", "numpy")
ANSWER_SECONDS = 20.0
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
        SpecError: if the URI cannot be written to from here.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def answer(packages: Sequence[str], mark: str, modules: Sequence[str], code: str) -> dict[str, Any]:
        # Travels as it stands, with nothing of ours: the node may lack it.
        import importlib.metadata
        import os
        import sys
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
            sees = Path(mark).exists() and os.access(Path(mark).parent, os.W_OK)
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
        missing = {}
        # Before the folder that the study was started in; a trial then sees to it that it has the right ones.
        sent = [place for entry in sys.path if (place := Path(entry, "code")).joinpath("inspected.json").is_file()]
        sys.path[:0] = [str(place) for place in (Path(code), *sent) if code and place.is_dir()]
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001  whatever a user's module raises there
                missing[module] = f"{type(error).__name__}: {error}"
        return {"versions": versions, "free_bytes": free, "sees": sees, "missing": missing, "clock": time.time()}

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    mark = files.join(place, f".seen-{uuid.uuid4().hex}")
    try:
        files.write(mark, lambda stream: stream.write(b"seen"))
    except (OSError, ValueError) as error:
        raise SpecError(f"--out {place}", [f"cannot be written to from here ({error}); give another place"]) from error
    try:
        asked = {
            ray.remote(answer)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False))
            .remote(PACKAGES, mark, list(modules), str(code or "")): node
            for key, node in nodes.items()
        }
        found, waiting, until = [], list(asked), time.monotonic() + ANSWER_SECONDS
        while waiting and (left := until - time.monotonic()) > 0:
            ready, waiting = ray.wait(waiting, timeout=left)
            for each in ready:
                found.append(_told(asked[each], each))
        silent = f"has not answered within {ANSWER_SECONDS:.0f} s; look at its logs, or take it out of the cluster"
        found += [Node(name_of(asked[each]), asked[each]["Resources"], problem=silent) for each in waiting]
    finally:
        with suppress(OSError):
            files.delete(mark)
    return sorted(found, key=lambda node: node.name)


def _told(node: dict[str, Any], reference: Any) -> Node:
    import ray

    try:
        told = ray.get(reference)
    except ray.exceptions.RayError as error:
        why = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return Node(name_of(node), node["Resources"], problem=f"cannot run anything ({why.strip()}); look at its logs")
    ahead = told.pop("clock") - time.time()
    return Node(name_of(node), node["Resources"], ahead_seconds=ahead, **told)


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
            if files.is_uri(place):
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
        SpecError: with all that keeps it from running.
    """
    if isinstance(place, Path):
        place = place.absolute()
        while not place.is_dir():
            place = place.parent
    nodes = survey(place, modules, code)
    if found := mistakes(nodes, place):
        raise SpecError("the cluster", found)
    return nodes


def describe(resources: Resources, nodes: Sequence[Node], trial_bytes: int) -> str:
    """Nodes for people, if their memory suffices.

    Args:
        resources: that a trial takes.
        nodes: of `fit_nodes`.
        trial_bytes: of memory that a trial takes which has no GPU; 0 if all have.

    Raises:
        SpecError: if a node has too little memory for as many trials as its CPUs let.
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
        raise SpecError("the cluster", found)
    return "\n".join(lines)
