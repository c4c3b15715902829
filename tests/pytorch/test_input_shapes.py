"""Windows of one number, signals that a network gives a second axis, inputs without a channel axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.errors import BadInput
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import load_dense
from onebyone.verification import verify
from tests.pytorch.anysize import deviation, randomise

SIGNALS = nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3))


class Pitch(nn.Module):
    """CREPE's shape: a signal `(N, samples)`, two-dimensional layers with kernels of one column, features by place."""

    def __init__(self, view: bool = False, padding: int = 0, average: bool = False) -> None:
        super().__init__()
        self.view, self.padding, self.average = view, padding, average
        self.first, self.norm = nn.Conv2d(1, 4, (8, 1), (2, 1)), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 3, (4, 1)), nn.LazyLinear(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(x.shape[0], 1, -1, 1) if self.view else x[:, None, :, None]
        x = self.norm(F.relu(self.first(F.pad(x, (0, 0, self.padding, self.padding)))))
        x = F.avg_pool2d(x, (2, 1)) if self.average else F.max_pool2d(x, (2, 1), (2, 1))
        x = F.relu(self.second(x)).permute(0, 2, 1, 3)
        return torch.sigmoid(self.head(x.reshape(x.shape[0], -1)))


def pitch(*arguments: bool | int) -> nn.Module:
    model = Pitch(*arguments).eval()
    model(torch.zeros(2, 64))
    return randomise(model).double().eval()


@pytest.mark.parametrize("arguments", [(False, 0), (True, 0), (False, 0, True)])
def test_a_signal_without_a_channel_axis(arguments: tuple[bool | int, ...]) -> None:
    model = pitch(*arguments)
    d = convolutionalize(model, (64,))
    assert d.bare
    assert d.geometry.exact
    assert d.geometry.window == (64,)
    assert d.geometry.stride == (4,)
    signal = torch.randn(2, 83, dtype=torch.float64)
    with torch.no_grad():
        dense = d.model(signal)
        crops = torch.stack([model(signal[:, i : i + 64]) for i in range(0, 20, 4)], -1)
        assert dense.shape == (2, 5, 5)
        assert (dense - crops).abs().max() < 1e-11
        assert torch.equal(d.model(signal[:, None]), dense), "with a channel axis of one too"
    with pytest.raises(BadInput, match=r"image has shape \(83,\); \(N, H\) was expected"):
        d.model(signal[0])


def test_padding_of_such_a_signal_makes_it_inexact_and_is_measured() -> None:
    model = pitch(False, 2)
    d = convolutionalize(model, (64,))
    assert not d.geometry.exact
    assert "padding 2" in d.geometry.inexact_because[0]
    with torch.no_grad():
        signal = torch.randn(2, 64, dtype=torch.float64)
        assert (d.model(signal)[..., 0] - model(signal)).abs().max() < 1e-11


def test_the_verifier_runs_such_a_network_on_crops_without_channels() -> None:
    model = pitch()
    d = convolutionalize(model, (64,))
    v = verify(model, d, torch.randn(2, 90, dtype=torch.float64))
    assert v.equivalent, v.problems
    assert v.gradients is not None
    other = pitch()
    with torch.no_grad():
        other.head.bias += 1e-3
    assert not verify(other, d).equivalent, "another network is told apart"


def test_a_saved_network_without_channels(tmp_path: object) -> None:
    d = convolutionalize(pitch(), (64,))
    path = f"{tmp_path}/pitch.pt2"
    d.save(path)
    again = load_dense(path)
    signal = torch.randn(1, 1, 99, dtype=torch.float64)
    assert again.bare
    assert torch.allclose(again.model(signal), d.model(signal))


def test_a_kernel_that_reaches_into_the_padding_of_an_added_axis() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, (5, 3), (2, 1), padding=(0, 1)), nn.Linear(60, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x.unsqueeze(-1)).flatten(1))

    model = randomise(Wide()).double().eval()
    d = convolutionalize(model, (33,), 2)
    signal = torch.randn(1, 2, 41, dtype=torch.float64)
    with torch.no_grad():
        crops = torch.stack([model(signal[..., i : i + 33]) for i in range(0, 9, 2)], -1)
        assert d.geometry.exact
        assert (d.model(signal) - crops).abs().max() < 1e-11


def test_one_number_is_the_window_on_every_axis_of_the_first_layer() -> None:
    assert convolutionalize(SIGNALS, 33).geometry.window == (33,)
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 3))
    assert convolutionalize(volumes, 4).geometry.window == (4, 4, 4)
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert convolutionalize(images, 4).geometry.window == (4, 4)
    program = torch.export.export(SIGNALS.eval(), (torch.zeros(2, 2, 33),))
    assert convolutionalize(program, 33).geometry.window == (33,)


def test_a_window_of_other_axes_says_what_was_expected() -> None:
    with pytest.raises(
        BadInput, match=r"its first layer slides over 1 axis: expected a window such as \(33,\)"
    ):
        convolutionalize(SIGNALS, (33, 33))
    for wrong in (33.0, np.int64(33), "33", ()):
        with pytest.raises(BadInput, match="one to three positive whole numbers of pixels were expected"):
            convolutionalize(SIGNALS, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", [nn.AvgPool2d(1280, ceil_mode=True), nn.MaxPool2d(1280, ceil_mode=True)])
def test_a_pool_larger_than_the_map_is_a_global_pool(pool: nn.Module) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, 2), pool, nn.Flatten(), nn.Linear(4, 3))).double()
    d = convolutionalize(model.eval(), 9)
    assert d.geometry.exact
    assert d.geometry.stride == (2, 2)
    image = torch.randn(1, 3, 13, 9, dtype=torch.float64)
    with torch.no_grad():
        crops = torch.stack([model(image[:, :, i : i + 9]) for i in (0, 2, 4)], -1)
        assert (d.model(image)[..., 0] - crops).abs().max() < 1e-11


@pytest.mark.parametrize(
    "size",
    [
        lambda x: x[0].numel(),
        lambda x: int(np.prod(x.shape[1:])),
        lambda x: torch.prod(torch.tensor(x.shape[1:])),
        lambda x: math.prod(x.shape) // len(x),
    ],
)
def test_a_view_of_a_computed_size(size: Callable[[torch.Tensor], Any]) -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.head(x.view(-1, size(x)))

    d, error = deviation(Sized(), 8)
    assert d.geometry.exact
    assert error < 1e-11
