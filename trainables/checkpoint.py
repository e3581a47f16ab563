"""Checkpoints of a trial: at a file or URI of its own, or in Ray Tune's folders."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from trainables import storage
from trainables.lanes.records import Point, Predictions, Trace
from trainables.lanes.stack import out_of_memory

RAY_FILE = "trial.pt"


class Checkpoint:
    """When and where a trial's state is saved. A failure to save or read never fails the trial.

    Args:
        place: file or URI of the trial's own checkpoint; None if Ray Tune's are used.
        seconds: time between two checkpoints, at least.

    Attributes:
        unsaved: whether the trial has made progress since its own checkpoint that should be saved.
        warnings: to be shown with the next result.
    """

    def __init__(self, place: str | None, seconds: float) -> None:
        self.place, self.seconds, self.saved = place, seconds, time.monotonic()
        self.unsaved = False
        self.warnings: list[str] = []

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self.saved >= self.seconds

    def write(self, state: dict[str, Any]) -> None:
        """Write the trial's own checkpoint, or add a warning."""
        assert self.place is not None
        self.saved = begun = time.monotonic()
        try:
            if not storage.is_uri(self.place):
                Path(self.place).parent.mkdir(exist_ok=True)  # not its parents: a removed study stays removed
            storage.write(self.place, partial(torch.save, state))
            self.unsaved = False
        except Exception as error:  # noqa: BLE001  a checkpoint that cannot be written must not end the trial
            # A store that does not answer may block for long: attempts may take a tenth of the time.
            self.saved += 10 * (time.monotonic() - begun)
            failure = f"the checkpoint {self.place} could not be written ({_reason(error)})"
            self.warnings.append(f"{failure}; the trial continues")

    def resume(self, identity: str, restore: Callable[[dict[str, Any]], None]) -> bool:
        """Restore the trial from its own checkpoint; an unusable one is left alone, with a warning.

        Args:
            identity: of the trial, as saved under "trial".
            restore: called with the state.

        Returns:
            Whether the trial was restored.
        """
        if not self.place:
            return False
        try:
            if not (stream := storage.read(self.place)):
                return False
            with stream:
                state = _read(stream)
            if state["trial"] == identity:
                restore(state)
                return True
            why = "belongs to another trial"
        except Exception as error:
            if out_of_memory(error):
                raise
            why = f"cannot be read ({_reason(error)})"
        self.warnings.append(f"the checkpoint {self.place} {why}, so the trial starts again from the beginning")
        return False

    def write_for_ray(self, folder: str, state: dict[str, Any]) -> None:
        """Write the state into a folder of Ray Tune."""
        torch.save(state, Path(folder) / RAY_FILE)
        self.saved = time.monotonic()


def read_for_ray(folder: str) -> dict[str, Any]:
    """The state in a folder of Ray Tune."""
    state: dict[str, Any] = torch.load(Path(folder) / RAY_FILE, weights_only=True, map_location="cpu")
    return state


def plain(record: Point | Trace | Predictions) -> dict[str, Any]:
    """A record with tensors in place of arrays, for `torch.save`."""
    return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in vars(record).items()}


def arrays(saved: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, from the result of `plain`."""
    return {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in saved.items()}


def _read(stream: BinaryIO) -> dict[str, Any]:
    """Read a checkpoint; raises if any part of it is damaged."""
    with zipfile.ZipFile(stream) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} in it is damaged")
    stream.seek(0)
    state: dict[str, Any] = torch.load(stream, weights_only=True, map_location="cpu")
    return state


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
