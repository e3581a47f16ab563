"""Specs and modules for tests of user code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLES: dict[str, Any] = {
    "name": "own",
    "workload": {"data": "digits", "model": "own:Net"},
    "search": {"width": [4, 8], "depth": 1, "batch_size": [32], "optimizer": "adam"},
    "budget": {"trials": 2, "epochs": 1},
    "confirm": False,
}


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_shape, out_features, width, depth):
        super().__init__()
        self.last = nn.Linear(torch.Size(in_shape).numel(), out_features)

    def forward(self, x):
        return self.last(x.flatten(1))
"""


PAIR = "(torch.randn(20, 3), torch.randn(20))"


ALL = "import torch\ndef f(): return {n: PAIR for n in ('train', 'validation', 'test')}\n" + NET


DATA = ALL[: ALL.index(NET)].replace("PAIR", "(torch.randn(40, 3), torch.arange(40) % N)")


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """A folder with modules: name without .py -> text."""
    for name, text in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder
