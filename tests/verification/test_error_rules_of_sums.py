"""Error rules of products, sums and means against exact fractions and adversarial inputs and roundings."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onebyone.verification.error_rules import Approx
from tests.verification.exact_bounds import (
    E,
    U,
    agrees,
    apply,
    approx,
    aten,
    draw,
    fractions,
    gamma,
    matrix_of,
    tensor,
    widening,
)

# ---------------------------------------------------------------- products with a constant

PRODUCTS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], int, int, tuple[Any, ...]]] = {
    # operator, shape of x, shape of the weight, number of outputs, terms, further arguments
    "linear": (aten.linear.default, (2, 3), (4, 3), 4, 3, ()),
    "conv1d": (aten.conv1d.default, (1, 2, 5), (3, 2, 2), 3, 4, ([2],)),
    "conv2d": (aten.conv2d.default, (1, 2, 4, 3), (2, 2, 2, 2), 2, 8, ([1, 1], [1, 0])),
    "conv2d, groups": (aten.conv2d.default, (1, 4, 3, 3), (4, 2, 2, 1), 4, 4, ([1, 1], [0, 0], [1, 2], 2)),
    "conv3d": (aten.conv3d.default, (1, 1, 2, 2, 2), (2, 1, 1, 2, 2), 2, 4, ()),
    # of a transposed convolution (I, O, …), the most terms that either axis allows: 3·2·2 and not 2·2·2
    "conv_transpose2d": (aten.conv_transpose2d.input, (1, 3, 2, 2), (3, 2, 2, 2), 2, 12, ([1, 1],)),
    "conv_transpose2d of rows": (aten.conv_transpose2d.input, (1, 3, 2, 2), (3, 2, 1, 2), 2, 6, ([1, 1],)),
    "conv_transpose1d": (aten.conv_transpose1d.default, (1, 2, 3), (2, 3, 2), 3, 6, ([1],)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_product_with_a_constant(name: str, bias: bool) -> None:
    """e' = |W|·e + γ_{n+1}·(|W|·(|x̂| + 2e) + |b|), and the adversary comes as close as n + 1 roundings allow."""
    operator, shape, weight_shape, outputs, n, more = PRODUCTS[name]
    x, weight = draw(*shape), draw(*weight_shape, seed=1)
    b = draw(outputs, seed=2) if bias else None
    answer = apply(operator, approx(x), weight, b, *more)
    assert torch.equal(answer.value, operator(x, weight, b, *more))

    rows = matrix_of(lambda t: operator(t, weight, b, *more), x)
    biases = fractions(operator(torch.zeros_like(x), weight, b, *more))
    xs, g = fractions(x), gamma(n + 1)
    formula, adversary = [], []
    for row, constant in zip(rows, biases, strict=True):
        moved = sum(abs(w) * E for w in row)
        reach = sum(abs(w) * (abs(v) + 2 * E) for w, v in zip(row, xs, strict=True)) + abs(constant)
        formula.append((moved + g * reach) * widening(n))
        used = sum(w != 0 for w in row)
        adversary.append(moved + ((1 + Fraction(U)) ** min(used + 1, n + 1) - 1) * reach)
    agrees(answer.error, formula)
    for bound, reached in zip(fractions(answer.error), adversary, strict=True):
        assert reached <= bound < 2 * reached


def test_a_product_with_rounding_alone() -> None:
    """Without input errors the bound is attained: one term is rounded n + 1 times, and the others are tiny."""
    n = 5
    x, weight = tensor([[1.0, *[2.0**-40] * (n - 1)]]), torch.ones(1, n, dtype=torch.float64)
    bound = apply(aten.linear.default, approx(x, 0.0), weight, tensor([2.0**-40])).error.item()
    computed = Fraction(1)
    for _ in range(n + 1):  # one product and n additions, each rounded up
        computed *= 1 + Fraction(U)
    reached = float(computed - 1)
    assert (n + 0.5) * U < reached <= bound < reached * 1.001


