"""A scan as the viewer shows it: the score map over its image, the detections, and the window under the pointer."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.atomic_files import write_text
from onebyone.dense.preprocessing import normalise
from onebyone.dense.score_map import ScoreMap
from onebyone.detection import detect
from onebyone.detection.detections import Detections
from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind, assumed_kind
from onebyone.stores.heat_map import RAMPS, ramp_colours
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span
from onebyone.viewing.image_tiles import ImageTiles
from onebyone.viewing.tile_grid import TileGrid

MAX_BOXES = 20_000
"""Boxes that are sent to the page, those of the highest scores; the count is that of all."""
_MAX_SCORES = 2**24  # scores that are read for one tile; beyond that every n-th position
STATES = ("accepted", "rejected")


class ScanView:
    """A score map, its image (None shows the map alone) and its network (None compares no crops).

    Raises
    ------
    BadInput
        if the image does not fit the map, or the map has not two axes.
    """

    def __init__(self, scores: ScoreMap, path: Path, image: Any = None, dense: Any = None) -> None:
        if len(scores.positions) != 2:
            raise BadInput(f"the score map has {len(scores.positions)} axes; the viewer shows two")
        self.scores, self.path, self.dense = scores, path, dense
        height, width = scores.image_size
        self.grid = TileGrid((height, width))
        self.image = None if image is None else ImageTiles(image, (height, width))
        self.kind = scores.kind or self._assumed_kind()
        self._lock = threading.Lock()
        self.detections = lru_cache(maxsize=32)(self._detections)

    def facts(self) -> dict[str, Any]:
        """What the page needs to know at first."""
        return {
            "name": self.path.name,
            "size": list(self.grid.size),
            "max_level": self.grid.max_level,
            "has_image": self.image is not None,
            "has_network": self.dense is not None,
            "classes": list(self.scores.classes),
            "background": list(self.scores.labels.background),
            "window": list(self.scores.geometry.window),
            "stride": list(self.scores.geometry.stride),
            "positions": list(self.scores.positions),
            "exact": self.scores.geometry.exact,
            "scores": self.kind.describe(len(self.scores.classes)),
            "colour_maps": list(RAMPS),
        }

    def map_tile(self, label: int, level: int, column: int, row: int, colours: str) -> NDArray[np.uint8]:
        """One tile of a class's probabilities as RGBA (h, w, 4); the opacity of a pixel is its probability."""
        if not 0 <= label < len(self.scores.classes):
            raise BadInput(f"class={label}: the map has {len(self.scores.classes)} classes")
        if colours not in RAMPS:
            raise BadInput(f"colours={colours!r}: expected one of {', '.join(RAMPS)}")
        region, step = self.grid.region(level, column, row), self.grid.step(level)
        shape = self.grid.pixels(level, region)
        placement = Placement.identity().of_map(self.scores.geometry)
        indices, spans = [], []
        for axis in (0, 1):
            centres = region[axis].start + (np.arange(shape[axis]) + 0.5) * step
            index = np.floor((centres - placement.offset[axis]) / placement.scale[axis]).astype(int)
            indices.append(index)
            inside = index[(index >= 0) & (index < self.scores.positions[axis])]
            if not len(inside):
                return np.zeros((*shape, 4), np.uint8)
            spans.append(Span(int(inside[0]), int(inside[-1]) + 1))
        values, skips = self._probabilities(label, spans)
        tile = np.zeros((*shape, 4), np.uint8)
        chosen, covered = [], []
        for axis in (0, 1):
            inside = (indices[axis] >= 0) & (indices[axis] < self.scores.positions[axis])
            covered.append(np.flatnonzero(inside))
            local = (indices[axis][inside] - spans[axis].start) // skips[axis]
            chosen.append(np.minimum(local, values.shape[axis] - 1))
        shown = values[np.ix_(*chosen)]
        tile[np.ix_(*covered)] = np.concatenate(
            [np.rint(ramp_colours(shown, colours)), np.rint(255 * shown)[..., None]], axis=-1
        ).astype(np.uint8)
        return tile

    def _probabilities(self, label: int, spans: list[Span]) -> tuple[NDArray[np.floating], list[int]]:
        """Probabilities of a class in a region of the map, and the step between positions per axis."""
        count = len(self.scores.classes) * len(spans[0]) * len(spans[1])
        skip = max(1, int(np.ceil(np.sqrt(count / _MAX_SCORES))))
        with self._lock:
            block = self.scores.scores[:, *(slice(s.start, s.stop, skip) for s in spans)]
        values = self.kind.probabilities(np.asarray(block))[label]
        return np.clip(np.nan_to_num(values), 0, 1), [skip, skip]

    def _detections(self, threshold: float, iou: float) -> Detections:
        with self._lock:
            return detect(replace(self.scores, kind=self.kind), threshold=threshold, iou=iou)

    def boxes(self, threshold: float, iou: float) -> dict[str, Any]:
        """The detections as the page draws them, and how many there are per class."""
        detections = self.detections(threshold, iou)
        return {
            "total": len(detections),
            "counts": dict(Counter(detections.names).most_common()),
            "boxes": [
                [*(round(v, 2) for v in box), label, round(score, 4)]
                for box, label, score in zip(
                    detections.boxes[:MAX_BOXES].tolist(),
                    detections.labels[:MAX_BOXES].tolist(),
                    detections.scores[:MAX_BOXES].tolist(),
                    strict=True,
                )
            ],
        }

    def window(self, x: float, y: float, compare: bool) -> dict[str, Any]:
        """The window whose centre is nearest to a pixel: its rectangle, its scores, and those of the crop alone."""
        placement = Placement.identity().of_map(self.scores.geometry)
        position = [
            int(np.clip(np.floor((v - o) / s), 0, n - 1))
            for v, o, s, n in zip(
                (y, x), placement.offset, placement.scale, self.scores.positions, strict=True
            )
        ]
        rows, columns = self.scores.window_at(position)
        with self._lock:
            scores = np.asarray(self.scores.scores[:, position[0], position[1]], np.float32)
        result: dict[str, Any] = {
            "position": position,
            "box": [columns[0], rows[0], columns[1], rows[1]],
            "scores": scores.tolist(),
            "probabilities": self.kind.probabilities(scores.reshape(-1, 1, 1)).ravel().tolist(),
        }
        if compare:
            result["crop"] = self._crop(rows, columns, scores)
        return result

    def _crop(
        self, rows: tuple[int, int], columns: tuple[int, int], scores: NDArray[np.float32]
    ) -> dict[str, Any]:
        """The network's scores of a window that is cropped, and how far the map's are from them."""
        if self.dense is None or self.image is None:
            return {"reason": "start the viewer with --image and --model to compare with the crop"}
        height, width = self.grid.size
        if min(rows[0], columns[0]) < 0 or rows[1] > height or columns[1] > width:
            return {"reason": "the window extends beyond the image"}
        pixels = self.image.crop((Span(*rows), Span(*columns)))
        batch = torch.from_numpy(normalise(pixels, self.scores.labels))[None]
        with torch.inference_mode():
            output = self.dense.model(batch)
        first = output[0] if isinstance(output, tuple) else output
        crop = first.reshape(-1).float().numpy()
        if crop.shape != scores.shape:
            return {"reason": f"the network has {len(crop)} outputs; the map has {len(scores)} classes"}
        return {"scores": crop.tolist(), "max_difference": float(np.abs(crop - scores).max())}

    def save_review(
        self, threshold: float, iou: float, states: Mapping[str, str], suffix: str
    ) -> dict[str, Any]:
        """Write the detections that were not rejected, beside the scan; `states` are by number of the detection."""
        detections = self.detections(threshold, iou)
        for number, state in states.items():
            if not number.isdecimal() or int(number) >= len(detections) or state not in STATES:
                raise BadInput(f"states: {number!r}: {state!r} is not the state of a detection")
        if suffix not in (".json", ".geojson"):
            raise BadInput(f"suffix={suffix!r}: expected .json (COCO) or .geojson")
        kept = [k for k in range(len(detections)) if states.get(str(k)) != "rejected"]
        reviewed = replace(
            detections,
            boxes=detections.boxes[kept],
            scores=detections.scores[kept],
            labels=detections.labels[kept],
        )
        path = self.path.with_name(f"{self.path.stem}-reviewed{suffix}")
        data = reviewed.to_coco() if suffix == ".json" else reviewed.to_geojson()
        write_text(path, json.dumps(data, indent=1) + "\n")
        return {"file": path.name, "kept": len(kept), "rejected": len(detections) - len(kept)}

    def _assumed_kind(self) -> ScoreKind:
        sample = np.asarray(
            self.scores.scores[:, *(slice(0, n, max(1, n // 256)) for n in self.scores.positions)]
        )
        return assumed_kind(sample)[0]
