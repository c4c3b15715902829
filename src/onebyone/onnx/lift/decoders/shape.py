"""Shape operators, joins, and elements selected by a constant index."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.lifting.grid import Integers
from onebyone.lifting.index import BATCH
from onebyone.lifting.operators import Concatenation, Rearrange
from onebyone.lifting.values import Cannot
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter
from onebyone.onnx.lift.single_nodes import evaluate


def rearrange(lifter: OnnxGraphLifter, node: ir.Node) -> Rearrange:
    """The operator itself runs on integers."""
    for number in range(1, len(node.inputs)):
        lifter.numbers(node, number)  # refuses settings that depend on the image

    def run(numbers: Integers) -> Any:
        results = lifter.run_on_integers(node, 0, numbers)
        return results[0] if len(results) == 1 else results

    return Rearrange(lifter.operand(node, 0), run)


def with_shape(lifter: OnnxGraphLifter, node: ir.Node) -> Rearrange:
    """Reshape and Expand. A shape that states the only batch that the model takes states it for every batch."""
    target, fixed = lifter.integers(node, 1), lifter.layout.batch
    value = lifter.lifted(lifter.operand(node, 0))
    if target is None or fixed is None or not target or target[0] != fixed:
        return rearrange(lifter, node)
    rank_kept = node.op_type == "Reshape" or len(target) == len(value.shape) + 1
    shape = np.asarray([BATCH if rank_kept else target[0], *target[1:]], dtype=np.int64)
    data, size = node.inputs[:2]
    assert data is not None
    assert size is not None

    def run(numbers: Integers) -> Any:
        return evaluate(node, {str(data.name): numbers, str(size.name): shape}, lifter.opset)[0]

    return Rearrange(value, run)


def concatenate(lifter: OnnxGraphLifter, node: ir.Node) -> Concatenation:
    parts = [lifter.operand(node, number) for number in range(len(node.inputs))]
    rank = len(lifter.inferred(node)[0][1])
    return Concatenation(parts, node.attributes.get_int("axis", 0) % rank - 1)


def select(lifter: OnnxGraphLifter, node: ir.Node) -> Rearrange:
    """Gather and the like; indices that depend on the image's pixels are refused."""
    try:
        for number in range(1, len(node.inputs)):
            lifter.numbers(node, number)
    except Cannot as error:
        raise Cannot("an index that depends on the image") from error
    return rearrange(lifter, node)


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(
        (
            "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Tile", "DepthToSpace",
            "SpaceToDepth",
        ),
        rearrange,
    ),
    **dict.fromkeys(("Reshape", "Expand"), with_shape),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), select),
    "Concat": concatenate,
}  # fmt: skip
