"""Copies and checks user code: the models, data sets, optimizers, losses and scores that a spec names by import path.

A study runs a copy of the user's modules, its bundle. It holds every module that a spec names, and all that these
import, if they lie beside the spec or in the current folder; packages are copied whole. The copy is tried in a process
of its own (`study.usercode.client`), and goes into the results folder as `code/`. So a study that resumes runs the code
it started with, and nodes of a cluster get it from there.
"""

from __future__ import annotations

import ast
import atexit
import dataclasses
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.schema import PROVENANCE, DamagedError, seal, unseal
from study.usercode import client
from study.usercode.client import paths_in
from trainables import storage
from trainables.usercode import importing
from trainables.usercode.importing import CODE, OURS, RECORD, digest_of, hash_of, is_same, is_table, recorded
from trainables.usercode.request import Answer
from trainables.workloads.catalogue import OPTIMIZERS, Facts, OptimizerFacts

# Files of a package that are not modules are copied up to this size in total.
MOST_BYTES = 64 << 20
_ROOT = Path(importing.__file__).resolve().parents[2]
_ANSWERS: dict[tuple[str, str], Answer] = {}


@dataclass(frozen=True)
class UserCode:
    """The user code of a spec, checked."""

    code: str = ""  # folder of the bundle, which exists as long as this process; empty if there is no user code
    digest: str = ""  # of its files
    # contents of its `inspected.json`: `files` with their hashes, `sources`, `answers` of the probe
    record: Mapping[str, Any] = field(default_factory=dict)
    facts: Facts | None = None  # of a user's data set
    mistakes: Sequence[str] = ()  # what cannot be used
    notes: Sequence[str] = ()  # what the user should know before the study runs
    lone: str = ""  # why a user's model cannot train on one example; empty if it can
    # properties of the user's optimizers, by import path
    optimizers: Mapping[str, OptimizerFacts] = field(default_factory=dict)

    def optimizer(self, name: str) -> OptimizerFacts:
        """Properties of a shipped optimizer, or of one of the user's."""
        return OPTIMIZERS.get(name) or self.optimizers[name]


@dataclass
class _Copy:
    """A bundle in the making."""

    folder: Path  # of the bundle
    files: dict[str, str] = field(default_factory=dict)  # name in it -> hash
    # top-level module or package -> file or folder that it was copied from
    sources: dict[str, str] = field(default_factory=dict)
    # mistakes, notes: as in `UserCode`
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path, name: str) -> None:
        """Copy a file."""
        copy = self.folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
        self.files[name] = hash_of(copy)

    def settled(self) -> _Copy:
        """The same bundle in the folder of its digest, which equal bundles of this process share."""
        place = _scratch() / digest_of(self.files)
        if place.exists():
            shutil.rmtree(self.folder)
        else:
            self.folder.rename(place)
        return dataclasses.replace(self, folder=place)


def inspect(
    tables: Mapping[str, Any],
    folder: Path,
    sizes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Mapping[str, list[Any]]] | None = None,
) -> UserCode:
    """Copy and check the user code that the tables of a spec name, valid or not.

    Answers of the probe are kept in the process and in the results folder: what was checked is not checked again.
    Modules are looked for in a folder before the current one; if it has a `code/`, only that is used. `sizes` and
    `settings` have the values to try.
    """
    paths, data = paths_in(tables), str(client.table(tables, "workload").get("data", ""))
    if not paths and not is_table(data):
        return UserCode()
    code, lacking = code_of(folder), set[str]()
    folders = [] if code else list(dict.fromkeys(each.resolve() for each in (folder, Path.cwd()) if each.is_dir()))
    while True:
        copy = _restored(code) if code else _copied(paths, lacking, folders)
        if is_table(data) and not code:
            _copy_table(copy, data, folders)
        if copy.mistakes:
            return UserCode(mistakes=copy.mistakes)
        copy = copy.settled()
        request = client.request(tables, str(copy.folder), [str(each) for each in folders], sizes, settings or {})
        key, digest = client.key(request), digest_of(copy.files)
        kept = _kept(code, key) if code else None
        answer = kept or _ANSWERS.get((digest, key)) or client.ask(request)
        if set(answer.lacking) <= lacking:
            break
        lacking |= set(answer.lacking)  # imported by names that are not in the source as text
    if answer.mistakes:
        return UserCode(mistakes=answer.mistakes)
    _ANSWERS[digest, key] = answer
    answers = (recorded(code).get("answers", {}) if code else {}) | {key: dataclasses.asdict(answer)}
    record = {"files": copy.files, "sources": copy.sources, "answers": answers}
    if code and not kept and os.access(code, os.W_OK):
        storage.write_text(code / RECORD, seal(record))
    facts = Facts.of(answer.facts) if answer.facts else None
    optimizers = {
        path: OptimizerFacts(**{**each, "rates": tuple(each["rates"])}) for path, each in answer.optimizers.items()
    }
    notes = [*copy.notes, *answer.notes]
    return UserCode(str(copy.folder), digest, record, facts, (), notes, answer.lone, optimizers)


