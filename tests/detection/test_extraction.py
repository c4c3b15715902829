"""From scores to boxes: which kind of scores is read, maps that belong together, divided parts, and complete boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onebyone.dense import ScoreMap
from onebyone.detection import detect, extraction, streaming_nms
from onebyone.detection.foreground import foreground
from onebyone.detection.rejection import Rejection, energy, entropy, fitted_reject_logit
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span

SIDE_BY_SIDE = Geometry((4, 4), (4, 4), (0, 0), (4, 4), (0, 0), True)


def score_map(scores: Any, kind: str | None = "probabilities:multi-label", **facts: Any) -> ScoreMap:
    """A map of windows side by side."""
    values = np.asarray(scores, np.float32)
    name, _, classes = (kind or "").partition(":")
    size = facts.pop("size", tuple(4 * n for n in values.shape[1:]))
    labels = facts.pop("labels", Labels(tuple("abc"[: len(values)])))
    known = ScoreKind(name, classes or None) if kind else None
    return ScoreMap(values, SIDE_BY_SIDE, labels, size, kind=known, **facts)


def test_the_kind_that_is_given_is_used_instead_of_that_of_the_map() -> None:
    values = np.array([[[0.25, 0.75]]])
    assert detect(score_map(values)).scores.tolist() == [0.75]
    as_logits = detect(score_map(values), score_kind="logits:multi-label", threshold=0.1).scores
    np.testing.assert_allclose(as_logits, [1 / (1 + math.exp(-v)) for v in (0.75, 0.25)], rtol=1e-6)
    as_kind = detect(score_map(values), score_kind=ScoreKind("logits", "multi-label"), threshold=0.1).scores
    assert as_kind.tolist() == as_logits.tolist()
    of_map = detect(score_map(values, "logits:multi-label"), threshold=0.1).scores
    assert of_map.tolist() == as_logits.tolist()


def test_without_a_kind_the_values_decide() -> None:
    exclusive = np.array([[[0.25, 0.75]], [[0.75, 0.25]]])
    assert detect(score_map(exclusive, None)).scores.tolist() == [0.75, 0.75]


def test_the_default_thresholds_are_those_of_the_description() -> None:
    """A probability of 0.5; an IoU of 0.3; classes suppress each other only where that is asked for."""
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert detect(score_map([[[0.5, below]]])).scores.tolist() == [0.5]
    geometry = Geometry((1, 10), (1, 1), (0, 0), (1, 10), (0, 0), True)
    for distance, count in ((5, 1), (6, 2)):  # IoU 5/15 and 4/16
        values = np.zeros((1, 1, 11), np.float32)
        values[0, 0, [0, distance]] = 0.75
        kind = ScoreKind("probabilities", "multi-label")
        assert len(detect(ScoreMap(values, geometry, Labels(), (1, 20), kind=kind))) == count
    both = score_map([[[0.75]], [[0.625]]])
    assert len(detect(both)) == 2
    assert len(detect(both, per_class=False)) == 1


def test_a_score_that_was_rounded_to_the_threshold_reaches_it() -> None:
    """0.9 in 32 bits is smaller than 0.9 in 64 bits; a map stores 32."""
    values = np.array([[[0.9, np.nextafter(np.float32(0.9), np.float32(0))]]], np.float32)
    assert float(values[0, 0, 0]) < 0.9
    for threshold in (0.9, {"a": 0.9}):
        assert detect(score_map(values), threshold=threshold).boxes.tolist() == [[0, 0, 4, 4]]


def test_no_more_detections_are_held_than_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map in which more windows are kept than is allowed has a result where fewer are asked for."""
    monkeypatch.setattr(streaming_nms, "MAX_KEPT", 3)
    scores = score_map([[[0.5, 0.625, 0.75, 0.875, 1.0]]])
    assert detect(scores, max_detections=2).scores.tolist() == [1.0, 0.875]
    for options in ({}, {"refine": True, "max_detections": 2}):  # any box may yet move one of the first two
        with pytest.raises(BadInput, match="more than 3 boxes are left"):
            detect(scores, **options)


def test_the_best_refined_boxes_are_the_first_of_all() -> None:
    """Of equal scores the first by its new place, which the box that comes first before it moves does not have."""
    geometry = Geometry((8, 6), (4, 2), (0, 0), (8, 6), (0, 0), True)
    values = np.zeros((1, 11, 18), np.float32)
    values[0, 1, 2], values[0, 1, 3], values[0, 7, 2] = 0.75, 0.25, 0.75
    scores = ScoreMap(values, geometry, Labels(), (48, 40), kind=ScoreKind("probabilities", "multi-label"))
    for most in (1, 2, None):
        found = detect(scores, threshold=0.2, refine=True, max_detections=most)
        assert found.boxes.tolist() == [[4, 28, 10, 36], [4.5, 4, 10.5, 12]][:most]


