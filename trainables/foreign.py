"""What users bring: models, data sets, optimizers, losses and scores, which a spec names as `package.module:name`.

- A model: called with `in_shape`, `out_features`, `width` and `depth` if the spec searches them, and what is under
  `model_args`, all by keyword; returns a `torch.nn.Module` from (n, *in_shape) to (n, out_features).
- A data set: called with those of `seed` and `folder` that it takes; returns {"train": (inputs, targets),
  "validation": ..., "test": ...} of arrays or tensors. Targets of whole numbers are classes.
- An optimizer: a subclass of `torch.optim.Optimizer`, which runs lane by lane, or a `trainables.rules.Rule`.
- A loss: (outputs (n, out_features), targets (n, ...)) -> (n,), of each example by itself, to be small and positive.
- A score: the same arguments -> (n,) numbers from 0 to 1, larger is better; it takes the place of accuracy.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

EXPECTED = {
    "model": "a callable that takes in_shape and out_features, and width and depth if they are searched, by keyword",
    "data": 'a callable that returns {"train": (inputs, targets), "validation": ..., "test": ...}',
    "optimizer": "a subclass of torch.optim.Optimizer, or a trainables.rules.Rule",
    "loss": "a callable from outputs (n, out_features) and targets to (n,) losses, none below 0",
    "score": "a callable from outputs (n, out_features) and targets to (n,) numbers from 0 to 1",
}


_OURS = ("study", "trainables", "analysis")


class ForeignError(ValueError):
    """Something of the user's that cannot be used; the message names it and says what was expected."""


def is_foreign(name: str) -> bool:
    """Whether a name in a spec is an import path."""
    return ":" in name


@cache
def imported(path: str, what: str) -> Any:
    """What an import path names.

    Args:
        path: `package.module:name`.
        what: a key of `EXPECTED`.

    Raises:
        ForeignError: if it cannot be imported or is nothing that can be called.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise ForeignError(f"{path}: not an import path; write package.module:name")
    try:
        found: Any = importlib.import_module(module_name)
    except MemoryError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            places = "beside the spec, in the current folder and among the installed packages"
            raise ForeignError(f"{path}: there is no module {error.name}; it is looked for {places}") from error
        raise ForeignError(f"{path}: importing {module_name} failed: {told(error, module_name)}") from error
    except (Exception, SystemExit) as error:
        raise ForeignError(f"{path}: importing {module_name} failed: {told(error, module_name)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ForeignError(f"{path}: {module_name} has no {part}{hint}")
        found = getattr(found, part)
    return found


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
    here = str(Path(__file__).parent)
    own = [f for f in frames if not f.filename.startswith((here, "<")) and "site-packages" not in f.filename]
    own = [f for f in own if Path(f.filename).stem in (*module.split("."), "__init__")] or own
    return f"{text} [{Path(own[-1].filename).name}:{own[-1].lineno}]" if own else text


def function(path: str, what: str) -> Callable[..., Any]:
    """A loss or score."""
    found = imported(path, what)
    if not callable(found) or isinstance(found, type):
        raise ForeignError(f"{path}: is {type(found).__name__}; expected {EXPECTED[what]}")
    return found  # type: ignore[no-any-return]


def search_in(folders: Iterable[str]) -> None:
    """Look for modules in some folders too, after all that is installed."""
    sys.path += [folder for folder in folders if folder not in sys.path]
    importlib.invalidate_caches()


def own_files(folders: Iterable[str]) -> dict[str, str]:
    """The modules and packages of some folders that have been imported: name -> file or folder."""
    found = {}
    for name, module in list(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        if not file or top in (*_OURS, "__main__"):
            continue
        for folder in map(Path, folders):
            if Path(file).is_relative_to(folder) and Path(file).relative_to(folder).parts[0] in (top, f"{top}.py"):
                found[top] = str(folder / Path(file).relative_to(folder).parts[0])
    return found
