"""oneDNN Graph through TorchScript: a traced, frozen network whose subgraphs are fused and run by oneDNN.

This is PyTorch's own way to run whole subgraphs, including attention, in oneDNN in float32. It is built in seconds, and
runs on CPUs and in float32 only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import TORCH, Engine, EngineSettings, cpu_and_fixed_batch, register_engine
from onebyone.tuning.engines.exported_program import UnsupportedError

_PROFILING_CALLS = 3  # the first calls profile the shapes; then the subgraphs are compiled


def _build(network: nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
    if any(t.dtype != torch.float32 for t in signature.tensors if t.is_floating_point()):
        raise UnsupportedError("it fuses float32 only")
    if signature.kwargs:
        raise UnsupportedError("a trace takes its inputs by position only")
    with _fusion_enabled(), torch.no_grad():
        traced = torch.jit.trace(network, signature.args, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced.eval())
        for _ in range(_PROFILING_CALLS):
            signature.run(frozen)

    def call(*args: Any) -> Any:
        with torch.inference_mode():
            return frozen(*args)

    return call


@contextmanager
def _fusion_enabled() -> Iterator[None]:
    """Enable oneDNN Graph while tracing, and restore the setting afterwards."""
    before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.enable_onednn_fusion(True)
        try:
            yield
        finally:
            torch.jit.enable_onednn_fusion(before)


register_engine(
    Engine(
        "onednn-graph",
        _build,
        group=TORCH,
        tries_form=lambda form: form in ("original", "conv", "winograd"),
        why_unavailable=cpu_and_fixed_batch("a trace is valid only for the shapes that it was made on"),
    )
)
