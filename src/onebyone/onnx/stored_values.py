"""Values of an original model that a converted model stores in another layout, and how to give them their names back.

The verifier compares a layer between two values that both models name. Where the converted model holds such a value in
another layout, `with_original_values` inserts it in its original one, under its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onebyone.layout.orders import Layout, order_of, permutation_between, unit_changes
from onebyone.onnx.graph_writer import AXES_ARE_AN_INPUT


@dataclass(frozen=True)
class StoredValue:
    """A value of the original graph in a converted one: the name of the tensor that holds it, and in which layout.

    `natural` is the layout of the original tensor (see `onebyone.layout.orders`).
    """

    tensor: str
    layout: Layout
    natural: Layout


def with_original_values(
    model: ir.Model, stored: Mapping[str, StoredValue], names: Iterable[str]
) -> ir.Model:
    """A copy of a model in which the values `names` are there in their original layout, as far as `stored` has them.

    Each is computed from the tensor that holds it, and that tensor from it again, so that the copy computes the same
    and can be cut at these values.
    """
    copy = model.clone()
    graph = copy.graph
    tensors = {str(value.name): value for node in graph for value in node.outputs}
    tensors |= {str(value.name): value for value in graph.inputs}
    opset = model.opset_imports.get("", AXES_ARE_AN_INPUT)
    for name in sorted(set(names) & set(stored)):
        place = stored[name]
        tensor = tensors.get(place.tensor)
        if tensor is None or name in tensors:
            continue
        node = tensor.producer()
        uses = list(tensor.uses())
        there, natural = _moved(tensor, place.layout, place.natural, f"{name}/there", opset)
        natural.name = name
        back, again = _moved(natural, place.natural, place.layout, f"{name}/back", opset)
        if node is None:
            graph.insert_before(graph[0], [*there, *back])
        else:
            graph.insert_after(node, [*there, *back])
        for use in uses:
            use.node.replace_input_with(use.idx, again)
        for new in (*there, *back):
            for operand in new.inputs:
                if operand is not None and operand.const_value is not None:
                    graph.register_initializer(operand)
    return copy


def _moved(
    value: ir.Value, have: Layout, want: Layout, name: str, opset: int
) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that bring a tensor from one layout to another, and the result; an Identity where they are equal."""
    bare = order_of(have)
    nodes: list[ir.Node] = []
    squeeze, _ = unit_changes(have, bare)
    order = order_of(want)
    _, unsqueeze = unit_changes(order, want)
    permutation = permutation_between(bare, order)
    if squeeze:
        value = _with_axes("Squeeze", value, squeeze, f"{name}/squeeze", opset, nodes)
    if permutation != tuple(range(len(bare))):
        nodes.append(ir.node("Transpose", [value], {"perm": list(permutation)}, name=f"{name}/transpose"))
        value = nodes[-1].outputs[0]
    if unsqueeze:
        value = _with_axes("Unsqueeze", value, unsqueeze, f"{name}/unsqueeze", opset, nodes)
    if not nodes:
        nodes.append(ir.node("Identity", [value], name=f"{name}/identity"))
        value = nodes[-1].outputs[0]
    for node in nodes:
        node.outputs[0].name = str(node.name)
    return nodes, value


def _with_axes(
    op_type: str, value: ir.Value, axes: Sequence[int], name: str, opset: int, nodes: list[ir.Node]
) -> ir.Value:
    if opset < AXES_ARE_AN_INPUT:
        nodes.append(ir.node(op_type, [value], {"axes": list(axes)}, name=name))
    else:
        tensor = ir.tensor(np.asarray(axes, np.int64), name=f"{name}/axes")
        operand = ir.Value(
            name=f"{name}/axes",
            shape=ir.Shape([len(axes)]),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        nodes.append(ir.node(op_type, [value, operand], name=name))
    return nodes[-1].outputs[0]
