"""Lower attention to one step, whether it is one operator or matrix products around a softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onebyone.native.layout import Scores, Value, aten, strides_of
from onebyone.native.lowering import Lowering
from onebyone.native.maps import Map
from onebyone.native.row_operators import product_of_rows
from onebyone.native.steps import AttentionStep, Strides
from onebyone.native.unsupported import UnsupportedError


def matmul(lowering: Lowering, node: Any) -> None:
    """A matrix product: a linear layer if one factor is a constant; otherwise scores, or their product with values."""
    left, right = node.args[:2]
    weight = lowering.constant(right)
    if weight is not None and weight.dim() == 2:
        lowering.values[node] = product_of_rows(lowering, node, lowering.value(left), weight.t(), None)
        return
    scores, shape = lowering.any_value(left), tuple(node.meta["val"].shape)
    if isinstance(scores, Scores) and scores.softmax:
        lowering.values[node] = _attention(lowering, scores, lowering.value(right), shape)
        return
    q, k = lowering.value(left, scaled=True), lowering.value(right, scaled=True)
    if len(q.shape) < 2 or len(k.shape) < 2:
        raise UnsupportedError("a product of a matrix and a vector")
    keys, leading = Value(k.memory, k.element_offsets.transpose(-2, -1)), shape[:-2]
    lowering.values[node] = Scores(_expanded(q, leading), _expanded(keys, leading), shape, q.scale * k.scale)


def softmax(lowering: Lowering, node: Any) -> None:
    """A softmax over the last axis of scores."""
    scores, axis, dtype = lowering.any_value(node.args[0]), node.args[1], [*node.args, None][2]
    if not isinstance(scores, Scores) or scores.softmax:
        raise UnsupportedError(f"{node.target} that is not part of attention")
    if axis not in (-1, len(scores.shape) - 1) or dtype not in (None, torch.float32):
        raise UnsupportedError(f"{node.target} over axis {axis} of scores")
    lowering.values[node] = replace(scores, softmax=True)


def add_bias(scores: Scores, bias: Tensor, shape: tuple[int, ...]) -> Scores:
    """Scores to which a constant is added."""
    if scores.softmax or shape != scores.shape:
        raise UnsupportedError("a sum with a softmax, or one of a larger shape than the scores in it")
    bias = bias.double().expand(shape)
    return replace(scores, bias=bias if scores.bias is None else scores.bias + bias)


def scale_scores(scores: Scores, factor: float) -> Scores:
    """Scores multiplied by a number."""
    if scores.softmax:
        raise UnsupportedError("a product with a softmax")
    bias = None if scores.bias is None else scores.bias * factor
    return replace(scores, scale=scores.scale * factor, bias=bias)


def masked_fill(lowering: Lowering, node: Any) -> None:
    """Scores filled with -∞ where a constant mask is true."""
    scores, mask = lowering.any_value(node.args[0]), lowering.constant(node.args[1])
    number = lowering.constant(node.args[2])
    if not isinstance(scores, Scores) or mask is None or number is None or float(number) != -math.inf:
        raise UnsupportedError(f"{node.target} outside attention, or with another number than -∞")
    shape = tuple(node.meta["val"].shape)
    lowering.values[node] = add_bias(scores, torch.zeros(()).masked_fill(mask, -math.inf), shape)


def fused_attention(lowering: Lowering, node: Any) -> None:
    """`scaled_dot_product_attention`."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if arguments.get("dropout_p") or arguments.get("enable_gqa"):
        reason = (
            "has random dropout" if arguments.get("dropout_p") else "shares keys between heads (enable_gqa)"
        )
        raise UnsupportedError(f"attention that {reason}")
    q, k, v = (lowering.value(arguments[name], scaled=name != "value") for name in names[:3])
    query_rows, key_rows = q.shape[-2], k.shape[-2]
    shape, scale = tuple(node.meta["val"].shape), arguments.get("scale")
    leading = shape[:-2]
    scale = (1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)) * q.scale * k.scale
    scores = Scores(_expanded(q, leading), _expanded(k, leading), (*leading, query_rows, key_rows), scale)
    if arguments.get("attn_mask") is not None:
        mask = lowering.constant(arguments["attn_mask"])
        if mask is None:
            raise UnsupportedError("attention with a mask that is not a constant")
        scores = add_bias(scores, _as_bias(mask), scores.shape)
    if arguments.get("is_causal"):
        visible = torch.ones(query_rows, key_rows, dtype=torch.bool).tril()
        scores = add_bias(scores, _as_bias(visible), scores.shape)
    if scores.bias is not None and bool((scores.bias == -math.inf).all(-1).any()):
        raise UnsupportedError("attention with a mask that hides everything from a token")
    lowering.values[node] = _attention(lowering, scores, v, shape)


