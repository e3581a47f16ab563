"""What the probe of user code is asked, and what it answers; both travel as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What to try."""

    code: str  # folder of the bundle
    folders: list[str]  # where its modules were copied from; they come last on the path, for modules the bundle lacks
    data: str  # name in the catalogue, or import path
    facts: dict[str, Any] | None  # of a data set in the catalogue, as fields of `Facts`; None for a user's
    data_folder: str  # of downloaded data
    redraw: bool  # whether each trial draws the data again
    model: str  # import path; empty for a shipped family
    networks: list[dict[str, Any]]  # width, depth and arguments of the networks to build
    optimizers: dict[str, dict[str, list[Any]]]  # import path -> setting -> values to try
    loss: str  # import path; empty if there is none
    score: str
    standardize: bool
    dtype: str
    memory_bytes: int  # limit of the process
    reading: dict[str, Any]  # fields of a `Reading`
    images: bool  # whether the model needs images


@dataclass
class Answer:
    """The result of a probe."""

    facts: dict[str, Any] | None = None  # of a user's data set, as fields of `Facts`
    mistakes: list[str] = field(default_factory=list)  # with the key in the spec and what is expected
    notes: list[str] = field(default_factory=list)  # what the user should know before the study runs
    lacking: list[str] = field(default_factory=list)  # top-level modules that were imported and that the bundle lacks
    elsewhere: dict[str, str] = field(default_factory=dict)  # hashes of files neither in the bundle nor installed
    lone: str = ""  # why the model cannot train on one example, as with batch normalisation; empty if it can
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)  # import path -> fields of `OptimizerFacts`
