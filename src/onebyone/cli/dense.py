"""`scan` and `detect`: a classifier over a whole image, and what it found there."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


class Mode(StrEnum):
    """How an image is scanned."""

    dense = "dense"
    windows = "windows"


def scan(
    context: typer.Context,
    source: o.Source,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture, or an array (H, W, C) in .npy.")],
    window: o.OptionalWindow = None,
    channels: o.Channels = None,
    weights: o.Weights = None,
    seed: o.Seed = 0,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    scale: o.Scale = None,
    colour_order: o.ColourOrder = None,
    score_kind: o.ScoreKind = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            metavar="N|NAME",
            help="Which output of a network with several: its number from 0, or its name (a dictionary's key).",
        ),
    ] = "0",
    page: o.Page = None,
    shifts: Annotated[
        int, typer.Option("--shifts", min=1, metavar="N", help="Passes per axis, each shifted: a finer map.")
    ] = 1,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            min=1,
            metavar="N",
            help="Places of the map per tile and axis.",
            show_default="by memory",
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="dense: one pass over the image; windows: crop every window, slower and exact for every network.",
        ),
    ] = Mode.dense,
    min_agreement: o.MinAgreement = 0.5,
    device: Annotated[str, typer.Option("--device", help="Where to run: cpu, cuda, cuda:1 …")] = "cpu",
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="N", help="Tiles run at once, at most.")
    ] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the score map: .npz.", rich_help_panel=o.OUTPUT)
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Run a classifier over every window of an image in one pass: one score per class and place.

    SRC is a .pt2 that convolutionalize wrote, or any network with --window.
    """
    with session(context, as_json) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        if out is not None:
            atomic_files.require_writable(out)
        with run.step(f"Opening {source}"):
            size = None if window is None else o.window_of(window)
            dense, notes = loading.open_dense(source, size, channels, weights=weights, seed=seed)
        meaning = loading.labels(
            classes, scale=scale, mean=mean, std=std, colour_order=colour_order, carried=dense.labels
        )
        with run.progress(f"Scanning {image.name}") as tell:
            scores = api.scan(
                dense,
                image,
                labels=meaning,
                out=out,
                output=output,
                score_kind=score_kind,
                page=page,
                device=device,
                batch=batch,
                shifts=shifts,
                tile=tile,
                mode=mode.value,
                min_agreement=0,
                progress=tell,
            )
        data = render.scores_data(scores, source, image, out)
        render.tell(run, notes)
        run.result(data, *render.scores_tables(data))
        if scores.agreement is not None:
            scores.agreement.require(min_agreement)


def detect(
    context: typer.Context,
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="A score map that scan wrote: .npz.")],
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0, max=1, metavar="P", help="Confidence threshold."),
    ] = 0.5,
    iou: Annotated[
        float,
        typer.Option(
            "--iou", min=0, max=1, metavar="P", help="IoU threshold for non-maximum suppression (NMS)."
        ),
    ] = 0.3,
    background: Annotated[
        str,
        typer.Option(
            "--background", metavar="A,B,…", help="Classes to treat as background.", show_default=False
        ),
    ] = "",
    score_kind: o.ScoreKind = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            metavar="FILE",
            help="Box regressions: a score map that scan --output wrote of the same image, 4 channels.",
        ),
    ] = None,
    box_format: Annotated[
        str,
        typer.Option(
            "--box-format",
            metavar="corners|center-size",
            help="What --boxes holds: offsets of the window's corners, or of its centre and the size's logarithm.",
        ),
    ] = "corners",
    min_agreement: o.MinAgreement = 0.5,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write them: .json (COCO), .geojson, .csv, or .png (drawn on --image).",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="The picture to draw the boxes on.", rich_help_panel=o.OUTPUT),
    ] = None,
    page: o.Page = None,
    image_id: Annotated[
        int,
        typer.Option(
            "--image-id", min=0, metavar="N", help="The image's id in COCO results.", rich_help_panel=o.OUTPUT
        ),
    ] = 1,
    as_json: o.Json = False,
) -> None:
    """Turn a score map into objects: boxes, scores and labels."""
    with session(context, as_json) as run:
        from onebyone import api, atomic_files
        from onebyone.cli import render

        if output is not None:
            atomic_files.require_writable(output)
        with run.step(f"Detecting in {scores}"):
            found = api.detect(
                scores,
                threshold=threshold,
                iou=iou,
                background=o.read_names(background),
                score_kind=score_kind,
                boxes=boxes,
                box_format=box_format,
                min_agreement=min_agreement,
            )
            if output is not None:
                found.save(output, image=image, image_id=image_id, page=page)
        data = render.detections_data(found, scores, output)
        run.result(data, *render.detections_tables(data))
