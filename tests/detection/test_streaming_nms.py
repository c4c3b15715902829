"""Non-maximum suppression in bounded memory against that of all boxes at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebyone.dense import ScoreMap
from onebyone.detection import candidates as candidate_files
from onebyone.detection import detect, nms, streaming_nms
from onebyone.detection.candidates import Candidates
from onebyone.detection.extraction import _divided
from onebyone.detection.nms import vote
from onebyone.detection.streaming_nms import suppress, undominated
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels

IOUS = st.sampled_from([0.0, 0.25, 0.5, 1.0])
#: A map with windows of 12×7 pixels every 4×2: a box overlaps those of three positions on each side.
ROWS, COLUMNS = 13, 17
IMAGE = ((ROWS - 1) * 4 + 12, (COLUMNS - 1) * 2 + 7)


def random_boxes(seed: int, count: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of several sizes with many equal scores."""
    random = np.random.default_rng(seed)
    corners = random.integers(-20, 60, (count, 2))
    boxes = np.concatenate([corners, corners + random.integers(0, 15, (count, 2))], axis=1).astype(float)
    return boxes, random.integers(0, levels, count) / levels, random.integers(0, 3, count)


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    """Blocks of so many candidates, and of as many pairs, in place of the thousands of the constants."""
    with (
        patch.object(candidate_files, "_MIN_BLOCK", size),
        patch.object(streaming_nms, "_BLOCK", size),
        patch.object(streaming_nms, "_PAIRS", size),
    ):
        yield


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(0, 90), st.integers(1, 20), st.integers(1, 9))
def test_candidates_are_ranked_block_by_block(seed: int, count: int, capacity: int, block: int) -> None:
    """By sorting plain tuples. No block is empty, and none is larger than what the runs have in memory."""
    boxes, scores, labels = random_boxes(seed, count, 9)
    rows = list(zip((-scores).tolist(), labels.tolist(), boxes.tolist(), strict=True))
    with small_blocks(block), Candidates(capacity) as candidates:
        for part in np.array_split(np.arange(count), 9):
            candidates.add(boxes[part], scores[part], labels[part])
        blocks = list(candidates.ranked())
    ranked = [(-float(r["score"]), int(r["label"]), r["box"].tolist()) for b in blocks for r in b]
    assert ranked == sorted(rows)
    assert all(len(b) for b in blocks)
    assert candidates.count == count
    if count:
        assert candidates.low.tolist() == boxes[:, :2].min(axis=0).tolist()
        assert candidates.high.tolist() == boxes[:, :2].max(axis=0).tolist()
        assert candidates.side.tolist() == (boxes[:, 2:] - boxes[:, :2]).max(axis=0).tolist()


@settings(max_examples=100)
@given(
    st.integers(0, 2**31),
    st.integers(0, 120),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 12),
    IOUS,
    st.booleans(),
)
def test_suppression_of_ranked_blocks_equals_that_of_all(
    seed: int, count: int, levels: int, capacity: int, block: int, threshold: float, per_class: bool
) -> None:
    """Whatever is on disk, however few candidates are read and compared at once, and in whichever order they arrive."""
    boxes, scores, labels = random_boxes(seed, count, levels)
    expected, groups = nms(boxes, scores, labels, threshold, per_class=per_class)
    parts = np.array_split(np.random.default_rng(seed).permutation(count), 7)
    with small_blocks(block), Candidates(capacity) as candidates:
        for part in parts:
            candidates.add(boxes[part], scores[part], labels[part])
        kept = suppress(candidates, threshold, per_class=per_class)
    assert np.array_equal(kept.boxes, boxes[expected])
    assert np.array_equal(kept.scores, scores[expected])
    assert np.array_equal(kept.labels, labels[expected])
    members = [g[labels[g] == labels[k]] for k, g in zip(expected, groups, strict=True)]
    votes = np.array(list(vote(boxes, scores, members))).reshape(-1, 4)
    np.testing.assert_allclose(kept.votes, votes, rtol=1e-12, atol=1e-12)  # sums in another order


@settings(max_examples=150)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 40), IOUS, st.booleans())
def test_no_box_outside_of_a_part_changes_what_is_left_out(
    seed: int, count: int, levels: int, threshold: float, per_class: bool
) -> None:
    """Of the boxes of a part, those with a corner left of 20 are complete: all that overlap them are in the part."""
    boxes, scores, labels = random_boxes(seed, 2 * count, levels)
    complete = boxes[:, 2] <= 20
    inside = boxes[:, 0] < 20  # every box that overlaps a complete one begins left of 20
    kept = inside.copy()
    kept[inside] = undominated(
        boxes[inside], scores[inside], labels[inside], complete[inside], threshold, per_class=per_class
    )
    expected, _ = nms(boxes, scores, labels, threshold, per_class=per_class)
    remaining = np.flatnonzero(kept | ~inside)
    found, _ = nms(boxes[remaining], scores[remaining], labels[remaining], threshold, per_class=per_class)
    assert np.array_equal(boxes[remaining][found], boxes[expected])
    assert np.array_equal(scores[remaining][found], scores[expected])


