"""Amounts that follow from fixed sizes become constants, where a node that violates a constraint reads them.

Exporters compute the padding of an image to whole windows from its height and width. Where these are fixed, so is the
amount; as long as a node reads it from other nodes, it is a second activation, which a target may limit.
"""

from __future__ import annotations

import onnx_ir as ir

from onebyone.onnx.constant_values import is_constant, sizes_of
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.convert import Only, wanted
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import ModelRewriter, discard
from onebyone.onnx.static_sizes import StaticSizes
from onebyone.onnx.targets.description import describe
from onebyone.records import Change
from onebyone.targets import TargetProfile, violations_of

FIXED_NUMBERS = "numbers that follow from fixed sizes = constants"
#: Operators whose operands after the first one may be computed; a Reshape violates no constraint by its sizes.
_WITH_NUMBERS = frozenset(["Pad", "Slice", "Expand", "Tile", "Resize"])


def fix_numbers(rewriter: ModelRewriter, profile: TargetProfile, only: Only) -> None:
    """Give constants to the nodes of the main graph that violate a constraint and read numbers known beforehand."""
    graph, opset = rewriter.model.graph, rewriter.model.opset_imports.get("", 1)
    sizes: StaticSizes | None = None
    for description, node, _ in list(describe(rewriter.model)):
        if node is None or node.graph is not graph or node.domain != "" or node.op_type not in _WITH_NUMBERS:
            continue
        computed = [
            i for i, value in enumerate(node.inputs) if i > 0 and value is not None and not is_constant(value)
        ]
        if not computed or not wanted(rewriter.origin(description.path), only):
            continue
        if not any(True for _ in violations_of(description, profile)):
            continue
        if sizes is None:
            sizes = StaticSizes(rewriter.model)
            sizes.fill_in()
        writer = GraphWriter(node, f"{description.path}/{profile.name}", opset)
        replaced = 0
        for index in computed:
            old = node.inputs[index]
            if old is not None and old in sizes.numbers:
                node.replace_input_with(index, writer.constant(sizes.numbers[old], "numbers"))
                discard([producer] if (producer := old.producer()) is not None else [])
                replaced += 1
        data = node.inputs[0]
        if replaced and data is not None:
            _record(rewriter, description.path, node, data)


def _record(rewriter: ModelRewriter, path: str, node: ir.Node, data: ir.Value) -> None:
    origin, sizes = rewriter.origin(path), sizes_of(data)
    names = str(data.name), str(node.outputs[0].name)
    layer = RewrittenLayer(
        origin, node.op_type, FIXED_NUMBERS, *names, 1, None if sizes is None else tuple(sizes)
    )
    rewriter.record_run({}, [layer])
    rewriter.changes.append(
        Change(origin, node.op_type, FIXED_NUMBERS, f"{node.op_type} of computed numbers", "constants")
    )
