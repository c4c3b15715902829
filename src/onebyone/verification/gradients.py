"""Compare the gradients of two networks with respect to every floating input and every parameter."""

from __future__ import annotations

from collections.abc import Callable

from onebyone.laws.bounds import unit_roundoff
from onebyone.verification.network_run import INPUT, Grads
from onebyone.verification.output_comparison import difference, limit64, quotient, size_of
from onebyone.verification.result import GradientCheck


def compare_gradients(
    exact: Grads, rounded: Grads, converted: Grads, u: float, map_gradients: Callable[[Grads], Grads] | None
) -> GradientCheck:
    """Compare gradients of Σ c·y, one tensor at a time, with the limits that `output_comparison` has for outputs.

    `exact` are the original's gradients in float64, `rounded` those in its own dtype of roundoff `u`, `converted` the
    converted network's in float64. `map_gradients` maps parameter gradients to the original's names and shapes (None:
    they are the same).
    """
    if map_gradients is not None:
        inputs = {n: g for n, g in converted.items() if n.startswith(INPUT)}
        converted = inputs | map_gradients({n: g for n, g in converted.items() if n not in inputs})
    # A gradient that is zero in exact arithmetic (that of an attention's key bias) is computed from terms that cancel.
    # Its rounding error has the size of these terms, however small the gradient itself is.
    floor = 4 * unit_roundoff("float64") * max((size_of(g) for g in exact.values()), default=0.0)
    worst, ratio, error, failures = "", 0.0, 0.0, []
    for name, g in exact.items():
        if name not in converted:
            continue
        other = converted[name]
        distance = difference(g, other.reshape(g.shape) if other.numel() == g.numel() else other)
        own_error = max(difference(g, rounded.get(name, g)), u * size_of(g))
        limit = max(limit64(own_error, u), floor)
        r = 0.0 if distance == 0 else quotient(distance, limit)
        error = max(error, distance)
        if r >= ratio:
            worst, ratio = name, r
        if r > 1:
            failures.append(f"{name} by {distance:.3g} (limit {limit:.3g})")
    missing = [n for n in exact if n not in converted]
    why = f"differ: {'; '.join(failures[:3])}" if failures else ""
    if missing:
        why += f"{'; ' if why else ''}{len(missing)} without a counterpart: {', '.join(missing[:3])}"
    return GradientCheck(not failures and not missing, len(exact) - len(missing), worst, error, ratio, why)
