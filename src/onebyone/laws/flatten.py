"""Flatten, then linear = a convolution without padding.

Equation. Let element f of the flattened vector be element index[f] of the block x (C, h, w), in row-major order. Then

    Σ_f W[o, f]·x.flat[index[f]] + b[o] = Σ_{c,y,x} K[o, c, y, x]·x[c, y, x] + b[o],
    K[o].flat[i] = Σ_{f : index[f] = i} W[o, f]

so K (O, C, h, w), applied without padding to a larger map, gives at each position what the linear layer gives for the
block at that position. Weights of repeated elements are added; elements that do not occur get weight 0. If the index is
the identity (PyTorch's flatten), K is a view of W; if it is a permutation of the axes (a channels-last flatten), K is
a view with other strides; otherwise one copy is needed.

flatten(start) of axes in any order merges the axes from `start` on; the linear layer is applied to each entry of the
axes before them, along which the kernel has extent 1. If the channel axis is kept, the same kernel is applied to each
channel.

Adding repeated weights rounds once per repetition and saves one addition of products: each term still takes part in at
most F + 1 roundings, so `bounds.dot_bound(F, |W|·|x| + |b|, u)` holds for K as well.

Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015, §3.1
("fully connected layers can also be viewed as convolutions with kernels that cover their entire input
regions").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.records import by

NAME = "flatten, linear = convolution"
EQUATION = "Σ_f W[o, f]·x[index[f]] = Σ_i K[o, i]·x[i],  K[o, i] = Σ_{index[f] = i} W[o, f]"

Array = NDArray[Any]
Index = NDArray[np.integer[Any]]


def merged_block(block: Sequence[int], order: Sequence[int] | None = None, start: int = 0) -> tuple[int, ...]:
    """The part of `block` (C, h, w) that one vector contains: full size along merged axes, 1 along kept axes.

    This is the kernel's shape without its output axis. `order` is the order of the block's axes before the flatten
    (None: unchanged); `start` is the first merged axis in that order, without the batch axis.

    >>> merged_block((8, 5, 6)), merged_block((8, 5, 6), order=(1, 2, 0), start=1)
    ((8, 5, 6), (8, 1, 6))
    """
    order = _check_order(block, order, start)
    return tuple(size if order.index(axis) >= start else 1 for axis, size in enumerate(block))


def flatten_index(block: Sequence[int], order: Sequence[int] | None = None, start: int = 0) -> Index:
    """The index (F,) of one vector after flatten(start) of `block` with its axes in `order`.

    Entry f is an element of `merged_block(block, order, start)`, in row-major order.

    >>> flatten_index((2, 1, 3), order=(1, 2, 0))
    array([0, 3, 1, 4, 2, 5])
    """
    order = _check_order(block, order, start)
    part = merged_block(block, order, start)
    return np.arange(prod(part)).reshape(part).transpose(order).ravel()


def why_not_kernel(weight_shape: Sequence[int], index: Index, block: Sequence[int]) -> str | None:
    """Why a weight (O, F) cannot be scattered through `index` (F,) into a kernel (O, *block); None if it can.

    >>> why_not_kernel((10, 6), np.arange(6), (2, 1, 3))
    >>> why_not_kernel((10, 6), np.arange(6), (1, 1, 3))
    'the index contains element 5, outside the block 1×1×3'
    """
    if len(weight_shape) != 2:
        return f"a linear weight has shape (O, F), not {tuple(weight_shape)}"
    if not np.issubdtype(index.dtype, np.integer):
        return f"the index has dtype {index.dtype}; expected integers"
    if index.ndim != 1 or len(index) != weight_shape[1]:
        return (
            f"the index has shape {index.shape}; the weight {tuple(weight_shape)} needs ({weight_shape[1]},)"
        )
    if not block or min(block) < 1 or min(weight_shape) < 1:
        return f"the weight of shape {tuple(weight_shape)} or the block of {by(block)} is empty"
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= prod(block):
        return f"the index contains element {low if low < 0 else high}, outside the block {by(block)}"
    return None


def kernel_shape(weight_shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """(O, F) and (C, h, w) -> (O, C, h, w).

    >>> kernel_shape((4096, 25088), (512, 7, 7))
    (4096, 512, 7, 7)
    """
    return (weight_shape[0], *block)


def axis_order(index: Index, block: Sequence[int]) -> tuple[int, ...] | None:
    """The order of the block's axes that `index` flattens; None if it is not a permutation of entire axes.

    If several orders match, because they differ only in axes of size 1, the first is returned.

    >>> axis_order(flatten_index((2, 3, 4), order=(1, 2, 0)), (2, 3, 4))
    (1, 2, 0)
    >>> axis_order(np.arange(24)[::-1], (2, 3, 4))
    """
    if index.shape != (prod(block),):
        return None
    elements = np.arange(prod(block)).reshape(block)
    orders = permutations(range(len(block)))
    return next((order for order in orders if np.array_equal(elements.transpose(order).ravel(), index)), None)


def to_kernel(weight: Array, index: Index, block: Sequence[int]) -> Array:
    """A linear weight (O, F) as a kernel (O, *block): a view if `index` is a permutation of entire axes.

    Raises
    ------
    BadInput
        with `why_not_kernel`'s reason.

    >>> to_kernel(np.array([[1, 2, 4]]), np.array([3, 0, 3]), (1, 2, 2))
    array([[[[2, 0],
             [0, 5]]]])
    """
    reason = why_not_kernel(weight.shape, index, block)
    if reason:
        raise BadInput(reason)
    order = axis_order(index, block)
    if order is None:
        return _scatter_add(weight, index, block)
    permuted = weight.reshape(weight.shape[0], *(block[axis] for axis in order))
    return permuted.transpose(0, *(1 + order.index(axis) for axis in range(len(block))))


def why_not_weight(index: Index, block: Sequence[int]) -> str | None:
    """Why a kernel (O, *block) does not determine the weight for `index`; None if it does.

    >>> why_not_weight(np.array([3, 0, 3, 1]), (1, 2, 2))
    'element 3 occurs 2 times: its weight cannot be divided'
    """
    counts = np.bincount(index, minlength=prod(block))
    if len(counts) > prod(block):
        return f"the index contains element {int(index.max())}, outside the block {by(block)}"
    if counts.max() > 1:
        return f"element {int(counts.argmax())} occurs {counts.max()} times: its weight cannot be divided"
    if counts.min() < 1:
        return f"element {int(counts.argmin())} does not occur: its weight would be lost"
    return None


def to_weight(kernel: Array, index: Index) -> Array:
    """A kernel (O, C, h, w) as the weight (O, F) for vectors in the order of `index`: the inverse of `to_kernel`.

    A view if `index` is the identity and the kernel is contiguous.

    Raises
    ------
    BadInput
        with `why_not_weight`'s reason.
    """
    block = kernel.shape[1:]
    reason = why_not_weight(index, block)
    if reason:
        raise BadInput(reason)
    order, shape = axis_order(index, block), (kernel.shape[0], prod(block))
    if order is not None:
        return kernel.transpose(0, *(1 + axis for axis in order)).reshape(shape)
    gathered: Array = kernel.reshape(shape)[:, index]
    return gathered


def why_not_flatten(
    kernel_shape: Sequence[int],
    size: Sequence[int],
    *,
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
) -> str | None:
    """Why a convolution (O, C, *kernel) is not one linear layer on flattened maps of `size`; None if it is.

    It is one only at that size, at which it has one output position; so its stride does not matter.

    >>> why_not_flatten((10, 8, 5, 6), (5, 6))
    >>> why_not_flatten((10, 8, 5, 6), (6, 5))
    'the kernel 5×6 does not cover the map 6×5 exactly'
    """
    kernel = tuple(kernel_shape[2:])
    if kernel != tuple(size):
        return f"the kernel {by(kernel)} does not cover the map {by(size)} exactly"
    if any(padding):
        return f"padding {tuple(padding)} gives more than one output position"
    if any(d != 1 and k != 1 for d, k in zip(dilation, kernel, strict=False)):
        return f"dilation {tuple(dilation)} spreads the kernel beyond the map"
    if groups != 1:
        return f"{groups} groups do not connect all channels"
    return None


def _scatter_add(weight: Array, index: Index, block: Sequence[int]) -> Array:
    flat = np.zeros((weight.shape[0], prod(block)), dtype=weight.dtype)
    by_element = np.argsort(index, kind="stable")
    elements, firsts = np.unique(index[by_element], return_index=True)
    if len(elements) == len(index):
        flat[:, index] = weight
    else:  # sorting puts repeats side by side, so one reduceat adds them (np.add.at is many times slower)
        flat[:, elements] = np.add.reduceat(weight[:, by_element], firsts, axis=1)
    return flat.reshape(kernel_shape(weight.shape, block))


def _check_order(block: Sequence[int], order: Sequence[int] | None, start: int) -> tuple[int, ...]:
    axes = tuple(range(len(block)))
    if order is not None and tuple(sorted(order)) != axes:
        raise BadInput(f"order={tuple(order)}: expected a permutation of {axes}")
    if start not in axes:
        raise BadInput(f"start={start}: expected one of {axes} (flattening the batch axis mixes images)")
    return axes if order is None else tuple(order)
