"""Run a network once and observe it: outputs, gradients, random operators and casts to shorter types.

This is the one place where the verifier calls networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.verification.calls import observe_operators
from onebyone.verification.pytree import arguments, cast, leaves, map_tensors

Named = list[tuple[str, Tensor]]
Grads = dict[str, Tensor]
#: The name of the gradient with respect to an input. It has spaces, so that it cannot be a parameter's name.
INPUT = "the input"


def as_callable(network: Any, argument: str) -> Any:
    """The network as something that can be called, in float64 too: the module of a program, else the network itself.

    `argument` is its name in error messages. Raises BadInput if it is neither a network nor a callable.
    """
    if isinstance(network, torch.export.ExportedProgram):
        return _without_dtype_checks(network.module())
    if not callable(network):
        raise BadInput(
            f"{argument} is a {type(network).__name__}, which is neither a network, nor a callable, nor a conversion "
            "with the attributes that onebyone.results.protocols names"
        )
    return network


def _without_dtype_checks(module: fx.GraphModule) -> fx.GraphModule:
    """The program without its checks that tensors have the traced dtype, because the proof runs it in float64 too."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()
    return module


@dataclass(frozen=True)
class Runner:
    """A network (or callable), the example it runs on, and the seed that is set before each run.

    `after` is applied to the outputs before they are compared.
    """

    call: Callable[..., Any]
    example: Any
    seed: int
    after: Callable[[Any], Any] | None = None

    def __call__(self) -> Any:
        """Run on copies of the inputs, because a network may change its inputs in place."""
        return self.on(map_tensors(self.example, Tensor.detach))

    def on(self, example: Any) -> Any:
        """Run on copies of another example's tensors; gradients flow through the copies."""
        args, kwargs = arguments(map_tensors(example, Tensor.clone))
        torch.manual_seed(self.seed)
        outputs = plain_call(self.call)(*args, **kwargs)
        return self.after(outputs) if self.after else outputs

    def in_dtype(self, call: Callable[..., Any], dtype: torch.dtype) -> Runner:
        """The same example in another dtype, for `call`."""
        return Runner(call, cast(self.example, dtype), self.seed, self.after)


@dataclass
class Observation:
    """What one run returned and did.

    `error`: the exception that it raised, in one line. `no_gradients`: why there are no gradients (empty if none were
    asked for). `random`: an operator ran that may draw random numbers. `narrowed`: a float64 value was cast to a
    shorter type.
    """

    outputs: Named = field(default_factory=list)
    gradients: Grads = field(default_factory=dict)
    error: str = ""
    no_gradients: str = ""
    random: bool = False
    narrowed: bool = False

    @property
    def short_of_float64(self) -> str:
        """Why a run with float64 weights and inputs is not a float64 reference; empty if it is one."""
        if self.error:
            return self.error
        if self.narrowed:
            return "it casts to a shorter type inside"
        short = [t.dtype for _, t in self.outputs if t.is_floating_point() and t.dtype != torch.float64]
        return f"its output is {short[0]}" if short else ""

    def record_operator(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record whether an operator may be random, or casts from float64 to a shorter type."""
        if torch.Tag.nondeterministic_seeded in operator.tags:
            self.random = True
        if operator is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            to = kwargs.get("dtype")
            self.narrowed |= to is not None and to.is_floating_point and to != torch.float64


def observe(runner: Runner, gradients: bool = False) -> Observation:
    """Run the network once.

    With `gradients`: also differentiate Σ c·y, over all outputs y and with random signs c, with respect to the floating
    inputs and the parameters.
    """
    if gradients:
        with_gradients = _with_gradients(runner)
        if not with_gradients.error:
            return with_gradients
    plain = _plain(runner)
    if gradients and not plain.error:
        plain.no_gradients = with_gradients.error
    return plain


def plain_call(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network as a callable that prints nothing if it fails, because the checks expect failures.

    A traced network prints the generated code around an error to stderr before it raises. The call of `nn.Module`,
    which it wraps, does not.
    """
    if isinstance(network, fx.GraphModule):
        return lambda *args, **kwargs: nn.Module.__call__(network, *args, **kwargs)
    return network


def in_one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def _plain(runner: Runner) -> Observation:
    observation = Observation()
    try:
        with torch.no_grad(), observe_operators(before=observation.record_operator):
            observation.outputs = leaves(runner())
    except Exception as error:
        observation.error = in_one_line(error)
    return observation


def _with_gradients(runner: Runner) -> Observation:
    observation = Observation()
    example = map_tensors(runner.example, _differentiable)
    sources: Grads = {f"{INPUT} {p}".strip(): t for p, t in leaves(example) if t.requires_grad}
    parameters: list[Tensor] = []
    if isinstance(runner.call, nn.Module):
        parameters = [p for p in runner.call.parameters() if is_real_or_complex(p)]
        sources |= {n: p for n, p in runner.call.named_parameters() if is_real_or_complex(p)}
    flags = [(p, p.requires_grad) for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad(), observe_operators(before=observation.record_operator):
            outputs = leaves(runner.on(example))
        observation.outputs = [(path, t.detach()) for path, t in outputs]
        _differentiate([t for _, t in outputs if t.requires_grad], sources, runner.seed, observation)
    except Exception as error:
        observation.error = in_one_line(error)
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
    return observation


def _differentiate(outputs: list[Tensor], sources: Grads, seed: int, observation: Observation) -> None:
    if not outputs or not sources:
        observation.no_gradients = "no output depends differentiably on an input or a parameter"
        return
    generator = torch.Generator().manual_seed(seed)
    try:
        signs = [_signs(t, generator) for t in outputs]
        grads = torch.autograd.grad(outputs, list(sources.values()), signs, allow_unused=True)
    except Exception as error:
        observation.no_gradients = in_one_line(error)
        return
    observation.gradients = {n: g for n, g in zip(sources, grads, strict=True) if g is not None}


def is_real_or_complex(t: Tensor) -> bool:
    """Whether a tensor has rounding errors and gradients; integers and masks have neither."""
    return t.is_floating_point() or t.is_complex()


def _differentiable(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(is_real_or_complex(t))


def _signs(t: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, t.shape, generator=generator) * 2 - 1
    return signs.to(device=t.device, dtype=t.dtype)
