"""Whole ONNX graphs with a planned layout: the same numbers, no more layout operators, verified layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.layout.convert import convert_with_layout
from tests.onnx.exported import NETWORKS, exported
from tests.onnx.models import graph, integers, model, operators, run

Array = np.ndarray[Any, Any]


def converted(m: ir.Model, feeds: Mapping[str, Array], **options: Any) -> OnnxConversion:
    """A conversion whose outputs equal those of the original bit for bit."""
    c = convert_with_layout(m, **options)
    for expected, actual in zip(run(m, feeds), run(c.model, feeds), strict=True):
        np.testing.assert_array_equal(expected, actual, strict=True)
    assert c.layout_before is not None
    assert c.layout_after is not None
    return c


@pytest.mark.parametrize(("exporter", "free"), [("dynamo", True), ("legacy", False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks_are_equivalent(name: str, exporter: str, free: bool) -> None:
    m, x = exported(name, exporter, free)
    c = onebyone.convert(m, level="graph")
    v = onebyone.verify(m, c, x.numpy())
    assert v.equivalent, v.problems
    assert not v.unverified
    assert all(check.bitwise for check in v.layers)
    assert len(v.layers) == len(c.changes) > 0


def test_a_run_of_operators_on_tokens_has_no_layout_operator_inside() -> None:
    m = model(
        graph(
            "2,5,4",
            "2,5,3",
            "a = MatMul(x, v) b = Add(a, p) c = Relu(b) d = MatMul(c, w) e = Clip(d) y = Add(e, q)",
        ),
        {"v": integers(4, 6), "p": integers(6), "w": integers(6, 3), "q": integers(2, 5, 3, seed=1)},
    )
    c = converted(m, {"x": integers(2, 5, 4, seed=2)})
    kinds = operators(c.model)
    assert kinds.count("Transpose") == 2
    assert "Reshape" not in kinds
    assert kinds.index("Conv") > kinds.index("Transpose")
    assert [k for k in kinds if k not in ("Squeeze", "Unsqueeze")][-1] == "Transpose"


def test_an_unknown_place_of_tokens_is_refused() -> None:
    m = model(graph("2,4", "2,3", "y = MatMul(x, v)"), {"v": integers(4, 3)})
    with pytest.raises(BadInput, match="tokens='middle': expected 'last', 'height' or 'batch'"):
        convert_with_layout(m, tokens="middle")
