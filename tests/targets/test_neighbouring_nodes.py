"""Neighbouring operators that take a batch of one share their axes, factors move, computed amounts become constants."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.onnx.targets.convert import TargetConversion
from onebyone.onnx.targets.fixed_numbers import FIXED_NUMBERS
from onebyone.onnx.targets.moved_factors import MOVED_FACTOR
from tests.onnx.models import Array, graph, integers, model, operators
from tests.targets.small_networks import profile, swap_last_axes
from tests.targets.test_single_nodes import ONE_SAMPLE, RANK, numbers, rewritten

TARGET = profile(ONE_SAMPLE.replace("]", ', "Softmax", "Split", "Slice", "Transpose"]'), RANK)


def layout(conversion: TargetConversion) -> tuple[int, int]:
    """The layout operators before and after."""
    assert conversion.layout_before is not None
    assert conversion.layout_after is not None
    return conversion.layout_before.total(), conversion.layout_after.total()


#: Scores of windows (6, 3 heads, 5, 5) with a bias for each head and a mask for each window, as Swin adds them.
SCORES = "a = Mul(x, h) b = Add(a, bias) c = Reshape(b, five) d = Add(c, mask) y = Reshape(d, four)"
CONSTANTS = {
    "h": integers(1),
    "bias": integers(1, 3, 5, 5, seed=1),
    "mask": integers(1, 6, 1, 5, 5, seed=2),
    "five": numbers(1, 6, 3, 5, 5),
    "four": numbers(6, 3, 5, 5),
}


def test_neighbours_share_their_axes() -> None:
    m = model(graph("6,3,5,5", "6,3,5,5", SCORES), CONSTANTS)
    conversion = rewritten(m, TARGET, {"x": integers(6, 3, 5, 5, seed=3)})
    assert operators(conversion.model) == ["Reshape", "Mul", "Add", "Add", "Reshape"]
    assert layout(conversion) == (2, 2)
    assert [(layer.data, layer.output) for layer in conversion.layers] == [("x", "y")]


def test_a_result_that_others_read_is_stored_with_their_axes_too() -> None:
    nodes = f"{SCORES.replace('y =', 'e =')} f = Softmax<axis=-1>(b) y = Concat<axis=1>(e, f)"
    target = profile(ONE_SAMPLE.replace("]", ', "Softmax", "Concat"]'), RANK)
    m = model(graph("6,3,5,5", "6,6,5,5", nodes), CONSTANTS)
    x = np.random.default_rng(0).standard_normal((6, 3, 5, 5)).astype(np.float32)
    conversion = onebyone.convert(m, target=target)
    assert not conversion.left, conversion
    assert onebyone.verify(m, conversion, {"x": x}).equivalent
    assert layout(conversion) == (2, 3)


def test_products_with_a_constant_join_a_run() -> None:
    """A perceptron on maps (6, 5, 5, 4) runs in (1, 30, 5, 4), or other merged axes, as a whole."""
    nodes = "a = MatMul(x, u) b = Add(a, c) d = Relu(b) e = MatMul(d, v) f = Add(e, g) y = Relu(f)"
    constants = {"u": integers(4, 7), "c": integers(7, seed=1), "v": integers(7, 4), "g": integers(4, seed=2)}
    conversion = rewritten(
        model(graph("6,5,5,4", "6,5,5,4", nodes), constants), TARGET, {"x": integers(6, 5, 5, 4)}
    )
    assert layout(conversion) == (0, 2)


def test_what_comes_back_through_another_operator_is_rewritten_by_itself() -> None:
    nodes = "a = Relu(x) t = Transpose<perm=[0,1,3,2]>(a) y = Add(a, t)"
    conversion = rewritten(
        model(graph("6,3,5,5", "6,3,5,5", nodes), {}), TARGET, {"x": integers(6, 3, 5, 5, seed=3)}
    )
    assert [layer.path for layer in conversion.layers] == ["a", "y"]


@pytest.mark.parametrize("seed", range(12))
def test_random_neighbours(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of additions of constants that broadcast, with views between: never more Reshapes than one by one."""
    rng = np.random.default_rng(seed)
    sizes = [6, 2, 3, 4]
    constants: dict[str, Array] = {}
    lines, value = [], "x"
    for index in range(int(rng.integers(3, 7))):
        name = f"v{index}"
        kind = rng.integers(4)
        if kind == 0:
            other = [[6, 2, 3, 4], [1, 6, 2, 3, 4], [6, 6, 4], [12, 12], [36, 1, 4], [6, 2, 12]]
            sizes = other[rng.integers(len(other))]
            constants[f"{name}s"] = numbers(*sizes)
            lines.append(f"{name} = Reshape({value}, {name}s)")
        elif kind == 1:
            lines.append(f"{name} = Relu({value})")
        else:
            first, last = sorted(rng.integers(0, len(sizes) + 1, 2))
            shape = [size if first <= axis < last else 1 for axis, size in enumerate(sizes)]
            constants[f"{name}c"] = integers(*shape, seed=index)
            lines.append(f"{name} = Add({value}, {name}c)")
        value = name
    constants["last"] = numbers(6, 2, 3, 4)
    lines.append(f"y = Reshape({value}, last)")
    m = model(graph("6,2,3,4", "6,2,3,4", " ".join(lines)), constants)
    if onebyone.check(m, TARGET).ok:
        return
    conversion = rewritten(m, TARGET, {"x": integers(6, 2, 3, 4, seed=seed)})
    monkeypatch.setattr("onebyone.onnx.targets.convert.fold_neighbours", lambda *arguments: None)
    one_by_one = onebyone.convert(m, target=TARGET)
    assert isinstance(one_by_one, TargetConversion)
    assert layout(conversion)[1] <= layout(one_by_one)[1]


