"""JIT compilation of this package's C++ sources for the CPU at hand, once per process.

It needs a C++ compiler, as torch.compile does. Libraries are not cached on disk, so that no library is loaded that
another user could have written. A missing, broken or hanging compiler, and temporary folders that cannot be written or
executed from, raise BadInput; the outcome is remembered.
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
# tests replace these two: they compile with sanitizers, or from sources with an injected fault
SOURCES: Traversable = files(__package__)
EXTRA_FLAGS: tuple[str, ...] = ()
_TARGETS = (("-march=native",), ("-mcpu=native",), ())
_MIN_SECONDS, _MAX_SECONDS = 15.0, 120.0
_limit: ContextVar[float] = ContextVar("limit", default=_MAX_SECONDS)
_generic: dict[str, str] = {}
"""By source: why it was compiled without the instructions of this CPU."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit each compilation to `seconds`, but no less than 15: a slow machine must not count as a broken compiler."""
    token = _limit.set(min(max(seconds, _MIN_SECONDS), _MAX_SECONDS))
    try:
        yield
    finally:
        _limit.reset(token)


def library(source: str) -> ctypes.CDLL:
    """The library of a C++ source of this folder, compiled if it is not yet loaded.

    The environment variable CXX names the compiler. Raises BadInput if there is no compiler, if it fails, or if its
    output cannot be loaded. Failures are remembered, so that a hanging compiler delays a process only once.
    """
    outcome = _outcome(source, os.environ.get("CXX", ""))
    if isinstance(outcome, str):
        raise BadInput(outcome)
    return outcome


def why_generic(source: str) -> str | None:
    """Why a library was compiled without the instructions of this CPU, which makes it slow; None if it was not."""
    return _generic.get(source)


@cache
def _outcome(source: str, cxx: str) -> ctypes.CDLL | str:
    """The library, or why it could not be compiled."""
    try:
        return compile_source(source, cxx)
    except BadInput as error:
        return str(error)


def compile_source(source: str, cxx: str = "") -> ctypes.CDLL:
    """Compile and load a source with the compiler that `cxx` names. Raises BadInput if that fails."""
    command = _compiler(cxx)
    failures: dict[str, None] = {}
    for parent in _folders():
        try:
            with tempfile.TemporaryDirectory(prefix="onebyone-", dir=parent) as folder:
                return _compiled_in(Path(folder), command, source)
        except OSError as error:  # a full disk, or one mounted without permission to execute
            failures[f"{parent}: {first_line(error)}"] = None
    raise BadInput(f"no temporary folder can be used to compile {source} ({'; '.join(failures)})")


def _folders() -> list[str]:
    """Candidates for temporary files: $TMPDIR, then folders that many systems mount separately."""
    folders = [] if (asked := os.environ.get("TMPDIR")) is None else [asked]
    with suppress(FileNotFoundError):
        folders.append(tempfile.gettempdir())
    folders += ["/dev/shm", "/var/tmp", str(Path.home() / ".cache")]
    return list(dict.fromkeys(f for f in folders if Path(f).is_dir())) or ["."]


def _compiled_in(folder: Path, command: list[str], source: str) -> ctypes.CDLL:
    for part in SOURCES.iterdir():
        if part.name.endswith((".cpp", ".h")):
            (folder / part.name).write_bytes(part.read_bytes())
    first_failure = ""
    for target in _TARGETS:
        failure = _run([*command, *_FLAGS, *target, *EXTRA_FLAGS, source, "-o", "kernel.so"], folder)
        if failure is None:
            if not target and first_failure:
                _generic[source] = first_failure
            return _loaded(folder / "kernel.so", command[0])
        first_failure = first_failure or failure
    raise BadInput(f"{command[0]} does not compile {source}: {failure}")


def _loaded(path: Path, compiler: str) -> ctypes.CDLL:
    if not path.is_file():
        raise BadInput(f"{compiler} reports success but wrote no library")
    loaded = ctypes.CDLL(str(path))
    if not hasattr(loaded, "onebyone_panel"):
        raise BadInput(f"{compiler} wrote a library without the functions of the source")
    return loaded


def _compiler(cxx: str) -> list[str]:
    try:
        asked = shlex.split(cxx)
    except ValueError as error:
        raise BadInput(f"CXX={cxx!r}: expected the name of a C++ compiler ({error})") from error
    for command in [asked] if asked else [["g++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise BadInput(f"{(asked or ['g++'])[0]} is not installed: it is needed to compile the kernels")


def _run(command: list[str], folder: Path) -> str | None:
    """The compiler's first error message; None if it succeeds. Raises BadInput if it takes too long."""
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
            start_new_session=True,  # so that its child processes can be killed with it
        )
    except OSError as error:
        return first_line(error)
    limit = _limit.get()
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
        raise OSError("no space left for the compiler's files")
    lines = [line for line in stderr.splitlines() if "error" in line] or stderr.splitlines()
    return (lines or [f"exit code {process.returncode}"])[0][:200]
