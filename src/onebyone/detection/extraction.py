"""Detections from score maps: threshold, boxes, non-maximum suppression, part by part in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.score_map import ScoreMap
from onebyone.detection.box_regression import offsets_at, regressed, require_regressions
from onebyone.detection.candidates import Candidates
from onebyone.detection.detections import Detections
from onebyone.detection.foreground import foreground
from onebyone.detection.nms import canonical_order
from onebyone.detection.rejection import Rejection
from onebyone.detection.streaming_nms import suppress, undominated
from onebyone.detection.thresholds import Threshold, thresholds_of
from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind, read_kind
from onebyone.records import by
from onebyone.stores.regions import Span

#: Candidates of a part of a map that are decided together; a part with more is divided.
_PART = 2**18

Floats = NDArray[np.float64]


def detect(
    scores: ScoreMap | Sequence[ScoreMap],
    *,
    threshold: Threshold = 0.5,
    iou: float = 0.3,
    background: Sequence[str | int] = (),
    per_class: bool = True,
    max_detections: int | None = None,
    refine: bool = False,
    score_kind: str | ScoreKind | None = None,
    boxes: ScoreMap | None = None,
    box_format: str = "corners",
    rejection: Rejection | None = None,
) -> Detections:
    """Find objects in a score map: the windows that reach the confidence threshold, after non-maximum suppression.

    The map is read part by part, and candidates beyond 2^18 are kept on disk, so memory does not grow with them. The
    result is that of the suppression of all candidates at once (see `onebyone.detection.streaming_nms`).

    Parameters
    ----------
    scores
        the result of `scan`; or several, of one image at several scales (resized, or resolution levels of a file),
        whose boxes suppress each other.
    threshold
        confidence threshold: the smallest probability of a detection, 0 to 1. A mapping has it by class, with "*" for
        the classes that it does not name (0.5 otherwise).
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
    rejection
        which windows belong to no class, for a classifier that was not trained on background.

    Returns
    -------
    Detections in pixels of the image that was scanned; of several, in those of the first. Where it was resized for the
    scan, they are in pixels of the image before that.

    Raises
    ------
    BadInput
        for a threshold outside [0, 1] or a class that does not exist, for a rejection that the scores do not allow, for
        scores that are not finite, for maps of
        different images, and where more than five million boxes are left.
    """
    maps = [scores] if isinstance(scores, ScoreMap) else list(scores)
    if max_detections is not None and max_detections < 1:
        raise BadInput(f"max_detections={max_detections}: expected a positive integer or None")
    first = _same_image(maps)
    thresholds = thresholds_of(threshold, first.classes)
    if boxes is not None:
        if len(maps) > 1:
            raise BadInput("boxes: are the regressions of one map; expected one map of scores")
        require_regressions(boxes, first, box_format)
    with Candidates() as candidates:
        for score_map in maps:
            kind = read_kind(score_kind) or score_map.kind or score_map.assumed_kind()
            chosen = foreground(score_map, background)
            rejection = rejection or Rejection()
            rejection.require(kind, len(first.classes))
            to_first = _to_first(first, score_map) or ()  # checked by `_same_image`
            for part in _parts(score_map, kind, thresholds[chosen], chosen, rejection):
                corners, complete = _boxes_at(score_map, part, boxes, box_format, to_first)
                values, labels = part.values, part.labels
                if boxes is not None:
                    has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
                    corners, values, labels = corners[has_area], values[has_area], labels[has_area]
                elif not refine:  # suppressed boxes are needed for the means
                    kept = undominated(corners, values, labels, complete, iou, per_class=per_class)
                    corners, values, labels = corners[kept], values[kept], labels[kept]
                candidates.add(corners, values, labels)
        best = suppress(candidates, iou, per_class=per_class, most=None if refine else max_detections)
    corners = best.votes if refine else best.boxes
    order = canonical_order(corners, best.scores, best.labels)[:max_detections]
    return Detections(
        boxes=corners[order].astype(np.float32),
        scores=best.scores[order].astype(np.float32),
        labels=best.labels[order],
        classes=first.classes,
        image_size=first.full_size,
        placement=first.full_placement,
        rejection=rejection,
    )


def _same_image(maps: Sequence[ScoreMap]) -> ScoreMap:
    """The first of some maps. Raises BadInput where there is none, or they are of different images or classes."""
    if not maps:
        raise BadInput("scores: is empty; expected at least one score map")
    first = maps[0]
    for score_map in maps:
        if len(score_map.geometry.window) != 2:
            raise BadInput(f"scores have {len(score_map.geometry.window)} axes; boxes are found on two")
        if _to_first(first, score_map) is None:
            raise BadInput(
                f"scores: the maps are of images of {by(first.full_size)} and {by(score_map.full_size)} pixels; "
                "expected one image, resized, or resolution levels of one file"
            )
        if score_map.classes != first.classes:
            raise BadInput("scores: the maps have different classes; expected those of one network")
    return first


def _to_first(first: ScoreMap, other: ScoreMap) -> list[tuple[float, float]] | None:
    """Per axis the offset and the scale that take pixels of the other map's image to those of the first one's.

    The first map's pixels are those before it was resized. None where the two images are not one rectangle: they differ
    in size, and are not known to be resolution levels of one file.
    """
    if other.full_size == first.full_size:
        return [(0.0, f / n) for f, n in zip(first.full_size, other.image_size, strict=True)]
    here, there = first.full_placement, other.placement
    if here is None or there is None:
        return None
    axes = list(zip(here.offset, here.scale, there.offset, there.scale, strict=True))
    sizes = zip(first.full_size, other.image_size, strict=True)
    for (o, s, p, t), (n, m) in zip(axes, sizes, strict=True):
        # a level's last pixel may be partly beyond the image, or missing
        if abs(o - p) >= max(s, t) or abs(o + s * n - p - t * m) >= max(s, t):
            return None
    return [((p - o) / s, t / s) for o, s, p, t in axes]


class _CandidatePart:
    """Probabilities, classes, rows and columns (K,) of the candidates of a region of positions."""

    def __init__(
        self,
        region: Sequence[Span],
        values: Floats,
        labels: NDArray[np.int64],
        rows: NDArray[np.intp],
        columns: NDArray[np.intp],
    ) -> None:
        self.region = tuple(region)
        self.values, self.labels, self.rows, self.columns = values, labels, rows, columns


def _parts(
    scores: ScoreMap, kind: ScoreKind, thresholds: Floats, chosen: Sequence[int], rejection: Rejection
) -> Iterator[_CandidatePart]:
    """The windows that reach the threshold, part by part."""
    numbers = np.asarray(chosen, dtype=np.int64)
    for region, values in scores.regions():
        not_finite = values.size - int(np.count_nonzero(np.isfinite(values)))
        if scores.unscored:
            not_finite -= len(values) * int(np.count_nonzero(np.isnan(values).all(axis=0)))
        if not_finite:
            raise BadInput(f"scores have {not_finite} value(s) that are not finite")
        probabilities = rejection.probabilities(values, kind)[chosen]
        # compared in the type of the scores, so that a threshold of 0.9 is reached by 0.9 of 32 bits
        limits = thresholds.astype(probabilities.dtype)[:, None, None]
        candidates = (probabilities >= limits) & rejection.accepted(values, kind)
        for inner in _divided(candidates, (0, 0)):
            rows, columns, reached = inner
            label, row, column = np.nonzero(reached)
            within = probabilities[:, rows.slice, columns.slice]
            starts = region[0].start + rows.start, region[1].start + columns.start
            spans = (
                Span(starts[0], starts[0] + len(rows)),
                Span(starts[1], starts[1] + len(columns)),
            )
            found = within[reached].astype(np.float64)
            yield _CandidatePart(spans, found, numbers[label], row + starts[0], column + starts[1])


def _divided(
    reached: NDArray[np.bool_], start: tuple[int, int]
) -> Iterator[tuple[Span, Span, NDArray[np.bool_]]]:
    """A region in parts of at most `_PART` candidates: halves of the longer axis, again and again."""
    _, height, width = reached.shape
    if height * width == 1 or np.count_nonzero(reached) <= _PART:
        yield Span(start[0], start[0] + height), Span(start[1], start[1] + width), reached
    elif height >= width:
        half = height // 2
        yield from _divided(reached[:, :half], start)
        yield from _divided(reached[:, half:], (start[0] + half, start[1]))
    else:
        half = width // 2
        yield from _divided(reached[:, :, :half], start)
        yield from _divided(reached[:, :, half:], (start[0], start[1] + half))


def _boxes_at(
    scores: ScoreMap,
    part: _CandidatePart,
    offsets: ScoreMap | None,
    box_format: str,
    to_first: Sequence[tuple[float, float]],
) -> tuple[Floats, NDArray[np.bool_]]:
    """The boxes (K, 4) of candidates, clipped to the image, and whether every window that overlaps them is in the part.

    They are in the pixels that `to_first` leads to (see `_to_first`).
    """
    geometry, complete = scores.geometry, np.ones(len(part.rows), bool)
    low = []
    for axis, index in enumerate((part.rows, part.columns)):
        low.append(index * geometry.stride[axis] - geometry.window_offset[axis])
        reach = -(-geometry.window[axis] // geometry.stride[axis]) - 1  # positions whose windows overlap
        span, count = part.region[axis], scores.positions[axis]
        complete &= (index - reach >= span.start) | (span.start == 0)
        complete &= (index + reach < span.stop) | (span.stop == count)
    (y, x), (height, width) = low, geometry.window
    corners = np.stack([x, y, x + width, y + height], axis=1).astype(np.float64)
    if offsets is not None:
        corners = regressed(corners, offsets_at(offsets, part.labels, part.rows, part.columns), box_format)
    rows, columns = scores.image_size
    corners = np.clip(corners, 0, [columns, rows, columns, rows])
    (top, down), (left, right) = to_first
    return corners * [right, down, right, down] + [left, top, left, top], complete
