"""One run of a command: output of results, notes, progress and errors, and the exit code.

The result goes to stdout (tables, or a single JSON object), everything else to stderr. Exit codes: 0 done, 1 not
equivalent, 2 wrong usage or unreadable input, 3 refused with a reason, 70 for a bug in onebyone (--verbose prints the
traceback), 130 when interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, TextIO

import typer

from onebyone import __version__
from onebyone.cli.command import EVERYWHERE
from onebyone.errors import BadInput, OnebyoneError, OnebyoneWarning, Refused
from onebyone.memory import exhaustion
from onebyone.records import first_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h, which no result of a command uses
INTERRUPTED = 130  # 128 + SIGINT, the convention of shells
WIDE = 120  # columns of tables written to a file or a pipe
_LONG = 1.0  # seconds after which the name of a step is printed
_REPEAT = 10.0  # seconds between lines of progress without a terminal
# Arguments of Python functions that commands make from an option of another name.
_OTHER_ARGUMENTS = {
    "context": "--context",
    "example": "--shape",
    "x": "--shape",
    "target": "--target",
    "save": "--output",
    "path": "--output",
}
_LIBRARIES = ("torch", "numpy", "torchvision", "timm", "onnx", "onnxruntime", "openvino")


class Session:
    """The output of one command."""

    def __init__(
        self,
        stdout: TextIO,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._stdout = stdout
        self._options = options or {}
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose and not quiet
        self._warnings: list[str] = []

    def result(self, data: Mapping[str, Any], *tables: RenderableType) -> None:
        """Print the result: `data` with `--json`, else the tables."""
        if self.as_json:
            notes = {"notes": [*data.get("notes", ()), *self._warnings]} if self._warnings else {}
            self._stdout.write(as_json({**data, **notes}))
            self._stdout.flush()  # the command may go on, as a server does
        elif not self.quiet:
            output = console(self._stdout)
            for table in tables:
                output.print(table)

    def note(self, text: str) -> None:
        """Print a note on stderr, with the names of options in place of those of Python arguments."""
        if not self.quiet:
            note = escaped(self.with_option_names(text))
            console(sys.stderr).print(f"[yellow]note:[/] {note}", soft_wrap=True)

    def detail(self, text: str) -> None:
        """Print a line on stderr with --verbose."""
        if self.verbose:
            console(sys.stderr).print(escaped(text), style="dim", soft_wrap=True)

    def notes(self, texts: Iterable[str]) -> None:
        """Print several notes on stderr."""
        for text in texts:
            self.note(text)

    def with_option_names(self, text: str) -> str:
        """`text` with the names of Python arguments replaced by those of options: `iou=2` becomes `--iou 2`,
        and `iou: ` at the start of the text becomes `--iou: `."""
        for name, option in self._options.items():
            text = re.sub(rf"(?<![\w.\-/]){name}=(?:\.\.\.|…|True\b)?", f"{option} ", text)
            text = re.sub(rf"^{name}: ", f"{option}: ", text)
            text = re.sub(rf"{option} '([\w:./-]+)'", rf"{option} \1", text)
        return re.sub(r"(--[a-z-]+) (?=[\s).,;:]|$)", r"\1", text)

    def warning(self, text: str) -> None:
        """Print a warning of onebyone as a note, and add it to the notes of the JSON object."""
        text = self.with_option_names(text)
        if text not in self._warnings:
            self._warnings.append(text)
            self.note(text)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Print `what` on stderr if the block takes longer than a second."""
        with self.progress(what):
            yield

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Give a function (done, total) that updates a bar on stderr, or without a terminal prints occasional lines.

        With --verbose the time of the block is printed at its end.
        """
        start = time.perf_counter()
        if self.quiet:
            yield lambda done, total: None
        else:
            with (_bar if sys.stderr.isatty() else _lines)(what) as update:
                yield update
        self.detail(f"{what}: {time.perf_counter() - start:.2f} s")


def _options(context: typer.Context) -> dict[str, str]:
    """How the command line names each argument of the command that runs, and of the functions that it calls.

    That is its long option, or the name of a positional argument in the help, such as SRC.
    """
    by_argument: dict[str, str] = {}
    for parameter in context.command.params:
        long = [option for option in parameter.opts if option.startswith("--")]
        if parameter.name and parameter.name not in EVERYWHERE:
            if long:
                by_argument[parameter.name] = long[0]
            elif parameter.param_type_name == "argument":
                by_argument[parameter.name] = getattr(parameter, "metavar", None) or parameter.name.upper()
    given = set(by_argument.values())
    return {name: option for name, option in _OTHER_ARGUMENTS.items() if option in given} | by_argument


@contextmanager
def session(context: typer.Context) -> Iterator[Session]:
    """Run a command: errors become one sentence and an exit code, and only the result is written to stdout.

    `context.obj` holds the options that every command has (`command.EVERYWHERE`).
    """
    chosen: Mapping[str, bool] = context.obj or {}
    as_json, quiet, verbose = (chosen.get(name, False) for name in EVERYWHERE)
    run = Session(sys.stdout, as_json, quiet, verbose, _options(context))
    if run.verbose:
        run.detail(_versions())
    try:
        # models and libraries may print while they are imported or run, which would corrupt the JSON on stdout
        with redirect_stdout(sys.stderr), _library_warnings_silenced(run):
            yield run
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # typer handles these, and ends silently if the reader of a pipe has closed it
    except OnebyoneError as error:
        _report(error, run)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        console(sys.stderr).print("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if (message := exhaustion(error)) is not None:
            _report(BadInput(message), run)
            raise typer.Exit(BadInput.exit_code) from None
        _report_bug(error, run)
        raise typer.Exit(INTERNAL_ERROR) from None


@contextmanager
def _library_warnings_silenced(run: Session) -> Iterator[None]:
    """Hide libraries' deprecation warnings and torch's log of errors that it raises; -W and TORCH_LOGS show them.

    Warnings of onebyone become notes.
    """
    before = logging.root.manager.disable
    if "TORCH_LOGS" not in os.environ:
        logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                for category in (FutureWarning, DeprecationWarning):
                    warnings.simplefilter("ignore", category)
                warnings.simplefilter("always", OnebyoneWarning)
            show_other = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
                if issubclass(category, OnebyoneWarning):
                    run.warning(str(message))
                else:
                    show_other(message, category, *where, **more)

            warnings.showwarning = show  # catch_warnings restores the previous function
            yield
    finally:
        logging.disable(before)


def _report(error: OnebyoneError, run: Session) -> None:
    output = console(sys.stderr)
    refusals = [
        replace(r, reason=run.with_option_names(r.reason))
        for r in (error.refusals if isinstance(error, Refused) else ())
    ]
    message = run.with_option_names(str(error).splitlines()[0].removesuffix(":") if refusals else str(error))
    output.print(f"[bold red]{'refused' if refusals else 'error'}:[/] {escaped(message)}", soft_wrap=True)
    for refusal in refusals:
        output.print(f"  {escaped(str(refusal))}", soft_wrap=True)
    if run.as_json:
        run.result({"error": message, "refusals": [r.to_dict() for r in refusals]})


def _report_bug(error: Exception, run: Session) -> None:
    """One sentence on an unexpected error, and its traceback with --verbose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    message = f"{type(error).__name__} at {where}: {first_line(error)}"
    if run.verbose:
        traceback.print_exception(error)
    advice = "" if run.verbose else "; --verbose prints the traceback"
    console(sys.stderr).print(
        f"[bold red]internal error:[/] {escaped(message)}. This is a bug in onebyone{advice}", soft_wrap=True
    )
    if run.as_json:
        run.result({"error": f"internal error: {message}", "refusals": []})


