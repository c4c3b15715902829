"""What `predict` returns: the detections of each image, and the files that were written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from onebyone.dense.score_map import ScoreMap
from onebyone.detection.detections import Detections
from onebyone.laws.geometry import Geometry
from onebyone.records import Labels, Readable, by, html_result, html_table, table

HEADERS = ("image", "pixels", "windows", "objects", "classes", "seconds")


@dataclass(frozen=True)
class Prediction(Readable):
    """The result for one image.

    `image` is its file, or a number for an image in memory. `maps` are the score maps, one for each scale; they are
    not kept where results are written to files. `files` are the files that were written; `scores_file` and
    `image_file` are those of them that the viewer shows: the map of the first scale, and the pixels that were scanned.
    """

    image: str
    detections: Detections
    windows: int
    seconds: float
    maps: tuple[ScoreMap, ...] = ()
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores_file: str | None = None
    image_file: str | None = None

    @property
    def scores(self) -> ScoreMap | None:
        """The score map of the first scale; None where maps were not kept."""
        return self.maps[0] if self.maps else None

    def counts(self) -> tuple[tuple[str, int], ...]:
        """How many objects of each class there are, the most frequent first."""
        return tuple(Counter(self.detections.names).most_common())

    def row(self) -> tuple[str, ...]:
        """The cells under `HEADERS`."""
        classes = ", ".join(f"{count} {name}" for name, count in self.counts())
        size = by(self.detections.image_size)
        return (
            self.image,
            size,
            f"{self.windows:,}",
            str(len(self.detections)),
            classes,
            f"{self.seconds:.2f}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "image": self.image,
            "image_size": list(self.detections.image_size),
            "windows": self.windows,
            "seconds": self.seconds,
            "objects": self.detections.to_dicts(),
            "files": list(self.files),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return f"{self.image}: {self.detections}"

    def _repr_html_(self) -> str:
        return html_result(self.image, html_table(HEADERS, [self.row()]), self.detections._repr_html_())


@dataclass(frozen=True)
class Predictions(Readable, Sequence[Prediction]):
    """The results of all images, in the order given; `geometry` and `labels` are those of the any-size network."""

    items: tuple[Prediction, ...]
    geometry: Geometry
    labels: Labels
    classes: tuple[str, ...]

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.items)

    def rows(self) -> list[tuple[str, ...]]:
        """One row per image, under `HEADERS`."""
        return [item.row() for item in self.items]

    def to_coco(self) -> dict[str, Any]:
        """One COCO file for all images: `images` numbered from 1, `categories`, and `annotations` with scores."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, item in enumerate(self.items, 1):
            height, width = item.detections.image_size
            images.append({"id": number, "file_name": item.image, "height": height, "width": width})
            annotations += [
                {"id": len(annotations) + k, **row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                for k, row in enumerate(item.detections.to_coco(number), 1)
            ]
        categories = [{"id": k, "name": name} for k, name in enumerate(self.classes)]
        return {"images": images, "categories": categories, "annotations": annotations}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "geometry": self.geometry.to_dict(),
            "labels": self.labels.to_dict(),
            "preprocessing": self.labels.preprocessing(),
            "images": [item.to_dict() for item in self.items],
        }

    def __str__(self) -> str:
        return table(HEADERS, self.rows())

    def _repr_html_(self) -> str:
        head = f"{sum(len(item.detections) for item in self.items)} objects in {len(self.items)} images"
        parts = [html_table(HEADERS, self.rows())]
        if len(self.items) == 1:
            parts.append(self.items[0].detections._repr_html_())
        return html_result(head, *parts)
