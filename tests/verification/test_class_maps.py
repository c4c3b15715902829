"""`head="cam"`: statements about the means of a class map are true and verified, and injected faults are caught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput, Refused
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule, load_dense
from onebyone.verification import verify
from tests.pytorch.anysize import Apply, randomise

ROUNDING = 1e-11  # float64, a few hundred terms of size about one


def network(*head: nn.Module, pool: nn.Module | None = None, padding: int = 0) -> nn.Sequential:
    """Windows of 13 pixels: 6×6 places of 6 channels at stride 2, an average pool, then `head`."""
    trunk = [nn.Conv2d(3, 6, 3, 2, padding), nn.Tanh(), pool or nn.AdaptiveAvgPool2d(1)]
    return randomise(nn.Sequential(*trunk, *head)).eval()


class Ratio(nn.Module):
    """A head of plain operators: scores over a constant temperature, and themselves added."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x[:, 3:], x[:, :3]], 1) / 0.7 - 2
        return y + 0.5 * x


LINEAR = {
    "linear": [nn.Flatten(), nn.Linear(6, 4)],
    "two linear layers": [nn.Flatten(), nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 4)],
    "batch norm": [nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)],
    "a 1×1 convolution": [nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Flatten()],
    "operators": [nn.Flatten(), Ratio()],
}
NONLINEAR = {
    "ReLU": ([nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)], "5 (aten.relu)"),
    "softmax": ([nn.Flatten(), nn.Linear(6, 4), nn.Softmax(1)], "5 (aten.softmax)"),
    "a norm over channels": ([nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 4)], "4 (aten.layer_norm)"),
    "generalised mean": (
        [Apply(lambda y: (y + 3).clamp(1e-6).pow(1 / 3)), nn.Flatten(), nn.Linear(6, 4)],
        "aten.pow",
    ),
    "a product of two": ([nn.Flatten(), Apply(lambda y: y * y.flip(1))], "aten.mul"),
    "a quotient": ([nn.Flatten(), Apply(lambda y: 1 / (3 + y))], "aten.reciprocal"),
    "rounding": ([nn.Flatten(), Apply(lambda y: torch.div(8 * y, 0.1, rounding_mode="floor"))], "aten.div"),
}


def window_means(d: ConvolutionalizedModule, image: Tensor) -> Tensor:
    assert d.class_map is not None
    return F.avg_pool2d(d.model(image), d.class_map.pool, 1)


