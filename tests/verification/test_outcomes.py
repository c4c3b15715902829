"""The outcome of `verify`: every part of what was found, and the branches that lead to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.pytorch.graph.convert import convert_graph
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.results.traces import TracedValue
from onebyone.verification import verify
from onebyone.verification.layer_matching import _LARGEST_RANK, _orders, first_differing_layer
from onebyone.verification.network_run import Runner
from onebyone.verification.output_comparison import NetworkCheck, NetworkRuns
from onebyone.verification.result import (
    SAME_FUNCTION,
    GradientCheck,
    LayerCheck,
    Verification,
    WeightCheck,
    WeightDifference,
)
from onebyone.verification.verifier import _Findings, _first_difference, _gradient_map, _verification
from tests.verification.standins import ConvertedByHand, ConvInPlaceOfLinear, net, swap
from tests.verification.test_layer_matching import FIRST, WEIGHT, WRONG, layer, traced
from tests.verification.test_verdicts import Traced

FAILING = (
    LayerCheck("a", "Linear"),
    LayerCheck("b.c", "Linear", ok=False, why="reason"),
    LayerCheck("d", "Linear", ok=False, why="another"),
)
WEIGHTS = WeightCheck(2, 5, (WeightDifference("x.y.weight", "differs"),), ("w",), ("u", "uw"))


def test_every_part_of_the_outcome() -> None:
    findings = _Findings(list(FAILING), WEIGHTS, ["p", "q", "p"], ["u"])
    check = NetworkCheck(1.0, 2.0, 3.0, 4.0, ["c"], ["uc", "u"])
    gradient = GradientCheck(False, 3, why="differ")
    expected = Verification(
        equivalent=False, target=SAME_FUNCTION, max_error=1.0, rounding_ratio=2.0, float64_error=3.0,
        float64_limit=4.0, layers=FAILING, weights=WEIGHTS, gradients=gradient, first_difference="z",
        problems=("p", "q", "w", "b.c: reason", "d: another", "c", "gradients differ"), unverified=("u", "uw", "uc"),
    )  # fmt: skip
    assert _verification(findings, check, gradient, "z") == expected
    assert _verification(findings, check, gradient, None) == replace(expected, first_difference="b.c")


def test_the_layer_of_a_weight_that_differs_is_the_first_difference() -> None:
    for weights, first in ((WEIGHTS, "x.y"), (WeightCheck(2, 5), None), (None, None)):
        findings = _Findings([FAILING[0]], weights)
        assert _verification(findings, NetworkCheck(), None, None).first_difference == first


def test_nothing_verified_is_not_a_failure_of_a_check() -> None:
    why = "nothing was verified: no layer"
    v = _verification(_Findings(), NetworkCheck(), None, None, why)
    assert v == Verification(False, SAME_FUNCTION, problems=(why,), nothing_verified=True)
    v = _verification(_Findings(problems=["p"]), NetworkCheck(), None, None, why)
    assert v == Verification(False, SAME_FUNCTION, problems=("p", why))
    v = _verification(_Findings(), NetworkCheck(), GradientCheck(True, 1), None)
    assert v == Verification(True, SAME_FUNCTION, gradients=GradientCheck(True, 1))


# ---------------------------------------------------------------- conversions of callables


@pytest.mark.parametrize("functions", [(True, True), (True, False), (False, True)], ids=str)
def test_a_conversion_of_or_to_a_function_is_compared_by_its_outputs(functions: tuple[bool, bool]) -> None:
    """Its weights and gradients are not known; its layers are, by what the pairs hold."""
    linear = nn.Linear(3, 2)
    layer = ConvInPlaceOfLinear(linear)
    model, after = (m.forward if f else m for m, f in zip((linear, layer), functions, strict=True))
    conversion: Any = ConvertedByHand(after, (ModulePair("", linear, layer),))  # type: ignore[arg-type]
    v = verify(model, conversion, torch.randn(4, 3))
    assert v.equivalent, str(v)
    assert (v.weights, v.integer_probe) == (None, True)
    assert v.max_error is not None
    never_called = ": never called on the example input, so no bound on real weights"
    assert (never_called in v.unverified) is functions[0], "calls of a function's layers cannot be observed"
    wrong: Any = ConvertedByHand((lambda x: linear(x) + 1), ())  # type: ignore[arg-type]
    assert not verify(model, wrong, torch.randn(4, 3)).equivalent


def test_gradients_of_parameters_have_no_counterpart_in_a_function() -> None:
    """A function has no parameters of its own: what cannot be compared is not a difference."""
    note = "gradients of parameters: the converted network is a function"
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    v = verify(model, model.forward, torch.randn(4, 3))
    assert v.equivalent, str(v)
    assert v.unverified == (note,)
    assert v.gradients is not None
    assert (v.gradients.ok, v.gradients.compared, v.gradients.worst) == (True, 1, "the input")
    embedding = nn.Embedding(5, 3)
    v = verify(embedding, embedding.forward, torch.tensor([1, 4]))
    assert (v.equivalent, v.gradients) == (True, None)
    assert v.unverified == ("gradients: the converted network is a function",)
    assert verify(nn.ReLU(), F.relu, torch.randn(4, 3)).unverified == ()

    class Detached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x.detach())
            return y

    wrong = verify(model, Detached(*model).forward, torch.randn(4, 3))
    assert wrong.problems == ("gradients 1 without a counterpart: the input",)


def test_a_function_that_fails_on_the_example_is_bad_input() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("no\nmore")

    for converted in (ConvertedByHand(nn.Linear(3, 2), ()), nn.Linear(3, 2), Traced(nn.Linear(3, 2))):
        with pytest.raises(BadInput, match=r"^model fails on x: ValueError: no$"):
            verify(fails, converted, torch.ones(1, 3))


@pytest.mark.parametrize(
    ("model", "converted", "name"),
    [
        (3, nn.ReLU(), "model"),
        (nn.ReLU(), 3, "converted"),
        (nn.ReLU(), ConvertedByHand(3, ()), "converted.model"),  # type: ignore[arg-type]
        (3, ConvertedByHand(nn.ReLU(), ()), "model"),
    ],
    ids=["model", "converted", "converted.model", "model of a conversion"],
)
def test_arguments_that_cannot_be_called_are_named(model: Any, converted: Any, name: str) -> None:
    with pytest.raises(BadInput, match=f"^{name} is a int, which is neither a network"):
        verify(model, converted, torch.ones(1, 3))


# ---------------------------------------------------------------- checks without a run


def test_a_weight_of_the_converted_network_that_is_not_finite_is_named_as_its() -> None:
    model = net()
    c = swap(model)
    c.model.norm.weight = nn.Parameter(torch.full((5,), float("nan")))
    assert verify(model, c).problems[0] == "converted: weight norm.weight holds NaN or infinity"
    nn.init.constant_(model.second.bias, float("inf"))
    problems = verify(model, swap(model)).problems
    assert problems[0] == "original: weight second.bias holds NaN or infinity"
    assert not any(p.startswith("converted: ") for p in problems), "the parameter is shared, and named once"


def test_all_problems_of_the_structure_are_reported() -> None:
    """A weight that is not finite, layers in each other's place, a tie that is lost, and an input of NaN."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(F.relu(self.a(x))))

    model = Tied()
    nn.init.constant_(model.b.bias, float("nan"))
    c = swap(model)
    c.model.a, c.model.b = c.model.b, c.model.a
    c.model.c.weight = nn.Parameter(model.c.weight.detach().clone())
    v = verify(model, c, torch.full((2, 4), float("nan")))
    sentences = [
        "original: weight b.bias holds NaN or infinity",
        "a in the converted network is not the layer recorded for it",
        "the weight tied under a.weight, c.weight is no longer one parameter",
        "the input holds NaN or infinity",
    ]
    assert [p for p in v.problems if p in sentences] == sentences
    assert v.max_error is None


