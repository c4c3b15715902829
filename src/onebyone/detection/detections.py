"""Detections: the boxes, classes and scores of one image, and the file formats they are saved in."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path, write_text
from onebyone.dense.score_map import ScoreMap
from onebyone.detection.detection_picture import blank, picture_size, reduced, with_heat
from onebyone.detection.notebook_figure import boxes_figure
from onebyone.detection.overlay import draw_boxes, save_picture
from onebyone.detection.rejection import Rejection
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
    image's full resolution and to the world; None where it is not known. `rejection` is the one they were found with,
    which heat maps below them show too.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    image_size: tuple[int, ...]
    placement: Placement | None = None
    rejection: Rejection | None = None

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

    def resized(self, size: tuple[int, int]) -> Detections:
        """The same detections in pixels of the image resized to (height, width)."""
        down, right = (n / full for n, full in zip(size, self.image_size, strict=True))
        boxes = (self.boxes * [right, down, right, down]).astype(np.float32)
        place = self.placement and self.placement.part((0.0, 0.0), (1 / down, 1 / right))
        return replace(self, boxes=boxes, image_size=tuple(size), placement=place)

    def draw(
        self,
        image: Any,
        path: str | os.PathLike[str] | None = None,
        *,
        page: int | None = None,
        heat: Sequence[ScoreMap] = (),
        background: Sequence[str | int] = (),
        thumbnail: int | None = None,
    ) -> Image.Image:
        """A picture of the image with the boxes, their classes and scores drawn on it; saved to `path` where given.

        Parameters
        ----------
        image
            a path, a Pillow image, or an array (H, W) or (H, W, 3) of this size, or of a file with a resolution level
            of this size. It is read by region. None is black, for a heat map alone.
        page
            the page, from 0, of a file with several.
        heat
            score maps of the image: the probability of the most likely class is drawn over it, below the boxes, and a
            legend below the picture. `background` are classes to leave out besides those of the labels. Windows that
            were rejected have no colour.
        thumbnail
            the longest side of the picture, in pixels; None draws the image at its size, or with 4096 where it has more
            than 10^8 pixels.

        Raises
        ------
        BadInput
            where the image cannot be read or has another size, or `path` cannot be written.
        """
        size = picture_size(self.image_size, thumbnail)
        picture = blank(size) if image is None else reduced(image, self.image_size, size, page=page)
        result = with_heat(picture, heat, background, self.rejection) if heat else picture
        drawing = result.crop((0, 0, size[1], size[0]))  # without the legend
        captions = [f"{name} ({score:.2f})" for name, score in zip(self.names, self.scores, strict=True)]
        draw_boxes(drawing, self.resized(size).boxes, self.labels, captions)
        result.paste(drawing)
        if path is not None:
            save_picture(result, path)
        return result

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        image: Any = None,
        image_id: int = 1,
        page: int | None = None,
        placement: Placement | None = None,
        heat: Sequence[ScoreMap] = (),
        background: Sequence[str | int] = (),
        thumbnail: int | None = None,
    ) -> None:
        """Write a file by its suffix: `.json` (COCO results), `.geojson`, `.csv`, `.parquet`, or a picture (`.png`, …).

        A picture is drawn on `image`, or on its `page`, with `heat`, `background` and `thumbnail` as in `draw`;
        `image_id` is for COCO, `placement` for GeoJSON (see `to_geojson`). The file is written atomically.

        Raises
        ------
        BadInput
            for another suffix, a picture without `image` and `heat`, or a path that cannot be written or is `image`.
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
            if image is None and not heat:
                raise BadInput(
                    f"cannot save {path}: a drawing needs the image (image=...) or score maps (heat=...)"
                )
            if isinstance(image, str | os.PathLike) and os.path.realpath(image) == os.path.realpath(path):
                raise BadInput(f"cannot save {path}: it is the image to draw on; expected another name")
            self.draw(image, path, page=page, heat=heat, background=background, thumbnail=thumbnail)
        else:
            known = ", ".join((".json", ".geojson", ".csv", ".parquet", *_PICTURE_SUFFIXES))
            raise BadInput(
                f"cannot save detections as {path}: expected a file name that ends in one of {known}"
            )

    def __str__(self) -> str:
        return "\n".join([self._headline(), table(_HEADERS, self._rows()), *self._more()])

    def _repr_html_(self) -> str:
        """A figure of the boxes, and the text of `print` as HTML, for notebooks."""
        figure = boxes_figure(self.boxes, self.labels, self.classes, self.image_size) if len(self) else ""
        return html_result(self._headline(), figure, html_table(_HEADERS, self._rows()), notes=self._more())

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
