"""The public function `evaluate`: detections against ground truth in COCO's format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebyone.evaluation import Evaluation


def evaluate(
    detections: Any,
    ground_truth: dict[str, Any] | str | os.PathLike[str],
    *,
    max_detections: int = 100,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate detections against ground truth: COCO's average precision, precision and recall, the best threshold.

    Images and classes of a COCO file with detections (the `predictions.json` of `predict`) are matched with those of
    the ground truth by name; a list of COCO results has the ground truth's ids.

    Args:
        detections: a `.json` file or its content: a list of COCO results, or a COCO file whose annotations have scores;
            or the `Detections` of one image, or the `Predictions` of `predict`.
        ground_truth: a COCO file with boxes, or its content.
        max_detections: the number of detections of each image and class that count, best scores first. COCO's 100 is
            too few for large images; a note says where it is.
        classes: names of the categories 0, 1, … in a list of results, as `detect` numbers them, to be matched by name;
            None takes the category ids to be those of the ground truth.

    Returns:
        An `Evaluation`: `.map`, `.map50`, `.map75`, `.classes`, `.points` (precision and recall over confidence
        thresholds at an IoU of 0.5) and `.best` (the threshold with the largest F1); `print(e)` shows a table.

    Raises:
        BadInput: a file is not in COCO's format, or the files do not fit each other.

    >>> import onebyone
    >>> truth = {"images": [{"id": 7}], "categories": [{"id": 2, "name": "cat"}],
    ...     "annotations": [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 10]}]}
    >>> found = [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 8], "score": 0.9}]
    >>> onebyone.evaluate(found, truth).headline()
    'mAP 0.700, mAP50 1.000, mAP75 1.000, best F1 1.000 at threshold 0.9'
    """
    from onebyone.evaluation import evaluate as evaluate_detections

    return evaluate_detections(detections, ground_truth, max_detections=max_detections, classes=classes)
