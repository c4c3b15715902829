"""Fresh numbers for the constants and inputs of one layer, such that both of its forms compute without rounding.

Floating numbers are small odd integers. Where numbers are quantised, integers fill their types, and scales are powers
of two that keep the results inside the range of what is quantised again: there, saturation would hide every fault.
Results of a QuantizeLinear are measured (`calibrated`); those of other operators are estimated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx.evaluators import run_reference
from onebyone.onnx.layer_models import LayerModel
from onebyone.onnx.probe_roles import Role, roles
from onebyone.onnx.quantisation import INPUTS, operand

Array = np.ndarray[Any, Any]

#: A result that is quantised again is about this large, in steps of its scale; one for each draw of numbers. Small ones
#: stay where bounded activations are steep, large ones stand out where a scale cannot be chosen.
SPREADS = (32, 2, 128, 8, 512, 32, 2, 128)
#: The largest magnitude that a calibrated result has, in steps of its scale.
_CALIBRATED = 96
_SCALES = (Role.SCALE, Role.WEIGHT_SCALE, Role.BIAS_SCALE)
#: Root mean square of an integer of 8 bits less its zero point, rounded up.
_BYTE = 128


def integer_constants(
    layer: LayerModel,
    replaced: Collection[str],
    terms: int,
    magnitude: int,
    rng: np.random.Generator,
    spread: int = SPREADS[0],
) -> dict[str, Array]:
    """Fresh numbers for a layer's constants; int64 ones are shapes and axes, and stay.

    Args:
        layer: the original form.
        replaced: names of constants that the converted form has, as they are or rewritten. In a layer of quantised
            numbers, the conversion relied on what the others hold: they stay, and if they equal one of `replaced`,
            they stay equal to it.
        terms: the number of products in one sum.
        magnitude: bound of the integers that floating constants become.
        spread: about how large a result that is quantised again is, in steps of its scale.
    """
    role_of = roles(layer)
    quantised, requantised = is_quantised(layer), requantises(layer)
    kept = _kept(layer, replaced)
    magnitude = _magnitude(layer, magnitude)
    shared: dict[tuple[str, Any], Array] = {}
    found: dict[str, Array] = {}
    for name, tensor in layer.constants.items():
        if quantised and name not in replaced:
            continue
        role = role_of.get(name)
        drawn = _drawn(
            tensor, role, _exponent(role, terms, spread) if requantised else 0, terms, magnitude, rng
        )
        if drawn is None:
            continue
        if _is_tied(tensor, role, kept):
            drawn = shared.setdefault(_number(tensor), drawn).reshape(drawn.shape)
        found[name] = drawn
    for name, tensor in layer.constants.items():
        if name not in found and tensor.size == 1 and (key := _number(tensor)) in shared:
            found[name] = shared[key].reshape(tuple(int(size) for size in tensor.shape.numpy()))
    return found


def calibrated(
    layer: LayerModel, replaced: Collection[str], constants: Mapping[str, Array], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """The constants, with bounds of each Clip and scales of each QuantizeLinear that fit the numbers they act on.

    A Clip keeps what is below half of the largest magnitude. A scale is the power of two that makes the largest
    magnitude at most `_CALIBRATED` steps. Scales that have to equal others stay (see `integer_constants`).
    """
    found = dict(constants)
    kept = _kept(layer, replaced)
    for node in layer.nodes:
        if node.op_type not in ("Clip", "QuantizeLinear"):
            continue
        names = [None if v is None else str(v.name) for v in (operand(node, 1), operand(node, 2))]
        is_clip = node.op_type == "Clip"
        fitted = [name for name in (names if is_clip else names[:1]) if name is not None and name in found]
        if not is_clip:
            fitted = [name for name in fitted if not _is_tied(layer.constants[name], Role.SCALE, kept)]
        if not fitted or operand(node, 0) is None:
            continue
        largest = _largest(layer, node, found, feeds)
        if not 0 < largest < np.inf:
            continue
        for name in fitted:
            bound = (-largest if name == names[0] else largest) / 2
            step = 2.0 ** np.ceil(np.log2(largest / _CALIBRATED))
            found[name] = np.full_like(found[name], bound if is_clip else step)
    return found


def _largest(
    layer: LayerModel, node: ir.Node, constants: Mapping[str, Array], feeds: Mapping[str, Array]
) -> float:
    """The largest magnitude that a node reads as its first input."""
    value = node.inputs[0]
    assert value is not None
    given = {**layer.constants, **constants, **feeds}.get(str(value.name))
    if given is not None:
        return float(np.abs(np.asarray(given, dtype=np.float64)).max(initial=0))
    part = layer.up_to(value)
    model, weights = part.in_float64(constants)
    numbers = run_reference(model, weights | {name: feeds[name] for name in part.inputs})[0]
    return float(np.abs(numbers).max(initial=0))


def _kept(layer: LayerModel, replaced: Collection[str]) -> set[tuple[str, Any]]:
    """The numbers of those constants that stay as they are."""
    if not is_quantised(layer):
        return set()
    return {
        _number(tensor)
        for name, tensor in layer.constants.items()
        if name not in replaced and tensor.size == 1
    }


def _is_tied(tensor: ir.TensorProtocol, role: Role | None, kept: Collection[tuple[str, Any]]) -> bool:
    """Whether a constant has to equal others: a scale or zero point of data that has the number of one that stays."""
    may_be = role is Role.SCALE or (role is None and not tensor.dtype.is_floating_point())
    return may_be and tensor.size == 1 and _number(tensor) in kept


def _number(tensor: ir.TensorProtocol) -> tuple[str, Any]:
    """What tells whether two constants of one number are equal."""
    return tensor.dtype.name, np.asarray(tensor.numpy()).reshape(()).item()


def _drawn(
    tensor: ir.TensorProtocol,
    role: Role | None,
    exponent: int,
    terms: int,
    magnitude: int,
    rng: np.random.Generator,
) -> Array | None:
    """Fresh numbers for one constant, times a power of two; None where it is a shape or an axis."""
    shape = tuple(int(size) for size in tensor.shape.numpy())
    kind = tensor.dtype
    if kind.is_floating_point():
        if role in _SCALES:
            return _scales(shape, exponent, rng)
        return np.asarray(odd_integers(shape, magnitude, rng) * 2.0**exponent)
    if kind == ir.DataType.INT32 and role is Role.BIAS_OF_SUMS:
        limit = int(_BYTE**2 * terms**0.5)
        return np.asarray(rng.integers(-limit, limit + 1, shape)).astype(kind.numpy())
    return _bytes(kind, shape, rng) if _is_quantised(kind) else None


def integer_inputs(
    layer: LayerModel, shapes: Mapping[str, tuple[int, ...]], magnitude: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Fresh numbers for a layer's inputs: odd integers, scales, or integers that fill the input's type."""
    kinds, role_of = layer.input_types, roles(layer)
    magnitude = _magnitude(layer, magnitude)
    found = {}
    for name, shape in shapes.items():
        if _is_quantised(kind := kinds[name]):
            found[name] = _bytes(kind, shape, rng)
        elif role_of.get(name) in _SCALES:
            found[name] = _scales(shape, 0, rng)
        else:
            found[name] = odd_integers(shape, magnitude, rng)
    return found


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


