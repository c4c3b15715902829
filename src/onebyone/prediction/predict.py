"""Prediction in one step: scan every image, detect objects, and write boxes and pictures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from onebyone.atomic_files import write_text
from onebyone.dense.images import open_image
from onebyone.dense.network import Dense
from onebyone.dense.scan import scan
from onebyone.dense.score_map import ScoreMap
from onebyone.detection import detect
from onebyone.detection.detection_picture import MAX_PIXELS, picture_size, reduced, with_heat
from onebyone.detection.foreground import foreground
from onebyone.detection.overlay import save_picture
from onebyone.errors import BadInput
from onebyone.prediction.inputs import output_names
from onebyone.prediction.result import Prediction, Predictions
from onebyone.records import by
from onebyone.stores.channels import matched
from onebyone.stores.pictures import pillow
from onebyone.stores.placement import Placement, placement_of
from onebyone.stores.source import ArraySource, ImageSource, whole_region

Report = Callable[[int, int], object]


def predict_images(
    dense: Dense,
    images: Sequence[Any],
    *,
    folder: Path | None,
    detection: dict[str, Any],
    scanning: dict[str, Any],
    scales: Sequence[float] = (1.0,),
    per_class: bool | None = None,
    report: Report | None = None,
) -> Predictions:
    """Scan and detect in each image. With `folder`, its results are written before the next image starts.

    Files: `NAME.json` (COCO results), `NAME-heat.png` (the probability of the most likely class), `NAME-detections.png`
    (the same with the boxes), `NAME-scores.npz` (the score map of the first scale), `NAME-image.png` (the pixels that
    were scanned, where they have 8 bits and are not too many to be drawn), and in the end `predictions.json`, one COCO
    file for all images.

    Every image is scanned at each of `scales`, the factors of its size, and the boxes of all are merged. `per_class` is
    that of `detect`; None lets boxes of different classes suppress each other if classes are exclusive.

    Raises
    ------
    BadInput
        if there is no image or no scale, or an image cannot be read or scanned. Results of the images before it
        are kept.
    """
    if not images:
        raise BadInput("images: is empty; expected at least one image")
    if not scales or len(set(scales)) < len(scales) or not all(isfinite(f) and f > 0 for f in scales):
        raise BadInput(f"scales={tuple(scales)}: expected one or several different positive numbers")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    items: list[Prediction] = []
    classes: tuple[str, ...] = ()
    for number, (image, name) in enumerate(zip(images, output_names(images), strict=True)):
        if report is not None:
            report(number, len(images))
        start = time.perf_counter()
        pixels, source, options = image, image, scanning
        if folder is not None:
            pixels, source, options = _read_once(image, getattr(dense, "channels", None), scanning)
        fitting = _fitting(source, dense, scales, options) if len(scales) > 1 else scales
        maps = tuple(scan(dense, source, **options, resize=scale) for scale in fitting)
        independent = _independent(maps[0]) if per_class is None else per_class
        detections = detect(maps, **detection, per_class=independent)
        classes = maps[0].classes
        shown = str(image) if isinstance(image, str | Path) else name
        item = Prediction(
            image=shown,
            detections=detections,
            windows=sum(m.windows for m in maps),
            seconds=time.perf_counter() - start,
            maps=maps if folder is None else (),
            notes=_left_out(shown, scales, fitting),
        )
        if folder is not None:
            background = detection.get("background", ())
            reading = {**options, "background": background}
            item = _write(item, source if pixels is None else pixels, maps, folder / name, reading)
            item = _write_scan(item, maps[0], None if pixels is None else source, folder / name, background)
        items.append(item)
    result = Predictions(tuple(items), dense.geometry, scanning.get("labels") or dense.labels, classes)
    if folder is not None:
        write_text(folder / "predictions.json", json.dumps(result.to_coco(), indent=1) + "\n")
    return result


@dataclass(frozen=True)
class HeldImage(ArraySource):
    """A whole image in memory, which was read from a file with this placement; an `ImageSource`."""

    placement: Placement


def _read_once(
    image: Any, channels: int | None, scanning: Mapping[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """The pixels to draw on (height, width, C), what to scan, and the other options of the scan.

    An image that will be drawn is read once, for both; a larger one is scanned by region, and its pixels are None.
    """
    options = dict(scanning)
    chosen = {name: options.pop(name, None) for name in ("page", "level", "mpp", "axes")}
    source = open_image(image, axis_names=chosen.pop("axes"), **chosen)
    if prod(source.size) > MAX_PIXELS:
        return None, image, dict(scanning)
    held = HeldImage(np.ascontiguousarray(source.read(whole_region(source))), placement_of(source))
    is_file = isinstance(image, str | os.PathLike) and Path(image).suffix.lower() != ".npy"
    is_picture = is_file or hasattr(image, "getbands")  # arrays must have the network's channels
    return held.values, matched(held, channels) if is_picture else held, options


def _independent(scores: ScoreMap) -> bool:
    """Whether a window may belong to several classes at once; exclusive classes suppress each other's boxes."""
    return scores.kind is not None and scores.kind.classes == "multi-label"


