"""Error rules with every setting by position and by keyword, and the interpreter that applies them to a graph."""

from __future__ import annotations

import math
import operator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn import functional as F

from onebyone.verification.error_rules import Approx, NoRuleError
from onebyone.verification.running_error import (
    RunningError,
    _ErrorInterpreter,
    _flat,
    _has_rule,
    _is_composite,
)
from tests.verification.exact_bounds import U, apply, approx, aten, draw, tensor, widening

# ---------------------------------------------------------------- settings by position and by keyword

KERNEL, ROW = draw(3, 2, 2, 2, seed=1), draw(4, seed=2)
SETTINGS: dict[str, tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    # operator, shape of x, arguments, keywords
    "gelu": (aten.gelu.default, (2, 4), (), {"approximate": "tanh"}),
    "leaky_relu": (aten.leaky_relu.default, (2, 4), (0.25,), {}),
    "leaky_relu by name": (aten.leaky_relu.default, (2, 4), (), {"negative_slope": 0.25}),
    "elu": (aten.elu.default, (2, 4), (2.0, 3.0, 0.5), {}),
    "elu by name": (aten.elu.default, (2, 4), (2.0,), {"scale": 3.0, "input_scale": 0.5}),
    "celu": (aten.celu.default, (2, 4), (5.0,), {}),
    "celu by name": (aten.celu.default, (2, 4), (), {"alpha": 5.0}),
    "hardtanh": (aten.hardtanh.default, (2, 4), (-0.5, 0.5), {}),
    "clamp by name": (aten.clamp.default, (2, 4), (), {"min": -0.5, "max": 0.5}),
    "amax": (aten.amax.default, (2, 3, 4), ([2],), {"keepdim": True}),
    "repeat_interleave": (aten.repeat_interleave.self_int, (2, 4), (3,), {"dim": 1}),
    "max_pool1d": (aten.max_pool1d.default, (1, 2, 6), ([2],), {"stride": [1]}),
    "max_pool2d_with_indices": (
        aten.max_pool2d_with_indices.default,
        (1, 2, 4, 4),
        ([2, 2],),
        {"stride": [1, 1]},
    ),
    "split": (aten.split.Tensor, (2, 4), (3,), {"dim": 1}),
    "pad": (aten.pad.default, (1, 2, 4), ([1, 1],), {"mode": "reflect"}),
    "pad by name": (aten.pad.default, (1, 2, 4), ([1, 1],), {"value": 7.0}),
    "mean": (aten.mean.dim, (2, 3, 4), ([2],), {"keepdim": True}),
    "sum": (aten.sum.dim_IntList, (2, 3, 4), ([1],), {"keepdim": True}),
    "avg_pool2d": (aten.avg_pool2d.default, (1, 2, 4, 4), ([2, 2],), {"stride": [1, 1]}),
    "avg_pool2d of partial windows": (
        aten.avg_pool2d.default,
        (1, 2, 4, 4),
        ([3, 3], [1, 1], [1, 1]),
        {"count_include_pad": False},
    ),
    "conv2d": (aten.conv2d.default, (1, 2, 5, 5), (KERNEL, None), {"stride": [2, 2]}),
    "conv2d, bias by name": (
        aten.conv2d.default,
        (1, 2, 5, 5),
        (KERNEL,),
        {"bias": ROW[:3], "padding": [1, 0]},
    ),
    "add": (aten.add.Tensor, (2, 4), (ROW,), {"alpha": 3}),
    "div without rounding": (aten.div.Tensor_mode, (2, 4), (ROW,), {"rounding_mode": None}),
    "softmax": (aten.softmax.int, (2, 4), (1,), {"dtype": torch.float64}),
    "layer_norm": (aten.layer_norm.default, (2, 4), ([4], ROW, ROW), {"eps": 0.5}),
    "layer_norm by name": (
        aten.layer_norm.default, (2, 4), ([4],), {"weight": ROW, "bias": ROW, "eps": 0.5}
    ),
    "native_layer_norm": (aten.native_layer_norm.default, (2, 4), ([4], ROW, ROW), {"eps": 0.5}),
    "batch_norm": (
        aten.batch_norm.default,
        (3, 4),
        (ROW, ROW, ROW, ROW.abs(), False, 0.1, 0.5),
        {"cudnn_enabled": False},
    ),
}  # fmt: skip


