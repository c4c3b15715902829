"""S1 to S4: claimed similarities of the two layers.

Each experiment is a pair of functions: one measures figures, the other derives the verdict from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.comparison.claim_result import Figures, Verdict, holds, holds_when, not_as_said
from onebyone.comparison.operation import UNIT_ROUNDOFF, Operation, jacobian_rows, ratio, sample, spread
from onebyone.laws.bounds import dot_bound

EXPLICIT_SUMS = 8
"""Outputs that are compared with their sum computed term by term."""


# S1 ---------------------------------------------------------------------------------------------------------


def measure_weighted_sum(operations: Sequence[Operation], seed: int = 0) -> Figures:
    """Superposition with the bias subtracted, and outputs against sums computed term by term.

    With g(x) = f(x) − f(0), every affine f satisfies g(a·x + c·y) = a·g(x) + c·g(y). `*_ratio` is the largest
    quotient of an error and its rounding bound, at most 1 for an affine layer. `with_bias_ratio` is the same
    without subtracting the bias.
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
    # every value takes part in at most five roundings besides those of its own sum
    size = abs(a) * op.magnitude(x) + abs(c) * op.magnitude(y)
    size = size + op.magnitude(abs(a) * x.abs() + abs(c) * y.abs()) + 4 * op.magnitude(torch.zeros_like(x))
    bound = dot_bound(op.terms + 5, size, UNIT_ROUNDOFF)
    return {
        "superposition_error": float(error.max()),
        "superposition_ratio": ratio(error, bound),
        "with_bias_ratio": ratio(raw, bound),
        "values_compared": error.numel(),
    }


def _sums(op: Operation, generator: torch.Generator) -> Figures:
    """Some outputs against Σ w·x + b, summed with one rounding by math.fsum."""
    x = op.maps(1, generator)
    y, bound = op(x), op.bound(x)
    largest_ratio, largest_error = 0.0, 0.0
    for o in sample(len(op.weight), EXPLICIT_SUMS):
        position: tuple[Any, ...] = tuple(n // 3 for n in y.shape[2:])
        weights = op.weight[o].flatten()
        inputs = x[0].flatten() if len(weights) == x[0].numel() else x[(0, slice(None), *position)]
        bias = [] if op.bias is None else [float(op.bias[o])]
        products = (weights * inputs).tolist() if len(inputs) == len(weights) else [math.nan]
        error = abs(float(y[(0, o, *position)]) - math.fsum([*products, *bias]))
        limit = float(bound[(0, o, *position)])
        largest_error = max(largest_error, error)
        largest_ratio = math.inf if math.isnan(error) else max(largest_ratio, error / limit if error else 0.0)
    return {"explicit_sum_error": largest_error, "explicit_sum_ratio": largest_ratio, "terms": op.terms}


def weighted_sum_verdict(figures: Figures) -> Verdict:
    """Holds if every layer satisfies superposition and equals its explicit sum within rounding."""
    failing = [n for n, f in figures.items() if f["superposition_ratio"] > 1 or f["explicit_sum_ratio"] > 1]
    worst = max(f["superposition_ratio"] for f in figures.values())
    if failing:
        names = " and the ".join(failing)
        return not_as_said(f"superposition or the explicit sum fails for the {names} layer")
    raw = [n for n, f in figures.items() if f["with_bias_ratio"] > 1]
    bias = " once the bias is subtracted (with the bias the layers are affine, not linear)" if raw else ""
    return holds(
        f"superposition holds within rounding{bias}: the error is at most {worst:.2g} of the derived bound, and "
        "outputs equal their sums computed term by term"
    )


# S2 ---------------------------------------------------------------------------------------------------------

STEPS = 5
CORNER = (32, 64)
"""Outputs and inputs of the part of the layer that is trained in exact arithmetic."""


def integer_corner(weight: Tensor) -> Tensor:
    """The first rows and columns of a weight (O, F), scaled and rounded to integers in [-3, 3], float64."""
    corner = weight[: CORNER[0], : CORNER[1]].detach().double()
    return (3 * corner / corner.abs().max().clamp_min(1e-30)).round()


def measure_learning(linear: nn.Module, convolution: nn.Module, seed: int = 0, steps: int = STEPS) -> Figures:
    """Train both forms on one batch by gradient descent and compare parameters, gradients and weights.

    Both map (N, F) to (N, O) and have float64 parameters with integer values. Inputs are ±1, targets are integers,
    the loss is ½·Σ(y − t)² and the learning rate a power of two. Then every number in every step is a multiple of a
    power of two that float64 represents exactly (the magnitudes are checked), so two correct forms agree bit for
    bit.
    """
    linear_parameters, conv_parameters = (list(m.parameters()) for m in (linear, convolution))
    features, outputs = int(linear_parameters[0][0].numel()), len(linear_parameters[0])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (8, features), generator=generator).double() * 2 - 1
    target = torch.randint(-9, 10, (8, outputs), generator=generator).double()
    shift = math.ceil(math.log2(8 * features)) + 1
    gradients_equal, exact = True, True
    losses = []
    for step in range(steps):
        results = [_gradients(m, x, target) for m in (linear, convolution)]
        losses.append(results[0].loss)
        gradients_equal &= _equal_bits(results[0].gradients, results[1].gradients)
        unit = 2.0 ** (-shift * step)  # all weights, outputs and gradients are multiples of it
        exact &= 8 * results[0].residual < 2**53 * unit
        exact &= (features + 1) * _largest(linear_parameters) < 2**53 * unit
        with torch.no_grad():
            for parameters, result in zip((linear_parameters, conv_parameters), results, strict=True):
                for p, g in zip(parameters, result.gradients, strict=True):
                    p.sub_(g * 2.0**-shift)
        exact &= _largest(linear_parameters) < 2**53 * unit * 2.0**-shift
    return {
        "parameters": {"linear": _count(linear_parameters), "convolution": _count(conv_parameters)},
        "steps": steps,
        "gradients_equal": gradients_equal,
        "weights_equal": _equal_bits(linear_parameters, conv_parameters),
        "largest_difference": max(
            (
                float((a.flatten() - b.flatten()).detach().abs().max())
                for a, b in zip(linear_parameters, conv_parameters, strict=False)
            ),
            default=0.0,
        ),
        "arithmetic_exact": bool(exact),
        "weights_trained": [outputs, features],
        "losses": losses,
    }


