"""Coverage: which positions of a map are scored, where a mask or pixels without data leave some of the image out.

A position is scored if its window contains a pixel of the mask, and a pixel with data; if pixels without data are not a
number, all pixels of its window must have one. All other positions hold `FILL` in every class. A block without any
scored position is neither read nor computed. The result does not depend on the size of the tiles, because the rule is
applied to single positions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import isnan, prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.fingerprint import of_image
from onebyone.dense.guarded_source import attempted_or_none, read_or_none
from onebyone.dense.images import open_image
from onebyone.dense.plan import ScanPlan
from onebyone.errors import BadInput
from onebyone.records import by
from onebyone.stores.channels import FilledSource, MatchedSource
from onebyone.stores.placement import placement_of
from onebyone.stores.regions import Region, Span
from onebyone.stores.resized import ResizedSource
from onebyone.stores.source import ImageSource, SourceProperties

#: The score, in every class, of the positions that are left out.
FILL = float("nan")

Bools = NDArray[np.bool_]
Block = tuple[int, ...]


class PixelMask(Protocol):
    """Flags of the pixels of an image, of the image's own size or of another resolution of the same rectangle."""

    @property
    def size(self) -> tuple[int, ...]:
        """Flags per spatial axis."""
        ...

    @property
    def every(self) -> bool:
        """Whether a window is scored only if every pixel of it has a flag; otherwise one suffices."""
        ...

    @property
    def reason(self) -> str:
        """Why windows are not scored: what is said of them."""
        ...

    def flags(self, region: Region) -> Bools:
        """The flags of a region of `size`."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the mask, as plain data."""
        ...


@dataclass(frozen=True)
class MaskImage(SourceProperties):
    """The pixels of a mask that are not zero in some channel."""

    source: ImageSource
    given: Any = None
    every = False
    reason = "are outside of the mask"

    def flags(self, region: Region) -> Bools:
        """Whether each pixel of a region is part of the mask. Raises BadInput where it cannot be read."""
        try:
            values = self.source.read(region)
        except BadInput as error:
            raise BadInput(f"mask: {error}") from error
        flags: Bools = np.any(values != 0, axis=-1)
        return flags

    def describe(self) -> dict[str, Any]:
        """The fingerprint of the mask."""
        return {"mask": of_image(self.given, self.source)}


@dataclass(frozen=True)
class PixelsWithData(SourceProperties):
    """The pixels of an image that differ from the value for "no data" in some channel."""

    source: ImageSource
    nodata: float
    every = False

    @property
    def reason(self) -> str:
        """What is said of windows without data."""
        return f"have only the value for no data, {self.nodata:g}"

    def flags(self, region: Region) -> Bools:
        """Whether each pixel of a region has data; taken as true where it cannot be read, which the scan reports."""
        values = read_or_none(self.source, region)
        if values is None:
            return np.ones(tuple(map(len, region)), bool)
        flags: Bools = np.any(values != self.nodata, axis=-1)
        return flags

    def describe(self) -> dict[str, Any]:
        """The value for "no data"."""
        return {"nodata": repr(self.nodata)}


@dataclass(frozen=True)
class PixelsWithNumber(SourceProperties):
    """The pixels of an image without not-a-number. A window is scored if all of its pixels have a number."""

    source: ImageSource
    every = True
    reason = "have pixels that are not a number"

    def flags(self, region: Region) -> Bools:
        """Whether each pixel of a region has numbers; taken as true where it cannot be read, which the scan reports."""
        values = read_or_none(self.source, region)
        if values is None:
            return np.ones(tuple(map(len, region)), bool)
        flags: Bools = ~np.isnan(values).any(axis=-1)
        return flags

    def describe(self) -> dict[str, Any]:
        """The value for "no data", and that one such pixel leaves a window out."""
        return {"nodata": "nan", "leaves_out": "windows with any"}


@dataclass(frozen=True)
class PixelsNotMasked(SourceProperties):
    """The pixels of an image that are neither transparent nor masked in its file (`has_mask` of the source)."""

    source: ImageSource
    every = False
    reason = "are transparent or masked in the file"

    def flags(self, region: Region) -> Bools:
        """Whether each pixel of a region is there; taken as true where it cannot be read, which the scan reports."""
        masked: Any = self.source
        flags = attempted_or_none(lambda: masked.with_data(region))
        return np.ones(tuple(map(len, region)), bool) if flags is None else flags

    def describe(self) -> dict[str, Any]:
        """That the file's mask was used."""
        return {"file_mask": True}


