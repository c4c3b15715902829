"""Integer probes: weights, inputs and cotangents of random odd integers, so small that every sum is exact.

With n·m² + m ≤ 2^53 each product and each partial sum, in any order, is an integer that float64 holds
(laws.bounds): two right forms of one layer then agree bit for bit, outputs and gradients, and a wrong one has
no rounding to hide behind. The condition is checked on the very numbers used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onebyone.laws import bounds
from onebyone.verification.layer_subjects import Params, ProbedLayer, planted
from onebyone.verification.result import Fault

SIGNIFICAND = bounds.significand_bits("float64")
# beyond this many weights the gradient probe is left to the whole network's gradients: it would take GiBs
GRADIENT_WEIGHTS = 2**22


def integers(
    shape: tuple[int, ...], magnitude: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random odd integers in [-magnitude, magnitude]: never 0, and all distinct where the range has room.

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
    return (2 * k + 1).clamp_(-magnitude, magnitude).reshape(shape).to(dtype)


def probe(subject: ProbedLayer, seed: int) -> tuple[bool, str, list[Fault]]:
    """Whether both forms agree bit for bit on integers, why not, and which planted faults the probe saw.

    Outputs at every shape of the subject; gradients at the first, and not for weights beyond `GRADIENT_WEIGHTS`.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = subject.params["weight"]
    dtype = torch.complex128 if weight.is_complex() else torch.float64
    with_gradients = weight.numel() <= GRADIENT_WEIGHTS
    longest = _longest_sum(subject, with_gradients)
    magnitude = bounds.probe_range(longest, SIGNIFICAND)

    def fresh(shape: tuple[int, ...], device: torch.device) -> Tensor:
        return integers(shape, magnitude, generator, dtype).to(device)

    params = {name: fresh(tuple(p.shape), p.device) for name, p in subject.params.items()}
    largest = {name: _largest(p) for name, p in params.items()}
    faults = planted(params, subject.map_shape)
    unseen = set(faults)
    for number, shape in enumerate(subject.shapes):
        x = fresh(shape, weight.device)
        size_x = _largest(x)
        _assert_exact(largest["weight"], size_x, largest.get("bias", 0), longest)
        same, why, cotangent = _agree(subject, x, params, fresh if with_gradients and not number else None)
        # the gradients: Σ c·w over outputs, Σ c·x over places
        _assert_exact(largest["weight"], cotangent, 0, longest)
        _assert_exact(size_x, cotangent, 0, longest)
        if not same:
            return False, f"integer probe on input {shape}: {why}", []
        if unseen:
            expected = subject.original(x, params)
            unseen -= {n for n in unseen if not torch.equal(subject.converted(x, faults[n]()), expected)}
    return True, "", [Fault(n, seen_by_integers=n not in unseen) for n in faults]


def _longest_sum(subject: ProbedLayer, with_gradients: bool) -> int:
    """Most products in one sum: of an output, and of the gradients to the input and to the weight."""
    weight = subject.params["weight"]
    longest = subject.terms
    if with_gradients:
        # to an input: every output channel, at every place of the kernel; to a weight: every place of the
        # input
        per_input = max(weight.shape[0], weight.numel() // max(1, weight.shape[min(1, weight.dim() - 1)]))
        longest = max(longest, per_input, *(math.prod(s) for s in subject.shapes))
    return longest * (2 if weight.is_complex() else 1)  # a complex product is two real ones


def _agree(
    subject: ProbedLayer,
    x: Tensor,
    params: Params,
    fresh: Callable[[tuple[int, ...], torch.device], Tensor] | None,
) -> tuple[bool, str, int]:
    """Whether outputs and gradients agree, why not, and the largest cotangent used."""
    if fresh is None:
        with torch.no_grad():
            y, z = subject.original(x, params), subject.converted(x, params)
        return *_same_bits(y, z, "outputs"), 0
    leaves = {n: p.clone().requires_grad_() for n, p in {"input": x, **params}.items()}
    sources = list(leaves.values())
    inner = {n: leaves[n] for n in params}
    with torch.enable_grad():
        y, z = subject.original(leaves["input"], inner), subject.converted(leaves["input"], inner)
        same, why = _same_bits(y, z, "outputs")
        if not same:
            return same, why, 0
        cotangent = fresh(tuple(y.shape), y.device)
        ours = torch.autograd.grad(z, sources, cotangent, allow_unused=True)
        theirs = torch.autograd.grad(y, sources, cotangent, allow_unused=True)
    for name, a, b in zip(leaves, theirs, ours, strict=True):
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
    """The largest magnitude of a probe's integers, on the numbers themselves."""
    if t is None or not t.numel():
        return 0
    real = torch.view_as_real(t) if t.is_complex() else t
    if not torch.equal(real, real.trunc()):
        raise AssertionError("a probe that is not of integers")
    return int(torch.maximum(real.max(), -real.min()))


def _assert_exact(weight: int, x: int, bias: int, terms: int) -> None:
    """On the largest values in use: every sum of `terms` products and a bias is exact in float64."""
    bounds.assert_exact([weight], [x], [bias], terms=terms, significand_bits=SIGNIFICAND)
