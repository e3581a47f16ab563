"""Builds the native kernel beside it: `python -m trainables.engines.kernel.build`, when the project is installed.

A library is named after the type, the processor and the source that it is for, so that libraries for several processors
can lie side by side, and one of an older source is never used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent
# Neither may assume finite numbers: a NaN has to survive. A product and a sum may be rounded once.
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden")
TYPES = {"float32": "float", "float64": "double"}
# What processors are told apart: the compiler's option for each, and what Linux calls the feature that it needs.
X86_LEVELS = {"x86-64-v3": ("-mavx2", "-mfma"), "x86-64-v2": ("-msse4.2",)}


class BuildError(RuntimeError):
    """The native kernel cannot be built here; the message says why."""


def processor() -> str:
    """The kind of this processor that a library is built for, e.g. x86-64-v3 or aarch64."""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if machine != "x86_64":
        return machine
    return "x86-64-v3" if {"avx2", "fma"} <= _features() else "x86-64-v2"


def _features() -> set[str]:
    if sys.platform == "darwin":
        shown = subprocess.run(["sysctl", "-n", "machdep.cpu"], capture_output=True, text=True, check=False).stdout
        return set(shown.lower().split())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def compilers() -> list[list[str]]:
    """The commands of the C compilers of this machine, the preferred one first: $CC, cc, gcc, clang, ziglang's."""
    named = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    found = [name.split() for name in dict.fromkeys(named) if name and shutil.which(name.split()[0])]
    if importlib.util.find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def digest() -> str:
    """What identifies the source and the options with which it is compiled."""
    text = b"".join(file.read_bytes() for file in sorted(SOURCE.glob("*.[ch]")))
    return hashlib.sha256(text + " ".join(FLAGS).encode()).hexdigest()[:12]


def name_of(dtype: str, kind: str = "") -> str:
    """The file name of the library for a type and a kind of processor, this machine's if not given."""
    return f"native-{dtype}-{kind or processor()}-{digest()}.so"


def folders() -> list[Path]:
    """Where libraries may lie: below the source, or in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optimizer-study"
    return [SOURCE / "built", cache]


def build(dtype: str, folder: Path) -> Path:
    """Compile the kernel for a type and this machine's processor.

    Raises:
        BuildError: if there is no compiler, or each of them fails.
        OSError: if the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = [*FLAGS, *X86_LEVELS.get(processor(), ()), f"-DREAL={TYPES[dtype]}", "-shared", "-fPIC"]
    tried = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / "native.so"
        for compiler in compilers():
            command = [*compiler, *options, str(SOURCE / "kernel.c"), "-o", str(target), "-lm"]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode == 0:
                return target.replace(folder / name_of(dtype))  # at once: other workers may be looking for it
            tried.append(f"{' '.join(compiler)}: {(made.stderr.strip() or 'failed').splitlines()[0]}")
    raise BuildError("; ".join(tried) or "no C compiler; install gcc or clang, or `pip install ziglang`")


@functools.cache
def library(dtype: str) -> ctypes.CDLL:
    """The kernel for a type, built now if it has not been.

    Raises:
        BuildError: if that cannot be done.
    """
    for folder in folders():
        if (file := folder / name_of(dtype)).is_file():
            return _loaded(file)
    for folder in folders():
        try:
            return _loaded(build(dtype, folder))
        except OSError as error:
            reason = error
    raise BuildError(f"cannot be written or loaded: {reason}")


def _loaded(file: Path) -> ctypes.CDLL:
    kernel = ctypes.CDLL(str(file))
    kernel.native_compiler.restype = ctypes.c_char_p
    return kernel


def identity(dtype: str) -> str:
    """What the last bits of a lane's numbers depend on: the source, the kind of processor and the compiler.

    Raises:
        BuildError: if there is no kernel on this machine.
    """
    return f"{digest()} for {processor()} by {library(dtype).native_compiler().decode()}"


def unavailable() -> str | None:
    """Why there is no native kernel on this machine, or None if there is one."""
    try:
        for dtype in TYPES:
            library(dtype)
    except BuildError as error:
        return str(error)
    return None


if __name__ == "__main__":
    why = unavailable()
    print(f"native kernel: {why or identity('float32')}")
