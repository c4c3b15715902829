"""Pools and convolutions whose kernel is the whole map: their stride shows nowhere in a window, so it is 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.anysize import Apply, deviation

ROUNDING = 1e-11  # float64, a few hundred terms of size about one


def trunk(axes: int, pool: nn.Module) -> nn.Sequential:
    """Two strided convolutions (5 places per axis of a window of 23) and a pool over the whole map."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    return nn.Sequential(conv(2, 4, 3, 2), conv(4, 6, 3, 2), pool, nn.Flatten(), nn.Linear(6, 3))


def by_function(pool: Callable[..., torch.Tensor]) -> nn.Module:
    return Apply(lambda y: pool(y, [int(n) for n in y.shape[2:]]))


WHOLE = {
    "AvgPool1d": (1, nn.AvgPool1d(5)),
    "AvgPool2d": (2, nn.AvgPool2d(5)),
    "AvgPool3d": (3, nn.AvgPool3d(5)),
    "MaxPool1d": (1, nn.MaxPool1d(5)),
    "MaxPool2d": (2, nn.MaxPool2d(5)),
    "MaxPool3d": (3, nn.MaxPool3d(5)),
    "LPPool2d": (2, nn.LPPool2d(2, 5)),
    "avg_pool2d of the map's size": (2, by_function(F.avg_pool2d)),
    "max_pool2d of the map's size": (2, by_function(F.max_pool2d)),
    "avg_pool2d with its own divisor": (2, nn.AvgPool2d(5, divisor_override=7)),
    "a kernel smaller than the map, with one place": (2, nn.AvgPool2d(4)),
    "a maximum smaller than the map, with one place": (2, nn.MaxPool2d((4, 5))),
    "dilated": (2, nn.MaxPool2d(2, 9, dilation=3)),
    "ceil_mode that adds no place": (2, nn.AvgPool2d(5, ceil_mode=True)),
    "a convolution": (2, nn.Conv2d(6, 6, 5, 5)),
    "a convolution in groups": (1, nn.Conv1d(6, 6, 5, 5, groups=3)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_stride_is_the_trunks_own(name: str) -> None:
    axes, pool = WHOLE[name]
    size = (23 + 9,) if axes == 1 else (23 + 9, 23 + 5) if axes == 2 else (23 + 4, 23, 23 + 5)
    d, error = deviation(trunk(axes, pool), (23,) * axes, size=size)
    assert d.geometry.stride == (4,) * axes
    assert d.geometry.exact
    assert error < ROUNDING


def test_one_place_on_one_axis_alone() -> None:
    """A spectrogram's pool over all frequencies and every second frame."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AvgPool2d((6, 2)), nn.Flatten(), nn.Linear(9, 2))
    d, error = deviation(model, (8, 8))
    assert d.geometry.stride == (1, 2)
    assert error < ROUNDING


def test_a_padded_pool_with_one_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4, 2))
    d, error = deviation(model, 5)
    assert d.geometry.stride == (2, 2)
    assert not d.geometry.exact
    assert error > 1e-3
    with torch.no_grad():
        window = torch.randn(1, 3, 5, 5, dtype=torch.float64)
        assert (d.model(window).flatten(1) - model(window)).abs().max() < ROUNDING


def test_branches_of_which_one_shows_its_stride() -> None:
    """A pool of one place beside a strided convolution that pads: both at the stride of the second."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x)
            return self.head(torch.cat([self.conv(y), self.pool(y)], 1).flatten(1))

    model = Branches().double().eval()
    d, _ = deviation(model, 4)
    assert d.geometry.stride == (2, 2)
    with torch.no_grad():
        image = torch.randn(1, 3, 9, 8, dtype=torch.float64)
        dense, pooled = d.model(image), F.max_pool2d(model.stem(image), 2)
        conv = model.conv(model.stem(image))[..., : pooled.shape[2], : pooled.shape[3]]
        right = F.conv2d(torch.cat([conv, pooled], 1), model.head.weight[..., None, None], model.head.bias)
    assert (dense - right).abs().max() < ROUNDING


def test_a_stride_of_thousands_of_samples() -> None:
    """Pooling networks of audio: four pools of 6 and a strided convolution, 2,592 samples; with two branches."""

    class Audio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, 3, 6, 6)
            self.pools = nn.Sequential(nn.MaxPool1d(6), nn.AvgPool1d(6), nn.MaxPool1d(6))
            self.second, self.third = nn.Conv1d(3, 3, 2, 2), nn.Conv1d(3, 3, 3, 2, 1)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.pools(self.first(x))
            a, b = self.second(y), self.third(y)[..., : y.shape[-1] // 2]
            return self.head((a + 0 * b).flatten(1))

    d, error = deviation(Audio(), (5184,), size=(5184 + 3 * 2592 + 7,))
    assert d.geometry.stride == (2592,)
    assert error < ROUNDING
