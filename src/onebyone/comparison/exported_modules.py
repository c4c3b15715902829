"""An exported program as modules again, as far as its linear layers and convolutions go."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from onebyone.errors import BadInput

_CONVOLUTIONS = {
    torch.ops.aten.conv1d.default: nn.Conv1d,
    torch.ops.aten.conv2d.default: nn.Conv2d,
    torch.ops.aten.conv3d.default: nn.Conv3d,
}
_DEFAULTS = (None, 1, 0, 1, 1)  # bias, stride, padding, dilation, groups


def with_modules(program: ExportedProgram) -> fx.GraphModule:
    """The program as a module whose linear layers and convolutions are `nn.Linear` and `nn.Conv*d` again.

    They hold the program's own tensors, and are named after them (`fc.weight` makes `fc`; what does not end
    so, or is taken, gets a number).

    Raises
    ------
    BadInput
        where torch cannot make a module of it.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    >>> again = with_modules(torch.export.export(net, (torch.zeros(1, 3, 3, 3),)))
    >>> sorted(type(m).__name__ for m in again.modules() if list(m.parameters(recurse=False)))
    ['Conv2d', 'Linear']
    """
    try:
        module = program.module(check_guards=False)
    except Exception as error:
        raise BadInput(f"model: the exported program cannot be run as a module: {error}") from error
    module._forward_pre_hooks.clear()  # they hold inputs to the example's batch, which most graphs need not
    graph, taken = module.graph, dict(module.named_modules())
    for number, node in enumerate(list(graph.nodes)):
        layer = _layer(module, node)
        if layer is None:
            continue
        path = _source(node.args[1]).rpartition(".")[0]
        held = taken.get(path)
        name = f"{path or 'layer'}.{number}".replace("..", ".") if _is_used(held) or not path else path
        module.add_submodule(name, layer)
        taken[name] = layer
        with graph.inserting_before(node):
            call = graph.call_module(name, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _is_used(module: nn.Module | None) -> bool:
    """Whether a layer stands there already (a weight used twice)."""
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node computes, on the tensors it reads; None for any other node."""
    is_linear = node.target is torch.ops.aten.linear.default
    if not is_linear and node.target not in _CONVOLUTIONS:
        return None
    weight, bias = (_tensor(module, node.args[i] if len(node.args) > i else None) for i in (1, 2))
    no_bias = len(node.args) < 3 or node.args[2] is None
    if weight is None or no_bias != (bias is None) or node.kwargs:
        return None  # its weight, or its bias, is computed
    layer: Any
    if is_linear:
        layer = nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
    else:
        given = [*node.args[2:], *_DEFAULTS[len(node.args) - 2 :]]
        stride, padding, dilation = (_per_axis(v, weight.dim() - 2) for v in given[1:4])
        groups = cast(int, given[4])
        sizes = (weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]))
        cls: Any = _CONVOLUTIONS[cast(Any, node.target)]
        layer = cls(*sizes, stride, padding, dilation, groups, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return cast(nn.Module, layer)


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * dims if len(given) == 1 else given


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor behind a `get_attr` node, or what operators make of such tensors alone: a view of a weight, say."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_function" and node.all_input_nodes:
        made = {n: _tensor(module, n) for n in node.all_input_nodes}
        if any(value is None for value in made.values()):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), made.__getitem__)
        with torch.no_grad():
            result = cast(Any, node.target)(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
    if node.op != "get_attr":
        return None
    held: Any = module
    for step in str(node.target).split("."):
        held = getattr(held, step)
    return held if isinstance(held, Tensor) else None


def _source(node: Any) -> str:
    """The name of the tensor that a value is made of; of several, the first."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target)
