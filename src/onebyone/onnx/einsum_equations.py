"""Read the equation of an Einsum of two operands that is a linear layer in each of them."""

from __future__ import annotations


def linear_terms(equation: str) -> tuple[str, str, str] | str:
    """The terms of the two operands and of the result, or a reason why the equation is not a linear layer.

    >>> linear_terms("ij, jk")
    ('ij', 'jk', 'ik')
    >>> linear_terms("ij,jk->k")
    "its equation 'ij,jk->k' takes a diagonal or sums over an axis of one operand"
    """
    equation = equation.replace(" ", "")
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    if len(parts) != 2 or "." in equation:
        return f"its equation {equation!r} has an ellipsis or another number of operands"
    if not arrow:
        result = "".join(sorted(x for x in set(terms) - {","} if terms.count(x) == 1))
    left, right = parts
    repeated = any(len(set(term)) != len(term) for term in (left, right, result))
    alone = [x for x in left if x not in right + result] + [x for x in right if x not in left + result]
    if repeated or alone or not set(result) <= set(terms):
        return f"its equation {equation!r} takes a diagonal or sums over an axis of one operand"
    if not set(left) & set(right) - set(result):
        return f"its equation {equation!r} contracts no axis"
    return left, right, result
