"""Images that are resized as they are read, against PyTorch's antialiased interpolation of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import onebyone
from onebyone.errors import BadInput
from onebyone.stores import resized as module
from onebyone.stores.regions import Span
from onebyone.stores.resized import resized
from onebyone.stores.source import ArraySource, whole_region


def interpolated(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """PyTorch's result in float64. It repeats the first row where the result has one column (2.x on CPUs)."""
    planes = torch.from_numpy(values.astype(np.float64)).permute(2, 0, 1).contiguous()
    results = [F.interpolate(p[None, None], size, mode="bilinear", antialias=True)[0, 0] for p in planes]
    return torch.stack(results, -1).numpy()


@settings(max_examples=60)
@given(st.integers(5, 40), st.integers(5, 40), st.floats(0.15, 2.5), st.integers(0, 2**31))
def test_any_region_equals_that_of_the_whole_image(rows: int, columns: int, factor: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.random((rows, columns, 2))
    source = resized(ArraySource(values), factor)
    assume(source.size[1] > 1)
    expected = interpolated(values, source.size)
    # weights are sums of at most 2·reach + 1 products; both compute in float64
    np.testing.assert_allclose(source.read(whole_region(source)), expected, atol=1e-12)
    region = []
    for n in source.size:
        start = int(random.integers(0, n))
        region.append(Span(start, int(random.integers(start, n)) + 1, int(random.integers(1, 4))))
    assert np.array_equal(
        source.read(region), source.read(whole_region(source))[tuple(s.slice for s in region)]
    )


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = resized(ArraySource(np.random.default_rng(0).random((50, 40, 1))), 0.3)
    whole = source.read(whole_region(source))
    monkeypatch.setattr(module, "_STRIP", 1)
    assert np.array_equal(source.read(whole_region(source)), whole)


def test_an_object_is_found_at_the_actual_scale() -> None:
    """A square of 32 pixels, for a classifier of windows of 8: at a quarter of 250×187 pixels, which is 62×47."""
    convolution = nn.Conv2d(1, 1, 8)  # of pixels from 0 to 50, by the labels below
    with torch.no_grad():
        convolution.weight.fill_(1 / 64)
        convolution.bias.fill_(-40)  # type: ignore[union-attr]
    labels = onebyone.Labels(scale=1 / 255, std=(0.02,))
    network = nn.Sequential(convolution, nn.Flatten(), nn.Sigmoid()).eval()
    dense = onebyone.convolutionalize(network, 8, labels=labels)
    image = np.zeros((250, 187), np.uint8)
    image[100:132, 60:92] = 255
    maps = [onebyone.scan(dense, image, resize=factor) for factor in (1, 0.25)]
    assert maps[1].image_size == (62, 47)
    found = onebyone.detect(maps, iou=0.05, max_detections=1)
    alone = onebyone.detect(maps[1], iou=0.05)
    assert found.image_size == alone.image_size == (250, 187)
    # of windows of one pixel of the reduced image, the nearest is at most half a pixel of it away
    (x1, y1, x2, y2) = alone.boxes[0].tolist()
    assert abs((y1 + y2) / 2 - 116) <= 250 / 62 / 2
    assert abs((x1 + x2) / 2 - 76) <= 187 / 47 / 2
    assert (y2 - y1, x2 - x1) == pytest.approx((8 * 250 / 62, 8 * 187 / 47), rel=1e-6)
    assert maps[1].placement is not None
    assert maps[1].full_placement is not None
    assert maps[1].placement.scale == (250 / 62, 187 / 47)
    assert maps[1].full_placement.scale == pytest.approx((1, 1), rel=1e-15)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_bad_factors_are_named(factor: float) -> None:
    with pytest.raises(BadInput, match=rf"resize={factor}: "):
        resized(ArraySource(np.zeros((4, 4, 1), np.uint8)), factor)
