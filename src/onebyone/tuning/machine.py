"""What a measurement holds for: the processor, the libraries, the network and its inputs, as plain data."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARIES = ("onebyone", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")
_WIDTHS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The processor (and GPU) and what it can do.

    >>> sorted(describe_machine(torch.device("cpu")))
    ['cores', 'features', 'gpu', 'memory_gib', 'precision', 'processor', 'system']
    """
    name, flags = _processor()
    return {
        "processor": name,
        "features": [f for f in _WIDTHS if f in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precision": _precision(),
    }


def describe_versions() -> dict[str, str]:
    """The versions of what computes; libraries that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_network(network: nn.Module, operators: str) -> dict[str, Any]:
    """Its name, size, and two fingerprints: of its weights' names, shapes and types, and of its operators."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = [(name, list(t.shape), str(t.dtype)) for name, t in tensors]
    return {
        "name": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": _digest(sorted(map(str, shapes))),
        "operators": operators,
    }


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fingerprints what a run computes: every operator, its numbers and the shapes that it gives.

    Layout and tensors' values do not count, so it is the same wherever the network runs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        numbers = [a for a in args if isinstance(a, int | float | bool | list | tuple)]
        plain = [n for n in numbers if not isinstance(n, list | tuple) or all(isinstance(i, int) for i in n)]
        shape = list(out.shape) if isinstance(out, Tensor) else ""
        self._seen.append(f"{func} {plain} {shape}")
        return out

    @property
    def fingerprint(self) -> str:
        """Of everything seen."""
        return _digest(self._seen)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _processor() -> tuple[str, set[str]]:
    """The processor's name and feature flags, as Linux tells them; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines))}
    family = " ".join(f"{k} {found[k]}" for k in ("cpu family", "model", "stepping") if k in found)
    name = found.get("model name") or platform.machine()
    flags = found.get("flags") or found.get("Features") or ""
    return f"{name} ({family})" if family else name, set(flags.split())


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _precision() -> str:
    """How float32 products are computed: "highest" is IEEE, the others may round their inputs (TF32, bfloat16)."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer flags alone
        return "mixed"
