"""Everything that knows of Ray's cluster: starting or joining it, and what a trial takes of it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from study.spec import Resources, Spec, SpecError

# Read when Ray is imported or started: no per-trial logger files, no usage report, quiet output.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
}


@contextmanager
def connected(spec: Spec, address: str | None) -> Iterator[int]:
    """Join the cluster at an address, or start Ray on this machine; gives how many trials fit at once.

    Args:
        spec: whose resources a trial takes.
        address: as `ray.init` takes it; none starts Ray here, on loopback.

    Raises:
        SpecError: if not even one trial fits.
        ConnectionError: if there is no cluster at the address.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    dashboard = False if address is None else None
    ray.init(address=address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield _concurrency(spec.resources, ray.cluster_resources())
    finally:
        ray.shutdown()


def _concurrency(resources: Resources, available: dict[str, float]) -> int:
    wanted = {"CPU": float(resources.cpus_per_trial), "GPU": resources.gpus_per_trial}
    fits = [math.floor(available.get(kind, 0.0) / amount) for kind, amount in wanted.items() if amount]
    if not min(fits):
        has = ", ".join(f"{available.get(kind, 0.0):g} {kind}s" for kind in wanted)
        raise SpecError(
            "resources",
            [
                f"a trial takes {resources.cpus_per_trial} CPUs and {resources.gpus_per_trial:g} GPUs, "
                f"the cluster has {has}; lower resources.cpus_per_trial or resources.gpus_per_trial"
            ],
        )
    return min(fits)
