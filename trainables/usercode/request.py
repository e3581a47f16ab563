"""What the probe of user code is asked, and what it answers; both travel as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What to try.

    Attributes:
        code: folder of the bundle.
        folders: where its modules were copied from; they come last on the path, to find modules the bundle lacks.
        data: name in the catalogue, or import path.
        facts: of a data set in the catalogue, as fields of `Facts`; None for a user's.
        data_folder: folder of downloaded data.
        redraw: whether each trial draws the data again.
        model: import path; empty for a shipped family.
        networks: width, depth and arguments of the networks to build.
        optimizers: import path -> setting -> values to try.
        loss, score: import paths; empty if there are none.
        standardize, dtype: of the workload.
        memory_bytes: limit of the process.
        reading: fields of a `Reading`.
        images: whether the model needs images.
    """

    code: str
    folders: list[str]
    data: str
    facts: dict[str, Any] | None
    data_folder: str
    redraw: bool
    model: str
    networks: list[dict[str, Any]]
    optimizers: dict[str, dict[str, list[Any]]]
    loss: str
    score: str
    standardize: bool
    dtype: str
    memory_bytes: int
    reading: dict[str, Any] = field(default_factory=dict)
    images: bool = False


@dataclass
class Answer:
    """The result of a probe.

    Attributes:
        facts: of a user's data set, as fields of `Facts`.
        mistakes: what cannot be used, with its key in the spec and what is expected.
        notes: what the user should know before the study runs.
        lacking: top-level modules that were imported and that the bundle lacks.
        elsewhere: hashes of imported files that are neither in the bundle nor installed.
        lone: why the model cannot train on one example, as with batch normalisation; empty if it can.
        optimizers: import path -> properties of the optimizer, as fields of `OptimizerFacts`.
    """

    facts: dict[str, Any] | None = None
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)
    lone: str = ""
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
