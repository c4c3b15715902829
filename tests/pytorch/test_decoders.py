"""The tables of decoders, and operators whose settings PyTorch spells in ways of its own."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.decoders import elementwise, normalisation, product, reduce, shape, sliding
from onebyone.pytorch.lift.rules import _overloads
from tests.pytorch.anysize import Apply, deviation, randomise

ROUNDING = 1e-11


def test_no_operator_has_two_decoders() -> None:
    tables = [m.DECODERS for m in (elementwise, normalisation, product, reduce, shape, sliding)]
    refused = [o for m in (product, reduce, shape, sliding) for reason in m.REFUSED.values() for o in reason]
    listed = Counter(o for table in (*tables, refused) for op in table for o in _overloads(op))
    assert [str(o) for o, count in listed.items() if count > 1] == []


def test_a_count_over_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        Apply(lambda y: torch.count_nonzero(y.relu(), (1,)).to(y.dtype)),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    d, error = deviation(model, 6)
    assert d.geometry.exact
    assert error < ROUNDING


def along_one_axis(layer: nn.Module) -> nn.Module:
    """A signal with a second axis of one element, which the network adds and removes itself."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), Apply(lambda y: y.unsqueeze(3)), layer, nn.Flatten(), nn.LazyLinear(3)
    )


ADDED_AXIS = {
    "unequal padding": nn.Conv2d(4, 4, (4, 1), padding="same"),
    "a mean with a divisor": Apply(lambda y: F.avg_pool2d(y, (2, 1), divisor_override=3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("name", ADDED_AXIS)
def test_settings_over_an_axis_that_the_network_added(name: str) -> None:
    model = along_one_axis(ADDED_AXIS[name])
    model(torch.zeros(1, 2, 12))  # gives the lazy layer its shape
    model = randomise(model).double().eval()
    d = convolutionalize(model, 12, 2)
    image = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        assert (d.model(image)[..., 0] - model(image)).abs().max() < ROUNDING
    assert d.geometry.exact is (name != "unequal padding")
    if d.geometry.exact:
        assert deviation(model, 12, 2)[1] < ROUNDING
