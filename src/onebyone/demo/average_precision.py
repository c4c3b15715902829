"""Scores detections as COCO does: average precision at IoU 0.5, without a limit on the number of detections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebyone.demo.data import BACKGROUND, CLASSES
from onebyone.demo.digit_page import DigitPage
from onebyone.detection import Detections, coco_ground_truth
from onebyone.evaluation.coco_evaluation import evaluate_boxes


@dataclass(frozen=True)
class Score:
    """`mAP50` is the mean of `ap50` over the classes on the page; `max_detections` is the value of COCO's maxDets.

    `ap50` has one value per class, `recall` is the share of each class's digits that were detected, and `precision`
    (classes, 101) the precision at each hundredth of recall.
    """

    mAP50: float  # noqa: N815 (the field's own name)
    max_detections: int
    ap50: dict[str, float]
    recall: dict[str, float]
    precision: NDArray[np.float64]


def score(detections: Detections, page: DigitPage) -> Score:
    """Score detections against the ground truth of the page, by pycocotools.

    Raises
    ------
    MissingExtra
        if pycocotools is not installed.
    """
    # COCO's default of 100 detections per image and class would limit the recall on a page with many objects
    limit = max(100, len(detections), len(page.labels))
    truth = coco_ground_truth(page.boxes, page.labels, CLASSES[:BACKGROUND], page.image.shape)
    found = evaluate_boxes(truth, detections.to_coco(), [0.5], limit, "scoring the detections")
    precision = found.precision[0].T
    recall = found.recall[0]
    present = [k for k in range(len(precision)) if recall[k] >= 0]  # -1: no such digit on the page
    ap = {CLASSES[k]: float(precision[k].mean()) for k in present}
    return Score(
        mAP50=float(np.mean(list(ap.values()))),
        max_detections=limit,
        ap50=ap,
        recall={CLASSES[k]: float(recall[k]) for k in present},
        precision=precision[present],
    )


def matched(detections: Detections, page: DigitPage, iou: float = 0.5) -> NDArray[np.int64]:
    """For each detection, the row of the digit on the page that it matches, or −1 if it matches none.

    The same greedy matching as COCO's, best score first, for drawing correct, wrong and missed detections.
    """
    free = np.ones(len(page.labels), dtype=bool)
    owner = np.full(len(detections), -1, dtype=np.int64)
    for row in np.argsort(-detections.scores, kind="stable"):
        overlap = _iou(detections.boxes[row], page.boxes) * (free & (page.labels == detections.labels[row]))
        best = int(np.argmax(overlap))
        if overlap[best] >= iou:
            owner[row], free[best] = best, False
    return owner


def _iou(box: NDArray[np.float32], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    ratio: NDArray[np.float64] = intersection / (area - intersection)
    return ratio
