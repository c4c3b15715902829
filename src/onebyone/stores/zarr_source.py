"""Zarr v2 and v3 arrays and OME-Zarr 0.4 and 0.5 images by region, with zarr-python.

The metadata are checked before zarr-python reads them: no name leads out of the store, sizes are possible, and codecs
are known ones whose decompressed size is checked before they run. Memory: the region, and the chunks that it touches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onebyone.errors import BadInput
from onebyone.stores.axes import SlicedSource, axes_of_names, short_reason
from onebyone.stores.levels import chosen_level
from onebyone.stores.ome_zarr_writer import zarr_library
from onebyone.stores.placement import Placement
from onebyone.stores.zarr_metadata import ArrayMetadata, array_metadata, group_attributes, read_document

_MAX_LEVELS = 64
_MICRONS = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


def open_zarr(
    path: Path,
    *,
    axes: str | None = None,
    page: int | None = None,
    level: int | None = None,
    mpp: float | None = None,
    spatial: int = 2,
) -> SlicedSource:
    """Open a Zarr array, or one level of an OME-Zarr image.

    `axes` names the axes of an array that does not name them itself. `page` selects one of several images in a store
    that Bio-Formats converted (folders 0, 1, …).

    Raises BadInput where the store is damaged, unsafe or has no image.
    """
    attributes = group_attributes(path)
    document = read_document(path, "zarr.json")
    if (path / ".zarray").is_file() or (document or {}).get("node_type") == "array":
        if page is not None:
            raise BadInput(
                f"page={page}: {path} is one array, without pages; select a part with a slice instead"
            )
        chosen_level(str(path), [(1.0,) * spatial], None, level, mpp)
        metadata = array_metadata(path, "")
        return _opened(
            path, "", metadata, axes or axes_of_names(metadata.dimension_names or ()), spatial, None
        )
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, dict):
        raise BadInput(f"{path}: its attribute 'ome' is not a JSON object")
    if "bioformats2raw.layout" in ome:
        return _series(path, page, axes=axes, level=level, mpp=mpp, spatial=spatial)
    if "multiscales" not in ome:
        raise BadInput(
            f"{path} is a Zarr group without an image (no multiscales); name one of the arrays in it"
        )
    images = ome["multiscales"]
    if not isinstance(images, list) or not images or not all(isinstance(m, dict) for m in images):
        raise BadInput(f"{path}: its multiscales are not a list of images")
    if len(images) > 1 and page is None:
        raise BadInput(f"{path} has {len(images)} multiscale images; select one with page=, counted from 0")
    if not 0 <= (page or 0) < len(images):
        raise BadInput(f"page={page}: {path} has {len(images)} image(s), counted from 0")
    return _image(path, images[page or 0], axes, level, mpp, spatial)


def _series(path: Path, page: int | None, **options: Any) -> SlicedSource:
    """One of the images 0, 1, … of a store that Bio-Formats converted."""
    names = sorted((p.name for p in path.iterdir() if p.name.isdigit()), key=int)
    if page is None and len(names) != 1:
        raise BadInput(f"{path} has {len(names)} images; select one with page=, counted from 0")
    name = names[0] if page is None else str(page)
    if name not in names:
        raise BadInput(f"page={page}: {path} has {len(names)} image(s), counted from 0")
    inner = path / name
    if inner.is_symlink():
        raise BadInput(f"{path}: the path {name!r} in it leads out of the store")
    nested = group_attributes(inner)
    if "bioformats2raw.layout" in nested.get("ome", nested):
        raise BadInput(f"{inner}: is a collection of images inside a collection; expected an image")
    return open_zarr(inner, **options)


def _image(
    path: Path, image: dict[str, Any], axes: str | None, level: int | None, mpp: float | None, spatial: int
) -> SlicedSource:
    """One level of a multiscale image."""
    letters, units = _axes_of(path, image)
    datasets = image.get("datasets")
    if not isinstance(datasets, list) or not 0 < len(datasets) <= _MAX_LEVELS:
        raise BadInput(f"{path}: its multiscales state no list of 1 to {_MAX_LEVELS} levels (datasets)")
    names = [d.get("path") if isinstance(d, dict) else None for d in datasets]
    if not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
        raise BadInput(f"{path}: its levels (datasets) have the paths {names}; expected different names")
    arrays = [array_metadata(path, str(name)) for name in names]
    if any(len(a.shape) != len(letters) for a in arrays):
        raise BadInput(
            f"{path}: its levels have the shapes {[a.shape for a in arrays]}, and its axes are {letters}"
        )
    where = [letters.index(name) for name in "zyx"[-spatial:] if name in letters]
    if len(where) != spatial:
        raise BadInput(f"{path}: its axes are {letters}; expected {', '.join('zyx'[-spatial:])}")
    common = _transform(path, image.get("coordinateTransformations"), len(letters))
    steps, starts = [], []
    for dataset in datasets:
        scale, move = _transform(path, dataset.get("coordinateTransformations"), len(letters))
        steps.append([scale[k] * common[0][k] for k in where])
        starts.append([move[k] * common[0][k] + common[1][k] for k in where])
    sizes = [[a.shape[k] for k in where] for a in arrays]
    scales = [
        _scale(path, n, steps[0], step, sizes[0], size)
        for n, step, size in zip(names, steps, sizes, strict=True)
    ]
    microns = tuple(s * _MICRONS.get(units[k], math.nan) for s, k in zip(steps[0], where, strict=True))
    stated = microns if all(math.isfinite(m) for m in microns) else None
    chosen = chosen_level(str(path), scales, stated, level, mpp)
    # centres of pixels: i_0 = (t_l − t_0)/s_0 + (s_l/s_0)·i_l. A level without a translation of its own was made
    # without regard to it, and covers the same rectangle as level 0.
    moved = any(a != b for a, b in zip(starts[0], starts[chosen], strict=True))
    offset = tuple(
        (b - a) / s + 0.5 - 0.5 * r if moved else 0.0
        for a, b, s, r in zip(starts[0], starts[chosen], steps[0], scales[chosen], strict=True)
    )
    placement = Placement(offset, scales[chosen], stated)
    name = str(names[chosen])
    return _opened(path, name, arrays[chosen], axes or "".join(letters), spatial, placement)


def _scale(
    path: Path,
    name: Any,
    base: Sequence[float],
    step: Sequence[float],
    size0: Sequence[int],
    size: Sequence[int],
) -> tuple[float, ...]:
    """The scale of a level relative to level 0, as stated. Raises BadInput where the sizes contradict it."""
    scale = tuple(s / b for s, b in zip(step, base, strict=True))
    for ratio, full, small in zip(scale, size0, size, strict=True):
        if not 0 < ratio < 1e9 or abs(full / ratio - small) > 2:
            raise BadInput(
                f"{path}: its level {name!r} has {tuple(size)} pixels at a scale of {scale}; expected the size of "
                f"level 0, {tuple(size0)}, divided by the scale"
            )
    return scale


def _axes_of(path: Path, image: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names and units of the axes."""
    axes = image.get("axes")
    stated = [a for a in axes if isinstance(a, dict)] if isinstance(axes, list) else []
    names = [str(a.get("name")) for a in stated]
    if not 2 <= len(names) <= 5 or len(set(names)) != len(names) or any(len(n) != 1 for n in names):
        raise BadInput(
            f"{path}: its multiscales state the axes {axes!r}; expected 2 to 5 with different names"[:300]
        )
    return names, [str(a.get("unit", "")) for a in stated]


