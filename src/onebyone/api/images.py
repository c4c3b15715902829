"""The public functions on images: scan, of one image or of many, and detect.

Heavy libraries are imported inside the functions, so that `import onebyone` and `onebyone --help` are fast.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput, InexactWarning, NotEquivalent, Unfinished
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
            mpp, axes, mask, nodata, resize, mode ("dense", or "windows" to crop every window), tune, engine, half,
            compared, progress, workers, dask: see `onebyone.dense.scan`.

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


@dataclass(frozen=True)
class ScannedImage:
    """One image of several: the file of its score map and the map, or None and the reason why there is none."""

    image: Path
    out: Path
    scores: ScoreMap | None
    reason: str = ""


def tile_example(
    d: Dense | str | os.PathLike[str],
    image: Any,
    *,
    page: int | None = None,
    level: int | None = None,
    mpp: float | None = None,
    axes: str | None = None,
) -> tuple[Any, tuple[str, ...], Any]:
    """A dense network's model, notes on it, and a random tile (1, C, h, w) as large as `scan(d, image, out=…)` reads.

    `tune(model, example).save("plan.json")` then makes a plan for `scan(…, tune="plan.json")`. `page`, `level`, `mpp`
    and `axes` are those of the scan, which decide the size of the image.

    Raises:
        BadInput: the image cannot be read, or is smaller than the window.
    """
    import torch

    from onebyone.dense import open_image
    from onebyone.dense.network import ScoreOutput
    from onebyone.dense.planning import Request

    network, notes = open_dense(d) if isinstance(d, str | os.PathLike) else (d, ())
    source = open_image(
        image,
        channels=network.channels,
        axes=len(network.geometry.window),
        page=page,
        level=level,
        mpp=mpp,
        axis_names=axes,
    )
    output = ScoreOutput.of(network, 0, None, None, None, 0)
    shape = Request(network, network.geometry, source, output, torch.device("cpu")).tile_shape()
    return network.model, notes, torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def names_several(image: str | os.PathLike[str]) -> bool:
    """Whether a name is a folder of images or a pattern such as `a/*.png`. Raises BadInput where no image is there."""
    from onebyone.stores.opening import image_paths

    return image_paths(image) != (Path(image),)


def scan_images(
    d: Dense | str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Iterator[ScannedImage]:
    """Scan each image of a folder or a pattern into a score map of its own, one after another, sorted by name.

    An image that cannot be read or scanned is reported, and the others are scanned.

    Args:
        d: as for `scan`.
        images: a folder, or a pattern such as `"scans/*.png"`.
        out: the folder of the maps, which are NAME.npz; or `folder/*.zarr` for another format. It is made if it does
            not exist. Images of one name get numbers (`a`, `a-2`).
        progress: a function of (done, total) images.
        options: as for `scan`, except `out` and `progress`.

    Raises:
        BadInput: there is no image, or `out` is not a folder.
    """
    from onebyone.dense.map_files import require_map_path
    from onebyone.prediction.inputs import output_names
    from onebyone.stores.opening import image_paths

    paths = image_paths(images)
    if out is None:
        raise BadInput("out: is missing; the score maps of several images are written to a folder")
    pattern = Path(out)
    folder, suffix = (pattern.parent, pattern.suffix) if pattern.stem == "*" else (pattern, ".npz")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"out={os.fspath(out)!r}: {folder} is a file; expected a folder, or folder/*.zarr")
    folder.mkdir(parents=True, exist_ok=True)
    require_map_path(folder / f"map{suffix}")
    network = open_dense(d)[0] if isinstance(d, str | os.PathLike) else d
    for number, (path, name) in enumerate(zip(paths, output_names(paths), strict=True)):
        if progress is not None:
            progress(number, len(paths))
        file = folder / f"{name}{suffix}"
        try:
            yield ScannedImage(path, file, scan(network, path, out=file, **options))
        except (BadInput, NotEquivalent) as error:
            yield ScannedImage(path, file, None, str(error))


def require_all(failures: Sequence[tuple[str, str]], total: int) -> None:
    """Raise Unfinished, with each image and its reason, where images of several could not be scanned."""
    if failures:
        image, reason = failures[0]
        raise Unfinished(
            f"{len(failures)} of {total} images were not scanned; the first: {image}: {reason}", failures
        )


def detect(
    scores: ScoreMap | str | os.PathLike[str] | Sequence[ScoreMap | str | os.PathLike[str]],
    *,
    threshold: float | Mapping[str | int, float] = 0.5,
    iou: float = 0.3,
    background: Sequence[str | int] = (),
    boxes: ScoreMap | str | os.PathLike[str] | None = None,
    min_agreement: float = LEAST_AGREEMENT,
    max_entropy: float | None = None,
    min_energy: float | None = None,
    negatives: Sequence[ScoreMap | str | os.PathLike[str]] = (),
    negative_share: float = 0.001,
    **options: Any,
) -> Detections:
    """Detect objects in a score map: boxes (x1, y1, x2, y2) in pixels, scores and labels.

    Args:
        scores: the result of `scan`, or the path of a saved one; or several, of one image at several scales
            (`scan(resize=…)`, or `level=…`), whose boxes are merged, in pixels of the image of the first.
        threshold: confidence threshold: the minimum probability of a detection; a mapping has it by class, with "*"
            for the classes that it does not name (0.5 otherwise).
        iou: IoU threshold for non-maximum suppression (NMS).
        background: classes to treat as background, in addition to those of the labels.
        boxes: box regressions of the same scan, for networks that predict them as another output; or their `.npz`.
        min_agreement: as for `scan`, if the score map carries an agreement with cropped windows.
        max_entropy: for classifiers that were not trained on background: the largest entropy of a window's
            probabilities, 0 to 1 as a share of that of equally probable classes.
        min_energy: the same: the smallest energy of a window, the logarithm of the sum of the exponentials of its
            logits.
        negatives: the same: score maps of images without objects, from which the logit of a reject class is fitted.
        negative_share: the largest share of the windows of `negatives` that the reject class may not get.
        options: per_class, max_detections, refine, score_kind, box_format: see `onebyone.detection.detect`.

    Raises:
        BadInput: a file is not a score map, or a class does not exist.
        NotEquivalent: the agreement is below `min_agreement`.
    """
    from onebyone.dense import ScoreMap
    from onebyone.detection import detect as detect_objects
    from onebyone.detection.rejection import Rejection, fitted_reject_logit

    given = [scores] if isinstance(scores, ScoreMap | str | os.PathLike) else list(scores)
    maps = [ScoreMap.load(s) if isinstance(s, str | os.PathLike) else s for s in given]
    for agreement in (m.agreement for m in maps if m.agreement is not None):
        agreement.require(min_agreement)
        if not agreement.enough:
            warnings.warn(agreement.advice, InexactWarning, stacklevel=2)
    offsets = ScoreMap.load(boxes) if isinstance(boxes, str | os.PathLike) else boxes
    logit = None
    if negatives:
        others = [ScoreMap.load(s) if isinstance(s, str | os.PathLike) else s for s in negatives]
        logit = fitted_reject_logit(others, negative_share)
    return detect_objects(
        maps,
        threshold=threshold,
        iou=iou,
        background=tuple(background),
        boxes=offsets,
        rejection=Rejection(max_entropy, min_energy, logit),
        **options,
    )
