"""Numbers in a program are rounded to the type of the tensor, which a bound must contain; and memory of wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onebyone.verification.error_rules import RULES, Approx
from onebyone.verification.weights import _unequal
from onebyone.verification.window_crops import compare_rows

aten = torch.ops.aten
U = 2.0**-24
NUMBERS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "add": (aten.add.Tensor, (-0.1,), {}, lambda x: x - 0.1),
    "add, alpha": (aten.add.Tensor, (-0.05,), {"alpha": 2}, lambda x: x - 0.1),
    "sub": (aten.sub.Tensor, (0.1,), {}, lambda x: x - 0.1),
    "rsub": (aten.rsub.Scalar, (0.1,), {}, lambda x: 0.1 - x),
    "clamp": (aten.clamp.default, (0.1, 0.3), {}, lambda x: x.clamp(0.1, 0.3)),
    "clamp by keyword": (aten.clamp.default, (), {"min": 0.1}, lambda x: x.clamp(min=0.1)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_rounding_of_a_number_is_in_the_bound(name: str) -> None:
    """x and the number nearly cancel, so that what remains is how float32 rounds 0.1: u·0.1·(a fraction)."""
    operator, args, kwargs, exact = NUMBERS[name]
    x = torch.tensor([0.1, 0.25, 7.0])
    answer = RULES[operator.overloadpacket](U, operator, (Approx(x, torch.zeros(3)), *args), kwargs)
    error = (answer.value.double() - exact(x.double())).abs()
    assert float(error[0]) > 1e-9 or "clamp" in name
    assert bool((error <= answer.error).all())
    assert float(answer.error.max()) < 2.5 * U * 7


@pytest.mark.parametrize(
    ("operator", "keywords", "factor"),
    [(aten.add.Tensor, {"alpha": 3}, 3.0), (aten.sub.Tensor, {"alpha": 3}, 3.0), (aten.add.Tensor, {}, 1.0)],
)
def test_the_rounding_of_a_number_counts_as_often_as_the_number(
    operator: Any, keywords: dict[str, Any], factor: float
) -> None:
    """Without other roundings (u = 0), it is all that the bound contains; in b − s·a the number is not scaled."""
    rounding = abs(float(torch.tensor(0.1)) - 0.1)
    x = Approx(torch.ones(2), torch.zeros(2))
    bound = RULES[operator.overloadpacket](0.0, operator, (x, 0.1), keywords).error
    assert bound.tolist() == pytest.approx([factor * rounding] * 2, rel=1e-6)
    reversed_ = RULES[aten.rsub](0.0, aten.rsub.Scalar, (x, 0.1, 3.0), {}).error
    assert reversed_.tolist() == pytest.approx([rounding] * 2, rel=1e-6)


def test_numbers_that_a_type_represents_add_nothing() -> None:
    x = Approx(torch.tensor([1.0, -2.0]), torch.zeros(2))
    for number in (0.5, 3, float("inf")):
        for limits in ((None, number), (-number, None), (-number, number)):
            answer = RULES[aten.clamp](U, aten.clamp.default, (x, *limits), {})
            assert answer.error.tolist() == [0.0, 0.0]
    # float64 is the type of numbers in Python
    x64 = Approx(x.value.double(), x.error.double())
    assert RULES[aten.add](0.0, aten.add.Tensor, (x64, 0.1), {}).error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("limits", [(0.1, None), (0.1, 0.5), (None, 0.1), (-0.5, 0.1)])
def test_each_limit_is_rounded(limits: tuple[float | None, float | None]) -> None:
    x = Approx(torch.tensor([1.0, -2.0]), torch.zeros(2))
    rounding = abs(float(torch.tensor(0.1)) - 0.1)
    answer = RULES[aten.clamp](U, aten.clamp.default, (x, *limits), {})
    assert answer.error.tolist() == pytest.approx([rounding] * 2, rel=1e-6)


class Wrapper(torch.Tensor):
    """A tensor whose values are those of another one, and which has no memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor, scale: float = 1.0) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]

    def __init__(self, inner: Tensor, scale: float = 1.0) -> None:
        self.inner, self.scale = inner, scale

    def __tensor_flatten__(self) -> tuple[list[str], float]:
        return ["inner"], self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = [a.inner if isinstance(a, Wrapper) else a for a in args]
        return func(*unwrapped, **(kwargs or {}))


class OtherWrapper(Wrapper):
    """Another type with the same memory: none."""


def test_wrappers_are_equal_if_their_inner_tensors_and_settings_are() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert _unequal(Wrapper(values), Wrapper(values.clone())) == 0
    assert _unequal(Wrapper(values), Wrapper(values + torch.tensor([0.0, 1.0, 1.0]))) == 2
    assert _unequal(Wrapper(values), Wrapper(values.clone(), scale=2.0)) == 1


def test_wrappers_of_two_types_are_compared_by_their_values() -> None:
    """Both have the address 0, which says nothing."""
    values = torch.tensor([1.0, 2.0, 3.0])
    assert Wrapper(values).data_ptr() == OtherWrapper(values).data_ptr() == 0
    assert _unequal(Wrapper(values), OtherWrapper(values + torch.tensor([0.0, 0.0, 1.0]))) == 1


def test_bounds_of_another_shape_are_an_error() -> None:
    """A bound for one value would otherwise be compared with all."""
    rows = [torch.ones(2, 3)]
    with pytest.raises(ValueError, match="shape"):
        compare_rows(rows, rows, [torch.ones(2, 1)])
