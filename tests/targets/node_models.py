"""ONNX models of one node, by operator and the sizes of its data, for checks of one number at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from tests.onnx.models import Array

#: An opset in which every operator of the profiles exists, with 16-bit quantisation.
OPSET = 21
NODE = "the node"
TYPES: dict[str, tuple[int, Any]] = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "int8": (TensorProto.INT8, np.int8),
    "uint8": (TensorProto.UINT8, np.uint8),
    "int16": (TensorProto.INT16, np.int16),
    "uint16": (TensorProto.UINT16, np.uint16),
}
Sizes = Sequence["int | None"]


@dataclass
class Node:
    """The other operands and the attributes of one node, and the element types of its data and its result."""

    operands: list[Array | str | None] = field(default_factory=lambda: ["x"])
    attributes: dict[str, Any] = field(default_factory=dict)
    reads: str = "float32"
    writes: int = TensorProto.FLOAT


def model_of(operator: str, sizes: Sizes, element_type: str = "float32", **settings: Any) -> ir.Model:
    """A model of one node that reads a tensor of these sizes.

    Data of 8 or 16 bits passes a DequantizeLinear first, as in files of quantisers, where the node expects floats.
    """
    node = _MAKERS.get(operator, _unary)(sizes, **settings)
    source = node.reads if node.reads != "float32" else element_type
    quantised = node.reads == "float32" and source.startswith(("int", "uint"))
    floats = "float32" if quantised else source
    nodes, constants, names = [], [], []
    if quantised:
        scale = numpy_helper.from_array(np.asarray(1, np.float32), "scale")
        zero = numpy_helper.from_array(np.asarray(0, TYPES[source][1]), "zero")
        constants += [scale, zero]
        nodes.append(helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["d"], "dequantised"))
    for index, operand in enumerate(node.operands):
        if isinstance(operand, np.ndarray):
            cast = operand.astype(TYPES[floats][1]) if operand.dtype == np.float32 else operand
            constants.append(numpy_helper.from_array(cast, f"c{index}"))
            names.append(f"c{index}")
        else:
            names.append("" if operand is None else "d" if quantised else operand)
    nodes.append(helper.make_node(operator, names, ["y"], NODE, **node.attributes))
    written = TYPES[floats][0] if node.writes == TensorProto.FLOAT else node.writes
    shape = [f"s{axis}" if size is None else size for axis, size in enumerate(sizes)]
    graph = helper.make_graph(
        nodes,
        "one node",
        [helper.make_tensor_value_info("x", TYPES[source][0], shape)],
        [helper.make_tensor_value_info("y", written, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def _zeros(*shape: int, kind: Any = np.float32) -> Array:
    return np.zeros(shape, kind)


def _unary(sizes: Sizes, **attributes: Any) -> Node:
    return Node(attributes=attributes)


def _binary(sizes: Sizes) -> Node:
    return Node(["x", "x"])


def _clip(sizes: Sizes) -> Node:
    return Node(["x", np.asarray(0, np.float32), np.asarray(6, np.float32)])


def convolution(
    sizes: Sizes,
    outputs: int = 8,
    kernel: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    group: int = 1,
    left_out: Sequence[str] = (),
    auto_pad: str | None = None,
    transposed: bool = False,
) -> Node:
    """A convolution of any number of spatial axes with its attributes written out, but for those left out."""
    count = len(sizes) - 2
    kernel = list(kernel or [1] * count)
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": list(strides or [1] * count),
        "pads": list(pads or [0] * 2 * count),
        "dilations": [1] * count,
        "group": group,
    }
    if auto_pad is not None:
        attributes["auto_pad"] = auto_pad
        del attributes["pads"]
    inputs = sizes[1] or 1
    shape = (inputs, outputs // group) if transposed else (outputs, inputs // group)
    written = {name: value for name, value in attributes.items() if name not in left_out}
    return Node(["x", _zeros(*shape, *kernel)], written)


def _pool(sizes: Sizes, **attributes: Any) -> Node:
    return Node(attributes={"kernel_shape": [2] * (len(sizes) - 2)} | attributes)


def product(sizes: Sizes, outputs: int = 8, first: bool = False, matrices: Sequence[int] = ()) -> Node:
    """A MatMul with a constant: the second operand, or the first."""
    if first:
        return Node([_zeros(*matrices, outputs, sizes[-2] or 1), "x"])
    return Node(["x", _zeros(*matrices, sizes[-1] or 1, outputs)])


def gemm(sizes: Sizes, outputs: int = 8, bias: Sequence[int] | None = None, **attributes: Any) -> Node:
    """A Gemm with a constant matrix, and a bias of any shape."""
    inputs = sizes[0 if attributes.get("transA") else -1] or 1
    operands: list[Array | str | None] = ["x", _zeros(inputs, outputs)]
    return Node(operands + ([] if bias is None else [_zeros(*bias)]), attributes)


def _norm(sizes: Sizes) -> Node:
    return Node(["x", np.ones(sizes[-1] or 1, np.float32)], {"axis": -1})


def _with_integers(values: Callable[[Sizes], Sequence[int]], **attributes: Any) -> Callable[..., Node]:
    return lambda sizes: Node(["x", np.asarray(values(sizes), np.int64)], attributes)


def _quantise(sizes: Sizes) -> Node:
    return Node(["x", np.asarray(1, np.float32), np.asarray(0, np.int8)], writes=TensorProto.INT8)


def _dequantise(sizes: Sizes) -> Node:
    return Node(["x", np.asarray(1, np.float32)], reads="int8")


def _integer_product(sizes: Sizes) -> Node:
    return Node(["x", _zeros(sizes[-1] or 1, 8, kind=np.int8)], reads="int8", writes=TensorProto.INT32)


def _integer_convolution(sizes: Sizes) -> Node:
    weight = _zeros(8, sizes[1] or 1, 1, 1, kind=np.int8)
    return Node(["x", weight], {"kernel_shape": [1, 1]}, reads="int8", writes=TensorProto.INT32)


def _linear_quantised(weight: Callable[[Sizes], Array]) -> Callable[..., Node]:
    def make(sizes: Sizes) -> Node:
        scale, zero = np.asarray(1, np.float32), np.asarray(0, np.int8)
        operands: list[Array | str | None] = ["x", scale, zero, weight(sizes), scale, zero, scale, zero]
        return Node(operands, reads="int8", writes=TensorProto.INT8)

    return make


def _choice(sizes: Sizes) -> Node:
    """An If whose branches read x."""
    branches = {}
    for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg")):
        result = helper.make_tensor_value_info(f"{name} y", TensorProto.FLOAT, list(sizes))
        nodes = [helper.make_node(operator, ["x"], [f"{name} y"], name)]
        branches[name] = helper.make_graph(nodes, name, [], [result])
    return Node([np.asarray(True)], branches)


_MAKERS: dict[str, Callable[..., Node]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), _binary),
    "Clip": _clip,
    "Conv": convolution,
    "ConvTranspose": lambda sizes: convolution(sizes, transposed=True),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    "MatMul": product,
    "Gemm": gemm,
    "LayerNormalization": _norm,
    "Squeeze": lambda sizes: Node(),
    "Unsqueeze": _with_integers(lambda sizes: [-1]),
    "Expand": _with_integers(lambda sizes: [size or 1 for size in sizes]),
    "Reshape": _with_integers(lambda sizes: [sizes[0] or 1, -1]),
    "Slice": lambda sizes: Node(["x", *(np.asarray([n]) for n in (0, 1, 1))]),
    "Split": _with_integers(lambda sizes: [sizes[1] or 1], axis=1),
    "Concat": lambda sizes: Node(["x", "x"], {"axis": 1}),
    "Transpose": lambda sizes: Node(attributes={"perm": [0, *reversed(range(1, len(sizes)))]}),
    "Softmax": lambda sizes: Node(attributes={"axis": -1}),
    "Einsum": lambda sizes: Node(["x", "x"], {"equation": "nchw,nchw->nchw"}),
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "MatMulInteger": _integer_product,
    "ConvInteger": _integer_convolution,
    "QLinearMatMul": _linear_quantised(lambda sizes: _zeros(sizes[-1] or 1, 8, kind=np.int8)),
    "QLinearConv": _linear_quantised(lambda sizes: _zeros(8, sizes[1] or 1, 1, 1, kind=np.int8)),
    "If": _choice,
}
