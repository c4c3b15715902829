"""The engines that can run a network, one per file. Importing this registers them; it imports no library of theirs."""

from onebyone.tuning.engines import (  # noqa: I001  in the order in which they are tried
    eager as eager,
    torch_compile as torch_compile,
    aot_inductor as aot_inductor,
    onednn_graph as onednn_graph,
    native as native,
    onnx_runtime as onnx_runtime,
    open_vino as open_vino,
)
from onebyone.tuning.engines.base import (
    Engine,
    EngineSettings,
    engine_named,
    engines_named,
    register_engine,
)

__all__ = ["Engine", "EngineSettings", "engine_named", "engines_named", "register_engine"]
