"""Write the nodes of an any-size graph, with types and shapes as far as they are known, for any opset from 11."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx.graph_writer import AXES_ARE_AN_INPUT
from onebyone.onnx.lift.single_nodes import Operand, infer_outputs
from onebyone.onnx.lift.weights import Array, ConstantHandle

#: From this opset on the axes of every reduction are an input; those of ReduceSum are one from opset 13 on.
REDUCTION_AXES_ARE_AN_INPUT = 18


class NodeWriter:
    """Appends nodes to a list; constants become initializers where a node reads them.

    Attributes:
        opset: version of the default domain.
        nodes: the nodes in the order in which they run.
        initializers: by name.
        path: the path of the node that is being lifted, from which new names derive.
    """

    def __init__(self, opset: int, taken: Iterable[str]) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.path = ""
        self._taken = set(taken)
        self._stored: dict[int, tuple[ConstantHandle, ir.Value]] = {}
        self._small: dict[tuple[Any, ...], ConstantHandle] = {}

    def op(
        self,
        op_type: str,
        operands: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        label: str | None = None,
    ) -> ir.Value:
        """Append a node with one output, and return that output. Operands are values, weights, or None."""
        return self.node(op_type, operands, ir.convenience.convert_attributes(attributes or {}), label=label)[
            0
        ]

    def node(
        self,
        op_type: str,
        operands: Sequence[Any],
        attributes: Iterable[ir.Attr] = (),
        *,
        domain: str = "",
        outputs: int = 1,
        label: str | None = None,
    ) -> list[ir.Value]:
        """Append a node and return its outputs."""
        inputs = [self._value(operand) for operand in operands]
        while inputs and inputs[-1] is None:
            inputs.pop()
        name = self.unique(label or f"{self.path}/{op_type}")
        results = [
            ir.Value(name=self.unique(name if k == 0 else f"{name}/output_{k}")) for k in range(outputs)
        ]
        node = ir.Node(domain, op_type, inputs, attributes, outputs=results, name=name)
        known = {str(v.name): _operand(v) for v in inputs if v is not None}
        for value, (dtype, sizes) in zip(results, infer_outputs(node, known, self.opset), strict=True):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(sizes)
        self.nodes.append(node)
        return results

    def unique(self, name: str) -> str:
        """A name that nothing in the graph has; `name` itself where it is free."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def _value(self, operand: Any) -> ir.Value | None:
        if not isinstance(operand, ConstantHandle):
            return operand  # type: ignore[no-any-return]
        if id(operand) not in self._stored:
            tensor = operand.tensor
            if tensor is None:
                tensor = ir.tensor(operand.stored, dtype=operand.dtype)
            name = self.unique(operand.name)
            value = ir.Value(
                name=name,
                type=ir.TensorType(operand.dtype),
                shape=ir.Shape(operand.shape),
                const_value=_named(tensor, name),
            )
            self.initializers[name] = value
            self._stored[id(operand)] = operand, value  # the weight too: its id must stay its own
        return self._stored[id(operand)][1]

    # small constants and operators whose form depends on the opset

    def constant(self, array: Array, label: str) -> ConstantHandle:
        """A small constant; equal ones are stored once."""
        key = (label, array.dtype.str, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = ConstantHandle.of_array(array, f"onebyone/{label}")
        return self._small[key]

    def integers(self, numbers: Sequence[int]) -> ConstantHandle:
        """A vector of int64."""
        return self.constant(np.asarray(numbers, dtype=np.int64), "integers")

    def number(self, number: float, dtype: ir.DataType | None) -> ConstantHandle:
        """A scalar."""
        return self.constant(np.asarray(number, dtype=(dtype or ir.DataType.FLOAT).numpy()), "number")

    def cast(self, source: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", [source], {"to": int(dtype)})

    def join(self, parts: Sequence[Any], axis: int) -> Any:
        """Side by side along an axis."""
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, {"axis": axis})

    def unsqueeze(self, source: ir.Value, axes: Iterable[int]) -> ir.Value:
        return self._with_axes("Unsqueeze", source, list(axes))

    def squeeze(self, source: ir.Value, axes: Iterable[int]) -> ir.Value:
        return self._with_axes("Squeeze", source, list(axes))

    def _with_axes(self, op_type: str, source: ir.Value, axes: list[int]) -> ir.Value:
        if self.opset >= AXES_ARE_AN_INPUT:
            return self.op(op_type, [source, self.integers(axes)])
        return self.op(op_type, [source], {"axes": axes})

    def reduction(self, op_type: str, source: ir.Value, axes: Sequence[int], keep_axes: bool) -> ir.Value:
        """A reduction over axes, the batch counted."""
        keep = {"keepdims": int(keep_axes)}
        first = AXES_ARE_AN_INPUT if op_type == "ReduceSum" else REDUCTION_AXES_ARE_AN_INPUT
        if self.opset >= first:
            return self.op(op_type, [source, self.integers(list(axes))], keep)
        return self.op(op_type, [source], keep | {"axes": list(axes)})


def _named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The tensor under another name, its numbers shared and not loaded."""
    if tensor.name == name:
        return tensor
    shape = ir.Shape(tensor.shape.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=shape, name=name, base_dir=tensor.base_dir,
        )  # fmt: skip
    return ir.LazyTensor(lambda: tensor, tensor.dtype, shape, name=name)


def _operand(value: ir.Value) -> Operand:
    sizes = [size if isinstance(size, int) else size.value for size in (value.shape or ())]
    numbers = None
    if value.const_value is not None and value.const_value.size <= 4096:
        numbers = value.const_value.numpy()
    return Operand(value.dtype or ir.DataType.FLOAT, sizes, numbers)
