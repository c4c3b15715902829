"""A conversion warns where ONNX Runtime has no kernel for what it wrote; ONNX Runtime itself is asked."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented  # noqa: A004

from onebyone.onnx.convert import convert_model
from onebyone.onnx.runtime_kernels import ACCURACY, MISSING
from tests.onnx.models import graph, integers, model, run

KINDS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


CODES = {"float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "bfloat16": TensorProto.BFLOAT16}


def _runs(op_type: str, kind: int) -> bool:
    shapes = ([1, 2, 3, 3], [2, 2, 1, 1]) if op_type == "Conv" else ([1, 2], [2, 2])
    values = [helper.make_tensor_value_info(name, kind, s) for name, s in zip("xw", shapes, strict=True)]
    result = [1, 2, 3, 3] if op_type == "Conv" else [1, 2]
    node = helper.make_node(op_type, ["x", "w"], ["y"])
    made = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", kind, result)])
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except NotImplemented:
        return False
    return True


@pytest.mark.parametrize("op_type", ["Conv", "MatMul", "Gemm"])
def test_the_table_is_what_onnx_runtime_says(op_type: str) -> None:
    missing = {kind for kind in KINDS if not _runs(op_type, getattr(TensorProto, kind))}
    assert missing == {kind.name for name, kind in MISSING if name == op_type}


@pytest.mark.parametrize(("kind", "warns"), [("float", False), ("double", True), ("bfloat16", True)])
def test_a_conversion_warns_in_words(kind: str, warns: bool) -> None:
    m = model(
        f"g ({kind}[N,2] x) => ({kind}[N,2] y) {{ w = Cast<to={CODES[kind]}>(i) "
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }",
        {"i": np.eye(2, dtype=np.int8)},
    )
    result = convert_model(m)
    assert len(result.changes) == 2
    text = str(result)
    assert ("warning: 2 new Conv nodes compute in" in text) == warns
    assert bool(result.to_dict()["warnings"]) == warns


def test_a_product_by_dequantised_weights_is_announced_as_approximate() -> None:
    """ONNX Runtime itself is asked: rounded as it stands, exact with the option that the warning names."""
    m = model(
        graph("2,4,5,6", "2,6,5,6", "d = DequantizeLinear<axis=0>(q, s) y = Conv(x, d, b)"),
        {"q": integers(6, 4, 1, 1, dtype=np.int8), "s": np.float32(2.0 ** integers(6)), "b": integers(6)},
    )
    x = {"x": integers(2, 4, 5, 6)}
    result = convert_model(m, "linear")
    (warning,) = result.warnings
    assert "1 new MatMul node multiplies by dequantised weights" in warning
    assert all(repr(word) in warning for word in ACCURACY)
    (expected,) = run(m, x)
    errors = []
    for exact in (False, True):
        options = onnxruntime.SessionOptions()
        if exact:
            options.add_session_config_entry(*ACCURACY)
        proto = ir.serde.serialize_model(result.model).SerializeToString()
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        errors.append(float(np.abs(session.run(None, x)[0] - expected).max()))
    assert errors[0] > 0
    assert errors[1] == 0
    assert not convert_model(
        model(graph("2,4,5,6", "2,6,5,6", "y = Conv(x, w)"), {"w": integers(6, 4, 1, 1)}), "linear"
    ).warnings
