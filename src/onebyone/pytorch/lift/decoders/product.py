"""Linear layers and other sums of products: `linear`, `addmm`, `matmul`, `einsum`, `tensordot`, `inner`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from onebyone.lifting.operators import Einsum, Linear
from onebyone.lifting.rules.einsum import LETTERS, einsum_terms, matmul_terms, tensordot_terms
from onebyone.lifting.rules.product import ATTENTION
from onebyone.lifting.values import Cannot
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter

aten = torch.ops.aten


def linear(lifter: GraphLifter, node: fx.Node) -> Linear:
    arguments = lifter.arguments(node)
    return Linear(arguments["input"], arguments["weight"], arguments["bias"])


def addmm(lifter: GraphLifter, node: fx.Node) -> Linear:
    """`b + x W`."""
    arguments = lifter.arguments(node)
    if arguments["alpha"] != 1 or arguments["beta"] != 1:
        raise Cannot("alpha or beta is not 1")
    return Linear(arguments["mat1"], arguments["mat2"], arguments["self"], transposed=True)


def einsum(lifter: GraphLifter, node: fx.Node) -> Einsum:
    equation: Any = node.args[0]
    sources: Any = node.args[1]
    return Einsum(lifter.value(sources), *einsum_terms(equation, [_rank(s) for s in sources]))


def matmul(lifter: GraphLifter, node: fx.Node) -> Einsum:
    left, right = node.args[:2]
    return Einsum(lifter.value((left, right)), *matmul_terms(_rank(left), _rank(right)))


def inner(lifter: GraphLifter, node: fx.Node) -> Einsum:
    """Over the last axis of both."""
    left, right = node.args[:2]
    a, b = _rank(left), _rank(right)
    first, second = LETTERS[: a - 1], LETTERS[a : a + b - 1]
    return Einsum(lifter.value((left, right)), [f"{first}Z", f"{second}Z"], first + second)


def tensordot(lifter: GraphLifter, node: fx.Node) -> Einsum:
    left, right = node.args[:2]
    axes: Any = node.args[2:4]
    return Einsum(lifter.value((left, right)), *tensordot_terms(_rank(left), _rank(right), *axes))


def _rank(node: Any) -> int:
    return int(node.meta["val"].ndim)


DECODERS: dict[Any, Decoder] = {
    aten.linear.default: linear,
    aten.addmm.default: addmm,
    aten.einsum.default: einsum,
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default), matmul),
    aten.inner.default: inner,
    aten.tensordot.default: tensordot,
}

REFUSED = {
    ATTENTION: (aten.scaled_dot_product_attention, aten.baddbmm, aten._native_multi_head_attention),
}
