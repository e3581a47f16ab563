"""Asks a Ray head whether it answers, and for which token.

Ray itself would retry for a quarter of a minute or more, and then not say that it has no token or a wrong one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from study.cluster.compat import found_address, read_authentication
from study.errors import ClusterError

CONNECT_SECONDS = 10.0
_MODE, _TOKEN, _FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_ADVICE = f"set {_TOKEN} to what it is on the cluster's head; `ray get-auth-token` prints it there"
# A client's first bytes (RFC 9113, 3.4), the types of frames, and the flags of a frame that ends headers or a stream.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _END_STREAM, _END_HEADERS = 0, 1, 4, 1, 4
# A question of which Ray's head asks for a token alone, and how it refuses.
_QUESTION, _REFUSED = "/ray.rpc.NodeInfoGcsService/GetClusterId", b"InvalidAuthToken"


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
    before = {name: os.environ.get(name) for name in (_MODE, _TOKEN)}
    try:
        os.environ.update({_MODE: mode} | ({_TOKEN: secret} if secret else {}))
        read_authentication()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        read_authentication()


def reach(address: str) -> tuple[str, str]:
    """The address of a Ray head as host:port, and its mode of authentication, "token" or "disabled".

    Raises:
        ClusterError: if no Ray head listens there, or it asks for a token that this machine does not have.
    """
    source = f"--address {address}"
    if address.startswith(("ray://", "http://", "https://")):
        advice = "give host:6379 on a node of the cluster, or send the study there: `study submit --address http://HEAD:8265`"
        raise ClusterError(source, f"a study cannot be driven through this port; {advice}")
    found = found_address() if address == "auto" else address
    if not found.rpartition(":")[2].isdigit():
        raise ClusterError(
            source, "no cluster runs on this machine; valid: auto on a node of a cluster, or host:port of its head"
        )
    secret = token()[0]
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # Ray alone knows its certificates
        return found, "token" if secret else "disabled"
    if not _refuses(source, found, ""):
        return found, "disabled"
    if not secret or _refuses(source, found, secret):
        raise ClusterError(source, no_token())
    return found, "token"


def _refuses(source: str, address: str, secret: str) -> bool:
    """Whether a Ray head refuses a question with a token, or without one if it is empty."""
    host, _, port = address.rpartition(":")
    advice, kinds, answer = "start Ray there with `ray start --head`, or correct the address", [], b""
    fields = {":method": "POST", ":scheme": "http", ":path": _QUESTION, ":authority": address}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    fields |= {"authorization": f"Bearer {secret}"} if secret else {}
    headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    request = _frame(_SETTINGS, 0, 0) + _frame(_HEADERS, _END_HEADERS, 1, headers)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as connection:
            connection.sendall(_HELLO + request + _frame(_DATA, _END_STREAM, 1, bytes(5)))  # a message of no bytes
            with suppress(OSError), connection.makefile("rb") as stream:  # the other side may hang up, or stay silent
                while len(start := stream.read(9)) == 9:
                    answer += stream.read(int.from_bytes(start[:3], "big"))
                    kinds.append(start[3])
                    if kinds[0] != _SETTINGS or (start[3] == _HEADERS and start[4] & _END_STREAM):
                        break
    except (OSError, OverflowError) as error:
        raise ClusterError(source, f"nothing answers ({error}); {advice}") from error
    if kinds[:1] != [_SETTINGS]:
        raise ClusterError(source, f"the server there is no Ray head, whose port is 6379; {advice}")
    return _REFUSED in answer


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _text(text: str) -> bytes:
    """A text in headers of HTTP/2 (RFC 7541, 5.2)."""
    length, rest = bytes([min(len(text), 127)]), len(text) - 127
    while rest >= 0:
        length, rest = length + bytes([rest % 128 + 128 * (rest > 127)]), rest // 128 or -1
    return length + text.encode("ascii", "replace")
