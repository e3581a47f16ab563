"""Users' models, data sets, optimizers, losses and scores, as far as a study's driver has to do with them.

The rule is: what runs is a copy. Of each module that a spec names, and of all that it imports, what lies beside the
spec, or else in the current folder, is copied first; a package whole. The copy alone is tried, in a process of its own
and in another folder, so that what is wrong with it is one message. It goes into the results folder as `code/`: a study
that is resumed, or read later, runs what it began with, and nodes of a cluster get it from there.
"""

from __future__ import annotations

import ast
import atexit
import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainables.catalogue import CATALOGUE, OPTIMIZERS, Facts, OptimizerFacts
from trainables.storage import data_folder
from trainables.usercode import importing
from trainables.usercode.importing import CODE, OURS, RECORD, digest_of, hash_of, is_foreign, recorded
from trainables.usercode.request import Answer, Request

# Of a machine's memory, so much may be taken when something is tried.
MEMORY_SHARE = 0.7
# For Python and torch to start.
START_SECONDS = 120
# Networks at the corners of the space that are tried, at most.
MOST_NETWORKS = 32
# What is no module is copied along with a package up to this size, all together.
MOST_BYTES = 64 << 20

_ROOT = Path(importing.__file__).resolve().parents[2]
_ANSWERS: dict[tuple[str, str], Answer] = {}


@dataclass(frozen=True)
class Brought:
    """What users bring to a spec, tried.

    Attributes:
        code: folder of the copy of their modules, which is there as long as this process; empty if there are none.
        digest: of its files.
        record: what `code/` in the results is to tell of it: hashes of its files, where they are from, and the answers.
        facts: of a user's data set.
        mistakes: what cannot be used.
        notes: what should be known before the study runs.
        lone: why a user's model cannot train on a single example; empty if it can.
        optimizers: properties of the user's optimizers, by import path.
    """

    code: str = ""
    digest: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    facts: Facts | None = None
    mistakes: Sequence[str] = ()
    notes: Sequence[str] = ()
    lone: str = ""
    optimizers: Mapping[str, OptimizerFacts] = field(default_factory=dict)

    def optimizer(self, name: str) -> OptimizerFacts:
        """Properties of a shipped optimizer, or of one of the user's."""
        return OPTIMIZERS.get(name) or self.optimizers[name]