def _versions() -> str:
    """The versions of onebyone, Python and the libraries that are installed, as `name version, …`."""
    found = [f"onebyone {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich import progress as p

    columns = (p.SpinnerColumn(), p.TextColumn("{task.description}"), p.BarColumn(), p.MofNCompleteColumn())
    with p.Progress(*columns, p.TimeElapsedColumn(), console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(what: str) -> Iterator[Callable[[int, int], None]]:
    stderr = sys.stderr
    last = [time.monotonic()]

    def write(text: str) -> None:
        print(text, file=stderr, flush=True)

    def update(done: int, total: int) -> None:
        if time.monotonic() - last[0] > _REPEAT:
            last[0] = time.monotonic()
            write(f"{what}: {done} of {total}")

    first = threading.Timer(_LONG, write, (f"{what} …",))
    first.daemon = True
    first.start()
    try:
        yield update
    finally:
        first.cancel()


def as_json(data: Mapping[str, Any]) -> str:
    """`data` as the text of a JSON file."""
    return json.dumps(plain(data), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """`value` in types that JSON supports: tuples as lists, NumPy as Python numbers, NaN and infinity as text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def console(stream: TextIO) -> Console:
    """What prints with colours on `stream`, `WIDE` columns wide where it is not a terminal."""
    from rich.console import Console

    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=stream, width=width, highlight=False, emoji=False)


def escaped(text: str) -> str:
    """`text` printed as it is, without the meaning of brackets."""
    from rich.markup import escape

    return escape(text)
