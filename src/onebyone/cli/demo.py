"""`demo`: the whole job once, on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def demo(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write to.", rich_help_panel=o.OUTPUT)
    ] = Path("demo"),
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Train a digit classifier, convert it, prove it, and find digits on a photograph. Takes two minutes.

    Writes index.html, which shows every step, and summary.json.
    """
    with session(context, as_json) as run:
        from onebyone import demo as part
        from onebyone.cli import render

        summary = part.run(output, seed=seed, progress=run.progress)
        run.result(summary, *render.demo_tables(summary, output))
