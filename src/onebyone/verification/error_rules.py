"""Running error analysis with one rule per operator: from (x̂, e) with |x̂ − x| ≤ e to (ŷ, e') with |ŷ − y| ≤ e'.

x̂ is the computed value and x the value that exact arithmetic gives from the same inputs and weights. With u the unit
roundoff and γ_n = n·u/(1 − n·u):

    product with a constant W, n terms     e' = |W|·e + γ_{n+1}·(|W|·(|x̂| + 2e) + |b|)
    f with Lipschitz constant L            e' = L·e + c·u·(|ŷ| or |x̂|)
    max-pool, shape operators              e' = the same operator applied to e
    average of n                           e' = avg(e) + γ_{n+2}·avg(|x̂| + 2e)

The bounds hold for every order of summation, and so for a convolution as well as for the product with a flattened
window. They contain 2e and not e, because the x̂ of another evaluation may differ from this one's by that much. Every
e' is widened for the rounding of its own computation. The constants c allow several units in the last place for
elementary functions (glibc, SLEEF and CUDA document at most 2 for exp, tanh and erf in float32).

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §3.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebyone.laws.bounds import gamma

aten = torch.ops.aten


@dataclass(frozen=True)
class Approx:
    """A computed tensor and a bound on its error, of the same shape."""

    value: Tensor
    error: Tensor


class NoRuleError(Exception):
    """An operator, or a use of one, has no rule; the message names it."""


Rule = Callable[[float, Any, tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators by name. Names that the installed PyTorch does not have are skipped."""

    def keep(fn: Rule) -> Rule:
        for name in names:
            operator = getattr(aten, name, None)
            if operator is not None:
                RULES[operator] = fn
        return fn

    return keep


def value(a: Any) -> Any:
    """The computed tensor of an Approx, also inside lists; anything else is returned unchanged."""
    if isinstance(a, Approx):
        return a.value
    if isinstance(a, list | tuple):
        return type(a)(value(v) for v in a)
    return a


def error(a: Any) -> Tensor:
    """The bound of an Approx; zeros for a constant tensor."""
    if isinstance(a, Approx):
        return a.error
    return torch.zeros_like(a)


def widened(e: Tensor, n: int, u: float) -> Tensor:
    """The bound, increased by the largest rounding error of its own computation with sums of `n` terms."""
    return e * (1 + 4 * gamma(n + 4, u))


def _setting(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any) -> Any:
    """An argument that a graph may hold by position or by keyword."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def _approx(x: Any, what: Any) -> Approx:
    if not isinstance(x, Approx):
        raise NoRuleError(f"{what} with a constant operand")
    return x


def _conversion(number: Any, dtype: torch.dtype) -> float:
    """The error of a Python number that an operator converts to `dtype`; 0 for anything else."""
    if not isinstance(number, float):
        return 0.0
    return abs(torch.tensor(number, dtype=dtype).item() - number) if math.isfinite(number) else 0.0


def _spread(x: Approx, n: int, u: float) -> Tensor:
    """The part of the error of a sum of n terms that one term contributes: e + γ_{n+1}·(|x̂| + 2e)."""
    g = gamma(n + 1, u)
    return x.error * (1 + 2 * g) + g * x.value.abs()


@rule(
    "conv1d", "conv2d", "conv3d", "convolution", "linear", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
)  # fmt: skip
def product(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A product with a constant weight, plus a constant bias."""
    x, weight, *rest = args
    bias = rest[0] if rest else kwargs.get("bias")
    if isinstance(weight, Approx) or isinstance(bias, Approx):
        raise NoRuleError(f"{f} with a weight that depends on the input")
    # The longest sum: all weights of one output, or, for a transposed convolution, of one input or output if longer.
    n = weight.numel() // min(weight.shape[:2]) if "transpose" in str(f) else weight[0].numel()
    x = _approx(x, f)
    g = gamma(n + 1, u)
    bias_and_more = (None if bias is None else g * bias.abs(), *rest[1:])
    y = f(x.value, weight, *rest, **kwargs)
    e = f(_spread(x, n, u), weight.abs(), *bias_and_more, **{k: v for k, v in kwargs.items() if k != "bias"})
    return Approx(y, widened(e, n, u))


