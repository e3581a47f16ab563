"""Asks the nodes of a cluster about themselves: before a study runs on them, as they join it, and about their GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from study.cluster.ray import all_fitting, fitting, name_of
from study.errors import ClusterError, StorageError
from study.spec.model import Resources
from trainables import storage

Result = TypeVar("Result")

# Besides our own code, which travels, results depend on these. Ray checks that its and Python's versions agree.
PACKAGES = ("torch", "numpy")
# For facts that need no import of torch: a silent node is reported within half a minute.
ANSWER_SECONDS = 20.0
# For user code, which imports torch, perhaps from a slow network disk; and for torch's view of a GPU.
IMPORT_SECONDS = 60.0
PAUSE_SECONDS = 0.1
# The report's timeline shows workers' clocks.
CLOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Node:
    """Facts about a node."""

    name: str  # host and address
    resources: dict[str, float]  # as Ray counts them
    versions: dict[str, str] = field(default_factory=dict)  # of `PACKAGES`; empty for a package that is not installed
    free_bytes: int = 0  # free memory
    ahead_seconds: float = 0.0  # of its clock before this machine's, about
    sees: bool = True  # whether it can write into the results folder
    missing: dict[str, str] = field(default_factory=dict)  # modules that it cannot import, each with the reason
    problem: str = ""  # why it could not be asked; empty if it answered


def survey(place: Path | str, modules: Sequence[str] = (), code: Path | None = None) -> list[Node]:
    """Ask every node whether it can write into a place, which exists, and import modules; `code` was sent along."""
    mark = storage.join(place, f".seen-{uuid.uuid4().hex}")
    try:
        storage.write(mark, lambda stream: stream.write(b"seen"))
    except (OSError, ValueError) as error:
        raise StorageError(f"--out {place}", f"cannot be written to from here ({error}); give another place") from error
    try:
        nodes = _finished(_facts(_alive(), place, mark, modules, code))
        return sorted(nodes, key=lambda node: node.name)
    finally:
        with suppress(OSError):
            storage.delete(mark)


def joined(
    node: dict[str, Any], place: Path | str, modules: Sequence[str] = (), code: Path | None = None
) -> Iterator[list[str] | None]:
    """Ask a node that joins a running study: yields None until it has answered, then its `mistakes`.

    Whether the node reaches a URI is not asked, as the study must not wait for the store.
    """
    mark = "" if storage.is_uri(place) else storage.join(place, "spec.toml")
    nodes = yield from _facts([node], place, mark, modules, code)
    yield mistakes(nodes, place)


def gpu_bytes() -> int:
    """Memory of the cluster's smallest GPU; 0 if there is none. The GPUs of a node are taken to be alike."""
    nodes = [node for node in _alive() if node["Resources"].get("GPU")]
    answers = _finished(_answers(_gpu, (), nodes, IMPORT_SECONDS, "answered", gpus=0.001))
    sizes, problems = [], []
    for node, answer in zip(nodes, answers, strict=True):
        sizes.append(answer.get("bytes", 0))
        if not sizes[-1]:
            why = answer.get("problem", "torch finds none there; check that the NVIDIA driver suits torch")
            advice = "or set resources.gpu_memory_gib, or a number of GPUs"
            problems.append(
                f'node {name_of(node)}: the memory of its GPUs is unknown, which "auto" needs: {why}, {advice}'
            )
    if problems:
        raise ClusterError("resources.gpus_per_trial", problems)
    return min(sizes, default=0)


def mistakes(nodes: Sequence[Node], place: Path | str) -> list[str]:
    """What keeps a study from running on these nodes, one line each."""
    here = {package: importlib.metadata.version(package) for package in PACKAGES}
    problems = []
    for node in nodes:
        if node.problem:
            problems.append(f"node {node.name}: {node.problem}")
            continue
        for package, version in node.versions.items():
            if not version:
                problems.append(f"node {node.name}: has no {package}; install {package} {here[package]} there")
            elif version != here[package]:
                problems.append(
                    f"node {node.name}: has {package} {version}, here it is {here[package]}; results would differ; "
                    "install the same version everywhere"
                )
        if not node.sees:
            advice = "give a folder that all nodes share (NFS) with --out"
            if storage.is_uri(place):
                advice = "check that it reaches the store and has the credentials"
            problems.append(f"node {node.name}: cannot write into {place}; {advice}")
        for module, why in node.missing.items():
            problems.append(f"node {node.name}: cannot import {module} ({why}); install what it needs there")
        if abs(node.ahead_seconds) > CLOCK_SECONDS:
            side = "ahead" if node.ahead_seconds > 0 else "behind"
            problems.append(f"node {node.name}: its clock is {abs(node.ahead_seconds):.0f} s {side}; set it by NTP")
    return problems


def fit_nodes(place: Path | str, modules: Sequence[str] = (), code: Path | None = None) -> list[Node]:
    """The nodes of the connected cluster; a `ClusterError` lists everything that keeps a study from running there.

    Of a folder that does not exist yet the nearest parent is looked at.
    """
    if isinstance(place, Path):
        place = place.absolute()
        while not place.is_dir():
            place = place.parent
    nodes = survey(place, modules, code)
    if problems := mistakes(nodes, place):
        raise ClusterError("the cluster", problems)
    return nodes


