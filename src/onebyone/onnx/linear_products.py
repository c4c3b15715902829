"""Recognise products with a constant weight: MatMul, Gemm, Einsum, and the fused forms of ONNX Runtime.

Every such product is read into one form, that of an Einsum with two operands: labels for the axes of the data, of the
weight and of the output. A label is

- contracted: in data and weight, not in the output (the input channels);
- grouped: in all three (a batch of weights, the groups of a convolution);
- a feature: in weight and output (the output channels);
- free: in data and output (batch and positions).

What cannot be read so is a reason, as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import onnx_ir as ir

from onebyone.onnx.constant_values import (
    call_argument,
    is_constant,
    replaceable,
    shape_of,
    sizes_of,
    unknown_rank,
)
from onebyone.onnx.einsum_equations import linear_terms
from onebyone.onnx.quantisation import MICROSOFT, Quantisation

#: The element types for which ONNX defines Conv.
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

Labels: TypeAlias = "tuple[str, ...]"
WeightAxes: TypeAlias = "tuple[str | None, ...]"


@dataclass(frozen=True, eq=False)
class LinearProduct:
    """A product of `data` with the constant `weight`, as an Einsum, with what is done to its result.

    The result is `scale · einsum(data, weight) + bias_scale · bias`, then `activation`. In `weight_axes`, None marks an
    axis of size one that broadcasts; `bias` is any value that broadcasts to the output. `quantisation` has scales and
    zero points where the operator multiplies quantised numbers.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    data_labels: Labels
    weight_axes: WeightAxes
    output_labels: Labels
    sizes: dict[str, int | None]
    scale: float = 1.0
    bias: ir.Value | None = None
    bias_scale: float = 1.0
    activation: tuple[str, dict[str, float]] | None = None
    quantisation: Quantisation | None = None
    #: Activations and a QuantizeLinear that stay directly behind the product; see `quantised_groups`.
    quantise: tuple[ir.Node, ...] = ()
    #: Nodes that the converted form replaces, the product first.
    nodes: tuple[ir.Node, ...] = field(default=())

    @property
    def weight_labels(self) -> Labels:
        """The labels of the weight's axes, without those of size one that broadcast."""
        return tuple(label for label in self.weight_axes if label is not None)

    @property
    def contracted(self) -> Labels:
        """Input channels, in the order of the weight's axes."""
        return tuple(x for x in self.weight_labels if x in self.data_labels and x not in self.output_labels)

    @property
    def grouped(self) -> Labels:
        """Axes along which data and weight are multiplied slice by slice."""
        return tuple(x for x in self.weight_labels if x in self.data_labels and x in self.output_labels)

    @property
    def features(self) -> Labels:
        """Output channels, in the order of the output's axes."""
        return tuple(x for x in self.output_labels if x not in self.data_labels)

    @property
    def free(self) -> Labels:
        """Batch and positions, in the order of the data's axes."""
        return tuple(x for x in self.data_labels if x in self.output_labels and x not in self.weight_labels)


Reading: TypeAlias = "LinearProduct | str"


def read_product(node: ir.Node) -> Reading | None:
    """Read a node as a product with a constant; a reason where it cannot be; None where it is none.

    A product of two values that both depend on the input is none. One whose weight is an initializer that is also a
    graph input is refused with a reason.
    """
    reader = _READERS.get((node.domain, node.op_type))
    if reader is None:
        return _quantised(node)
    if len(node.inputs) < 2:
        return None
    first, second = node.inputs[0], node.inputs[1]
    constant = (is_constant(first), is_constant(second))
    reason = _operands_reason((first, second))
    if reason is not None or not any(constant):
        return reason
    if first is None or second is None:
        return None
    argument = call_argument(node)
    if argument is not None:
        return f"it {argument}"
    data, weight = (second, first) if constant[0] else (first, second)
    if data.dtype is not None and data.dtype not in FLOATS:
        return f"its element type {data.dtype.name.lower()} has no Conv in ONNX"
    if data.shape is None:
        return unknown_rank(data)
    if shape_of(weight) is None:
        return f"the shape of its weight {weight.name!r} is not known"
    read = reader(node, data, weight, constant[0])
    return read if isinstance(read, str) else _with_bias(read)


