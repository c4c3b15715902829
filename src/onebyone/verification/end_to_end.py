"""Both networks run and judged: outputs in two dtypes, gradients; five forward and three backward passes in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from onebyone.verification import output_comparison
from onebyone.verification.gradients import compare_gradients
from onebyone.verification.network_run import Grads, Observation, Runner, in_one_line, observe
from onebyone.verification.output_comparison import NetworkCheck, Quartet
from onebyone.verification.pytree import wide
from onebyone.verification.result import GradientCheck


@dataclass(frozen=True)
class Whole:
    """The outcome; `four` is None where there was no float64 reference."""

    check: NetworkCheck
    gradients: GradientCheck | None = None
    four: Quartet | None = None


def compare_networks(
    original: Runner,
    converted: Runner,
    gradients: bool = True,
    back: Callable[[Grads], Grads] | None = None,
) -> Whole:
    """Outputs, and gradients if asked for; `back` maps parameter gradients to the original's names and shapes."""
    try:
        four = output_comparison.quartet(original, converted)
        exact = observe(four.wide_original, gradients)
        exact.random = exact.random and _depends_on_seed(four.original)
        why = exact.short_of_float64
        rounded = observe(four.original, gradients)
        why = why or rounded.error
        found64 = observe(four.wide_converted, gradients)
        if not isinstance(converted.call, nn.Module):  # a bare callable need not take float64
            why = why or found64.short_of_float64
    except Exception as error:
        why = in_one_line(error)
    if why:
        u = output_comparison.unit_of(original)
        check = output_comparison.compare_directly(
            observe(original), observe(converted), u, _nudged(original, u)
        )
        check.unverified.append(
            f"gradients, rounding_ratio: no float64 reference ({why}); outputs compared in their own dtype"
        )
        return Whole(check)
    check = output_comparison.compare(four, exact, rounded, found64, observe(four.converted))
    if not gradients or check.problems:
        return Whole(check, None, four)
    return Whole(check, _gradients(four, exact, rounded, found64, back, check), four)


def _nudged(original: Runner, u: float) -> Observation | None:
    """The original with each weight moved by one roundoff, up or down at random: what rounding alone does to it."""
    if not isinstance(original.call, nn.Module):
        return None
    model, generator = original.call, torch.Generator().manual_seed(original.seed)

    def moved(p: Tensor) -> Tensor:
        signs = torch.randint(0, 2, p.shape, generator=generator).to(p.device, p.dtype) * 2 - 1
        return p.detach() * (1 + 2 * u * signs)  # 2u is the distance between 1 and the next number

    weights = {n: moved(p) for n, p in model.named_parameters() if p.is_floating_point()}
    return observe(replace(original, call=lambda *a, **k: functional_call(model, weights, a, k)))


def _depends_on_seed(runner: Runner) -> bool:
    """Whether the outputs really are random: attention counts as a random operator even where nothing is dropped."""
    one, other = observe(runner).outputs, observe(replace(runner, seed=runner.seed + 1)).outputs
    same = [
        a.shape == b.shape and torch.equal(wide(a).nan_to_num(), wide(b).nan_to_num())
        for (_, a), (_, b) in zip(one, other, strict=True)
    ]
    return not all(same)


def _gradients(
    four: Quartet,
    exact: Observation,
    rounded: Observation,
    found: Observation,
    back: Callable[[Grads], Grads] | None,
    check: NetworkCheck,
) -> GradientCheck | None:
    for run in (exact, rounded):
        if run.no_gradients:
            check.unverified.append(f"gradients: {run.no_gradients}")
            return None
    if found.no_gradients:
        return GradientCheck(False, 0, why=f"the converted network has none: {found.no_gradients}")
    if exact.random:
        check.unverified.append("gradients: two dtypes draw different random numbers")
        return None
    try:
        return compare_gradients(exact.gradients, rounded.gradients, found.gradients, four.u, back)
    except Exception as error:
        return GradientCheck(
            False, 0, why=f"cannot be mapped to the original's parameters: {in_one_line(error)}"
        )
