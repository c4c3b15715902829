"""Layers that a conversion wrote and for which ONNX Runtime has no kernel on CPUs, in words."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onebyone.onnx.graph_writer import WRITTEN

#: Operators and element types without a kernel (ONNX Runtime 1.31); a test asks ONNX Runtime itself.
MISSING = {
    ("Conv", ir.DataType.DOUBLE),
    ("Conv", ir.DataType.BFLOAT16),
    ("MatMul", ir.DataType.BFLOAT16),
    ("Gemm", ir.DataType.BFLOAT16),
}


def missing_kernels(model: ir.Model) -> tuple[str, ...]:
    """One sentence for each operator and element type among the new nodes that ONNX Runtime does not run on CPUs."""
    functions = [node for function in model.functions.values() for node in function.all_nodes()]
    counts = Counter(
        (node.op_type, node.inputs[0].dtype)
        for node in (*model.graph.all_nodes(), *functions)
        if WRITTEN in node.meta and node.inputs and node.inputs[0] is not None
    )
    return tuple(
        f"{count} new {op_type} {'nodes compute' if count > 1 else 'node computes'} in {kind.name.lower()}, "
        "for which ONNX Runtime has no kernel on CPUs: it cannot run this model there"
        for (op_type, kind), count in counts.items()
        if kind is not None and (op_type, kind) in MISSING
    )
