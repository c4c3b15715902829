"""The command line: `onebyone COMMAND SRC …` parses the options, calls the public functions and prints the result."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from onebyone import __version__
from onebyone.cli import check, compare, demo, dense, draw, evaluate, info, network, predict, tune, view
from onebyone.cli.command import Json, Quiet, Verbose, command
from onebyone.cli.usage import Command, Group

EPILOG = (
    "Exit codes: 0 done · 1 not equivalent · 2 wrong usage or unreadable input · 3 refused, with the reason. "
    "Every command prints a table, or one JSON object with --json."
)

HELP = """
Convert fully connected layers to 1×1 convolutions and back, verify the result, and run classifiers densely over images.

A network (SRC) is a [cyan]file.pt2[/], [cyan]torchvision:NAME[/] or [cyan]timm:NAME[/] (with random weights; nothing
is downloaded without --pretrained), or [cyan]package.module:factory[/] or [cyan]file.py:factory[/], a function that
returns it. --weights loads a checkpoint.
"""


def _paragraphs(text: str | None) -> str:
    """The text with one line per paragraph, because typer keeps the line breaks of a docstring."""
    return "\n\n".join(" ".join(p.split()) for p in inspect.cleandoc(text or "").split("\n\n"))


app = typer.Typer(
    name="onebyone",
    cls=Group,
    help=_paragraphs(HELP),
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onebyone {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    context.obj = {"json": json, "quiet": quiet, "verbose": verbose}


CONVERT, DENSE, START = "Convert and verify", "Run over images of any size", "Start here"
for panel, function in (
    (START, demo.demo),
    (START, info.info),
    (START, predict.predict),
    (CONVERT, network.convert),
    (CONVERT, network.verify),
    (CONVERT, check.check),
    (CONVERT, check.targets),
    (CONVERT, compare.compare),
    (CONVERT, tune.tune),
    (CONVERT, draw.draw),
    (DENSE, network.convolutionalize),
    (DENSE, dense.scan),
    (DENSE, dense.detect),
    (DENSE, evaluate.evaluate),
    (DENSE, view.view),
):
    app.command(rich_help_panel=panel, help=_paragraphs(function.__doc__), cls=Command)(command(function))


def run() -> None:
    """Run the command line (entry point of the script `onebyone`)."""
    app()
