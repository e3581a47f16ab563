"""Changes of specs: one with other trials, time-out or paths, and which settings of two specs differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from analysis.schema import dotted
from study.errors import SpecError
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


def with_values(spec: Spec, section: str, **values: Any) -> Spec:
    """The spec with other values in a section, which are not checked."""
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=values)})


LOOKS = 5
"""Looks at the confirmation that `until_significant` allows."""


def until_significant(spec: Spec) -> Spec:
    """The spec whose confirmation adds seeds until an optimizer wins; `LOOKS` times its seeds if it has no limit.

    Raises:
        SpecError: if it has no confirmation.
    """
    if not spec.confirm:
        raise SpecError(spec.name, "confirm = false: --until-significant adds fresh seeds; remove it, or add [confirm]")
    return with_values(spec, "confirm", most_seeds=spec.confirm.most_seeds or LOOKS * spec.confirm.seeds)


def planned_trials(spec: Spec) -> int:
    """Trials that a run makes: those of the budget, but no more than a grid has cells."""
    if spec.tuning.sampler != "grid":
        return spec.budget.trials
    optimizers = spec.search.optimizers()
    cells = max(map(spec.cells_of, optimizers)) * len(optimizers) if spec.tuning.fair else spec.cells()
    return int(min(spec.budget.trials, cells))


def resolved(spec: Spec) -> Spec:
    """The spec as a results folder records it: with its planned trials, and absolute paths of other files."""
    spec = with_values(spec, "budget", trials=planned_trials(spec))
    if (earlier := spec.tuning.warm_start) and "://" not in earlier:
        spec = with_values(spec, "tuning", warm_start=str(Path(earlier).absolute()))
    try:
        url = make_url(spec.tuning.storage or "")
    except ArgumentError:
        return spec  # no URL, or a wrong one, which opening the database reports
    if url.get_backend_name() != "sqlite" or not url.database or "${" in url.database:
        return spec
    # In the text, as rendering a URL would quote the ${VARIABLE} of its query.
    driver, _, rest = str(spec.tuning.storage).partition("///")
    absolute = rest.replace(url.database, str(Path(url.database).absolute()), 1)
    return with_values(spec, "tuning", storage=f"{driver}///{absolute}")


def fixed_settings(spec: Spec) -> dict[str, Any]:
    """Settings that affect the numbers of trials, as `section.key` -> value: two studies are the same if these are."""
    return dict(dotted(spec.model_dump(mode="json", exclude=_FREE)))


def all_settings(spec: Spec) -> dict[str, Any]:
    """All settings of a spec as `section.key` -> value, without those that are not set."""
    return dict(dotted(spec.model_dump(mode="json", exclude_none=True)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, sorted by key, as key -> (old value, new value); None where a side lacks one."""
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
