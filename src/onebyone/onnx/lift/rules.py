"""The table of decoders: which neutral operator each operator of ONNX is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from onebyone.lifting.values import Cannot
from onebyone.onnx.lift.decoders import elementwise, normalisation, product, reduce, shape, sliding
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter

_TABLES: tuple[Mapping[str, Decoder], ...] = (
    elementwise.DECODERS, normalisation.DECODERS, product.DECODERS, reduce.DECODERS, shape.DECODERS,
    sliding.DECODERS,
)  # fmt: skip
_REFUSED: tuple[Mapping[str, Iterable[str]], ...] = (sliding.REFUSED, product.REFUSED)


def _refused(reason: str) -> Decoder:
    def decoder(_lifter: OnnxGraphLifter, _node: ir.Node) -> Any:
        raise Cannot(reason)

    return decoder


DECODERS: dict[str, Decoder] = {name: decoder for table in _TABLES for name, decoder in table.items()}
DECODERS |= {
    name: _refused(reason) for table in _REFUSED for reason, names in table.items() for name in names
}


def decoder_for(node: ir.Node) -> Decoder | None:
    """The decoder of a node's operator, or None; operators of other domains than ONNX's own have none."""
    return DECODERS.get(node.op_type) if node.domain == "" else None
