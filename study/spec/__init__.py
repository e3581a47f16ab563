"""The spec: one TOML file that says what to search, how long, and on what. Importing it does not import torch."""

from study.spec.model import Spec
from study.spec.reading import SHIPPED, check, find, read, recorded

__all__ = ["SHIPPED", "Spec", "check", "find", "read", "recorded"]
