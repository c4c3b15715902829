"""A front end for networks that are plain lists of NumPy operators: a decoder, and what runs the rules on an image.

It shows what a front end has to provide, and tests the rules without any framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.laws.geometry import Sliding
from onebyone.lifting import operators
from onebyone.lifting.grid import Grid
from onebyone.lifting.index import BATCH
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.rules.einsum import matmul_terms
from onebyone.lifting.rules.table import lift
from onebyone.lifting.values import Const, Lifted
from tests.lifting import numpy_emitter

Array = NDArray[Any]


@dataclass(frozen=True)
class Op:
    """One operator: its result's name, its kind, the names of its operands, and its settings."""

    result: str
    kind: str
    operands: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


EPSILON = 1e-5

# what the operators compute, each written independently of the emitter


def _convolution(x: Array, weight: Array, bias: Array, stride: int = 1) -> Array:
    """Added up tap by tap."""
    height, width = weight.shape[2:]
    rows, columns = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    out = np.zeros((len(x), len(weight), rows, columns)) + bias[:, None, None]
    for dy, dx in np.ndindex(height, width):
        part = x[:, :, dy : dy + rows * stride : stride, dx : dx + columns * stride : stride]
        out += np.einsum("nchw,oc->nohw", part[:, :, :rows, :columns], weight[:, :, dy, dx])
    return out


def _max_pool(x: Array, size: int) -> Array:
    n, c, h, w = x.shape
    cut = x[:, :, : h // size * size, : w // size * size]
    return cut.reshape(n, c, h // size, size, w // size, size).max((3, 5))


def _pool(
    x: Array,
    reduction: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int] | None = None,
) -> Array:
    """Over the last axes, position by position."""
    steps = dilation or (1,) * len(kernel)
    first = x.ndim - len(kernel)
    counts = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[first:], kernel, stride, steps, strict=True)
    ]
    out = np.zeros((*x.shape[:first], *counts))
    for position in np.ndindex(*counts):
        taps = [
            np.arange(p * s, p * s + (k - 1) * d + 1, d)
            for p, s, k, d in zip(position, stride, kernel, steps, strict=True)
        ]
        part = x[(..., *np.ix_(*taps))]
        out[(..., *position)] = getattr(part, reduction)(tuple(range(first, x.ndim)))
    return out


def _adaptive(x: Array, reduction: str, bins: Sequence[int]) -> Array:
    """Bin i of m over n positions is [⌊i·n/m⌋, ⌈(i+1)·n/m⌉)."""
    first = x.ndim - len(bins)
    out = np.zeros((*x.shape[:first], *bins))
    for position in np.ndindex(*bins):
        spans = [
            slice(math.floor(i * n / m), math.ceil((i + 1) * n / m))
            for i, n, m in zip(position, x.shape[first:], bins, strict=True)
        ]
        out[(..., *position)] = getattr(x[(..., *spans)], reduction)(tuple(range(first, x.ndim)))
    return out


def _reduce(x: Array, reduction: str, axes: tuple[int, ...], keep: bool = False) -> Array:
    if reduction == "norm":
        return np.sqrt((x**2).sum(axes, keepdims=keep))
    return getattr(x, reduction)(axes, keepdims=keep)


def _layer_norm(x: Array, weight: Array, bias: Array, axes: int, root_mean_square: bool = False) -> Array:
    last = tuple(range(-axes, 0))
    centred = x if root_mean_square else x - x.mean(last, keepdims=True)
    return centred / np.sqrt((centred**2).mean(last, keepdims=True) + EPSILON) * weight + bias


def _twice(x: Array) -> Array:
    """Positions at quarters between their neighbours, those outside at the border."""
    for axis in (2, 3):
        padded = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], "edge")
        before, after = (padded.take(range(a, a + x.shape[axis]), axis) for a in (0, 2))
        parts = np.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = parts.reshape(*(n * (2 if a == axis else 1) for a, n in enumerate(x.shape)))
    return x


