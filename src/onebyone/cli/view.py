"""The command `view`: a page on this machine that shows a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli.session import session


def view(
    context: typer.Context,
    scan: Annotated[
        Path,
        typer.Argument(
            metavar="SCAN",
            help="A score map that scan wrote or is writing (.zarr, .npz, .tif, .npy), or a folder that demo or "
            "predict wrote.",
        ),
    ],
    image: Annotated[
        Path | None,
        typer.Option("--image", help="The image that was scanned; without it the map is shown alone."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="FILE", help="The dense network, to compare windows with their crops."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port.", show_default="a free one")
    ] = 0,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address of the interface to listen on; 0.0.0.0 in a container whose port is published.",
        ),
    ] = "127.0.0.1",
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address and open no browser.")
    ] = False,
) -> None:
    """Show a scan in the browser: the image, the score map over it, the detections, and every window's scores.

    The page is served to this machine only. It pans and zooms images of any size, moves the thresholds live, and saves
    reviewed detections beside the scan. Stop it with Ctrl+C.
    """
    with session(context) as run:
        from onebyone import api

        def opened(address: str) -> None:
            run.result({"address": address}, f"open {address}  (stop with Ctrl+C)")
            if not no_browser:
                typer.launch(address)

        api.view(scan, image, model=model, port=port, host=host, opened=opened)
