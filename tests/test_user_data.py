"""Data sets of users, and the batch sizes that their models can train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from study.errors import SpecError
from study.spec import check
from trainables.usercode.importing import UserCodeError
from trainables.workloads import data


def constant() -> dict[str, tuple[Tensor, Tensor]]:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0], torch.full((30,), 7.0)], 1)
    return {"train": (x, y), "validation": (x, y), "test": (x, y)}


def one_class() -> dict[str, tuple[Tensor, Tensor]]:
    return dict.fromkeys(("train", "validation", "test"), (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)))


def with_gradient() -> dict[str, tuple[Tensor, Tensor]]:
    x = torch.randn(5, 2, requires_grad=True)
    return dict.fromkeys(("train", "validation", "test"), (x, x[:, :1] * 2))


def unsigned() -> dict[str, Any]:
    pair = np.arange(12, dtype=np.uint16).reshape(6, 2), np.arange(6, dtype=np.uint16) % 2
    return dict.fromkeys(("train", "validation", "test"), pair)


def test_load_accepts_or_refuses_user_data(tmp_path: Path) -> None:
    found = data.load("tests.test_user_data:constant", tmp_path, standardize=True)
    assert found.train.targets[:, 0].std().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(found.train.targets[:, 1], torch.zeros(30))
    single = data.load("tests.test_user_data:lonely", tmp_path, standardize=True)
    assert single.train.inputs.isfinite().all()
    assert single.train.targets.isfinite().all()
    assert not data.load("tests.test_user_data:with_gradient", tmp_path).train.targets.requires_grad
    assert data.load("tests.test_user_data:unsigned", tmp_path).out_features == 2
    with pytest.raises(UserCodeError, match="one_class: all targets are 0; expected two classes or more"):
        data.load("tests.test_user_data:one_class", tmp_path)


def lonely() -> dict[str, tuple[Tensor, Tensor]]:
    return dict.fromkeys(("train", "validation", "test"), (torch.ones(1, 2), torch.ones(1)))


class Batched(nn.Module):
    """Normalises over the batch."""

    def __init__(self, in_shape: tuple[int, ...], out_features: int) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(in_shape[0]), nn.Linear(in_shape[0], out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(x))
        return out


@pytest.mark.parametrize(
    ("sizes", "more", "told"),
    [([7, 15], {}, "search.batch_size = 7: the last batch of an epoch has one of the 302 examples"),
     ({"low": 6, "high": 8}, {}, "search.batch_size = 7: the last batch"),
     ([1, 6], {"drop_last": True}, "search.batch_size = 1: tests.test_user_data:Batched cannot train on one example"),
     ([6, 7], {"drop_last": True}, "")],
)  # fmt: skip
def test_check_refuses_batches_of_one_for_batch_norm(
    sizes: Any, more: dict[str, bool], told: str, tmp_path: Path
) -> None:
    tables = {
        "name": "own",
        "workload": {"data": "tests.test_user_data:many", "model": "tests.test_user_data:Batched"},
        "search": {"batch_size": sizes, "optimizer": "adam"},
        "budget": {"trials": 2, "epochs": 1, **more},
    }
    if not told:
        check(tables, "own.toml", tmp_path)
        return
    with pytest.raises(SpecError) as raised:
        check(tables, "own.toml", tmp_path)
    assert told in str(raised.value)
    assert "Expected more than 1 value per channel" in str(raised.value)


def many() -> dict[str, tuple[Tensor, Tensor]]:
    x = torch.randn(302, 2, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), (x, x.sum(1)))
