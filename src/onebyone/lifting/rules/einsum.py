"""Sums of products with a constant, whichever axes they run over: `matmul`, `einsum`, `tensordot`, `inner`.

Each is read as an einsum with the batch as its first letter. Letters that both operands have and the result does not
are summed over (K), letters that both and the result have are kept (S), those of the value alone (L) and of the
constant alone (O) go on. Without S it is a linear layer over K:

    y[l, o] = Σ_k x[l, k] · w[k, o]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onebyone.lifting.grid import Integers
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Einsum, Elementwise, Linear
from onebyone.lifting.rules.elementwise import combined
from onebyone.lifting.rules.product import ATTENTION, linear
from onebyone.lifting.rules.reduce import reduced
from onebyone.lifting.values import Cannot, Const, Handle, Lifted

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result of an equation, an ellipsis written out.

    >>> einsum_terms("b...c, oc -> b...o", (4, 2))
    (['badc', 'oc'], 'bado')
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in LETTERS if c not in equation]
    longest = max([r - len(t) + 3 for t, r in zip(terms, ranks, strict=True) if "..." in t], default=0)
    more = "".join(free[:longest])
    terms = [
        t.replace("...", more[len(more) - (r - len(t) + 3) :]) for t, r in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        every = "".join(terms)
        result = more + "".join(sorted(c for c in set(every) - set(more) if every.count(c) == 1))
    return terms, result.replace("...", more)


def matmul_terms(left: int, right: int) -> tuple[list[str], str]:
    """The same for a matrix product of operands with `left` and `right` axes; axes before the last two are broadcast.

    >>> matmul_terms(4, 2), matmul_terms(3, 1)
    ((['abik', 'kj'], 'abij'), (['aik', 'k'], 'ai'))
    """
    lead = "abcdefgh"[: max(left, right, 2) - 2]
    first = "k" if left == 1 else lead[len(lead) - (left - 2) :] + "ik"
    second = "k" if right == 1 else lead[len(lead) - (right - 2) :] + "kj"
    return [first, second], lead + ("i" if left > 1 else "") + ("j" if right > 1 else "")


def tensordot_terms(
    left: int, right: int, left_axes: Sequence[int], right_axes: Sequence[int]
) -> tuple[list[str], str]:
    """The same for a sum over pairs of axes.

    >>> tensordot_terms(4, 2, (1,), (0,))
    (['abcd', 'bf'], 'acdf')
    """
    first, second = list(LETTERS[:left]), list(LETTERS[left : left + right])
    for a, b in zip(left_axes, right_axes, strict=True):
        second[b % right] = first[a % left]
    result = [c for c in first + second if (c in first) != (c in second)]
    return ["".join(first), "".join(second)], "".join(result)


def einsum(lifter: Lifter, call: Call, operator: Einsum) -> Lifted:
    """An einsum of one value, of a value and a constant, or of two values where one has all the axes."""
    result = operator.result
    if any(len(set(term)) < len(term) for term in operator.terms):
        raise Cannot("an einsum that takes a diagonal")
    if len(operator.operands) > 2:
        raise Cannot("a product of more than two operands")
    operands = list(zip(operator.operands, operator.terms, strict=True))
    values = [(v, t) for v, t in operands if isinstance(v, Lifted)]
    constants = [(v, t) for v, t in operands if not isinstance(v, Lifted)]
    value, letters = values[0]
    batch = letters[:1]
    if not result.startswith(batch) or any(t[:1] != batch for _, t in values):
        raise Cannot("the batch axis is summed over or moved")
    if len(values) == 2:
        value, letters = _of_two_values(lifter, call, values, result)
    elif constants:
        value, letters = _with_constant(lifter, call, value, letters, *constants[0], result)
    summed = [axis for axis, c in enumerate(letters[1:]) if c not in result]
    if summed:
        value = reduced(lifter, call, value, summed, False, "sum")
        letters = "".join(c for c in letters if c in result)
    order = [letters[1:].index(c) for c in result[1:]]
    return value.with_index(np.ascontiguousarray(value.indices().transpose(order)))


def _of_two_values(
    lifter: Lifter, call: Call, values: list[tuple[Lifted, str]], result: str
) -> tuple[Lifted, str]:
    """Two values, one of which has all axes: element by element."""
    (first, all_letters), (second, few) = sorted(values, key=lambda pair: -len(pair[1]))
    if not set(few) | set(result) <= set(all_letters):
        raise Cannot(ATTENTION)
    index = second.indices().transpose(np.argsort([all_letters.index(c) for c in few[1:]]))
    shape = [n if c in few else 1 for c, n in zip(all_letters[1:], first.shape, strict=True)]
    broadcast = second.with_index(np.ascontiguousarray(index.reshape(shape)))
    product = Elementwise((first, broadcast), lifter.emit.multiply)
    return combined(lifter, call, product, first.shape), all_letters


@dataclass(frozen=True)
class _Factor:
    """A constant factor on its way through an einsum: its handle, its letters, and the length of each axis."""

    handle: Handle
    letters: str
    sizes: dict[str, int]

    def without(self, lifter: Lifter, letters: Sequence[str]) -> _Factor:
        """Summed over the axes of some letters; axes of one element are only removed."""
        emit, handle, kept = lifter.emit, self.handle, self.letters
        long = [kept.index(c) for c in letters if self.sizes[c] > 1]
        if long:
            handle = emit.reduce(handle, "sum", long)
            kept = "".join(c for axis, c in enumerate(kept) if axis not in long)
        remaining = "".join(c for c in kept if c not in letters)
        if remaining != kept:
            handle = emit.reshape(handle, [self.sizes[c] for c in remaining])
        return _Factor(handle, remaining, self.sizes)

    def ordered(self, lifter: Lifter, letters: str) -> Handle:
        """The handle with its axes in the order of `letters`."""
        if letters == self.letters:
            return self.handle
        return lifter.emit.permute(self.handle, [self.letters.index(c) for c in letters])


def _with_constant(
    lifter: Lifter, call: Call, value: Lifted, letters: str, constant: Const, term: str, result: str
) -> tuple[Lifted, str]:
    """A value times a constant, and the letters of the product's axes."""
    factor = _Factor(constant.handle, term, dict(zip(term, constant.shape, strict=True)))
    sizes, lengths = factor.sizes, dict(zip(letters[1:], value.shape, strict=True))
    # axes of one element that are broadcast along the value's, or summed over
    factor = factor.without(lifter, [c for c in term if sizes[c] == 1 and (c in letters or c not in result)])
    if letters[0] in factor.letters:
        raise Cannot("a constant made for each sample of the batch")
    # axes of one element of the value that are broadcast to the constant's length
    single = [c for c in letters[1:] if c in factor.letters and lengths[c] == 1 != sizes[c]]
    factor = factor.without(lifter, [c for c in factor.letters if c not in letters and c not in result])
    index = value.indices().reshape([n for c, n in lengths.items() if c not in single])
    letters = "".join(c for c in letters if c not in single)
    shared = [c for c in letters[1:] if c in factor.letters]
    summed, kept = [c for c in shared if c not in result], [c for c in shared if c in result]
    rest, new = (
        [c for c in letters[1:] if c not in factor.letters],
        [c for c in factor.letters if c not in letters],
    )
    index = index.transpose([letters[1:].index(c) for c in rest + kept + summed])
    weight = factor.ordered(lifter, "".join(kept + summed + new))
    lead = tuple(lengths[c] for c in rest)
    kept_shape, new_shape = tuple(lengths[c] for c in kept), tuple(sizes[c] for c in new)
    product_letters = letters[0] + "".join(rest + kept + new)
    shape = (*lead, *kept_shape, *new_shape)
    if not summed:
        wide = index.reshape(*lead, *kept_shape, *(1 for _ in new))
        operands = (value.with_index(np.ascontiguousarray(wide)), Const(weight, kept_shape + new_shape))
        product = combined(lifter, call, Elementwise(operands, lifter.emit.multiply), shape)
        return product, product_letters
    matrices = (prod(kept_shape), prod(lengths[c] for c in summed), prod(new_shape))
    rows = np.ascontiguousarray(index.reshape(*lead, matrices[0] * matrices[1]))
    product = _matrix_product(lifter, call, value, rows, weight, matrices)
    return product.with_index(product.indices().reshape(shape)), product_letters


