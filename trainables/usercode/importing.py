"""What users bring: models, data sets, optimizers, losses and scores, which a spec names as `package.module:name`.

- A model: called with `in_shape`, `out_features`, `width` and `depth` if the spec searches them, and what is under
  `model_args`, all by keyword; returns a `torch.nn.Module` from (n, *in_shape) to (n, out_features).
- A data set: called with those of `seed` and `folder` that it takes; returns {"train": (inputs, targets),
  "validation": ..., "test": ...} of arrays or tensors. Targets of whole numbers are classes.
- An optimizer: a subclass of `torch.optim.Optimizer`, which runs lane by lane, or a `trainables.rules.Rule`.
- A loss: (outputs (n, out_features), targets (n, ...)) -> (n,), of each example by itself, to be small and positive.
- A score: the same arguments -> (n,) numbers from 0 to 1, larger is better; it takes the place of accuracy.

A study runs a copy of the modules that these are made of. `use` says which copy a process takes them from.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

EXPECTED = {
    "model": "a callable that takes in_shape and out_features, and width and depth if they are searched, by keyword",
    "data": 'a callable that returns {"train": (inputs, targets), "validation": ..., "test": ...}',
    "optimizer": "a subclass of torch.optim.Optimizer, or a trainables.rules.Rule",
    "loss": "a callable from outputs (n, out_features) and targets to (n,) losses, none below 0",
    "score": "a callable from outputs (n, out_features) and targets to (n,) numbers from 0 to 1",
}

OURS = ("study", "trainables", "analysis")
CODE, RECORD = "code", "inspected.json"
"""The folder of modules in a results folder, and what is recorded of them in it: `files`, each with its hash."""
_INSTALLED = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib"))

_now = ""
_loaded: dict[str, dict[str, ModuleType]] = {}
_aside: dict[str, ModuleType] = {}

LEFT_BEHIND = (
    "a study runs a copy of its modules from another folder: put the module and its files into a package, which is "
    "copied whole, or give an absolute path"
)


class ForeignError(ValueError):
    """Something of the user's that cannot be used; the message names it and says what was expected."""


def is_foreign(name: str) -> bool:
    """Whether a name in a spec is an import path."""
    return ":" in name


def imported(path: str, what: str) -> Any:
    """What an import path names, in the copy that is in use.

    Args:
        path: `package.module:name`.
        what: a key of `EXPECTED`.

    Raises:
        ForeignError: if it cannot be imported or is nothing that can be called.
    """
    return _imported(path, _now)


@cache
def _imported(path: str, folder: str) -> Any:
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise ForeignError(f"{path}: not an import path; write package.module:name")
    try:
        found: Any = importlib.import_module(module_name)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        _refuse_others(path, folder)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            places = "beside the spec, in the current folder and among the installed packages"
            raise ForeignError(f"{path}: there is no module {missing}; it is looked for {places}") from error
        raise ForeignError(f"{path}: importing {module_name} failed: {told(error, module_name)}") from error
    _refuse_others(path, folder)
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ForeignError(f"{path}: {module_name} has no {part}{hint}")
        found = getattr(found, part)
    return found


def _refuse_others(path: str, folder: str) -> None:
    """Refuse what was loaded in the place of a module of a copy."""
    for name in _names(folder):
        module = sys.modules.get(name)
        if module and not _lies_in(module, folder):
            place = next(iter(_places(module)), "built in")
            raise ForeignError(f"{path}: {name} is another module here ({place}), imported before yours; rename yours")


def called(path: str, what: str, maker: Any, offered: dict[str, Any], optional: Iterable[str] = ()) -> Any:
    """The result of calling something of the user's by keyword.

    Args:
        path: of it.
        what: a key of `EXPECTED`.
        maker: what `path` names.
        offered: the arguments.
        optional: names of those that are left out if it does not take them.

    Raises:
        ForeignError: if it does not take these arguments, or raises.
    """
    if not callable(maker):
        raise ForeignError(f"{path}: is no callable; expected {EXPECTED[what]}")
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):
        signature = None
    arguments = dict(offered)
    if signature and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        arguments = {name: v for name, v in offered.items() if name in signature.parameters or name not in optional}
    if signature:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            given = ", ".join(arguments) or "nothing"
            raise ForeignError(f"{path}{signature}: cannot be called with {given} ({error})") from error
    try:
        return maker(**arguments)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise ForeignError(f"{path}: raised {told(error, path.partition(':')[0])}") from error


