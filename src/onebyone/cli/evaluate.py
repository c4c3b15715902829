"""The command `evaluate`: detections against ground truth in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def evaluate(
    context: typer.Context,
    detections: Annotated[
        Path,
        typer.Argument(
            metavar="DETECTIONS",
            help="COCO results (detect -o boxes.json), or the predictions.json of predict.",
        ),
    ],
    ground_truth: Annotated[
        Path, typer.Argument(metavar="GROUND_TRUTH", help="A COCO file with images, categories and boxes.")
    ],
    max_detections: Annotated[
        int,
        typer.Option(
            "--max-detections",
            min=1,
            metavar="N",
            help="Detections of each image and class that count, best first; raise it for large images.",
        ),
    ] = 100,
    classes: Annotated[
        o.Names | None,
        o.list_option(
            "--classes",
            "Names of the categories 0, 1, … in COCO results, to be matched by name.",
            show_default="ids are those of the ground truth",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        o.output_option(
            "Write the threshold with the largest F1 of each class (.json), which detect --threshold @FILE reads."
        ),
    ] = None,
) -> None:
    """Evaluate detections against ground truth: average precision (COCO), precision and recall, the best threshold."""
    with session(context) as run:
        from onebyone import api, atomic_files
        from onebyone.cli import render_evaluation

        if output is not None:
            atomic_files.require_writable(output)
        with run.step(f"Evaluating {detections}"):
            result = api.evaluate(detections, ground_truth, max_detections=max_detections, classes=classes)
        if output is not None:
            atomic_files.write_text(output, json.dumps(result.thresholds(), indent=1) + "\n")
        run.notes(result.notes)
        data = {"detections": str(detections), "ground_truth": str(ground_truth), **result.to_dict()}
        run.result(data, *render_evaluation.evaluation_tables(result))
