"""Compare the outputs of two ONNX models: in ONNX Runtime, and against the original in float64.

The converted model runs optimised and not. Its error may be at most √(u'/u) times the original's own, where u' is the
unit roundoff of the next shorter type (see `verification.output_comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.errors import MissingExtra
from onebyone.laws import bounds
from onebyone.onnx.evaluators import NotRunnable, proto_of, run_onnx_runtime, run_reference
from onebyone.onnx.layer_models import LayerModel, NotSeparable

Array = np.ndarray[Any, Any]


class WholeModel:
    """What the comparison of the whole models measured."""

    max_error: float | None = None
    rounding_ratio: float | None = None
    float64_error: float | None = None
    float64_limit: float | None = None


def compare_outputs(
    original: ir.Model,
    converted: ir.Model,
    feeds: Mapping[str, Array],
    problems: list[str],
    unverified: list[str],
) -> WholeModel:
    whole = WholeModel()
    try:
        first = run_onnx_runtime(proto_of(original), feeds)
    except (MissingExtra, NotRunnable) as error:
        unverified.append(f"the whole model: {error}")
        return whole
    names = [str(value.name) for value in original.graph.outputs]
    exact = [_exact(original, name, feeds, unverified) for name in names]
    unit, shorter = bounds.unit_roundoff("float32"), 2.0**-11
    for optimised in (True, False):
        try:
            second = run_onnx_runtime(proto_of(converted), feeds, optimised=optimised)
        except NotRunnable as error:
            problems.append(f"the converted model, {'' if optimised else 'not '}optimised: {error}")
            continue
        for name, y, z, reference in zip(names, first, second, exact, strict=True):
            _compare_output(whole, name, y, z, reference, (unit, shorter), problems)
    return whole


def _compare_output(
    whole: WholeModel,
    name: str,
    y: Array,
    z: Array,
    reference: Array | None,
    units: tuple[float, float],
    problems: list[str],
) -> None:
    if y.shape != z.shape:
        problems.append(f"output {name} has shape {z.shape}, the original's has {y.shape}")
        return
    if not np.issubdtype(y.dtype, np.floating):
        if not np.array_equal(y, z):
            problems.append(f"output {name} ({y.dtype}) differs")
        return
    if not np.isfinite(z).all() or not np.isfinite(y).all():
        problems.append(f"output {name} holds NaN or infinity")
        return
    wide, other = y.astype(np.float64), z.astype(np.float64)
    unit, shorter = units
    difference = float(np.abs(wide - other).max(initial=0.0))
    whole.max_error = max(whole.max_error or 0.0, difference)
    own = unit * float(np.abs(wide).max(initial=0.0))
    error = difference
    if reference is not None:
        own = max(own, float(np.abs(wide - reference).max(initial=0.0)))
        error = float(np.abs(other - reference).max(initial=0.0))
    ratio = error / own if own else (1.0 if error == 0 else np.inf)
    whole.rounding_ratio = max(whole.rounding_ratio or 0.0, ratio)
    allowed = (shorter / unit) ** 0.5
    if ratio > allowed:
        problems.append(
            f"output {name} has {ratio:.3g} times the original's rounding error, limit {allowed:.3g}"
        )


def _exact(model: ir.Model, output: str, feeds: Mapping[str, Array], unverified: list[str]) -> Array | None:
    """The original's output in float64; None where the reference implementation cannot give it."""
    try:
        first = str(model.graph.inputs[0].name)
        layer = LayerModel(model, first, output)
        wide = {
            name: array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
            for name, array in feeds.items()
            if name in layer.inputs
        }
        return run64(layer, {}, wide)
    except (NotSeparable, NotRunnable) as error:
        unverified.append(f"output {output} in float64: {error}")
        return None


def run64(layer: LayerModel, constants: Mapping[str, Array], feeds: Mapping[str, Array]) -> Array:
    """The layer in float64, by the reference implementation, with the given constants."""
    return run_reference(layer.with_constants(constants, ir.DataType.DOUBLE), feeds)[0]
