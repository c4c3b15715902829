"""From a score map to objects: threshold, boxes, suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.score_map import ScoreMap
from onebyone.detection.box_regression import offsets_at, regressed, require_regressions
from onebyone.detection.detections import Detections
from onebyone.detection.nms import canonical_order, nms, vote
from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind, read_kind

MOST_CANDIDATES = 5_000_000


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
    """Objects in a score map: the windows that reach the threshold, less those that overlap a better one.

    Parameters
    ----------
    scores
        what `scan` gives.
    threshold
        the least probability, 0 to 1.
    iou
        boxes that overlap a better one by more than this are suppressed, 0 to 1.
    background
        names or numbers of classes to treat as background; those the labels call background are left out too.
    per_class
        whether only boxes of one class suppress each other.
    max_detections
        keep the best so many.
    refine
        put each box at the mean, weighted by probability, of itself and the boxes of its class it suppressed:
        finer than the stride's grid. Without it every box is exactly a window.
    score_kind
        what the scores are: "logits", "probabilities" or "log-probabilities", alone or followed by ":exclusive"
        or ":multi-label"; None takes what the map says.
    boxes
        the regressions of a network that gives them, as a map of the same scan's other output: four channels, or
        four for each class. Each window is moved by them before boxes are compared, cut at the image's borders,
        and left out where nothing of it remains.
    box_format
        what the regressions are: "corners" (offsets of x1, y1, x2, y2 in widths and heights of the window) or
        "center-size" (offsets of the centre, and logarithms of the growth); see `onebyone.detection.box_regression`.

    Raises
    ------
    BadInput
        for a threshold or class that is none, for scores that are not finite, and for a threshold so low that
        more than five million windows reach it.
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
    values, labels, rows, columns = _candidates(scores, threshold, _foreground(scores, background))
    found = _windows(scores, rows, columns)
    if boxes is not None:
        found = regressed(found, offsets_at(boxes, labels, rows, columns), box_format)
    found = _within(found, scores.image_size)
    if boxes is not None:
        there = (found[:, 2:] > found[:, :2]).all(axis=1)
        found, values, labels = found[there], values[there], labels[there]
    kept, groups = nms(found, values, labels, iou, per_class=per_class)
    placed = found[kept]
    if refine and len(kept):
        same = [g[labels[g] == labels[k]] for k, g in zip(kept, groups, strict=True)]
        placed = np.stack(list(vote(found, values, same)))
    order = canonical_order(placed, values[kept], labels[kept])[:max_detections]
    return Detections(
        boxes=placed[order].astype(np.float32),
        scores=values[kept][order].astype(np.float32),
        labels=labels[kept][order],
        classes=scores.classes,
        image_size=scores.image_size,
    )


def _foreground(scores: ScoreMap, background: Sequence[str | int]) -> list[int]:
    """The numbers of the classes that are objects."""
    classes = scores.classes
    given = [background] if isinstance(background, str | int) else list(background)
    unwanted = set()
    for name in [*given, *scores.labels.background]:
        if isinstance(name, int) and 0 <= name < len(classes):
            unwanted.add(name)
        elif name in classes:
            unwanted.add(classes.index(str(name)))
        else:
            raise BadInput(f"background={name!r} is none of the classes: {', '.join(classes)}")
    return [k for k in range(len(classes)) if k not in unwanted]


def _candidates(
    scores: ScoreMap, threshold: float, foreground: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """Probabilities, classes, rows and columns of all windows that reach the threshold."""
    if not np.isfinite(scores.scores).all():
        count = scores.scores.size - int(np.isfinite(scores.scores).sum())
        raise BadInput(f"scores hold {count} value(s) that are not finite")
    chosen = scores.probabilities()[foreground]
    reached = chosen >= threshold
    count = int(np.count_nonzero(reached))
    if count > MOST_CANDIDATES:
        raise BadInput(f"threshold={threshold}: {count:,} windows reach it, more than {MOST_CANDIDATES:,}")
    kinds, rows, columns = np.nonzero(reached)
    labels = np.asarray(foreground, dtype=np.int64)[kinds]
    return chosen[reached].astype(np.float64), labels, rows, columns


def _windows(scores: ScoreMap, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """The windows at these positions, (K, 4) x1, y1, x2, y2."""
    g = scores.geometry
    y, x = (index * g.stride[axis] - g.window_offset[axis] for axis, index in enumerate((rows, columns)))
    return np.stack([x, y, x + g.window[1], y + g.window[0]], axis=1).astype(np.float64)


def _within(boxes: NDArray[np.float64], image_size: Sequence[int]) -> NDArray[np.float64]:
    """Boxes cut at the borders of the image (height, width)."""
    height, width = image_size
    return np.clip(boxes, 0, [width, height, width, height])
