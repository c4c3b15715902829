"""Shapes of all values of a graph; where its inputs have fixed sizes, they are worked out node by node in one pass.

Exporters write the sizes of a fixed image as Shape, Gather, Div, Mod, ConstantOfShape and Concat, which the inference
engines of `shapes` follow only in part: one size that they miss hides all that depend on it. Here each node that
computes integers from known ones is run by the ONNX reference implementation, and the shapes of the others are
inferred by ONNX with the integers that they read. Where that gives every shape, the engines, which take most of the
time of a conversion, are not needed.
"""

from __future__ import annotations

from math import prod
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onebyone.onnx.computed_constants import run_operator
from onebyone.onnx.constant_values import (
    Array,
    NotRewritable,
    array_of,
    is_constant,
    mark_constants,
    shape_of,
    sizes_of,
)
from onebyone.onnx.shapes import infer_shapes

#: The most elements of a tensor whose numbers are followed: shapes, paddings, and the bounds of slices.
MOST_NUMBERS = 64
#: Engines compute the sizes of the results of these operators, and of those with this attribute, differently: they are
#: asked, so that only what they agree on is taken.
_DISPUTED_OPERATORS, _DISPUTED_ATTRIBUTE = frozenset(["Resize", "Upsample"]), "ceil_mode"
#: The sizes of a tensor, None for those that are not known, and the type of its elements.
SizesAndType: TypeAlias = "tuple[tuple[int | None, ...], ir.DataType | None]"


def fill_shapes(model: ir.Model) -> StaticSizes:
    """Mark the constants of a model, and fill in the shapes and types of all values as far as they can be inferred.

    Returns the walk over the main graph, which knows the numbers that follow from inputs of fixed size.

    Raises:
        MissingExtra: onnx-shape-inference is needed, and not installed.
    """
    mark_constants(model)
    sizes = StaticSizes(model)
    if not sizes.infer_everything():
        infer_shapes(model)
        sizes = StaticSizes(model)
        sizes.fill_in()
    return sizes


