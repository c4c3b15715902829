"""ONNX's emitter: the operations of `onebyone.lifting.emitter.MapEmitter` as nodes of onnx-ir, for any opset from 11.

A handle is an `ir.Value` (a map) or a `ConstantHandle` (a constant). Operations on constants are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import Integers
from onebyone.lifting.index import Gather, Stencil
from onebyone.lifting.values import Cannot
from onebyone.onnx.lift.map_nodes import NodeWriter
from onebyone.onnx.lift.weights import Array, ConstantHandle

Handle = Any

#: The most positions of a window that are laid side by side.
MOST_WINDOW_POSITIONS = 1024
#: The end of a slice that reaches to the end of its axis.
END = int(np.iinfo(np.int64).max)
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_REDUCTIONS = {
    "mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "norm": "ReduceL2",
}  # fmt: skip


class OnnxEmitter(NodeWriter):
    """Writes the nodes of one any-size graph."""

    # sliding operators

    def convolution(
        self, source: Handle, weight: Handle, bias: Handle | None, ops: Sequence[Sliding], groups: int
    ) -> Handle:
        operands = [source, weight] if bias is None else [source, weight, bias]
        attributes = _sliding(ops) | {"dilations": [op.dilation for op in ops], "group": groups}
        return self.op("Conv", operands, attributes)

    def linear(
        self, source: Handle, weight: Handle, bias: Handle | None, stencil: Stencil, channels: int
    ) -> Handle:
        start = self._take(source, stencil.start, (1,) * len(stencil.step))
        kernel = self._kernel(weight, stencil, channels)
        ops = [Sliding(k, s) for k, s in zip(stencil.kernel, stencil.step, strict=True)]
        return self.convolution(start, kernel, bias, ops, 1)

    def _kernel(self, weight: ConstantHandle, stencil: Stencil, channels: int) -> ConstantHandle:
        """The weight `(O, F)` as a kernel `(O, C, *kernel)`: features that repeat an element add up."""
        order, _ = stencil.feature_order(channels)
        shape = (weight.shape[0], channels, *stencil.kernel)
        if order is None:
            reshaped: ConstantHandle = self.reshape(weight, shape)
            return reshaped

        def scattered() -> Array:
            full = np.zeros((shape[0], prod(shape[1:])), dtype=weight.wide.dtype)
            np.add.at(full.T, order, weight.wide.T)
            return full.reshape(shape)

        return weight.derived(("kernel", shape, order.tobytes()), "kernel", scattered)

    def max_pool(self, source: Handle, ops: Sequence[Sliding]) -> Handle:
        beyond = [(max(0, op.pad_before - op.kernel + 1), max(0, op.pad_after - op.kernel + 1)) for op in ops]
        if any(map(any, beyond)):  # an operator pads by less than its kernel
            source = self.pad(source, [(op.pad_before, op.pad_after) for op in ops], "constant", -np.inf)
            ops = [Sliding(op.kernel, op.stride, op.dilation) for op in ops]
        attributes = _sliding(ops) | {"dilations": [op.dilation for op in ops]}
        return self.op("MaxPool", [source], attributes)

    def mean_pool(
        self,
        source: Handle,
        ops: Sequence[Sliding],
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> Handle:
        assert divisor is None  # ONNX has no such operator
        attributes: dict[str, Any] = _sliding(ops) | {"count_include_pad": int(count_padding)}
        if any(op.dilation > 1 for op in ops):
            attributes["dilations"] = [op.dilation for op in ops]
        if any(op.ceil_mode for op in ops):
            attributes["ceil_mode"] = 1
        return self.op("AveragePool", [source], attributes)

    def windows(self, source: Handle, kernel: Sequence[int]) -> Handle:
        if prod(kernel) > MOST_WINDOW_POSITIONS:
            raise Cannot(
                f"an operator over windows of {prod(kernel)} positions, more than {MOST_WINDOW_POSITIONS}"
            )
        axes = len(kernel)
        parts = []
        for position in np.ndindex(*kernel):
            ends = [END if p == k - 1 else p - k + 1 for p, k in zip(position, kernel, strict=True)]
            part = self._slice(source, position, ends, range(2, 2 + axes), (1,) * axes)
            parts.append(self.unsqueeze(part, range(2 + axes, 2 + 2 * axes)))
        for axis in reversed(range(axes)):
            length = kernel[axis]
            parts = [
                self.join(parts[first : first + length], 2 + axes + axis)
                for first in range(0, len(parts), length)
            ]
        (joined,) = parts
        return joined

    # positions and channels

    def gather(self, source: Handle, plan: Gather, channels: int) -> Handle:
        """Crops, strides and selected channels; runs of channels are slices."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, start in enumerate(plan.starts.T):
            groups.setdefault(tuple(int(s) for s in start), []).append(k)
        parts, order = [], list[int]()
        for start, members in groups.items():
            selected = self._channels(source, plan.channels[members], channels)
            parts.append(self._take(selected, start, plan.steps))
            order += members
        joined = self.concatenate(self.crop_to_common(parts, len(plan.steps)))
        back = np.argsort(np.asarray(order))
        return joined if (back == np.arange(len(back))).all() else self._select(joined, back)

    def crop_to_common(self, maps: Sequence[Handle], axes: int) -> list[Handle]:
        if len(maps) == 1:
            return list(maps)
        least = self.positions(maps[0], axes)
        for other in maps[1:]:
            size = self.positions(other, axes)
            least = self.op("Where", [self.op("Less", [size, least]), size, least])
        return [self.limit(m, least, axes) for m in maps]

    def limit(self, source: Handle, counts: Handle, axes: int) -> Handle:
        """The map's first positions; `counts` is a vector of their number per axis."""
        zeros, along = self.integers([0] * axes), self.integers(list(range(2, 2 + axes)))
        return self.op("Slice", [source, zeros, counts, along])

    def positions(self, source: Handle, axes: int) -> Handle:
        """The number of positions per axis, a vector computed where the model runs."""
        shape = self.op("Shape", [source])
        return self.op("Slice", [shape, self.integers([2]), self.integers([2 + axes])])

    def strided(self, source: Handle, steps: Sequence[int]) -> Handle:
        return self._take(source, (0,) * len(steps), steps)

    def pad(
        self, source: Handle, amounts: Sequence[tuple[int, int]], mode: str = "constant", number: float = 0.0
    ) -> Handle:
        if mode == "circular" and self.opset < 19:
            raise Cannot(f"circular padding, which opset {self.opset} does not have")
        sides = [0, 0, *(before for before, _ in amounts), 0, 0, *(after for _, after in amounts)]
        if not any(sides):
            return source
        operands = [source, self.integers(sides)]
        if mode == "constant":
            operands.append(self.number(number, source.dtype))
        return self.op("Pad", operands, {"mode": _PAD_MODES[mode]})

    def concatenate(self, maps: Sequence[Handle]) -> Handle:
        return self.join(maps, 1)

    def filled(self, source: Handle, number: float, dtype: Any) -> Handle:
        one = self._slice(source, [0], [1], [1], [1])
        value = ir.tensor(np.asarray([number], dtype=dtype))
        return self.op("ConstantOfShape", [self.op("Shape", [one])], {"value": value})

    def repeat_channels(self, source: Handle, count: int) -> Handle:
        if count == 1:
            return source
        wide = self.unsqueeze(source, [2])
        repeats = [1] * _rank(wide)
        repeats[2] = count
        return self.merge_channels(self.op("Tile", [wide, self.integers(repeats)]), 2)

    def repeat_positions(self, source: Handle, factors: Sequence[int]) -> Handle:
        attributes = {
            "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor",
        }  # fmt: skip
        return self._resized(source, factors, attributes)

    def interpolate(self, source: Handle, factors: Sequence[int]) -> Handle:
        attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self._resized(source, factors, attributes)

    def _resized(self, source: Handle, factors: Sequence[int], attributes: Mapping[str, Any]) -> Handle:
        scales = self.constant(np.asarray([1, 1, *factors], dtype=np.float32), "scales")
        region = self.constant(np.zeros(0, dtype=np.float32), "roi") if self.opset < 13 else None
        return self.op("Resize", [source, region, scales], attributes)

    def split_channels(self, source: Handle, sizes: Sequence[int]) -> Handle:
        if len(sizes) == 2 and sizes[0] == 1:
            return self.unsqueeze(source, [1])
        tail = self._sizes_from(source, 2)
        return self.op("Reshape", [source, self.join([self.integers([0, *sizes]), tail], 0)])

    def merge_channels(self, source: Handle, count: int) -> Handle:
        if count == 2 and source.shape is not None and source.shape[1] == 1:
            return self.squeeze(source, [1])
        tail = self._sizes_from(source, 1 + count)
        return self.op("Reshape", [source, self.join([self.integers([0, -1]), tail], 0)])

    def _sizes_from(self, source: Handle, axis: int) -> Handle:
        return self.op("Slice", [self.op("Shape", [source]), self.integers([axis]), self.integers([END])])

    def single_positions(self, source: Handle, axes: int) -> Handle:
        return self.unsqueeze(source, range(2, 2 + axes))

    def as_batch(self, source: Handle, axes: int, shape: Sequence[int]) -> Handle:
        last = self.op("Transpose", [source], {"perm": [0, *range(2, 2 + axes), 1]})
        return self.op("Reshape", [last, self.integers([-1, *shape])])

    def from_batch(self, source: Handle, like: Handle, axes: int) -> Handle:
        shape = self.op("Shape", [like])
        batch = self.op("Slice", [shape, self.integers([0]), self.integers([1])])
        target = self.join([batch, self.positions(like, axes), self.integers([-1])], 0)
        rows = self.op("Reshape", [source, target])
        return self.op("Transpose", [rows], {"perm": [0, 1 + axes, *range(1, 1 + axes)]})

    def _channels(self, source: Handle, channels: Integers, count: int) -> Handle:
        first, length = int(channels[0]), len(channels)
        if (channels == np.arange(first, first + length)).all():
            return source if length == count else self._slice(source, [first], [first + length], [1], [1])
        return self._select(source, channels)

    def _select(self, source: Handle, ids: Integers) -> Handle:
        return self.op("Gather", [source, self.integers([int(i) for i in ids])], {"axis": 1})

    def _take(self, source: Handle, start: Sequence[int], steps: Sequence[int]) -> Handle:
        if not any(start) and all(step == 1 for step in steps):
            return source
        axes = range(2, 2 + len(steps))
        return self._slice(source, start, [END] * len(steps), axes, steps)

    def _slice(
        self,
        source: Handle,
        starts: Sequence[int],
        ends: Sequence[int],
        axes: Iterable[int],
        steps: Sequence[int],
    ) -> Handle:
        bounds = [self.integers(list(numbers)) for numbers in (starts, ends, axes, steps)]
        return self.op("Slice", [source, *bounds])

    # reductions, normalisation and products

    def reduce(self, source: Handle, reduction: str, axes: Sequence[int], keep_axes: bool = False) -> Handle:
        if isinstance(source, ConstantHandle):
            return source.derived(
                ("reduce", reduction, tuple(axes), keep_axes),
                reduction,
                lambda: _reduced(source.wide, reduction, tuple(axes), keep_axes),
            )
        return self.reduction(_REDUCTIONS[reduction], source, axes, keep_axes)

    def standardise_channels(
        self,
        source: Handle,
        weight: Handle | None,
        bias: Handle | None,
        epsilon: float | None,
        root_mean_square: bool,
    ) -> Handle:
        kind = source.dtype
        # sums of squares overflow in float16; LayerNormalization itself computes in float32 by default
        wide = (
            source
            if kind in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
            else self.cast(source, ir.DataType.FLOAT)
        )
        if epsilon is None:
            epsilon = float(np.finfo((wide.dtype or ir.DataType.FLOAT).numpy()).eps)
        if not root_mean_square:
            wide = self.subtract(wide, self.reduce(wide, "mean", [1], True))
        variance = self.reduce(self.multiply(wide, wide), "mean", [1], True)
        root = self.op("Sqrt", [self.add(variance, epsilon)])
        out = self.op("Div", [wide, root])
        out = out if out.dtype == kind else self.cast(out, kind)
        axes = _rank(source) - 2
        if weight is not None:
            out = self.multiply(out, self.reshape(weight, (-1, *(1,) * axes)))
        return out if bias is None else self.add(out, self.reshape(bias, (-1, *(1,) * axes)))

    def grouped_product(self, source: Handle, weight: Handle) -> Handle:
        if self.opset < 12:
            raise Cannot(f"a product that needs Einsum, which opset {self.opset} does not have")
        positions = "abcdef"[: _rank(source) - 4]
        equation = f"ngsk{positions},sko->ngso{positions}"
        return self.op("Einsum", [source, weight], {"equation": equation})

    def select(self, source: Handle, axis: int, index: Handle) -> Handle:
        return self.op("Gather", [source, index], {"axis": axis})

    # constants

    def per_channel(self, constant: Handle, ids: Integers, axes: int) -> Handle:
        shape = (len(ids), *(1,) * axes)
        if isinstance(constant, ir.Value):
            raise Cannot("a constant that is computed where the model runs")
        if np.array_equal(ids, np.arange(prod(constant.shape))):
            return self.reshape(constant, shape)
        key = ("per channel", shape, ids.tobytes())
        return constant.derived(key, "channels", lambda: constant.array.reshape(-1)[ids].reshape(shape))

    def reshape(self, constant: Handle, shape: Sequence[int]) -> Handle:
        target = tuple(shape)
        if -1 in target:
            rest = prod(n for n in target if n != -1)
            target = tuple(prod(constant.shape) // rest if n == -1 else n for n in target)
        if target == constant.shape:
            return constant
        return constant.derived(("reshape", target), "reshaped", lambda: constant.array.reshape(target))

    def permute(self, constant: Handle, order: Sequence[int]) -> Handle:
        key = tuple(order)
        if key == tuple(range(len(key))):
            return constant
        return constant.derived(("permute", key), "transposed", lambda: constant.array.transpose(key))

    def tap(self, weight: Handle, axis: int, position: int) -> Handle:
        key = ("tap", axis, position)
        return weight.derived(key, "tap", lambda: weight.array.take(position, axis))

    def matrix_vector(self, matrix: Handle, vector: Handle) -> Handle:
        return self._computed("shift", np.matmul, matrix, vector)

    # arithmetic

    def add(self, first: Handle, second: Handle | float) -> Handle:
        return self._arithmetic("Add", np.add, first, second)

    def subtract(self, first: Handle, second: Handle | float) -> Handle:
        return self._arithmetic("Sub", np.subtract, first, second)

    def multiply(self, first: Handle, second: Handle | float) -> Handle:
        return self._arithmetic("Mul", np.multiply, first, second)

    def maximum(self, first: Handle, least: float) -> Handle:
        return self._arithmetic("Max", np.maximum, first, least)

    def negative(self, source: Handle) -> Handle:
        return self._each("Neg", np.negative, source)

    def absolute(self, source: Handle) -> Handle:
        return self._each("Abs", np.abs, source)

    def square_root(self, source: Handle) -> Handle:
        return self._each("Sqrt", np.sqrt, source)

    def reciprocal_root(self, source: Handle) -> Handle:
        if isinstance(source, ConstantHandle):
            return self._computed("scale", lambda x: 1 / np.sqrt(x), source)
        return self.op("Reciprocal", [self.op("Sqrt", [source])])

    def _each(self, op_type: str, function: Callable[[Array], Array], source: Handle) -> Handle:
        if isinstance(source, ConstantHandle):
            return self._computed(op_type.lower(), function, source)
        return self.op(op_type, [source])

    def _arithmetic(
        self, op_type: str, function: Callable[[Array, Array], Array], first: Handle, second: Handle | float
    ) -> Handle:
        if isinstance(first, ConstantHandle) and not isinstance(second, ir.Value):
            return self._computed(op_type.lower(), function, first, second)
        if isinstance(second, (int, float)):
            second = self.number(float(second), first.dtype)
        return self.op(op_type, [first, second])

    def _computed(self, label: str, function: Callable[..., Array], *operands: Any) -> ConstantHandle:
        """A constant of constants, in float64 until it is stored."""
        first: ConstantHandle = operands[0]
        arrays = [o.wide if isinstance(o, ConstantHandle) else o for o in operands]
        return ConstantHandle.of_array(np.asarray(function(*arrays)), f"{first.name}/{label}", first.dtype)


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        raise Cannot(f"the rank of {value.name!r} is not known")
    return value.shape.rank()


def _sliding(ops: Sequence[Sliding]) -> dict[str, Any]:
    return {
        "kernel_shape": [op.kernel for op in ops],
        "strides": [op.stride for op in ops],
        "pads": [*(op.pad_before for op in ops), *(op.pad_after for op in ops)],
    }


def _reduced(array: Array, reduction: str, axes: tuple[int, ...], keep: bool) -> Array:
    if reduction == "norm":
        return np.asarray(np.sqrt(np.square(array).sum(axis=axes, keepdims=keep)))
    return np.asarray(getattr(np, reduction)(array, axis=axes, keepdims=keep))
