"""Parts of the comparison of weights: bits of every type, plain values, names, and what each of both maps decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification.result import WeightDifference
from onebyone.verification.weights import (
    _compare,
    _Comparison,
    _difference,
    _flat,
    _listed,
    _may_reshape,
    _optional,
    _tensors,
    _unequal,
    compare_weights,
)

FLOATS = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


# bits


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_bits_of_every_floating_type(dtype: torch.dtype) -> None:
    zeros = torch.zeros(3).to(dtype)
    assert _unequal(zeros, zeros.clone()) == 0
    assert _unequal(zeros, torch.tensor([0.0, -0.0, 0.0]).to(dtype)) == 1
    assert _unequal(zeros, torch.tensor([1.0, 0.0, -0.0]).to(dtype)) == 2
    nan = torch.tensor([math.nan, 1.0]).to(dtype)
    assert _unequal(nan, nan.clone()) == 0


def test_the_bits_of_other_types() -> None:
    for dtype in (torch.int8, torch.int64, torch.uint8):
        assert _unequal(torch.tensor([1, 2, 3], dtype=dtype), torch.tensor([1, 3, 4], dtype=dtype)) == 2
    assert _unequal(torch.tensor([True, False]), torch.tensor([True, True])) == 1
    for dtype in (torch.complex64, torch.complex128):
        z = torch.tensor([1 + 2j, 0j], dtype=dtype)
        assert _unequal(z, z.clone()) == 0
        assert _unequal(z, torch.tensor([1 + 2j, complex(0.0, -0.0)], dtype=dtype)) == 1


def test_one_memory_that_is_read_in_two_ways() -> None:
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert _unequal(square, square.view(2, 2)) == 0
    assert _unequal(square, square.t()) == 2
    z = torch.tensor([1 + 2j, 3 + 0j])
    assert z.conj().data_ptr() == z.data_ptr()
    assert _unequal(z, z.conj()) == 2, "the sign of the second imaginary part, which is zero, counts"
    assert _unequal(z.conj(), z.conj().resolve_conj()) == 0
    assert _unequal(z.imag, z.conj().imag) == 2
    assert _unequal(z.conj().imag, -z.imag) == 0


def test_sparse_tensors_are_compared_as_dense_ones() -> None:
    a, b = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[3.0, 2.0, 0.0]])
    assert _unequal(a.to_sparse(), a.clone().to_sparse()) == 0
    assert _unequal(a.to_sparse(), b.to_sparse()) == 2


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors() -> None:
    def quantised(*values: float, scale: float = 0.5) -> Tensor:
        return torch.quantize_per_tensor(torch.tensor(values).float(), scale, 0, torch.qint8)

    assert _unequal(quantised(0, 1, 2), quantised(0, 1, 2)) == 0
    assert _unequal(quantised(0, 1, 2), quantised(0, 3, 3)) == 2
    assert _unequal(quantised(0, 0), quantised(0, 0, scale=0.25)) == 1, "equal numbers, another scale"


# differences


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1, True), (1.5, float("1.5"), True), (math.nan, float("nan"), True), ("a", "b", False), (1, True, False),
        (1, 1.0, False), (math.nan, 1.0, False), (1.0, math.nan, False), (None, 0, False), (None, None, True),
        (torch.float32, torch.float64, False), (torch.Size([2]), torch.Size([2]), True), (b"a", b"a", True),
        (torch.Size([2]), torch.Size([3]), False), (1, torch.ones(1), False), (2j, 2j, True), (2j, 3j, False),
    ],
)  # fmt: skip
def test_plain_values(a: Any, b: Any, equal: bool) -> None:
    expected = None if equal else WeightDifference("n", f"is {b!r}, the original's is {a!r}")
    assert _difference("n", a, b) == expected


def test_what_is_not_plain_is_not_compared() -> None:
    same = object()
    assert _difference("n", same, same) is None
    for a, b in ((object(), object()), (torch.ones(1), 1)):
        with pytest.raises(TypeError, match="only tensors and plain values are compared"):
            _difference("n", a, b)


@pytest.mark.parametrize(
    ("b", "what"),
    [
        (torch.zeros(2, dtype=torch.float64), "is (2,) in float64, the original's is (2,) in float32"),
        (torch.zeros(2, 1), "is (2, 1) in float32, the original's is (2,) in float32"),
    ],
)
def test_tensors_of_another_shape_or_type(b: Tensor, what: str) -> None:
    assert _difference("n", torch.zeros(2), b) == WeightDifference("n", what, None, None, None)


def test_the_figures_of_a_difference() -> None:
    a = torch.zeros(2000)
    b = a.clone()
    b[:1500], b[1500] = 0.25, -2.0
    what = "differs from the original's in 1,501 of 2,000 values, by up to 2"
    assert _difference("n", a, b) == WeightDifference("n", what, 1501, 2000, 2.0)
    assert _difference("n", nn.Parameter(a), nn.Parameter(a.clone())) is None


# one tensor


def compared(a: Any, b: Any, may_reshape: bool) -> _Comparison:
    comparison = _Comparison({"earlier"}, 5)
    _compare("n", a, b, comparison, may_reshape)
    return comparison


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 2, 3), (2, 1, 3, 1), (2, 3)])
def test_axes_of_size_one_may_be_added_in_converted_layers(shape: tuple[int, ...]) -> None:
    a = torch.arange(6.0).reshape(2, 3)
    assert compared(a, a.reshape(shape), True) == _Comparison({"earlier", "n"}, 11)
    assert compared(a.reshape(shape), a, True) == _Comparison({"earlier", "n"}, 11)
    assert list(compared(a, a.reshape(shape) + 1, True).differing) == ["n"]
    outside = compared(a, a.reshape(shape), False)
    assert bool(outside.differing) == (shape != (2, 3))


def test_other_shapes_of_converted_layers_are_not_compared() -> None:
    for shape in ((3, 2), (6,), (3, 2, 1)):
        note = "n: its shape changed, and the conversion has no map to compare it by"
        assert compared(torch.zeros(2, 3), torch.zeros(shape), True) == _Comparison(
            {"earlier"}, 5, {}, [note]
        )


def test_tensors_without_values() -> None:
    real, meta, lazy = torch.zeros(2), torch.zeros(2, device="meta"), nn.LazyLinear(2).weight
    note = "n: it has no values to compare"
    for a, b in ((meta, meta), (lazy, lazy), (lazy, real), (real, lazy)):
        assert compared(a, b, False) == _Comparison({"earlier"}, 5, {}, [note])
    for a, b in ((meta, real), (real, meta)):
        found = compared(a, b, False)
        assert (found.compared, found.values, found.notes) == ({"earlier"}, 5, [])
        assert found.differing == {"n": WeightDifference("n", "is on the meta device in one network only")}


def test_values_that_cannot_be_compared_are_noted() -> None:
    found = compared(torch.zeros(2), "text", False)
    note = "n: a Tensor that cannot be compared (only tensors and plain values are compared)"
    assert found == _Comparison({"earlier"}, 5, {}, [note])


# names


@pytest.mark.parametrize(
    ("name", "layers", "mapped", "expected"),
    [
        ("fc.weight", ["fc"], False, True),
        ("fc.weight", ["fc"], True, False),
        ("fc.weight", [], False, False),
        ("fc.weight", ["f"], False, False),
        ("weight", [""], False, True),
        ("fc.weight", ["fc.weight"], False, True),
        ("fc2.weight", ["fc", "other"], False, False),
        ("a.fc.weight", ["b", "a"], False, True),
    ],
)
def test_tensors_of_layers_without_a_map(name: str, layers: list[str], mapped: bool, expected: bool) -> None:
    assert _may_reshape(name, layers, dict if mapped else None) == expected


def test_nested_state_is_flat() -> None:
    size = torch.Size([1, 2])
    assert _flat({"a": [1, {"b": 2, 3: (4,)}], "c": size, "d": ()}) == {
        "a.0": 1,
        "a.1.b": 2,
        "a.1.3.0": 4,
        "c": size,
    }
    assert _flat((1, [2])) == {"0": 1, "1.0": 2}
    assert _flat({"a": 1}, "top") == {"top.a": 1}


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "n0"), (3, "n0, n1, n2"), (4, "n0, n1, n2 and 1 more"), (9, "n0, n1, n2 and 6 more")],
)
def test_at_most_three_names_are_listed(count: int, text: str) -> None:
    assert _listed([f"n{i}" for i in range(count)]) == text


class Shared(nn.Module):
    """One layer under two names, a tied weight, both kinds of buffers, and plain tensors."""

    def __init__(self, stored: bool) -> None:
        super().__init__()
        self.a = self.b = nn.Linear(2, 2)
        self.tied = self.a.weight
        self.a.register_buffer("kept", torch.ones(1))
        self.a.register_buffer("index", torch.ones(1), persistent=False)
        self.register_buffer("mask", torch.ones(1), persistent=False)
        self.a.plain, self.top, self.stored = torch.ones(1), torch.ones(1), stored

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if not self.stored:
            raise RuntimeError("a hook fails")
        return {**super().state_dict(*args, **kwargs), "packed": (torch.ones(1), 2)}


@pytest.mark.parametrize("stored", [True, False])
def test_every_tensor_is_compared_under_each_of_its_names(stored: bool) -> None:
    inner = ("weight", "bias", "kept", "index", "plain")
    names = {"tied", "mask", "top", *(f"{layer}.{name}" for layer in "ab" for name in inner)}
    assert set(_tensors(Shared(stored))) == names | ({"packed.0", "packed.1"} if stored else set())
    assert _optional(Shared(stored)) == {"mask", "top", "a.index", "b.index", "a.plain", "b.plain"}


# both maps


def linear(weight: float = 1.0, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(2, 3, bias=bias)
    for p in layer.parameters():
        nn.init.constant_(p, weight)
    return layer


def refusing(state: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError("called")


def test_the_second_map_is_not_tried_after_a_difference() -> None:
    check = compare_weights(linear(), linear(2.0), dict, refusing)
    assert [d.name for d in check.differing] == ["weight", "bias"]
    assert check.problems == tuple(map(str, check.differing))
    check = compare_weights(linear(), linear(bias=False), dict, refusing)
    assert check.problems == ("bias is in the original only",)
    check = compare_weights(linear(), linear(), dict, refusing)
    assert check.problems == ("state_dict_from_original() fails on the original's weights: called",)


def test_a_map_that_gives_another_shape_is_a_problem_in_converted_layers_too() -> None:
    check = compare_weights(
        linear(), linear(), lambda state: {n: t[..., None] for n, t in state.items()}, layers=[""]
    )
    assert (check.ok, check.unverified, [d.name for d in check.differing]) == (False, (), ["weight", "bias"])


def test_the_second_map_is_compared_where_both_have_the_name() -> None:
    check = compare_weights(linear(), linear(), dict, lambda state: {"weight": state["weight"], "more": 1})
    assert (check.ok, check.compared, check.values) == (True, 2, 9)
    check = compare_weights(
        linear(), linear(), dict, lambda state: {n: t[..., None] for n, t in state.items()}
    )
    assert check.problems == tuple(
        f"{name}: state_dict_from_original() gives other values than the converted network holds"
        for name in ("bias", "weight")
    )
    assert (check.ok, check.differing, check.unverified) == (False, (), ())


def test_a_first_map_that_fails_leaves_nothing_compared() -> None:
    check = compare_weights(linear(), linear(), refusing)
    assert (check.ok, check.compared, check.values, check.differing, check.unverified) == (
        False,
        0,
        0,
        (),
        (),
    )
    assert check.problems == ("state_dict_to_original() fails on the converted network's weights: called",)


def test_tensors_that_only_one_network_has() -> None:
    both, one = linear(), linear(bias=False)
    for before, after, where in ((both, one, "original"), (one, both, "converted network")):
        check = compare_weights(before, after)
        assert (check.problems, check.unverified) == ((f"bias is in the {where} only",), ())
        assert (check.compared, check.values) == (1, 6)
        check = compare_weights(before, after, layers=[""])
        note = f"bias: only in the {where}, and the conversion has no map to compare it by"
        assert (check.problems, check.unverified) == ((), (note,))
        check = compare_weights(before, after, subset=True)
        held = "bias: not held by the converted network under the original's names"
        assert (check.problems, check.unverified) == ((), (held,) if where == "original" else ())
    check = compare_weights(both, both, subset=True)
    assert (check.problems, check.unverified, check.compared, check.values) == ((), (), 2, 9)
