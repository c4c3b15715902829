"""The tensors of a graph that is being written: their sizes, and constants with changes still to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.layout.sizes import Size
from onebyone.layout.values import GraphValue
from onebyone.onnx.constant_values import NotRewritable, known_shape
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.layout.decoder import DecodedModel
from onebyone.onnx.weight_rewriting import Step, WeightRewriter, apply_steps

Steps = tuple[Step, ...]


class WrittenTensors:
    """Writes nodes with sizes that may be symbols. A change to a constant is made once, when a node reads it.

    Args:
        decoded: the original graph.
        weights: makes the constants of the new graph.
        end: the node in front of which everything is written.
        prefix: what the names of new nodes and values begin with, after the value that they are written for.
    """

    def __init__(self, decoded: DecodedModel, weights: WeightRewriter, end: ir.Node, prefix: str) -> None:
        self.decoded, self.rewriter = decoded, weights
        self._end, self._prefix = end, prefix
        self.writer = GraphWriter(end, prefix, decoded.opset)
        self._virtual: dict[ir.Value, tuple[ir.Value, Steps, tuple[int, ...]]] = {}
        self._shapes: dict[ir.Value, tuple[Size, ...]] = {}
        self._symbols: dict[ir.Value, Size] = {}

    def begin(self, value: GraphValue) -> None:
        """Start to write the operator of a value: new names derive from its name."""
        self.writer = GraphWriter(self._end, f"{value.name}/{self._prefix}", self.decoded.opset)

    def constant(self, value: ir.Value) -> ir.Value:
        """A constant of the original, to which changes can be made."""
        return self._changed(value, (), known_shape(value))

    def use(self, value: ir.Value) -> ir.Value:
        """A value that a node can read: a changed constant becomes a constant of the new graph."""
        if value not in self._virtual:
            return value
        root, steps, _ = self._virtual[value]
        try:
            return self.rewriter.rewrite(self.writer, root, _joined(steps))
        except NotRewritable:
            return self._in_the_graph(root, steps)

    def describe(self, value: ir.Value, sizes: Sequence[Size], like: ir.Value) -> None:
        """Record the sizes of a written tensor, and its element type, which is that of `like`."""
        self._shapes[value] = tuple(sizes)
        if value.shape is None and value.producer() is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else None for size in sizes])
        if value.type is None and like.dtype is not None:
            value.type = ir.TensorType(like.dtype)

    # -- nodes

    def _written(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any],
        sizes: Sequence[Size | None] | None,
    ) -> ir.Value:
        used = [self.use(value) for value in inputs]
        shape = None if sizes is None else known_sizes(sizes)
        value = self.writer.op(op_type, used, attributes, shape=shape)
        return value if sizes is None else self._sized(value, sizes)

    def _sized(self, value: ir.Value, sizes: Sequence[Size | None]) -> ir.Value:
        if all(size is not None for size in sizes):
            self._shapes[value] = tuple(sizes)
        return value

    def _sizes(self, value: ir.Value) -> tuple[Size, ...]:
        if value in self._virtual:
            return self._virtual[value][2]
        if value in self._shapes:
            return self._shapes[value]
        sizes = self.decoded.sizes.shape(value)
        assert sizes is not None, f"{value.name} has no known rank"
        return sizes

    # -- constants

    def _changed(self, root: ir.Value, steps: Steps, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=f"{root.name} (constant)", type=root.type)
        self._virtual[value] = (root, steps, shape)
        return value

    def _further(self, value: ir.Value, step: Step) -> ir.Value:
        root, steps, shape = self._virtual[value]
        after = tuple(shape[a] for a in step[1]) if step[0] == "transpose" else tuple(step[1])
        return self._changed(root, (*steps, step), after)

    def broadcast(self, value: ir.Value, shape: Sequence[int], full: Sequence[int]) -> ir.Value:
        """A constant reshaped to `shape` and repeated to `full`, as a vector."""
        changed = self._further(self.constant(value), ("reshape", tuple(shape)))
        if tuple(shape) != tuple(full):
            changed = self._further(changed, ("broadcast", tuple(full)))
        return self._further(changed, ("reshape", (prod(full),)))

    def _in_the_graph(self, root: ir.Value, steps: Steps) -> ir.Value:
        """The changes as nodes, for a constant whose expression cannot take them."""
        value, shape = root, known_shape(root)
        for kind, numbers in steps:
            shape = apply_steps(np.broadcast_to(np.float32(0), shape), [(kind, numbers)]).shape
            if kind == "transpose":
                value = self.writer.op("Transpose", [value], {"perm": list(numbers)}, shape=shape)
            else:
                name = "Reshape" if kind == "reshape" else "Expand"
                value = self.writer.op(name, [value, self.writer.integers(shape)], shape=shape)
        return value


def known_sizes(sizes: Sequence[Size | None]) -> list[int | None]:
    """The sizes that are integers; None for the others."""
    return [size if isinstance(size, int) else None for size in sizes]


def _joined(steps: Steps) -> Steps:
    """The steps without reshapes that another reshape follows."""
    return tuple(
        step
        for i, step in enumerate(steps)
        if not (step[0] == "reshape" and i + 1 < len(steps) and steps[i + 1][0] == "reshape")
    )