def code_of(folder: Path) -> Path | None:
    """The `code/` of a results folder, or of the study that this folder confirms; its record may be lost."""
    marks = (f"{CODE}/{RECORD}", PROVENANCE)
    holding = (each for each in (folder, folder.parent) if any((each / mark).is_file() for mark in marks))
    return next((each / CODE for each in holding if (each / CODE).is_dir()), None)


def copy_to(user_code: UserCode, folder: Path) -> None:
    """Copy a bundle into the `code/` of a new results folder."""
    if user_code.code:
        copy = _Copy(folder / CODE)
        for name in user_code.record["files"]:
            copy.add(Path(user_code.code, name), name)
        copy.folder.mkdir(parents=True, exist_ok=True)
        storage.write_text(copy.folder / RECORD, seal(user_code.record))


def needed(tables: Mapping[str, Any]) -> list[str]:
    """The modules that a spec names, which every node must be able to import."""
    return sorted({path.partition(":")[0] for path in paths_in(tables)})


def origin(folder: Path, home: Path | str) -> str:
    """Whose code a results folder, whose place for everyone is `home`, holds; empty if it holds data alone."""
    kept = recorded(code) if (code := code_of(folder)) else {}
    copied = ", ".join(sorted(kept.get("sources", {}).values()))
    has_code = any(name.endswith((".py", ".so")) for name in kept.get("files", ()))
    return f"the code in {storage.join(home, CODE)}, which was copied from {copied}" if has_code else ""


def edits(folder: Path, copy: str = "the copy") -> Iterator[tuple[Path, str]]:
    """The files of a study's user code that were edited, where that is allowed, each with what it means.

    Args:
        folder: the results folder.
        copy: place of its `code/`, for messages.
    """
    code = code_of(folder)
    kept = recorded(code) if code else {}
    for answer in kept.get("answers", {}).values():
        for file, digest in answer.get("elsewhere", {}).items():
            if not is_same(Path(file), digest):
                yield Path(file), "is not in the copy and has been edited since; trials run the edited code"
    for name, digest in kept.get("files", {}).items():
        original = Path(kept["sources"][Path(name).parts[0].partition(".")[0]]).parent / name
        if code and not name.endswith(".py") and not is_same(code / name, digest):
            yield (
                code / name,
                "differs from the file that the study began with; restore that, unless your code writes it itself",
            )
        if original.is_file() and not is_same(original, digest):
            yield original, f"has been edited since; the study continues with the code it began with, in {copy}"


def _restored(code: Path) -> _Copy:
    """The bundle in a results folder."""
    copy, advice = _Copy(_new_folder()), "restore the old code, or run the new code into a new folder"
    try:
        kept = unseal(code / RECORD)
        files = kept["files"]
    except (OSError, DamagedError, KeyError) as error:
        copy.mistakes = [f"{code / RECORD}: is lost or damaged; it lists the copied code ({error}); {advice}"]
        return copy
    copy.sources = kept.get("sources", {})
    copy.mistakes = [
        f"{code / name}: differs from the code that the study began with; {advice}" for name in importing.changed(code)
    ]
    for name in files:
        if (code / name).is_file():
            copy.add(code / name, name)
    copy.files = files  # a module may have written to a file of its package
    return copy


