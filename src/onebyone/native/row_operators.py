"""Lower operators on rows of numbers: linear layers, layer norms, activations, concatenations and means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onebyone.native.layout import (
    Value,
    as_transposed,
    aten,
    contiguous_value,
    counts_up,
    element_count,
    map_of_rows,
    run_length,
)
from onebyone.native.lowering import SHORT_RUN, ActivatedStep, Lowering, piece_length
from onebyone.native.maps import Map
from onebyone.native.steps import (
    Activation,
    ConvolutionStep,
    ElementwiseStep,
    LayerNormStep,
    LinearStep,
    MeanStep,
    SlidingWindow,
)
from onebyone.native.unsupported import UnsupportedError

ACTIVATIONS = {
    aten.relu.default: Activation.RELU,
    aten.relu_.default: Activation.RELU,
    aten.hardtanh.default: Activation.RELU6,
    aten.hardtanh_.default: Activation.RELU6,
    aten.relu6.default: Activation.RELU6,
    aten.hardswish.default: Activation.HARDSWISH,
    aten.hardswish_.default: Activation.HARDSWISH,
    aten.hardsigmoid.default: Activation.HARDSIGMOID,
    aten.hardsigmoid_.default: Activation.HARDSIGMOID,
    aten.silu.default: Activation.SILU,
    aten.silu_.default: Activation.SILU,
    aten.sigmoid.default: Activation.SIGMOID,
    aten.sigmoid_.default: Activation.SIGMOID,
    aten.gelu.default: Activation.GELU,
    aten.gelu_.default: Activation.GELU,
}


def linear(lowering: Lowering, node: Any) -> None:
    """A linear layer on the last axis."""
    source, *parameters = [*node.args, None][:3]
    weight, bias = (lowering.constant(p) for p in parameters)
    if weight is None or (bias is None and parameters[1] is not None):
        raise UnsupportedError("a linear layer whose weight is not a parameter")
    lowering.values[node] = product_of_rows(lowering, node, lowering.value(source), weight, bias)


def product_of_rows(lowering: Lowering, node: Any, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """x·weightᵀ + bias. With one row per sample it becomes a 1×1 convolution, whose kernel reads the weight once."""
    shape, k = tuple(node.meta["val"].shape), weight.shape[1]
    if len(shape) < 2 or weight.dim() != 2:
        raise UnsupportedError(f"{node.target} of a single row")
    rows = math.prod(shape[:-1])
    source, order = _rows_of(lowering, x)
    if order is not None:  # permute the weight's columns once instead of the rows at every call
        permuted = torch.empty_like(weight)
        permuted[:, order] = weight
        weight = permuted
    if len(shape) == 2 and rows == lowering.samples:
        y = lowering.add(
            ConvolutionStep(
                input=Map((rows, k, 1, 1), base=source),
                output=Map((rows, len(weight), 1, 1)),
                weight=weight[:, :, None, None],
                bias=bias,
                window=SlidingWindow((1, 1)),
            )
        )
    else:
        y = lowering.add(
            LinearStep(input=source, output=map_of_rows(shape), rows=rows, weight=weight, bias=bias)
        )
    return contiguous_value(shape, y)


def _rows_of(lowering: Lowering, x: Value) -> tuple[Map, Tensor | None]:
    """A map that holds the rows of x one after another, and the order of the numbers in each row (None: as in x).

    Rows that all have the same other order are read as they are; otherwise they are copied.
    """
    offsets = x.element_offsets.reshape(-1, x.shape[-1])
    rows, length = offsets.shape
    first = offsets[0]
    if rows * length == element_count(x.memory) and not counts_up(first) and counts_up(first.sort().values):
        begins = length * torch.arange(rows)[:, None]
        if torch.equal(offsets, first + begins):
            return x.memory, first
    return lowering.contiguous(x), None


def layer_norm(lowering: Lowering, node: Any) -> None:
    """A layer norm over the last axis; its rows may begin anywhere in memory."""
    source, shape, *settings = [*node.args, *[None] * 3][:5]
    x = lowering.value(source)
    if tuple(shape) != x.shape[-1:]:
        raise UnsupportedError(f"a norm over more than the last axis {tuple(shape)}")
    weight, bias = (lowering.constant(s) for s in settings[:2])
    if any(c is None and s is not None for c, s in zip((weight, bias), settings[:2], strict=True)):
        raise UnsupportedError("a norm whose weight is not a parameter")
    rows, length = x.element_offsets.reshape(-1, x.shape[-1]), x.shape[-1]
    memory, index = x.memory, rows[:, 0].contiguous()
    if not torch.equal(rows, index[:, None] + torch.arange(length)):
        memory, index = lowering.contiguous(x), torch.arange(len(rows)) * length
    successive = torch.equal(index, torch.arange(len(rows)) * length)
    step = LayerNormStep(
        input=memory,
        output=map_of_rows(x.shape),
        rows=len(rows),
        channels=length,
        epsilon=1e-5 if settings[2] is None else float(settings[2]),
        weight=weight,
        bias=bias,
        index=None if successive else index,
    )
    lowering.values[node] = contiguous_value(x.shape, lowering.add(step))


def activation(lowering: Lowering, node: Any) -> None:
    """An activation: part of the step before it, if nothing else reads that step's result."""
    kind = ACTIVATIONS[node.target]
    if kind == Activation.RELU6 and tuple(node.args[1:]) not in ((0, 6), (0.0, 6.0), ()):
        raise UnsupportedError(f"hardtanh between {node.args[1:]}")
    if kind == Activation.GELU and node.kwargs.get("approximate", "none") == "tanh":
        kind = Activation.GELU_TANH
    value = lowering.value(node.args[0])
    before = lowering.producer(value)
    if isinstance(before, ActivatedStep) and before.activation == Activation.NONE:
        before.activation = kind
        lowering.values[node] = value
        return
    if value.offsets is not None and len(value.offsets.reshape(-1)) != element_count(value.memory):
        value = contiguous_value(value.shape, lowering.contiguous(value))
    x = value.memory
    y = lowering.add(ElementwiseStep(input=x, output=Map(x.shape), activation=kind))
    lowering.values[node] = Value(y, value.offsets)


