"""Describe the nodes of an ONNX model for the check of targets."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import onnx_ir as ir

from onebyone.onnx import linear_products, to_matrix_product
from onebyone.onnx.constant_values import is_constant, shape_of, sizes_of
from onebyone.onnx.model_rewriting import nodes_of
from onebyone.onnx.window_settings import GLOBAL_POOLS, SLIDING, window_settings
from onebyone.targets import LayerNumbers, NodeDescription, TensorDescription
from onebyone.targets.description import INPUT

#: Attributes that hold graphs or tensors are not described.
_PLAIN = (
    ir.AttributeType.INT,
    ir.AttributeType.INTS,
    ir.AttributeType.FLOAT,
    ir.AttributeType.FLOATS,
    ir.AttributeType.STRING,
)
#: What compilers compute from shapes before the model runs: a node whose results come from shapes alone.
_FROM_SHAPES = frozenset(["Shape", "Size"])


def describe(model: ir.Model) -> Iterator[tuple[NodeDescription, ir.Node | None, int]]:
    """The inputs and nodes of a prepared model (see `convert.prepared`), each with its node and opset.

    Left out are nodes that compute from constants or from shapes alone, which compilers fold.
    """
    initializers = {id(value) for value in model.graph.initializers.values()}
    for value in model.graph.inputs:
        if id(value) not in initializers:
            yield NodeDescription(str(value.name), INPUT, INPUT, (), (tensor_of(value),)), None, 0
    from_shapes: set[int] = set()
    for path, node, opset in nodes_of(model):
        if node.op_type == "Constant" or all(is_constant(value) for value in node.outputs):
            continue
        moving = [value for value in node.inputs if value is not None and not is_constant(value)]
        if node.op_type in _FROM_SHAPES or (moving and all(id(value) in from_shapes for value in moving)):
            from_shapes.update(id(value) for value in node.outputs)
            continue
        yield describe_node(path, node), node, opset


def describe_node(path: str, node: ir.Node) -> NodeDescription:
    """One node with its tensors, its attributes as they are written, and its numbers if it is a layer."""
    operator = node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"
    attributes = {
        name: _plain(attribute.value)
        for name, attribute in node.attributes.items()
        if attribute.type in _PLAIN and not attribute.is_ref()
    }
    return NodeDescription(
        path,
        operator,
        operator,
        tuple(None if value is None else tensor_of(value) for value in node.inputs),
        tuple(tensor_of(value) for value in node.outputs if value.name),
        attributes,
        _layer(node),
    )


def tensor_of(value: ir.Value) -> TensorDescription:
    """A value with its sizes and element type, as far as they are known."""
    constant = is_constant(value)
    shape = shape_of(value) if constant else None
    sizes = shape if shape is not None else sizes_of(value)
    return TensorDescription(
        str(value.name), None if sizes is None else tuple(sizes), _element_type(value), constant
    )


def _element_type(value: ir.Value) -> str:
    """The type of a value; of a dequantised one, the type that it is stored in, which compilers keep."""
    producer = value.producer()
    if producer is not None and (producer.domain, producer.op_type) == ("", "DequantizeLinear"):
        value = producer.inputs[0] or value
    return value.dtype.numpy().name if value.dtype is not None and value.dtype.name != "STRING" else ""


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _layer(node: ir.Node) -> LayerNumbers | None:
    if node.domain == "" and node.op_type in GLOBAL_POOLS:
        data = node.inputs[0]
        sizes = None if data is None else sizes_of(data)
        if sizes is None:
            return None
        ones, zeros = (1,) * len(sizes[2:]), (0,) * (2 * len(sizes[2:]))
        return LayerNumbers("pool", sizes[1], sizes[1], tuple(sizes[2:]), ones, zeros, ones)
    if node.domain == "" and node.op_type in SLIDING:
        return _window(node)
    product = linear_products.read_product(node)
    if isinstance(product, linear_products.LinearProduct):
        groups = prod(product.sizes[label] or 1 for label in product.grouped)
        inputs, outputs = (
            groups * prod(product.sizes[label] or 1 for label in labels)
            for labels in (product.contracted, product.features)
        )
        return LayerNumbers("linear", inputs, outputs, groups=groups, is_linear=True)
    if isinstance(product, str) and any(is_constant(value) for value in node.inputs[:2]):
        return LayerNumbers("linear", is_linear=True)
    return None


def _window(node: ir.Node) -> LayerNumbers | None:
    settings, data = window_settings(node), node.inputs[0]
    if settings is None:
        return None
    sizes = None if data is None else sizes_of(data)
    inputs = outputs = sizes[1] if sizes and len(sizes) > 1 else None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = None if weight is None else shape_of(weight)
    if shape is not None and node.op_type == "Conv":
        inputs, outputs = shape[1] * settings.group, shape[0]
    elif shape is not None:
        inputs, outputs = shape[0], shape[1] * settings.group
    is_linear = isinstance(to_matrix_product.read_convolution(node), to_matrix_product.LinearConvolution)
    form = "conv" if node.op_type in ("Conv", "ConvTranspose") else "pool"
    return LayerNumbers(
        form,  # type: ignore[arg-type]
        inputs,
        outputs,
        settings.kernel,
        settings.strides,
        settings.pads or (),
        settings.dilations,
        settings.group,
        is_linear,
    )
