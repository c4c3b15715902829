"""Checks of one converted layer: integer probes, then real weights within a derived bound, then injected faults.

The bound is elementwise. With n the number of terms of one output and u the unit roundoff of the type that sums are
kept in (`laws.bounds`):

    |Δ| ≤ 2·γ_{n+1}(u)·(|W||x| + |b|)                                (float32, float64)

float16 and bfloat16 are summed in float32 and rounded at most twice (the product, and the product plus the bias). With
v the unit roundoff of the short type, each side therefore adds v·(2|y| + |b|). A complex product consists of two real
products for each part, so that n doubles, and the two parts together add a factor √2.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from onebyone.errors import BadInput
from onebyone.laws import bounds
from onebyone.records import first_line
from onebyone.results import LayerFunctions
from onebyone.verification.evaluation_context import direct_convolutions
from onebyone.verification.injected_faults import injected
from onebyone.verification.integer_probes import probe
from onebyone.verification.pytree import cast_tensor, wide
from onebyone.verification.result import Fault, LayerCheck


def check_layer(layer: LayerFunctions, x: Tensor | None, seed: int) -> LayerCheck:
    """All checks of one layer. `x` is its recorded input; None limits the checks to the integer probe."""
    check = LayerCheck(layer.path, layer.kind)
    not_finite = [name for name, p in layer.params.items() if not bool(torch.isfinite(p).all())]
    if not_finite:
        return replace(check, ok=False, why=f"not finite: {', '.join(not_finite)}")
    with direct_convolutions():
        equal, why, faults = probe(layer, seed)
        check = replace(check, bitwise=equal, ok=equal, why=why, faults=tuple(faults))
        hidden = [f.name for f in faults if not f.seen_by_integers]
        if hidden:
            return replace(check, ok=False, why=f"the integer probe cannot see: {', '.join(hidden)}")
        if equal and x is not None:
            with torch.no_grad():
                check = _on_real_weights(layer, x.detach(), check)
    return check


def _on_real_weights(layer: LayerFunctions, x: Tensor, check: LayerCheck) -> LayerCheck:
    if not x.numel():  # an empty batch, which not every form of a layer accepts
        return replace(check, why="no bound on real weights: its recorded input has no values")
    if not bool(torch.isfinite(x).all()):
        return replace(check, ok=False, why="its recorded input is not finite")
    try:
        exact, bound, arithmetic = rounding_bound(layer, x)
    except BadInput as error:
        return replace(check, why=f"no bound on real weights: {first_line(error)}")
    expected = wide(layer.original(x, layer.params))
    actual = wide(layer.converted(x, layer.params))
    check = replace(
        check,
        bound=float(bound.max()) if bound.numel() else 0.0,
        compared=exact.numel(),
        arithmetic=arithmetic,
    )
    finite = torch.isfinite(actual).all() & torch.isfinite(expected).all()
    if actual.shape != expected.shape or not bool(finite):
        why = f"outputs {tuple(actual.shape)} and {tuple(expected.shape)}, or not finite"
        return replace(check, ok=False, why=why)
    largest, ratio = worst(actual - expected, bound)
    faults = tuple(_inject(layer, x, expected, bound, fault) for fault in check.faults)
    ok = ratio <= 1
    why = "" if ok else f"|Δ| is {ratio:.3g} times its bound"
    coarse = [f.name for f in faults if not f.seen_by_bound]
    if ok and coarse:
        why = f"{', '.join(coarse)}: seen by integers only"
    return replace(check, max_error=largest, error_ratio=ratio, faults=faults, ok=ok, why=why)


def rounding_bound(layer: LayerFunctions, x: Tensor) -> tuple[Tensor, Tensor, str]:
    """The layer's output in float64, how far two evaluations in its own dtype may differ, and the type they sum in.

    Raises
    ------
    BadInput
        if no bound exists: the dtype is unknown, or the sums are so long that n·u ≥ 1.
    """
    params = {n: cast_tensor(p, torch.float64) for n, p in layer.params.items()}
    x64 = cast_tensor(x, torch.float64)
    sizes = {n: p.abs() for n, p in params.items()}
    exact = layer.original(x64, params)
    reach = layer.original(x64.abs(), sizes)
    name = (
        str(x.dtype).removeprefix("torch.").replace("complex128", "float64").replace("complex64", "float32")
    )
    is_short = name in ("float16", "bfloat16")
    summed = "float32" if is_short else name
    terms = layer.terms
    if x.dtype.is_complex:
        terms *= 2
    bound = bounds.dot_bound(terms, reach, bounds.unit_roundoff(summed))
    if x.dtype.is_complex:
        bound = bound * math.sqrt(2)
    if is_short:
        u = bounds.unit_roundoff(name)
        bias = layer.original(torch.zeros_like(x64), sizes)
        bound = (1 + 3 * u) * bound + 2 * (1 + u) * u * (2 * exact.abs() + bias)
    # underflow: each operation may also lose half the smallest subnormal (Higham, §2.1, equation 2.8)
    bound = bound + 2 * (terms + 2) * torch.finfo(x.dtype).tiny * torch.finfo(x.dtype).eps
    # the bound itself was summed in float64
    bound = bound * (1 + 4 * bounds.gamma(terms + 1, bounds.unit_roundoff("float64")))
    return exact, bound, f"{summed} sums" + (f", rounded to {name}" if is_short else "")


def worst(difference: Tensor, bound: Tensor) -> tuple[float, float]:
    """The largest |difference| and the largest |difference| ÷ bound (0 ÷ 0 is 0, NaN is infinity).

    >>> worst(torch.tensor([0.0, -2.0]), torch.tensor([0.0, 4.0]))
    (2.0, 0.5)
    """
    if difference.numel() == 0:
        return 0.0, 0.0
    size = difference.abs()
    ratio = torch.where(size == 0, torch.zeros_like(bound), size / bound)
    return _largest(size), _largest(ratio)


def _largest(t: Tensor) -> float:
    return math.inf if bool(torch.isnan(t).any()) else float(t.max())


def _inject(layer: LayerFunctions, x: Tensor, expected: Tensor, bound: Tensor, fault: Fault) -> Fault:
    """The same comparison, with the fault in the converted layer's weights."""
    params = injected(layer.params)[fault.name]()
    if all(torch.equal(params[n], p) for n, p in layer.params.items()):
        return replace(fault, why="the real weights are unchanged by it")
    error, ratio = worst(wide(layer.converted(x, params)) - expected, bound)
    why = "" if ratio > 1 else f"it moves the outputs by {error:.3g}, within the bound"
    return replace(fault, seen_by_bound=ratio > 1, deviation=error, why=why)
