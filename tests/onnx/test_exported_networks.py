"""Networks as PyTorch exports them: converted both ways, verified, and nothing passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onebyone.onnx.convert import convert_model, prepared
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.exported import NETWORKS, exported

#: The networks that are exported with a free batch.
FREE = ("Classifier", "Encoder", "Recurrent")


def eligible(model: ir.Model, to: str) -> Iterator[str]:
    """Nodes that must be converted or refused, found without the code under test."""
    for node in prepared(model).graph.all_nodes():
        operands = [v for v in node.inputs if v is not None]
        if to == "conv" and node.op_type in ("MatMul", "Gemm", "Einsum"):
            if any(_from_initializers(v) for v in operands[:2]):
                yield str(node.name or node.outputs[0].name)
        elif to == "linear" and node.op_type == "Conv":
            weight = operands[1].const_value
            if weight is not None and weight.size == weight.shape[0] * weight.shape[1]:
                yield str(node.name or node.outputs[0].name)


def _from_initializers(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(v is None or _from_initializers(v) for v in node.inputs)


@pytest.mark.parametrize(
    ("name", "exporter", "free_batch"),
    [(name, exporter, name in FREE) for name in NETWORKS for exporter in ("dynamo", "torchscript")],
)
def test_converted_verified_and_complete(name: str, exporter: str, free_batch: bool) -> None:
    model, x = exported(name, exporter, free_batch)
    feeds = {str(model.graph.inputs[0].name): x.numpy()}
    for to in ("conv", "linear"):
        result = convert_model(model, to)
        named = {change.path for change in result.changes} | {refusal.path for refusal in result.refused}
        assert set(eligible(model, to)) <= named
        assert not result.refused, str(result)
        onnx.checker.check_model(ir.serde.serialize_model(result.model), full_check=True)
        assert result.weight_bytes[1] <= result.weight_bytes[0] + 64 * (1 + len(result.changes))
        if not result.changes:
            continue
        v = verify_onnx(model, result, feeds)
        assert v.equivalent, str(v)
        assert v.integer_probe is True
        assert all(layer.error_ratio is not None for layer in v.layers), str(v)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_free_batch_stays_free(exporter: str) -> None:
    model, x = exported("Classifier", exporter, free_batch=True)
    name = str(model.graph.inputs[0].name)
    converted = ir.serde.serialize_model(convert_model(model).model).SerializeToString()
    session = onnxruntime.InferenceSession(converted, providers=["CPUExecutionProvider"])
    one_by_one = [session.run(None, {name: x[i : i + 1].numpy()})[0] for i in range(2)]
    together = session.run(None, {name: x.numpy()})[0]
    np.testing.assert_allclose(np.concatenate(one_by_one), together, rtol=1e-5, atol=1e-6)


def test_there_and_back_gives_the_same_numbers() -> None:
    model, x = exported("Bottleneck", "torchscript")
    name = str(model.graph.inputs[0].name)
    back = convert_model(convert_model(model, "linear").model, "conv")
    expected, found = (
        onnxruntime.InferenceSession(ir.serde.serialize_model(m).SerializeToString()).run(
            None, {name: x.numpy()}
        )[0]
        for m in (model, back.model)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
