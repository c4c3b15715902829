"""Error rules of normalisations and softmax against documented formulas and adversarial inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from onebyone.laws import bounds
from tests.verification.exact_bounds import E, U, apply, approx, aten, draw, gamma, tensor, widening

# ---------------------------------------------------------------- normalisation

NORMS = [
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.native_batch_norm.default,
]


@pytest.mark.parametrize("operator", NORMS, ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_batch_norm_with_running_statistics(operator: Any, affine: bool) -> None:
    """e' = |a|·e + γ_8·(|a|·(|x̂| + 2e + |μ|) + |b|), a = w/√(σ² + ε)."""
    x = draw(2, 2, 3)
    mean, var = tensor([0.5, -1.5]), tensor([3.0, 0.25])
    weight, bias = (tensor([2.0, -3.0]), tensor([0.5, 4.0])) if affine else (None, None)
    eps = 1.0  # √(σ² + ε) is 2 and √1.25
    tail: tuple[Any, ...] = (0.1, eps) if "no_training" in str(operator) else (False, 0.1, eps)
    tail = (*tail, False) if operator is aten.batch_norm.default else tail
    answer = apply(operator, approx(x), weight, bias, mean, var, *tail)
    if operator is not aten.batch_norm.default:
        answer, *rest = answer
        assert rest == [None, None]
    exact = (x - mean.view(1, 2, 1)) / (var + eps).sqrt().view(1, 2, 1)
    scale = 1 / (var + eps).sqrt() * (1 if weight is None else weight.abs())
    shift = torch.zeros(2, dtype=torch.float64) if bias is None else bias
    exact = exact if weight is None else exact * weight.view(1, 2, 1) + shift.view(1, 2, 1)
    assert torch.allclose(answer.value, exact, rtol=1e-12)
    a, m, b = scale.view(1, 2, 1), mean.abs().view(1, 2, 1), shift.abs().view(1, 2, 1)
    e = float(E)
    reach = a * (x.abs() + 2 * e + m) + b
    expected = (a * e + float(gamma(8)) * reach) * float(widening(8))
    assert torch.allclose(answer.error, expected, rtol=1e-12, atol=0)
    assert bool((a * e + U * reach <= answer.error).all())


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("private", [False, True], ids=["", "private"])
def test_softmax(log: bool, private: bool) -> None:
    """The adversary raises one input by e and lowers the others by e; and e' equals the documented formula."""
    name = ("_" if private else "") + ("log_softmax" if log else "softmax")
    operator = getattr(aten, name).default if private else getattr(aten, name).int
    more: tuple[Any, ...] = (False,) if private else ()
    x = draw(3, 5)
    e = 2.0**-10
    answer = apply(operator, approx(x, e), 1, *more)
    y = operator(x, 1, *more)
    assert torch.equal(answer.value, y)
    for i in range(5):
        for sign in (-1, 1):
            moved = x - sign * e
            moved[:, i] += 2 * sign * e
            change = (operator(moved, 1, *more) - y).abs()
            assert bool((change <= answer.error).all())
            ratio = change[:, i] / answer.error[:, i]
            # the change is 2e·(1 − p) relative to p, that is 2e·(1 − p) of the logarithm
            p = torch.softmax(x, 1)[:, i]
            assert bool((ratio > 0.98 * (1 - p)).all())
    span = x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + 2 * e
    relative = 2 * e + U * (4 * span + 5 + 10)
    if log:
        expected = (relative + 4 * U * y.abs()) * float(widening(4))
    else:
        tiny = torch.finfo(torch.float64).tiny
        expected = (y * torch.expm1(relative) * (1 + relative) + tiny) * float(widening(4))
    assert torch.allclose(answer.error, expected.expand_as(y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("operator", [aten.softmax.int, aten.log_softmax.int], ids=str)
def test_each_row_of_a_softmax_has_the_largest_error_of_its_own(operator: Any) -> None:
    x, errors = draw(2, 3), tensor([[1e-3, 1e-2, 1e-4], [1e-7, 1e-8, 1e-9]])
    together = apply(operator, approx(x, errors), 1)
    for row, largest in enumerate((1e-2, 1e-7)):
        alone = apply(operator, approx(x[row : row + 1], torch.full((1, 3), largest, dtype=torch.float64)), 1)
        assert torch.equal(together.error[row : row + 1], alone.error)


@pytest.mark.parametrize("operator", [aten.softmax.int, aten.log_softmax.int], ids=str)
def test_a_softmax_in_another_type_is_computed_in_it(operator: Any) -> None:
    x = draw(2, 3).float()
    answer = apply(operator, approx(x, 0.0), 1, dtype=torch.float64, u=2.0**-24)
    assert torch.equal(answer.value, operator(x, 1, dtype=torch.float64))
    assert answer.value.dtype == torch.float64


def test_a_probability_that_underflows_keeps_a_bound() -> None:
    x = tensor([[0.0, -2000.0]])
    answer = apply(aten.softmax.int, approx(x, 0.0), 1)
    assert answer.value[0, 1] == 0
    assert answer.error[0, 1] >= torch.finfo(torch.float64).tiny


LAYER_NORMS = [aten.layer_norm.default, aten.native_layer_norm.default]


def layer_norm_formula(
    x: Tensor, e: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The output and its bound over the last axis, step by step: mean, difference, variance, inverse root, product."""
    n = x.shape[-1]
    g = float(gamma(3 * n + 3))
    mean = x.mean(-1, keepdim=True)
    d = x - mean
    reach = x.abs() + 2 * e
    error_d = e + e.mean(-1, keepdim=True) + g * (reach + reach.mean(-1, keepdim=True))
    variance = (d * d).mean(-1, keepdim=True) + eps
    error_variance = (2 * d.abs() * error_d + error_d**2).mean(-1, keepdim=True)
    error_variance = error_variance + 2 * g * (reach**2).mean(-1, keepdim=True)
    inverse = 1 / variance.sqrt()
    smallest = variance - error_variance
    error_inverse = torch.full_like(variance, math.inf)
    positive = smallest > 0
    error_inverse[positive] = 1 / smallest[positive].sqrt() - inverse[positive] + 8 * U * inverse[positive]
    out = d.abs() * error_inverse + error_d * (inverse + error_inverse) + 4 * U * d.abs() * inverse
    y = d * inverse
    if weight is not None:
        out, y = out * weight.abs(), y * weight
    if bias is not None:
        y = y + bias
    out = out + 4 * U * (y.abs() + (0 if bias is None else bias.abs()))
    return y, out * float(widening(n))


@pytest.mark.parametrize("operator", LAYER_NORMS, ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal-errors", "errors-of-their-own"])
def test_layer_norm(operator: Any, affine: bool, equal: bool) -> None:
    x, eps = draw(3, 4), 0.5
    # the values of one row may be known far better than those of another
    e = torch.full_like(x, 2.0**-10) if equal else draw(3, 4, seed=1).abs() * tensor([[2e-2], [2e-5], [2e-9]])
    weight, bias = (tensor([2.0, -3.0, 0.5, 1.0]), tensor([1.0, -8.0, 0.0, 2.0])) if affine else (None, None)
    answer = apply(operator, approx(x, e), [4], weight, bias, eps)
    if operator is LAYER_NORMS[1]:
        answer, *rest = answer
        assert rest == [None, None]
    y, bound = layer_norm_formula(x, e, weight, bias, eps)
    assert torch.allclose(answer.value, y, rtol=1e-9, atol=1e-12)
    assert torch.allclose(answer.error, bound, rtol=1e-9, atol=0)
    # the adversary: every combination of inputs moved up or down by e
    for signs in range(16):
        moved = x + e * tensor([1.0 if signs >> i & 1 else -1.0 for i in range(4)])
        other = torch.layer_norm(moved, [4], weight, bias, eps)
        assert bool(((other - y).abs() <= answer.error).all())


def test_layer_norm_of_values_that_may_all_be_equal_has_no_bound() -> None:
    """The variance may be zero within the input errors: no finite bound, instead of a wrong one."""
    x = tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    answer = apply(aten.layer_norm.default, approx(x, 0.125), [3], None, None, 1e-9)
    assert bool(torch.isinf(answer.error[0]).all())
    assert bool(torch.isfinite(answer.error[1]).all())


@pytest.mark.parametrize("factor", [1.0, 1 + 2.0**-20])
def test_layer_norm_of_a_variance_that_may_be_exactly_zero_has_no_bound(factor: float) -> None:
    """Four ones, whose computed variance is off by up to (2γ)² + 2γ: as much as eps, and then less."""
    g = bounds.gamma(3 * 4 + 3, U)
    eps = factor * ((2 * g) ** 2 + 2 * g)
    answer = apply(aten.layer_norm.default, approx(torch.ones(1, 4, dtype=torch.float64), 0.0), [4], eps=eps)
    assert bool(torch.isinf(answer.error).all()) is (factor == 1)


def test_eps_of_a_layer_norm_may_be_named() -> None:
    x = approx(draw(2, 4), 2.0**-10)
    by_position = apply(aten.layer_norm.default, x, [4], None, None, 0.5)
    by_name = apply(aten.layer_norm.default, x, [4], eps=0.5)
    assert torch.equal(by_name.value, by_position.value)
    assert torch.equal(by_name.error, by_position.error)


def test_layer_norm_without_eps_uses_that_of_torch() -> None:
    x = approx(draw(2, 4), 0.0)
    default, given, by_name = (
        apply(aten.layer_norm.default, x, [4]),
        apply(aten.layer_norm.default, x, [4], None, None, 1e-5),
        apply(aten.layer_norm.default, x, [4], eps=1e-5),
    )
    assert torch.equal(default.error, given.error)
    assert torch.equal(default.error, by_name.error)
