"""Infer the shapes and element types of a model's values."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

_logger = logging.getLogger(__name__)


def infer_shapes(model: ir.Model) -> None:
    """Fill in shapes and element types where ONNX's own inference finds them; what is unknown stays unknown."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
