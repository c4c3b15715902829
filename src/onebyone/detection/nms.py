"""Non-maximum suppression (NMS): of boxes that overlap, the one with the highest score is kept.

    IoU(A, B) = |A ∩ B| / |A ∪ B|

Boxes are taken in the order of falling scores. A box is kept unless its IoU with a kept box of its class is above the
threshold. The order is total (score, then class, then coordinates), so the result does not depend on the order of the
input. Boxes are sorted into cells of the size of the largest box, so that each one is compared with the boxes of
neighbouring cells only.

Source: greedy suppression as in Felzenszwalb et al., "Object Detection with Discriminatively Trained Part-Based
Models", 2010, §5.2; IoU as in Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, §4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Cells per axis at most, so that the number of a cell of any class fits 64 bits.
MAX_CELLS = 2**20
#: Coordinates at most, so that areas are finite.
MAX_COORDINATE = 1e100


def iou(box: Floats, others: Floats) -> Floats:
    """Intersection over union (K,) of one box (4,), or K boxes, with others (K, 4), x1, y1, x2, y2; 0 for empty ones.

    >>> iou(np.array([0.0, 0, 2, 2]), np.array([[1.0, 0, 3, 2], [5, 5, 6, 6]]))
    array([0.33333333, 0.        ])
    """
    width = np.minimum(box[..., 2], others[:, 2]) - np.maximum(box[..., 0], others[:, 0])
    height = np.minimum(box[..., 3], others[:, 3]) - np.maximum(box[..., 1], others[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area = (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])
    other_areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = area + other_areas - intersection
    ratio: Floats = intersection / np.where(union > 0, union, 1)  # empty boxes share nothing
    return ratio


def canonical_order(boxes: Floats, scores: Floats, labels: Integers) -> Integers:
    """Indices that sort boxes by falling score, then class, then x1, y1, x2, y2, independently of their order."""
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
    """Suppress boxes that overlap a box with a higher score.

    Parameters
    ----------
    boxes, scores, labels
        (K, 4) x1, y1, x2, y2; (K,); (K,).
    threshold
        the largest IoU of two boxes that are both kept, 0 to 1.
    per_class
        whether only boxes of the same label suppress each other.

    Returns
    -------
    kept
        the indices of the kept boxes, highest score first.
    groups
        for each kept box the indices of itself and of the boxes that it suppressed, ascending.

    Raises
    ------
    BadInput
        for a threshold outside [0, 1], values that are not finite, or coordinates beyond 1e100.

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
    if len(boxes) and np.abs(boxes).max() > MAX_COORDINATE:
        raise BadInput(f"boxes: a coordinate is {np.abs(boxes).max():g}; expected at most {MAX_COORDINATE:g}")
    corners = boxes.astype(np.float64)
    order = canonical_order(corners, scores.astype(np.float64), labels)
    ranked = corners[order]
    kept: list[int] = []
    groups: list[Integers] = []
    undecided = np.ones(len(order), dtype=bool)
    cells = BoxCells(ranked, labels[order] * per_class)  # one class where all suppress each other
    for rank in range(len(order)):
        if not undecided[rank]:
            continue
        neighbours = cells.neighbours(rank)
        neighbours = neighbours[undecided[neighbours]]
        suppressed = neighbours[iou(ranked[rank], ranked[neighbours]) > threshold]
        undecided[suppressed] = False
        undecided[rank] = False
        kept.append(rank)
        groups.append(order[np.unique(np.append(suppressed, rank))])
    return order[np.array(kept, dtype=np.int64)], groups


def cell_size(low: Floats, high: Floats, side: Floats) -> Floats:
    """The size (2,) of cells of boxes: at least that of the largest box, and at most `MAX_CELLS` cells per axis.

    `low` and `high` (2,) are the range of the boxes' first corners, and `side` (2,) their largest width and height.

    >>> cell_size(np.zeros(2), np.array([2.0**30, 9.0]), np.array([0.0, 4.0])).round(3).tolist()
    [1024.0, 4.0]
    """
    # a little larger than the largest box, so that rounding of the quotients does not part neighbours
    size: Floats = np.maximum(np.maximum(side * (1 + 1e-6), (high - low) / MAX_CELLS), 1e-9)
    return size


class Cells:
    """A grid whose cells have numbers: consecutive ones in a row, and rows at a constant distance.

    A cell is at least as large as the largest box, so boxes that overlap have their first corners in the same cell or
    in neighbouring ones. One number after each row and one row after each group are left out, so that the last cell of
    a row is not a neighbour of the first one of the next row.

    `low` and `high` (2,) are the range of the boxes' first corners, and `side` (2,) their largest width and height.

    >>> cells = Cells(np.zeros(2), np.array([8.0, 4.0]), np.array([3.0, 3.0]))
    >>> cells.numbers(np.array([[0.0, 0, 3, 3], [8, 4, 9, 5], [8, 4, 9, 5]]), np.array([0, 0, 1])).tolist()
    [0, 6, 18]
    """

    def __init__(self, low: Floats, high: Floats, side: Floats) -> None:
        self._low, self._size = low, cell_size(low, high, side)
        span = np.maximum(high - low, 0)  # −∞ where there are no boxes
        self._columns, self._rows = (int(n) + 2 for n in span / self._size)

    def numbers(self, boxes: Floats, groups: Integers) -> Integers:
        """The numbers (K,) of the cells of boxes (K, 4); boxes of different groups (K,) are in different cells."""
        cells = np.floor((boxes[:, :2] - self._low) / self._size).astype(np.int64)
        numbers: Integers = (groups * self._rows + cells[:, 1]) * self._columns + cells[:, 0]
        return numbers

    def runs(self, numbers: Integers, ordered: Integers) -> list[tuple[Integers, Integers]]:
        """Where in ascending numbers those of the cells around each of some cells (K,) begin and end, row by row."""
        rows = (numbers - self._columns, numbers, numbers + self._columns)
        return [
            (np.searchsorted(ordered, row - 1), np.searchsorted(ordered, row + 1, "right")) for row in rows
        ]


class BoxCells:
    """Boxes (K, 4), sorted by class and by the cell of their first corner, and the neighbours of each."""

    def __init__(self, boxes: Floats, labels: Integers) -> None:
        if not len(boxes):
            return  # no box has neighbours
        corners, side = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).max(axis=0)
        cells = Cells(corners.min(axis=0), corners.max(axis=0), side)
        numbers = cells.numbers(boxes, np.unique(labels, return_inverse=True)[1])
        self._sorted = np.argsort(numbers)
        self._runs = cells.runs(numbers, numbers[self._sorted])

    def neighbours(self, rank: int) -> Integers:
        """Every box of the same class that can overlap the box `rank`, itself included."""
        return np.concatenate([self._sorted[first[rank] : last[rank]] for first, last in self._runs])


def vote(boxes: Floats, scores: Floats, groups: list[Integers]) -> Iterator[Floats]:
    """The mean of the boxes of each group, weighted by score; the plain mean where all scores of a group are 0.

    Source: Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN
    model", 2015, §4.3 (bounding box voting).

    >>> list(vote(np.array([[0.0, 0, 4, 4], [2, 0, 6, 4]]), np.array([0.5, 0.5]), [np.array([0, 1])]))
    [array([1., 0., 5., 4.])]
    """
    for group in groups:
        weights = scores[group] if scores[group].any() else np.ones(len(group))
        yield (boxes[group] * weights[:, None]).sum(axis=0) / weights.sum()