def _ceil_max_pool(x: Array, kernel: int, stride: int) -> Array:
    """The last position may be partial."""
    counts = [math.ceil((n - kernel) / stride) + 1 for n in x.shape[2:]]
    out = np.zeros((*x.shape[:2], *counts))
    for i, j in np.ndindex(*counts):
        part = x[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        out[:, :, i, j] = part.max((2, 3))
    return out


def _group_norm(x: Array, weight: Array, bias: Array, groups: int | None) -> Array:
    """Over each group of channels and all positions; None: each channel by itself."""
    count = groups or x.shape[1]
    parts = x.reshape(len(x), count, -1)
    centred = parts - parts.mean(2, keepdims=True)
    normed = (centred / np.sqrt(centred.var(2, keepdims=True) + EPSILON)).reshape(x.shape)
    wide = (-1, *(1,) * (x.ndim - 2))
    return normed * weight.reshape(wide) + bias.reshape(wide)


def _softmax(x: Array, axis: int) -> Array:
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


def _wide_convolution(x: Array, weight: Array, bias: Array, padding: int = 0) -> Array:
    """Over two axes, with zeros around the second."""
    return _convolution(np.pad(x, [(0, 0), (0, 0), (0, 0), (padding, padding)]), weight, bias)


def _dilated(x: Array, weight: Array, bias: Array, dilation: int, groups: int) -> Array:
    """The kernel with zeros between its taps, for each group of channels by itself."""
    out, count = [], len(weight) // groups
    for g, part in enumerate(np.split(x, groups, 1)):
        kernel = weight[g * count : (g + 1) * count]
        wide = np.zeros((*kernel.shape[:2], *((n - 1) * dilation + 1 for n in kernel.shape[2:])))
        wide[:, :, ::dilation, ::dilation] = kernel
        out.append(_convolution(part, wide, bias[g * count : (g + 1) * count]))
    return np.concatenate(out, 1)


MEANINGS: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "max_pool": _max_pool,
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "matmul": np.matmul,
    "einsum": lambda *operands, equation: np.einsum(equation, *operands),
    "batch_norm": lambda x, mean, variance, weight=1.0, bias=0.0: (
        (x - mean) / np.sqrt(variance + EPSILON) * weight + bias
    ),
    "relu": lambda x: np.maximum(x, 0),
    "add": np.add,
    "subtract": np.subtract,
    "divide": np.divide,
    "power": np.power,
    "greater": lambda a, b: (a > b).astype(float),
    "mean": lambda x, axes, keep=False: x.mean(axes, keepdims=keep),
    "reshape": lambda x, shape: x.reshape(len(x), *shape),
    "transpose": lambda x, order: x.transpose(order),
    "slice": lambda x, window: x[window],
    "concatenate": lambda *parts, axis: np.concatenate(parts, axis),
    "dilated": _dilated,
    "wide_convolution": _wide_convolution,
    "pool": _pool,
    "adaptive": _adaptive,
    "reduce": _reduce,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "cumsum": lambda x, axis: x.cumsum(axis),
    "variance": lambda x, axes: x.var(axes),
    "stack": lambda *parts, axis: np.stack(parts, axis),
    "select": lambda x, index, axis: x.take(index, axis),
    "pad": lambda x, amounts, number=0.0: np.pad(
        x, [(0, 0)] * (x.ndim - len(amounts)) + list(amounts), constant_values=number
    ),
    "crop": lambda x, amounts: x[
        (..., *(slice(-a, n + b) for n, (a, b) in zip(x.shape[-len(amounts) :], amounts, strict=True)))
    ],
    "linear_in": lambda x, weight: x @ weight,
    "group_norm": _group_norm,
    "convolution_1d": lambda x, weight, bias: _convolution(x[:, :, None], weight[:, :, None], bias)[:, :, 0],
    "repeat": lambda x, factor: x.repeat(factor, 2).repeat(factor, 3),
    "twice": _twice,
    "ceil_max_pool": _ceil_max_pool,
}


def run(network: Sequence[Op], constants: Mapping[str, Array], image: Array) -> dict[str, Array]:
    """Every value of the network by name; "image" is the input."""
    values = {"image": image, **constants}
    for op in network:
        values[op.result] = MEANINGS[op.kind](*(values[o] for o in op.operands), **op.settings)
    return values


# the decoder


def _axes(source: Any, axes: Sequence[int]) -> tuple[int, ...]:
    return operators.axes_without_batch(axes, len(source.shape) + 1)


