"""The command `compare`: common claims about the two layers, tested on a network."""

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
    pretrained: o.Pretrained = False,
    budget: Annotated[float, o.budget_option(1.0)] = 120.0,
    rows: Annotated[o.Names | None, o.list_option("--rows", "Test only these claims, such as S1,D5.")] = None,
    seed: o.Seed = 0,
    output: Annotated[Path | None, o.output_option("Write the rows as .json or .md.")] = None,
    html: Annotated[
        Path | None, o.output_option("Write the report as one self-contained HTML page.", "--html")
    ] = None,
    plan: Annotated[
        Path | None, o.output_option("Plan written by tune, to include in the report.", "--plan")
    ] = None,
) -> None:
    """Test common claims about fully connected layers and 1×1 convolutions on the network's own layers.

    Each claim gets a verdict computed from measurements on this machine: holds, holds under a condition, or does
    not hold as usually stated. Without --shape the input is 1×3×224×224, or the example stored in a .pt2.
    """
    if output is not None and output.suffix not in (".json", ".md"):
        raise typer.BadParameter("expected a file name ending in .json or .md", param_hint="--output")
    if plan is not None and html is None:
        raise typer.BadParameter(
            "the plan is shown in the report, so --html is required", param_hint="--plan"
        )
    with session(context) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render
        from onebyone.report.html import require_jinja
        from onebyone.report.tuning_plan import read_plan

        for path in (output, html):
            if path is not None:
                atomic_files.require_writable(path)
        if html is not None:
            require_jinja()
        tuning_plan = None if plan is None else read_plan(plan)
        with run.step(f"Opening {source}"):
            network, notes, example = loading.open_with_example(
                source, weights, shape, seed=seed, pretrained=pretrained, default_shape=o.IMAGE
            )
        with run.progress("Measuring") as progress:
            comparison = api.compare(network, example, budget=budget, seed=seed, rows=rows, progress=progress)
        if output is not None:
            comparison.save(output)
        if html is not None:
            comparison.to_html(html, plan=tuning_plan, title=source)
        run.notes(notes)
        data = {"source": source, "notes": list(notes), "output": output, "html": html} | comparison.to_dict()
        run.result(data, *render.comparison_tables(data))
