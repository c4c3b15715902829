"""Linear steps on gathered rows (convolutions), and on rows that are multiplied by factors where they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.native.steps import LinearStep
from tests.native.build import error, kinds, needs_compiler, steps_of

pytestmark = needs_compiler


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, 1),
        ({"kernel_size": 1, "stride": 2}, 2),
        ({"kernel_size": (2, 3), "stride": (1, 2), "padding": (2, 0)}, 3),
        ({"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2}, 2),
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_convolutions_as_layers_on_rows(settings: dict[str, Any], samples: int, threads: int) -> None:
    """So many outputs that Strassen's algorithm is used: strides, padding, dilation, samples and threads."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 256, 1), nn.Conv2d(256, 384, **settings), nn.ReLU())
    x = torch.randn(samples, 3, 21, 18)
    step = steps_of(network, x)[-1]
    assert isinstance(step, LinearStep)
    assert step.levels is not None
    assert step.levels >= 1
    assert step.index is not None
    # a level of Strassen's algorithm multiplies the bound by at most 8
    assert error(network, x, threads) < 64 * (step.inputs + 100)


def test_an_image_in_patches() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 384, 16, 16)), torch.randn(2, 3, 128, 112)
    assert kinds(network, x) == ["INPUT", "LINEAR"]
    step = steps_of(network, x)[-1]
    assert isinstance(step, LinearStep)
    assert step.pieces == 16  # rows of the patch, each one run of numbers
    assert error(network, x) < 64 * (768 + 100)


class Scaled(nn.Module):
    """A map times a number for each channel and sample, then a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, form: str) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, inputs, 1), nn.Conv2d(inputs, outputs, 1)
        self.head, self.form = nn.Linear(inputs * 72, 5), form

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 9, 8) to (N, outputs, 9, 8), or (N, 5)."""
        x = self.stem(x)
        y = x * x.mean((2, 3), keepdim=True)
        if self.form == "a layer on whole maps":
            out: Tensor = self.head(y.flatten(1))
            return out
        z: Tensor = self.project(y)
        return z + self.project(torch.relu(y)) if self.form == "read twice" else z


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 20), (40, 96), (256, 384)])
@pytest.mark.parametrize("samples", [1, 5])
def test_factors_are_applied_where_the_rows_are_read(inputs: int, outputs: int, samples: int) -> None:
    torch.manual_seed(0)
    network, x = Scaled(inputs, outputs, "pointwise"), torch.randn(samples, 3, 9, 8)
    assert "ELEMENTWISE" not in kinds(network, x)
    for threads in (1, 2, 3):
        assert error(network, x, threads) < 64 * (inputs + 100)


@pytest.mark.parametrize("form", ["a layer on whole maps", "read twice"])
def test_factors_are_a_step_where_the_next_step_cannot_apply_them(form: str) -> None:
    torch.manual_seed(0)
    network, x = Scaled(24, 24, form), torch.randn(2, 3, 9, 8)
    assert "ELEMENTWISE" in kinds(network, x)
    assert error(network, x) < 64 * (24 * 72 + 100)
