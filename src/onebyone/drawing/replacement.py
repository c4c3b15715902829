"""The replacement of a network's fully connected layers, as the conversions themselves tell it."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from onebyone.drawing.data import MAP, VECTOR, LayerCall, Replaced, Sizes
from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.laws import pointwise
from onebyone.laws.geometry import Geometry
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import Change


@dataclass(frozen=True)
class Replacement:
    """What was replaced, what was kept and why, by which verb, and where the answers lie in the image."""

    replaced: tuple[Replaced, ...]
    kept: tuple[str, ...]
    by: str
    refused: tuple[str, ...]
    geometry: Geometry | None


def replace_layers(
    model: nn.Module, example: object, steps: Sequence[LayerCall], window: Sequence[int] | None
) -> Replacement:
    """Convert the network: to any size where that can be done, else each layer by itself.

    The any-size form is what a flatten disappears in; where it is refused, `refused` holds every reason.
    """
    conversion = convert_module(model, to="conv")
    kept = tuple(str(r) for r in conversion.refused)
    try:
        dense = _lifted(model, example, window)
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


def _lifted(model: nn.Module, example: object, window: Sequence[int] | None) -> ConvolutionalizedModule:
    """The network for images of any size; with its global context over the window where it has any."""
    with warnings.catch_warnings():  # nothing is scanned with it
        warnings.simplefilter("ignore", InexactWarning)
        return _any_size(model, example, window)


def _any_size(model: nn.Module, example: object, window: Sequence[int] | None) -> ConvolutionalizedModule:
    given = example[0] if isinstance(example, tuple | list) and len(example) == 1 else example
    if not isinstance(given, Tensor) or not given.is_floating_point() or not 3 <= given.dim() <= 5:
        what = f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise BadInput(f"the input is {what} and no image (N, C, H, W): it has no windows")
    size = tuple(window) if window is not None else tuple(int(n) for n in given.shape[2:])
    try:
        return convolutionalize(model, size, int(given.shape[1]))
    except Refused as plain:
        try:
            return convolutionalize(model, size, int(given.shape[1]), context="window")
        except Refused:
            raise plain from None


def _by_dense(dense: ConvolutionalizedModule, steps: Sequence[LayerCall]) -> tuple[Replaced, ...]:
    """The changes of the any-size form; a linear layer's beside the map that its kernel reads."""
    pairs = iter(dense.pairs)
    flattens = _flattens(steps)
    found = []
    for change in dense.changes:
        weight, kernel = _shape_in(change.before), _shape_in(change.after)
        read: Sizes = ()
        if kernel:
            read = next(pairs).map_shape
        last = [s for s in steps if s.path == change.path]
        tokens = bool(last) and last[0].role == "linear" and last[0].layout != VECTOR
        flatten = flattens.get(change.path) if kernel and not tokens else None
        if flatten is None and not tokens and prod(kernel[2:]) > 1:
            flatten = "flatten"  # by other means than a layer or function of that name
        found.append(_replaced(change, weight, kernel, read, tokens, flatten))
    return tuple(found)


def _by_layer(conversion: ModuleConversion, steps: Sequence[LayerCall]) -> tuple[Replaced, ...]:
    """The changes of drop-ins: a vector is an image of 1×1 places, tokens are an image's places."""
    found = []
    for change in conversion.changes:
        paths = (change.path, change.path.rpartition(".")[0])  # attention reads the weight of its projection
        seen = next((s for p in paths for s in steps if s.path == p and s.weights), None)
        weight = _shape_in(change.before)
        if len(weight) != 2 or seen is None:
            found.append(_replaced(change, (), (), (), False, None))
            continue
        places = seen.input[:-1] if seen.layout != VECTOR else ()
        kernel, read = pointwise.conv_shape(weight), pointwise.image_shape((1, *places, weight[1]))[1:]
        found.append(_replaced(change, weight, kernel, read, seen.layout != VECTOR, None))
    return tuple(found)


def _replaced(
    change: Change, weight: Sizes, kernel: Sizes, read: Sizes, tokens: bool, flatten: str | None
) -> Replaced:
    return Replaced(
        path=change.path,
        kind=change.kind,
        law=change.law,
        before=change.before,
        after=change.after,
        weight=weight,
        kernel=kernel,
        map=read,
        tokens=tokens,
        flatten=flatten,
        copied_bytes=change.copied_bytes,
    )


def _flattens(steps: Sequence[LayerCall]) -> dict[str, str]:
    """By path of a linear layer, the flatten whose vector it reads, through what leaves the vector's size."""
    found: dict[str, str] = {}
    last: LayerCall | None = None
    for step in steps:
        if step.role == "flatten" and step.layout == VECTOR and len(step.input) > 1:
            last = step
        elif step.role == "linear" and last is not None:
            if step.layout == VECTOR and step.input == last.output:
                found.setdefault(step.path, last.path or last.kind)
            last = None
        elif step.layout == MAP:
            last = None
    return found


def _shape_in(text: str) -> Sizes:
    """The last shape in a description such as `7×7 convolution (8, 3, 7, 7)` or `Linear 10×4`; () without one.

    >>> _shape_in("7×7 convolution (8, 3, 7, 7)"), _shape_in("Linear 10×4"), _shape_in("pool over the map")
    ((8, 3, 7, 7), (10, 4), ())
    >>> _shape_in("1×1 convolution in_proj 48×16"), _shape_in("in_proj 16×16 + 16×8 + 16×8")
    ((48, 16), ())
    """
    if bracketed := re.search(r"\([\d, ]+\)$", text):
        return tuple(int(n) for n in ast.literal_eval(bracketed.group()))
    written = re.fullmatch(r"[^+]* (\d+(?:×\d+)+)", text)
    return tuple(int(n) for n in written.group(1).split("×")) if written else ()