@dataclass
class _Copy:
    """A copy on its way.

    Attributes:
        folder: where it goes.
        files: name there -> hash.
        sources: module or package -> where it is from.
        mistakes, notes: as of `Brought`.
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path, name: str) -> None:
        """Copy a file."""
        there = self.folder / name
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, there)
        self.files[name] = hash_of(there)


def paths_in(tables: Mapping[str, Any]) -> dict[str, str]:
    """The import paths in the tables of a spec, valid or not, each with its key."""
    workload = _table(tables, "workload")
    named = [(f"workload.{key}", workload.get(key)) for key in ("data", "model", "loss", "metric", "score")]
    optimizers = _table(tables, "search").get("optimizer")
    named += [("search.optimizer", each) for each in (optimizers if isinstance(optimizers, list) else [optimizers])]
    return {name: key for key, name in named if isinstance(name, str) and is_foreign(name)}


def inspect(
    tables: Mapping[str, Any],
    folder: Path,
    sizes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Mapping[str, list[Any]]] | None = None,
) -> Brought:
    """Copy and try all that users bring to a spec; the same once a process, and once a results folder.

    Args:
        tables: of the spec.
        folder: where modules are looked for first, then in the current folder; only in its `code/` if it has one.
        sizes: width, depth and model arguments -> values to build networks of.
        settings: of each optimizer -> values to try.
    """
    paths = paths_in(tables)
    if not paths:
        return Brought()
    code, lacking = code_of(folder), set[str]()
    folders = [] if code else list(dict.fromkeys(each.resolve() for each in (folder, Path.cwd()) if each.is_dir()))
    while True:
        copy = _begun_with(code) if code else _copied(paths, lacking, folders)
        if copy.mistakes:
            return Brought(mistakes=copy.mistakes)
        copy = _settled(copy)
        request = _request(tables, str(copy.folder), [str(each) for each in folders], sizes, settings or {})
        key, digest = _key(request), digest_of(copy.files)
        kept = _kept(code, key) if code else None
        answer = kept or _ANSWERS.get((digest, key)) or _asked(request)
        if set(answer.lacking) <= lacking:
            break
        lacking |= set(answer.lacking)  # imported by a name that is no text in the source
    if answer.mistakes:
        return Brought(mistakes=answer.mistakes)
    _ANSWERS[digest, key] = answer
    answers = (recorded(code).get("answers", {}) if code else {}) | {key: dataclasses.asdict(answer)}
    record = {"files": copy.files, "sources": copy.sources, "answers": answers}
    if code and not kept and os.access(code, os.W_OK):
        _write(code, record)
    facts = answer.facts and Facts(**{**answer.facts, "in_shape": tuple(answer.facts["in_shape"])})
    return Brought(
        str(copy.folder),
        digest,
        record,
        facts or None,
        notes=[*copy.notes, *answer.notes],
        lone=answer.lone,
        optimizers={
            path: OptimizerFacts(**{**each, "rates": tuple(each["rates"])}) for path, each in answer.optimizers.items()
        },
    )


def code_of(folder: Path) -> Path | None:
    """The `code/` of a results folder, or of that whose confirmation it is."""
    return next((each / CODE for each in (folder, folder.parent) if (each / CODE / RECORD).is_file()), None)


def gather(brought: Brought, folder: Path) -> None:
    """Put the copy of the modules into `code/` of a results folder that has none."""
    if brought.code:
        for name in brought.record["files"]:
            there = folder / CODE / name
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(brought.code, name), there)
        (folder / CODE).mkdir(parents=True, exist_ok=True)
        _write(folder / CODE, brought.record)


def needed(tables: Mapping[str, Any]) -> list[str]:
    """The modules that the import paths of a spec name, which every node must be able to import."""
    return sorted({path.partition(":")[0] for path in paths_in(tables)})


def edited(folder: Path) -> list[Path]:
    """The files that are no longer as they were when they were copied into the `code/` of a results folder."""
    kept = recorded(code) if (code := code_of(folder)) else {}
    found = []
    for name, digest in kept.get("files", {}).items():
        file = Path(kept["sources"][Path(name).parts[0].partition(".")[0]]).parent / name
        if file.is_file() and hash_of(file) != digest:
            found.append(file)
    return found


def edited_elsewhere(folder: Path) -> list[Path]:
    """The modules that are neither in the `code/` of a results folder nor installed and are not as they were tried."""
    answers = recorded(code).get("answers", {}) if (code := code_of(folder)) else {}
    hashes = {Path(file): digest for answer in answers.values() for file, digest in answer.get("elsewhere", {}).items()}
    return [file for file, digest in hashes.items() if not file.is_file() or hash_of(file) != digest]


def _begun_with(code: Path) -> _Copy:
    """What a study began with, from the `code/` in its results."""
    kept = recorded(code)
    copy = _Copy(_scratch(), sources=kept.get("sources", {}))
    advice = "is not what the study began with; put it back, or run what it is now into a folder of its own"
    copy.mistakes = [f"{code / name}: {advice}" for name in importing.changed(code)]
    files = kept.get("files")  # which earlier versions did not record
    for name in files or [file.relative_to(code).as_posix() for file in _package(code)]:
        if name != RECORD and (code / name).is_file():
            copy.add(code / name, name)
    copy.files = files or copy.files  # a module may have written to a file of its package
    return copy


def _copied(paths: Mapping[str, str], lacking: Iterable[str], folders: Sequence[Path]) -> _Copy:
    """Copy the modules of import paths, and all that they import and that lies in some folders."""
    importlib.invalidate_caches()
    copy = _Copy(_scratch())
    todo = [(path.partition(":")[0].partition(".")[0], f"{key}: {path}", folders) for path, key in paths.items()]
    todo += [(name, "", folders) for name in lacking]
    while todo:
        name, asked, near = todo.pop(0)
        taken = name in OURS or name in sys.stdlib_module_names
        if name in copy.sources or not (source := _lies(name, near if taken else folders)):
            continue
        if taken:
            if source.parent != _ROOT:
                there = getattr(find_spec(name), "origin", None)
                whose = "this project's own" if name in OURS else "Python's own"
                told = f"{name} is {whose} module ({there}), which is imported in the place of {source}; rename yours"
                copy.mistakes += {f"{asked}: {told}"} - set(copy.mistakes)
            continue
        copy.sources[name] = str(source)
        if source.is_dir():
            _copy_package(copy, source)
        else:
            copy.add(source, source.name)
        for file in [each for each in copy.files if Path(each).parts[0] == source.name and each.endswith(".py")]:
            todo += [(each, asked, [source.parent]) for each in sorted(_imports(copy.folder / file))]
    return copy


def _lies(name: str, folders: Sequence[Path]) -> Path | None:
    """The file of a module, or the folder of a package, that lies in one of some folders."""
    for folder in folders:
        found = PathFinder.find_spec(name, [str(folder)])
        if found and found.origin:
            return Path(found.origin).parent if found.submodule_search_locations else Path(found.origin)
        # A folder without __init__.py counts if nothing that is installed has its name.
        if found and (folder / name).is_dir() and not getattr(PathFinder.find_spec(name), "origin", None):
            return folder / name
    return None


def _copy_package(copy: _Copy, source: Path) -> None:
    left, out = MOST_BYTES, []
    for file in sorted(_package(source), key=lambda each: (each.stat().st_size, each)):
        if file.suffix != ".py" and (left := left - file.stat().st_size) < 0:
            out.append(file)
        else:
            copy.add(file, file.relative_to(source.parent).as_posix())
    if out:
        which = f"{out[-1]}{f' (and {len(out) - 1} others)' if out[1:] else ''}"
        told = f"a package's files are copied up to {MOST_BYTES >> 20} MiB, without {which}; give an absolute path"
        copy.notes.append(told)


def _imports(file: Path) -> set[str]:
    """The top-level modules that a file imports by name, anywhere in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # told of when it is imported
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                found.add(module)
    return {name.partition(".")[0] for name in found} - {""}


