"""Operators that are replaced in the reference implementation, against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onebyone.onnx.evaluators import proto_of, run_onnx_runtime, run_reference
from tests.onnx.models import graph, model


@pytest.mark.parametrize(
    ("shape", "indices", "axis"), [("1,9", (1, 4), 1), ("3,5", (2, 5), 0), ("2,3,4", (2, 1, 6), -1)]
)
def test_gather_elements_against_onnx_runtime(shape: str, indices: tuple[int, ...], axis: int) -> None:
    size = [int(s) for s in shape.split(",")][axis]
    index = np.random.default_rng(0).integers(-size, size, indices)
    result = ",".join(map(str, indices))
    m = model(graph(shape, result, f"y = GatherElements<axis={axis}>(x, i)"), {"i": index})
    x = np.random.default_rng(1).standard_normal([int(s) for s in shape.split(",")]).astype(np.float32)
    assert np.array_equal(run_reference(proto_of(m), {"x": x})[0], run_onnx_runtime(proto_of(m), {"x": x})[0])


@pytest.mark.parametrize("shape", [(), (3, 7)])
def test_erf_against_the_standard_library(shape: tuple[int, ...]) -> None:
    m = model("g (double[N] x) => (double[N] y) { y = Erf(x) }")
    x = 2 * np.random.default_rng(2).standard_normal(shape)
    expected = np.vectorize(math.erf)(x)
    (actual,) = run_reference(proto_of(m), {"x": x})
    assert actual.shape == shape
    assert actual.dtype == np.float64
    assert (
        np.abs(actual - expected).max() <= 4 * 2.0**-53
    )  # each is within one unit in the last place of at most 1
