"""Sizes of the values of a graph as integers and symbols, and the numbers in tensors that hold sizes.

A named dimension of ONNX is a symbol, equal to every other of its name, as the ONNX specification defines it. A
dimension without a name is a symbol of its own. Sizes that a graph computes (Shape, Gather, Concat, Mul …) are followed
as expressions, so that the shape that a Reshape is given at run time can be compared with that of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir
import sympy  # type: ignore[import-untyped]

from onebyone.layout.sizes import Size, product
from onebyone.onnx.constant_values import NotRewritable, array_of, is_constant

Sizes = tuple[Size, ...]
#: Names that exporters write for a dimension of which they know nothing; two of them need not be equal.
NO_NAMES = frozenset(["", "?", "None", "none", "-1", "unk", "unknown", "dynamic", "null"])
#: Longer tensors of integers are not followed.
LONGEST = 64


class SymbolicSizes:
    """The shapes of values, and the contents of small tensors of integers, each worked out once.

    Symbols stand for sizes of at least 1: where a size is 0, every value that depends on it is empty.
    """

    def __init__(self) -> None:
        self._shapes: dict[ir.Value, Sizes | None] = {}
        self._contents: dict[ir.Value, Sizes | None] = {}

    def shape(self, value: ir.Value) -> Sizes | None:
        """The shape of a value; None where its rank is unknown."""
        if value not in self._shapes:
            self._shapes[value] = None if value.shape is None else tuple(_size(s) for s in value.shape)
        return self._shapes[value]

    def refine(self, value: ir.Value, sizes: Sequence[Size | None]) -> None:
        """Record a shape that follows from an operator's inputs; None keeps the size that the file states.

        A size of 1 that the file states and that does not follow is not used: operands may have another.
        """
        stated = self.shape(value)
        if stated is not None and len(stated) == len(sizes):
            self._shapes[value] = tuple(_refined(s, new) for s, new in zip(stated, sizes, strict=True))

    def contents(self, value: ir.Value | None) -> Sizes | None:
        """The numbers in a tensor of integers of at most one axis, as far as they follow from shapes."""
        if value is None:
            return None
        if value not in self._contents:
            self._contents[value] = self._worked_out(value)
        return self._contents[value]

    def _worked_out(self, value: ir.Value) -> Sizes | None:
        if is_constant(value):
            return _constant(value)
        node = value.producer()
        if node is None or node.domain != "" or not node.inputs:
            return None
        if node.op_type == "Shape":
            return self._of_shape(node)
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
            shape = self.shape(value)
            return self.contents(node.inputs[0]) if shape is not None and len(shape) < 2 else None
        parts = [self.contents(operand) for operand in node.inputs]
        if any(part is None for part in parts):
            return None
        known = [part for part in parts if part is not None]
        if node.op_type == "Concat":
            return tuple(size for part in known for size in part)
        if node.op_type == "Gather" and all(isinstance(i, int) for i in known[1]):
            return tuple(known[0][i] for i in known[1] if -len(known[0]) <= i < len(known[0]))
        if node.op_type in ("Mul", "Add", "Sub") and all(len(part) == 1 for part in known):
            return (_arithmetic(node.op_type, known[0][0], known[1][0]),)
        if (
            node.op_type == "Slice"
            and len(known) > 2
            and all(isinstance(i, int) for p in known[1:] for i in p)
        ):
            step = known[4][0] if len(known) > 4 else 1
            return known[0][slice(known[1][0], known[2][0], step)] if step > 0 else None
        return None

    def _of_shape(self, node: ir.Node) -> Sizes | None:
        operand = node.inputs[0]
        shape = None if operand is None else self.shape(operand)
        if shape is None:
            return None
        end = node.attributes.get_int("end", len(shape))
        return shape[node.attributes.get_int("start", 0) : end]


def reshaped(x: Sizes, target: Sequence[Size], keeps_zeros: bool) -> list[Size]:
    """The shape of a Reshape with this target, in which 0 copies a size and −1 is what is left.

    >>> n = sympy.Symbol("n")
    >>> reshaped((n, 6, 4), (0, -1, 2), False)
    [n, 12, 2]
    """
    sizes = [x[i] if size == 0 and not keeps_zeros and i < len(x) else size for i, size in enumerate(target)]
    if -1 in sizes:
        rest = product([size for size in sizes if size != -1])
        everything = product(x)
        if isinstance(rest, int) and isinstance(everything, int):
            left = everything // rest if rest else 0
        else:
            left = sympy.cancel(sympy.sympify(everything) / rest)
            left = int(left) if left.is_Integer else left
        sizes[sizes.index(-1)] = left
    return sizes


def broadcast(shapes: Sequence[Sizes]) -> list[Size]:
    """The shape of an elementwise result; where operands have different symbols, the size is a symbol of its own.

    >>> n = sympy.Symbol("n")
    >>> broadcast([(n, 1, 3), (5, 1), (sympy.Symbol("m"), 1, 1)])
    [_size, 5, 3]
    """
    rank = max(len(shape) for shape in shapes)
    result: list[Size] = []
    for axis in range(rank):
        sizes = {shape[axis - rank] for shape in shapes if len(shape) >= rank - axis} - {1}
        known = [size for size in sizes if isinstance(size, int)]
        result.append(
            1 if not sizes else known[0] if known else sizes.pop() if len(sizes) == 1 else _unknown()
        )
    return result


def _size(size: int | ir.SymbolicDim) -> Size:
    if isinstance(size, int):
        return size
    name = None if size.value is None else str(size.value)
    if name is None or name in NO_NAMES:
        return _unknown()
    return sympy.Symbol(name, integer=True, positive=True)


def _unknown() -> Size:
    return sympy.Dummy("size", integer=True, positive=True)


def _refined(stated: Size, new: Size | None) -> Size:
    if new is None or (isinstance(stated, int) and stated != 1):
        return stated
    return stated if isinstance(new, sympy.Dummy) and stated != 1 else new


def _constant(value: ir.Value) -> Sizes | None:
    shape = value.shape
    known = shape is not None and len(shape) < 2 and all(isinstance(size, int) for size in shape)
    if value.dtype is None or not value.dtype.is_integer() or not known:
        return None
    if prod(size for size in shape or () if isinstance(size, int)) > LONGEST:
        return None
    try:
        return tuple(int(number) for number in np.asarray(array_of(value)).reshape(-1))
    except NotRewritable:
        return None


def _arithmetic(op_type: str, left: Size, right: Size) -> Size:
    if op_type == "Mul":
        return product([left, right])
    result = sympy.expand(left + right if op_type == "Add" else left - right)
    return int(result) if result.is_Integer else result
