"""Sources: every format by region, against the pixels that were written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import openslide
import pytest
import rasterio
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from onebyone.dense.images import open_image
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.stores.opening import image_paths, open_file
from onebyone.stores.placement import Placement, placement_of
from onebyone.stores.regions import Span
from tests.stores.image_formats import CASES, Case, identifier, means, slide

RNG = np.random.default_rng(0)


def photograph(height: int = 240, width: int = 328) -> NDArray[np.uint8]:
    """Smooth colours, so that JPEG at quality 100 changes values by a few units only."""
    y, x = np.mgrid[:height, :width]
    planes = (128 + 100 * np.sin(y / 31), 128 + 100 * np.cos(x / 23), (y + x) * 255 / (height + width))
    return np.rint(np.stack(planes, axis=-1)).astype(np.uint8)


def whole(source: Any) -> NDArray[Any]:
    return source.read([Span(0, n) for n in source.size])


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_regions_hold_the_pixels_that_were_written(tmp_path: Path, case: Case) -> None:
    image, path = photograph(), tmp_path / case.name
    case.write(path, image)
    source = open_file(path, **case.options)
    expected = means(image, case.step)
    assert source.size == expected.shape[:2]
    assert source.channels == 3
    assert source.dtype == np.uint8
    if path.suffix == ".jpg":
        expected = np.asarray(Image.open(path))
    elif path.suffix == ".svs":
        slide_file = openslide.OpenSlide(path)
        level = [round(d) for d in slide_file.level_downsamples].index(case.step)
        expected = np.asarray(slide_file.read_region((0, 0), level, expected.shape[1::-1]))[..., :3]
    elif path.name == "aperio.tif":
        expected = tifffile.imread(path, level=1)
    tolerance = 1 if case.step > 1 else 0  # how writers round means
    h, w = source.size
    for region in ((Span(0, h), Span(0, w)), (Span(5, 41), Span(31, 70)), (Span(h - 1, h), Span(w - 9, w))):
        got = source.read(region)
        want = expected[region[0].slice, region[1].slice]
        assert got.shape == want.shape
        assert int(np.abs(got.astype(int) - want).max()) <= tolerance
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(whole(again), whole(source))


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_planted_objects_are_where_they_were_planted(tmp_path: Path, case: Case) -> None:
    """Bright squares of 16 pixels at known places: their centres, seen at every level, map back within half a pixel."""
    image = np.full((240, 328, 3), 20, np.uint8)
    corners = [(0, 0), (48, 96), (100, 201), (224, 312)]
    for y, x in corners:
        image[y : y + 16, x : x + 16] = 220
    case.write(tmp_path / case.name, image)
    source = open_file(tmp_path / case.name, **case.options)
    placement = placement_of(source)
    assert placement.scale == pytest.approx((case.step, case.step))
    weight = whole(source)[..., 0].astype(float) - 20
    for y, x in corners:
        reach = 12 / case.step
        row, column = ((v + 8) / case.step for v in (y, x))
        rows, columns = np.arange(source.size[0]) + 0.5, np.arange(source.size[1]) + 0.5
        near = (np.abs(rows - row) <= reach)[:, None] & (np.abs(columns - column) <= reach)[None]
        part = np.where(near, weight, 0.0)
        centre = (part.sum(axis=1) @ rows / part.sum(), part.sum(axis=0) @ columns / part.sum())
        found = placement.to_level_0(centre)
        error = max(abs(a - b) for a, b in zip(found, (y + 8, x + 8), strict=True))
        assert error <= 0.5, f"{case.name}: {found} instead of {(y + 8, x + 8)}"


def test_openslide_reads_the_same_slide(tmp_path: Path) -> None:
    image = photograph(512, 768)
    slide(tmp_path / "a.svs", image)
    independent = openslide.OpenSlide(tmp_path / "a.svs")
    for level, (width, height) in enumerate(independent.level_dimensions):
        source = open_file(tmp_path / "a.svs", level=level)
        reference = np.asarray(independent.read_region((0, 0), level, (width, height)))[..., :3]
        np.testing.assert_array_equal(source.read((Span(3, 90), Span(50, 131))), reference[3:90, 50:131])
        assert placement_of(source).pixel_size == (0.5 * 4**level, 0.5 * 4**level)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_types_are_kept(tmp_path: Path, dtype: type) -> None:
    values = (RNG.random((40, 50, 5)) * 250).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(16, 16, 5))
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(values, -1, 0), photometric="minisblack", tile=(16, 16))
    for name, axes in (("a.npy", None), ("a.zarr", None), ("a.tif", "CYX")):
        source = open_file(tmp_path / name, axes=axes)
        assert source.dtype == dtype
        np.testing.assert_array_equal(whole(source), values)


class XArray:
    """The part of xarray.DataArray that is used: named dimensions and lazy slicing."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values, self.shape, self.dtype, self.dims = values, values.shape, values.dtype, ("c", "y", "x")
        self.read: list[Any] = []

    def __getitem__(self, index: Any) -> NDArray[Any]:
        self.read.append(index)
        return self.values[index]


