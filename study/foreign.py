"""Users' models, data sets, optimizers, losses and scores, as far as a study's driver has to do with them.

They are tried in a process of its own before anything else is done with them, so that what is wrong with one is one
message. The modules that they are made of are copied into the results folder, as `code/`: a study that is resumed, or
read later, runs what it began with, and nodes of a cluster get them from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables import foreign
from trainables.data import CATALOGUE, Facts, data_folder
from trainables.foreign import is_foreign
from trainables.inspection import Answer, Request

CODE, ANSWERS = "code", "inspected.json"
# Of a machine's memory, so much may be taken when something is tried.
MEMORY_SHARE = 0.7
# For Python and torch to start.
START_SECONDS = 120
# Networks at the corners of the space that are tried, at most.
MOST_NETWORKS = 32
# What is no module is copied along with a package up to this size, all together.
MOST_BYTES = 64 << 20

FACTS: dict[str, Facts] = {}
"""Of the users' data sets that have been tried in this process."""
_ANSWERS: dict[str, Answer] = {}
_LAST: dict[str, Answer] = {}


def paths_in(tables: Mapping[str, Any]) -> list[str]:
    """The import paths in the tables of a spec, valid or not."""
    workload = _table(tables, "workload")
    named = [workload.get(key) for key in ("data", "model", "loss", "metric", "score")]
    optimizers = _table(tables, "search").get("optimizer")
    named += optimizers if isinstance(optimizers, list) else [optimizers]
    return [name for name in named if isinstance(name, str) and is_foreign(name)]


def inspect(tables: Mapping[str, Any], folder: Path, sizes: Mapping[str, Sequence[Any]]) -> Answer:
    """Try all that users bring to a spec, once a process, and a results folder.

    Args:
        tables: of the spec.
        folder: where modules are looked for first, and in its `code/`; then in the current folder.
        sizes: width, depth and model arguments -> values to build networks of.
    """
    code = code_of(folder)
    folders = list(dict.fromkeys(str(each) for each in (code, folder, Path.cwd()) if each and each.is_dir()))
    request = _request(tables, folders, sizes)
    key = _key(request)
    # The code of a results folder does not change any more.
    kept = _kept(code, key) if code else None
    in_process = f"{key} {folders}"
    answer = kept or _ANSWERS.get(in_process) or _asked(request)
    if not answer.mistakes:
        _ANSWERS[in_process] = _LAST[key] = answer
        foreign.search_in(folders)
        if answer.facts:
            FACTS[request.data] = Facts(**{**answer.facts, "in_shape": tuple(answer.facts["in_shape"])})
        if code and not kept and os.access(code, os.W_OK):
            _keep(code, key, answer)
    return answer


def code_of(folder: Path) -> Path | None:
    """The `code/` of a results folder, or of that whose confirmation it is."""
    return next((each / CODE for each in (folder, folder.parent) if (each / CODE / ANSWERS).is_file()), None)


def gather(tables: Mapping[str, Any], folder: Path, sizes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Copy the modules and packages that a spec's import paths need into `code/` of a folder, whole.

    Args:
        tables: of the spec, which has been checked in this process.
        folder: the results folder.
        sizes: as of `inspect`.

    Returns:
        What should be known before the study runs.
    """
    if not paths_in(tables):
        return []
    key = _key(_request(tables, [], sizes))
    answer, code = _LAST[key], folder / CODE
    code.mkdir(parents=True, exist_ok=True)
    _keep(code, key, answer)
    left = MOST_BYTES
    for name, place in answer.code.items():
        source = Path(place)
        if source.is_relative_to(code):
            continue
        if source.is_file():
            shutil.copy2(source, code / source.name)
            continue
        for file in _package(source):
            if file.suffix != ".py":
                left -= file.stat().st_size
            if file.suffix == ".py" or left >= 0:
                there = code / name / file.relative_to(source)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, there)
    return answer.notes


def modules(folder: Path) -> list[str]:
    """The modules and packages in a results folder's `code/`."""
    code = code_of(folder)
    found = code.iterdir() if code else ()
    return sorted(str(each) for each in found if each.suffix == ".py" or (each.is_dir() and each.name.isidentifier()))


def needed(tables: Mapping[str, Any]) -> list[str]:
    """The modules that the import paths of a spec name, which every node must be able to import."""
    return sorted({path.partition(":")[0] for path in paths_in(tables)})


def _package(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside):
            yield file


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, Mapping) else {}


