"""Describe the nodes of an exported program for the check of targets, by the ONNX operators that they become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from onebyone.layout.weight_products import WeightProduct
from onebyone.pytorch.graph.constants import constant_nodes
from onebyone.pytorch.graph.nodes import argument, graph_values, module_path, operator_name, tensor_value
from onebyone.pytorch.graph.product_matching import ProductMatcher
from onebyone.targets import LayerNumbers, NodeDescription, TensorDescription
from onebyone.targets.description import INPUT

#: Aten operators by the ONNX operator that exporters write for them. Others are described as `aten.NAME`.
ONNX_NAMES: dict[str, str] = {
    "addmm": "Gemm",
    **dict.fromkeys(["mm", "matmul", "bmm", "baddbmm", "mv", "dot"], "MatMul"),
    "einsum": "Einsum",
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "convolution"], "Conv"),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], "ConvTranspose"),
    **dict.fromkeys(["max_pool1d", "max_pool2d", "max_pool3d"], "MaxPool"),
    **dict.fromkeys(["avg_pool1d", "avg_pool2d", "avg_pool3d"], "AveragePool"),
    **dict.fromkeys(["batch_norm", "_native_batch_norm_legit_no_training"], "BatchNormalization"),
    **dict.fromkeys(["layer_norm", "native_layer_norm"], "LayerNormalization"),
    **dict.fromkeys(["group_norm", "native_group_norm"], "GroupNormalization"),
    "instance_norm": "InstanceNormalization",
    "rms_norm": "RMSNormalization",
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "unflatten", "flatten"], "Reshape"),
    **dict.fromkeys(
        ["permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "swapaxes"], "Transpose"
    ),
    "squeeze": "Squeeze",
    "unsqueeze": "Unsqueeze",
    "expand": "Expand",
    "cat": "Concat",
    **dict.fromkeys(["slice", "narrow"], "Slice"),
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "unbind"], "Split"),
    **dict.fromkeys(["select", "embedding", "index_select"], "Gather"),
    **dict.fromkeys(["softmax", "_softmax"], "Softmax"),
    "gelu": "Gelu",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "mean": "ReduceMean",
    "sum": "ReduceSum",
    "clamp": "Clip",
    **{
        name: name.capitalize()
        for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "erf", "exp", "sqrt")
    },
    "reciprocal": "Reciprocal",
}
#: Operators that exporters leave out.
NOT_EXPORTED = frozenset(
    [
        "contiguous",
        "clone",
        "detach",
        "alias",
        "lift_fresh_copy",
        "dropout",
        "feature_dropout",
        "getitem",
        "identity",
    ]
)


def describe_program(program: ExportedProgram) -> Iterator[NodeDescription]:
    """The inputs and the operators of a program, whose products with weights are in functional form.

    Left out are operators that compute from constants alone, and those that exporters leave out.
    """
    matcher = ProductMatcher.of(program, graph_values(program.graph))
    constant = constant_nodes(program)
    user_inputs = set(program.graph_signature.user_inputs)
    seen: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs and tensor_value(node) is not None:
            yield NodeDescription(node.name, INPUT, INPUT, (), (_tensor(node, False),))
        if node.op != "call_function" or node in constant or operator_name(node) in NOT_EXPORTED:
            continue
        if tensor_value(node) is None and not isinstance(node.meta.get("val"), list | tuple):
            continue
        layer = _layer(node, matcher)
        shown = f"aten.{operator_name(node)}"
        path = _path(node, layer is not None)
        seen[path] = seen.get(path, 0) + 1
        yield NodeDescription(
            path if seen[path] == 1 else f"{path}#{seen[path]}",
            _onnx_name(node),
            shown,
            tuple(_tensor(n, n in constant) for n in node.all_input_nodes if tensor_value(n) is not None),
            tuple(_outputs(node)),
            _attributes(node, layer),
            layer,
        )


def _path(node: Node, is_layer: bool) -> str:
    """The module of a layer, as conversions name it; for other operators also the node."""
    path = module_path(node)
    return path if is_layer and path else ".".join(filter(None, [path, node.name]))


def _onnx_name(node: Node) -> str:
    name = operator_name(node)
    if name == "linear":
        value = tensor_value(node)
        return "Gemm" if value is not None and value.dim() == 2 else "MatMul"
    if name.startswith("adaptive_avg_pool"):
        sizes = argument(node, 1, "output_size")
        ones = all(size == 1 for size in (sizes if isinstance(sizes, list | tuple) else [sizes]))
        return "GlobalAveragePool" if ones else "AveragePool"
    if name == "convolution" and node.args[6]:
        return "ConvTranspose"
    return ONNX_NAMES.get(name, f"aten.{name}")


def _tensor(node: Node, is_constant: bool) -> TensorDescription:
    value = tensor_value(node)
    assert value is not None
    return _described(node.name, value, is_constant)


def _described(name: str, value: torch.Tensor, is_constant: bool = False) -> TensorDescription:
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorDescription(name, sizes, str(value.dtype).removeprefix("torch."), is_constant)


def _outputs(node: Node) -> Iterator[TensorDescription]:
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else [value]
    for index, each in enumerate(values):
        if isinstance(each, torch.Tensor):
            yield _described(node.name if len(values) == 1 else f"{node.name}_{index}", each)


def _attributes(node: Node, layer: LayerNumbers | None) -> dict[str, Any]:
    """What exporters write out: every attribute of a convolution, and a Gemm without factors."""
    if layer is None or layer.form == "linear":
        return {}
    return {
        "kernel_shape": layer.kernel,
        "strides": layer.strides,
        "pads": layer.pads,
        "dilations": layer.dilations,
        "group": layer.groups,
    }


def _layer(node: Node, matcher: ProductMatcher) -> LayerNumbers | None:
    name = operator_name(node)
    product = matcher.linear(node)
    if isinstance(product, WeightProduct):
        return LayerNumbers("linear", _size(product.inputs), _size(product.outputs), is_linear=True)
    if isinstance(product, str):
        return LayerNumbers("linear", is_linear=True)
    if _onnx_name(node) == "Conv":
        return _convolution(node, matcher)
    if name.startswith(("max_pool", "avg_pool")):
        return _pool(node)
    if _onnx_name(node) == "GlobalAveragePool":
        sizes = _described("", _value(node.args[0])).sizes or ()
        spatial = sizes[-int(name[-2]) :]
        ones, zeros = (1,) * len(spatial), (0,) * (2 * len(spatial))
        channels = sizes[-len(spatial) - 1]
        return LayerNumbers("pool", channels, channels, spatial, ones, zeros, ones)
    return None


def _convolution(node: Node, matcher: ProductMatcher) -> LayerNumbers | None:
    weight = node.args[1]
    if not isinstance(weight, Node):
        return None
    shape = [int(size) for size in _value(weight).shape]
    count = len(shape) - 2
    general = operator_name(node) == "convolution"
    groups: Any = node.args[8] if general else argument(node, 6, "groups", 1)
    strides = _repeated(argument(node, 3, "stride", 1), count)
    dilations = _repeated(argument(node, 5, "dilation", 1), count)
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        extents = [(k - 1) * d for k, d in zip(shape[2:], dilations, strict=True)]
        begins = [0 if padding == "valid" else extent // 2 for extent in extents]
        ends = [0 if padding == "valid" else extent - extent // 2 for extent in extents]
        pads = (*begins, *ends)
    else:
        pads = _repeated(padding, count) * 2
    is_linear = isinstance(matcher.convolution(node), WeightProduct)
    inputs = shape[1] * int(groups)
    return LayerNumbers(
        "conv", inputs, shape[0], tuple(shape[2:]), strides, pads, dilations, int(groups), is_linear
    )


def _pool(node: Node) -> LayerNumbers:
    count = int(operator_name(node)[-2])
    kernel = _repeated(argument(node, 1, "kernel_size"), count)
    strides = _repeated(argument(node, 2, "stride", None) or kernel, count)
    pads = _repeated(argument(node, 3, "padding", 0), count) * 2
    dilations = (1,) * count
    if operator_name(node).startswith("max_pool"):
        dilations = _repeated(argument(node, 4, "dilation", 1), count)
    channels = _described("", _value(node)).sizes or ()
    size = channels[-count - 1]
    return LayerNumbers("pool", size, size, kernel, strides, pads, dilations)


def _repeated(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in (value if isinstance(value, list | tuple) else [value]))
    return values * count if len(values) == 1 else values


def _value(node: Any) -> torch.Tensor:
    value = tensor_value(node)
    assert value is not None
    return value


def _size(size: Any) -> int | None:
    return size if isinstance(size, int) else None
