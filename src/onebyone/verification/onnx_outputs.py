"""Compare the outputs of two ONNX models: in ONNX Runtime, and against the original in float64.

The converted model runs optimised and not. Its error may be at most √(u'/u) times the original's own, where u' is the
unit roundoff of the next shorter type (see `verification.output_comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onebyone.errors import BadInput, MissingExtra
from onebyone.laws import bounds
from onebyone.onnx.evaluators import (
    NotRunnable,
    onnx_runtime_version,
    proto_of,
    run_onnx_runtime,
    run_reference,
)
from onebyone.onnx.function_bodies import inlined
from onebyone.onnx.layer_models import LayerModel, NotSeparable
from onebyone.onnx.lifted_constants import lift_constants
from onebyone.onnx.perturbations import has_integer_products, quantises, sensitivity

Array = np.ndarray[Any, Any]


class WholeModel:
    """What the comparison of the whole models measured."""

    max_error: float | None = None
    rounding_ratio: float | None = None
    evaluators: tuple[str, ...] = ()


#: The name of ONNX's own implementation, for the report.
REFERENCE = f"the ONNX reference implementation {onnx.__version__}"
#: Unit roundoff of each type of an output, and that of the next shorter type.
_UNITS = {"float64": (2.0**-53, 2.0**-24), "float32": (2.0**-24, 2.0**-11), "float16": (2.0**-11, 2.0**-3)}


@dataclass(frozen=True)
class OriginalOutputs:
    """What a model computes on an example, for the comparison with any number of conversions of it.

    Attributes:
        first, plain: the outputs by ONNX Runtime, optimised and not; empty where the model does not run.
        references: the outputs in float64, None where the reference implementation cannot give one.
        exact: those that agree with ONNX Runtime.
        unverified: what could not be computed, and why.
    """

    names: tuple[str, ...]
    first: Sequence[Array]
    plain: Sequence[Array]
    references: Sequence[Array | None]
    exact: Sequence[Array | None]
    unverified: tuple[str, ...]


def original_outputs(
    original: ir.Model, feeds: Mapping[str, Array], plain: Sequence[Array] | None = None
) -> OriginalOutputs:
    """Run the original: by ONNX Runtime, optimised and not, and in float64.

    `plain` are its outputs when it is not optimised, if they are known.
    """
    names = tuple(str(value.name) for value in original.graph.outputs)
    unverified: list[str] = []
    if not onnx_runtime_version():
        unverified.append(
            "the whole model in ONNX Runtime, which is not installed: the ONNX reference implementation ran both"
        )
    try:
        first = _run(original, feeds, optimised=True)
    except NotRunnable as error:
        return OriginalOutputs(names, (), (), (), (), (*unverified, f"the whole model: {error}"))
    try:
        plain = plain or _run(original, feeds, optimised=False)
    except NotRunnable:
        plain = first
    without_calls = _without_calls(original)
    references = [_reference(without_calls, name, feeds, unverified) for name in names]
    exact = [_trusted(*of_output, unverified) for of_output in zip(names, first, references, strict=True)]
    return OriginalOutputs(names, first, plain, references, exact, tuple(unverified))


def compare_outputs(
    original: ir.Model,
    converted: ir.Model,
    feeds: Mapping[str, Array],
    problems: list[str],
    unverified: list[str],
    terms: int = 1,
    known: OriginalOutputs | None = None,
) -> WholeModel:
    """Compare every output.

    `terms` is the largest number of products that one number of a converted layer sums; `known` is what the original
    computes on the same example, if it was run before.
    """
    whole = WholeModel()
    before = known or original_outputs(original, feeds)
    unverified += before.unverified
    if not before.first:
        return whole
    names, references = before.names, before.references
    whole.evaluators = (f"own types: {onnx_runtime_version() or REFERENCE}",)
    if any(reference is not None for reference in before.exact):
        whole.evaluators += (f"float64: {REFERENCE}",)
    outside: dict[str, tuple[float, str]] = {}
    for optimised in (True, False):
        try:
            second = _run(converted, feeds, optimised=optimised)
        except NotRunnable as error:
            problems.append(f"the converted model, {'' if optimised else 'not '}optimised: {error}")
            continue
        own = before.first if optimised else before.plain
        for name, y, z, reference in zip(names, own, second, before.exact, strict=True):
            difference, problem = _compare_output(whole, name, y, z, reference, problems)
            if not problem:
                continue
            if (
                has_integer_products(original)
                and _difference_beyond(z, references[names.index(name)]) is None
            ):
                unverified.append(
                    f"output {name} of the original: ONNX Runtime's integer products differ from ONNX's definition by "
                    f"{difference:.3g}, as where they saturate; the converted model's do not"
                )
            elif difference >= outside.get(name, (0.0, ""))[0]:
                outside[name] = (difference, problem)
    if outside:
        _compare_with_sensitivity(original, feeds, list(names), outside, terms, problems, unverified)
    return whole


def _without_calls(model: ir.Model) -> ir.Model:
    """The model with its functions inlined, so that every value has a type of its own; as it is where that fails."""
    if not model.functions:
        return model
    try:
        copy = inlined(model)
    except BadInput:
        return model
    lift_constants(copy)
    return copy


def _run(model: ir.Model, feeds: Mapping[str, Array], *, optimised: bool) -> list[Array]:
    """The outputs by ONNX Runtime, or by the reference implementation where it is not installed."""
    try:
        return run_onnx_runtime(proto_of(model), feeds, optimised=optimised)
    except MissingExtra:
        return run_reference(proto_of(model), feeds)


def _compare_output(
    whole: WholeModel,
    name: str,
    y: Array,
    z: Array,
    reference: Array | None,
    problems: list[str],
) -> tuple[float, str]:
    """The largest difference of one output, and what is wrong with it as text, empty if nothing is.

    What is wrong whatever the rounding errors are goes into `problems`.
    """
    if y.shape != z.shape or y.dtype != z.dtype:
        problems.append(
            f"output {name} is {z.dtype} of shape {z.shape}, the original's is {y.dtype} {y.shape}"
        )
        return 0.0, ""
    if y.dtype.name not in _UNITS:
        if not np.array_equal(y, z):
            problems.append(f"output {name} ({y.dtype}) differs")
        return 0.0, ""
    if not np.isfinite(z).all() or not np.isfinite(y).all():
        problems.append(f"output {name} holds NaN or infinity")
        return 0.0, ""
    wide, other = y.astype(np.float64), z.astype(np.float64)
    unit, shorter = _UNITS[y.dtype.name]
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
    if ratio <= allowed:
        return difference, ""
    return (
        difference,
        f"output {name} has {ratio:.3g} times the original's rounding error, limit {allowed:.3g}",
    )


def _compare_with_sensitivity(
    original: ir.Model,
    feeds: Mapping[str, Array],
    names: list[str],
    outside: Mapping[str, tuple[float, str]],
    terms: int,
    problems: list[str],
    unverified: list[str],
) -> None:
    """Judge differences that exceed rounding errors by how much the original's rounding may move its own outputs.

    A network that quantises values inside is not continuous: a rounding error moves a value to the next code. What a
    layer computes is exact for weights that differ by γ_n from the given ones (Higham), so that the two forms may
    differ by twice what such changes of the weights do to the original.
    """
    unit = bounds.unit_roundoff("float32")
    moved: list[float] = []
    if quantises(original):
        moved = sensitivity(original, feeds, bounds.gamma(terms, unit))
    for name, (difference, problem) in outside.items():
        limit = 2 * moved[names.index(name)] if moved else 0.0
        if difference > limit:
            problems.append(problem)
        else:
            unverified.append(
                f"output {name} beyond {difference:.3g}: it quantises values inside, so that rounding errors move it "
                f"by up to {limit:.3g}"
            )


def _reference(
    model: ir.Model, output: str, feeds: Mapping[str, Array], unverified: list[str]
) -> Array | None:
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


def _trusted(output: str, y: Array, reference: Array | None, unverified: list[str]) -> Array | None:
    """The reference where it computes what ONNX Runtime computes as `y`; if not, which one is right is not known."""
    difference = _difference_beyond(y, reference)
    if reference is not None and difference is not None:
        unverified.append(
            f"output {output} in float64: the ONNX reference implementation and ONNX Runtime differ on the original by "
            f"{difference:.3g}"
        )
    return reference if difference is None else None


def _difference_beyond(y: Array, reference: Array | None) -> float | None:
    """The largest difference, if it exceeds the next shorter type's rounding of the largest value; None if not."""
    if reference is None or y.dtype.name not in _UNITS or reference.shape != y.shape:
        return np.inf
    difference = float(np.abs(y.astype(np.float64) - reference).max(initial=0.0))
    limit = _UNITS[y.dtype.name][1] * float(np.abs(reference).max(initial=0.0))
    return None if difference <= limit else difference


