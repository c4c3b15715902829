"""The command `tune`: the fastest equivalent form of a network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def tune(
    context: typer.Context,
    source: o.SourceOrOnnx,
    shape: o.Shape = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    budget: Annotated[float, o.budget_option(0.1)] = 60.0,
    engines: Annotated[
        o.Names | None,
        o.list_option(
            "--engines",
            "eager, compile, compile+freeze, aot-inductor, onednn-graph, onebyone (torch means these six), "
            "onnxruntime, openvino; or all. For an ONNX model: onnxruntime, openvino.",
            show_default="all that are installed",
        ),
    ] = None,
    dtype: Annotated[
        o.Names | None,
        o.list_option("--dtype", "Also try this dtype and report its error.", metavar="bfloat16"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            metavar="N",
            help="Number of threads of every engine.",
            show_default="PyTorch's setting",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Device to tune for.", show_default="cpu"),
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="The result must accept any batch size.")
    ] = False,
    tile: Annotated[
        Path | None,
        typer.Option(
            "--tile",
            metavar="IMAGE",
            help="Tune a dense .pt2 or .onnx for the tiles of this image, for scan --plan.",
            show_default=False,
        ),
    ] = None,
    page: o.Page = None,
    level: o.Level = None,
    mpp: o.MicronsPerPixel = None,
    axes: o.Axes = None,
    fast_products: Annotated[
        bool,
        typer.Option(
            "--fast-products",
            help="Allow matrix products whose rows share an error bound, instead of one bound per row.",
        ),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Apply this plan without measuring.", show_default=False),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Apply a plan that was made for another machine, network or input."),
    ] = False,
    seed: o.Seed = 0,
    output: Annotated[Path | None, o.output_option("Write the plan as .json.")] = None,
) -> None:
    """Find the fastest equivalent form of a network on this machine.

    Measures every form of its layers, and the whole network in every form under every installed engine; selects by
    the time of the whole network, and verifies the selection. Without --shape the input is 1×3×224×224, or the
    example stored in a .pt2. An ONNX model is measured as it is, in ONNX Runtime and OpenVINO.
    """
    if output is not None and output.suffix != ".json":
        raise typer.BadParameter("expected a file name ending in .json", param_hint="--output")
    if tile is not None and (shape is not None or weights is not None or pretrained):
        raise typer.BadParameter(
            "expected a dense .pt2 or .onnx without --shape, --weights or --pretrained", param_hint="--tile"
        )
    read: dict[str, Any] = {"page": page, "level": level, "mpp": mpp, "axes": axes}
    for name, value in read.items():
        if tile is None and value is not None:
            raise typer.BadParameter("expected --tile IMAGE beside it", param_hint=f"--{name}")
    with session(context) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        if output is not None:
            atomic_files.require_writable(output)
        with run.step(f"Opening {source}"):
            if tile is not None:
                network, notes, example = api.tile_example(source, tile, **read)
            else:
                network, notes, example = loading.open_model(
                    source, weights, shape, seed=seed, pretrained=pretrained, default_shape=o.IMAGE
                )
        with run.progress("Applying the plan" if plan else "Measuring") as progress:
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
                progress=progress,
                plan=plan,
                force=force,
            )
        if output is not None:
            tuned.plan.save(output)
        choice = tuned.plan.choice
        run.detail(f"Engine: {choice['engine']}, form: {choice['form']}")
        notes = (*notes, *tuned.notes)
        run.notes(notes)
        data = {"source": source, "notes": list(notes), "output": output, **tuned.plan.to_dict()}
        run.result(data, *render.tuned_tables(tuned.plan))
