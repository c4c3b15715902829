"""Which resolution level of a pyramid is read: by its number, or by its microns per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log

from onebyone.errors import BadInput

#: A level is taken for the microns per pixel that were asked for where its own differ by at most this factor.
_MAX_RATIO = 1.1


def chosen_level(
    name: str,
    scales: Sequence[tuple[float, ...]],
    microns_per_pixel: tuple[float, ...] | None,
    level: int | None = None,
    mpp: float | None = None,
) -> int:
    """The level to read: `level`, or the one whose pixels are `mpp` microns wide (within 10 %), or the first.

    `scales` are pixels of level 0 per pixel, per level and axis; `microns_per_pixel` are those of level 0.

    Raises BadInput where both are given, there is no such level, or the file does not state its pixel size.

    Example
    -------
    >>> chosen_level("a.tif", [(1.0, 1.0), (4.0, 4.0), (16.0, 16.0)], (0.25, 0.25), mpp=1.0)
    1
    """
    if level is not None and mpp is not None:
        raise BadInput(f"level={level} and mpp={mpp} were both given; expected one of them")
    if level is not None:
        if not 0 <= level < len(scales):
            raise BadInput(f"level={level}: {name} has {len(scales)} level(s), counted from 0")
        return level
    if mpp is None:
        return 0
    if not (isfinite(mpp) and mpp > 0):
        raise BadInput(f"mpp={mpp}: expected a positive number of microns per pixel")
    if microns_per_pixel is None:
        raise BadInput(
            f"mpp={mpp}: {name} does not state its microns per pixel; select a level by its number"
        )
    sizes = [max(m * s for m, s in zip(microns_per_pixel, scale, strict=True)) for scale in scales]
    best = min(range(len(sizes)), key=lambda k: abs(log(sizes[k] / mpp)))
    if not 1 / _MAX_RATIO <= sizes[best] / mpp <= _MAX_RATIO:
        listed = ", ".join(f"{size:.4g}" for size in sizes)
        raise BadInput(
            f"mpp={mpp}: no level of {name} has this resolution (within 10 %); its levels have {listed} microns "
            "per pixel"
        )
    return best
