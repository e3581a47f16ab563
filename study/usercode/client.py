"""Asks `trainables.usercode.probe`, a process of its own, to try the user code of a spec."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainables.config import Reading
from trainables.storage import data_folder
from trainables.usercode import importing
from trainables.usercode.importing import is_import_path
from trainables.usercode.request import Answer, Request
from trainables.workloads.catalogue import CATALOGUE

# Share of the machine's memory that the process may take.
MEMORY_SHARE = 0.7
# For Python and torch to start.
START_SECONDS = 120
# Networks at the corners of the space that are tried, at most.
MOST_NETWORKS = 32
_ROOT = Path(importing.__file__).resolve().parents[2]


def paths_in(tables: Mapping[str, Any]) -> dict[str, str]:
    """The import paths in the tables of a spec, valid or not, each with its key."""
    workload, optimizers = table(tables, "workload"), table(tables, "search").get("optimizer")
    named = [(f"workload.{key}", workload.get(key)) for key in ("data", "model", "loss", "metric", "score")]
    named += [("baseline.optimizer", each.get("optimizer")) for each in arrays(tables, "baseline")]
    named += [("search.optimizer", each) for each in (optimizers if isinstance(optimizers, list) else [optimizers])]
    return {name: key for key, name in named if isinstance(name, str) and is_import_path(name)}


def request(
    tables: Mapping[str, Any],
    code: str,
    folders: list[str],
    sizes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Mapping[str, list[Any]]],
) -> Request:
    """What to try of the tables of a spec, valid or not; `sizes` and `settings` have the values to try."""
    workload, paths = table(tables, "workload"), paths_in(tables)

    def path(*keys: str) -> str:
        names = [workload.get(key) for key in keys]
        return next((path for path in names if isinstance(path, str) and path in paths), "")

    data = str(workload.get("data", ""))
    known = CATALOGUE.get(data)
    combinations = itertools.islice(itertools.product(*sizes.values()), MOST_NETWORKS)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Request(
        code=code,
        folders=folders,
        data=data,
        facts=dataclasses.asdict(known) if known else None,
        data_folder=str(data_folder()),
        redraw=workload.get("redraw") is True,
        model=path("model"),
        networks=[dict(zip(sizes, values, strict=True)) for values in combinations] if path("model") else [],
        optimizers={name: dict(settings.get(name, {})) for name, key in paths.items() if key.endswith("optimizer")},
        loss=path("loss"),
        score=path("score", "metric"),
        standardize=workload.get("standardize") is not False,
        dtype="float64" if workload.get("dtype") == "float64" else "float32",
        memory_bytes=int(MEMORY_SHARE * memory),
        reading=_reading({name: workload[name] for name in vars(Reading()) if name in workload}),
        images=workload.get("model") == "cnn",
    )


def _reading(given: dict[str, Any]) -> dict[str, Any]:
    """What a spec says about reading its data, without defaults, and invalid values, which its section reports."""
    try:
        reading = TypeAdapter(Reading).validate_python(given)
    except ValidationError as error:
        wrong = {each["loc"][0] for each in error.errors()}
        return _reading({name: value for name, value in given.items() if name not in wrong})
    return {name: value for name, value in vars(reading).items() if value != getattr(Reading(), name)}


def key(request: Request) -> str:
    """A hash of a request, the same on every machine."""
    fields = {**dataclasses.asdict(request), "code": "", "folders": [], "data_folder": "", "memory_bytes": 0}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def ask(request: Request) -> Answer:
    """The probe's answer; if it died or took too long, an answer with this mistake.

    A RuntimeError if the process ended before it tried anything.
    """
    messages, sender = Pipe(duplex=False)
    stage: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as held, Path(held, "output").open("w+b") as output:
        # Without the user's folders: the probe adds them last, as a file there may have the name of a standard module.
        path = [each for each in sys.path if each and (str(Path(each).resolve()) not in request.folders)]
        search = os.pathsep.join([str(_ROOT), *map(os.path.abspath, path)])
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainables.usercode.probe", str(sender.fileno())],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=held,
            pass_fds=[sender.fileno()],
            start_new_session=True,
        )
        sender.close()
        assert child.stdin
        try:
            with child.stdin:
                child.stdin.write(json.dumps(dataclasses.asdict(request)).encode())
            while messages.poll(_limit(stage)):
                stage = json.loads(messages.recv_bytes())
                if "doing" not in stage:
                    return Answer(**stage)
        except (EOFError, BrokenPipeError):  # it died, or will at once
            with suppress(subprocess.TimeoutExpired):
                child.wait(_limit(stage))
        finally:
            messages.close()
            if late := child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if not stage:
        raise RuntimeError(text)
    why = _why(child.returncode, text)
    if late:
        why = f"took more than {_limit(stage):.0f} s; do less there, or check that it ends"
    return Answer(mistakes=[f"{stage['key']}: {stage['path']}: {stage['doing']} {why}"])


def _limit(stage: Mapping[str, Any]) -> float:
    """Seconds that the probe may take for a step; at first there is none."""
    return float(stage.get("seconds", START_SECONDS))


def _why(code: int, output: str) -> str:
    """Why the process gave no answer: its exit code, and the last line of its output."""
    if code == -signal.SIGKILL:
        return "was killed, probably because memory ran out; use less memory"
    *_, last = output.strip().splitlines() or ["it printed nothing"]
    return f"ended the process with {code} ({last.strip()})"


def arrays(tables: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The tables of an array within tables of a spec, valid or not."""
    below = tables.get(name)
    return [each for each in below if isinstance(each, Mapping)] if isinstance(below, list) else []


def table(tables: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A table within tables of a spec, valid or not; empty if there is none."""
    for name in names:
        below = tables.get(name)
        tables = below if isinstance(below, Mapping) else {}
    return tables