def tensors(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_the_value_and_its_bound(name: str) -> None:
    """The value is the operator's own, and inputs that are moved by their error, both ways, stay within the bound."""
    f, shape, args, kwargs = SETTINGS[name]
    x, e = draw(*shape), 2.0**-10
    answers = tensors(apply(f, approx(x, e), *args, **kwargs))
    for sign in (0, -1, 1):
        moved = tensors(f(x + sign * e, *args, **kwargs))
        for answer, exact, other in zip(answers, tensors(f(x, *args, **kwargs)), moved, strict=True):
            if answer is None:  # positions of maxima have no bound
                continue
            assert torch.equal(answer.value, exact)
            assert answer.error.shape == exact.shape
            assert bool(((other - exact).abs() <= answer.error).all())


ELU: dict[str, tuple[tuple[float, ...], dict[str, float], float, float]] = {
    # arguments, keywords, the largest slope, the absolute rounding
    "scale": ((), {"scale": 3.0}, 3, 3),
    "input_scale": ((), {"input_scale": 3.0}, 3, 3),
    "alpha": ((), {"alpha": 5.0}, 5, 5),
    "alpha, input_scale": ((), {"alpha": 100.0, "input_scale": 0.01}, 1, 100),
    "input_scale, alpha": ((), {"input_scale": 0.01, "alpha": 100.0}, 1, 100),
    "one of each": ((2.0,), {"input_scale": 3.0}, 6, 6),
    "all": ((), {"input_scale": 0.5, "scale": 2.0, "alpha": 8.0}, 8, 16),
}


@pytest.mark.parametrize("name", ELU)
def test_the_settings_of_elu_are_read_by_their_names(name: str) -> None:
    """α of the exponential, the scale of all, and that of the input: each has its own part in the bound."""
    args, kwargs, slope, absolute = ELU[name]
    x, e = torch.linspace(-3, 3, 601, dtype=torch.float64), 2.0**-12
    answer = apply(aten.elu.default, approx(x, e), *args, **kwargs)
    expected = (slope * e + 8 * U * (answer.value.abs() + absolute)) * float(widening(8))
    assert torch.allclose(answer.error, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("f", "name", "factor", "slope", "absolute"),
    [
        (aten.leaky_relu.default, "negative_slope", -3.0, 3, 0),
        (aten.leaky_relu.default, "negative_slope", 0.5, 1, 0),
        (aten.celu.default, "alpha", -50.0, 1, 50),
        (aten.celu.default, "alpha", 0.5, 1, 1),
    ],
)
def test_the_setting_of_a_slope_is_read_by_position_and_by_name(
    f: Any, name: str, factor: float, slope: float, absolute: float
) -> None:
    x, e = torch.linspace(-3, 3, 601, dtype=torch.float64), 2.0**-12
    for args, kwargs in (((factor,), {}), ((), {name: factor})):
        answer = apply(f, approx(x, e), *args, **kwargs)
        expected = (slope * e + 8 * U * (answer.value.abs() + absolute)) * float(widening(8))
        assert torch.allclose(answer.error, expected, rtol=1e-12, atol=0)


def test_a_layer_norm_has_the_same_bound_by_position_and_by_name() -> None:
    x, weight, bias = approx(draw(3, 4), 2.0**-10), draw(4, seed=5) * 4, draw(4, seed=6)
    by_position = apply(aten.layer_norm.default, x, [4], weight, bias, 1e-5)
    for args, kwargs in (
        (([4],), {"weight": weight, "bias": bias}),
        (([4], weight), {"bias": bias, "eps": 1e-5}),
        (([4], weight, bias), {}),
        (([4], weight, bias), {"eps": 1e-5}),
    ):
        assert torch.equal(apply(aten.layer_norm.default, x, *args, **kwargs).error, by_position.error)
    for name in ("weight", "bias"):
        with pytest.raises(NoRuleError, match="a weight that depends on the input"):
            apply(aten.layer_norm.default, x, [4], **{name: approx(draw(4))})


def test_a_layer_norm_over_two_axes_is_one_over_their_elements() -> None:
    x, weight, bias = draw(2, 3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    two = apply(aten.layer_norm.default, approx(x, 2.0**-12), [3, 4], weight, bias, 0.5)
    one = apply(
        aten.layer_norm.default, approx(x.flatten(1), 2.0**-12), [12], weight.flatten(), bias.flatten(), 0.5
    )
    assert torch.allclose(two.value.flatten(1), one.value, rtol=1e-12)
    assert torch.allclose(two.error.flatten(1), one.error, rtol=1e-9, atol=0)


def test_a_batch_norm_of_rows_is_one_of_maps_of_one_position() -> None:
    x, statistics = draw(3, 4), (ROW, draw(4, seed=3), draw(4, seed=4), ROW.abs())
    rows = apply(aten.batch_norm.default, approx(x), *statistics, False, 0.1, 0.5, False)
    maps = apply(aten.batch_norm.default, approx(x[..., None]), *statistics, False, 0.1, 0.5, False)
    assert torch.equal(rows.error, maps.error[..., 0])
    assert torch.equal(rows.value, maps.value[..., 0])


@pytest.mark.parametrize(
    ("f", "other"),
    [(aten.add.Tensor, draw(1, 4)), (aten.sub.Tensor, 0.5), (aten.mul.Tensor, draw(1, 4)), (aten.div.Tensor, 3.0)],
    ids=str,
)  # fmt: skip
def test_bounds_have_the_shape_of_the_result(f: Any, other: Any) -> None:
    answer = apply(f, approx(draw(3, 1)), other)
    assert answer.error.shape == answer.value.shape == f(draw(3, 1), other).shape
    constant_first = apply(f, draw(3, 1), approx(draw(1, 4))) if f is not aten.div.Tensor else answer
    assert constant_first.error.shape == constant_first.value.shape


def test_sums_of_no_terms_have_a_bound() -> None:
    for operand in (torch.zeros(0, 3), torch.zeros(3, 0)):
        answer = apply(aten.sum.dim_IntList, approx(operand.double()), [1])
        assert answer.error.tolist() == answer.value.tolist() == [0.0] * len(operand)


# ---------------------------------------------------------------- the interpreter


def interpreter() -> _ErrorInterpreter:
    return _ErrorInterpreter(fx.GraphModule(nn.Module(), fx.Graph()), fx.Graph(), torch.float64)


def test_what_the_interpreter_does_with_a_call() -> None:
    run, t = interpreter().call_function, draw(2, 3)
    x = approx(t)
    assert run(operator.getitem, ([x, 5], 1), {}) == 5
    assert torch.equal(run(aten.add.Tensor, (t, t), {"alpha": 2}), 3 * t), "constants are computed as usual"
    for f, args, expected in (
        (aten.zeros_like.default, (x,), torch.zeros(2, 3)),
        (aten.ones_like.default, (x,), torch.ones(2, 3)),
        (aten.new_zeros.default, (x, [4]), torch.zeros(4)),
        (aten.new_ones.default, (x, [4]), torch.ones(4)),
    ):
        assert torch.equal(run(f, args, {}), expected.double())
        assert run(f, args, {"dtype": torch.float32}).dtype == torch.float32
    assert run(aten.sym_size.int, (x, 1), {}) == 3
    assert run(aten._assert_tensor_metadata.default, (x, None, None, torch.float32), {}) is None
    relu, joined = run(aten.relu.default, (x,), {}), run(aten.cat.default, ([t, x], 1), {})
    assert torch.equal(relu.value, t.relu())
    assert torch.equal(joined.value, torch.cat([t, t], 1))
    tripled = run(aten.add.Tensor, (x, x), {"alpha": 2})
    assert torch.equal(tripled.value, 3 * t)
    assert torch.equal(tripled.error, apply(aten.add.Tensor, x, x, u=2.0**-53, alpha=2).error), "of float64"
    for f, args, kwargs, message in (
        (aten.special_erfcx.default, (x,), {}, "^aten.special_erfcx.default$"),
        (aten.clamp.Tensor, (t,), {"min": x}, "constant operand"),
        (math.sin, (x,), {}, "sin"),
    ):
        with pytest.raises(NoRuleError, match=message):
            run(f, args, kwargs)


def test_nested_arguments_are_flattened() -> None:
    assert _flat([1, [2, (3, [4])], (), 5]) == [1, 2, 3, 4, 5]


def test_which_nodes_are_run_as_they_are() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    expected = {
        aten.relu.default: (True, False),
        aten.relu_.default: (False, False),  # writes to its operand
        aten.zeros_like.default: (True, False),
        aten.linear.default: (True, True),
        aten.tile.default: (False, True),
        aten.special_erfcx.default: (False, False),
        operator.getitem: (True, True),
        operator.mul: (False, True),
    }
    for target, (has_rule, is_composite) in expected.items():
        node = graph.call_function(target, (x,))
        assert (_has_rule(node), _is_composite(node)) == (has_rule, is_composite), target
    assert _has_rule(x)


def test_operators_with_a_rule_are_never_decomposed() -> None:
    """Another operator, which has none, changes nothing: the parts of `mish` (softplus and others) have no rule."""

    class Tiled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tile(F.mish(x), (1, 2))

    analysis = RunningError(Tiled(), torch.ones(1, 3))
    targets = [node.target for node in analysis.graph.nodes if node.op == "call_function"]
    assert aten.mish.default in targets


@pytest.mark.parametrize("constants", [{}, {"state": 3}])
def test_inputs_that_are_no_tensors_are_named(constants: dict[str, Any]) -> None:
    analysis = object.__new__(RunningError)
    weight, x = torch.ones(2), torch.ones(3, dtype=torch.float64)
    specs = [
        SimpleNamespace(kind=InputKind.PARAMETER, target="weight"),
        SimpleNamespace(kind=InputKind.CONSTANT_TENSOR, target="constant"),
        SimpleNamespace(kind=InputKind.USER_INPUT, target=None),
        SimpleNamespace(kind=InputKind.CUSTOM_OBJ, target="state"),
    ]
    program: Any = SimpleNamespace(
        graph_signature=SimpleNamespace(input_specs=specs[:3]),
        state_dict={"weight": weight},
        constants=constants | {"constant": weight},
    )
    analysis.program = program
    first, second, example = analysis._inputs(x)
    assert first.dtype == second.dtype == torch.float64
    assert isinstance(example, Approx)
    assert example.value is x
    assert torch.equal(example.error, torch.zeros(3, dtype=torch.float64))
    program.graph_signature.input_specs = specs
    with pytest.raises(NoRuleError, match=r"^an input of kind CUSTOM_OBJ$"):
        analysis._inputs(x)


def test_a_number_that_float32_rounds_costs_its_rounding() -> None:
    """Only that: without an error of the input, and in a type that represents the number, the bound is zero."""
    for dtype, exact in ((torch.float32, False), (torch.float64, True)):
        x = Approx(tensor([0.0, 1.0]).to(dtype), torch.zeros(2, dtype=dtype))
        error = apply(aten.clamp.default, x, 0.1, 0.3).error
        assert (error == 0).all() == exact
