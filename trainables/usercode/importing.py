"""User code: models, data sets, optimizers, losses and scores that a spec names as `package.module:name`.

- A model is called with `in_shape`, `out_features`, `width` and `depth` if the spec searches them, and the keys of
  `model_args`, all by keyword. It returns a `torch.nn.Module` from (n, *in_shape) to (n, out_features).
- A data set is called with `seed` and `folder`, if it takes them. It returns {"train": (inputs, targets),
  "validation": ..., "test": ...}; `trainables.workloads.own` says of what.
- An optimizer is a subclass of `torch.optim.Optimizer`, which runs lane by lane, or a `trainables.rules.Rule`.
- A loss maps outputs (n, out_features) and targets (n, ...) to (n,) losses, one per example, none negative.
- A score takes the same arguments and returns (n,) numbers from 0 to 1, larger is better. It replaces accuracy.

A study runs a copy of the modules, its bundle: a folder, given here as `code`. Each bundle is imported as a package of
its own, so bundles do not clash with each other, nor with modules of the same name elsewhere in the process.
"""

from __future__ import annotations

import builtins
import difflib
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

SPLIT_PAIRS = '{"train": (inputs, targets), "validation": ..., "test": ...}'
EXPECTED = {
    "model": "a callable that takes in_shape and out_features, and width and depth if they are searched, by keyword",
    "data": f"a callable that returns {SPLIT_PAIRS}",
    "optimizer": "a subclass of torch.optim.Optimizer, or a trainables.rules.Rule",
    "loss": "a callable from outputs (n, out_features) and targets to (n,) losses, none below 0",
    "score": "a callable from outputs (n, out_features) and targets to (n,) numbers from 0 to 1",
}

TABLES = (".csv", ".tsv", ".parquet", ".npz", "/")
"""Ends of the names of data sets that are files, and of folders of images."""
REASON = "\n      "
"""Before each column in a message about those of a table that cannot be used."""
LIKE_ID = "a different whole number in every example, like an ID"
"""What a warning says of columns that `study init` leaves out."""
OURS = ("study", "trainables", "analysis")
CODE, RECORD = "code", "inspected.json"
"""Name of the bundle in a results folder, and of its record: `files` with their hashes, `sources`, `answers`."""
# Errors of torch -> what to do.
_ADVICE = {
    "compiled with CUDA|NVIDIA driver|No CUDA GPUs|same device|MPS backend|for mps": (
        "the study moves models and data to the device of a trial: take out .cuda() and .to(...), and give new tensors "
        "in forward the device of its input, device=x.device"
    ),
    "such file or directory: '~": 'Python does not read ~ as the home folder; Path("~/...").expanduser() does',
    "leaf Variable that requires grad": "put @torch.no_grad() over step, as torch.optim has it",
    "inplace operation": "the gradient needs what is overwritten: write y = y + 1, not y += 1, y.add_(1), inplace=True",
}
LEFT_BEHIND = (
    "a study runs a copy of its modules from another folder: put the module and its files into a package, which is "
    "copied whole, or give an absolute path"
)
_INSTALLED = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PREFIX = "study_bundle_"


class UserCodeError(ValueError):
    """User code cannot be used; the message names it and says what is expected."""


def is_import_path(name: str) -> bool:
    """Whether a name in a spec is an import path."""
    return ":" in name


def is_table(name: str) -> bool:
    """Whether the name of a data set in a spec is that of a file or, with a slash at its end, of a folder."""
    return name.lower().endswith(TABLES)


def is_own(name: str) -> bool:
    """Whether the name of a data set in a spec is that of a user's."""
    return is_table(name) or is_import_path(name)


