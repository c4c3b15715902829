"""Rewritings of convolutions and pools: attributes written out, two spatial axes for one, padding and strides outside.

Source of the identities: y[i] of stride s·t is y[t·i] of stride s; a convolution with padding is one without on the
padded map; a map of one axis is a map of height one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, is_constant, shape_of, sizes_of
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.model_rewriting import Rewriting
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.onnx.window_settings import GLOBAL_POOLS, WindowSettings, window_settings
from onebyone.records import by

WRITTEN_OUT = "default attributes = written out"
PADDING = "padded convolution = pad, then convolution"
SUBSAMPLED = "stride s·t = stride s, then every t-th position"
TWO_AXES = "one spatial axis = two, one of size 1"
MEANS_OF_MEANS = "mean over the map = mean of the means of equal blocks"
#: From this opset on, Pad takes its amounts as an input.
PADS_ARE_AN_INPUT = 11


@dataclass(frozen=True, eq=False)
class ConstantConvolution:
    """A Conv with its settings; the number of outputs and of inputs per group come from its weight."""

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    settings: WindowSettings
    weight_shape: tuple[int, ...]

    @property
    def pads(self) -> tuple[int, ...]:
        """The amounts of padding. Raises NotRewritable if they depend on a size that is not known."""
        if self.settings.pads is None:
            raise NotRewritable("its auto_pad depends on a size that is not known")
        return self.settings.pads

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The sizes of the data as far as they are known."""
        known = sizes_of(self.data) or [None] * len(self.weight_shape)
        return (known[0], self.weight_shape[1] * self.settings.group, *known[2:])

    @property
    def terms(self) -> int:
        """The number of products of one sum."""
        return int(np.prod(self.weight_shape[1:]))

    def written(self, result: ir.Value, law: str, description: str) -> Rewriting:
        """The record of a new form of it."""
        layer = WrittenLayer(self.data, result, law, description, self.sizes)
        return Rewriting(layer, (self.node,), f"Conv {by(self.weight_shape)}", self.terms)


def read_any_convolution(node: ir.Node) -> ConstantConvolution | str:
    """Read a Conv of any kernel; a reason where its weight is not known."""
    settings = window_settings(node) if node.op_type == "Conv" else None
    data, weight = (*node.inputs[:2], None, None)[:2]
    if settings is None or data is None or weight is None:
        return "its kernel is not known"
    shape = shape_of(weight)
    if shape is None or not is_constant(weight):
        return "its weight is not a constant"
    return ConstantConvolution(
        node, data, weight, node.inputs[2] if len(node.inputs) > 2 else None, settings, shape
    )


def write_conv(
    writer: GraphWriter,
    data: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    settings: WindowSettings,
) -> ir.Value:
    """Insert a Conv with every attribute written out."""
    sizes, shape = sizes_of(data), shape_of(weight)
    assert settings.pads is not None
    result = None
    if sizes is not None and shape is not None:
        result = [sizes[0], shape[0], *window_positions(sizes[2:], settings)]
    operands = [data, weight] + ([bias] if bias is not None else [])
    return writer.op("Conv", operands, attributes_of(settings), shape=result)


def attributes_of(settings: WindowSettings, *, group: bool = True) -> dict[str, Any]:
    """The attributes of a convolution or pool, written out."""
    assert settings.pads is not None
    written: dict[str, Any] = {
        "kernel_shape": list(settings.kernel),
        "strides": list(settings.strides),
        "pads": list(settings.pads),
        "dilations": list(settings.dilations),
    }
    return written | ({"group": settings.group} if group else {})


