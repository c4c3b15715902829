"""Ground truth and detections in COCO's format, checked, with the detections in the ids of the ground truth.

Detections come in two forms. A list of COCO results has the ids of the ground truth. A COCO file with images and
categories, as `onebyone predict` writes it, has ids of its own: its images are matched by file name and its classes by
name, because equal ids of two files say nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput
from onebyone.records import few

MAX_BYTES = 2**31
_Entry = dict[str, Any]


@dataclass(frozen=True)
class GroundTruth:
    """Images and annotations by their ids; annotations are numbered from 1, because pycocotools takes 0 for no match.

    `names` are the names of the categories by id.
    """

    images: dict[Any, _Entry]
    names: dict[Any, str]
    annotations: list[_Entry]


@dataclass(frozen=True)
class CocoResults:
    """Detections (image_id, category_id, bbox, score) in the ids of the ground truth; notes on what was left out."""

    rows: list[_Entry]
    notes: tuple[str, ...]


def read_json(source: Any, name: str) -> Any:
    """The data of a JSON file; `source` itself where it is not a path. Raises BadInput where it cannot be read."""
    if not isinstance(source, str | os.PathLike):
        return source
    file = require_file(source)
    if file.stat().st_size > MAX_BYTES:
        raise BadInput(f"{name}: {file} has more than {MAX_BYTES:,} bytes")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name}: {file} is not valid JSON: {str(error).splitlines()[0]}") from error


def ground_truth(data: Any) -> GroundTruth:
    """The ground truth in a COCO data set. Raises BadInput, naming the entry, where it is not one."""
    where = "ground_truth"
    images, categories, annotations = _parts(data, where)
    by_id = _by_id(images, f"{where}: images")
    names = {key: str(c.get("name", key)) for key, c in _by_id(categories, f"{where}: categories").items()}
    boxes = []
    for number, entry in enumerate(annotations):
        here = f"{where}: annotations[{number}]"
        image, category, box = _located(entry, here)
        if image not in by_id or category not in names:
            what = f"image_id={image!r}" if image not in by_id else f"category_id={category!r}"
            raise BadInput(f"{here} has {what}, which the file does not list")
        crowd = int(bool(entry.get("iscrowd", 0)))
        row = {"id": number + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        boxes.append({**row, "area": _number(entry.get("area", box[2] * box[3]), f"{here}: area")})
    if all(row["iscrowd"] for row in boxes):
        raise BadInput(f"{where}: has no boxes, so average precision is not defined")
    return GroundTruth(by_id, names, boxes)


def coco_rows(data: Any, truth: GroundTruth, classes: Sequence[str] | None = None) -> CocoResults:
    """Detections in the ids of the ground truth.

    `classes` are the names of the categories 0, 1, … of a list of results, as `onebyone detect` numbers them; None
    takes its category ids to be those of the ground truth.

    Raises
    ------
    BadInput
        where an entry is not a detection, or images or classes do not fit those of the ground truth.
    """
    where = "detections"
    image_ids: Mapping[Any, Any] = {key: key for key in truth.images}
    names: Mapping[Any, str] | None = None if classes is None else dict(enumerate(classes))
    if isinstance(data, Mapping):
        images, categories, rows = _parts(data, where)
        image_ids = _matched_images(_by_id(images, f"{where}: images"), truth)
        if classes is None:
            named = _by_id(categories, f"{where}: categories")
            names = {key: str(c.get("name", key)) for key, c in named.items()}
    elif isinstance(data, list):
        rows = data
    else:
        raise BadInput(
            f"{where}: expected a list of COCO results, or a COCO file with annotations and scores"
        )
    category_ids, extra = _matched_classes(names, truth)
    found: list[_Entry] = []
    left_out: Counter[str] = Counter()
    for number, entry in enumerate(rows):
        here = f"{where}[{number}]"
        image, category, box = _located(entry, here)
        score = _number(entry.get("score"), f"{here}: score")
        if image not in image_ids:
            raise BadInput(f"{here} has image_id={image!r}, which is not an image of the ground truth")
        if category in extra:
            left_out[extra[category]] += 1
        elif category not in category_ids:
            known = few([repr(key) for key in category_ids], 10)
            raise BadInput(f"{here} has category_id={category!r}; expected one of {known}")
        else:
            found.append(
                {
                    "image_id": image_ids[image],
                    "category_id": category_ids[category],
                    "bbox": box,
                    "score": score,
                }
            )
    notes = [
        f"{sum(left_out.values())} detections of classes that the ground truth does not have were left out: "
        f"{few(sorted(left_out))}"
    ]
    return CocoResults(found, tuple(notes if left_out else ()))


def _matched_classes(
    names: Mapping[Any, str] | None, truth: GroundTruth
) -> tuple[dict[Any, Any], dict[Any, str]]:
    """The ids in the ground truth by the ids of the detections, and the names of the classes that it does not have."""
    if names is None:
        return {key: key for key in truth.names}, {}
    for described, values in (("ground_truth", truth.names), ("detections", names)):
        twice = [name for name, count in Counter(values.values()).items() if count > 1]
        if twice:
            raise BadInput(
                f"{described}: two categories are called {twice[0]!r}; classes are matched by name"
            )
    ids = {name: key for key, name in truth.names.items()}
    matched = {key: ids[name] for key, name in names.items() if name in ids}
    if not matched:
        raise BadInput(
            f"no class of the detections ({few(list(names.values()))}) is one of the ground truth ({few(list(ids))})"
        )
    return matched, {key: name for key, name in names.items() if name not in ids}


def _matched_images(images: Mapping[Any, _Entry], truth: GroundTruth) -> dict[Any, Any]:
    """The ids in the ground truth by the ids of the detections: by file name; a single image need not state one."""
    if len(images) == len(truth.images) == 1 and not next(iter(truth.images.values())).get("file_name"):
        pairs = {key: next(iter(truth.images)) for key in images}
    else:
        full = _by_name(truth, lambda name: name)
        short = _by_name(truth, lambda name: PurePath(name).name)
        pairs = {}
        for key, image in images.items():
            name = str(image.get("file_name", ""))
            candidates = full.get(name) or short.get(PurePath(name).name, [])
            if len(candidates) != 1:
                count = "no image" if not candidates else f"{len(candidates)} images"
                raise BadInput(f"detections: {count} of the ground truth has the file name {name!r}")
            pairs[key] = candidates[0]
        if len(set(pairs.values())) != len(pairs):
            raise BadInput("detections: two images have the file name of one image of the ground truth")
    for key, other in pairs.items():
        sizes = [(i.get("height"), i.get("width")) for i in (images[key], truth.images[other])]
        if None not in (*sizes[0], *sizes[1]) and sizes[0] != sizes[1]:
            raise BadInput(
                f"detections: image {images[key].get('file_name', key)!r} has {sizes[0][0]}×{sizes[0][1]} pixels; "
                f"that of the ground truth has {sizes[1][0]}×{sizes[1][1]}"
            )
    return pairs


def _by_name(truth: GroundTruth, form: Any) -> dict[str, list[Any]]:
    names: dict[str, list[Any]] = {}
    for key, image in truth.images.items():
        if image.get("file_name"):
            names.setdefault(form(str(image["file_name"])), []).append(key)
    return names


def _parts(data: Any, where: str) -> tuple[list[Any], list[Any], list[Any]]:
    """The lists of images, categories and annotations."""
    lists = [data.get(name) if isinstance(data, Mapping) else None for name in _PARTS]
    images, categories, annotations = lists
    if not (isinstance(images, list) and isinstance(categories, list) and isinstance(annotations, list)):
        missing = next(name for name, value in zip(_PARTS, lists, strict=True) if not isinstance(value, list))
        raise BadInput(f"{where}: has no list {missing!r}; expected a COCO data set of images and boxes")
    return images, categories, annotations


_PARTS = ("images", "categories", "annotations")


def _by_id(entries: Iterable[Any], where: str) -> dict[Any, _Entry]:
    found: dict[Any, _Entry] = {}
    for number, entry in enumerate(entries):
        key = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(key, int | str):
            raise BadInput(f"{where}[{number}] has no id")
        if key in found:
            raise BadInput(f"{where}[{number}] has id={key!r}, as another one has")
        found[key] = entry
    return found


def _located(entry: Any, where: str) -> tuple[Any, Any, list[float]]:
    """The image, the category and the box (x, y, width, height) of an entry."""
    if not isinstance(entry, Mapping):
        raise BadInput(f"{where} is not an object with image_id, category_id and bbox")
    image, category, box = (entry.get(name) for name in ("image_id", "category_id", "bbox"))
    if not isinstance(image, int | str) or not isinstance(category, int | str):
        raise BadInput(f"{where} has no image_id and category_id")
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise BadInput(f"{where}: bbox={box!r}; expected four numbers: x, y, width, height")
    numbers = [_number(v, f"{where}: bbox") for v in box]
    if min(numbers[2:]) < 0:
        raise BadInput(f"{where}: bbox={box!r} has a negative width or height")
    return image, category, numbers


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{where}={value!r}; expected a finite number")
    return float(value)
