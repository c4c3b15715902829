"""Box regression: offsets from a window to the object in it, which some networks predict for every window.

For a window (x1, y1, x2, y2) of width w, height h and centre (cx, cy), and four offsets a, b, c, d, the box is

    corners       (x1 + a·w, y1 + b·h, x2 + c·w, y2 + d·h)
    center-size   centre (cx + a·w, cy + b·h), width w·exp(c), height h·exp(d)

Sources: Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional networks"
(MTCNN), 2016, for corners; Girshick et al., "Rich feature hierarchies for accurate object detection and
semantic segmentation" (R-CNN), 2014, appendix C, for the centre and the logarithms of the size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.score_map import ScoreMap
from onebyone.errors import BadInput

BOX_FORMATS = ("corners", "center-size")
Floats = NDArray[np.float64]


def require_regressions(boxes: ScoreMap, scores: ScoreMap, box_format: str) -> None:
    """Raise BadInput unless `boxes` has four offsets, or four for each class, for the windows of `scores`."""
    if box_format not in BOX_FORMATS:
        raise BadInput(f"box_format={box_format!r}: expected {' or '.join(BOX_FORMATS)}")
    same = (boxes.positions, boxes.geometry, boxes.image_size) == (
        scores.positions,
        scores.geometry,
        scores.image_size,
    )
    if not same:
        raise BadInput("boxes: the map has other windows than the scores; expected two outputs of one scan")
    channels, classes = boxes.scores.shape[0], scores.scores.shape[0]
    if channels not in (4, 4 * classes):
        raise BadInput(
            f"boxes: the map has {channels} channels; expected 4, or 4 for each of {classes} classes, "
            "class by class, in the order x1, y1, x2, y2 (corners) or x, y, width, height (center-size)"
        )


def offsets_at(
    boxes: ScoreMap, labels: NDArray[np.int64], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> Floats:
    """The four offsets (K, 4) at K positions: those of each position's label where every class has its own."""
    first = np.zeros_like(labels) if boxes.scores.shape[0] == 4 else 4 * labels
    values = boxes.scores[first[:, None] + np.arange(4), rows[:, None], columns[:, None]]
    if not np.isfinite(values).all():
        raise BadInput("boxes: the map has values that are not finite")
    offsets: Floats = values.astype(np.float64)
    return offsets


def regressed(windows: Floats, offsets: Floats, box_format: str = "corners") -> Floats:
    """The boxes (K, 4) that offsets (K, 4) predict for windows (K, 4), all x1, y1, x2, y2 but the offsets.

    >>> regressed(np.array([[10.0, 20, 22, 32]]), np.array([[0.5, 0, 0.25, -0.5]])).tolist()
    [[16.0, 20.0, 25.0, 26.0]]
    >>> regressed(np.array([[10.0, 20, 22, 32]]), np.array([[0.5, 0, 0, 0]]), "center-size").tolist()
    [[16.0, 20.0, 28.0, 32.0]]
    """
    size = windows[:, 2:] - windows[:, :2]
    if box_format == "corners":
        return windows + offsets * np.tile(size, 2)
    centre = (windows[:, :2] + windows[:, 2:]) / 2 + offsets[:, :2] * size
    with np.errstate(over="ignore"):  # an infinite box, which is clipped to the image later
        half = size * np.exp(offsets[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)
