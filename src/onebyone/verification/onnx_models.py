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

from onebyone.errors import BadInput
from onebyone.laws import bounds
from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import prepared
from onebyone.onnx.evaluators import NotRunnable
from onebyone.onnx.function_bodies import inlined
from onebyone.onnx.layer_models import LayerModel, NotSeparable, scopes_of
from onebyone.onnx.network import OnnxNetwork
from onebyone.onnx.stored_values import SharedValues
from onebyone.verification.layer_matching import first_differing_layer, traced_outputs
from onebyone.verification.onnx_decompositions import compare_in_float64
from onebyone.verification.onnx_known import KnownOriginal, layer_key
from onebyone.verification.onnx_outputs import (
    REFERENCE,
    WholeModel,
    compare_outputs,
)
from onebyone.verification.onnx_probes import FREE_SIZES, probe, probe_key
from onebyone.verification.onnx_real_weights import check_on_real_weights
from onebyone.verification.result import SAME_FUNCTION, LayerCheck, Verification

Array = np.ndarray[Any, Any]


def verify_onnx(
    model: ir.Model,
    rewriting: OnnxConversion,
    feeds: Mapping[str, Array] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    known: KnownOriginal | None = None,
) -> Verification:
    """Whether a converted model computes what the original computes.

    Args:
        model: the original.
        rewriting: what `onebyone.onnx.convert.convert_model` returned for it.
        feeds: an array for each input; without them the layers are still probed.
        seed: of the probes.
        progress: called with (done, total) after every layer.
        known: the original on these feeds, where several conversions of it are verified: what is known of it is used
            again, and what was found is added. Functions inlined and initializers frozen as in `rewriting`.
    """
    if known is None:
        original = prepared(inlined(model) if rewriting.inlined else model, rewriting.frozen)
        known = KnownOriginal(original, feeds)
    problems: list[str] = []
    layers = _Layers(known, rewriting)
    unverified = list(known.unverified)
    checks = []
    for index, layer in enumerate(layers.layers):
        try:
            check, notes = layers.check(index, seed + index + 1)
            checks.append(check)
            unverified += notes
        except (NotSeparable, NotRunnable) as error:
            unverified.append(f"{layer.path}: {error}")
        if progress is not None:
            progress(index + 1, len(rewriting.layers))
    whole = WholeModel()
    if feeds is None:
        unverified.append("without an example input: the whole model, and the layers on their own inputs")
    else:
        whole = compare_outputs(
            known.original,
            rewriting.model,
            feeds,
            problems,
            unverified,
            max((x.terms for x in rewriting.layers), default=1),
            known.outputs,
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


class _Layers:
    """The layers of one conversion, each in its original and its converted form.

    Attributes:
        layers: the records, with the names that their values have in the original.
    """

    def __init__(self, known: KnownOriginal, rewriting: OnnxConversion) -> None:
        self._known, self._rewriting = known, rewriting
        shared = SharedValues(known.original, rewriting.model, rewriting.stored)
        self._cuts = [_cut(layer, shared) for layer in rewriting.layers]
        self.layers = [layer for layer, _, _ in self._cuts]
        self._model = shared.model
        self._scopes = scopes_of(self._model)
        # the original runs here; what cannot be run is listed in `known.unverified`
        self._recorded = known.recorded([layer.data for layer in self.layers])

    def check(self, index: int, seed: int) -> tuple[LayerCheck, tuple[str, ...]]:
        """The check of a layer, and what is to be listed as not verified.

        Raises:
            NotSeparable, NotRunnable: the layer cannot be checked by itself.
        """
        layer, data, output = self._cuts[index]
        if not (layer.scope in self._known.scopes and layer.scope in self._scopes):
            raise NotSeparable(f"the part {layer.scope!r} of the model is not in both models")
        after = LayerModel(self._model, data, output, self._scopes[layer.scope], called=layer.data)
        if not self._known.keeps_layers:
            return self._checked(layer, after, seed)
        key = layer_key(after, self._rewriting.entries, layer)
        if key not in self._known.layers:
            self._known.layers[key] = self._checked(layer, after, seed)
        return self._known.layers[key]

    def _checked(
        self, layer: RewrittenLayer, after: LayerModel, seed: int
    ) -> tuple[LayerCheck, tuple[str, ...]]:
        scope, main = self._known.scopes[layer.scope], self._known.scopes[""]
        before = LayerModel(self._known.original, layer.data, layer.output, scope, fixed_shapes=True)
        if not set(after.inputs) <= set(before.inputs):
            before = LayerModel(self._known.original, layer.data, layer.output, scope)
        if not layer.is_exact:
            return compare_in_float64(before, after, layer, seed, FREE_SIZES), ()
        check, hidden = self._probe(before, after, layer, seed)
        unverified = [f"{layer.path}: {hidden}"] if hidden else []
        recorded = self._recorded if before.reads_from(main) else {}
        has_weight = any(tensor.dtype.is_floating_point() for tensor in before.constants.values())
        if check.ok and check.bitwise and layer.data in recorded and has_weight:
            check = check_on_real_weights(before, after, layer.terms, recorded, check, unverified)
        return check, tuple(unverified)

    def _probe(
        self, before: LayerModel, after: LayerModel, layer: RewrittenLayer, seed: int
    ) -> tuple[LayerCheck, str]:
        """The integer probe of the layer, or that of a layer of the same structure."""
        entries, probes = self._rewriting.entries, self._known.probes
        key = probe_key(before, after, entries, layer)
        if key is None or key not in probes:
            found = probe(before, after, entries, layer, seed)
            if key is not None:
                probes[key] = found
            return found
        check, hidden = probes[key]
        return replace(check, path=layer.path, kind=layer.kind, law=layer.law), hidden


def _cut(layer: RewrittenLayer, shared: SharedValues) -> tuple[RewrittenLayer, str, str]:
    """A record with the original's names, and the names of the same two values in the converted model."""
    if layer.scope:
        return layer, layer.data, layer.output
    data, output = shared.before(layer.data), shared.after(layer.output)
    sizes = layer.data_sizes if data.original == layer.data else None
    named = replace(layer, data=data.original, output=output.original, data_sizes=sizes)
    return named, data.converted, output.converted
