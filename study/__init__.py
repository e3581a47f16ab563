"""What is searched and where it runs: spec, space, search, results tables, commands.

    spec = study.check({"name": "mine", "workload": {"data": "digits", "model": "mlp"}, ...})  # or study.read("quick")
    outcome = study.run(spec)                                                                # as `study run` does
    results = analysis.load(outcome.folder)

Names are imported when first used: `study --help` does not pay for torch and Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.api import (
        resume,
        run,
    )
    from study.errors import (
        ClusterError,
        Halted,
        Interrupted,
        SpecError,
        StorageError,
        StudyError,
        UsageError,
    )
    from study.session import (
        Outcome,
    )
    from study.spec import (
        Spec,
        check,
        read,
    )
    from trainables.errors import (
        DataError,
    )

__all__ = [
    "ClusterError",
    "DataError",
    "Halted",
    "Interrupted",
    "Outcome",
    "Spec",
    "SpecError",
    "StorageError",
    "StudyError",
    "UsageError",
    "check",
    "read",
    "resume",
    "run",
]

_HOMES = ("study.errors", "study.spec", "trainables.errors", "study.api")
"""The modules that hold these names, the quickest to import first."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            found = getattr(import_module(home), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module 'study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
