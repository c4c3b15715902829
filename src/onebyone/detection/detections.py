"""Objects found in an image, and the formats they are saved in."""

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

from onebyone.atomic_files import write_text
from onebyone.errors import BadInput
from onebyone.records import Readable, html_result, html_table, table

if TYPE_CHECKING:
    from PIL import Image

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf")
_HEADERS = ("class", "score", "x1", "y1", "x2", "y2")
_SHOWN = 20


@dataclass(frozen=True)
class Detections(Readable):
    """Boxes, best first.

    `boxes` (K, 4) float32 are x1, y1, x2, y2 in image pixels, from the first pixel to past the last;
    `scores` (K,) float32; `labels` (K,) int64, indices into `classes`; `image_size` (height, width).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    image_size: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of each box."""
        return tuple(self.classes[label] for label in self.labels)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dictionary a box: class, label, score, x1, y1, x2, y2."""
        return [
            {"class": name, "label": label, "score": score, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
            for name, label, score, (x1, y1, x2, y2) in zip(
                self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """COCO's results list; lists of several images are joined by `+`. A category's id is its index in `classes`.

        `pycocotools.COCO.loadRes` reads it unless it is empty; `onebyone.detect.coco_results` reads both.
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

    def to_geojson(self) -> dict[str, Any]:
        """A GeoJSON FeatureCollection of boxes in image pixels (x right, y down), as QuPath reads them."""
        return {"type": "FeatureCollection", "features": [_feature(row) for row in self.to_dicts()]}

    def to_csv(self) -> str:
        """A table with one row a box: class, label, score, x1, y1, x2, y2."""
        text = io.StringIO()
        writer = csv.DictWriter(
            text, ["class", "label", "score", "x1", "y1", "x2", "y2"], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(self.to_dicts())
        return text.getvalue()

    def draw(
        self, image: Any, path: str | os.PathLike[str] | None = None, *, page: int | None = None
    ) -> Image.Image:
        """The image with the boxes, their classes and scores drawn on it; saved to `path` where given.

        `image` is a path, a Pillow image, or an array (H, W) or (H, W, 3) of this size; `page` the page of a
        file with several, from 0.
        """
        from onebyone.detection.overlay import draw, save

        drawn = draw(self, image, page)
        if path is not None:
            save(drawn, path)
        return drawn

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        image: Any = None,
        image_id: int = 1,
        page: int | None = None,
    ) -> None:
        """Write by the name's ending: `.json` (COCO results), `.geojson`, `.csv`, or a picture (`.png`, …).

        A picture is drawn on `image`, or on its `page`; `image_id` is for COCO. The file is written whole or not
        at all.

        Raises
        ------
        BadInput
            for another ending, a picture without `image`, or a path that cannot be written.
        """
        ending = Path(path).suffix.lower()
        if ending == ".json":
            write_text(path, json.dumps(self.to_coco(image_id), indent=1) + "\n")
        elif ending == ".geojson":
            write_text(path, json.dumps(self.to_geojson(), indent=1) + "\n")
        elif ending == ".csv":
            write_text(path, self.to_csv())
        elif ending in _PICTURES:
            if image is None:
                raise BadInput(f"cannot save {path}: a drawing needs the image (image=...)")
            self.draw(image, path, page=page)
        else:
            known = ", ".join((".json", ".geojson", ".csv", *_PICTURES))
            raise BadInput(f"cannot save detections as {path}: expected a name that ends in one of {known}")

    def __str__(self) -> str:
        return "\n".join([self._headline(), table(_HEADERS, self._rows()), *self._more()])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return html_result(self._headline(), html_table(_HEADERS, self._rows()), notes=self._more())

    def _headline(self) -> str:
        return f"{len(self)} detections in an image of {'×'.join(map(str, self.image_size))} pixels"

    def _rows(self) -> list[list[str]]:
        return [
            [row["class"], f"{row['score']:.3f}", *(f"{row[k]:.1f}" for k in _HEADERS[2:])]
            for row in self.to_dicts()[:_SHOWN]
        ]

    def _more(self) -> list[str]:
        return [f"… and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []


def _feature(row: dict[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = (row[k] for k in ("x1", "y1", "x2", "y2"))
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": row["class"]},
            "class": row["class"],
            "label": row["label"],
            "score": row["score"],
            "measurements": {"score": row["score"]},
        },
    }
