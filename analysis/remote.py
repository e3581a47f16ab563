"""Fetches results from a URI of an object store (s3://bucket/name) into a local folder, where they are read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import platformdirs
import pyarrow as pa
from filelock import FileLock
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from analysis.schema import TRIES, ResultsError

# Folders that readers do not need.
UNREAD = ("checkpoints", "damaged", "report", "superseded", "tensorboard")


def cache_folder(uri: str, kind: str) -> Path:
    """This user's local cache folder for a URI of results, which need not exist; `kind` is fetched or spool."""
    name = PurePosixPath(f"{urlsplit(uri).netloc}{urlsplit(uri).path}").name
    key = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return platformdirs.user_cache_path("optimizer-study") / kind / f"{name}-{key}"


def fetch(uri: str, folder: Path | None = None, unread: tuple[str, ...] = UNREAD) -> Path:
    """Make a local folder equal to the results at a URI, finished or not, but for the folders of `unread`.

    Other files of the folder are deleted; it is one in the user's cache if none is given. Returns the folder;
    ResultsError if there are no results, or they cannot be read.
    """
    if folder:
        return _fetched(uri, folder, unread)
    folder = cache_folder(uri, "fetched")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # another reader with an older listing would delete new files
        return _fetched(uri, folder, unread)


def _fetched(uri: str, folder: Path, unread: tuple[str, ...]) -> Path:
    try:
        system, root = FileSystem.from_uri(uri)
        for remaining in reversed(range(TRIES)):
            files = listing(system, root, unread)
            if "spec.toml" not in files:
                mistake = "holds no results, because it has no spec.toml; give the URI that `study run` printed"
                raise ResultsError(f"{uri}: {mistake}")
            try:
                for name, info in files.items():
                    _download(system, info, folder / name)
                break
            except FileNotFoundError:
                if not remaining:
                    raise
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{uri}: cannot be fetched ({reason(error)}); is it there, and may you read it?") from error
    for file in [each for each in folder.rglob("*") if each.is_file()]:
        if file.relative_to(folder).as_posix() not in files:
            file.unlink(missing_ok=True)
    return folder


def listing(system: FileSystem, root: str, unread: tuple[str, ...] = ()) -> dict[str, FileInfo]:
    """The files below a path of a file system, by their relative names, without hidden ones."""
    entries = system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    files = {each.path.removeprefix(root).lstrip("/"): each for each in entries if each.type == FileType.File}
    hidden = {name for name in files if any(part.startswith(".") or part in unread for part in name.split("/"))}
    return {name: each for name, each in files.items() if name not in hidden}


def reason(error: Exception) -> str:
    """The error of an object store in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _download(system: FileSystem, info: FileInfo, file: Path) -> None:
    """Download a file, unless the local one has the same time and size."""
    if file.is_file() and (file.stat().st_mtime_ns, file.stat().st_size) == (info.mtime_ns, info.size):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")  # two readers may fetch at the same time
    with system.open_input_file(info.path) as stream:
        unfinished.write_bytes(stream.read())
    os.utime(unfinished, ns=(info.mtime_ns, info.mtime_ns))
    unfinished.replace(file)