def concatenation(lowering: Lowering, node: Any) -> None:
    """Tensors concatenated or stacked along an axis, constants among them: a gather for each."""
    parts, axis = node.args[0], [*node.args, 0][1]
    shape = tuple(node.meta["val"].shape)
    axis %= len(shape)
    stacked = node.target is aten.stack.default
    sources = [_part(lowering, part) for part in parts]
    y, begin = map_of_rows(shape), 0
    inner = math.prod(shape[axis + 1 :])
    blocks = math.prod(shape[:axis])
    for source, numbers, offsets in sources:
        part = offsets.unsqueeze(axis) if stacked else offsets
        flat, floats = part.reshape(-1), part.shape[axis] * inner  # floats of this part in each block
        if not floats:
            continue
        if source is not None and run_length(flat) < SHORT_RUN and as_transposed(flat) is not None:
            source, flat = lowering.copied(flat, tuple(part.shape), source), torch.arange(len(flat))
        length = piece_length(math.gcd(run_length(flat), floats), part.shape[-1])
        block_stride = shape[axis] * inner if blocks > 1 else 0
        where = {"output_begin": begin, "pieces_per_block": floats // length, "block_stride": block_stride}
        lowering.gather(flat, y, source, numbers, length, **where)
        begin += floats
    lowering.values[node] = contiguous_value(shape, y)


def _part(lowering: Lowering, part: Any) -> tuple[Map | None, Tensor | None, Tensor]:
    """A map or a constant (without its broadcast axes), and the offsets of the part's elements in it."""
    constant = lowering.constant(part)
    if constant is None:
        value = lowering.value(part)
        return value.memory, None, value.element_offsets
    shape = constant.shape
    for axis, stride in enumerate(constant.stride()):
        constant = constant.narrow(axis, 0, 1) if stride == 0 and constant.shape[axis] > 1 else constant
    offsets = torch.arange(constant.numel()).view(constant.shape)
    return None, constant.contiguous(), offsets.expand(shape)


def mean(lowering: Lowering, node: Any) -> None:
    """A mean over all axes but the first and one other."""
    argument, axes = node.args[:2]
    x = lowering.value(argument)
    dims = len(x.shape)
    axes = range(dims) if axes is None or axes == [] else axes
    reduced = sorted({a % dims for a in ([axes] if isinstance(axes, int) else axes)})
    kept = [a for a in range(dims) if a not in reduced]
    if len(kept) != 2 or kept[0] != 0 or node.kwargs.get("dtype") not in (None, torch.float32):
        raise UnsupportedError(f"a mean over the axes {reduced}")
    n, c = x.shape[0], x.shape[kept[1]]
    if x.offsets is None and kept[1] == 1:
        source = x.memory
    else:
        source = lowering.contiguous(Value(x.memory, x.element_offsets.permute(0, *reduced, kept[1])))
        positions = math.prod(x.shape[a] for a in reduced)
        if source.shape[:2] != (n, c):
            source = Map((n, c, 1, positions), base=source)
    y = lowering.add(MeanStep(input=source, output=Map((n, c, 1, 1))))
    lowering.values[node] = Value(y, torch.arange(n * c).view(node.meta["val"].shape))


HANDLERS: dict[Any, Callable[[Lowering, Any], None]] = {
    **dict.fromkeys(ACTIVATIONS, activation),
    aten.linear.default: linear,
    aten.layer_norm.default: layer_norm,
    aten.cat.default: concatenation,
    aten.stack.default: concatenation,
    aten.mean.dim: mean,
}