# ---------------------------------------------------------------- gradients


def test_the_map_of_gradients_is_that_of_state_dicts() -> None:
    model, same, other = nn.Linear(3, 2), nn.Linear(3, 2), nn.Conv1d(3, 2, 1)
    g = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}

    def to_original(state: Any) -> dict[str, Any]:
        return {"weight": state["weight"][..., 0], "bias": state["bias"], "index": torch.zeros(1)}

    def mapped(model: Any, after: Any, to_original: Any) -> Any:
        conversion: Any = replace(ConvertedByHand(after, ()), state_dict_to_original=to_original)
        return _gradient_map(conversion, model, after)

    assert mapped(model, same, to_original) is None, "same names and shapes"
    assert mapped(model, other, None) is None, "no map"
    assert mapped(model.forward, other, to_original) is None
    assert mapped(model, other.forward, to_original) is None
    map_gradients = mapped(model, other, to_original)
    result = map_gradients({"weight": g["weight"][..., None], "bias": g["bias"]})
    assert result.keys() == g.keys(), "an index table has no gradient"
    assert all(torch.equal(result[name], g[name]) for name in g)


def test_gradients_are_compared_if_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)).eval()
    twin = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)).eval()
    twin.load_state_dict(model.state_dict())
    for converted in (swap(model), twin, convolutionalize(model, window=(4, 4))):
        x = torch.randn(2, 1, 4, 4)
        gradients = verify(model, converted, x).gradients
        assert gradients is not None
        assert (gradients.ok, gradients.compared) == (True, 5)
        assert verify(model, converted, x, gradients=False).gradients is None


# ---------------------------------------------------------------- whole graphs


