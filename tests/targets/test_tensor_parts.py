"""Tensors over a target's limit are computed in parts, and what needs all of an axis at once stays, with the reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.onnx.targets.convert import TargetConversion
from onebyone.targets import TargetProfile
from tests.onnx.models import Array, graph, integers, model, operators, run
from tests.targets.small_networks import profile

CHANNELS = profile('kind = "size"\naxis = "channels"\nmaximum = 7')
EVERY = profile('kind = "size"\naxis = "every"\nmaximum = 7')


def parts(m: ir.Model, limit: TargetProfile, feeds: dict[str, Array]) -> TargetConversion:
    """Convert, and compare on integers, on which every sum is exact."""
    conversion = onebyone.convert(m, target=limit)
    assert isinstance(conversion, TargetConversion)
    assert not conversion.left, conversion
    assert onebyone.check(conversion.model, limit).ok
    for expected, actual in zip(run(m, feeds), run(conversion.model, feeds), strict=True):
        assert np.array_equal(expected, actual)
    verification = onebyone.verify(m, conversion, feeds)
    assert verification.equivalent, verification
    return conversion


def channels_first(nodes: str, c: int = 20) -> tuple[ir.Model, dict[str, Array]]:
    """A network whose middle has c channels: (1, 3, 6, 6) → (1, c, 6, 6) → (1, 4, …)."""
    weights = {
        "u": integers(c, 3, 1, 1), "p": integers(c), "d": integers(c, 1, 3, 3), "s": integers(c, 1, 1, seed=4),
        "v": integers(4, c, 1, 1, seed=2), "q": integers(4), "w": integers(c, c, 1, 1, seed=3),
        "one": np.ones(c, np.float32), "zero": np.zeros(c, np.float32), "big": np.asarray(50, np.float32),
    }  # fmt: skip
    text = f"a = Conv(x, u, p) {nodes} y = Conv(z, v, q)"
    used = {name: array for name, array in weights.items() if f"{name})" in text or f" {name}," in text}
    return model(graph("1,3,6,6", "1,4,_,_", text), used), {"x": integers(1, 3, 6, 6)}


@pytest.mark.parametrize(
    "nodes",
    [
        "z = Relu(a)",
        "b = Relu(a) c = Mul(b, s) z = Add(c, a)",
        "b = Conv<group=20, pads=[1,1,1,1]>(a, d, p) z = Clip(b, , big)",
        "b = MaxPool<kernel_shape=[2,2]>(a) z = PRelu(b, s)",
        "b = BatchNormalization<epsilon=0.0>(a, p, p, zero, one) z = Relu(b)",
        "b = Conv(a, w, p) z = Relu(b)",
        "b = Sub(big, a) c = Less(b, big) z = Where(c, a, b)",
    ],
)
def test_channels_of_a_map(nodes: str) -> None:
    m, feeds = channels_first(nodes)
    conversion = parts(m, CHANNELS, feeds)
    convolutions = [node for node in conversion.model.graph if node.op_type == "Conv"]
    assert sum(node.inputs[1].shape[0] in (6, 7) for node in convolutions) >= 3  # type: ignore[union-attr]
    assert operators(conversion.model).count("Add") >= 2
    assert conversion.weight_bytes[0] == conversion.weight_bytes[1]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("a = MatMul(x, u) b = Relu(a) y = MatMul(b, v)", {"u": (5, 16), "v": (16, 6)}),
        ("a = MatMul(x, u) g = MatMul(x, w) b = Mul(a, g) y = MatMul(b, v)",
         {"u": (5, 16), "w": (5, 16), "v": (16, 6)}),
        ("a = MatMul(x, u) b = MatMul(a, w) y = MatMul(b, v)", {"u": (5, 16), "w": (16, 16), "v": (16, 6)}),
        ("a = MatMul(x, u) t = Transpose<perm=[1,0]>(a) n = Neg(t) y = MatMul(v, n)", {"u": (5, 16), "v": (6, 16)}),
        ("a = Gemm(x, u, c) b = Relu(a) y = Gemm<transB=1, alpha=2.0>(b, v, e)",
         {"u": (5, 16), "c": (16,), "v": (6, 16), "e": (6,)}),
    ],
)  # fmt: skip
def test_features_of_products(nodes: str, weights: dict[str, tuple[int, ...]]) -> None:
    arrays = {name: integers(*shape, seed=i) for i, (name, shape) in enumerate(weights.items())}
    m = model(graph("4,5", "_,_", nodes), arrays)
    conversion = parts(m, EVERY, {"x": integers(4, 5)})
    assert "Concat" not in operators(conversion.model)


def test_rows_of_products() -> None:
    m = model(
        graph("1,4,5", "1,4,6", "t = MatMul(u, x) a = MatMul(t, v) b = Relu(a) y = MatMul(w, b)"),
        {"u": integers(9, 4), "v": integers(5, 6), "w": integers(4, 9)},
    )
    parts(m, EVERY, {"x": integers(1, 4, 5)})


def test_a_product_of_a_flattened_map_becomes_a_convolution() -> None:
    """VGG's first product has 25,088 inputs, more than the 8,192 of some targets; the map has 512 channels."""
    m = model(graph("1,4,3,3", "1,6", "f = Flatten(x) y = Gemm<transB=1>(f, w)"), {"w": integers(6, 36)})
    conversion = parts(m, EVERY, {"x": integers(1, 4, 3, 3)})
    assert "Conv" in operators(conversion.model)
    assert "Flatten" not in operators(conversion.model)


