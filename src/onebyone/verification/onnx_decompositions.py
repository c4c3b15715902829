"""Compare an operator with the parts that it was written as, in float64.

Both are the same function in real numbers, and round in another order. In float64 their difference is of the order of
the unit roundoff u of float64; a wrong formula differs by far more. The limit per value is

    √(u·u′) · max|y| + 2·Σ_c |y(c·(1 + u_c)) − y|

with u′ the unit roundoff of float32: halfway, on a logarithmic scale, between what float64 and float32 can tell apart.
The sum is over the constants that only the new form has, such as √½ in Gelu. Each is known up to the roundoff u_c of
the type that it is stored in, and the difference gives the effect of that, doubled for the terms of higher order.
Injected faults change one constant by 2⁻¹². One of them at least must exceed the limit; each is listed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.laws import bounds
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification.onnx_outputs import missing_dependence, run64
from onebyone.verification.result import Fault, LayerCheck

Array = np.ndarray[Any, Any]

#: The relative change of one constant that the comparison must detect.
INJECTED = 2.0**-12
#: Standard deviation of the inputs: wide enough to reach the flat parts of activations.
SPREAD = 4.0
_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.DOUBLE: "float64",
}


def compare_in_float64(
    before: LayerModel, after: LayerModel, layer: RewrittenLayer, seed: int, free_sizes: tuple[int, int]
) -> LayerCheck:
    """Both forms on random numbers, with the layer's own constants."""
    rng = np.random.default_rng(seed)
    shapes = before.shapes(layer.data_sizes, free_sizes)
    feeds, others = (
        {name: SPREAD * rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2)
    )
    expected, actual = run64(before, {}, feeds), run64(after, {}, feeds)
    if expected.shape != actual.shape:
        why = f"the outputs have shapes {expected.shape} and {actual.shape}"
        return LayerCheck(layer.path, layer.kind, law=layer.law, ok=False, why=why)
    constants = _floats(after)
    units = bounds.unit_roundoff("float64") * bounds.unit_roundoff("float32")
    limit = np.full(expected.shape, float(np.sqrt(units)) * float(np.abs(expected).max(initial=0.0)))
    for name, (array, unit) in constants.items():
        if name not in before.constants:
            limit += 2 * np.abs(run64(after, {name: array * (1 + unit)}, feeds) - actual)
    faults = []
    for name, (array, _) in constants.items():
        if np.any(array):
            changed = run64(after, {name: array * (1 + INJECTED)}, feeds)
            seen = not bool((np.abs(changed - expected) <= limit).all())
            faults.append(Fault(f"{name} changed by 2⁻¹²", seen_by_integers=seen))
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    error = np.where(same, 0.0, np.abs(expected - actual))
    error[np.isnan(error)] = np.inf
    ratio = float(np.max(np.divide(error, limit, out=np.zeros_like(error), where=error > 0), initial=0.0))
    hidden = [fault.name for fault in faults if not fault.seen_by_integers]
    why = missing_dependence(before, after, {}, feeds, others, expected)
    why = why if ratio <= 1 else f"|Δ| in float64 is {ratio:.3g} times its limit"
    if not why and hidden and len(hidden) == len(faults):
        why = f"the comparison in float64 cannot see: {', '.join(hidden)}"
    return LayerCheck(
        layer.path,
        layer.kind,
        law=layer.law,
        max_error=float(error.max(initial=0.0)),
        bound=float(limit.max(initial=0.0)),
        error_ratio=ratio,
        compared=error.size,
        arithmetic="float64",
        ok=not why,
        why=why,
        faults=tuple(faults),
    )


def _floats(layer: LayerModel) -> dict[str, tuple[Array, float]]:
    """The constants of floating type, each with the unit roundoff of that type."""
    return {
        name: (
            np.asarray(tensor.numpy(), dtype=np.float64),
            bounds.unit_roundoff(_NAMES.get(tensor.dtype, "float16")),
        )
        for name, tensor in layer.constants.items()
        if tensor.dtype.is_floating_point()
    }
