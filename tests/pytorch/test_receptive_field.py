"""The geometry that is derived, against impulses: which pixels a result really depends on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onebyone.laws.geometry import Geometry
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from tests.pytorch.anysize import Residual


def linearised(model: nn.Module) -> nn.Module:
    """Positive weights and no clipping, so that no influence cancels or is hidden: every path shows."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)  # type: ignore[arg-type]
                setattr(module, name, pool)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, dtype=torch.float64) + 0.5
    return model.double().eval()


def seen(model: nn.Module, image: torch.Tensor, place: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """First pixel and first pixel past those that the place depends on, per axis, by the gradient."""
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(image)[0, :, place[0], place[1]].sum(), image)
    support = gradient[0].abs().sum(0) > 0
    spans = []
    for axis in (1, 0):
        rows = support.any(axis).nonzero().flatten()
        spans.append((int(rows[0]), int(rows[-1]) + 1))
    return tuple(spans)


NETWORKS = {
    "unpadded": nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 3, dilation=2),
        nn.Flatten(),
        nn.Linear(2 * 16, 3),
    ),
    "padded": nn.Sequential(
        nn.Conv2d(1, 2, 5, 2, padding=2),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(2, 2, 3, padding=1),
        nn.Flatten(),
        nn.Linear(2 * 25, 3),
    ),
    "uneven padding": nn.Sequential(
        nn.ZeroPad2d((0, 1, 1, 0)),
        nn.Conv2d(1, 2, 3, 2),
        nn.Conv2d(2, 2, 4, padding="same"),
        nn.Flatten(),
        nn.Linear(2 * 81, 3),
    ),
    "branches": nn.Sequential(
        nn.Conv2d(1, 2, 3),
        Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)), 0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    ),
    "other heights than widths": nn.Sequential(
        nn.Conv2d(1, 2, (5, 3), (1, 2), padding=(2, 0)), nn.Flatten(), nn.Linear(2 * 18 * 8, 3)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_receptive_field_is_what_an_impulse_shows(name: str) -> None:
    d = convolutionalize(linearised(NETWORKS[name]), 18)
    g = d.geometry
    image = torch.ones(1, 1, 18 + 12 * g.stride[0], 18 + 13 * g.stride[1], dtype=torch.float64)
    counts = g.positions(image.shape[2:])
    for place in ((counts[0] // 2, counts[1] // 2), (0, counts[1] - 1)):
        derived = [
            (max(0, a), min(n, b))
            for (a, b), n in zip(g.receptive_field_at(place), image.shape[2:], strict=True)
        ]
        assert seen(d.model, image, place) == tuple(derived)


def test_a_wrong_offset_would_be_seen() -> None:
    d = convolutionalize(linearised(NETWORKS["padded"]), 18)
    g = d.geometry
    off = Geometry(
        g.window,
        g.stride,
        g.window_offset,
        g.receptive_field,
        tuple(o + 1 for o in g.receptive_field_offset),
        g.exact,
        g.inexact_because,
    )
    image = torch.ones(1, 1, 18 + 12 * g.stride[0], 18 + 12 * g.stride[1], dtype=torch.float64)
    assert seen(d.model, image, (6, 6)) == g.receptive_field_at((6, 6)) != off.receptive_field_at((6, 6))
