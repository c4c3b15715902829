"""Integer probes of the layers that `convolutionalize` lifted: the original on every crop against the emitted layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from onebyone.laws.bounds import significand_bits
from onebyone.results import WindowPair
from onebyone.verification.injected_faults import Params, injected
from onebyone.verification.integer_probes import integers
from onebyone.verification.network_run import in_one_line
from onebyone.verification.result import Fault, LayerCheck

_LIMIT = 2 ** significand_bits("float64")
Layer = Callable[[Tensor, Params], Tensor]


def check_window_pair(pair: WindowPair, seed: int) -> LayerCheck:
    """Compare one lifted layer bit for bit on integers, at every window of a map with several windows on each axis.

    The original runs the network's own operators on each crop. The converted layer runs once on the whole map, in each
    form that it has (a k×k layer is a convolution, or at few positions a matrix product). The batch size, the number of
    positions per axis, the height and the width all differ from one another and from 1. Injected faults: see
    `injected_faults`, and a map that starts one position late.
    """
    try:
        bitwise, why, faults = _probe(pair, pair.converted, seed)
        if bitwise and pair.unfolded is not None:
            bitwise, why, faults_unfolded = _probe(pair, pair.unfolded, seed)
            if faults_unfolded:
                faults = [_seen_in_both(f, g) for f, g in zip(faults, faults_unfolded, strict=True)]
    except Exception as error:  # a layer that fails is a result, not an error of the verifier
        return LayerCheck(pair.path, pair.kind, pair.law, bitwise=False, ok=False, why=in_one_line(error))
    hidden = [f.name for f in faults if not f.seen_by_integers]
    if hidden:
        why = f"the integer probe cannot see: {', '.join(hidden)}"
    return LayerCheck(
        pair.path, pair.kind, pair.law, bitwise=bitwise, faults=tuple(faults), ok=not why, why=why
    )


def _seen_in_both(first: Fault, second: Fault) -> Fault:
    """A fault that was injected into both forms of a layer; it counts as seen only if both probes saw it."""
    return replace(first, seen_by_integers=first.seen_by_integers and second.seen_by_integers)


def _probe(pair: WindowPair, converted: Layer, seed: int) -> tuple[bool, str, list[Fault]]:
    generator = torch.Generator().manual_seed(seed)
    channels, *sizes = pair.map_shape
    # 3, 2 and 4 windows along the axes, and a remainder at the end that must give no further window
    extra = [n * s + s - 1 for n, s in zip((2, 1, 3), pair.step, strict=False)]
    if len(sizes) > 1 and sizes[0] + extra[0] == sizes[1] + extra[1]:
        extra[0] += pair.step[0]
    magnitude = _magnitude(pair)
    params = {n: integers(tuple(s), magnitude, generator) for n, s in pair.parameter_shapes.items()}
    feature_map = integers(
        (2, channels, *(n + e for n, e in zip(sizes, extra, strict=True))), magnitude, generator
    )
    _assert_exact(params, feature_map)
    with torch.no_grad():
        expected = on_crops(pair, feature_map, params)
        actual = converted(feature_map, params)
        if expected.shape != actual.shape:
            return False, f"{tuple(actual.shape)} positions and outputs, expected {tuple(expected.shape)}", []
        if not torch.equal(expected, actual):
            wrong = int((expected != actual).sum())
            return False, f"the integer probe differs in {wrong} of {expected.numel()} values", []
        faults = [
            Fault(name, seen_by_integers=not torch.equal(converted(feature_map, make()), expected))
            for name, make in injected(params, tuple(pair.map_shape)).items()
        ]
        late = converted(feature_map.roll(1, -1), params)
        faults.append(Fault("offset by one position", seen_by_integers=not torch.equal(late, expected)))
    return True, "", faults


def on_crops(pair: WindowPair, feature_map: Tensor, params: Params) -> Tensor:
    """The original layer on every window of a feature map `(N, C, H, W)`: `(N, H', W', *out)`."""
    nominal = tuple(pair.map_shape[1:])
    counts = [
        (have - n) // s + 1 for have, n, s in zip(feature_map.shape[2:], nominal, pair.step, strict=True)
    ]
    crops = []
    for position in itertools.product(*(range(c) for c in counts)):
        window = tuple(slice(i * s, i * s + n) for i, s, n in zip(position, pair.step, nominal, strict=True))
        crops.append(feature_map[(slice(None), slice(None), *window)])
    rows: Tensor = pair.original(torch.cat(crops), params)
    return (
        rows.reshape(math.prod(counts), len(feature_map), *rows.shape[1:])
        .movedim(1, 0)
        .reshape(len(feature_map), *counts, *rows.shape[1:])
    )


def _terms(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """At least the number of products of one sum; the weight is (O, F), or (F, O) if it is stored transposed."""
    return max(int(n) for n in shapes["weight"])


def _magnitude(pair: WindowPair) -> int:
    """The largest m for which a sum of n products stays exact.

    That is n·m² + m ≤ 2^53, or n·m³ + n·m² + m ≤ 2^53 for a layer that also contains a scale and a shift by position.
    """
    n = _terms(pair.parameter_shapes)
    scaled = "scale" in pair.parameter_shapes
    m = int((_LIMIT / n) ** (1 / 3 if scaled else 1 / 2))
    while _largest_sum(n, m, m, m, m, m, scaled) > _LIMIT:
        m -= 1
    return max(1, m)


def _largest_sum(n: int, weight: int, x: int, bias: int, scale: int, shift: int, scaled: bool) -> int:
    return n * weight * (scale * x + shift) + bias if scaled else n * weight * x + bias


def _assert_exact(params: Params, feature_map: Tensor) -> None:
    """Check on the numbers in use that no sum exceeds 2^53."""

    def largest(t: Tensor | None) -> int:
        if t is None:
            return 0
        if not torch.equal(t, t.trunc()):
            raise ValueError("the probe holds values that are not integers")
        return int(t.abs().max())

    n = _terms({name: tuple(p.shape) for name, p in params.items()})
    weight, bias, scale, shift = (largest(params.get(k)) for k in ("weight", "bias", "scale", "shift"))
    reached = _largest_sum(n, weight, largest(feature_map), bias, scale, shift, "scale" in params)
    if reached > _LIMIT:
        raise ValueError(f"sums of the integer probe reach {reached}, more than 2^53, and are not exact")
