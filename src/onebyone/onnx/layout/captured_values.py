"""The values that the subgraphs of a node, such as those of If and Loop, read from outside."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onebyone.onnx.constant_values import is_constant
from onebyone.onnx.model_rewriting import subgraphs_of


def captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values outside that the subgraphs of a node read, constants of the main graph excepted."""
    for _, graph in subgraphs_of(node, ""):
        inside: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
        for nested in graph:
            inside.update(nested.outputs)
        read = [v for nested in graph for v in (*nested.inputs, *captured(nested)) if v is not None]
        for value in (*read, *graph.outputs):
            if value not in inside and value.name != "" and not is_constant(value):
                yield value
