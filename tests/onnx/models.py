"""Small ONNX models as text, with random integer weights, for tests that compare bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]


def model(
    text: str,
    weights: Mapping[str, Array] | None = None,
    opset: int = 20,
    more: str = "",
    imports: Sequence[str] = ("com.microsoft", "local"),
) -> ir.Model:
    """Parse `graph (inputs) => (outputs) { nodes }`, and add initializers.

    Integers are small, so that every sum is exact in float64 and in float32.
    """
    domains = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in imports)])
    header = f"<ir_version: 9, opset_import: [{domains}]>"
    proto = onnx.parser.parse_model(f"{header}\n{text}\n{more}")
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    return ir.serde.deserialize_model(proto)


def graph(x: str, y: str, nodes: str) -> str:
    """The text of a graph from one float input to one float output, by their sizes."""
    return f"g (float[{x}] x) => (float[{y}] y) {{ {nodes} }}"


def integers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Random integers from -4 to 4, none of them zero."""
    rng = np.random.default_rng((seed, *shape))
    values = rng.integers(1, 5, shape) * rng.choice([-1, 1], shape)
    return np.asarray(values, dtype=dtype)


def run(m: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs, by ONNX's own reference implementation."""
    proto = ir.serde.serialize_model(m)
    return [np.asarray(value) for value in ReferenceEvaluator(proto).run(None, dict(feeds))]


def operators(m: ir.Model) -> list[str]:
    """The operators of the main graph and of its subgraphs, in order."""
    return [node.op_type for node in m.graph.all_nodes()]


def bytes_of(m: ir.Model) -> int:
    """The size of the file."""
    return len(ir.serde.serialize_model(m).SerializeToString())
