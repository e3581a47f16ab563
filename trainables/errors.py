"""Errors about data, networks and user code."""

from __future__ import annotations


class DataError(RuntimeError):
    """A data set cannot be loaded; the message says what was tried and what to do."""


class ModelError(ValueError):
    """A network cannot be built; the message names the layer that does not fit."""
