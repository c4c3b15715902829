"""Differences just inside and just outside of what each comparison allows, and what it says where it sees nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from onebyone.results import LayerFunctions
from onebyone.verification import crop_comparison, onnx_outputs, output_comparison
from onebyone.verification.activations import sample
from onebyone.verification.channel_axis import WithoutChannels, under_network
from onebyone.verification.end_to_end import _compare_gradients, _perturbed
from onebyone.verification.error_rules import RULES, NoRuleError
from onebyone.verification.gradients import compare_gradients
from onebyone.verification.layer_checks import check_layer
from onebyone.verification.layer_matching import _LARGEST_RANK, _is_merged, _orders
from onebyone.verification.network_run import Observation, Runner
from onebyone.verification.onnx_network import in_double
from onebyone.verification.onnx_probes import _faults
from onebyone.verification.result import DenseCheck, LayerCheck
from onebyone.verification.tiling import compare_tiled
from onebyone.verification.window_crops import DifferenceBounds, WindowPositions, all_windows

aten = torch.ops.aten

UNITS = {"float64": (-53, -24), "float32": (-24, -11), "float16": (-11, -3)}


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("inside", [True, False])
def test_outputs_of_onnx_models(dtype: str, inside: bool) -> None:
    """y = 1 in a type of roundoff u may be off by √(u'/u)·u, where u' is the roundoff of the next shorter type."""
    unit, shorter = UNITS[dtype]
    limit = 2.0 ** ((unit + shorter) / 2)
    y = np.array([1.0, 0.5], dtype=dtype)
    # the type's numbers next to 1 + limit on either side
    other = np.array(1 + limit, dtype=dtype)
    below, above = (other, np.nextafter(other, np.inf, dtype=dtype)) if float(other) - 1 <= limit else (
        np.nextafter(other, 0, dtype=dtype), other,
    )  # fmt: skip
    z = np.array([below if inside else above, 0.5], dtype=dtype)
    whole, problems = onnx_outputs.WholeModel(), []
    difference, problem = onnx_outputs._compare_output(whole, "y", y, z, None, problems)
    assert difference == whole.max_error == float(z[0]) - 1
    assert whole.rounding_ratio == pytest.approx(difference / 2.0**unit, rel=1e-12)
    assert not problems
    assert (problem == "") == inside


def test_outputs_of_onnx_models_against_a_reference() -> None:
    """The original's own error against the reference is what the converted model's is measured by."""
    y, reference = np.array([1.0, 0.0], dtype="f"), np.array([1.0 + 2.0**-20, 0.0])
    z = np.array([1.0, 2.0**-14], dtype="f")
    whole = onnx_outputs.WholeModel()
    difference, problem = onnx_outputs._compare_output(whole, "y", y, z, reference, [])
    assert difference == 2.0**-14
    assert whole.rounding_ratio == 2.0**6  # 2⁻¹⁴ ÷ 2⁻²⁰, below √(2⁻¹¹/2⁻²⁴) = 90.5
    assert problem == ""
    z[1] = 2.0**-13
    assert onnx_outputs._compare_output(whole, "y", y, z, reference, [])[1] != ""
    assert whole.rounding_ratio == 2.0**7


@pytest.mark.parametrize("bound", [0.25, None])
def test_tiles(bound: float | None) -> None:
    whole = torch.zeros(2, 3, 4)
    largest = bound or 0.0
    for excess in (0.0, 2.0**-20):
        tiled = whole.clone()
        tiled[1, 2, 3] = -largest - excess
        v = compare_tiled(whole, tiled, bound)
        assert v.dense is not None
        assert v.equivalent == v.dense.ok == (excess == 0)
        assert bool(v.dense.why) == bool(v.problems) == (excess > 0)
        assert v.dense.windows == 12
        assert v.max_error == largest + excess
    assert not compare_tiled(whole, whole + math.nan, bound).equivalent
    assert not compare_tiled(whole, whole + math.nan, bound).dense.ok  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("dtype", "u"), [(torch.float32, 2.0**-24), (torch.float64, 2.0**-24), (torch.float16, 2.0**-11)]
)
def test_limits_of_crops_without_rules(dtype: torch.dtype, u: float) -> None:
    """max(difference, u·max|y|)·√(2⁻⁵³/u); networks in float64 are judged by float32's roundoff."""
    crops = [torch.tensor([[1.0, -8.0]]), torch.tensor([[0.5]])]
    setup: Any = SimpleNamespace(dtype=dtype)
    for difference in (0.0, 0.25):
        limits = crop_comparison._limits_without_rules(setup, crops, difference)
        for limit, crop, largest in zip(limits, crops, (8.0, 0.5), strict=True):
            expected = max(difference, u * largest) * math.sqrt(2.0**-53 / u)
            assert limit.shape == crop.shape
            assert limit.flatten().tolist() == pytest.approx([expected] * crop.numel(), rel=1e-12)


CONSTANT: dict[str, tuple[Any, ...]] = {
    "linear": (aten.linear.default, torch.ones(2, 3)),
    "relu": (aten.relu.default,),
    "sigmoid": (aten.sigmoid.default,),
    "leaky_relu": (aten.leaky_relu.default, 0.1),
    "view": (aten.view.default, [3]),
    "max_pool2d_with_indices": (aten.max_pool2d_with_indices.default, [1, 1]),
    "constant_pad_nd": (aten.constant_pad_nd.default, [1, 1]),
    "mean": (aten.mean.default,),
    "batch_norm": (aten.batch_norm.default, None, None, torch.ones(3), torch.ones(3), False, 0.1, 1e-5, False),
    "softmax": (aten._softmax.default, 0, False),
    "layer_norm": (aten.layer_norm.default, [3]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_operand_has_no_rule_and_the_operator_is_named(name: str) -> None:
    operator, *args = CONSTANT[name]
    with pytest.raises(NoRuleError, match=name):
        RULES[operator.overloadpacket](2.0**-24, operator, (torch.ones(3), *args), {})


def test_why_there_is_no_bound_on_crops() -> None:
    """A network that cannot be exported has no bound, and the reason is kept for every call."""

    class Unexportable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum())

    image = torch.ones(1, 1, 4, 4)
    windows = all_windows((1, 1), 1, (4, 4), (1, 1))
    analysis = DifferenceBounds(Unexportable(), Unexportable(), image, windows, 1)
    assert "cannot be exported" in analysis.missing
    assert analysis(image, windows).missing == analysis.missing
    assert analysis(image, windows).bounds == []


@pytest.mark.parametrize("count", [1, 5, 2**24 + 4])
def test_samples_end_at_the_last_window_and_position(count: int) -> None:
    """Also of more rows than float32 can count; the rows take no memory."""
    index = torch.zeros(1, 3, dtype=torch.int64).expand(count, 3)
    windows = WindowPositions(index, (4, 4), (1, 1), count)
    assert len(windows.sample(7)) == min(7, count)
    x = torch.zeros(1, 1).expand(count, 1)
    assert 1 <= len(sample(x, nn.Linear(1, 1))) <= 129


def test_a_layer_that_passes_has_nothing_to_explain() -> None:
    def rows(x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x @ params["weight"].t() + params["bias"]

    params = {"weight": torch.tensor([[1.0, -0.3], [0.7, 2.0]]), "bias": torch.tensor([0.1, -0.2])}
    layer = LayerFunctions("fc", "Linear", rows, rows, params, ((3, 2),), 2)
    check = check_layer(layer, torch.tensor([[1.0, 2.0]]), 0)
    assert check.ok
    assert check.why == ""
    assert check.error_ratio == 0


def test_the_type_of_a_network_is_that_of_its_weights_too() -> None:
    """The example has no floating values, or longer ones."""
    network = nn.Linear(2, 2).half()
    assert output_comparison.unit_of(Runner(network, torch.ones(1, 2, dtype=torch.int64), 0)) == 2.0**-11
    assert output_comparison.unit_of(Runner(network, torch.ones(1, 2), 0)) == 2.0**-11
    assert output_comparison.unit_of(Runner(abs, torch.ones(1, 2), 0)) == 2.0**-24


@pytest.mark.parametrize(
    ("dtype", "u"), [(torch.float16, 2.0**-11), (torch.float32, 2.0**-24), (torch.float64, 2.0**-53)], ids=str
)
def test_weights_move_both_up_and_down_by_one_roundoff(dtype: torch.dtype, u: float) -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    runner = Runner(Weights(), torch.ones(64, dtype=dtype), 3)
    first, second = _perturbed(runner, u), _perturbed(runner, u)
    assert first is not None
    assert second is not None
    moved = first.outputs[0][1] - 1
    assert moved.dtype == dtype
    assert set(moved.tolist()) == {2 * u, -2 * u}
    assert torch.equal(moved, second.outputs[0][1] - 1), (
        "the same weights move the same way with the same seed"
    )
    other = _perturbed(replace(runner, seed=4), u)
    assert other is not None
    assert not torch.equal(moved, other.outputs[0][1] - 1)


def test_no_gradients_are_equal_gradients() -> None:
    check = compare_gradients({}, {}, {}, 2.0**-24, None)
    assert check.ok
    assert (check.compared, check.error_ratio, check.why) == (0, 0.0, "")


def test_gradients_that_cannot_be_mapped() -> None:
    """The map fails: nothing was compared, and the reason is that of the map."""

    def lost(gradients: Any) -> Any:
        raise KeyError("fc.weight")

    runs: Any = SimpleNamespace(u=2.0**-24)
    one = Observation(gradients={"w": torch.ones(1)})
    check = _compare_gradients(runs, one, one, one, lost, output_comparison.NetworkCheck())
    assert check is not None
    assert (check.ok, check.compared) == (False, 0)
    assert "fc.weight" in check.why


def test_networks_without_channels() -> None:
    class Line(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == 2
            return x * 2

    image = torch.ones(2, 1, 3)
    program = torch.export.export(Line(), (torch.ones(2, 3),))
    for network in (Line(), program):
        wrapped = WithoutChannels.of(network)  # type: ignore[arg-type]
        assert isinstance(wrapped, nn.Module)
        assert wrapped(image).shape == (2, 3)
    assert list(under_network({"fc.weight": torch.ones(1)})) == ["network.fc.weight"]


def test_faults_of_a_kernel_shift_its_first_axis_of_several_values() -> None:
    """Inputs before outputs, and for a depthwise kernel (1, 1, h, w) the height."""
    for shape, axis in (((2, 3), 1), ((3, 1), 0), ((1, 1, 2, 1), 2), ((1, 1, 1, 4), 3)):
        weight = np.arange(math.prod(shape), dtype=float).reshape(shape)
        faults = _faults({"w": weight}, SimpleNamespace(constants={"w": weight}), {})  # type: ignore[arg-type]
        assert np.array_equal(faults["weight order shifted by one"]["w"], np.roll(weight, 1, axis))
    assert _faults({"w": np.ones((1, 1))}, SimpleNamespace(constants={}), {}) == {}  # type: ignore[arg-type]


def test_literals_are_computed_in_float64() -> None:
    """0.1 as a literal of float32 is 0.1 rounded to float32, and stays that number in float64."""
    text = """<ir_version: 9, opset_import: ["" : 18]> f (float[2] x) => (float[2] y) {
        a = Constant <value_float: float = 0.1> () b = Constant <value_floats: floats = [0.1, 0.2]> ()
        c = Constant <value_ints: ints = [3]> () d = Cast <to: int = 1> (c) p = Mul (x, a) q = Add (p, b) y = Add (q, d)
    }"""
    copy = in_double(onnx.parser.parse_model(text))
    a, b, c = (node.attribute[0] for node in copy.graph.node[:3])
    assert (a.name, b.name, c.name) == ("value", "value", "value_ints")
    assert numpy_helper.to_array(a.t).tolist() == float(np.float32(0.1))
    assert numpy_helper.to_array(b.t).tolist() == [float(np.float32(0.1)), float(np.float32(0.2))]
    assert numpy_helper.to_array(b.t).dtype == np.float64
    assert copy.graph.node[3].attribute[0].i == onnx.TensorProto.DOUBLE
    assert copy.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


def test_tensors_of_many_axes_are_compared_in_their_own_order() -> None:
    shape = (2,) * (_LARGEST_RANK + 1)
    t = torch.arange(math.prod(shape)).reshape(shape)
    assert [o.tolist() for o in _orders(t)] == [t.flatten().tolist()]
    few = torch.arange(6).reshape(1, 2, 3)  # axes of size one have no order
    assert [o.tolist() for o in _orders(few)] == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]]


def test_merged_nodes() -> None:
    """0 → 1 → 2: nodes 0 and 1 are merged where 2, which reads them, is confirmed; and an unread node where it is."""
    readers: list[set[int]] = [{1}, {2}, set()]
    assert _is_merged([0, 1], readers, {2})
    assert not _is_merged([0, 1], readers, {0})
    assert _is_merged([0, 1], readers, {1})
    assert not _is_merged([2], readers, {0, 1})
    assert _is_merged([2], readers, {2})
    assert not _is_merged([], readers, {0, 1, 2})


def test_what_was_not_measured_is_none() -> None:
    dense, layer, run = DenseCheck("t", True, 1, (1,), (1,)), LayerCheck("p", "Linear"), Observation()
    measured = {
        k: v for k, v in dense.to_dict().items() if v is not None and k not in ("bound_missing", "why")
    }
    assert measured == {"target": "t", "ok": True, "windows": 1, "expected": (1,), "found": (1,)}
    assert (layer.arithmetic, layer.law, layer.faults, layer.bound) == ("", "", (), None)
    assert (run.outputs, run.gradients, run.short_of_float64) == ([], {}, "")
