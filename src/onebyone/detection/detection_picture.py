"""Pictures of detections on images of any size: the image or a thumbnail of it, and the scores drawn over it.

The image is read by region, from the coarsest resolution level that has enough pixels, and the score maps part by part,
so memory is that of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.images import open_levels
from onebyone.dense.score_map import ScoreMap
from onebyone.detection.foreground import foreground
from onebyone.detection.rejection import Rejection
from onebyone.errors import BadInput
from onebyone.records import by, few
from onebyone.stores.heat_map import heat_map
from onebyone.stores.pictures import pillow, to_rgb_picture
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span
from onebyone.stores.resized import ResizedSource
from onebyone.stores.source import whole_region

if TYPE_CHECKING:
    from PIL import Image

#: Images of at most as many pixels are drawn at their size; larger ones as a thumbnail.
MAX_PIXELS = 10**8
#: The longest side of such a thumbnail.
THUMBNAIL = 4096
_MAX_SIDE = 2**15


def picture_size(image_size: Sequence[int], longest: int | None = None) -> tuple[int, int]:
    """The (height, width) of a picture of an image whose longer side is at most `longest`.

    None is the size of the image, and 4096 for more than 10^8 pixels. An image is never enlarged.

    Raises BadInput for a side that is not from 1 to 32768.

    >>> picture_size((300, 200)), picture_size((30_000, 20_000)), picture_size((300, 200), 30)
    ((300, 200), (4096, 2731), (30, 20))
    """
    if longest is None:
        longest = max(image_size) if prod(image_size) <= MAX_PIXELS else THUMBNAIL
    elif not 1 <= longest <= _MAX_SIDE:
        raise BadInput(f"thumbnail={longest}: expected a side from 1 to {_MAX_SIDE} pixels")
    factor = min(1.0, longest / max(image_size))
    height, width = (max(1, round(n * factor)) for n in image_size)
    return height, width


def reduced(
    image: Any,
    image_size: Sequence[int],
    size: tuple[int, int],
    *,
    page: int | None = None,
    axes: str | None = None,
) -> Image.Image:
    """An image of `image_size` pixels as an RGB picture of `size` (height, width), by the mean of its pixels.

    `page` and `axes` are those of `scan`.

    Raises
    ------
    BadInput
        where the image cannot be read, or has no resolution level of `image_size` (height, width).
    """
    levels = open_levels(image, page=page, axis_names=axes)
    if tuple(image_size) not in [level.size for level in levels]:
        raise BadInput(
            f"the image has {by(levels[0].size)} pixels; expected {by(image_size)}, as the detections have"
        )
    enough = [level for level in levels if all(n >= m for n, m in zip(level.size, size, strict=True))]
    source = min(enough, key=lambda level: prod(level.size))
    fitted = source if source.size == size else ResizedSource(source, size)
    values = fitted.read(whole_region(fitted))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadInput("the image has values that are not finite, so it cannot be drawn")
    return to_rgb_picture(values, "drawing detections")


def blank(size: tuple[int, int]) -> Image.Image:
    """A black RGB picture of (height, width)."""
    picture: Image.Image = pillow("drawing a heat map").new("RGB", (size[1], size[0]))
    return picture


def with_heat(
    picture: Image.Image,
    maps: Sequence[ScoreMap],
    background: Sequence[str | int] = (),
    rejection: Rejection | None = None,
) -> Image.Image:
    """The picture with the probability of the most likely class that is not background drawn over it, and a legend.

    `maps` are the score maps of the image, or of the image at several scales, of which the largest value counts.
    `rejection` is that of `heat`.
    """
    names = [maps[0].classes[k] for k in foreground(maps[0], background)]
    what = names[0] if len(names) == 1 else f"the most likely of {few(names) or 'no classes'}"
    values = heat(maps, (picture.height, picture.width), background, rejection)
    return heat_map(picture, values, Placement.identity(), f"probability of {what}")


def heat(
    maps: Sequence[ScoreMap],
    size: tuple[int, int],
    background: Sequence[str | int] = (),
    rejection: Rejection | None = None,
) -> NDArray[np.float32]:
    """The largest probability of a class that is not background, for each pixel (h, w) of a picture of the image.

    Each position colours the stride × stride pixels of the image around the centre of its window. A pixel of the
    picture has the largest value of the positions that its centre belongs to or whose centre it contains; 0 where there
    is none, and where positions have no scores. Maps are read part by part. Windows that `rejection` does not accept
    have 0, and the reject class lowers the probabilities of all others, as in `detect`.

    Raises BadInput where the scores do not allow the rejection.
    """
    result, rejection = np.zeros(size, np.float32), rejection or Rejection()
    for score_map in maps:
        chosen = foreground(score_map, background)
        kind = score_map.kind or score_map.assumed_kind()
        rejection.require(kind, len(score_map.classes))
        ratio = [n / full for n, full in zip(size, score_map.image_size, strict=True)]
        placement = Placement.identity().of_map(score_map.geometry)
        cells = [(o * r, s * r) for o, s, r in zip(placement.offset, placement.scale, ratio, strict=True)]
        for region, scores in score_map.regions():
            highest = rejection.probabilities(scores, kind)[chosen].max(axis=0, initial=0)
            highest = highest * rejection.accepted(scores, kind)
            values = np.minimum(np.nan_to_num(highest), 1)
            numbers = []
            for axis, (span, (offset, scale)) in enumerate(zip(region, cells, strict=True)):
                values, pixels = _on_pixels(values, axis, span, offset, scale, size[axis])
                numbers.append(pixels)
            places = np.ix_(*numbers)
            result[places] = np.maximum(result[places], values)
    return result


def _on_pixels(
    values: NDArray[Any], axis: int, span: Span, offset: float, scale: float, count: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values of the positions `span` of an axis as values of pixels, and the numbers of these, ascending.

    Position i covers offset + scale·i to offset + scale·(i + 1) pixels of an axis of `count` pixels.
    """
    if scale >= 1:  # each pixel has the position that its centre belongs to
        index = np.floor((np.arange(count) + 0.5 - offset) / scale).astype(np.int64)
        pixels = np.flatnonzero((index >= span.start) & (index < span.stop))
        return values.take(index[pixels] - span.start, axis), pixels
    # each pixel has the largest of the positions whose centres it contains
    containing = np.floor(offset + scale * (np.arange(span.start, span.stop) + 0.5)).astype(np.int64)
    inside = np.flatnonzero((containing >= 0) & (containing < count))
    pixels, starts = np.unique(containing[inside], return_index=True)
    return np.maximum.reduceat(values.take(inside, axis), starts, axis=axis), pixels
