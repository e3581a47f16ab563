"""Sends a study to a cluster through Ray's job server, follows it, and fetches its results."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shlex
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from study.cluster.compat import server_version
from study.cluster.head import no_token, presenting, token
from study.cluster.ray import packages
from study.errors import ClusterError, StorageError, UsageError
from study.spec import Spec
from study.usercode import bundle
from trainables import storage

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Prints a folder as base64 between two marks. The job server serves nothing but logs, and it may be all that is
# reachable from here, through a tunnel.
_BEGIN, _END = "-----BEGIN RESULTS-----", "-----END RESULTS-----"
_PACK = f"""
import base64, io, sys, tarfile
held = io.BytesIO()
with tarfile.open(fileobj=held, mode="w:gz") as archive:
    keep = lambda entry: None if entry.name.split("/")[1:2] in (["checkpoints"], ["tune"], [".lock"]) else entry
    archive.add(sys.argv[1], arcname="results", filter=keep)
print("{_BEGIN}")
print(base64.encodebytes(held.getvalue()).decode())
print("{_END}")
"""
POLL_SECONDS = 0.5


def submit(
    spec: Spec, address: str, out: str, *, wait: float = 0.0, to: Path | None = None, say: Callable[[str], None] = print
) -> int:
    """Run a study as a job of a cluster, or resume the one in `out`; the exit code of the job, 1 if it has none.

    The results are copied to the folder `to` of this machine, if `out` is a folder of the cluster.
    """
    if not storage.is_uri(out) and not Path(out).is_absolute():
        message = (
            "is relative, and a job starts in a folder of its own; give an absolute path that all nodes share, or a URI"
        )
        raise UsageError(f"--out {out}", message)
    if to and not storage.is_uri(out):
        _may_replace(to, out)
    client = _client(address)
    command = ["python", "-m", "study", "run", "spec.toml", "--resume", "--out", out, "--address", "auto", "--plain"]
    with tempfile.TemporaryDirectory() as sent:
        (Path(sent) / "spec.toml").write_text(spec.to_toml(), encoding="utf-8")
        spec.copy_code(Path(sent))
        job = client.submit_job(
            entrypoint=shlex.join([*command, "--wait", f"{wait:g}"]),
            runtime_env={"working_dir": sent, "py_modules": packages(bundle.code_of(Path(sent)))},
            metadata={"study": spec.name},
        )
    say(f"job {job} runs on the cluster; Ctrl-C here leaves it running")
    ended = _follow(client, job, say)
    if to and not storage.is_uri(out) and ended in (0, 1, 130) and to.absolute() != Path(out):
        _may_replace(to, out)
        fetch(client, out, to)
    return ended


def _may_replace(to: Path, out: str) -> None:
    """Raise a `StorageError` if a folder here holds anything but the results in `out` or a copy of them."""
    command: list[str] = []
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no results, or damaged ones
        command = shlex.split(json.loads((to / "provenance.json").read_text(encoding="utf-8"))["command"])
    if to.absolute() == Path(out) or ("--out", out) in pairwise(command):
        return
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        message = f"is not a copy of {out} and would be replaced by one; give a folder that does not exist yet"
        raise StorageError(f"--to {to}", message)


def _client(address: str) -> JobSubmissionClient:
    import ray

    # These would override the address.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    try:
        from ray.job_submission import JobSubmissionClient

        with presenting("token", secret) if (secret := token()[0]) else nullcontext():
            client = JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(f"--address {address}", no_token()) from error
    except ConnectionError as error:
        advice = "is the dashboard running there, or a tunnel to it (`ssh -L 8265:127.0.0.1:8265 HEAD`)?"
        raise ClusterError(f"--address {address}", f"no job server answers; {advice}") from error
    except (RuntimeError, ValueError) as error:
        if "ray[default]" in str(error):
            advice = "pip install 'optimizer-study[cluster]'"
            raise UsageError("study submit", f"needs Ray's job client; {advice}") from error
        raise ClusterError(f"--address {address}", f"{error}; valid: http://HEAD:8265") from error
    theirs = server_version(client)
    if theirs != ray.__version__:
        advice = f"install ray=={theirs} here, or ray=={ray.__version__} there"
        raise ClusterError(f"--address {address}", f"the cluster has Ray {theirs}, here is {ray.__version__}; {advice}")
    return client


def _follow(client: JobSubmissionClient, job: str, say: Callable[[str], None]) -> int:
    """Print the job's output until it ends; its exit code, or 1."""

    async def logs() -> None:
        rest = ""
        async for text in client.tail_job_logs(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                say(line)
        if rest:
            say(rest)

    try:
        with suppress(RuntimeError):  # the connection was cut; the job's end decides
            asyncio.run(logs())
        info = _ended(client, job)
    except KeyboardInterrupt:
        address = client.get_address()
        say(f"the job continues; to follow it: ray job logs --follow --address {address} {job}")
        say(f"to end it: ray job stop --address {address} {job}")
        raise
    if info.driver_exit_code is None and info.message:
        say(str(info.message))
    return 1 if info.driver_exit_code is None else int(info.driver_exit_code)


def _ended(client: JobSubmissionClient, job: str) -> JobDetails:
    """Wait for the end of a job; its details."""
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(POLL_SECONDS)
    return info


def fetch(client: JobSubmissionClient, out: str, to: Path) -> None:
    """Copy a results folder of the cluster's head to this machine, where it replaces the folder `to`."""
    job = client.submit_job(entrypoint=shlex.join(["python", "-c", _PACK, out]))
    info, text = _ended(client, job), client.get_job_logs(job)
    if info.driver_exit_code != 0:
        why = [str(info.message), *text.strip().splitlines()][-1]
        raise StorageError(f"--to {to}", f"{out} could not be fetched ({why}); copy it by hand")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as held:
        try:
            # The log begins with the command, which contains the marks.
            content = base64.b64decode(text.rsplit(_BEGIN, 1)[1].rsplit(_END, 1)[0])
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                # Python before 3.11.4 does not know the filter as an argument.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(held)
        except (IndexError, ValueError, EOFError, OSError, tarfile.TarError) as error:
            kept = f"{to} is left as it was; " if to.exists() else ""
            message = f"{out} did not arrive whole ({error}); {kept}copy it by hand"
            raise StorageError(f"--to {to}", message) from error
        if to.exists():
            to.replace(Path(held) / "replaced")
        (Path(held) / "results").replace(to)
