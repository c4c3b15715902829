"""The checks of one layer, made by hand: errors just inside and just outside the bound, and every reason by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onebyone.results import LayerFunctions
from onebyone.verification.injected_faults import injected
from onebyone.verification.layer_checks import _inject, check_layer, rounding_bound, worst
from onebyone.verification.result import Fault

Params = dict[str, Tensor]
Function = Callable[[Tensor, Params], Tensor]


def linear(x: Tensor, p: Params) -> Tensor:
    return F.linear(x, p["weight"], p.get("bias"))


def layer(
    converted: Function = linear,
    original: Function = linear,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    outputs: int = 3,
) -> LayerFunctions:
    generator = torch.Generator().manual_seed(0)
    real = dtype.to_real() if dtype.is_complex else dtype

    def draw(*shape: int) -> Tensor:
        parts = [torch.randn(*shape, generator=generator).to(real) for _ in range(2)]
        return torch.complex(*parts) if dtype.is_complex else parts[0]

    params = {"weight": draw(outputs, 4)} | ({"bias": draw(outputs)} if bias else {})
    return LayerFunctions("fc", "Linear", original, converted, params, ((2, 4), (4,)), terms=4)


def example(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(5, 4, generator=generator) for _ in range(2)]
    return torch.complex(*parts).to(dtype) if dtype.is_complex else parts[0].to(dtype)


def off_by(fraction: float, real: LayerFunctions, x: Tensor) -> LayerFunctions:
    """The layer, whose converted form is off by a fraction of the bound on real weights, and exact on integers."""
    _, bound, _ = rounding_bound(real, x)

    def converted(inputs: Tensor, p: Params) -> Tensor:
        y = linear(inputs, p)
        if y.shape != bound.shape:
            return y
        return linear(inputs, p).to(torch.complex128 if y.is_complex() else torch.float64) + fraction * bound

    return replace(real, converted=converted)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str
)
def test_an_error_inside_the_bound_passes_and_one_outside_is_named(dtype: torch.dtype) -> None:
    real, x = layer(dtype=dtype), example(dtype)
    # an error in float64 cannot be set more finely than to half a unit in the last place, a good part of the bound
    near = 0.5 if dtype == torch.float64 else 1e-3
    inside, outside = (check_layer(off_by(1 + step, real, x), x, 0) for step in (-near, near))
    assert inside.ok, inside.why
    assert inside.error_ratio == pytest.approx(1 - near, rel=max(1e-6, near / 2))
    assert not outside.ok
    assert outside.why.startswith("|Δ| is ")
    assert outside.why.endswith(" times its bound")
    assert outside.error_ratio == pytest.approx(1 + near, rel=max(1e-6, near / 2))
    assert outside.max_error == pytest.approx(outside.error_ratio * outside.bound, rel=max(1e-6, near / 2))
    assert inside.compared == 15


def gamma(n: int, u: Fraction) -> Fraction:
    return n * u / (1 - n * u)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_bound_is_the_documented_one(dtype: torch.dtype, bias: bool) -> None:
    """2·γ_{n+1}·(|W||x| + |b|), for short types v·(2|y| + |b|) more on each side; in exact fractions."""
    real, x = layer(dtype=dtype, bias=bias), example(dtype)
    exact, bound, arithmetic = rounding_bound(real, x)
    short = dtype in (torch.bfloat16, torch.float16)
    summed = torch.float32 if short else dtype
    u, v = Fraction(torch.finfo(summed).eps) / 2, Fraction(torch.finfo(dtype).eps) / 2
    name = str(summed).removeprefix("torch.")
    rounded = str(dtype).removeprefix("torch.")
    assert arithmetic == (f"{name} sums, rounded to {rounded}" if short else f"{name} sums")
    underflow = 2 * (4 + 2) * Fraction(torch.finfo(dtype).tiny) * Fraction(torch.finfo(dtype).eps)
    weight = [[Fraction(w) for w in row] for row in real.params["weight"].double().tolist()]
    constants = [Fraction(b) for b in real.params["bias"].double().tolist()] if bias else [Fraction(0)] * 3
    for i, row in enumerate(x.double().tolist()):
        for j in range(3):
            products = [w * Fraction(value) for w, value in zip(weight[j], row, strict=True)]
            y = sum(products) + constants[j]
            expected = 2 * gamma(5, u) * (sum(map(abs, products)) + abs(constants[j]))
            if short:
                expected = (1 + 3 * v) * expected + 2 * (1 + v) * v * (2 * abs(y) + abs(constants[j]))
            expected = (expected + underflow) * (1 + 4 * gamma(5, Fraction(1, 2**53)))
            assert exact[i, j].item() == pytest.approx(float(y), rel=1e-9, abs=1e-12)
            assert bound[i, j].item() == pytest.approx(float(expected), rel=1e-12)


def test_the_bound_of_complex_products() -> None:
    """Twice as many real products, and √2 for the two parts together."""
    real, x = layer(dtype=torch.complex64, bias=False), example(torch.complex64)
    _, bound, arithmetic = rounding_bound(real, x)
    assert arithmetic == "float32 sums"
    reach = x.to(torch.complex128).abs() @ real.params["weight"].to(torch.complex128).abs().t()
    u = Fraction(1, 2**24)
    expected = 2 * float(gamma(9, u)) * reach * math.sqrt(2)
    assert torch.allclose(bound, expected, rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize(("dtype", "reaches"), [(torch.float32, 0.05), (torch.bfloat16, 0.1)], ids=str)
def test_real_rounding_uses_a_part_of_the_bound(dtype: torch.dtype, reaches: float) -> None:
    """The bound is not idle: sums in reversed order come within a factor of twenty of it, over many inputs."""
    real = layer(dtype=dtype)
    largest = 0.0
    for seed in range(200):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
        exact, bound, _ = rounding_bound(real, x)
        reversed_sum = linear(x.flip(1), real.params | {"weight": real.params["weight"].flip(1)})
        largest = max(largest, float(((reversed_sum.double() - exact).abs() / bound).max()))
    assert reaches < largest <= 1


def test_weights_that_are_not_finite_are_named() -> None:
    real = layer()
    real.params["bias"][1] = float("inf")
    check = check_layer(real, None, 0)
    assert check.ok is False
    assert check.why == "not finite: bias"
    assert check.bitwise is None


def test_an_input_that_is_not_finite_is_named() -> None:
    x = example()
    x[0, 0] = float("nan")
    check = check_layer(layer(), x, 0)
    assert check.ok is False
    assert check.why == "its recorded input is not finite"
    assert check.bitwise is True


def test_outputs_that_are_not_finite_or_of_another_shape_are_named() -> None:
    def infinite(x: Tensor, p: Params) -> Tensor:
        return linear(x, p) + (float("inf") if p["weight"].dtype == torch.float32 else 0)

    def longer(x: Tensor, p: Params) -> Tensor:
        y = linear(x, p)
        return torch.cat([y, y]) if p["weight"].dtype == torch.float32 else y

    both = layer(infinite, infinite)  # infinity never passes, although both forms have it
    for faulty in (layer(infinite), layer(linear, infinite), both, layer(longer)):
        check = check_layer(faulty, example(), 0)
        assert check.ok is False
        assert check.why.endswith("or not finite")
        assert check.bitwise is True
        assert check.max_error is None


def test_sums_that_are_too_long_for_a_bound_say_so() -> None:
    """1 − n·u must be positive: 2²⁴ terms in float32 have no bound, and the integer probe still counts."""
    check = check_layer(replace(layer(), terms=2**24), example(), 0)
    assert check.ok
    assert check.why.startswith("no bound on real weights: ")
    assert check.bitwise is True
    assert check.bound is None


def test_a_fault_that_both_forms_hide_is_named() -> None:
    """The probe shows nothing of a bias that neither form uses."""

    def without_bias(x: Tensor, p: Params) -> Tensor:
        return F.linear(x, p["weight"])

    check = check_layer(layer(without_bias, without_bias), example(), 0)
    assert check.ok is False
    assert check.why == "the integer probe cannot see: bias dropped"
    assert check.bound is None  # the real weights are not looked at


def test_a_fault_below_the_bound_is_named() -> None:
    """A bias of the size of the rounding error: its loss shows on integers only."""
    real, x = layer(), example()
    real.params["bias"].fill_(1e-9)
    check = check_layer(real, x, 0)
    assert check.ok
    assert check.why == "bias dropped: seen by integers only"
    dropped, shifted = check.faults
    assert (dropped.name, dropped.seen_by_integers, dropped.seen_by_bound) == ("bias dropped", True, False)
    assert dropped.why.startswith("it moves the outputs by ")
    assert dropped.why.endswith("within the bound")
    assert (shifted.seen_by_bound, shifted.why) == (True, "")
    assert shifted.deviation > check.bound


def test_a_fault_that_does_not_change_the_real_weights_is_named() -> None:
    real = layer()
    real.params["bias"].zero_()
    real.params["weight"].fill_(0.5)
    check = check_layer(real, example(), 0)
    assert [f.why for f in check.faults] == ["the real weights are unchanged by it"] * 2
    assert check.why == "bias dropped, weight order shifted by one: seen by integers only"


def test_a_form_that_differs_on_integers_is_never_bounded() -> None:
    def wrong(x: Tensor, p: Params) -> Tensor:
        return linear(x, p | {"weight": p["weight"].roll(1, 1)})

    check = check_layer(layer(converted=wrong), example(), 0)
    assert (check.ok, check.bitwise, check.bound) == (False, False, None)
    assert "outputs differ in 6 of 6 values" in check.why


def test_the_worst_ratio() -> None:
    assert worst(torch.zeros(0), torch.zeros(0)) == (0.0, 0.0)
    assert worst(torch.tensor([1.0, -3.0]), torch.tensor([0.5, 6.0])) == (3.0, 2.0)
    assert worst(torch.tensor([0.0]), torch.tensor([0.0])) == (0.0, 0.0)
    assert worst(torch.tensor([1e-30]), torch.tensor([0.0])) == (pytest.approx(1e-30), math.inf)
    assert worst(torch.tensor([float("nan")]), torch.tensor([1.0])) == (math.inf, math.inf)


def names(shape: tuple[int, ...], **options: Any) -> list[str]:
    return list(injected({"weight": torch.arange(math.prod(shape)).reshape(shape)}, **options))


def test_the_faults_that_shapes_allow() -> None:
    shifted, square = "weight order shifted by one", "weight transposed"
    kernel_last, kernel_sides = (
        "kernel order swapped (channels last)",
        "kernel order swapped (height and width)",
    )
    flat_last, flat_sides = (
        "flatten order swapped (channels last)",
        "flatten order swapped (height and width)",
    )
    assert names((1, 1)) == []
    assert names((2, 1)) == [shifted]
    assert names((2, 3)) == [shifted]
    assert names((3, 3)) == [shifted, square]
    assert names((2, 3, 1, 1)) == [shifted]
    assert names((2, 3, 2, 1)) == [shifted, kernel_last]
    assert names((2, 1, 2, 2)) == [shifted, kernel_sides]
    assert names((2, 3, 2, 2)) == [shifted, kernel_last, kernel_sides]
    assert names((2, 12), map_shape=(3, 2, 2)) == [shifted, flat_last, flat_sides]
    assert names((2, 12), map_shape=(12, 1, 1)) == [shifted]
    assert names((2, 12), map_shape=(1, 3, 4)) == [shifted, flat_sides]
    assert names((2, 12), map_shape=(3, 4)) == [shifted, flat_last]
    assert names((2, 12), map_shape=(3, 2, 3)) == [shifted]  # not the flattened map of this layer


def test_faults_change_what_their_names_say() -> None:
    weight = torch.arange(24.0).reshape(2, 12)
    faults = injected({"weight": weight, "bias": torch.ones(2)}, (3, 2, 2))
    assert faults["bias dropped"]()["bias"].tolist() == [0, 0]
    assert faults["weight order shifted by one"]()["weight"][0].tolist() == [11, *range(11)]
    assert faults["flatten order swapped (channels last)"]()["weight"][0].tolist() == [
        c * 4 + s for s in range(4) for c in range(3)
    ]
    assert faults["flatten order swapped (height and width)"]()["weight"][0].tolist() == [
        c * 4 + y * 2 + x for c in range(3) for x in range(2) for y in range(2)
    ]
    square = injected({"weight": torch.arange(4.0).reshape(2, 2)})
    assert square["weight transposed"]()["weight"].tolist() == [[0, 2], [1, 3]]
    column = injected({"weight": torch.arange(3.0).reshape(3, 1)})
    assert column["weight order shifted by one"]()["weight"].flatten().tolist() == [2, 0, 1]
    kernel = injected({"weight": torch.arange(8.0).reshape(1, 2, 2, 2)})
    assert kernel["kernel order swapped (channels last)"]()["weight"].flatten().tolist() == [
        0, 4, 1, 5, 2, 6, 3, 7,
    ]  # fmt: skip
    assert kernel["kernel order swapped (height and width)"]()["weight"].flatten().tolist() == [
        0, 2, 1, 3, 4, 6, 5, 7,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("map_shape", "channels_last", "height_and_width"),
    [((2, 2, 1), True, False), ((2, 1, 2), True, False), ((1, 2, 2), False, True), ((2, 2, 2), True, True),
     ((4, 1, 1), False, False), ((1, 1, 4), False, False), ((2, 2), True, False), ((1, 4), False, False)],
)  # fmt: skip
def test_faults_of_a_flatten_need_axes_of_two_elements(
    map_shape: tuple[int, ...], channels_last: bool, height_and_width: bool
) -> None:
    """A swap of axes of which one has a single element changes nothing."""
    weight = torch.arange(3.0 * math.prod(map_shape)).reshape(3, -1)
    faults = injected({"weight": weight}, map_shape)
    names = [name for name in faults if name.startswith("flatten order swapped")]
    assert names == [
        *(["flatten order swapped (channels last)"] if channels_last else []),
        *(["flatten order swapped (height and width)"] if height_and_width else []),
    ]
    for name in names:
        assert not torch.equal(faults[name]()["weight"], weight)
        assert sorted(faults[name]()["weight"][0].tolist()) == weight[0].tolist()


@pytest.mark.parametrize("times", [0.5, 1.0, 1.5, 4.0])
def test_a_fault_is_seen_beyond_the_bound_and_not_at_it(times: float) -> None:
    expected, bound = torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 0.25, dtype=torch.float64)
    faulty = replace(layer(), converted=lambda x, p: expected + times * bound)
    fault = _inject(faulty, example(), expected, bound, Fault("bias dropped", seen_by_integers=True))
    assert fault.seen_by_bound is (times > 1)
    assert fault.deviation == times * 0.25
    assert fault.why == ("" if times > 1 else f"it moves the outputs by {times * 0.25:.3g}, within the bound")
