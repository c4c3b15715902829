"""One run of a network: its outputs, its gradients, and what was noticed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.records import first_line
from onebyone.verification.pytree import arguments, cast, leaves, map_tensors

Named = list[tuple[str, Tensor]]
Grads = dict[str, Tensor]
# how an input's gradient is named; no parameter has a blank in its name
INPUT = "the input"


@dataclass(frozen=True)
class Runner:
    """One network (or callable), the example it is run on, and the seed set before each run."""

    call: Callable[..., Any]
    example: Any
    seed: int
    after: Callable[[Any], Any] | None = None
    """What is done to the outputs before they are compared."""

    def __call__(self) -> Any:
        """Run on copies of the inputs: a network may change them in place."""
        return self.on(map_tensors(self.example, Tensor.detach))

    def on(self, example: Any) -> Any:
        """Run on copies of another example's tensors, through which gradients flow."""
        args, kwargs = arguments(map_tensors(example, Tensor.clone))
        torch.manual_seed(self.seed)
        outputs = plain_call(self.call)(*args, **kwargs)
        return self.after(outputs) if self.after else outputs

    def in_dtype(self, call: Callable[..., Any], dtype: torch.dtype) -> Runner:
        """The same example in another dtype, for `call`."""
        return Runner(call, cast(self.example, dtype), self.seed, self.after)


@dataclass
class Observation:
    """What one run gave. `error`: it raised; `no_gradients`: why there are none (empty: none were asked for)."""

    outputs: Named = field(default_factory=list)
    gradients: Grads = field(default_factory=dict)
    error: str = ""
    no_gradients: str = ""
    random: bool = False
    """An operator ran that may draw random numbers."""
    narrowed: bool = False
    """A float64 value was cast to a shorter type."""

    @property
    def short_of_float64(self) -> str:
        """Why a run on float64 weights and inputs is no float64 reference; empty where it is."""
        if self.error:
            return self.error
        if self.narrowed:
            return "it casts to a shorter type inside"
        short = [t.dtype for _, t in self.outputs if t.is_floating_point() and t.dtype != torch.float64]
        return f"it answers in {short[0]}" if short else ""


def observe(runner: Runner, gradients: bool = False) -> Observation:
    """Run once; with `gradients`, of Σ c·y over all outputs y, c random signs, to floating inputs and parameters."""
    if gradients:
        with_gradients = _with_gradients(runner)
        if not with_gradients.error:
            return with_gradients
    plain = _plain(runner)
    if gradients and not plain.error:
        plain.no_gradients = with_gradients.error
    return plain


def plain_call(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network as it is called by the checks, where failing is a result.

    A traced network prints the generated code around an error to stderr before it raises; `nn.Module`'s own call,
    which it wraps, does not.
    """
    if isinstance(network, fx.GraphModule):
        return lambda *args, **kwargs: nn.Module.__call__(network, *args, **kwargs)
    return network


def in_one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def _plain(runner: Runner) -> Observation:
    seen = Observation()
    try:
        with torch.no_grad(), _RunWatcher(seen):
            seen.outputs = leaves(runner())
    except Exception as error:
        seen.error = in_one_line(error)
    return seen


def _with_gradients(runner: Runner) -> Observation:
    seen = Observation()
    example = map_tensors(runner.example, _differentiable)
    sources: Grads = {f"{INPUT} {p}".strip(): t for p, t in leaves(example) if t.requires_grad}
    held: list[Tensor] = []
    if isinstance(runner.call, nn.Module):
        held = [p for p in runner.call.parameters() if is_real_or_complex(p)]
        sources |= {n: p for n, p in runner.call.named_parameters() if is_real_or_complex(p)}
    flags = [(p, p.requires_grad) for p in held]
    try:
        for p in held:
            p.requires_grad_(True)
        with torch.enable_grad(), _RunWatcher(seen):
            outputs = leaves(runner.on(example))
        seen.outputs = [(path, t.detach()) for path, t in outputs]
        _differentiate([t for _, t in outputs if t.requires_grad], sources, runner.seed, seen)
    except Exception as error:
        seen.error = in_one_line(error)
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
    return seen


def _differentiate(outputs: list[Tensor], sources: Grads, seed: int, seen: Observation) -> None:
    if not outputs or not sources:
        seen.no_gradients = "no output depends differentiably on an input or a parameter"
        return
    generator = torch.Generator().manual_seed(seed)
    try:
        signs = [_signs(t, generator) for t in outputs]
        grads = torch.autograd.grad(outputs, list(sources.values()), signs, allow_unused=True)
    except Exception as error:
        seen.no_gradients = in_one_line(error)
        return
    seen.gradients = {n: g for n, g in zip(sources, grads, strict=True) if g is not None}


def is_real_or_complex(t: Tensor) -> bool:
    """Whether a tensor has rounding errors (and gradients): not so integers and masks."""
    return t.is_floating_point() or t.is_complex()


def _differentiable(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(is_real_or_complex(t))


def _signs(t: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, t.shape, generator=generator) * 2 - 1
    return signs.to(device=t.device, dtype=t.dtype)


class _RunWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators that may be random, and casts from float64 to shorter types."""

    def __init__(self, seen: Observation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.seen.random = True
        if func is _TO_COPY and args[0].dtype == torch.float64:
            to = kwargs.get("dtype")
            self.seen.narrowed |= to is not None and to.is_floating_point and to != torch.float64
        return func(*args, **kwargs)


_TO_COPY = torch.ops.aten._to_copy.default
