"""How far rounding errors may move the outputs of a model that quantises values inside, by perturbed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx.evaluators import NotRunnable, proto_of, run_onnx_runtime

Array = np.ndarray[Any, Any]

#: Operators that round values to integers, or that ONNX Runtime fuses with a constant operand into one that does.
_QUANTISING = ("Quantize", "QLinear", "QGemm", "MatMulNBits", "DequantizeLinear", "Round")
#: Random perturbations; the largest change counts.
DRAWS = 8


#: Products of integers. ONNX Runtime's kernels for uint8 by int8 saturate on processors without VNNI instructions.
_INTEGER_PRODUCTS = ("MatMulInteger", "ConvInteger", "QLinear", "QGemm", "DynamicQuantizeMatMul")


def has_integer_products(model: ir.Model) -> bool:
    """Whether a node of the model multiplies integers."""
    return any(node.op_type.startswith(_INTEGER_PRODUCTS) for node in model.graph.all_nodes())


def quantises(model: ir.Model) -> bool:
    """Whether a node of the model rounds values to integers, so that the model is not continuous."""
    return any(
        node.op_type.startswith(_QUANTISING) or "Quantize" in node.op_type for node in model.graph.all_nodes()
    )


def sensitivity(model: ir.Model, feeds: Mapping[str, Array], relative: float, seed: int = 0) -> list[float]:
    """For each output, the largest change in ONNX Runtime when floating inputs and weights change by ± `relative`.

    Both the optimised and the plain form are changed; their difference counts as well. Empty where they do not run.
    """
    rng = np.random.default_rng(seed)
    proto = proto_of(model)
    try:
        runs = [run_onnx_runtime(proto, feeds, optimised=optimised) for optimised in (True, False)]
        changes = [_change(a, b) for a, b in zip(*runs, strict=True)]
        for draw in range(DRAWS):
            perturbed = model.clone()
            for graph in perturbed.graphs():
                for value in graph.initializers.values():
                    tensor = value.const_value
                    if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > 1:
                        value.const_value = ir.tensor(_moved(tensor.numpy(), relative, rng), name=tensor.name)
            moved = {
                name: _moved(x, relative, rng) if x.dtype == np.float32 else x for name, x in feeds.items()
            }
            outputs = run_onnx_runtime(proto_of(perturbed), moved, optimised=draw % 2 == 0)
            reference = runs[draw % 2]
            changes = [max(c, _change(a, b)) for c, a, b in zip(changes, outputs, reference, strict=True)]
    except NotRunnable:
        return []
    return changes


def _moved(array: Array, relative: float, rng: np.random.Generator) -> Array:
    signs = rng.choice([-1.0, 1.0], array.shape)
    return np.asarray(array * (1 + relative * signs), dtype=array.dtype)


def _change(a: Array, b: Array) -> float:
    if a.dtype.kind != "f" or a.shape != b.shape:
        return 0.0
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
