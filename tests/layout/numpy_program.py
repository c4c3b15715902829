"""A front end of the layout planner on NumPy arrays: the smallest program that can be decoded, planned and written.

`NumpyProgram` holds operators with integer-valued float64 arrays, on which sums and products are exact. `direct`
evaluates every operator as it is; `planned` writes the program with `NumpyEmitter` in the orders of a plan, and counts
the permutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onebyone.layout import operators
from onebyone.layout.operators import renamed_constants
from onebyone.layout.orders import order_of
from onebyone.layout.patches import PatchRule
from onebyone.layout.planner import LayoutPlan, best_layouts, choose_orders
from onebyone.layout.products import ProductRule
from onebyone.layout.rules import FixedRule, LayoutRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct
from tests.layout.numpy_emitter import NumpyEmitter, stored

Compute = Callable[[Sequence[Any], "tuple[int, ...] | None"], Any]


class NumpyProgram:
    """Operators in program order, with the arrays of its inputs and constants."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.arrays: dict[GraphValue, np.ndarray] = {}
        self.constants: set[GraphValue] = set()
        self.rules: dict[GraphValue, LayoutRule] = {}
        self.compute: dict[GraphValue, Compute] = {}
        self.operands: dict[GraphValue, tuple[GraphValue, ...]] = {}  # as the operator names them
        self.sizes: dict[GraphValue, list[int | None]] = {}  # as the operator names them
        self.outputs: tuple[GraphValue, ...] = ()

    # -- values

    def input(self, *shape: int, symbolic: Mapping[int, Any] | None = None) -> GraphValue:
        """An input with random integers; `symbolic` replaces sizes in the shape that the planner sees."""
        value = GraphValue(
            f"input{len(self.arrays)}", tuple((symbolic or {}).get(i, s) for i, s in enumerate(shape))
        )
        self.arrays[value] = self.random.integers(-4, 5, shape).astype(float)
        return value

    def constant(self, *shape: int) -> GraphValue:
        """A constant with random integers."""
        value = self.input(*shape)
        self.constants.add(value)
        return value

    def _add(
        self,
        operands: Sequence[GraphValue],
        compute: Compute,
        rule: Callable[[GraphValue], LayoutRule | None],
        shape: Any = ...,
    ) -> GraphValue:
        """A new operator; `shape` is worked out from the operands where it is `...`, and None for a list."""
        if shape is ...:
            shape = np.shape(compute([np.zeros(x.shape or ()) for x in operands], None))
        result = GraphValue(f"value{len(self.rules)}", None if shape is None else tuple(shape))
        self.rules[result] = rule(result) or FixedRule(result, tuple(dict.fromkeys(operands)))
        self.compute[result] = compute
        self.operands[result] = tuple(operands)
        return result

    def output(self, *values: GraphValue) -> None:
        """The results of the program, which are returned in their original layout."""
        self.outputs = values
        result = GraphValue("output", None)
        self.rules[result] = FixedRule(result, tuple(dict.fromkeys(values)))
        self.compute[result] = lambda arrays, _: tuple(arrays)
        self.operands[result] = tuple(values)

    # -- operators

    def relu(self, x: GraphValue) -> GraphValue:
        return self._add(
            [x], lambda a, _: np.maximum(a[0], 0), lambda r: operators.pointwise(r, (x,)), x.shape
        )

    def add(self, x: GraphValue, y: GraphValue, shape: Any = ...) -> GraphValue:
        unique = tuple(dict.fromkeys((x, y)))
        return self._add(
            [x, y], lambda a, _: a[0] + 2 * a[1], lambda r: operators.pointwise(r, unique), shape
        )

    def transpose(self, x: GraphValue, *axes: int) -> GraphValue:
        shape = [x.size(axis) for axis in axes]
        return self._add(
            [x], lambda a, _: a[0].transpose(axes), lambda r: operators.permute(r, x, axes), shape
        )

    def reshape(self, x: GraphValue, *shape: int, symbolic: Mapping[int, Any] | None = None) -> GraphValue:
        """A size may be −1. `symbolic` replaces sizes in the shape that the planner sees."""
        known = shape if symbolic or -1 not in shape else np.empty(x.shape or ()).reshape(shape).shape
        seen = tuple((symbolic or {}).get(i, s) for i, s in enumerate(known))
        result = self._add([x], lambda a, _: a[0].reshape(shape), lambda r: operators.reshape(r, x), seen)
        self.sizes[result] = [None if size == -1 else size for size in shape]
        return result

    def unsqueeze(self, x: GraphValue, axis: int) -> GraphValue:
        return self._add([x], lambda a, _: np.expand_dims(a[0], axis), lambda r: operators.keep_axes(r, x))

    def expand(self, x: GraphValue, *shape: int) -> GraphValue:
        def compute(arrays: Sequence[np.ndarray], _: Any) -> np.ndarray:
            return np.broadcast_to(arrays[0], shape)

        result = self._add([x], compute, lambda r: operators.expand(r, x), shape)
        self.sizes[result] = list(shape)
        return result

    def _along(
        self,
        x: GraphValue,
        axes: tuple[int, ...],
        f: Callable[[np.ndarray, tuple[int, ...]], Any],
        drops: bool = False,
        shape: Any = ...,
        pieces: Sequence[Any] | None = None,
    ) -> GraphValue:
        return self._add(
            [x],
            lambda a, positions: f(a[0], axes if positions is None else tuple(positions)),
            lambda r: operators.along_axes(r, (x,), axes, drops=drops, shape=pieces),
            shape,
        )

    def softmax(self, x: GraphValue, axis: int) -> GraphValue:
        def compute(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
            e = np.exp(array - array.max(axes, keepdims=True))
            return e / e.sum(axes, keepdims=True)

        return self._along(x, (axis,), compute)

    def subtract_maximum(self, x: GraphValue, axis: int) -> GraphValue:
        """The first step of a softmax, which is exact."""
        return self._along(x, (axis,), lambda a, axes: a - a.max(axes, keepdims=True))

    def cumsum(self, x: GraphValue, axis: int) -> GraphValue:
        return self._along(x, (axis,), lambda a, axes: a.cumsum(axes[0]))

    def sum(self, x: GraphValue, *axes: int, keepdims: bool = False) -> GraphValue:
        return self._along(x, axes, lambda a, position: a.sum(position, keepdims=keepdims), not keepdims)

    def flip(self, x: GraphValue, *axes: int) -> GraphValue:
        return self._along(x, axes, np.flip)

    def slice(self, x: GraphValue, axis: int, stop: int) -> GraphValue:
        return self._along(x, (axis,), lambda a, axes: a.take(range(stop), axes[0]))

    def select(self, x: GraphValue, axis: int, index: int) -> GraphValue:
        return self._along(x, (axis,), lambda a, axes: a.take(index, axes[0]), True)

    def take(self, x: GraphValue, axis: int, indices: GraphValue) -> GraphValue:
        """The elements at `indices`, which are reduced to valid ones, along one axis."""

        def compute(a: Sequence[np.ndarray], axes: tuple[int, ...] | None) -> np.ndarray:
            position = axis if axes is None else axes[0]
            return a[0].take(a[1].astype(int).ravel() % a[0].shape[position], position)

        return self._add(
            [x, indices], compute, lambda r: operators.along_axes(r, (x, indices), (axis,), drops=False)
        )

    def split(self, x: GraphValue, axis: int, *sizes: int) -> list[GraphValue]:
        ends = np.cumsum(sizes)[:-1]
        pieces = self._along(
            x, (axis,), lambda a, axes: tuple(np.split(a, ends, axes[0])), shape=None, pieces=x.shape
        )
        assert x.shape is not None
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return [self._element(pieces, i, shape) for i, shape in enumerate(shapes)]

    def unbind(self, x: GraphValue, axis: int) -> list[GraphValue]:
        assert x.shape is not None
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        pieces = self._along(
            x,
            (axis,),
            lambda a, axes: tuple(a.take(i, axes[0]) for i in range(a.shape[axes[0]])),
            True,
            None,
            shape,
        )
        return [self._element(pieces, i, shape) for i in range(x.shape[axis])]

    def _element(self, pieces: GraphValue, index: int, shape: Sequence[Any]) -> GraphValue:
        rule = self.rules[pieces]
        if isinstance(rule, FixedRule):
            return self._add([pieces], lambda a, _: a[0][index], lambda r: None, shape)
        return self._add(
            [pieces], lambda a, _: a[0][index], lambda r: operators.element(r, pieces, rule.axes), shape
        )

    def concatenate(self, axis: int, *values: GraphValue) -> GraphValue:
        unique = tuple(dict.fromkeys(values))
        return self._add(
            values,
            lambda a, axes: np.concatenate(a, axis if axes is None else axes[0]),
            lambda r: operators.concatenate(r, unique, axis),
        )

    def normalise(
        self, x: GraphValue, count: int, scale: GraphValue | None = None, offset: GraphValue | None = None
    ) -> GraphValue:
        """(x − max) · scale + offset over the last axes: a normalisation that is exact on integers."""

        def compute(a: Sequence[np.ndarray], _: Any) -> np.ndarray:
            array, parameters = a[0], list(a[1:])
            array = array - array.max(tuple(range(array.ndim - count, array.ndim)), keepdims=True)
            array = array * parameters.pop(0) if scale is not None else array
            return array + parameters.pop(0) if offset is not None else array

        return self._add(
            [v for v in (x, scale, offset) if v is not None],
            compute,
            lambda r: operators.normalise(r, x, count, scale, offset),
            x.shape,
        )

    def normalise_sum(
        self,
        x: GraphValue,
        *addends: GraphValue,
        scale: GraphValue | None = None,
        offset: GraphValue | None = None,
    ) -> GraphValue:
        """(s − max s) · scale + offset over the last axis, for the sum s of `x` and the addends."""

        def compute(a: Sequence[np.ndarray], _: Any) -> np.ndarray:
            total, parameters = a[0], list(a[1 + len(addends) :])
            for addend in a[1 : 1 + len(addends)]:
                total = total + addend
            total = total - total.max(-1, keepdims=True)
            total = total * parameters.pop(0) if scale is not None else total
            return total + parameters.pop(0) if offset is not None else total

        return self._add(
            [v for v in (x, *addends, scale, offset) if v is not None],
            compute,
            lambda r: operators.normalise_sum(r, x, addends, scale, offset),
            x.shape,
        )

    def channel_offset(self, x: GraphValue, offset: GraphValue) -> GraphValue:
        """x[n, c, …] + offset[c], as an operator on (N, C, …)."""
        return self._add(
            [x, offset],
            lambda a, _: a[0] + a[1].reshape(-1, *[1] * (a[0].ndim - 2)),
            lambda r: operators.channels_second(r, (x, offset)),
            x.shape,
        )

    def fixed(self, x: GraphValue) -> GraphValue:
        """An operator that depends on the order of all axes: an alternating sign in row-major order."""

        def compute(a: Sequence[np.ndarray], _: Any) -> np.ndarray:
            return a[0] * (np.arange(a[0].size) % 3 - 1).reshape(a[0].shape)

        return self._add([x], compute, lambda r: None, x.shape)

    def product(
        self,
        x: GraphValue,
        outputs: int,
        *,
        to: str,
        channel: int = -1,
        bias: bool = False,
        convert: bool = True,
        penalty: float = 0.0005,
        shape: Any = ...,
        **settings: Any,
    ) -> GraphValue:
        """Σ_i W[o, i] · x[…, i, …] over one axis: with groups and strides where these are given."""
        channel %= x.rank
        groups, stride = settings.get("groups", 1), settings.get("stride", ())
        weight = self.constant(outputs, x.size(channel) // groups)
        offset = self.constant(outputs) if bias else None

        def compute(a: Sequence[np.ndarray], _: Any) -> np.ndarray:
            matrix = a[1]
            moved = np.moveaxis(a[0], channel, -1)
            parts = np.split(moved, groups, -1)
            y = np.concatenate(
                [p @ m.T for p, m in zip(parts, np.split(matrix, groups), strict=True)], axis=-1
            )
            y = y if offset is None else y + a[2]
            y = np.moveaxis(y, -1, channel)
            ends = [slice(None, None, step) for step in stride]
            return y[(..., *ends)] if ends else y

        def rule(result: GraphValue) -> LayoutRule:
            product = WeightProduct(
                result, x, channel, channel, weight, 0, 1, offset, groups=groups, stride=tuple(stride)
            )
            costs = {k: v for k, v in settings.items() if k not in ("groups", "stride")}
            return ProductRule(result, product.operands, product, to, convert, penalty, **costs)

        operands = [x, weight] if offset is None else [x, weight, offset]
        return self._add(operands, compute, rule, shape)

    def patches(
        self, x: GraphValue, outputs: int, kernel: tuple[int, ...], bias: bool = False, shape: Any = ...
    ) -> GraphValue:
        """A convolution whose kernel is its stride, over the last axes, computed from its definition."""
        axes = len(kernel)
        channel = x.rank - axes - 1
        weight = self.constant(outputs, x.size(channel), *kernel)
        offset = self.constant(outputs) if bias else None

        def compute(a: Sequence[np.ndarray], _: Any) -> np.ndarray:
            counts = [n // k for n, k in zip(a[0].shape[channel + 1 :], kernel, strict=True)]
            y = np.zeros((*a[0].shape[:channel], outputs, *counts))
            for position in np.ndindex(*counts):
                windows = tuple(slice(p * k, p * k + k) for p, k in zip(position, kernel, strict=True))
                patch = a[0][(..., slice(None), *windows)]
                for o in range(outputs):
                    product = (patch * a[1][o]).reshape(*patch.shape[:channel], -1).sum(-1)
                    y[(..., o, *position)] = product + (a[2][o] if bias else 0)
            return y

        operands = [x, weight] if offset is None else [x, weight, offset]
        return self._add(
            operands,
            compute,
            lambda result: PatchRule(result, tuple(operands), x, weight, offset, kernel),
            shape,
        )

    # -- evaluation

    def direct(self) -> list[np.ndarray]:
        """The outputs, every operator evaluated as it is."""
        arrays: dict[GraphValue, Any] = dict(self.arrays)
        for value in self.rules:
            arrays[value] = self.compute[value]([arrays[x] for x in self.operands[value]], None)
        return [arrays[value] for value in self.outputs]

    def free_values(self) -> set[GraphValue]:
        """The values that are stored in any order at conversion."""
        return self.constants | renamed_constants(self.rules, self.constants).keys()

    def plan(self) -> LayoutPlan:
        return choose_orders(self.rules, self.free_values())

    def planned(self, plan: LayoutPlan) -> tuple[list[np.ndarray], NumpyEmitter]:
        """The outputs, every operator written in the orders of a plan; and the emitter, which counted the permutes."""
        emitter = NumpyEmitter(self)
        free, renames = self.free_values(), renamed_constants(self.rules, self.constants)
        best = best_layouts(self.rules, plan)
        tensors: StoredTensors[Any] = StoredTensors(emitter, free, renames, best)
        for value, array in self.arrays.items():
            tensors.put(value, value.natural_layout, stored(array, value.natural_layout))
            if value in self.constants:
                emitter.not_counted.append(tensors.natural(value))
        for value, rule in self.rules.items():
            if value not in renames:
                order, operand_orders = plan.orders[value]
                written, layout = rule.write(tensors, order, operand_orders)
                assert value.shape is None or order_of(layout) == order
                tensors.put(value, layout, written)
        return [tensors.natural(value) for value in self.outputs], emitter
