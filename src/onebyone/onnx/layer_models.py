"""One layer of an ONNX model as a model of its own, with constants that the caller chooses.

It is cut out between two named values, so that the original and the converted model give the same layer in two forms.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onebyone.onnx.constant_values import sizes_of
from onebyone.onnx.model_rewriting import functions_of, subgraphs_of
from onebyone.onnx.quantisation import INPUTS
from onebyone.records import by, first_line, root_cause

Array = np.ndarray[Any, Any]

#: Floating types that are computed in another one while a layer is probed.
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
#: The most values that an input of a probed layer may have: 1 GB in float64.
LARGEST_INPUT = 2**27


class NotSeparable(Exception):
    """A layer that cannot be run by itself; the message says why."""


@dataclass(frozen=True)
class Scope:
    """The values that nodes of one graph can name, those of the graphs around it included, and its operator sets."""

    values: ChainMap[str, ir.Value]
    opsets: Mapping[str, int]


class LayerModel:
    """The part of a model that computes `output` from `data`.

    Args:
        scope: one that `scopes_of` gives for the model; that of the main graph where None.
        fixed_shapes: take the known sizes of a tensor that does not depend on `data`, where a Shape node reads them,
            instead of computing that tensor.
        called: the name of `data` among the inputs; its own where None.

    Attributes:
        inputs: names of what has to be given, `data` first, then values that the layer also depends on.
        constants: the tensors that the layer reads, by name.
    """

    def __init__(
        self,
        model: ir.Model,
        data: str,
        output: str,
        scope: Scope | None = None,
        *,
        fixed_shapes: bool = False,
        called: str | None = None,
    ) -> None:
        scope = scopes_of(model)[""] if scope is None else scope
        self._model, self._scope, self._fixed_shapes = model, scope, fixed_shapes
        self._called = data if called is None else called
        values = scope.values
        if data not in values or output not in values:
            missing = data if data not in values else output
            raise NotSeparable(f"the value {missing!r} is not in the model")
        self._start, self._end = values[data], values[output]
        self._nodes: dict[ir.Node, None] = {}
        self._free: list[ir.Value] = [self._start]
        self._constants: dict[str, ir.Value] = {}
        self._collect(self._end)
        container = self._end.producer()
        if container is None:
            raise NotSeparable(f"the value {output!r} is computed by no node")
        self._opsets = {**model.opset_imports, **scope.opsets}
        self.inputs = tuple(map(self._input_name, self._free))
        self.constants: dict[str, ir.TensorProtocol] = {}
        for name, value in self._constants.items():
            tensor = value.const_value or self._fixed_shape(value)
            if tensor is not None:
                self.constants[name] = tensor

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes, in an order in which they can run."""
        return tuple(self._nodes)

    def up_to(self, value: ir.Value) -> LayerModel:
        """The part of the layer that computes one of its inner values."""
        names = str(self._start.name), str(value.name)
        settings: dict[str, Any] = {"fixed_shapes": self._fixed_shapes, "called": self._called}
        return LayerModel(self._model, *names, self._scope, **settings)

    def _input_name(self, value: ir.Value) -> str:
        return self._called if value is self._start else str(value.name)

    def reads_from(self, scope: Scope) -> bool:
        """Whether all inputs are values of the scope, not others of the same names."""
        return all(scope.values.get(str(value.name)) is value for value in self._free)

    @property
    def input_types(self) -> dict[str, ir.DataType]:
        """The element type of each input; float32 where it is not known."""
        return {self._input_name(value): value.dtype or ir.DataType.FLOAT for value in self._free}

    @property
    def adds_integers(self) -> bool:
        """Whether its products are those of integers, so that every sum is exact."""
        return any((node.domain, node.op_type) in INPUTS for node in self._nodes)

    @property
    def ignores_weight(self) -> bool:
        """Whether a factor of zero (alpha) removes the product, so that no weight can change the output."""
        return any(
            node.attributes.get_float("alpha", 1.0) == 0 for node in self._nodes if "alpha" in node.attributes
        )

    def structure(self, inputs: Sequence[str], constant: Callable[[str], Hashable]) -> Hashable:
        """What the layer computes, whatever its values are called: two layers with equal structures compute the same.

        Args:
            inputs: the names of the inputs of which the structure tells which is which; for a second form of a layer,
                those of the first one.
            constant: what is to be told of a constant, by its name.
        """
        numbers: dict[ir.Value | None, int | None] = {None: None}
        of_inputs, of_constants, of_nodes = [], [], []
        for value in self._free:
            name = self._input_name(value)
            of_inputs.append((inputs.index(name) if name in inputs else name, _cast(value.dtype, None)))
            numbers[value] = len(numbers)
        for name, value in self._constants.items():
            of_constants.append(constant(name))
            numbers[value] = len(numbers)
        for node in self._nodes:
            operands = tuple(numbers[operand] for operand in node.inputs)
            attributes = tuple(
                ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True)
                for _, attribute in sorted(node.attributes.items())
            )
            of_nodes.append((node.domain, node.op_type, operands, attributes, len(node.outputs)))
            for output in node.outputs:
                numbers[output] = len(numbers)
        end = numbers[self._end], _cast(self._end.dtype or self._start.dtype, None)
        return (
            tuple(of_inputs),
            tuple(of_constants),
            tuple(of_nodes),
            end,
            tuple(sorted(self._opsets.items())),
        )

    def shapes(
        self, data_sizes: tuple[int | None, ...] | None, free_sizes: tuple[int, int]
    ) -> dict[str, tuple[int, ...]]:
        """Shapes for the inputs; an unknown first size becomes the first of `free_sizes`, the others the second.

        `data_sizes` are what is known of the first input, where that is more than its shape says.

        Raises:
            NotSeparable: the rank of an input is not known, or it has too many values.
        """
        found = {}
        for index, value in enumerate(self._free):
            sizes = data_sizes if index == 0 and data_sizes is not None else sizes_of(value)
            if sizes is None:
                raise NotSeparable(f"the rank of {value.name!r} is not known")
            # Some exporters write 0 or -1 for a size that they do not know.
            free = [size is None or size <= 0 for size in sizes]
            shape = [free_sizes[min(a, 1)] if free[a] else int(size or 0) for a, size in enumerate(sizes)]
            if prod(shape) > LARGEST_INPUT:
                raise NotSeparable(f"its input {value.name!r} of shape {by(shape)} is too large for a probe")
            found[self._input_name(value)] = tuple(shape)
        return found

    def with_constants(self, constants: Mapping[str, Array], dtype: ir.DataType | None) -> onnx.ModelProto:
        """The layer as a model, each named constant replaced, and every floating value in `dtype`.

        `dtype` None keeps the types as they are.
        """
        return self._with_constants(constants, dtype, None)

    def in_float64(self, constants: Mapping[str, Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The layer in float64, each named constant replaced, and its floating constants, which are inputs.

        As initializers, weights of float64 would be copied into the serialised model and out of it again.
        """
        weights: dict[str, Array] = {}
        return self._with_constants(constants, ir.DataType.DOUBLE, weights), weights

    def _with_constants(
        self, constants: Mapping[str, Array], dtype: ir.DataType | None, weights: dict[str, Array] | None
    ) -> onnx.ModelProto:
        """The model; floating constants become inputs and are added to `weights`, unless that is None."""
        replaced: dict[int, ir.Value] = {}
        for value in self._free:
            replaced[id(value)] = ir.Value(
                name=self._input_name(value), type=ir.TensorType(_cast(value.dtype, dtype)), shape=value.shape
            )
        inputs, initializers = [replaced[id(value)] for value in self._free], []
        for name, tensor in self.constants.items():
            array = np.asarray(constants[name] if name in constants else tensor.numpy())
            kind = _cast(tensor.dtype, dtype)
            array = array.astype(kind.numpy(), copy=False)
            value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(array.shape))
            if weights is not None and kind in _FLOATS:
                weights[name] = array
                inputs.append(value)
            else:
                value.const_value = ir.tensor(array, dtype=kind, name=name)
                initializers.append(value)
            replaced[id(self._constants[name])] = value
        nodes = []
        for node in self._nodes:
            attributes = [_cast_attribute(attribute, dtype) for attribute in node.attributes.values()]
            if node.op_type == "GroupNormalization" and dtype is not None and self._opsets.get("", 1) >= 21:
                attributes = [a for a in attributes if a.name != "stash_type"]
                attributes.append(ir.AttrInt64("stash_type", int(dtype)))  # the type of its mean
            operands = [None if v is None else replaced[id(v)] for v in node.inputs]
            outputs = [
                ir.Value(name=f"{v.name}/again" if v.name in self.inputs else v.name) for v in node.outputs
            ]
            replaced.update({id(old): new for old, new in zip(node.outputs, outputs, strict=True)})
            nodes.append(
                ir.Node(node.domain, node.op_type, operands, attributes, outputs=outputs, name=node.name)
            )
        end = replaced[id(self._end)]
        end.type = ir.TensorType(_cast(self._end.dtype or self._start.dtype, dtype))
        graph = ir.Graph(
            inputs,
            [end],
            nodes=nodes,
            initializers=initializers,
            opset_imports=self._opsets,
            name="layer",
        )
        try:
            return ir.serde.serialize_model(ir.Model(graph, ir_version=10))
        except ir.serde.SerdeError as error:  # a name that is no text, in a damaged file
            raise NotSeparable(f"it cannot be stored as a model: {first_line(root_cause(error))}") from error

    def _collect(self, value: ir.Value) -> None:
        """Add what computes a value, in an order in which it can run."""
        waiting: list[tuple[ir.Value, bool]] = [(value, False)]
        done: set[int] = {id(self._start)}
        while waiting:
            now, is_ready = waiting.pop()
            node = now.producer()
            if is_ready and node is not None:
                self._nodes.setdefault(node)
                continue
            if id(now) in done:
                continue
            done.add(id(now))
            if now.const_value is not None or self._fixed_shape(now) is not None:
                self._constants[str(now.name)] = now
            elif node is None or node is self._start.producer():
                self._free.append(now)  # an input, or another output of the node that computes the data
            else:
                if any(
                    a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                    for a in node.attributes.values()
                ):
                    raise NotSeparable(f"it depends on {node.op_type}, which has a graph of its own")
                waiting.append((now, True))
                waiting.extend((operand, False) for operand in node.inputs if operand is not None)

    def _fixed_shape(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The result of a Shape node, if `fixed_shapes` and its tensor's known sizes allow to take it as a constant."""
        node = value.producer()
        if not self._fixed_shapes or node is None or (node.domain, node.op_type) != ("", "Shape"):
            return None
        tensor = node.inputs[0]
        sizes = None if tensor is None else sizes_of(tensor)
        if tensor is None or sizes is None or self._depends_on_data(tensor):
            return None
        known = [size for size in sizes if size is not None and size > 0]
        if len(known) < len(sizes):
            return None
        first, last = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(known))
        return ir.tensor(np.asarray(known[first:last], dtype=np.int64))

    def _depends_on_data(self, value: ir.Value) -> bool:
        waiting, seen = [value], set[int]()
        while waiting:
            now = waiting.pop()
            if now is self._start:
                return True
            node = now.producer()
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                waiting.extend(operand for operand in node.inputs if operand is not None)
        return False


def scopes_of(model: ir.Model) -> dict[str, Scope]:
    """The scope of each graph and function, by the prefix of its nodes' paths (`model_rewriting.nodes_of`)."""
    found: dict[str, Scope] = {}
    _add_scopes(found, "", model.graph, Scope(ChainMap(), model.opset_imports))
    for prefix, function in functions_of(model):
        _add_scopes(found, prefix, function.graph, Scope(ChainMap(), function.opset_imports))
    return found


def _add_scopes(found: dict[str, Scope], prefix: str, graph: ir.Graph, outer: Scope) -> None:
    """Add the scope of a graph and those of its subgraphs, which see the outer values too."""
    own = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    own |= {str(value.name): value for node in graph for value in node.outputs}
    if prefix in found:  # two nodes of one name
        other = found[prefix].values.maps[0]
        own = {name: value for name, value in {**other, **own}.items() if not (name in other and name in own)}
    scope = Scope(ChainMap(own, *outer.values.maps), outer.opsets)
    found[prefix] = scope
    for node in graph:
        for inner, subgraph in subgraphs_of(node, prefix):
            _add_scopes(found, inner, subgraph, scope)


def _cast(dtype: ir.DataType | None, target: ir.DataType | None) -> ir.DataType:
    kind = dtype or ir.DataType.FLOAT
    return target if target is not None and kind in _FLOATS else kind


def _cast_attribute(attribute: ir.Attr, target: ir.DataType | None) -> ir.Attr:
    if attribute.name == "to" and attribute.type == ir.AttributeType.INT:
        try:
            kind = ir.DataType(attribute.as_int())
        except ValueError as error:
            raise NotSeparable(f"it casts to a type that ONNX does not have, {attribute.as_int()}") from error
        return ir.AttrInt64("to", int(_cast(kind, target)))
    return attribute
