"""Operators that write into their input, replaced by those that don't, so that values can be stored anew.

`relu_` and `+=` are common in trained networks. Where nothing but the written value itself can see the write,
the operator's functional twin says the same; where a view of it is read later, torch's own functionalisation
does the whole program.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from onebyone.pytorch.files.exporting import quiet
from onebyone.pytorch.graph.program import with_graph


def functional_program(program: ExportedProgram) -> ExportedProgram:
    """The program without operators that write into their inputs; itself where there are none.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, x): return torch.relu_(x + 1)
    >>> ep = functional_program(torch.export.export(Net(), (torch.ones(2),), strict=False))
    >>> [str(n.target) for n in ep.graph.nodes if n.op == "call_function"]
    ['aten.add.Tensor', 'aten.relu.default']
    """
    if not any(_writes(node) for node in program.graph.nodes):
        return program
    graph = copied(program.graph)
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if _writes(node) and not _replaced(node, place):
            with quiet():
                functional: ExportedProgram = program.run_decompositions({})
            return functional
    return with_graph(program, GraphModule(program.graph_module, graph))


def copied(graph: Graph) -> Graph:
    """A copy of a graph that keeps every node's name and recorded value."""
    new, twins = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        twin = new.node_copy(node, lambda n: twins[n])
        twin.name = node.name
        twins[node] = twin
    return new


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _replaced(node: Node, place: dict[Node, int]) -> bool:
    """Put the functional twin in the node's place, if nothing else sees the write."""
    twin, source = functional_twin(node), node.args[0] if node.args else None
    if twin is None or not isinstance(source, Node) or _storage(source) is None:
        return False
    sharing = [n for n in place if _storage(n) == _storage(source)]
    if any(n.op == "placeholder" for n in sharing):
        return False
    now = place[node]
    seen = [n for n in sharing if place[n] < now and n is not source and any(place[u] > now for u in n.users)]
    if seen:
        return False
    later = [user for user in source.users if place[user] > now]
    for user in later:
        user.replace_input_with(source, node)
    node.target = twin
    return True


def functional_twin(node: Node) -> Any:
    """`aten.relu_.default` → `aten.relu.default`; None where there is no operator of the same arguments."""
    target = node.target
    packet, overload = getattr(target, "_overloadpacket", None), getattr(target, "_overloadname", "")
    name = str(getattr(packet, "__name__", ""))
    if not name.endswith("_") or name.endswith("__"):
        return None
    other = getattr(getattr(torch.ops.aten, name[:-1], None), overload, None)
    if other is None:
        return None
    given = [a.name for a in target._schema.arguments]  # type: ignore[union-attr]
    return other if [a.name for a in other._schema.arguments] == given else None


def _storage(node: Node) -> Any:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
