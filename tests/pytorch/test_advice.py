"""What `convolutionalize` warns of: receptive fields far larger than the window, and windows that would be exact."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from onebyone.errors import InexactWarning
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from tests.pytorch.anysize import every_window, image_for, randomise
from tests.pytorch.inexact_networks import Output, Refine, pitch


@pytest.mark.parametrize(("build", "window", "better"), [(Refine, 24, 25), (Output, 48, 49)])
def test_the_window_that_is_advised_is_exact(build: type[nn.Module], window: int, better: int) -> None:
    network = randomise(build()).double().eval()
    with pytest.warns(InexactWarning, match=f"at a window of {better}×{better} it would be"):
        d = convolutionalize(network, window)
    assert not d.geometry.exact
    assert len(d.advice) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = convolutionalize(network, better)
    assert d.geometry.exact
    assert d.advice == ()
    image = image_for(d, (better + 9, better + 5), 1)
    with torch.no_grad():
        dense = d.model(image)
        dense = dense[1] if isinstance(dense, tuple) else dense
        crops = every_window(lambda x: (lambda y: y[1] if isinstance(y, tuple) else y)(network(x)), d, image)  # type: ignore[arg-type, return-value]
    assert (dense - crops).abs().max() < 1e-11


def test_axes_of_a_window_are_searched_by_themselves() -> None:
    network = nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.Flatten(), nn.Linear(3 * 4 * 3, 2))
    with pytest.warns(InexactWarning, match="at a window of 8×6 it would be"):
        convolutionalize(network, (7, 6), 3)


def test_padding_leaves_no_window_to_advise() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.Flatten(), nn.Linear(64, 2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convolutionalize(network, 7).advice == ()


def test_a_receptive_field_far_beyond_the_window() -> None:
    with pytest.warns(InexactWarning, match=r"962 pixels is 15 times the window of 64 \(more than 4\)"):
        d = convolutionalize(pitch(), (64,))
    assert d.geometry.receptive_field == (962,)
    assert "mode='windows'" in d.advice[0]
    with torch.no_grad():
        signal = torch.randn(1, 1, 2000, generator=torch.Generator().manual_seed(0))
        dense, crops = d.model(signal), every_window(pitch(), d, signal)
    assert float((dense.argmax(1) == crops.argmax(1)).double().mean()) < 0.5, "and the reason is real"
