"""Writes the nodes that move data, change shapes and compute sizes; those of a constant are made at conversion."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from onebyone.layout.orders import Layout, unit_changes
from onebyone.layout.sizes import product
from onebyone.onnx.layout.tensors import WrittenTensors, known_sizes


class ShapeNodeWriter(WrittenTensors):
    """The operators of `LayoutEmitter` that move data, change shapes, and compute sizes.

    A size that is not known is an int64 tensor of one element.
    """

    # -- moving data and changing shapes

    def permute(self, x: ir.Value, permutation: Sequence[int]) -> ir.Value:
        if x in self._virtual:
            return self._further(x, ("transpose", tuple(permutation)))
        sizes = [self._sizes(x)[axis] for axis in permutation]
        return self._written("Transpose", [x], {"perm": list(permutation)}, sizes)

    def squeeze(self, x: ir.Value, positions: Sequence[int]) -> ir.Value:
        sizes = [size for position, size in enumerate(self._sizes(x)) if position not in positions]
        if x in self._virtual:
            return self._further(x, ("reshape", tuple(sizes)))
        return self._sized(self.writer.squeeze(x, list(positions), known_sizes(sizes)), sizes)

    def unsqueeze(self, x: ir.Value, position: int) -> ir.Value:
        return self._unsqueezed(x, [position])

    def change_units(self, x: ir.Value, have: Layout, want: Layout) -> ir.Value:
        """All squeezes in one node, and all unsqueezes in another."""
        squeeze, unsqueeze = unit_changes(have, want)
        x = self.squeeze(x, squeeze) if squeeze else x
        return self._unsqueezed(x, unsqueeze) if unsqueeze else x

    def _unsqueezed(self, x: ir.Value, positions: Sequence[int]) -> ir.Value:
        sizes = list(self._sizes(x))
        for position in positions:
            sizes.insert(position, 1)
        if x in self._virtual:
            return self._further(x, ("reshape", tuple(sizes)))
        return self._sized(self.writer.unsqueeze(x, list(positions), known_sizes(sizes)), sizes)

    def reshape(self, x: ir.Value, sizes: Sequence[int | ir.Value]) -> ir.Value:
        have = self._sizes(x)
        symbols = [self._symbols.get(size) if isinstance(size, ir.Value) else size for size in sizes]
        after = [None if size == -1 else size for size in symbols]
        if have == tuple(after):
            return x
        if x in self._virtual and all(isinstance(size, int) and size > 0 for size in sizes):
            return self._further(x, ("reshape", tuple(int(s) for s in sizes if isinstance(s, int))))
        target = [
            0
            if isinstance(size, ir.Value)
            and i < len(have)
            and symbols[i] is not None
            and have[i] == symbols[i]
            else size
            for i, size in enumerate(sizes)
        ]
        left = [i for i, size in enumerate(target) if isinstance(size, ir.Value)]
        if len(left) == 1 and -1 not in target:
            target[left[0]] = -1
        shape = self._shape_tensor(target)
        return self._written("Reshape", [x, shape], {}, after)

    def expand(self, x: ir.Value, sizes: Sequence[int | ir.Value]) -> ir.Value:
        have = self._sizes(x)
        shift = len(sizes) - len(have)
        after = [
            have[i - shift] if size == -1 else self._symbols.get(size) if isinstance(size, ir.Value) else size
            for i, size in enumerate(sizes)
        ]
        target = [1 if isinstance(size, int) and size == -1 else size for size in sizes]
        return self._written("Expand", [x, self._shape_tensor(target)], {}, after)

    # -- sizes

    def size(self, x: ir.Value, position: int) -> int | ir.Value:
        size = self._sizes(x)[position]
        if isinstance(size, int):
            return size
        shape = self.writer.op("Shape", [self.use(x)], dtype=ir.DataType.INT64)
        found = self.writer.op(
            "Gather", [shape, self.writer.integers([position], "axis")], {"axis": 0}, shape=[1]
        )
        self._symbols[found] = size
        return found

    def multiply_sizes(self, sizes: Sequence[int | ir.Value]) -> int | ir.Value:
        known = prod(size for size in sizes if isinstance(size, int))
        factors = [size for size in sizes if isinstance(size, ir.Value)]
        if not factors:
            return known
        result = factors[0]
        others: list[int | ir.Value] = [*factors[1:], *([known] if known != 1 else [])]
        for factor in others:
            result = self._calculated("Mul", result, factor)
        symbols = [self._symbols.get(size) if isinstance(size, ir.Value) else size for size in sizes]
        if all(symbol is not None for symbol in symbols):
            self._symbols[result] = product(symbols)
        return result

    def strided_size(self, size: int | ir.Value, step: int) -> int | ir.Value:
        if isinstance(size, int):
            return (size - 1) // step + 1
        steps = self._calculated("Div", self._calculated("Sub", size, 1), step)
        return self._calculated("Add", steps, 1)

    def _calculated(self, op_type: str, left: ir.Value, right: int | ir.Value) -> ir.Value:
        other = right if isinstance(right, ir.Value) else self.writer.integers([right])
        return self.writer.op(op_type, [left, other], shape=[1])

    def _shape_tensor(self, sizes: Sequence[int | ir.Value]) -> ir.Value:
        """A shape as a tensor: a constant where all sizes are known."""
        if all(isinstance(size, int) for size in sizes):
            return self.writer.integers([size for size in sizes if isinstance(size, int)])
        parts = [size if isinstance(size, ir.Value) else self.writer.integers([size]) for size in sizes]
        return self.writer.op("Concat", parts, {"axis": 0}, dtype=ir.DataType.INT64, shape=[len(parts)])
