"""`scan` and `detect`: run a classifier over a whole image, and find objects in its scores."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


class Mode(StrEnum):
    """How `scan` applies the network to an image."""

    dense = "dense"
    windows = "windows"


class Half(StrEnum):
    """Types of 16 bits."""

    bfloat16 = "bfloat16"
    float16 = "float16"


class Finer(StrEnum):
    """How `scan` computes a map of a finer stride than the network's."""

    shifts = "shifts"
    dilation = "dilation"


def scan(
    context: typer.Context,
    source: o.SourceOrOnnx,
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE",
            help="A picture, a TIFF, a whole slide, a .zarr, or an array (H, W, C) in .npy; or a folder or a pattern "
            "such as 'scans/*.png'.",
        ),
    ],
    window: o.OptionalWindow = None,
    channels: o.Channels = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    scale: o.Scale = None,
    colour_order: o.ColourOrder = None,
    score_kind: o.ScoreKind = None,
    output: o.NetworkOutput = "0",
    page: o.Page = None,
    level: o.Level = None,
    mpp: o.MicronsPerPixel = None,
    axes: o.Axes = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="Region to scan: an image of any resolution of the same rectangle, not zero inside. Windows outside "
            "are not computed and hold NaN.",
        ),
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(
            "--nodata",
            metavar="VALUE",
            help="Value of pixels without data: windows of only such pixels are not computed and hold NaN.",
            show_default="as a GeoTIFF states",
        ),
    ] = None,
    resize: Annotated[
        float,
        typer.Option(
            "--resize",
            metavar="FACTOR",
            help="Resize the image as it is read, for objects of another size than the window; detect merges several.",
        ),
    ] = 1,
    shifts: Annotated[
        int,
        typer.Option(
            "--shifts",
            min=1,
            metavar="N",
            help="Shifted passes per axis: divides the stride of the map by N.",
        ),
    ] = 1,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            min=1,
            metavar="PIXELS",
            help="Stride of the map: a divisor of the network's, or any with --mode windows and --window.",
            show_default="the network's",
        ),
    ] = None,
    finer: Annotated[
        Finer,
        typer.Option(
            "--finer",
            help="How a finer --stride is computed: shifted passes, or dilated layers (networks without padding).",
        ),
    ] = Finer.shifts,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory that the process may occupy, such as 4GB; bounds the size of a tile.",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            min=1,
            metavar="N",
            help="Positions of the map per tile and axis.",
            show_default="chosen by cost",
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="dense: one pass over the image; windows: crop every window, slower but exact for every network.",
        ),
    ] = Mode.dense,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Measure the fastest form for the tiles, verify it and scan with it (minutes)."
        ),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Scan in the form of a plan that tune --tile wrote.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="onnxruntime|openvino",
            help="What runs an ONNX model; OpenVINO's scores are checked beside ONNX Runtime's first.",
            show_default="onnxruntime",
        ),
    ] = None,
    half: Annotated[
        Half | None,
        typer.Option(
            "--half", help="Run the network in 16 bits; its measured error is stated.", show_default=False
        ),
    ] = None,
    min_agreement: o.MinAgreement = 0.5,
    device: o.Device = "cpu",
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="N", help="Maximum number of tiles in a batch.")
    ] = 8,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Compute tiles in N processes of this machine (needs --output).",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Compute tiles on the workers of this Dask scheduler (needs --output).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        o.output_option(
            "Write the score map: .zarr (OME-Zarr), .tif (GeoTIFF), .npy or .npz. For several images: a folder, "
            "or 'folder/*.zarr'."
        ),
    ] = None,
) -> None:
    """Run a classifier over every window of an image in one pass: one score per class and position.

    SRC is a .pt2 or .onnx that convolutionalize wrote, or any network with --window.
    """
    with session(context) as run:
        from onebyone import api, loading
        from onebyone.cli import render, render_scans

        several = api.names_several(image)
        with run.step(f"Opening {source}"):
            size = None if window is None else o.window_of(window)
            if mode is Mode.windows and size is not None and stride is not None:
                dense, notes = loading.open_windows(
                    source, size, stride, channels, weights=weights, seed=seed, pretrained=pretrained
                )
                stride = None  # it is the classifier's own
            else:
                dense, notes = loading.open_dense(
                    source, size, channels, weights=weights, seed=seed, pretrained=pretrained
                )
        labels = loading.labels(
            classes, scale=scale, mean=mean, std=std, colour_order=colour_order, carried=dense.labels
        )
        options = {
            "labels": labels,
            "output": output,
            "score_kind": score_kind,
            "page": page,
            "level": level,
            "mpp": mpp,
            "axes": axes,
            "mask": mask,
            "nodata": nodata,
            "resize": resize,
            "device": device,
            "batch": batch,
            "shifts": shifts,
            "stride": stride,
            "finer": finer.value,
            "tile": tile,
            "memory": memory,
            "workers": workers,
            "dask": dask,
            "mode": mode.value,
            "tune": tune if plan is None else plan,
            "engine": engine,
            "half": half,
        }
        with run.progress(f"Scanning {image.name}") as report:
            if several:
                items = api.scan_images(
                    dense, image, out, progress=report, min_agreement=min_agreement, **options
                )
                data = render_scans.scanned_data(items, source)
            else:
                scores = api.scan(dense, image, out=out, progress=report, min_agreement=0, **options)
                run.detail(f"Engine: {scores.engine}")
                data = render.scores_data(scores, source, image, out)
        run.notes(notes)
        if several:
            run.result(data, *render_scans.scanned_tables(data))
            api.require_all(render_scans.failures(data), len(data["images"]))
            return
        run.result(data, *render.scores_tables(data))
        if scores.agreement is not None:
            scores.agreement.require(min_agreement)