def run64(layer: LayerModel, constants: Mapping[str, Array], feeds: Mapping[str, Array]) -> Array:
    """The layer in float64, by the reference implementation, with the given constants."""
    model, weights = layer.in_float64(constants)
    return run_reference(model, {**weights, **inputs_of(layer, feeds)})[0]


def inputs_of(layer: LayerModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays that a layer reads, among those for another form of it.

    Raises:
        NotRunnable: one is missing.
    """
    for name in layer.inputs:
        if name not in feeds:
            raise NotRunnable(f"it reads {name!r}, and its other form does not")
    return {name: feeds[name] for name in layer.inputs}


def missing_dependence(
    before: LayerModel,
    after: LayerModel,
    constants: Mapping[str, Array],
    feeds: Mapping[str, Array],
    others: Mapping[str, Array],
    expected: Array,
) -> str:
    """What is wrong if the original form depends on the numbers of an input that the converted form does not have.

    The converted form may lack an input of which the original reads the shape only: `expected`, the result for `feeds`,
    stays the same with the numbers of `others` there.
    """
    changed = {name: others[name] for name in before.inputs if name not in after.inputs}
    if not changed or np.array_equal(run64(before, constants, {**feeds, **changed}), expected):
        return ""
    return f"it depends on {', '.join(changed)}, which the converted form does not read"