#: Products of quantised numbers, and which of their inputs are the two operands.
_QUANTISED = {
    ("", "QLinearMatMul"): (0, 3),
    ("", "MatMulInteger"): (0, 1),
    (MICROSOFT, "QGemm"): (0, 3),
    (MICROSOFT, "MatMulIntegerToFloat"): (0, 1),
    (MICROSOFT, "DynamicQuantizeMatMul"): (0, 1),
    (MICROSOFT, "MatMulNBits"): (0, 1),
    (MICROSOFT, "QAttention"): (0, 1),
}


def _quantised(node: ir.Node) -> str | None:
    """A reason for a product of quantised numbers with a constant; None for any other node."""
    operands = _QUANTISED.get((node.domain, node.op_type))
    if operands is None:
        return None
    values = [node.inputs[index] for index in operands if index < len(node.inputs)]
    reason = _operands_reason(values)
    if reason is not None:
        return reason
    if not any(is_constant(value) for value in values):
        return None
    return f"{node.op_type} multiplies quantised numbers; no operator of ONNX is the same convolution"


def _operands_reason(values: Sequence[ir.Value | None]) -> str | None:
    """Why stored operands give no layer: both are constants, or one may be replaced by a caller; else None."""
    constant = [is_constant(value) for value in values]
    if all(constant):
        return "both operands are constants, so that nothing depends on the input"
    behind = next((reason for reason in map(replaceable, values) if reason), None)
    return None if any(constant) or behind is None else f"its weight {behind}"


def _sizes(value: ir.Value) -> list[int | None]:
    sizes = sizes_of(value)
    assert sizes is not None
    return sizes


def _weight_shape(weight: ir.Value) -> tuple[int, ...]:
    shape = shape_of(weight)
    assert shape is not None
    return shape


def _product(
    node: ir.Node,
    data: ir.Value,
    weight: ir.Value,
    labels: tuple[Labels, WeightAxes, Labels],
    **more: object,
) -> Reading:
    """Put a product together, with the sizes of its labels checked against each other."""
    if 0 in _weight_shape(weight):
        return f"its weight has shape {_weight_shape(weight)}: nothing to multiply"
    data_labels, weight_axes, output_labels = labels
    sizes: dict[str, int | None] = dict(zip(data_labels, _sizes(data), strict=True))
    for label, size in zip(weight_axes, _weight_shape(weight), strict=True):
        if label is None:
            continue
        if sizes.get(label, size) not in (None, size):
            return f"its weight has {size} values along an axis on which the data has {sizes[label]}"
        sizes[label] = size
    return LinearProduct(node, data, weight, data_labels, weight_axes, output_labels, sizes, **more)  # type: ignore[arg-type]


def _matmul(node: ir.Node, data: ir.Value, weight: ir.Value, weight_first: bool) -> Reading:
    return read_matrix_product(node, data, weight, weight_first, (False, False), 1.0)


def _fused_matmul(node: ir.Node, data: ir.Value, weight: ir.Value, weight_first: bool) -> Reading:
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return "it transposes batch axes (transBatchA, transBatchB)"
    flags = (bool(node.attributes.get_int("transA", 0)), bool(node.attributes.get_int("transB", 0)))
    scale = node.attributes.get_float("alpha", 1.0)
    return read_matrix_product(node, data, weight, weight_first, flags, scale)


def read_matrix_product(
    node: ir.Node,
    data: ir.Value,
    weight: ir.Value,
    weight_first: bool,
    transposed: tuple[bool, bool],
    scale: float,
) -> Reading:
    """A product as NumPy's matmul defines it, each operand transposed in its last two axes on request."""
    ranks = len(_sizes(data)), len(_weight_shape(weight))
    first, second = (ranks[1], ranks[0]) if weight_first else ranks
    if first == 0 or second == 0:
        return "an operand has no axis"
    left = _matrix_labels(first, "r", "k", transposed[0])
    right = _matrix_labels(second, "k", "c", transposed[1]) if second > 1 else ["k"]
    left = left if first > 1 else ["k"]
    data_labels, axes = (right, left) if weight_first else (left, right)
    data_sizes = dict(zip(data_labels, _sizes(data), strict=True))
    weight_axes: list[str | None] = []
    for label, size in zip(axes, _weight_shape(weight), strict=True):
        broadcast = label in data_labels and label.startswith("b") and size == 1
        weight_axes.append(None if broadcast else label)
        if not broadcast and label in data_labels and label != "k" and data_sizes[label] != size:
            known = data_sizes[label]
            what = "of unknown size" if known is None else f"of size {known}"
            return f"its weight has a batch axis of size {size} where the data has one {what}"
    batch = sorted({x for x in (*data_labels, *axes) if x.startswith("b")}, key=lambda x: -int(x[1:]))
    output = (*batch, *(["r"] if first > 1 else []), *(["c"] if second > 1 else []))
    labels = (tuple(data_labels), tuple(weight_axes), output)
    return _product(node, data, weight, labels, scale=scale, nodes=(node,))


