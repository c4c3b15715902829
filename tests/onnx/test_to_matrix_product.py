"""1×1 convolutions become matrix products that give the same integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession

from onebyone.errors import BadInput
from onebyone.onnx.convert import convert_model
from tests.onnx.models import graph, integers, model, operators, run

W = {"w": integers(6, 4, 1, 1)}
CASES = {
    "two dimensions": (graph("N,4,H,V", "N,6,H,V", "y = Conv(x, w)"), W, (2, 4, 3, 5)),
    "one dimension": (graph("N,4,T", "N,6,T", "y = Conv(x, w)"), {"w": integers(6, 4, 1)}, (2, 4, 3)),
    "three dimensions": (
        graph("N,4,D,H,V", "N,6,D,H,V", "y = Conv(x, w)"),
        {"w": integers(6, 4, 1, 1, 1)},
        (2, 4, 3, 5, 2),
    ),
    "bias": (graph("N,4,H,V", "N,6,H,V", "y = Conv(x, w, b)"), W | {"b": integers(6)}, (2, 4, 3, 5)),
    "stride": (graph("N,4,7,6", "N,6,4,2", "y = Conv<strides=[2,3]>(x, w)"), W, (2, 4, 7, 6)),
    "dilation, which a kernel of one does not see": (
        graph("N,4,7,6", "N,6,7,6", "y = Conv<dilations=[2,3]>(x, w)"),
        W,
        (2, 4, 7, 6),
    ),
    "groups": (
        graph("N,4,H,V", "N,6,H,V", "y = Conv<group=2>(x, w, b)"),
        {"w": integers(6, 2, 1, 1), "b": integers(6)},
        (2, 4, 3, 5),
    ),
    "depthwise": (graph("N,4,T", "N,4,T", "y = Conv<group=4>(x, w)"), {"w": integers(4, 1, 1)}, (2, 4, 3)),
    "groups and stride": (
        graph("N,4,5", "N,6,3", "y = Conv<group=2, strides=[2]>(x, w)"),
        {"w": integers(6, 2, 1)},
        (2, 4, 5),
    ),
    "the whole map": (
        graph("N,2,3,4", "N,5,1,1", "y = Conv(x, w, b)"),
        {"w": integers(5, 2, 3, 4), "b": integers(5)},
        (2, 2, 3, 4),
    ),
    "int8 weight": (
        graph("N,4,H,V", "N,6,H,V", "d = DequantizeLinear<axis=0>(w, s) y = Conv(x, d)"),
        {"w": integers(6, 4, 1, 1, dtype=np.int8), "s": np.float32([1, 2, 4, 8, 0.5, 1])},
        (2, 4, 3, 5),
    ),
    "opset 11": (
        graph("N,4,H,V", "N,6,H,V", "y = Conv<group=2>(x, w)"),
        {"w": integers(6, 2, 1, 1)},
        (2, 4, 3, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_integers(name: str) -> None:
    text, weights, shape = CASES[name]
    m = model(text, weights, opset=11 if "11" in name else 20)
    result = convert_model(m, "linear")
    assert not result.refused
    assert len(result.changes) == 1
    names = Counter(operators(result.model))
    assert names["Conv"] == 0
    assert names["MatMul"] + names["Gemm"] == 1
    onnx.checker.check_model(ir.serde.serialize_model(result.model), full_check=True)
    x = integers(*shape, seed=1)
    (found,), (expected,) = run(result.model, {"x": x}), run(m, {"x": x})
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_padding_is_refused_by_name() -> None:
    m = model(
        "g (float[N,4,5] x) => (float[N,6,7] y) { y = Conv<pads=[1,1]>(x, w) }", {"w": integers(6, 4, 1)}
    )
    result = convert_model(m, "linear")
    assert not result.changes
    assert "pads" in result.refused[0].reason


def test_larger_kernels_are_left_alone() -> None:
    m = model("g (float[N,4,5] x) => (float[N,6,3] y) { y = Conv(x, w) }", {"w": integers(6, 4, 3)})
    result = convert_model(m, "linear")
    assert not result.changes
    assert not result.refused


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("the whole map",)])
def test_there_and_back(name: str) -> None:
    text, weights, shape = CASES[name]
    m = model(text, weights)
    back = convert_model(convert_model(m, "linear").model, "conv")
    assert len(back.changes) == 1
    x = integers(*shape, seed=1)
    np.testing.assert_array_equal(run(back.model, {"x": x})[0], run(m, {"x": x})[0])


def test_old_opsets() -> None:
    strided = model(graph("N,4,7", "N,6,4", "y = Conv<strides=[2]>(x, w)"), {"w": integers(6, 4, 1)}, opset=9)
    assert "from opset 10 on" in convert_model(strided, "linear").refused[0].reason
    plain = model(
        graph("N,4,7", "N,6,7", "y = Conv(x, w, b)"), {"w": integers(6, 4, 1), "b": integers(6)}, opset=9
    )
    x = integers(2, 4, 7)
    np.testing.assert_array_equal(
        run(convert_model(plain, "linear").model, {"x": x})[0], run(plain, {"x": x})[0]
    )
    with pytest.raises(BadInput, match="has opset 6"):
        convert_model(model(graph("N,4,7", "N,6,7", "y = Conv(x, w)"), {"w": integers(6, 4, 1)}, opset=6))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_in_which_runtimes_differ_is_refused(mode: str) -> None:
    """ONNX's reference begins at the first element. ONNX Runtime 1.31 leaves out both ends from stride 4 on."""
    for stride, refused in ((1, False), (2, False), (3, False), (4, True), (5, True)):
        text = f'y = Conv<auto_pad="{mode}", strides=[{stride}]>(x, w)'
        c = convert_model(model(graph("1,4,8", "1,6,Q", text), {"w": integers(6, 4, 1)}), "linear")
        assert len(c.refused) == refused
        if refused:
            reason = f"auto_pad={mode} with strides ({stride},) leaves elements out: runtimes differ in which"
            assert c.refused[0].reason == reason
            continue
        x = integers(1, 4, 8)
        session = InferenceSession(
            ir.to_proto(c.model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        original = InferenceSession(
            ir.to_proto(model(graph("1,4,8", "1,6,Q", text), {"w": integers(6, 4, 1)})).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], original.run(None, {"x": x})[0])
