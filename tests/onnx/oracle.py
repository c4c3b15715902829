"""A second computation of small graphs, written apart from the package and from ONNX's evaluators: NumPy in float64.

It knows the operators that the random graphs of `tests.onnx.fuzz` hold, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


def outputs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """The model's first output; integers stay integers, everything else is float64."""
    functions = {(f.domain, f.name): f for f in model.functions}
    values: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values |= {name: np.asarray(array) for name, array in feeds.items()}
    _run(model.graph.node, values, functions)
    return values[model.graph.output[0].name]


def _run(
    nodes: Any,
    values: dict[str, Array],
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
    arguments: Mapping[str, Any] | None = None,
) -> None:
    for node in nodes:
        given = [values[name] if name else None for name in node.input]
        attributes = {
            a.name: (arguments or {})[a.ref_attr_name]
            if a.ref_attr_name
            else onnx.helper.get_attribute_value(a)
            for a in node.attribute
        }
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            inner = dict(zip(function.input, given, strict=False))
            _run(function.node, inner, functions, attributes)
            values[node.output[0]] = inner[function.output[0]]
        elif node.op_type == "If":
            branch = attributes["then_branch" if given[0] else "else_branch"]
            scope = values | {t.name: numpy_helper.to_array(t) for t in branch.initializer}
            _run(branch.node, scope, functions)
            values[node.output[0]] = scope[branch.output[0].name]
        else:
            values[node.output[0]] = np.asarray(globals()[f"_{node.op_type.lower()}"](attributes, *given))


def _wide(array: Array) -> Array:
    return array.astype(np.float64)


def _matmul(_: Any, a: Array, b: Array) -> Array:
    return np.matmul(_wide(a), _wide(b))


def _gemm(given: Any, a: Array, b: Array, c: Array | None = None) -> Array:
    left = _wide(a).T if given.get("transA") else _wide(a)
    right = _wide(b).T if given.get("transB") else _wide(b)
    out = given.get("alpha", 1.0) * left @ right
    return out if c is None else out + given.get("beta", 1.0) * _wide(c)


def _einsum(given: Any, *operands: Array) -> Array:
    return np.einsum(given["equation"].decode(), *map(_wide, operands))


def _add(_: Any, a: Array, b: Array) -> Array:
    return _wide(a) + _wide(b)


def _mul(_: Any, a: Array, b: Array) -> Array:
    return _wide(a) * _wide(b)


def _relu(_: Any, a: Array) -> Array:
    return np.maximum(a, 0)


def _clip(_: Any, a: Array, low: Array, high: Array) -> Array:
    return np.minimum(np.maximum(a, low), high)


def _identity(_: Any, a: Array) -> Array:
    return a


def _constant(given: Any) -> Array:
    return numpy_helper.to_array(given["value"])


def _cast(given: Any, a: Array) -> Array:
    return _wide(a)


def _transpose(given: Any, a: Array) -> Array:
    return a.transpose(given["perm"])


def _flatten(given: Any, a: Array) -> Array:
    return a.reshape(int(np.prod(a.shape[: given["axis"]])), -1)


def _reshape(_: Any, a: Array, shape: Array) -> Array:
    return a.reshape([int(size) for size in shape])


def _positions(a: Array, weight: Array, given: Any) -> Array:
    """A convolution of kernel 1×1, group by group."""
    steps = tuple(slice(None, None, s) for s in given.get("strides", [1] * (a.ndim - 2)))
    groups = given.get("group", 1)
    x = np.split(_wide(a)[(slice(None), slice(None), *steps)], groups, axis=1)
    w = np.split(_wide(weight).reshape(weight.shape[:2]), groups, axis=0)
    parts = [np.moveaxis(np.tensordot(m, v, ([1], [1])), 0, 1) for m, v in zip(w, x, strict=True)]
    return np.concatenate(parts, axis=1)


def _conv(given: Any, a: Array, weight: Array, bias: Array | None = None) -> Array:
    out = _positions(a, weight, given)
    return out if bias is None else out + _wide(bias).reshape(-1, *([1] * (a.ndim - 2)))


def _less(a: Array, zero: Array | None, axis: int = 0) -> Array:
    """Numbers less their zero point, which may be one for each index along an axis."""
    if zero is None:
        return _wide(a)
    return _wide(a) - (_wide(zero) if zero.ndim == 0 else _along(_wide(zero), a.ndim, axis))


def _along(vector: Array, rank: int, axis: int) -> Array:
    return vector.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def _rounded(a: Array, zero: Array) -> Array:
    low, high = _RANGES[zero.dtype.name]
    return np.clip(np.rint(a) + int(zero), low, high).astype(zero.dtype)


def _quantizelinear(_: Any, a: Array, scale: Array, zero: Array) -> Array:
    return _rounded(_wide(a) / _wide(scale), zero)


def _dequantizelinear(given: Any, a: Array, scale: Array, zero: Array | None = None) -> Array:
    axis = given.get("axis", 1)
    return _less(a, zero, axis) * (_wide(scale) if scale.ndim == 0 else _along(_wide(scale), a.ndim, axis))


def _matmulinteger(_: Any, a: Array, b: Array, za: Array | None = None, zb: Array | None = None) -> Array:
    return np.matmul(_less(a, za), _less(b, zb, -1))


def _convinteger(given: Any, a: Array, b: Array, za: Array | None = None, zb: Array | None = None) -> Array:
    return _positions(_less(a, za), _less(b, zb, 0), given)


def _qlinearmatmul(
    _: Any, a: Array, sa: Array, za: Array, b: Array, sb: Array, zb: Array, s: Array, z: Array
) -> Array:
    return _rounded(np.matmul(_less(a, za), _less(b, zb, -1)) * _wide(sa) * _wide(sb) / _wide(s), z)


def _qlinearconv(
    given: Any,
    a: Array,
    sa: Array,
    za: Array,
    b: Array,
    sb: Array,
    zb: Array,
    s: Array,
    z: Array,
    bias: Array | None = None,
) -> Array:
    sums = _conv(given, _less(a, za), _less(b, zb, 0), bias)
    scale = _wide(sb) if sb.ndim == 0 else _along(_wide(sb), a.ndim, 1)
    return _rounded(sums * _wide(sa) * scale / _wide(s), z)
