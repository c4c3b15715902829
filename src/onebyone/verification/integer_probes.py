"""Integer probes: weights, inputs and cotangents are random odd integers, so small that every sum is exact.

If n·m² + m ≤ 2^53, where n is the number of terms and m the largest magnitude, then every product and every partial
sum, in any order, is an integer that float64 represents exactly (`laws.bounds`). Two correct forms of one layer then
agree bit for bit, in outputs and gradients, and no difference can be blamed on rounding. The condition is checked on
the numbers that are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onebyone.laws import bounds
from onebyone.results import LayerFunctions
from onebyone.verification.injected_faults import Params, injected
from onebyone.verification.result import Fault

SIGNIFICAND = bounds.significand_bits("float64")
# Gradients of larger weights are not probed, because that takes several GiB; the whole network's gradients cover them.
GRADIENT_WEIGHTS = 2**22


def integers(
    shape: tuple[int, ...], magnitude: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random odd integers in [-magnitude, magnitude]: never 0, and all distinct if the range is large enough.

    >>> values = integers((3, 4), 1000, torch.Generator().manual_seed(0))
    >>> len(set(values.flatten().tolist())), bool((values % 2 == 1).all()), values.abs().max().item() <= 1000
    (12, True, True)
    """
    if dtype.is_complex:
        parts = [integers(shape, magnitude, generator) for _ in range(2)]
        return torch.complex(*parts)
    count = math.prod(shape)
    half = (magnitude + 1) // 2  # the odd numbers 2k + 1 with k in [-half, half)
    step = 2 * half // count if count else 0
    if step:  # one value from each of `count` equal stretches of the range, in random order
        k = torch.randperm(count, generator=generator).double() * step
        k += torch.randint(step, (count,), generator=generator)
        k -= half
    else:
        k = torch.randint(-half, half, (count,), generator=generator).double()
    return (2 * k + 1).reshape(shape).to(dtype)


def probe(layer: LayerFunctions, seed: int) -> tuple[bool, str, list[Fault]]:
    """Whether both forms agree bit for bit on integers, why not, and which injected faults the probe saw.

    Outputs are compared on every probe shape of the layer, gradients on the first one, unless the layer has more than
    `GRADIENT_WEIGHTS` weights.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = layer.params["weight"]
    dtype = torch.complex128 if weight.is_complex() else torch.float64
    with_gradients = weight.numel() <= GRADIENT_WEIGHTS
    longest = _longest_sum(layer, with_gradients)
    magnitude = bounds.probe_range(longest, SIGNIFICAND)

    def fresh(shape: tuple[int, ...], device: torch.device) -> Tensor:
        return integers(shape, magnitude, generator, dtype).to(device)

    params = {name: fresh(tuple(p.shape), p.device) for name, p in layer.params.items()}
    largest = {name: _largest(p) for name, p in params.items()}
    faults = injected(params)
    unseen = set(faults)
    for number, shape in enumerate(layer.shapes):
        x = fresh(shape, weight.device)
        size_x = _largest(x)
        _assert_exact(largest["weight"], size_x, largest.get("bias", 0), longest)
        equal, why, cotangent = _agree(layer, x, params, fresh if with_gradients and not number else None)
        # the gradients are Σ c·w over outputs and Σ c·x over positions
        _assert_exact(largest["weight"], cotangent, 0, longest)
        _assert_exact(size_x, cotangent, 0, longest)
        if not equal:
            return False, f"integer probe on input {shape}: {why}", []
        if unseen:
            expected = layer.original(x, params)
            unseen -= {n for n in unseen if not torch.equal(layer.converted(x, faults[n]()), expected)}
    return True, "", [Fault(n, seen_by_integers=n not in unseen) for n in faults]


def _longest_sum(layer: LayerFunctions, with_gradients: bool) -> int:
    """The largest number of products in one sum, of outputs and of gradients with respect to input and weight."""
    weight = layer.params["weight"]
    longest = layer.terms
    if with_gradients:
        # With respect to an input: every output channel at every position of the kernel, on whichever of the first
        # two axes the weight has its outputs. With respect to a weight: every position of the input.
        per_input = max(weight.shape[0], weight.numel() // max(1, min(weight.shape[:2])))
        longest = max(longest, per_input, *(math.prod(s) for s in layer.shapes))
    return longest * (2 if weight.is_complex() else 1)  # a complex product is two real ones


def _agree(
    layer: LayerFunctions,
    x: Tensor,
    params: Params,
    fresh: Callable[[tuple[int, ...], torch.device], Tensor] | None,
) -> tuple[bool, str, int]:
    """Whether outputs and gradients agree, why not, and the largest magnitude among the cotangents."""
    if fresh is None:
        with torch.no_grad():
            y, z = layer.original(x, params), layer.converted(x, params)
        return *_same_bits(y, z, "outputs"), 0
    leaves = {n: p.clone().requires_grad_() for n, p in {"input": x, **params}.items()}
    sources = list(leaves.values())
    inner = {n: leaves[n] for n in params}
    with torch.enable_grad():
        y, z = layer.original(leaves["input"], inner), layer.converted(leaves["input"], inner)
        same, why = _same_bits(y, z, "outputs")
        if not same:
            return same, why, 0
        cotangent = fresh(tuple(y.shape), y.device)
        converted = torch.autograd.grad(z, sources, cotangent, allow_unused=True)
        original = torch.autograd.grad(y, sources, cotangent, allow_unused=True)
    for name, a, b in zip(leaves, original, converted, strict=True):
        if a is None or b is None:
            if a is not b:
                return False, f"only one form has a gradient for {name}", 0
            continue
        same, why = _same_bits(a, b, f"gradients of {name}")
        if not same:
            return same, why, 0
    return True, "", _largest(cotangent)


def _same_bits(a: Tensor, b: Tensor, what: str) -> tuple[bool, str]:
    if a.shape != b.shape:
        return False, f"{what} have shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if torch.equal(a, b):
        return True, ""
    wrong = int((a != b).sum())
    return False, f"{what} differ in {wrong} of {a.numel()} values"


def _largest(t: Tensor | None) -> int:
    """The largest magnitude among a probe's integers."""
    if t is None or not t.numel():
        return 0
    real = torch.view_as_real(t) if t.is_complex() else t
    if not torch.equal(real, real.trunc()):
        raise AssertionError("the probe holds values that are not integers")
    return int(torch.maximum(real.max(), -real.min()))


def _assert_exact(weight: int, x: int, bias: int, terms: int) -> None:
    """Check, on the largest values in use, that every sum of `terms` products and a bias is exact in float64."""
    bounds.assert_exact([weight], [x], [bias], terms=terms, significand_bits=SIGNIFICAND)
