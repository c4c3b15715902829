"""Prediction in one step: scan every image, detect objects, and write boxes and pictures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from onebyone.atomic_files import write_text
from onebyone.dense import scan
from onebyone.dense.images import open_image
from onebyone.dense.network import Dense
from onebyone.dense.score_map import ScoreMap
from onebyone.detection import detect
from onebyone.detection.detections import Detections
from onebyone.detection.extraction import foreground
from onebyone.detection.overlay import save_picture
from onebyone.errors import BadInput
from onebyone.prediction.inputs import output_names
from onebyone.prediction.result import Prediction, Predictions
from onebyone.records import few
from onebyone.stores.channels import matched
from onebyone.stores.heat_map import heat_map
from onebyone.stores.pictures import to_rgb_picture
from onebyone.stores.placement import Placement, placement_of
from onebyone.stores.source import ArraySource, whole_region

#: Pictures are drawn for images of at most as many pixels, because they are drawn in memory.
MAX_DRAWN_PIXELS = 10**8

Report = Callable[[int, int], object]


def predict_images(
    dense: Dense,
    images: Sequence[Any],
    *,
    folder: Path | None,
    detection: dict[str, Any],
    scanning: dict[str, Any],
    per_class: bool | None = None,
    report: Report | None = None,
) -> Predictions:
    """Scan and detect in each image. With `folder`, its results are written before the next image starts.

    Files: `NAME.json` (COCO results), `NAME-heat.png` (the probability of the most likely class), `NAME-detections.png`
    (the same with the boxes), and in the end `predictions.json`, one COCO file for all images.

    `per_class` is that of `detect`; None lets boxes of different classes suppress each other if classes are exclusive.

    Raises
    ------
    BadInput
        if an image cannot be read or scanned. Results of the images before it are kept.
    """
    if not images:
        raise BadInput("images: is empty; expected at least one image")
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
        scores = scan(dense, source, **options)
        independent = _independent(scores) if per_class is None else per_class
        detections = detect(scores, **detection, per_class=independent)
        classes = scores.classes
        item = Prediction(
            image=str(image) if isinstance(image, str | Path) else name,
            detections=detections,
            windows=scores.windows,
            seconds=time.perf_counter() - start,
            scores=scores if folder is None else None,
        )
        if folder is not None:
            item = _write(item, pixels, scores, folder / name, detection.get("background", ()))
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
    if prod(source.size) > MAX_DRAWN_PIXELS:
        return None, image, dict(scanning)
    held = HeldImage(np.ascontiguousarray(source.read(whole_region(source))), placement_of(source))
    is_file = isinstance(image, str | os.PathLike) and Path(image).suffix.lower() != ".npy"
    is_picture = is_file or hasattr(image, "getbands")  # arrays must have the network's channels
    return held.values, matched(held, channels) if is_picture else held, options


def _independent(scores: ScoreMap) -> bool:
    """Whether a window may belong to several classes at once; exclusive classes suppress each other's boxes."""
    return scores.kind is not None and scores.kind.classes == "multi-label"


def _write(
    item: Prediction, image: Any, scores: ScoreMap, stem: Path, background: Sequence[str]
) -> Prediction:
    boxes = stem.with_name(stem.name + ".json")
    item.detections.save(boxes)
    if prod(scores.image_size) > MAX_DRAWN_PIXELS:
        note = f"{item.image}: pictures are drawn up to {MAX_DRAWN_PIXELS:,} pixels; it has {prod(scores.image_size):,}"
        return replace(item, files=(str(boxes),), notes=(note,))
    heat, drawn = (stem.with_name(stem.name + suffix) for suffix in ("-heat.png", "-detections.png"))
    picture = heat_picture(image, scores, background)
    save_picture(picture, heat)
    save_picture(_with_boxes(picture, item.detections), drawn)
    return replace(item, files=(str(boxes), str(heat), str(drawn)))


def heat_picture(image: Any, scores: ScoreMap, background: Sequence[str | int] = ()) -> Any:
    """The image with, for each position, the probability of the most likely class that is not background."""
    classes = foreground(scores, background)
    picture = to_rgb_picture(image, "drawing a heat map")
    values = np.clip(scores.probabilities()[classes].max(axis=0), 0, 1)
    names = [scores.classes[k] for k in classes]
    what = names[0] if len(names) == 1 else f"the most likely of {few(names)}"
    return heat_map(picture, values, Placement.identity().of_map(scores.geometry), f"probability of {what}")


def _with_boxes(picture: Any, detections: Detections) -> Any:
    """The heat map with its legend and the boxes drawn on the part that is the image."""
    height, width = detections.image_size
    drawn = detections.draw(picture.crop((0, 0, width, height)))
    result = picture.copy()
    result.paste(drawn, (0, 0))
    return result