def describe(resources: Resources, nodes: Sequence[Node], trial_bytes: int) -> str:
    """A line of text for each node; `trial_bytes` is the memory of a trial on CPUs, 0 if all are on GPUs."""
    lines, problems = [], []
    for node in nodes:
        has = [{"Resources": node.resources}]
        on_gpus, at_once = fitting(resources, has), all_fitting(resources, has)
        if at_once * trial_bytes > node.free_bytes > 0:
            problems.append(
                f"node {node.name}: {at_once} trials at once take {at_once * trial_bytes / 2**30:.1f} GiB, "
                f"{node.free_bytes / 2**30:.1f} GiB are free; raise resources.cpus_per_trial"
            )
        kind = next((name.split(":", 1)[1] for name in node.resources if name.startswith("accelerator_type:")), "")
        gpus, count = node.resources.get("GPU", 0), f"{at_once} trials at once"
        if resources.cpu_nodes:
            count = f"{at_once} small trials at once"
            if on_gpus:
                count = f"trials at once: {on_gpus} on GPUs, up to {at_once} in all"
        lines.append(
            f"  node    {node.name}: {node.resources.get('CPU', 0):g} CPUs, {gpus:g} GPUs{f' ({kind})' * bool(kind)}, "
            f"{node.free_bytes / 2**30:.1f} GiB free, {count}"
        )
    if problems:
        raise ClusterError("the cluster", problems)
    return "\n".join(lines)


# The questions run on the nodes. Of what this module imports they use what is quick to import there.


def _gpu() -> dict[str, Any]:
    """Memory of the node's first GPU, in bytes."""
    import torch

    return {"bytes": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0}


def _state(packages: Sequence[str], mark: str) -> dict[str, Any]:
    """Fields of `Node` that need no import of torch; the clock, as a Unix time. `mark` is a file or URI, or empty."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    sees = not mark or (Path(mark).exists() and os.access(Path(mark).parent, os.W_OK))
    if storage.is_uri(mark):
        try:
            if (stream := storage.read(mark)) is not None:
                storage.write_bytes(mark, stream.read())
                sees = True
        except (ImportError, OSError, ValueError):
            pass
    return {"versions": versions, "free_bytes": free, "sees": sees, "clock": time.time()}


def _imports(modules: Sequence[str], code: str) -> dict[str, Any]:
    """The modules that cannot be imported, each with the reason; of `code` Ray may have put a copy elsewhere."""
    missing = {}
    # Before the folder that the study was started in; a trial checks that it has the right ones.
    sent = [place for entry in sys.path if (place := Path(entry, "code")).joinpath("inspected.json").is_file()]
    sys.path[:0] = [str(place) for place in (Path(code), *sent) if code and place.is_dir()]
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  whatever a user's module raises there
            missing[module] = f"{type(error).__name__}: {error}"
    return {"missing": missing}


def _facts(
    nodes: Sequence[dict[str, Any]], place: Path | str, mark: str, modules: Sequence[str], code: Path | None
) -> Generator[None, None, list[Node]]:
    """Facts about nodes of `ray.nodes()`, as `_answers` yields and returns them.

    User code is imported only if nothing else is wrong.
    """
    answers = yield from _answers(_state, (PACKAGES, mark), nodes, ANSWER_SECONDS, "answered")
    asked = [Node(name_of(node), node["Resources"], **facts) for node, facts in zip(nodes, answers, strict=True)]
    if modules and not mistakes(asked, place):
        what = f"imported {', '.join(modules)}"
        answers = yield from _answers(_imports, (list(modules), str(code or "")), nodes, IMPORT_SECONDS, what)
        asked = [replace(node, **facts) for node, facts in zip(asked, answers, strict=True)]
    return asked


def _answers(
    question: Callable[..., dict[str, Any]],
    about: tuple[Any, ...],
    nodes: Sequence[dict[str, Any]],
    seconds: float,
    what: str,
    gpus: float = 0.0,
) -> Generator[None, None, list[dict[str, Any]]]:
    """Run a function on nodes of `ray.nodes()`; yields between two looks, and returns their answers in order.

    An answer is what the function returned, its `clock` as `ahead_seconds` of this machine's; or the `problem` if
    there is none: the node cannot run it, or `has not {what}` in time.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By reference a node would import this module, and with it torch, to find the function.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    remote = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(question)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    references = [remote.options(scheduling_strategy=place).remote(*about) for place in places]
    silent = f"has not {what} within {seconds:.0f} s; look at its logs, or take it out of the cluster"
    answers: dict[Any, dict[str, Any]] = {reference: {"problem": silent} for reference in references}
    waiting = list(references)
    looked, until = time.time(), time.monotonic() + seconds
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            try:
                answers[reference] = ray.get(reference)
                if clock := answers[reference].pop("clock", None):
                    answers[reference]["ahead_seconds"] = clock - min(max(clock, looked), time.time())
            except ray.exceptions.RayError as error:
                why = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
                answers[reference] = {"problem": f"cannot run anything ({why.strip()}); look at its logs"}
        looked = time.time()
        if time.monotonic() > until:
            break
        if waiting:
            yield
    return [answers[reference] for reference in references]


def _finished(answers: Generator[None, None, Result]) -> Result:
    """The result of `_answers` or `_facts`, once it is there."""
    while True:
        try:
            next(answers)
        except StopIteration as end:
            result: Result = end.value
            return result
        time.sleep(PAUSE_SECONDS)


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
