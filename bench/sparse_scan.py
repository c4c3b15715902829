"""An image of 10^10 pixels and its score map, of which little is stored: what the viewer's benchmark and test open.

The image is a pyramid in OME-Zarr. Its levels up to 3,200 pixels wide are stored as a whole; of the finer ones only the
chunks around a square in the middle are, and the others have the store's fill value, as the empty glass of a slide
would. The score map is stored as a whole: every window of 64 pixels at a stride of 32 has scores, and those inside the
square are of the class "square".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from onebyone.dense.map_files import map_description
from onebyone.dense.score_map import ScoreMap
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span
from onebyone.stores.sinks import open_sink

WINDOW, STRIDE = 64, 32
CLASSES = ("square", "round", "other", "background")
_CHUNK, _LEVELS, _STORED = 512, 10, 3200
_BLOCK = 512  # positions per axis that are written at once
_GLASS = 236


def square(side: int) -> tuple[int, int]:
    """First and last pixel (exclusive), on both axes, of the dark square in the middle."""
    first = side // 2 // STRIDE * STRIDE  # so that it is a window
    return first, first + WINDOW


def write_image(path: Path, side: int) -> None:
    """Write the image, `side` pixels high and wide."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    for level in range(_LEVELS):
        size, step = -(-side // 2**level), 2**level
        array = group.create_array(
            str(level),
            shape=(3, size, size),
            chunks=(3, _CHUNK, _CHUNK),
            dtype="uint8",
            fill_value=_GLASS,
            compressors=zarr.codecs.ZstdCodec(level=1),
        )
        first, last = (at // step for at in square(side))
        where = (0, size) if size <= _STORED else (max(0, first - _CHUNK), min(size, last + _CHUNK))
        array[:, where[0] : where[1], where[0] : where[1]] = _pixels(where, step, side)
        scale = {"type": "scale", "scale": [1.0, float(step), float(step)]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "yx")]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def _pixels(where: tuple[int, int], step: int, side: int) -> NDArray[np.uint8]:
    """A part (3, n, n) of a level: a coloured gradient, and the square."""
    at = np.arange(*where, dtype=np.int64) * step
    ramp = (at * 200 // side).astype(np.uint8)
    pixels = np.empty((3, len(at), len(at)), np.uint8)
    pixels[0], pixels[1], pixels[2] = ramp[:, None], ramp[None], 128
    first, last = square(side)
    inside = (at + step > first) & (at < last)
    pixels[:, inside[:, None] & inside[None]] = 10
    return pixels


def write_scores(path: Path, side: int) -> None:
    """Write the score map of an image that is `side` pixels high and wide: logits of four classes."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(len(CLASSES), _BLOCK, _BLOCK)).astype(np.float32)
    noise[-1] += 12
    first, last = (at // STRIDE for at in square(side))

    def values(rows: Span, columns: Span) -> NDArray[np.float32]:
        block = noise[:, : len(rows), : len(columns)].copy()
        inside = [slice(max(first - s.start, 0), max(last - s.start, 0)) for s in (rows, columns)]
        block[0, inside[0], inside[1]] = 30
        return block

    write_map(path, side, values)


def write_map(path: Path, side: int, values: Callable[[Span, Span], NDArray[np.float32]]) -> None:
    """Write a score map whose logits (classes, h, w) of some rows and columns of positions are `values`."""
    geometry = Geometry((WINDOW,) * 2, (STRIDE,) * 2, (0, 0), (WINDOW,) * 2, (0, 0), True)
    shape = (len(CLASSES), *geometry.positions((side, side)))
    nothing = np.broadcast_to(np.float32(0), shape)
    labels = Labels(CLASSES, background=CLASSES[-1:], std=(1.0,))
    facts = ScoreMap(nothing, geometry, labels, (side, side), kind=ScoreKind("logits", "exclusive")).facts()
    placement = Placement.identity().of_map(geometry)
    description = map_description(facts, len(CLASSES), placement, {"input": "synthetic"})
    with closing(open_sink(path, shape, description, chunk=(_BLOCK, _BLOCK))) as sink:
        for first in product(*(range(0, n, _BLOCK) for n in shape[1:])):
            rows, columns = (Span(a, min(a + _BLOCK, n)) for a, n in zip(first, shape[1:], strict=True))
            sink.write((rows, columns), values(rows, columns))
        sink.finish()
