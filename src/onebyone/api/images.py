"""The public functions on images: scan and detect.

Heavy libraries are imported inside the functions, so that `import onebyone` and `onebyone --help` are fast.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onebyone.errors import InexactWarning
from onebyone.loading import open_dense
from onebyone.records import LEAST_AGREEMENT

if TYPE_CHECKING:
    from onebyone.dense import Dense, ScoreMap
    from onebyone.detection import Detections


def scan(
    d: Dense | str | os.PathLike[str],
    image: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    min_agreement: float = LEAST_AGREEMENT,
    **options: Any,
) -> ScoreMap:
    """Run a dense network over an image and return the scores of every class for every window.

    Args:
        d: the result of `convolutionalize`, or the path of a saved one (`.pt2`); with mode="windows" also a
            `dense.WindowClassifier`, for networks that `convolutionalize` refuses.
        image: a path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W).
        out: path of the score map to write: `.zarr` (OME-Zarr), `.tif` (GeoTIFF), `.npy` or `.npz`; None writes
            nothing. An interrupted scan goes on when it is started again.
        min_agreement: minimum share of sampled windows whose best class must be the same as for the cropped window
            (`.agreement`), for networks that are not exact. A share below 0.95 causes a warning.
        options: labels, device, batch, shifts, stride, tile, memory, output, score_kind, softmax, page, level,
            mpp, axes, mode ("dense", or "windows" to crop every window), compared, progress, workers, dask: see
            `onebyone.dense.scan`.

    Returns:
        A `ScoreMap`: `.scores` of shape (classes, H', W'), with the geometry, the labels and the kind of scores.

    Raises:
        BadInput: the image is smaller than the window, has another number of channels or values that are not finite,
            or a file cannot be read or written.
        NotEquivalent: the agreement is below `min_agreement`; the score map is written before this is raised.
    """
    from onebyone import dense
    from onebyone.dense.map_files import require_map_path

    if out is not None:
        require_map_path(out)
    network = open_dense(d)[0] if isinstance(d, str | os.PathLike) else d
    scores = dense.scan(network, image, out=out, **options)
    if scores.agreement is not None:
        scores.agreement.require(min_agreement)
    return scores


def detect(
    scores: ScoreMap | str | os.PathLike[str],
    *,
    threshold: float = 0.5,
    iou: float = 0.3,
    background: Sequence[str | int] = (),
    boxes: ScoreMap | str | os.PathLike[str] | None = None,
    min_agreement: float = LEAST_AGREEMENT,
    **options: Any,
) -> Detections:
    """Detect objects in a score map: boxes (x1, y1, x2, y2) in pixels, scores and labels.

    Args:
        scores: the result of `scan`, or the path of a saved one (`.npz`).
        threshold: confidence threshold: the minimum probability of a detection.
        iou: IoU threshold for non-maximum suppression (NMS).
        background: classes to treat as background, in addition to those of the labels.
        boxes: box regressions of the same scan, for networks that predict them as another output; or their `.npz`.
        min_agreement: as for `scan`, if the score map carries an agreement with cropped windows.
        options: per_class, max_detections, refine, score_kind, box_format: see `onebyone.detection.detect`.

    Raises:
        BadInput: a file is not a score map, or a class does not exist.
        NotEquivalent: the agreement is below `min_agreement`.
    """
    from onebyone.dense import ScoreMap
    from onebyone.detection import detect as detect_objects

    score_map = ScoreMap.load(scores) if isinstance(scores, str | os.PathLike) else scores
    if score_map.agreement is not None:
        score_map.agreement.require(min_agreement)
        if not score_map.agreement.enough:
            warnings.warn(score_map.agreement.advice, InexactWarning, stacklevel=2)
    offsets = ScoreMap.load(boxes) if isinstance(boxes, str | os.PathLike) else boxes
    return detect_objects(
        score_map, threshold=threshold, iou=iou, background=tuple(background), boxes=offsets, **options
    )
