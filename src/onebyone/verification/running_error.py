"""Bound the distance of a network's computed output from exact arithmetic, by propagating errors through its graph."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from onebyone.functional_graphs import functional_graph
from onebyone.laws.bounds import unit_roundoff
from onebyone.records import first_line
from onebyone.verification.error_rules import RULES, Approx, NoRuleError, value
from onebyone.verification.pytree import cast_tensor


class RunningError:
    """A network, exported once for one input shape, with running error bounds on its outputs.

    `RunningError(network, example)(x)` returns `[(output, bound), …]`, in the order of the outputs, with
    |output − exact| ≤ bound elementwise. `exact` is the result of exact arithmetic on the same x and weights. The bound
    holds for every order of summation (see `error_rules`). x is assumed to be exact. Its dtype, float32 or float64, is
    the one whose rounding is bounded, whichever dtype the network was exported in.

    Raises
    ------
    NoRuleError
        if an operator has no rule, the network cannot be exported, or a bound overflows.

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
                # torch warns of its own deprecated features when it copies a program
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                program = network
                if isinstance(program, nn.Module):
                    program = torch.export.export(program, (example,), strict=False)
                graph = functional_graph(program.graph)
                if graph is None or any(_is_composite(node) for node in graph.nodes if not _has_rule(node)):
                    # functional operators without decomposition: the graph then has no in-place changes
                    program = program.run_decompositions({})
                    graph = program.graph
                self.program, self.graph = program, graph
        except Exception as reason:
            cause = f"{type(reason).__name__}: {first_line(reason)}"
            raise NoRuleError(f"the network cannot be exported ({cause})") from reason

    def __call__(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        interpreter = _ErrorInterpreter(self.program.graph_module, self.graph, x.dtype)
        with torch.no_grad():
            outputs = interpreter.run(*self._inputs(x))
        bounds = []
        for output in outputs:  # an exported graph returns a tuple, also of one output
            if output is _WITHOUT_BOUND:
                raise NoRuleError("an output that has no bound, such as the positions of maxima")
            if not isinstance(output, Approx):
                raise NoRuleError("an output that does not depend on the input")
            if not bool(torch.isfinite(output.error).all()):
                raise NoRuleError("a bound that overflows: errors grow too much along the network")
            bounds.append((output.value, output.error))
        return bounds

    def _inputs(self, x: Tensor) -> list[Any]:
        """The graph's arguments, with parameters and constants in the dtype of x."""
        program = self.program
        inputs: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                inputs.append(Approx(x, torch.zeros_like(x)))
                continue
            name = str(spec.target)
            tensors = program.state_dict if name in program.state_dict else program.constants
            if name not in tensors or not isinstance(tensors[name], Tensor):
                raise NoRuleError(f"an input of kind {spec.kind.name}")
            inputs.append(cast_tensor(tensors[name].detach(), x.dtype))
        return inputs


#: Stands for a second result that has no bound, such as the positions of maxima.
_WITHOUT_BOUND = object()


class _ErrorInterpreter(fx.Interpreter):
    """Runs a graph. Values that depend on the input carry error bounds; other values are computed as usual."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph, dtype: torch.dtype) -> None:
        super().__init__(module, graph=graph)
        self.dtype, self.u = dtype, unit_roundoff(str(dtype))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is operator.getitem:
            part = args[0][args[1]]
            return _WITHOUT_BOUND if part is None else part
        packet = getattr(target, "overloadpacket", None)
        if packet is torch.ops.aten._assert_tensor_metadata:
            return None  # it checks the dtype of the export, and this run may have another dtype
        operands = _flat([*args, *kwargs.values()])
        if any(a is _WITHOUT_BOUND for a in operands):
            raise NoRuleError(f"{target} of a result that has no bound, such as the positions of maxima")
        if not any(isinstance(a, Approx) for a in operands):
            return target(*args, **kwargs)
        error_rule = RULES.get(packet)
        if error_rule is None:
            if packet in _OF_SIZES:
                return target(*value(args), **kwargs)
            raise NoRuleError(str(target))
        result = error_rule(self.u, target, args, kwargs)
        for part in _flat([result]):
            if isinstance(part, Approx) and torch.finfo(part.value.dtype).eps > torch.finfo(self.dtype).eps:
                raise NoRuleError(f"{target} in {part.value.dtype}")  # it rounds more than the rule knows
        return result


# operators that read only the sizes and the type of a tensor
_OF_SIZES = {
    getattr(torch.ops.aten, name)
    for name in ("sym_size", "zeros_like", "ones_like", "new_zeros", "new_ones")
    if hasattr(torch.ops.aten, name)
}


def _has_rule(node: fx.Node) -> bool:
    """Whether the interpreter can run the node as it is: it writes to none of its operands, and it has a rule."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    return node.target.overloadpacket in RULES or node.target.overloadpacket in _OF_SIZES


def _is_composite(node: fx.Node) -> bool:
    """Whether decomposition may replace the node by others, which may have rules."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _flat(items: Any) -> list[Any]:
    flat: list[Any] = []
    for item in items:
        flat += _flat(item) if isinstance(item, list | tuple) else [item]
    return flat


def error_bound(network: nn.Module | ExportedProgram, x: Tensor) -> tuple[list[Tensor], str]:
    """The bounds of each output on `x`; an empty list and the reason if there are none."""
    try:
        return [bound for _, bound in RunningError(network, x)(x)], ""
    except NoRuleError as reason:
        return [], first_line(reason)
