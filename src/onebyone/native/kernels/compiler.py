"""C++ of this package, compiled for the processor it runs on, once in a process.

It needs a C++ compiler, as torch.compile does. Nothing is kept on disk: a library that others could have written is
never loaded, and compiling takes two seconds. A compiler that is missing, broken or hangs, and folders that cannot be
written or executed from, are a reason why a candidate of `tune` is not built (BadInput), found once.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
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
_LEAST_PATIENCE, _MOST_PATIENCE = 15.0, 120.0
_patience: ContextVar[float] = ContextVar("patience", default=_MOST_PATIENCE)
_generic: dict[str, str] = {}


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let one compilation take about `seconds`: at least 15, so that a slow machine is not taken for a broken one."""
    token = _patience.set(min(max(seconds, _LEAST_PATIENCE), _MOST_PATIENCE))
    try:
        yield
    finally:
        _patience.reset(token)


def library(source: str) -> ctypes.CDLL:
    """The library of a C++ source of this folder.

    Raises BadInput where there is no compiler, it does not take the source, or what it makes cannot be loaded; the
    environment variable CXX names the compiler. A failure is remembered: a compiler that hangs is waited for once.
    """
    found = _outcome(source, os.environ.get("CXX", ""))
    if isinstance(found, str):
        raise BadInput(found)
    return found


def not_native(source: str) -> str | None:
    """Why a library was compiled for any processor of its kind, which makes it slow; None where it was not."""
    return _generic.get(source)


@cache
def _outcome(source: str, cxx: str) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return compile_source(source, cxx)
    except BadInput as error:
        return str(error)


def compile_source(source: str, cxx: str = "") -> ctypes.CDLL:
    """Compile and load a source with the compiler that `cxx` names. Raises BadInput where that fails."""
    command = _compiler(cxx)
    said: dict[str, None] = {}
    for parent in _folders():
        try:
            with tempfile.TemporaryDirectory(prefix="onebyone-", dir=parent) as folder:
                return _compiled_in(Path(folder), command, source)
        except OSError as error:  # a full disk, or one that nothing may be executed from
            said[f"{parent}: {first_line(error)}"] = None
    raise BadInput(f"no folder for temporary files can be used to compile {source} ({'; '.join(said)})")


def _folders() -> list[str]:
    """Where temporary files may go: $TMPDIR, then folders that are mounted by themselves on many systems."""
    here = [] if (given := os.environ.get("TMPDIR")) is None else [given]
    with suppress(FileNotFoundError):
        here.append(tempfile.gettempdir())
    here += ["/dev/shm", "/var/tmp", str(Path.home() / ".cache")]
    return list(dict.fromkeys(f for f in here if Path(f).is_dir())) or ["."]


def _compiled_in(place: Path, command: list[str], source: str) -> ctypes.CDLL:
    for part in SOURCES.iterdir():
        if part.name.endswith((".cpp", ".h")):
            (place / part.name).write_bytes(part.read_bytes())
    said = ""
    for native in _NATIVE:
        failure = _run([*command, *_FLAGS, *native, *EXTRA_FLAGS, source, "-o", "kernel.so"], place)
        if failure is None:
            if not native and said:
                _generic[source] = said
            return _loaded(place / "kernel.so", command[0])
        said = said or failure
    raise BadInput(f"{command[0]} does not compile {source}: {failure}")


def _loaded(path: Path, compiler: str) -> ctypes.CDLL:
    if not path.is_file():
        raise BadInput(f"{compiler} ends without an error and writes no library")
    found = ctypes.CDLL(str(path))
    if not hasattr(found, "onebyone_panel"):
        raise BadInput(f"{compiler} writes a library without the functions of the source")
    return found


def _compiler(cxx: str) -> list[str]:
    try:
        asked = shlex.split(cxx)
    except ValueError as error:
        raise BadInput(f"CXX={cxx!r}: expected the name of a C++ compiler ({error})") from error
    for command in [asked] if asked else [["g++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise BadInput(f"{(asked or ['g++'])[0]} is not installed: this form is compiled where it is used")


def _run(command: list[str], folder: Path) -> str | None:
    """What the compiler says first where it fails; None where it does not. Raises BadInput where it takes too long."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # the driver's own children end with it
        )
    except OSError as error:
        return first_line(error)
    limit = _patience.get()
    with process:
        try:
            _, stderr = process.communicate(timeout=limit)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BadInput(f"{command[0]} did not end within {limit:.0f} s") from error
            raise
    if process.returncode == 0:
        return None
    if "No space left on device" in stderr:
        raise OSError("no space is left for the compiler's files")
    lines = [line for line in stderr.splitlines() if "error" in line] or stderr.splitlines()
    return (lines or [f"exit code {process.returncode}"])[0][:200]
