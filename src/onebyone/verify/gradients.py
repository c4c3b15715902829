"""Gradients of both networks with respect to every floating input and every parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from onebyone.verify.network import (
    Quartet,
    Runner,
    difference,
    is_real_or_complex,
    limit64,
    quotient,
    size_of,
)
from onebyone.verify.result import GradientCheck
from onebyone.verify.trees import leaves, map_tensors

Grads = dict[str, Tensor]
# no parameter has a blank in its name
_INPUT = "the input "


def compare_gradients(
    four: Quartet, back: Callable[[Grads], Grads] | None, with_parameters: bool = True
) -> GradientCheck:
    """Gradients of Σ c·y with respect to every floating input and parameter, in float64, judged like the
    outputs.

    `back` maps the converted network's parameter gradients to the original's names and shapes (None: same
    names). Parameters whose names the two do not share are counted in `why`.
    """
    exact = gradients_of(four.wide_original, with_parameters)
    if not exact:
        return GradientCheck(True, 0, why="no output depends differentiably on an input or a parameter")
    rounded = gradients_of(four.original, with_parameters)
    found = gradients_of(four.wide_converted, with_parameters)
    if back is not None:
        inputs = {n: g for n, g in found.items() if n.startswith(_INPUT.strip())}
        found = inputs | back({n: g for n, g in found.items() if n not in inputs})
    worst, ratio, error, bad = "", 0.0, 0.0, []
    for name, g in exact.items():
        if name not in found:
            continue
        off = difference(g, found[name].reshape(g.shape) if found[name].numel() == g.numel() else found[name])
        own = max(difference(g, rounded.get(name, g)), four.u * size_of(g))
        # a cotangent of ±1 puts the gradients of one network on one scale: the largest sets the floor
        limit = limit64(own, four.u)
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


def gradients_of(runner: Runner, with_parameters: bool) -> Grads:
    """By name: "the input PATH" and the parameters' own names (a tied one once, under its first name)."""
    example = map_tensors(runner.example, _differentiable)
    sources: Grads = {f"{_INPUT}{p}".strip(): t for p, t in leaves(example) if t.requires_grad}
    held: list[Tensor] = []
    if with_parameters and isinstance(runner.call, nn.Module):
        held = [p for p in runner.call.parameters() if is_real_or_complex(p)]
        sources |= {n: p for n, p in runner.call.named_parameters() if is_real_or_complex(p)}
    flags = [(p, p.requires_grad) for p in held]
    try:
        for p in held:
            p.requires_grad_(True)
        with torch.enable_grad():
            outputs = [t for _, t in leaves(runner.on(example)) if t.requires_grad]
            if not outputs or not sources:
                return {}
            generator = torch.Generator().manual_seed(runner.seed)
            cotangents = [_signs(t, generator) for t in outputs]
            grads = torch.autograd.grad(outputs, list(sources.values()), cotangents, allow_unused=True)
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
    return {n: g for n, g in zip(sources, grads, strict=True) if g is not None}


def _differentiable(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(is_real_or_complex(t))


def _signs(t: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, t.shape, generator=generator) * 2 - 1
    return signs.to(device=t.device, dtype=t.dtype)
