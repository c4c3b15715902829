"""Nodes that share tensors which a target does not take, rewritten together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Protocol, TypeVar

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, is_constant, sizes_of
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.convert import Only, wanted
from onebyone.onnx.graph_writer import WRITTEN, GraphWriter
from onebyone.onnx.layout.operators import KEEPING_AXES, RESHAPES
from onebyone.onnx.model_rewriting import ModelRewriter, discard, nodes_of, replace_value
from onebyone.records import Change

Item = TypeVar("Item")
#: Operators that only change the axes of their first input.
VIEWS = RESHAPES | KEEPING_AXES
#: Whether a target does not take a tensor; never true of a constant.
IsOversized = Callable[[ir.Value], bool]


@dataclass
class TensorRun:
    """Nodes connected by oversized tensors, with their paths, in the order of the graph."""

    nodes: list[tuple[str, ir.Node]] = field(default_factory=list)

    @property
    def ids(self) -> set[int]:
        """The identities of its nodes."""
        return {id(node) for _, node in self.nodes}


@dataclass(frozen=True, eq=False)
class RunOutput:
    """A tensor that a run computes for others: its node, and the tensor that replaces it."""

    path: str
    old: ir.Value
    new: ir.Value


class RunWriter(Protocol):
    """Writes one run; `writers` have the new nodes, by the path of the node that they replace."""

    writers: dict[str, GraphWriter]

    def write(self, run: TensorRun, opset: int) -> list[RunOutput]:
        """Insert the new nodes, and return the tensors that others read. Raises NotRewritable."""

    def is_exact(self, run: TensorRun) -> bool:
        """Whether both forms agree bit for bit where no sum rounds."""


def nodes_of_main_graph(model: ir.Model) -> list[tuple[str, ir.Node]]:
    """The nodes of the main graph with their paths."""
    return [(path, node) for path, node, _ in nodes_of(model) if node.graph is model.graph]


def rewrite_runs(
    rewriter: ModelRewriter,
    runs: Iterable[TensorRun],
    is_oversized: IsOversized,
    make_writer: Callable[[], RunWriter],
    law: str,
    description: str,
    only: Only,
) -> dict[str, str]:
    """Rewrite runs of the main graph. Returns the reason for each node that stays, by its path."""
    reasons: dict[str, str] = {}
    opset = rewriter.model.opset_imports.get("", 1)
    holders = {place.tensor for places in rewriter.stored.values() for place in places}
    for run in runs:
        if not all(wanted(rewriter.origin(path), only) for path, _ in run.nodes):
            continue
        writer = make_writer()
        try:
            outputs = writer.write(run, opset)
        except NotRewritable as error:
            writers = list(reversed(writer.writers.values()))
            discard([node for each in writers for node in reversed(each.nodes)])
            for each in writers:
                each.drop_unused_constants()
            reasons |= {path: str(error) for path, _ in run.nodes}
            continue
        kept = {id(output.old) for output in outputs}
        gone = {id(value) for _, node in run.nodes for value in node.outputs} - kept
        layers = [
            RewrittenLayer(
                rewriter.origin(output.path),
                _producer(output.old).op_type,
                law,
                *_data_of(output.old, is_oversized, gone, holders),
                is_exact=writer.is_exact(run),
            )
            for output in outputs
        ]
        rewriter.record_run({path: each.nodes for path, each in writer.writers.items()}, layers)
        for output, layer in zip(outputs, layers, strict=True):
            before = f"{_producer(output.old).op_type} in a run of {len(run.nodes)} nodes"
            rewriter.changes.append(Change(layer.path, layer.kind, law, before, description))
            replace_value(output.old, output.new)
            discard([_producer(output.old)])
        # what nobody reads would be found, and written under the same names, again
        discard([node for _, node in reversed(run.nodes)])
        discard([node for each in reversed(writer.writers.values()) for node in reversed(each.nodes)])
    return reasons


def find_runs(nodes: Iterable[tuple[str, ir.Node]], is_oversized: IsOversized) -> list[TensorRun]:
    """The runs of a graph: nodes that read or write an oversized tensor, joined where they share one."""
    large = (
        (each, [v for v in (*each[1].inputs, *each[1].outputs) if v is not None and is_oversized(v)])
        for each in nodes
    )
    return [TensorRun(run) for run in joined(large)]


def joined(items: Iterable[tuple[Item, Sequence[Hashable]]]) -> list[list[Item]]:
    """Groups of items, each given with its keys: two are in one group if a chain of shared keys leads from one to the
    other. The order stays. Items without a key are left out.

    >>> joined([("a", [1]), ("b", [2]), ("c", [2, 3]), ("d", [3, 4]), ("e", [])])
    [['a'], ['b', 'c', 'd']]
    """
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    members = [(item, keys) for item, keys in items if keys]
    for _, (first, *others) in members:
        for other in others:
            parent[root(other)] = root(first)
    groups: dict[Hashable, list[Item]] = {}
    for item, keys in members:
        groups.setdefault(root(keys[0]), []).append(item)
    return list(groups.values())


def is_view(node: ir.Node) -> bool:
    """Whether a node only changes the axes of its first input."""
    return node.domain == "" and node.op_type in VIEWS


def with_views(runs: Iterable[TensorRun], nodes: Sequence[tuple[str, ir.Node]]) -> list[TensorRun]:
    """The runs with the views before them that nothing else reads, and those that alone read a result of them.

    A Reshape before or after a run then merges with the one that the run needs there.
    """
    place = {node: (index, path) for index, (path, node) in enumerate(nodes)}
    found = []
    for run in runs:
        members = {node for _, node in run.nodes}
        members |= {*views_before(members), *_views_after(members)}
        ordered = sorted((node for node in members if node in place), key=place.__getitem__)
        found.append(TensorRun([(place[node][1], node) for node in ordered]))
    return found


def views_before(nodes: Collection[ir.Node]) -> set[ir.Node]:
    """Views of known sizes that only these nodes, and other such views, read."""
    members = set(nodes)
    waiting = list(nodes)
    while waiting:
        for operand in waiting.pop().inputs:
            view = None if operand is None else operand.producer()
            if operand is None or view is None or view in members or not _is_inside(view):
                continue
            if not operand.is_graph_output() and all(use.node in members for use in operand.uses()):
                members.add(view)
                waiting.append(view)
    return members - set(nodes)


def _views_after(nodes: Collection[ir.Node]) -> set[ir.Node]:
    """Views of known sizes of results, and of other such views, that only views read."""
    members = set(nodes)
    waiting = list(nodes)
    while waiting:
        for output in waiting.pop().outputs:
            readers = [use.node for use in output.uses() if use.node not in members]
            if not output.is_graph_output() and all(_is_inside(n) and n.inputs[0] is output for n in readers):
                members.update(readers)
                waiting += readers
    return members - set(nodes)


def _is_inside(node: ir.Node) -> bool:
    """Whether a node is a view of which all sizes are known."""
    sizes = sizes_of(node.outputs[0])
    return is_view(node) and not is_constant(node.inputs[0]) and sizes is not None and all(sizes)


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _data_of(
    value: ir.Value, is_oversized: IsOversized, gone: Collection[int], holders: Collection[str]
) -> tuple[str, str, int, tuple[int | None, ...] | None]:
    """The largest tensor that the run reads and `value` depends on, `value`, the number of terms, and its sizes.

    The converted model holds neither oversized tensors nor those whose identities are in `gone`.

    Smaller ones may be shapes, which the converted form need not read. `holders` are the names of the tensors that hold
    a value of the original.
    """
    waiting, seen = [value], set[int]()
    read: list[ir.Value] = []
    while waiting:
        node = waiting.pop().producer()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        for operand in node.inputs:
            if operand is None or is_constant(operand):
                continue
            producer = operand.producer()
            # the original has no value of the name of one that was written, unless that holds one
            is_new = producer is not None and WRITTEN in producer.meta and operand.name not in holders
            if not is_oversized(operand) and id(operand) not in gone and not is_new:
                read.append(operand)
            else:
                waiting.append(operand)
    assert read, f"{value.name} depends on nothing"
    data = max(read, key=_count)
    sizes = sizes_of(data)
    return str(data.name), str(value.name), 1, None if sizes is None else tuple(sizes)


def _count(value: ir.Value) -> float:
    """The number of elements; infinite where a size is not known."""
    sizes = sizes_of(value)
    return inf if sizes is None or None in sizes else prod(size or 0 for size in sizes)