class Coverage:
    """Which positions of a plan are scored; every mask is read once, block by block.

    `scored` is the number of scored positions, and `outside` has the blocks without any.

    >>> from onebyone.dense.plan import plan_scan
    >>> from onebyone.laws.geometry import Geometry
    >>> from onebyone.stores.source import ArraySource
    >>> plan = plan_scan(Geometry((2,), (2,), (0,), (2,), (0,), True), (8,), tile=2)
    >>> mask = MaskImage(ArraySource(np.array([[0], [0], [0], [1], [0], [0], [0], [0]], np.uint8)))
    >>> covered = Coverage(plan, [mask])
    >>> covered.inside((0,)).tolist(), covered.inside((1,)).tolist(), covered.outside
    ([False, True], [False, False], frozenset({(1,)}))
    """

    def __init__(self, plan: ScanPlan, masks: Sequence[PixelMask]) -> None:
        self.plan, self.masks = plan, tuple(masks)
        self._partial: dict[Block, NDArray[np.uint8]] = {}  # one bit per position
        outside, self.scored = set(), 0
        for block in product(*(range(len(axis)) for axis in plan.axis_tiles)):
            region = plan.block_region(block)
            inside = np.ones(tuple(map(len, region)), bool)
            for mask in self.masks:
                inside &= _windows_inside(plan, region, mask)
            count = int(np.count_nonzero(inside))
            self.scored += count
            if count == 0:
                outside.add(block)
            elif count < inside.size:
                self._partial[block] = np.packbits(inside)
        self.outside = frozenset(outside)

    @property
    def partial(self) -> tuple[Block, ...]:
        """The blocks of which some positions are scored and others are not."""
        return tuple(self._partial)

    def inside(self, block: Block) -> Bools:
        """Whether each position of a block is scored."""
        shape = tuple(map(len, self.plan.block_region(block)))
        if block not in self._partial:
            return np.full(shape, block not in self.outside)
        return np.unpackbits(self._partial[block], count=prod(shape)).astype(bool).reshape(shape)

    def filled(self, block: Block, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores (channels, h, w) of a block with `FILL` where it is not scored.

        Raises BadInput where a score is not finite, because it could not be told from `FILL`.
        """
        inside = self.inside(block)
        if not np.isfinite(scores[:, inside]).all():
            region = ", ".join(f"{span.start}:{span.stop}" for span in self.plan.block_region(block))
            raise BadInput(f"the network gives scores that are not finite at the positions {region}")
        return np.where(inside, scores, np.float32(FILL))

    def sample(self, count: int) -> NDArray[np.int64]:
        """At most `count` scored positions (K, axes), evenly spread over all of them in the order of the blocks."""
        ranks = np.unique(np.linspace(0, self.scored - 1, min(count, self.scored)).round().astype(np.int64))
        parts: list[NDArray[np.int64]] = []
        first = 0
        for block in product(*(range(len(axis)) for axis in self.plan.axis_tiles)):
            if block in self.outside or len(ranks) == 0:
                continue
            starts = [span.start for span in self.plan.block_region(block)]
            indices = np.argwhere(self.inside(block)) + starts
            chosen = ranks[(ranks >= first) & (ranks < first + len(indices))] - first
            parts.append(indices[chosen])
            first += len(indices)
        return np.concatenate(parts)

    def describe(self) -> dict[str, Any]:
        """What identifies it, for the key of a scan that goes on."""
        return {key: value for mask in self.masks for key, value in mask.describe().items()}

    def __str__(self) -> str:
        total = prod(self.plan.positions)
        reasons = " or ".join(mask.reason for mask in self.masks)
        return f"{total - self.scored:,} of {total:,} windows {reasons}; their scores are NaN"


def coverage_of(
    plan: ScanPlan, source: ImageSource, mask: Any = None, nodata: float | None = None
) -> Coverage | None:
    """The coverage of a scan; None where every position is scored.

    `mask` is an image (path, array or source) that covers the same rectangle as the image, at any resolution. `nodata`
    is the value of pixels without data; None takes the one that the image states.

    Raises BadInput where the mask cannot be read, has another shape or place than the image, or leaves no window.
    """
    masks = _masks_of(source, nodata)
    if mask is not None:
        masks.append(_opened(mask, source))
    if not masks:
        return None
    coverage = Coverage(plan, masks)
    if not coverage.scored:
        raise BadInput(f"the image has no window to scan: {coverage}")
    return coverage if coverage.scored < prod(plan.positions) else None


def may_lack_numbers(source: ImageSource, nodata: float | None = None) -> bool:
    """Whether not-a-number is the value of pixels without data: `nodata`, or the value that the image states."""
    return source.dtype.kind == "f" and any(
        isinstance(mask, PixelsWithNumber) for mask in _masks_of(source, nodata)
    )


def may_lack_pixels(source: ImageSource, nodata: float | None = None) -> bool:
    """Whether pixels of an image can be without data: `nodata`, or the image itself, says which."""
    return bool(_masks_of(source, nodata))


def _masks_of(source: ImageSource, nodata: float | None) -> list[PixelMask]:
    """What tells the pixels without data of an image: a value, `nodata` or the one that it states, and its mask."""
    stored = _unconverted(source)
    value = getattr(stored, "nodata", None) if nodata is None else float(nodata)
    masks: list[PixelMask] = []
    if value is not None:
        masks.append(PixelsWithNumber(stored) if isnan(value) else PixelsWithData(stored, value))
    if getattr(stored, "has_mask", False):
        masks.append(PixelsNotMasked(stored))
    return masks


def _unconverted(source: ImageSource) -> ImageSource:
    """The pixels as the file has them: neither resized nor of other channels."""
    while isinstance(source, MatchedSource | ResizedSource | FilledSource):
        source = source.source
    return source


def _opened(mask: Any, source: ImageSource) -> MaskImage:
    values = np.asarray(mask).astype(np.uint8) if getattr(mask, "dtype", None) == np.bool_ else mask
    try:
        opened = open_image(values, axes=len(source.size))
    except BadInput as error:
        raise BadInput(f"mask: {error}") from error
    name = os.fspath(mask) if isinstance(mask, str | os.PathLike) else "the array"
    scales = [n / m for n, m in zip(source.size, opened.size, strict=True)]
    if any(
        abs(n / scale - m) >= 1 for n, m in zip(source.size, opened.size, strict=True) for scale in scales
    ):
        raise BadInput(
            f"mask: {name} has {by(opened.size)} pixels and the image {by(source.size)}; expected another "
            "resolution of the same rectangle"
        )
    places = placement_of(opened), placement_of(source)
    if all(p.transform is not None for p in places):
        for corner in ((0,) * len(source.size), source.size):
            there = [m * c / n for m, c, n in zip(opened.size, corner, source.size, strict=True)]
            expected = np.array(places[1].to_world(corner))
            size = np.abs(np.array(places[0].to_world([v + 1 for v in there])) - places[0].to_world(there))
            if (np.abs(np.array(places[0].to_world(there)) - expected) > size / 2).any():
                raise BadInput(f"mask: {name} covers another part of the world than the image")
    return MaskImage(opened, mask)


def _windows_inside(plan: ScanPlan, region: Sequence[Span], mask: PixelMask) -> Bools:
    """For each position of a region, whether its window contains a pixel with a flag, or no other (`mask.every`)."""
    edges, spans = [], []
    for axis, span in enumerate(region):
        stride, window, offset = (
            getattr(plan.geometry, name)[axis] for name in ("stride", "window", "window_offset")
        )
        size, flags = plan.image_size[axis], mask.size[axis]
        start = np.arange(span.start, span.stop, dtype=np.int64) * stride - offset
        first = np.clip(start, 0, size) * flags // size
        last = -(-np.clip(start + window, 0, size) * flags // size)
        edges.append((first, last))
        spans.append(Span(int(first[0]), int(last[-1])))
    found = mask.flags(spans) ^ mask.every
    for axis, (first, last) in enumerate(edges):
        # any over a rectangle is any over each axis in turn
        counts = np.cumsum(found, axis=axis, dtype=np.int32)
        counts = np.concatenate([np.zeros_like(counts.take([0], axis)), counts], axis=axis)
        begin = spans[axis].start
        found = counts.take(last - begin, axis) > counts.take(first - begin, axis)
    return found ^ mask.every
