"""The command `demo`: a complete example on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def demo(
    context: typer.Context,
    output: Annotated[Path, o.output_option("Folder to write to.", metavar="FOLDER")] = Path("demo"),
    seed: o.Seed = 0,
) -> None:
    """Train a digit classifier, convert it, verify it, and detect digits on a photograph. Takes about two minutes.

    Writes index.html, which shows every step, report.html, which tests claims about the layers, summary.json, and the
    scan for `onebyone view`.
    """
    with session(context) as run:
        from onebyone import demo as demonstration
        from onebyone.cli import render

        summary = demonstration.run(output, seed=seed, progress=run.progress)
        run.result(summary, *render.demo_tables(summary, output))
