"""The command `predict`: from a classifier and pictures to boxes, heat maps and drawings in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def predict(
    context: typer.Context,
    source: o.SourceOrOnnx,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Pictures, folders or patterns such as 'scans/*.png'; - reads one from stdin.",
        ),
    ],
    window: o.WindowOfSource = None,
    channels: o.Channels = None,
    global_context: o.GlobalContext = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    scale: o.Scale = None,
    colour_order: o.ColourOrder = None,
    score_kind: o.ScoreKind = None,
    scales: Annotated[
        o.Numbers,
        typer.Option(
            "--scales",
            parser=o.read_numbers,
            metavar="A,B,…",
            help="Factors by which each picture is resized before it is scanned, such as 1,0.5,0.25, for objects of "
            "other sizes than the window.",
        ),
    ] = "1",  # type: ignore[assignment]
    threshold: o.Threshold = "0.5",
    iou: o.Iou = 0.3,
    background: o.Background = None,
    output: o.NetworkOutput = "0",
    device: o.Device = "cpu",
    save: Annotated[
        Path, o.output_option("Folder for boxes, heat maps, drawings and what view shows.", metavar="FOLDER")
    ] = Path("predictions"),
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Do not cache the any-size network of a .pt2 file beside it."),
    ] = False,
    no_save: Annotated[bool, o.output_option("Write no files: only print the result.", "--no-save")] = False,
) -> None:
    """Find the objects of a classifier's classes in pictures of any size, and write boxes, heat maps and drawings.

    The classifier is made to run on any size (convolutionalize), scores every window of each picture in one pass
    (scan), and the windows above the confidence threshold become boxes (detect).
    """
    with session(context) as run:
        from onebyone import api, loading
        from onebyone.cli import render

        notes: tuple[str, ...] = ()
        model: Any = source
        with run.step(f"Opening {source}"):
            if loading.opens_densely(source) or source.endswith(".pt2"):
                loading.require_own_weights(source, weights, pretrained)
            else:
                model, notes = loading.open_network(source, weights, seed=seed, pretrained=pretrained)
        labels = loading.labels(
            classes,
            scale=scale,
            mean=mean,
            std=std,
            colour_order=colour_order,
            carried=loading.preprocessing_of(source, model),
        )
        with run.progress("Predicting") as report:
            predictions = api.predict(
                model,
                images,
                window=None if window is None else o.window_of(window),
                channels=channels,
                context=global_context and global_context.value,
                labels=labels,
                threshold=threshold,
                iou=iou,
                background=background or (),
                score_kind=score_kind,
                scales=scales,
                save=None if no_save else save,
                progress=report,
                name=source,
                cache=not no_cache,
                device=device,
                output=output,
            )
        run.notes([*notes, *(note for item in predictions for note in item.notes)])
        run.result({"source": source, **predictions.to_dict()}, *render.predictions_tables(predictions))