def measure_real_learning(
    linear: nn.Module, convolution: nn.Module, seed: int = 0, steps: int = STEPS
) -> Figures:
    """Train both forms from their real weights by Adam: how far the weights move, and how far the forms diverge.

    The verdict does not use these figures: sums in a different order round differently, and Adam divides by values
    that may be small.
    """
    linear_parameters, conv_parameters = list(linear.parameters()), list(convolution.parameters())
    start = [p.detach().clone() for p in linear_parameters]
    weight = linear_parameters[0]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, weight[0].numel(), generator=generator).to(weight)
    target = torch.randn(8, len(weight), generator=generator).to(weight)
    for module in (linear, convolution):
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(steps):
            for p, g in zip(module.parameters(), _gradients(module, x, target).gradients, strict=True):
                p.grad = g
            optimiser.step()
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(linear_parameters, start, strict=True))
    pairs = zip(linear_parameters, conv_parameters, strict=True)
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "moved": moved,
        "apart": max(float((p - q).detach().abs().max()) for p, q in pairs),
        "steps": steps,
    }


class _TrainingStep(NamedTuple):
    """The loss, the gradients, and the largest residual |y − t|."""

    loss: float
    gradients: list[Tensor]
    residual: float


def _gradients(module: nn.Module, x: Tensor, target: Tensor) -> _TrainingStep:
    with torch.enable_grad():
        residual = module(x) - target
        loss = 0.5 * residual.square().sum()
        gradients = list(torch.autograd.grad(loss, list(module.parameters())))
    return _TrainingStep(float(loss.detach()), gradients, float(residual.detach().abs().max()))


def _largest(parameters: Sequence[Tensor]) -> float:
    return max(float(p.detach().abs().max()) for p in parameters)


def _equal_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    if len(a) != len(b) or any(p.numel() != q.numel() for p, q in zip(a, b, strict=True)):
        return False
    return all(torch.equal(p.flatten(), q.flatten()) for p, q in zip(a, b, strict=True))


