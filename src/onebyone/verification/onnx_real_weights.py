"""Compare both forms of a converted ONNX layer on real weights, in ONNX Runtime.

They may differ by 2·γ_{n+3}·(|W||x|+|b|): beside the sum of n products and a bias, a factor (alpha, beta) may be
applied. Products of integers must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.laws import bounds
from onebyone.onnx.evaluators import NotRunnable, run_onnx_runtime
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification.onnx_outputs import inputs_of, run64
from onebyone.verification.result import LayerCheck

Array = np.ndarray[Any, Any]

#: Terms beyond the products: a bias, and two factors.
EXTRA_TERMS = 2


def check_on_real_weights(
    before: LayerModel,
    after: LayerModel,
    terms: int,
    recorded: Mapping[str, Array],
    check: LayerCheck,
    unverified: list[str],
) -> LayerCheck:
    """The check with what both forms of a layer give on their own weights and recorded inputs.

    `terms` is the number of products that are summed for one number; notes on what has no bound go into `unverified`.
    """
    missing = [name for name in before.inputs if name not in recorded]
    if before.adds_integers and not missing:
        return _on_recorded_integers(before, after, recorded, check, unverified)
    kinds = {tensor.dtype for tensor in before.constants.values()}
    floats = {kind for kind in kinds if kind.is_floating_point()}
    if missing or floats != {ir.DataType.FLOAT} or kinds - floats - {ir.DataType.INT64}:
        why = f"its input {missing[0]!r} was not recorded" if missing else "its weight is not plain float32"
        unverified.append(f"{check.path}: no bound on real weights: {why}")
        return check
    feeds = {name: recorded[name] for name in before.inputs}
    if not all(np.isfinite(array).all() for array in feeds.values()):
        return replace(check, ok=False, why="its recorded input is not finite")
    expected, actual = (
        run_onnx_runtime(form.with_constants({}, None), inputs_of(form, feeds))[0].astype(np.float64)
        for form in (before, after)
    )
    sizes = {
        name: np.abs(tensor.numpy())
        for name, tensor in before.constants.items()
        if tensor.dtype.is_floating_point()
    }
    reach = _reach(before, sizes, {name: np.abs(array.astype(np.float64)) for name, array in feeds.items()})
    unit = bounds.unit_roundoff("float32")
    tiny = float(np.finfo(np.float32).tiny * np.finfo(np.float32).eps)
    bound = bounds.dot_bound(terms + EXTRA_TERMS, reach, unit) + 2 * (terms + 2) * tiny
    finite = np.isfinite(expected).all() and np.isfinite(actual).all()
    if expected.shape != actual.shape or not finite:
        return replace(check, ok=False, why=f"outputs {expected.shape} and {actual.shape}, or not finite")
    error = np.abs(expected - actual)
    ratio = float(np.max(error / bound, initial=0.0))  # underflow keeps the bound above 0
    return replace(
        check,
        max_error=float(error.max(initial=0.0)),
        bound=float(bound.max(initial=0.0)),
        error_ratio=ratio,
        compared=error.size,
        arithmetic="float32 sums",
        ok=ratio <= 1,
        why="" if ratio <= 1 else f"|Δ| is {ratio:.3g} times its bound",
    )


def _reach(before: LayerModel, sizes: Mapping[str, Array], feeds: Mapping[str, Array]) -> Array:
    """The sum of the absolute values of all terms, from the absolute values of the weights and of the inputs.

    Where a factor is negative or values are subtracted, terms of the two would cancel. So the bias and each input are
    computed by themselves there: a layer is affine in its inputs.
    """
    if not _subtracts(before):
        return np.abs(run64(before, sizes, feeds))
    zeros = {name: np.zeros_like(array) for name, array in feeds.items()}
    bias = run64(before, sizes, zeros)
    parts = (run64(before, sizes, zeros | {name: array}) - bias for name, array in feeds.items())
    total: Array = np.abs(bias) + sum(np.abs(part) for part in parts)
    return total


def _subtracts(layer: LayerModel) -> bool:
    factors = ("alpha", "beta")
    return any(
        node.op_type in ("Sub", "Neg")
        or any(node.attributes.get_float(name) < 0 for name in factors if name in node.attributes)
        for node in layer.nodes
    )


def _on_recorded_integers(
    before: LayerModel,
    after: LayerModel,
    recorded: Mapping[str, Array],
    check: LayerCheck,
    unverified: list[str],
) -> LayerCheck:
    """Sums of integers are exact in every order: both forms must give the same numbers."""
    feeds = {name: recorded[name] for name in before.inputs}
    try:
        expected, actual = (
            run_onnx_runtime(form.with_constants({}, None), inputs_of(form, feeds))[0]
            for form in (before, after)
        )
    except NotRunnable as error:
        unverified.append(f"{check.path}: on its own inputs: {error}")
        return check
    equal, why = equal_arrays(expected, actual)
    return replace(check, ok=equal, max_error=0.0 if equal else None, compared=expected.size, why=why)


def equal_arrays(expected: Array, actual: Array) -> tuple[bool, str]:
    """Whether two arrays are equal, and what differs."""
    if expected.shape != actual.shape:
        return False, f"the outputs have shapes {expected.shape} and {actual.shape}"
    if np.array_equal(expected, actual):
        return True, ""
    return False, f"the outputs differ in {int((expected != actual).sum())} of {expected.size} values"
