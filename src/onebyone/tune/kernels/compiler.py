"""C++ of this package, compiled for the processor it runs on, once in a process: what `torch.compile` needs, no more.

Nothing is kept on disk: a library that others could have written is never loaded, and compiling takes two seconds.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from onebyone.errors import BadInput
from onebyone.records import first_line

_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp")
# tests compile variants: with sanitizers, or of sources with a fault put into them
SOURCES: Traversable = files(__package__)
EXTRA_FLAGS: tuple[str, ...] = ()
_NATIVE = (("-march=native",), ("-mcpu=native",), ())
_PATIENCE = 120.0


@cache
def library(source: str) -> ctypes.CDLL:
    """The library of a C++ source of this folder.

    Raises BadInput where there is no compiler, or it does not take the source; the environment variable CXX names it.
    """
    command = _compiler()
    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder:
        place = Path(folder)
        for part in SOURCES.iterdir():
            if part.name.endswith((".cpp", ".h")):
                (place / part.name).write_bytes(part.read_bytes())
        for native in _NATIVE:
            said = _run([*command, *_FLAGS, *native, *EXTRA_FLAGS, source, "-o", "kernel.so"], place)
            if said is None:
                return ctypes.CDLL(str(place / "kernel.so"))
    raise BadInput(f"{command[0]} does not compile {source}: {said}")


def _compiler() -> list[str]:
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [["g++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise BadInput(f"{(asked or ['g++'])[0]} is not installed: this form is compiled where it is used")


def _run(command: list[str], folder: Path) -> str | None:
    """What the compiler says first where it fails; None where it does not."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return first_line(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return (lines or [f"exit code {done.returncode}"])[0][:200]