def test_a_product_whose_bias_is_a_keyword() -> None:
    x, weight, b = approx(draw(1, 3)), draw(2, 3, seed=1), draw(2, seed=2)
    by_name, by_position = (
        apply(aten.linear.default, x, weight, bias=b),
        apply(aten.linear.default, x, weight, b),
    )
    assert torch.equal(by_name.value, by_position.value)
    assert torch.equal(by_name.error, by_position.error)


MATRICES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "mm": (aten.mm.default, (2, 3), (3, 2)),
    "matmul": (aten.matmul.default, (2, 3), (3, 2)),
    "bmm": (aten.bmm.default, (1, 2, 3), (1, 3, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("errors", [(E, 0), (0, E), (E, E / 2), (0, 0)], ids=["a", "b", "both", "neither"])
def test_a_matrix_product(name: str, errors: tuple[Fraction, Fraction]) -> None:
    """e' = eₐ·(|b̂| + e_b) + |â|·e_b + γ_{n+1}·(|â| + 2eₐ)·(|b̂| + 2e_b); either side may be a constant."""
    operator, shape_a, shape_b = MATRICES[name]
    a, b = draw(*shape_a), draw(*shape_b, seed=1)
    ea, eb = errors
    args = [approx(t, float(e)) if e else t for t, e in ((a, ea), (b, eb))]
    if not ea and not eb:
        args[0] = approx(a, 0.0)
    answer = apply(operator, *args)
    assert torch.equal(answer.value, operator(a, b))
    left, right, g = a.reshape(2, 3), b.reshape(3, 2), gamma(4)
    formula, adversary = [], []
    for i in range(2):
        for j in range(2):
            pairs = [(abs(Fraction(left[i, k].item())), abs(Fraction(right[k, j].item()))) for k in range(3)]
            moved = sum(ea * (y + eb) + x * eb for x, y in pairs)
            reach = sum((x + 2 * ea) * (y + 2 * eb) for x, y in pairs)
            formula.append((moved + g * reach) * widening(3))
            # every factor at its largest, each of three products and two additions rounded up
            worst = sum((x + ea) * (y + eb) - x * y for x, y in pairs)
            adversary.append(worst + ((1 + Fraction(U)) ** 3 - 1) * sum(x * y for x, y in pairs))
    agrees(answer.error, formula)
    for bound, reached in zip(fractions(answer.error), adversary, strict=True):
        assert reached <= bound < 2 * reached


def test_addmm() -> None:
    """The bound of the product, one more rounding of it, and n + 1 roundings of the bias."""
    bias, a, b = draw(2), draw(1, 3, seed=1), draw(3, 2, seed=2)
    answer = apply(aten.addmm.default, bias, approx(a), b)
    assert torch.equal(answer.value, aten.addmm.default(bias, a, b))
    product = apply(aten.mm.default, approx(a), b)
    formula = [
        (e + Fraction(U) * abs(p) + gamma(4) * abs(c)) * widening(3)
        for e, p, c in zip(fractions(product.error), fractions(product.value), fractions(bias), strict=True)
    ]
    agrees(answer.error, formula)


# ---------------------------------------------------------------- sums and means

AVERAGES: dict[str, tuple[Any, tuple[int, ...], tuple[Any, ...], int]] = {
    # operator, shape of x, arguments, at most this many terms
    "mean": (aten.mean.dim, (2, 6), ([1],), 6),
    "mean of all": (aten.mean.default, (2, 6), (), 12),
    "sum": (aten.sum.dim_IntList, (2, 6), ([0],), 2),
    "sum of one": (aten.sum.dim_IntList, (2, 1), ([1],), 1),
    "avg_pool1d": (aten.avg_pool1d.default, (1, 2, 6), ([3],), 3),
    "avg_pool2d": (aten.avg_pool2d.default, (1, 2, 4, 4), ([2, 3],), 6),
    "avg_pool2d, one number": (aten.avg_pool2d.default, (1, 2, 4, 4), ([2],), 4),
    "avg_pool2d, an integer": (aten.avg_pool2d.default, (1, 2, 4, 4), (2,), 4),
    "avg_pool3d, one number": (aten.avg_pool3d.default, (1, 1, 2, 2, 2), ([2],), 8),
    "adaptive": (aten.adaptive_avg_pool2d.default, (1, 2, 6, 4), ([3, 1],), 3 * 5),
    "adaptive 1d": (aten.adaptive_avg_pool1d.default, (1, 2, 7), ([2],), 5),
    "adaptive, no samples": (aten.adaptive_avg_pool2d.default, (2, 6, 4), ([3, 1],), 3 * 5),
    "avg_pool2d, one number, no samples": (aten.avg_pool2d.default, (2, 4, 4), ([2],), 4),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_sums_and_means(name: str) -> None:
    """e' = f(e) + γ_{n+2}·f(|x̂| + 2e): n − 1 additions, and a division for means, rounded up."""
    operator, shape, args, n = AVERAGES[name]
    x = draw(*shape)
    e = draw(*shape, seed=4).abs() / 16
    answer = apply(operator, Approx(x, e), *args)
    assert torch.equal(answer.value, operator(x, *args))
    rows = matrix_of(lambda t: operator(t, *args), x)
    assert max(sum(w != 0 for w in row) for row in rows) <= n
    g, xs, es = gamma(n + 2), fractions(x), fractions(e)
    formula = [
        sum(w * (err * (1 + 2 * g) + g * abs(v)) for w, v, err in zip(row, xs, es, strict=True)) * widening(n)
        for row in rows
    ]
    # the weights of the rows above are rounded themselves (1/3, say)
    for actual, exact in zip(answer.error.flatten().tolist(), formula, strict=True):
        assert actual == pytest.approx(float(exact), rel=1e-9)
    for bound, row in zip(fractions(answer.error), rows, strict=True):
        used = sum(w != 0 for w in row)
        reached = sum(w * err for w, err in zip(row, es, strict=True))
        reached += ((1 + Fraction(U)) ** used - 1) * abs(sum(w * v for w, v in zip(row, xs, strict=True)))
        assert reached * (1 - Fraction(1, 10**9)) <= bound < 2 * reached


SUMS: dict[str, tuple[Any, tuple[float, ...], dict[str, float], float, float]] = {
    # operator, third argument, keywords, the factors of a and of b
    "add": (aten.add.Tensor, (), {}, 1, 1),
    "add, alpha": (aten.add.Tensor, (), {"alpha": -3}, 1, -3),
    "sub": (aten.sub.Tensor, (), {}, 1, -1),
    "sub, alpha": (aten.sub.Tensor, (), {"alpha": 0.3}, 1, -0.3),
    "rsub": (aten.rsub.Tensor, (), {}, -1, 1),
    "rsub, alpha": (aten.rsub.Tensor, (), {"alpha": 0.3}, -0.3, 1),
    "rsub, position": (aten.rsub.Scalar, (0.3,), {}, -0.3, 1),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("second", ["constant", "approximate"])
def test_sums_of_two(name: str, second: str) -> None:
    """e' = (|s|·eₐ + |t|·e_b)·(1 + 4u) + 2u·(|y| + the scaled operand), y = s·a + t·b."""
    operator, args, kwargs, s, t = SUMS[name]
    if operator is aten.rsub.Scalar and second == "approximate":
        pytest.skip("the second operand is a number")
    a = tensor([1.0, -2.0, 4.0, 0.0])
    b = tensor([8.0, 2.0, 1.25, 3.0])
    other: Any = b if second == "constant" else approx(b, float(E) / 2)
    if operator is aten.rsub.Scalar:
        other, b = 1.25, torch.full_like(a, 1.25)
    eb = E / 2 if second == "approximate" else Fraction(0)
    answer = apply(operator, approx(a), other, *args, **kwargs)
    y = s * a + t * b
    assert torch.allclose(answer.value, y, rtol=1e-15)
    factor = Fraction(abs(s if "rsub" in name else t))
    scaled = a if "rsub" in name else b
    extra = factor if factor != 1 else Fraction(0)
    formula = [
        (
            (abs(Fraction(s)) * E + abs(Fraction(t)) * eb) * (1 + 4 * Fraction(U))
            + 2 * Fraction(U) * (abs(Fraction(v)) + extra * abs(Fraction(w)))
        )
        * widening(2)
        for v, w in zip(answer.value.tolist(), scaled.tolist(), strict=True)
    ]
    agrees(answer.error, formula)


def test_the_scaled_operand_of_a_sum_is_rounded_by_itself() -> None:
    """The product alpha·operand is rounded before the sum, which may cancel: then it is the whole error."""
    for operator, scaled_first in ((aten.add.Tensor, False), (aten.rsub.Tensor, True)):
        large = tensor([10.0])
        product = 0.3 * large
        a, b = (large, product) if scaled_first else (product, large)
        sign = 1 if scaled_first else -1
        bound = apply(operator, approx(a, 0.0), b, alpha=sign * 0.3).error
        rounding_of_the_product = U * product.abs()
        assert bool((rounding_of_the_product <= bound).all())


@pytest.mark.parametrize("second", ["number", "constant", "approximate"])
def test_products_of_two(second: str) -> None:
    """e' = (eₐ·|b̂| + e_b·|â| + eₐ·e_b)·(1 + 4u) + 2u·|ŷ|; both factors at their largest attain it."""
    a, b = draw(6), draw(6, seed=1)
    eb = E / 2 if second == "approximate" else Fraction(0)
    other: Any = {"number": -1.75, "constant": b, "approximate": approx(b, float(E) / 2)}[second]
    if second == "number":
        b = torch.full_like(a, -1.75)
    answer = apply(aten.mul.Tensor, approx(a), other)
    formula, adversary = [], []
    for x, y in zip(fractions(a), fractions(b), strict=True):
        moved = E * abs(y) + eb * abs(x) + E * eb
        formula.append((moved * (1 + 4 * Fraction(U)) + 2 * Fraction(U) * abs(x * y)) * widening(4))
        adversary.append(moved + Fraction(U) * abs(x * y))
    agrees(answer.error, formula)
    for bound, reached in zip(fractions(answer.error), adversary, strict=True):
        assert reached <= bound < 2 * reached


def test_quotients_by_a_constant() -> None:
    """One rounding more than a product: x·fl(1/fl(b)) rounds b, the inverse and the product."""
    a, b = draw(6), tensor([0.5, -4.0, 8.0, 2.0, -0.25, 1.0])  # powers of two: their inverses are exact
    for divisor in (b, 4.0):
        answer = apply(aten.div.Tensor, approx(a), divisor)
        assert torch.equal(answer.value, a / divisor)
        inverse = 1 / b if isinstance(divisor, Tensor) else torch.full_like(a, 0.25)
        formula = [
            (E * abs(i) * (1 + 4 * Fraction(U)) + 3 * Fraction(U) * abs(v)) * widening(4)
            for v, i in zip(fractions(answer.value), fractions(inverse), strict=True)
        ]
        agrees(answer.error, formula)


def test_quotients_that_are_products_with_the_inverse() -> None:
    """In float32, over many numbers: some are off by more than two roundings, none by more than the bound."""
    rng = np.random.default_rng(0)
    divisors = 1 + rng.random(2000)
    x = (1 + rng.random(2000)).astype(np.float32)
    inverse = np.float32(1) / divisors.astype(np.float32)
    computed, exact = (x * inverse).astype(np.float64), x.astype(np.float64) / divisors
    units = np.abs(computed - exact) / (2.0**-24 * exact)
    assert units.max() > 2
    for i in (int(units.argmax()), 0):
        value = Approx(torch.tensor([x[i]]), torch.zeros(1))
        bound = apply(aten.div.Tensor, value, float(divisors[i]), u=2.0**-24).error
        assert abs(computed[i] - exact[i]) <= float(bound)
