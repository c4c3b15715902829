"""Infer the shapes and element types of a model's values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onebyone.onnx import map_types


@contextmanager
def quiet() -> Iterator[None]:
    """Keep onnx-ir from logging what it finds wrong with a model; faults that matter become errors of our own."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def infer_shapes(model: ir.Model) -> None:
    """Fill in shapes and element types where ONNX's own inference finds them; what is unknown stays unknown."""
    if not map_types.has_maps(model):
        _infer(model)
        return
    copy = map_types.without_maps(model)
    _infer(copy)
    inferred = {value.name: value for node in copy.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in inferred:
                value.type, value.shape = inferred[value.name].type, inferred[value.name].shape


def _infer(model: ir.Model) -> None:
    with quiet():
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
