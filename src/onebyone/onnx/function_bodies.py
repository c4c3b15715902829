"""Shapes and types in the bodies of functions, from all calls together.

Inference engines follow a call, but do not say what they find in the body, which may differ from call to call. So the
calls of a copy are replaced by the bodies (inlined), shapes are inferred there, and each value of a body gets what
holds at every place where its node is found again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass

from onebyone.errors import BadInput
from onebyone.onnx.constant_values import INLINE_FIRST, set_unknown_rank
from onebyone.onnx.lifted_constants import lift_constants
from onebyone.records import root_cause

_logger = logging.getLogger(__name__)
#: Key in the `meta` of a node of the inlined copy: the node of the model that it was copied from.
_SOURCE = "onebyone source"
#: Key in the `meta` of a graph that is the body of a function.
_BODY = "onebyone function"
#: The most nodes of an inlined copy: functions that call each other can stand for any number of nodes.
MOST_NODES = 2**17


def is_body(graph: ir.Graph) -> bool:
    """Whether a graph is the body of a function, which cannot hold initializers; see `mark_bodies`."""
    return bool(graph.meta.get(_BODY))


def mark_bodies(model: ir.Model) -> None:
    """Mark the graphs of a model's functions, for `is_body`."""
    for function in model.functions.values():
        function.graph.meta[_BODY] = True


def infer_through_calls(model: ir.Model, infer: Callable[[ir.Model], None]) -> None:
    """Fill in the shapes and types of a model with functions, those of the bodies too.

    Args:
        model: the model.
        infer: fills in the shapes and types of a model without calls.

    Raises:
        BadInput: functions call themselves, or stand for too many nodes: no engine could follow them.
    """
    require_bounded(model)
    try:
        copy = _with_sources(model)
    except BadInput as error:  # other operator sets
        _logger.debug("shapes are not followed into functions: %s", error)
        infer(model)
        return
    infer(copy)
    places: dict[ir.Value, list[ir.Value]] = {}
    for node in copy.graph.all_nodes():
        source = node.meta.get(_SOURCE)
        if source is not None:
            for value, place in zip(
                (*source.inputs, *source.outputs), (*node.inputs, *node.outputs), strict=True
            ):
                if value is not None and place is not None:
                    places.setdefault(value, []).append(place)
    for value, place in zip(model.graph.outputs, copy.graph.outputs, strict=True):
        places.setdefault(value, []).append(place)
    for value, found in places.items():
        is_given = value.const_value is not None or (value.is_graph_input() and value.graph is model.graph)
        is_stated = value.is_graph_output() and value.graph is model.graph and value.shape is not None
        if not is_given and not is_stated:
            _join(value, list(dict.fromkeys(found)))


def _join(value: ir.Value, places: list[ir.Value]) -> None:
    """Give a value the type, rank and sizes that all its places have in common."""
    types = {place.dtype for place in places}
    dtype = types.pop() if len(types) == 1 else None
    if value.dtype is None and dtype is not None:
        value.dtype = dtype
    shapes = [place.shape for place in places]
    known = [shape for shape in shapes if shape is not None]
    ranks = sorted({len(shape) for shape in known})
    if len(ranks) > 1:
        calls = f"calls of its function give it {', '.join(map(str, ranks[:-1]))} and {ranks[-1]} axes"
        set_unknown_rank(value, f"{calls}; {INLINE_FIRST}")
    if len(known) != len(shapes) or len(ranks) != 1:
        value.shape = None
        return
    sizes = [set(axis) for axis in zip(*known, strict=True)]
    value.shape = ir.Shape([axis.pop() if len(axis) == 1 else ir.SymbolicDim(None) for axis in sizes])


def inlined(model: ir.Model) -> ir.Model:
    """A copy in which the body of each function stands in the place of every call.

    Raises:
        BadInput: functions call themselves, stand for too many nodes, or have other operator sets than the model.
    """
    require_bounded(model)
    copy = model.clone()
    for node in (node for function in copy.functions.values() for node in function.all_nodes()):
        for output in node.outputs:
            # shared with the original, and a value that is renamed renames its tensor
            output.const_value = None
    try:
        InlinePass()(copy)
    except Exception as error:
        raise BadInput(f"model: its functions cannot be inlined: {root_cause(error)}") from error
    copy.functions.clear()  # those that nothing calls
    NameFixPass()(copy)
    return copy


def require_bounded(model: ir.Model) -> None:
    """Raise BadInput if functions call themselves, or stand for more than `MOST_NODES` nodes."""
    size = _inlined_size(model)
    if size is None:
        raise BadInput("model: has functions that call themselves")
    if size > MOST_NODES:
        raise BadInput(f"model: its functions stand for {size:,} nodes; expected at most {MOST_NODES:,}")


def _with_sources(model: ir.Model) -> ir.Model:
    """The inlined copy, with constants as initializers; each node knows the one that it was copied from."""
    nodes = list(_nodes(model))
    for node in nodes:
        node.meta[_SOURCE] = node
    try:
        copy = inlined(model)
    finally:
        for node in nodes:
            del node.meta[_SOURCE]
    lift_constants(copy)
    return copy


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _inlined_size(model: ir.Model) -> int | None:
    """How many nodes the main graph has once all calls are inlined; None where functions call themselves."""
    calls = {
        key: [node.op_identifier() for node in function.all_nodes()]
        for key, function in model.functions.items()
    }
    sizes: dict[ir.OperatorIdentifier, int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = sum(sizes.get(called, 1) for called in calls[key]) if key in calls else 1
    except CycleError:
        return None
    return sum(sizes.get(node.op_identifier(), 1) for node in model.graph.all_nodes())