def _request(tables: Mapping[str, Any], folders: list[str], sizes: Mapping[str, Sequence[Any]]) -> Request:
    workload, paths = _table(tables, "workload"), paths_in(tables)

    def own(*keys: str) -> str:
        found = [workload.get(key) for key in keys]
        return next((path for path in found if isinstance(path, str) and path in paths), "")

    data = str(workload.get("data", ""))
    known = CATALOGUE.get(data)
    combinations = itertools.islice(itertools.product(*sizes.values()), MOST_NETWORKS)
    optimizers = _table(tables, "search").get("optimizer")
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Request(
        folders=folders,
        data=data,
        facts=dataclasses.asdict(known) if known else None,
        data_folder=str(data_folder()),
        redraw=workload.get("redraw") is True,
        model=own("model"),
        networks=[dict(zip(sizes, values, strict=True)) for values in combinations] if own("model") else [],
        optimizers=[name for name in optimizers if isinstance(name, str) and is_foreign(name)],
        loss=own("loss"),
        score=own("score", "metric"),
        standardize=workload.get("standardize") is not False,
        dtype="float64" if workload.get("dtype") == "float64" else "float32",
        memory_bytes=int(MEMORY_SHARE * memory),
    )


def _key(request: Request) -> str:
    """The same for the same request, wherever it is made."""
    asked = {**dataclasses.asdict(request), "folders": [], "data_folder": "", "memory_bytes": 0}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _asked(request: Request) -> Answer:
    """The answer of a process of its own, or why there is none."""
    with tempfile.TemporaryDirectory() as held:
        files = [Path(held) / name for name in ("request.json", "answer.json", "stage.json", "said")]
        question, answer, stage, said = files
        question.write_text(json.dumps(dataclasses.asdict(request)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "trainables.inspection", *map(str, files[:3])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
        with said.open("wb") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                late = _wait(child, stage)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        if answer.is_file():
            return Answer(**json.loads(answer.read_text(encoding="utf-8")))
        at = _stage(stage)
        if at is None:
            raise RuntimeError(said.read_text(errors="replace"))
        if late:
            why = f"took more than {at['seconds']:.0f} s; do less there, or give it an end"
        elif child.returncode == -signal.SIGKILL:
            why = "was killed, as the system does when memory runs out; do with less"
        else:
            *_, last = said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            why = f"ended the process with {child.returncode} ({last.strip()})"
        return Answer(mistakes=[f"{at['key']}: {at['path']}: {at['doing']} {why}"])


def _wait(child: subprocess.Popen[bytes], stage: Path) -> bool:
    """Wait for a process; whether it took longer than what it does may take."""
    doing, until = None, time.monotonic() + START_SECONDS
    while child.poll() is None:
        at = _stage(stage)
        if at != doing:
            doing, until = at, time.monotonic() + (at["seconds"] if at else START_SECONDS)
        if time.monotonic() > until:
            return True
        time.sleep(0.05)
    return False


def _stage(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not begun, or being written
    return found


def _kept(code: Path, key: str) -> Answer | None:
    try:
        kept = json.loads((code / ANSWERS).read_text(encoding="utf-8"))
        return Answer(**kept[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(code: Path, key: str, answer: Answer) -> None:
    (code / ANSWERS).write_text(json.dumps({key: dataclasses.asdict(answer)}, indent=1) + "\n", encoding="utf-8")
