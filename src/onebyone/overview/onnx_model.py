"""The overview of an ONNX model: inputs, operators and weights, and what both conversions change and refuse."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

from onebyone.overview.result import LayerSummary, NetworkOverview
from onebyone.records import by

if TYPE_CHECKING:
    import onnx_ir as ir

_PRODUCTS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)


def overview_of_onnx(model: ir.Model, name: str) -> NetworkOverview:
    """Describe an ONNX model; nothing is run, and the model is not modified.

    `layers` are the nodes with a weight (convolutions and products with a constant operand). Shapes include the batch,
    and free dimensions have their names.

    >>> import onnx_ir as ir
    >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["" : 17]>
    ... net (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,1,1] w = {1,1,1,1,1,1,1,1,1,1,1,1}> {
    ...     y = Conv(x, w) }''')
    >>> o = overview_of_onnx(model, "net.onnx")
    >>> o.inputs, o.operators, [change.kind for change in o.to_linear]
    ((('x', 'N×3×8×8 float32'),), (('Conv', 1),), ['Conv'])
    """
    from onebyone.onnx.convert import convert_model
    from onebyone.onnx.model_rewriting import nodes_of
    from onebyone.onnx_file import bytes_of_weights, fed_inputs, weights_of

    to_conv, to_linear = (convert_model(model, to) for to in ("conv", "linear"))
    nodes = {path: node for path, node, _ in nodes_of(model)}
    converts = {
        **{change.path: "linear" for change in to_linear.changes},
        **{change.path: "conv" for change in to_conv.changes},
    }
    reasons = {r.path: r.reason for conversion in (to_linear, to_conv) for r in conversion.refused}
    weights = list(weights_of(model))
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in model.opset_imports.items())
    return NetworkOverview(
        name=name,
        format=f"ONNX, opset {opsets}",
        inputs=tuple((str(v.name), _shape(v)) for v in fed_inputs(model.graph)),
        outputs=tuple((str(v.name), _shape(v)) for v in model.graph.outputs),
        parameters=sum(prod(tensor.shape.numpy()) for tensor in weights),
        weight_bytes=bytes_of_weights(model),
        dtypes=tuple(sorted({_dtype(tensor.dtype) for tensor in weights})),
        layers=tuple(
            _layer(path, node, converts.get(path, ""), reasons.get(path, ""))
            for path, node in nodes.items()
            if _shape_of_weight(node) is not None
        ),
        operators=tuple(Counter(_operator(node) for node in nodes.values()).most_common()),
        to_conv=to_conv.changes,
        to_linear=to_linear.changes,
        refused=tuple(dict.fromkeys((*to_conv.refused, *to_linear.refused))),
    )


def _layer(path: str, node: ir.Node, converts_to: str, reason: str) -> LayerSummary:
    shape = _shape_of_weight(node)
    assert shape is not None
    sliding = "Conv" in node.op_type and len(shape) > 2
    stride = node.attributes.get("strides")
    group = node.attributes.get("group")
    return LayerSummary(
        path=path,
        kind=_operator(node),
        kernel=tuple(int(n) for n in shape[2:]) if sliding else (),
        stride=tuple(stride.as_ints()) if sliding and stride is not None else (),
        groups=group.as_int() if group is not None else 1,
        parameters=prod(shape),
        converts_to=converts_to,
        reason=reason,
    )


def _shape_of_weight(node: ir.Node) -> tuple[int, ...] | None:
    """The shape of a product's first constant that is not a number; None for other nodes."""
    if node.op_type not in _PRODUCTS:
        return None
    tensors = (_tensor(value) for value in node.inputs if value is not None)
    shapes = (tuple(tensor.shape.numpy()) for tensor in tensors if tensor is not None and tensor.shape)
    return next(shapes, None)


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """An initializer, or what a Constant node holds, as in the bodies of functions."""
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "" or "value" not in node.attributes:
        return value.const_value
    attribute = node.attributes["value"]
    return None if attribute.is_ref() else attribute.as_tensor()


def _operator(node: ir.Node) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type


def _shape(value: ir.Value) -> str:
    dtype = "" if value.dtype is None else _dtype(value.dtype)
    dims = "of unknown rank" if value.shape is None else by(_dimension(d) for d in value.shape)
    return f"{dims} {dtype}".strip()


def _dtype(dtype: ir.DataType) -> str:
    return "string" if dtype.is_string() else str(dtype.numpy())


def _dimension(dimension: Any) -> str:
    return str(dimension if isinstance(dimension, int) else dimension.value or "?")
