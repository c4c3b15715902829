"""Non-maximum suppression: of boxes that overlap, the best stays.

    IoU(A, B) = |A ∩ B| / |A ∪ B|

Boxes are taken from the highest score down; one is kept unless it overlaps a kept one of its class by more
than the threshold. The order is total (score, then class, then coordinates), so the result is the same
whatever order the boxes come in. Boxes are sorted into cells as large as the largest box, so that each is
compared with its neighbours only.

Source: greedy suppression as in Felzenszwalb et al., "Object Detection with Discriminatively Trained
Part-Based Models", 2010, §5.2; IoU as in Everingham et al., "The PASCAL Visual Object Classes (VOC)
Challenge", 2010, §4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def iou(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box (4,) with others (K, 4), both x1, y1, x2, y2; 0 for empty boxes.

    >>> iou(np.array([0.0, 0, 2, 2]), np.array([[1.0, 0, 3, 2], [5, 5, 6, 6]]))
    array([0.33333333, 0.        ])
    """
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    both = (box[2] - box[0]) * (box[3] - box[1]) + (others[:, 2] - others[:, 0]) * (
        others[:, 3] - others[:, 1]
    )
    union = both - shared
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def canonical_order(boxes: Floats, scores: Floats, labels: Integers) -> Integers:
    """Indices that sort by falling score, then class, then x1, y1, x2, y2: independent of the given order."""
    keys = (boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], labels, -scores)
    return np.lexsort(keys).astype(np.int64)


def nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    labels: NDArray[Any],
    threshold: float,
    *,
    per_class: bool = True,
) -> tuple[Integers, list[Integers]]:
    """Which boxes are kept, best first, and for each those it stands for (itself and what it suppressed).

    `boxes` (K, 4) x1, y1, x2, y2; `scores` (K,); `labels` (K,): with `per_class` only boxes of one
    label suppress each other.

    Raises
    ------
    BadInput
        for a threshold outside [0, 1] or values that are not finite.

    Example
    -------
    >>> boxes = np.array([[0.0, 0, 4, 4], [1, 0, 5, 4], [9, 9, 13, 13]])
    >>> kept, groups = nms(boxes, np.array([0.9, 0.8, 0.7]), np.array([0, 0, 0]), 0.5)
    >>> kept.tolist(), [g.tolist() for g in groups]
    ([0, 2], [[0, 1], [2]])
    """
    if not 0 <= threshold <= 1:
        raise BadInput(f"iou={threshold}: expected a number from 0 to 1")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise BadInput("boxes and scores must be finite")
    exact, kinds = boxes.astype(np.float64), labels.astype(np.int64)
    order = canonical_order(exact, scores.astype(np.float64), kinds)
    ranked = exact[order]
    kept: list[int] = []
    groups: list[Integers] = []
    alive = np.ones(len(order), dtype=bool)
    cells = _Cells(ranked, kinds[order] if per_class else np.zeros_like(kinds))
    for rank in range(len(order)):
        if not alive[rank]:
            continue
        near = cells.near(rank)
        near = near[alive[near]]
        gone = near[iou(ranked[rank], ranked[near]) > threshold]
        alive[gone] = False
        alive[rank] = False
        kept.append(rank)
        groups.append(order[np.unique(np.append(gone, rank))])
    return order[np.array(kept, dtype=np.int64)], groups


class _Cells:
    """Boxes by class and by the cell of their first corner; a cell is as large as the largest box.

    Two boxes that overlap lie in the same cell or in neighbouring ones, and each row of three neighbouring
    cells is one run of the boxes sorted by cell.
    """

    def __init__(self, boxes: Floats, labels: Integers) -> None:
        if not len(boxes):
            self._sorted = np.empty(0, dtype=np.int64)
            return
        sides = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=0), 1e-9)
        places = np.floor((boxes[:, :2] - boxes[:, :2].min(axis=0)) / sides).astype(np.int64) + 1
        self._columns, rows = (int(n) + 2 for n in places.max(axis=0))
        kinds = np.unique(labels, return_inverse=True)[1]
        keys = (kinds * rows + places[:, 1]) * self._columns + places[:, 0]
        self._sorted = np.argsort(keys, kind="stable")
        self._keys = keys
        run = keys[self._sorted]
        # the runs of the three rows of neighbours, found for all boxes at once
        self._runs = [
            (
                np.searchsorted(run, keys + step * self._columns - 1, side="left"),
                np.searchsorted(run, keys + step * self._columns + 1, side="right"),
            )
            for step in (-1, 0, 1)
        ]

    def near(self, rank: int) -> Integers:
        """Every box of the same class that can overlap the box `rank`, itself included."""
        return np.concatenate([self._sorted[first[rank] : last[rank]] for first, last in self._runs])


def vote(boxes: Floats, scores: Floats, groups: list[Integers]) -> Iterator[Floats]:
    """For each group of boxes their mean, weighted by score.

    Source: Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN
    model", 2015, §4.3 (bounding box voting).

    >>> list(vote(np.array([[0.0, 0, 4, 4], [2, 0, 6, 4]]), np.array([0.5, 0.5]), [np.array([0, 1])]))
    [array([1., 0., 5., 4.])]
    """
    for group in groups:
        weights = scores[group]
        yield (boxes[group] * weights[:, None]).sum(axis=0) / weights.sum()