def test_a_wrong_order_within_a_run_is_caught() -> None:
    m = model(graph("6,3,5,5", "6,3,5,5", SCORES), CONSTANTS)
    conversion = onebyone.convert(m, target=TARGET)
    swap_last_axes(conversion.model, (3, 5, 5))
    verification = onebyone.verify(m, conversion, {"x": integers(6, 3, 5, 5)})
    assert not verification.equivalent
    assert verification.first_difference == "y"


SPLITS = {
    "gather": "q0 = Gather<axis=0>(b, zero) k = Gather<axis=0>(b, one) v = Gather<axis=0>(b, two)",
    "split": """c0, c1, c2 = Split<axis=0, num_outputs=3>(b) q0 = Squeeze(c0, axes) k = Squeeze(c1, axes)
        v = Squeeze(c2, axes)""",
}


def attention(split: str, scaled: str = "q = Mul(q0, h) t = Transpose<perm=[0,1,3,2]>(k)") -> ir.Model:
    """The queries, keys and values of 5 windows of 6 tokens, with 2 heads of 4 channels."""
    nodes = f"""
        p = MatMul(x, w) e = Add(p, bias) a = Reshape(e, s) b = Transpose<perm=[2,0,3,1,4]>(a) {SPLITS[split]} {scaled}
        m = MatMul(q, t) o = MatMul(m, v) y = Transpose<perm=[0,2,1,3]>(o)
    """
    constants = {
        "w": integers(8, 24), "bias": integers(24, seed=1), "s": numbers(5, 6, 3, 2, 4), "axes": numbers(0),
        "zero": np.array(0), "one": np.array(1), "two": np.array(2), "h": np.array(2, np.float32),
        "h2": np.array([4], np.float32),
    }  # fmt: skip
    text = graph("5,6,8", "5,6,2,4", nodes)
    return model(
        text, {name: array for name, array in constants.items() if re.search(rf"[(, ]{name}[,)]", nodes)}
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "scaled",
    [
        "q = Mul(q0, h) t = Transpose<perm=[0,1,3,2]>(k)",
        "q = Mul(h, q0) u = Transpose<perm=[0,1,3,2]>(k) t = Mul(u, h2)",
        "q = Div(q0, h) t = Transpose<perm=[0,1,3,2]>(k)",
    ],
)
def test_factors_of_queries_and_keys_need_no_reshapes(split: str, scaled: str) -> None:
    m = attention(split, scaled)
    conversion = rewritten(m, TARGET, {"x": integers(5, 6, 8)})
    before, after = layout(conversion)
    assert after <= before
    moved = [layer for layer in conversion.layers if MOVED_FACTOR in layer.law]
    assert moved
    assert all(layer.data == "e" for layer in moved)
    count = operators(conversion.model).count
    assert count("Mul") + count("Div") == operators(m).count("Mul") + operators(m).count("Div")