def _matrix_product(
    lifter: Lifter, call: Call, value: Lifted, rows: Integers, weight: Handle, matrices: tuple[int, int, int]
) -> Lifted:
    """Rows `(*lead, S · K)` times a weight of `matrices` = (S, K, O) elements; the result is `(*lead, S · O)`."""
    kept, summed, new = matrices
    source, emit = value.with_index(rows), lifter.emit
    refused: Cannot | None = None
    if kept == 1:
        matrix = Const(emit.reshape(weight, (summed, new)), (summed, new))
        try:
            return linear(lifter, call, Linear(source, matrix, None, transposed=True))
        except Cannot as reason:
            refused = reason
    grouped, groups = lifter.with_groups(source, (rows.ndim - 1,))
    starts = groups.gather.starts.reshape(lifter.axes, groups.count, -1)
    if (
        refused is not None and (starts != starts[..., :1]).any()
    ):  # every window would have positions of its own
        raise refused
    split = emit.split_channels(grouped.handle, (groups.count, kept, summed))
    product = emit.grouped_product(split, emit.reshape(weight, matrices))
    grid = replace(grouped.grid, channels=groups.count * kept * new)
    result = Lifted(emit.merge_channels(product, 3), grid, None, grouped.pooled)
    return result.with_index(groups.out_index(kept * new))
