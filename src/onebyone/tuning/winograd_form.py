"""The network form "winograd": 3×3 convolutions as 36 linear layers each, with channels-last maps throughout.

The exported graph is rewritten so that neighbouring operators become part of a convolution's kernel: a batch norm is
folded into the weights, and a following ReLU and 2×2 max pool are applied when output tiles are written. Whether a
layer becomes faster depends on its shape: small maps with many channels are limited by reading the weights, which are
four times as large. The assignment names the layers to convert; without one, every layer that can be converted is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from onebyone.native.graph_queries import (
    POOL_2X2,
    convolution_arguments,
    fold_batch_norm,
    only_user,
    own_tensor,
    pool_arguments,
    reads_own_tensor,
)
from onebyone.native.kernels.winograd import packed, reference_conv2d, why_not
from onebyone.tuning.layer_forms import WINOGRAD, Assignment
from onebyone.tuning.network_forms import FormedNetwork, NetworkForm, program_of, refused, register_form
from onebyone.tuning.target import TuningTarget

aten = torch.ops.aten
_RELU = {aten.relu.default, aten.relu_.default}
_POOL = {aten.max_pool2d.default}


@dataclass(frozen=True)
class _Convolution:
    """A convolution that can be converted.

    `nodes` are its node and those of the operators that become part of its kernel; `source` names its constants.
    """

    nodes: tuple[fx.Node, ...]
    source: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None
    padding: list[int]
    relu: bool
    pool: bool


def _build(target: TuningTarget, assignment: Assignment) -> FormedNetwork:
    chosen = {path for path, form in assignment.items() if form == WINOGRAD} if assignment else None
    program = program_of(target)
    kernel = _rewritten(program.module(), chosen, torch.ops.onebyone.winograd_conv2d.default, packed)
    # equivalence is proven on the same graph with the same algorithm in PyTorch operators, which run in any dtype
    proof = _rewritten(program.module(), chosen, reference_conv2d, Tensor.detach)
    return FormedNetwork(kernel, proof, fixed_shapes=True)


def _rewritten(
    network: Any, chosen: set[str] | None, operation: Any, weights: Callable[[Tensor], Tensor]
) -> nn.Module:
    graph = network.graph
    convolutions = [c for node in graph.nodes if (c := _convolution(network, node, chosen)) is not None]
    if not convolutions:
        raise refused("it has no 3×3 convolution at stride 1 whose channels are multiples of 16")
    buffers: dict[tuple[str, ...], tuple[str, str | None]] = {}
    for c in convolutions:
        if c.source not in buffers:  # a module that is called twice needs its weights once
            buffers[c.source] = _register(network, len(buffers), weights(c.weight), c.bias)
        _replace(graph, c, operation, *buffers[c.source])
    graph.eliminate_dead_code()
    _use_channels_last(network)
    graph.lint()
    network.recompile()
    network.delete_all_unused_submodules()
    for module in network.modules():
        module.training = False
    return cast(nn.Module, network)


def _convolution(network: nn.Module, node: Any, chosen: set[str] | None) -> _Convolution | None:
    if node.target is not aten.conv2d.default:
        return None
    a = convolution_arguments(node)
    weight, bias = own_tensor(network, a["weight"]), own_tensor(network, a["bias"])
    if weight is None or (bias is None and a["bias"] is not None):
        return None
    if chosen is not None and str(a["weight"].target).rpartition(".")[0] not in chosen:
        return None
    is_batched = len(node.meta["val"].shape) == 4
    if not is_batched or why_not(weight, a["stride"], a["padding"], a["dilation"], a["groups"]):
        return None
    weight, bias, norm = fold_batch_norm(network, node, weight, bias)
    nodes = [node] if norm is None else [node, norm]
    source = tuple(str(a.target) for n in nodes for a in n.args if reads_own_tensor(a))
    relu = _absorb_next(nodes, _RELU)
    pool = _absorb_next(nodes, _POOL, lambda n: pool_arguments(n) == POOL_2X2)
    return _Convolution(tuple(nodes), source, weight, bias, a["padding"], relu, pool)


def _absorb_next(
    nodes: list[Any], targets: set[Any], accepts: Callable[[Any], bool] = lambda _: True
) -> bool:
    """Append the only user of the last node if it is one of these operators; return whether it is."""
    user = only_user(nodes[-1])
    if user is None or user.target not in targets or not accepts(user):
        return False
    nodes.append(user)
    return True


def _register(network: nn.Module, number: int, weight: Tensor, bias: Tensor | None) -> tuple[str, str | None]:
    """Register the weights and the bias as buffers of the network, and return their names."""
    names = f"_winograd_weight_{number}", f"_winograd_bias_{number}"
    network.register_buffer(names[0], weight, persistent=False)
    if bias is None:
        return names[0], None
    network.register_buffer(names[1], bias.float(), persistent=False)
    return names


def _replace(graph: fx.Graph, c: _Convolution, operation: Any, weight: str, bias: str | None) -> None:
    first: Any = c.nodes[0]
    with graph.inserting_before(first):
        offset = None if bias is None else graph.get_attr(bias)
        args = (first.args[0], graph.get_attr(weight), offset, c.weight.shape[0], c.padding, c.relu, c.pool)
        replacement = graph.call_function(operation, args)
    replacement.meta = dict(c.nodes[-1].meta)
    c.nodes[-1].replace_all_uses_with(replacement)
    # erased explicitly, because torch.fx does not treat in-place operators as dead code
    for node in reversed(c.nodes):
        graph.erase_node(node)


def _use_channels_last(network: Any) -> None:
    """Convert input images to channels-last, and copy the weights of the other convolutions in that format."""
    graph = network.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim() == 4:
            with graph.inserting_after(node):
                converted = graph.call_function(
                    aten.contiguous.default, (node,), {"memory_format": torch.channels_last}
                )
            node.replace_all_uses_with(converted, lambda user, converted=converted: user is not converted)
    (output,) = (n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):  # outputs are contiguous, as those of other forms
        output.args = fx.map_arg(output.args, lambda n: _contiguous(graph, n))
    weights = {
        n.args[1]: None
        for n in graph.nodes
        if n.target is aten.conv2d.default and reads_own_tensor(n.args[1])
    }
    for number, node in enumerate(weights):
        weight = operator.attrgetter(node.target)(network).detach()
        name = f"_channels_last_{number}"
        network.register_buffer(name, weight.clone(memory_format=torch.channels_last), persistent=False)
        node.target = name


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    is_image = isinstance(value, Tensor) and value.dim() == 4
    return graph.call_function(aten.contiguous.default, (node,)) if is_image else node


WINOGRAD_FORM = register_form(NetworkForm(WINOGRAD, _build))
__all__ = ["WINOGRAD", "WINOGRAD_FORM"]