def _count(parameters: Sequence[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def learning_verdict(figures: Figures) -> Verdict:
    """Holds if the number of parameters, all gradients and the trained weights are identical."""
    counts = figures["parameters"]
    if counts["linear"] != counts["convolution"]:
        return not_as_said(
            f"one form has {counts['linear']} parameters and the other {counts['convolution']}"
        )
    steps = figures["steps"]
    if not (figures["gradients_equal"] and figures["weights_equal"]):
        return not_as_said(
            f"after {steps} steps from the same weights the two forms differ by {figures['largest_difference']:.3g}"
        )
    how = "bit for bit" if figures["arithmetic_exact"] else "bit for bit, although rounding was involved"
    outputs, features = figures["weights_trained"]
    return holds(
        f"with {features} inputs and {outputs} outputs, either form has {counts['linear']:,} parameters; the "
        f"gradients, and the weights after {steps} optimiser steps, agree {how}"
    )


# S3 ---------------------------------------------------------------------------------------------------------


def measure_activation(
    first: Tensor, second: Tensor, activation: Callable[[Tensor], Tensor], name: str, seed: int = 0
) -> Figures:
    """Two successive layers, with and without an activation between them, against the matrix product second·first.

    `first` is (H, F) and `second` (O, H), both float64. Measured for fully connected layers and for 1×1 convolutions
    on images of one pixel. `jacobian_change` compares the derivative at two inputs; it is 0 for a linear map.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, first.shape[1], generator=generator, dtype=torch.float64)
    product = second @ first
    magnitude = x.abs() @ first.abs().T @ second.abs().T
    bound = dot_bound(first.shape[1] + first.shape[0], magnitude, UNIT_ROUNDOFF)
    expected = x @ product.T
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fully connected": F.linear,
        "pointwise": _as_pointwise,
    }
    linear = {n: f(f(x, first), second) for n, f in forms.items()}
    active = {n: f(activation(f(x, first)), second) for n, f in forms.items()}
    output_spread = spread(expected)
    return {
        "activation": name,
        "weights": [list(first.shape), list(second.shape)],
        "collapse_ratio": {n: ratio((y - expected).abs(), bound) for n, y in linear.items()},
        "rank": {
            "first": int(torch.linalg.matrix_rank(first)),
            "second": int(torch.linalg.matrix_rank(second)),
            "collapsed": int(torch.linalg.matrix_rank(product)),
        },
        "activation_ratio": {n: ratio((y - expected).abs(), bound) for n, y in active.items()},
        "activation_relative": {
            n: float((y - expected).abs().max()) / output_spread for n, y in active.items()
        },
        "forms_agree_ratio": ratio((active["pointwise"] - active["fully connected"]).abs(), 4 * bound),
        "jacobian_change": _jacobian_change(first, second, activation, x),
    }


def _as_pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x[:, :, None, None], weight[:, :, None, None])[:, :, 0, 0]


def _jacobian_change(
    first: Tensor, second: Tensor, activation: Callable[[Tensor], Tensor], x: Tensor
) -> float:
    """The largest change of the first output's derivative between two inputs, relative to its magnitude."""
    rows = []
    for point in x[:2]:
        leaf = point.clone().requires_grad_()
        with torch.enable_grad():
            y = F.linear(activation(F.linear(leaf[None], first)), second)[0, 0]
        rows.append(torch.autograd.grad(y, leaf)[0])
    magnitude = float(rows[0].abs().max()) or 1.0
    return float((rows[0] - rows[1]).abs().max()) / magnitude


def activation_verdict(figures: Figures) -> Verdict:
    """Holds if, in both forms, the layers collapse into one without the activation and not with it."""
    collapse, active = figures["collapse_ratio"], figures["activation_ratio"]
    if max(collapse.values()) > 1:
        return not_as_said("two layers without an activation do not equal the product of their matrices")
    if min(active.values()) <= 1:
        return not_as_said(
            f"{figures['activation']} between the layers changes nothing: they still equal one matrix"
        )
    if figures["forms_agree_ratio"] > 1:
        return not_as_said("the activation acts differently after the two forms")
    ranks, relative = figures["rank"], max(figures["activation_relative"].values())
    return holds(
        f"without {figures['activation']}, two layers equal one matrix of rank {ranks['collapsed']} within "
        f"rounding, in either form; with it, the outputs change by up to {relative:.2g} standard deviations"
    )


# S4 ---------------------------------------------------------------------------------------------------------


def measure_mixing(operations: Sequence[Operation], max_outputs: int = 16) -> Figures:
    """The share of (input channel, output channel) pairs of a group with a non-zero derivative at one position.

    From the Jacobian of at most `max_outputs` outputs with respect to every input channel.
    """
    figures: Figures = {}
    for op in operations:
        rows = jacobian_rows(op, sample(len(op.weight), max_outputs))
        reached = rows.abs().amax(dim=(2, 3)) > 0
        channels = op.map_shape[0]
        per_group = channels // op.groups
        figures[op.name] = op.describe() | {
            "channels": channels,
            "groups": op.groups,
            "channels_in_group": per_group,
            "outputs_examined": len(rows),
            "share_of_all": float(reached.double().mean()),
            "share_of_group": float(reached.sum()) / (len(rows) * per_group),
        }
    return figures


def mixing_verdict(figures: Figures) -> Verdict:
    """Holds if every input channel contributes to every output channel."""
    values = list(figures.values())
    share = min(f["share_of_all"] for f in values)
    within = min(f["share_of_group"] for f in values)
    if share == 1:
        return holds("every input channel contributes to every output channel, in both layers")
    depthwise = [name for name, f in figures.items() if f["channels_in_group"] == 1 and f["channels"] > 1]
    if depthwise:
        return not_as_said(
            f"in the {depthwise[0]} layer each output reads a single channel: nothing is combined"
        )
    if within == 1:
        return holds_when(
            "only channels of the same group are meant",
            f"channels of other groups do not contribute: {share:.1%} of all channel pairs are connected",
        )
    if within > 0.5:
        return holds_when("no weight is zero", f"{1 - within:.2%} of the channel pairs have weight zero")
    return not_as_said(f"only {within:.1%} of the channel pairs are connected")
