"""The `MapEmitter` protocol on NumPy arrays: every operation is computed at once. The module itself is the emitter.

It accepts only what the protocol allows, also where NumPy would accept more (any negative size as the unknown one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import Integers
from onebyone.lifting.index import Gather, Stencil

Array = NDArray[Any]


def _sliding(source: Array, ops: Sequence[Sliding], number: float) -> Array:
    """`(N, C, *positions, *kernel)`: the elements that each position of a sliding operator reads."""
    axes = tuple(range(2, 2 + len(ops)))
    source = pad(source, [(op.pad_before, op.pad_after) for op in ops], "constant", number)
    view = np.lib.stride_tricks.sliding_window_view(source, tuple(op.extent for op in ops), axes)
    strides = [slice(None, None, op.stride) for op in ops]
    taps = [slice(None, None, op.dilation) for op in ops]
    return view[(slice(None), slice(None), *strides, *taps)]


def convolution(
    source: Array, weight: Array, bias: Array | None, ops: Sequence[Sliding], groups: int
) -> Array:
    view = _sliding(source, ops, 0.0)
    parts = zip(np.split(view, groups, 1), np.split(weight, groups), strict=True)
    kernel_axes = list(range(1, weight.ndim))
    view_axes = [1, *range(view.ndim - len(ops), view.ndim)]
    out = [np.moveaxis(np.tensordot(part, kernel, (view_axes, kernel_axes)), -1, 1) for part, kernel in parts]
    result = np.concatenate(out, 1)
    return result if bias is None else result + per_channel(bias, np.arange(bias.size), len(ops))


def linear(source: Array, weight: Array, bias: Array | None, stencil: Stencil, channels: int) -> Array:
    assert weight.ndim == 2
    rows = np.moveaxis(gather(source, stencil.gather(), channels), 1, -1)
    result = np.moveaxis(rows @ weight.T, -1, 1)
    return result if bias is None else result + per_channel(bias, np.arange(bias.size), len(stencil.step))


def max_pool(source: Array, ops: Sequence[Sliding]) -> Array:
    return _sliding(source, ops, -np.inf).max(tuple(range(-len(ops), 0)))


def mean_pool(
    source: Array, ops: Sequence[Sliding], count_padding: bool = True, divisor: int | None = None
) -> Array:
    """Position by position; what ceil_mode adds beyond the padding is never counted."""
    assert all(op.dilation == 1 and isinstance(op.ceil_mode, bool) for op in ops)
    sizes, axes = source.shape[2:], tuple(range(2, source.ndim))
    out = np.zeros((*source.shape[:2], *(op.out_size(n) for op, n in zip(ops, sizes, strict=True))))
    for position in np.ndindex(*out.shape[2:]):
        begins = [q * op.stride - op.pad_before for q, op in zip(position, ops, strict=True)]
        ends = [
            min(begin + op.kernel, n + op.pad_after) for begin, op, n in zip(begins, ops, sizes, strict=True)
        ]
        part = source[(..., *(slice(max(0, a), max(0, b)) for a, b in zip(begins, ends, strict=True)))]
        counted = math.prod(b - a for a, b in zip(begins, ends, strict=True))
        if not count_padding:
            counted = math.prod(part.shape[2:])
        out[(..., *position)] = part.sum(axes) / (counted if divisor is None else divisor)
    return out


def windows(source: Array, kernel: Sequence[int]) -> Array:
    return _sliding(source, [Sliding(k) for k in kernel], 0.0)


def gather(source: Array, plan: Gather, channels: int) -> Array:
    assert source.shape[1] == channels
    assert plan.channels.dtype.kind == plan.starts.dtype.kind == "i"
    maps = [
        source[(slice(None), [c], *(slice(a, None, s) for a, s in zip(start, plan.steps, strict=True)))]
        for c, start in zip(plan.channels, plan.starts.T, strict=True)
    ]
    return concatenate(crop_to_common(maps, len(plan.steps)))


def crop_to_common(maps: Sequence[Array], axes: int) -> list[Array]:
    sizes = np.min([m.shape[2 : 2 + axes] for m in maps], axis=0)
    return [m[(slice(None), slice(None), *(slice(0, n) for n in sizes))] for m in maps]


def strided(source: Array, steps: Sequence[int]) -> Array:
    return source[(slice(None), slice(None), *(slice(None, None, s) for s in steps))]


def pad(
    source: Array, amounts: Sequence[tuple[int, int]], mode: str = "constant", number: float = 0.0
) -> Array:
    widths = [(0, 0), (0, 0), *amounts]
    if mode == "constant":
        return np.pad(source, widths, constant_values=number)
    return np.pad(source, widths, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])


def concatenate(maps: Sequence[Array]) -> Array:
    return np.concatenate(maps, 1)


def filled(source: Array, number: float, dtype: Any) -> Array:
    return np.full_like(source[:, :1], number, dtype=dtype)


def repeat_positions(source: Array, factors: Sequence[int]) -> Array:
    for axis, factor in enumerate(factors):
        source = source.repeat(factor, 2 + axis)
    return source


def interpolate(source: Array, factors: Sequence[int]) -> Array:
    for axis, factor in enumerate(factors, 2):
        n = source.shape[axis]
        at = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
        below = np.floor(at).astype(int)
        share = (at - below).reshape(-1, *(1,) * (source.ndim - axis - 1))
        above = np.minimum(below + 1, n - 1)
        source = source.take(below, axis) * (1 - share) + source.take(above, axis) * share
    return source


def split_channels(source: Array, sizes: Sequence[int]) -> Array:
    assert sorted(sizes)[0] >= -1
    return source.reshape(len(source), *sizes, *source.shape[2:])


def merge_channels(source: Array, count: int) -> Array:
    return source.reshape(len(source), -1, *source.shape[1 + count :])


def reduce(source: Array, reduction: str, axes: Sequence[int], keep_axes: bool = False) -> Array:
    if reduction == "norm":
        return np.sqrt(reduce(source * source, "sum", axes, keep_axes))
    return getattr(np, reduction)(source, tuple(axes), keepdims=keep_axes)


def repeat_channels(source: Array, count: int) -> Array:
    assert isinstance(count, int)
    return source.repeat(count, 1)


def single_positions(source: Array, axes: int) -> Array:
    assert source.ndim == 2 + axes
    return source.reshape(*source.shape[:2], *(1,) * axes, *source.shape[2:])


def as_batch(source: Array, axes: int, shape: Sequence[int]) -> Array:
    assert source.ndim == 2 + axes
    return np.moveaxis(source, 1, -1).reshape(-1, *shape)


def from_batch(source: Array, like: Array, axes: int) -> Array:
    assert like.ndim == 2 + axes
    return np.moveaxis(source.reshape(len(like), *like.shape[2:], -1), -1, 1)


def standardise_channels(
    source: Array, weight: Array | None, bias: Array | None, epsilon: float | None, root_mean_square: bool
) -> Array:
    channels = np.arange(source.shape[1])
    centred = source if root_mean_square else source - source.mean(1, keepdims=True)
    least = np.finfo(source.dtype).eps if epsilon is None else epsilon
    result = centred / np.sqrt((centred * centred).mean(1, keepdims=True) + least)
    if weight is not None:
        result = result * per_channel(weight, channels, source.ndim - 2)
    return result if bias is None else result + per_channel(bias, channels, source.ndim - 2)


def select(source: Array, axis: int, index: Array) -> Array:
    return source.take(index, axis)


def tap(weight: Array, axis: int, position: int) -> Array:
    return weight.take(position, axis)


def grouped_product(source: Array, weight: Array) -> Array:
    return np.einsum("ngsk...,sko->ngso...", source, weight)


def per_channel(constant: Array, ids: Integers, axes: int) -> Array:
    assert ids.dtype.kind == "i"
    return constant.reshape(-1).take(ids).reshape(-1, *(1,) * axes)


def reshape(source: Array, shape: Sequence[int]) -> Array:
    assert min(shape, default=0) >= -1
    return source.reshape(*shape)


def permute(source: Array, order: Sequence[int]) -> Array:
    assert sorted(order) == list(range(source.ndim))
    return source.transpose(order)


add, subtract, multiply = np.add, np.subtract, np.multiply
matrix_vector, maximum, negative, absolute = np.matmul, np.maximum, np.negative, np.abs
square_root = np.sqrt


def reciprocal_root(source: Array) -> Array:
    return 1 / np.sqrt(source)
