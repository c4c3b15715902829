"""`tune`: the fastest equivalent form of a network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def tune(
    context: typer.Context,
    source: o.Source,
    shape: o.Shape = None,
    weights: o.Weights = None,
    budget: Annotated[
        float, typer.Option("--budget", min=0.1, metavar="SECONDS", help="Seconds to aim at.")
    ] = 60.0,
    engines: Annotated[
        o.Names | None,
        typer.Option(
            "--engines",
            parser=o.read_names,
            metavar="A,B,…",
            help="eager, compile, compile+freeze, aot-inductor, onednn-graph, onebyone (torch for all these), "
            "onnxruntime, openvino; or all.",
        ),
    ] = None,
    dtype: Annotated[
        o.Names | None,
        typer.Option(
            "--dtype", parser=o.read_names, metavar="bfloat16", help="Try this type too; its error is told."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", help="Of every engine.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Where to tune it.", show_default=False),
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="The result must take any batch size.")
    ] = False,
    fast_products: Annotated[
        bool,
        typer.Option(
            "--fast-products",
            help="Allow products of rows together without an error bound for each row.",
        ),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Apply this plan without measuring.", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Apply a plan that was made for something else.")
    ] = False,
    seed: o.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the plan as .json.", rich_help_panel=o.OUTPUT),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Find the fastest form of a network on this machine that computes the same function.

    Measures every form of its layers, and the whole network in every form under every engine that is installed;
    chooses on the whole network's time, and proves the choice. Without --shape the input is 1×3×224×224, or the one a
    .pt2 carries.
    """
    if output is not None and output.suffix != ".json":
        raise typer.BadParameter("a plan is written as .json", param_hint="--output")
    with session(context, as_json) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        if output is not None:
            atomic_files.require_writable(output)
        with run.step(f"Opening {source}"):
            network, notes = loading.open_network(source, weights, seed=seed)
            size = shape or (None if source.endswith(".pt2") else (1, 3, 224, 224))
            example = None if size is None else loading.example_input(network, size, seed=seed)
        with run.progress("Applying the plan" if plan else "Measuring") as tell:
            tuned = api.tune(
                network,
                example,
                budget=budget,
                engines=engines,
                dtypes=dtype,
                threads=threads,
                device=device,
                dynamic_batch=dynamic_batch,
                fast_products=fast_products,
                seed=seed,
                progress=tell,
                plan=plan,
                force=force,
            )
        if output is not None:
            tuned.plan.save(output)
        render.tell(run, [*notes, *tuned.notes])
        data = {"source": source, "notes": [*notes, *tuned.notes], "output": output, **tuned.plan.to_dict()}
        run.result(data, *render.tuned_tables(tuned.plan))
