"""One converted layer: integer probes, then real weights on real inputs within a derived bound, then
planted faults.

Bound, elementwise, with n the terms of one output and u the unit roundoff of what is summed in:

    |Δ| ≤ 2·γ_{n+1}(u)·(|W||x| + |b|)                                (float32, float64; laws.bounds)

float16 and bfloat16 are summed in float32 and rounded at most twice (the product, and the product plus the
bias), so that v being the unit roundoff of the short type, each side adds v·(2|y| + |b|). A complex product
is two real ones on each part: n doubles, and the two parts together give a factor √2.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from onebyone.errors import BadInput
from onebyone.laws import bounds
from onebyone.records import first_line
from onebyone.verification.evaluation_context import direct_convolutions
from onebyone.verification.integer_probes import probe
from onebyone.verification.layer_subjects import Params, ProbedLayer, planted
from onebyone.verification.pytree import cast_tensor, wide
from onebyone.verification.result import Fault, LayerCheck


def check_layer(subject: ProbedLayer, x: Tensor | None, seed: int) -> LayerCheck:
    """Everything that can be said of one layer; `x` is its recorded input (None: only the integer probe)."""
    check = LayerCheck(subject.path, subject.kind, subject.law)
    bad = [name for name, p in subject.params.items() if not bool(torch.isfinite(p).all())]
    if bad:
        return dataclasses.replace(check, ok=False, why=f"not finite: {', '.join(bad)}")
    with direct_convolutions():
        same, why, faults = probe(subject, seed)
        check = dataclasses.replace(check, bitwise=same, ok=same, why=why, faults=tuple(faults))
        hidden = [f.name for f in faults if not f.seen_by_integers]
        if hidden:
            return dataclasses.replace(
                check, ok=False, why=f"the integer probe cannot see: {', '.join(hidden)}"
            )
        if same and x is not None:
            with torch.no_grad():
                check = _on_real_weights(subject, x.detach(), check)
    return check


def _on_real_weights(subject: ProbedLayer, x: Tensor, check: LayerCheck) -> LayerCheck:
    if not bool(torch.isfinite(x).all()):
        return dataclasses.replace(check, ok=False, why="its recorded input is not finite")
    try:
        exact, bound, arithmetic = rounding_bound(subject, x)
    except BadInput as error:
        return dataclasses.replace(check, why=f"no bound on real weights: {first_line(error)}")
    expected = wide(subject.original(x, subject.params))
    found = wide(subject.converted(x, subject.params))
    check = dataclasses.replace(
        check,
        bound=float(bound.max()) if bound.numel() else 0.0,
        compared=exact.numel(),
        arithmetic=arithmetic,
    )
    if found.shape != expected.shape or not bool(
        torch.isfinite(found).all() & torch.isfinite(expected).all()
    ):
        why = f"outputs {tuple(found.shape)} and {tuple(expected.shape)}, or not finite"
        return dataclasses.replace(check, ok=False, why=why)
    off, ratio = worst(found - expected, bound)
    faults = tuple(_plant(subject, x, expected, bound, fault) for fault in check.faults)
    ok = ratio <= 1
    why = "" if ok else f"|Δ| is {ratio:.3g} times its bound"
    coarse = [f.name for f in faults if not f.seen_by_bound]
    if ok and coarse:
        why = f"{', '.join(coarse)}: seen by integers only"
    return dataclasses.replace(check, max_error=off, error_ratio=ratio, faults=faults, ok=ok, why=why)


def rounding_bound(subject: ProbedLayer, x: Tensor) -> tuple[Tensor, Tensor, str]:
    """The layer's output in float64, how far two evaluations in its own dtype may differ, and in what they
    sum.

    Raises
    ------
    BadInput
        where no bound exists: an unknown dtype, or sums so long that n·u ≥ 1.
    """
    params = {n: cast_tensor(p, torch.float64) for n, p in subject.params.items()}
    x64 = cast_tensor(x, torch.float64)
    sizes = {n: p.abs() for n, p in params.items()}
    exact = subject.original(x64, params)
    reach = subject.original(x64.abs(), sizes)
    name = (
        str(x.dtype).removeprefix("torch.").replace("complex128", "float64").replace("complex64", "float32")
    )
    short = name in ("float16", "bfloat16")
    summed = "float32" if short else name
    terms = subject.terms
    if x.dtype.is_complex:
        terms *= 2
    bound = bounds.dot_bound(terms, reach, bounds.unit_roundoff(summed))
    if x.dtype.is_complex:
        bound = bound * math.sqrt(2)
    if short:
        u = bounds.unit_roundoff(name)
        bias = subject.original(torch.zeros_like(x64), sizes)
        bound = (1 + 3 * u) * bound + 2 * (1 + u) * u * (2 * exact.abs() + bias)
    # underflow: each operation may also lose half the smallest subnormal (Higham, §2.1, equation 2.8)
    bound = bound + 2 * (terms + 2) * torch.finfo(x.dtype).tiny * torch.finfo(x.dtype).eps
    # the bound itself was summed in float64
    bound = bound * (1 + 4 * bounds.gamma(terms + 1, bounds.unit_roundoff("float64")))
    return exact, bound, f"{summed} sums" + (f", rounded to {name}" if short else "")


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


def _plant(subject: ProbedLayer, x: Tensor, expected: Tensor, bound: Tensor, fault: Fault) -> Fault:
    """The same comparison, with the fault in place."""
    params: Params = planted(subject.params, subject.map_shape)[fault.name]()
    if all(torch.equal(params[n], p) for n, p in subject.params.items()):
        return dataclasses.replace(fault, why="the real weights are unchanged by it")
    error, ratio = worst(wide(subject.converted(x, params)) - expected, bound)
    why = "" if ratio > 1 else f"it moves the outputs by {error:.3g}, within the bound"
    return dataclasses.replace(fault, seen_by_bound=ratio > 1, deviation=error, why=why)
