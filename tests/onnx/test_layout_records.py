"""What a conversion for a target says of its layout: equivalent windows, and why there are more operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import onebyone
from onebyone.onnx.targets.convert import convert_for_target
from onebyone.targets import TargetProfile, find_profile
from tests.onnx.models import graph, integers, model, operators, run


def convolutions_of_four_axes() -> TargetProfile:
    profile = find_profile("conv-only")
    return replace(profile, constraints=(*profile.constraints, *find_profile("4d").constraints))


WINDOWS = (
    "a = Reshape(x, s) b = Transpose<perm = [0, 1, 3, 2, 4, 5]>(a) c = Reshape(b, t) d = MatMul(c, w) e = Relu(d)"
    "f = Reshape(e, s) g = Transpose<perm = [0, 1, 3, 2, 4, 5]>(f) h = Reshape(g, u) y = Add(h, x)"
)


@pytest.mark.parametrize("target", ["conv-only and 4d", "kneron-kl520"])
def test_windows_are_equivalent(target: str) -> None:
    sizes = {"s": [1, 2, 2, 2, 2, 6], "t": [4, 4, 6], "u": [1, 4, 4, 6]}
    constants = {name: np.array(numbers, np.int64) for name, numbers in sizes.items()}
    m = model(graph("1,4,4,6", "1,4,4,6", WINDOWS), constants | {"w": integers(6, 6)})
    profile = find_profile(target) if target == "kneron-kl520" else convolutions_of_four_axes()
    c = convert_for_target(m, profile)
    assert "Conv" in operators(c.model)
    x = {"x": integers(1, 4, 4, 6, seed=1)}
    np.testing.assert_array_equal(run(c.model, x)[0], run(m, x)[0], strict=True)
    v = onebyone.verify(m, c, x["x"])
    assert v.equivalent, v.problems


def test_a_fault_between_two_layouts_of_one_value_is_found() -> None:
    """A view that the target rewrites is part of the layers on both of its sides."""
    m = model(graph("1,5,5", "1,5,5", "a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)"), {"w": integers(5, 5)})
    c = convert_for_target(m, find_profile("kneron-kl520"))
    transpose = next(node for node in c.model.graph if node.op_type == "Transpose")
    rank = len(transpose.attributes["perm"].as_ints())
    transpose.attributes["perm"] = type(transpose.attributes["perm"])(
        "perm", transpose.attributes["perm"].type, list(range(rank))
    )
    assert not onebyone.verify(m, c, integers(1, 5, 5, seed=1)).equivalent


def test_more_layout_operators_are_reported_with_their_reasons() -> None:
    m = model(graph("1,5,4", "1,5,3", "y = MatMul(x, w)"), {"w": integers(4, 3)})
    c = convert_for_target(m, find_profile("kneron-kl520"))
    assert c.layout_after is not None
    more = c.layout_after.total()
    assert more > 0
    (warning,) = c.warnings
    assert warning.startswith(
        f"{more} more layout operators than in the original (0 → {more}); the target needs "
    )
    assert "convolutions in the place of products, of data stored as (N, C, H, W) (1)" in warning
    assert f"warning: {warning}" in c.headline()


def test_no_more_layout_operators_are_not_reported() -> None:
    nodes = "a = Transpose<perm = [0, 2, 1]>(x) b = MatMul(a, w) y = Transpose<perm = [0, 2, 1]>(b)"
    m = model(graph("1,4,5", "1,3,5", nodes), {"w": integers(4, 3)})
    assert convert_for_target(m, convolutions_of_four_axes()).warnings == ()
