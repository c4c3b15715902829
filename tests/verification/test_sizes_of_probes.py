"""How large the integers of a probe are and why that is enough, which faults it injects, and layers at their limits."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.results import LayerFunctions
from onebyone.verification import integer_probes
from onebyone.verification.injected_faults import injected
from onebyone.verification.integer_probes import _largest, _longest_sum, integers, probe
from onebyone.verification.layer_checks import check_layer, rounding_bound
from tests.verification.test_layer_checks import example, gamma, linear, names, off_by
from tests.verification.test_layer_checks import layer as real_layer

Params = dict[str, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize(("count", "magnitude"), [(8, 15), (10, 999), (7, 100), (3, 2)])
def test_one_integer_of_each_part_of_the_range(count: int, magnitude: int) -> None:
    """The odd numbers 2k + 1 of the range, in `count` parts of equal size from its lower end on: one k of each part."""
    odd = range(-magnitude + 1 - magnitude % 2, magnitude + 1, 2)
    parts = [set(odd[i * (len(odd) // count) : (i + 1) * (len(odd) // count)]) for i in range(count)]
    unsorted = False
    for seed in range(20):
        values = integers((count,), magnitude, generator(seed)).long().tolist()
        if len(odd) >= count:
            assert all(len(part & set(values)) == 1 for part in parts)
        assert set(values) <= set(odd)
        unsorted |= values != sorted(values)
    assert unsorted, "in random order"


def test_even_magnitudes_end_at_the_odd_number_below() -> None:
    assert set(integers((500,), 6, generator()).tolist()) == {-5.0, -3.0, -1.0, 1.0, 3.0, 5.0}
    assert set(integers((50,), 1, generator()).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("count", "magnitude"), [(5, 1000), (50, 7)])
def test_integers_depend_on_the_generator_alone(dtype: torch.dtype, count: int, magnitude: int) -> None:
    drawn = []
    for state in (1, 2):
        torch.manual_seed(state)
        drawn.append(integers((count,), magnitude, generator(), dtype))
    assert torch.equal(*drawn)
    assert drawn[0].dtype == dtype


def test_the_largest_magnitude() -> None:
    assert _largest(None) == _largest(torch.zeros(0, 3)) == 0
    assert _largest(torch.tensor([-5.0, 3.0])) == 5
    assert _largest(torch.tensor([5.0, -3.0])) == 5
    assert _largest(torch.complex(torch.tensor([1.0]), torch.tensor([-7.0]))) == 7
    with pytest.raises(AssertionError, match="not integers"):
        _largest(torch.tensor([1.5]))


@pytest.mark.parametrize(
    ("weight", "terms", "shapes", "outputs_only", "with_gradients"),
    [
        # a linear layer: its features; its outputs, for the gradient of an input; its positions, for that of a weight
        ((3, 4), 4, ((2, 4),), 4, 8),
        ((50, 4), 4, ((2, 4),), 4, 50),
        ((3, 4), 4, ((2, 4), (5, 7, 4)), 4, 140),
        # a convolution: every output channel at every position of the kernel
        ((3, 2, 5, 5), 50, ((1, 2, 6, 6),), 50, 75),
        # a depthwise one
        ((8, 1, 3, 3), 9, ((8, 2, 2),), 9, 72),
        # one axis, and no values
        ((6,), 1, ((1,),), 1, 6),
        ((3, 0), 1, ((1, 0),), 1, 3),
    ],
)
def test_the_longest_sum(
    weight: tuple[int, ...], terms: int, shapes: Any, outputs_only: int, with_gradients: int
) -> None:
    for dtype, factor in ((torch.float32, 1), (torch.complex64, 2)):
        params = {"weight": torch.zeros(weight, dtype=dtype)}
        layer = LayerFunctions("p", "k", linear, linear, params, shapes, terms)
        assert _longest_sum(layer, False) == factor * outputs_only
        assert _longest_sum(layer, True) == factor * with_gradients


def probed(shapes: tuple[tuple[int, ...], ...] = ((2, 4),), **forms: Any) -> LayerFunctions:
    params = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    return LayerFunctions("fc", "Linear", **{"original": linear, "converted": linear} | forms, params=params,
                          shapes=shapes, terms=4)  # fmt: skip


@pytest.mark.parametrize(
    "replaced",
    [
        {(3,): 2.0**53},
        {(2, 4): 2.0**30, (3,): 1.0},
        {(3, 4): 2.0**30, (3,): 1.0},
        # the cotangents: in the gradient of the input they meet the weight, in that of the weight the input
        {(2, 3): 2.0**50, (3, 4): 4.0, (2, 4): 1.0},
        {(2, 3): 2.0**50, (3, 4): 1.0, (2, 4): 4.0},
    ],
    ids=["bias", "input", "weight", "cotangent × weight", "cotangent × input"],
)
def test_each_operand_that_is_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch, replaced: dict[tuple[int, ...], float]
) -> None:
    right = integer_probes.integers

    def drawn(shape: tuple[int, ...], *rest: Any) -> Tensor:
        return torch.full(shape, replaced[shape]) if shape in replaced else right(shape, *rest)

    monkeypatch.setattr(
        integer_probes, "integers", lambda shape, *rest: drawn(shape, *rest).to(torch.float64)
    )
    with pytest.raises(BadInput, match="not exact"):
        probe(probed(), 0)


def test_integers_are_on_the_devices_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []
    right = integer_probes.integers

    class Moved(Tensor):
        def to(self, device: Any) -> Tensor:  # type: ignore[override]
            devices.append(device)
            return self.as_subclass(Tensor)

    monkeypatch.setattr(integer_probes, "integers", lambda *arguments: right(*arguments).as_subclass(Moved))
    assert probe(probed(), 0)[0]
    assert devices == [torch.device("cpu")] * 4, "the weight, the bias, the input and the cotangent"


def test_weights_up_to_the_limit_are_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gradient(x: Tensor, p: Params) -> Tensor:
        return linear(x.detach(), p)

    for limit, equal in ((12, False), (11, True)):
        monkeypatch.setattr(integer_probes, "GRADIENT_WEIGHTS", limit)
        assert probe(probed(converted=no_gradient), 0)[0] is equal
    monkeypatch.undo()
    assert integer_probes.GRADIENT_WEIGHTS == 4 * 1024**2


def test_a_layer_without_a_bias_is_probed() -> None:
    layer = replace(probed(), params={"weight": torch.zeros(3, 4)})
    equal, why, faults = probe(layer, 0)
    assert (equal, why, [f.name for f in faults]) == (True, "", ["weight order shifted by one"])


def test_a_fault_that_one_shape_hides_is_seen_on_another() -> None:
    def sums_of_rows(x: Tensor, p: Params) -> Tensor:
        if x.dim() == 2:  # the order of the features does not matter here
            return x.sum(-1, keepdim=True) * p["weight"].sum(1) + p["bias"]
        return linear(x, p)

    for shapes in (((2, 4), (4,)), ((4,), (2, 4))):
        _, _, faults = probe(probed(shapes, original=sums_of_rows, converted=sums_of_rows), 0)
        assert all(f.seen_by_integers for f in faults)


# ---------------------------------------------------------------- injected faults


def test_faults_of_kernels_with_other_numbers_of_axes() -> None:
    shifted = "weight order shifted by one"
    last, sides = "kernel order swapped (channels last)", "kernel order swapped (height and width)"
    assert names((1,)) == []
    assert names((3,)) == [shifted]
    assert names((1, 1, 1, 1)) == []
    assert names((1, 1, 2, 1)) == names((1, 1, 1, 4)) == names((1, 1, 4)) == [shifted]
    assert names((2, 3, 2)) == [shifted, last]
    assert names((2, 2, 2, 2)) == [shifted, last, sides]
    assert names((2, 3, 1, 2, 2)) == [shifted, last, sides]
    assert names((2, 3, 2, 2, 1)) == [shifted, last]
    assert names((2, 12, 1, 1), map_shape=(3, 2, 2)) == [shifted], "the map of a linear layer only"


def test_a_shift_of_a_depthwise_kernel_is_one_along_its_first_long_axis() -> None:
    weight = torch.arange(6.0).reshape(1, 1, 3, 2)
    shifted = injected({"weight": weight})["weight order shifted by one"]()["weight"]
    assert shifted.flatten().tolist() == [4, 5, 0, 1, 2, 3]


def test_height_and_width_are_the_last_two_axes() -> None:
    """Of a kernel and of a map with three spatial axes too."""
    weight, swapped = torch.arange(8.0), [0, 2, 1, 3, 4, 6, 5, 7]
    kernel = injected({"weight": weight.reshape(1, 1, 2, 2, 2)})
    assert kernel["kernel order swapped (height and width)"]()["weight"].flatten().tolist() == swapped
    linear = injected({"weight": weight.reshape(1, 8)}, map_shape=(1, 2, 2, 2))
    assert linear["flatten order swapped (height and width)"]()["weight"].flatten().tolist() == swapped
    last = injected({"weight": weight.reshape(1, 8)}, map_shape=(2, 1, 2, 2))
    expected = [0, 4, 1, 5, 2, 6, 3, 7]
    assert last["flatten order swapped (channels last)"]()["weight"].flatten().tolist() == expected
    kernel = injected({"weight": weight.reshape(1, 2, 1, 2, 2)})
    assert kernel["kernel order swapped (channels last)"]()["weight"].flatten().tolist() == expected


def test_the_other_parameters_stay() -> None:
    params = {"weight": torch.arange(16.0).reshape(2, 2, 2, 2), "bias": torch.ones(2)}
    faults = injected(params)
    assert set(faults) == {"bias dropped", *names((2, 2, 2, 2))}
    for name, make in faults.items():
        changed = {n for n, t in make().items() if not torch.equal(t, params[n])}
        assert make().keys() == params.keys()
        assert changed == ({"bias"} if name == "bias dropped" else {"weight"})


# ---------------------------------------------------------------- layers at their limits


def test_a_difference_of_exactly_the_bound_passes() -> None:
    """An input of zeros has the bound of underflow alone, which the converted form is off by."""
    real, x = real_layer(bias=False), torch.zeros(5, 4)
    check = check_layer(off_by(1.0, real, x), x, 0)
    assert (check.ok, check.error_ratio, check.kind, check.path) == (True, 1.0, "Linear", "fc")
    assert check.arithmetic == "float32 sums"
    assert check.max_error == check.bound
    # a fault that moves the outputs by exactly the bound is within it
    (fault,) = check.faults
    assert (fault.seen_by_integers, fault.seen_by_bound, fault.deviation) == (True, False, check.bound)
    assert check.why == "weight order shifted by one: seen by integers only"


def test_a_layer_that_fails_says_so_and_not_what_its_bound_cannot_see() -> None:
    real, x = real_layer(), example()
    real.params["bias"].fill_(1e-9)
    wrong = off_by(1.5, real, x)

    def wrong_with_a_bias(inputs: Tensor, p: Params) -> Tensor:
        return (wrong.converted if p["bias"].any() else linear)(inputs, p)

    check = check_layer(replace(real, converted=wrong_with_a_bias), x, 0)
    assert not check.ok
    assert check.why.startswith("|Δ| is ")


def test_a_layer_on_an_empty_batch_and_one_without_outputs() -> None:
    def fails_on_nothing(x: Tensor, p: Params) -> Tensor:
        assert x.numel()
        return linear(x, p)

    check = check_layer(real_layer(converted=fails_on_nothing), torch.zeros(0, 4), 0)
    assert (check.ok, check.bitwise, check.compared, check.bound) == (True, True, 0, None)
    assert check.why == "no bound on real weights: its recorded input has no values"

    def nothing(x: Tensor, p: Params) -> Tensor:
        y = linear(x, p)
        return y if x.dtype == torch.float64 and x.shape[0] != 5 else y[:0]

    check = check_layer(real_layer(nothing, nothing), example(), 0)
    assert (check.ok, check.bitwise, check.compared) == (True, True, 0)
    assert (check.bound, check.max_error, check.error_ratio) == (0.0, 0.0, 0.0)


def test_the_deviation_of_a_fault_is_what_it_changes() -> None:
    real, x = real_layer(), example()
    check = check_layer(real, x, 0)
    deviations = {f.name: f.deviation for f in check.faults}
    shifted = F.linear(x, real.params["weight"].roll(1, 1)) - F.linear(x, real.params["weight"])
    assert deviations["bias dropped"] == pytest.approx(float(real.params["bias"].abs().max()), rel=1e-5)
    assert deviations["weight order shifted by one"] == pytest.approx(float(shifted.abs().max()), rel=1e-5)
    assert check.planted_fault == min(deviations.values())
    assert [f.why for f in check.faults] == ["", ""]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_rounding_of_the_bound_itself(dtype: torch.dtype) -> None:
    """Of long sums it matters: 4·γ_{n+1}(2⁻⁵³), 5·10⁻¹⁰ at 2²⁰ terms."""
    real, x = replace(real_layer(dtype=dtype), terms=2**20 - 1), example(dtype)
    _, bound, _ = rounding_bound(real, x)
    wide = {n: p.double() for n, p in real.params.items()}
    reach = x.double().abs() @ wide["weight"].abs().t() + wide["bias"].abs()
    u = Fraction(torch.finfo(dtype).eps) / 2
    factor = 2 * gamma(2**20, u) * (1 + 4 * gamma(2**20, Fraction(1, 2**53)))
    assert torch.allclose(bound, float(factor) * reach, rtol=1e-13, atol=0)


def test_the_type_that_complex_numbers_are_summed_in() -> None:
    for dtype, name in ((torch.complex64, "float32 sums"), (torch.complex128, "float64 sums")):
        _, bound, arithmetic = rounding_bound(real_layer(dtype=dtype), example(dtype))
        assert arithmetic == name
        u = Fraction(torch.finfo(dtype).eps) / 2
        assert float(gamma(9, u)) < float(bound.max()) < 1000 * float(gamma(9, u))
    assert math.isfinite(float(bound.max()))
