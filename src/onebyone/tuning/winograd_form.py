"""The form "winograd" of a whole network: its 3×3 convolutions as 36 linear layers each, maps channels last throughout.

The exported graph is rewritten, so that what belongs to a convolution goes into its kernel: a batch norm into the
weights, a ReLU and a 2×2 max pool behind it into the way out of its tiles. Whether a layer gains depends on its shape
(small maps with many channels are bound by reading the weights, of which there are four times as many): the assignment
names those that do; without one, every layer that can be is computed so.
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
from onebyone.tuning.network_forms import Formed, WholeForm, program_of, refused, register_form
from onebyone.tuning.target import TuningTarget

aten = torch.ops.aten
_RELU = {aten.relu.default, aten.relu_.default}
_POOL = {aten.max_pool2d.default}


@dataclass(frozen=True)
class _Convolution:
    """One that can be computed so: its node and those of what goes into its kernel; `source` names its constants."""

    nodes: tuple[fx.Node, ...]
    source: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None
    padding: list[int]
    relu: bool
    pool: bool


def _build(subject: TuningTarget, assignment: Assignment) -> Formed:
    chosen = {path for path, form in assignment.items() if form == WINOGRAD} if assignment else None
    program = program_of(subject)
    kernel = _rewritten(program.module(), chosen, torch.ops.onebyone.winograd_conv2d.default, packed)
    # the same graph with the same algorithm, but in any type: that the network is equivalent is proven on this one
    proof = _rewritten(program.module(), chosen, reference_conv2d, Tensor.detach)
    return Formed(kernel, proof, fixed=True)


def _rewritten(
    network: Any, chosen: set[str] | None, operation: Any, weights: Callable[[Tensor], Tensor]
) -> nn.Module:
    graph = network.graph
    found = [c for node in graph.nodes if (c := _convolution(network, node, chosen)) is not None]
    if not found:
        raise refused("it has no 3×3 convolution at stride 1 over whole multiples of 16 channels")
    held: dict[tuple[str, ...], tuple[str, str | None]] = {}
    for c in found:
        if c.source not in held:  # a module that is called twice has its weights once
            held[c.source] = _hold(network, len(held), weights(c.weight), c.bias)
        _replace(graph, c, operation, *held[c.source])
    graph.eliminate_dead_code()
    _lay_channels_last(network)
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
    image = len(node.meta["val"].shape) == 4
    if not image or why_not(weight, a["stride"], a["padding"], a["dilation"], a["groups"]):
        return None
    weight, bias, norm = fold_batch_norm(network, node, weight, bias)
    nodes = [node] if norm is None else [node, norm]
    source = tuple(str(a.target) for n in nodes for a in n.args if reads_own_tensor(a))
    relu = _follows(nodes, _RELU)
    pool = _follows(nodes, _POOL, lambda n: pool_arguments(n) == POOL_2X2)
    return _Convolution(tuple(nodes), source, weight, bias, a["padding"], relu, pool)


def _follows(nodes: list[Any], targets: set[Any], fits: Callable[[Any], bool] = lambda _: True) -> bool:
    """Whether one of these operators alone reads the last node; it is added then."""
    after = only_user(nodes[-1])
    if after is None or after.target not in targets or not fits(after):
        return False
    nodes.append(after)
    return True


def _hold(network: nn.Module, number: int, weight: Tensor, bias: Tensor | None) -> tuple[str, str | None]:
    """The weights and the bias as buffers of the network; their names."""
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
        given = (first.args[0], graph.get_attr(weight), offset, c.weight.shape[0], c.padding, c.relu, c.pool)
        made = graph.call_function(operation, given)
    made.meta = dict(c.nodes[-1].meta)
    c.nodes[-1].replace_all_uses_with(made)
    for node in reversed(c.nodes):  # by hand: in-place operators are no dead code to torch.fx
        graph.erase_node(node)


def _lay_channels_last(network: Any) -> None:
    """Images channels last from the first operator on, and the other convolutions' weights too, in copies."""
    graph = network.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim() == 4:
            with graph.inserting_after(node):
                made = graph.call_function(
                    aten.contiguous.default, (node,), {"memory_format": torch.channels_last}
                )
            node.replace_all_uses_with(made, lambda user, made=made: user is not made)
    (output,) = (n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):  # what comes out lies as it does elsewhere
        output.args = fx.map_arg(output.args, lambda n: _contiguous(graph, n))
    weights = {
        n.args[1]: None
        for n in graph.nodes
        if n.target is aten.conv2d.default and reads_own_tensor(n.args[1])
    }
    for number, node in enumerate(weights):
        own = operator.attrgetter(node.target)(network).detach()
        network.register_buffer(
            f"_channels_last_{number}", own.clone(memory_format=torch.channels_last), persistent=False
        )
        node.target = f"_channels_last_{number}"


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    is_image = isinstance(value, Tensor) and value.dim() == 4
    return graph.call_function(aten.contiguous.default, (node,)) if is_image else node


WINOGRAD_FORM = register_form(WholeForm(WINOGRAD, _build))
__all__ = ["WINOGRAD", "WINOGRAD_FORM"]