def window_positions(sizes: Sequence[int | None], settings: WindowSettings) -> list[int | None]:
    """The number of positions per axis: ⌊(size + padding − extent) / stride⌋ + 1."""
    assert settings.pads is not None
    count = len(settings.kernel)
    found: list[int | None] = []
    for axis, size in enumerate(sizes):
        extent = (settings.kernel[axis] - 1) * settings.dilations[axis] + 1
        padding = settings.pads[axis] + settings.pads[count + axis]
        found.append(None if size is None else (size + padding - extent) // settings.strides[axis] + 1)
    return found


def write_out_attributes(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter
) -> Rewriting | str | None:
    """The same node with every attribute written out, and `auto_pad` as amounts."""
    settings = window_settings(node)
    if settings is None:
        return "its kernel is not known"
    if settings.pads is None:
        return "its auto_pad depends on a size that is not known"
    data = node.inputs[0]
    assert data is not None
    is_convolution = node.op_type in ("Conv", "ConvTranspose")
    kept = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name not in ("auto_pad", "dilations")
    }
    attributes = kept | attributes_of(settings, group=is_convolution)
    if node.op_type in ("AveragePool", "LpPool") and "dilations" not in node.attributes:
        del attributes["dilations"]  # older opsets have none
    if _other_outputs(node):
        return "its second output is used"
    value = writer.op(node.op_type, list(node.inputs), attributes, shape=sizes_of(node.outputs[0]))
    description = ", ".join(name for name in attributes if name not in node.attributes) or "pads"
    shape = by(shape_of(node.inputs[1]) or ()) if is_convolution and node.inputs[1] is not None else ""
    sizes = tuple(sizes_of(data) or ()) or None
    layer = WrittenLayer(data, value, WRITTEN_OUT, f"{description} written out", sizes)  # type: ignore[arg-type]
    terms = (
        int(np.prod(shape_of(node.inputs[1]) or (1,))) if is_convolution and node.inputs[1] is not None else 1
    )
    return Rewriting(layer, (node,), f"{node.op_type} {shape}".strip(), terms)


def move_padding_out(node: ir.Node, writer: GraphWriter, weights: WeightRewriter) -> Rewriting | str | None:
    """A Pad with zeros, then the convolution without padding."""
    read = read_any_convolution(node)
    if isinstance(read, str):
        return read
    data = padded(read, writer)
    settings = replace(read.settings, pads=(0,) * len(read.pads))
    value = write_conv(writer, data, read.weight, read.bias, settings)
    return read.written(value, PADDING, f"Pad {list(read.pads)}, then Conv")


def padded(convolution: ConstantConvolution, writer: GraphWriter) -> ir.Value:
    """The data with the convolution's padding as numbers."""
    pads, data = convolution.pads, convolution.data
    if not any(pads):
        return data
    count = len(pads) // 2
    amounts = [0, 0, *pads[:count], 0, 0, *pads[count:]]
    sizes = sizes_of(data)
    shape = None
    if sizes is not None:
        grown = [None if s is None else s + pads[i] + pads[count + i] for i, s in enumerate(sizes[2:])]
        shape = [*sizes[:2], *grown]
    if writer.opset < PADS_ARE_AN_INPUT:
        return writer.op("Pad", [data], {"pads": amounts, "value": 0.0}, shape=shape)
    return writer.op("Pad", [data, writer.integers(amounts, "pads")], shape=shape)