class StaticSizes:
    """One walk over the main graph of a model whose constants are marked; nothing if an input's size is open.

    Attributes:
        numbers: the contents of small tensors of integers and truth values that follow from fixed sizes.
    """

    def __init__(self, model: ir.Model) -> None:
        self.numbers: dict[ir.Value, Array] = {}
        self._model, self._graph = model, model.graph
        self._opset = model.opset_imports.get("", 1)
        self._has_fixed_inputs = all(_is_static(value) for value in model.graph.inputs)
        self._inferred: dict[ir.Value, SizesAndType] = {}
        self._stated_too = False
        self._results: dict[tuple[object, ...], Array | None] = {}

    def infer_everything(self) -> bool:
        """Infer every shape from the inputs; whether that succeeds. Otherwise the model stays as it was.

        It fails where one shape is not known, or differs from the one that the file states.
        """
        if not self._has_fixed_inputs or self._model.functions:
            return False
        for node in self._graph:
            if node.op_type in _DISPUTED_OPERATORS or node.attributes.get_int(_DISPUTED_ATTRIBUTE):
                return False
            self._visit(node)
            if not all(self._is_confirmed(output) for output in node.outputs if output.name):
                return False
        self._set_shapes()
        return True

    def fill_in(self) -> None:
        """Infer the sizes that are not known; those that are known stay."""
        if not self._has_fixed_inputs:
            return
        self._stated_too = True
        for node in self._graph:
            self._visit(node)
        self._set_shapes()

    def fold(self) -> None:
        """Replace the integers that the main graph computes from fixed sizes by constants."""
        for value, array in self.numbers.items():
            if value.producer() is None or value.is_graph_output() or is_constant(value) or not value.uses():
                continue
            tensor = ir.tensor(array)
            name = f"{value.name}/number"
            if name not in self._graph.initializers:
                constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype))
                constant.shape, constant.const_value = ir.Shape(array.shape), tensor
                self._graph.register_initializer(constant)
                value.replace_all_uses_with(constant)

    def _set_shapes(self) -> None:
        for value, (sizes, dtype) in self._inferred.items():
            if value.dtype is None and dtype is not None:
                value.dtype = dtype
            value.shape = ir.Shape(sizes)

    # -- what is known of a value

    def _known(self, value: ir.Value) -> SizesAndType | None:
        """The sizes and the type of a value; None where one of them is not known."""
        sizes: tuple[int | None, ...]
        dtype: ir.DataType | None
        if value in self._inferred:
            sizes, dtype = self._inferred[value]
        elif self._stated_too or value.producer() is None or value.const_value is not None:
            stated = shape_of(value)
            if stated is None:
                return None
            sizes, dtype = stated, value.dtype
        else:
            return None
        return None if None in sizes or dtype is None else (sizes, dtype)

    def _is_confirmed(self, output: ir.Value) -> bool:
        """Whether all sizes and the type were inferred, and are what the file states."""
        known = self._known(output)
        if known is None:
            return False
        sizes, dtype = known
        stated = sizes_of(output)
        same = stated is None or (
            len(stated) == len(sizes) and all(a in (None, b) for a, b in zip(stated, sizes, strict=True))
        )
        return same and output.dtype in (None, dtype)

    def _number(self, value: ir.Value) -> Array | None:
        if value in self.numbers:
            return self.numbers[value]
        known = self._known(value)
        small = known is not None and prod(size or 0 for size in known[0]) <= MOST_NUMBERS
        if not small or not is_constant(value):
            return None
        try:
            self.numbers[value] = array_of(value)
        except NotRewritable:
            return None
        return self.numbers[value]

    # -- one node

    def _visit(self, node: ir.Node) -> None:
        has_graph = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        if node.domain == "" and not has_graph:
            if any(self._known(output) is None for output in node.outputs):
                self._infer(node)
            self._compute(node)

    def _compute(self, node: ir.Node) -> None:
        """The numbers in a node's result."""
        operands = [operand for operand in node.inputs if operand is not None]
        if len(node.outputs) != 1 or not operands:
            return
        output = node.outputs[0]
        if node.op_type == "Shape":
            known = self._known(operands[0])
            if known is not None:
                ends = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(known[0]))
                self._record(output, np.asarray(known[0][slice(*ends)], dtype=np.int64))
            return
        arrays = [self._number(operand) for operand in operands]
        if all(array is not None for array in arrays):
            array = self._result(node, [array for array in arrays if array is not None])
            if array is not None and array.dtype.kind in "iub" and array.size <= MOST_NUMBERS:
                self._record(output, array)

    def _result(self, node: ir.Node, arrays: list[Array]) -> Array | None:
        """The result of a node; blocks of a network repeat the same computation of sizes, which is run once."""
        attributes = (ir.serde.serialize_attribute(a).SerializeToString() for a in node.attributes.values())
        missing = tuple(operand is None for operand in node.inputs)
        operands = ((array.dtype.str, array.shape, array.tobytes()) for array in arrays)
        key = (node.op_type, *attributes, missing, *operands)
        if key not in self._results:
            self._results[key] = run_operator(node, self._opset, arrays)
        return self._results[key]

    def _record(self, output: ir.Value, array: Array) -> None:
        self.numbers[output] = array
        self._inferred[output] = array.shape, ir.DataType.from_numpy(array.dtype)

    def _infer(self, node: ir.Node) -> None:
        """The shapes of a node's results by ONNX, from the shapes of its operands and the integers among them."""
        names: dict[ir.Value, str] = {}
        types, data = {}, {}
        for operand in node.inputs:
            if operand is None or operand in names:
                continue
            known = self._known(operand)
            if known is None or known[1] is None:
                return
            names[operand] = name = f"i{len(names)}"
            types[name] = onnx.helper.make_tensor_type_proto(known[1].value, known[0])
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
                sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
                self._add(output, sizes, ir.DataType(tensor.elem_type) if tensor.elem_type else None)

    def _add(self, output: ir.Value, sizes: list[int | None], dtype: ir.DataType | None) -> None:
        """Add what was inferred. Where the file or another engine is asked too, a known size and type is kept, and a
        rank that contradicts them is not taken."""
        stated = sizes_of(output) if self._stated_too else None
        if stated is not None and len(stated) != len(sizes):
            return
        if stated is not None:
            sizes = [new if have is None else have for have, new in zip(stated, sizes, strict=True)]
        self._inferred[output] = tuple(sizes), (output.dtype if self._stated_too else None) or dtype


def _is_static(value: ir.Value) -> bool:
    return value.const_value is not None or shape_of(value) is not None