def _copied(paths: Mapping[str, str], lacking: Iterable[str], folders: Sequence[Path]) -> _Copy:
    """A bundle of the modules of import paths (-> key in the spec), and of all that they import, from some folders."""
    importlib.invalidate_caches()
    copy = _Copy(_new_folder())
    todo = [(path.partition(":")[0].partition(".")[0], f"{key}: {path}", folders) for path, key in paths.items()]
    todo += [(name, "", folders) for name in lacking]
    while todo:
        name, key, near = todo.pop(0)
        taken = name in OURS or name in sys.stdlib_module_names
        if name in copy.sources or not (source := _source(name, near if taken else folders)):
            continue
        if taken:
            if source.parent != _ROOT:
                origin = getattr(find_spec(name), "origin", None)
                whose = "this project's own" if name in OURS else "Python's own"
                message = (
                    f"{name} is {whose} module ({origin}), which is imported in the place of {source}; rename yours"
                )
                copy.mistakes += {f"{key}: {message}"} - set(copy.mistakes)
            continue
        copy.sources[name] = str(source)
        if source.is_dir():
            _copy_package(copy, source)
        else:
            copy.add(source, source.name)
        for file in [each for each in copy.files if Path(each).parts[0] == source.name and each.endswith(".py")]:
            todo += [(each, key, [source.parent]) for each in sorted(_imports(copy.folder / file))]
    return copy


def _source(name: str, folders: Sequence[Path]) -> Path | None:
    """The file of a module, or folder of a package, in the first of some folders that has it."""
    for folder in folders:
        spec = PathFinder.find_spec(name, [str(folder)])
        if spec and spec.origin:
            return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        # A folder without __init__.py counts only if no installed package has its name.
        if spec and (folder / name).is_dir() and not getattr(PathFinder.find_spec(name), "origin", None):
            return folder / name
    return None


def _copy_package(copy: _Copy, source: Path) -> None:
    """Copy the files of a package, the smallest first, up to `MOST_BYTES`; modules always."""
    size, left_out = 0, []
    for file in sorted(_files(source), key=lambda each: (each.stat().st_size, each)):
        size += 0 if file.suffix == ".py" else file.stat().st_size
        if file.suffix != ".py" and size > MOST_BYTES:
            left_out.append(file)
        else:
            copy.add(file, file.relative_to(source.parent).as_posix())
    if left_out:
        which = f"{left_out[-1]}{f' (and {len(left_out) - 1} others)' if left_out[1:] else ''}"
        limit = f"a package's files are copied up to {MOST_BYTES >> 20} MiB"
        copy.notes.append(f"{limit}, without {which}; give an absolute path")


def _copy_table(copy: _Copy, data: str, folders: Sequence[Path]) -> None:
    """Copy the file, or folder of images, that is the data set, unless it is an absolute path."""
    places = [Path(data)] if Path(data).is_absolute() else [folder / data for folder in folders]
    source = next((each for each in places if (each.is_dir() if data.endswith("/") else each.is_file())), None)
    if Path(data).name in ("", ".."):
        copy.mistakes.append(f'workload.data: {data}: name the folder itself, as in data = "images/"')
    elif "://" in data:
        copy.mistakes.append(f"workload.data: {data}: is a URL; download it, and name the file")
    elif data.startswith("~"):
        copy.mistakes.append(
            f"workload.data: {data}: ~ is not read as the home folder; write {Path(data).expanduser()}"
        )
    elif source is None:
        what = "folder" if data.endswith("/") else "file"
        copy.mistakes.append(f"workload.data: {data}: there is no such {what} ({' or '.join(map(str, places))})")
    elif not Path(data).is_absolute():
        files = list(_files(source)) if source.is_dir() else [source]
        if (size := sum(file.stat().st_size for file in files)) > MOST_BYTES:
            limits = f"has {size >> 20:,} MiB, and up to {MOST_BYTES >> 20} MiB are copied into a study"
            copy.mistakes.append(f"workload.data: {data}: {limits}; give its absolute path, which all nodes must reach")
            return
        copy.sources.setdefault(source.stem, str(source.resolve()))
        for file in files:
            copy.add(file, file.relative_to(source.parent).as_posix())


def _imports(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports by a literal name, anywhere in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # reported when it is imported
    modules = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), level=0):
                modules.add(module)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                modules.add(module)
    return {name.partition(".")[0] for name in modules} - {""}


@cache
def _scratch() -> Path:
    """A folder for bundles, removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="study-code-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_scratch()))


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, without hidden ones and bytecode."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside):
            yield file


def _kept(code: Path, key: str) -> Answer | None:
    try:
        return Answer(**recorded(code)["answers"][key])
    except (KeyError, TypeError):
        return None
