"""Operators on quantised numbers for ONNX's reference implementation, where its own (onnx 1.23) are wrong or missing.

ConvInteger and QLinearConv take one scale or zero point by output channel there for images alone, not for signals and
volumes; DequantizeLinear needs opset 19; ONNX Runtime's QGemm is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv

Array = np.ndarray[Any, Any]


class DequantizeLinear(OpRun):  # type: ignore[misc]
    """scale · (x − zero point), by tensor, by axis or by block, in every opset."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero_point: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        given = attributes.get("axis")
        axis, block = 1 if given is None else given, attributes.get("block_size") or 0
        kind = scale.dtype
        numbers = (
            x.astype(kind) if zero_point is None else x.astype(kind) - _spread(zero_point, x, axis, block)
        )
        return ((numbers * _spread(scale, x, axis, block)).astype(kind),)


def _spread(parameter: Array, x: Array, axis: int, block: int) -> Array:
    """A parameter in a shape that broadcasts to x."""
    if parameter.size == 1 and not block:
        return parameter.reshape(())
    if block:
        return np.repeat(parameter, block, axis).take(range(x.shape[axis]), axis)
    return parameter.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


class ConvInteger(OpRun):  # type: ignore[misc]
    """The sum of products of the operands less their zero points, as int32."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        x_zero_point: Array | None = None,
        w_zero_point: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array]:
        return (_sums(x, w, x_zero_point, w_zero_point, attributes).astype(np.int32),)


class QLinearConv(OpRun):  # type: ignore[misc]
    """The sums, multiplied by x_scale · w_scale / y_scale, rounded to even, saturated."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        x_scale: Array,
        x_zero_point: Array | None,
        w: Array,
        w_scale: Array,
        w_zero_point: Array | None,
        y_scale: Array,
        y_zero_point: Array | None = None,
        bias: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array]:
        sums = _sums(x, w, x_zero_point, w_zero_point, attributes)
        if bias is not None:
            sums = sums + bias.reshape(-1, *(1 for _ in range(x.ndim - 2)))
        factor = x_scale * _by_channel(w_scale, x.ndim) / y_scale
        return (_requantised(sums, factor, y_zero_point, x.dtype),)


class QGemm(OpRun):  # type: ignore[misc]
    """ONNX Runtime's product of quantised matrices with an int32 bias, with a quantised result."""

    op_domain = "com.microsoft"

    def _run(
        self,
        a: Array,
        a_scale: Array,
        a_zero_point: Array | None,
        b: Array,
        b_scale: Array,
        b_zero_point: Array | None = None,
        c: Array | None = None,
        y_scale: Array | None = None,
        y_zero_point: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array]:
        left = a.astype(np.int32) - (0 if a_zero_point is None else a_zero_point.astype(np.int32))
        right = b.astype(np.int32)
        if attributes.get("transB"):
            right = right.T
        right = right - (0 if b_zero_point is None else b_zero_point.astype(np.int32))
        sums = (left.T if attributes.get("transA") else left) @ right + (0 if c is None else c)
        alpha = attributes.get("alpha")
        factor = a_scale * b_scale * (1 if alpha is None else a_scale.dtype.type(alpha))
        if y_scale is None:
            return (sums * factor,)
        return (_requantised(sums, factor / y_scale, y_zero_point, a.dtype),)


def _by_channel(parameter: Array, rank: int) -> Array:
    return parameter if parameter.size == 1 else parameter.reshape(-1, *(1 for _ in range(rank - 2)))


def _sums(
    x: Array, w: Array, x_zero_point: Array | None, w_zero_point: Array | None, attributes: dict[str, Any]
) -> Array:
    """The sums of a convolution of bytes: far below 2⁵³, so exact in float64."""
    left = x.astype(np.float64) - (0 if x_zero_point is None else x_zero_point.astype(np.float64))
    right = w.astype(np.float64)
    if w_zero_point is not None:
        zero = w_zero_point.astype(np.float64)
        right = right - (zero if zero.size == 1 else zero.reshape(-1, *(1 for _ in range(w.ndim - 1))))
    given = {name: value for name, value in attributes.items() if value is not None}
    return np.asarray(Conv.eval(left, right, n_outputs=1, **given)).astype(np.int64)


def _requantised(sums: Array, factor: Array, zero_point: Array | None, kind: Any) -> Array:
    """As QLinearMatMul of the reference implementation: the zero point is added before rounding."""
    kind = kind if zero_point is None else zero_point.dtype
    scaled = sums.astype(np.int32) * factor
    if zero_point is not None:
        scaled = scaled + zero_point
    limits = np.iinfo(kind)
    return np.clip(np.rint(scaled), limits.min, limits.max).astype(kind)
