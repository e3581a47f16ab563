"""Checks the structure of the packages: sizes of files, functions and folders, and which module imports which.

`python tests/house.py` prints every violation and ends with 1 if there is one that ALLOWED does not list.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("study", "trainables", "analysis")
SOURCES = {".py", ".j2", ".c"}
FILE_LINES, FUNCTION_LINES, FOLDER_ENTRIES = 500, 60, 12
COLLECTIONS = ("study/spec/shipped",)  # folders that hold many files of one kind
IMPORTS_LATE = ("study/cli/commands.py", "study/cli/options.py")  # for a fast `study --help`

# Violations that are still there; one that is gone must be taken off this list.
ALLOWED: set[str] = set()


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources() -> list[Path]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return sorted(path for path in found if path.suffix in SOURCES)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without decorators and docstring."""
    assert function.end_lineno
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and first.end_lineno:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def project_imports(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def long_files() -> Iterator[str]:
    for path in sources():
        if len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES:
            yield f"file above {FILE_LINES} lines: {shown(path)}"


def functions() -> Iterator[str]:
    """Functions that are too long, and functions that import a module of the project."""
    for path in sources():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if length(node) > FUNCTION_LINES:
                yield f"function above {FUNCTION_LINES} lines: {shown(path)} {node.name}"
            if shown(path) not in IMPORTS_LATE:
                yield from (f"import in a function: {shown(path)} {node.name} {name}" for name in project_imports(node))


def full_folders() -> Iterator[str]:
    for folder in sorted({path.parent for path in sources()}):
        entries = [path for path in folder.iterdir() if not path.name.startswith(("__", "."))]
        if len(entries) > FOLDER_ENTRIES and shown(folder) not in COLLECTIONS:
            yield f"folder above {FOLDER_ENTRIES} entries: {shown(folder)}"


def circles() -> Iterator[str]:
    """Imports by which a module leads back to itself, imports in functions included, for type checking excluded."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if graph.chain_exists(importer=imported, imported=module):
                yield f"import circle: {module} imports {imported}"


def main() -> int:
    found = {*long_files(), *functions(), *full_folders(), *circles()}
    for violation in sorted(found - ALLOWED):
        print(violation)
    for violation in sorted(ALLOWED - found):
        print(f"no longer so, take it off the list in {shown(Path(__file__))}: {violation}")
    print(f"structure: {len(found - ALLOWED)} new violations, {len(found & ALLOWED)} allowed")
    return int(found != ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
