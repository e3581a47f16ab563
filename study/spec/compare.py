"""Compares specs: which settings define a study, and which of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.schema import flat
from study.spec import Spec

# Settings that may change while a study is interrupted: they affect no trial's numbers.
_FREE: dict[str, Any] = {
    "description": True,
    "confirm": True,
    "baseline": True,
    "recording": True,
    "resources": True,
    "budget": {"trials"},
    "tuning": {"storage", "timeout", "warm_start"},  # what the sampler knows is copied when a study begins
}


def fixed_settings(spec: Spec) -> dict[str, Any]:
    """Settings that affect the numbers of trials, as `section.key` -> value: two studies are the same if these are."""
    return dict(flat(spec.model_dump(mode="json", exclude=_FREE)))


def all_settings(spec: Spec) -> dict[str, Any]:
    """All settings of a spec as `section.key` -> value, without those that are not set."""
    return dict(flat(spec.model_dump(mode="json", exclude_none=True)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, sorted by key, as key -> (old value, new value); None where a side lacks one."""
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