def reduce_strides(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter, strides: Sequence[int]
) -> Rewriting | str | None:
    """The convolution at smaller strides, divisors of its own, and every t-th position of its result."""
    read = read_any_convolution(node)
    if isinstance(read, str):
        return read
    settings = replace(read.settings, strides=tuple(strides), pads=read.pads)
    value = write_conv(writer, read.data, read.weight, read.bias, settings)
    for axis, (old, new) in enumerate(zip(read.settings.strides, strides, strict=True)):
        if old != new:
            value = writer.slice_axis(value, 2 + axis, 0, None, old // new)
    return read.written(value, SUBSAMPLED, f"Conv of stride {by(strides)}, then Slice")


def add_spatial_axis(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter, at: int = 2
) -> Rewriting | str | None:
    """A convolution or pool over one axis as one over two, of which axis `at` (2 or 3) has size 1."""
    data = node.inputs[0]
    sizes = None if data is None else sizes_of(data)
    if data is None or sizes is None or len(sizes) != 3:
        return "its input has no three axes"
    if node.op_type == "ConvTranspose":
        return "no rewriting to two spatial axes is written for ConvTranspose"
    if _other_outputs(node):
        return "its second output is used"
    place = at - 2
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    for name, neutral in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        if name in attributes:
            values = list(attributes[name])
            attributes[name] = [neutral, *values] if place == 0 else [*values, neutral]
    if "pads" in attributes:
        begin, end = attributes["pads"]
        attributes["pads"] = [0, begin, 0, end] if place == 0 else [begin, 0, end, 0]
    operands: list[ir.Value | None] = [writer.unsqueeze(data, [at], [*sizes[:at], 1, *sizes[at:]])]
    shape: tuple[int, ...] = ()
    terms = 1
    if node.op_type == "Conv":
        weight = node.inputs[1]
        known = None if weight is None else shape_of(weight)
        if weight is None or known is None or not is_constant(weight):
            return "its weight is not a constant"
        shape, terms = known, int(np.prod(known[1:]))
        operands.append(weights.rewrite(writer, weight, [("reshape", (*shape[:at], 1, *shape[at:]))]))
        operands.extend(node.inputs[2:])
    result = sizes_of(node.outputs[0])
    wide = None if result is None else [*result[:at], 1, *result[at:]]
    value = writer.op(node.op_type, operands, attributes, shape=wide)
    value = writer.squeeze(value, [at], result or [sizes[0], None, None])
    layer = WrittenLayer(data, value, TWO_AXES, f"{node.op_type} over two axes", tuple(sizes))
    return Rewriting(layer, (node,), f"{node.op_type} {by(shape)}".strip(), terms)


def pool_in_blocks(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter, largest: int
) -> Rewriting | str | None:
    """A GlobalAveragePool over more than `largest` positions: means of equal blocks, then the mean of those."""
    data = node.inputs[0]
    sizes = None if data is None else sizes_of(data)
    if node.op_type not in GLOBAL_POOLS or data is None or sizes is None or None in sizes[2:]:
        return "the size of its map is not known"
    if node.op_type == "GlobalLpPool":
        return "a norm is not the mean of norms"
    spatial = [size for size in sizes[2:] if size is not None]
    block = _block(spatial, largest)
    if block is None:
        return f"no block of at most {largest} positions divides its map of {by(spatial)}"
    pool = node.op_type.removeprefix("Global")
    attributes = {"kernel_shape": block, "strides": block, "pads": [0] * (2 * len(block))}
    blocks = [size // b for size, b in zip(spatial, block, strict=True)]
    value = writer.op(pool, [data], attributes, shape=[*sizes[:2], *blocks])
    value = writer.op(node.op_type, [value], shape=[*sizes[:2], *(1 for _ in block)])
    layer = WrittenLayer(
        data, value, MEANS_OF_MEANS, f"{pool} {by(block)}, then {node.op_type}", tuple(sizes)
    )
    is_exact = pool == "MaxPool"
    return Rewriting(layer, (node,), f"{node.op_type} of {by(spatial)}", int(np.prod(spatial)), is_exact)


def _block(spatial: Sequence[int], largest: int) -> list[int] | None:
    """The smallest block that divides the map and leaves at most `largest` blocks, each of at most that size."""
    divisors = [[d for d in range(1, size + 1) if size % d == 0] for size in spatial]
    best: tuple[int, list[int]] | None = None
    for block in np.array(np.meshgrid(*divisors)).reshape(len(spatial), -1).T.tolist():
        area = int(np.prod(block))
        if 1 < area <= largest and np.prod(spatial) // area <= largest and (best is None or area < best[0]):
            best = area, block
    return None if best is None else best[1]


def _other_outputs(node: ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
