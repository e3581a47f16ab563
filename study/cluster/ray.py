"""Starts Ray on this machine or joins a cluster, and computes how many trials fit on its nodes."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.cluster.compat import listening_beyond_loopback
from study.cluster.head import environment, presenting, reach, token
from study.errors import ClusterError
from study.spec import Spec
from study.spec.model import Resources

# Between two updates of the list of nodes.
LOOK_SECONDS = 2.0
START_TRIES = 3
# Bytes of the folder for Ray's sessions: a socket's path in it is 66 longer, and has at most 107.
LONGEST_TEMPORARY = 40

# Read when Ray is imported or started: no snapshots of all trials (a study resumes from its own tables), no logger
# files per trial, no limit of Tune's on trials that wait for a worker (`Cluster.room` has one that follows the nodes),
# no usage report, quiet output.
_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Anyone who reaches Ray's ports can run code. This switch, made for other systems, keeps a Ray without a cluster on the
# loopback interface.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Set in what Ray's job server starts.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Our packages are sent to the nodes of a cluster, so that all run the driver's code.
_PACKAGES = ("study", "trainables", "analysis")


@dataclass
class Cluster:
    """The Ray that this process is connected to."""

    resources: Resources  # of a trial
    joined: bool = False  # whether it was running already; then nodes come and go
    # called with the kind and description of each event of a node
    note: Callable[[str, str], None] = lambda kind, text: None
    # host name of every node with CPUs so far -> the most GPUs that it had
    seen: dict[str, int] = field(default_factory=dict)
    # yields None until a node that joined has answered, then its mistakes
    look_over: Callable[[dict[str, Any]], Iterator[list[str] | None]] = lambda node: iter([[]])
    _looked: float = field(default=-math.inf, repr=False)
    _nodes: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _asked: dict[str, Iterator[list[str] | None]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as Ray Tune pickles searchers, which refer to this, for snapshots that are not used."""
        return {}

    def fits(self) -> int:
        """Trials that fit on the nodes at once; each fits on one node."""
        self.look()
        return fitting(self.resources, self._nodes.values())

    def room(self, on_gpus: int = 0) -> int:
        """Trials that may be running or waiting now, of which `on_gpus` take a GPU.

        On a cluster one more than fit, so that a node that joins is used at once, and an autoscaler sees the demand. If
        small cells run without a GPU, as many trials for GPUs may wait as run; otherwise the next small cell would wait
        behind them.
        """
        fit = self.fits()
        if not self.resources.cpu_nodes:
            return fit + self.joined
        wait = max(0, on_gpus - fit)
        return all_fitting(self.resources, self._nodes.values()) + self.joined + wait if wait < max(1, fit) else 0

    def look(self) -> None:
        """Update the list of nodes if it is old, and report nodes that joined, left or are unfit."""
        import ray

        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        first, self._looked = not self._nodes, time.monotonic()
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node in nodes.values():
            if node["Resources"].get("CPU"):  # a head often has none, so that no trial runs there
                host = node["NodeManagerHostname"]
                self.seen[host] = max(self.seen.get(host, 0), int(node["Resources"].get("GPU", 0)))
        for gone in self._nodes.keys() - nodes.keys():
            self.note("node lost", f"node {name_of(self._nodes[gone])} is gone")
            self._asked.pop(gone, None)
        for new in nodes.keys() - self._nodes.keys():
            if not first:
                self.note("node joined", f"node {name_of(nodes[new])} has joined")
                self._asked[new] = self.look_over(nodes[new])
        self._nodes = nodes
        for key, answers in list(self._asked.items()):
            if (mistakes := next(answers)) is not None:
                del self._asked[key]
                for mistake in mistakes:
                    self.note("node unfit", f"{mistake}; the study uses this node nevertheless")


def name_of(node: Mapping[str, Any]) -> str:
    """Host name and address of a node of `ray.nodes()`."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


@contextmanager
def connected(spec: Spec, address: str | None, wait: float = 0.0, bundle: Path | None = None) -> Iterator[Cluster]:
    """Join the cluster at an address, auto or host:port, or start Ray on this machine, on loopback.

    Waits some seconds for nodes on which a trial fits. The bundle of user code is sent to the nodes.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        stack.enter_context(environment({_CLUSTERS: str(int(bool(address)))}))
        head, mode = reach(address) if address else ("", "")
        import ray

        if ray.is_initialized():
            taken = "runs in this process already, and a study starts its own; call ray.shutdown() first"
            raise ClusterError("ray", taken)
        stack.enter_context(listening_beyond_loopback(allowed=bool(address)))  # Ray may have been imported before
        # A worker that died is reported in one line by us.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        if address and _JOB not in os.environ:  # a job's code has been sent with it
            options["runtime_env"] = {"py_modules": packages(bundle)}
        if address:
            stack.enter_context(presenting(mode, token()[0]))
        else:
            options |= stack.enter_context(_alone())
        _start(head, options)
        stack.callback(ray.shutdown)
        cluster, until = Cluster(spec.resources, joined=bool(address)), time.monotonic() + wait
        while not (fits := cluster.fits()) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        if not fits:
            raise ClusterError("resources", _too_small(spec.resources, [node for node in ray.nodes() if node["Alive"]]))
        yield cluster


