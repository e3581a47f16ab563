"""Asks a Ray head whether it answers, and for which token.

Ray itself would retry for a quarter of a minute or more, and then not say that it has no token or a wrong one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from study.cluster.compat import found_address, read_authentication
from study.errors import ClusterError

CONNECT_SECONDS = 10.0
_MODE, _TOKEN, _FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_ADVICE = f"set {_TOKEN} to what it is on the cluster's head; `ray get-auth-token` prints it there"
# A question of which Ray's head asks for a token alone, and how it refuses.
_QUESTION, _REFUSED = "/ray.rpc.NodeInfoGcsService/GetClusterId", "InvalidAuthToken"


def token() -> tuple[str, str]:
    """The token that Ray finds on this machine, empty if there is none, and the variable or file that holds it."""
    if value := os.environ.get(_TOKEN, "").strip():
        return value, _TOKEN
    with suppress(OSError, RuntimeError):  # no file, or no home
        file = Path(os.environ.get(_FILE) or Path.home() / ".ray" / "auth_token")
        return file.read_text(encoding="utf-8").strip(), str(file)
    return "", ""


def no_token() -> str:
    """What is wrong if a cluster refuses the token of this machine."""
    held, where = token()
    wrong = f"{where} has another" if held else "this machine has none"
    return f"the cluster asks for a token, and {wrong}; {_ADVICE}"


@contextmanager
def presenting(mode: str, secret: str) -> Iterator[None]:
    """Let Ray, imported or not, use a mode of authentication, "token" or "disabled", and a token while this lasts."""
    try:
        with environment({_MODE: mode, _TOKEN: secret or os.environ.get(_TOKEN)}):
            read_authentication()
            yield
    finally:
        read_authentication()


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or with None remove them, while this lasts."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def reach(address: str) -> tuple[str, str]:
    """The address of a Ray head as host:port, and its mode of authentication, "token" or "disabled".

    Raises:
        ClusterError: if no Ray head listens there, or it asks for a token that this machine does not have.
    """
    source = f"--address {address}"
    if address.startswith(("ray://", "http://", "https://")):
        advice = "give host:6379 on a node of the cluster, or send the study there: `study submit --address http://HEAD:8265`"
        raise ClusterError(source, f"a study cannot be driven through this port; {advice}")
    place = found_address() if address == "auto" else address
    if not place.rpartition(":")[2].isdigit():
        raise ClusterError(
            source, "no cluster runs on this machine; valid: auto on a node of a cluster, or host:port of its head"
        )
    secret = token()[0]
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # Ray alone knows its certificates
        return place, "token" if secret else "disabled"
    if not _refuses(source, place, ""):
        return place, "disabled"
    if not secret or _refuses(source, place, secret):
        raise ClusterError(source, no_token())
    return place, "token"


def _refuses(source: str, address: str, secret: str) -> bool:
    """Whether a Ray head refuses a question with a token, or without one if it is empty."""
    import grpc

    host, _, port = address.rpartition(":")
    advice = "start Ray there with `ray start --head`, or correct the address"
    try:  # gRPC does not say why it finds nothing
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(source, f"nothing answers ({error}); {advice}") from error
    shown = [("authorization", f"Bearer {secret}")] if secret else []
    states: list[object] = []
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        channel.subscribe(states.append)
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=CONNECT_SECONDS, metadata=shown)  # a message of no bytes
        except grpc.RpcError as error:
            silent = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if silent and grpc.ChannelConnectivity.READY not in states:  # a busy head answers late
                message = f"the server there is not a Ray head, whose port is 6379; {advice}"
                raise ClusterError(source, message) from error
            return _REFUSED in str(error.details())
    return False