@cache
def _scratches() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="study-code-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _scratch() -> Path:
    return Path(tempfile.mkdtemp(dir=_scratches()))


def _settled(copy: _Copy) -> _Copy:
    """The copy where others of the same files are, so that one name stands for the same modules always."""
    place = _scratches() / digest_of(copy.files)
    if place.exists():
        shutil.rmtree(copy.folder)
    else:
        copy.folder.rename(place)
    return dataclasses.replace(copy, folder=place)


def _package(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside):
            yield file


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, Mapping) else {}


def _request(
    tables: Mapping[str, Any],
    code: str,
    folders: list[str],
    sizes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Mapping[str, list[Any]]],
) -> Request:
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
        code=code,
        folders=folders,
        data=data,
        facts=dataclasses.asdict(known) if known else None,
        data_folder=str(data_folder()),
        redraw=workload.get("redraw") is True,
        model=own("model"),
        networks=[dict(zip(sizes, values, strict=True)) for values in combinations] if own("model") else [],
        optimizers={
            name: dict(settings.get(name, {})) for name in optimizers if isinstance(name, str) and is_foreign(name)
        },
        loss=own("loss"),
        score=own("score", "metric"),
        standardize=workload.get("standardize") is not False,
        dtype="float64" if workload.get("dtype") == "float64" else "float32",
        memory_bytes=int(MEMORY_SHARE * memory),
    )


def _key(request: Request) -> str:
    """The same for the same request, wherever it is made."""
    asked = {**dataclasses.asdict(request), "code": "", "folders": [], "data_folder": "", "memory_bytes": 0}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _asked(request: Request) -> Answer:
    """The answer of a process of its own, or why there is none."""
    with tempfile.TemporaryDirectory() as held:
        files = [Path(held) / name for name in ("request.json", "answer.json", "stage.json", "said")]
        question, answer, stage, said = files
        question.write_text(json.dumps(dataclasses.asdict(request)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "trainables.usercode.probe", *map(str, files[:3])]
        # Not the user's folders: they come last there, and a file of theirs might have the name of one of Python's own.
        path = [each for each in sys.path if each and (str(Path(each).resolve()) not in request.folders)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *map(os.path.abspath, path)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with said.open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=held,
                start_new_session=True,
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
        return Answer(**recorded(code)["answers"][key])
    except (KeyError, TypeError):
        return None


def _write(code: Path, record: Mapping[str, Any]) -> None:
    (code / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
