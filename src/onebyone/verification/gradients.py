"""Gradients of both networks with respect to every floating input and every parameter."""

from __future__ import annotations

from collections.abc import Callable

from onebyone.laws.bounds import unit_roundoff
from onebyone.verification.network_run import INPUT, Grads
from onebyone.verification.output_comparison import difference, limit64, quotient, size_of
from onebyone.verification.result import GradientCheck


def compare_gradients(
    exact: Grads, rounded: Grads, found: Grads, u: float, back: Callable[[Grads], Grads] | None
) -> GradientCheck:
    """Gradients of Σ c·y, judged one tensor at a time, like the outputs.

    `exact`: the original's in float64; `rounded`: in its own dtype of roundoff `u`; `found`: the converted network's
    in float64. `back` maps parameter gradients to the original's names and shapes (None: same names).
    """
    if back is not None:
        inputs = {n: g for n, g in found.items() if n.startswith(INPUT)}
        found = inputs | back({n: g for n, g in found.items() if n not in inputs})
    # a gradient that is zero in exact arithmetic (of an attention's key bias) is what terms of the others' size
    # leave when they cancel: rounding of that size, however small the tensor itself came out
    floor = 4 * unit_roundoff("float64") * max((size_of(g) for g in exact.values()), default=0.0)
    worst, ratio, error, bad = "", 0.0, 0.0, []
    for name, g in exact.items():
        if name not in found:
            continue
        off = difference(g, found[name].reshape(g.shape) if found[name].numel() == g.numel() else found[name])
        own = max(difference(g, rounded.get(name, g)), u * size_of(g))
        limit = max(limit64(own, u), floor)
        r = 0.0 if off == 0 else quotient(off, limit)
        error = max(error, off)
        if r >= ratio:
            worst, ratio = name, r
        if r > 1:
            bad.append(f"{name} by {off:.3g} (limit {limit:.3g})")
    missing = [n for n in exact if n not in found]
    why = f"differ: {'; '.join(bad[:3])}" if bad else ""
    if missing:
        why += f"{'; ' if why else ''}{len(missing)} without a counterpart: {', '.join(missing[:3])}"
    return GradientCheck(not bad and not missing, len(exact) - len(missing), worst, error, ratio, why)
