"""Detections are evaluated against ground truth: average precision, precision and recall, and the best threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from onebyone.errors import BadInput
from onebyone.evaluation.coco_data import coco_rows, ground_truth, read_json
from onebyone.evaluation.coco_evaluation import evaluate_boxes
from onebyone.evaluation.result import ClassEvaluation, Evaluation, best_point, operating_points

#: COCO's number of detections of an image and class that count.
MAX_DETECTIONS = 100
_IOUS = np.linspace(0.5, 0.95, 10).tolist()
_THRESHOLDS = np.arange(20) / 20


def evaluate(
    detections: Any,
    truth: Any,
    *,
    max_detections: int = MAX_DETECTIONS,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate detections against ground truth, both in COCO's format.

    Parameters
    ----------
    detections
        a list of COCO results, a COCO data set whose annotations have scores, the path of either as JSON, or a result
        with `to_coco`.
    truth
        a COCO data set, or its path.
    max_detections
        the number of detections of each image and class, best scores first, that count.
    classes
        the names of the categories 0, 1, … of a list of results; None takes its ids to be those of the ground truth.

    Raises
    ------
    BadInput
        where a file is not in that format, or images or classes do not fit each other.
    MissingExtra
        where pycocotools is not installed.
    """
    if max_detections < 1:
        raise BadInput(f"max_detections={max_detections}: expected a positive integer")
    if hasattr(detections, "to_coco"):
        classes = classes or getattr(detections, "classes", None)
        detections = detections.to_coco()
    data = ground_truth(read_json(truth, "ground_truth"))
    results = coco_rows(read_json(detections, "detections"), data, classes)
    numbers = {
        key: k for k, key in enumerate(data.images, 1)
    }  # ids of numbers and texts cannot be sorted together
    kinds = {key: k for k, key in enumerate(data.names, 1)}
    rows = [
        [
            {**row, "image_id": numbers[row["image_id"]], "category_id": kinds[row["category_id"]]}
            for row in part
        ]
        for part in (data.annotations, results.rows)
    ]
    dataset = {
        "images": [{"id": k} for k in numbers.values()],
        "categories": [{"id": k, "name": data.names[key]} for key, k in kinds.items()],
        "annotations": rows[0],
    }
    found = evaluate_boxes(dataset, rows[1], _IOUS, max_detections)
    present = [k for k, count in enumerate(found.objects) if count]
    ap = found.precision[:, :, present].mean(axis=1)  # (IoU thresholds, classes)
    names = list(data.names.values())
    evaluated = [
        ClassEvaluation(
            name=names[k],
            objects=found.objects[k],
            detections=len(found.scores[k]),
            ap=float(ap[:, column].mean()),
            ap50=float(ap[0, column]),
            ap75=float(ap[5, column]),
            best=best_point(found.scores[k], found.correct[k], found.objects[k]),
        )
        for column, k in enumerate(present)
    ]
    together = np.concatenate(found.scores), np.concatenate(found.correct), sum(found.objects)
    means = ap.mean(axis=1)
    return Evaluation(
        map=float(means.mean()),
        map50=float(means[0]),
        map75=float(means[5]),
        classes=tuple(evaluated),
        points=tuple(operating_points(*together, _THRESHOLDS)),
        best=best_point(*together),
        images=len(data.images),
        max_detections=max_detections,
        notes=(*results.notes, *_beyond(results.rows, max_detections)),
    )


def _beyond(rows: list[dict[str, Any]], most: int) -> tuple[str, ...]:
    """A note where detections do not count because there are more than `most` of an image and class."""
    counts = Counter((row["image_id"], row["category_id"]) for row in rows)
    beyond = sum(max(0, count - most) for count in counts.values())
    if not beyond:
        return ()
    return (
        f"{beyond} detections do not count: more than {most} are of one image and class; "
        f"max_detections={max(counts.values())} counts all",
    )
