"""Conversion and verification take a number of steps that grows as the number of layers, not as its square."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.convert import convert_model
from onebyone.onnx.layer_models import LayerModel, scopes_of
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import integers


def chain(layers: int) -> ir.Model:
    """Small products in a row, each with a weight of its own, and a Relu behind it."""
    values = [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 2]))]
    nodes, weights = [], []
    for index in range(layers):
        tensor = ir.tensor(integers(2, 2, seed=index), name=f"w{index}")
        weights.append(
            ir.Value(
                name=f"w{index}", type=ir.TensorType(tensor.dtype), shape=ir.Shape([2, 2]), const_value=tensor
            )
        )
        product = ir.node("MatMul", [values[-1], weights[-1]], name=f"m{index}")
        relu = ir.node("Relu", [product.outputs[0]], name=f"r{index}")
        product.outputs[0].name, relu.outputs[0].name = f"p{index}", f"v{index}"
        nodes += [product, relu]
        values.append(relu.outputs[0])
    values[-1].type, values[-1].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 2])
    graph = ir.Graph(
        [values[0]], [values[-1]], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=9)


def calls(function: Callable[[], Any]) -> int:
    """The number of calls of Python and C functions that a call makes."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def _grows_linearly(make: Callable[[int], Callable[[], Any]], small: int, factor: int) -> None:
    """Between `small` and `factor · small` layers, calls may grow by the factor, and a tenth of it."""
    make(small)()  # imports and caches
    first, second = calls(make(small)), calls(make(factor * small))
    assert second <= 1.1 * factor * first, (first, second)


def test_conversion_and_cutting_out_of_layers_grow_linearly() -> None:
    def converting(layers: int) -> Callable[[], Any]:
        model = chain(layers)

        def convert_and_cut() -> None:
            result = convert_model(model)
            assert len(result.changes) == layers
            scope = scopes_of(result.model)[""]
            for layer in result.layers:
                LayerModel(result.model, layer.data, layer.output, scope)

        return convert_and_cut

    _grows_linearly(converting, 20, 4)


def test_verification_grows_linearly() -> None:
    def verifying(layers: int) -> Callable[[], Any]:
        model = chain(layers)
        result = convert_model(model)
        return lambda: verify_onnx(model, result)

    _grows_linearly(verifying, 8, 4)


def test_a_table_of_values_for_each_layer_would_be_noticed() -> None:
    def cutting(layers: int) -> Callable[[], Any]:
        result = convert_model(chain(layers))

        def cut() -> None:
            for layer in result.layers:
                LayerModel(result.model, layer.data, layer.output)

        return cut

    with pytest.raises(AssertionError):
        _grows_linearly(cutting, 20, 4)


@pytest.mark.slow
def test_five_thousand_layers() -> None:
    model = chain(5000)
    result = convert_model(model)
    assert len(result.changes) == 5000
    assert not result.refused
    v = verify_onnx(model, result, {"x": np.zeros((3, 2), np.float32)})
    assert v.integer_probe is True
    assert v.equivalent, v.problems[:3]
