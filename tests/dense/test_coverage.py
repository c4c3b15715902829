"""Masks and pixels without data: which windows are scored, what the others hold, and that they cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import onebyone
from onebyone.dense import ScoreMap
from onebyone.dense.coverage import Coverage, MaskImage
from onebyone.dense.plan import plan_scan
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.stores.source import ArraySource

WINDOW, STRIDE = 8, 2
LABELS = onebyone.Labels(std=(64.0,))


@pytest.fixture(scope="module")
def dense() -> Any:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 2, 4, stride=STRIDE), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Sigmoid()
    return onebyone.convolutionalize(nn.Sequential(*layers).eval(), WINDOW, labels=LABELS)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (70, 90, 3)).astype(np.uint8)


def windows_with(flags: np.ndarray) -> np.ndarray:
    """By brute force: for each window of an image of the size of `flags`, whether it contains a true one."""
    rows, columns = ((n - WINDOW) // STRIDE + 1 for n in flags.shape)
    return np.array(
        [
            [
                flags[i * STRIDE : i * STRIDE + WINDOW, j * STRIDE : j * STRIDE + WINDOW].any()
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )


def corner_mask() -> np.ndarray:
    mask = np.zeros((70, 90), bool)
    mask[40:53, 60:61] = True
    mask[3, 5] = True
    return mask


class Counting(ArraySource):
    """An image that counts the pixels that are read."""

    pixels = 0

    def read(self, region: Any) -> np.ndarray:
        values = super().read(region)
        Counting.pixels += values.shape[0] * values.shape[1]
        return values


@pytest.mark.parametrize("out", [None, "s.npz", "s.npy", "s.zarr", "s.tif"])
@pytest.mark.parametrize("options", [{"tile": 4}, {"tile": 1000}, {"tile": 6, "shifts": 2, "batch": 3}])
def test_windows_outside_the_mask_hold_nan(
    dense: Any, image: np.ndarray, tmp_path: Path, out: str | None, options: dict[str, Any]
) -> None:
    whole = onebyone.scan(dense, image, **options)
    path = None if out is None else tmp_path / out
    masked = onebyone.scan(dense, image, mask=corner_mask(), out=path, **options)
    if path is not None:
        masked = ScoreMap.load(path)
    step = STRIDE // options.get("shifts", 1)
    rows, columns = ((n - WINDOW) // step + 1 for n in (70, 90))
    inside = np.array(
        [
            [
                corner_mask()[i * step : i * step + WINDOW, j * step : j * step + WINDOW].any()
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )
    scores = np.asarray(masked.scores)
    assert np.isnan(scores[:, ~inside]).all()
    np.testing.assert_allclose(scores[:, inside], whole.scores[:, inside], rtol=1e-5)
    assert masked.unscored.startswith(f"{(~inside).sum():,} of {inside.size:,} windows are outside")
    assert sum(masked.windows_by_class()) <= 3 * inside.sum()


@pytest.mark.parametrize("out", [None, "s.zarr"])
@pytest.mark.parametrize("stated", ["by the file", "by the caller", "in another byte order"])
def test_windows_with_pixels_that_are_not_a_number_are_left_out(
    dense: Any, image: np.ndarray, tmp_path: Path, stated: str, out: str | None
) -> None:
    """The scores of all other windows are those of the image without such pixels."""
    values, missing = image.astype(np.float32), np.zeros((70, 90), bool)
    missing[30:50, :40] = missing[0, 0] = True
    values[missing] = np.nan
    values[3, 60, 1] = np.nan  # one channel
    source: Any = values if stated == "by the caller" else values.astype(">f4")
    options: dict[str, Any] = {"nodata": np.nan}
    if stated == "by the file":
        source, options = tmp_path / "image.tif", {}
        profile = {
            "driver": "GTiff",
            "height": 70,
            "width": 90,
            "count": 3,
            "dtype": "float32",
            "nodata": np.nan,
        }
        with rasterio.open(
            source, "w", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), **profile
        ) as file:
            file.write(np.moveaxis(values, -1, 0))
    path = None if out is None else tmp_path / out
    scores = onebyone.scan(dense, source, tile=5, out=path, **options)
    inside = ~windows_with(np.isnan(values).any(axis=-1))
    found = np.asarray(scores.scores)
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(~np.isnan(found).any(axis=0), inside)
    whole = onebyone.scan(dense, image.astype(np.float32))
    np.testing.assert_allclose(found[:, inside], whole.scores[:, inside], rtol=1e-5)
    assert "windows have pixels that are not a number; their scores are NaN" in str(scores)
    with pytest.raises(BadInput, match="not finite"):
        onebyone.scan(dense, values)


@pytest.mark.parametrize("out", [None, "s.npz"])
def test_windows_of_only_transparent_pixels_of_a_geotiff_are_left_out(
    dense: Any, image: np.ndarray, tmp_path: Path, out: str | None
) -> None:
    there = corner_mask()
    bands = np.concatenate([np.moveaxis(image, -1, 0), there[None] * np.uint8(255)])
    profile = {"driver": "GTiff", "height": 70, "width": 90, "count": 4, "dtype": "uint8", "alpha": "yes"}
    with rasterio.open(
        tmp_path / "image.tif", "w", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        photometric="rgb", **profile,
    ) as file:  # fmt: skip
        file.write(bands)
    path = None if out is None else tmp_path / out
    scores = onebyone.scan(dense, tmp_path / "image.tif", out=path)
    inside = windows_with(there)
    assert np.array_equal(~np.isnan(scores.scores).any(axis=0), inside)
    whole = onebyone.scan(dense, image)
    np.testing.assert_allclose(np.asarray(scores.scores)[:, inside], whole.scores[:, inside], rtol=1e-5)
    assert "windows are transparent or masked in the file; their scores are NaN" in str(scores)


def test_blocks_outside_the_mask_are_not_read(dense: Any, image: np.ndarray) -> None:
    Counting.pixels = 0
    onebyone.scan(dense, Counting(image), tile=4)
    everything = Counting.pixels
    Counting.pixels = 0
    mask = np.zeros((70, 90), bool)
    mask[0, 0] = True
    onebyone.scan(dense, Counting(image), tile=4, mask=mask)
    assert 0 < Counting.pixels < everything / 20


def test_a_mask_of_another_resolution(dense: Any, image: np.ndarray) -> None:
    coarse = np.zeros((7, 9), np.uint8)
    coarse[4, 6] = 255
    masked = onebyone.scan(dense, image, mask=coarse)
    full = np.kron(coarse, np.ones((10, 10), np.uint8)) > 0
    assert np.array_equal(~np.isnan(masked.scores).any(axis=0), windows_with(full))


@pytest.mark.parametrize("mode", ["dense", "windows"])
def test_windows_of_only_nodata_are_left_out(
    dense: Any, image: np.ndarray, tmp_path: Path, mode: str
) -> None:
    values = image.copy()
    values[:, 33:] = 7
    values[20:22, 60] = (7, 7, 8)  # one channel differs: these pixels have data
    path = tmp_path / "image.tif"
    profile = {"driver": "GTiff", "height": 70, "width": 90, "count": 3, "dtype": "uint8", "nodata": 7}
    transform = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    with rasterio.open(path, "w", crs="EPSG:32632", transform=transform, **profile) as file:
        file.write(np.moveaxis(values, -1, 0))
    classifier = onebyone.dense.WindowClassifier(
        nn.Sequential(dense.model, nn.Flatten()), dense.geometry, 3, LABELS
    )
    network, kind = (dense, None) if mode == "dense" else (classifier, "probabilities")
    scores = onebyone.scan(network, path, mode=mode, score_kind=kind)
    inside = windows_with((values != 7).any(axis=-1))
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(~np.isnan(scores.scores).any(axis=0), inside)
    assert "have only the value for no data, 7; their scores are NaN" in str(scores)


def test_an_interrupted_scan_goes_on_only_with_the_same_mask(
    dense: Any, image: np.ndarray, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Stop

    out, mask, other = tmp_path / "s.npy", corner_mask(), corner_mask()
    other[0, 0] = True
    with pytest.raises(Stop):
        onebyone.scan(dense, image, out=out, mask=mask, tile=4, progress=stop)
    with pytest.raises(onebyone.errors.OnebyoneError, match="mask"):
        onebyone.scan(dense, image, out=out, mask=other, tile=4)
    onebyone.scan(dense, image, out=out, mask=mask, tile=4)
    expected = tmp_path / "t.npy"
    onebyone.scan(dense, image, out=expected, mask=mask, tile=4)
    assert out.read_bytes() == expected.read_bytes()


def test_masks_that_do_not_fit_are_refused(dense: Any, image: np.ndarray, tmp_path: Path) -> None:
    for mask, message in (
        (np.ones((90, 70), bool), "another resolution of the same rectangle"),
        (np.zeros((70, 90), bool), "no window to scan"),
        (tmp_path / "none.png", "mask: cannot read"),
    ):
        with pytest.raises(BadInput, match=message):
            onebyone.scan(dense, image, mask=mask)


def test_a_mask_of_another_place_is_refused(dense: Any, image: np.ndarray, tmp_path: Path) -> None:
    for name, shift in (("image.tif", 0), ("same.tif", 0), ("other.tif", 10)):
        transform = rasterio.Affine(10, 0, 5e5 + shift, 0, -10, 5e6)
        profile = {"driver": "GTiff", "height": 70, "width": 90, "count": 3, "dtype": "uint8"}
        with rasterio.open(tmp_path / name, "w", crs="EPSG:32632", transform=transform, **profile) as file:
            file.write(np.moveaxis(image, -1, 0))
    onebyone.scan(dense, tmp_path / "image.tif", mask=tmp_path / "same.tif")
    with pytest.raises(BadInput, match="another part of the world"):
        onebyone.scan(dense, tmp_path / "image.tif", mask=tmp_path / "other.tif")


def test_scores_that_are_not_finite_are_not_taken_for_left_out(image: np.ndarray) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1, keepdim=True)[:, :, ::8, ::8] / 0.0 * 0.0

    geometry = Geometry((1, 1), (8, 8), (0, 0), (1, 1), (0, 0), True)
    broken = onebyone.dense.WindowClassifier(Broken().eval(), geometry, 3, LABELS)
    mask = np.zeros((70, 90), bool)
    mask[0, 0] = True
    with pytest.raises(BadInput, match="scores that are not finite at the positions 0:"):
        onebyone.scan(broken, image, mask=mask, score_kind="logits")


@settings(max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(9, 40),
    st.integers(1, 60),
    st.integers(1, 7),
    st.integers(0, 2**31),
)
def test_coverage_is_that_of_the_definition(
    window: int, stride: int, offset: int, size: int, resolution: int, tile: int, seed: int
) -> None:
    """A window is scored if the real interval that it covers meets one of a flag's, in exact integers."""
    geometry = Geometry((window,), (stride,), (min(offset, window - 1),), (window,), (0,), True)
    flags = np.random.default_rng(seed).random(resolution) < 0.1
    flags[seed % resolution] = True
    plan = plan_scan(geometry, (size,), tile=tile)
    covered = Coverage(plan, [MaskImage(ArraySource(flags[:, None].astype(np.uint8)))])
    expected = []
    for i in range(plan.positions[0]):
        start = max(0, i * stride - geometry.window_offset[0])
        stop = min(size, i * stride - geometry.window_offset[0] + window)
        # pixel k of the mask covers [k·size, (k + 1)·size) in units of 1 / resolution pixels of the image
        expected.append(
            any(
                flags[k] and k * size < stop * resolution and start * resolution < (k + 1) * size
                for k in range(resolution)
            )
        )
    found = np.concatenate([covered.inside((b,)) for b in range(len(plan.axis_tiles[0]))])
    assert found.tolist() == expected
    assert covered.scored == sum(expected)
    if covered.scored:  # `coverage_of` refuses a coverage without any
        sample = covered.sample(5).ravel().tolist()
        assert len(sample) == len(set(sample)) == min(5, covered.scored)
        assert all(expected[i] for i in sample)


def test_objects_are_found_inside_the_mask_only(dense: Any, image: np.ndarray, tmp_path: Path) -> None:
    whole = onebyone.detect(onebyone.scan(dense, image), threshold=0.5, iou=1.0)
    masked = onebyone.scan(dense, image, mask=corner_mask(), out=tmp_path / "s.zarr")
    found = onebyone.detect(masked, threshold=0.5, iou=1.0)
    expected = [
        tuple(row)
        for row in whole.boxes.astype(int).tolist()
        if corner_mask()[row[1] : row[3], row[0] : row[2]].any()
    ]
    assert 0 < len(expected) < len(whole)
    assert sorted(map(tuple, found.boxes.astype(int).tolist())) == sorted(expected)