@contextmanager
def _alone() -> Iterator[dict[str, Any]]:
    """Options for a Ray of this process alone, which leaves nothing in the home folder.

    Without a token Ray would write one to ~/.ray, for which each later cluster of this user would ask. The paths of its
    sockets must not be long (ray#7724).
    """
    root, own = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray"), ""
    if len(os.fsencode(root)) > LONGEST_TEMPORARY:
        own = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        print(f"study: {root} is too long for Ray's sockets; it uses {own} while it runs", file=sys.stderr)
    try:
        with presenting(os.environ.get("RAY_AUTH_MODE", "token"), token()[0] or secrets.token_hex(32)):
            yield {"_temp_dir": own} if own else {}
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


def _start(address: str, options: dict[str, Any]) -> None:
    """Join a cluster, or start Ray here, with further tries: on a busy machine it misses its own limits (ray#65983)."""
    import ray

    for remaining in reversed(range(1 if address else START_TRIES)):
        try:
            # Not None, which would join what RAY_ADDRESS or a file of an earlier `ray start` names.
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
        except SystemExit as error:
            raise KeyboardInterrupt from error  # what Ray makes of SIGTERM while it starts
        except Exception as error:
            ray.shutdown()
            if address:
                raise ClusterError(f"--address {address}", _why(error)) from error
            if not remaining:
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                advice = "is this machine very busy, or short of memory or of space in its temporary folder?"
                raise ClusterError("ray", f"did not start here in {START_TRIES} tries ({why}); {advice}") from error
        else:
            return


def packages(bundle: Path | None = None) -> list[str]:
    """Folders of our packages and of a bundle of user code, for the runtime environment of the nodes."""
    here = Path(__file__).absolute().parents[2]
    return [*(str(here / name) for name in _PACKAGES), *([str(bundle)] if bundle else [])]


def _why(error: Exception) -> str:
    """Why Ray could not join a cluster, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Version mismatch" in str(error):
        return f"{' '.join(lines)}; install the cluster's versions here, or this machine's versions there"
    advice = "check that a cluster is running and that this machine is one of its nodes"
    return f"{lines[0] if lines else type(error).__name__}; {advice}"


def all_fitting(resources: Resources, nodes: Iterable[Mapping[str, Any]]) -> int:
    """Like `fitting`, but of small cells if these run without a GPU."""
    without = resources.model_copy(update={"gpus_per_trial": 0.0, "cpu_nodes": False})
    return fitting(without if resources.cpu_nodes else resources, nodes)


def fitting(resources: Resources, nodes: Iterable[Mapping[str, Any]]) -> int:
    """Trials that fit at once on nodes of `ray.nodes()`."""
    needs = _wanted(resources)
    has = [node["Resources"] for node in nodes]
    return sum(min(_times(node.get(kind, 0.0), need) for kind, need in needs.items() if need) for node in has)


def _times(has: float, need: float) -> int:
    """How often a need can be met; a fraction must lie on one GPU."""
    return math.floor(has) * math.floor(1 / need) if need < 1 else math.floor(has / need)


def _wanted(resources: Resources) -> dict[str, float]:
    return {"CPU": float(resources.cpus_per_trial), "GPU": resources.gpus}


def _too_small(resources: Resources, nodes: Iterable[Mapping[str, Any]]) -> str:
    has = []
    for node in nodes:
        each = ", ".join(f"{node['Resources'].get(kind, 0.0):g} {kind}s" for kind in _wanted(resources))
        has.append(f"{name_of(node)} {each}")
    which, advice = "a trial", "lower resources.cpus_per_trial or resources.gpus_per_trial"
    if resources.cpu_nodes:
        which = "resources.cpu_nodes serves small cells alone, and a trial of a large one"
        advice = f"add a node that has as much, or {advice}"
    return (
        f"{which} takes {resources.cpus_per_trial} CPUs and {resources.gpus:g} GPUs, "
        f"the nodes have: {'; '.join(has)}; {advice}"
    )
