"""The rule of reshape, view, flatten and unflatten: groups of neighbouring axes split and merge, in whatever
order they are stored.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import Node

from onebyone.pytorch.graph.counting import moves_data
from onebyone.pytorch.graph.orders import Frame, Groups, Order, reshape_groups, through_groups
from onebyone.pytorch.graph.rules import Emitter, Free, Inputs, axes_of, shape

SHAPE_ONLY = frozenset(
    {torch.ops.aten.reshape.default, torch.ops.aten.unsqueeze.default, torch.ops.aten.squeeze.dims}
)


def product_of(sizes: list[Any]) -> Any:
    """The product of sizes as an integer or a sympy expression; no guard is made on symbolic sizes."""
    if all(isinstance(s, int) for s in sizes):
        return prod(sizes)
    return sympy.expand(sympy.Mul(*(s if isinstance(s, int) else s.node.expr for s in sizes)))


def _same(a: list[Any], b: list[Any]) -> bool:
    return bool(sympy.expand(product_of(a) - product_of(b)) == 0)


def _smaller(a: list[Any], b: list[Any]) -> bool:
    left, right = product_of(a), product_of(b)
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    ratio = sympy.cancel(sympy.sympify(right) / left)
    return bool(sympy.denom(ratio) == 1)


def groups_between(before: tuple[Any, ...], after: tuple[Any, ...]) -> Groups:
    """How a reshape between two recorded shapes splits and merges significant axes."""
    return reshape_groups(before, after, _same, _smaller)


@dataclass
class Reshape(Free):
    """`groups` pairs input axes with output axes; a group's axes must be stored side by side, in turn."""

    groups: Groups
    given: tuple[Any, ...] | None  # the sizes the original operator names, where it names them all

    def inputs_for(self, out: Order) -> list[Inputs]:
        order = through_groups(out, [(b, a) for a, b in self.groups])
        return [] if order is None else [(order,)]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        out = through_groups(order, self.groups)
        return [self.axes if out is None else out]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        x = self.operands[0]
        return reshaped(em, em.get(x, inputs[0]), [self._size(em, x, a) for a in out]), out

    def _size(self, em: Emitter, x: Node, axis: int) -> Any:
        """The size of an output axis: known, or named by the operator, or carried over from the input's axes."""
        size = shape(self.node)[axis]
        if isinstance(size, int):
            return size
        if self.given is not None and isinstance(self.given[axis], Node):
            return em.arg(self.given[axis])
        ins, outs = next(g for g in self.groups if axis in g[1])
        if outs == (axis,):
            return sizes_product(em, [em.size(x, a) for a in ins])
        return -1


def sizes_product(em: Emitter, sizes: list[Any]) -> Any:
    """The product of integers and size nodes."""
    result: Any = prod(s for s in sizes if isinstance(s, int))
    for size in sizes:
        if isinstance(size, Node):
            result = size if result == 1 else em.call(operator.mul, (size, result))
    return result


def reshaped(em: Emitter, x: Node, sizes: list[Any]) -> Node:
    """`x` in a new shape; one size that is not a number is left for torch to infer, which keeps the program
    plain.

    Where `x` itself is another shape of some tensor, that tensor is reshaped instead, unless that would copy
    and `x` did.
    """
    unknown = [i for i, s in enumerate(sizes) if not isinstance(s, int)]
    if len(unknown) == 1:
        sizes = [-1 if i == unknown[0] else s for i, s in enumerate(sizes)]
    source = x
    while source.target in SHAPE_ONLY and isinstance(source.args[0], Node):
        source = source.args[0]
    target = torch.ops.aten.reshape.default
    if source is x:
        return em.call(target, (x, sizes))
    new = em.call(target, (source, sizes))
    return em.call(target, (x, sizes)) if moves_data(new) else new


def reshape_rule(node: Node, given: tuple[Any, ...] | None) -> Reshape:
    """The rule for one reshaping node."""
    x = node.all_input_nodes[0]
    return Reshape(node, axes_of(node), (x,), groups_between(shape(x), shape(node)), given)
