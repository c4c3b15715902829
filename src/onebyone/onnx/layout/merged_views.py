"""Merges Reshapes with the Squeezes, Unsqueezes and Reshapes next to them.

The planner removes the axes of size 1 that a convolution needs before a Reshape, and inserts them after it. One Reshape
does the same, so that a target without Squeeze and Unsqueeze gets no further Reshapes for them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import is_constant, sizes_of

VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze"])


def merge_views(graph: ir.Graph, word: str) -> dict[ir.Value, ir.Value]:
    """Rewrite chains of views that contain a Reshape as one Reshape, and remove those that change nothing.

    A value that something else reads is kept, and so are results whose sizes are not all known. The order of elements
    is the same in all views of one tensor, so the result has the same numbers.

    Args:
        graph: the graph, which is changed.
        word: a word that no name of the graph holds, for the names of new constants.

    Returns:
        For values that were replaced, the value of the same shape and numbers that stands in their place.
    """
    replaced: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if not _is_view(node):
            continue
        chain = _chain(node)
        source, result = chain[0].inputs[0], node.outputs[0]
        before, after = (None if value is None else sizes_of(value) for value in (source, result))
        if source is None or after is None or not all(isinstance(size, int) and size > 0 for size in after):
            continue
        if before == after and not result.is_graph_output():
            result.replace_all_uses_with(source)
            replaced[result] = source
        elif len(chain) > 1 and any(view.op_type == "Reshape" for view in chain):
            replaced[result] = _by_reshape(node, source, [int(size or 0) for size in after], word)
    for node in reversed(list(graph)):
        if _is_view(node) and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    return replaced


def _chain(node: ir.Node) -> list[ir.Node]:
    """The views that end at a node, of which each but the last is read only by the next one."""
    chain = [node]
    while True:
        value = chain[0].inputs[0]
        before = None if value is None else value.producer()
        if value is None or before is None or not _is_view(before) or before.graph is not node.graph:
            return chain
        if len(value.uses()) != 1 or value.is_graph_output():
            return chain
        chain.insert(0, before)


def _is_view(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in VIEWS and not is_constant(node.outputs[0])


def _by_reshape(node: ir.Node, source: ir.Value, sizes: list[int], word: str) -> ir.Value:
    """A Reshape in the place of a view; its result keeps the name, type and shape."""
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    name = f"{old.name}/{word}/sizes"
    target = ir.tensor(np.asarray(sizes, np.int64), name=name)
    operand = ir.Value(
        name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(target.dtype), const_value=target
    )
    graph.register_initializer(operand)
    new = ir.Node("", "Reshape", [source, operand], num_outputs=1, name=node.name)
    result = new.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    result.metadata_props.update(old.metadata_props)
    graph.insert_before(node, [new])
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return result
