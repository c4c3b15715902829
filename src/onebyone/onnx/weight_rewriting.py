"""Rewrite constants by transposes and reshapes, in the form in which an exporter stored them.

A weight may be an initializer, or computed from initializers. Behind Identity, Transpose, Reshape, Cast,
DequantizeLinear and arithmetic, a rewritten weight (transposed, reshaped) is made from the initializers themselves, so
that a quantised weight stays quantised. What other operators compute is transposed and reshaped in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import Array, NotRewritable, known_shape, shape_of
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx_file import unmapped

#: One step of a rewriting: ("transpose", permutation), ("reshape", shape), ("broadcast", shape), ("scale", (factor,)),
#: ("slice", (axis, start, stop)), ("among ones", (shape, ranges)): one number at these ranges of a tensor of
#: this shape, and 1 elsewhere.
Step: TypeAlias = "tuple[str, tuple[Any, ...]]"

_SHAPE_OPERATORS = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_ARITHMETIC = {"Mul", "Div", "Sub", "Add"}


@dataclass
class WeightRewriter:
    """Rewrites constants by transposes and reshapes; the same rewriting of one constant is made once.

    `entries` maps the name of each new initializer to the name of the one that it was made from, and the steps.
    """

    entries: dict[str, tuple[str, tuple[Step, ...]]]
    _made: dict[tuple[int, int, tuple[Step, ...]], ir.Value]

    def __init__(self) -> None:
        self.entries = {}
        self._made = {}

    def rewrite(self, writer: GraphWriter, value: ir.Value, steps: Sequence[Step]) -> ir.Value:
        """The value after `steps`, as a new constant or an expression of new constants.

        Raises:
            NotRewritable: a scale or an operand of the expression would not keep an axis of its own.
        """
        kept = tuple(step for step in steps if not _is_trivial(step))
        if not kept:
            return value
        key = (id(value), id(writer.container), kept)
        if key not in self._made or _was_removed(self._made[key]):
            self._made[key] = self._rewritten(writer, value, kept)
        return self._made[key]

    def _rewritten(self, writer: GraphWriter, value: ir.Value, steps: tuple[Step, ...]) -> ir.Value:
        if value.const_value is not None:
            new = writer.constant(_lazily(value.const_value, steps), "weight")
            source, before = self.entries.get(str(value.name), (str(value.name), ()))
            self.entries[str(new.name)] = (source, (*before, *steps))
            return new
        node = value.producer()
        if node is None:
            raise NotRewritable("it is not a constant")
        operand = node.inputs[0]
        assert operand is not None
        if node.domain != "" or node.op_type not in _SHAPE_OPERATORS | _ARITHMETIC | {
            "Cast",
            "DequantizeLinear",
        }:
            return _in_the_graph(writer, value, steps)
        if node.op_type not in _SHAPE_OPERATORS and any(
            kind in ("scale", "broadcast", "slice", "among ones") for kind, _ in steps
        ):
            raise NotRewritable("a computed constant takes no factor, and is not repeated or split")
        if node.op_type in _SHAPE_OPERATORS:
            return self.rewrite(writer, operand, (_step_of(node), *steps))
        if node.op_type == "Cast":
            new = self.rewrite(writer, operand, steps)
            return writer.op("Cast", [new], _attributes(node), dtype=value.dtype, shape=shape_of(new))
        if node.op_type == "DequantizeLinear":
            return self._dequantised(writer, node, steps)
        return self._arithmetic(writer, node, steps)

    def _dequantised(self, writer: GraphWriter, node: ir.Node, steps: tuple[Step, ...]) -> ir.Value:
        quantised, scale, *rest = node.inputs
        if quantised is None or scale is None:
            raise NotRewritable("its DequantizeLinear has no scale")
        shape = known_shape(quantised)
        attributes = _attributes(node)
        scales = known_shape(scale)
        block = int(attributes.get("block_size", 0) or 0)
        parameters = [scale, *(value for value in rest if value is not None)]
        if scales and (prod(scales) > 1 or block):
            axis = int(attributes.get("axis", 1)) % len(shape)
            attributes["axis"] = _tracked(axis, shape, steps)
            if block:
                parameters = [
                    self.rewrite(writer, p, _on_blocks(shape, known_shape(p), steps)) for p in parameters
                ]
        new = self.rewrite(writer, quantised, steps)
        output = node.outputs[0]
        return writer.op(
            "DequantizeLinear", [new, *parameters], attributes, dtype=output.dtype or scale.dtype
        )

    def _arithmetic(self, writer: GraphWriter, node: ir.Node, steps: tuple[Step, ...]) -> ir.Value:
        left, right = node.inputs
        if left is None or right is None:
            raise NotRewritable(f"its {node.op_type} lacks an operand")
        shape = tuple(np.broadcast_shapes(known_shape(left), known_shape(right)))
        operands = []
        for operand in (left, right):
            own = known_shape(operand)
            if not own:
                operands.append(operand)
                continue
            full = (1,) * (len(shape) - len(own)) + own
            lifted: tuple[Step, ...] = (("reshape", full), *_on_broadcast(shape, full, steps))
            operands.append(self.rewrite(writer, operand, lifted))
        return writer.op(node.op_type, operands, dtype=node.outputs[0].dtype)


def _was_removed(value: ir.Value) -> bool:
    """Whether a rewritten constant left the graph again, with a layer that then could not be converted."""
    node = value.producer()
    return not value.is_initializer() if node is None else node.graph is None


def _in_the_graph(writer: GraphWriter, value: ir.Value, steps: Sequence[Step]) -> ir.Value:
    """Transposes and reshapes as nodes, for a constant that some other operator computes."""
    shape = shape_of(value)
    if shape is None:
        raise NotRewritable("it is computed in the graph, and its shape is not known")
    for kind, numbers in steps:
        if kind == "transpose":
            shape = tuple(shape[axis] for axis in numbers)
            value = writer.op("Transpose", [value], {"perm": list(numbers)}, shape=shape)
        elif kind == "reshape":
            shape = tuple(numbers)
            value = writer.op("Reshape", [value, writer.integers(shape)], shape=shape)
        else:
            raise NotRewritable(
                "it is computed in the graph, and takes no factor and is not repeated or split"
            )
    return value


def _is_trivial(step: Step) -> bool:
    kind, numbers = step
    return kind == "transpose" and numbers == tuple(range(len(numbers)))


def apply_steps(array: Array, steps: Sequence[Step]) -> Array:
    """Carry out the steps on an array; one copy at most, where the order of the numbers changes.

    >>> apply_steps(np.arange(6), [("reshape", (2, 3)), ("transpose", (1, 0)), ("scale", (2,))]).tolist()
    [[0, 6], [2, 8], [4, 10]]
    >>> apply_steps(np.array(7), [("among ones", ((4,), ((1, 3),)))]).tolist()
    [1, 7, 7, 1]
    """
    for kind, numbers in steps:
        if kind == "scale":
            array = array * array.dtype.type(numbers[0])
        elif kind == "transpose":
            array = array.transpose(numbers)
        elif kind == "broadcast":
            array = np.broadcast_to(array, numbers)
        elif kind == "slice":
            array = array[(slice(None),) * numbers[0] + (slice(*numbers[1:]),)]
        elif kind == "among ones":
            number, array = array.reshape(()), np.ones(numbers[0], array.dtype)
            for start, stop in numbers[1]:
                array.reshape(-1)[start:stop] = number
        else:
            array = array.reshape(numbers)
    return np.ascontiguousarray(array).reshape(array.shape)


def _lazily(tensor: ir.TensorProtocol, steps: tuple[Step, ...]) -> ir.TensorProtocol:
    """A tensor that is made when it is read: a large model's new weights are never all in memory."""
    shape = tuple(int(size) for size in tensor.shape.numpy())
    for kind, numbers in steps:
        shape = _shape_after(shape, kind, numbers)

    def make() -> ir.TensorProtocol:
        return ir.tensor(apply_steps(np.asarray(unmapped(tensor).numpy()), steps), dtype=tensor.dtype)

    return ir.LazyTensor(make, tensor.dtype, ir.Shape(shape), cache=False, name=tensor.name)


