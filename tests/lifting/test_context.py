"""Values of a whole window that act on each of its positions, on the NumPy front end.

All values are below 10³ with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.lifting.values import Cannot
from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop, run

ROUNDING = 1e-11
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape)


LESS_THE_MEAN = [
    Op("conv", "convolution", ("image", "kernel", "shift")),
    Op("mean", "mean", ("conv",), {"axes": (2, 3), "keep": True}),
    Op("less", "subtract", ("conv", "mean")),
    Op("body", "convolution", ("less", "kernel2", "shift2")),
    Op("last", "mean", ("body",), {"axes": (2, 3)}),
]
LESS_THE_MEAN_CONSTANTS = {
    "kernel": normal(4, 2, 3, 3),
    "shift": normal(4),
    "kernel2": normal(4, 4, 2, 2),
    "shift2": normal(4),
}


@pytest.mark.parametrize("window", [(6, 6), (7, 6), (5, 8)])
def test_global_context_is_refused_or_taken_over_the_window_around_each_position(
    window: tuple[int, int],
) -> None:
    """Even and odd numbers of positions; on an image of one window the result is the network's own."""
    image = normal(2, 2, *window)
    with pytest.raises(Cannot, match="choose context="):
        any_size(LESS_THE_MEAN, LESS_THE_MEAN_CONSTANTS, image, window)
    dense, _, lifter = any_size(LESS_THE_MEAN, LESS_THE_MEAN_CONSTANTS, image, window, "window")
    assert any("global context" in reason for reason in lifter.inexact)
    crops = every_crop(LESS_THE_MEAN, LESS_THE_MEAN_CONSTANTS, image, window, (1, 1))
    assert np.abs(dense - crops).max() < ROUNDING


@pytest.mark.parametrize("window", [(6, 6), (7, 6), (5, 8)])
def test_context_of_the_window_is_the_same_in_every_part_of_the_image(window: tuple[int, int]) -> None:
    """Away from the edges, position q of the convolution is less the mean of the window's positions around it:
    from q - ⌊(n - 1) / 2⌋ on, n of them."""
    image = normal(1, 2, 20, 21)
    dense, _, _ = any_size(LESS_THE_MEAN, LESS_THE_MEAN_CONSTANTS, image, window, "window")
    conv = run(LESS_THE_MEAN[:1], LESS_THE_MEAN_CONSTANTS, image)["conv"]
    size = [n - 2 for n in window]
    before = [(n - 1) // 2 for n in size]
    less = np.full_like(conv, np.nan)
    for y in range(before[0], conv.shape[2] - size[0] + before[0] + 1):
        for x in range(before[1], conv.shape[3] - size[1] + before[1] + 1):
            top, left = y - before[0], x - before[1]
            around = conv[:, :, top : top + size[0], left : left + size[1]]
            less[:, :, y, x] = conv[:, :, y, x] - around.mean((2, 3))
    constants = LESS_THE_MEAN_CONSTANTS | {"less": less}
    body = run(LESS_THE_MEAN[3:4], constants, image)["body"]
    view = np.lib.stride_tricks.sliding_window_view(body, [n - 1 for n in size], (2, 3))
    expected = view.mean((4, 5))
    assert dense.shape == expected.shape
    inside = ~np.isnan(expected)
    assert inside.sum() > 100
    assert np.abs(dense - expected)[inside].max() < ROUNDING
