"""Weights of eight bits with a scale for each block of numbers (opset 21), against NumPy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import run_onnx_runtime, run_reference
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import graph, integers, model


@pytest.mark.parametrize(("axis", "scales"), [(0, (3, 4)), (1, (6, 2))])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_move_with_their_weight(axis: int, scales: tuple[int, int], transposed: bool) -> None:
    stored, scale = integers(6, 4, dtype=np.int8), 2.0 ** integers(*scales)
    weight = stored * np.repeat(scale, 2, axis=axis)
    if transposed:
        stored, scale, axis = stored.T, scale.T, 1 - axis
    product = "Gemm<transB=1>" if transposed else "MatMul"
    nodes = f"d = DequantizeLinear<axis={axis}, block_size=2>(q, s) y = {product}(x, d)"
    m = model(graph("N,6", "N,4", nodes), {"q": stored, "s": scale.astype(np.float32)}, opset=21)
    result = convert_model(m)
    assert len(result.changes) == 1
    assert not result.refused
    before, after = result.weight_bytes
    assert after <= before + 64  # the weight stays in bytes; the shapes of the new operators are added
    x = integers(5, 6, seed=1)
    proto = ir.serde.serialize_model(result.model)
    for run in (run_reference, run_onnx_runtime):
        np.testing.assert_array_equal(run(proto, {"x": x})[0], x @ weight)
    assert verify_onnx(m, result, {"x": x}).equivalent