def _scales(shape: tuple[int, ...], exponent: int, rng: np.random.Generator) -> Array:
    """Powers of two around 2^`exponent`."""
    return np.asarray(2.0 ** (exponent + rng.integers(0, 3, shape)))


def _exponent(role: Role | None, terms: int, spread: int) -> int:
    """The power of two for a weight, a bias or its scale that makes a result about as large as `spread`."""
    if role in (Role.WEIGHT, Role.WEIGHT_SCALE):
        return -int(np.ceil(np.log2(_BYTE**2 * terms**0.5 / spread)))
    if role in (Role.BIAS, Role.BIAS_SCALE):
        return -int(np.log2(_BYTE / spread))
    return 0


def _magnitude(layer: LayerModel, magnitude: int) -> int:
    """The bound of floating integers: where results are quantised again, that of the integers of 8 bits."""
    return min(magnitude, _BYTE - 1) if requantises(layer) else magnitude


def is_quantised(layer: LayerModel) -> bool:
    """Whether the layer has constants of quantised numbers, or rounds its result to such."""
    return any(_is_quantised(tensor.dtype) for tensor in layer.constants.values()) or requantises(layer)


def requantises(layer: LayerModel) -> bool:
    """Whether a node of the layer rounds its result to a quantised number."""
    return any(
        node.op_type == "QuantizeLinear" or INPUTS.get((node.domain, node.op_type), ((), (), (), None))[2]
        for node in layer.nodes
    )
