"""How many trials share a GPU when the spec leaves it open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import packing
from study.cluster import Cluster, fitting
from study.spec import SHARING, Resources, Spec, SpecError, check
from tests.test_spec import changed
from trainables.engines import MEMORY_SHARE


def spec(**resources: Any) -> Spec:
    return check(changed(resources={"gpus_per_trial": "auto", **resources}))


class Silent(Cluster):
    """A cluster whose GPUs say nothing, or something."""

    memory = 0

    def gpu_bytes(self) -> int:
        return self.memory


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


def test_what_is_open_becomes_a_number_of_the_largest_cell() -> None:
    on = Silent(spec().resources)
    largest = max(packing.needs(spec(), *corner) for corner in spec().corners())
    on.memory = int(4.5 * largest / MEMORY_SHARE)
    assert packing.resolved(spec(), on).resources.gpus_per_trial == 0.25
    assert packing.resolved(spec(gpu_memory_gib=1e-3), on).resources.gpus_per_trial == 1
    fixed = check(changed(resources={"gpus_per_trial": 0.5}))
    assert packing.resolved(fixed, on) is fixed
    on.memory = 0
    with pytest.raises(SpecError, match=r"no GPU here tells how much memory it has; set resources\.gpu_memory_gib"):
        packing.resolved(spec(), on)


@pytest.mark.parametrize("wrong", ["all", 1.5, -1, True])
def test_what_is_no_number_of_gpus_is_told(wrong: object) -> None:
    with pytest.raises(SpecError, match=r'resources\.gpus_per_trial = .*valid: 0, 0\.25, 0\.5, 1, 2, "auto"'):
        spec(gpus_per_trial=wrong)
