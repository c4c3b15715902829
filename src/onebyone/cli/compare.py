"""`compare`: what is said of the two layers, measured on a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def compare(
    context: typer.Context,
    source: o.Source,
    shape: o.Shape = None,
    weights: o.Weights = None,
    budget: Annotated[
        float,
        typer.Option("--budget", min=1.0, metavar="SECONDS", help="Seconds to aim at."),
    ] = 120.0,
    rows: Annotated[
        o.Names | None,
        typer.Option("--rows", parser=o.read_names, metavar="A,B,…", help="Only these rows, such as S1,D5."),
    ] = None,
    seed: o.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the rows as .json or .md.", rich_help_panel=o.OUTPUT),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Write the report: one page that needs nothing else.", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", help="A plan that `tune` wrote, to show in the report.", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Measure what is said of fully connected layers and 1×1 convolutions on the network's own layers.

    Every statement gets a verdict, computed from figures measured here: it holds, holds when a condition is
    met, or does not hold as usually said. Without --shape the input is 1×3×224×224, or the one a .pt2 carries.
    """
    if output is not None and output.suffix not in (".json", ".md"):
        raise typer.BadParameter("a comparison is written as .json or .md", param_hint="--output")
    if plan is not None and html is None:
        raise typer.BadParameter("a plan is shown in the report: give --html too", param_hint="--plan")
    with session(context, as_json) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render
        from onebyone.report.html import require_jinja
        from onebyone.report.tuning_plan import read_plan

        for path in (output, html):
            if path is not None:
                atomic_files.require_writable(path)
        if html is not None:
            require_jinja()
        shown = None if plan is None else read_plan(plan)
        with run.step(f"Opening {source}"):
            network, notes = loading.open_network(source, weights, seed=seed)
            # a program carries an example of its own; any other network is taken to see a colour image
            size = shape or (None if source.endswith(".pt2") else (1, 3, 224, 224))
            example = None if size is None else loading.example_input(network, size, seed=seed)
        with run.progress("Measuring") as tell:
            found = api.compare(network, example, budget=budget, seed=seed, rows=rows, progress=tell)
        if output is not None:
            found.save(output)
        if html is not None:
            found.to_html(html, plan=shown, title=source)
        render.tell(run, notes)
        data = {"source": source, "notes": list(notes), "output": output, "html": html} | found.to_dict()
        run.result(data, *render.comparison_tables(data))
