"""Python programs in processes of their own, without an import of torch by each of them.

One process imports torch and this package; each program runs in a fork of it, in a fresh `__main__`, with its own
current folder, arguments, environment and output files. The process that forks has a single thread.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run_python(
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    seconds: int = 1800,
) -> subprocess.CompletedProcess[str]:
    """Run `python arguments…` in `folder`: `[-W action] script.py …`, `-m module …` or `-c code …`.

    Its standard input is the file `stdin`, or empty.
    """
    with tempfile.TemporaryDirectory() as outputs:
        process = start_python(
            *arguments,
            folder=folder,
            outputs=Path(outputs),
            environment=environment,
            stdin=stdin,
            seconds=seconds,
        )
        code = process.wait()
        out, err = ((Path(outputs) / name).read_text("utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(["python", *arguments], code, out, err)


@dataclass(frozen=True)
class StartedPython:
    """A program that runs; its standard output and error are the files `out` and `err` of a folder."""

    pid: int

    def wait(self) -> int:
        """The exit code, once the program has ended; minus the signal that ended it."""
        code: int = _ask({"wait_for": self.pid})
        return code

    def poll(self) -> int | None:
        """The exit code, or None while the program runs."""
        code: int | None = _ask({"look_at": self.pid})
        return code


def start_python(
    *arguments: str,
    folder: Path,
    outputs: Path,
    environment: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    seconds: int = 1800,
) -> StartedPython:
    """Start `python arguments…` in `folder`, as `run_python` does; `wait` or `poll` it until it has ended."""
    request = {
        "arguments": arguments,
        "folder": str(folder),
        "environment": {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        "outputs": str(outputs),
        "stdin": str(stdin or os.devnull),
        "seconds": seconds,
    }
    return StartedPython(_ask(request))


def _ask(request: Mapping[str, Any]) -> Any:
    """The answer of the process that forks."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the process that forks ended with code {server.wait()}"
    return json.loads(answer)


@cache
def _server() -> subprocess.Popen[str]:
    """The process that forks, started by the first program."""
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def stop() -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        server.wait()
        server.stdout.close()

    atexit.register(stop)
    return server


def _import_what_programs_import() -> None:
    """Import torch, its exporter and this package. The exporter imports most of its modules when it first runs."""
    import torch

    import onebyone

    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),))
    for name in onebyone.__all__:
        getattr(onebyone, name)


def _serve() -> dict[str, Any] | None:
    """Answer each line of standard input: start a program in a fork, or tell how one ended.

    Returns the request in the fork, and None in the process that forks, at the end of its input.
    """
    for line in iter(sys.stdin.readline, ""):
        request: dict[str, Any] = json.loads(line)
        if "arguments" in request:
            answer: int | None = os.fork()
            if answer == 0:
                return request
        else:
            wait = "wait_for" in request
            ended, status = os.waitpid(request["wait_for" if wait else "look_at"], 0 if wait else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)
    return None


def _run(request: dict[str, Any]) -> None:
    """Become a Python that was started with the arguments of the request."""
    for stream, name in ((1, "out"), (2, "err")):
        opened = os.open(Path(request["outputs"]) / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, stream)
        os.close(opened)
    standard_input = os.open(request["stdin"], os.O_RDONLY)
    os.dup2(standard_input, 0)
    os.close(standard_input)
    signal.alarm(request["seconds"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    arguments = list(request["arguments"])
    if arguments[0] == "-W":
        warnings.simplefilter(arguments[1])
        del arguments[:2]
    kind = arguments[0]
    sys.argv = arguments if kind not in ("-c", "-m") else [kind, *arguments[2:]]
    sys.path[0] = request["folder"]
    if kind == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _import_what_programs_import()
    gc.freeze()  # garbage collections of the programs do not visit what was imported before
    program = _serve()
    if program is not None:
        _run(program)
