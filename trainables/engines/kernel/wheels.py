"""Builds a wheel with the native kernel for each platform: `make wheels`, by the compiler of the package ziglang."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from trainables.engines.kernel.build import FLAGS, SOURCE, TYPES, name_of

# Platform of a wheel -> kind of processor -> zig's target. A machine loads the library of its own kind.
PLATFORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "manylinux_2_17_x86_64": {
        "x86-64-v2": ("x86_64-linux-gnu.2.17", "-mcpu=x86_64_v2"),
        "x86-64-v3": ("x86_64-linux-gnu.2.17", "-mcpu=x86_64_v3"),
    },
    "manylinux_2_17_aarch64": {"aarch64": ("aarch64-linux-gnu.2.17",)},
    "macosx_11_0_x86_64": {
        "x86-64-v2": ("x86_64-macos.11.0", "-mcpu=x86_64_v2"),
        "x86-64-v3": ("x86_64-macos.11.0", "-mcpu=x86_64_v3"),
    },
    "macosx_11_0_arm64": {"arm64": ("aarch64-macos.11.0",)},
}


def cross_build(platform: str, folder: Path) -> list[Path]:
    """Compile the kernel for a platform's processors and both types into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for processor, target in PLATFORMS[platform].items():
        for dtype, real in TYPES.items():
            file = folder / name_of(dtype, processor)
            options = [*FLAGS, f"-DREAL={real}", "-shared", "-fPIC", str(SOURCE / "kernel.c"), "-o", str(file), "-lm"]
            subprocess.run([sys.executable, "-m", "ziglang", "cc", "-target", *target, *options], check=True)
            made.append(file)
    return made


def main() -> None:
    """Build the wheels into `dist`, each from a copy of the project that has the kernels of its platform alone."""
    project = SOURCE.parents[2]
    for platform in PLATFORMS:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "project"
            skipped = shutil.ignore_patterns(".*", "__pycache__", "built", "build", "dist", "tests", "*.egg-info")
            shutil.copytree(project, copy, ignore=skipped)
            cross_build(platform, copy / SOURCE.relative_to(project) / "built")
            options = ["--outdir", str(project / "dist"), f"-C--build-option=--plat-name={platform}"]
            subprocess.run([sys.executable, "-m", "build", "--wheel", *options, str(copy)], check=True)


if __name__ == "__main__":
    main()