@pytest.mark.parametrize(
    "scaled",
    [
        "q = Mul(q0, h) t0 = Transpose<perm=[0,1,3,2]>(k) z = Transpose<perm=[0,1,3,2]>(q0) t = Add(t0, z)",
        "q1 = Mul(q0, h) q = Relu(q1) t = Transpose<perm=[0,1,3,2]>(q0)",
    ],
)
def test_factors_stay_where_others_read_the_numbers_without_them(scaled: str) -> None:
    conversion = rewritten(attention("gather", scaled), TARGET, {"x": integers(5, 6, 8)})
    assert not [layer for layer in conversion.layers if MOVED_FACTOR in layer.law]


@pytest.mark.parametrize("channel", [3, 12, 20])
def test_a_wrong_factor_is_caught(channel: int) -> None:
    """Of the queries, the keys or the values."""
    m = attention("gather")
    conversion = onebyone.convert(m, target=TARGET)
    name, value = next(
        (n, v)
        for n, v in conversion.model.graph.initializers.items()
        if v.const_value is not None and v.const_value.size == 24 and str(n) != "bias"
    )
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    assert array.tolist() == [2.0] * 8 + [1.0] * 16
    array[channel] = 3
    value.const_value = ir.tensor(array, name=str(name))
    verification = onebyone.verify(m, conversion, {"x": integers(5, 6, 8)})
    assert not verification.equivalent
    assert any(not check.ok and check.law == MOVED_FACTOR for check in verification.layers)


PADDED = """
    n = Shape(x) h = Gather<axis=0>(n, one) r = Mod(h, four) d = Sub(four, r) e = Mod(d, four)
    f = Unsqueeze(e, axes) p0 = Concat<axis=0>(zeros, f, zero) p1 = Reshape(p0, two) p2 = Transpose<perm=[1,0]>(p1)
    p = Reshape(p2, flat) y = Pad(x, p)
"""


def padded() -> ir.Model:
    constants = {
        "one": np.array(1), "four": np.array(4), "axes": numbers(0), "zeros": numbers(0, 0, 0), "zero": numbers(0, 0),
        "two": numbers(3, 2), "flat": numbers(-1),
    }  # fmt: skip
    return model(graph("1,6,5", "1,8,5", PADDED), constants)


def test_amounts_computed_from_fixed_sizes_become_constants() -> None:
    m = padded()
    conversion = rewritten(m, TARGET, {"x": integers(1, 6, 5)})
    assert operators(conversion.model) == ["Pad"]
    assert [(layer.law, layer.data, layer.output) for layer in conversion.layers] == [
        (FIXED_NUMBERS, "x", "y")
    ]
    assert layout(conversion) == (3, 0)


def test_wrong_amounts_are_caught() -> None:
    m = padded()
    conversion = onebyone.convert(m, target=TARGET)
    (name,) = conversion.model.graph.initializers
    value = conversion.model.graph.initializers[name]
    assert value.const_value is not None
    amounts = value.const_value.numpy()
    assert sorted(amounts.tolist()) == [0, 0, 0, 0, 0, 2]
    value.const_value = ir.tensor(np.roll(amounts, 3), name=str(name))
    assert not onebyone.verify(m, conversion).equivalent
