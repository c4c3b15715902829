"""Score maps are written in the format of the output's suffix."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from onebyone.errors import BadInput
from onebyone.stores.file_sink import FileSink, MapWriter, block_shape
from onebyone.stores.map_description import MapDescription

#: Suffixes of score maps that are written by region, and the formats they mean.
SUFFIXES = {
    ".npz": "NumPy archive",
    ".zarr": "OME-Zarr",
    ".tif": "GeoTIFF",
    ".tiff": "GeoTIFF",
    ".npy": "NumPy array",
}


def open_sink(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    description: MapDescription,
    *,
    fill: float = float("nan"),
    chunk: tuple[int, ...] | None = None,
    ome_version: str = "0.5",
) -> FileSink:
    """Open a sink for a score map (channels, *positions) in the format of the path's suffix.

    Parameters
    ----------
    path
        `.zarr` (OME-Zarr), `.tif` (GeoTIFF), `.npy` or `.npz`.
    description
        channels, placement and identity; `description.key` decides whether an interrupted scan goes on.
    fill
        the value of positions that are skipped.
    chunk
        positions per axis that are written at once, so that tiles can be aligned to them. None takes
        `file_sink.block_shape`.
    ome_version
        version of OME-Zarr: "0.5" or "0.4".

    Raises
    ------
    Refused
        where `path` exists and is not a score map of onebyone.
    BadInput
        for another suffix; for a folder that does not exist or cannot be written; where another scan was interrupted.

    Example
    -------
    >>> import numpy as np, tempfile
    >>> from onebyone.stores.placement import Placement
    >>> from onebyone.stores.regions import Span
    >>> path = Path(tempfile.mkdtemp()) / "scores.npy"
    >>> sink = open_sink(path, (1, 4), MapDescription(("cat",), Placement.identity(1)))
    >>> sink.write((Span(0, 3),), np.ones((1, 3), np.float32)); sink.skip((Span(3, 4),)); sink.finish()
    >>> np.load(path).tolist()
    [[1.0, 1.0, 1.0, nan]]
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"out={os.fspath(path)!r}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    block = block_shape(shape[0], shape[1:], chunk)
    writer = partial(_writer, suffix, tuple(shape), block, fill, ome_version)
    return FileSink(path, writer, shape, description, fill=fill, chunk=block)


def _writer(
    suffix: str, shape: tuple[int, ...], block: tuple[int, ...], fill: float, ome_version: str
) -> MapWriter:
    if suffix == ".zarr":
        from onebyone.stores.ome_zarr_writer import OmeZarrWriter

        return OmeZarrWriter(shape, block=block, fill=fill, version=ome_version)
    if suffix in (".tif", ".tiff"):
        from onebyone.stores.geotiff import GeoTiffWriter

        return GeoTiffWriter(shape, block, fill=fill)
    from onebyone.stores.array_files import NpyWriter, NpzWriter

    return NpyWriter(shape, block) if suffix == ".npy" else NpzWriter(shape, block)
