"""Products with axes of size 1, which are not part of an order. Both networks were found by the fuzz tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.pytorch.graph.convert import convert_graph
from onebyone.verification import verify


class StridedOneChannel(nn.Module):
    """A strided 1×1 convolution of one channel, behind an operator that keeps its layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 1, stride=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1), mode="reflect")).flatten(1)


class OneOutput(nn.Module):
    """A bare weight (inputs, 1), as additive attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w).softmax(1) * x


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("model", "to", "shape"), [(StridedOneChannel(), "linear", (2, 1, 19)), (OneOutput(), "conv", (2, 5, 6))]
)
def test_axes_of_size_one(model: nn.Module, to: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    c = convert_graph(model.eval(), to=to, example=(x,))
    assert len(c.changes) == 1
    assert (c.model.module()(x) - model(x)).abs().max() < 1e-6
    verification = verify(model, c, x)
    assert verification.equivalent, str(verification)
    assert verification.integer_probe
