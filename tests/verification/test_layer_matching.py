"""Which layer differs, on outputs and traces made by hand: every way to know that a traced value is a layer's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from onebyone.results.traces import TracedValue
from onebyone.verification.layer_matching import (
    LayerOutput,
    _ancestors,
    _fingerprint,
    _nodes_by_layer,
    _readers,
    first_differing_layer,
    record_outputs,
    traced_outputs,
)
from onebyone.verification.network_run import Runner

FIRST, SECOND, THIRD = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 2, 3], [4.0, 6, 5], [9.0, 8, 7]))
WRONG = torch.tensor([1.0, 2, 4])
WEIGHT, OTHER = torch.tensor([[1.0, 7.0]]), torch.tensor([[3.0, 5.0]])


def layer(path: str, value: Tensor, limit: float = 0.0, *weights: Tensor) -> LayerOutput:
    return LayerOutput(path, value, limit, weights)


def traced(
    name: str, value: Tensor, operands: Sequence[int] = (), layer: str = "", weights: Sequence[Tensor] = ()
) -> TracedValue:
    return TracedValue(name, layer, value, tuple(operands), tuple(weights))


def test_values_that_all_agree_have_no_difference() -> None:
    outputs = [layer("a", FIRST), layer("b", SECOND)]
    trace = [traced("x", FIRST), traced("y", SECOND, [0])]
    assert first_differing_layer(outputs, trace) is None


def test_what_comes_before_a_confirmed_value_is_confirmed_too() -> None:
    """A value inside of a layer has no counterpart; one that nothing leads back to is the first that differs."""
    outputs = [layer("a", SECOND)]
    inner = [traced("inner", WRONG), traced("y", SECOND, [0])]
    assert first_differing_layer(outputs, inner) is None
    after = [*inner, traced("last", WRONG, [1])]
    assert first_differing_layer(outputs, after) == "the value 'last'"
    assert _ancestors(after, {1}) == {0, 1}
    assert _ancestors(after, {2}) == {0, 1, 2}
    assert _ancestors(after, {0}) == {0}
    assert _readers(after) == [{1}, {2}, set()]


@pytest.mark.parametrize("how", ["the layer's name", "the value's name", "an equal weight"])
def test_a_layer_whose_value_differs_is_named(how: str) -> None:
    outputs = [layer("a", FIRST), layer("b", SECOND, 0.0, WEIGHT), layer("c", THIRD)]
    second = {
        "the layer's name": traced("v", WRONG, [0], layer="b"),
        "the value's name": traced("b", WRONG, [0]),
        "an equal weight": traced("v", WRONG, [0], weights=[OTHER, WEIGHT.t()]),
    }[how]
    trace = [traced("x", FIRST), second, traced("z", WRONG, [1], layer="c")]
    assert first_differing_layer(outputs, trace) == "b"


def test_names_of_layers_come_before_names_of_values_and_those_before_weights() -> None:
    outputs = [layer("a", FIRST, 0.0, WEIGHT), layer("b", SECOND), layer("c", THIRD)]
    trace = [
        traced("b", FIRST, layer="c", weights=[WEIGHT]),
        traced("b", FIRST, layer="not a layer", weights=[WEIGHT]),
        traced("v", FIRST, weights=[OTHER, WEIGHT]),
        traced("v", FIRST, weights=[OTHER]),
    ]
    assert dict(_nodes_by_layer(outputs, trace)) == {"c": [0], "b": [1], "a": [2]}
    shared = [layer("first", FIRST, 0.0, WEIGHT), layer("second", SECOND, 0.0, WEIGHT)]
    assert dict(_nodes_by_layer(shared, trace[2:3])) == {"first": [0]}


def test_equal_weights_in_any_order_of_axes_have_one_fingerprint() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    assert _fingerprint(weight) == _fingerprint(weight.t().reshape(1, 6)) == (6, 0.0, 5.0)
    assert _fingerprint(torch.zeros(0)) == (0, 0.0, 0.0)
    for other in (weight + 1, weight[:, :2], weight.clamp(1), weight.clamp(max=4)):
        assert _fingerprint(other) != _fingerprint(weight)


def test_without_a_name_the_first_layer_whose_weight_is_lost_differs() -> None:
    """A layer without weights before it, and one after it, are not blamed."""
    outputs = [
        layer("a", FIRST),
        layer("relu", SECOND),
        layer("lost", SECOND, 0.0, WEIGHT),
        layer("also lost", SECOND, 0.0, OTHER),
        layer("named", THIRD),
    ]
    trace = [traced("x", FIRST), traced("v", WRONG, [0]), traced("w", WRONG, [1], layer="named")]
    assert first_differing_layer(outputs, trace) == "lost"
    without = [o for o in outputs if not o.weights]
    assert first_differing_layer(without, trace) == "named"
    assert first_differing_layer(without, trace[:2]) == "relu"


def test_a_layer_before_a_confirmed_one_is_not_blamed_for_its_missing_name() -> None:
    """The exporter merged it: what follows is right."""
    outputs = [layer("merged", SECOND, 0.0, WEIGHT), layer("right", FIRST), layer("named", THIRD)]
    trace = [traced("x", FIRST), traced("v", WRONG, [0], layer="named")]
    assert first_differing_layer(outputs, trace) == "named"
    assert first_differing_layer(outputs[:2], trace[:1]) is None


def test_a_layer_that_was_merged_with_the_next_is_excused() -> None:
    """A convolution whose batch norm is folded into it: its own output is nowhere, that of the norm is."""
    outputs = [layer("conv", WRONG.double()), layer("norm", FIRST)]
    assert first_differing_layer(outputs, [traced("x", FIRST, layer="conv")]) is None
    chain = [traced("x", SECOND, layer="conv"), traced("y", FIRST, [0], layer="norm")]
    assert first_differing_layer(outputs, chain) is None
    unread = [traced("x", SECOND, layer="conv"), traced("y", FIRST, layer="norm")]
    assert first_differing_layer(outputs, unread) == "conv"


def test_a_value_may_be_off_by_its_limit_in_any_order_of_axes() -> None:
    value = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    turned = value.t().contiguous()
    for moved, confirmed in ((0.25, True), (0.25 + 2.0**-40, False)):
        other = turned.clone()
        other[2, 1] -= moved
        outputs = [layer("a", value, 0.25)]
        assert first_differing_layer(outputs, [traced("x", other, layer="a")]) == (None if confirmed else "a")
    for other in (turned[:2], turned * math.nan, turned.flip(0)):
        assert first_differing_layer([layer("a", value, 0.25)], [traced("x", other, layer="a")]) == "a"


def test_a_constant_output_confirms_nothing() -> None:
    """Zeros after a ReLU equal the zeros of every other layer."""
    zeros = torch.zeros(3, dtype=torch.float64)
    assert first_differing_layer([layer("a", zeros)], [traced("x", zeros, layer="a")]) == "a"


def test_outputs_are_recorded_in_the_order_in_which_they_return() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.arange(3), x * 2

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
            self.positions, self.nothing = Positions(), Nothing()

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x)
            self.nothing(y)
            return self.positions(y)[1]  # type: ignore[no-any-return]

    net = Net()
    exact = Net().double()
    exact.load_state_dict(net.state_dict())
    x = torch.tensor([[1.0, 0.3]])
    limits: list[tuple[Tensor, Tensor]] = []

    def limit(y: Tensor, z: Tensor) -> float:
        limits.append((y, z))
        return float(len(limits))

    recorded = record_outputs(Runner(net, x, 0), Runner(exact, x.double(), 0), limit)
    assert [output.path for output in recorded] == ["block.0", "block.1", "block", "positions"]
    assert [output.limit for output in recorded] == [1, 2, 3, 4]
    assert torch.equal(recorded[0].value, exact.block[0](x.double()))
    assert torch.equal(limits[0][1], net.block[0](x).double()), "the limit is given the rounded output too"
    assert recorded[0].weights == tuple(net.block[0].parameters())
    assert [len(output.weights) for output in recorded] == [2, 0, 0, 0]
    assert torch.equal(recorded[3].value, recorded[2].value * 2), "the first floating output"


def test_runs_that_call_other_layers_are_compared_as_far_as_they_agree() -> None:
    one, two = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 3), nn.ReLU()).double()
    x = torch.ones(1, 2)
    assert record_outputs(Runner(one, x, 0), Runner(two, x.double(), 0), lambda y, z: 0.0) == []
    other = nn.Sequential()
    other.add_module("0", nn.Linear(2, 2))
    other.add_module("act", nn.ReLU())
    recorded = record_outputs(Runner(one, x, 0), Runner(other.double(), x.double(), 0), lambda y, z: 0.0)
    assert [output.path for output in recorded] == ["0"]


def test_values_of_a_traced_original_are_its_layers() -> None:
    trace = [traced("x", WRONG, weights=[WEIGHT]), traced("none", torch.zeros(0)), traced("y", WRONG * 2)]
    outputs = traced_outputs(trace, lambda y: float(y.max()))
    assert [(o.path, o.limit) for o in outputs] == [("x", 4.0), ("y", 8.0)]
    assert outputs[0].value.dtype == torch.float64
    assert outputs[0].weights == (WEIGHT,)


def test_an_output_belongs_to_no_weights_unless_they_are_given() -> None:
    assert LayerOutput("fc", torch.ones(2), 0.5).weights == ()
