"""Compare the outputs of two networks on one input, in float64 and in their own dtype.

Let e be the original's own rounding error: the largest |original − original in float64| of an output, and at least half
a unit in the last place of its largest value (u·max|y|), which no form can avoid. A network that already is in float64
has no finer reference. Its e is that of its float32 copy times u64/u32, because to first order the error is
proportional to u.

- `rounding_ratio` is the converted network's error divided by e (1 if both are zero). It must stay below √(u'/u), where
  u' is the roundoff of the next shorter type: the error must be closer to this type's than to that one's.
- In float64 the two outputs may differ by at most e·√(u64/u): the geometric mean of the rounding error in float64
  (e·u64/u) and that in the network's own dtype (e). Rounding stays a factor of √(u/u64) below this limit (23,170 for
  float32), and whatever a user could notice is as far above.

Outputs are compared one by one, so that a small output is not hidden by a large one. The same rule holds for the
gradients of Σ c·y, with random signs c, with respect to every floating input and every parameter (`gradients.py`).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.laws import bounds
from onebyone.verification.network_run import Named, Observation, Runner, is_real_or_complex
from onebyone.verification.pytree import cast_tensor, leaves, plain, wide

U64 = bounds.unit_roundoff("float64")
# Unit roundoff of the next shorter type: TF32 and float16 follow float32, the 8-bit E5M2 follows the 16-bit types.
_SHORTER = {"float64": 2.0**-24, "float32": 2.0**-11, "float16": 2.0**-3, "bfloat16": 2.0**-3}


@dataclass
class NetworkCheck:
    """What the comparison of two networks found; these are parts of a `Verification`."""

    max_error: float | None = None
    rounding_ratio: float | None = None
    float64_error: float | None = None
    float64_limit: float | None = None
    problems: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)


def own_dtype(model: Any, example: Any) -> torch.dtype:
    """The shortest real floating dtype among parameters and inputs, because its rounding errors dominate."""
    tensors = [t for _, t in leaves(example)]
    if isinstance(model, nn.Module):
        tensors += list(model.parameters())
    dtypes = {t.real.dtype if t.is_complex() else t.dtype for t in tensors}
    known = [d for d in dtypes if str(d).removeprefix("torch.") in _SHORTER]
    return max(known, key=unit, default=torch.float32)


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff of a torch dtype."""
    return bounds.unit_roundoff(str(dtype))


def limit64(own_error: float, u: float) -> float:
    """How far two forms may differ in float64, given the original's own error in a type of roundoff `u`."""
    return own_error * math.sqrt(U64 / u)


def limit_in_own_dtype(exact: Tensor, rounded: Tensor, u: float) -> float:
    """How far another form of one value may be from `exact` in a type of roundoff `u`: √(u'/u) times its own error."""
    return math.sqrt(shorter(u) / u) * max(difference(exact, rounded), u * size_of(exact))


def copies_in(dtype: torch.dtype, *models: Any) -> tuple[Any, ...]:
    """Deep copies of the networks in `dtype`, made together, so that tensors that they share stay shared."""
    memo: dict[int, Any] = {}
    for module in (m for model in models if isinstance(model, nn.Module) for m in model.modules()):
        # Old-style weight normalisation leaves computed tensors as plain attributes, which deepcopy refuses to copy.
        tensors = [v for v in vars(module).values() if isinstance(v, Tensor) and v.grad_fn is not None]
        memo |= {id(v): v.detach().clone() for v in tensors}
    with (
        warnings.catch_warnings()
    ):  # torch warns of its own deprecated tree specs, which it copies with traced graphs
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        copied = copy.deepcopy(models, memo)
    for model in copied:
        if isinstance(model, nn.Module):
            model._apply(lambda t: cast_tensor(t, dtype))  # type: ignore[no-untyped-call]
    return copied


@dataclass(frozen=True)
class NetworkRuns:
    """Both networks in their own dtype and in a second one: float64, or float32 for networks that are in float64.

    `u` is the unit roundoff of the shorter of the two dtypes.
    """

    original: Runner
    converted: Runner
    wide_original: Runner
    wide_converted: Runner
    u: float
    is_float64: bool


