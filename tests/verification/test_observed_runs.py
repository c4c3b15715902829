"""What an observer of a run is given, which inputs of layers are kept, and which module differs first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.verification import activations
from onebyone.verification.activations import _address, first_difference, record_inputs, sample
from onebyone.verification.calls import first_input, observe_functions, observe_modules, observe_operators

aten = torch.ops.aten

# ---------------------------------------------------------------- calls


def test_an_observer_of_modules_is_given_the_module_and_both_kinds_of_arguments() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return x * scale

    layer, x = Scaled(), torch.ones(2)
    seen: list[tuple[Any, ...]] = []
    with observe_modules({"p": layer}, before=lambda *a: seen.append(a), after=lambda *a: seen.append(a)):
        y = layer(x, scale=3.0)
    before, after = seen
    assert (before[0], before[1], before[3]) == ("p", layer, {"scale": 3.0})
    assert before[2][0] is x
    assert (after[0], after[1], after[3]) == ("p", layer, {"scale": 3.0})
    assert after[2][0] is x
    assert after[4] is y


@pytest.mark.parametrize("observe_calls", [observe_functions, lambda f: observe_operators(after=f)])
def test_an_observer_of_functions_is_given_both_kinds_of_arguments_and_the_result(observe_calls: Any) -> None:
    seen: list[tuple[Any, ...]] = []
    x = torch.ones(2, 3)
    with observe_calls(lambda *a: seen.append(a)):
        y = torch.sum(x, 1, dtype=torch.float64)
    function, args, kwargs, result = next(call for call in seen if "sum" in str(call[0]))
    assert function in (torch.sum, aten.sum.dim_IntList)
    assert args[0] is x
    assert args[1] in (1, [1])
    assert kwargs == {"dtype": torch.float64}
    assert result is y
    assert y.tolist() == [3.0, 3.0]


def test_an_observer_before_operators_is_given_both_kinds_of_arguments() -> None:
    seen: list[tuple[Any, ...]] = []
    x = torch.ones(2, 3)
    with observe_operators(before=lambda *a: seen.append(a)):
        torch.sum(x, 1, dtype=torch.float64)
    operator, args, kwargs = seen[-1]
    assert operator is aten.sum.dim_IntList
    assert (args[0] is x, args[1], kwargs) == (True, [1], {"dtype": torch.float64})


def test_the_first_input_of_a_call() -> None:
    assert first_input((5, 6), {"x": 3}) == 5
    assert first_input((), {"x": 3, "y": 4}) == 3
    assert first_input((), {}) is None


# ---------------------------------------------------------------- recorded inputs


class Uses(nn.Module):
    """A layer that is called, or whose weight is read, as `how` says."""

    def __init__(self, how: str, layer: nn.Module) -> None:
        super().__init__()
        self.how, self.layer = how, layer

    def forward(self, x: Tensor) -> Any:
        weight = self.layer.weight
        if self.how == "read, then called":
            _ = torch.ones(7, weight.shape[1]) @ weight.t()
        if self.how == "read as a kernel":
            return F.conv2d(x, weight)
        if self.how == "read twice":
            return (x @ weight.t(), (x + 1) @ weight.t())
        return self.layer(x)


def test_the_input_of_a_call_comes_before_other_products_with_its_weight() -> None:
    net, x = Uses("read, then called", nn.Linear(3, 2)), torch.randn(4, 3)
    assert torch.equal(record_inputs(lambda: net(x), net, {"layer": net.layer})["layer"], x)


def test_the_first_of_several_products_is_kept() -> None:
    net, x = Uses("read twice", nn.Linear(3, 2)), torch.randn(4, 3)
    assert torch.equal(record_inputs(lambda: net(x), net, {"layer": net.layer})["layer"], x)


@pytest.mark.parametrize("how", ["called", "read as a kernel"])
def test_recorded_images_are_sampled_by_positions(how: str) -> None:
    """40×40 positions of two images: 2·32 of them in 2 rows, with all 4 features."""
    net = Uses(how, nn.Conv2d(4, 3, 1, bias=False))
    inputs = record_inputs(lambda: net(torch.zeros(2, 4, 40, 40)), net, {"layer": net.layer})
    assert inputs["layer"].shape == (2, 4, 2, 32)


def test_complex_products_are_recognised() -> None:
    net = Uses("read twice", nn.Linear(3, 2, dtype=torch.complex64))
    x = torch.randn(4, 3, dtype=torch.complex64)
    assert torch.equal(record_inputs(lambda: net(x), net, {"layer": net.layer})["layer"], x)


def test_a_layer_that_is_called_under_a_second_name_or_on_no_tensor() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ReLU()
            self.second, self.total = self.first, Total()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.total([self.second(x)])
            return y

    class Total(nn.Module):
        def forward(self, values: list[Tensor]) -> Tensor:
            return values[0]

    net, x = Shared(), torch.randn(3)
    inputs = record_inputs(lambda: net(x), net, {"second": net.second, "total": net.total})
    assert set(inputs) == {"second"}, "a list has no first tensor"
    assert torch.equal(inputs["second"], x)


def test_an_empty_weight_is_not_taken_for_other_empty_tensors() -> None:
    """Tensors without values share the address 0."""

    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(2, 0)

    net, layer = Empty(), nn.Linear(2, 3)
    layer.weight = nn.Parameter(torch.ones(3, 0))
    assert record_inputs(lambda: net(torch.ones(2, 0)), net, {"layer": layer}) == {}


def test_tensors_without_memory_are_told_apart() -> None:
    one, other = torch.eye(2).to_sparse(), torch.eye(2).to_sparse()
    assert _address(one) == _address(one)
    assert _address(one) != _address(other)
    t = torch.ones(3)
    assert _address(t) == (t.data_ptr(), 3)


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize(
    ("outputs", "rows"), [(2**20, 8), (2**21, 4), (2**22, 4), (2**16, 128), (2**17, 64)], ids=str
)
def test_fewer_positions_of_large_weights(outputs: int, rows: int) -> None:
    """2²⁷ products in all, at least 4 positions and at most 128. The weight has no memory here."""
    layer = nn.Linear(16, outputs, device="meta")
    assert sample(torch.zeros(300, 16), layer).shape == (rows, 16)


@pytest.mark.parametrize(
    ("layer", "shape", "sampled"),
    [
        (nn.Linear(4, 3), (128, 4), (128, 4)),
        (nn.Linear(4, 3), (129, 4), (128, 4)),
        (nn.Linear(4, 3), (30, 20, 4), (6, 20, 4)),
        (nn.Conv1d(4, 3, 1), (2, 4, 200), (2, 4, 64)),
        (nn.Conv1d(4, 3, 2), (200, 4, 9), (128, 4, 9)),
        (nn.Conv3d(4, 3, 1), (1, 4, 3, 2, 200), (1, 4, 3, 2, 21)),
        # axes of two elements are kept, and no axis is reduced to fewer
        (nn.Linear(4, 3), (2,) * 8 + (4,), (2,) * 8 + (4,)),
        (nn.Linear(4, 3), (3,) * 5 + (4,), (2, 2, 3, 3, 3, 4)),
    ],
    ids=str,
)
def test_samples_of_positions(layer: nn.Module, shape: tuple[int, ...], sampled: tuple[int, ...]) -> None:
    assert sample(torch.zeros(shape), layer).shape == sampled


def test_samples_are_on_the_device_of_the_input() -> None:
    taken = sample(torch.zeros(300, 4, device="meta"), nn.Linear(4, 3))
    assert (taken.device.type, taken.shape) == ("meta", (128, 4))


def test_a_module_without_a_weight_is_sampled_as_one_with_a_single_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activations, "PRODUCTS", 40)
    assert sample(torch.zeros(100, 4), nn.ReLU()).shape == (40, 4)


# ---------------------------------------------------------------- the first module that differs


class Adding(nn.Module):
    def __init__(self, addend: float, empty: bool = False) -> None:
        super().__init__()
        self.addend, self.empty = addend, empty

    def forward(self, x: Tensor) -> Any:
        y = x + self.addend
        return (y[:0], y) if self.empty else y


class Chain(nn.Module):
    """Calls `first` as often as `calls` says, then `second`; `factor` scales the result of the whole."""

    def __init__(self, second: nn.Module, calls: int = 1, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.calls, self.factor = Adding(1.0), second, calls, factor

    def forward(self, x: Tensor) -> Any:
        for _ in range(self.calls):
            y = self.first(x)
        z = self.second(y)
        return (z[1] if isinstance(z, tuple) else z) * self.factor


def first_of(a: nn.Module, b: nn.Module, limit: float = 0.0) -> str | None:
    x = torch.tensor([1.0, -2.0])
    return first_difference(lambda: a(x), lambda: b(x), a, b, lambda t: limit)


def test_a_difference_of_exactly_the_limit_is_allowed() -> None:
    a, b = Chain(Adding(0.0)), Chain(Adding(0.5))
    assert first_of(a, b, 0.5) is None
    assert first_of(a, b, 0.4999) == "second"
    assert first_of(a, a) is None


def test_the_whole_network_is_not_one_of_its_modules() -> None:
    """Nothing inside differs: no layer is named."""
    assert first_of(Chain(Adding(0.0)), Chain(Adding(0.0), factor=2.0)) is None


def test_calls_that_only_one_network_makes_are_passed_over() -> None:
    assert first_of(Chain(Adding(0.0)), Chain(Adding(0.5), calls=2)) == "second"
    assert first_of(Chain(Adding(0.0)), Chain(Adding(0.0), calls=2)) is None


def test_outputs_without_values_do_not_differ() -> None:
    assert first_of(Chain(Adding(0.0, empty=True)), Chain(Adding(0.0, empty=True))) is None
    assert first_of(Chain(Adding(0.0, empty=True)), Chain(Adding(0.5, empty=True))) == "second"
