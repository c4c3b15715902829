"""S1 to S4: what the two layers are said to have in common.

Each experiment is a pair of functions: one measures and gives figures, one judges by the figures alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.comparison.claim_result import Figures, Verdict, holds, holds_when, not_as_said
from onebyone.comparison.layer_function import Operation, U, jacobian_rows, ratio, sample, spread
from onebyone.laws.bounds import dot_bound

SUMS = 8
"""Outputs whose sum is formed term by term."""


# S1 ---------------------------------------------------------------------------------------------------------


def measure_weighted_sum(operations: Sequence[Operation], seed: int = 0) -> Figures:
    """Superposition with the bias taken off, and outputs against their sums formed term by term.

    With g(x) = f(x) − f(0), every affine f has g(a·x + c·y) = a·g(x) + c·g(y). `*_ratio` is the largest
    error over its rounding bound: at most 1 where the layer is affine. `with_bias_ratio` is the same
    without taking the bias off.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        op.name: op.describe() | _superposition(op, generator) | _sums(op, generator) for op in operations
    }


def _superposition(op: Operation, generator: torch.Generator) -> Figures:
    a, c = 0.75, -1.25
    x, y = op.maps(1, generator), op.maps(1, generator)
    zero = op(torch.zeros_like(x))
    fx, fy, fz = op(x), op(y), op(a * x + c * y)
    error = ((fz - zero) - (a * (fx - zero) + c * (fy - zero))).abs()
    raw = (fz - (a * fx + c * fy)).abs()
    # every value in it is met with at most five roundings more than its own sum
    size = abs(a) * op.magnitude(x) + abs(c) * op.magnitude(y)
    size = size + op.magnitude(abs(a) * x.abs() + abs(c) * y.abs()) + 4 * op.magnitude(torch.zeros_like(x))
    bound = dot_bound(op.terms + 5, size, U)
    return {
        "superposition_error": float(error.max()),
        "superposition_ratio": ratio(error, bound),
        "with_bias_ratio": ratio(raw, bound),
        "values_compared": error.numel(),
    }


def _sums(op: Operation, generator: torch.Generator) -> Figures:
    """Some outputs against Σ w·x + b with the correctly rounded sum of math.fsum."""
    x = op.maps(1, generator)
    y, bound = op(x), op.bound(x)
    worst, largest = 0.0, 0.0
    for o in sample(len(op.weight), SUMS):
        place: tuple[Any, ...] = tuple(n // 3 for n in y.shape[2:])
        terms = op.weight[o].flatten()
        read = x[0].flatten() if len(terms) == x[0].numel() else x[(0, slice(None), *place)]
        bias = [] if op.bias is None else [float(op.bias[o])]
        products = (terms * read).tolist() if len(read) == len(terms) else [math.nan]
        error = abs(float(y[(0, o, *place)]) - math.fsum([*products, *bias]))
        limit = float(bound[(0, o, *place)])
        largest = max(largest, error)
        worst = math.inf if math.isnan(error) else max(worst, error / limit if error else 0.0)
    return {"explicit_sum_error": largest, "explicit_sum_ratio": worst, "terms": op.terms}


def judge_weighted_sum(figures: Figures) -> Verdict:
    """Holds where every layer keeps superposition and equals its sum within rounding."""
    broken = [n for n, f in figures.items() if f["superposition_ratio"] > 1 or f["explicit_sum_ratio"] > 1]
    worst = max(f["superposition_ratio"] for f in figures.values())
    if broken:
        return not_as_said(f"superposition or the explicit sum fails for the {' and the '.join(broken)}")
    raw = [n for n, f in figures.items() if f["with_bias_ratio"] > 1]
    bias = " once the bias is taken off (with it they are affine, not linear)" if raw else ""
    return holds(
        f"superposition holds within rounding{bias}, at most {worst:.2g} of the derived bound, and outputs "
        "equal their sums formed term by term"
    )


# S2 ---------------------------------------------------------------------------------------------------------

STEPS = 5
CORNER = (32, 64)
"""Outputs and inputs of the corner of the layer that is trained on exact numbers."""


def integer_corner(weight: Tensor) -> Tensor:
    """The corner of a layer's weight (O, F), scaled and rounded to integers in [-3, 3], float64."""
    corner = weight[: CORNER[0], : CORNER[1]].detach().double()
    return (3 * corner / corner.abs().max().clamp_min(1e-30)).round()


def measure_learning(linear: nn.Module, convolution: nn.Module, seed: int = 0, steps: int = STEPS) -> Figures:
    """Train both forms side by side on one batch and compare parameters, gradients and weights.

    Both take (N, F) to (N, O) and hold float64 parameters with integer values. Inputs are ±1, targets
    integers, the loss ½·Σ(y − t)², the rate a power of two: every number in every step is then a multiple of a
    power of two that float64 holds (checked on the magnitudes met), so that two right forms agree bit for bit.
    """
    ours, theirs = ([p for _, p in m.named_parameters()] for m in (linear, convolution))
    features, outputs = int(ours[0][0].numel()), len(ours[0])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (8, features), generator=generator).double() * 2 - 1
    target = torch.randint(-9, 10, (8, outputs), generator=generator).double()
    shift = math.ceil(math.log2(8 * features)) + 1
    gradients_equal, exact = True, True
    losses = []
    for step in range(steps):
        results = [_gradients(m, x, target) for m in (linear, convolution)]
        losses.append(results[0].loss)
        gradients_equal &= _same(results[0].gradients, results[1].gradients)
        unit = 2.0 ** (-shift * step)  # weights, outputs and gradients are multiples of it
        exact &= 8 * results[0].residual < 2**53 * unit
        exact &= (features + 1) * _largest(ours) < 2**53 * unit
        with torch.no_grad():
            for parameters, result in zip((ours, theirs), results, strict=True):
                for p, g in zip(parameters, result.gradients, strict=True):
                    p.sub_(g * 2.0**-shift)
        exact &= _largest(ours) < 2**53 * unit * 2.0**-shift
    return {
        "parameters": {"linear": _count(ours), "convolution": _count(theirs)},
        "steps": steps,
        "gradients_equal": gradients_equal,
        "weights_equal": _same(ours, theirs),
        "largest_difference": max(
            (
                float((a.flatten() - b.flatten()).detach().abs().max())
                for a, b in zip(ours, theirs, strict=False)
            ),
            default=0.0,
        ),
        "arithmetic_exact": bool(exact),
        "weights_trained": [outputs, features],
        "losses": losses,
    }


