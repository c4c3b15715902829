"""Detections: the boxes, classes and scores of one image, and the file formats they are saved in."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path, write_text
from onebyone.detection.overlay import draw_boxes, save_picture
from onebyone.errors import BadInput, MissingExtra
from onebyone.records import Readable, by, html_result, html_table, table
from onebyone.stores.placement import Placement

if TYPE_CHECKING:
    from PIL import Image

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf")
_HEADERS = ("class", "score", "x1", "y1", "x2", "y2")
_FIELDS = ("class", "label", "score", "x1", "y1", "x2", "y2")
_MAX_ROWS = 20  # rows that `print` shows


@dataclass(frozen=True)
class Detections(Readable):
    """Boxes with classes and scores, highest score first.

    `boxes` (K, 4) float32 are x1, y1, x2, y2 in pixels of the image that was scanned: x1 is the box's first column and
    x2 the column after its last one, and likewise for rows. `scores` (K,) float32 are probabilities, `labels` (K,)
    int64 indices into `classes`, and `image_size` is (height, width). `placement` relates these pixels to those of the
    image's full resolution and to the world; None where it is not known.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    image_size: tuple[int, ...]
    placement: Placement | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of each box."""
        return tuple(self.classes[label] for label in self.labels)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dictionary per box: class, label, score, x1, y1, x2, y2."""
        return [
            {"class": name, "label": label, "score": score, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
            for name, label, score, (x1, y1, x2, y2) in zip(
                self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """The results list of COCO. A category's id is its index in `classes`.

        Join the lists of several images with `+`. `pycocotools.COCO.loadRes` fails on an empty list;
        `onebyone.detection.coco_results` accepts one.
        """
        return [
            {
                "image_id": image_id,
                "category_id": row["label"],
                "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]],
                "score": row["score"],
            }
            for row in self.to_dicts()
        ]

    def to_geojson(self, placement: Placement | None = None) -> dict[str, Any]:
        """A GeoJSON FeatureCollection of boxes, as QuPath imports it.

        They are in the coordinates of the image's reference system, which "crs" names (WKT); where it has none, in
        pixels of its full resolution (x right, y down), also where another level was scanned. `placement` is used in
        place of the detections' own; where both are None, boxes are in pixels of the image that was scanned.
        """
        placement = placement or self.placement
        collection = {
            "type": "FeatureCollection",
            "features": [_feature(row, placement) for row in self.to_dicts()],
        }
        if placement is not None and placement.crs is not None:
            return {**collection, "crs": {"type": "name", "properties": {"name": placement.crs}}}
        return collection

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table of `to_csv` as Parquet, atomically: class, label, score, x1, y1, x2, y2.

        Raises MissingExtra where pyarrow is not installed, and BadInput where the file cannot be written.
        """
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise MissingExtra("pyarrow", "parquet", "writing Parquet") from error
        numbers = {name: self.boxes[:, k] for k, name in enumerate(_FIELDS[3:])}
        columns = {
            "class": pyarrow.array(self.names, pyarrow.string()),
            "label": self.labels,
            "score": self.scores,
            **numbers,
        }
        with atomic_path(path) as temporary:
            parquet.write_table(pyarrow.table(columns), temporary)

    def to_csv(self) -> str:
        """A table with one row per box: class, label, score, x1, y1, x2, y2."""
        text = io.StringIO()
        writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_dicts())
        return text.getvalue()

    def draw(
        self, image: Any, path: str | os.PathLike[str] | None = None, *, page: int | None = None
    ) -> Image.Image:
        """A copy of the image with the boxes, their classes and scores drawn on it; saved to `path` where given.

        `image` is a path, a Pillow image, or an array (H, W) or (H, W, 3) of this size; `page` is the page, from 0, of
        a file with several.

        Raises
        ------
        BadInput
            where the image cannot be read or has another size, or `path` cannot be written.
        """
        captions = [f"{name} ({score:.2f})" for name, score in zip(self.names, self.scores, strict=True)]
        drawing = draw_boxes(image, self.boxes, self.labels, captions, self.image_size, page)
        if path is not None:
            save_picture(drawing, path)
        return drawing

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        image: Any = None,
        image_id: int = 1,
        page: int | None = None,
        placement: Placement | None = None,
    ) -> None:
        """Write a file by its suffix: `.json` (COCO results), `.geojson`, `.csv`, `.parquet`, or a picture (`.png`, …).

        A picture is drawn on `image`, or on its `page`; `image_id` is for COCO, `placement` for GeoJSON (see
        `to_geojson`). The file is written atomically.

        Raises
        ------
        BadInput
            for another suffix, a picture without `image`, or a path that cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            write_text(path, json.dumps(self.to_coco(image_id), indent=1) + "\n")
        elif suffix == ".geojson":
            write_text(path, json.dumps(self.to_geojson(placement), indent=1) + "\n")
        elif suffix == ".csv":
            write_text(path, self.to_csv())
        elif suffix == ".parquet":
            self.to_parquet(path)
        elif suffix in _PICTURE_SUFFIXES:
            if image is None:
                raise BadInput(f"cannot save {path}: a drawing needs the image (image=...)")
            self.draw(image, path, page=page)
        else:
            known = ", ".join((".json", ".geojson", ".csv", ".parquet", *_PICTURE_SUFFIXES))
            raise BadInput(
                f"cannot save detections as {path}: expected a file name that ends in one of {known}"
            )

    def __str__(self) -> str:
        return "\n".join([self._headline(), table(_HEADERS, self._rows()), *self._more()])

    def _repr_html_(self) -> str:
        """The text of `print` as HTML, for notebooks."""
        return html_result(self._headline(), html_table(_HEADERS, self._rows()), notes=self._more())

    def _headline(self) -> str:
        return f"{len(self)} detections in an image of {by(self.image_size)} pixels"

    def _rows(self) -> list[list[str]]:
        return [
            [row["class"], f"{row['score']:.3f}", *(f"{row[k]:.1f}" for k in _HEADERS[2:])]
            for row in self.to_dicts()[:_MAX_ROWS]
        ]

    def _more(self) -> list[str]:
        return [f"… and {len(self) - _MAX_ROWS} more"] if len(self) > _MAX_ROWS else []


def _feature(row: dict[str, Any], placement: Placement | None) -> dict[str, Any]:
    x1, y1, x2, y2 = (row[k] for k in ("x1", "y1", "x2", "y2"))
    corners: list[tuple[float, float]] = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    if placement is not None:
        corners = [placement.to_world((y, x)) for x, y in corners]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[list(corner) for corner in corners]]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": row["class"]},
            "class": row["class"],
            "label": row["label"],
            "score": row["score"],
            "measurements": {"score": row["score"]},
        },
    }
