"""The registry of decoders: which neutral operator each operator of PyTorch is. Users add their own here.

A decoder is a function of the graph lifter and the node. It gives a neutral operator (`onebyone.lifting.operators`),
which the shared rules lift, or the lifted value itself; or it raises `Cannot` with the reason.

>>> import torch
>>> from onebyone.pytorch.lift import rules
>>> rules.elementwise(torch.ops.aten.erf.default)  # acts on each element by itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from onebyone.lifting.values import Cannot
from onebyone.pytorch.lift.decoders import elementwise as elementwise_decoders
from onebyone.pytorch.lift.decoders import normalisation, product, reduce, shape, sliding
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter


def _overloads(operator: Any) -> list[Any]:
    if isinstance(operator, torch._ops.OpOverloadPacket):
        return [getattr(operator, name) for name in operator.overloads()]  # type: ignore[no-untyped-call]
    return [operator]


def _refused(reason: str) -> Decoder:
    def decoder(_lifter: GraphLifter, _node: fx.Node) -> Any:
        raise Cannot(reason)

    return decoder


def _built_in() -> dict[Any, Decoder]:
    tables: list[Mapping[Any, Decoder]] = [
        module.DECODERS for module in (shape, sliding, reduce, elementwise_decoders, normalisation, product)
    ]
    refused: list[Mapping[str, Iterable[Any]]] = [
        module.REFUSED for module in (shape, sliding, reduce, product)
    ]
    decoders = {
        overload: decoder
        for table in tables
        for operator, decoder in table.items()
        for overload in _overloads(operator)
    }
    for reasons in refused:
        for reason, operators in reasons.items():
            decoders |= {overload: _refused(reason) for o in operators for overload in _overloads(o)}
    return decoders


_DECODERS = _built_in()


def register(*operators: Any) -> Callable[[Decoder], Decoder]:
    """Register a decoder for operators: overloads (`torch.ops.aten.relu.default`) or packets, for all their overloads.

    A later registration replaces an earlier one.
    """

    def keep(decoder: Decoder) -> Decoder:
        _DECODERS.update({overload: decoder for o in operators for overload in _overloads(o)})
        return decoder

    return keep


def refusing(reason: str, *operators: Any) -> None:
    """Register a reason for which operators are always refused."""
    register(*operators)(_refused(reason))


def elementwise(*operators: Any) -> None:
    """Register operators that act on each element by itself, with no constants but numbers."""
    register(*operators)(elementwise_decoders.each_element)


def decoder_for(operator: Any) -> Decoder | None:
    """The decoder of an operator, or None. What PyTorch itself marks as element-wise needs none of its own."""
    if operator not in _DECODERS and torch.Tag.pointwise in getattr(operator, "tags", ()):
        return elementwise_decoders.each_element
    return _DECODERS.get(operator)
