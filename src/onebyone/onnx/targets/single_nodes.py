"""Write single nodes with fewer axes, or with a batch axis of size one: the tensors between nodes keep their axes.

Some targets limit the axes of a few operators only, or count only axes larger than one; others take one sample at a
time in most operators. Row-major order does not depend on the axes, so such a node runs between a Reshape and another
one, with its axes merged (`fewer_axes.AxisFolder`) or moved behind an axis of size one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, array_of, is_constant, sizes_of
from onebyone.onnx.convert import Only
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import ModelRewriter
from onebyone.onnx.targets.description import describe
from onebyone.onnx.targets.fewer_axes import BROADCASTING, TOKEN_WISE, AxisFolder
from onebyone.onnx.targets.remedies import require_allowed
from onebyone.onnx.targets.runs import RunOutput, TensorRun, rewrite_runs
from onebyone.onnx.targets.windows import PADS_ARE_AN_INPUT
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.targets import TargetProfile
from onebyone.targets.constraint import Constraint
from onebyone.targets.limits import RankLimit, SizeLimit

OTHER_AXES = "operator = the same in row-major order with other axes"
#: Operators that a leading axis of size one does not change.
_WITH_LEADING_AXIS = TOKEN_WISE | BROADCASTING | {"Split", "Slice", "Concat", "Pad", "Softmax"}
#: The most axes of a node whose target does not limit them.
MOST_AXES = 6


def fold_nodes(
    rewriter: ModelRewriter, profile: TargetProfile, most: int | None, only: Only
) -> dict[str, str]:
    """Rewrite every node whose own axes or batch violate a limit. Returns the reason for each node that stays.

    `most` is the number of axes that every tensor may have, if that is limited.
    """
    reasons: dict[str, str] = {}
    for path, node, rule in list(offending_nodes(rewriter.model, profile)):
        if isinstance(rule, RankLimit):
            description, axes, lead = f"at most {rule.maximum} axes", rule.maximum or 0, False
        else:
            description, axes, lead = "a batch axis of size 1", most or MOST_AXES, True
        reasons |= rewrite_runs(
            rewriter,
            [TensorRun([(path, node)])],
            lambda value: False,
            lambda axes=axes, lead=lead, rule=rule: NodeFolder(axes, rewriter.weights, lead, rule),  # type: ignore[misc]
            OTHER_AXES,
            description,
            only,
        )
    return reasons


def offending_nodes(
    model: ir.Model, profile: TargetProfile
) -> Iterator[tuple[str, ir.Node, RankLimit | SizeLimit]]:
    """The nodes of the main graph that violate a limit on their own axes, each with the first such limit."""
    rules = [rule for rule in profile.constraints if is_of_single_nodes(rule)]
    for description, node, _ in describe(model) if rules else ():
        if node is None or node.graph is not model.graph:
            continue
        for rule in rules:
            assert isinstance(rule, RankLimit | SizeLimit)
            if rule.applies(description) and rule.maximum is not None:
                without_minimum = replace(rule, minimum=0)
                if without_minimum.check(description) is not None:
                    yield description.path, node, rule
                    break


def is_of_single_nodes(rule: Constraint) -> bool:
    """Whether the rule limits the axes of some operators, those larger than one, or the batch."""
    if isinstance(rule, RankLimit):
        return rule.maximum is not None and (bool(rule.operators) or rule.count == "non-singleton")
    return isinstance(rule, SizeLimit) and rule.axis == "batch" and bool(rule.maximum)


class NodeFolder(AxisFolder):
    """Writes one node with at most `most` axes, the first of which has size one where `lead` is true.

    Raises:
        NotRewritable: the node has no such form, or the Reshapes around it violate `rule` too.
    """

    def __init__(self, most: int, weights: WeightRewriter, lead: bool, rule: Constraint) -> None:
        super().__init__(most, weights, (1,) if lead else ())
        self._rule = rule

    def write(self, run: TensorRun, opset: int) -> list[RunOutput]:
        """Insert the new nodes, and return the tensors that others read."""
        ((path, node),) = run.nodes
        writer = self.writers[path] = GraphWriter(node, f"{path}/axes", opset)
        results = self.results(node, writer)
        outputs = [
            RunOutput(path, old, self.result(writer, new, [size or 0 for size in sizes_of(old) or ()]))
            for old, new in zip(node.outputs, results, strict=True)
            if old.uses() or old.is_graph_output()
        ]
        require_allowed(self._rule, writer.nodes)
        return outputs

    def results(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """Insert the new form of the node, and return its results in the axes in which they are stored."""
        if not all(all(sizes_of(value) or (None,)) for value in node.outputs):
            raise NotRewritable(f"a size of {node.outputs[0].name} is not known, or 0")
        if self._lead and (node.domain != "" or node.op_type not in _WITH_LEADING_AXIS):
            raise NotRewritable(f"{node.op_type} has no form with a batch of one")
        if node.op_type == "Pad":
            return [self._pad(node, writer)]
        return super().results(node, writer)

    def _pad(self, node: ir.Node, writer: GraphWriter) -> ir.Value:
        """Pad with no amount on the leading axis."""
        data, amounts = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        sizes = None if data is None else sizes_of(data)
        if data is None or sizes is None or not self._lead or writer.opset < PADS_ARE_AN_INPUT:
            raise NotRewritable("Pad has no form with other axes in this opset")
        if amounts is None or not is_constant(amounts) or len(node.inputs) > 3 or len(sizes) > self._most:
            raise NotRewritable("Pad of amounts that are not constants has no form with other axes")
        pads = [int(amount) for amount in array_of(amounts)]
        new = writer.integers([0, *pads[: len(sizes)], 0, *pads[len(sizes) :]], "pads")
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        operands = [self._as(writer, data, [size or 0 for size in sizes]), new, *node.inputs[2:3]]
        return writer.op("Pad", operands, attributes, shape=[1, *(sizes_of(node.outputs[0]) or ())])
