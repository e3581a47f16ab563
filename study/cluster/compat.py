"""Ray's private interfaces: what has no public counterpart, and may change with a new version.

`tests/test_compat.py` fails where it has. `study.tuning.schedulers` uses those of the scheduler that it extends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.tune.experiment import Trial

METRICS = ("last_result", "metric_analysis", "metric_n_steps")


@contextmanager
def listening_beyond_loopback(*, allowed: bool) -> Iterator[None]:
    """Whether Ray may listen for other machines; it reads the variable of the environment when it is imported."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = allowed
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def found_address() -> str:
    """The address, as host:port, of the cluster that Ray finds from this machine; empty if there is none."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError):
        return ""


def read_authentication() -> None:
    """Let this process read again from the environment how it shows itself to a Ray, which is cached."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def kill_descendants() -> None:
    """Kill the processes that this one has started, and theirs: agents of Ray may outlive what started them."""
    import psutil  # Ray brings it

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()


def server_version(client: JobSubmissionClient) -> str:
    """The version of Ray on a job server."""
    return str(client._server_ray_version)


def forward_no_credentials() -> None:
    """Keep Ray Tune from sending AWS's to workers: on command lines, which `ps` shows. Each node has its own."""
    from ray.tune.execution import class_cache

    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = names


def forgive_failure(trial: Trial) -> None:
    """Do not count a trial's last failure against `FailureConfig.max_failures`."""
    trial.run_metadata.num_failures -= 1


def forget(trial: Trial) -> None:
    """Free what Ray Tune keeps of an ended trial until the end: metrics, and copies of its configuration.

    Nobody reads them. The metrics alone take about 50 KB.
    """
    for name in METRICS:
        setattr(trial.run_metadata, name, {})
    trial.config = trial._Trial__unresolved_config = {"trial": trial.config["trial"]}  # type: ignore[attr-defined]
    trial.evaluated_params, trial.experiment_tag = {}, ""