def detect(
    context: typer.Context,
    scores: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCORES",
            help="A score map that scan wrote; or several, of one image at several scales (scan --resize).",
        ),
    ],
    threshold: o.Threshold = "0.5",
    iou: o.Iou = 0.3,
    across_classes: Annotated[
        bool,
        typer.Option("--across-classes", help="Boxes suppress each other whatever their classes."),
    ] = False,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine", help="Replace each box by the mean, weighted by score, of it and those it suppressed."
        ),
    ] = False,
    max_detections: Annotated[
        int | None,
        typer.Option(
            "--max-detections", min=1, metavar="N", help="Keep the N best detections.", show_default="all"
        ),
    ] = None,
    max_entropy: o.MaxEntropy = None,
    min_energy: o.MinEnergy = None,
    negatives: o.Negatives = None,
    negative_share: o.NegativeShare = 0.001,
    background: o.Background = None,
    score_kind: o.ScoreKind = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            metavar="FILE",
            help="Box regressions: the score map of another output (scan --network-output) of the same image.",
        ),
    ] = None,
    box_format: Annotated[
        str,
        typer.Option(
            "--box-format",
            metavar="corners|center-size",
            help="Meaning of --boxes: offsets of the window's corners, or of its centre and the logarithm of its size.",
        ),
    ] = "corners",
    min_agreement: o.MinAgreement = 0.5,
    output: Annotated[
        Path | None,
        o.output_option(
            "Write the detections: .json (COCO), .geojson, .csv, .parquet, or .png (drawn on --image or --heat)."
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="The picture to draw the boxes on.", rich_help_panel=o.OUTPUT),
    ] = None,
    heat: Annotated[
        bool,
        typer.Option(
            "--heat",
            help="Draw the probability of the most likely class below the boxes; without --image, on black.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    thumbnail: Annotated[
        int | None,
        typer.Option(
            "--thumbnail",
            min=1,
            max=2**15,
            metavar="PIXELS",
            help="Longest side of the drawing.",
            show_default="that of the image; 4096 above 10^8 pixels",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    page: o.Page = None,
    image_id: Annotated[
        int,
        typer.Option(
            "--image-id", min=0, metavar="N", help="The image's id in COCO results.", rich_help_panel=o.OUTPUT
        ),
    ] = 1,
) -> None:
    """Find objects in a score map: boxes, scores and classes."""
    with session(context) as run:
        from onebyone import api, atomic_files, dense
        from onebyone.cli import render

        if output is not None:
            atomic_files.require_writable(output)
        with run.step(f"Detecting in {', '.join(map(str, scores))}"):
            maps = [dense.ScoreMap.load(name) for name in scores]
            detections = api.detect(
                maps,
                threshold=threshold,
                iou=iou,
                background=background or (),
                score_kind=score_kind,
                boxes=boxes,
                box_format=box_format,
                min_agreement=min_agreement,
                per_class=not across_classes,
                max_detections=max_detections,
                refine=refine,
                max_entropy=max_entropy,
                min_energy=min_energy,
                negatives=negatives or (),
                negative_share=negative_share,
            )
            if output is not None:
                detections.save(
                    output,
                    image=image,
                    image_id=image_id,
                    page=page,
                    heat=maps if heat else (),
                    background=background or (),
                    thumbnail=thumbnail,
                )
        data = render.detections_data(detections, scores, output)
        run.result(data, *render.detections_tables(data))
