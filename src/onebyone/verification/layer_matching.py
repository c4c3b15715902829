"""Find the first layer in which a network of another structure (an exported one) differs from the original.

Names and structure need not be the same: an exporter merges layers, splits them, and stores axes in another order. So
the values themselves are matched. A layer of the original is *confirmed* if the other network computes its output
somewhere, within the rounding error that the layer has in its own dtype. A layer that is not confirmed is excused if
its last nodes, or everything that reads them, are confirmed as another layer: the exporter merged the two (a
convolution with its batch norm). The first layer that is neither is the one that differs.

Which nodes belong to a layer is known from the exporter's names, or from equal weights. Where a fault changed the
weight, and no name is left, it is the first layer with weights that the file does not contain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.results.traces import TracedValue
from onebyone.verification.calls import observe_modules
from onebyone.verification.network_run import Runner
from onebyone.verification.pytree import leaves, wide

#: Tensors of higher rank are matched in their own order of axes and with the channels last only.
_LARGEST_RANK = 4


@dataclass(frozen=True)
class LayerOutput:
    """What one call of a layer returned: its path, its first output in float64, and how far another form may differ.

    `weights` are the layer's own weights.
    """

    path: str
    value: Tensor
    limit: float
    weights: tuple[Tensor, ...] = ()


def first_differing_layer(outputs: Sequence[LayerOutput], trace: Sequence[TracedValue]) -> str | None:
    """The dotted path of the first layer whose output is not among the traced values.

    If all outputs are, the name of the first traced value that nothing confirms; None if there is none.
    """
    nodes = _nodes_by_layer(outputs, trace)
    found = [_is_computed(output, trace) for output in outputs]
    confirmed = {position for positions in found for position in positions}
    readers = _readers(trace)

    differing = [
        number
        for number, output in enumerate(outputs)
        if not found[number] and not _is_merged(nodes[output.path], readers, confirmed)
    ]
    named = next((number for number in differing if nodes[outputs[number].path]), len(outputs))
    before = max((number for number in range(named) if found[number]), default=-1)
    unnamed = [number for number in differing if before < number < named]
    lost = [number for number in unnamed if outputs[number].weights]
    if lost:  # its weight is not in the file, and no name says where it went
        return outputs[lost[0]].path
    if named < len(outputs):
        return outputs[named].path
    if unnamed:
        return outputs[unnamed[0]].path
    reached = _ancestors(trace, confirmed)
    return next((f"the value {v.name!r}" for n, v in enumerate(trace) if n not in reached), None)


def _is_merged(nodes: Sequence[int], readers: Sequence[set[int]], confirmed: set[int]) -> bool:
    """Whether what the nodes compute for others, or all that reads it, is confirmed as another layer's output."""
    last = [node for node in nodes if not readers[node] or readers[node].difference(nodes)]
    return bool(last) and all(
        node in confirmed or (bool(readers[node]) and readers[node].difference(nodes) <= confirmed)
        for node in last
    )


def _readers(trace: Sequence[TracedValue]) -> list[set[int]]:
    """For each traced value, the positions of the values that are computed from it."""
    readers: list[set[int]] = [set() for _ in trace]
    for position, traced in enumerate(trace):
        for operand in traced.operands:
            readers[operand].add(position)
    return readers


def record_outputs(
    narrow: Runner, exact: Runner, limit: Callable[[Tensor, Tensor], float]
) -> list[LayerOutput]:
    """The output of every call of every module of a network, inner ones first, in the order in which they return.

    `exact` runs a copy in float64; `limit(exact, rounded)` is how far another form of a value may be off.
    """
    assert isinstance(narrow.call, nn.Module)
    weights = {path: tuple(m.parameters(recurse=False)) for path, m in narrow.call.named_modules()}
    return [
        LayerOutput(path, y, limit(y, z), weights[path])
        for (path, y), (other, z) in zip(_recorded(exact), _recorded(narrow), strict=False)
        if path == other and y.shape == z.shape
    ]


def traced_outputs(trace: Sequence[TracedValue], limit: Callable[[Tensor], float]) -> list[LayerOutput]:
    """The same for an original that is traced: each of its values is a layer, under its name in the file."""
    values = [(traced, wide(traced.value)) for traced in trace if traced.value.numel()]
    return [LayerOutput(traced.name, y, limit(y), traced.weights) for traced, y in values]


def _recorded(runner: Runner) -> list[tuple[str, Tensor]]:
    recorded: list[tuple[str, Tensor]] = []

    def after(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [t for _, t in leaves(output) if t.is_floating_point()]
        if tensors and tensors[0].numel():
            recorded.append((path, wide(tensors[0]).clone()))

    assert isinstance(runner.call, nn.Module)
    modules = {path: module for path, module in runner.call.named_modules() if path}
    with torch.no_grad(), observe_modules(modules, after=after):
        runner()
    return recorded


def _is_computed(output: LayerOutput, trace: Sequence[TracedValue]) -> list[int]:
    """The positions of the traced values that equal a layer's output, in some order of its axes."""
    if float(output.value.max()) == float(output.value.min()):
        return []  # a constant equals too much
    return [
        position
        for position, traced in enumerate(trace)
        if traced.value.numel() == output.value.numel()
        and any(
            float((expected - wide(traced.value).reshape(-1)).abs().max()) <= output.limit
            for expected in _orders(output.value)
        )
    ]


def _orders(t: Tensor) -> Iterator[Tensor]:
    """The values of a tensor in one row, in each order in which its axes could be stored (axes of size one aside)."""
    squeezed = t.squeeze()
    axes = range(squeezed.dim())
    orders = permutations(axes) if squeezed.dim() <= _LARGEST_RANK else iter([tuple(axes)])
    for order in orders:
        yield squeezed.permute(order).reshape(-1)


def _ancestors(trace: Sequence[TracedValue], positions: set[int]) -> set[int]:
    """The positions of these values and of everything that they were computed from."""
    reached = set(positions)
    for position in range(len(trace) - 1, -1, -1):
        if position in reached:
            reached.update(trace[position].operands)
    return reached


def _nodes_by_layer(outputs: Sequence[LayerOutput], trace: Sequence[TracedValue]) -> Mapping[str, list[int]]:
    """The positions of the values that each layer computes: by the file's names, else by equal weights."""
    paths = {output.path for output in outputs}
    owners = {_fingerprint(w): output.path for output in reversed(outputs) for w in output.weights}
    nodes: dict[str, list[int]] = defaultdict(list)
    for position, traced in enumerate(trace):
        owned = (owners.get(_fingerprint(weight)) for weight in traced.weights)
        names = (traced.layer, traced.name, *owned)
        path = next((name for name in names if name in paths), None)
        if path is not None:
            nodes[path].append(position)
    return nodes


def _fingerprint(t: Tensor) -> tuple[int, float, float]:
    """The same for a weight in any shape and order of axes, and different for almost all others."""
    if not t.numel():
        return 0, 0.0, 0.0
    values = wide(t)
    return t.numel(), float(values.min()), float(values.max())
