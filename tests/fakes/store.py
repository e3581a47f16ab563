"""An object store and a database server that can go away."""

from __future__ import annotations

import io
import sqlite3
import time
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSystemHandler, FileType, PyFileSystem


class Store(FileSystemHandler):
    """What `pyarrow.fs` sees of an object store: files without folders, whole once their stream is closed.

    Attributes:
        files: path -> (content, time of the write).
        away: how many requests fail before the store answers again.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, float]] = {}
        self.away = 0
        self.system = PyFileSystem(self)

    def below(self, folder: str) -> dict[str, bytes]:
        """The files below a folder, by their names there."""
        found = {path: content for path, (content, _) in self.files.items() if path.startswith(f"{folder}/")}
        return {path.removeprefix(f"{folder}/"): content for path, content in found.items()}

    def _asked(self) -> None:
        if self.away:
            self.away -= 1
            raise OSError("the store does not answer")

    def _info(self, path: str) -> FileInfo:
        if path not in self.files:
            return FileInfo(path, FileType.NotFound)
        content, written = self.files[path]
        return FileInfo(path, FileType.File, size=len(content), mtime=written)

    def get_type_name(self) -> str:
        return "store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        self._asked()
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[FileInfo]:
        self._asked()
        names = self.below(selector.base_dir)
        return [self._info(f"{selector.base_dir}/{name}") for name in names if selector.recursive or "/" not in name]

    def open_input_file(self, path: str) -> pa.PythonFile:
        self._asked()
        if path not in self.files:
            raise FileNotFoundError(path)
        return pa.PythonFile(io.BytesIO(self.files[path][0]), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: object) -> pa.PythonFile:
        self._asked()
        return pa.PythonFile(_Written(self, path), mode="w")

    def delete_file(self, path: str) -> None:
        self._asked()
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def _unused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _unused
    copy_file = move = open_append_stream = _unused


class _Written(io.BytesIO):
    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self.store, self.path = store, path

    def close(self) -> None:
        if not self.closed:
            self.store.files[self.path] = self.getvalue(), time.time()
        super().close()


class Server:
    """A database's server, in front of SQLite, that does not answer for a while.

    Attributes:
        away: how many statements fail before it answers again.
        lost: how many commits are made before the answer to one is lost; None if none will be.
    """

    def __init__(self) -> None:
        self.away, self.lost = 0, None

    def execute(self) -> None:
        """Before a statement."""
        if self.away:
            self.away -= 1
            raise sqlite3.OperationalError("server closed the connection unexpectedly")

    def committed(self) -> None:
        """After a commit."""
        if self.lost is not None:
            self.lost = self.lost - 1 if self.lost else None
            if self.lost is None:
                raise sqlite3.OperationalError("server closed the connection unexpectedly")