def measure_own_numbers(
    linear: nn.Module, convolution: nn.Module, seed: int = 0, steps: int = STEPS
) -> Figures:
    """Train both forms from real weights in their own dtype by Adam: how far weights part, over how far they move.

    Told, not judged: sums of different order round differently, and Adam divides by what may be small.
    """
    ours, theirs = list(linear.parameters()), list(convolution.parameters())
    start = [p.detach().clone() for p in ours]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, ours[0][0].numel(), generator=generator).to(ours[0])
    target = torch.randn(8, len(ours[0]), generator=generator).to(ours[0])
    for module in (linear, convolution):
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(steps):
            for p, g in zip(module.parameters(), _gradients(module, x, target).gradients, strict=True):
                p.grad = g
            optimiser.step()
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(ours, start, strict=True))
    apart = max(float((p - q).detach().abs().max()) for p, q in zip(ours, theirs, strict=True))
    return {
        "dtype": str(ours[0].dtype).removeprefix("torch."),
        "moved": moved,
        "apart": apart,
        "steps": steps,
    }


class _Result(NamedTuple):
    """One pass: the loss, the gradients, and the largest |y − t|."""

    loss: float
    gradients: list[Tensor]
    residual: float


def _gradients(module: nn.Module, x: Tensor, target: Tensor) -> _Result:
    with torch.enable_grad():
        residual = module(x) - target
        loss = 0.5 * residual.square().sum()
        gradients = list(torch.autograd.grad(loss, list(module.parameters())))
    return _Result(float(loss.detach()), gradients, float(residual.detach().abs().max()))


def _largest(parameters: Sequence[Tensor]) -> float:
    return max(float(p.detach().abs().max()) for p in parameters)


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    if len(a) != len(b) or any(p.numel() != q.numel() for p, q in zip(a, b, strict=True)):
        return False
    return all(torch.equal(p.flatten(), q.flatten()) for p, q in zip(a, b, strict=True))


