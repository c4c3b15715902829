"""Sizes that a graph computes from inputs of fixed size: worked out node by node, in one pass.

Exporters write the sizes of a fixed image as Shape, Gather, Div, Mod, ConstantOfShape and Concat, which the inference
engines of `shapes` follow only in part: one size that they miss hides all that depend on it. Here each node that
computes integers from known ones is run by the ONNX reference implementation, and the shapes of the others are
inferred by ONNX with the integers that they read.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from onebyone.onnx.computed_constants import run_operator
from onebyone.onnx.constant_values import Array, NotRewritable, array_of, is_constant, shape_of

#: The most elements of a tensor whose numbers are followed: shapes, paddings, and the bounds of slices.
MOST_NUMBERS = 64


def fill_static_sizes(model: ir.Model) -> bool:
    """Set the shapes of the main graph's values where the inputs' sizes are fixed; whether all are known then."""
    unknown = [value for value in _values(model.graph) if not _is_static(value)]
    if unknown and _has_fixed_inputs(model.graph):
        StaticSizes(model).follow()
    return all(_is_static(value) for value in unknown)


def fold_static_numbers(model: ir.Model) -> None:
    """Replace integers that the main graph computes from fixed sizes by constants."""
    graph = model.graph
    if not _has_fixed_inputs(graph):
        return
    sizes = StaticSizes(model)
    sizes.follow()
    for value, array in sizes.numbers.items():
        if value.producer() is None or value.is_graph_output() or is_constant(value) or not value.uses():
            continue
        tensor = ir.tensor(array)
        name = f"{value.name}/number"
        if name not in graph.initializers:
            constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
            constant.const_value = tensor
            graph.register_initializer(constant)
            value.replace_all_uses_with(constant)


class StaticSizes:
    """Walks over the main graph once.

    Attributes:
        numbers: the contents of small tensors of integers and truth values that follow from fixed sizes.
    """

    def __init__(self, model: ir.Model) -> None:
        self.numbers: dict[ir.Value, Array] = {}
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 1)

    def follow(self) -> None:
        """Set the shapes, and fill in the numbers; what cannot be worked out stays as it is."""
        for node in self._graph:
            if node.domain != "":
                continue
            if not all(_is_static(output) for output in node.outputs):
                self._infer(node)
            self._compute(node)

    def _compute(self, node: ir.Node) -> None:
        operands = [operand for operand in node.inputs if operand is not None]
        if len(node.outputs) != 1 or not operands:
            return
        output = node.outputs[0]
        if node.op_type == "Shape":
            shape = shape_of(operands[0])
            if shape is not None:
                ends = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
                self._record(output, np.asarray(shape[slice(*ends)], dtype=np.int64))
            return
        arrays = [self._number(operand) for operand in operands]
        if all(array is not None for array in arrays):
            array = run_operator(node, self._opset, [array for array in arrays if array is not None])
            if array is not None and array.dtype.kind in "iub" and array.size <= MOST_NUMBERS:
                self._record(output, array)

    def _record(self, output: ir.Value, array: Array) -> None:
        self.numbers[output] = array
        output.shape = ir.Shape(array.shape)
        if output.dtype is None:
            output.dtype = ir.DataType.from_numpy(array.dtype)

    def _number(self, value: ir.Value) -> Array | None:
        if value in self.numbers:
            return self.numbers[value]
        shape = shape_of(value)
        small = shape is not None and prod(shape) <= MOST_NUMBERS and value.dtype is not None
        if not small or not is_constant(value):
            return None
        try:
            self.numbers[value] = array_of(value)
        except NotRewritable:
            return None
        return self.numbers[value]

    def _infer(self, node: ir.Node) -> None:
        """The shapes of a node's results by ONNX, from the shapes of its operands and the integers among them."""
        operands = [operand for operand in node.inputs if operand is not None]
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return
        if any(not _is_static(operand) or operand.dtype is None for operand in operands):
            return
        names = {operand: f"i{index}" for index, operand in enumerate(dict.fromkeys(operands))}
        types, data = {}, {}
        for operand, name in names.items():
            assert operand.dtype is not None
            types[name] = onnx.helper.make_tensor_type_proto(operand.dtype.value, shape_of(operand))
            number = self._number(operand)
            if number is not None:
                data[name] = onnx.numpy_helper.from_array(np.asarray(number))
        proto = onnx.NodeProto(op_type=node.op_type)
        proto.input.extend("" if operand is None else names[operand] for operand in node.inputs)
        proto.output.extend(f"o{index}" if out.name else "" for index, out in enumerate(node.outputs))
        proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
        imports = [onnx.helper.make_opsetid("", self._opset)]
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
        except Exception:  # what ONNX cannot infer stays unknown
            return
        for index, output in enumerate(node.outputs):
            tensor = found[f"o{index}"].tensor_type if f"o{index}" in found else None
            if tensor is not None and tensor.HasField("shape"):
                if output.dtype is None and tensor.elem_type:
                    output.dtype = ir.DataType(tensor.elem_type)
                self._set(
                    output, [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
                )

    def _set(self, output: ir.Value, sizes: list[int | None]) -> None:
        """Sizes that the file or another engine states are kept; a rank that contradicts them is not taken."""
        known = output.shape
        if output.is_graph_output() or (known is not None and len(known) != len(sizes)):
            return
        stated = known or [None] * len(sizes)
        output.shape = ir.Shape(
            [have if isinstance(have, int) else new for have, new in zip(stated, sizes, strict=True)]
        )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    return (value for node in graph for value in node.outputs if value.name != "")


def _is_static(value: ir.Value) -> bool:
    return value.const_value is not None or shape_of(value) is not None


def _has_fixed_inputs(graph: ir.Graph) -> bool:
    return all(_is_static(value) for value in graph.inputs)
