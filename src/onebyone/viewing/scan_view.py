"""A scan as the viewer shows it: the score map over its image, the detections, and the window under the pointer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.atomic_files import write_text
from onebyone.dense.preprocessing import normalise
from onebyone.dense.runner import TileRunner, TorchSettings, open_runner
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.unfinished import UnfinishedMap
from onebyone.detection import detect
from onebyone.detection.detections import Detections
from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind, assumed_kind
from onebyone.stores.heat_map import RAMPS, ramp_colours
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span
from onebyone.stores.unfinished_scores import is_unfinished
from onebyone.viewing.image_tiles import ImageTiles
from onebyone.viewing.tile_grid import TileGrid

MAX_BOXES = 20_000
"""Boxes that are sent to the page, those of the highest scores; the count is that of all."""
#: Scores and positions that are read for one tile; beyond that, a coarser level of the file, or every n-th position.
_MAX_SCORES, _MAX_POSITIONS = 2**24, 2**18
_SAMPLES = 64  # positions per axis from which the kind of scores is assumed
STATES = ("accepted", "rejected")


@dataclass(frozen=True)
class Progress:
    """Finished blocks of a scan, all of them, a number that changes with the scores, and whether it is the whole."""

    done: int
    total: int
    version: int
    finished: bool


class ScanView:
    """A score map, its image (None shows the map alone) and its network (None compares no crops).

    The image is shown as its file has it. Where the scan resized it, the map is placed over it by the ratio of the
    sizes, and crops are taken from the resized image, as in the scan.

    `path` is that of the score map, or the one that an unfinished scan will write. Methods may be called from several
    threads; each reads the scores on its own, and none waits for another one's computation.

    Raises
    ------
    BadInput
        if the image does not fit the map, or the map has not two axes.
    """

    def __init__(self, scores: ScoreMap, path: Path, image: Any = None, dense: Any = None) -> None:
        if len(scores.positions) != 2:
            raise BadInput(f"the score map has {len(scores.positions)} axes; the viewer shows two")
        self.path, self.dense = path, dense
        height, width = scores.full_size
        self.grid = TileGrid((height, width))
        self.image = (
            None
            if image is None
            else ImageTiles(image, (height, width), getattr(dense, "channels", None), scores.image_size)
        )
        self._refreshing, self._running = Lock(), Lock()
        self.scores = _with_kind(scores)
        self.progress = _progress(self.scores, 0)
        self._resources = ExitStack()  # until the process ends, as the view itself
        self._opened: TileRunner | None = None
        self._detections = lru_cache(maxsize=32)(self._detect)

    def refresh(self) -> Progress:
        """Take up what an unfinished scan has done since the last call, and its file once it is complete."""
        with self._refreshing:
            if not isinstance(self.scores, UnfinishedMap):
                return self.progress
            scores: ScoreMap = self.scores
            if not is_unfinished(self.path) and self.path.exists():
                scores = ScoreMap.load(self.path)
            self.scores = _with_kind(scores)
            self.progress = _progress(self.scores, self.progress.version)
            return self.progress

    def facts(self) -> dict[str, Any]:
        """What the page needs to know at first."""
        scores = self.scores
        return {
            "name": self.path.name,
            "size": list(self.grid.size),
            "min_level": self.grid.min_level,
            "max_level": self.grid.max_level,
            "has_image": self.image is not None,
            "has_network": self.dense is not None,
            "classes": list(scores.classes),
            "background": list(scores.labels.background),
            "window": _shown_pixels(scores, scores.geometry.window),
            "stride": _shown_pixels(scores, scores.geometry.stride),
            "positions": list(scores.positions),
            "exact": scores.geometry.exact,
            "scores": _kind(scores).describe(len(scores.classes)),
            "colour_maps": list(RAMPS),
            "progress": self.progress_facts(),
        }

    def progress_facts(self) -> dict[str, Any]:
        """How much of the scan is done, after a refresh."""
        return vars(self.refresh())

    def map_tile(self, label: int, level: int, column: int, row: int, colours: str) -> NDArray[np.uint8]:
        """One tile of a class's probabilities as RGBA (h, w, 4); the opacity of a pixel is its probability.

        A pixel that covers several positions shows the highest of their probabilities, so that small objects can be
        seen from afar. A tile of more than 2^18 positions is made of the means of 2×2, 4×4, … positions that the file
        has; of every n-th position where it has none. Positions that are not scanned yet are transparent.
        """
        scores = self.scores
        if not 0 <= label < len(scores.classes):
            raise BadInput(f"class={label}: the map has {len(scores.classes)} classes")
        if colours not in RAMPS:
            raise BadInput(f"colours={colours!r}: expected one of {', '.join(RAMPS)}")
        region, step = self.grid.region(level, column, row), self.grid.step(level)
        shape = self.grid.pixels(level, region)
        tile = np.zeros((*shape, 4), np.uint8)
        covered = [_covered(scores, axis, region[axis].start, shape[axis], step) for axis in (0, 1)]
        if not all(len(pixels) for pixels, _, _ in covered):
            return tile
        values, unit, skip = _probabilities(scores, label, [span for _, _, span in covered])
        for axis, (_, first, span) in enumerate(covered):
            local = np.minimum((first // unit - span.start // unit) // skip, values.shape[axis] - 1)
            values = np.fmax.reduceat(values, local, axis=axis)
        shown = np.clip(np.nan_to_num(values), 0, 1)
        tile[np.ix_(*(pixels for pixels, _, _ in covered))] = np.concatenate(
            [np.rint(ramp_colours(shown, colours)), np.rint(255 * shown)[..., None]], axis=-1
        ).astype(np.uint8)
        return tile

    def detections(self, threshold: float, iou: float) -> Detections:
        """The detections of what is scanned; the last ones are kept in memory."""
        return self._detections(self.progress.version, threshold, iou)

    def _detect(self, _version: int, threshold: float, iou: float) -> Detections:
        return detect(self.scores, threshold=threshold, iou=iou)

    def boxes(self, threshold: float, iou: float) -> dict[str, Any]:
        """The detections as the page draws them, and how many there are per class."""
        detections = self.detections(threshold, iou)
        return {
            "total": len(detections),
            "counts": dict(Counter(detections.names).most_common()),
            "boxes": [
                [*box, round(score, 4)]
                for box, score in zip(
                    _rows(detections, MAX_BOXES), detections.scores[:MAX_BOXES].tolist(), strict=True
                )
            ],
        }

    def window(self, x: float, y: float, compare: bool) -> dict[str, Any]:
        """The window whose centre is nearest to a pixel: its rectangle, its scores, and those of the crop alone.

        Scores are None where the window is not scanned yet.
        """
        scores = self.scores
        placement = _placement(scores).of_map(scores.geometry)
        position = [
            int(np.clip(np.floor((v - o) / s), 0, n - 1))
            for v, o, s, n in zip((y, x), placement.offset, placement.scale, scores.positions, strict=True)
        ]
        rows, columns = scores.window_at(position)
        first, last = (_shown_pixels(scores, corner) for corner in zip(rows, columns, strict=True))
        values = np.asarray(scores.scores[:, position[0], position[1]], np.float32)
        result: dict[str, Any] = {
            "position": position,
            "box": [*first[::-1], *last[::-1]],
            "scores": None,
            "probabilities": None,
        }
        if np.isfinite(values).all():
            probabilities = _kind(scores).probabilities(values.reshape(-1, 1, 1)).ravel()
            result |= {"scores": values.tolist(), "probabilities": probabilities.tolist()}
            if compare:
                result["crop"] = self._crop(scores, rows, columns, values)
        return result

    def _crop(
        self, scores: ScoreMap, rows: tuple[int, int], columns: tuple[int, int], values: NDArray[np.float32]
    ) -> dict[str, Any]:
        """The network's scores of a window that is cropped, and how far the map's are from them."""
        if self.dense is None or self.image is None:
            return {"reason": "start the viewer with --image and --model to compare with the crop"}
        height, width = scores.image_size
        if min(rows[0], columns[0]) < 0 or rows[1] > height or columns[1] > width:
            return {"reason": "the window extends beyond the image"}
        pixels = self.image.crop((Span(*rows), Span(*columns)))
        with self._running:
            crop = self._network(scores.output)(normalise(pixels, scores.labels)[None]).ravel()
        if crop.shape != values.shape:
            return {"reason": f"the network has {len(crop)} outputs; the map has {len(values)} classes"}
        probabilities = _kind(scores).probabilities(crop.reshape(-1, 1, 1)).ravel()
        difference = float(np.abs(crop - values).max())
        return {
            "scores": crop.tolist(),
            "probabilities": probabilities.tolist(),
            "max_difference": difference,
        }

    def _network(self, output: int | str) -> TileRunner:
        """The network as a scan runs it on the processor, for one of its outputs; opened at the first crop."""
        if self._opened is None:
            settings = TorchSettings(torch.device("cpu"), channels_last=False, output=output)
            self._opened = self._resources.enter_context(open_runner(self.dense.model, settings))
        return self._opened

    def save_review(
        self, threshold: float, iou: float, states: Sequence[Sequence[Any]], suffix: str
    ) -> dict[str, Any]:
        """Write the detections that were not rejected, beside the scan.

        `states` are rows (x1, y1, x2, y2, class, state), with boxes and classes as `boxes` gives them.
        """
        if suffix not in (".json", ".geojson"):
            raise BadInput(f"suffix={suffix!r}: expected .json (COCO) or .geojson")
        detections = self.detections(threshold, iou)
        judged = _judged(states)
        rows = [tuple(row) for row in _rows(detections)]
        if unknown := judged.keys() - set(rows):
            raise BadInput(
                f"states: {min(unknown)} is not a detection at threshold={threshold} and iou={iou}"
            )
        kept = [k for k, row in enumerate(rows) if judged.get(row) != "rejected"]
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


def _progress(scores: ScoreMap, before: int) -> Progress:
    """The progress of a map whose version was `before`."""
    if not isinstance(scores, UnfinishedMap):
        return Progress(1, 1, before + 1, True)
    done = sum(1 for _ in scores.stored.blocks())
    return Progress(done, scores.stored.total, done, False)


def _with_kind(scores: ScoreMap) -> ScoreMap:
    """The map with the kind of its scores: the stated one, or the one that a sample of them suggests."""
    if scores.kind is not None:
        return scores
    steps = (slice(0, n, max(1, n // _SAMPLES)) for n in scores.positions)
    sample = np.asarray(scores.scores[:, *steps])
    sample = sample[:, np.isfinite(sample).all(axis=0)]
    return replace(scores, kind=assumed_kind(sample)[0]) if sample.size else scores


def _kind(scores: ScoreMap) -> ScoreKind:
    """The kind of the scores. It is unknown only where no scores are there yet."""
    return scores.kind or ScoreKind("logits")


def _placement(scores: ScoreMap) -> Placement:
    """The pixels that were scanned, in those of the image that is shown: other ones where the scan resized it."""
    ratio = tuple(f / n for f, n in zip(scores.full_size, scores.image_size, strict=True))
    return Placement((0.0, 0.0), ratio)


def _shown_pixels(scores: ScoreMap, pixels: Sequence[int]) -> list[float]:
    """Numbers of scanned pixels (rows, columns) in pixels of the image that is shown, in hundredths if resized."""
    if scores.resized_from is None:
        return list(pixels)
    return [round(v, 2) for v in _placement(scores).to_level_0(pixels)]


def _covered(
    scores: ScoreMap, axis: int, start: int, count: int, step: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Span]:
    """The tile pixels that show positions, the first position of each, and all of their positions.

    The tile has `count` pixels of `step` image pixels each, from the image pixel `start` on. A tile pixel smaller than
    a position shows the position around its centre; a larger one shows the positions whose centres are in it.
    """
    placement = _placement(scores).of_map(scores.geometry)
    offset, scale, positions = placement.offset[axis], placement.scale[axis], scores.positions[axis]
    edges = start + np.arange(count + 1) * step
    at = np.floor((edges + min(step, scale) / 2 - offset) / scale).astype(np.intp)
    stop = np.maximum(at[:-1] + 1, at[1:])
    pixels = np.flatnonzero((at[:-1] < positions) & (stop > 0))
    if not len(pixels):
        return pixels, pixels, Span(0, 0)
    first = np.maximum(at[pixels], 0)
    return pixels, first, Span(int(first[0]), min(int(stop[pixels[-1]]), positions))


def _probabilities(
    scores: ScoreMap, label: int, spans: Sequence[Span]
) -> tuple[NDArray[np.floating], int, int]:
    """Probabilities of a class in a region of the map, from the finest level with few enough scores.

    Also the positions per axis of which each value of this level is the mean, and the step between the values read.
    """
    level, unit = scores.scores, 1
    while len(spans[0]) * len(spans[1]) > unit**2 * min(_MAX_POSITIONS, _MAX_SCORES // len(scores.classes)):
        coarser = getattr(level, "coarser", None)
        if coarser is None:
            break
        level, unit = coarser, 2 * unit
    parts = [Span(span.start // unit, -(-span.stop // unit)) for span in spans]
    count = len(scores.classes) * len(parts[0]) * len(parts[1])
    skip = max(1, int(np.ceil(np.sqrt(count / _MAX_SCORES))))
    block = level[:, *(slice(part.start, part.stop, skip) for part in parts)]
    return _kind(scores).probabilities(np.asarray(block))[label], unit, skip


def _rows(detections: Detections, most: int | None = None) -> list[tuple[float, ...]]:
    """The best detections as (x1, y1, x2, y2, class), in hundredths of a pixel."""
    boxes, labels = detections.boxes[:most].tolist(), detections.labels[:most].tolist()
    return [(*(round(v, 2) for v in box), label) for box, label in zip(boxes, labels, strict=True)]


def _judged(states: Sequence[Sequence[Any]]) -> dict[tuple[float, ...], str]:
    """The state of each detection that was accepted or rejected."""
    judged = {}
    for row in states:
        numbers = row[:-1] if isinstance(row, list) else []
        if len(numbers) != 5 or not all(isinstance(v, int | float) for v in numbers) or row[-1] not in STATES:
            raise BadInput(
                f"states: {row!r:.100} is not a detection and its state; expected x1, y1, x2, y2, class, and one of "
                + ", ".join(STATES)
            )
        judged[tuple(numbers)] = row[-1]
    return judged