class PlainAttributes(nn.Module):
    """Its weight and bias are tensors, and not parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = torch.randn(4, 3), torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w, self.b).relu()


def test_a_weight_that_is_a_plain_attribute_is_verified_like_a_parameter() -> None:
    """At its path, on its own input; and one with other values is not the layer that was recorded."""
    torch.manual_seed(0)
    model, x = PlainAttributes(), torch.randn(5, 3)
    conversion = convert_graph(model, to="conv", example=x)
    v = verify(model, conversion, x)
    assert v.equivalent, str(v)
    (check,) = v.layers
    assert (check.path, check.bitwise, check.compared) == ("w", True, 20)
    other = verify(PlainAttributes(), conversion, x)
    assert not other.equivalent
    assert "w in the original is not the layer recorded for it" in other.problems


def test_an_empty_batch_shows_nothing_and_is_no_difference() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.empty(0, 3)
    v = verify(model, convert_graph(model, to="conv", example=x), x)
    assert v.equivalent, str(v)
    why = "no bound on real weights: its recorded input has no values"
    assert [(layer.bitwise, layer.why) for layer in v.layers] == [(True, why)] * 2
    assert "the output has no values: it shows nothing of the operators before it" in v.unverified


# ---------------------------------------------------------------- which layer differs


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_no_layer_differs_in_networks_that_are_equivalent() -> None:
    """Although the values inside do: the factors 2 and 1/2 in the other order."""
    one, other = nn.Sequential(Scaled(2), Scaled(0.5)), nn.Sequential(Scaled(0.5), Scaled(2))
    for gradients in (True, False):
        v = verify(one, other, torch.randn(4), gradients=gradients)
        assert (v.equivalent, v.first_difference) == (True, None)
    wrong = verify(one, nn.Sequential(Scaled(2), Scaled(0.25)), torch.randn(4))
    assert (wrong.equivalent, wrong.first_difference) == (False, "1")


def test_a_layer_without_outputs_before_the_one_that_differs() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:0], x

    class Second(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.empty, self.scaled = Empty(), Scaled(factor)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.scaled(self.empty(x)[1])
            return y

    one, other = (Runner(Second(f), torch.ones(2, dtype=torch.float64), 0) for f in (1.0, 2.0))
    assert _first_difference(NetworkRuns(one, other, one, other, 2.0**-24, False)) == "scaled"


def test_the_first_layer_of_all_may_be_the_one_whose_weight_is_lost() -> None:
    """No layer is confirmed, and none has a name."""
    outputs = [layer("lost", FIRST, 0.0, WEIGHT), layer("also", FIRST * 2, 0.0, WEIGHT * 3)]
    assert first_differing_layer(outputs, [traced("x", WRONG)]) == "lost"
    assert (
        first_differing_layer([layer("relu", FIRST), layer("b", FIRST * 2)], [traced("x", WRONG)]) == "relu"
    )


def test_tensors_of_four_axes_are_compared_in_each_order() -> None:
    assert _LARGEST_RANK == 4
    t = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    orders = {tuple(o.tolist()) for o in _orders(t)}
    assert len(orders) == 24
    assert tuple(t.permute(3, 1, 0, 2).flatten().tolist()) in orders


# ---------------------------------------------------------------- networks outside PyTorch


class Looks(nn.Module):
    """Keeps whether gradients were computed when it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.seen: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(torch.is_grad_enabled())
        y: Tensor = self.layer(x)
        return y


def test_a_network_outside_pytorch_has_no_gradients_to_compare() -> None:
    torch.manual_seed(0)
    model, seen = Looks(), set[bool]()
    model.seen = seen
    for network, notes in ((model.layer, 0), (lambda x: model.layer(x), 1)):
        v = verify(model, Traced(network), torch.randn(4, 2))
        assert v.equivalent, str(v)
        assert seen == {False}
        assert v.gradients is None
        missing = [note for note in v.unverified if "float64" in note]
        assert [note.startswith("rounding_ratio: no float64 reference (") for note in missing] == [
            True
        ] * notes


def test_an_example_by_name_reaches_the_trace() -> None:
    class ByName(Traced):
        def __call__(self, *, x: Tensor) -> list[Tensor]:
            return [self.network(x)]

        def trace(self, *, x: Tensor) -> list[TracedValue]:
            return [TracedValue("y", "", self.network(x))]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3))
    x = torch.randn(4, 2)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return y

    assert verify(Outer(), ByName(model), {"x": x}).equivalent
    wrong = verify(Outer(), ByName(lambda t: model(t) + 0.25), {"x": x})
    assert (wrong.equivalent, wrong.first_difference) == (False, "inner.0")


def test_a_network_that_is_compared_with_one_outside_pytorch_runs_in_eval_mode() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(2, 3)
    model = nn.Sequential(linear, nn.Dropout(0.5)).train()
    v = verify(model, Traced(linear), torch.randn(64, 2))
    assert v.equivalent, str(v)
    assert model.training
    assert model[1].training
