"""What suppression reads, compares and holds at once: no more than its bounds say, and no less where there is more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebyone.detection import candidates as candidate_files
from onebyone.detection import nms, streaming_nms
from onebyone.detection.candidates import RECORD, Candidates
from onebyone.detection.nms import iou
from onebyone.detection.streaming_nms import KeptBoxes, suppress, undominated
from onebyone.errors import BadInput


def apart(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes that do not overlap, of falling score."""
    x = 10.0 * np.arange(count)
    boxes = np.stack([x, x * 0, x + 8, x * 0 + 8], axis=1)
    return boxes, 1 - np.arange(count) / 1024, np.zeros(count, np.int64)


def records_of(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Any:
    records = np.empty(len(boxes), RECORD)
    records["box"], records["score"], records["label"] = boxes, scores, labels
    return records


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_as_many_candidates_as_the_capacity_are_in_memory(folder: Path) -> None:
    boxes, scores, labels = apart(6)
    with Candidates(capacity=3) as candidates:
        for k in range(6):
            candidates.add(boxes[k : k + 1], scores[k : k + 1], labels[k : k + 1])
            sizes = [file.stat().st_size // RECORD.itemsize for file in folder.glob("onebyone-*/*.run")]
            assert sizes == (
                [] if k < 3 else [4]
            )  # the fourth is one too many; the next two are in memory again


def test_runs_that_are_wholly_in_memory_are_one_block(folder: Path) -> None:
    boxes, scores, labels = apart(9)
    with Candidates(capacity=2) as candidates:
        for k in range(0, 9, 3):
            candidates.add(boxes[k : k + 3], scores[k : k + 3], labels[k : k + 3])
        assert len(list(folder.glob("*/*.run"))) == 3
        assert [len(block) for block in candidates.ranked()] == [9]


@pytest.mark.parametrize(("length", "blocks"), [(1024, 1), (1025, 3)])
def test_a_thousand_candidates_of_each_run_are_read_at_once(length: int, blocks: int) -> None:
    boxes, scores, labels = apart(length)
    with Candidates(capacity=2) as candidates:
        for _ in range(2):
            candidates.add(boxes, scores, labels)
        assert len(list(candidates.ranked())) == blocks


def test_what_is_held_in_memory_is_what_the_descriptions_say() -> None:
    """Candidates beyond 2^18 are on disk, and at most five million boxes are the result."""
    assert Candidates().capacity == 2**18
    assert streaming_nms.MAX_KEPT == 5_000_000


def test_a_run_of_which_more_is_on_disk_bounds_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates of each run are read at a time; the runs alternate, so three of four precede both last ones."""
    monkeypatch.setattr(candidate_files, "_MIN_BLOCK", 2)
    boxes, scores, labels = apart(8)
    with Candidates(capacity=3) as candidates:
        for start in (0, 1):
            candidates.add(boxes[start::2], scores[start::2], labels[start::2])
        blocks = list(candidates.ranked())
    assert [block["box"][:, 0].tolist() for block in blocks] == [[0, 10, 20], [30], [40, 50, 60, 70]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_candidates_are_finite(bad: float) -> None:
    boxes, scores, labels = apart(2)
    with Candidates() as candidates:
        with pytest.raises(BadInput, match="boxes and scores must be finite"):
            candidates.add(boxes * [1, 1, 1, bad], scores, labels)
        with pytest.raises(BadInput, match="boxes and scores must be finite"):
            candidates.add(boxes, scores * bad, labels)
        assert candidates.count == 0


@pytest.mark.parametrize("threshold", [-0.25, 1.25])
def test_a_threshold_is_checked_also_without_candidates(threshold: float) -> None:
    with Candidates() as candidates, pytest.raises(BadInput, match=f"iou={threshold}: expected a number"):
        suppress(candidates, threshold)
    with Candidates() as candidates:
        assert [len(suppress(candidates, bound).boxes) for bound in (0, 1)] == [0, 0]


class Counted(Candidates):
    """Candidates that count the blocks that were read, each of two candidates."""

    read = 0

    def ranked(self) -> Iterator[Any]:
        for block in super().ranked():
            for start in range(0, len(block), 2):
                self.read += 1
                yield block[start : start + 2]


@pytest.mark.parametrize(("most", "read"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 5), (None, 5)])
def test_nothing_is_read_once_as_many_boxes_are_kept_as_were_asked_for(most: int | None, read: int) -> None:
    boxes, scores, labels = apart(9)
    with Counted() as candidates:
        candidates.add(boxes, scores, labels)
        kept = suppress(candidates, 0.5, most=most)
    assert kept.boxes.tolist() == boxes[:most].tolist()
    assert candidates.read == read


@pytest.mark.parametrize(("count", "last"), [(200, [36, 54, 38]), (108, [36]), (109, [36, 1]), (1, None)])
def test_blocks_grow_with_the_boxes_that_are_kept(count: int, last: list[int] | None) -> None:
    boxes, scores, labels = apart(count)
    kept: list[int] = []
    sizes = []
    with Candidates() as candidates, pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_nms, "_BLOCK", 16)
        candidates.add(boxes, scores, labels)
        for block in streaming_nms._blocks(candidates, kept):  # type: ignore[arg-type]
            kept.extend([0] * len(block))
            sizes.append(len(block))
    # half of what was kept before, from 32 on; the last block is what remains
    assert sizes == ([1] if last is None else [16, 16, 16, 24, *last])


def test_boxes_are_compared_with_no_more_kept_ones_at_once_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many boxes as fit at a time, one at least, by adding up the kept boxes in the three cells of each row."""
    random = np.random.default_rng(0)
    corners = random.integers(0, (60, 40), (90, 2))
    boxes = np.concatenate([corners, corners + 8], axis=1).astype(float)
    scores, labels = 1 - np.arange(90) / 128, random.integers(0, 2, 90)
    records = records_of(boxes, scores, labels)
    bound, compared = 12, []

    def counted(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        compared.append(len(others))
        return iou(some, others)

    monkeypatch.setattr(streaming_nms, "_PAIRS", bound)
    monkeypatch.setattr(streaming_nms, "iou", counted)
    with Candidates() as candidates:
        candidates.add(boxes, scores, labels)
        kept = KeptBoxes(candidates, per_class=True)
        kept.add(records[:50])
        owners = kept.first_overlap(boxes[50:], labels[50:], 0.25)
    places = np.floor((corners - corners.min(axis=0)) / (8 * (1 + 1e-6)))
    expected = []
    for step in (-1, 0, 1):
        group = 0
        for k in range(50, 90):
            rows, columns = (places[:50] - places[k]).T[::-1]
            pairs = np.count_nonzero((rows == step) & (np.abs(columns) <= 1) & (labels[:50] == labels[k]))
            if k > 50 and group + pairs > bound:
                expected.append(group)
                group = 0
            group += int(pairs)
        expected.append(group)
    assert compared == expected
    assert max(expected) == bound
    for k, owner in zip(range(50, 90), owners.tolist(), strict=True):
        hits = np.flatnonzero((iou(boxes[k], boxes[:50]) > 0.25) & (labels[:50] == labels[k]))
        assert owner == (hits[0] if len(hits) else -1)


def test_sixteen_thousand_candidates_are_compared_at_once() -> None:
    """And a million pairs, here of a thousand boxes at one place with the next thousand and one."""
    boxes, scores, labels = apart(2**14 + 1)
    with Candidates() as candidates:
        candidates.add(boxes, scores, labels)
        assert [len(block) for block in streaming_nms._blocks(candidates, [])] == [2**14, 1]  # type: ignore[arg-type]
    boxes, compared = np.tile(boxes[:1], (2049, 1)), []

    def counted(_: np.ndarray, others: np.ndarray) -> np.ndarray:
        compared.append(len(others))
        return np.zeros(len(others))

    with Candidates() as candidates, pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_nms, "iou", counted)
        candidates.add(boxes, scores[:2049], labels[:2049])
        kept = KeptBoxes(candidates, per_class=True)
        kept.add(records_of(boxes[:1024], scores[:1024], labels[:1024]))
        kept.first_overlap(boxes[1024:], labels[1024:2049], 0.5)
    assert [count for count in compared if count] == [2**20, 1024]


def test_boxes_of_different_classes_do_not_suppress_each_other_unless_that_is_asked_for() -> None:
    boxes, scores, labels = np.tile([[0.0, 0, 4, 4]], (2, 1)), np.array([0.75, 0.5]), np.array([0, 1])
    complete = np.ones(2, bool)
    for options, count in (({}, 2), ({"per_class": True}, 2), ({"per_class": False}, 1)):
        assert len(nms(boxes, scores, labels, 0.5, **options)[0]) == count
        assert undominated(boxes, scores, labels, complete, 0.5, **options).sum() == count
        with Candidates() as candidates:
            candidates.add(boxes, scores, labels)
            assert len(suppress(candidates, 0.5, **options).boxes) == count


@pytest.mark.parametrize("per_class", [True, False])
def test_without_kept_boxes_no_box_overlaps_one(per_class: bool) -> None:
    boxes, scores, labels = apart(3)
    with Candidates() as candidates:
        candidates.add(boxes, scores, labels)
        kept = KeptBoxes(candidates, per_class)
        assert kept.first_overlap(boxes, labels, 0.5).tolist() == [-1, -1, -1]
        kept.add(records_of(boxes[:0], scores[:0], labels[:0]))
        assert len(kept) == 0


@pytest.mark.parametrize("per_class", [True, False])
def test_of_boxes_that_are_all_complete_exactly_those_remain_that_are_kept(per_class: bool) -> None:
    random = np.random.default_rng(1)
    corners = random.integers(-60, 0, (150, 2))
    boxes = np.concatenate([corners, corners + random.integers(0, 15, (150, 2))], axis=1).astype(float)
    scores, labels = random.integers(0, 40, 150) / 40, random.integers(0, 3, 150)
    remaining = undominated(boxes, scores, labels, np.ones(150, bool), 0.25, per_class=per_class)
    kept, _ = nms(boxes, scores, labels, 0.25, per_class=per_class)
    assert np.flatnonzero(remaining).tolist() == sorted(kept.tolist())
    assert 10 < len(kept) < 140
