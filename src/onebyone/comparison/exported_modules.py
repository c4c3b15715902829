"""Restores the linear layers and convolutions of an exported program as modules."""

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
_DEFAULT_ARGUMENTS = (None, 1, 0, 1, 1)  # bias, stride, padding, dilation, groups


def with_modules(program: ExportedProgram) -> fx.GraphModule:
    """The program as a module in which linear layers and convolutions are `nn.Linear` and `nn.Conv*d` modules.

    They hold the program's tensors and are named after them: `fc.weight` gives `fc`. A number is appended if that
    name is taken or empty.

    Raises
    ------
    BadInput
        if torch cannot convert the program to a module.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    >>> module = with_modules(torch.export.export(net, (torch.zeros(1, 3, 3, 3),)))
    >>> sorted(type(m).__name__ for m in module.modules() if list(m.parameters(recurse=False)))
    ['Conv2d', 'Linear']
    """
    try:
        module = program.module(check_guards=False)
    except Exception as error:
        raise BadInput(f"model: the exported program cannot be run as a module: {error}") from error
    module._forward_pre_hooks.clear()  # they fix the batch size of the example, which most graphs do not need
    graph, modules = module.graph, dict(module.named_modules())
    for number, node in enumerate(list(graph.nodes)):
        layer = _layer(module, node)
        if layer is None:
            continue
        path = _source(node.args[1]).rpartition(".")[0]
        is_taken = _is_layer(modules.get(path)) or not path
        name = f"{path or 'layer'}.{number}".replace("..", ".") if is_taken else path
        module.add_submodule(name, layer)
        modules[name] = layer
        with graph.inserting_before(node):
            call = graph.call_module(name, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _is_layer(module: nn.Module | None) -> bool:
    """Whether a layer was already restored under this name, because its weight is used twice."""
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node computes, holding the tensors that it reads; None for any other node."""
    is_linear = node.target is torch.ops.aten.linear.default
    if not is_linear and node.target not in _CONVOLUTIONS:
        return None
    weight, bias = (_tensor(module, node.args[i] if len(node.args) > i else None) for i in (1, 2))
    no_bias = len(node.args) < 3 or node.args[2] is None
    if weight is None or no_bias != (bias is None) or node.kwargs:
        return None  # the weight or the bias is computed from inputs
    layer: Any
    if is_linear:
        layer = nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
    else:
        arguments = [*node.args[2:], *_DEFAULT_ARGUMENTS[len(node.args) - 2 :]]
        stride, padding, dilation = (_per_axis(v, weight.dim() - 2) for v in arguments[1:4])
        groups = cast(int, arguments[4])
        sizes = (weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]))
        cls: Any = _CONVOLUTIONS[cast(Any, node.target)]
        layer = cls(*sizes, stride, padding, dilation, groups, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return cast(nn.Module, layer)


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor of a `get_attr` node, or the result of operators on such tensors only, such as a view of a weight."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_function" and node.all_input_nodes:
        inputs = {n: _tensor(module, n) for n in node.all_input_nodes}
        if any(value is None for value in inputs.values()):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
        with torch.no_grad():
            result = cast(Any, node.target)(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
    if node.op != "get_attr":
        return None
    attribute: Any = module
    for name in str(node.target).split("."):
        attribute = getattr(attribute, name)
    return attribute if isinstance(attribute, Tensor) else None


def _source(node: Any) -> str:
    """The name of the tensor that a value is computed from; of several, the first."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target)
