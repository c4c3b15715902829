"""Non-maximum suppression of candidates that do not fit into memory, equal to that of all of them at once.

1. Of each part of a map, the candidates that can be decided within the part are decided (`undominated`). A box is
   complete if every box that overlaps it is in the part. In the canonical order, a box is certain to be kept if it is
   complete and every box before it that overlaps it by more than the threshold is certain to be suppressed; a box that
   a certain one overlaps by more than the threshold is certain to be suppressed. By induction over the order, both are
   what the suppression of all candidates decides. A suppressed box suppresses nothing, so leaving it out changes
   nothing.
2. The remaining candidates are read in the canonical order (`Candidates`), block by block. Each block is compared with
   the boxes that were kept before it (`KeptBoxes`), and then within itself.

Memory is that of a part, of a block, and of the boxes that are kept. The result depends neither on the parts nor on
their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebyone.detection.candidates import RECORD, Candidates, Records
from onebyone.detection.nms import BoxCells, Cells, canonical_order, iou, nms
from onebyone.errors import BadInput

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Boxes that are kept at most: they are the result, which is in memory.
MAX_KEPT = 5_000_000
_BLOCK = 2**14
_PAIRS = 2**20


def undominated(
    boxes: Floats,
    scores: Floats,
    labels: Integers,
    complete: Bools,
    threshold: float,
    *,
    per_class: bool = True,
) -> Bools:
    """Which boxes (K,) may be kept; the others are certain to be suppressed whatever other boxes exist.

    `complete` says of each box whether all boxes that overlap it are among the given ones.

    >>> boxes = np.array([[0.0, 0, 4, 4], [1, 0, 5, 4]])
    >>> arguments = boxes, np.array([0.9, 0.8]), np.array([0, 0])
    >>> undominated(*arguments, np.array([True, True]), 0.3), undominated(*arguments, np.array([False, True]), 0.3)
    (array([ True, False]), array([ True,  True]))
    """
    order = canonical_order(boxes, scores, labels)
    ranked = boxes[order]
    cells = BoxCells(ranked, labels[order] * per_class)  # one class where all suppress each other
    suppressed = np.zeros(len(order), bool)
    certain = complete[order]  # falsified by a box before it that is not certain
    for rank in range(len(order)):
        if suppressed[rank]:
            continue
        others = cells.neighbours(rank)
        others = others[(others > rank) & ~suppressed[others]]
        others = others[iou(ranked[rank], ranked[others]) > threshold]
        if certain[rank]:
            suppressed[others] = True
        else:
            certain[others] = False
    result = np.empty(len(order), bool)
    result[order] = ~suppressed
    return result


@dataclass(frozen=True)
class Kept:
    """The boxes (K, 4), scores (K,) and labels (K,) that were kept, in the canonical order.

    `votes` (K, 4) are the means of each box and the boxes of its class that it suppressed, weighted by score.
    """

    boxes: Floats
    scores: Floats
    labels: Integers
    votes: Floats


def suppress(
    candidates: Candidates, threshold: float, *, per_class: bool = True, most: int | None = None
) -> Kept:
    """The candidates that `nms` of all of them keeps; the first `most` of these where it is given.

    Raises BadInput for a threshold outside [0, 1], and where more than five million boxes are kept.

    >>> with Candidates() as candidates:
    ...     boxes = np.array([[0.0, 0, 4, 4], [1, 0, 5, 4], [9, 9, 13, 13]])
    ...     candidates.add(boxes, np.array([0.5, 0.25, 0.75]), np.array([0, 0, 1]))
    ...     suppress(candidates, 0.3).scores.tolist()
    [0.75, 0.5]
    """
    if not 0 <= threshold <= 1:
        raise BadInput(f"iou={threshold}: expected a number from 0 to 1")
    kept = KeptBoxes(candidates, per_class)
    for block in _blocks(candidates, kept):
        owners = kept.first_overlap(block["box"], block["label"], threshold)
        kept.vote(owners[owners >= 0], block[owners >= 0])
        rest = block[owners < 0]
        chosen, groups = nms(rest["box"], rest["score"], rest["label"], threshold, per_class=per_class)
        first = len(kept)
        kept.add(rest[chosen])
        members = np.concatenate([*groups, np.empty(0, np.int64)])
        numbers = np.repeat(np.arange(first, first + len(groups)), [len(g) for g in groups])
        kept.vote(numbers, rest[members])
        if most is not None and len(kept) >= most:
            break
        if len(kept) > MAX_KEPT:
            raise BadInput(
                f"more than {MAX_KEPT:,} boxes are left after non-maximum suppression; expected a higher threshold"
            )
    return kept.result(most)


def _blocks(candidates: Candidates, kept: KeptBoxes) -> Iterator[Records]:
    """The ranked candidates in blocks in proportion to the boxes that are kept, so that their index is made rarely."""
    for large in candidates.ranked():
        start = 0
        while start < len(large):
            size = max(_BLOCK, len(kept) // 2)
            yield large[start : start + size]
            start += size


class KeptBoxes:
    """Boxes that were kept, sorted by class and by cell, to be compared with many others at once."""

    def __init__(self, candidates: Candidates, per_class: bool) -> None:
        self._per_class = per_class
        self._cells = Cells(candidates.low, candidates.high, candidates.side)
        self._records = np.empty(0, RECORD)
        self._totals = np.zeros((0, 10))
        self._numbers = self._order = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, records: Records) -> None:
        """Add boxes that follow those before them in the canonical order."""
        if not len(records):
            return
        self._records = np.concatenate([self._records, records])
        self._totals = np.concatenate([self._totals, np.zeros((len(records), 10))])
        numbers = self._cells.numbers(self._records["box"], self._records["label"] * self._per_class)
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]

    def first_overlap(self, boxes: Floats, labels: Integers, threshold: float) -> Integers:
        """For each box (K, 4), the number of the first kept one whose IoU with it is above the threshold; else −1."""
        none = np.iinfo(np.int64).max
        owners = np.full(len(boxes), none)
        numbers = self._cells.numbers(boxes, labels * self._per_class)
        for first, last in self._cells.runs(numbers, self._numbers):
            counts = np.cumsum(last - first)
            start = 0
            while start < len(boxes):  # as many boxes at a time as have a bounded number of pairs
                before = int(counts[start - 1]) if start else 0
                stop = max(start + 1, int(np.searchsorted(counts, before + _PAIRS, "right")))
                lengths = (last - first)[start:stop]
                query = np.repeat(np.arange(start, stop), lengths)
                within = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                number = self._order[first[query] + within]
                hit = iou(self._records["box"][number], boxes[query]) > threshold
                np.minimum.at(owners, query[hit], number[hit])
                start = stop
        owners[owners == none] = -1
        return owners

    def vote(self, owners: Integers, members: Records) -> None:
        """Count members for the mean of the kept boxes `owners`, where they are of the same class."""
        same = self._records["label"][owners] == members["label"]
        owners, members = owners[same], members[same]
        weights = members["score"][:, None]
        terms = np.hstack([members["box"] * weights, weights, members["box"], np.ones_like(weights)])
        np.add.at(self._totals, owners, terms)

    def result(self, most: int | None) -> Kept:
        """The kept boxes, at most `most` of them."""
        records, totals = self._records[:most], self._totals[:most]
        weighted = totals[:, 4:5] > 0
        # the plain mean where all scores are 0
        sums = np.where(weighted, totals[:, :4], totals[:, 5:9])
        weights = np.where(weighted, totals[:, 4:5], totals[:, 9:])
        return Kept(records["box"], records["score"], records["label"], sums / weights)
