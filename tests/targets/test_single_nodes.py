"""Limits on the axes of some operators, on axes larger than one, and on the batch: the node runs with other axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.onnx.targets.convert import TargetConversion
from onebyone.targets import TargetProfile
from tests.onnx.models import Array, graph, integers, model, operators, run
from tests.targets.small_networks import profile, swap_last_axes

ONE_SAMPLE = (
    'kind = "size"\naxis = "batch"\nmaximum = 1\nexempt = ["Reshape", "Squeeze", "Unsqueeze", "MatMul"]'
)
RANK = 'kind = "rank"\nmaximum = 4'


def rewritten(m: ir.Model, target: TargetProfile | str, feeds: dict[str, Array]) -> TargetConversion:
    """Convert for a target that no node then offends, and compare both models."""
    conversion = onebyone.convert(m, target=target)
    assert isinstance(conversion, TargetConversion)
    assert conversion.offenders
    assert not conversion.left, conversion
    assert onebyone.check(conversion.model, target).ok
    verification = onebyone.verify(m, conversion, feeds)
    assert verification.equivalent, verification
    assert not verification.unverified
    for expected, actual in zip(run(m, feeds), run(conversion.model, feeds), strict=True):
        assert np.array_equal(expected, actual)
    return conversion


def numbers(*values: int) -> Array:
    return np.asarray(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("shape", "result", "nodes", "constants"),
    [
        ("6,5,4", "6,5,4", "y = Add(x, a)", {"a": integers(4)}),
        ("6,5,4", "6,5,4", "y = Mul(a, x)", {"a": integers(6, 1, 4)}),
        ("6,3,5,4", "6,3,5,4", "y = Add(x, a)", {"a": integers(1, 3, 5, 4)}),
        ("6,3,5,4", "6,3,5,4", "y = Sub(a, x)", {"a": integers(6, 1, 1, 1)}),
        ("6,5", "6,5", "y = Relu(x)", {}),
        ("6,2,5,4", "6,2,5,4", "y = Relu(x)", {}),
        ("6,5,4", "5,5,4", "y = Slice(x, s, e, d)", {"s": numbers(1), "e": numbers(9), "d": numbers(0)}),
        ("6,5,4", "12,5,4", "r = Reshape(x, t) a, b = Split<axis=0, num_outputs=2>(r) y = Concat<axis=0>(b, a, x)",
         {"t": numbers(6, 5, 4)}),
        ("6,2,5,4", "6,2,9,4", "z = Slice(x, s, e, d) y = Concat<axis=2>(x, z)",
         {"s": numbers(0), "e": numbers(4), "d": numbers(2)}),
        ("6,5,4", "8,5,7", "y = Pad(x, p)", {"p": numbers(2, 0, 1, 0, 0, 2)}),
    ],
)  # fmt: skip
def test_a_batch_of_one(shape: str, result: str, nodes: str, constants: dict[str, Array]) -> None:
    m = model(graph(shape, result, nodes), constants)
    rewritten(m, profile(ONE_SAMPLE, RANK), {"x": integers(*map(int, shape.split(",")), seed=3)})


def test_axes_of_size_one_are_added_where_there_is_room() -> None:
    m = model(graph("6,5,4", "6,5,4", "y = Add(x, a)"), {"a": integers(4)})
    conversion = rewritten(m, profile(ONE_SAMPLE, RANK), {"x": integers(6, 5, 4)})
    assert operators(conversion.model) == ["Unsqueeze", "Add", "Squeeze"]
    assert conversion.layout_after == conversion.layout_before


def test_attention_of_timm_is_split_on_an_inner_axis_for_tidl() -> None:
    nodes = """
        a = Reshape(x, s) b = Transpose<perm=[2,0,3,1,4]>(a) q, k, v = Split<axis=0, num_outputs=3>(b) y = Add(q, v)
    """
    m = model(graph("1,6,24", "1,1,2,6,4", nodes), {"s": numbers(1, 6, 3, 2, 4)})
    conversion = rewritten(m, "tidl", {"x": integers(1, 6, 24)})
    assert [change.path for change in conversion.changes] == ["q", "q"]  # q and v; nothing reads k
    assert conversion.layout_after == conversion.layout_before


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        ("y = MatMul(a, b)", ((2, 3, 2, 3, 5), (2, 3, 2, 5, 4))),
        ("y = MatMul(a, w)", ((2, 3, 2, 3, 5), (1,))),
        ("y = Add(a, b)", ((2, 2, 2, 2, 2, 2, 3), (2, 2, 2, 2, 2, 2, 3))),
        ("y = Mul(a, b)", ((2, 2, 2, 2, 2, 2, 3), (1, 1, 2, 2, 2, 2, 1))),
        ("y = Relu(a)", ((2, 1, 2, 2, 2, 2, 2, 3), (1,))),
    ],
)
def test_axes_larger_than_one(nodes: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    first, second = sizes
    a, b = (integers(*shape, seed=seed) for seed, shape in enumerate(sizes))
    w = integers(5, 4)
    result = a @ w if "w" in nodes else a @ b if "MatMul" in nodes else a
    names = [",".join(map(str, shape)) for shape in (first, second, result.shape)]
    text = f"g (float[{names[0]}] a, float[{names[1]}] b) => (float[{names[2]}] y) {{ {nodes} }}"
    m = model(text, {"w": w} if "w" in nodes else {})
    rewritten(m, "tidl", {"a": a, "b": b})


@pytest.mark.parametrize(
    ("nodes", "target", "reason"),
    [
        ("y = Relu(x)", profile('kind = "size"\naxis = "batch"\nmaximum = 1'), "needs Unsqueeze, which violates"),
        ("y = CumSum(x, d)", profile(ONE_SAMPLE), "CumSum has no form with a batch of one"),
        ("y = Softmax<axis=0>(x)", profile(f'{RANK.replace("4", "1")}\noperators = ["Softmax"]'), "needs three axes"),
    ],
)  # fmt: skip
def test_what_stays_has_a_reason(nodes: str, target: TargetProfile, reason: str) -> None:
    m = model(graph("6,5,4", "6,5,4", nodes), {"d": np.array(1)} if "d)" in nodes else {})
    conversion = onebyone.convert(m, target=target)
    assert [refusal.path for refusal in conversion.refused if reason in refusal.reason] == ["y"]
    assert operators(conversion.model) == operators(m)


def test_a_wrong_order_of_elements_is_caught() -> None:
    m = model(graph("6,3,5,4", "6,3,5,4", "y = Add(x, a)"), {"a": integers(1, 3, 5, 4)})
    conversion = onebyone.convert(m, target=profile(ONE_SAMPLE, RANK))
    swap_last_axes(conversion.model, (3, 5, 4))
    verification = onebyone.verify(m, conversion, {"x": integers(6, 3, 5, 4)})
    assert not verification.equivalent
