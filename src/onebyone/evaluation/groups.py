"""Large images are divided into groups of boxes that overlap, so that matching takes time in proportion to the boxes.

pycocotools compares every detection of an image and class with every object of it: 10⁵ objects need 10¹⁰ comparisons.
A detection can only match an object that it overlaps. So the detections and objects of a class are divided into the
connected components of the graph of overlaps, and each group of components becomes an image of its own. Matching within
a component is as before, because the order of its members is kept. What remains is the order in which detections of
equal scores are counted. Every score is therefore replaced by the detection's place in pycocotools' order, which is
unique. The results are then the same numbers, which the tests compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.detection.nms import BoxCells

#: Detections times objects of an image and class up to which they stay one group.
LIMIT = 2**12
#: Boxes of a group at least, but for the last one of an image and class.
_GROUP = 32

_Entry = dict[str, Any]


@dataclass(frozen=True)
class GroupedBoxes:
    """A COCO data set and results whose images are groups of boxes.

    `scores` maps a category to the scores (K,) of its detections in pycocotools' order; the score of a result is K
    minus its place in this order.
    """

    dataset: _Entry
    results: list[_Entry]
    scores: dict[Any, NDArray[np.float64]]


def grouped(dataset: _Entry, results: Sequence[_Entry], max_detections: int) -> GroupedBoxes:
    """The groups of a data set and of the `max_detections` best results of each image and category."""
    objects: dict[tuple[Any, Any], list[_Entry]] = defaultdict(list)
    for row in dataset["annotations"]:
        objects[row["category_id"], row["image_id"]].append(row)
    detections = _best(results, max_detections)
    scores: dict[Any, NDArray[np.float64]] = {}
    places: dict[tuple[Any, Any], NDArray[np.int64]] = {}
    for category in sorted({key[0] for key in detections}):
        # pycocotools joins the images in the order of their ids and sorts them stably by falling score
        keys = sorted(key for key in detections if key[0] == category)
        values = np.array([row["score"] for key in keys for row in detections[key]], np.float64)
        order = np.argsort(-values, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        scores[category] = values[order]
        places |= zip(keys, np.split(rank, np.cumsum([len(detections[k]) for k in keys])[:-1]), strict=True)
    images: dict[tuple[Any, int], int] = {}
    rows: tuple[list[_Entry], list[_Entry]] = ([], [])
    for key in sorted(objects.keys() | detections.keys()):
        found, there = detections.get(key, []), objects.get(key, [])
        numbers = _groups(found, there)
        highest = len(scores[key[0]]) if found else 0
        ranked = [
            {**row, "score": float(highest - place)}
            for row, place in zip(found, places.get(key, ()), strict=True)
        ]
        for part, members, group in ((0, there, numbers[len(found) :]), (1, ranked, numbers[: len(found)])):
            for row, number in zip(members, group.tolist(), strict=True):
                image = images.setdefault((key[1], number), len(images) + 1)
                rows[part].append({**row, "image_id": image})
    data = {**dataset, "images": [{"id": k} for k in images.values()], "annotations": rows[0]}
    return GroupedBoxes(data, rows[1], scores)


def _best(results: Sequence[_Entry], most: int) -> dict[tuple[Any, Any], list[_Entry]]:
    """By category and image, the `most` best results, highest score first; equal ones in the order given."""
    found: dict[tuple[Any, Any], list[_Entry]] = defaultdict(list)
    for row in results:
        found[row["category_id"], row["image_id"]].append(row)
    return {key: sorted(rows, key=lambda row: -row["score"])[:most] for key, rows in found.items()}


def _groups(detections: list[_Entry], objects: list[_Entry]) -> NDArray[np.int64]:
    """The number of the group of each detection and, after them, of each object."""
    count = len(detections)
    if count * len(objects) <= LIMIT:
        return np.zeros(count + len(objects), np.int64)
    boxes = np.array([row["bbox"] for row in [*detections, *objects]], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    cells = BoxCells(boxes, np.zeros(len(boxes), np.int64))
    parents = list(range(len(boxes)))
    for k in range(count, len(boxes)):
        near = cells.neighbours(k)
        near = near[near < count]
        low, high = np.maximum(boxes[near, :2], boxes[k, :2]), np.minimum(boxes[near, 2:], boxes[k, 2:])
        for other in near[(high > low).all(axis=1)].tolist():
            parents[_root(parents, other)] = _root(parents, k)
    roots = np.array([_root(parents, k) for k in range(len(boxes))])
    _, component, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    first = np.cumsum(sizes) - sizes  # boxes of the components before
    groups: NDArray[np.int64] = (first // _GROUP)[component]
    return groups


def _root(parents: list[int], k: int) -> int:
    """The root of a tree of a disjoint-set forest; the path to it is halved (Tarjan and van Leeuwen, 1984)."""
    while parents[k] != k:
        parents[k] = parents[parents[k]]
        k = parents[k]
    return k
