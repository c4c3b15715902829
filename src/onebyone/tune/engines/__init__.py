"""The engines a network can run under, one a file; importing this registers them, and none of their libraries."""

from onebyone.tune.engines import (  # noqa: I001  in the order they are tried
    eager as eager,
    compiled as compiled,
    ahead as ahead,
    onednn_graph as onednn_graph,
    own as own,
    onnx_runtime as onnx_runtime,
    open_vino as open_vino,
)
from onebyone.tune.engines.base import Engine, Setting, engine_of, engines_of, register_engine

__all__ = ["Engine", "Setting", "engine_of", "engines_of", "register_engine"]
