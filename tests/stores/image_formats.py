"""Images of every format and level, written by the formats' own libraries, with the pixels that each must give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # ome-zarr's own, of a class that it still uses
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_image, write_multiscale

APERIO = "Aperio Image Library v1\r\n{0}x{1} [0,0 {0}x{1}] (64x64) JPEG/RGB Q=100|AppMag = 20|MPP = 0.5"


@dataclass(frozen=True)
class Case:
    """How an image is written, how it is opened, and its level's step in pixels of `image`."""

    write: Callable[[Path, NDArray[Any]], None]
    name: str
    options: dict[str, Any]
    step: int = 1


def tiff(path: Path, image: NDArray[Any], **options: Any) -> None:
    tifffile.imwrite(path, image, photometric="rgb", **options)


def pyramid(path: Path, image: NDArray[Any], **options: Any) -> None:
    """Full resolution and two levels of block means, in sub-IFDs."""
    kind = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=path.name.endswith(".ome.tif")) as file:
        file.write(image, subifds=2, **kind, **options)
        for step in (2, 4):
            file.write(means(image, step), subfiletype=1, **kind)


def means(image: NDArray[Any], step: int) -> NDArray[Any]:
    h, w, c = image.shape
    blocks = image[: h // step * step, : w // step * step].reshape(h // step, step, w // step, step, c)
    return np.rint(blocks.mean(axis=(1, 3))).astype(image.dtype)


def slide(path: Path, image: NDArray[Any]) -> None:
    """A slide as Aperio's scanners write it: JPEG tiles, a thumbnail, one level of a quarter of the size."""
    lossless = {
        "tile": (64, 64),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 100},
    }
    height, width = image.shape[:2]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(image, description=APERIO.format(width, height), metadata=None, **lossless)
        file.write(image[::8, ::8], description="Aperio thumbnail", metadata=None, photometric="rgb")
        small = means(image, 4)
        text = f"Aperio Image Library v1\r\n{width}x{height} -> {width // 4}x{height // 4} - |MPP = 0.5"
        file.write(small, description=text, metadata=None, **lossless)


def geotiff(path: Path, image: NDArray[Any], **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", driver="GTiff", height=image.shape[0], width=image.shape[1], count=3, dtype=image.dtype,
            crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), tiled=True, blockxsize=64,
            blockysize=64, **options,
        ) as file:  # fmt: skip
            file.write(np.moveaxis(image, -1, 0))
            file.build_overviews([2, 4], rasterio.enums.Resampling.average)


def ome_zarr(path: Path, image: NDArray[Any], form: Any) -> None:
    levels = [np.moveaxis(means(image, step), -1, 0) for step in (1, 2, 4)]
    transforms = [
        [
            {"type": "scale", "scale": [1.0, 0.5 * s, 0.5 * s]},
            {"type": "translation", "translation": [0.0, 0.25 * (s - 1), 0.25 * (s - 1)]},
        ]
        for s in (1, 2, 4)
    ]
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": n, "type": "space", "unit": "micrometer"} for n in "yx"
    ]
    group = zarr.open_group(path, mode="w", zarr_format=form.zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this argument alone states a translation
        write_multiscale(levels, group, axes=axes, coordinate_transformations=transforms, fmt=form)


def array(path: Path, image: NDArray[Any], **options: Any) -> None:
    zarr.create_array(path, data=image, chunks=(32, 48, 3), **options)


CASES = [
    Case(lambda p, i: Image.fromarray(i).save(p), "a.png", {}),
    Case(lambda p, i: Image.fromarray(i).save(p, quality=100, subsampling=0), "a.jpg", {}),
    Case(lambda p, i: tiff(p, i, rowsperstrip=7, compression="zlib"), "strips.tif", {}),
    Case(lambda p, i: tiff(p, i, tile=(32, 48), compression="zstd", predictor=True), "tiles.tif", {}),
    Case(lambda p, i: tiff(p, i, tile=(32, 48), compression="lzw", bigtiff=True), "big.tif", {}),
    Case(
        lambda p, i: tiff(p, np.moveaxis(i, -1, 0), tile=(32, 48), planarconfig="separate"), "planes.tif", {}
    ),
    Case(lambda p, i: tiff(p, np.stack([255 - i, i]), tile=(32, 48)), "pages.tif", {"page": 1}),
    Case(
        lambda p, i: tifffile.imwrite(p, np.moveaxis(i, -1, 0), photometric="minisblack", tile=(32, 48)),
        "c.tif",
        {"axes": "CYX"},
    ),
    Case(pyramid, "p.tif", {}),
    Case(pyramid, "p.tif", {"level": 2}, 4),
    Case(pyramid, "p.ome.tif", {"level": 1}, 2),
    Case(slide, "a.svs", {}),
    Case(slide, "a.svs", {"mpp": 2.0}, 4),
    Case(slide, "aperio.tif", {"level": 1}, 4),
    Case(geotiff, "geo.tif", {}),
    Case(geotiff, "geo.tif", {"level": 2}, 4),
    Case(lambda p, i: geotiff(p, i, compress="deflate"), "cog.tif", {"level": 1}, 2),
    Case(lambda p, i: array(p, i, zarr_format=2), "v2.zarr", {}),
    Case(lambda p, i: array(p, i, zarr_format=3), "v3.zarr", {}),
    Case(lambda p, i: array(p, i, shards=(64, 96, 3)), "sharded.zarr", {}),
    Case(lambda p, i: ome_zarr(p, i, FormatV04()), "o4.zarr", {}),
    Case(lambda p, i: ome_zarr(p, i, FormatV04()), "o4.zarr", {"level": 2}, 4),
    Case(lambda p, i: ome_zarr(p, i, FormatV05()), "o5.zarr", {"level": 1}, 2),
    Case(lambda p, i: ome_zarr(p, i, FormatV05()), "o5.zarr", {"mpp": 2.0}, 4),
    Case(lambda p, i: write_image(np.moveaxis(i, -1, 0), str(p), axes="cyx"), "w.zarr", {}),
    Case(lambda p, i: np.save(p, i), "a.npy", {}),
    Case(lambda p, i: np.save(p, np.moveaxis(i, -1, 0)), "f.npy", {"axes": "CYX"}),
]


def identifier(case: Case) -> str:
    return "-".join([case.name, *(f"{k}={v}" for k, v in case.options.items())])