def _count(parameters: Sequence[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def judge_learning(figures: Figures) -> Verdict:
    """Holds where counts, every gradient and the trained weights are the same bits."""
    counts = figures["parameters"]
    if counts["linear"] != counts["convolution"]:
        return not_as_said(
            f"{counts['linear']} parameters in one form and {counts['convolution']} in the other"
        )
    steps = figures["steps"]
    if not (figures["gradients_equal"] and figures["weights_equal"]):
        return not_as_said(
            f"after {steps} steps from the given weights the two differ by {figures['largest_difference']:.3g}"
        )
    how = "bit for bit" if figures["arithmetic_exact"] else "bit for bit here, though rounding was involved"
    outputs, features = figures["weights_trained"]
    return holds(
        f"{counts['linear']:,} parameters in either form of {outputs} outputs of {features} inputs; gradients "
        f"and, after {steps} optimiser steps, weights agree {how}"
    )


# S3 ---------------------------------------------------------------------------------------------------------


def measure_activation(
    first: Tensor, second: Tensor, activation: Callable[[Tensor], Tensor], name: str, seed: int = 0
) -> Figures:
    """Two layers in a row, with and without an activation between, against the one matrix second·first.

    `first` (H, F) and `second` (O, H), float64. Measured for the layers as fully connected ones and as 1×1
    convolutions on images of one pixel. `jacobian_change` compares the derivative at two inputs: it is the
    same everywhere for one matrix, and only for one matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, first.shape[1], generator=generator, dtype=torch.float64)
    collapsed = second @ first
    size = x.abs() @ first.abs().T @ second.abs().T
    bound = dot_bound(first.shape[1] + first.shape[0], size, U)
    one = x @ collapsed.T
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fully connected": F.linear,
        "pointwise": _as_pointwise,
    }
    plain = {n: f(f(x, first), second) for n, f in forms.items()}
    active = {n: f(activation(f(x, first)), second) for n, f in forms.items()}
    size_of_one = spread(one)
    return {
        "activation": name,
        "weights": [list(first.shape), list(second.shape)],
        "collapse_ratio": {n: ratio((y - one).abs(), bound) for n, y in plain.items()},
        "rank": {
            "first": int(torch.linalg.matrix_rank(first)),
            "second": int(torch.linalg.matrix_rank(second)),
            "collapsed": int(torch.linalg.matrix_rank(collapsed)),
        },
        "activation_ratio": {n: ratio((y - one).abs(), bound) for n, y in active.items()},
        "activation_relative": {n: float((y - one).abs().max()) / size_of_one for n, y in active.items()},
        "forms_agree_ratio": ratio((active["pointwise"] - active["fully connected"]).abs(), 4 * bound),
        "jacobian_change": _jacobian_change(first, second, activation, x),
    }


def _as_pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x[:, :, None, None], weight[:, :, None, None])[:, :, 0, 0]


def _jacobian_change(
    first: Tensor, second: Tensor, activation: Callable[[Tensor], Tensor], x: Tensor
) -> float:
    """The largest change of the derivative of the first output between two inputs, over its size."""
    rows = []
    for point in x[:2]:
        given = point.clone().requires_grad_()
        with torch.enable_grad():
            y = F.linear(activation(F.linear(given[None], first)), second)[0, 0]
        rows.append(torch.autograd.grad(y, given)[0])
    size = float(rows[0].abs().max()) or 1.0
    return float((rows[0] - rows[1]).abs().max()) / size


def judge_activation(figures: Figures) -> Verdict:
    """Holds where the layers collapse without the activation and do not with it, in both forms alike."""
    collapse, active = figures["collapse_ratio"], figures["activation_ratio"]
    if max(collapse.values()) > 1:
        return not_as_said("two layers without an activation do not equal the product of their matrices")
    if min(active.values()) <= 1:
        return not_as_said(f"{figures['activation']} between them changes nothing: they remain one matrix")
    if figures["forms_agree_ratio"] > 1:
        return not_as_said("the activation acts differently after either form")
    ranks, relative = figures["rank"], max(figures["activation_relative"].values())
    return holds(
        f"without {figures['activation']} two layers equal one matrix of rank {ranks['collapsed']} within "
        f"rounding, in either form; with it the outputs move by up to {relative:.2g} of their spread"
    )


# S4 ---------------------------------------------------------------------------------------------------------


def measure_mixing(operations: Sequence[Operation], most: int = 16) -> Figures:
    """The share of (input channel, output channel) pairs of a group with a non-zero derivative at a place.

    From the Jacobian of at most `most` outputs, and every input channel.
    """
    found: Figures = {}
    for op in operations:
        rows = jacobian_rows(op, sample(len(op.weight), most))
        reached = rows.abs().amax(dim=(2, 3)) > 0
        channels = op.map_shape[0]
        per_group = channels // op.groups
        found[op.name] = op.describe() | {
            "channels": channels,
            "groups": op.groups,
            "channels_in_group": per_group,
            "outputs_examined": len(rows),
            "share_of_all": float(reached.double().mean()),
            "share_of_group": float(reached.sum()) / (len(rows) * per_group),
        }
    return found


def judge_mixing(figures: Figures) -> Verdict:
    """Holds where every channel of the input reaches every output; else says within what it does."""
    values = list(figures.values())
    share = min(f["share_of_all"] for f in values)
    within = min(f["share_of_group"] for f in values)
    if share == 1:
        return holds("every input channel has a part in every output channel, in both layers")
    alone = [name for name, f in figures.items() if f["channels_in_group"] == 1 and f["channels"] > 1]
    if alone:
        return not_as_said(f"in the {alone[0]} each output reads a single channel: nothing is combined")
    if within == 1:
        return holds_when(
            "it is said of one group", f"channels of other groups have no part: {share:.1%} of all pairs"
        )
    if within > 0.5:
        return holds_when("no weight is zero", f"{1 - within:.2%} of the channel pairs have a zero weight")
    return not_as_said(f"only {within:.1%} of the channel pairs are connected")
