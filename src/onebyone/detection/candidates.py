"""Candidate boxes of any number, in their total order: sorted runs on disk where they exceed a number in memory.

The order is that of `nms.canonical_order` (score, then class, then coordinates). It is total up to equal candidates, so
it does not depend on the order in which candidates were added. The runs are merged as in an external merge sort (Knuth,
"The Art of Computer Programming", volume 3, §5.4): from each run a block is in memory, and what precedes the last
candidate of every block is complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.detection.nms import canonical_order
from onebyone.errors import BadInput

#: Candidates in memory before they are written to disk (48 bytes each).
CAPACITY = 2**18
_MIN_BLOCK = 2**10
#: One candidate.
RECORD = np.dtype([("box", np.float64, 4), ("score", np.float64), ("label", np.int64)])

Records = NDArray[Any]


class Candidates:
    """Boxes (x1, y1, x2, y2), scores and labels that are added in any order and read in the canonical one.

    A context manager: at its end the files are removed. `count` is the number of candidates, `low` and `high` the range
    of their first corners and `side` the largest width and height.

    >>> with Candidates(capacity=2) as candidates:
    ...     for score in (0.25, 0.75, 0.5):
    ...         candidates.add(np.array([[0.0, 0, 2, 2]]), np.array([score]), np.array([0]))
    ...     [float(s) for block in candidates.ranked() for s in block["score"]]
    [0.75, 0.5, 0.25]
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity, self.count = capacity, 0
        self.low, self.high = np.full(2, np.inf), np.full(2, -np.inf)
        self.side = np.zeros(2)
        self._parts: list[Records] = []
        self._held = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._runs: list[tuple[Path, int]] = []

    def __enter__(self) -> Candidates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> None:
        """Add boxes (K, 4), scores (K,) and labels (K,).

        Raises BadInput for values that are not finite, or where the temporary folder cannot hold them.
        """
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise BadInput("boxes and scores must be finite")
        if not len(boxes):
            return
        records = np.empty(len(boxes), RECORD)
        records["box"], records["score"], records["label"] = boxes, scores, labels
        corners = records["box"]
        self.low = np.minimum(self.low, corners[:, :2].min(axis=0))
        self.high = np.maximum(self.high, corners[:, :2].max(axis=0))
        self.side = np.maximum(self.side, (corners[:, 2:] - corners[:, :2]).max(axis=0))
        self.count += len(records)
        self._parts.append(records)
        self._held += len(records)
        if self._held > self.capacity:
            self._spill()

    def ranked(self) -> Iterator[Records]:
        """All candidates in the canonical order, in blocks with the fields box, score and label."""
        if not self._runs:
            yield from self._sorted()
            return
        if self._held:
            self._spill()
        size = max(_MIN_BLOCK, self.capacity // len(self._runs))
        starts = [0] * len(self._runs)  # of what is on disk
        blocks = [self._read(k, starts, size) for k in range(len(self._runs))]
        while any(len(block) for block in blocks):
            together = np.concatenate(blocks)
            owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
            order = canonical_order(together["box"], together["score"], together["label"])
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            ends = np.cumsum([len(block) for block in blocks]) - 1
            unfinished = [k for k in range(len(blocks)) if starts[k] < self._runs[k][1]]
            # a run with more on disk bounds what is complete: its next candidates follow the last one in memory
            complete = min((int(rank[ends[k]]) + 1 for k in unfinished), default=len(order))
            yield together[order[:complete]]
            for k in range(len(blocks)):
                left = blocks[k][rank[owner == k] >= complete]
                blocks[k] = left if len(left) or k not in unfinished else self._read(k, starts, size)

    def _sorted(self) -> list[Records]:
        """The candidates in memory in the canonical order, as one block; none where there are none."""
        if not self._parts:
            return []
        records = np.concatenate(self._parts)
        return [records[canonical_order(records["box"], records["score"], records["label"])]]

    def _spill(self) -> None:
        """Write the candidates in memory to disk as a sorted run."""
        (records,) = self._sorted()
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onebyone-")
            file = Path(self._folder.name) / f"{len(self._runs)}.run"
            records.tofile(file)
        except OSError as error:
            where = tempfile.gettempdir()
            raise BadInput(f"{self.count:,} candidates cannot be written to {where}: {error}") from error
        self._runs.append((file, len(records)))
        self._parts, self._held = [], 0

    def _read(self, run: int, starts: list[int], size: int) -> Records:
        """The next `size` candidates of a run, fewer at its end, and none after it."""
        file, _ = self._runs[run]
        records = np.fromfile(file, RECORD, size, offset=starts[run] * RECORD.itemsize)
        starts[run] += len(records)
        return records