def _expanded(value: Value, leading: tuple[int, ...]) -> Value:
    """The value broadcast to these leading axes. Its scale is dropped: the caller has applied it."""
    return Value(value.memory, value.element_offsets.expand(*leading, *value.shape[-2:]))


def _as_bias(mask: Tensor) -> Tensor:
    """A mask as numbers to be added: -∞ where a boolean mask is false."""
    return torch.zeros(mask.shape).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask


def _attention(lowering: Lowering, scores: Scores, v: Value, shape: tuple[int, ...]) -> Value:
    """The step softmax(scores)·v. The last leading axis is the heads, the others are samples."""
    leading, (query_rows, key_rows) = scores.shape[:-2], scores.shape[-2:]
    if len(v.shape) < 2 or shape[:-1] != (*leading, query_rows):
        raise UnsupportedError("attention in which only the values have batches")
    heads = leading[-1] if leading else 1
    samples = math.prod(leading[:-1])
    queries, keys, values = (
        _operand(lowering, value, samples, heads) for value in (scores.q, scores.k, _expanded(v, leading))
    )
    bias, bias_strides = _unrepeated(scores.bias, (samples, heads, query_rows, key_rows))
    value_depth = v.shape[-1]
    y = lowering.add(
        AttentionStep(
            output=Map((samples, value_depth, query_rows, heads)),
            queries=queries[0],
            keys=keys[0],
            values=values[0],
            bias=bias,
            samples=samples,
            heads=heads,
            query_rows=query_rows,
            key_rows=key_rows,
            depth=scores.q.shape[-1],
            value_depth=value_depth,
            query_strides=queries[1],
            key_strides=keys[1],
            value_strides=values[1],
            bias_strides=bias_strides,
            scale=scores.scale,
        )
    )
    offsets = torch.arange(samples * query_rows * heads * value_depth)
    offsets = offsets.view(samples, query_rows, heads, value_depth)
    return Value(y, offsets.transpose(1, 2).reshape(shape))


def _operand(lowering: Lowering, value: Value, samples: int, heads: int) -> tuple[Map, Strides]:
    """Queries, keys or values where they are, with their strides; copied if their rows have no strides."""
    rows, columns = value.shape[-2:]
    offsets = value.element_offsets.reshape(samples, heads, rows, columns)
    strides = strides_of(offsets)
    if strides is not None:
        return value.memory, strides
    copied = lowering.copied(offsets.reshape(-1), tuple(offsets.shape), value.memory)
    return copied, Strides(0, heads * rows * columns, rows * columns, columns)


def _unrepeated(bias: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, int]]:
    """A bias without repeated samples and heads, and its strides over samples and heads (0 where they share it)."""
    if bias is None or not bool(bias.any()):
        return None, (0, 0)
    bias = bias.reshape(shape)
    for axis in (0, 1):
        first = bias.narrow(axis, 0, 1)
        bias = first if torch.equal(first.expand_as(bias), bias) else bias
    samples, heads, query_rows, key_rows = bias.shape
    floats = query_rows * key_rows
    return bias.contiguous(), (heads * floats if samples > 1 else 0, floats if heads > 1 else 0)


HANDLERS: dict[Any, Callable[[Lowering, Any], None]] = {
    aten.matmul.default: matmul,
    aten.bmm.default: matmul,
    aten.softmax.int: softmax,
    aten.masked_fill.Scalar: masked_fill,
    aten.masked_fill.Tensor: masked_fill,
    aten.scaled_dot_product_attention.default: fused_attention,
}
