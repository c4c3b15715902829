"""Tables of torch's exporters that are the same at every export, computed once per process of a test session.

`torch.onnx.export` reads the source of each of onnxscript's 500 operators again at every export, for more than half of
the time of exporting a small network. `ExportedProgram.run_decompositions` looks up all composite operators of torch,
once per namespace of operators. Both are pure functions of what is imported. An installed version that names them
otherwise is tested without the caches, only slower.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def cache_tables_of_exporters() -> None:
    """Replace the two functions by ones that remember their results."""
    _cache_onnx_operators()
    _cache_composite_operators()


def _cache_onnx_operators() -> None:
    """Give every ONNX export a registry of its own, filled from one that is read once."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):
        return

    def from_torchlib(*arguments: Any, **options: Any) -> Any:
        complete = read(*arguments, **options)
        registry = ONNXRegistry()
        for name, value in vars(complete).items():
            setattr(registry, name, value)
        registry.functions = {target: list(found) for target, found in complete.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign, assignment]


def _cache_composite_operators() -> None:
    """Look up the operators again only after a library or a namespace of operators was added."""
    try:
        import torch
        from torch._export import utils

        look_up, namespaces, libraries = (
            utils._materialize_cpp_cia_ops, torch.ops._dir, torch.ops.loaded_libraries
        )  # fmt: skip
    except (ImportError, AttributeError):
        return
    looked_up: set[tuple[int, int]] = set()

    def materialize() -> None:
        registered = len(namespaces), len(libraries)
        if registered not in looked_up:
            look_up()
            looked_up.add((len(namespaces), len(libraries)))

    utils._materialize_cpp_cia_ops = materialize