@rule("mm", "matmul", "bmm")
def matrix_product(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A matrix product. One operand or both may depend on the input."""
    a, b = args
    n = value(a).shape[-1]
    g = gamma(n + 1, u)
    va, vb, ea, eb = value(a).abs(), value(b).abs(), error(a), error(b)
    e = f(ea, vb + eb) + f(va, eb) + g * f(va + 2 * ea, vb + 2 * eb)
    return Approx(f(value(a), value(b)), widened(e, n, u))


@rule("addmm")
def addmm(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """bias + a·b, without scaling factors."""
    bias, a, b = args
    if any(kwargs.get(k, 1) != 1 for k in ("alpha", "beta")) or isinstance(bias, Approx):
        raise NoRuleError(f"{f} with alpha or beta, or with a bias that depends on the input")
    p = matrix_product(u, aten.mm, (a, b), {})
    n = value(a).shape[-1]
    g = gamma(n + 1, u)
    e = p.error + u * p.value.abs() + g * bias.abs()
    return Approx(f(bias, value(a), value(b)), widened(e, n, u))


@rule("relu", "relu_", "neg", "abs", "hardtanh", "relu6", "clamp", "clamp_min", "clamp_max", "threshold")
def exact_lipschitz(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Functions with Lipschitz constant 1 that round nothing but their limits."""
    x = _approx(args[0], f)
    if any(isinstance(a, Approx) for a in args[1:]) or "threshold" in str(f):
        raise NoRuleError(f"{f} in this use")
    limits = max((_conversion(a, x.value.dtype) for a in (*args[1:], *kwargs.values())), default=0.0)
    return Approx(f(x.value, *args[1:], **kwargs), x.error + limits)


# For each function: its Lipschitz constant, and the units of roundoff that are allowed relative to |y|, relative to |x|
# (for 1 + erf and similar sums, which cancel), and in absolute terms.
_SMOOTH: dict[str, tuple[float, float, float, float]] = {
    "sigmoid": (0.25, 8, 0, 0),
    "tanh": (1, 8, 0, 0),
    "gelu": (1.13, 4, 12, 0),  # max |gelu'| = 1.1290
    "silu": (1.1, 12, 0, 0),  # max |silu'| = 1.0999
    "mish": (1.09, 8, 16, 0),  # max |mish'| = 1.0885
    "hardswish": (1.5, 4, 4, 0),
    "hardsigmoid": (1 / 6, 4, 0, 4),
    "erf": (1.13, 4, 0, 0),  # 2/√π
    "sin": (1, 4, 0, 4),
    "cos": (1, 4, 0, 4),
}


@rule(*_SMOOTH)
def smooth(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Functions with a known Lipschitz constant."""
    x = _approx(args[0], f)
    lipschitz, of_y, of_x, absolute = _SMOOTH[f._schema.name.split("::")[1]]
    y = f(x.value, **kwargs)
    e = lipschitz * x.error + u * (of_y * y.abs() + of_x * (x.value.abs() + 2 * x.error) + absolute)
    return Approx(y, widened(e, 8, u))


@rule("leaky_relu", "elu", "celu", "selu")
def slopes(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """ReLUs with a negative branch: the steeper of the two slopes, and the rounding of expm1."""
    x = _approx(args[0], f)
    name = f._schema.name.split("::")[1]
    # expm1 may be computed as exp − 1, whose rounding error is absolute: one roundoff of the factor in front of it
    if name == "leaky_relu":
        steep, absolute = abs(_setting(args, kwargs, 1, "negative_slope", 0.01)), 0.0
    elif name == "elu":
        names = enumerate(("alpha", "scale", "input_scale"), 1)
        alpha, scale, input_scale = (_setting(args, kwargs, i, name, 1.0) for i, name in names)
        steep = abs(scale) * max(1.0, abs(alpha * input_scale))
        absolute = max(steep, abs(alpha * scale))
    elif name == "celu":
        steep, absolute = 1.0, max(1.0, abs(_setting(args, kwargs, 1, "alpha", 1.0)))
    else:
        steep = absolute = 1.7581  # selu: the product of its two constants
    y = f(x.value, *args[1:], **kwargs)
    return Approx(y, widened(max(1.0, steep) * x.error + 8 * u * (y.abs() + absolute), 8, u))


_MOVES = """
    view reshape _unsafe_view view_as view_copy flatten unflatten permute transpose t numpy_T movedim swapaxes squeeze
    unsqueeze expand expand_as repeat repeat_interleave clone contiguous alias detach lift_fresh lift_fresh_copy select
    slice narrow flip roll index index_select diagonal unfold split split_with_sizes tensor_split chunk unbind
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle dropout feature_dropout alpha_dropout
"""


@rule("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "amax", *_MOVES.split())
def on_both(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operators that move values, and maxima (|max a − max b| ≤ max|a − b|): applied to the error as well."""
    x = _approx(args[0], f)
    if any(isinstance(a, Approx) for a in args[1:]):
        raise NoRuleError(f"{f} with an index that depends on the input")
    if "dropout" in str(f) and _setting(args, kwargs, 2, "train", False):
        raise NoRuleError(f"{f} in training mode")
    y, e = f(x.value, *args[1:], **kwargs), f(x.error, *args[1:], **kwargs)
    return paired(y, e)


def paired(y: Any, e: Any) -> Any:
    """Tensors, or lists of them, with their errors."""
    if isinstance(y, list | tuple):
        return [Approx(a, b) for a, b in zip(y, e, strict=True)]
    return Approx(y, e)


@rule("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d")
def max_with_indices(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Maxima and their positions. The positions have no error bound, and their use is refused."""
    x = _approx(args[0], f)
    return [Approx(f(x.value, *args[1:], **kwargs)[0], f(x.error, *args[1:], **kwargs)[0]), None]


@rule("cat", "stack", "concat")
def joined(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Concatenated tensors; constants among them have no error."""
    parts = args[0]
    return Approx(f(value(parts), *args[1:], **kwargs), f([error(p) for p in parts], *args[1:], **kwargs))


@rule("constant_pad_nd", "pad")
def padded(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A constant border has no error. A border made of copied values has their errors."""
    x = _approx(args[0], f)
    mode = args[2] if "constant_pad" not in str(f) and len(args) > 2 else kwargs.get("mode", "constant")
    e = aten.constant_pad_nd(x.error, args[1]) if mode == "constant" else f(x.error, *args[1:], **kwargs)
    return Approx(f(x.value, *args[1:], **kwargs), e)


@rule("mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
      "_adaptive_avg_pool2d", "adaptive_avg_pool3d")  # fmt: skip
def average(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums and means: at most n terms per output, and a division."""
    x = _approx(args[0], f)
    y = f(x.value, *args[1:], **kwargs)
    # a map may have no axis of samples, so the operator's name tells the axes
    if pooled := re.search(r"pool(\d)d", str(f)):
        axes = int(pooled[1])
        if "adaptive" in str(f):
            sizes = zip(x.value.shape[-axes:], y.shape[-axes:], strict=True)
            n = math.prod(math.ceil(a / b) + 1 for a, b in sizes)
        else:
            kernel = args[1] if isinstance(args[1], list | tuple) else [args[1]]
            n = math.prod(kernel) ** (1 if len(kernel) > 1 else axes)
    else:
        n = max(1, x.value.numel() // max(1, y.numel()))
    return Approx(y, widened(f(_spread(x, n + 1, u), *args[1:], **kwargs), n, u))


@rule("add", "sub", "rsub")
def sums(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """a ± s·b, or b − s·a for rsub: both errors, and two roundings (of the scaled operand and of the sum).

    A number `b` is also rounded to the type of the tensor, which matters where the sum cancels.
    """
    a, b = args[:2]
    s = abs(float(_setting(args, kwargs, 2, "alpha", 1)))
    y = f(value(a), value(b), *args[2:], **kwargs)
    reversed_ = "rsub" in str(f)
    ea, eb = _scaled(a, s if reversed_ else 1.0), _scaled(b, 1.0 if reversed_ else s)
    product = 0 if s == 1 else s * _size(a if reversed_ else b)
    converted = _conversion(b, y.dtype) * (1.0 if reversed_ else s)
    e = (ea + eb + converted) * (1 + 4 * u) + 2 * u * (y.abs() + product)
    return Approx(y, widened(e.expand_as(y), 2, u))


def _scaled(a: Any, s: float) -> Any:
    return s * a.error if isinstance(a, Approx) else 0.0


def _size(a: Any) -> Any:
    return value(a).abs() if isinstance(a, Approx | Tensor) else abs(a)


@rule("mul", "div")
def multiples(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """a·b, and a ÷ b for a constant b.

    A quotient may be computed as the product with the rounded inverse, as CUDA kernels do with a number. Then it rounds
    once more than a product, which rounds a number to the type of the tensor, and the result.
    """
    a, b = args
    roundings = 2
    if "div" in str(f):
        if isinstance(b, Approx) or kwargs.get("rounding_mode"):
            raise NoRuleError(f"{f} with rounding, or with a divisor that depends on the input")
        b, roundings = 1 / b, 3
    y = f(value(a), value(args[1]), **kwargs)
    ea, eb = _scaled(a, 1), _scaled(b, 1)
    e = (ea * _size(b) + eb * _size(a) + ea * eb) * (1 + 4 * u) + roundings * u * y.abs()
    return Approx(y, widened(e, 4, u))


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Running statistics only: y = (x − μ)·a + b with a = w/√(σ² + ε), in any grouping; at most 8 roundings."""
    x, weight, bias, mean, var = args[:5]
    name = f._schema.name
    training = args[5] if "no_training" not in name else False
    if training or mean is None or var is None or any(isinstance(a, Approx) for a in args[1:5]):
        raise NoRuleError(f"{f} with statistics of the input")
    x = _approx(x, f)
    eps = args[6] if "no_training" in name else args[7]
    a = ((torch.ones_like(var) if weight is None else weight) / torch.sqrt(var + eps)).abs()
    shape = (1, -1, *(1,) * (x.value.dim() - 2))
    a, m = a.view(shape), mean.abs().view(shape)
    b = torch.zeros_like(a) if bias is None else bias.abs().view(shape)
    e = a * x.error + gamma(8, u) * (a * (x.value.abs() + 2 * x.error + m) + b)
    y = f(x.value, *args[1:], **kwargs)
    result = Approx(y[0] if isinstance(y, tuple | list) else y, widened(e, 8, u))
    return [result, None, None] if isinstance(y, tuple | list) else result


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A change of at most δ in every input changes each probability by a factor within e^±2δ, and each logarithm by 2δ.

    Rounding: x − max loses u·|x − max|; exp, the sum of n terms and the division lose n + 10 units more.
    """
    x, dim = _approx(args[0], f), args[1]
    y = f(x.value, *args[1:], **kwargs)
    n = x.value.shape[dim]
    delta = x.error.amax(dim, keepdim=True)
    span = x.value.amax(dim, keepdim=True) - x.value.amin(dim, keepdim=True) + 2 * delta
    relative = 2 * delta + u * (4 * span + n + 10)
    if "log_softmax" in f._schema.name:
        return Approx(y, widened(relative + 4 * u * y.abs(), 4, u))
    return Approx(y, widened(y * torch.expm1(relative) * (1 + relative) + torch.finfo(y.dtype).tiny, 4, u))


@rule("layer_norm", "native_layer_norm")
def layer_norm(u: float, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """y = (x − μ)/√(σ² + ε)·w + b over the last axes; μ and σ² have the errors of all their inputs.

    Each usual algorithm for σ², such as Welford's and E[x²] − μ², is within γ_{3n}·mean(x²) of the exact variance. If
    the variance may be zero within these errors, the bound is infinite.
    """
    x, axes = _approx(args[0], f), tuple(range(-len(args[1]), 0))
    weight, bias = _setting(args, kwargs, 2, "weight", None), _setting(args, kwargs, 3, "bias", None)
    if isinstance(weight, Approx) or isinstance(bias, Approx):
        raise NoRuleError(f"{f} with a weight that depends on the input")
    eps = _setting(args, kwargs, 4, "eps", 1e-5)
    n = math.prod(args[1])
    g = gamma(3 * n + 3, u)
    d = x.value - x.value.mean(axes, keepdim=True)
    reach = x.value.abs() + 2 * x.error
    ed = x.error + x.error.mean(axes, keepdim=True) + g * (reach + reach.mean(axes, keepdim=True))
    var = d.square().mean(axes, keepdim=True) + eps
    ev = (2 * d.abs() * ed + ed.square()).mean(axes, keepdim=True) + 2 * g * reach.square().mean(
        axes, keepdim=True
    )
    low = var - ev
    inverse = var.rsqrt()
    ei = (
        torch.where(low > 0, low.clamp_min(torch.finfo(var.dtype).tiny).rsqrt() - inverse, math.inf)
        + 8 * u * inverse
    )
    e = d.abs() * ei + ed * (inverse + ei)
    e = torch.where(torch.isinf(ei), ei, e)  # 0 · ∞ is NaN
    e = e + 4 * u * d.abs() * inverse
    if weight is not None:
        e = e * weight.abs()
    y = f(x.value, *args[1:], **kwargs)
    first = y[0] if isinstance(y, tuple | list) else y
    e = e + 4 * u * (first.abs() + (0 if bias is None else bias.abs()))
    result = Approx(first, widened(e, n, u))
    return [result, None, None] if isinstance(y, tuple | list) else result
