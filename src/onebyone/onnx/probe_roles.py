"""What each number of a layer is for, which decides what numbers a probe may put there."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import onnx_ir as ir

from onebyone.onnx.layer_models import LayerModel
from onebyone.onnx.quantisation import INPUTS, operand


class Role(enum.Enum):
    """The use of a value: of a product's constant operand and bias, and of the scales of quantised numbers."""

    SCALE = "scale"
    WEIGHT = "weight"
    WEIGHT_SCALE = "scale of a weight"
    BIAS = "bias"
    BIAS_SCALE = "scale of a bias"
    BIAS_OF_SUMS = "bias of sums of integers"
    BOUND = "bound of a Clip"


#: The operands of products that may be weights, and the operand that is a bias.
_PRODUCTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "MatMul": ((0, 1), None),
    "FusedMatMul": ((0, 1), None),
    "Einsum": ((0, 1), None),
    "Gemm": ((0, 1), 2),
    "FusedGemm": ((0, 1), 2),
    "Conv": ((0, 1), 2),
}
#: A value and its role; None where there is none.
_Assigned = tuple[ir.Value | None, Role | None]
_SCALE_OF = {Role.WEIGHT: Role.WEIGHT_SCALE, Role.BIAS: Role.BIAS_SCALE}


def roles(layer: LayerModel) -> dict[str, Role]:
    """The role of each value of a layer, by name, where it has one of `Role`.

    A weight or bias may be rearranged, cast or dequantised on its way to the product.
    """
    constant = _constant_values(layer)
    found: dict[str, Role] = {}
    for node in reversed(layer.nodes):
        role = found.get(str(node.outputs[0].name))
        quantised = (node.domain, node.op_type) in INPUTS
        pairs = _of_integers(node, constant) if quantised else _of_operands(node, role, constant)
        for value, given in pairs:
            if value is not None and given is not None:
                found.setdefault(str(value.name), given)
    return found


def _of_integers(node: ir.Node, constant: set[ir.Value | None]) -> Iterator[_Assigned]:
    """The roles of the inputs of an operator that multiplies integers."""
    first, second, result, bias = INPUTS[node.domain, node.op_type]
    for number, scale, _ in (first, second):
        is_weight = bool(result) and operand(node, number) in constant
        yield operand(node, scale), Role.WEIGHT_SCALE if is_weight else Role.SCALE
    yield operand(node, result[0] if result else None), Role.SCALE
    yield operand(node, bias), Role.BIAS_OF_SUMS


def _of_operands(node: ir.Node, role: Role | None, constant: set[ir.Value | None]) -> Iterator[_Assigned]:
    """The roles of the inputs of any other operator, whose result has `role`."""
    if node.op_type in _PRODUCTS:
        weights, bias = _PRODUCTS[node.op_type]
        for index in weights:
            yield operand(node, index), Role.WEIGHT if operand(node, index) in constant else None
        yield operand(node, bias), Role.BIAS
    elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        yield operand(node, 0), role
        yield operand(node, 1), Role.SCALE if role is None else _SCALE_OF.get(role, Role.SCALE)
    elif node.op_type == "Clip":
        yield from ((operand(node, index), Role.BOUND) for index in (1, 2))
    else:
        passed = Role.BIAS if node.op_type == "Add" else role
        yield from ((value, passed if value in constant else None) for value in node.inputs)


def _constant_values(layer: LayerModel) -> set[ir.Value | None]:
    """The values that depend on nothing but constants."""
    found: set[ir.Value | None] = set()
    for node in layer.nodes:
        given = [value for value in node.inputs if value is not None]
        found.update(value for value in given if str(value.name) in layer.constants)
        if given and all(value in found for value in given):
            found.update(node.outputs)
    return found