def _matrix_labels(rank: int, row: str, column: str, transposed: bool) -> list[str]:
    """Labels of one operand: batch axes counted from the last, then rows and columns."""
    batch = [f"b{i}" for i in reversed(range(rank - 2))]
    return [*batch, column, row] if transposed else [*batch, row, column]


def _gemm(node: ir.Node, data: ir.Value, weight: ir.Value, weight_first: bool) -> Reading:
    flags = (bool(node.attributes.get_int("transA", 0)), bool(node.attributes.get_int("transB", 0)))
    left = tuple(_matrix_labels(2, "r", "k", flags[0]))
    right = tuple(_matrix_labels(2, "k", "c", flags[1]))
    labels = ((right, left) if weight_first else (left, right)) + (("r", "c"),)
    if len(_sizes(data)) != 2 or len(_weight_shape(weight)) != 2:
        return "Gemm needs two operands of two axes"
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes.get_float("beta", 1.0)
    return _product(
        node,
        data,
        weight,
        labels,
        scale=node.attributes.get_float("alpha", 1.0),
        bias=addend,
        bias_scale=beta,
        nodes=(node,),
    )


def _fused_gemm(node: ir.Node, data: ir.Value, weight: ir.Value, weight_first: bool) -> Reading:
    read = _gemm(node, data, weight, weight_first)
    if isinstance(read, str):
        return read
    name = node.attributes.get_string("activation", "")
    if name not in _ACTIVATIONS:
        return f"its activation {name!r} is not one of {', '.join(_ACTIVATIONS)}"
    attributes = {
        target: node.attributes.get_float(f"activation_{target}", 0.0)
        for target in _ACTIVATIONS[name]
        if f"activation_{target}" in node.attributes
    }
    return replace(read, activation=(name, attributes))


#: Activations of FusedGemm that are operators of ONNX, with their attributes.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


def _einsum(node: ir.Node, data: ir.Value, weight: ir.Value, weight_first: bool) -> Reading:
    if len(node.inputs) != 2:
        return f"its equation has {len(node.inputs)} operands; two were expected"
    ranks = len(_sizes(data)), len(_weight_shape(weight))
    terms = linear_terms(node.attributes.get_string("equation", ""), ranks[::-1] if weight_first else ranks)
    if isinstance(terms, str):
        return terms
    left, right, result = terms
    data_term, weight_term = (right, left) if weight_first else (left, right)
    return _product(node, data, weight, (tuple(data_term), tuple(weight_term), tuple(result)), nodes=(node,))


def _with_bias(product: LinearProduct) -> LinearProduct:
    """Take in an Add behind the product where its other operand is a bias, and drop an addend that is not one."""
    output = product.node.outputs[0]
    if product.bias is not None or product.activation is not None or output.is_graph_output():
        return product
    users = list(output.uses())
    if len(users) != 1:
        return product
    add, index = users[0].node, users[0].idx
    if add.op_type != "Add" or add.domain != "" or add.graph is not product.node.graph:
        return product
    other = add.inputs[1 - index]
    if other is None or other is output or not is_constant(other):
        return product
    candidate = replace(product, bias=other, bias_scale=1.0, nodes=(product.node, add))
    return candidate if bias_shape(candidate) is not None else product


def bias_shape(product: LinearProduct) -> tuple[int, ...] | None:
    """The shape of the bias along the output's axes, from the left, ones where it broadcasts.

    None where it is not a bias: it varies along a batch or position axis, or makes the output larger.
    """
    if product.bias is None or not is_constant(product.bias):
        return None
    shape = shape_of(product.bias)
    labels = product.output_labels
    if shape is None or len(shape) > len(labels):
        return None
    full = (1,) * (len(labels) - len(shape)) + shape
    fixed = {*product.features, *product.grouped}
    for label, size in zip(labels, full, strict=True):
        if size != 1 and (label not in fixed or size != product.sizes[label]):
            return None
    return full


_READERS: dict[tuple[str, str], Callable[[ir.Node, ir.Value, ir.Value, bool], Reading]] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Einsum"): _einsum,
    (MICROSOFT, "FusedMatMul"): _fused_matmul,
    (MICROSOFT, "FusedGemm"): _fused_gemm,
}