class Parts:
    """Scores whose parts are of any size."""

    def __init__(self, values: np.ndarray, chunk: tuple[int, int]) -> None:
        self.values, self.chunk, self.shape = values, chunk, values.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.values[index]


class Shuffled(ScoreMap):
    """A map whose parts come in a random order."""

    def regions(self) -> Any:
        parts = list(super().regions())
        np.random.default_rng(0).shuffle(parts)
        return iter(parts)


def random_map(seed: int, chunk: tuple[int, int], kind: type[ScoreMap] = ScoreMap) -> ScoreMap:
    values = np.random.default_rng(seed).integers(0, 8, (2, ROWS, COLUMNS)).astype(np.float32) / 8
    geometry = Geometry((12, 7), (4, 2), (3, 0), (12, 7), (3, 0), True)
    size = IMAGE
    scores: Any = Parts(values, chunk)
    return kind(scores, geometry, Labels(), size, kind=ScoreKind("probabilities", "multi-label"))


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.integers(1, ROWS + 1),
    st.integers(1, COLUMNS + 1),
    IOUS,
    st.booleans(),
    st.booleans(),
)
def test_detections_depend_neither_on_the_parts_nor_on_their_order(
    seed: int, rows: int, columns: int, iou: float, per_class: bool, refine: bool
) -> None:
    options: Any = {"threshold": 0.4, "iou": iou, "per_class": per_class, "refine": refine}
    scores = random_map(seed, (ROWS, COLUMNS))
    values = np.asarray(scores.scores[:])
    label, row, column = np.nonzero(values >= np.float32(0.4))
    corners = np.stack([column * 2, row * 4 - 3, column * 2 + 7, row * 4 + 9], 1).astype(float)
    corners = np.clip(corners, 0, [*IMAGE[::-1], *IMAGE[::-1]])
    kept, _ = nms(corners, values[label, row, column], label, iou, per_class=per_class)
    expected = detect(scores, **options)
    if not refine:
        assert np.array_equal(expected.boxes, corners[kept])
        assert np.array_equal(expected.labels, label[kept])
    for kind in (ScoreMap, Shuffled):
        found = detect(random_map(seed, (rows, columns), kind), **options)
        assert np.array_equal(found.scores, expected.scores)
        assert np.array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-6, atol=1e-5 if refine else 0)


def test_the_best_detections_are_the_first_of_all() -> None:
    everything = detect(random_map(1, (5, 5)), threshold=0.4)
    best = detect(random_map(1, (5, 5)), threshold=0.4, max_detections=7)
    assert np.array_equal(best.boxes, everything.boxes[:7])


def test_a_crowded_part_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = detect(random_map(2, (ROWS, COLUMNS)), threshold=0)
    monkeypatch.setattr("onebyone.detection.extraction._PART", 3)
    found = detect(random_map(2, (ROWS, COLUMNS)), threshold=0)
    assert np.array_equal(found.boxes, expected.boxes)


def test_a_full_temporary_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with (
        Candidates(capacity=1) as candidates,
        pytest.raises(BadInput, match=f"2 candidates cannot be written to {tmp_path}/none: .*No such file"),
    ):
        candidates.add(np.zeros((2, 4)), np.zeros(2), np.zeros(2, int))


def test_files_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Candidates(capacity=1) as candidates:
        candidates.add(np.zeros((2, 4)), np.zeros(2), np.zeros(2, int))
        assert len(list(tmp_path.glob("*/*.run"))) == 1
    assert not list(tmp_path.iterdir())


def test_maps_of_several_scales_are_merged() -> None:
    """The same object at two scales is one; another is found at the coarse scale only, in pixels of the image."""
    kind = ScoreKind("probabilities", "multi-label")
    geometry = Geometry((8, 8), (4, 4), (0, 0), (8, 8), (0, 0), True)
    fine, coarse = np.zeros((1, 20, 20), np.float32), np.zeros((1, 9, 9), np.float32)
    fine[0, 4, 4], coarse[0, 1, 1], coarse[0, 7, 2] = 0.75, 0.5, 0.875
    full = ScoreMap(fine, geometry, Labels(), (84, 84), kind=kind)
    half = ScoreMap(coarse, geometry, Labels(), (40, 41), kind=kind, resized_from=(84, 84))
    found = detect([full, half], iou=0.1)
    exact = [[8 * 84 / 41, 28 * 84 / 40, 16 * 84 / 41, 36 * 84 / 40], [16, 16, 24, 24]]
    np.testing.assert_allclose(found.boxes, exact, rtol=1e-6)
    assert found.image_size == (84, 84)
    with pytest.raises(BadInput, match="expected one image, resized"):
        detect([full, ScoreMap(coarse, geometry, Labels(), (40, 41), kind=kind)])


def test_the_parts_cover_every_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebyone.detection.extraction._PART", 5)
    reached = np.random.default_rng(0).random((2, 9, 7)) < 0.5
    covered = np.zeros((9, 7), int)
    for rows, columns, part in _divided(reached, (0, 0)):
        covered[rows.slice, columns.slice] += 1
        assert np.array_equal(part, reached[:, rows.slice, columns.slice])
    assert (covered == 1).all()
