"""What a measurement is valid for: the processor, the libraries, the network and its inputs, as plain data."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.tuning.background_load import available_cores
from onebyone.verification.calls import observe_operators

LIBRARIES = ("onebyone", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")
_VECTOR_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the processor (and GPU) and its vector instructions.

    >>> sorted(describe_machine(torch.device("cpu")))
    ['cores', 'features', 'gpu', 'memory_gib', 'precision', 'processor', 'system']
    """
    name, flags = _processor()
    return {
        "processor": name,
        "features": [f for f in _VECTOR_FEATURES if f in flags],
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precision": _matmul_precision(),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute, if they are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_network(network: nn.Module, operators: str) -> dict[str, Any]:
    """Return a network's name, size, and fingerprints of its weights (names, shapes, dtypes) and of its operators."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = [(name, list(t.shape), str(t.dtype)) for name, t in tensors]
    return {
        "name": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": _digest(sorted(map(str, shapes))),
        "operators": operators,
    }


def describe_onnx_model(model: Any) -> dict[str, Any]:
    """Return the same for an ONNX model of onnx-ir: fingerprints of its weights' names, shapes and types, and nodes."""
    weights = {str(name): value.const_value for name, value in model.graph.initializers.items()}
    shapes = [(name, list(t.shape.numpy()), str(t.dtype)) for name, t in weights.items()]
    plain = (int, float, str, tuple)
    nodes = []
    for node in model.graph.all_nodes():
        settings = sorted(
            f"{a.name}={a.value}" for a in node.attributes.values() if isinstance(a.value, plain)
        )
        nodes.append(f"{node.domain} {node.op_type} {[v and v.name for v in node.inputs]} {settings}")
    return {
        "name": str(model.graph.name),
        "parameters": sum(int(t.size) for t in weights.values()),
        "weights": _digest(sorted(map(str, shapes))),
        "operators": _digest(nodes),
    }


class OperatorFingerprint:
    """A fingerprint of what a run computes: every operator with its numeric arguments and the shape of its result.

    Memory layout and the values of tensors are not part of it, so it is the same on every machine.
    """

    def __init__(self) -> None:
        self._operators: list[str] = []

    def recording(self) -> AbstractContextManager[Any]:
        """Record the operators that run while the context is open."""
        return observe_operators(after=self._record)

    def _record(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        numbers = [a for a in args if isinstance(a, int | float | bool | list | tuple)]
        plain = [n for n in numbers if not isinstance(n, list | tuple) or all(isinstance(i, int) for i in n)]
        shape = list(result.shape) if isinstance(result, Tensor) else ""
        self._operators.append(f"{operator} {plain} {shape}")

    @property
    def digest(self) -> str:
        """The fingerprint of everything recorded."""
        return _digest(self._operators)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _processor() -> tuple[str, set[str]]:
    """Return the processor's name and feature flags from /proc/cpuinfo, or else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines))}
    family = " ".join(f"{k} {fields[k]}" for k in ("cpu family", "model", "stepping") if k in fields)
    name = fields.get("model name") or platform.machine()
    flags = fields.get("flags") or fields.get("Features") or ""
    return f"{name} ({family})" if family else name, set(flags.split())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _matmul_precision() -> str:
    """Return how float32 products are computed: "highest" is IEEE; others may round inputs to TF32 or bfloat16."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the precision was set through the newer flags, which this function cannot express
        return "mixed"