def test_regressions_of_every_class_where_all_classes_are_background() -> None:
    """There is no candidate, of no class; the map of regressions is still read as that of each class."""
    scores, offsets = score_map(np.full((2, 3, 5), 0.75)), score_map(np.zeros((8, 3, 5)), labels=Labels())
    found = detect(scores, boxes=offsets, background=(0, 1))
    assert (len(found), found.labels.dtype) == (0, np.int64)


def test_the_spans_of_parts_are_where_their_candidates_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a map that is read in regions, which are divided: every candidate once, by its place and class."""
    monkeypatch.setattr(extraction, "_PART", 3)
    values = np.random.default_rng(0).random((3, 9, 14)).astype(np.float32)
    scores = score_map(values)
    spans = [Span(0, 4), Span(4, 9)], [Span(0, 6), Span(6, 14)]
    regions = [((a, b), values[:, a.slice, b.slice]) for a in spans[0] for b in spans[1]]
    monkeypatch.setattr(ScoreMap, "regions", lambda _: iter(regions))
    covered, found = np.zeros((9, 14), int), []
    for part in extraction._parts(scores, ScoreKind("probabilities"), np.full(2, 0.5), [0, 2], Rejection()):
        rows, columns = part.region
        covered[rows.slice, columns.slice] += 1
        assert all(rows.start <= r < rows.stop for r in part.rows)
        assert all(columns.start <= c < columns.stop for c in part.columns)
        found += zip(part.labels.tolist(), part.rows, part.columns, part.values.tolist(), strict=True)
    assert (covered == 1).all()
    reached = [(k, *place) for k in (0, 2) for place in np.argwhere(values[k] >= 0.5).tolist()]
    assert sorted(found) == sorted((k, i, j, float(values[k, i, j])) for k, i, j in reached)


def test_a_quarter_of_a_million_candidates_are_decided_together() -> None:
    for width, parts in ((512, 1), (513, 2)):
        assert len(list(extraction._divided(np.ones((1, 512, width), bool), (0, 0)))) == parts


def test_maps_that_do_not_belong_together_are_refused() -> None:
    one = score_map([[[0.75]]])
    with pytest.raises(BadInput, match="scores: is empty; expected at least one score map"):
        detect([])
    with pytest.raises(BadInput, match="scores: the maps have different classes"):
        detect([one, score_map([[[0.75]]], labels=Labels(("z",)))])
    with pytest.raises(BadInput, match=r"images of 4×4 and 8×4 pixels"):
        detect([one, score_map([[[0.75], [0.5]]])])
    line = Geometry((4,), (4,), (0,), (4,), (0,), True)
    with pytest.raises(BadInput, match="scores have 1 axes; boxes are found on two"):
        detect(ScoreMap(np.zeros((1, 2), np.float32), line, Labels(), (8,)))
    with pytest.raises(BadInput, match="boxes: are the regressions of one map"):
        detect([one, one], boxes=score_map(np.zeros((4, 1, 1)), labels=Labels()))
    for most in (0, -1):
        with pytest.raises(BadInput, match=f"max_detections={most}: expected a positive integer or None"):
            detect(one, max_detections=most)
    assert len(detect(score_map([[[0.75, 0.75]]]), max_detections=1)) == 1


@pytest.mark.parametrize("origin", [0.0, 48.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("offset", "size", "same"), [
    (0, 8, True), (3.9, 8, True), (-3.9, 8, True), (4, 8, False), (-4, 8, False), (4, 7, False), (-4, 9, False),
    (0, 9, False), (0, 7, False), (0.5, 7, True), (-0.5, 9, True),
])  # fmt: skip
def test_levels_may_differ_by_less_than_a_pixel(
    axis: int, offset: float, size: int, same: bool, origin: float
) -> None:
    """A region of 32×32 pixels and a level of pixels of 4×4, both ends of which may be off by less than 4."""
    first = score_map(np.zeros((1, 8, 8)), placement=Placement((origin, origin), (1.0, 1.0)))
    offsets, sizes = [0.0, 0.0], [8, 8]
    offsets[axis], sizes[axis] = offset, size
    values = np.zeros((1, *(n // 4 for n in sizes)))
    values[0, 0, 0] = 0.75
    place = Placement((origin + offsets[0], origin + offsets[1]), (4.0, 4.0))
    level = score_map(values, size=tuple(sizes), placement=place)
    if not same:
        with pytest.raises(BadInput, match="expected one image, resized, or resolution levels of one file"):
            detect([first, level])
        return
    (y, x) = offsets
    np.testing.assert_allclose(detect([first, level]).boxes, [[x, y, x + 16, y + 16]], rtol=1e-6)
    # in pixels of the level: the first map's boxes are four times smaller
    first.scores[0, 1, 2] = 0.875
    boxes = detect([level, first]).boxes
    np.testing.assert_allclose(boxes[0], [(8 - x) / 4, (4 - y) / 4, (12 - x) / 4, (8 - y) / 4], rtol=1e-6)


def test_images_without_a_placement_are_not_levels() -> None:
    placed = score_map(np.zeros((1, 8, 8)), placement=Placement.identity())
    for maps in ([placed, score_map(np.zeros((1, 2, 2)))], [score_map(np.zeros((1, 2, 2))), placed]):
        with pytest.raises(BadInput, match="expected one image"):
            detect(maps)


def test_values_that_are_not_finite_are_counted() -> None:
    values = np.full((2, 2, 3), 0.25)
    values[0, 0, 0], values[1, 1, 2], values[:, 1, 1] = np.nan, np.inf, np.nan
    with pytest.raises(BadInput, match=r"scores have 4 value\(s\) that are not finite"):
        detect(score_map(values))
    with pytest.raises(BadInput, match=r"scores have 2 value\(s\) that are not finite"):
        detect(score_map(values, unscored="a mask"))  # the position without any score is expected
    values = np.full((2, 2, 3), 0.75)
    values[:, 1, 1] = np.nan
    assert len(detect(score_map(values, unscored="a mask"))) == 10


@pytest.mark.parametrize("start", [(0, 0), (5, 7)])
@pytest.mark.parametrize("shape", [(1, 9, 7), (2, 4, 11), (1, 1, 5), (1, 6, 1)])
def test_parts_have_few_candidates_and_are_where_they_say(
    shape: tuple[int, int, int], start: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_PART", 3)
    reached = np.random.default_rng(0).random(shape) < 0.6
    copied = np.zeros_like(reached)
    for rows, columns, part in extraction._divided(reached, start):
        inner = slice(rows.start - start[0], rows.stop - start[0])
        copied[:, inner, columns.start - start[1] : columns.stop - start[1]] |= part
        assert np.count_nonzero(part) <= 3 or part.shape[1:] == (1, 1)
        assert part.shape[1:] == (len(rows), len(columns))
    assert (copied == reached).all()
    whole = list(extraction._divided(np.ones((1, 1, 3), bool), (0, 0)))
    assert len(whole) == 1  # three candidates are not too many


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (5, 4), (8, 4), (9, 4), (3, 1), (2, 5)])
def test_a_box_is_complete_if_all_windows_that_overlap_it_are_in_the_part(window: int, stride: int) -> None:
    """By comparing the window of every position of one axis with those of all positions outside of the part."""
    count = 12
    size = (count - 1) * stride + window
    geometry = Geometry((window, 1), (stride, 1), (0, 0), (window, 1), (0, 0), True)
    scores = ScoreMap(np.zeros((1, count, 1), np.float32), geometry, Labels(), (size, 1))
    for start in range(count):
        for stop in range(start + 1, count + 1):
            rows = np.arange(start, stop)
            zeros = np.zeros_like(rows)
            part = extraction._CandidatePart((Span(start, stop), Span(0, 1)), zeros + 0.5, zeros, rows, zeros)
            boxes, complete = extraction._boxes_at(scores, part, None, "corners", [(0.0, 1.0), (0.0, 1.0)])
            outside = [i for i in range(count) if not start <= i < stop]
            for i, box, is_complete in zip(rows.tolist(), boxes.tolist(), complete.tolist(), strict=True):
                assert box == [0, i * stride, 1, i * stride + window]
                assert is_complete == all(abs(i - j) * stride >= window for j in outside)


def test_classes_that_are_background() -> None:
    scores = score_map(np.zeros((3, 1, 1)), labels=Labels(("a", "b", "c"), background=("c",)))
    assert foreground(scores, ()) == [0, 1]
    assert foreground(scores, [0, "b"]) == []
    assert foreground(scores, "a") == [1]
    assert foreground(scores, 1) == [0]
    numbered = score_map(np.zeros((3, 1, 1)), labels=Labels())
    assert foreground(numbered, [2, "0"]) == [1]
    for bad in (-1, 3, "z"):
        with pytest.raises(BadInput, match=f"background={bad!r}: expected one of the classes: a, b, c"):
            foreground(scores, bad)


@pytest.mark.parametrize(
    ("criteria", "classes", "kind", "message"),
    [
        ({"max_entropy": 0.5}, 1, "logits", "max_entropy: needs exclusive classes"),
        ({"max_entropy": 0.5}, 2, "logits:multi-label", "max_entropy: needs exclusive classes"),
        ({"min_energy": 0.5}, 1, "logits", "min_energy: needs exclusive classes"),
        ({"max_entropy": 0.5, "min_energy": 1}, 2, "probabilities", "min_energy: needs logits"),
        ({"max_entropy": 0.5, "reject_logit": 1}, 2, "probabilities", "reject_logit: needs logits"),
        ({"max_entropy": 0.5}, 2, "probabilities", None),
        ({"max_entropy": 0.5, "min_energy": 1, "reject_logit": 0}, 2, "logits", None),
        ({}, 1, "probabilities:multi-label", None),
    ],
)
def test_criteria_need_scores_for_which_they_exist(
    criteria: dict[str, float], classes: int, kind: str, message: str | None
) -> None:
    values, _, exclusive = kind.partition(":")
    rejection = Rejection(**criteria)
    if message is None:
        rejection.require(ScoreKind(values, exclusive or None), classes)
        return
    with pytest.raises(BadInput, match=message):
        rejection.require(ScoreKind(values, exclusive or None), classes)


def test_bounds_of_criteria() -> None:
    for value in (0, 1):
        assert Rejection(max_entropy=value).max_entropy == value
    for bad in (
        {"max_entropy": -0.01},
        {"max_entropy": 1.01},
        {"min_energy": math.nan},
        {"reject_logit": -math.inf},
    ):
        ((name, value),) = bad.items()
        with pytest.raises(BadInput, match=f"{name}={value}: expected a "):
            Rejection(**bad)


def test_windows_exactly_at_a_criterion_are_accepted() -> None:
    kind, scores = ScoreKind("logits"), np.array([[0.0, 3.0], [0.0, 0.0]], np.float32)
    highest = float(entropy(kind.probabilities(scores))[0])
    assert Rejection(max_entropy=highest).accepted(scores, kind).tolist() == [True, True]
    assert Rejection(max_entropy=np.nextafter(highest, 0)).accepted(scores, kind).tolist() == [False, True]
    lowest = float(energy(scores)[0])
    assert Rejection(min_energy=lowest).accepted(scores, kind).tolist() == [True, True]
    assert Rejection(min_energy=np.nextafter(lowest, 9)).accepted(scores, kind).tolist() == [False, True]
    assert Rejection().accepted(scores, kind).tolist() == [True, True]


def test_probabilities_beside_a_reject_class_at_extreme_energies() -> None:
    """Where exp of the difference overflows, the reject class has everything, and where it vanishes, nothing."""
    scores = np.array([[-1e4, 1e4], [-1e4, 1e4]], np.float32)
    found = Rejection(reject_logit=0.0).probabilities(scores, ScoreKind("logits"))
    assert found.tolist() == [[0, 0.5], [0, 0.5]]


def test_entropy_of_certain_and_impossible_classes() -> None:
    shares = np.array([[1.0, 0.5, 0.25, 1e-300], [0, 0.5, 0.25, 1.0], [0, 0, 0.5, 0]])
    expected = [0, math.log(2) / math.log(3), 1.5 * math.log(2) / math.log(3), 0]
    np.testing.assert_allclose(entropy(shares), expected, rtol=1e-12, atol=1e-290)


def test_the_logit_of_negative_windows_of_negative_energy() -> None:
    values = np.array([[[-5.0, -1.0, -4.0]], [[-90.0, -90.0, -90.0]]])
    for share, logit in ((0, -1.0), (0.4, -4.0), (0.7, -5.0)):
        assert fitted_reject_logit([score_map(values, "logits")], share) == pytest.approx(logit), share


def test_a_share_of_negative_windows_in_every_amount() -> None:
    """Of the energies e₁ > e₂ > …, the logit is the first below which the share of all windows is not exceeded."""
    values = np.array([[[5.0, 1.0, 4.0, 2.0]], [[-90.0, -90.0, -90.0, -90.0]]])
    maps = [score_map(values, "logits"), score_map(values[:, :, :1] - 2, "logits")]
    for share, logit in ((0, 5.0), (0.19, 5.0), (0.2, 4.0), (0.4, 3.0), (0.6, 2.0), (0.99, 1.0)):
        assert fitted_reject_logit(maps, share) == pytest.approx(logit), share
    assert fitted_reject_logit(maps) == pytest.approx(5.0)
    for bad in (-0.1, 1.0):
        with pytest.raises(BadInput, match=f"negative_share={bad}: expected a number from 0 to below 1"):
            fitted_reject_logit(maps, bad)
    with pytest.raises(BadInput, match="reject_logit: needs logits"):
        fitted_reject_logit([score_map([[[0.5]], [[0.5]]], "probabilities:exclusive")])
