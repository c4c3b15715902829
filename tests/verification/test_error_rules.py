"""Error rules against exact arithmetic: errors just inside the bound stay inside, and half of the bound is exceeded.

Each rule maps (x̂, e) to (ŷ, e'). Three independent computations check it:

- `formula`: e' must equal the documented formula, evaluated with exact fractions and the widening factor.
- An adversary perturbs the inputs by e and every rounding by u, in the directions that hurt most. The outcome must stay
  within e', and must exceed half of it.
- Uses that have no rule must be refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch

from onebyone.verification.error_rules import RULES, Approx, NoRuleError, error, rule, value, widened
from tests.verification.exact_bounds import (
    E,
    U,
    apply,
    approx,
    aten,
    draw,
    gamma,
    tensor,
    widening,
)

# ---------------------------------------------------------------- one operand, element by element


@pytest.mark.parametrize(
    ("operator", "more"),
    [
        (aten.relu.default, ()), (aten.neg.default, ()), (aten.abs.default, ()), (aten.hardtanh.default, (-0.5, 0.5)),
        (aten.relu6.default, ()), (aten.clamp.default, (-1.0, 1.0)), (aten.clamp_min.default, (0.25,)),
        (aten.clamp_max.default, (0.25,)),
    ],
    ids=str,
)  # fmt: skip
def test_functions_that_round_nothing(operator: Any, more: tuple[Any, ...]) -> None:
    """Their outputs differ by at most as much as their inputs, and by exactly as much somewhere."""
    x = draw(40) / 4
    answer = apply(operator, approx(x, 2.0**-10), *more)
    assert torch.equal(answer.error, torch.full_like(x, 2.0**-10))
    moved = torch.stack([operator(x + s * 2.0**-10, *more) - answer.value for s in (-1, 1)]).abs().amax(0)
    assert bool((moved <= answer.error).all())
    assert bool((moved == answer.error).any())


#: The largest slope of each function, and the allowed roundings: units relative to |y|, relative to |x|, and absolute.
SMOOTH = {
    "sigmoid": (0.25, 8, 0, 0), "tanh": (1, 8, 0, 0), "gelu": (1.13, 4, 12, 0), "silu": (1.1, 12, 0, 0),
    "mish": (1.09, 8, 16, 0), "hardswish": (1.5, 4, 4, 0), "hardsigmoid": (1 / 6, 4, 0, 4), "erf": (1.13, 4, 0, 0),
    "sin": (1, 4, 0, 4), "cos": (1, 4, 0, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(name: str) -> None:
    operator = getattr(aten, name).default
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    e = 2.0**-12
    answer = apply(operator, approx(x, e))
    assert torch.equal(answer.value, operator(x))
    slope, of_y, of_x, absolute = SMOOTH[name]
    roundings = U * (of_y * answer.value.abs() + of_x * (x.abs() + 2 * e) + absolute)
    expected = (slope * e + roundings) * float(widening(8))
    assert torch.allclose(answer.error, expected, rtol=1e-12, atol=0)
    # the adversary: inputs moved by e in either direction; and the steepest slope is really reached
    moved = torch.stack([operator(x + s * e) - answer.value for s in (-1, 1)]).abs().amax(0)
    assert bool((moved <= answer.error).all())
    assert moved.max() > 0.99 * slope * e
    # float32 stays within the allowed roundings of float32
    rounded = operator(x.float()).double() - operator(x.float().double())
    allowed = apply(operator, approx(x.float().double(), 0.0), u=2.0**-24).error
    assert bool((rounded.abs() <= allowed).all())


SLOPES: dict[str, tuple[Any, tuple[float, ...], float, float]] = {
    # operator, arguments, the largest slope (at least 1), the absolute rounding
    "leaky_relu": (aten.leaky_relu.default, (), 1, 0),
    "leaky_relu(0.2)": (aten.leaky_relu.default, (0.2,), 1, 0),
    "leaky_relu(-3)": (aten.leaky_relu.default, (-3.0,), 3, 0),
    "elu": (aten.elu.default, (), 1, 1),
    "elu(2)": (aten.elu.default, (2.0,), 2, 2),
    "elu(2, 3)": (aten.elu.default, (2.0, 3.0), 6, 6),
    "elu(-2, -3, 2)": (aten.elu.default, (-2.0, -3.0, 2.0), 12, 12),
    "elu(0.5, 3)": (aten.elu.default, (0.5, 3.0), 3, 3),
    "elu(100, 1, 0.01)": (aten.elu.default, (100.0, 1.0, 0.01), 1, 100),
    "celu": (aten.celu.default, (), 1, 1),
    "celu(50)": (aten.celu.default, (50.0,), 1, 50),
    "celu(0.5)": (aten.celu.default, (0.5,), 1, 1),
    "selu": (aten.selu.default, (), 1.7581, 1.7581),
}


@pytest.mark.parametrize("name", SLOPES)
def test_functions_with_two_slopes(name: str) -> None:
    operator, args, slope, absolute = SLOPES[name]
    x = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    e = 2.0**-12
    answer = apply(operator, approx(x, e), *args)
    assert torch.equal(answer.value, operator(x, *args))
    expected = (slope * e + 8 * U * (answer.value.abs() + absolute)) * float(widening(8))
    assert torch.allclose(answer.error, expected, rtol=1e-12, atol=0)
    moved = torch.stack([operator(x + s * e, *args) - answer.value for s in (-1, 1)]).abs().amax(0)
    assert bool((moved <= answer.error).all())
    assert moved.max() > 0.98 * slope * e


@pytest.mark.parametrize(
    ("operator", "args", "factor", "input_scale"),
    [(aten.elu.default, (100.0, 1.0, 0.01), 100.0, 0.01), (aten.celu.default, (50.0,), 50.0, 0.02)],
    ids=str,
)
def test_the_rounding_of_an_exponential_is_multiplied_by_the_factor_in_front_of_it(
    operator: Any, args: tuple[Any, ...], factor: float, input_scale: float
) -> None:
    """The adversary computes α·(exp(x) − 1) with an exponential that is rounded up, where exp(x) is close to 1."""
    x = torch.linspace(-0.1, -0.001, 50, dtype=torch.float64)
    answer = apply(operator, approx(x, 0.0), *args)
    computed = factor * (torch.exp(x * input_scale) * (1 + U) - 1)
    assert bool(((computed - answer.value).abs() <= answer.error).all())


def test_the_slope_of_elu_is_read_from_keywords_too() -> None:
    x = approx(tensor([-0.001, 1.0]), 1e-3)
    by_name = apply(aten.elu.default, x, alpha=4.0)
    assert torch.equal(by_name.error, apply(aten.elu.default, x, 4.0).error)
    assert bool((by_name.error > 4e-3).all())


# ---------------------------------------------------------------- moves and maxima


MOVED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "view": (aten.view.default, ([4, 6],)),
    "permute": (aten.permute.default, ([1, 0, 2],)),
    "flip": (aten.flip.default, ([2],)),
    "roll": (aten.roll.default, ([1], [1])),
    "slice": (aten.slice.Tensor, (2, 1, 4)),
    "select": (aten.select.int, (0, 1)),
    "index_select": (aten.index_select.default, (2, torch.tensor([3, 0]))),
    "unfold": (aten.unfold.default, (2, 2, 1)),
    "dropout in eval mode": (aten.dropout.default, (0.5, False)),
    "max_pool1d": (aten.max_pool1d.default, ([2], [1])),
    "amax": (aten.amax.default, ([2],)),
}


@pytest.mark.parametrize("name", MOVED)
def test_moves_and_maxima_act_on_the_errors_too(name: str) -> None:
    operator, args = MOVED[name]
    x, e = draw(2, 3, 4), draw(2, 3, 4, seed=3).abs() / 16
    answer = apply(operator, Approx(x, e), *args)
    assert torch.equal(answer.value, operator(x, *args))
    assert torch.equal(answer.error, operator(e, *args))
    for sign in (-1, 1):
        assert bool(((operator(x + sign * e, *args) - answer.value).abs() <= answer.error).all())


def test_operators_with_several_results_give_several_bounds() -> None:
    x, e = draw(6), draw(6, seed=1).abs()
    first, second = apply(aten.split.Tensor, Approx(x, e), 4)
    assert torch.equal(first.value, x[:4])
    assert torch.equal(second.error, e[4:])


@pytest.mark.parametrize(
    "operator", [aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default], ids=str
)
def test_maxima_with_their_positions(operator: Any) -> None:
    x, e = draw(1, 2, 4, 4), draw(1, 2, 4, 4, seed=1).abs()
    maximum, positions = apply(operator, Approx(x, e), [2, 2])
    assert positions is None  # a position may jump where two values are close: it has no bound
    assert torch.equal(maximum.value, operator(x, [2, 2])[0])
    assert torch.equal(maximum.error, operator(e, [2, 2])[0])


def test_a_shape_that_is_that_of_a_value_of_the_image_is_refused() -> None:
    """Rules of shape operators apply them to the errors too, for which they take plain operands."""
    with pytest.raises(NoRuleError, match=r"view_as.* with an index that depends on the input"):
        apply(aten.view_as.default, approx(draw(2, 3)), approx(draw(3, 2)))


def test_tensors_may_be_joined_along_an_axis_that_is_named() -> None:
    parts = [approx(draw(2, 1)), draw(2, 3)]
    joined = apply(aten.cat.default, parts, dim=1)
    assert torch.equal(joined.value, torch.cat([parts[0].value, parts[1]], 1))  # type: ignore[union-attr, list-item]
    assert torch.equal(joined.error, torch.cat([torch.full((2, 1), float(E)), torch.zeros(2, 3)], 1).double())


@pytest.mark.parametrize("operator", [aten.cat.default, aten.stack.default], ids=str)
def test_joined_tensors_keep_their_errors_and_constants_have_none(operator: Any) -> None:
    x, constant = draw(2, 2), draw(2, 2, seed=1)
    answer = apply(operator, [approx(x), constant], 1)
    assert torch.equal(answer.value, operator([x, constant], 1))
    assert torch.equal(answer.error, operator([torch.full_like(x, float(E)), torch.zeros_like(x)], 1))


@pytest.mark.parametrize(
    ("operator", "args", "kwargs", "expected"),
    [
        (aten.constant_pad_nd.default, ([1, 0], 7.0), {}, [0.0, 1.0, 2.0]),
        (aten.pad.default, ([1, 0], "constant", 7.0), {}, [0.0, 1.0, 2.0]),
        (aten.pad.default, ([1, 0],), {}, [0.0, 1.0, 2.0]),
        (aten.pad.default, ([1, 0], "replicate"), {}, [1.0, 1.0, 2.0]),
        (aten.pad.default, ([1, 0],), {"mode": "replicate"}, [1.0, 1.0, 2.0]),
    ],
    ids=["constant_pad_nd", "pad", "pad, default mode", "replicate", "replicate by name"],
)
def test_a_border_of_constants_has_no_error_and_a_copied_border_has_its_own(
    operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[float]
) -> None:
    x, e = tensor([[[3.0, 5.0]]]), tensor([[[1.0, 2.0]]])
    answer = apply(operator, Approx(x, e), *args, **kwargs)
    assert torch.equal(answer.value, operator(x, *args, **kwargs))
    assert answer.error.flatten().tolist() == expected


# ---------------------------------------------------------------- refused uses

X, CONSTANT = approx(draw(1, 3)), draw(1, 3, seed=1)
REFUSED: dict[str, Callable[[], Any]] = {
    "a weight that depends on the input": lambda: apply(aten.linear.default, X, approx(draw(2, 3))),
    "a bias that depends on the input": lambda: apply(aten.linear.default, X, draw(2, 3), approx(draw(2))),
    "a bias by name that depends on the input": lambda: apply(
        aten.linear.default, X, draw(2, 3), bias=approx(draw(2))
    ),
    "a product of constants": lambda: apply(aten.linear.default, CONSTANT, draw(2, 3)),
    "addmm with alpha": lambda: apply(aten.addmm.default, draw(2), X, draw(3, 2), alpha=2),
    "addmm with beta": lambda: apply(aten.addmm.default, draw(2), X, draw(3, 2), beta=2),
    "addmm with a bias that depends on the input": lambda: apply(
        aten.addmm.default, approx(draw(2)), X, draw(3, 2)
    ),
    "threshold": lambda: apply(aten.threshold.default, X, 0.5, 2.0),
    "a limit that depends on the input": lambda: apply(aten.clamp.Tensor, X, X),
    "an index that depends on the input": lambda: apply(aten.index_select.default, X, 1, approx(draw(2))),
    "dropout in training mode": lambda: apply(aten.dropout.default, X, 0.5, True),
    "dropout in training mode, by name": lambda: apply(aten.dropout.default, X, 0.5, train=True),
    "division by what depends on the input": lambda: apply(aten.div.Tensor, X, X),
    "division with rounding": lambda: apply(aten.div.Tensor_mode, X, 2.0, rounding_mode="floor"),
    "batch norm in training mode": lambda: apply(
        aten.batch_norm.default, X, None, None, torch.zeros(3), torch.ones(3), True, 0.1, 1e-5, False
    ),
    "batch norm without a running mean": lambda: apply(
        aten.batch_norm.default, X, None, None, None, torch.ones(3), False, 0.1, 1e-5, False
    ),
    "batch norm without a running variance": lambda: apply(
        aten.batch_norm.default, X, None, None, torch.zeros(3), None, False, 0.1, 1e-5, False
    ),
    "batch norm with a weight that depends on the input": lambda: apply(
        aten.batch_norm.default, X, X, None, torch.zeros(3), torch.ones(3), False, 0.1, 1e-5, False
    ),
    "layer norm with a weight that depends on the input": lambda: apply(aten.layer_norm.default, X, [3], X),
    "layer norm with a bias that depends on the input": lambda: apply(
        aten.layer_norm.default, X, [3], torch.ones(3), X
    ),
}


@pytest.mark.parametrize("use", REFUSED)
def test_uses_without_a_rule_are_refused_by_name(use: str) -> None:
    with pytest.raises(NoRuleError, match="aten"):
        REFUSED[use]()


# ---------------------------------------------------------------- the parts that rules are made of


def test_a_bound_is_widened_for_its_own_rounding() -> None:
    assert widened(tensor([3.0]), 5, 2.0**-10).item() == 3 * float(1 + 4 * gamma(9, Fraction(1, 2**10)))


def test_values_and_errors_of_nested_arguments() -> None:
    x = approx(tensor([1.0]), 0.5)
    assert value([x, (2, x)]) == [x.value, (2, x.value)]
    assert value(3) == 3
    assert error(x) is x.error
    assert torch.equal(error(tensor([4.0, 5.0])), tensor([0.0, 0.0]))


def test_names_that_this_torch_does_not_have_are_skipped() -> None:
    before = dict(RULES)

    def nothing(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None

    assert rule("an_operator_that_no_torch_has")(nothing) is nothing
    assert before == RULES
