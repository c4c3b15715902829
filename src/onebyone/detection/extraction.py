"""Detections from a score map: threshold, boxes, non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.score_map import ScoreMap
from onebyone.detection.box_regression import offsets_at, regressed, require_regressions
from onebyone.detection.detections import Detections
from onebyone.detection.nms import canonical_order, nms, vote
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind, read_kind

MAX_CANDIDATES = 5_000_000


def detect(
    scores: ScoreMap,
    *,
    threshold: float = 0.5,
    iou: float = 0.3,
    background: Sequence[str | int] = (),
    per_class: bool = True,
    max_detections: int | None = None,
    refine: bool = False,
    score_kind: str | ScoreKind | None = None,
    boxes: ScoreMap | None = None,
    box_format: str = "corners",
) -> Detections:
    """Find objects in a score map: the windows that reach the confidence threshold, after non-maximum suppression.

    Parameters
    ----------
    scores
        the result of `scan`.
    threshold
        confidence threshold: the smallest probability of a detection, 0 to 1.
    iou
        IoU threshold of the non-maximum suppression, 0 to 1: a box whose IoU with a better one is above it is removed.
    background
        names or numbers of classes to treat as background, in addition to those that the labels name.
    per_class
        whether only boxes of the same class suppress each other.
    max_detections
        the largest number of detections, of which the best are kept; None keeps all.
    refine
        replace each box by the mean, weighted by probability, of itself and the boxes of its class that it suppressed.
        Its position is then finer than the stride. Without it every box is exactly a window.
    score_kind
        what the scores are: "logits", "probabilities" or "log-probabilities", alone or followed by ":exclusive" or
        ":multi-label". None takes the kind that the map has.
    boxes
        box regressions: the map of another output of the same scan, with four channels, or four for each class. Each
        window is moved by them and clipped to the image before boxes are compared. Boxes without area are removed.
    box_format
        the meaning of the regressions: "corners" (offsets of x1, y1, x2, y2 in widths and heights of the window) or
        "center-size" (offsets of the centre, and logarithms of the change in size); see
        `onebyone.detection.box_regression`.

    Raises
    ------
    BadInput
        for a threshold outside [0, 1] or a class that does not exist, for scores that are not finite, and for a
        threshold that more than five million windows reach.
    """
    if not 0 <= threshold <= 1:
        raise BadInput(f"threshold={threshold}: expected a number from 0 to 1")
    if len(scores.geometry.window) != 2:
        raise BadInput(f"scores have {len(scores.geometry.window)} axes; boxes are found on two")
    if max_detections is not None and max_detections < 1:
        raise BadInput(f"max_detections={max_detections}: expected a positive integer or None")
    if score_kind is not None:
        scores = replace(scores, kind=read_kind(score_kind))
    if boxes is not None:
        require_regressions(boxes, scores, box_format)
    values, labels, rows, columns = _candidates(scores, threshold, foreground(scores, background))
    corners = _windows(scores.geometry, rows, columns)
    if boxes is not None:
        corners = regressed(corners, offsets_at(boxes, labels, rows, columns), box_format)
    corners = _clipped(corners, scores.image_size)
    if boxes is not None:
        has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        corners, values, labels = corners[has_area], values[has_area], labels[has_area]
    kept, groups = nms(corners, values, labels, iou, per_class=per_class)
    kept_corners = corners[kept]
    if refine and len(kept):
        same_class = [g[labels[g] == labels[k]] for k, g in zip(kept, groups, strict=True)]
        kept_corners = np.stack(list(vote(corners, values, same_class)))
    order = canonical_order(kept_corners, values[kept], labels[kept])[:max_detections]
    return Detections(
        boxes=kept_corners[order].astype(np.float32),
        scores=values[kept][order].astype(np.float32),
        labels=labels[kept][order],
        classes=scores.classes,
        image_size=scores.image_size,
        placement=scores.placement,
    )


def foreground(scores: ScoreMap, background: Sequence[str | int]) -> list[int]:
    """The numbers of the classes that are not background."""
    classes = scores.classes
    given = [background] if isinstance(background, str | int) else list(background)
    excluded = set()
    for name in [*given, *scores.labels.background]:
        if isinstance(name, int) and 0 <= name < len(classes):
            excluded.add(name)
        elif name in classes:
            excluded.add(classes.index(str(name)))
        else:
            raise BadInput(f"background={name!r}: expected one of the classes: {', '.join(classes)}")
    return [k for k in range(len(classes)) if k not in excluded]


def _candidates(
    scores: ScoreMap, threshold: float, foreground: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """Probabilities, classes, rows and columns (K,) of all windows that reach the threshold.

    The map is read part by part, so that maps in files need no memory of their own size.
    """
    kind = scores.kind or scores.assumed_kind()
    numbers = np.asarray(foreground, dtype=np.int64)
    parts: list[tuple[NDArray[Any], ...]] = []
    count = 0
    for (rows, columns), values in scores.regions():
        not_finite = values.size - int(np.count_nonzero(np.isfinite(values)))
        if scores.unscored:
            not_finite -= len(values) * int(np.count_nonzero(np.isnan(values).all(axis=0)))
        if not_finite:
            raise BadInput(f"scores have {not_finite} value(s) that are not finite")
        probabilities = kind.probabilities(values)[foreground]
        reached = probabilities >= threshold
        count += int(np.count_nonzero(reached))
        if count > MAX_CANDIDATES:
            raise BadInput(
                f"threshold={threshold}: more than {MAX_CANDIDATES:,} windows reach it; expected a higher threshold"
            )
        label, row, column = np.nonzero(reached)
        parts.append(
            (
                probabilities[reached].astype(np.float64),
                numbers[label],
                row + rows.start,
                column + columns.start,
            )
        )
    found, labels, at_rows, at_columns = (np.concatenate(part) for part in zip(*parts, strict=True))
    return found, labels, at_rows, at_columns


def _windows(geometry: Geometry, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """The windows (K, 4) x1, y1, x2, y2 at K positions."""
    y, x = (
        index * geometry.stride[axis] - geometry.window_offset[axis]
        for axis, index in enumerate((rows, columns))
    )
    height, width = geometry.window
    return np.stack([x, y, x + width, y + height], axis=1).astype(np.float64)


def _clipped(boxes: NDArray[np.float64], image_size: Sequence[int]) -> NDArray[np.float64]:
    """Boxes clipped to the image (height, width)."""
    height, width = image_size
    return np.clip(boxes, 0, [width, height, width, height])