def _fitting(image: Any, dense: Dense, scales: Sequence[float], options: Mapping[str, Any]) -> list[float]:
    """The scales at which an image has at least one window. Raises BadInput where it has none at any scale."""
    chosen: dict[str, Any] = {name: options.get(name) for name in ("page", "level", "mpp")}
    size = open_image(image, axis_names=options.get("axes"), **chosen).size
    window = dense.geometry.window
    if len(window) != len(size):
        return list(scales)  # scan says which axes are missing
    fitting = [f for f in scales if all(round(n * f) >= w for n, w in zip(size, window, strict=True))]
    if not fitting:
        listed = ", ".join(f"{f:g}" for f in scales)
        raise BadInput(
            f"scales={listed}: an image of {by(size)} pixels is smaller than the window of {by(window)} at each of them"
        )
    return fitting


def _left_out(image: str, scales: Sequence[float], fitting: Sequence[float]) -> tuple[str, ...]:
    """A note on the scales at which an image is smaller than the window."""
    left_out = [f"{f:g}" for f in scales if f not in fitting]
    if not left_out:
        return ()
    return (f"{image}: is smaller than the window at scale {', '.join(left_out)}, which was left out",)


def _write(
    item: Prediction, image: Any, maps: Sequence[ScoreMap], stem: Path, options: Mapping[str, Any]
) -> Prediction:
    """Write boxes and pictures of an image, whose files are named after `stem`."""
    boxes, heat, drawn = (
        stem.with_name(stem.name + suffix) for suffix in (".json", "-heat.png", "-detections.png")
    )
    item.detections.save(boxes)
    full = item.detections.image_size
    size = picture_size(full)
    reading = {name: options.get(name) for name in ("page", "axes")}
    drawing = reduced(image, full, size, **reading)
    picture = with_heat(drawing, maps, options.get("background", ()), item.detections.rejection)
    save_picture(picture, heat)
    boxed = item.detections.resized(size).draw(picture.crop((0, 0, size[1], size[0])))
    picture.paste(boxed, (0, 0))  # above the legend
    save_picture(picture, drawn)
    note = f"{item.image}: pictures are thumbnails of {by(size)} pixels; the image has {by(full)}"
    notes = () if size == tuple(full) else (note,)
    return replace(item, files=(str(boxes), str(heat), str(drawn)), notes=(*item.notes, *notes))


def _write_scan(
    item: Prediction,
    scores: ScoreMap,
    source: ImageSource | None,
    stem: Path,
    background: Sequence[str | int],
) -> Prediction:
    """Write the score map and, where a PNG file can hold its 8-bit channels, the image: what the viewer shows."""
    objects = foreground(scores, background)
    ignored = tuple(name for k, name in enumerate(scores.classes) if k not in objects)
    file = stem.with_name(f"{stem.name}-scores.npz")
    replace(scores, labels=replace(scores.labels, background=ignored)).save(file)
    files, picture = [str(file)], None
    if source is not None and source.dtype == np.uint8 and source.channels in (1, 3):
        picture = stem.with_name(f"{stem.name}-image.png")
        pixels = np.asarray(source.read(whole_region(source)))
        save_picture(pillow("predict").fromarray(pixels[..., 0] if source.channels == 1 else pixels), picture)
        files.append(str(picture))
    return replace(
        item,
        files=(*item.files, *files),
        scores_file=str(file),
        image_file=None if picture is None else str(picture),
    )