def test_anything_that_is_sliced_as_an_array(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (3, 40, 50), dtype=np.uint8)
    lazy = XArray(values)
    for image, axes in (
        (dask.array.from_array(values, chunks=(3, 16, 16)), "CYX"),
        (zarr.create_array(tmp_path / "z", data=values), "CYX"),
        (lazy, None),
    ):
        source = open_image(image, channels=3, axis_names=axes)
        assert (source.size, source.channels) == ((40, 50), 3)
        got = source.read((Span(3, 7), Span(10, 20)))
        np.testing.assert_array_equal(got, np.moveaxis(values[:, 3:7, 10:20], 0, -1))
    assert lazy.read == [(slice(None), slice(3, 7, 1), slice(10, 20, 1))]


def test_pages_are_named_or_a_warning_says_which(tmp_path: Path) -> None:
    image = photograph(32, 32)
    tifffile.imwrite(tmp_path / "a.tif", np.stack([image, 255 - image]), photometric="rgb")
    with pytest.warns(OnebyoneWarning, match="has 2 pages or frames, and the first is read"):
        open_file(tmp_path / "a.tif")
    with pytest.raises(BadInput, match=r"page=2: .* has 2 pages"):
        open_file(tmp_path / "a.tif", page=2)


def test_levels_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    slide(tmp_path / "a.svs", photograph(128, 256))
    with pytest.raises(BadInput, match=r"level=2: .* has 2 level\(s\)"):
        open_file(tmp_path / "a.svs", level=2)
    with pytest.raises(BadInput, match=r"mpp=1.0: no level .*; its levels have 0.5, 2 microns per pixel"):
        open_file(tmp_path / "a.svs", mpp=1.0)
    with pytest.raises(BadInput, match=r"level=0 and mpp=0.5 were both given"):
        open_file(tmp_path / "a.svs", level=0, mpp=0.5)
    np.save(tmp_path / "a.npy", np.zeros((4, 4), np.uint8))
    with pytest.raises(BadInput, match="does not state its microns per pixel"):
        open_file(tmp_path / "a.npy", mpp=0.5)


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.png", "a.npy", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in image_paths(tmp_path)] == ["a.npy", "b.png"]
    assert [p.name for p in image_paths(tmp_path / "*.png")] == ["b.png"]
    assert image_paths(tmp_path / "missing.png") == (tmp_path / "missing.png",)
    with pytest.raises(BadInput, match="no image is there"):
        image_paths(tmp_path / "*.jpg")


def test_georeference_of_a_level(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "geo.tif")
    case.write(tmp_path / "geo.tif", photograph())
    placement = placement_of(open_file(tmp_path / "geo.tif", level=2))
    assert placement.to_world((0.5, 0.5)) == (5e5 + 20, 5e6 - 20)
    assert placement.world_transform == (40.0, 0.0, 5e5, 0.0, -40.0, 5e6)
    assert Placement.from_dict(placement.to_dict()) == placement


def test_pages_of_a_geotiff_are_selected_with_their_place(tmp_path: Path) -> None:
    """Each page has a place of its own; overviews are no pages."""
    path, pages = tmp_path / "pages.tif", np.random.default_rng(0).integers(0, 9, (2, 1, 200, 150), np.uint8)
    for number, values in enumerate(pages):
        more = {"APPEND_SUBDATASET": "YES"} if number else {}
        with rasterio.open(
            path, "w", driver="GTiff", height=200, width=150, count=1, dtype="uint8", crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 1000 * number, 0, -10, 0), **more,
        ) as file:  # fmt: skip
            file.write(values)
    for number in (0, 1):
        source = open_file(path, page=number)
        np.testing.assert_array_equal(
            source.read((Span(0, 200), Span(0, 150))), np.moveaxis(pages[number], 0, -1)
        )
        assert placement_of(source).crs is not None
        assert placement_of(source).to_world((0.0, 0.0)) == (1000.0 * number, 0.0)
    with pytest.warns(OnebyoneWarning, match=r"has 2 pages or frames, and the first is read"):
        np.testing.assert_array_equal(
            open_file(path).read((Span(0, 9), Span(0, 9)))[..., 0], pages[0, 0, :9, :9]
        )
    with pytest.raises(BadInput, match=r"page=2: .*has 2 pages, counted from 0"):
        open_file(path, page=2)


def test_overviews_and_masks_of_a_geotiff_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=200, width=150, count=1, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as file:  # fmt: skip
        file.write(np.ones((1, 200, 150), np.uint8))
        file.build_overviews([2])
    assert open_file(path).size == open_file(path, page=0).size == (200, 150)
    assert open_file(path, level=1).size == open_file(path, level=1, page=0).size == (100, 75)
    with pytest.raises(BadInput, match=r"page=1: .*has one page"):
        open_file(path, page=1)
