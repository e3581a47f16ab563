"""What is wrong with a cluster's nodes, from what they say of themselves."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from study import cluster, preflight
from study.preflight import Node
from study.spec import Resources, SpecError

HERE = {package: importlib.metadata.version(package) for package in preflight.PACKAGES}
FIT = Node("a (10.0.0.1)", {"CPU": 4.0}, HERE, free_bytes=8 << 30)
NFS = Path("/nfs/out")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"versions": {**HERE, "torch": "1.0"}},
            f"has torch 1.0, here it is {HERE['torch']}; numbers would differ, install the same version everywhere",
        ),
        ({"versions": {**HERE, "numpy": ""}}, f"has no numpy; install numpy {HERE['numpy']} there"),
        ({"ahead_seconds": 90.0}, "its clock is 90 s ahead; set it by NTP"),
        ({"ahead_seconds": -7.0}, "its clock is 7 s behind; set it by NTP"),
        (
            {"missing": {"own": "ModuleNotFoundError: No module named 'timm'"}},
            "cannot import own (ModuleNotFoundError: No module named 'timm'); install there what it needs",
        ),
        ({"sees": False}, "cannot write into /nfs/out; give a folder that all nodes share (NFS) with --out"),
        # Of one that is silent nothing else is known.
        (
            {"problem": "has not answered within 20 s; look at its logs", "versions": {}, "sees": False},
            "has not answered within 20 s; look at its logs",
        ),
    ],
)
def test_each_mistake_is_one_message_that_names_the_node(wrong: dict[str, Any], told: str) -> None:
    assert preflight.mistakes([FIT], NFS) == []
    unfit = replace(FIT, name="b (10.0.0.2)", **wrong)
    assert preflight.mistakes([FIT, unfit], NFS) == [f"node b (10.0.0.2): {told}"]


def test_too_little_memory_is_one_message_that_names_the_node() -> None:
    assert "4 trials at once" in preflight.describe(Resources(), [FIT], 2 << 30)
    with pytest.raises(SpecError) as told:
        preflight.describe(Resources(), [FIT, replace(FIT, name="b (10.0.0.2)", free_bytes=3 << 30)], 1 << 30)
    assert told.value.mistakes == [
        "node b (10.0.0.2): 4 trials at once take 4.0 GiB, 3.0 GiB are free; raise resources.cpus_per_trial"
    ]


def ray_node(name: str, **resources: float) -> dict[str, Any]:
    """As `ray.nodes()` tells of one."""
    return {"NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1", "Resources": resources, "Alive": True}


def test_a_cluster_without_gpus_is_told_with_its_nodes() -> None:
    told = cluster._too_small(Resources(gpus_per_trial=0.5), [ray_node("a", CPU=4.0)])
    assert told == (
        "a trial takes 1 CPUs and 0.5 GPUs, the nodes have: a (10.0.0.1) 4 CPUs, 0 GPUs; "
        "lower resources.cpus_per_trial or resources.gpus_per_trial"
    )
