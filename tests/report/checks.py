"""What the interactive views must show, computed a second time from the layers: by autograd, by reshaping."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.comparison.conftest import network


def reached(layer: nn.Module, size: tuple[int, int], pixel: tuple[int, int]) -> list[int]:
    """The output positions with a non-zero derivative with respect to a pixel, by autograd on the network's layer."""
    layer = layer.double()
    channels = layer.weight.shape[1] if isinstance(layer, nn.Conv2d) else 6
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, channels, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    y = layer(x)[0].flatten(1) if isinstance(layer, nn.Conv2d) else layer(x.flatten(1))[:, :16]
    positions = []
    for position in range(y.shape[1]):
        gradient = torch.autograd.grad(y[:, position].square().sum(), x, retain_graph=True)[0]
        if bool(gradient[0, :, pixel[0], pixel[1]].abs().max() > 0):
            positions.append(position)
    return positions


LAYERS = {"pointwise": (2, (6, 5)), "kernel": (0, (6, 5)), "connected": (5, (6, 5))}


def lit(page: Any, role: str) -> list[int]:
    """The output squares that are drawn as changed."""
    squares = page.locator(f'.mover[data-role="{role}"] .output .on')
    opacity = squares.evaluate_all("all => all.map(s => Number(s.getAttribute('fill-opacity')))")
    return [i for i, value in enumerate(opacity) if value > 0]


def place(page: Any, role: str, pixel: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """The screen position of a pixel of an input."""
    grid = page.locator(f'.mover[data-role="{role}"] .input svg')
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    y, x = ((p + 0.5) / n for p, n in zip(pixel, size, strict=True))
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def check_pixel(page: Any, pixel: tuple[int, int]) -> None:
    for role, (at, size) in LAYERS.items():
        expected = reached(network()[at], size, pixel)
        assert lit(page, role) == expected, role
        words = page.locator(f'.mover[data-role="{role}"] .result').inner_text()
        assert words.startswith(f"The pixel in row {pixel[0]}, column {pixel[1]} changes {len(expected)} of ")


def written(value: float) -> str:
    return f"{value:.5g}".replace("-", "−")


def check_order(page: Any, index: int, neuron: int = 0) -> None:
    """The selected column against the layer's weight, whose position is computed by reshaping it here."""
    weight = network()[5].weight.detach()[neuron]
    c, y, x = (int(n) for n in torch.nonzero((torch.arange(180) == index).view(6, 6, 5))[0])
    cells = page.locator("#order-near td.picked").all_inner_texts()
    value = written(float(weight[index]))
    assert cells == [str(index), value, f"({c}, {y}, {x})", value]
    told = page.locator("#order-live").inner_text()
    assert f"Element {index} of the row is channel {c}, row {y}, column {x} of the filter" in told
    assert told.endswith(f"= {index}. Both values are {value}.")