def _along(kind: str) -> Callable[..., operators.AxisOperator]:
    """The decoder of an operator that keeps the elements along an axis in their order."""
    return lambda v, axis: operators.AxisOperator(
        v[0], _axes(v[0], (axis,)), lambda x, over: [MEANINGS[kind](x, *over)], reduces=False, any_order=False
    )


#: Operands and settings to the neutral operator, for operators that need nothing else.
DECODERS: dict[str, Callable[..., Any]] = {
    "dilated": lambda v, dilation, groups: operators.Convolution(
        *v, (1, 1), [(0, 0)] * 2, (dilation,) * 2, groups
    ),
    "wide_convolution": lambda v, padding=0: operators.Convolution(
        *v, (1, 1), [(0, 0), (padding, padding)], (1, 1), 1
    ),
    "pool": lambda v, reduction, kernel, stride, dilation=None: operators.Pool(
        v[0], reduction, kernel, stride, [(0, 0)] * len(kernel), dilation or (1,) * len(kernel)
    ),
    "adaptive": lambda v, reduction, bins: operators.AdaptivePool(v[0], reduction, bins),
    "reduce": lambda v, reduction, axes, keep=False: operators.Reduce(
        v[0], reduction, _axes(v[0], axes), keep
    ),
    "layer_norm": lambda v, axes, root_mean_square=False: operators.LayerNorm(
        v[0], axes, v[1], v[2], EPSILON, root_mean_square
    ),
    "softmax": _along("softmax"),
    "cumsum": _along("cumsum"),
    "variance": lambda v, axes: operators.AxisOperator(
        v[0], _axes(v[0], axes), lambda x, over: [x.var(tuple(over))], reduces=True, any_order=True, any_extent=True
    ),
    "stack": lambda v, axis: operators.Stack(v, axis - 1),
    "select": lambda v, axis: operators.Select(*v, axis - 1),
    "pad": lambda v, amounts, number=0.0: operators.Pad(v[0], amounts, "constant", number),
    "group_norm": lambda v, groups: operators.GroupNorm(v[0], groups, v[1], v[2], EPSILON),
    "ceil_max_pool": lambda v, kernel, stride: operators.Pool(
        v[0], "max", (kernel,) * 2, (stride,) * 2, [(0, 0)] * 2, (1, 1), ceil_mode=True
    ),
    "convolution_1d": lambda v: operators.Convolution(*v, (1,), [(0, 0)], (1,), 1),
    "crop": lambda v, amounts: operators.Pad(v[0], amounts),
    "linear_in": lambda v: operators.Linear(*v, None, transposed=True),
}  # fmt: skip


def decode(op: Op, operands: Sequence[Any], call: operators.Call, nominal: Array) -> Any:
    """The neutral operator of an operator on lifted values and constants."""
    first, settings = operands[0], op.settings
    if op.kind == "convolution":
        stride, none = (settings.get("stride", 1),) * 2, [(0, 0)] * 2
        return operators.Convolution(*operands, stride, none, (1, 1), 1)
    if op.kind in DECODERS:
        return DECODERS[op.kind](operands, **settings)
    if op.kind == "max_pool":
        size = (settings["size"],) * 2
        return operators.Pool(first, "max", size, size, [(0, 0)] * 2, (1, 1))
    if op.kind == "linear":
        return operators.Linear(*operands)
    if op.kind == "matmul":
        ranks = [len(v.shape) + isinstance(v, Lifted) for v in operands]
        return operators.Einsum(operands, *matmul_terms(*ranks))
    if op.kind == "einsum":
        terms, result = settings["equation"].split("->")
        return operators.Einsum(operands, terms.split(","), result)
    if op.kind == "batch_norm":
        weight, bias = operands[3:] or (None, None)
        return operators.BatchNorm(
            *operands[:3], weight, bias, EPSILON, lambda x: call.apply(x, *operands[1:])
        )
    if op.kind == "mean":
        axes = operators.axes_without_batch(settings["axes"], len(first.shape) + 1)
        return operators.Reduce(first, "mean", axes, settings.get("keep", False))
    if op.kind in ("reshape", "transpose", "slice"):
        return operators.Rearrange(first, lambda numbers: MEANINGS[op.kind](numbers, **settings))
    if op.kind == "concatenate":
        return operators.Concatenation(operands, settings["axis"] - 1)
    if op.kind in ("repeat", "twice"):
        return operators.Resize(first, nominal.shape[2:], "nearest" if op.kind == "repeat" else "linear")
    return operators.Elementwise(operands, call.apply)


