"""Compare two whole networks: outputs in two dtypes, and gradients. Five forward and three backward passes in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from onebyone.verification import output_comparison
from onebyone.verification.gradients import compare_gradients
from onebyone.verification.network_run import INPUT, Grads, Observation, Runner, in_one_line, observe
from onebyone.verification.output_comparison import NetworkCheck, NetworkRuns
from onebyone.verification.pytree import plain
from onebyone.verification.result import GradientCheck


@dataclass(frozen=True)
class EndToEndOutcome:
    """What the comparison found. `runs` is None if there was no float64 reference."""

    check: NetworkCheck
    gradients: GradientCheck | None = None
    runs: NetworkRuns | None = None


def compare_networks(
    original: Runner,
    converted: Runner,
    gradients: bool = True,
    map_gradients: Callable[[Grads], Grads] | None = None,
) -> EndToEndOutcome:
    """Compare outputs, and gradients if asked for.

    `map_gradients` maps gradients of the converted network's parameters to the original's names and shapes (None: they
    are the same).
    """
    try:
        runs = output_comparison.network_runs(original, converted)
        exact = observe(runs.wide_original, gradients)
        exact.random = exact.random and _depends_on_seed(runs.original)
        why_no_reference = exact.short_of_float64
        rounded = observe(runs.original, gradients)
        why_no_reference = why_no_reference or rounded.error
        converted64 = observe(runs.wide_converted, gradients)
        if not isinstance(converted.call, nn.Module):  # a bare callable need not accept float64
            why_no_reference = why_no_reference or converted64.short_of_float64
        elif isinstance(converted.call, GraphModule):  # it creates tensors of the dtypes it was exported with
            why_no_reference = why_no_reference or converted64.error
    except Exception as error:
        why_no_reference = in_one_line(error)
    if why_no_reference:
        u = output_comparison.unit_of(original)
        check = output_comparison.compare_directly(
            observe(original), observe(converted), u, _perturbed(original, u)
        )
        check.unverified.append(
            f"gradients, rounding_ratio: no float64 reference ({why_no_reference}); outputs compared in their own dtype"
        )
        return EndToEndOutcome(check)
    check = output_comparison.compare(runs, exact, rounded, converted64, observe(runs.converted))
    if not gradients or check.problems:
        return EndToEndOutcome(check, None, runs)
    if not isinstance(converted.call, nn.Module):
        exact = _of_inputs(exact, check)
    gradient = _compare_gradients(runs, exact, rounded, converted64, map_gradients, check)
    return EndToEndOutcome(check, gradient, runs)


def _of_inputs(exact: Observation, check: NetworkCheck) -> Observation:
    """The run with its gradients of inputs alone; a note if there are others, or if none of inputs remain."""
    inputs = {name: g for name, g in exact.gradients.items() if name.startswith(INPUT)}
    if len(inputs) == len(exact.gradients):
        return exact
    reason = "the converted network is a function"
    if inputs:
        check.unverified.append(f"gradients of parameters: {reason}")
    return replace(exact, gradients=inputs, no_gradients="" if inputs else reason)


def _perturbed(original: Runner, u: float) -> Observation | None:
    """A run of the original with each weight moved up or down by one roundoff, at random."""
    if not isinstance(original.call, nn.Module):
        return None
    model, generator = original.call, torch.Generator().manual_seed(original.seed)

    def perturbed(p: Tensor) -> Tensor:
        signs = torch.randint(2, p.shape, generator=generator).to(p.device, p.dtype) * 2 - 1
        return p.detach() * (1 + 2 * u * signs)  # 2u is the distance from 1 to the next larger number

    weights = {n: perturbed(p) for n, p in model.named_parameters() if p.is_floating_point()}
    return observe(replace(original, call=lambda *a, **k: functional_call(model, weights, a, k)))


def _depends_on_seed(runner: Runner) -> bool:
    """Whether the outputs change with the seed. Attention counts as a random operator even if it drops nothing."""
    one, other = observe(runner).outputs, observe(replace(runner, seed=runner.seed + 1)).outputs
    return not all(_identical(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def _identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, or NaN, in every place."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = plain(a), plain(b)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _compare_gradients(
    runs: NetworkRuns,
    exact: Observation,
    rounded: Observation,
    converted: Observation,
    map_gradients: Callable[[Grads], Grads] | None,
    check: NetworkCheck,
) -> GradientCheck | None:
    for run in (exact, rounded):
        if run.no_gradients:
            check.unverified.append(f"gradients: {run.no_gradients}")
            return None
    if converted.no_gradients:
        return GradientCheck(False, 0, why=f"the converted network has none: {converted.no_gradients}")
    if exact.random:
        check.unverified.append("gradients: two dtypes draw different random numbers")
        return None
    try:
        return compare_gradients(
            exact.gradients, rounded.gradients, converted.gradients, runs.u, map_gradients
        )
    except Exception as error:
        return GradientCheck(
            False, 0, why=f"cannot be mapped to the original's parameters: {in_one_line(error)}"
        )
