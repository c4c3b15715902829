"""Replaces in-place operators in exported graphs by their functional forms, for the PyTorch front end and the verifier.

In-place operators such as `relu_` and `+=` are common in trained networks. `ExportedProgram.run_decompositions({})`
removes them too, but it patches 700 operators of PyTorch in every call, which takes 0.15 s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node


def functional_graph(graph: Graph) -> Graph | None:
    """The graph without in-place operators, the graph itself where it has none.

    None where a replacement would change what is computed: another value observes the write, such as a view of the
    written tensor that is read later, or the operator has no functional form.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, x): return torch.relu_(x + 1)
    >>> program = torch.export.export(Net(), (torch.ones(2),), strict=False)
    >>> [str(n.target) for n in functional_graph(program.graph).nodes if n.op == "call_function"]
    ['aten.add.Tensor', 'aten.relu.default']
    """
    if not any(_writes(node) for node in graph.nodes):
        return graph
    graph = _copied(graph)
    positions = {node: i for i, node in enumerate(graph.nodes)}
    writes = [node for node in graph.nodes if _writes(node)]
    return graph if all(_made_functional(node, positions) for node in writes) else None


def _copied(graph: Graph) -> Graph:
    """A copy of a graph that keeps every node's name and recorded value."""
    copy, copies = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        copies[node] = copy.node_copy(node, lambda n: copies[n])
        copies[node].name = node.name
    return copy


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _made_functional(node: Node, positions: dict[Node, int]) -> bool:
    """Make the operator functional, unless another value observes the write; returns whether it was done."""
    functional, source = _functional_form(node), node.args[0] if node.args else None
    if functional is None or not isinstance(source, Node) or _storage(source) is None:
        return False
    if any(torch.promote_types(_dtype(source), _dtype(n)) != _dtype(source) for n in node.all_input_nodes):
        return False  # in place, a sum of float16 and float32 is float16
    sharing = [n for n in positions if _storage(n) == _storage(source)]
    if any(n.op == "placeholder" for n in sharing):
        return False
    now = positions[node]
    views = [n for n in sharing if positions[n] < now and n is not source]
    if any(positions[user] > now for view in views for user in view.users):
        return False
    later = [user for user in source.users if positions[user] > now]
    for user in later:
        user.replace_input_with(source, node)
    node.target = functional
    return True


def _functional_form(node: Node) -> Any:
    """`aten.relu_.default` → `aten.relu.default`; None where no operator has the same arguments."""
    target = node.target
    packet, overload = getattr(target, "_overloadpacket", None), getattr(target, "_overloadname", "")
    name = str(getattr(packet, "__name__", ""))
    if not name.endswith("_") or name.endswith("__"):
        return None
    functional = getattr(getattr(torch.ops.aten, name[:-1], None), overload, None)
    if functional is None:
        return None
    arguments = [a.name for a in target._schema.arguments]  # type: ignore[union-attr]
    return functional if [a.name for a in functional._schema.arguments] == arguments else None


def _dtype(node: Node) -> torch.dtype:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else torch.bool


def _storage(node: Node) -> Any:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
