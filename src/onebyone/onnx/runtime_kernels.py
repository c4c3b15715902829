"""Layers that a conversion wrote and that ONNX Runtime does not compute on CPUs, or only approximately, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from onebyone.onnx.graph_writer import WRITTEN

#: The option of a session, and its value, with which ONNX Runtime computes such products in float32.
ACCURACY = ("session.qdq_matmulnbits_accuracy_level", "1")
#: Operators and element types without a kernel (ONNX Runtime 1.31); a test asks ONNX Runtime itself.
MISSING = {
    ("Conv", ir.DataType.DOUBLE),
    ("Conv", ir.DataType.BFLOAT16),
    ("MatMul", ir.DataType.BFLOAT16),
    ("Gemm", ir.DataType.BFLOAT16),
}


def runtime_warnings(model: ir.Model) -> tuple[str, ...]:
    """What ONNX Runtime does not run on CPUs of the new nodes, or rounds further than their types say."""
    functions = [node for function in model.functions.values() for node in function.all_nodes()]
    new = [
        node
        for node in (*model.graph.all_nodes(), *functions)
        if WRITTEN in node.meta and node.inputs and node.inputs[0] is not None
    ]
    return (*_missing_kernels(new), *_approximate_products(new))


def _missing_kernels(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """One sentence for each operator and element type without a kernel."""
    counts = Counter((node.op_type, node.inputs[0].dtype) for node in nodes if node.inputs[0] is not None)
    return tuple(
        f"{count} new {op_type} {'nodes compute' if count > 1 else 'node computes'} in {kind.name.lower()}, "
        "for which ONNX Runtime has no kernel on CPUs: it cannot run this model there"
        for (op_type, kind), count in counts.items()
        if kind is not None and (op_type, kind) in MISSING
    )


def _approximate_products(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """A sentence on products by dequantised weights: ONNX Runtime's optimiser makes them MatMulNBits (1.31)."""
    count = sum(node.op_type == "MatMul" and any(map(_is_dequantised, node.inputs)) for node in nodes)
    if not count:
        return ()
    return (
        f"{count} new MatMul {'nodes multiply' if count > 1 else 'node multiplies'} by dequantised weights: ONNX "
        f"Runtime rounds their other operand to 8 bits, unless its session option {ACCURACY[0]!r} is {ACCURACY[1]!r}",
    )


def _is_dequantised(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear"
