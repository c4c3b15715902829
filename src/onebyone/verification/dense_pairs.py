"""Integer probes of the layers that `convolutionalize` lifted: each window's crop against the emitted convolution."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onebyone.laws.bounds import significand_bits
from onebyone.verification.integer_probes import integers
from onebyone.verification.layer_subjects import Params, planted
from onebyone.verification.network_run import in_one_line
from onebyone.verification.result import Fault, LayerCheck

_LIMIT = 2 ** significand_bits("float64")


def check_dense_pair(pair: Any, seed: int) -> LayerCheck:
    """One lifted layer, bit for bit on integers at every window of a map that has several of them on each axis.

    The original side runs the network's own operators on each crop; the converted side runs the emitted code once in
    each form that it has (a k×k layer is a convolution, or a product of rows at few positions).
    Batch, places per axis, height and width all differ from one another and from 1. Planted faults: see
    `subjects.planted`, and a map that starts one place late.
    """
    law = str(getattr(pair, "law", ""))
    try:
        bitwise, why, faults = _probe(pair, pair.converted, seed)
        unfolded = getattr(pair, "unfolded", None)
        if bitwise and unfolded is not None:
            bitwise, why, again = _probe(pair, unfolded, seed)
            if again:
                faults = [_in_both(f, g) for f, g in zip(faults, again, strict=True)]
    except Exception as error:  # a layer that cannot be run is a finding
        return LayerCheck(pair.path, pair.kind, law, bitwise=False, ok=False, why=in_one_line(error))
    hidden = [f.name for f in faults if not f.seen_by_integers]
    if hidden:
        why = f"the integer probe cannot see: {', '.join(hidden)}"
    return LayerCheck(pair.path, pair.kind, law, bitwise=bitwise, faults=tuple(faults), ok=not why, why=why)


def _in_both(first: Fault, second: Fault) -> Fault:
    """A fault planted into both forms of a layer, seen only if it is seen in both."""
    return replace(first, seen_by_integers=first.seen_by_integers and second.seen_by_integers)


def _probe(pair: Any, converted: Any, seed: int) -> tuple[bool, str, list[Fault]]:
    generator = torch.Generator().manual_seed(seed)
    channels, *sizes = pair.map_shape
    # 3, 2, 4 … windows along the axes, and a rest at the end that must give no further one
    spare = [n * s + s - 1 for n, s in zip((2, 1, 3), pair.step, strict=False)]
    if len(sizes) > 1 and sizes[0] + spare[0] == sizes[1] + spare[1]:
        spare[0] += pair.step[0]
    magnitude = _magnitude(pair)
    params = {n: integers(tuple(s), magnitude, generator) for n, s in pair.parameter_shapes.items()}
    source = integers(
        (2, channels, *(n + e for n, e in zip(sizes, spare, strict=True))), magnitude, generator
    )
    _assert_exact(params, source)
    with torch.no_grad():
        expected = on_crops(pair, source, params)
        found = converted(source, params)
        if expected.shape != found.shape:
            return False, f"{tuple(found.shape)} places and outputs, expected {tuple(expected.shape)}", []
        if not torch.equal(expected, found):
            wrong = int((expected != found).sum())
            return False, f"the integer probe differs in {wrong} of {expected.numel()} values", []
        map_shape = tuple(pair.map_shape)
        faults = [
            Fault(name, seen_by_integers=not torch.equal(converted(source, make()), expected))
            for name, make in planted(params, map_shape if math.prod(sizes) > 1 else None).items()
        ]
        late = converted(source.roll(1, -1), params)
        faults.append(Fault("offset by one place", seen_by_integers=not torch.equal(late, expected)))
    return True, "", faults


def on_crops(pair: Any, source: Tensor, params: Params) -> Tensor:
    """The original side on every window of a map, `(N, H', W', *out)`."""
    nominal = tuple(pair.map_shape[1:])
    counts = [(have - n) // s + 1 for have, n, s in zip(source.shape[2:], nominal, pair.step, strict=True)]
    crops = []
    for place in itertools.product(*(range(c) for c in counts)):
        where = tuple(slice(i * s, i * s + n) for i, s, n in zip(place, pair.step, nominal, strict=True))
        crops.append(source[(slice(None), slice(None), *where)])
    rows: Tensor = pair.original(torch.cat(crops), params)
    return (
        rows.reshape(math.prod(counts), len(source), *rows.shape[1:])
        .movedim(1, 0)
        .reshape(len(source), *counts, *rows.shape[1:])
    )


def _terms(shapes: dict[str, Any]) -> int:
    weight = shapes["weight"]
    return max(int(n) for n in weight)  # (O, F), or (F, O) where the weight comes transposed


def _magnitude(pair: Any) -> int:
    """The largest m for which a sum of n products stays exact: n·m² + m, or n·m³ + n·m² + m where the layer also
    takes in a scale and a shift by position."""
    n = _terms(pair.parameter_shapes)
    m = int((_LIMIT / n) ** (1 / 3 if "scale" in pair.parameter_shapes else 1 / 2))
    while _reach(n, *(m,) * 5, "scale" in pair.parameter_shapes) > _LIMIT:
        m -= 1
    return max(1, m)


def _reach(n: int, weight: int, x: int, bias: int, scale: int, shift: int, scaled: bool) -> int:
    return n * weight * (scale * x + shift) + bias if scaled else n * weight * x + bias


def _assert_exact(params: Params, source: Tensor) -> None:
    """On the numbers used, not on what they were meant to be."""

    def largest(t: Tensor | None) -> int:
        if t is None:
            return 0
        if not torch.equal(t, t.trunc()):
            raise ValueError("a probe that is not of integers")
        return int(t.abs().max())

    n = _terms({k: p.shape for k, p in params.items()})
    figures = [largest(params.get(k)) for k in ("weight", "bias", "scale", "shift")]
    weight, bias, scale, shift = figures
    reach = _reach(n, weight, largest(source), bias, scale, shift, "scale" in params)
    if reach > _LIMIT:
        raise ValueError(f"sums of the integer probe reach {reach}, more than 2^53: not exact")