@pytest.mark.parametrize("name", [*LINEAR, *NONLINEAR])
def test_the_means_are_the_windows_numbers_exactly_where_that_is_said(name: str) -> None:
    head = LINEAR.get(name) or NONLINEAR[name][0]
    model = network(*head).double()
    d = convolutionalize(model, 13, head="cam")
    assert d.class_map is not None
    assert d.class_map.pool == (6, 6)
    image = torch.randn(2, 3, 19, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    crops = [model(image[..., y : y + 13, x : x + 13]) for y in (0, 2, 4, 6) for x in (0, 2, 4)]
    right = torch.stack([c.flatten(1) for c in crops], -1).unflatten(-1, (4, 3))
    error = float((window_means(d, image) - right).detach().abs().max())
    assert (error < ROUNDING) is (name in LINEAR), error
    assert (name in LINEAR) is not bool(d.class_map.nonlinear)
    v = verify(model, d, gradients=False)
    assert v.equivalent, str(v)
    (reason,) = d.geometry.inexact_because
    if name in LINEAR:
        assert "means of the map over as many positions equal the outputs of cropped windows" in reason
        assert v.target == "means of the class map = crops"
        assert v.bound is not None
    else:
        assert NONLINEAR[name][1] in reason
        assert "do not equal the outputs of cropped windows" in reason
        assert v.target == "means of the class map ≈ crops (measured)"
        assert v.max_abs_difference is not None
        assert v.max_abs_difference > 1e-4


@pytest.mark.parametrize("pool", [nn.AvgPool2d(6), nn.AvgPool2d((6, 6), 1)])
def test_a_pool_written_with_a_kernel(pool: nn.Module) -> None:
    model = network(nn.Flatten(), nn.Linear(6, 4), pool=pool)
    d = convolutionalize(model, 13, head="cam")
    assert d.geometry.window == (3, 3)
    assert verify(model, d).equivalent


def test_a_padded_network_has_equal_means_on_one_window() -> None:
    model = network(nn.Flatten(), nn.Linear(6, 4), padding=1)
    v = verify(model, convolutionalize(model, 13, head="cam"))
    assert v.equivalent, str(v)
    assert v.target == "means of the class map ≈ crops (measured)"
    assert v.max_error is not None
    assert v.gradients is not None
    assert v.gradients.ok


class Tampered(nn.Module):
    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.how == "shift":
            return y.roll(1, -1)
        if self.how == "scale":
            return y * 1.001
        if self.how == "classes":
            return y.flip(1)
        return F.pad(y, (0, 1)) if self.how == "places" else y


@pytest.mark.parametrize("how", ["shift", "scale", "classes", "places"])
@pytest.mark.parametrize("name", ["linear", "ReLU"])
def test_faulty_class_maps_are_caught(name: str, how: str) -> None:
    head = LINEAR.get(name) or NONLINEAR[name][0]
    model = network(*head)
    d = convolutionalize(model, 13, head="cam")
    tampered = replace(d, model=Tampered(d.model, how), pairs=())
    v = verify(model, tampered, gradients=False)
    assert not v.equivalent
    if name == "ReLU" and how == "shift":
        assert any("their own pixels" in p for p in v.problems)


def test_a_head_that_is_called_linear_and_is_not_is_caught() -> None:
    model = network(*NONLINEAR["ReLU"][0])
    d = convolutionalize(model, 13, head="cam")
    assert d.class_map is not None
    called = replace(d.class_map, nonlinear=())
    geometry = replace(d.geometry, inexact_because=(called.reason,))
    assert not verify(model, replace(d, class_map=called, geometry=geometry), gradients=False).equivalent


def test_positions_are_what_the_model_takes() -> None:
    d = convolutionalize(network(nn.Flatten(), nn.Linear(6, 4)), 13, head="cam")
    for size in ((3, 3), (3, 4), (5, 12), (13, 13)):
        assert tuple(d.model(torch.zeros(1, 3, *size)).shape[2:]) == d.geometry.positions(size)
    with pytest.raises(BadInput, match="smaller than the window of 3×3"):
        d.model(torch.zeros(1, 3, 2, 3))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("saved", [False, True])
def test_tiles_equal_the_whole(padding: int, saved: bool, tmp_path: Path) -> None:
    d: Any = convolutionalize(network(nn.Flatten(), nn.Linear(6, 4), padding=padding), 13, head="cam")
    if saved:
        d.save(tmp_path / "map.pt2")
        again = load_dense(tmp_path / "map.pt2")
        assert again.class_map == d.class_map
        d = again
    picture = np.random.default_rng(0).integers(0, 255, (40, 45, 3), dtype=np.uint8)
    whole, tiled = (
        onebyone.scan(d, picture, labels=onebyone.Labels(std=(1.0,)), tile=tile).scores for tile in (10**6, 2)
    )
    assert whole.shape == (4, *d.geometry.positions((40, 45)))
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


class TwoBranches(nn.Module):
    """A pooled branch, and beside it what `other` says."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.other = other
        self.conv, self.fine = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 3, 1)
        self.head, self.flat = nn.Linear(8 if "pool" in other else 4, 2), nn.Linear(144, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        mean = y.mean((2, 3))
        if self.other == "flatten":
            return self.head(mean) + self.flat(y.flatten(1))
        if self.other == "another output":
            return self.head(mean), self.flat(y.flatten(1))
        if self.other == "a pool at another stride":
            return self.head(torch.cat([mean, self.fine(x).mean((2, 3))], 1))
        return self.head(torch.cat([mean, y.amax((2, 3))], 1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(484, 2)), "no average pool"),
        (network(nn.Flatten(), nn.Linear(6, 2), pool=nn.AdaptiveMaxPool2d(1)), "no average pool"),
        (network(nn.Flatten(), nn.Linear(24, 2), pool=nn.AdaptiveAvgPool2d(2)), "no average pool"),
        (TwoBranches("flatten"), "values that do not come through the pool"),
        (TwoBranches("a maximum pool"), "values that do not come through the pool"),
        (TwoBranches("another output"), "output 1 does not come through"),
        (
            TwoBranches("a pool at another stride"),
            "pools that differ: 11×11 positions at stride 1×1 and 6×6 positions at stride 2×2",
        ),
    ],
)
def test_networks_without_a_class_map_are_refused(model: nn.Module, reason: str) -> None:
    convolutionalize(model, 13)
    with pytest.raises(Refused, match=reason):
        convolutionalize(model, 13, head="cam")


def test_signals() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.AvgPool1d(7), nn.Flatten(), nn.Linear(4, 3))
    assert verify(model, convolutionalize(model, (15,), head="cam")).equivalent