def test_an_axis_with_the_same_length_as_another_is_not_mistaken_for_it() -> None:
    """Only channels are limited here, and the Transpose makes another axis of the same length the channels."""
    m = model(
        graph("1,3,1,9", "1,2,1,9", "a = Conv(x, u) t = Transpose<perm=[0,3,2,1]>(a) y = Conv(t, v)"),
        {"u": integers(9, 3, 1, 1), "v": integers(2, 9, 1, 1)},
    )
    conversion = onebyone.convert(m, target=CHANNELS)
    assert {o.path for o in conversion.left} >= {"t"}
    assert "Transpose moves the axis to one without this limit" in {o.how for o in conversion.left}
    assert np.array_equal(
        run(m, {"x": integers(1, 3, 1, 9)})[0], run(conversion.model, {"x": integers(1, 3, 1, 9)})[0]
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("b = Softmax<axis=1>(a) y = Conv(b, v)", "Softmax has no form in parts"),
        ("y = Relu(a)", "y is an output of the graph"),
        ("y = Conv(a, k)", "y is an output of the graph"),
        ("b = ReduceMean(a, axes) d = Sub(a, b) y = Conv(d, v)", "ReduceMean has no form in parts"),
        ("b = Conv<group=3>(a, h) y = Conv(b, v)", "Conv has groups of several channels"),
    ],
)
def test_what_needs_the_whole_axis_stays(nodes: str, reason: str) -> None:
    weights = {"v": integers(2, 9, 1, 1), "k": integers(9, 9, 1, 1), "h": integers(9, 3, 1, 1)}
    used = {name: array for name, array in weights.items() if f", {name})" in nodes}
    if "axes" in nodes:
        used["axes"] = np.asarray([1])
    size = 9 if "k" in used else "_"
    m = model(
        graph("1,3,4,4", f"1,{size},4,4", f"a = Conv(x, u) {nodes}"), {"u": integers(9, 3, 1, 1)} | used
    )
    before = ir.serde.serialize_model(m).SerializeToString()
    conversion = onebyone.convert(m, target=CHANNELS)
    assert conversion.left
    assert reason in {o.how for o in conversion.left}
    assert not conversion.changes
    assert ir.serde.serialize_model(conversion.model).SerializeToString() == before  # nothing is left behind


@pytest.mark.parametrize("fault", ["parts swapped", "a part left out", "bias twice"])
def test_a_wrong_part_is_caught(fault: str) -> None:
    m, feeds = channels_first("z = Relu(a)")
    conversion = parts(m, CHANNELS, feeds)
    relus = [node for node in conversion.model.graph if node.op_type == "Relu"]
    sums = [node for node in conversion.model.graph if node.op_type == "Add"]
    if fault == "parts swapped":
        sizes = [value.producer().inputs[1].shape[0] for value in (relus[1].inputs[0], relus[2].inputs[0])]  # type: ignore[union-attr]
        assert sizes == [7, 7]
        relus[1].replace_input_with(0, relus[2].inputs[0])
    elif fault == "a part left out":
        sums[0].replace_input_with(1, sums[0].inputs[0])
    else:
        last = next(
            n for n in conversion.model.graph if n.op_type == "Conv" and n.outputs[0] is sums[0].inputs[1]
        )
        with_bias = next(
            n for n in conversion.model.graph if n.op_type == "Conv" and n.outputs[0] is sums[0].inputs[0]
        )
        last.resize_inputs(3)
        last.replace_input_with(2, with_bias.inputs[2])
    assert not onebyone.verify(m, conversion, feeds).equivalent
