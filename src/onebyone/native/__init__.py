"""An inference engine for CPUs: exported networks as steps that C++ kernels run, in float32. See docs/native.md."""

from onebyone.native.compiled_network import CompiledNetwork, compile_network, require_compiler
from onebyone.native.unsupported import UnsupportedError

__all__ = ["CompiledNetwork", "UnsupportedError", "compile_network", "require_compiler"]
