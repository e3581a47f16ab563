"""Real Ray nodes for tests: each a `ray start` in a network namespace, with an address and a host name of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RAY = str(Path(sys.executable).parent / "ray")
MEMORY = 100_000_000  # bytes of each node's object store
# A node that does not answer is given up after 3 x 2 s instead of half a minute.
_IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def why_not() -> str:
    """What this machine lacks for namespaces; empty if nothing."""
    if missing := [name for name in ("ip", "nsenter", "unshare") if not shutil.which(name)]:
        return f"needs the program {missing[0]}"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"cannot make network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


class Nodes:
    """Some nodes on a network of their own, 10.77.0.0/24; a context."""

    def __init__(self) -> None:
        self.mark = f"n{os.getpid() % 10000}"
        self.running: dict[str, subprocess.Popen[Any]] = {}
        self.addresses: dict[str, str] = {}
        # As on a real cluster: who has no token, is let in nowhere.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        path = {"PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"}  # `python` is to be the one that has Ray
        self.environment = os.environ | _IMPATIENT | token | path
        self.folder = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))  # Ray's sockets need a short path

    def __enter__(self) -> Nodes:
        _ip("netns", "add", self.mark)
        _ip("-n", self.mark, "link", "add", "hub", "type", "bridge")
        _ip("-n", self.mark, "link", "set", "hub", "up")
        return self

    def __exit__(self, *failure: object) -> None:
        for name in list(self.running):
            self.kill(name)
        for name in self.addresses:
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False)
        subprocess.run(["ip", "netns", "del", self.mark], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def head(self) -> str:
        """The address to join."""
        return f"{self.addresses['head']}:6379"

    def start(self, name: str, *options: str, cpus: int = 1, gpus: int = 0, program: Sequence[str] = (RAY,)) -> None:
        """Start a node, the first being called head, and wait until it is there."""
        space = self._add(name)
        own = ["--head", "--port=6379", f"--temp-dir={self.folder}"]
        own += [] if any("dashboard" in option for option in options) else ["--include-dashboard=false"]
        given = own if name == "head" else [f"--address={self.head}"]
        command = [*program, "start", "--block", f"--node-ip-address={self.addresses[name]}", f"--num-cpus={cpus}"]
        command += [f"--num-gpus={gpus}"]
        # Ray's own folder is not shared either: nodes would unpack the same packages into it at the same time.
        script = 'mount -t tmpfs none "$1" && hostname "$2" && shift 2 && exec "$@"'
        apart = ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "--propagation", "private"]
        everything = [*apart, "sh", "-c", script, "sh", str(self.folder), name]
        everything += [*command, f"--object-store-memory={MEMORY}", *given, *options]
        said = self.folder / f"{name}.log"
        with said.open("w") as log:
            self.running[name] = subprocess.Popen(
                everything, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 60
        while "Ray runtime started" not in said.read_text():
            assert self.running[name].poll() is None, said.read_text()
            assert time.monotonic() < until
            time.sleep(0.2)

    def process(self, name: str, command: Sequence[str], cwd: Path, **options: Any) -> subprocess.Popen[str]:
        """Start a process on a node, in a folder."""
        target = ["--target", str(self.running[name].pid), "--net", "--uts", "--mount", f"--wdns={cwd}"]
        apart = ["nsenter", *target, "--", *command]
        return subprocess.Popen(apart, text=True, start_new_session=True, env=self.environment, **options)

    def shell(self, name: str, home: Path) -> Shell:
        """A shell on a node without Ray, whose user has a home, and nothing that is Ray's."""
        home.mkdir(exist_ok=True)
        own = {key: value for key, value in self.environment.items() if not key.startswith("RAY_AUTH")}
        script = 'mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && hostname "$1" && exec bash'
        apart = ["unshare", "--uts", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"]
        self.running[name] = subprocess.Popen(
            ["ip", "netns", "exec", self._add(name), *apart, "--kill-child", "sh", "-c", script, "sh", name],
            env=own | {"HOME": str(home)},
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return Shell(self.running[name])

    def kill(self, name: str) -> None:
        """Take the power off a node: all its processes die at once."""
        listed = subprocess.run(["ip", "netns", "pids", self._space(name)], capture_output=True, text=True, check=True)
        for number in listed.stdout.split():
            try:
                os.kill(int(number), signal.SIGKILL)
            except ProcessLookupError:
                continue
        with self.running.pop(name):  # waits, and closes the pipes of a shell
            pass

    def cut_off(self, name: str) -> None:
        """Pull the cable of a node, whose processes live on."""
        _ip("-n", self._space(name), "link", "set", "wire", "down")

    def _space(self, name: str) -> str:
        return f"{self.mark}-{name}"

    def _add(self, name: str) -> str:
        space, number = self._space(name), len(self.addresses) + 1
        self.addresses[name] = f"10.77.0.{number}"
        _ip("netns", "add", space)
        _ip("-n", self.mark, "link", "add", f"p{number}", "type", "veth", "peer", "name", "wire", "netns", space)
        _ip("-n", self.mark, "link", "set", f"p{number}", "master", "hub", "up")
        _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "wire")
        _ip("-n", space, "link", "set", "wire", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "route", "add", "default", "dev", "wire")  # by which Ray finds the node's own address
        return space


class Shell:
    """A shell into which commands are typed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def type(self, command: str) -> tuple[int, str]:
        """Run a command; its exit code, and what it has printed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f'{command}\necho "THE END $?"\n')
        self.process.stdin.flush()
        lines: list[str] = []
        while (line := self.process.stdout.readline()) and not line.startswith("THE END "):
            lines.append(line)
        return int(line.removeprefix("THE END ") or -1), "".join(lines)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
