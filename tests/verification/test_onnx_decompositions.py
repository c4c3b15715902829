"""Layers that are rewritten into other operators: hand-made differences just inside and just outside of the limit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification.onnx_decompositions import _floats, compare_in_float64
from onebyone.verification.result import LayerCheck

LAYER = RewrittenLayer("block/act", "Act", "pointwise", "x", "y", 1, (2, 3))


def form(body: str, result: str = "float[2,3]") -> LayerModel:
    text = f'<ir_version: 9, opset_import: ["" : 18]> f (float[2,3] x) => ({result} y) {body}'
    return LayerModel(ir.from_proto(onnx.parser.parse_model(text)), "x", "y")


def compared(before: LayerModel, after: LayerModel) -> LayerCheck:
    return compare_in_float64(before, after, LAYER, 0, (2, 3))


def scaled(w: float) -> str:
    return f"<float w = {{{w!r}}}> {{ y = Mul (x, w) }}"


def with_new_constant(v: float) -> str:
    return f"<float v = {{{v!r}}}> {{ y = Mul (x, v) }}"


def test_equal_forms() -> None:
    check = compared(form("{ y = Add (x, x) }"), form(scaled(2.0)))
    assert (check.path, check.kind, check.law, check.arithmetic) == (
        "block/act",
        "Act",
        "pointwise",
        "float64",
    )
    assert check.ok
    assert check.why == ""
    assert (check.max_error, check.error_ratio, check.compared) == (0.0, 0.0, 6)
    assert [f.seen_by_integers for f in check.faults] == [True]


@pytest.mark.parametrize("roundoffs", [2, 4])
def test_a_new_constant_may_be_rounded(roundoffs: int) -> None:
    """A constant that only one form has may be off by its rounding, twice: 2·2⁻²⁴ is inside and 4·2⁻²⁴ outside."""
    v = 1 + roundoffs * 2.0**-24
    check = compared(form("{ y = Identity (x) }"), form(with_new_constant(v)))
    assert check.ok == (roundoffs == 2)
    assert (check.error_ratio < 1) == check.ok
    assert check.why.startswith("" if check.ok else "|Δ| in float64 is 2")


@pytest.mark.parametrize("inside", [True, False])
def test_differences_in_float64(inside: bool) -> None:
    """Both forms share the constant, so that √(u64·u32)·max|y| is all that they may differ by."""
    largest = 4.0 * abs(np.random.default_rng(0).standard_normal((2, 3))).max()  # the probe's input
    limit = 2.0 ** -((53 + 24) / 2) * largest
    shift = float(limit * (0.999 if inside else 1.001))
    body = "<double w = {%r}> { y = Add (x, w) }"
    before = form(body % 1e-300)
    after = form(body % shift)
    check = compared(before, after)
    assert check.bound == pytest.approx(limit, rel=1e-9)
    assert check.max_error == pytest.approx(shift, rel=1e-6)
    # the injected fault, 2⁻¹² of a constant that is as small as the limit, is not visible
    assert check.why.startswith("the comparison in float64 cannot see" if inside else "|Δ| in float64")


def test_a_form_that_gives_nan_is_not_equal() -> None:
    """The probe's inputs are of both signs, so that the square root of some is not a number."""
    check = compared(form("{ y = Identity (x) }"), form("{ r = Sqrt (x) y = Mul (r, r) }"))
    assert not check.ok
    assert check.max_error == math.inf


def test_both_forms_may_give_nan_at_the_same_places() -> None:
    check = compared(form("{ y = Sqrt (x) }"), form("{ z = Identity (x) y = Sqrt (z) }"))
    assert check.max_error == 0
    assert check.ok


def test_other_shapes() -> None:
    check = compared(form("{ y = Identity (x) }"), form("{ y = Transpose (x) }", "float[3,2]"))
    assert check.ok is False
    assert (check.path, check.kind, check.law) == ("block/act", "Act", "pointwise")
    assert "(2, 3) and (3, 2)" in check.why


def test_what_the_rounding_of_each_new_constant_may_change_is_added() -> None:
    """Divisors in float16: y = x/(p·q), and a divisor that is larger by 2⁻¹¹ makes it smaller by less than that."""
    before = form("<float c = {0.5}> { y = Mul (x, c) }")
    # the parser takes the bits of 4 and 0.5
    after = form("<float16 p = {17408}, float16 q = {14336}> { a = Div (x, p) y = Div (a, q) }")
    check = compared(before, after)
    largest = 4.0 * np.abs(np.random.default_rng(0).standard_normal((2, 3))).max() / 2
    changes = 2 * 2 * largest * (1 - 1 / (1 + 2.0**-11))
    assert check.bound == pytest.approx(2.0 ** -((53 + 24) / 2) * largest + changes, rel=1e-9)
    assert check.error_ratio == 0
    assert check.ok is False, "constants that are rounded to float16 hide changes by 2⁻¹²"


def test_the_injected_fault_makes_a_constant_larger() -> None:
    """Which makes its inverse smaller by less than 2⁻¹²: not seen where 2⁻¹² of the inverse is just the limit."""
    x = 4.0 * np.random.default_rng(0).standard_normal((2, 3))
    for factor, seen in ((1.0, False), (1 + 2.0**-11, True)):
        inverse = factor * 2.0 ** -((53 + 24) / 2) * np.abs(x).max() * 2.0**12
        both = form(f"<double w = {{{float(1 / inverse)!r}}}> {{ r = Reciprocal (w) y = Add (x, r) }}")
        assert [fault.seen_by_integers for fault in compared(both, both).faults] == [seen]


def test_a_constant_without_effect_shows_nothing() -> None:
    body = "<float c = {1.0}, float z = {0.0}> { p = Mul (x, z) q = Mul (p, c) y = Add (x, q) }"
    check = compared(form("{ y = Identity (x) }"), form(body))
    assert not check.ok
    assert [(f.name.split()[0], f.seen_by_integers) for f in check.faults] == [("c", False)]
    assert "cannot see: c" in check.why
    # one constant that is seen is enough
    constants = "<float c = {1.0}, float z = {0.0}, float w = {2.0}>"
    body = "{ p = Mul (x, z) q = Mul (p, c) r = Mul (x, w) y = Add (r, q) }"
    check = compared(form("{ y = Add (x, x) }"), form(f"{constants} {body}"))
    assert check.ok
    assert {f.name.split()[0]: f.seen_by_integers for f in check.faults} == {"c": False, "w": True}


def test_the_roundoff_of_each_constant_is_that_of_its_type() -> None:
    units = {
        ir.DataType.FLOAT: 2.0**-24,
        ir.DataType.FLOAT16: 2.0**-11,
        ir.DataType.BFLOAT16: 2.0**-8,
        ir.DataType.DOUBLE: 2.0**-53,
    }
    constants = {str(kind): ir.tensor(np.ones(2).astype(kind.numpy()), dtype=kind) for kind in units}
    constants["integers"] = ir.tensor(np.arange(3))
    stated = _floats(SimpleNamespace(constants=constants))  # type: ignore[arg-type]
    assert {name: unit for name, (_, unit) in stated.items()} == {str(k): u for k, u in units.items()}
    assert all(array.dtype == np.float64 for array, _ in stated.values())
