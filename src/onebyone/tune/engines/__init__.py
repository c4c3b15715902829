"""The engines a network can run under, one a file; importing this registers them, and none of their libraries."""

from onebyone.tune.engines import eager, compiled, onnx_runtime, open_vino  # noqa: F401, I001  in this order
from onebyone.tune.engines.base import Engine, Setting, engine_of, engines_of, register_engine

__all__ = ["Engine", "Setting", "engine_of", "engines_of", "register_engine"]
