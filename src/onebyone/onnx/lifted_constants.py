"""Turn Constant nodes into initializers, so that a weight is found in one place whoever exported it."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass


def lift_constants(model: ir.Model) -> None:
    """Lift the Constant nodes of the main graph and its subgraphs; functions have no initializers.

    A clone shares its tensors with the original, and lifting names them: so each is wrapped first.
    """
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and node.domain == "" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            shape = ir.Shape(tensor.shape.numpy())
            wrapped = ir.LazyTensor(partial(_itself, tensor), tensor.dtype, shape, name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", wrapped)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _itself(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor
