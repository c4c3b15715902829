"""Random ONNX models with integer numbers: every window of an image equals its crop, bit for bit, at all sizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onebyone
from tests.onnx.lift_networks import every_crop, random_network, run, session


def check(seed: int) -> None:
    """Images of the window and of 0 to 2 · stride pixels more, on both axes at once and one after the other."""
    graph, window = random_network(seed)
    model = graph.model(batch=1 if seed % 3 == 0 else "n")
    d = onebyone.convolutionalize(ir.from_proto(model))
    assert d.geometry.exact
    assert d.geometry.window == window
    assert d.channels_last == graph.channels_last
    dense = ir.to_proto(d.model)
    onnx.checker.check_model(dense, full_check=True)
    loaded = session(dense)
    rng, stride = np.random.default_rng(seed), d.geometry.stride
    for more in range(2 * max(stride) + 1):
        size = (window[0] + more, window[1] + (2 * max(stride) - more if seed % 2 else more))
        x = rng.integers(-2, 3, (2, d.channels, *size)).astype(np.float32)
        ((actual,), (expected,)) = (
            run(loaded, x),
            every_crop(model, x, window, stride, last=graph.channels_last),
        )
        assert actual.shape[2:] == tuple(d.geometry.positions(size))
        assert np.array_equal(actual, expected), f"seed {seed}, image {size}"


@pytest.mark.parametrize("part", range(4))
def test_every_window_of_a_random_model_equals_its_crop(part: int) -> None:
    for seed in range(part, 24, 4):
        check(seed)


@pytest.mark.slow
def test_every_window_of_500_random_models_equals_its_crop() -> None:
    for seed in range(1000, 1500):
        check(seed)


def test_a_padded_model_equals_the_original_on_one_window() -> None:
    """auto_pad is fixed at its amounts for one window; larger images differ from crops, and the result says so."""
    inexact = 0
    for seed in range(24):
        graph, window = random_network(seed, pads=True)
        model = graph.model()
        d = onebyone.convolutionalize(ir.from_proto(model))
        inexact += not d.geometry.exact
        x = np.random.default_rng(seed).integers(-2, 3, (2, d.channels, *window)).astype(np.float32)
        original = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if graph.channels_last else x
        ((actual,), (expected,)) = run(session(ir.to_proto(d.model)), x), run(session(model), original)
        assert np.array_equal(actual.reshape(2, -1), expected.reshape(2, -1)), f"seed {seed}"
        larger = np.zeros((1, d.channels, window[0] + 7, window[1] + 3), dtype=np.float32)
        (maps,) = run(session(ir.to_proto(d.model)), larger)
        assert maps.shape[2:] == tuple(d.geometry.positions(larger.shape[2:]))
    assert inexact > 12
