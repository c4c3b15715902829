"""Arithmetic on sizes that are integers or symbolic expressions.

A symbolic size is a SymPy expression, for example the symbol of a dynamic batch axis. Comparisons never assume a
value for a symbol: two products are equal only where they are equal for every value of the symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import sympy  # type: ignore[import-untyped]

Size = Any
"""An `int`, or a `sympy.Expr` for a size that is not known."""


def product(sizes: Sequence[Size]) -> Size:
    """The product of the sizes: an integer where all of them are, else an expanded expression.

    >>> product([2, 3]), product([2, sympy.Symbol("n")])
    (6, 2*n)
    """
    if all(isinstance(size, int) for size in sizes):
        return prod(sizes)
    return sympy.expand(sympy.Mul(*sizes))


def same_product(first: Sequence[Size], second: Sequence[Size]) -> bool:
    """Whether the products of two lists of sizes are equal for every value of the symbols.

    >>> n = sympy.Symbol("n")
    >>> same_product([n, 6], [2, n, 3]), same_product([n], [2])
    (True, False)
    """
    return bool(sympy.expand(product(first) - product(second)) == 0)


def smaller_product(first: Sequence[Size], second: Sequence[Size]) -> bool:
    """Whether the first product is the smaller one: by value for integers, by divisibility for expressions.

    >>> n = sympy.Symbol("n")
    >>> smaller_product([2], [3]), smaller_product([n], [2, n]), smaller_product([2, n], [n])
    (True, True, False)
    """
    left, right = product(first), product(second)
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    ratio = sympy.cancel(sympy.sympify(right) / left)
    return bool(sympy.denom(ratio) == 1)
