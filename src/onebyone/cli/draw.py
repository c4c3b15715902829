"""The command `draw`: figures of a network, from its own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session

FIGURES_HELP = (
    "Some of F1 (a pointwise convolution and its filters), F2 (fully connected layers as neurons), F3 (before and "
    "after the conversion), strip (the whole network), window (the receptive field of a prediction)."
)


def _read_width(text: str) -> str | float:
    """Parse the name of a width, or a number of inches."""
    return float(text) if text.replace(".", "", 1).isdecimal() else text


def draw(
    context: typer.Context,
    source: o.Source,
    shape: o.Shape = None,
    window: Annotated[
        o.Sizes | None,
        typer.Option(
            "--window",
            parser=o.read_window,
            metavar="H[,W]",
            help=o.WINDOW_HELP + ".",
            show_default="size of the input",
        ),
    ] = None,
    figures: Annotated[
        o.Names | None, o.list_option("--figures", FIGURES_HELP, show_default="all figures")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="PATH", help="Layer shown in F1 and F2, such as classifier.3."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Background image of the window figure.")
    ] = None,
    formats: Annotated[
        o.Names | None,
        o.list_option(
            "--format", "File formats.", "svg,pdf,png", show_default="svg", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    themes: Annotated[
        o.Names | None,
        o.list_option(
            "--theme", "Colour themes.", "light,dark", show_default="light", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    width: Annotated[
        Any,
        o.output_option(
            "Width of the figures: column (3.3 inches), page (7 inches) or a number of inches.",
            "--width",
            parser=_read_width,
            metavar="column|page|INCHES",
        ),
    ] = "column",
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
    output: Annotated[
        Path,
        o.output_option(
            "Folder to write to, or one file such as network.svg if one figure is requested.",
            metavar="FOLDER|FILE",
        ),
    ] = Path("pictures"),
) -> None:
    """Draw a network as vector graphics for print and screen, from its own layers, shapes and weights.

    Text remains text and fonts are embedded. A figure shows only data of the network, and states what it omits.
    Without --shape the input is 1×3×224×224, or the example stored in a .pt2.
    """
    with session(context) as run:
        from onebyone import api, loading
        from onebyone.cli import render

        with run.step(f"Opening {source}"):
            network, notes, example = loading.open_with_example(
                source, weights, shape, seed=seed, pretrained=pretrained, default_shape=o.IMAGE
            )
        if isinstance(window, o.EveryAxis):
            window = o.Sizes(window * (2 if example is None else example.dim() - 2))
        with run.step("Reading the network"):
            drawings = api.draw(
                network, example, window=window, figures=figures, layer=layer, image=image, width=width
            )
        with run.progress("Drawing") as progress:
            files = drawings.save(
                output, tuple(formats) if formats else None, tuple(themes or ("light",)), progress=progress
            )
        run.notes(notes)
        data = {
            "source": source,
            "notes": list(notes),
            "output": output,
            "files": [vars(file) for file in files],
            "missing": drawings.missing,
            "drawing": drawings.data.to_dict(),
        }
        run.result(data, *render.drawing_tables(data))
