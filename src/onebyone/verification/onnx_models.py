"""Verify a converted ONNX model: integer probes and real weights layer by layer, then the whole model.

- Integer probe: both forms of a layer run on small odd integers in float64, by the ONNX reference implementation; every
  sum is exact, so they must agree bit for bit (`laws.bounds`). Operators written as their parts round in another order
  and are compared in float64 (`verification.onnx_decompositions`).
- Real weights: both forms run in ONNX Runtime on what the original reads there (`verification.onnx_real_weights`).
- The whole model runs in ONNX Runtime, optimised and not, and in float64 by the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from onebyone.errors import BadInput, MissingExtra
from onebyone.laws import bounds
from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import prepared
from onebyone.onnx.evaluators import NotRunnable, proto_of, run_onnx_runtime
from onebyone.onnx.function_bodies import inlined
from onebyone.onnx.layer_models import LayerModel, NotSeparable, Scope, scopes_of
from onebyone.onnx.network import OnnxNetwork
from onebyone.onnx.probe_values import SPREADS, calibrated, integer_constants, integer_inputs, requantises
from onebyone.onnx.weight_rewriting import Step, apply_steps
from onebyone.verification.layer_matching import first_differing_layer, traced_outputs
from onebyone.verification.onnx_decompositions import compare_in_float64
from onebyone.verification.onnx_outputs import (
    REFERENCE,
    OriginalOutputs,
    WholeModel,
    compare_outputs,
    missing_dependence,
    run64,
)
from onebyone.verification.onnx_real_weights import check_on_real_weights, equal_arrays
from onebyone.verification.result import SAME_FUNCTION, Fault, LayerCheck, Verification

Array = np.ndarray[Any, Any]

#: Significand bits for the probe's sums; the other eight of float64 are left for factors such as alpha and a scale.
PROBE_BITS = 45
#: The largest factor (alpha, beta) that these eight bits allow.
LARGEST_FACTOR = 2**8
#: Draws of numbers for a layer that rounds its result: a bound or a limit may hide a part of it from one draw.
DRAWS_OF_ROUNDED = 3
#: Sizes that stand for unknown ones: batch first, then positions.
FREE_SIZES = (2, 3)


def verify_onnx(
    model: ir.Model,
    rewriting: OnnxConversion,
    feeds: Mapping[str, Array] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    known: OriginalOutputs | None = None,
) -> Verification:
    """Whether a converted model computes what the original computes.

    Args:
        model: the original.
        rewriting: what `onebyone.onnx.convert.convert_model` returned for it.
        feeds: an array for each input; without them the layers are still probed.
        seed: of the probes.
        progress: called with (done, total) after every layer.
        known: what `original_outputs` gave for the original on these feeds, where several conversions are verified.
    """
    original = prepared(inlined(model) if rewriting.inlined else model, rewriting.frozen)
    recorded, problems, unverified = _recorded(original, rewriting, feeds)
    checks = []
    scopes = scopes_of(original), scopes_of(rewriting.model_with_original_values)
    for done, layer in enumerate(rewriting.layers, 1):
        try:
            checks.append(_check_layer(original, rewriting, layer, scopes, recorded, seed + done, unverified))
        except (NotSeparable, NotRunnable) as error:
            unverified.append(f"{layer.path}: {error}")
        if progress is not None:
            progress(done, len(rewriting.layers))
    whole = WholeModel()
    if feeds is None:
        unverified.append("without an example input: the whole model, and the layers on their own inputs")
    else:
        whole = compare_outputs(
            original,
            rewriting.model,
            feeds,
            problems,
            unverified,
            max((x.terms for x in rewriting.layers), default=1),
            known,
        )
    problems += [f"{check.path}: {check.why}" for check in checks if not check.ok]
    probed = any(check.bitwise is not None for check in checks)
    nothing = not probed and whole.max_error is None and not problems
    if nothing:
        problems.append(
            "nothing was verified: no layer was converted"
            if not rewriting.layers
            else "nothing was verified: no converted layer could be probed and there is no example input"
        )
    return Verification(
        equivalent=not problems,
        target=SAME_FUNCTION,
        max_error=whole.max_error,
        rounding_ratio=whole.rounding_ratio,
        float64_error=whole.float64_error,
        float64_limit=whole.float64_limit,
        layers=tuple(checks),
        first_difference=next((check.path for check in checks if not check.ok), None),
        problems=tuple(problems),
        unverified=tuple(dict.fromkeys(unverified)),
        nothing_verified=nothing,
        evaluators=((f"integer probes: {REFERENCE}",) if probed else ()) + whole.evaluators,
    )


def compare_onnx(model: ir.Model, other: ir.Model, feeds: Mapping[str, Array] | None) -> Verification:
    """Compare the outputs of two models; which layer became which is not known.

    Raises:
        BadInput: there is no example to run them on.
    """
    if feeds is None:
        raise BadInput("x: is missing; two models can only be compared on an example input")
    problems: list[str] = []
    unverified = ["the layers one by one: which became which is known of a conversion only"]
    whole = compare_outputs(model, other, feeds, problems, unverified)
    first = _first_difference(model, other, feeds) if problems else None
    nothing = whole.max_error is None and not problems
    if nothing:
        problems.append("nothing was verified: the models were not compared")
    return Verification(
        equivalent=not problems,
        target=SAME_FUNCTION,
        max_error=whole.max_error,
        rounding_ratio=whole.rounding_ratio,
        first_difference=first,
        problems=tuple(problems),
        unverified=tuple(unverified),
        nothing_verified=nothing,
        evaluators=whole.evaluators,
    )


def _first_difference(model: ir.Model, other: ir.Model, feeds: Mapping[str, Array]) -> str | None:
    """The name of the first value of `model` that `other` does not compute, as far as ONNX Runtime runs them."""
    unit = bounds.unit_roundoff("float32")

    def limit(y: Tensor) -> float:
        return math.sqrt(2.0**-11 / unit) * unit * float(y.abs().max())

    try:
        outputs = traced_outputs(OnnxNetwork(model).trace(**feeds), limit)
        return first_differing_layer(outputs, OnnxNetwork(other).trace(*feeds.values()))
    except (NotRunnable, BadInput):
        return None


def _check_layer(
    original: ir.Model,
    rewriting: OnnxConversion,
    layer: RewrittenLayer,
    scopes: tuple[Mapping[str, Scope], Mapping[str, Scope]],
    recorded: Mapping[str, Array],
    seed: int,
    unverified: list[str],
) -> LayerCheck:
    if not all(layer.scope in found for found in scopes):
        raise NotSeparable(f"the part {layer.scope!r} of the model is not in both models")
    names = layer.data, layer.output
    before = LayerModel(original, *names, scopes[0][layer.scope], fixed_shapes=True)
    after = LayerModel(rewriting.model_with_original_values, *names, scopes[1][layer.scope])
    if not set(after.inputs) <= set(before.inputs):
        before = LayerModel(original, *names, scopes[0][layer.scope])
    if not before.reads_from(scopes[0][""]):
        recorded = {}
    if not layer.is_exact:
        return compare_in_float64(before, after, layer, seed, FREE_SIZES)
    check = _probe(before, after, rewriting, layer, seed, unverified)
    has_weight = any(tensor.dtype.is_floating_point() for tensor in before.constants.values())
    if check.ok and check.bitwise and layer.data in recorded and has_weight:
        return check_on_real_weights(before, after, layer.terms, recorded, check, unverified)
    return check


def _probe(
    before: LayerModel,
    after: LayerModel,
    rewriting: OnnxConversion,
    layer: RewrittenLayer,
    seed: int,
    unverified: list[str],
) -> LayerCheck:
    """Both forms on integers: every draw of numbers must agree, and one of them must show each injected fault."""
    check = LayerCheck(layer.path, layer.kind, law=layer.law)
    steps = [step for name in after.constants for step in rewriting.entries.get(name, ("", ()))[1]]
    factors = [float(numbers[0]) for kind, numbers in steps if kind == "scale"]
    if any(factor != int(factor) or abs(factor) > LARGEST_FACTOR for factor in factors):
        return replace(check, why="no integer probe: its alpha or beta is not a small integer")
    rng = np.random.default_rng(seed)
    magnitude = bounds.probe_range(layer.terms, PROBE_BITS)
    replaced = {rewriting.entries.get(name, (name, ()))[0] for name in after.constants}
    shapes = before.shapes(layer.data_sizes, FREE_SIZES)
    seen: dict[str, bool] = {}
    least = DRAWS_OF_ROUNDED if requantises(before) else 1
    for draw, spread in enumerate(SPREADS, 1):
        constants = integer_constants(before, replaced, layer.terms, magnitude, rng, spread)
        feeds = integer_inputs(before, shapes, magnitude, rng)
        constants = calibrated(before, replaced, constants, feeds)
        converted = _converted(constants, after, rewriting.entries)
        expected = run64(before, constants, feeds)
        equal, why = equal_arrays(expected, run64(after, converted, feeds))
        if equal and len(after.inputs) < len(before.inputs):
            others = integer_inputs(before, shapes, magnitude, rng)
            why = missing_dependence(before, after, constants, feeds, others, expected)
        if why:
            return replace(check, bitwise=False, ok=False, why=f"integer probe: {why}")
        for name, faulty in _faults(converted, after, rewriting.entries).items():
            if not seen.get(name):
                seen[name] = not equal_arrays(expected, run64(after, faulty, feeds))[0]
        if draw >= least and (all(seen.values()) or before.ignores_weight):
            break
    check = replace(check, bitwise=True, faults=tuple(Fault(n, seen_by_integers=s) for n, s in seen.items()))
    hidden = [name for name, is_seen in seen.items() if not is_seen]
    if hidden and before.ignores_weight:
        return replace(check, why="its weight has no effect: alpha is 0")
    if hidden:
        why = f"{len(SPREADS)} integer probes cannot see: {', '.join(hidden)}"
        unverified.append(f"{layer.path}: {why}")
        return replace(check, why=why)
    return check


def _converted(
    constants: Mapping[str, Array], after: LayerModel, entries: Mapping[str, tuple[str, tuple[Step, ...]]]
) -> dict[str, Array]:
    """The same numbers as the converted layer stores them."""
    found = {}
    for name in after.constants:
        source, steps = entries.get(name, (name, ()))
        if source in constants:
            found[name] = apply_steps(constants[source], steps)
    return found


def _faults(
    constants: dict[str, Array], after: LayerModel, entries: Mapping[str, tuple[str, tuple[Step, ...]]]
) -> dict[str, dict[str, Array]]:
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


def _recorded(
    original: ir.Model, rewriting: OnnxConversion, feeds: Mapping[str, Array] | None
) -> tuple[dict[str, Array], list[str], list[str]]:
    """What the layers read when the original runs on the example; the original must run."""
    if feeds is None:
        return {}, [], []
    expected = {str(value.name) for value in original.graph.inputs}
    if set(feeds) != expected:
        raise BadInput(f"x: has the inputs {sorted(feeds)}; the model takes {sorted(expected)}")
    graph_values = {str(v.name) for node in original.graph for v in node.outputs} | expected
    wanted = {layer.data for layer in rewriting.layers} & graph_values
    watched = original.clone()
    outputs = {str(value.name) for value in watched.graph.outputs}
    for node in watched.graph:
        for value in node.outputs:
            if str(value.name) in wanted and str(value.name) not in outputs:
                watched.graph.outputs.append(value)
    try:
        values = run_onnx_runtime(proto_of(watched), feeds, outputs=sorted(wanted - expected) or None)
    except MissingExtra as error:
        return {}, [], [f"the whole model, and the layers on their own inputs: {error}"]
    except NotRunnable as error:
        raise BadInput(f"the model fails on x: {error}") from error
    names = sorted(wanted - expected)
    recorded = dict(zip(names, values, strict=True)) if names else {}
    return recorded | {name: np.asarray(array) for name, array in feeds.items()}, [], []
