"""`draw`: pictures of a network, made from its own layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES_HELP = (
    "Some of F1 (a pointwise convolution and its filters), F2 (fully connected layers as neurons), F3 (before and "
    "after the replacement), strip (the whole network), window (what an answer sees); all where not given."
)


def _read_width(text: str) -> str | float:
    """A name, or inches as a number."""
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
            help="Pixels that the classifier takes; the input's where not given.",
        ),
    ] = None,
    figures: Annotated[
        o.Names | None, typer.Option("--figures", parser=o.read_names, metavar="A,B,…", help=FIGURES_HELP)
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="PATH", help="The layer that F1 and F2 show, such as classifier.3."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="The image that the window is drawn on.")
    ] = None,
    formats: Annotated[
        o.Names | None,
        typer.Option(
            "--format",
            parser=o.read_names,
            metavar="svg,pdf,png",
            help="Of the files.",
            rich_help_panel=o.OUTPUT,
            show_default="svg",
        ),
    ] = None,
    themes: Annotated[
        o.Names | None,
        typer.Option(
            "--theme",
            parser=o.read_names,
            metavar="light,dark",
            help="Of the pictures.",
            rich_help_panel=o.OUTPUT,
            show_default="light",
        ),
    ] = None,
    width: Annotated[
        Any,
        typer.Option(
            "--width",
            parser=_read_width,
            metavar="column|page|INCHES",
            help="Column: 3.3 inches; page: 7.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = "column",
    weights: o.Weights = None,
    seed: o.Seed = 0,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.", rich_help_panel=o.OUTPUT),
    ] = Path("pictures"),
    as_json: o.Json = False,
) -> None:
    """Draw a network as vector pictures for print and screen, from its own layers, shapes and weights.

    Text stays text and fonts are embedded; nothing in a picture is made up, and what is left out is written in it.
    Without --shape the input is 1×3×224×224, or the one a .pt2 carries.
    """
    with session(context, as_json) as run:
        from onebyone import api, loading
        from onebyone.cli import render

        files_as = tuple(formats or ("svg",)), tuple(themes or ("light",))
        with run.step(f"Opening {source}"):
            network, notes = loading.open_network(source, weights, seed=seed)
            # a program carries an example of its own; any other network is taken to see a colour image
            size = shape or (None if source.endswith(".pt2") else (1, 3, 224, 224))
            example = None if size is None else loading.example_input(network, size, seed=seed)
        shown = window
        if isinstance(window, o.EveryAxis):
            shown = o.Sizes(window * (2 if example is None else example.dim() - 2))
        with run.step("Reading the network"):
            found = api.draw(
                network, example, window=shown, figures=figures, layer=layer, image=image, width=width
            )
        with run.progress("Drawing") as tell:
            written = found.save(output, *files_as, progress=tell)
        render.tell(run, notes)
        data = {
            "source": source,
            "notes": list(notes),
            "output": output,
            "files": [vars(file) for file in written],
            "missing": found.missing,
            "drawing": found.data.to_dict(),
        }
        run.result(data, *_tables(data))


def _tables(data: dict[str, Any]) -> list[RenderableType]:
    """What was written, and what could not be drawn, with the reason."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Pictures", title_justify="left", title_style="bold")
    for header in ("figure", "theme", "bytes", "file"):
        table.add_column(header, overflow="fold", justify="right" if header == "bytes" else "left")
    for file in data["files"]:
        table.add_row(file["figure"], file["theme"], f"{file['bytes']:,}", escape(str(file["path"])))
    missing = [f"[yellow]{name}[/] not drawn: {escape(why)}" for name, why in data["missing"].items()]
    return [table, *missing]
