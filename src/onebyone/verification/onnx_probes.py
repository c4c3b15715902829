"""Integer probes of one converted layer: both of its forms on small odd integers in float64, where every sum is exact.

What a probe shows does not depend on the weights, which it replaces, so that layers of one structure, such as those of
a transformer's blocks, share one (`probe_key`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onebyone.laws import bounds
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.layer_models import LayerModel
from onebyone.onnx.probe_values import (
    SPREADS,
    calibrated,
    integer_constants,
    integer_inputs,
    is_quantised,
    requantises,
)
from onebyone.onnx.weight_rewriting import Step, apply_steps
from onebyone.verification.onnx_outputs import missing_dependence, run64
from onebyone.verification.onnx_real_weights import equal_arrays
from onebyone.verification.result import Fault, LayerCheck

Array = np.ndarray[Any, Any]
#: For each new constant, the constant that it was made from and the steps.
Entries: TypeAlias = "Mapping[str, tuple[str, tuple[Step, ...]]]"

#: Significand bits for the probe's sums; the other eight of float64 are left for factors such as alpha and a scale.
PROBE_BITS = 45
#: The largest factor (alpha, beta) that these eight bits allow.
LARGEST_FACTOR = 2**8
#: Draws of numbers for a layer that rounds its result: a bound or a limit may hide a part of it from one draw.
DRAWS_OF_ROUNDED = 3
#: Sizes that stand for unknown ones: batch first, then positions.
FREE_SIZES = (2, 3)


def probe(
    before: LayerModel, after: LayerModel, entries: Entries, layer: RewrittenLayer, seed: int
) -> tuple[LayerCheck, str]:
    """Both forms on integers: every draw of numbers must agree, and one of them must show each injected fault.

    Returns the check, and what it could not see; empty if that is nothing.
    """
    check = LayerCheck(layer.path, layer.kind, law=layer.law)
    steps = [step for name in after.constants for step in entries.get(name, ("", ()))[1]]
    factors = [float(numbers[0]) for kind, numbers in steps if kind == "scale"]
    if any(factor != int(factor) or abs(factor) > LARGEST_FACTOR for factor in factors):
        return replace(check, why="no integer probe: its alpha or beta is not a small integer"), ""
    rng = np.random.default_rng(seed)
    magnitude = bounds.probe_range(layer.terms, PROBE_BITS)
    replaced = {entries.get(name, (name, ()))[0] for name in after.constants}
    shapes = before.shapes(layer.data_sizes, FREE_SIZES)
    seen: dict[str, bool] = {}
    least = DRAWS_OF_ROUNDED if requantises(before) else 1
    for draw, spread in enumerate(SPREADS, 1):
        constants = integer_constants(before, replaced, layer.terms, magnitude, rng, spread)
        feeds = integer_inputs(before, shapes, magnitude, rng)
        constants = calibrated(before, replaced, constants, feeds)
        converted = _converted(constants, after, entries)
        expected = run64(before, constants, feeds)
        equal, why = equal_arrays(expected, run64(after, converted, feeds))
        if equal and len(after.inputs) < len(before.inputs):
            others = integer_inputs(before, shapes, magnitude, rng)
            why = missing_dependence(before, after, constants, feeds, others, expected)
        if why:
            return replace(check, bitwise=False, ok=False, why=f"integer probe: {why}"), ""
        for name, faulty in _faults(converted, after, entries).items():
            if not seen.get(name):
                seen[name] = not equal_arrays(expected, run64(after, faulty, feeds))[0]
        if draw >= least and (all(seen.values()) or before.ignores_weight):
            break
    check = replace(check, bitwise=True, faults=tuple(Fault(n, seen_by_integers=s) for n, s in seen.items()))
    hidden = [name for name, is_seen in seen.items() if not is_seen]
    if hidden and before.ignores_weight:
        return replace(check, why="its weight has no effect: alpha is 0"), ""
    why = f"{len(SPREADS)} integer probes cannot see: {', '.join(hidden)}" if hidden else ""
    return replace(check, why=why), why


def probe_key(
    before: LayerModel, after: LayerModel, entries: Entries, layer: RewrittenLayer
) -> Hashable | None:
    """Equal for layers of which one probe tells all: the structures of both forms, and every number that is not drawn.

    None for a layer of quantised numbers, where what is drawn depends on what the constants hold.
    """
    if is_quantised(before) or is_quantised(after):
        return None
    names = tuple(before.constants)

    def of_before(name: str) -> Hashable:
        tensor = before.constants[name]
        drawn = tensor.dtype.is_floating_point()
        return tensor.dtype, tuple(tensor.shape.numpy()), None if drawn else digest(tensor)

    def of_after(name: str) -> Hashable:
        tensor = after.constants[name]
        source, steps = entries.get(name, (name, ()))
        if source in before.constants and before.constants[source].dtype.is_floating_point():
            return tensor.dtype, tuple(tensor.shape.numpy()), name in entries, names.index(source), steps
        return tensor.dtype, tuple(tensor.shape.numpy()), name in entries, digest(tensor), steps

    shapes = before.shapes(layer.data_sizes, FREE_SIZES)
    return (
        before.structure(before.inputs, of_before),
        after.structure(before.inputs, of_after),
        tuple(shapes[name] for name in before.inputs),
        layer.terms,
    )


def digest(tensor: ir.TensorProtocol) -> str:
    """A hash of what a tensor holds."""
    array = np.asarray(tensor.numpy())
    if array.dtype == object:
        return f"{array.tolist()}"
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def _converted(constants: Mapping[str, Array], after: LayerModel, entries: Entries) -> dict[str, Array]:
    """The same numbers as the converted layer stores them."""
    found = {}
    for name in after.constants:
        source, steps = entries.get(name, (name, ()))
        if source in constants:
            found[name] = apply_steps(constants[source], steps)
    return found


def _faults(constants: dict[str, Array], after: LayerModel, entries: Entries) -> dict[str, dict[str, Array]]:
    """Faults that a conversion could make, each as the constants that it would leave."""
    rewritten = {name: array for name, array in constants.items() if name in entries}
    named = rewritten or constants  # a weight that nodes of the converted form rearrange is not rewritten
    if not named:
        return {}
    weight = max(named, key=lambda name: named[name].size)
    faults: dict[str, dict[str, Array]] = {}
    axis = next(
        (
            a
            for a in (1, 0, *range(2, named[weight].ndim))
            if named[weight].ndim > a and named[weight].shape[a] > 1
        ),
        None,
    )
    if axis is not None:
        faults["weight order shifted by one"] = constants | {weight: np.roll(named[weight], 1, axis)}
    kernel = named[weight].shape
    if len(kernel) > 3 and min(kernel[-2:]) > 1:
        swapped = named[weight].swapaxes(-1, -2).reshape(kernel)
        faults["kernel order swapped (height and width)"] = constants | {weight: swapped}
    biases = [name for name, array in rewritten.items() if name != weight and array.dtype == np.float64]
    if len(biases) == 1 and len(after.constants) and np.any(named[biases[0]]):
        faults["bias dropped"] = constants | {biases[0]: np.zeros_like(named[biases[0]])}
    return faults