def _shape_after(shape: tuple[int, ...], kind: str, numbers: tuple[Any, ...]) -> tuple[int, ...]:
    if kind == "scale":
        return shape
    if kind == "slice":
        axis, start, stop = numbers
        return (*shape[:axis], stop - start, *shape[axis + 1 :])
    if kind == "among ones":
        return tuple(numbers[0])
    return tuple(shape[a] for a in numbers) if kind == "transpose" else tuple(numbers)


def _step_of(node: ir.Node) -> Step:
    """What a shape operator does to a constant, as one step."""
    operand = node.inputs[0]
    assert operand is not None
    shape = known_shape(operand)
    if node.op_type == "Identity":
        return ("transpose", tuple(range(len(shape))))
    if node.op_type == "Transpose":
        permutation = node.attributes.get_ints("perm") or tuple(reversed(range(len(shape))))
        return ("transpose", tuple(permutation))
    return ("reshape", known_shape(node.outputs[0]))


def _tracked(axis: int, shape: tuple[int, ...], steps: Sequence[Step]) -> int:
    """Where an axis is after the steps. Raises NotRewritable where it is merged with another axis or split."""
    for kind, numbers in steps:
        if kind == "transpose":
            shape, axis = tuple(shape[a] for a in numbers), numbers.index(axis)
            continue
        before, size = prod(shape[:axis]), shape[axis]
        places = [a for a in range(len(numbers)) if numbers[a] == size and prod(numbers[:a]) == before]
        if not places:
            raise NotRewritable(f"the axis of its scales, of size {size}, is no axis of {list(numbers)}")
        shape, axis = numbers, places[0]
    return axis


def _on_broadcast(shape: tuple[int, ...], own: tuple[int, ...], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps for an operand of shape `own` that is broadcast to `shape`; both have the same rank."""
    wide = [axis for axis, size in enumerate(own) if size > 1]
    out: list[Step] = []
    positions = {axis: axis for axis in wide}
    current, current_own = shape, own
    for kind, numbers in steps:
        positions = {axis: _tracked(now, current, [(kind, numbers)]) for axis, now in positions.items()}
        current = tuple(current[a] for a in numbers) if kind == "transpose" else numbers
        if kind == "transpose":
            out.append((kind, numbers))
            current_own = tuple(current_own[a] for a in numbers)
        else:
            sizes = [1] * len(numbers)
            for axis, now in positions.items():
                sizes[now] = own[axis]
            current_own = tuple(sizes)
            out.append(("reshape", current_own))
    return tuple(out)


def _on_blocks(shape: tuple[int, ...], own: tuple[int, ...], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps for block-wise scales: transposes, and reshapes that only insert or remove axes of size one."""
    out: list[Step] = []
    for kind, numbers in steps:
        if kind == "transpose":
            out.append((kind, numbers))
            shape, own = tuple(shape[a] for a in numbers), tuple(own[a] for a in numbers)
            continue
        wide = [size for size in shape if size > 1]
        if [size for size in numbers if size > 1] != wide:
            raise NotRewritable("its block-wise scales do not fit a merged or split axis")
        blocks = iter([b for b, size in zip(own, shape, strict=True) if size > 1])
        own = tuple(next(blocks) if size > 1 else 1 for size in numbers)
        shape = numbers
        out.append(("reshape", own))
    return tuple(out)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
