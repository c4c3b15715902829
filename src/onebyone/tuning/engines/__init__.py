"""The engines a network can run under, one a file; importing this registers them, and none of their libraries."""

from onebyone.tuning.engines import (  # noqa: I001  in the order they are tried
    eager as eager,
    torch_compile as torch_compile,
    aot_inductor as aot_inductor,
    onednn_graph as onednn_graph,
    native as native,
    onnx_runtime as onnx_runtime,
    open_vino as open_vino,
)
from onebyone.tuning.engines.base import Engine, EngineSetting, engine_of, engines_of, register_engine

__all__ = ["Engine", "EngineSetting", "engine_of", "engines_of", "register_engine"]
