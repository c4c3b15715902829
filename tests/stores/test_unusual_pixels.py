"""Files whose stored integers are not the pixels, or that lack some pixels: each reader gives the same picture.

Pillow and tifffile write the files, or GDAL through rasterio; what they must give is computed here from the arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image

from onebyone.dense.images import open_image
from onebyone.errors import BadInput
from onebyone.stores.axes import SlicedSource
from onebyone.stores.opening import open_file
from onebyone.stores.regions import Span

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (23, 31), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (23, 31), dtype=np.uint16)
RGB = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)
OPAQUE = np.full((23, 31, 1), 255, np.uint8)
PALETTE = {value: (value, 255 - value, value * 7 % 256, 255) for value in range(256)}
INDEXED = np.array([PALETTE[value][:3] for value in range(256)], np.uint8)[GREY]


def pixels(source: Any) -> NDArray[Any]:
    return source.read(tuple(Span(0, n) for n in source.size))


def geotiff(path: Path, values: NDArray[Any], **options: Any) -> None:
    """A GeoTIFF of bands (C, H, W); `colormap`, `mask` and `interpretation` are set after it was made."""
    later = {name: options.pop(name, None) for name in ("colormap", "mask", "interpretation")}
    bands = values if values.ndim == 3 else values[None]
    count, height, width = bands.shape
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count, dtype=bands.dtype,
            crs="EPSG:32633", transform=transform, **options,
        ) as dataset,
    ):  # fmt: skip
        if later["interpretation"]:
            dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in later["interpretation"]]
        dataset.write(bands)
        if later["colormap"]:
            dataset.write_colormap(1, later["colormap"])
        if later["mask"] is not None:
            dataset.write_mask(later["mask"])


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (GREY, {"photometric": "palette", "colormap": PALETTE}, INDEXED),
        (GREY, {"photometric": "miniswhite"}, 255 - GREY),
        (GREY16, {"photometric": "miniswhite"}, 65535 - GREY16),
        (GREY // 128, {"nbits": 1}, GREY // 128 * 255),
        (GREY // 16, {"nbits": 4}, GREY // 16 * 17),
        (GREY, {}, GREY),
        (GREY16, {}, GREY16),
    ],
    ids=["palette", "white is zero", "white is zero, 16 bits", "1 bit", "4 bits", "plain", "plain, 16 bits"],
)
def test_a_geotiff_gives_the_picture_of_the_same_file_without_a_place(
    tmp_path: Path, values: NDArray[Any], options: dict[str, Any], expected: NDArray[Any]
) -> None:
    geotiff(tmp_path / "x.tif", values, **options)
    source = open_file(tmp_path / "x.tif")
    wanted = expected if expected.ndim == 3 else expected[..., None]
    assert source.channels == wanted.shape[-1]
    assert source.dtype == wanted.dtype
    np.testing.assert_array_equal(pixels(source), wanted)
    np.testing.assert_array_equal(source.read((Span(3, 20, 2), Span(1, 30, 3))), wanted[3:20:2, 1:30:3])


@pytest.mark.parametrize("kind", ["alpha", "alpha first", "mask", "palette with nodata", "white is zero"])
def test_a_geotiff_tells_which_pixels_are_there(tmp_path: Path, kind: str) -> None:
    there = np.zeros((23, 31), bool)
    there[4:11, 7:29] = True
    bands, alpha, path = np.moveaxis(RGB, -1, 0), there[None] * np.uint8(255), tmp_path / "x.tif"
    marked = np.where(there, np.maximum(GREY, 1), 0).astype(np.uint8)
    if kind == "alpha":
        geotiff(path, np.concatenate([bands, alpha]), photometric="rgb", alpha="yes")
    elif kind == "alpha first":
        names = ["alpha", "red", "green", "blue"]
        geotiff(path, np.concatenate([alpha, bands]), interpretation=names)
    elif kind == "mask":
        geotiff(path, bands, photometric="rgb", mask=there)
    elif kind == "white is zero":
        geotiff(path, marked, photometric="miniswhite", nodata=0)
    else:
        geotiff(path, marked, photometric="palette", colormap=PALETTE, nodata=0)
    source = open_file(path)
    assert source.has_mask
    assert source.nodata is None
    assert source.channels == (1 if kind == "white is zero" else 3)
    np.testing.assert_array_equal(source.with_data((Span(0, 23), Span(0, 31))), there)
    np.testing.assert_array_equal(source.with_data((Span(3, 20, 2), Span(1, 30, 3))), there[3:20:2, 1:30:3])
    with pytest.raises(BadInput, match="was requested"):
        source.with_data((Span(0, 24), Span(0, 31)))


def test_a_geotiff_without_a_mask_states_its_value(tmp_path: Path) -> None:
    geotiff(tmp_path / "x.tif", GREY, nodata=7)
    source = open_file(tmp_path / "x.tif")
    assert (source.has_mask, source.nodata) == (False, 7.0)


@pytest.mark.parametrize(
    ("samples", "kinds", "expected"),
    [
        ([RGB, OPAQUE, GREY[..., None]], ["unassalpha", "unspecified"], [RGB, GREY[..., None]]),
        ([RGB, GREY[..., None], OPAQUE], ["unspecified", "assocalpha"], [RGB, GREY[..., None]]),
        ([RGB, OPAQUE, OPAQUE], ["unassalpha", "unassalpha"], [RGB]),
    ],
    ids=["before other data", "after other data", "twice"],
)
@pytest.mark.parametrize("bits", [8, 12])
def test_alpha_is_the_sample_that_the_file_names(
    tmp_path: Path, samples: list[Any], kinds: list[str], expected: list[Any], bits: int
) -> None:
    """By region, and as a whole where the file is rotated."""
    rotated = {"extratags": [(274, 3, 1, 3, True)]} if bits == 12 else {}
    tifffile.imwrite(
        tmp_path / "x.tif", np.concatenate(samples, -1), photometric="rgb", extrasamples=kinds, **rotated
    )
    wanted = np.concatenate(expected, -1)
    got = pixels(open_file(tmp_path / "x.tif"))
    np.testing.assert_array_equal(got, wanted[::-1, ::-1] if rotated else wanted)


def test_the_value_without_data_is_inverted_with_the_pixels(tmp_path: Path) -> None:
    tag = [(42113, 2, 0, "3", True)]
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="miniswhite", extratags=tag)
    source = open_file(tmp_path / "x.tif")
    np.testing.assert_array_equal(pixels(source)[..., 0] == source.nodata, GREY == 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_a_colour_that_a_png_declares_transparent(tmp_path: Path, mode: str) -> None:
    values = {"L": GREY, "RGB": RGB, "1": GREY > 127, "I;16": GREY16}[mode]
    here = {"L": int(GREY[2, 5]), "RGB": tuple(RGB[2, 5].tolist()), "1": 255, "I;16": int(GREY16[2, 5])}[mode]
    absent = {"L": 0, "RGB": (1, 2, 3), "1": 255, "I;16": 0}[mode]
    opaque = np.zeros_like(values) if mode == "1" else np.maximum(values, 4)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=here)
    with pytest.raises(BadInput, match="partly transparent"):
        pixels(open_file(tmp_path / "x.png"))
    Image.fromarray(opaque).save(tmp_path / "y.png", transparency=absent)
    np.testing.assert_array_equal(pixels(open_file(tmp_path / "y.png")), opaque.reshape(23, 31, -1))


@pytest.mark.parametrize("values", [GREY16, RGB.astype(np.float32) / 7], ids=["uint16", "float32"])
def test_pixels_in_the_other_byte_order(tmp_path: Path, values: NDArray[Any]) -> None:
    swapped = values.astype(values.dtype.newbyteorder(">"))
    np.save(tmp_path / "x.npy", swapped)
    for image in (swapped, tmp_path / "x.npy", SlicedSource(swapped)):
        source = open_image(image)
        assert source.dtype == values.dtype
        got = pixels(source)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values.reshape(23, 31, -1))


def test_masked_pixels_are_refused_and_a_mask_without_any_is_not() -> None:
    class Variable:
        """A variable of netCDF4, which gives masked arrays."""

        shape, dtype = GREY.shape, GREY.dtype

        def __getitem__(self, index: Any) -> Any:
            return np.ma.masked_less(GREY, 3)[index]

    for image in (np.ma.masked_less(GREY, 3), Variable()):
        with pytest.raises(BadInput, match="masked array with masked pixels; fill them with a value"):
            pixels(open_image(image))
    np.testing.assert_array_equal(pixels(open_image(np.ma.masked_array(GREY)))[..., 0], GREY)


@pytest.mark.parametrize(
    "names", [("x", "y", "band"), ("lon", "lat", "channel"), ("bands", "row", "col"), ("latitude", "width")]
)
def test_dimensions_with_names(names: tuple[str, ...]) -> None:
    class Array:
        """An array with the attributes of one of xarray."""

        dims = names

        def __init__(self, values: NDArray[Any]) -> None:
            self.values, self.shape, self.dtype = values, values.shape, values.dtype

        def __getitem__(self, index: Any) -> Any:
            return self.values[index]

    image = GREY[..., None] if len(names) == 2 else RGB
    order = {"x": 1, "lon": 1, "col": 1, "width": 1, "y": 0, "lat": 0, "row": 0, "latitude": 0}
    places = [order.get(name, 2) for name in names]
    stored = image.transpose(places) if len(names) == 3 else GREY.transpose(places)
    np.testing.assert_array_equal(pixels(open_image(Array(stored))), image)
