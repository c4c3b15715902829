"""Insert nodes and constants into a graph of onnx-ir, with types and shapes, for any opset from 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, sizes_of
from onebyone.onnx.function_bodies import is_body

#: Key in the `meta` of a node that a conversion inserted: what it computes has no name in the original model.
WRITTEN = "onebyone written"
#: From this opset on, the axes of Squeeze and Unsqueeze are an input and no longer an attribute.
AXES_ARE_AN_INPUT = 13
#: From this opset on, Slice takes its numbers, and steps, as inputs.
OPSET_OF_SLICE_INPUTS = 10


@dataclass(frozen=True, eq=False)
class WrittenLayer:
    """A layer in its new form: the value that it reads, its result, the law applied, and a short description.

    `data_sizes` are the sizes of `data` as far as they are known, from its shape or from the weight.
    """

    data: ir.Value
    result: ir.Value
    law: str
    description: str
    data_sizes: tuple[int | None, ...]


class GraphWriter:
    """Inserts nodes in front of one node of a graph or function; new names derive from `name`.

    Args:
        anchor: the node in front of which everything is inserted. It must belong to a graph.
        name: prefix of the names of new nodes and values, unique within the model.
        opset: version of the default domain.
    """

    def __init__(self, anchor: ir.Node, name: str, opset: int) -> None:
        container = anchor.graph
        if container is None:
            raise ValueError(f"{anchor.name}: the node belongs to no graph")
        self.anchor = anchor
        self.container: ir.Graph = container
        self.name = name
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self._count = 0

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        shape: Sequence[int | str | None] | None = None,
        dtype: ir.DataType | None = None,
        output: str | None = None,
    ) -> ir.Value:
        """Insert a node with one output, and return that output.

        Args:
            shape: of the output, where it is known: integers, names, or None for an unknown size.
            dtype: of the output; that of the first input where None.
            output: name of the output; derived from the writer's name where None.
        """
        label = f"{self.name}/{op_type}_{self._count}"
        self._count += 1
        value = ir.Value(name=output or label)
        kind = dtype or (inputs[0].dtype if inputs and inputs[0] is not None else None)
        if kind is not None:
            value.type = ir.TensorType(kind)
        if shape is not None:
            value.shape = ir.Shape(shape)
        node = ir.node(op_type, list(inputs), attributes or {}, outputs=[value], name=label)
        node.meta[WRITTEN] = True
        self.container.insert_before(self.anchor, [node])
        self.nodes.append(node)
        return value

    def constant(self, array: np.ndarray[Any, Any] | ir.TensorProtocol, label: str = "constant") -> ir.Value:
        """Add a constant: an initializer of a graph, or a Constant node of a function, which has no initializers."""
        tensor = ir.tensor(array) if isinstance(array, np.ndarray) else array
        name = f"{self.name}/{label}_{self._count}"
        self._count += 1
        if is_body(self.container):
            value = self.op("Constant", [], {"value": tensor}, dtype=tensor.dtype, output=name)
            value.shape, value.const_value = ir.Shape(tensor.shape.numpy()), tensor
            return value
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        tensor.name = name
        self.container.register_initializer(value)
        self.constants.append(value)
        return value

    def drop_unused_constants(self) -> None:
        """Remove initializers that were added and that nothing reads, such as those of a form that was given up."""
        for value in self.constants:
            if not value.uses() and not value.is_graph_output():
                self.container.initializers.pop(str(value.name), None)

    def integers(self, values: Sequence[int], label: str = "shape") -> ir.Value:
        """Add a one-dimensional int64 constant."""
        return self.constant(np.asarray(values, dtype=np.int64), label)

    def unsqueeze(self, value: ir.Value, axes: Sequence[int], shape: Sequence[int | str | None]) -> ir.Value:
        """Insert axes of size one; `axes` are positions in the output."""
        return self._with_axes("Unsqueeze", value, axes, shape)

    def squeeze(self, value: ir.Value, axes: Sequence[int], shape: Sequence[int | str | None]) -> ir.Value:
        """Remove axes of size one; `axes` are positions in the input."""
        return self._with_axes("Squeeze", value, axes, shape)

    def _with_axes(
        self, op_type: str, value: ir.Value, axes: Sequence[int], shape: Sequence[int | str | None]
    ) -> ir.Value:
        if self.opset >= AXES_ARE_AN_INPUT:
            return self.op(op_type, [value, self.integers(axes, "axes")], shape=shape)
        return self.op(op_type, [value], {"axes": list(axes)}, shape=shape)

    def slice_axis(self, value: ir.Value, axis: int, start: int, stop: int | None, step: int = 1) -> ir.Value:
        """The elements `start`, `start + step`, … before `stop` along one axis; None stands for the end.

        Raises NotRewritable for a step other than one where the opset has none.
        """
        end = np.iinfo(np.int64).max if stop is None else stop
        shape = sizes_of(value)
        if shape is not None:
            size = shape[axis]
            last = stop if size is None else min(end, size)
            shape[axis] = None if last is None else -(-(last - start) // step)
        if self.opset < OPSET_OF_SLICE_INPUTS:
            if step != 1:
                raise NotRewritable(
                    f"Slice has steps from opset {OPSET_OF_SLICE_INPUTS} on; the model has {self.opset}"
                )
            return self.op("Slice", [value], {"starts": [start], "ends": [end], "axes": [axis]}, shape=shape)
        numbers = (("starts", start), ("ends", end), ("axes", axis), ("steps", step))
        return self.op("Slice", [value, *(self.integers([n], label) for label, n in numbers)], shape=shape)