def network_runs(original: Runner, converted: Runner) -> NetworkRuns:
    """The four runners. Raises whatever copying a network raises."""
    dtype = own_dtype(original.call, original.example)
    is_float64 = dtype == torch.float64
    other = torch.float32 if is_float64 else torch.float64
    calls = copies_in(other, original.call, converted.call)
    a, b = (r.in_dtype(c, other) for r, c in zip((original, converted), calls, strict=True))
    if is_float64:
        return NetworkRuns(a, b, original, converted, unit(other), True)
    return NetworkRuns(original, converted, a, b, unit(dtype), False)


def compare(
    runs: NetworkRuns,
    wide_original: Observation,
    original: Observation,
    wide_converted: Observation,
    converted: Observation,
) -> NetworkCheck:
    """Compare the outputs of both networks, in float64 and in the shorter dtype."""
    check = NetworkCheck()
    exact, rounded = wide_original.outputs, original.outputs
    actual64 = _outputs(wide_converted, check, "in float64")
    actual = _outputs(converted, check, "")
    stochastic = wide_original.random
    if stochastic:
        check.unverified.append(
            "its forward draws random numbers in eval mode: compared under one seed only; PyTorch draws them in a "
            "tensor's memory order, so that the same seed can give other numbers after a conversion"
        )
    if actual64 is None or actual is None:
        return check
    if not _same_structure(exact, actual64, check) or not _same_structure(exact, actual, check):
        return check
    if not leaves_finite({"original": exact, "original ": rounded, "converted": [*actual64, *actual]}, check):
        return check
    for (path, y), (_, y_own), (_, z), (_, z_own) in zip(exact, rounded, actual64, actual, strict=True):
        _compare_output(check, path, y, y_own, z, z_own, runs, stochastic)
    return check


def _compare_output(
    check: NetworkCheck,
    path: str,
    y: Tensor,
    y_own: Tensor,
    z: Tensor,
    z_own: Tensor,
    runs: NetworkRuns,
    stochastic: bool,
) -> None:
    """Compare one output: the original's in float64 (y) and rounded (y_own), and the converted network's two (z)."""
    name = f"output {path}" if path else "the output"
    if not (y.is_floating_point() or y.is_complex()):
        if not torch.equal(y, z) or not torch.equal(y_own, z_own):
            check.problems.append(f"{name} ({y.dtype}) differs")
        return
    error64 = difference(y, z)
    if size_of(y) == 0:
        what = "is all zeros" if y.numel() else "has no values"
        check.unverified.append(f"{name} {what}: it shows nothing of the operators before it")
    # Two dtypes draw different random numbers; then only the lower limit of the rounding error is known.
    own_error = runs.u * size_of(y) if stochastic else max(difference(y, y_own), runs.u * size_of(y))
    limit = limit64(own_error, runs.u)
    if runs.is_float64:
        scale = own_error * U64 / runs.u
        ratio = quotient(error64, scale)
        direct = error64
    else:
        ratio = quotient(difference(y, z_own), own_error)
        direct = difference(y_own, z_own)
    check.max_error = max(check.max_error or 0.0, direct)
    worst = check.float64_limit is None or quotient(error64, limit) >= quotient(
        check.float64_error or 0.0, check.float64_limit
    )
    if worst:
        check.float64_error, check.float64_limit = error64, limit
    if error64 > limit:
        check.problems.append(f"{name} differs by {error64:.3g} in float64, limit {limit:.3g}")
    if stochastic:
        return
    check.rounding_ratio = max(check.rounding_ratio or 0.0, ratio)
    u = U64 if runs.is_float64 else runs.u
    allowed = math.sqrt(shorter(u) / u)
    if ratio > allowed:
        check.problems.append(
            f"{name} has {ratio:.3g} times the original's rounding error, limit {allowed:.3g}"
        )


def unit_of(runner: Runner) -> float:
    """Unit roundoff of a runner's own dtype."""
    return unit(own_dtype(runner.call, runner.example))


