"""Which values of a graph are constants, their shapes, and their numbers where an expression computes them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

Array: TypeAlias = "np.ndarray[Any, Any]"

_RANDOM = {"RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
#: Keys under which `mark_constants` keeps what it found.
_CONSTANT, _REPLACEABLE = "onebyone constant", "onebyone replaceable"
#: Key under which `set_unknown_rank` keeps its reason.
_UNKNOWN = "onebyone unknown rank"
#: What helps where calls of a function differ.
INLINE_FIRST = "inline the functions first (--inline-functions)"


#: Attributes of a Constant node that hold numbers or words without a tensor.
_NUMBERS = {"value_int", "value_ints", "value_float", "value_floats", "value_string", "value_strings"}


class NotRewritable(Exception):
    """A constant that cannot be rewritten; the message says why."""


def mark_constants(model: ir.Model) -> None:
    """Find every value that is computed from initializers alone, for `is_constant` and `replaceable`.

    One pass over the nodes, and further ones where functions call functions. Operators with graphs of their own and
    random ones give no constants.
    """
    for node in model.graph.all_nodes():
        _mark(node)
    is_new = True
    while is_new:
        for function in model.functions.values():
            for node in function.all_nodes():
                _mark(node)
        is_new = _mark_arguments(model)


def _mark(node: ir.Node) -> None:
    if node.op_type == "Constant" and node.domain == "":
        _mark_constant_node(node)
    operands = [operand for operand in node.inputs if operand is not None]
    has_graph = any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    )
    if not operands or has_graph or node.op_type in _RANDOM:
        return
    behind = [replaceable(operand) for operand in operands]
    if all(is_constant(operand) or reason for operand, reason in zip(operands, behind, strict=True)):
        reason = next((reason for reason in behind if reason), call_argument(node))
        for output in node.outputs:
            output.meta[_REPLACEABLE if reason else _CONSTANT] = reason or True


def _mark_constant_node(node: ir.Node) -> None:
    """Record the tensor of a Constant node: functions have no initializers, and lifting leaves outputs of graphs."""
    output = node.outputs[0]
    attributes = {name: attribute for name, attribute in node.attributes.items() if not attribute.is_ref()}
    if "value" in attributes:
        output.const_value = attributes["value"].as_tensor()
    elif len(node.attributes) == 1 and not attributes.keys().isdisjoint(_NUMBERS):
        output.const_value = ir.convenience.get_const_tensor(output)
    else:
        output.meta[_REPLACEABLE] = (
            call_argument(node) or f"{str(output.name)!r} is a Constant without a dense tensor"
        )


def call_argument(node: ir.Node) -> str | None:
    """Why what a node of a function does is not known: a call gives one of its attributes; None where none does."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            name = attribute.ref_attr_name
            return f"depends on the attribute {name!r} of its function: each call may give another; {INLINE_FIRST}"
    return None


def _mark_arguments(model: ir.Model) -> bool:
    """Mark the inputs of functions for which a call passes a constant; False where none is new."""
    is_new = False
    bodies = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    for node in (node for body in bodies for node in body):
        function = model.functions.get(node.op_identifier())
        if function is None:
            continue
        for given, argument in zip(node.inputs, function.inputs, strict=False):
            if _REPLACEABLE not in argument.meta and (is_constant(given) or replaceable(given)):
                argument.meta[_REPLACEABLE] = (
                    f"{str(argument.name)!r} is an argument of the function {function.name!r}: "
                    f"each call passes a constant of its own; {INLINE_FIRST}"
                )
                is_new = True
    return is_new


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer, or was found by `mark_constants` to be computed from initializers.

    An initializer that is also an input of its graph is not: whoever runs the model may replace it.
    """
    if value is None:
        return False
    if value.const_value is not None:
        return not value.is_graph_input()
    return bool(value.meta.get(_CONSTANT))


def replaceable(value: ir.Value | None) -> str | None:
    """Why a value is not a constant although every run may find the same numbers in it; None where there is no reason.

    An initializer behind it is also an input of the graph, or it is an argument of a function.
    """
    if value is None:
        return None
    if value.const_value is not None:
        if not value.is_graph_input():
            return None
        return (
            f"{str(value.name)!r} is also an input of the graph, so that a caller may replace it; "
            "freeze the initializers first (--freeze-initialisers)"
        )
    reason: str | None = value.meta.get(_REPLACEABLE)
    return reason


def set_unknown_rank(value: ir.Value, reason: str) -> None:
    """Keep the reason why the rank of a value is not known, for `unknown_rank`."""
    value.meta[_UNKNOWN] = reason


def unknown_rank(value: ir.Value) -> str:
    """A refusal of a layer whose input has no known rank."""
    reason = value.meta.get(_UNKNOWN)
    return f"the rank of its input {value.name!r} is not known" + (f": {reason}" if reason else "")


def array_of(value: ir.Value) -> Array:
    """The numbers of a constant, computed where it is an expression.

    Raises:
        NotRewritable: the value is not a constant.
    """
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is None:
        raise NotRewritable("it is not a constant")
    return _evaluate(node)


def shape_of(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a value where every size is known, else None."""
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape if isinstance(size, int))