class _Bundle:
    """Finds the modules of one bundle, which are those of a package of its own.

    As in `torch.package`, each module gets an `__import__` that looks in the bundle first, so that `import helper`
    means the same as beside the spec.
    """

    def __init__(self, folder: str) -> None:
        self.package = _PREFIX + hashlib.sha256(folder.encode()).hexdigest()[:16]
        self.names = _top_level(folder)
        self.builtins = {**vars(builtins), "__import__": self._import}
        self._importlib = ModuleType("importlib")
        vars(self._importlib).update(import_module=self.import_module, __getattr__=partial(getattr, importlib))
        root = ModuleType(self.package)
        root.__path__ = [folder]
        sys.modules[self.package] = root
        importlib.invalidate_caches()  # the folder may be new
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`; the module will see the bundle's built-in names."""
        spec = PathFinder.find_spec(name, path, target) if name.startswith(f"{self.package}.") else None
        if spec and isinstance(loader := spec.loader, SourceFileLoader):
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                vars(module)["__builtins__"] = self.builtins
                execute(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def import_module(self, name: str, package: str | None = None) -> ModuleType:
        """Like `importlib.import_module`, but looks in the bundle first."""
        return importlib.import_module(self._full(name), package)

    def _full(self, name: str) -> str:
        return f"{self.package}.{name}" if name.partition(".")[0] in self.names else name

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Replaces the built-in `__import__` in the bundle's modules."""
        full = name if level else self._full(name)
        imported = builtins.__import__(full, globals, locals, fromlist or (), level)
        if imported is importlib:
            return self._importlib
        # Without a fromlist, as in `import nets.layers`, the top-level module is returned.
        return imported if full == name or fromlist else sys.modules[f"{self.package}.{name.partition('.')[0]}"]


_bundle = cache(_Bundle)


@cache
def imported(path: str, code: str = "") -> Any:
    """The object that an import path names.

    Args:
        path: `package.module:name`.
        code: folder of the bundle; modules that it lacks are imported as usual.

    Raises:
        UserCodeError: if it cannot be imported.
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        dotted = ".".join(Path(module).with_suffix("").parts).strip(".")
        hint = f", as in {dotted}:{name}" if dotted.replace(".", "").isidentifier() and name.isidentifier() else ""
        raise UserCodeError(f"{path}: not an import path; write package.module:name{hint}")
    try:
        value: Any = (_bundle(code) if code else importlib).import_module(module)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        missing = _plain(error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if missing and (module == missing or module.startswith(f"{missing}.")):
            places = "beside the spec, in the current folder and among the installed packages"
            if missing.endswith(".py"):
                places += f"; write {missing.removesuffix('.py')}:{name}"
            raise UserCodeError(f"{path}: there is no module {missing}; it is looked for {places}") from error
        raise UserCodeError(f"{path}: importing {module} failed: {describe_error(error, module)}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserCodeError(f"{path}: {module} has no {part}{hint}")
        value = getattr(value, part)
    return value


def called(path: str, what: str, offered: dict[str, Any], code: str = "") -> Any:
    """The result of calling user code by keyword, with those of the offered arguments that it takes.

    Args:
        path: import path.
        what: a key of `EXPECTED`.
        offered: the arguments.
        code: folder of the bundle.

    Raises:
        UserCodeError: if the callable cannot be imported, needs other arguments, or raises.
    """
    maker = imported(path, code)
    if not callable(maker):
        raise UserCodeError(f"{path}: is not callable; expected {EXPECTED[what]}")
    signature, names = None, ", ".join(offered)
    with suppress(TypeError, ValueError):  # it may have none
        signature = inspect.signature(maker)
    if signature and not any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        offered = {name: value for name, value in offered.items() if name in signature.parameters}
    try:
        if signature:
            signature.bind(**offered)
    except TypeError as error:
        message = f"called with {names} by name, it is {error}; give it a default"
        raise UserCodeError(f"{path}{signature}: {message}") from error
    try:
        return maker(**offered)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{path}: raised {describe_error(error, path.partition(':')[0])}") from error


def function(path: str, what: str, code: str = "") -> Callable[..., Any]:
    """A loss or score of the user's."""
    value = imported(path, code)
    if not callable(value) or isinstance(value, type):
        given = "a class, not an instance of it" if isinstance(value, type) else type(value).__name__
        raise UserCodeError(f"{path}: is {given}; expected {EXPECTED[what]}")
    return value  # type: ignore[no-any-return]


def describe_error(error: BaseException, module: str) -> str:
    """An error in one line, with the file and line of the user code that caused it.

    Args:
        error: raised by user code.
        module: of the import path, `package.module`; its own lines are named first.
    """
    text = _plain(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":"))
    advice = next((advice for theirs, advice in _ADVICE.items() if re.search(theirs, text)), "")
    # Torch explains itself in further sentences, which name settings of its own.
    text = text.partition(". ")[0][:300] if advice else text[:300]
    if isinstance(error, SyntaxError) and error.filename:
        file = Path(error.filename).name
        return text if file in text else f"{text} [{file}:{error.lineno}]"
    ours = str(Path(__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((ours, "<", *_INSTALLED))]
    theirs = [f for f in theirs if Path(f.filename).stem in (*module.split("."), "__init__")] or theirs
    text = f"{text} [{Path(theirs[-1].filename).name}:{theirs[-1].lineno}]" if theirs else text
    advice = advice or (LEFT_BEHIND if _left_behind(error) else "")
    return f"{text}; {advice}" if advice else text


def _plain(text: str) -> str:
    """A text with the names of modules as users know them."""
    return re.sub(rf"{_PREFIX}\w+\.", "", text)


def _left_behind(error: BaseException | None) -> bool:
    """Whether a missing file caused an error, and it may lie where the modules were copied from."""
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        place = Path(error.filename)
        folders = [module.__path__[0] for name, module in sys.modules.items() if re.fullmatch(rf"{_PREFIX}\w+", name)]
        return not place.is_absolute() or any(map(place.is_relative_to, folders))
    return error is not None and (_left_behind(error.__cause__) or _left_behind(error.__context__))


def _top_level(folder: str) -> set[str]:
    """Names of the modules and packages in a folder."""
    files = Path(folder).iterdir() if Path(folder).is_dir() else ()
    names = {file.name.partition(".")[0] for file in files if file.suffix in (".py", ".so") or file.is_dir()}
    return {name for name in names if name.isidentifier()} - {*OURS, "__pycache__"}


def _loaded() -> dict[str, Path]:
    """Top-level name and file of all modules that were imported from files, without ours and those of bundles."""
    skipped = re.compile(rf"({'|'.join(OURS)}|__main__|__mp_main__|{_PREFIX}\w+)(\..*)?")
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {name: Path(file) for name, file in files.items() if file and not skipped.fullmatch(name)}


def modules_from(folders: Iterable[str]) -> set[str]:
    """Top-level names of modules that were imported from some folders, not from a bundle."""
    names = set()
    for name, file in _loaded().items():
        top = name.partition(".")[0]
        inside = [file.relative_to(folder).parts[0] for folder in folders if file.is_relative_to(folder)]
        if {top, f"{top}.py"} & set(inside):
            names.add(top)
    return names


def files_elsewhere() -> dict[str, str]:
    """Hashes of imported files that are neither installed nor in a bundle, as those along PYTHONPATH."""
    files = (file for file in _loaded().values() if not str(file).startswith(_INSTALLED) and file.is_file())
    return {str(file): hash_of(file) for file in files}


def hash_of(file: Path) -> str:
    """Of what a file holds."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_of(files: Mapping[str, str]) -> str:
    """The same for the same files: name in their folder -> hash."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def recorded(folder: Path) -> dict[str, Any]:
    """What is recorded of the modules in a folder; empty if there is nothing, or it cannot be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_same(file: Path, digest: str) -> bool:
    """Whether a file is there and holds what it held."""
    return file.is_file() and hash_of(file) == digest


def changed(folder: Path) -> list[str]:
    """The modules and tables of a folder that are no longer what was recorded of them."""
    files: dict[str, str] = recorded(folder).get("files", {})
    fixed = [name for name in files if name.endswith(".py") or (name.endswith(TABLES) and "/" not in name)]
    return [name for name in fixed if not is_same(folder / name, files[name])]


@cache
def copy_on_node(code: str, digest: str) -> str:
    """Where on this node a study's modules lie: in its results folder, or in what Ray has sent along.

    Args:
        code: the folder in the results.
        digest: of its files; empty if it is not known.

    Raises:
        UserCodeError: if they are nowhere, or not what the study began with.
    """
    sent = [Path(entry) / CODE for entry in sys.path if entry and digest]
    for folder in [Path(code), *sent]:
        if folder.is_dir() and (not digest or digest_of(recorded(folder).get("files", {})) == digest):
            if edited := changed(folder):
                raise UserCodeError(
                    f"{folder / edited[0]}: differs from the code that the study began with; restore the old code"
                )
            return str(folder.resolve())
    raise UserCodeError(f"{code}: the study's modules are not on this node; give a folder that all nodes share")