def _transform(path: Path, transforms: Any, axes: int) -> tuple[list[float], list[float]]:
    """Scale and translation per axis, of a list of transformations; the identity for none."""
    scale, move = [1.0] * axes, [0.0] * axes
    for transform in (
        transforms if isinstance(transforms, list) else [] if transforms is None else [transforms]
    ):
        kind = transform.get("type") if isinstance(transform, dict) else None
        if kind == "identity":
            continue
        values = transform.get(kind) if kind in ("scale", "translation") else None
        numbers = values if isinstance(values, list) else []
        finite = [float(v) for v in numbers if isinstance(v, int | float) and math.isfinite(v)]
        if len(finite) != axes or len(numbers) != axes:
            raise BadInput(
                f"{path}: a coordinate transformation is {transform!r}; expected {axes} finite numbers"[:300]
            )
        if kind == "translation":
            move = finite
        elif min(finite) <= 0:
            raise BadInput(f"{path}: a scale is {finite}; expected positive numbers")
        else:
            scale = finite
    return scale, move


def _opened(
    path: Path,
    name: str,
    metadata: ArrayMetadata,
    axes: str | None,
    spatial: int,
    placement: Placement | None,
) -> SlicedSource:
    from onebyone.stores.zarr_checks import checked_store

    library = zarr_library("reading Zarr")
    try:
        array = library.open_array(checked_store(path, name, metadata), path=name, mode="r")
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # zarr-python raises errors of many types on damaged metadata
        raise BadInput(f"{path / name} cannot be read as a Zarr array: {short_reason(error)}") from error
    if tuple(array.shape) != metadata.shape or np.dtype(array.dtype) != metadata.dtype:
        raise BadInput(f"{path / name} cannot be read as a Zarr array: its metadata are ambiguous")
    return SlicedSource(array, axes, spatial=spatial, placement=placement, name=str(path / name))