def compare_directly(
    original: Observation, converted: Observation, u: float, perturbed: Observation | None = None
) -> NetworkCheck:
    """Compare outputs in their own dtype only, for networks that cannot be run in a second one.

    They may differ by √(u'/u) times the original's own rounding error, where u' is the roundoff of the next shorter
    type. The own error is taken as u·max|y|, or as the change of the outputs when each weight moves by one roundoff
    (`perturbed`), whichever is larger.
    """
    check = NetworkCheck()
    expected = original.outputs
    actual = _outputs(converted, check, "")
    if actual is None or not _same_structure(expected, actual, check):
        return check
    if not leaves_finite({"original": expected, "converted": actual}, check):
        return check
    for (path, y), (_, z) in zip(expected, actual, strict=True):
        own_error = max(u * size_of(y), _change(y, path, perturbed))
        off, limit = difference(y, z), math.sqrt(shorter(u) / u) * own_error
        limit = limit if is_real_or_complex(y) else 0.0
        check.max_error = max(check.max_error or 0.0, off)
        if off > limit:
            name = f"output {path}" if path else "the output"
            check.problems.append(f"{name} differs by {off:.3g}, limit {limit:.3g}")
    return check


def _change(y: Tensor, path: str, perturbed: Observation | None) -> float:
    other = None if perturbed is None or perturbed.error else dict(perturbed.outputs).get(path)
    return 0.0 if other is None or not bool(torch.isfinite(other).all()) else difference(y, other)


def shorter(u: float) -> float:
    """The unit roundoff of the next shorter type."""
    return next(v for name, v in _SHORTER.items() if bounds.unit_roundoff(name) == u)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest |a − b|, in float64. NaN counts as infinite; empty tensors have no difference.

    Integers that differ have a difference, also those beyond 2^53, where float64 does not hold all of them.

    >>> difference(torch.tensor([2**53]), torch.tensor([2**53 + 1]))
    1.0
    """
    if a.shape != b.shape:
        return math.inf
    if a.numel() == 0:
        return 0.0
    a, b = plain(a), plain(b)
    d = (wide(a) - wide(b)).abs()
    largest = math.inf if bool(torch.isnan(d).any()) else float(d.max())
    if largest == 0 and not (is_real_or_complex(a) or is_real_or_complex(b)):
        return float((a.long() - b.long()).abs().max())
    return largest


def size_of(t: Tensor) -> float:
    """The largest |t|; 0 for an empty tensor."""
    return float(wide(t).abs().max()) if t.numel() else 0.0


def quotient(error: float, scale: float) -> float:
    """error ÷ scale, where 0 ÷ 0 is 1 and any other error ÷ 0 is infinite."""
    if scale == 0:
        return 1.0 if error == 0 else math.inf
    return error / scale


def _outputs(run: Observation, check: NetworkCheck, where: str) -> Named | None:
    if run.error:
        check.problems.append(f"the converted network fails {where}".rstrip() + f": {run.error}")
        return None
    return run.outputs


def _same_structure(
    expected: list[tuple[str, Tensor]], actual: list[tuple[str, Tensor]], check: NetworkCheck
) -> bool:
    a = [(path, tuple(t.shape)) for path, t in expected]
    b = [(path, tuple(t.shape)) for path, t in actual]
    if a != b:
        check.problems.append(f"outputs have the paths and shapes {b}, the original's have {a}")
    if not a:
        check.problems.append("the original returns no tensor to compare")
    return bool(a) and a == b


def leaves_finite(groups: Mapping[str, list[tuple[str, Tensor]]], check: NetworkCheck) -> bool:
    """Whether all tensors are finite. Each one that is not becomes a problem, so that NaN never passes a comparison."""
    before = len(check.problems)
    for group, tensors in groups.items():
        for path, t in tensors:
            if (t.is_floating_point() or t.is_complex()) and not bool(torch.isfinite(t).all()):
                problem = f"{group.strip()}: {path or 'the output'} holds NaN or infinity"
                if problem not in check.problems:
                    check.problems.append(problem)
    return len(check.problems) == before
