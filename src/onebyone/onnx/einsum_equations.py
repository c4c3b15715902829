"""Read the equation of an Einsum of two operands that is a linear layer in each of them."""

from __future__ import annotations

from onebyone.lifting.rules.einsum import einsum_terms


def linear_terms(equation: str, ranks: tuple[int, int]) -> tuple[str, str, str] | str:
    """The terms of the two operands and of the result, an ellipsis written out for operands of `ranks` axes.

    Gives a reason where the equation is not a linear layer.

    >>> linear_terms("ij, jk", (2, 2)), linear_terms("...j,kj->...k", (3, 2))
    (('ij', 'jk', 'ik'), ('abj', 'kj', 'abk'))
    >>> linear_terms("ij,jk->k", (2, 2))
    "its equation 'ij,jk->k' takes a diagonal or sums over an axis of one operand"
    """
    equation = equation.replace(" ", "")
    parts = equation.partition("->")[0].split(",")
    if len(parts) != 2:
        return f"its equation {equation!r} has {len(parts)} operands; two were expected"
    if all("..." in part for part in parts):
        return f"its equation {equation!r} has an ellipsis in both operands, whose axes may be broadcast"
    if any(
        len(p.replace("...", "")) > r or ("..." not in p and len(p) != r)
        for p, r in zip(parts, ranks, strict=True)
    ):
        return f"its equation {equation!r} does not fit the ranks of its operands"
    (left, right), result = einsum_terms(equation, ranks)
    terms = left + right
    repeated = any(len(set(term)) != len(term) for term in (left, right, result))
    alone = [x for x in left if x not in right + result] + [x for x in right if x not in left + result]
    if repeated or alone or not set(result) <= set(terms):
        return f"its equation {equation!r} takes a diagonal or sums over an axis of one operand"
    if not set(left) & set(right) - set(result):
        return f"its equation {equation!r} contracts no axis"
    return left, right, result
