"""Attention, as one operator or as products of matrices around a softmax: one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onebyone.native.kernels.program import Kind, Map, Step
from onebyone.native.layout import Scores, Value, aten, strides
from onebyone.native.lowering import Planning
from onebyone.native.row_operators import product_of_rows
from onebyone.native.unserved import UnservedError

_LEAST = -math.inf


def matmul(plan: Planning, node: Any) -> None:
    """A product of matrices: a linear layer where one is a constant; else scores, or what they weigh."""
    left, right = node.args[:2]
    weight = plan.constant(right)
    if weight is not None and weight.dim() == 2:
        plan.values[node] = product_of_rows(plan, node, plan.value(left), weight.t(), None)
        return
    scores, shape = plan.any_value(left), tuple(node.meta["val"].shape)
    if isinstance(scores, Scores) and scores.soft:
        plan.values[node] = _attended(plan, scores, plan.value(right), shape)
        return
    q, k = plan.value(left, scaled=True), plan.value(right, scaled=True)
    if len(q.shape) < 2 or len(k.shape) < 2:
        raise UnservedError("a product of a matrix and a vector")
    keys, lead = Value(k.memory, k.at.transpose(-2, -1)), shape[:-2]
    plan.values[node] = Scores(_expanded(q, lead), _expanded(keys, lead), shape, q.scale * k.scale)


def softmax(plan: Planning, node: Any) -> None:
    """Over the last axis of scores."""
    scores, axis, kind = plan.any_value(node.args[0]), node.args[1], [*node.args, None][2]
    if not isinstance(scores, Scores) or scores.soft:
        raise UnservedError(f"{node.target} that is no part of attention")
    if axis not in (-1, len(scores.shape) - 1) or kind not in (None, torch.float32):
        raise UnservedError(f"{node.target} over axis {axis} of scores")
    plan.values[node] = replace(scores, soft=True)


def biased(scores: Scores, bias: Tensor, shape: tuple[int, ...]) -> Scores:
    """With a constant added."""
    if scores.soft or shape != scores.shape:
        raise UnservedError("a sum of a softmax, or that is larger than the scores in it")
    bias = bias.double().expand(shape)
    return replace(scores, bias=bias if scores.bias is None else scores.bias + bias)


def scaled(scores: Scores, factor: float) -> Scores:
    """Multiplied by a number."""
    if scores.soft:
        raise UnservedError("a product with a softmax")
    bias = None if scores.bias is None else scores.bias * factor
    return replace(scores, scale=scores.scale * factor, bias=bias)


def masked(plan: Planning, node: Any) -> None:
    """Scores filled with −∞ where a constant says so."""
    scores, mask, filling = plan.any_value(node.args[0]), plan.constant(node.args[1]), node.args[2]
    filling = plan.constant(filling)
    if not isinstance(scores, Scores) or mask is None or filling is None or float(filling) != _LEAST:
        raise UnservedError(f"{node.target} of what is no attention, or with another number than −∞")
    shape = tuple(node.meta["val"].shape)
    plan.values[node] = biased(scores, torch.zeros(()).masked_fill(mask, _LEAST), shape)


def whole(plan: Planning, node: Any) -> None:
    """`scaled_dot_product_attention`."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("dropout_p") or given.get("enable_gqa"):
        reason = "drops out at random" if given.get("dropout_p") else "shares keys between heads (enable_gqa)"
        raise UnservedError(f"attention that {reason}")
    q, k, v = (plan.value(given[name], scaled=name != "value") for name in names[:3])
    high, wide = q.shape[-2], k.shape[-2]
    shape, scale = tuple(node.meta["val"].shape), given.get("scale")
    lead = shape[:-2]
    scale = (1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)) * q.scale * k.scale
    scores = Scores(_expanded(q, lead), _expanded(k, lead), (*lead, high, wide), scale)
    if given.get("attn_mask") is not None:
        mask = plan.constant(given["attn_mask"])
        if mask is None:
            raise UnservedError("attention with a mask that is no constant")
        scores = biased(scores, _as_bias(mask), scores.shape)
    if given.get("is_causal"):
        seen = torch.ones(high, wide, dtype=torch.bool).tril()
        scores = biased(scores, _as_bias(seen), scores.shape)
    if scores.bias is not None and bool((scores.bias == _LEAST).all(-1).any()):
        raise UnservedError("attention with a mask that hides everything from a token")
    plan.values[node] = _attended(plan, scores, v, shape)


def _expanded(value: Value, lead: tuple[int, ...]) -> Value:
    """With these leading axes; what it is to be multiplied by is taken care of."""
    return Value(value.memory, value.at.expand(*lead, *value.shape[-2:]))


def _as_bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, _LEAST) if mask.dtype == torch.bool else mask


def _attended(plan: Planning, scores: Scores, v: Value, shape: tuple[int, ...]) -> Value:
    """The step: softmax(q·kᵀ·scale + bias)·v. The last of the leading axes are its heads."""
    lead, (high, wide) = scores.shape[:-2], scores.shape[-2:]
    if len(v.shape) < 2 or shape[:-1] != (*lead, high):
        raise UnservedError("attention in which only its values have batches")
    heads = lead[-1] if lead else 1
    batch = math.prod(lead[:-1])
    read: list[Map] = []
    apart: list[int] = []
    for value in (scores.q, scores.k, _expanded(v, lead)):
        rows, columns = value.shape[-2:]
        at = value.at.reshape(batch, heads, rows, columns)
        memory, found = value.memory, strides(at)
        if found is None:
            memory = plan.copied(at.reshape(-1), tuple(at.shape), value.memory)
            found = (0, heads * rows * columns, rows * columns, columns)
        read.append(memory)
        apart += found
    bias, between = _few(scores.bias, (batch, heads, high, wide))
    depth, outputs = scores.q.shape[-1], v.shape[-1]
    sizes = {"samples": batch, "height": heads, "high": high, "wide": wide, "channels": depth}
    step = Step(
        Kind.ATTENTION, read[0], Map((batch, outputs, high, heads)), bias, add=read[1], third=read[2],
        sizes=sizes | {"outputs": outputs, "width": 1}, apart=(*apart, *between), number=scores.scale,
    )  # fmt: skip
    y = plan.add(step)
    at = torch.arange(batch * high * heads * outputs).view(batch, high, heads, outputs)
    return Value(y, at.transpose(1, 2).reshape(shape))


def _few(bias: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, int]]:
    """A bias without the batches and heads that are like the first, and how far those that are left lie apart."""
    if bias is None or not bool(bias.any()):
        return None, (0, 0)
    bias = bias.reshape(shape)
    for axis in (0, 1):
        first = bias.narrow(axis, 0, 1)
        bias = first if torch.equal(first.expand_as(bias), bias) else bias
    batches, heads, high, wide = bias.shape
    one = high * wide
    return bias.contiguous(), (heads * one if batches > 1 else 0, one if heads > 1 else 0)


HANDLERS: dict[Any, Callable[[Planning, Any], None]] = {
    aten.matmul.default: matmul,
    aten.bmm.default: matmul,
    aten.softmax.int: softmax,
    aten.masked_fill.Scalar: masked,
    aten.masked_fill.Tensor: masked,
    aten.scaled_dot_product_attention.default: whole,
}
