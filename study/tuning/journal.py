"""Optuna's journal in a results folder, with a checksum in each line.

A line's `check` is the CRC-32 of all bytes of the file before it, those of its own line included, so that no bit of the
file can change unnoticed. Optuna ignores the key, and reads the lines of earlier versions, which have none.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from study.tuning.compat import JournalOperation

_CHECKED = re.compile(rb'(.*),"check":"([0-9a-f]{8})"}')
# A later operation of the same trial syncs these.
_UNSYNCED = {
    JournalOperation.CREATE_TRIAL,
    JournalOperation.SET_TRIAL_PARAM,
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
}


class Journal(JournalFileBackend):
    """A journal whose lines have checksums; one process at a time writes to it.

    After a loss of power it ends at the last operation that was synced, or later. Those of a trial that begins or ends
    are synced together by the last of them, an attribute or a state, since each sync takes milliseconds.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file, self._size, self._sum = file, 0, 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write the lines of some operations."""
        self._lock.acquire()
        try:
            with self._file.open("r+b") as stream:
                stream.seek(self._size)
                self._sum, lines = zlib.crc32(stream.read(), self._sum), b""
                for log in logs:
                    line = json.dumps(log, separators=(",", ":")).encode()[:-1]
                    check = b',"check":"%08x"}\n' % zlib.crc32(line, self._sum)
                    self._sum = zlib.crc32(line + check, self._sum)
                    lines += line + check
                stream.write(lines)
                stream.flush()
                if any(log["op_code"] not in _UNSYNCED for log in logs):
                    os.fsync(stream.fileno())
                self._size = stream.tell()
        finally:
            self._lock.release()


def damage(file: Path) -> str | None:
    """Which line of a journal is damaged, or why Optuna cannot read it; None if it is whole up to its last newline."""
    total, checked = 0, False
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        found = _CHECKED.fullmatch(line)
        if (checked and not found) or (found and zlib.crc32(found[1], total) != int(found[2], 16)):
            return f"line {number} is damaged"
        try:
            fine = "op_code" in json.loads(line)
        except (ValueError, TypeError, RecursionError):
            fine = False
        if not fine:
            return f"line {number} is damaged"
        checked, total = bool(found), zlib.crc32(line + b"\n", total)
    if not checked:  # of an earlier version
        try:
            JournalStorage(Journal(file)).get_all_studies()
        except Exception as error:  # noqa: BLE001  whatever Optuna raises for it
            return f"Optuna cannot read it ({type(error).__name__}: {error})".splitlines()[0]
    return None
