"""Rewrite neighbouring nodes whose batch a target limits, with the axes that `common_axes` chooses for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from onebyone.layout.orders import Order
from onebyone.onnx.constant_values import is_constant, shape_of, sizes_of
from onebyone.onnx.convert import Only
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import ModelRewriter
from onebyone.onnx.targets.axis_groups import Sizes, regrouped, without_ones
from onebyone.onnx.targets.common_axes import AxisLimits, common_axes
from onebyone.onnx.targets.description import describe
from onebyone.onnx.targets.fewer_axes import BROADCASTING, AxisFolder, known_sizes
from onebyone.onnx.targets.remedies import require_allowed
from onebyone.onnx.targets.runs import (
    RunOutput,
    TensorRun,
    is_view,
    joined,
    nodes_of_main_graph,
    rewrite_runs,
    views_before,
)
from onebyone.onnx.targets.single_nodes import MOST_AXES, OTHER_AXES, is_of_single_nodes
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.targets import TargetProfile
from onebyone.targets.constraint import Constraint
from onebyone.targets.limits import SizeLimit


def fold_neighbours(rewriter: ModelRewriter, profile: TargetProfile, most: int | None, only: Only) -> None:
    """Rewrite nodes of which several violate a limit on the batch and read each other's results.

    What stays is left to `single_nodes.fold_nodes`. `most` is the number of axes that every tensor may have, if that is
    limited.
    """
    limits = AxisLimits(most or MOST_AXES, _largest(profile))
    rules = _limited(rewriter.model, profile, limits.most)
    if not rules:
        return
    nodes = nodes_of_main_graph(rewriter.model)
    opset = rewriter.model.opset_imports.get("", 1)
    chosen = common_axes([node for _, node in nodes], frozenset(rules), limits, opset)
    for run in list(_runs(nodes, chosen)):
        rule = next((rules[node] for _, node in run.nodes if node in rules), None)
        if rule is not None:
            rewrite_runs(
                rewriter,
                [run],
                lambda value: False,
                partial(CommonAxesFolder, limits.most, rewriter.weights, chosen, rule),
                OTHER_AXES,
                "a batch axis of size 1",
                only,
            )


def _limited(model: ir.Model, profile: TargetProfile, most: int) -> dict[ir.Node, Constraint]:
    """The nodes whose batch violates a limit, and those that it applies to and that have more than `most` axes."""
    limits = [
        rule for rule in profile.constraints if isinstance(rule, SizeLimit) and is_of_single_nodes(rule)
    ]
    rules: dict[ir.Node, Constraint] = {}
    for description, node, _ in describe(model) if limits else ():
        if node is None or node.graph is not model.graph:
            continue
        is_large = any(len(sizes_of(output) or ()) > most for output in node.outputs)
        for rule in limits:
            if rule.applies(description) and (
                is_large or replace(rule, minimum=0).check(description) is not None
            ):
                rules.setdefault(node, rule)
    return rules


def _largest(profile: TargetProfile) -> int | None:
    """The largest size that every axis may have, of any operator."""
    limits = [
        r.maximum for r in profile.constraints if isinstance(r, SizeLimit) and r.axis != "batch" and r.maximum
    ]
    return min(limits, default=None)


def _runs(nodes: Sequence[tuple[str, ir.Node]], chosen: Mapping[ir.Node, Order]) -> Iterator[TensorRun]:
    """The chosen nodes in runs that share tensors, with the views between them and after them.

    Left out are runs of which other nodes read a result and compute an operand: their layers could not be compared one
    by one.
    """
    linked: dict[ir.Node, list[ir.Node]] = {}  # each node, and those before it whose results it reads
    for _, node in nodes:
        operands = node.inputs if node in chosen else node.inputs[:1] if is_view(node) else ()
        producers = [operand.producer() for operand in operands if operand is not None]
        sources = [producer for producer in producers if producer is not None and producer in linked]
        if node in chosen or sources:
            linked[node] = [node, *sources]
    places = {node: (index, path) for index, (path, node) in enumerate(nodes)}
    for run in joined(linked.items()):
        members = {*run, *views_before(run)}
        if not _comes_back(members):
            yield TensorRun([(places[node][1], node) for node in sorted(members, key=places.__getitem__)])


def _comes_back(run: Collection[ir.Node]) -> bool:
    """Whether another node reads a result of the run, and a member reads what follows from that."""
    waiting = [
        use.node for node in run for output in node.outputs for use in output.uses() if use.node not in run
    ]
    seen = set(waiting)
    while waiting:
        for output in waiting.pop().outputs:
            for use in output.uses():
                if use.node in run:
                    return True
                if use.node not in seen:
                    seen.add(use.node)
                    waiting.append(use.node)
    return False


class CommonAxesFolder(AxisFolder):
    """Writes one run, each node with the sizes that are chosen for it, behind an axis of size one where it has room.

    Raises:
        NotRewritable: a node that is inserted violates `rule`.
    """

    def __init__(
        self, most: int, weights: WeightRewriter, chosen: Mapping[ir.Node, Order], rule: Constraint
    ) -> None:
        super().__init__(most, weights)
        self._chosen, self._rule = chosen, rule

    def write(self, run: TensorRun, opset: int) -> list[RunOutput]:
        """Insert the new nodes, and return the tensors that others read."""
        inside = run.ids
        outputs = []
        for path, node in run.nodes:
            writer = self.writers[path] = GraphWriter(node, f"{path}/axes", opset)
            old = node.outputs[0]
            new = self._stored[id(old)] = self._written(node, writer)
            if old.is_graph_output() or any(id(use.node) not in inside for use in old.uses()):
                outputs.append(RunOutput(path, old, self.result(writer, new, known_sizes(old))))
            require_allowed(self._rule, writer.nodes)
        return outputs

    def result(self, writer: GraphWriter, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """The stored value with these sizes, as the output of a new node, so that it can take the old one's name."""
        new = self._with_sizes(writer, value, tuple(sizes))
        is_new = any(new.producer() is node for other in self.writers.values() for node in other.nodes)
        if not is_new or id(new) in self._returned:
            new = writer.op("Reshape", [value, writer.integers(sizes)], shape=list(sizes))
        self._returned.add(id(new))
        return new

    def _written(self, node: ir.Node, writer: GraphWriter) -> ir.Value:
        """The new form of one node, with the axes in which its result is stored."""
        if node not in self._chosen:
            return self._read(node.inputs[0])
        order, result = self._chosen[node], known_sizes(node.outputs[0])
        new = (1, *order) if len(order) < self._most else order
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.op_type == "Softmax":
            attributes["axis"] = len(new) - 1
        operands: list[ir.Value | None] = list(node.inputs)
        for index, operand in enumerate(node.inputs):
            if node.op_type == "MatMul" and operand is not None and index == 0:
                sizes: Sizes | None = (*new[:-1], known_sizes(operand)[-1])
            elif operand is None or (index > 0 and node.op_type not in BROADCASTING):
                continue
            else:
                sizes = regrouped(known_sizes(operand), result, new)
            assert sizes is not None, f"{node.name}: its operands have no form with the axes {new}"
            if is_constant(operand):
                operands[index] = self._constant(writer, operand, sizes)
            else:
                operands[index] = self._with_sizes(writer, self._read(operand), sizes)
        return writer.op(node.op_type, operands, attributes, shape=new, dtype=node.outputs[0].dtype)

    def _constant(self, writer: GraphWriter, value: ir.Value | None, sizes: Sizes) -> ir.Value:
        """A constant operand without the axes of size one in front, which broadcasting adds."""
        assert value is not None
        shape = shape_of(value) or ()
        while len(sizes) > len(shape) and sizes[0] == 1:
            sizes = sizes[1:]
        return self._weights.rewrite(writer, value, [("reshape", sizes)]) if sizes != shape else value

    def _with_sizes(self, writer: GraphWriter, value: ir.Value, sizes: Sizes) -> ir.Value:
        """The stored value with these sizes; axes of size one are inserted and removed without a Reshape."""
        stored = known_sizes(value)
        if stored == sizes:
            return value
        key = id(value), sizes
        if key not in self._reshaped:
            if stored == (1, *sizes):
                new = writer.squeeze(value, [0], sizes)
            elif sizes == (1, *stored):
                new = writer.unsqueeze(value, [0], sizes)
            elif without_ones(stored) == without_ones(sizes):
                bare = without_ones(sizes)
                new = value
                if bare != stored:
                    new = writer.squeeze(value, [a for a, size in enumerate(stored) if size == 1], bare)
                if bare != sizes:
                    new = writer.unsqueeze(new, [a for a, size in enumerate(sizes) if size == 1], sizes)
            else:
                new = writer.op("Reshape", [value, writer.integers(sizes)], shape=sizes)
            self._reshaped[key] = new
        return self._reshaped[key]
