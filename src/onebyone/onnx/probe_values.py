"""Fresh numbers for the constants and inputs of one layer, such that both of its forms compute without rounding.

Floating numbers are small odd integers. Where numbers are quantised, integers fill their types, and scales are powers
of two that keep the results inside the range of what is quantised again: there, saturation would hide every fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx.layer_models import LayerModel
from onebyone.onnx.quantisation import INPUTS

Array = np.ndarray[Any, Any]

#: A result that is quantised again is about this large, in steps of its scale.
_SPREAD = 32
#: Root mean square of an integer of 8 bits less its zero point, rounded up.
_BYTE = 128


def integer_constants(
    layer: LayerModel, replaced: Collection[str], terms: int, magnitude: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Fresh numbers for a layer's constants; int64 ones are shapes and axes, and stay.

    Args:
        layer: the original form.
        replaced: names of constants that the converted form has, as they are or rewritten. In a layer of quantised
            numbers, the conversion relied on what the others hold: they stay, and if they equal one of `replaced`,
            they stay equal to it.
        terms: the number of products in one sum.
        magnitude: bound of the integers that floating constants become.
    """
    quantised = any(_is_quantised(tensor.dtype) for tensor in layer.constants.values())
    roles = _roles(layer)
    kept = {
        _number(tensor)
        for name, tensor in layer.constants.items()
        if quantised and name not in replaced and tensor.size == 1
    }
    shared: dict[tuple[str, Any], Array] = {}
    found: dict[str, Array] = {}
    for name, tensor in layer.constants.items():
        if quantised and name not in replaced:
            continue
        drawn = _drawn(tensor, roles.get(name, ""), quantised, terms, magnitude, rng)
        if drawn is None:
            continue
        if tensor.size == 1 and (key := _number(tensor)) in kept:
            drawn = shared.setdefault(key, drawn).reshape(drawn.shape)
        found[name] = drawn
    for name, tensor in layer.constants.items():
        if name not in found and tensor.size == 1 and (key := _number(tensor)) in shared:
            found[name] = shared[key].reshape(tuple(int(size) for size in tensor.shape.numpy()))
    return found


def _number(tensor: ir.TensorProtocol) -> tuple[str, Any]:
    """What tells whether two constants of one number are equal."""
    return tensor.dtype.name, np.asarray(tensor.numpy()).reshape(()).item()


def _drawn(
    tensor: ir.TensorProtocol,
    role: str,
    quantised: bool,
    terms: int,
    magnitude: int,
    rng: np.random.Generator,
) -> Array | None:
    """Fresh numbers for one constant; None where it is a shape or an axis."""
    shape = tuple(int(size) for size in tensor.shape.numpy())
    kind = tensor.dtype
    if kind.is_floating_point():
        numbers = _scales(shape, role, terms, rng) if quantised else odd_integers(shape, magnitude, rng)
        return np.asarray(numbers, dtype=np.float64)
    if kind == ir.DataType.INT32 and role == "bias":
        limit = int(_BYTE**2 * terms**0.5)
        return np.asarray(rng.integers(-limit, limit + 1, shape)).astype(kind.numpy())
    return _bytes(kind, shape, rng) if _is_quantised(kind) else None


def integer_inputs(
    layer: LayerModel, shapes: Mapping[str, tuple[int, ...]], magnitude: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Fresh numbers for a layer's inputs: odd integers, or integers that fill the input's type."""
    kinds = layer.input_types
    return {
        name: _bytes(kind, shape, rng)
        if _is_quantised(kind := kinds[name])
        else odd_integers(shape, magnitude, rng)
        for name, shape in shapes.items()
    }


def odd_integers(shape: tuple[int, ...], magnitude: int, rng: np.random.Generator) -> Array:
    """Random odd integers up to a magnitude, as float64."""
    half = (magnitude + 1) // 2
    return np.clip(2 * rng.integers(-half, half, shape) + 1, -magnitude, magnitude).astype(np.float64)


def _is_quantised(kind: ir.DataType) -> bool:
    return bool(kind.is_integer()) and kind != ir.DataType.INT64


def _bytes(kind: ir.DataType, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    bits = min(kind.bitwidth, 8)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind.is_signed() else (0, 2**bits)
    return np.asarray(rng.integers(low, high, shape)).astype(kind.numpy())


def _scales(shape: tuple[int, ...], role: str, terms: int, rng: np.random.Generator) -> Array:
    """Powers of two: around one, except for a weight's scale where the result is quantised again, and its bias's."""
    exponent = rng.integers(0, 3, shape)
    if role == "weight of a quantised result":
        exponent = exponent - int(np.ceil(np.log2(_BYTE**2 * terms**0.5 / _SPREAD)))
    if role == "bias of a quantised result":
        exponent = exponent - int(np.log2(_BYTE / _SPREAD))
    return 2.0**exponent


def _roles(layer: LayerModel) -> dict[str, str]:
    """For each constant that is a scale or an int32 bias: what it scales or is added to."""
    requantised = any(node.op_type == "QuantizeLinear" for node in layer.nodes)
    roles: dict[str, str] = {}
    for node in layer.nodes:
        known = INPUTS.get((node.domain, node.op_type))
        if known is not None:
            first, second, result, bias = known
            for number, scale, _ in (first, second):
                if result and _is_constant(layer, node, number):
                    _note(roles, node, scale, "weight of a quantised result")
            _note(roles, node, bias, "bias")
        elif requantised and node.op_type == "DequantizeLinear" and _is_constant(layer, node, 0):
            wide = layer.constants[str(node.inputs[0].name)].dtype.bitwidth > 8  # type: ignore[union-attr]
            _note(roles, node, 1, f"{'bias' if wide else 'weight'} of a quantised result")
    return roles


def _is_constant(layer: LayerModel, node: ir.Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is not None and str(value.name) in layer.constants


def _note(roles: dict[str, str], node: ir.Node, index: int | None, role: str) -> None:
    value = node.inputs[index] if index is not None and 0 <= index < len(node.inputs) else None
    if value is not None:
        roles[str(value.name)] = role
