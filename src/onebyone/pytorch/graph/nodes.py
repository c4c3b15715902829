"""Reading nodes of an exported graph: operators, arguments, recorded values."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from onebyone.layout.sizes import Size
from onebyone.layout.values import GraphValue


def operator_name(node: Node) -> str:
    """`aten.permute.default` → `permute`; other callables by their name; empty for nodes that call nothing."""
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "_overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def module_path(node: Node) -> str:
    """The dotted path of the module whose forward made the node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L__self__").removeprefix(".")


def tensor_value(node: Node) -> torch.Tensor | None:
    """The recorded value of a node, where it is one tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def holds_tensors(node: Node) -> bool:
    """Whether the recorded value of a node is a tensor or a list of tensors."""
    return isinstance(node.meta.get("val"), torch.Tensor | list | tuple)


def has_unknown_size(node: Node) -> bool:
    """Whether a size of the tensor depends on the values of other tensors, as after `x[mask]`."""
    value = tensor_value(node)
    return value is not None and any(free_unbacked_symbols(size) for size in value.shape)


def sizes_of(tensor: torch.Tensor) -> tuple[Size, ...]:
    """The shape, with symbolic sizes as SymPy expressions."""
    return tuple(size if isinstance(size, int) else size.node.expr for size in tensor.shape)


def graph_values(graph: Graph) -> dict[Node, GraphValue]:
    """The planner's value of every node that holds a tensor or a list of tensors, and of the output."""
    values: dict[Node, GraphValue] = {}
    for node in graph.nodes:
        tensor = tensor_value(node)
        if tensor is not None:
            values[node] = GraphValue(node.name, sizes_of(tensor), node)
        elif holds_tensors(node) or node.op == "output":
            values[node] = GraphValue(node.name, None, node)
    return values
