"""The layout operators of an ONNX model, by name.

A layout operator only rearranges a tensor: `Transpose`, `Reshape` and `Flatten` of a value that is not a constant.
`Squeeze` and `Unsqueeze` insert or remove axes of size 1 and are not counted. Nodes of subgraphs and functions count
once each.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onebyone.onnx.constant_values import is_constant

LAYOUT_OPERATORS = frozenset(["Transpose", "Reshape", "Flatten"])


def layout_operators(model: ir.Model) -> Counter[str]:
    """The number of layout operators by name; `.total()` is their sum."""
    nodes = [node for function in model.functions.values() for node in function.all_nodes()]
    return Counter(node.op_type for node in (*model.graph.all_nodes(), *nodes) if is_layout_operator(node))


def is_layout_operator(node: ir.Node) -> bool:
    """Whether a node only rearranges a value that is not a constant."""
    return node.domain == "" and node.op_type in LAYOUT_OPERATORS and not is_constant(node.inputs[0])
