"""What every command has: the options --json, --quiet and --verbose, and former names of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

OUTPUT = "Output"

Json = Annotated[
    bool, typer.Option("--json", help="Print a single JSON object on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print only errors (and JSON): no tables, notes or progress.",
        rich_help_panel=OUTPUT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also print versions, the time of each step, and the traceback of an unexpected error.",
        rich_help_panel=OUTPUT,
    ),
]
EVERYWHERE: Mapping[str, Any] = {"json": Json, "quiet": Quiet, "verbose": Verbose}
"""Options that are accepted before and after the name of the command, in any order."""

FORMER = {"scan": ("--out", "out"), "demo": ("--out", "output"), "predict": ("--save", "save")}
"""By command: the former name of `--output`, still accepted, and the argument that it sets."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the options of every command, which it finds in `context.obj`, and its option's former name.

    The first argument of `function` must be the context.
    """
    hints = get_type_hints(function, include_extras=True)
    former, argument = FORMER.get(function.__name__, ("", ""))
    added = dict(EVERYWHERE)
    if former:
        added["former_output"] = Annotated[Path | None, typer.Option(former, hidden=True)]

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        given = {name: values.pop(name) for name in EVERYWHERE}
        before = context.obj or {}
        context.obj = {name: given[name] or before.get(name, False) for name in EVERYWHERE}
        path = values.pop("former_output", None)
        if path is not None:
            _require_one_name(context, argument, former)
            values[argument] = path
        function(context, **values)

    parameters = [p.replace(annotation=hints[name]) for name, p in _parameters(function)]
    parameters += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if name == "former_output" else False,
            annotation=hint,
        )
        for name, hint in added.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **added}
    return run


def _parameters(function: Callable[..., None]) -> Iterable[tuple[str, inspect.Parameter]]:
    return inspect.signature(function).parameters.items()


def _require_one_name(context: typer.Context, argument: str, former: str) -> None:
    """Raise BadParameter if both names were given: before, `--output` of scan chose an output of the network."""
    source = context.get_parameter_source(argument)
    if source is not None and source.name == "COMMANDLINE":
        hint = " (an output of the network is chosen by --network-output)" if former == "--out" else ""
        raise typer.BadParameter(
            f"{former} is the former name of --output, and both were given; give --output alone{hint}"
        )
