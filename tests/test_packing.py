"""How many trials share a GPU when the spec leaves it open."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from study.cluster import nodes, packing
from study.cluster.ray import Cluster, fitting
from study.errors import ClusterError, SpecError
from study.spec import Spec, check
from study.spec.model import SHARING, Resources
from study.tuning.space import Space
from tests.test_spec import changed
from trainables.engines.memory import MEMORY_SHARE
from trainables.workloads import models
from trainables.workloads.models import multiplications


def spec(**resources: Any) -> Spec:
    return check(changed(resources={"gpus_per_trial": "auto", **resources}))


@given(st.floats(1e6, 1e12), st.floats(1e9, 1e11))
def test_as_many_trials_share_a_gpu_as_fit_and_no_more(needed: float, memory: float) -> None:
    share = packing.share(needed, memory)
    together = fitting(Resources(gpus_per_trial=share), [{"Resources": {"CPU": 64.0, "GPU": 1.0}}])
    assert 1 <= together <= SHARING
    assert together == 1 or together * needed <= MEMORY_SHARE * memory
    assert together == SHARING or (together + 1) * needed > MEMORY_SHARE * memory


def test_a_larger_cell_needs_more() -> None:
    small, wide, deep = (packing.needs(spec(), 32, width, depth) for width, depth in ((8, 1), (4096, 1), (4096, 3)))
    assert packing.CONTEXT_BYTES < small < wide < deep
    assert packing.needs(spec(), 1, 4096, 1) < packing.needs(spec(), 10_000, 4096, 1)


def test_resolved_computes_the_share_of_the_largest_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(packing.needs(spec(), *corner) for corner in spec().corners())
    monkeypatch.setattr(nodes, "gpu_bytes", lambda: int(4.5 * largest / MEMORY_SHARE))
    assert packing.resolved(spec()).resources.gpus_per_trial == 0.25
    assert packing.resolved(spec(gpu_memory_gib=1e-3)).resources.gpus_per_trial == 1
    fixed = check(changed(resources={"gpus_per_trial": 0.5}))
    assert packing.resolved(fixed) is fixed
    monkeypatch.setattr(nodes, "gpu_bytes", lambda: 0)
    with pytest.raises(ClusterError, match=r"no GPU here tells how much memory it has; set resources\.gpu_memory_gib"):
        packing.resolved(spec())


def test_small_cells_do_without_a_gpu_wherever_they_run() -> None:
    small, large = ({"optimizer": "adam", "batch_size": 32, "width": width, "depth": 1} for width in (8, 4096))
    for resources, kinds in (
        ({"cpu_nodes": True}, ["cpu", "cuda"]),
        ({}, ["cuda", "cuda"]),
        ({"gpus_per_trial": 0}, ["cpu"] * 2),
    ):
        space = Space(spec(**resources), "", "")
        assert [space.configuration(cell, 0)["device"] for cell in (small, large)] == kinds
        confirmed = Space(spec(**resources), "", "", {0: {"learning_rate": 0.1}})
        assert [confirmed.configuration(cell, 0)["device"] for cell in (small, large)] == kinds


class Sequences(nn.Module):
    """Reads 16 numbers one after another."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.embed, self.reader = nn.Linear(1, 256), reader

    def forward(self, x: Tensor) -> Tensor:
        read = self.reader(self.embed(x[..., None]))
        last: Tensor = (read[0] if isinstance(read, tuple) else read)[:, -1]
        return last


@pytest.mark.parametrize(
    ("reader", "products"),
    [
        # Per step: from input and from state to four gates; attention's four maps and two more, without the scores.
        (partial(nn.LSTM, 256, 256, batch_first=True), 4 * 2 * 256 * 256),
        (partial(nn.TransformerEncoderLayer, 256, 8, 1024, batch_first=True), 4 * 256 * 256 + 2 * 256 * 1024),
    ],
)
def test_fused_operations_are_counted(reader: Callable[[], nn.Module], products: int) -> None:
    for frozen in (False, True):
        counted = multiplications(Sequences(reader()).requires_grad_(not frozen), (16,))
        assert 16 * (256 + products) <= counted <= 1.05 * 16 * (256 + products)


def test_a_cell_whose_model_cannot_be_built_is_for_its_trial_to_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        raise ValueError("width must be even")

    monkeypatch.setattr(models, "build", broken)
    cell = {"optimizer": "adam", "batch_size": 32, "width": 9, "depth": 1}
    assert Space(spec(cpu_nodes=True), "", "").configuration(cell, 0)["device"] == "cuda"


def test_trials_for_gpus_wait_but_no_more_than_run() -> None:
    on = Cluster(spec(gpus_per_trial=0.5, cpu_nodes=True).resources)
    on._nodes = {"a": {"Resources": {"CPU": 4.0, "GPU": 1.0}}, "b": {"Resources": {"CPU": 8.0}}}
    on._looked = math.inf
    assert on.fits() == 2
    assert [on.room(on_gpus) for on_gpus in range(5)] == [12, 12, 12, 13, 0]
    assert Cluster(spec(gpus_per_trial=0.5).resources, _nodes=on._nodes, _looked=math.inf).room(9) == 2


def test_what_does_not_go_with_small_cells_on_cpus_is_told() -> None:
    with pytest.raises(SpecError, match=r"cpu_nodes = true lets small cells train without a GPU, but no trial uses"):
        spec(gpus_per_trial=0, cpu_nodes=True)
    with pytest.raises(SpecError) as told:
        check(
            changed(
                resources={"gpus_per_trial": 1, "cpu_nodes": True},
                budget={"trials": 4, "seconds": 5.0},
                tuning={"objectives": ["metric", "train_seconds"], "scheduler": "none"},
                lanes={"engine": "cuda-graph"},
            )
        )
    assert [mistake.split(" ")[0].rstrip(":") for mistake in told.value.mistakes] == [
        "budget.seconds", "tuning.objectives", "lanes.engine",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["all", 1.5, -1, True])
def test_what_is_no_number_of_gpus_is_told(wrong: object) -> None:
    with pytest.raises(SpecError, match=r'resources\.gpus_per_trial = .*valid: 0, 0\.25, 0\.5, 1, 2, "auto"'):
        spec(gpus_per_trial=wrong)