def is_one_number(value: ir.Value) -> bool:
    """Whether a value is known to hold one number, as a tensor without axes or with axes of size one."""
    shape = shape_of(value)
    return shape is not None and prod(shape) == 1


def sizes_of(value: ir.Value) -> list[int | None] | None:
    """The size of each axis, None where it is unknown; None alone where the rank is unknown."""
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def known_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant, computed where it is not stored."""
    shape = shape_of(value)
    return array_of(value).shape if shape is None else shape


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return tuple(int(axis) for axis in array_of(node.inputs[1]).reshape(-1))
    axes = node.attributes.get_ints("axes")
    return None if axes is None else tuple(axes)


def _evaluate(node: ir.Node) -> Array:
    """Compute one node of a constant expression with NumPy."""
    operand = node.inputs[0]
    assert operand is not None
    evaluator = _EVALUATORS.get(node.op_type) if node.domain == "" else None
    if evaluator is None:
        raise NotRewritable(f"it is computed by {node.op_type}")
    return evaluator(node, array_of(operand))


def _reshaped(node: ir.Node, array: Array) -> Array:
    target = node.inputs[1]
    assert target is not None
    keep_zero = bool(node.attributes.get_int("allowzero", 0))
    shape = [int(size) for size in array_of(target)]
    sizes = [array.shape[i] if size == 0 and not keep_zero else size for i, size in enumerate(shape)]
    return array.reshape(sizes)


def _flattened(node: ir.Node, array: Array) -> Array:
    axis = node.attributes.get_int("axis", 1)
    axis += array.ndim if axis < 0 else 0
    return array.reshape(prod(array.shape[:axis]), -1)


def _squeezed(node: ir.Node, array: Array) -> Array:
    return np.squeeze(array, _axes(node))


def _unsqueezed(node: ir.Node, array: Array) -> Array:
    axes = _axes(node)
    assert axes is not None
    return np.expand_dims(array, axes)


def _cast(node: ir.Node, array: Array) -> Array:
    return array.astype(ir.DataType(node.attributes.get_int("to", 1)).numpy())


def _transposed(node: ir.Node, array: Array) -> Array:
    return array.transpose(node.attributes.get_ints("perm") or tuple(reversed(range(array.ndim))))


def _dequantised(node: ir.Node, array: Array) -> Array:
    scale_value = node.inputs[1]
    assert scale_value is not None
    scale = array_of(scale_value)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    offset = np.zeros_like(scale, dtype=np.float32) if zero is None else array_of(zero).astype(np.float32)
    axis = node.attributes.get_int("axis", 1) % max(array.ndim, 1)
    block = node.attributes.get_int("block_size", 0)
    if block:
        scale, offset = (
            np.repeat(p, block, axis=axis).take(range(array.shape[axis]), axis) for p in (scale, offset)
        )
    elif scale.size > 1:
        shape = [-1 if a == axis else 1 for a in range(array.ndim)]
        scale, offset = scale.reshape(shape), offset.reshape(shape)
    return ((array.astype(np.float32) - offset) * scale).astype(scale.dtype)


def _binary(operator: Callable[[Array, Array], Array]) -> Callable[[ir.Node, Array], Array]:
    def evaluate(node: ir.Node, array: Array) -> Array:
        other = node.inputs[1]
        assert other is not None
        return operator(array, array_of(other))

    return evaluate


_EVALUATORS: dict[str, Callable[[ir.Node, Array], Array]] = {
    "Identity": lambda node, array: array,
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Cast": _cast,
    "DequantizeLinear": _dequantised,
    "Mul": _binary(np.multiply),
    "Div": _binary(np.divide),
    "Sub": _binary(np.subtract),
    "Add": _binary(np.add),
}
