"""Reads and writes files in a folder or at a URI of an object store (s3://bucket/name), from any node of a cluster.

A file's place is a path or a URI, as text. Writes are atomic: object stores show a file only when it is complete.
Credentials and the endpoint come from where the store's SDK looks (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, an
instance's role ...), or from the URI's query as Arrow reads it.
"""

from __future__ import annotations

import io
import os
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

SCHEMES = ("s3", "gs")


# What a URI is made of; what would have to be written with % has another name in a store's own tools.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([A-Za-z0-9/._~!$&'()*+,;=:@-]*)(\?[^#]*)?")
# A path that was meant as one: the slashes of a URI become one in a `Path`.
_SLIP = re.compile(rf"({'|'.join(SCHEMES)}):")


def data_folder() -> Path:
    """The folder for downloaded data: STUDY_DATA, or `data` in the user's cache folder. Always absolute."""
    if configured := os.environ.get("STUDY_DATA"):
        return Path(configured).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("optimizer-study") / "data"


def place(given: str | Path) -> Path | str:
    """A results folder as a path, or the URI of one as text.

    Raises:
        ValueError: if it can be neither; the message says what is wrong and what is valid.
    """
    text, valid = str(given), "valid: a folder (NFS too), " + ", ".join(f"{each}://BUCKET/NAME" for each in SCHEMES)
    if not is_uri(text):
        if _SLIP.match(text):
            raise ValueError(f"{text!r} is not a URI, as it lacks a slash after the scheme; {valid}")
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"{text!r} cannot hold results; {valid}")
    if "@" in rest.split("/")[0]:  # it would stand in every message and in the provenance
        told = "has a user or password; put it where the SDK finds it, as into AWS_SECRET_ACCESS_KEY"
        raise ValueError(f"{scheme}://... {told}")
    if not (found := _URI.fullmatch(text)):
        raise ValueError(
            f"{text!r} has characters that are not allowed; valid: letters, digits, / and -._~!$&'()*+,;=:@"
        )
    if not found[2]:
        raise ValueError(f"{text!r} names no bucket; {valid}")
    return join(text)


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI."""
    return "://" in str(place)


def join(place: str | Path, *names: str) -> str:
    """A place below another."""
    if not is_uri(place):
        return str(Path(place, *names))
    parts = urlsplit(str(place))
    return parts._replace(path="/".join([parts.path.rstrip("/"), *names])).geturl()


def at(uri: str) -> tuple[Any, str]:
    """The file system of a URI, from `pyarrow.fs`, and the path there."""
    parts = urlsplit(uri)
    return _file_system(f"{parts.scheme}://{parts.netloc}", parts.query), f"{parts.netloc}{parts.path}".rstrip("/")


@cache
def _file_system(bucket: str, query: str) -> Any:
    from pyarrow.fs import FileSystem

    # A small file is one request instead of three.
    once = "allow_delayed_open=true" if bucket.startswith("s3:") else ""
    return FileSystem.from_uri(f"{bucket}?{'&'.join(filter(None, [query, once]))}")[0]


def write(place: str | Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: readers find the old one or the whole new one, also after a loss of power.

    Args:
        place: path or URI of the file; its folder must exist.
        fill: writes the content.
    """
    if is_uri(place):
        buffer = io.BytesIO()
        fill(buffer)
        system, path = at(str(place))
        with system.open_output_stream(path) as stream:
            stream.write(buffer.getbuffer())
        return
    file = Path(place)
    # A worker that Ray has given up may still write the same file.
    unfinished = file.with_name(f"{file.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a loss of power
    finally:
        os.close(folder)


def write_bytes(place: str | Path, content: bytes) -> None:
    """Write a file's content atomically."""
    write(place, lambda stream: stream.write(content))


def write_text(place: str | Path, text: str) -> None:
    """Write a file's text atomically, as UTF-8."""
    write_bytes(place, text.encode())


def read(place: str) -> BinaryIO | None:
    """A file's content, to be read from any point; None if there is no such file."""
    try:
        if not is_uri(place):
            return Path(place).open("rb")
        system, path = at(place)
        with system.open_input_file(path) as stream:
            return io.BytesIO(stream.read())
    except FileNotFoundError:
        return None


def delete(place: str) -> None:
    """Delete a file, if it is there."""
    if not is_uri(place):
        Path(place).unlink(missing_ok=True)
        return
    system, path = at(place)
    try:
        system.delete_file(path)
    except FileNotFoundError:
        return


def names(place: str) -> list[str]:
    """The names of the files in a folder; none if there is no such folder."""
    if not is_uri(place):
        return sorted(file.name for file in Path(place).glob("*"))
    from pyarrow.fs import FileSelector, FileType

    system, path = at(place)
    found = system.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(each.base_name for each in found if each.type == FileType.File)
