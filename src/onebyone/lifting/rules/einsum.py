"""Sums of products with a constant, whichever axes they run over: `matmul`, `einsum`, `tensordot`, `inner`.

Each is read as an einsum, one letter an axis, with the batch as its first: letters that both operands have and the
result does not are summed over (K), letters that both and the result have are kept (S), those of the value alone (L)
and of the constant alone (O) go on. Without S it is a linear layer over K:

    y[l, o] = Σ_k x[l, k] · w[k, o]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.lifting.grid import Integers
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.rules_linear import ATTENTION, product
from onebyone.pytorch.lift.rules_pointwise import combine
from onebyone.pytorch.lift.rules_reduce import reduced
from onebyone.pytorch.lift.rules_shape import with_index

aten = torch.ops.aten

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@register(aten.einsum.default)
def einsum(walk: Walk, node: fx.Node) -> Lifted:
    """An einsum of one value, of a value and a constant, or of two values where one has all the axes."""
    equation: Any = node.args[0]
    sources: Any = node.args[1]
    ranks = [s.meta["val"].ndim for s in sources]
    terms, out = _terms(equation.replace(" ", ""), ranks)
    return _sum_of_products(walk, node, [walk.value(s) for s in sources], terms, out)


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, an ellipsis written out."""
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    free = [c for c in LETTERS if c not in equation]
    longest = max([r - len(t) + 3 for t, r in zip(terms, ranks, strict=True) if "..." in t], default=0)
    more = "".join(free[:longest])
    terms = [
        t.replace("...", more[len(more) - (r - len(t) + 3) :]) if "..." in t else t
        for t, r in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        every = "".join(terms)
        out = more + "".join(sorted(c for c in set(every) - set(more) if every.count(c) == 1))
    return terms, out.replace("...", more)


@register(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default)
def matmul(walk: Walk, node: fx.Node) -> Lifted:
    """A matrix product with a constant on either side; axes before the last two are broadcast."""
    a, b = (n.meta["val"].ndim for n in node.args[:2])  # type: ignore[union-attr]
    k, i, j = "kij"
    rest = "abcdefgh"[: max(a, b, 2) - 2]
    left = k if a == 1 else rest[len(rest) - (a - 2) :] + i + k
    right = k if b == 1 else rest[len(rest) - (b - 2) :] + k + j
    out = rest + (i if a > 1 else "") + (j if b > 1 else "")
    return _sum_of_products(walk, node, [walk.value(n) for n in node.args[:2]], [left, right], out)


@register(aten.inner.default)
def inner(walk: Walk, node: fx.Node) -> Lifted:
    """Over the last axis of both."""
    a, b = (n.meta["val"].ndim for n in node.args[:2])  # type: ignore[union-attr]
    left, right = LETTERS[: a - 1] + "Z", LETTERS[a : a + b - 1] + "Z"
    return _sum_of_products(
        walk, node, [walk.value(n) for n in node.args[:2]], [left, right], left[:-1] + right[:-1]
    )


@register(aten.tensordot.default)
def tensordot(walk: Walk, node: fx.Node) -> Lifted:
    """Over the axes named."""
    a, b = (n.meta["val"].ndim for n in node.args[:2])  # type: ignore[union-attr]
    dims: Any = node.args[2:4]
    first, second = ([int(d) % rank for d in own] for own, rank in zip(dims, (a, b), strict=True))
    left, right = list(LETTERS[:a]), list(LETTERS[a : a + b])
    for d, e in zip(first, second, strict=True):
        right[e] = left[d]
    out = [c for c in left + right if (c in left) != (c in right)]
    values = [walk.value(n) for n in node.args[:2]]
    return _sum_of_products(walk, node, values, ["".join(left), "".join(right)], "".join(out))


def _sum_of_products(walk: Walk, node: fx.Node, operands: list[Any], terms: list[str], out: str) -> Lifted:
    if any(len(set(term)) < len(term) for term in terms):
        raise Cannot("a diagonal")
    if len(operands) > 2:
        raise Cannot("a product of more than two")
    values = [(v, t) for v, t in zip(operands, terms, strict=True) if isinstance(v, Lifted)]
    value, letters = values[0]
    batch = letters[0]
    if not out.startswith(batch) or any(t[0] != batch for _, t in values):
        raise Cannot("the batch axis is summed over or moved")
    others = [(v, t) for v, t in zip(operands, terms, strict=True) if not isinstance(v, Lifted)]
    if len(values) == 2:
        made, letters = _of_two(walk, node, values, out)
    elif others:
        made, letters = _with_constant(walk, node, value, letters, *others[0], out)
    else:
        made, letters = value, letters
    gone = [i for i, c in enumerate(letters[1:]) if c not in out]
    if gone:
        made = reduced(walk, node, made, gone, False, "sum")
        letters = "".join(c for c in letters if c in out)
    order = [letters[1:].index(c) for c in out[1:]]
    return with_index(made, np.ascontiguousarray(made.indices().transpose(order)))


def _of_two(walk: Walk, node: fx.Node, values: list[tuple[Lifted, str]], out: str) -> tuple[Lifted, str]:
    """Two values, one of which has all axes: element by element."""
    (first, all_letters), (second, few) = sorted(values, key=lambda pair: -len(pair[1]))
    if not set(few) | set(out) <= set(all_letters):
        raise Cannot(ATTENTION)
    index = second.indices().transpose(np.argsort([all_letters.index(c) - 1 for c in few[1:]]))
    shape = [n if c in few else 1 for c, n in zip(all_letters[1:], first.shape, strict=True)]
    spread = with_index(second, np.ascontiguousarray(index.reshape(shape)))
    return combine(walk, node, [first, spread], torch.mul, first.shape), all_letters


def _with_constant(
    walk: Walk, node: fx.Node, value: Lifted, letters: str, constant: Const, own: str, out: str
) -> tuple[Lifted, str]:
    """A value and a constant: the product, and the letters of its axes."""
    weight, sizes = handle_of(constant), dict(zip(own, constant.shape, strict=True))
    ones = [
        c for c in own if sizes[c] == 1 and (c in letters or c not in out)
    ]  # broadcast, or summed over one
    own, weight = "".join(c for c in own if c not in ones), _squeezed(weight, [own.index(c) for c in ones])
    if letters[0] in own:
        raise Cannot("a constant made for each sample of the batch")
    have = dict(zip(letters[1:], value.shape, strict=True))
    single = [
        c for c in letters[1:] if c in own and have[c] == 1 != sizes[c]
    ]  # broadcast to the constant's length
    alone = [c for c in own if c not in letters and c not in out]
    if alone:
        weight, own = weight.sum([own.index(c) for c in alone]), "".join(c for c in own if c not in alone)
    index = value.indices()
    index = index.reshape([n for c, n in have.items() if c not in single])
    letters = "".join(c for c in letters if c not in single)
    both = [c for c in letters[1:] if c in own]
    summed, kept = [c for c in both if c not in out], [c for c in both if c in out]
    rest, new = [c for c in letters[1:] if c not in own], [c for c in own if c not in letters]
    index = index.transpose([letters[1:].index(c) for c in rest + kept + summed])
    weight = weight.permute([own.index(c) for c in kept + summed + new]) if len(own) > 1 else weight
    shape = [have[c] for c in rest], [have[c] for c in kept], [sizes[c] for c in new]
    made_of = letters[0] + "".join(rest + kept + new)
    if not summed:
        wide = with_index(value, np.ascontiguousarray(index.reshape(*shape[0], *shape[1], *(1 for _ in new))))
        factor = Const(weight, (*shape[1], *shape[2]))
        whole = (*shape[0], *shape[1], *shape[2])
        return combine(walk, node, [wide, factor], torch.mul, whole), made_of
    count, length, more = prod(shape[1]), prod(have[c] for c in summed), prod(shape[2])
    matrix = weight.reshape(count, length, more)
    made = _product(
        walk, node, value, index.reshape(*shape[0], count * length), matrix, (count, length, more)
    )
    return with_index(made, made.indices().reshape(*shape[0], *shape[1], *shape[2])), made_of


def _product(
    walk: Walk, node: fx.Node, value: Lifted, rows: Integers, weight: Any, sizes: tuple[int, int, int]
) -> Lifted:
    """Rows `(*lead, S · K)` times the weight `(S, K, O)`; the result is `(*lead, S · O)`."""
    kept, summed, new = sizes
    source = with_index(value, np.ascontiguousarray(rows))
    refused: Cannot | None = None
    if kept == 1:
        try:
            return product(walk, node, source, Const(weight[0], (summed, new)), None, transposed=True)
        except Cannot as reason:
            refused = reason
    laid, groups = walk.with_groups(source, (rows.ndim - 1,))
    starts = groups.gather.starts.reshape(walk.axes, groups.count, -1)
    if refused is not None and (starts != starts[..., :1]).any():  # every window would have places of its own
        raise refused
    handle = laid.handle.unflatten(1, (groups.count, kept, summed))
    handle = torch.einsum("ngsk...,sko->ngso...", handle, weight).flatten(1, 3)
    grid = replace(laid.grid, channels=groups.count * kept * new)
    return with_index(Lifted(handle, grid, None, laid.pooled), groups.out_index(kept * new))


def _squeezed(handle: Any, axes: list[int]) -> Any:
    for axis in sorted(axes, reverse=True):
        handle = handle.squeeze(axis)
    return handle
