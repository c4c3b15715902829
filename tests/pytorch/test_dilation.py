"""Finer maps by dilation equal shifted passes and cropped windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import finer_geometry, scan, scan_windows
from onebyone.errors import BadInput, Refused
from onebyone.pytorch.lift.dilation import dilated, dilated_average
from onebyone.records import Labels
from tests.dense.networks import integer_image, integers

NETS: dict[str, Callable[[], nn.Module]] = {
    "two max pools": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(2, 3)),
    "strided convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, 3), nn.ReLU(), nn.Conv2d(2, 3, (3, 2), 2), nn.Flatten(), nn.Linear(6, 3)),
    "overlapping pool and flatten": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, 2), nn.MaxPool2d(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(),
        nn.Linear(4, 2)),
    "average pools": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2, 2)),
}  # fmt: skip
WINDOWS = {
    "two max pools": 14,
    "strided convolutions": 14,
    "overlapping pool and flatten": 11,
    "average pools": 14,
}
LABELS = Labels(std=(1.0,))


@pytest.mark.parametrize("name", NETS)
def test_dilation_equals_shifted_passes_and_windows(name: str) -> None:
    torch.manual_seed(0)
    model = integers(NETS[name]())
    d = onebyone.convolutionalize(model, window=WINDOWS[name]).with_labels(LABELS)
    image = integer_image(37, 33)
    own = d.geometry.stride
    for factor in [k for k in range(1, own[0] + 1) if own[0] % k == 0 and own[1] % k == 0]:
        stride = tuple(s // factor for s in own)
        fine = dilated(d, stride)
        whole = scan(fine, image, tile=10**6).scores
        tiled = scan(fine, image, tile=5).scores
        shifted = scan(d, image, shifts=factor).scores
        crops = scan_windows(model, image, finer_geometry(d.geometry, factor), labels=LABELS).scores
        # integers: every sum is exact, also the averages over powers of two
        for other in (tiled, shifted, crops):
            np.testing.assert_array_equal(whole, other)


def test_one_axis_can_be_finer_than_the_other() -> None:
    model = integers(NETS["two max pools"]())
    d = onebyone.convolutionalize(model, window=14).with_labels(LABELS)
    image = integer_image(37, 33)
    np.testing.assert_array_equal(
        scan(dilated(d, (2, 4)), image).scores, scan(d, image, shifts=(2, 1)).scores
    )
    np.testing.assert_array_equal(
        scan(d, image, stride=1, finer="dilation").scores, scan(d, image, stride=1, finer="shifts").scores
    )


def test_the_parameters_are_shared_and_the_original_is_unchanged() -> None:
    d = onebyone.convolutionalize(integers(NETS["two max pools"]()), window=14)
    code = d.model.code
    fine = dilated(d, (1, 1))
    assert d.model.code == code
    assert {p.data_ptr() for p in fine.model.parameters()} == {p.data_ptr() for p in d.model.parameters()}


def test_a_planted_fault_is_found() -> None:
    """Without its dilation, the second convolution gives another map."""
    d = onebyone.convolutionalize(integers(NETS["two max pools"]()), window=14).with_labels(LABELS)
    fine = dilated(d, (1, 1))
    for node in fine.model.graph.nodes:
        if "conv2d" in node.name and node.args[5] == [2, 2]:
            node.args = (*node.args[:5], [1, 1], *node.args[6:])
    fine.model.recompile()
    image = integer_image(37, 33)
    assert not np.array_equal(scan(fine, image).scores, scan(d, image, shifts=4).scores)


def test_networks_without_a_dilated_form_are_refused_by_name() -> None:
    padded = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(Refused, match=r"would pad at other places: 0 \(aten.conv2d\)"):
        dilated(onebyone.convolutionalize(padded, window=8), (1, 1))
    with pytest.raises(BadInput, match="expected divisors"):
        dilated(onebyone.convolutionalize(NETS["two max pools"](), window=14), (3, 1))
    odd = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.LPPool2d(2, 2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 2)
    )
    try:
        d = onebyone.convolutionalize(odd, window=8)
    except Refused:
        return
    with pytest.raises(Refused, match="no dilated form"):
        dilated(replace(d), (1, 1))


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_dilated_average_is_a_depthwise_convolution(dilation: int) -> None:
    x = torch.randn(2, 3, 17, 19, dtype=torch.float64)
    kernel = torch.full((3, 1, 3, 2), 1 / 6, dtype=torch.float64)
    expected = torch.conv2d(x, kernel, None, (2, 1), 0, dilation, 3)
    # six terms and two divisions: a few units of 2^-53, of values below 10
    torch.testing.assert_close(
        dilated_average(x, (3, 2), (2, 1), (dilation, dilation)), expected, rtol=0, atol=16 * 2**-53 * 10
    )
