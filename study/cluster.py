"""Everything that knows of Ray's cluster: starting or joining it, and what a trial takes of it."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from study.spec import Resources, Spec, SpecError

CONNECT_SECONDS = 10.0

# Read when Ray is imported or started: no per-trial logger files, no usage report, quiet output, no snapshots of all
# trials (a study resumes from its own tables).
_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def connected(spec: Spec, address: str | None) -> Iterator[int]:
    """Join the cluster at an address, or start Ray on this machine; gives how many trials fit at once.

    Args:
        spec: whose resources a trial takes.
        address: as `ray.init` takes it; none starts Ray here, on loopback.

    Raises:
        SpecError: if not even one trial fits, or no cluster answers at the address.
    """
    if address:
        _reach(address)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # What it would say of a worker that died, we say in one line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    dashboard = False if address is None else None
    try:
        ray.init(address=address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    except SystemExit as error:
        raise KeyboardInterrupt from error  # what Ray makes of SIGTERM while it starts
    try:
        yield _concurrency(spec.resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ask once whether anything listens; Ray itself would go on asking for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        advice = "start Ray there with `ray start --head`, or correct the address"
        raise SpecError(f"--address {address}", [f"nothing answers ({error}); {advice}"]) from error


def _concurrency(resources: Resources, nodes: list[dict[str, float]]) -> int:
    """Trials at once: what fits on each node, since a trial cannot straddle two."""
    wanted = {"CPU": float(resources.cpus_per_trial), "GPU": resources.gpus_per_trial}
    fits = sum(min(math.floor(node.get(kind, 0.0) / need) for kind, need in wanted.items() if need) for node in nodes)
    if not fits:
        has = "; ".join(", ".join(f"{node.get(kind, 0.0):g} {kind}s" for kind in wanted) for node in nodes)
        raise SpecError(
            "resources",
            [
                f"a trial takes {resources.cpus_per_trial} CPUs and {resources.gpus_per_trial:g} GPUs, "
                f"the nodes have: {has}; lower resources.cpus_per_trial or resources.gpus_per_trial"
            ],
        )
    return fits
