"""How far a network's computed output may be from exact arithmetic: its exported graph, walked with error bounds."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from onebyone.laws.bounds import unit_roundoff
from onebyone.records import first_line
from onebyone.verification.error_rules import RULES, Approx, NoRuleError, value
from onebyone.verification.pytree import cast_tensor


class RunningError:
    """A network exported once for one input shape, and the bounds it gives.

    `RunningError(network, example)(x)` answers `[(output, bound), …]`, in the order of the outputs: |output
    − exact| ≤ bound elementwise, in exact arithmetic on the same x and weights, for this and for every
    other order of summation (see `error_rules`). x is taken as exact. Its dtype, float32 or float64, is the
    one that is bounded, whichever the network was exported in.

    Raises
    ------
    NoRuleError
        where an operator has no rule, the network cannot be exported, or a bound overflows.

    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    >>> ((y, bound),) = RunningError(net, torch.ones(1, 3))(torch.ones(1, 3))
    >>> exact = net.double()(torch.ones(1, 3).double())
    >>> bool(((y - exact).abs() <= bound).all() and bound.max() < 1e-5)
    True
    """

    def __init__(self, network: nn.Module | ExportedProgram, example: Tensor) -> None:
        if example.dtype not in (torch.float32, torch.float64):
            raise NoRuleError(f"sums in {example.dtype}")
        try:
            with warnings.catch_warnings():
                # torch's own deprecations, met when it copies a program
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                program = network
                if isinstance(program, nn.Module):
                    program = torch.export.export(program, (example,), strict=False)
                # functional operators, kept whole: no in-place changes to follow
                self.program = program.run_decompositions({})
        except Exception as reason:
            said = f"{type(reason).__name__}: {first_line(reason)}"
            raise NoRuleError(f"the network cannot be exported ({said})") from reason

    def __call__(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        walker = _Walker(self.program, unit_roundoff(str(x.dtype)))
        with torch.no_grad():
            outputs = walker.run(*self._inputs(x))
        found = []
        for answer in outputs if isinstance(outputs, list | tuple) else [outputs]:
            if not isinstance(answer, Approx):
                raise NoRuleError("an output that does not depend on the input")
            if not bool(torch.isfinite(answer.error).all()):
                raise NoRuleError("a bound that overflows: errors grow too much along the network")
            found.append((answer.value, answer.error))
        return found

    def _inputs(self, x: Tensor) -> list[Any]:
        """The graph's arguments; parameters and constants in the dtype of x."""
        program = self.program
        given: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                given.append(Approx(x, torch.zeros_like(x)))
                continue
            name = str(spec.target)
            held = program.state_dict if name in program.state_dict else program.constants
            if name not in held or not isinstance(held[name], Tensor):
                raise NoRuleError(f"an input of kind {spec.kind.name}")
            given.append(cast_tensor(held[name].detach(), x.dtype))
        return given


class _Walker(fx.Interpreter):
    """Runs constants as they are and values that depend on the input by their rules."""

    def __init__(self, program: ExportedProgram, u: float) -> None:
        super().__init__(program.graph_module)
        self.u = u

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is operator.getitem:
            return args[0][args[1]]
        if not any(isinstance(a, Approx) for a in _flat([*args, *kwargs.values()])):
            return target(*args, **kwargs)
        packet = getattr(target, "overloadpacket", None)
        found = RULES.get(packet)
        if found is None:
            if packet is torch.ops.aten._assert_tensor_metadata:
                return None  # compares with the dtype of the export; the walk may run in another
            if packet in _SIDE_EFFECT_FREE:
                return target(*value(args), **kwargs)
            raise NoRuleError(str(target))
        return found(self.u, target, args, kwargs)


# what looks at sizes and types only
_SIDE_EFFECT_FREE = {
    getattr(torch.ops.aten, name)
    for name in ("sym_size", "zeros_like", "ones_like", "new_zeros", "new_ones")
    if hasattr(torch.ops.aten, name)
}


def _flat(items: Any) -> list[Any]:
    found: list[Any] = []
    for item in items:
        found += _flat(item) if isinstance(item, list | tuple) else [item]
    return found


def error_bound(network: nn.Module | ExportedProgram, x: Tensor) -> tuple[list[Tensor], str]:
    """The bounds for each output on `x`, or none and the reason."""
    try:
        return [bound for _, bound in RunningError(network, x)(x)], ""
    except NoRuleError as reason:
        return [], first_line(reason)
