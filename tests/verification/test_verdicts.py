"""What a verification says of itself: the verdict, each figure of its report, and faults with one problem each."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput, NotEquivalent
from onebyone.onnx.evaluators import NotRunnable
from onebyone.results.traces import TracedValue
from onebyone.verification import verify
from onebyone.verification.onnx_network import CallableOnnx
from onebyone.verification.result import (
    DenseCheck,
    Fault,
    GradientCheck,
    LayerCheck,
    Verification,
    WeightCheck,
    WeightDifference,
    _layer_row,
)
from onebyone.verification.tiling import compare_tiled
from tests.onnx.models import model as onnx_model

EVERYTHING = Verification(
    equivalent=True,
    target="a target",
    max_error=0.125,
    rounding_ratio=1.5,
    float64_error=0.25,
    float64_limit=0.5,
    layers=(LayerCheck("fc", "Linear", bitwise=True, max_error=0.01, bound=0.02),),
    weights=WeightCheck(3, 40),
    gradients=GradientCheck(True, 5),
    dense=DenseCheck(
        "t", True, 12, (3, 4), (3, 4), max_abs_difference=0.5, bound=0.75, relative_to_spread=0.03125,
        class_agreement=0.875, float64_difference=1e-12, float64_limit=1e-11,
    ),
    first_difference="fc",
    evaluators=("one engine", "another"),
)  # fmt: skip
FIGURES = {
    "integer probes": "equal bit for bit",
    "weights": "3 tensors, equal bit for bit",
    "largest difference": "0.125",
    "rounding ratio": "1.5",
    "in float64": "0.25 (limit 0.5)",
    "gradients": "5 tensors, agree",
    "first differing layer": "fc",
    "computed by": "one engine; another",
    "windows": "12 compared, (3, 4) positions, (3, 4) expected",
    "dense against crops": "0.5 (bound 0.75)",
    "dense in float64": "1e-12 (limit 1e-11)",
    "relative to spread": "0.0312",
    "same best class": "87.50%",
}


def figures_of(v: Verification) -> dict[str, str]:
    """The lines of the report between its headline and the table of layers."""
    pairs = [line.strip().partition(": ") for line in str(v).splitlines() if line.startswith("  ")]
    return {name: text for name, _, text in pairs if name in (*FIGURES, "bound")}


def test_every_figure_is_reported() -> None:
    assert str(EVERYTHING).splitlines()[0] == "equivalent (a target)"
    assert figures_of(EVERYTHING) == FIGURES
    page = EVERYTHING._repr_html_()
    assert all(name in page and text in page for name, text in FIGURES.items())
    assert "✓ equivalent (a target)" in page


def test_what_differs_is_reported_as_such() -> None:
    assert EVERYTHING.weights is not None
    assert EVERYTHING.dense is not None
    wrong = replace(
        EVERYTHING,
        equivalent=False,
        layers=(*EVERYTHING.layers, LayerCheck("", "Linear", bitwise=False, ok=False, why="reason")),
        weights=replace(EVERYTHING.weights, problems=("w differs",)),
        gradients=GradientCheck(False, 5),
        dense=replace(EVERYTHING.dense, bound=None, bound_missing="aten.erfcx", float64_limit=None),
    )
    assert str(wrong).splitlines()[0] == "NOT equivalent (a target)"
    assert figures_of(wrong) == FIGURES | {
        "integer probes": "DIFFER",
        "weights": "3 tensors, DIFFER",
        "gradients": "5 tensors, DIFFER",
        "dense against crops": "0.5",
        "dense in float64": "1e-12",
        "bound": "none: aten.erfcx",
    }
    assert "✗ NOT equivalent (a target)" in wrong._repr_html_()
    assert wrong.integer_probe is False


def test_what_was_not_measured_is_not_reported() -> None:
    empty = Verification(True, "a target")
    assert str(empty) == "equivalent (a target)"
    assert (empty.integer_probe, empty.windows, empty.max_abs_difference) == (None, None, None)
    assert (empty.bound, empty.class_agreement) == (None, None)
    dense = replace(empty, dense=DenseCheck("t", True, 1, (1,), (1,)))
    assert figures_of(dense) == {"windows": "1 compared, (1,) positions, (1,) expected"}
    unprobed = replace(empty, layers=(LayerCheck("fc", "Linear"),))
    assert unprobed.integer_probe is None
    assert "integer probes" not in figures_of(unprobed)
    assert (EVERYTHING.windows, EVERYTHING.max_abs_difference) == (12, 0.5)
    assert (EVERYTHING.bound, EVERYTHING.class_agreement) == (0.75, 0.875)


def test_notes_follow_the_figures_in_their_order() -> None:
    v = Verification(False, "t", problems=("p", "q"), unverified=("u",), warnings=("w",))
    assert str(v).splitlines() == [
        "NOT equivalent (t)", "problem: p", "problem: q", "warning: w", "not verified: u"
    ]  # fmt: skip
    page = v._repr_html_()
    places = [page.index(note) for note in ("problem: p", "problem: q", "warning: w", "not verified: u")]
    assert places == sorted(places)


def test_a_row_of_the_table_of_layers() -> None:
    faults = (Fault("a", deviation=0.5), Fault("b"), Fault("c", deviation=0.25))
    check = LayerCheck("fc", "Linear", bitwise=True, max_error=0.001, bound=0.0625, faults=faults)
    assert check.planted_fault == 0.25, "that of the smallest fault"
    assert _layer_row(check) == ["fc", "Linear", "bit for bit", "0.001", "0.0625", "0.25", "ok"]
    assert _layer_row(replace(check, why="seen"))[-1] == "ok: seen"
    bare = LayerCheck("", "Linear", bitwise=False, ok=False, why="reason")
    assert _layer_row(bare) == ["(top level)", "Linear", "DIFFER", "–", "–", "–", "FAILS: reason"]
    assert _layer_row(replace(bare, bitwise=None))[2] == "–"
    assert bare.planted_fault is None


def test_a_check_raises_with_the_first_problems_and_the_layer() -> None:
    assert EVERYTHING.check() is EVERYTHING
    many = tuple(f"problem {i}" for i in range(7))
    wrong = replace(EVERYTHING, equivalent=False, problems=many)
    with pytest.raises(NotEquivalent) as error:
        wrong.check()
    assert str(error.value) == (
        f"not equivalent (a target): {'; '.join(many[:5])}; first differing layer: fc"
    )
    with pytest.raises(NotEquivalent) as error:
        replace(wrong, first_difference=None, problems=many[:1]).check()
    assert str(error.value) == "not equivalent (a target): problem 0"
    nothing = replace(wrong, nothing_verified=True, problems=("nothing was verified: no layer",))
    with pytest.raises(NotEquivalent) as error:
        nothing.check()
    assert str(error.value) == "nothing was verified: no layer"
    assert str(nothing).splitlines()[0] == "NOTHING VERIFIED (a target)"


def test_plain_data_has_every_part_and_names_for_what_json_lacks() -> None:
    v = replace(
        EVERYTHING,
        max_error=math.nan,
        rounding_ratio=math.inf,
        weights=WeightCheck(
            1, 2, (WeightDifference("w", "differs", 1, 2, math.inf),), ("w differs",), ("u",)
        ),
        warnings=("w",),
    )
    data = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert (data["max_error"], data["rounding_ratio"]) == ("nan", "inf")
    assert data["weights"]["differing"][0] == {
        "name": "w", "what": "differs", "differing": 1, "values": 2, "largest": "inf"
    }  # fmt: skip
    assert (data["weights"]["ok"], data["weights"]["compared"], data["weights"]["unverified"]) == (
        False,
        1,
        ["u"],
    )
    assert (data["layers"][0]["planted_fault"], data["layers"][0]["bitwise"]) == (None, True)
    assert (data["integer_probe"], data["windows"], data["bound"]) == (True, 12, 0.75)
    assert (data["max_abs_difference"], data["class_agreement"]) == (0.5, 0.875)
    assert (data["float64_error"], data["float64_limit"]) == (0.25, 0.5)
    assert (data["gradients"]["compared"], data["dense"]["expected"]) == (5, [3, 4])
    assert (data["evaluators"], data["warnings"]) == (["one engine", "another"], ["w"])
    assert (data["first_difference"], data["target"]) == ("fc", "a target")
    assert (data["equivalent"], data["nothing_verified"], data["problems"], data["unverified"]) == (
        True,
        False,
        [],
        [],
    )
    none = Verification(True, "t").to_dict()
    assert none["weights"] is none["gradients"] is none["dense"] is None
    assert none["layers"] == []


# faults


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 3)).eval()


class Changed(nn.Module):
    """An any-size network whose outputs are changed, if there are several positions."""

    def __init__(self, inner: nn.Module, change: Any) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.change(y) if y.shape[-1] > 1 else y  # type: ignore[no-any-return]


def any_size(change: Any = None, x: Tensor | None = None) -> Verification:
    net = classifier()
    dense = onebyone.convolutionalize(net, 8)
    if change is not None:
        dense = replace(dense, model=Changed(dense.model, change), pairs=())
    x = torch.randn(1, 1, 11, 12, generator=torch.Generator().manual_seed(1)) if x is None else x
    return verify(net, dense, x, gradients=False)


def test_an_error_below_the_rounding_of_float32_is_seen_in_float64() -> None:
    """And one above the bound in both types."""
    assert any_size(lambda y: y).equivalent
    v = any_size(lambda y: y + 1e-9)
    assert not v.equivalent
    (problem,) = v.problems
    assert problem.startswith("in float64 dense and crops differ by 1e-09, ")
    assert problem.endswith(" times the limit")
    assert v.dense is not None
    assert v.dense.why == problem
    assert not v.dense.ok
    both = any_size(lambda y: y + 0.125)
    assert len(both.problems) == 2
    assert both.problems[0].startswith("dense and crops differ by 0.125, ")
    assert both.problems[0].endswith(" times the bound")
    assert both.problems[1].startswith("in float64 ")


def test_another_number_of_classes_is_another_network() -> None:
    v = any_size(lambda y: torch.cat([y, y], 1))
    assert v.problems == ("dense outputs and the crops' have different shapes",)
    assert v.dense is not None
    assert (v.dense.ok, v.dense.why, v.dense.windows) == (False, "not compared", 0)


def test_an_image_that_is_not_finite_is_not_compared() -> None:
    image = torch.randn(1, 1, 11, 12)
    image[0, 0, 3, 4] = math.nan
    v = any_size(x=image)
    assert v.problems == ("the image holds NaN or infinity",)
    assert v.dense is None
    assert v.max_error is None


def test_inputs_that_are_not_finite_are_named() -> None:
    net = nn.Bilinear(2, 2, 2)
    x, infinite = torch.ones(1, 2), torch.full((1, 2), math.inf)
    v = verify(net, net, (x, infinite))
    assert v.problems == ("input 1 holds NaN or infinity",)
    v = verify(nn.ReLU(), nn.ReLU(), infinite)
    assert v.problems == ("the input holds NaN or infinity",)
    assert v.max_error is None
    v = verify(lambda i: i, lambda i: i, torch.tensor([1, 2]))
    assert v.equivalent, "integers are finite"


class Traced:
    """A network outside PyTorch."""

    evaluator = "an engine"

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, x: Tensor) -> list[Tensor]:
        return [self.network(x)]

    def trace(self, x: Tensor) -> list[TracedValue]:
        return [TracedValue("y", "", self.network(x))]


def test_a_network_outside_pytorch_is_compared_by_its_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3))
    x = torch.randn(4, 2)
    v = verify(net, Traced(net), x)
    assert v.equivalent, str(v)
    assert v.evaluators == ("converted: an engine",)
    assert {
        "gradients: an exported network has none",
        "the weights one by one: they are compared through the outputs on this example only",
    } <= set(v.unverified)
    assert not any("gradients, rounding_ratio" in note for note in v.unverified)
    flat = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(0, 1e-30))
    nn.init.constant_(flat[0].bias, -100.0)
    notes = verify(flat, Traced(flat), x).unverified
    assert any("all zeros" in note for note in notes), "earlier notes are kept"
    wrong = verify(net, Traced(lambda t: net(t) + 0.25), x)
    assert not wrong.equivalent
    assert wrong.first_difference == "0"
    assert verify(net.forward, Traced(lambda t: net(t) + 0.25), x).first_difference is None
    with pytest.raises(
        BadInput, match="x: is missing; two callables can only be compared on an example input"
    ):
        verify(net, Traced(net))


def test_models_that_onnx_runtime_cannot_load_or_run_say_why() -> None:
    unknown = onnx_model("g (float[N,2,2,2] x) => (float[N,2,2,2] y) { y = local.Unknown(x) }")
    with pytest.raises(NotRunnable, match="ONNX Runtime cannot load it: "):
        CallableOnnx(unknown)
    fixed = onnx_model("g (float[1,2,2,2] x) => (float[1,2,2,2] y) { y = Relu(x) }")
    with pytest.raises(NotRunnable, match="ONNX Runtime cannot run it: "):
        CallableOnnx(fixed)(torch.ones(3, 2, 2, 2))
    assert CallableOnnx(fixed, batch=1)(torch.ones(3, 2, 2, 2)).shape == (3, 2, 2, 2)  # type: ignore[union-attr]


def test_tiles_that_differ_say_by_how_much_and_what_was_allowed() -> None:
    whole = torch.zeros(1, 2, 2)
    tiled = whole.clone()
    tiled[0, 1, 0] = 0.5
    assert compare_tiled(whole, tiled).problems == ("tiled and whole differ by 0.5: not equal bit for bit",)
    assert compare_tiled(whole, tiled, 0.25).problems == (
        "tiled and whole differ by 0.5: not equal within 0.25",
    )
    assert compare_tiled(whole, tiled * math.inf, 0.25).problems == ("NaN or infinity",)
    assert compare_tiled(whole + math.inf, whole + math.inf, 0.25).problems == ("NaN or infinity",)
