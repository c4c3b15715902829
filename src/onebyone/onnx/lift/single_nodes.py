"""Single nodes: the types and shapes of their results, and their results on arrays, for any opset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onebyone.lifting.values import Cannot
from onebyone.onnx.evaluators import NotRunnable, run_reference
from onebyone.records import first_line

Array = np.ndarray[Any, Any]
#: The size of each axis: a number, a name, or None where it is not known.
Sizes = Sequence[int | str | None]

#: Constants of more elements are not passed to shape inference: no operator's shape depends on them.
_MOST_SHAPE_ELEMENTS = 4096
#: Operators whose result has as many axes as one operand, a shape, has elements; and that operand's index.
_RANK_IS_A_LENGTH = {"Reshape": 1, "ConstantOfShape": 0}


class Operand:
    """What is known of one operand of a node: its element type, its sizes, and its numbers if it is a constant."""

    def __init__(self, dtype: ir.DataType, sizes: Sizes, numbers: Array | None = None) -> None:
        self.dtype, self.sizes, self.numbers = dtype, sizes, numbers


class DoesNotFit(Cannot):
    """Raised where a node does not take its operands' shapes."""


def infer_outputs(
    node: ir.Node, operands: Mapping[str, Operand], opset: int
) -> list[tuple[ir.DataType, tuple[int | str | None, ...]]]:
    """The element type and sizes of each output of a node.

    Raises:
        Cannot: the operator is not in the opset.
        DoesNotFit: the operands do not fit it.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError as error:
        where = f"opset {opset}" if not node.domain else f"the domain {node.domain}"
        raise Cannot(f"no operator of {where} that ONNX defines") from error
    types = {
        name: helper.make_tensor_type_proto(int(operand.dtype), list(operand.sizes))
        for name, operand in operands.items()
    }
    data = {
        name: numpy_helper.from_array(np.asarray(operand.numbers), name)
        for name, operand in operands.items()
        if operand.numbers is not None and operand.numbers.size <= _MOST_SHAPE_ELEMENTS
    }
    imports = [helper.make_opsetid(node.domain, opset)]
    proto = ir.serde.serialize_node(node)
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
    except Exception as error:  # shape inference has errors of several kinds
        raise DoesNotFit(first_line(error)) from error
    results: list[tuple[ir.DataType, tuple[int | str | None, ...]]] = []
    for output in node.outputs:
        proto_type = found.get(str(output.name))
        if proto_type is None or not proto_type.HasField("tensor_type"):
            results.append((ir.DataType.UNDEFINED, ()))
            continue
        tensor = proto_type.tensor_type
        sizes = tuple(_size(dimension) for dimension in tensor.shape.dim)
        if not tensor.HasField("shape") and node.op_type in _RANK_IS_A_LENGTH and node.domain == "":
            sizes = _unknown_sizes(node, operands)
        results.append((ir.DataType(tensor.elem_type), sizes))
    return results


def _unknown_sizes(node: ir.Node, operands: Mapping[str, Operand]) -> tuple[None, ...]:
    """One unknown size per axis of a result whose shape is computed: the number of axes is the length of the shape."""
    shape = node.inputs[_RANK_IS_A_LENGTH[node.op_type]]
    (length,) = (None,) if shape is None else operands[str(shape.name)].sizes
    return (None,) * length if isinstance(length, int) else ()


def _size(dimension: Any) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) if dimension.HasField("dim_param") and dimension.dim_param else None


def evaluate(node: ir.Node, operands: Mapping[str, Array], opset: int) -> list[Array]:
    """The outputs of a node on arrays by name, by ONNX's reference implementation.

    Raises:
        Cannot: the reference implementation cannot compute it.
    """
    proto = ir.serde.serialize_node(node)
    inputs = [
        helper.make_tensor_value_info(name, int(ir.DataType.from_numpy(array.dtype)), array.shape)
        for name, array in operands.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(str(value.name)) for value in node.outputs]
    graph = helper.make_graph([proto], "node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])
    try:
        return run_reference(model, operands)
    except NotRunnable as error:
        raise Cannot(str(error)) from error
