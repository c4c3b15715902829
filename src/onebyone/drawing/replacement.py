"""Describes the replacement of a network's fully connected layers, from the results of the conversions."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from onebyone.drawing.data import MAP, VECTOR, ReplacedLayer, Sizes, TraceStep
from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.laws import pointwise
from onebyone.laws.geometry import Geometry
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import Change
from onebyone.results.layer_pairs import WindowPair


@dataclass(frozen=True)
class Replacement:
    """What was replaced by which verb, what was kept and why, and the geometry of the predictions."""

    replaced: tuple[ReplacedLayer, ...]
    kept: tuple[str, ...]
    by: str
    refused: tuple[str, ...]
    geometry: Geometry | None


def replace_layers(
    model: nn.Module, example: object, steps: Sequence[TraceStep], window: Sequence[int] | None
) -> Replacement:
    """Convert the network to its any-size form if that is possible, else each layer separately.

    Only the any-size form needs no flatten; if it is refused, `refused` holds every reason.
    """
    conversion = convert_module(model, to="conv")
    kept = tuple(str(r) for r in conversion.refused)
    try:
        dense = _any_size(model, example, window)
    except Refused as refused:
        return Replacement(_by_layer(conversion, steps), kept, "convert", _reasons(refused), None)
    except BadInput as error:
        if window is not None:
            raise
        return Replacement(_by_layer(conversion, steps), kept, "convert", (str(error),), None)
    called = {s.path for s in steps if s.role == "linear"}
    kept = tuple(str(r) for r in conversion.refused if r.path not in called)
    return Replacement(_by_dense(dense, steps), kept, "convolutionalize", (), dense.geometry)


def _reasons(refused: Refused) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(r) for r in refused.refusals))


def _any_size(model: nn.Module, example: object, window: Sequence[int] | None) -> ConvolutionalizedModule:
    """The network for images of any size, with global context over the window if it needs one."""
    with warnings.catch_warnings():  # irrelevant here, because no image is scanned
        warnings.simplefilter("ignore", InexactWarning)
        return _convolutionalized(model, example, window)


def _convolutionalized(
    model: nn.Module, example: object, window: Sequence[int] | None
) -> ConvolutionalizedModule:
    x = example[0] if isinstance(example, tuple | list) and len(example) == 1 else example
    if not isinstance(x, Tensor) or not x.is_floating_point() or not 3 <= x.dim() <= 5:
        actual = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise BadInput(f"the input {actual} and is not an image (N, C, H, W), so there are no windows")
    size = tuple(window) if window is not None else tuple(int(n) for n in x.shape[2:])
    try:
        return convolutionalize(model, size, int(x.shape[1]))
    except Refused as without_context:
        try:
            return convolutionalize(model, size, int(x.shape[1]), context="window")
        except Refused:
            raise without_context from None


def _by_dense(dense: ConvolutionalizedModule, steps: Sequence[TraceStep]) -> tuple[ReplacedLayer, ...]:
    """The changes of the any-size form, with the input maps of the kernels that replace linear layers."""
    pairs = iter(dense.pairs)
    flattens = _flattens(steps)
    layers = []
    for change in dense.changes:
        weight, kernel = _shape_in(change.before), _shape_in(change.after)
        image: Sizes = ()
        nonzero = prod(kernel)
        if kernel:
            pair = next(pairs)
            image = pair.map_shape
            nonzero = kernel[0] * _elements_read(pair, weight[-1]) if prod(kernel[2:]) > 1 else prod(kernel)
        last = [s for s in steps if s.path == change.path]
        tokens = bool(last) and last[0].role == "linear" and last[0].layout != VECTOR
        flatten = flattens.get(change.path) if kernel and not tokens else None
        if flatten is None and not tokens and prod(kernel[2:]) > 1:
            flatten = "flatten"  # the map was flattened by other operations
        layers.append(_replaced(change, weight, kernel, image, tokens, flatten, nonzero))
    return tuple(layers)


def _elements_read(pair: WindowPair, features: int) -> int:
    """How many elements of one window of the map a linear layer reads: the support of its Jacobian.

    With all weights 1 no two contributions cancel. The weight may be stored as (O, F) or as (F, O).
    """
    crop = torch.zeros(1, *pair.map_shape, requires_grad=True)
    with torch.enable_grad():
        try:
            output = pair.original(crop, {"weight": torch.ones(1, features)})
        except RuntimeError:
            output = pair.original(crop, {"weight": torch.ones(features, 1)})
        (gradient,) = torch.autograd.grad(output.sum(), crop)
    return int(gradient.count_nonzero())


def _by_layer(conversion: ModuleConversion, steps: Sequence[TraceStep]) -> tuple[ReplacedLayer, ...]:
    """The changes of drop-ins: a vector is an image of 1×1 positions, tokens are the positions of an image."""
    layers = []
    for change in conversion.changes:
        paths = (
            change.path,
            change.path.rpartition(".")[0],
        )  # attention layers read the weight of their projection
        call = next((s for p in paths for s in steps if s.path == p and s.weights), None)
        weight = _shape_in(change.before)
        if len(weight) != 2 or call is None:
            layers.append(_replaced(change, (), (), (), False, None, 0))
            continue
        positions = call.input[:-1] if call.layout != VECTOR else ()
        kernel, image = pointwise.conv_shape(weight), pointwise.image_shape((1, *positions, weight[1]))[1:]
        layers.append(_replaced(change, weight, kernel, image, call.layout != VECTOR, None, prod(kernel)))
    return tuple(layers)


def _replaced(
    change: Change,
    weight: Sizes,
    kernel: Sizes,
    image: Sizes,
    tokens: bool,
    flatten: str | None,
    nonzero: int,
) -> ReplacedLayer:
    return ReplacedLayer(
        path=change.path,
        kind=change.kind,
        law=change.law,
        before=change.before,
        after=change.after,
        weight=weight,
        kernel=kernel,
        map=image,
        tokens=tokens,
        flatten=flatten,
        copied_bytes=change.copied_bytes,
        nonzero=nonzero,
    )


def _flattens(steps: Sequence[TraceStep]) -> dict[str, str]:
    """For each linear layer on a flattened map, the path of the flatten; the steps between keep the vector's size."""
    flattens: dict[str, str] = {}
    last: TraceStep | None = None
    for step in steps:
        if step.role == "flatten" and step.layout == VECTOR and len(step.input) > 1:
            last = step
        elif step.role == "linear" and last is not None:
            if step.layout == VECTOR and step.input == last.output:
                flattens.setdefault(step.path, last.path or last.kind)
            last = None
        elif step.layout == MAP:
            last = None
    return flattens


def _shape_in(text: str) -> Sizes:
    """The last shape in a description such as `7×7 convolution (8, 3, 7, 7)` or `Linear 10×4`; () if there is none.

    >>> _shape_in("7×7 convolution (8, 3, 7, 7)"), _shape_in("Linear 10×4"), _shape_in("pool over the map")
    ((8, 3, 7, 7), (10, 4), ())
    >>> _shape_in("1×1 convolution in_proj 48×16"), _shape_in("in_proj 16×16 + 16×8 + 16×8")
    ((48, 16), ())
    """
    if bracketed := re.search(r"\([\d, ]+\)$", text):
        return tuple(int(n) for n in ast.literal_eval(bracketed.group()))
    written = re.fullmatch(r"[^+]* (\d+(?:×\d+)+)", text)
    return tuple(int(n) for n in written.group(1).split("×")) if written else ()
