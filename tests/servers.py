"""Servers that tests start on loopback and stop: one that speaks S3, and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]
BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        else:
            return


class S3:
    """A server that speaks S3, with one bucket; what it holds outlives `stop`. A context.

    Attributes:
        environment: with what clients find it.
    """

    def __init__(self) -> None:
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="s3-")), free_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> S3:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)

    def uri(self, name: str) -> str:
        """Of a place in the bucket."""
        return f"s3://{BUCKET}/{name}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.s3_server", "127.0.0.1", str(self.port), str(self.folder / "held")]
        log = self.folder / "log"
        with log.open("ab") as output:
            self.running = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        _wait_for(self.port, self.running, log)

    def stop(self) -> None:
        self.running.terminate()
        assert self.running.wait(30) == 0


class Postgres:
    """A PostgreSQL server with a database of its own; a context."""

    def __init__(self) -> None:
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="pg-")), free_port()
        # initdb refuses root.
        self.user = "nobody" if os.geteuid() == 0 else None
        self.url = f"postgresql://study@127.0.0.1:{self.port}/postgres"

    @staticmethod
    def why_not() -> str:
        """What this machine lacks; empty if nothing."""
        return "" if _programs() else "needs PostgreSQL's server programs (Debian: apt-get install postgresql)"

    def __enter__(self) -> Postgres:
        if self.user:
            shutil.chown(self.folder, self.user)
        self._run("initdb", ["-D", str(self.folder / "data"), "-U", "study", "--auth=trust", "--no-sync"])
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(check=False)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self._run("pg_ctl", ["start", "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options])

    def stop(self, *, check: bool = True) -> None:
        """As a machine that loses its power."""
        self._run("pg_ctl", ["stop", "-m", "immediate", "-D", f"{self.folder}/data"], check=check)

    def _run(self, program: str, arguments: Sequence[str], *, check: bool = True) -> None:
        log = self.folder / f"{program}.log"
        with log.open("ab") as output:  # a pipe would stay open as long as the server
            command = [str(_programs() / program), *arguments]  # type: ignore[operator]
            ended = subprocess.run(
                command,
                cwd="/",
                user=self.user,
                stdout=output,
                stderr=output,
                check=False,
                extra_groups=[] if self.user else None,
            )
        assert not check or ended.returncode == 0, log.read_text()


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda file: int(file.parents[1].name))
    on_path = shutil.which("pg_ctl")
    return found[-1].parent if found else Path(on_path).parent if on_path else None