def told(error: BaseException, module: str) -> str:
    """An error in one line, with the file and line of the user's own code that led to it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text if error.filename in text else f'{text} [{Path(error.filename).name}:{error.lineno}]'}"
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parents[1])
    own = [f for f in frames if not f.filename.startswith((here, "<")) and "site-packages" not in f.filename]
    own = [f for f in own if Path(f.filename).stem in (*module.split("."), "__init__")] or own
    text = f"{text} [{Path(own[-1].filename).name}:{own[-1].lineno}]" if own else text
    return f"{text}; {LEFT_BEHIND}" if _left_behind(error) else text


def _left_behind(error: BaseException | None) -> bool:
    """Whether an error comes of a file that is not there, and might be where the modules were copied from."""
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        place = Path(error.filename)
        return not place.is_absolute() or bool(_now and place.is_relative_to(_now))
    return error is not None and (_left_behind(error.__cause__) or _left_behind(error.__context__))


def function(path: str, what: str) -> Callable[..., Any]:
    """A loss or score."""
    found = imported(path, what)
    if not callable(found) or isinstance(found, type):
        raise ForeignError(f"{path}: is {type(found).__name__}; expected {EXPECTED[what]}")
    return found  # type: ignore[no-any-return]


def use(folder: str) -> None:
    """Take users' modules from a folder from now on, before all others, and from no copy that was used before.

    What this process has imported under the names of its modules from elsewhere is put aside until another is used.

    Args:
        folder: of a copy, which does not change any more; none if empty.
    """
    global _now
    if folder == _now:
        return
    if _now:
        _loaded[_now] = _taken(_now)
        sys.modules.update(_aside)
        sys.path[:] = [entry for entry in sys.path if entry != _now]
    _now = folder
    _aside.clear()
    if folder:
        _aside.update(_taken(folder))
        sys.modules.update(_loaded.get(folder, {}))
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


@contextmanager
def using(folder: str) -> Iterator[None]:
    """`use` a folder for as long as the context lasts."""
    before = _now
    use(folder)
    try:
        yield
    finally:
        use(before)


def in_use() -> str:
    """The folder that users' modules are taken from; empty if there is none."""
    return _now


def _taken(folder: str) -> dict[str, ModuleType]:
    """Take the modules that have the names of a folder's out of `sys.modules`, but for what is installed."""
    names = _names(folder)
    found = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in names and not _installed(m)}
    for name in found:
        del sys.modules[name]
    return found


def _names(folder: str) -> set[str]:
    """Of the modules and packages in a folder."""
    there = Path(folder).iterdir() if folder and Path(folder).is_dir() else ()
    found = {each.name.partition(".")[0] for each in there if each.suffix in (".py", ".so") or each.is_dir()}
    return {name for name in found if name.isidentifier()} - {*OURS, "__pycache__"}


def _places(module: ModuleType) -> list[str]:
    return [str(place) for place in (getattr(module, "__file__", None), *getattr(module, "__path__", ())) if place]


def _lies_in(module: ModuleType, folder: str) -> bool:
    return any(Path(place).is_relative_to(folder) for place in _places(module))


def _installed(module: ModuleType) -> bool:
    places = _places(module)
    return not places or any(place.startswith(_INSTALLED) for place in places)


def own_files(folders: Iterable[str]) -> set[str]:
    """The names of modules and packages that have been imported from some folders."""
    found = set()
    for name, module in list(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        if file and top not in (*OURS, "__main__"):
            inside = [Path(file).relative_to(each).parts[0] for each in folders if Path(file).is_relative_to(each)]
            if {top, f"{top}.py"} & set(inside):
                found.add(top)
    return found


def files_elsewhere() -> dict[str, str]:
    """The files of modules that are neither installed nor in the copy in use, as along PYTHONPATH: path -> hash."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name.partition(".")[0] in (*OURS, "__main__", "__mp_main__"):
            continue
        if Path(file).is_file() and not _installed(module) and not (_now and _lies_in(module, _now)):
            found[file] = hash_of(Path(file))
    return found


def hash_of(file: Path) -> str:
    """Of what a file holds."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_of(files: Mapping[str, str]) -> str:
    """The same for the same files: name in their folder -> hash."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def recorded(folder: Path) -> dict[str, Any]:
    """What is recorded of the modules in a folder; empty if there is nothing, or it cannot be read."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def changed(folder: Path) -> list[str]:
    """The modules of a folder that are no longer what was recorded of them."""
    files: dict[str, str] = recorded(folder).get("files", {})
    modules = {name: kept for name, kept in files.items() if name.endswith(".py")}
    return [name for name, kept in modules.items() if not (file := folder / name).is_file() or hash_of(file) != kept]


@cache
def copy_on_node(code: str, digest: str) -> str:
    """Where on this node a study's modules lie: in its results folder, or in what Ray has sent along.

    Args:
        code: the folder in the results.
        digest: of its files; empty if it is not known.

    Raises:
        ForeignError: if they are nowhere, or not what the study began with.
    """
    sent = [Path(entry) / CODE for entry in sys.path if entry and digest]
    for folder in [Path(code), *sent]:
        if folder.is_dir() and (not digest or digest_of(recorded(folder).get("files", {})) == digest):
            if edited := changed(folder):
                raise ForeignError(f"{folder / edited[0]}: is not what the study began with; put it back")
            return str(folder.resolve())
    raise ForeignError(f"{code}: the study's modules are not on this node; give a folder that all nodes share")