class KeepingLifter(Lifter):
    """Keeps the last value of the network."""

    last: Lifted


def _check_extent(value: Lifted, image: Array, window: tuple[int, ...]) -> None:
    """The map has the channels and, at the size of this image, the numbers of positions that its grid says."""
    assert value.handle.shape[:2] == (len(image), value.grid.channels)
    more = [n - w for n, w in zip(image.shape[2:], window, strict=True)]
    assert value.handle.shape[2:] == tuple(s[m] for s, m in zip(value.grid.sizes, more, strict=True))


def _check_record(value: Lifted, operands: Sequence[Any], key: str) -> None:
    """The index is not a written-out identity; pools are those of the operands, and perhaps the operator itself."""
    if value.index is not None:
        assert value.index.dtype == np.int64
        size = math.prod(value.grid.shape)
        assert value.index.shape != value.grid.shape or (value.index.ravel() != np.arange(size)).any()
    before: frozenset[str] = frozenset().union(*(v.pooled for v in operands if isinstance(v, Lifted)))
    assert value.pooled in (before, before | {key}), key


def any_size(
    network: Sequence[Op],
    constants: Mapping[str, Array],
    image: Array,
    window: tuple[int, ...],
    context: str | None = None,
    came_through: frozenset[str] = frozenset(),
    **settings: Any,
) -> tuple[Array, tuple[int, ...], KeepingLifter]:
    """The last value of the network at every window of a larger image, `(N, K, *positions)`; the stride in pixels.

    `settings` are those of the lifter. Constants named "known…" are part of the code, not of a checkpoint.
    `came_through` are pools that the image is said to come through, which every value must then record.
    """
    nominal = run(network, constants, np.zeros((BATCH, image.shape[1], *window)))
    lifter = KeepingLifter(numpy_emitter, window, context=context, **settings)  # type: ignore[arg-type]
    values: dict[str, Any] = {
        name: Const(array, array.shape, name, array if name.startswith("known") else None)
        for name, array in constants.items()
    }
    values["image"] = Lifted(image, Grid.image(image.shape[1], window), None, came_through)
    for op in network:
        operands = [values[name] for name in op.operands]
        result = nominal[op.result]
        call = operators.Call(
            name=op.kind,
            path="",
            key=op.result,
            shapes=(result.shape[1:],),
            dtype=result.dtype,
            operands=tuple(operands),
            apply=lambda *handles, op=op: MEANINGS[op.kind](*handles, **op.settings),
        )
        lifted = values[op.result] = lift(lifter, call, decode(op, operands, call, result))
        assert lifted.shape == call.shape, op
        _check_extent(lifted, image, window)
        _check_record(lifted, operands, op.result)
    last = lifter.last = lifter.at_one_position(values[network[-1].result])
    stride = tuple(math.lcm(j, a) for j, a in zip(last.grid.jump, last.grid.align, strict=True))
    steps = [s // j for s, j in zip(stride, last.grid.jump, strict=True)]
    counts = [Sliding(w, s).out_size(n) for w, s, n in zip(window, stride, image.shape[2:], strict=True)]
    every = numpy_emitter.strided(last.handle, steps)
    return every[(slice(None), slice(None), *(slice(0, n) for n in counts))], stride, lifter


def every_crop(
    network: Sequence[Op],
    constants: Mapping[str, Array],
    image: Array,
    window: tuple[int, ...],
    stride: tuple[int, ...],
) -> Array:
    """The network run on each crop, laid out as the result of `any_size` is."""
    counts = [Sliding(w, s).out_size(n) for w, s, n in zip(window, stride, image.shape[2:], strict=True)]
    crops = []
    for position in np.ndindex(*counts):
        where = [slice(p * s, p * s + w) for p, s, w in zip(position, stride, window, strict=True)]
        out = run(network, constants, image[(slice(None), slice(None), *where)])[network[-1].result]
        crops.append(out.reshape(len(image), -1))
    return np.stack(crops, -1).reshape(len(image), -1, *counts)
