"""COCO's evaluation of boxes by pycocotools: detections are matched to ground truth, class by class and image by image.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014. Of several detections of one object the best score
counts; precision is interpolated at the 101 hundredths of recall.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.detection import coco_results
from onebyone.errors import MissingExtra
from onebyone.evaluation.groups import grouped


@dataclass(frozen=True)
class CocoEvaluation:
    """Results over T IoU thresholds, 101 hundredths of recall and K categories, in the order of `categories`.

    `precision` (T, 101, K) and `recall` (T, K) are −1 for categories without ground truth. `scores` and `correct` have,
    by category, the score of each detection and whether it matches an object at the first IoU threshold; detections of
    regions that are marked as crowds are left out. `objects` are the objects of each category.
    """

    categories: tuple[Any, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: tuple[NDArray[np.float64], ...]
    correct: tuple[NDArray[np.bool_], ...]
    objects: tuple[int, ...]


def evaluate_boxes(
    dataset: dict[str, Any],
    results: Sequence[dict[str, Any]],
    ious: Sequence[float],
    max_detections: int,
    purpose: str = "evaluating detections",
) -> CocoEvaluation:
    """Evaluate COCO results against a COCO data set, with the `max_detections` best of each image and class.

    The ids of images and categories are numbers. Large images are divided into groups (`onebyone.evaluation.groups`).

    Raises MissingExtra where pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingExtra("pycocotools", "demo", purpose) from error
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        groups = grouped(dataset, results, max_detections)
        truth = COCO()
        truth.dataset = groups.dataset
        truth.createIndex()
        run = COCOeval(truth, coco_results(truth, groups.results), "bbox")
        run.params.maxDets = [max(1, len(groups.results))]  # those beyond the limit are left out already
        run.params.iouThrs = np.asarray(ious, dtype=np.float64)
        run.params.areaRng, run.params.areaRngLbl = [[0, float("inf")]], ["all"]
        run.evaluate()
        run.accumulate()
    categories = tuple(run.params.catIds)
    parts: dict[Any, list[dict[str, Any]]] = {key: [] for key in categories}
    for image in run.evalImgs:
        if image is not None:
            parts[image["category_id"]].append(image)
    scores, correct, objects = [], [], []
    for key in categories:
        counted = [~image["dtIgnore"][0].astype(bool) for image in parts[key]]
        places = [np.asarray(i["dtScores"])[c] for i, c in zip(parts[key], counted, strict=True)]
        ranked = groups.scores.get(key, np.empty(0))
        values = [ranked[len(ranked) - np.rint(p).astype(np.int64)] for p in places]
        matches = [i["dtMatches"][0][c] > 0 for i, c in zip(parts[key], counted, strict=True)]
        scores.append(np.concatenate([np.empty(0), *values]))
        correct.append(np.concatenate([np.empty(0, bool), *matches]))
        objects.append(sum(int(np.sum(np.asarray(image["gtIgnore"]) == 0)) for image in parts[key]))
    return CocoEvaluation(
        categories,
        run.eval["precision"][..., 0, 0],
        run.eval["recall"][..., 0, 0],
        tuple(scores),
        tuple(correct),
        tuple(objects),
    )
